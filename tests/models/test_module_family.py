"""An encoder of one's own runs like every other: same features as its own loop, cache, record, and plain errors."""

import copy
import json
import math
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from make.colours import write_colours
from make.kills import KILLED, run_command
from make.own_modules import SIDE, WIDTH, Patches, make_own, make_patches, scale, write_own
from torch import nn
from torchvision.transforms import Compose, Lambda

import probe
from probe import grid
from probe.cli.main import main
from probe.datasets.opening import open_split
from probe.errors import CheckpointError, CheckpointMissingError, ExecutorError, FeaturesError, UnknownNameError
from probe.models import description, get_model, own, own_files
from probe.models.encoder import tensors_sha256
from probe.models.preprocess import Preprocess
from probe.models.sizes import find_sizes
from probe.records.record import read_record, read_records, run_path
from probe.runner import run_grid
from probe.scale.driver import refuse_encoders_in_memory
from probe.settings import Settings


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    """Use an empty folder, and forget the encoders afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "REGISTERED", {})
    monkeypatch.setattr(own_files, "LOADED", {})


@pytest.fixture
def run(tmp_path):
    """Return a function that runs an encoder on a small dataset, with folders of this test."""
    dataset = write_colours(tmp_path)

    def start(model, **options):
        folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache"}
        return probe.run(dataset, model=model, protocol="readme", device="cpu", **folders, **options)

    return start


def test_features_equal_those_of_the_users_own_loop(tmp_path):
    """The module sees contiguous images in eval mode; 1e-6 is a few roundings in another order."""
    images = open_split(write_colours(tmp_path), "test")
    features = probe.extract_features(make_own(), images)
    module = make_patches().eval()
    with torch.no_grad():
        expected = module(torch.stack([torch.tensor(scale(images[i][0])) for i in range(len(images))]))
    np.testing.assert_allclose(features.x, expected.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(features.x, features.pre_projection)


def test_the_record_says_what_ran(run, tmp_path):
    encoder = replace(make_own(), license="MIT")
    record = run(encoder)
    spec = record.spec.model
    assert (spec.name, spec.form, record.precision, record.mode) == ("mine", "module", "fp32", "eager")
    assert record.encoder.weights_sha256 == spec.sha256 == tensors_sha256(encoder.module.state_dict())
    assert (record.encoder.license, record.encoder.embed_dim, record.encoder.has_projection) == ("MIT", WIDTH, False)
    assert record.encoder.preprocess.function == "<function scale>"  # without an address
    assert read_record(run_path(record.spec, tmp_path / "results")) == record


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_users_module_stays_as_it_is(precision):
    module = make_patches().train()
    before = copy.deepcopy(module.state_dict())
    encoder = probe.load_encoder(own.Encoder(module, scale, name="mine"), device="cpu", precision=precision)
    encoder.encode(torch.rand(3, 3, SIDE, SIDE))
    assert module.training
    assert {name: (value.dtype, value.device) for name, value in module.state_dict().items()} == {
        name: (value.dtype, value.device) for name, value in before.items()
    }
    assert encoder.weights_dtypes == ("float32" if precision == "fp32" else "bfloat16",)


def test_the_same_encoder_uses_the_cache_and_the_record(run):
    first = run(make_own())
    assert run(make_own()) == first  # a copy with the same weights
    assert run(make_own(), rerun=True).extraction.from_cache


@pytest.mark.slow
def test_changes_of_weights_code_and_preprocessing_are_noticed(run):
    class OtherCode(Patches):
        def forward(self, images):
            return -super().forward(images)

    other = OtherCode()
    other.load_state_dict(make_patches().state_dict())
    identities = [run(make_own()).extraction.weights]
    for changed in (
        make_own(seed=1),
        own.Encoder(other, scale, name="mine"),
        own.Encoder(make_patches(), lambda image: 1 - scale(image), name="mine"),
        own.Encoder(make_patches(), partial(scale), name="mine"),
        own.Encoder(make_patches(), Preprocess(SIDE), name="mine"),
        own.Encoder(make_patches(), Preprocess(SIDE, resize="squash"), name="mine"),
    ):
        record = run(changed)
        assert not record.extraction.from_cache
        identities.append(record.extraction.weights)
    assert len(set(identities)) == len(identities)


def test_functions_inside_a_preprocessing_are_noticed():
    def half(image):
        return scale(image) / 2

    def third(image):
        return scale(image) / 3

    def hide(function):
        function.__qualname__ = "same"
        return function

    for wrap in (partial, Lambda, lambda function: Compose([function])):
        digests = {
            own.examine(own.Encoder(make_patches(), wrap(hide(function)), name="mine")).identity
            for function in (half, third)
        }
        assert len(digests) == 2


def test_the_code_of_base_classes_is_part_of_the_identity():
    class Derived(Patches):
        pass

    names = [name for name, code in own._sources_of(iter([Derived()])) if "class" in code]
    assert names == ["Patches", Derived.__qualname__]


def test_another_name_does_not_use_the_same_cache(run):
    run(make_own())
    assert not run(make_own("other")).extraction.from_cache


def test_a_preprocess_of_this_package_and_its_transform_give_the_same_features(tmp_path):
    images, preprocess = open_split(write_colours(tmp_path), "test"), Preprocess(SIDE)
    ours, transform = (
        probe.extract_features(own.Encoder(make_patches(), one, name="mine"), images)
        for one in (preprocess, preprocess.transform)
    )
    np.testing.assert_array_equal(ours.x, transform.x)


@pytest.mark.slow
def test_an_interrupted_run_continues_with_the_missing_chunks(tmp_path):
    """The module fails at the third batch of the first run; the second run encodes only the rest."""
    seen, limit = [], 3

    class Counting(Patches):
        def forward(self, images):
            seen.append(len(images))
            if len(seen) > limit:
                raise ValueError("interrupted")
            return super().forward(images)

    module = Counting()
    module.load_state_dict(make_patches().state_dict())
    encoder = own.Encoder(module, scale, name="mine")
    options = {"protocol": "readme", "device": "cpu", "batch_size": 256}
    folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match="interrupted"):
        probe.run("digits", model=encoder, **options, **folders)
    seen.clear()
    limit = 100
    record = probe.run("digits", model=encoder, **options, **folders)
    assert seen[0] == 2  # the black images that show the width
    assert sum(seen[1:]) < 1797
    whole = probe.run("digits", model=encoder, **options, results_dir=tmp_path / "again", cache_dir=tmp_path / "new")
    assert whole.features == record.features


@pytest.mark.parametrize("name", ["", " ", "ViT-B/32", "tiny", "random:tiny", "hf:a/b", "module:x.py:f", "open_clip:x"])
def test_names_with_another_meaning_are_refused(name):
    with pytest.raises(CheckpointError):
        make_own(name)


def test_two_encoders_of_one_name_are_refused():
    with pytest.raises(UnknownNameError, match="two different specifications have the name 'mine'"):
        grid.plan(["digits"], [make_own(), make_own(seed=1)])
    negative = own.Encoder(make_patches(), lambda image: -scale(image), name="mine")
    with pytest.raises(UnknownNameError, match="two different specifications have the name 'mine'"):
        grid.plan(["digits"], [make_own(), negative])
    assert len(grid.plan(["digits"], [make_own(), make_own(), make_own("other")], device="cpu")) == 2


def test_an_object_that_is_not_a_model_is_refused():
    with pytest.raises(CheckpointError, match=r"got a Patches; wrap your own module as probe.Encoder"):
        grid.plan(["digits"], [make_patches()])
    with pytest.raises(CheckpointError, match=r"expected a torch.nn.Module as the encoder, got a function"):
        own.Encoder(scale, scale, name="mine")


class Returning(nn.Module):
    """A module that returns the result of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x.mean((2, 3)), x), "returned a tuple for 2 images"),
        (lambda x: {"features": x}, "returned a dict for 2 images"),
        (lambda x: x, r"returned the shape \(2, 3, 16, 16\) for 2 images"),
        (lambda x: x.mean((2, 3))[:1], r"returned the shape \(1, 3\) for 2 images"),
        (lambda x: x.mean((2, 3)).long(), "returned torch.int64 for 2 images"),
        (lambda x: [].index(x), "the module raised ValueError for images"),
    ],
)
def test_a_module_that_returns_something_else_is_one_sentence(function, message):
    encoder = own.Encoder(Returning(function), scale, name="mine")
    with pytest.raises(CheckpointError, match=f"mine.*{message}"):
        probe.load_encoder(encoder, device="cpu")


