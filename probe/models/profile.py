"""Cost of a model: the number of parameters, and of floating-point operations per image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from probe.models.towers import CLIP
from probe.specs import Architecture, Profile


def profile_architecture(architecture: Architecture) -> Profile:
    """Return the profile of an architecture without loading weights. This takes no memory."""
    with torch.device("meta"):
        return profile_model(CLIP(architecture), (architecture.image_resolution,) * 2)


def profile_model(model: nn.Module, shape: tuple[int, int]) -> Profile:
    """Count the parameters of a model, and the operations of the image tower `model.visual` on one image.

    Args:
        model: the model.
        shape: height and width of the image, in pixels.
    """
    visual = model.visual
    assert isinstance(visual, nn.Module)
    first = next(visual.parameters())
    image = torch.zeros(1, 3, *shape, device=first.device, dtype=first.dtype)
    return Profile(
        image_parameters=sum(p.numel() for p in visual.parameters()),
        parameters=sum(p.numel() for p in model.parameters()),
        flops=count_flops(visual, image),
    )


def count_flops(run: Callable[[Tensor], object], images: Tensor) -> int:
    """Return the number of floating-point operations of a function on images."""
    # The counter counts attention as separate matrix products; it does not know every fused kernel.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(images)
    return int(counter.get_total_flops())


def describe_sizes(
    resolution: int | None, embed_dim: int | None, pre_projection_dim: int | None, profile: Profile | None
) -> dict[str, Any]:
    """Return sizes and cost of a model as JSON values, as in `description.model_facts`; None if not known."""
    return {
        "resolution": resolution,
        "embed_dim": embed_dim,
        "pre_projection_dim": pre_projection_dim,
        "parameters": profile and profile.parameters,
        "image_parameters": profile and profile.image_parameters,
        "flops": profile and profile.flops,
    }
