"""An encoder of one's own runs like every other: same features as its own loop, cache, record, and plain errors."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

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
from probe.errors import (
    CheckpointError,
    CheckpointMissingError,
    ExecutorError,
    FeaturesError,
    HeadError,
    UnknownNameError,
)
from probe.models import description, get_model, own, own_code, own_files
from probe.models.encoder import tensors_sha256
from probe.models.preprocess import CustomPreprocess, Preprocess
from probe.models.sizes import find_sizes
from probe.probes.prediction import load_encoder_of
from probe.records.record import read_record, read_records, run_path
from probe.records.supplied import PREFIX
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


class Pooled(nn.Module):
    """Module that pools as an attribute says. Its `repr` does not show the attribute."""

    def __init__(self, pool, scale=1.0):
        super().__init__()
        self.pool, self._scale = pool, scale

    def forward(self, images):
        return self._scale * getattr(images.flatten(2), self.pool)(dim=2)


def test_attributes_of_the_module_are_part_of_the_identity():
    modules = [Pooled("mean"), Pooled("sum"), Pooled("mean", 2.0), nn.Sequential(Pooled("mean"))]
    assert len({_identify(module=module) for module in modules}) == 4
    assert _identify(module=Pooled("mean")) == _identify(module=Pooled("mean"))


def test_the_code_of_base_classes_is_part_of_the_identity():
    class Derived(Patches):
        pass

    names = [name for name, _ in own_code.digest_code([Derived()])]
    assert names == ["Patches", Derived.__qualname__]


def _identify(preprocess=scale, module=None):
    return own.examine(own.Encoder(module or make_patches(), preprocess, name="mine")).identity


def test_code_is_digested_as_it_runs_and_not_as_the_file_is_now(tmp_path):
    """The process runs the code that it loaded; a changed file counts when it is loaded again."""
    write_own(tmp_path)
    first = own_files._make_encoder(Path("own.py"), "make_encoder")
    before = own.examine(first).identity
    text = (tmp_path / "own.py").read_text().replace("return self.conv", "return -self.conv")
    (tmp_path / "own.py").write_text("# a comment\n" + text)
    assert own.examine(first).identity == before
    assert own.examine(own_files._make_encoder(Path("own.py"), "make_encoder")).identity != before


@pytest.mark.slow
def test_comments_lines_calls_and_processes_do_not_change_the_digest(tmp_path):
    """The second process has different hashes of strings, on which the order of sets of constants depends."""
    letters = ", ".join(map(repr, "abcdefgh"))
    text = f"def f(x):\n    return x in {{{letters}}} or [y for y in x]\n\nclass C:\n    f = f\n"
    (tmp_path / "one.py").write_text(text)
    (tmp_path / "two.py").write_text("# moved\n\n" + text)
    code = "import one, two; from probe.models.own_code import digest_code as d; [two.f('a') for _ in range(99)]"
    command = [sys.executable, "-c", f"{code}; print(d([one.f, one.C()])); print(d([two.f, two.C()]))"]
    found = set()
    for seed in range(2):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found.update(done.stdout.splitlines())
    assert len(found) == 1
    assert "'f'" in found.pop()


def _make_class(kind):
    """Return an object whose class differs from others of its name only in one place."""

    class Step:
        def __call__(self, x, add=1.0 if kind == "default" else 2.0, *, factor=3 if kind == "keyword" else 4):
            return [value + add * factor for value in x] if kind != "closure" else x

        @staticmethod
        def static():
            return 1

        @classmethod
        def of_class(cls):
            return 1

        @property
        def value(self):
            return 1

        @cache  # noqa: B019 - not called
        def cached(self):
            return 1

        size = 5 if kind == "value" else 6

    for name in ("static", "of_class", "value", "cached"):
        if kind == name:
            wrap = {"static": staticmethod, "of_class": classmethod, "value": property, "cached": cache}[name]
            setattr(Step, name, wrap(lambda *_: 2))
    return Step()


def test_every_part_of_a_class_is_part_of_the_digest():
    kinds = ["", "default", "keyword", "closure", "size", "static", "of_class", "value", "cached"]
    digests = [str(own_code.digest_code([_make_class(kind)])) for kind in kinds]
    assert len(set(digests)) == len(kinds)


class ToTensor(nn.Module):
    def forward(self, image):
        return torch.tensor(scale(image))


class Add(nn.Module):
    """A step of a preprocessing with a buffer that `repr` does not show."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", torch.tensor(float(value)))

    def forward(self, pixels):
        return pixels + self.value

    def of_image(self, image):
        return torch.tensor(scale(image)) + self.value


@pytest.mark.parametrize(
    "make",
    [
        lambda value: nn.Sequential(ToTensor(), Add(value)),
        lambda value: Add(value).of_image,
        lambda value: lambda image: scale(image) + value,
        lambda value: partial(lambda by, image: scale(image) + by, value),
        lambda value: CustomPreprocess(Add(value).of_image, (SIDE, SIDE), "same"),
    ],
)
def test_values_inside_a_preprocessing_are_noticed(make):
    assert _identify(make(1)) == _identify(make(1))
    assert _identify(make(1)) != _identify(make(2))


def test_the_steps_of_a_sequential_are_part_of_the_code():
    names = {name for name, _ in own_code.digest_code(own._steps_of(nn.Sequential(ToTensor(), Add(1))))}
    assert {"Add", "ToTensor"} <= names
    assert {"Add", "Add.of_image"} <= {name for name, _ in own_code.digest_code(own._steps_of(Add(1).of_image))}


