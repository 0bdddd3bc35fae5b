"""A tower that is laid out for its device gives the features of the tower as it was."""

import pytest
import torch
from conftest import SMALL_RESNET, SMALL_VIT, random_clip
from torch.nn import functional

from probe.models.devices import resolve_execution
from probe.models.layout import PackedLinear, QuickGELUForInference, lay_out
from probe.models.openai import build_model


def tower(architecture, precision):
    """An image tower in a precision."""
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
    """Each product is rounded to 8 bits, so a feature is off by less than a hundredth of its length."""
    images = torch.randn(5, 3, architecture.image_resolution, architecture.image_resolution)
    expected = tower(architecture, "fp32").pre_projection(images)
    visual = tower(architecture, "bf16")
    lay_out(visual, resolve_execution("cpu", precision="bf16"))
    found = visual.pre_projection(images.bfloat16())
    assert found.dtype == torch.bfloat16
    assert functional.cosine_similarity(found.float(), expected).min() > 0.999


@torch.inference_mode()
def test_no_normalisation_is_left_beside_a_convolution():
    """Folded ones are gone, also those of shortcuts."""
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
    """The number that weights are packed for is a hint."""
    layer = torch.nn.Linear(32, 48)
    packed = PackedLinear(layer.weight, layer.bias)
    for rows in (1, 7, 3000):
        x = torch.randn(2, rows, 32)
        torch.testing.assert_close(packed(x), layer(x), atol=1e-5, rtol=1e-5)
