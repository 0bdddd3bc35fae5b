import numpy as np
import pytest
import torch
from make.clips import SMALL_VIT, random_clip
from PIL import Image

import probe
from probe.cli.main import main
from probe.errors import (
    CheckpointMissingError,
    ChecksumError,
    DeviceError,
    DownloadError,
    ProbeError,
    UnknownNameError,
)
from probe.fetch import file_sha256
from probe.models import get_model, model_names
from probe.models.catalog import MODELS
from probe.models.checkpoints import read_model
from probe.models.devices import resolve_execution
from probe.models.loading import load_clip, load_encoder
from probe.models.openai import build_model
from probe.models.profile import profile_architecture
from probe.specs import ModelSpec
from probe.tiny import ARCHIVE


def test_the_nine_published_models_have_names():
    assert set(model_names()) >= {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"}
    assert set(model_names()) >= {"ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"}


def test_published_digests_are_in_the_urls():
    """OpenAI's URLs contain the SHA-256 of the file, so a typo in either is found."""
    for name in model_names():
        spec = get_model(name)
        assert spec.form == "embedded" or spec.source.split("/")[-2] == spec.sha256


def test_a_similar_model_name_is_suggested():
    with pytest.raises(UnknownNameError, match="'ViT-B/32'"):
        get_model("ViT-B32")
    with pytest.raises(UnknownNameError, match="'ViT-L/14'"):
        get_model("random:ViT-L-14")


def test_a_path_without_a_file_is_no_unknown_name():
    with pytest.raises(CheckpointMissingError, match=r"no checkpoint at /nowhere/model\.pt"):
        get_model("/nowhere/model.pt")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/model.pt", "random:random:tiny", "random:/tmp/x.pt"])
def test_a_strange_name_is_an_error_of_ours(name):
    with pytest.raises(ProbeError):
        get_model(name)


def test_offline_names_url_and_target(tmp_path):
    with pytest.raises(DownloadError, match=r"RN50\.pt"):
        load_encoder("RN50", device="cpu", weights_dir=tmp_path, offline=True)


@pytest.mark.parametrize("jit", [False, True])
def test_the_encoder_equals_the_model(archive, jit):
    """`load_encoder` and `load_clip` give the same features for an image, in both modes."""
    encoder = load_encoder(str(archive), jit=jit, device="cpu")
    model, preprocess = load_clip(str(archive), "cpu", jit)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    features = encoder.encode(torch.from_numpy(encoder.preprocess.to_pixels(image))[None])
    assert encoder.execution.jit is jit
    assert features.projected.dtype == features.pre_projection.dtype == torch.float32
    expected = model.encode_image(preprocess(image)[None])
    if jit:
        assert torch.equal(features.projected, expected)
    else:  # its memory layout changes the order of sums
        torch.testing.assert_close(features.projected, expected, atol=1e-6, rtol=1e-5)
    assert features.projected.shape == (1, encoder.embed_dim)
    assert features.pre_projection.shape == (1, encoder.pre_projection_dim)


def test_a_state_dict_in_jit_mode_falls_back_with_a_warning_and_truly_loads(tmp_path):
    """The reference also warns, but then fails with EOFError."""
    path = tmp_path / "weights.pt"
    torch.save(random_clip(SMALL_VIT).state_dict(), path)
    with pytest.warns(UserWarning, match="is not a TorchScript archive; using eager mode"):
        model, _ = load_clip(str(path), "cpu", jit=True)
    with pytest.warns(UserWarning, match="is not a TorchScript archive; using eager mode"):
        encoder = load_encoder(str(path), device="cpu", jit=True)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(
        model.encode_image(image), build_model(read_model(path).state_dict, resolve_execution("cpu")).visual(image)
    )
    assert encoder.execution.jit is False


def test_random_weights_are_seeded_and_the_same_in_both_modes():
    torch.manual_seed(5)
    eager = load_encoder("random:tiny", device="cpu")
    torch.manual_seed(6)
    jit = load_encoder("random:tiny", device="cpu", jit=True)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert eager.weights_sha256 == jit.weights_sha256
    assert eager.weights_sha256 != load_encoder("tiny", device="cpu").weights_sha256
    torch.testing.assert_close(eager.encode(pixels).projected, jit.encode(pixels).projected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_every_way_to_say_cpu_is_fp32(device):
    """The reference gives fp16 features for `cpu:0`."""
    execution = resolve_execution(device)
    assert (str(execution.device), execution.precision) == ("cpu", "fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": None}, "unknown device 'None'"),
        ({"device": "cpu", "precision": []}, "unknown precision"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available on this machine"),
        ({"device": "cpu", "precision": "int8"}, "unknown precision 'int8'"),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_named(arguments, message):
    with pytest.raises(DeviceError, match=message):
        resolve_execution(**arguments)


def test_a_file_with_a_wrong_digest_is_refused(archive):
    """A record has the digest of the file that was read."""
    row = ModelSpec("mine", form="file", source=str(archive), sha256="0" * 64)
    with pytest.raises(ChecksumError, match=r"SHA-256 mismatch \(expected 0000"):
        load_encoder(row, device="cpu")
    assert get_model("tiny").sha256 == file_sha256(ARCHIVE)


def test_the_record_tells_every_dtype(archive):
    """An encoder names the dtypes of its checkpoint and the dtypes in which it computes."""
    encoder = load_encoder(str(archive), device="cpu", precision="bf16")
    assert encoder.checkpoint_dtypes == ("float16", "float32")
    assert encoder.weights_dtypes == ("bfloat16", "float32")
    assert load_encoder(archive, device="cpu", jit=True).weights_dtypes == ("float32",)


SMALL = ("ViT-B/32", "RN50", "tiny")


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, id=spec.name, marks=() if spec.name in SMALL else pytest.mark.slow) for spec in MODELS],
)
def test_the_listed_profiles_are_counted(spec):
    assert profile_architecture(spec.architecture) == spec.profile


