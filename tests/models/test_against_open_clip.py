"""Compare the towers with open_clip's towers on the same weights, and eager mode with JIT mode."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from make.clips import random_clip

from probe.models import get_model
from probe.models.catalog import MODELS
from probe.models.checkpoints import read_model
from probe.models.devices import resolve_execution
from probe.models.openai import build_model, load_archive, save_archive

CPU = resolve_execution("cpu")
TRUE_SIZE = ("ViT-B/32", "RN50")
PUBLISHED = [
    pytest.param(spec.name, marks=() if spec.name == "ViT-L/14" else pytest.mark.slow)
    for spec in MODELS
    if spec.form == "url"
]


def _small(architecture):
    """Return a published architecture with narrow towers and few layers, at its own resolution."""
    if architecture.vision_patch_size is None:
        vision = {"vision_layers": (1, 2, 1, 1), "vision_width": architecture.vision_width // 8}
    else:
        vision = {"vision_layers": 2, "vision_width": architecture.vision_width // 6 // 64 * 64}
    return replace(architecture, **vision, vocab_size=1000, transformer_width=64, transformer_layers=2, embed_dim=64)


def _theirs(architecture, state_dict):
    vision = {
        "image_size": architecture.image_resolution,
        "layers": architecture.vision_layers,
        "width": architecture.vision_width,
        "patch_size": architecture.vision_patch_size,
        "head_width": architecture.vision_head_width,
    }
    text = {
        "context_length": architecture.context_length,
        "vocab_size": architecture.vocab_size,
        "width": architecture.transformer_width,
        "heads": architecture.transformer_heads,
        "layers": architecture.transformer_layers,
    }
    model = open_clip.CLIP(architecture.embed_dim, vision, text, quick_gelu=architecture.activation == "quick_gelu")
    model.load_state_dict({name: tensor.float() for name, tensor in state_dict.items()})
    return model.eval()


def _inputs(architecture):
    generator = torch.Generator().manual_seed(1)
    side = architecture.image_resolution
    image = torch.randn(2, 3, side, side, generator=generator)
    text = torch.randint(1, architecture.vocab_size - 1, (3, architecture.context_length), generator=generator)
    text[:, -1] = architecture.vocab_size - 1  # the end token
    return image, text


@pytest.mark.parametrize("name", PUBLISHED)
@torch.inference_mode()
def test_an_archive_gives_open_clips_features_in_both_modes(name, tmp_path):
    """fp32 features on the CPU agree with open_clip within 1e-5, a few roundings of sums over hundreds of products.

    Both modes agree within the reference's tolerance (atol 0.01, rtol 0.1).
    """
    architecture = get_model(name).architecture
    if name not in TRUE_SIZE:
        architecture = _small(architecture)
    elif name == "RN50":  # the text towers of all are alike
        architecture = replace(architecture, vocab_size=1000, transformer_width=64, transformer_layers=2)
    save_archive(random_clip(architecture), tmp_path / "model.pt")
    state_dict = dict(read_model(tmp_path / "model.pt").state_dict)
    theirs = _theirs(architecture, state_dict)
    image, text = _inputs(architecture)
    expected = (theirs.encode_image(image), theirs.encode_text(text))
    softmax = {}
    for mode, model in (("eager", build_model(state_dict, CPU)), ("jit", load_archive(tmp_path / "model.pt", CPU))):
        torch.testing.assert_close(model.encode_image(image), expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.encode_text(text), expected[1], atol=1e-5, rtol=1e-5)
        per_image, per_text = model(image, text)
        softmax[mode] = (per_image.softmax(dim=-1).numpy(), per_text.softmax(dim=-1).numpy())
    for eager, jit in zip(softmax["eager"], softmax["jit"], strict=True):
        np.testing.assert_allclose(jit, eager, atol=0.01, rtol=0.1)


@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
@torch.inference_mode()
def test_gelu_and_other_head_widths_equal_open_clips(name):
    """Models of open_clip and Hugging Face have these settings, and OpenAI's models do not."""
    architecture = replace(_small(get_model(name).architecture), activation="gelu", vision_head_width=32)
    model = random_clip(architecture)
    theirs = _theirs(architecture, model.state_dict())
    image, text = _inputs(architecture)
    torch.testing.assert_close(model.encode_image(image), theirs.encode_image(image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode_text(text), theirs.encode_text(text), atol=1e-5, rtol=1e-5)
