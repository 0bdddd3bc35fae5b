"""Small versions of timm's architectures with random weights: the same kinds of models with few and narrow layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import nn

VIT = {"depth": 2, "embed_dim": 64, "num_heads": 2}
# Architecture -> arguments of its constructor.
SMALL: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_convnext": {},
    "test_resnet": {},
    "test_efficientnet": {},
    "vit_small_patch14_reg4_dinov2": VIT,  # registers
    "vit_base_patch16_siglip_224": VIT,  # attention pool
    "vit_small_patch16_dinov3": VIT,  # rotary positions
    "deit_tiny_distilled_patch16_224": VIT,  # two classifiers
    "beit_base_patch16_224": VIT,  # mean of the patches
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)},
    "resnet18": {"layers": (1, 1, 1, 1)},
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},  # layers after the pooling
    "coat_lite_tiny": {},  # squashes images
}
NUM_CLASSES = 7  # of the classifiers in checkpoints


@contextmanager
def small_timm() -> Iterator[None]:
    """Make timm build small models."""
    create = timm.create_model

    def create_small(name: str, **kwargs: Any) -> nn.Module:
        return create(name, **SMALL.get(name, {}), **kwargs)

    with patch.object(timm, "create_model", create_small):
        yield


def write_weights(architecture: str, path: Path) -> nn.Module:
    """Write a state dict with a classifier, and return the model in eval mode without its classifier."""
    torch.manual_seed(1)
    model: Any = timm.create_model(architecture, num_classes=NUM_CLASSES).eval()
    for parameter in model.parameters():  # many are zero or one at the start, which hides mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    torch.save(model.state_dict(), path)
    model.reset_classifier(0)
    return model
