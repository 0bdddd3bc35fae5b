"""An image encoder: uint8 pixels in, both feature points out in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.models.devices import Execution
from probe.preprocess import normalize
from probe.specs import Architecture


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch: fp32 on the CPU, (n, embed_dim) and (n, pre_projection_dim)."""

    projected: Tensor
    pre_projection: Tensor


@dataclass(frozen=True)
class ImageEncoder:
    """A loaded image tower in two steps, up to the projection and the projection itself.

    `weights_sha256` is that of the checkpoint file, or of the tensors where there is no file.
    """

    name: str
    execution: Execution
    architecture: Architecture
    weights_sha256: str
    pre_projection: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]

    @property
    def resolution(self) -> int:
        """Side of the square images it takes, in pixels."""
        return self.architecture.image_resolution

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> ImageFeatures:
        """uint8 (n, 3, resolution, resolution), on any device -> both feature points."""
        images = normalize(pixels.to(self.execution.device)).to(self.execution.dtype)
        before = self.pre_projection(images)
        return ImageFeatures(projected=self.project(before).float().cpu(), pre_projection=before.float().cpu())