def test_the_digest_of_weights_does_not_depend_on_code_and_preprocessing():
    """Records hold this digest, which `reproduce` compares on other machines."""
    one, other = (own.examine(own.Encoder(make_patches(), by, name="mine")) for by in (scale, lambda x: -scale(x)))
    assert one.weights == other.weights
    assert one.identity != other.identity


@pytest.mark.parametrize("kind", ["bfloat16", "grad"])
def test_every_tensor_that_the_trial_accepts_can_be_encoded(tmp_path, kind):
    def preprocess(image):
        pixels = torch.tensor(scale(image))
        return pixels.bfloat16() if kind == "bfloat16" else pixels.requires_grad_()

    images = open_split(write_colours(tmp_path), "test")
    features = probe.extract_features(own.Encoder(make_patches(), preprocess, name="mine"), images)
    np.testing.assert_allclose(features.x, probe.extract_features(make_own("exact"), images).x, atol=0.01)


def test_a_module_with_an_extra_state_runs(run):
    class Extra(Patches):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    encoder = own.Encoder(Extra(), scale, name="mine")
    assert run(encoder).error is None
    assert probe.load_encoder(encoder, device="cpu").checkpoint_dtypes == ("float32",)


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
    seen, limit = [], {"batches": 3}  # not part of the digest of the code

    class Counting(Patches):
        def forward(self, images):
            seen.append(len(images))
            if len(seen) > limit["batches"]:
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
    limit["batches"] = 100
    record = probe.run("digits", model=encoder, **options, **folders)
    assert seen[0] == 2  # the black images that show the width
    assert sum(seen[1:]) < 1797
    whole = probe.run("digits", model=encoder, **options, results_dir=tmp_path / "again", cache_dir=tmp_path / "new")
    assert whole.features == record.features


@pytest.mark.parametrize(
    "name", ["", " ", "ViT-B/32", "tiny", "random:tiny", "hf:a/b", "module:x.py:f", "open_clip:x", f"{PREFIX}x"]
)
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
    """The module always returns two rows, which is right for the trial, because it has two images."""
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
    assert main(["reproduce", str(path)]) == 1
    assert "Python code in own.py:make_encoder; read the code, and run it with --allow-code" in capsys.readouterr().out
    assert not own_files.LOADED
    assert main(["reproduce", str(path), "--allow-code"]) == 0
    assert "identical" in capsys.readouterr().out
    assert main(["diff", str(path), str(path)]) == 0


@pytest.mark.slow
def test_a_killed_command_continues(tmp_path):
    """The command is killed when some chunks are cached. The next one gives the features of an uninterrupted run."""
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


def test_each_file_imports_its_own_neighbours(tmp_path):
    for folder, seed in (("a", "3"), ("b", "40")):
        (tmp_path / folder).mkdir()
        write_own(tmp_path / folder)
        (tmp_path / folder / "neighbour.py").write_text("from package.inner import SEED\n")
        (tmp_path / folder / "package").mkdir()
        (tmp_path / folder / "package" / "inner.py").write_text(f"SEED = {seed}\n")
    first, second, again = (probe.get_model(f"module:{one}/own.py:make_encoder").sha256 for one in ("a", "b", "a"))
    assert first == again != second


def test_files_of_one_stem_do_not_replace_each_other(tmp_path):
    before = set(sys.modules)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_own(tmp_path / folder)
        probe.get_model(f"module:{folder}/own.py:make_encoder")
    assert sum(name.startswith("probe_own_") for name in set(sys.modules) - before) == 2


def test_a_file_that_fails_is_not_left_among_the_modules(tmp_path):
    (tmp_path / "fails.py").write_text("raise ValueError\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"fails.py, line 1"):
        probe.get_model("module:fails.py:f")
    assert not any(name.endswith("fails") for name in sys.modules)


def test_the_text_of_a_preprocessing_does_not_depend_on_the_folder(tmp_path):
    """Records of one file in two folders have the same text."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        text = "import sys\nclass Scale:\n    pass\ndef f():\n    return Scale()\n"
        (tmp_path / folder / "file.py").write_text(text, encoding="utf-8")
    texts = [own._text_of(own_files._load_function(Path(folder, "file.py"), "f")()) for folder in ("a", "b")]
    assert texts == ["<probe_own_file.Scale object>"] * 2


@pytest.mark.slow
def test_a_head_alone_does_not_run_code(tmp_path):
    write_own(tmp_path)
    assert _run_file(tmp_path, "module:own.py:make_encoder", "--save-heads") == 0
    (path,) = (tmp_path / "results/heads").rglob("*.safetensors")
    own_files.LOADED.clear()
    images = [tmp_path / "images/test/red/0.png"]
    with pytest.raises(
        HeadError, match=r"Python code in own.py:make_encoder; .*give --model module:own.py:make_encode"
    ):
        probe.load_head(path).predict(images, device="cpu")
    assert not own_files.LOADED
    named = load_encoder_of(probe.load_head(path), model="module:own.py:make_encoder", device="cpu")
    assert len(probe.load_head(path).predict(images, encoder=named).images) == 1
    text = (tmp_path / "own.py").read_text().replace("return self.conv", "return -self.conv")
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(HeadError, match="has the weights of the head, but other code or preprocessing"):
        load_encoder_of(probe.load_head(path), model="module:own.py:make_encoder", device="cpu")


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
    assert "returned weights with the SHA-256" in probe.reproduce(record, allow_code=True).reason
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
