"""Pool the outputs of an image tower of transformers: one feature per image from patches, class token or pooled output.

This module does not import transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probe.errors import CheckpointError

POOLINGS = ("cls", "mean", "pooler")


@dataclass(frozen=True)
class PoolingRule:
    """Default pooling of the models of a type, and the tokens that are not patches.

    Args:
        default: one of `POOLINGS`.
        num_class_tokens: tokens before the registers and patches. Register tokens come from the configuration.
        has_projection: True for models whose image features are the projected pooled output.
    """

    default: str
    num_class_tokens: int = 0
    has_projection: bool = False


# By `model_type` of the whole model's configuration. `docs/your-model.md` gives the reasons.
RULES: Mapping[str, PoolingRule] = {
    **dict.fromkeys(
        ("clip", "clip_vision_model", "metaclip_2", "altclip", "chinese_clip"),
        PoolingRule("pooler", num_class_tokens=1, has_projection=True),
    ),
    "aimv2": PoolingRule("pooler", has_projection=True),
    **dict.fromkeys(("beit", "dinov3_convnext"), PoolingRule("pooler", num_class_tokens=1)),
    **dict.fromkeys(
        (
            *("siglip", "siglip_vision_model", "bit", "convnext", "convnextv2", "hiera", "regnet", "resnet"),
            *("swin", "swinv2"),
        ),
        PoolingRule("pooler"),
    ),
    **dict.fromkeys(
        ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vit_mae", "vit_msn"),
        PoolingRule("cls", num_class_tokens=1),
    ),
    "deit": PoolingRule("cls", num_class_tokens=2),  # the second token is for distillation
    **dict.fromkeys(("aimv2_vision_model", "ijepa"), PoolingRule("mean")),
}


def choose_pooling(name: str, model_type: str, pooling: str) -> str:
    """Return the pooling of a model: the user's choice, or the default of the model's type.

    Args:
        name: name of the model, for messages.
        model_type: `model_type` of the configuration.
        pooling: one of `POOLINGS`, or empty for the default.

    Raises:
        CheckpointError: the type has no default.
    """
    if pooling:
        return pooling
    if model_type not in RULES:
        raise CheckpointError(
            f"{name} has model_type {model_type!r}, for which no pooling is known; add one of "
            f"{', '.join(f'?pool={known}' for known in POOLINGS)} to the name"
        )
    return RULES[model_type].default


class PooledTower(nn.Module):
    """Image tower that returns one feature per image.

    Args:
        tower: image tower of transformers.
        model_type: `model_type` of the whole model's configuration.
        pooling: one of `POOLINGS`.
    """

    def __init__(self, tower: nn.Module, model_type: str, pooling: str) -> None:
        super().__init__()
        self.tower, self.model_type, self.pooling = tower, model_type, pooling

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (n, width) of normalised pixels (n, 3, height, width).

        Raises:
            CheckpointError: the model's output does not contain what the pooling needs.
        """
        output = self.tower(pixel_values=images, **self._fix_order(images))
        if self.pooling == "pooler":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise self._cannot_pool("no pooled output")
            return torch.flatten(pooled, 1)  # ResNets return (n, width, 1, 1)
        hidden = output.last_hidden_state
        if hidden.ndim == 4:
            return self._pool_map(hidden)
        num_others = self._count_other_tokens(images, hidden.shape[1])
        if self.pooling == "mean":
            return hidden[:, num_others:].mean(dim=1)
        if num_others == 0:
            raise self._cannot_pool("no class token")
        return hidden[:, 0]

    def _fix_order(self, images: Tensor) -> dict[str, Tensor]:
        """Return the argument that keeps the patches of a masked autoencoder in order: increasing instead of noise."""
        if self.model_type != "vit_mae":
            return {}
        noise = torch.arange(self._count_patches(images), device=images.device, dtype=torch.float32)
        return {"noise": noise.expand(len(images), -1)}

    def _pool_map(self, hidden: Tensor) -> Tensor:
        """Return the mean over space of a map (n, width, rows, columns)."""
        if self.pooling == "cls":
            raise self._cannot_pool("no class token")
        if self.model_type not in RULES and hidden.shape[1] not in _list_widths(self.tower.config):
            raise self._cannot_pool(f"an output of shape {tuple(hidden.shape)} with channels in an unknown place")
        return hidden.mean(dim=(2, 3))

    def _count_other_tokens(self, images: Tensor, num_tokens: int) -> int:
        """Return the number of class and register tokens, which come before the patches."""
        if self.model_type in RULES:
            registers: int = getattr(self.tower.config, "num_register_tokens", 0)
            return RULES[self.model_type].num_class_tokens + registers
        num_others = num_tokens - self._count_patches(images)
        if num_others < 0:
            raise self._cannot_pool("fewer tokens than patches")
        return num_others

    def _count_patches(self, images: Tensor) -> int:
        patch: Any = getattr(self.tower.config, "patch_size", None)
        rows, columns = (patch, patch) if isinstance(patch, int) else patch or (0, 0)
        if not (rows and columns):
            raise self._cannot_pool("no size of its patches in its configuration")
        return (images.shape[2] // rows) * (images.shape[3] // columns)

    def _cannot_pool(self, lack: str) -> CheckpointError:
        others = " or ".join(f"?pool={pooling}" for pooling in POOLINGS if pooling != self.pooling)
        return CheckpointError(
            f"a model with model_type {self.model_type!r} has {lack}, which ?pool={self.pooling} needs; use {others}"
        )


def _list_widths(config: Any) -> list[int]:
    """Return the widths of features that a configuration names."""
    sizes = [getattr(config, name, None) for name in ("hidden_size", "hidden_sizes", "embed_dim", "num_features")]
    return [width for size in sizes for width in (size if isinstance(size, list | tuple) else [size]) if width]