def test_rows_are_counted_in_every_batch(run):
    """The module returns two rows, as many as the trial has images."""
    with pytest.raises(CheckpointError, match=r"mine returned the shape \(2, 3\) for \d+ images"):
        run(own.Encoder(Returning(lambda x: x.mean((2, 3))[:2]), scale, name="mine"))


def test_features_that_are_not_finite_are_refused(run):
    with pytest.raises(FeaturesError, match="not finite"):
        run(own.Encoder(Returning(lambda x: x.mean((2, 3)) * math.nan), scale, name="mine"))


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (lambda image: image, "the preprocessing returned a Image"),
        (lambda image: np.asarray(image), r"returned an array \(320, 400, 3\) of uint8"),
        (lambda image: scale(image)[:1], r"returned an array \(1, 16, 16\) of float32"),
        (lambda image: torch.tensor(scale(image))[None], r"returned a tensor \(1, 3, 16, 16\) of torch.float32"),
        (lambda image: scale(image) + np.random.default_rng().random(), "remove its random steps"),
        (lambda image: image.missing, r"raised AttributeError for an image of 400 x 320 pixels"),
    ],
)
def test_a_preprocessing_that_cannot_be_used_is_one_sentence(preprocess, message):
    with pytest.raises(CheckpointError, match=f"mine: the preprocessing.*{message}|mine: {message}"):
        grid.plan(["digits"], [own.Encoder(make_patches(), preprocess, name="mine")])


