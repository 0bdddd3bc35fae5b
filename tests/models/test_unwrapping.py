"""Checkpoints of training scripts with containers, prefixes and other content; many are generated."""

import argparse
import collections
import datetime
import enum
import itertools
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from make.clips import SMALL_VIT, random_clip
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

import probe
from probe.errors import MAX_MESSAGE, CheckpointError
from probe.models import get_model
from probe.models.checkpoints import read_checkpoint
from probe.models.loading import load_encoder
from probe.models.unwrapping import MAX_KEY, WHOLE, find_clips

MODEL = random_clip(SMALL_VIT)
WEIGHTS = MODEL.state_dict()
OTHER_WEIGHTS = random_clip(SMALL_VIT, seed=1).state_dict()
SIZES = {"input_resolution": 32, "context_length": 12, "vocab_size": 100}


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    """Subclass of dict, like the configurations of yacs, easydict and mmcv."""


def prefixed(prefix, state_dict=WEIGHTS):
    return {f"{prefix}{name}": tensor for name, tensor in state_dict.items()}


def averaged():
    """Return an average of weights as torchvision's training script saves it: with a count."""
    return AveragedModel(MODEL).state_dict()


def compiled():
    return torch.compile(MODEL).state_dict()  # torch compiles at the first call, and this test makes none


def layer_wise():
    """Return the weights of a model of which single blocks were compiled."""
    return {name.replace("resblocks.0.", "resblocks.0._orig_mod."): tensor for name, tensor in WEIGHTS.items()}


