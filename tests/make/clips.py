"""Small CLIP models with random weights."""

import torch

from probe.models.resnet import Bottleneck
from probe.models.towers import CLIP
from probe.specs import Architecture

SMALL_VIT = (
    Architecture(  # as wide as `tiny`, because weights without settings are refused if no known model has their widths
        embed_dim=48,
        image_resolution=32,
        vision_layers=2,
        vision_width=192,
        vision_patch_size=16,
        context_length=12,
        vocab_size=100,
        transformer_width=128,
        transformer_layers=2,
    )
)


SMALL_RESNET = Architecture(
    embed_dim=40,
    image_resolution=64,
    vision_layers=(1, 2, 1, 1),
    vision_width=8,
    vision_patch_size=None,
    context_length=12,
    vocab_size=100,
    transformer_width=64,
    transformer_layers=2,
)


def random_clip(architecture: Architecture, seed: int = 0) -> CLIP:
    """Return a CLIP model with random weights, in which every part changes the features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(architecture)
        for module in model.modules():
            if isinstance(module, Bottleneck):  # the weight starts at zero, which would hide the residual branch
                torch.nn.init.ones_(module.bn3.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval().requires_grad_(False)