def test_images_of_different_shapes_are_refused(run):
    def keep_size(image):
        return np.asarray(image, dtype=np.float32).transpose(2, 0, 1)

    with pytest.raises(
        FeaturesError, match=r"keep_size.* returned the shape .* return \(3, 320, 400\) for every image"
    ):
        run(own.Encoder(Returning(lambda x: x.mean((2, 3))), keep_size, name="mine"))


def test_weights_that_change_after_planning_are_refused(tmp_path):
    encoder = make_own()
    specs = grid.plan([write_colours(tmp_path)], [encoder], protocols=["readme"], device="cpu")
    with torch.no_grad():
        encoder.module.convolution.bias.add_(1)
    (record,) = run_grid(specs, Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "cache"))
    assert record.error.message == "the weights of mine changed after the run was planned; start the run again"


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        module = Patches()
    with pytest.raises(CheckpointError, match="mine: the weights of the module cannot be read"):
        own.Encoder(module, scale, name="mine").register()


def test_another_process_is_told_to_use_a_file(run):
    record = run(make_own())
    own.REGISTERED.clear()
    again = probe.reproduce(record)
    assert again.verdict == "not run"
    assert "made in another process of Python; give module:FILE.py:FUNCTION as the model" in again.reason
    with pytest.raises(ExecutorError, match=r"workers of Ray cannot load the encoder 'mine'.*module:FILE.py:FUNCTION"):
        refuse_encoders_in_memory([record.spec])


@pytest.mark.slow
def test_a_record_is_reproduced_in_the_same_process(run):
    assert probe.reproduce(run(make_own())).verdict == "identical"


def test_a_head_knows_its_encoder(run, tmp_path):
    run(make_own(), save_heads=True)
    (path,) = (tmp_path / "results/heads").rglob("*.safetensors")
    head = probe.load_head(path)
    images = [tmp_path / "images/test/red/0.png"]
    expected = head.predict(images, device="cpu").images
    assert head.predict(images, encoder=probe.load_encoder(make_own(), device="cpu")).images == expected
    with pytest.raises(probe.ProbeError):
        head.predict(images, encoder=probe.load_encoder(make_own(seed=1), device="cpu"))


def _run_file(tmp_path, model, *options):
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    command = ["run", "--dataset", write_colours(tmp_path), "--model", model, "--protocol", "readme"]
    return main([*command, "--device", "cpu", *folders, *options])


@pytest.mark.slow
def test_a_file_runs_from_the_command_line(tmp_path, capsys):
    """Prints of the user's code go to stderr. The record can be reproduced and compared."""
    write_own(tmp_path)
    assert _run_file(tmp_path, "module:own.py:make_encoder", "--json") == 0
    printed = capsys.readouterr()
    assert "loading" in printed.err
    json.loads(printed.out)
    (path,) = (tmp_path / "results/records").rglob("*.json")
    record = read_record(path)
    assert (record.model, record.spec.model.source) == ("from-file", "own.py:make_encoder")
    own_files.LOADED.clear()  # as in another process
    assert main(["reproduce", str(path)]) == 0
    assert "identical" in capsys.readouterr().out
    assert main(["diff", str(path), str(path)]) == 0