def test_published_parameter_counts():
    """The counts, in millions, agree with open_clip's `docs/model_profile.csv` and OpenAI's notebook."""
    listed = {"RN50": 102.01, "ViT-B/32": 151.28, "ViT-B/16": 149.62, "ViT-L/14": 427.62}
    assert {name: round(get_model(name).profile.parameters / 1e6, 2) for name in listed} == listed


@pytest.mark.parametrize("jit", [False, True])
@torch.inference_mode()
def test_the_references_readme_runs_with_our_names(jit):
    """The first example of OpenAI's README runs with `probe.load_clip` and `probe.tokenize`."""
    model, preprocess = probe.load_clip("tiny", device="cpu", jit=jit)
    image = preprocess(Image.new("RGB", (40, 30), (200, 10, 10))).unsqueeze(0)
    text = probe.tokenize(["a red circle", "a dog", "a cat"], model="tiny")
    logits_per_image, logits_per_text = model(image, text)
    assert (model.visual.input_resolution, model.dtype) == (image.shape[-1], torch.float32)
    image_features = model.encode_image(image)
    text_features = model.encode_text(text)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    similarity = model.logit_scale.exp() * image_features @ text_features.T
    torch.testing.assert_close(logits_per_image, similarity, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits_per_text, logits_per_image.t())
    assert np.isclose(logits_per_image.softmax(dim=-1).numpy().sum(), 1)


@pytest.mark.parametrize("name", ["tiny", "random:ViT-B/32"])
def test_a_model_is_described_with_its_sizes(name, capsys):
    assert main(["models", name]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    shape = get_model(name).architecture
    assert (said["name"], said["pixels"]) == (name, str(shape.image_resolution))
    assert said["projected"] == f"{shape.embed_dim}-d"
    assert said["modes"] == "eager, jit"


def test_a_checkpoint_of_ones_own_is_described(archive, capsys):
    assert main(["models", str(archive)]) == 0
    assert file_sha256(archive) in capsys.readouterr().out
