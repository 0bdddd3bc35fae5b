"""State dict of a CLIP model in OpenAI's naming -> its architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from probe.errors import CheckpointError
from probe.models.towers import MLP_RATIO
from probe.specs import Architecture


def architecture_of(state_dict: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture of the model that a state dict belongs to.

    The shapes of the tensors give the sizes. The activation and the widths of the heads are taken from OpenAI's models,
    because a state dict does not contain them.

    Raises:
        CheckpointError: a tensor that gives a size is missing or has a wrong shape; the message names the tensor.
    """
    text_width, embed_dim = _shape(state_dict, "text_projection", 2)
    architecture = Architecture(
        embed_dim=embed_dim,
        context_length=_shape(state_dict, "positional_embedding", 2)[0],
        vocab_size=_shape(state_dict, "token_embedding.weight", 2)[0],
        transformer_width=text_width,
        transformer_layers=_count_blocks(state_dict, "transformer.resblocks."),
        transformer_mlp_width=_mlp_width(state_dict, "transformer", text_width),
        **_vision_sizes(state_dict),
    )
    for tower, width, head in (
        ("image", architecture.pre_projection_dim, architecture.vision_head_width),
        ("text", architecture.transformer_width, architecture.transformer_head_width),
    ):
        if width < head:
            raise CheckpointError(
                f"the {tower} tower is {width} channels wide, but one attention head needs {head}; "
                "give the weights of a CLIP model"
            )
    return architecture


def _vision_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    if any(name.startswith("visual.transformer.") for name in state_dict):
        width, _, _, patch = _shape(state_dict, "visual.conv1.weight", 4)
        return {
            "image_resolution": _side(state_dict, "visual.positional_embedding") * patch,
            "vision_layers": _count_blocks(state_dict, "visual.transformer.resblocks."),
            "vision_width": width,
            "vision_patch_size": patch,
            "vision_mlp_width": _mlp_width(state_dict, "visual.transformer", width),
        }
    return {
        "image_resolution": _side(state_dict, "visual.attnpool.positional_embedding") * 32,
        "vision_layers": tuple(_count_blocks(state_dict, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
        "vision_width": _shape(state_dict, "visual.layer1.0.conv1.weight", 4)[0],
        "vision_patch_size": None,
    }


def _mlp_width(state_dict: Mapping[str, Tensor], transformer: str, width: int) -> int | None:
    """Return the hidden width of the first block's MLP; None if it is four times the width, or if no block exists."""
    name = f"{transformer}.resblocks.0.mlp.c_fc.bias"
    hidden = _shape(state_dict, name, 1)[0] if name in state_dict else None
    return None if hidden == MLP_RATIO * width else hidden


def _side(state_dict: Mapping[str, Tensor], name: str) -> int:
    """Return the side of the square grid of positions. One extra position belongs to the class token or the mean."""
    return math.isqrt(_shape(state_dict, name, 2)[0] - 1)


def _shape(state_dict: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    if name not in state_dict:
        raise CheckpointError(f"the state dict has no {name!r}; give the weights of a whole CLIP model")
    shape = tuple(state_dict[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(
            f"{name!r} has the shape {shape}, but {ndim} nonzero sizes were expected; give the weights of a CLIP model"
        )
    return shape


def _count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)})
