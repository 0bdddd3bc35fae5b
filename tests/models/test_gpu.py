"""Models on a GPU. `pytest -m gpu --device cpu` runs the same tests on the CPU, with small models."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from make.clips import SMALL_RESNET, SMALL_VIT, random_clip
from make.images import write_image
from PIL import Image

import probe
from probe.comparison import MIN_COSINE, difference
from probe.errors import DeviceError, FeaturesError
from probe.features.passes import extract_features
from probe.models import get_model
from probe.models.devices import DEFAULT_PRECISION
from probe.models.loading import load_clip, load_encoder
from probe.models.openai import save_archive
from probe.models.towers import convert_weights

pytestmark = pytest.mark.gpu

SMALL = {"ViT-B/32": SMALL_VIT, "RN50": SMALL_RESNET}
POINTS = ("projected", "pre_projection")


@pytest.fixture(scope="module", params=["tiny", *SMALL])
def model(request, device, tmp_path_factory):
    """Return the name of `tiny`, or the path of an archive with random weights, which has the true size on a GPU."""
    if request.param == "tiny":
        return "tiny"
    architecture = SMALL[request.param] if device == "cpu" else get_model(request.param).architecture
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    save_archive(random_clip(architecture).to(device), path)  # traced on the device, where fp16 is fast
    return str(path)


@cache
def encode(model, device, *, jit=False, precision="auto"):
    """Return the features of noise at both feature points."""
    encoder = load_encoder(model, device=device, jit=jit, precision=precision)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (8, 3, encoder.resolution, encoder.resolution), dtype=torch.uint8, generator=generator
    )
    features = encoder.encode(pixels)
    return {point: getattr(features, point).numpy() for point in POINTS}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_features_are_those_of_fp32_on_the_cpu(model, device, jit, precision, monkeypatch, request, record_property):
    """They agree up to the rounding that the comparison of modes allows for the precision.

    In fp32, cuDNN's convolutions would by default round their inputs to TF32, which has the digits of fp16.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected, found = encode(model, "cpu"), encode(model, device, jit=jit, precision=precision)
    for point in POINTS:
        assert found[point].dtype == np.float32
        assert np.isfinite(found[point]).all()
    differences = {point: difference(expected[point], found[point]) for point in POINTS}
    # `benchmarks/gpu.py` puts these on its page.
    record_property("model, mode, precision", request.node.callspec.id)
    for point in POINTS:
        record_property(f"{point}: 1 - smallest cosine", f"{1 - differences[point].min_cosine:.2g}")
        record_property(f"{point}: largest difference", f"{differences[point].max_abs:.2g}")
    assert all(found.min_cosine >= MIN_COSINE[precision] for found in differences.values())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_both_modes_give_the_same_features(model, device, precision):
    eager, jit = (encode(model, device, jit=jit, precision=precision) for jit in (False, True))
    for point in POINTS:
        assert difference(eager[point], jit[point]).min_cosine >= MIN_COSINE[precision]


@pytest.mark.parametrize("model", ["tiny"])
def test_parity_holds(model, device, tmp_path):
    """In the default precision: logits, features and the predictions of a probe."""
    for name, colour in (("red", (200, 30, 30)), ("green", (30, 200, 30))):
        for i in range(20):
            write_image(tmp_path / "images" / name / f"{i:02}.png", colour)
    found = probe.parity(model, f"folder:{tmp_path}/images", device=device, cache_dir=tmp_path / "cache", offline=True)
    assert (found.device, found.precision) == (device, DEFAULT_PRECISION[torch.device(device).type])
    assert found.within_tolerance, found.reasons


def test_features_leave_as_fp32_arrays(model, device):
    encoder = load_encoder(model, device=device, precision="fp16")
    assert "float16" in encoder.weights_dtypes
    images = [(Image.fromarray(np.full((40, 50, 3), 12 * i, np.uint8)), i % 2) for i in range(20)]
    features = extract_features(encoder, images, batch_size=8)
    for point in POINTS:
        array = features.at(point)
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert len(array) == 20


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_whole_model_has_the_dtype_of_the_reference(model, device, jit):
    """fp16 on a GPU and fp32 on the CPU, as with the reference's `clip.load`."""
    loaded, preprocess = load_clip(model, device, jit)
    image = preprocess(Image.new("RGB", (50, 40), (200, 30, 30)))[None].to(device)
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    with torch.no_grad():
        features = loaded.encode_image(image)
        logits, _ = loaded(image, torch.ones(2, int(loaded.context_length), dtype=torch.int64, device=device))
    assert (loaded.dtype, features.dtype, features.device.type) == (dtype, dtype, torch.device(device).type)
    assert logits.isfinite().all()


@pytest.mark.parametrize("architecture", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_converted_where_they_are(device, architecture, dtype):
    """Biases and weights of convolutions and linear layers change their dtype, embeddings do not, and nothing moves."""
    model = random_clip(architecture).to(device)
    convert_weights(model, dtype)
    assert {parameter.device.type for parameter in model.parameters()} == {torch.device(device).type}
    assert model.visual.conv1.weight.dtype == model.text_projection.dtype == dtype
    assert model.positional_embedding.dtype == model.ln_final.weight.dtype == torch.float32
    side = architecture.image_resolution
    assert model.encode_image(torch.rand(2, 3, side, side, device=device).to(dtype)).dtype == dtype


def test_a_feature_that_overflows_names_its_image(device):
    """The features of the fifth image exceed the largest number of fp16 on the device."""
    encoder = load_encoder("tiny", device=device, precision="fp16")

    def overflow(before):
        scale = torch.ones(len(before), 1, dtype=before.dtype, device=before.device)
        scale[5] = 60_000
        return encoder.project(before) * scale * scale

    images = [(Image.new("RGB", (32, 32), (i, 90, 90)), 0) for i in range(8)]
    with pytest.raises(FeaturesError, match=r"the features of image 5 are not finite; try --precision fp32"):
        extract_features(replace(encoder, project=overflow), images, batch_size=8)


def test_every_device_can_be_named(model, device):
    """Each device is named by its index. Several GPUs can be of different kinds, which round differently."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device.startswith("cuda") else ["cpu:0"]
    expected = encode(model, device, precision="fp16")
    for name in names:
        found = encode(model, name, precision="fp16")
        for point in POINTS:
            assert difference(expected[point], found[point]).min_cosine >= MIN_COSINE["fp16"]


def test_a_gpu_that_is_missing_is_an_error(device):
    with pytest.raises(DeviceError, match="is not available on this machine"):
        load_encoder("tiny", device=f"cuda:{torch.cuda.device_count()}")