FORMS = {
    "model_state_dict": lambda: {"epoch": 1, "model_state_dict": WEIGHTS},
    "model": lambda: {"model": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "module": lambda: {"module": WEIGHTS, "ds_version": "0.14"},
    "net": lambda: {"net": WEIGHTS},
    "ema": lambda: {"ema": WEIGHTS},
    "model_ema": lambda: {"model_ema": prefixed("module.")},
    "state_dict_ema": lambda: {"state_dict_ema": WEIGHTS},
    "nested": lambda: {"checkpoint": {"weights": {"clip": WEIGHTS}}},
    "a list": lambda: [WEIGHTS, {"lr": 0.1}],
    "sizes": lambda: {**WEIGHTS, **SIZES},
    "sizes as tensors below a prefix": lambda: prefixed(
        "model.", {**WEIGHTS, **{name: torch.tensor(size) for name, size in SIZES.items()}}
    ),
    "compiled": compiled,
    "compiled blocks": layer_wise,
    "sharded": lambda: prefixed("_fsdp_wrapped_module._checkpoint_wrapped_module."),
    "DDP around compile": lambda: prefixed("module._orig_mod."),
    "Lightning": lambda: {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.4"},
    "Lightning, DDP and compile": lambda: {"state_dict": prefixed("model._orig_mod.module.clip.")},
    "average": averaged,
    "parameters": lambda: dict(MODEL.named_parameters()),
    "arguments": lambda: {"state_dict": WEIGHTS, "args": argparse.Namespace(lr=1e-5, out=Path("runs"))},
    "best score": lambda: {"model": WEIGHTS, "best": np.float64(0.5), "rates": np.arange(3)},
    "configuration": lambda: {"config": Config(lr=1, model=Config(depth=2)), "state_dict": WEIGHTS},
    "defaultdict": lambda: {"log": collections.defaultdict(list, loss=[1.0]), "state_dict": WEIGHTS},
    "objects": lambda: {"at": datetime.datetime(2026, 1, 1), "kind": Colour.RED, "kinds": {Colour.RED}, "net": WEIGHTS},
    "optimizer": lambda: {"optimizer": torch.optim.SGD(MODEL.parameters(), lr=0.1), "net": WEIGHTS},
}


SLOW = pytest.param("compiled", marks=pytest.mark.slow)  # torch's compiler takes seconds to be imported


def assert_same_weights(path, *, key=""):
    found = read_checkpoint(path, key=key)
    assert found.architecture == SMALL_VIT
    assert found.state_dict.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in WEIGHTS.items())
    return found


@pytest.mark.parametrize("form", [f for f in FORMS if f != "compiled"] + [SLOW])
def test_checkpoints_of_training_scripts_are_read(form, tmp_path):
    torch.save(FORMS[form](), tmp_path / "model.pt")
    assert_same_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.clip.", "module.model._orig_mod."])
def test_safetensors_with_prefixes_are_read(prefix, tmp_path):
    save_file(prefixed(prefix), tmp_path / "model.safetensors")
    assert_same_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize("form", ["model_state_dict", "Lightning, DDP and compile", "sizes"])
def test_the_form_of_older_versions_of_torch_is_read(form, tmp_path):
    torch.save(FORMS[form](), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert_same_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("form", ["model_state_dict", "Lightning", "objects", "parameters"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_newer_pickle_protocols_are_read(form, protocol, tmp_path):
    torch.save(FORMS[form](), tmp_path / "model.pt", pickle_protocol=protocol)
    assert_same_weights(tmp_path / "model.pt")


def test_tensors_next_to_the_model_are_named_and_not_used(tmp_path, caplog):
    """A Lightning module also contains its loss."""
    content = {"state_dict": {**prefixed("clip."), "loss.labels": torch.arange(3), "head.weight": torch.zeros(2, 2)}}
    torch.save(content, tmp_path / "model.ckpt")
    assert assert_same_weights(tmp_path / "model.ckpt").key == "state_dict.clip"
    assert (
        "2 tensors are not part of the CLIP model under state_dict.clip and are not used: loss.labels, head"
        in caplog.text
    )


def test_tensors_among_those_of_the_model_are_an_error(tmp_path):
    """Without a prefix, additional tensors, such as an adapter's, cannot be told from the model's own."""
    torch.save({**WEIGHTS, "visual.adapter.weight": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"unknown key 'visual.adapter.weight'"):
        load_encoder(tmp_path / "model.pt", device="cpu")


SEVERAL = {
    "an average next to it": ({"state_dict": OTHER_WEIGHTS, "state_dict_ema": prefixed("module.")}, "state_dict_ema"),
    "student and teacher": (
        {"model": {**prefixed("student."), **prefixed("teacher.", OTHER_WEIGHTS)}},
        "model.student",
    ),
    "a teacher inside": ({**WEIGHTS, **prefixed("teacher.", OTHER_WEIGHTS)}, WHOLE),
    "a list": ([OTHER_WEIGHTS, WEIGHTS], "1"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_of_several_models_the_user_chooses_one(case, tmp_path):
    content, key = SEVERAL[case]
    path = tmp_path / "model.pt"
    torch.save(content, path)
    keys = [model.key for model in find_clips(content)]
    assert len(keys) == 2
    with pytest.raises(CheckpointError) as raised:
        load_encoder(path, device="cpu")
    assert f"contains 2 CLIP models; add one of these to the path: ?key={keys[0]}, ?key={keys[1]}" in str(raised.value)
    chosen = load_encoder(f"{path}?key={key}", device="cpu")
    assert chosen.name == f"{path}?key={key}"
    assert chosen.weights_key == key
    assert_same_weights(path, key=key)


@pytest.mark.slow
def test_each_model_of_a_file_has_features_and_records_of_its_own(image_folder, tmp_path):
    images = image_folder(
        {"train/red": 6, "train/green": 6, "val/red": 2, "val/green": 2, "test/red": 2, "test/green": 2}
    )
    torch.save({"state_dict": OTHER_WEIGHTS, "ema": WEIGHTS}, tmp_path / "model.pt")
    torch.save({"state_dict": OTHER_WEIGHTS}, tmp_path / "other.pt")
    torch.save(WEIGHTS, tmp_path / "plain.pt")
    models = [
        tmp_path / "plain.pt",
        tmp_path / "other.pt",
        *(f"{tmp_path}/model.pt?key={k}" for k in ("ema", "state_dict")),
    ]
    folders = {"cache_dir": tmp_path / "cache", "results_dir": tmp_path / "results"}
    records = [
        probe.run(f"folder:{images}", model=model, protocol="readme", device="cpu", **folders) for model in models
    ]
    plain, other, ema, state_dict = [record.features["test"].sha256 for record in records]
    assert plain == ema != state_dict == other
    assert [record.encoder.weights_key for record in records] == ["", "state_dict", "ema", "state_dict"]
    assert len(list((tmp_path / "results" / "records").rglob("*.json"))) == 4


def test_a_key_without_a_model_is_named(tmp_path):
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"no CLIP model under the key 'ema'; use one of the keys of its models: state_dict$"
    ):
        load_encoder(f"{tmp_path}/model.pt?key=ema", device="cpu")


@pytest.mark.parametrize("missing", ["logit_scale", "visual.proj", "text_projection", "ln_final.bias"])
def test_the_missing_weights_of_a_model_are_named(missing, tmp_path):
    weights = {name: tensor for name, tensor in WEIGHTS.items() if name != missing}
    torch.save({"state_dict": prefixed("model.clip.", weights)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=rf"has no '{missing}'"):
        load_encoder(tmp_path / "model.pt", device="cpu")


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


OBJECTS = {
    "a whole model": (Whole(), r"tests\.models\.test_unwrapping\.Whole, torch\.nn\.modules\.linear\.Linear"),
    "a whole model in a container": ({"model": Whole(), "epoch": 1}, r"tests\.models\.test_unwrapping\.Whole"),
    "a model of numpy": ({"state_dict": {"visual.proj": np.zeros(2)}}, r"numpy.*_reconstruct"),
}


@pytest.mark.parametrize("case", OBJECTS)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older form"])
def test_objects_are_named_and_not_called_damage(case, is_zip, tmp_path):
    content, named = OBJECTS[case]
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        CheckpointError, match=rf"model\.pt contains pickled objects \({named}.*torch\.save\(model\.state_"
    ):
        read_checkpoint(tmp_path / "model.pt")


def test_arguments_in_the_older_form_are_named(tmp_path):
    torch.save(
        {"m": WEIGHTS, "args": argparse.Namespace(lr=1)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False
    )
    with pytest.raises(CheckpointError, match=r"contains pickled objects \(argparse\.Namespace\)"):
        read_checkpoint(tmp_path / "m.pt")


class Payload:
    """An object that makes an ordinary unpickler call a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_next_to_code_are_read_without_running_the_code(protocol, tmp_path):
    target = tmp_path / "ran"
    payloads = [
        Payload(Path.touch, target),
        Payload(eval, f"open({str(target)!r}, 'w')"),
        Payload(getattr, target, "touch"),
        Payload(exec, f"open({str(target)!r}, 'w')"),
        Payload(torch.load, str(target)),
        Payload(torch.serialization.add_safe_globals, [Path]),
    ]
    allowed = set(torch.serialization.get_safe_globals())
    torch.save({"hooks": payloads, "state_dict": WEIGHTS}, tmp_path / "model.pt", pickle_protocol=protocol)
    assert_same_weights(tmp_path / "model.pt")
    assert not target.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older form"])
def test_shards_of_a_distributed_model_are_named(is_zip, tmp_path):
    """By default, FSDP saves shards instead of the whole state dict."""
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        shards = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in WEIGHTS.items() if tensor.ndim}
        torch.save({"state_dict": {**WEIGHTS, **shards}}, tmp_path / "model.pt", _use_new_zipfile_serialization=is_zip)
    finally:
        destroy_process_group()
    with pytest.raises(
        CheckpointError, match=r"'positional_embedding' as a sparse, quantized or sharded tensor; save a plain state_"
    ):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_folder_of_a_distributed_checkpoint_is_named(tmp_path):
    from torch.distributed import checkpoint

    checkpoint.save({"model": WEIGHTS}, checkpoint_id=tmp_path / "step_1", no_dist=True)
    for path in (tmp_path / "step_1", tmp_path / "step_1" / "__0_0.distcp"):
        with pytest.raises(
            CheckpointError, match="is a distributed checkpoint; convert it to one file with python -m torch"
        ):
            load_encoder(path, device="cpu")


def test_content_that_contains_itself_is_read(tmp_path):
    content = {"state_dict": WEIGHTS, "again": []}
    content["again"].append(content)
    torch.save(content, tmp_path / "model.pt")
    assert_same_weights(tmp_path / "model.pt")


KEYS = [10**5000, -(10**5000), "k" * (MAX_KEY + 1), (1,) * 10_000, torch.zeros(1000), None, 1.5, b"bytes"]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_keys_without_a_short_form_are_skipped(key, tmp_path):
    assert find_clips({key: WEIGHTS}) == []
    if not isinstance(key, torch.Tensor):
        torch.save({key: {"a": WEIGHTS}, "model": WEIGHTS}, tmp_path / "m.pt")
        assert read_checkpoint(tmp_path / "m.pt").key == "model"


def test_deep_containers_are_skipped():
    content = WEIGHTS
    for _ in range(5_000):
        content = [content]
    assert find_clips(content) == []


def test_each_model_has_a_key_of_its_own(tmp_path):
    others = [random_clip(SMALL_VIT, seed=seed).state_dict() for seed in (1, 2)]
    content = {"a.b": WEIGHTS, "a": {"b": others[0]}, "x": {1: others[1], "1": dict(others[1])}}
    assert [model.key for model in find_clips(content)] == ["a.b", "a.b#2", "x.1", "x.1#2"]
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"\?key=a\.b, \?key=a\.b#2, \?key=x\.1, \?key=x\.1#2$"):
        read_checkpoint(tmp_path / "m.pt")
    for key, weights in (("a.b", WEIGHTS), ("a.b#2", others[0]), ("x.1#2", others[1])):
        found = read_checkpoint(tmp_path / "m.pt", key=key).state_dict
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_a_tensor_with_strides_of_0_is_named(tmp_path):
    torch.save({**WEIGHTS, "text_projection": torch.zeros(1).expand(2**16, 2**16)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="'text_projection' as an expanded view; save a contiguous copy"):
        read_checkpoint(tmp_path / "m.pt")


def test_attributes_of_a_state_dict_are_not_called():
    """Torch sets attributes that the file names, and one of them can be called `items` like the method."""
    table = collections.OrderedDict(WEIGHTS)
    table.items = None
    assert [model.key for model in find_clips({"state_dict": table})] == ["state_dict"]


PREFIXES = ("module.", "_orig_mod.", "model.", "clip.", "net.", "_fsdp_wrapped_module.", "backbone.encoder.", "0.")
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "ema", "weights", "a.b", "x/y", "ключ", "")
COMPANIONS = (
    lambda: 3,
    lambda: "text",
    lambda: None,
    lambda: [1.5, {"a": (1, 2)}, set()],
    lambda: torch.arange(4),
    lambda: {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    lambda: {"layer1.0.conv1.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)},
    lambda: collections.OrderedDict(a=1),
    lambda: argparse.Namespace(lr=0.1, name="run"),
    lambda: np.float32(0.5),
    lambda: np.random.default_rng(0),
    lambda: Path("a/b"),
    lambda: datetime.timedelta(days=1),
    lambda: Colour.RED,
    lambda: Config(a=Config(b=1)),
    lambda: collections.defaultdict(dict, a={"b": torch.zeros(1)}),
    lambda: collections.deque([1, 2], maxlen=5),
    lambda: collections.Counter("abc"),
    lambda: torch.nn.Linear(2, 2),
    lambda: torch.device("cpu"),
    lambda: torch.float16,
    lambda: torch.Size([1, 2]),
    lambda: slice(1, 2),
    lambda: ValueError("text"),
)


def wrap(rng):
    """Return the weights in random prefixes and containers, with other content."""
    content = dict(WEIGHTS)
    if rng.random() < 0.3:
        content |= SIZES if rng.random() < 0.5 else {name: torch.tensor(size) for name, size in SIZES.items()}
    prefix = "".join(rng.choice(PREFIXES) for _ in range(rng.randrange(4)))
    content = prefixed(prefix, content)
    if not all(part.startswith("_") for part in prefix.split(".")[:-1]) and rng.random() < 0.3:
        content |= {"criterion.labels": torch.arange(3), "n_averaged": torch.tensor(2)}
    content = dict(rng.sample(list(content.items()), len(content)))
    for _ in range(rng.randrange(4)):
        if rng.random() < 0.1:
            content = [content, 1]
            continue
        beside = {f"c{i}": rng.choice(COMPANIONS)() for i in range(rng.randrange(4))}
        content = dict(rng.sample(list(({rng.choice(CONTAINERS): content} | beside).items()), len(beside) + 1))
    return content


def write(content, path, rng):
    """Save the content in a random form that supports it."""
    is_flat = isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())
    if is_flat and rng.random() < 0.5:
        save_file(content, path)
        return
    torch.save(content, path, pickle_protocol=rng.choice([2, 2, 2, 4, 5]))


@pytest.mark.slow
def test_generated_wrappings_load_to_identical_features(tmp_path):
    rng = random.Random(18)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(18))
    torch.save(WEIGHTS, tmp_path / "plain.pt")
    expected = load_encoder(tmp_path / "plain.pt", device="cpu").encode(pixels)
    for i in range(150):
        path = tmp_path / f"{i}.pt"
        write(wrap(rng), path, rng)
        found = load_encoder(path, device="cpu").encode(pixels)
        assert torch.equal(found.projected, expected.projected), i
        assert torch.equal(found.pre_projection, expected.pre_projection), i
        path.unlink()


def spoil(rng):
    """Return content without a complete CLIP model."""
    wanted = rng.randrange(4)
    if wanted == 0:
        return rng.choice(COMPANIONS)()
    if wanted == 1:
        return {f"c{i}": rng.choice(COMPANIONS)() for i in range(rng.randrange(5))}
    if wanted == 2:
        missing = rng.choice(["logit_scale", "visual.conv1.weight", "text_projection", "visual.proj", "ln_final.bias"])
        return {"state_dict": prefixed("model.", {n: t for n, t in WEIGHTS.items() if n != missing})}
    return {rng.choice(CONTAINERS): {n: t for n, t in WEIGHTS.items() if n.startswith(rng.choice(["visual", "tok"]))}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_generated_files_of_something_else_get_one_sentence(tmp_path):
    rng = random.Random(18)
    for i, is_zip, is_cut in itertools.product(range(100), [True, False], [False, True]):
        path = tmp_path / "model.pt"
        if rng.random() < 0.1:
            path.write_bytes(pickle.dumps(rng.choice(COMPANIONS)(), protocol=rng.choice([0, 2, 4])))
        else:
            torch.save(spoil(rng), path, _use_new_zipfile_serialization=is_zip)
        if is_cut:
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        with pytest.raises(CheckpointError) as raised:
            load_encoder(path, device="cpu")
        message = str(raised.value)
        assert "; " in message, i
        assert "\n" not in message, i
        assert len(message) <= MAX_MESSAGE, i


@pytest.mark.parametrize("option", ["?kee=ema", "?preprocess=open_clip", "?"])
def test_an_unknown_option_of_a_checkpoint_is_named(option, tmp_path):
    """The message reports the option instead of a missing file."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"weights\.pt: unknown option .*; the options of a checkpoint are \?key=KEY"
    ):
        get_model(f"{path}{option}")


def test_a_key_of_a_plain_state_dict_is_not_needed(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(random_clip(SMALL_VIT).state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"contains one CLIP model without a container; leave out \?key=state_dict"
    ):
        read_checkpoint(path, key="state_dict")