@pytest.mark.slow
def test_a_killed_command_continues(tmp_path):
    """The command is killed when some chunks are cached; the next command gives the same features as one in one go."""
    write_own(tmp_path)
    command = ["run", "--dataset", "digits", "--model", "module:own.py:make_encoder", "--protocol", "readme"]
    command += ["--device", "cpu", "--offline", "--cache-dir", str(tmp_path / "work"), "--results-dir"]
    output, work = tmp_path / "output", tmp_path / "work"
    assert run_command([*command, str(tmp_path / "killed")], output, watched=work, moment=40) == KILLED
    chunks = len(list(work.rglob("*.npz")))
    assert 0 < chunks < 8
    assert run_command([*command, str(tmp_path / "killed")], output, watched=work) == 0
    shutil.rmtree(work)
    assert run_command([*command, str(tmp_path / "whole")], output, watched=work) == 0
    killed, whole = (read_records(tmp_path / name)[0] for name in ("killed", "whole"))
    assert killed.extraction.subsets["all"].images == 1797 - 256 * chunks
    assert killed.features == whole.features


def test_absolute_paths_below_the_current_folder_become_relative(tmp_path):
    path = write_own(tmp_path)
    assert probe.get_model(f"module:{path}:make_encoder") == probe.get_model("module:own.py:make_encoder")


def test_a_pair_has_the_name_of_its_file_and_function(tmp_path):
    write_own(tmp_path)
    assert probe.get_model("module:own.py:make_pair").name == "own.py:make_pair"


@pytest.mark.slow
def test_changed_weights_of_a_file_are_noticed(tmp_path):
    """A run is repeated with the new weights, and a record of the old ones is not reproduced."""
    write_own(tmp_path)
    assert _run_file(tmp_path, "module:own.py:make_encoder") == 0
    (path,) = (tmp_path / "results/records").rglob("*.json")
    record = read_record(path)
    text = (tmp_path / "own.py").read_text().replace("neighbour.SEED", "4 + neighbour.SEED")
    (tmp_path / "own.py").write_text(text)
    own_files.LOADED.clear()
    assert "returned weights with the SHA-256" in probe.reproduce(record).reason
    assert _run_file(tmp_path, "module:own.py:make_encoder") == 0
    assert read_record(path).encoder.weights_sha256 != record.encoder.weights_sha256


def test_models_describes_a_file(tmp_path):
    write_own(tmp_path)
    facts = description.model_facts("module:own.py:make_encoder")
    assert (facts["resolution"], facts["embed_dim"], facts["license"]) == (SIDE, WIDTH, "MIT")
    assert facts["parameters"] == 6 * (3 * 16 + 1)
    sizes = find_sizes(get_model("module:own.py:make_encoder"))  # for `run --plan`
    assert sizes.profile.flops == facts["flops"]
    assert sizes.activation_bytes > 4 * 3 * SIDE * SIDE


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("own.py:make_fault", r"own.py, line 3\d: ZeroDivisionError: division by zero"),
        ("own.py:make_nothing", "make_nothing in own.py returned a NoneType; return a probe.Encoder, or a module"),
        ("own.py:make_encodr", "own.py has no function 'make_encodr'; its functions are .*make_encoder"),
        ("own.py", "'own.py' does not name a file and a function; give module:FILE.py:FUNCTION"),
        ("C:\\folder\\own.py", "does not name a file and a function"),
        ("syntax.py:f", "syntax.py, line 2: SyntaxError: "),
        ("exits.py:f", "exits.py, line 1: SystemExit: 3"),
        ("imports.py:f", "imports.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("own.txt:f", "own.txt is not a Python file"),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(tmp_path, source, message):
    write_own(tmp_path)
    for name, text in (
        ("syntax.py", "x = 1\ndef f(:\n"),
        ("exits.py", "raise SystemExit(3)\n"),
        ("imports.py", "import no_such_module\n"),
        ("own.txt", "text\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        probe.get_model(f"module:{source}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointMissingError, match=r"no file at .*missing.py; give module:FILE.py:FUNCTION"):
        probe.get_model("module:missing.py:f")


def test_paths_may_have_a_drive_letter():
    path, function = own_files._split("C:\\folder\\own.py:make_encoder")
    assert (str(path), function) == ("C:\\folder\\own.py", "make_encoder")
