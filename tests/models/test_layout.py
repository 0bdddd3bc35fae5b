"""A tower with the memory layout for its device gives the features of the original tower."""

import shutil

import pytest
import torch
from make.clips import SMALL_RESNET, SMALL_VIT, random_clip
from torch.nn import functional

from probe.errors import DeviceError
from probe.grid import plan
from probe.models import layout
from probe.models.devices import resolve_execution
from probe.models.layout import BatchFirstAttention, PackedLinear, QuickGELUForInference, lay_out
from probe.models.loading import load_encoder
from probe.models.openai import build_model


def tower(architecture, precision):
    """Return an image tower in a precision."""
    return build_model(random_clip(architecture).state_dict(), resolve_execution("cpu", precision=precision)).visual


@pytest.mark.parametrize("architecture", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
@torch.inference_mode()
def test_features_stay_as_they_are_up_to_rounding(architecture):
    visual = tower(architecture, "fp32")
    images = torch.randn(5, 3, architecture.image_resolution, architecture.image_resolution)
    before = visual.pre_projection(images)
    projected = visual.project(before)
    lay_out(visual, resolve_execution("cpu"))
    torch.testing.assert_close(visual.pre_projection(images), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(visual.project(before), projected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
@torch.inference_mode()
def test_bf16_is_near_fp32(architecture):
    """Each product is rounded to 8 bits, so the error of a feature is less than a hundredth of its length."""
    images = torch.randn(5, 3, architecture.image_resolution, architecture.image_resolution)
    expected = tower(architecture, "fp32").pre_projection(images)
    visual = tower(architecture, "bf16")
    lay_out(visual, resolve_execution("cpu", precision="bf16"))
    found = visual.pre_projection(images.bfloat16())
    assert found.dtype == torch.bfloat16
    assert functional.cosine_similarity(found.float(), expected).min() > 0.999


@torch.inference_mode()
def test_attention_over_images_first_equals_torchs():
    """The model's own attention is `nn.MultiheadAttention`. The tolerance of 1e-6 is fp32 rounding."""
    theirs = torch.nn.MultiheadAttention(64, 4).eval()
    x = torch.randn(3, 7, 64)  # (n, tokens, width)
    expected, _ = theirs(*[x.transpose(0, 1)] * 3, need_weights=False)
    torch.testing.assert_close(BatchFirstAttention(theirs)(x), expected.transpose(0, 1), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_blocks_of_an_encoder_see_images_first_and_share_the_weights(monkeypatch):
    """The blocks take (n, tokens, width). If no weights are packed, no weight is copied."""
    monkeypatch.setattr(layout, "_can_pack", lambda dtype: False)
    visual, seen = tower(SMALL_VIT, "fp32"), []
    weights = {parameter.data_ptr() for parameter in visual.transformer.parameters()}
    lay_out(visual, resolve_execution("cpu"))
    visual.transformer.resblocks[0].register_forward_hook(lambda block, inputs, output: seen.extend([*inputs, output]))
    visual(torch.randn(7, 3, 32, 32))
    assert [x.shape for x in seen] == [(7, 5, SMALL_VIT.vision_width)] * 2
    assert all(x.is_contiguous() for x in seen)
    assert {parameter.data_ptr() for parameter in visual.transformer.parameters()} == weights


@torch.inference_mode()
def test_every_normalisation_is_folded():
    """No folded normalisation is left, not even in shortcuts."""
    visual = tower(SMALL_RESNET, "fp32")
    lay_out(visual, resolve_execution("cpu"))
    assert not [module for module in visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]


@torch.inference_mode()
def test_quick_gelu_keeps_its_bits_and_its_input():
    x = torch.randn(7, 9)
    kept = x.clone()
    assert torch.equal(QuickGELUForInference()(x), x * torch.sigmoid(1.702 * x))
    assert torch.equal(x, kept)


@torch.inference_mode()
def test_packed_products_of_any_number_of_rows():
    """The number of rows that weights are packed for is a hint."""
    layer = torch.nn.Linear(32, 48)
    packed = PackedLinear(layer.weight, layer.bias)
    for rows in (1, 7, 3000):
        x = torch.randn(2, rows, 32)
        torch.testing.assert_close(packed(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with a C++ compiler")
@torch.inference_mode()
def test_a_compiled_tower_gives_the_same_features():
    """Two models are compiled one after the other, because the weights are constants of the compiled code."""
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    for name in ("tiny", "random:tiny"):
        plain = load_encoder(name, device="cpu").encode(pixels)
        compiled = load_encoder(name, device="cpu", compiled=True)
        assert compiled.execution.compiled
        torch.testing.assert_close(compiled.encode(pixels).projected, plain.projected, atol=1e-5, rtol=1e-4)


def test_an_archive_in_jit_mode_cannot_be_compiled():
    with pytest.raises(DeviceError, match="in JIT mode and in compiled mode; use --compile with --jit off"):
        load_encoder("tiny", device="cpu", jit=True, compiled=True)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_precision_runs_on_the_cpu(precision):
    """One of the precisions is not supported by oneDNN's packed products."""
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    found = load_encoder("tiny", device="cpu", precision=precision).encode(pixels).projected
    expected = load_encoder("tiny", device="cpu").encode(pixels).projected
    assert found.dtype == torch.float32
    assert functional.cosine_similarity(found, expected).min() > 0.999


def test_a_compiled_run_is_a_mode_of_its_own():
    (spec,) = plan(["digits"], ["tiny"], device="cpu", compiled=True)
    assert spec.mode == "compiled"
    (plain,) = plan(["digits"], ["tiny"], device="cpu")
    assert plain.mode == "eager"
