"""An image encoder: takes uint8 pixels, returns the features at both feature points in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.models.devices import Execution
from probe.models.preprocess import Preprocess
from probe.models.unwrapping import WHOLE


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch: fp32 on the CPU, `projected` (n, embed_dim), `pre_projection` (n, pre_projection_dim)."""

    projected: Tensor
    pre_projection: Tensor


@dataclass(frozen=True)
class ImageEncoder:
    """A loaded image tower in two steps: the tower up to the projection, and the projection.

    Args:
        name: name of the `ModelSpec`.
        execution: device, precision and mode.
        preprocess: preprocessing of the images.
        embed_dim: width of the projected features.
        pre_projection_dim: width of the features before the projection. A model without a projection has the same
            features at both feature points.
        weights_sha256: SHA-256 of the checkpoint file, or of the tensors of a model without a file.
        checkpoint_dtypes: dtypes of the tensors in the checkpoint, such as `float16`, sorted.
        weights_dtypes: dtypes of the loaded image tower, sorted.
        license: licence of the weights; empty if it is not known.
        pre_projection: maps normalised pixels (n, 3, r, r) in the dtype of `execution` to (n, pre_projection_dim).
        project: maps (n, pre_projection_dim) to (n, embed_dim).
        weights_key: place of the weights in the checkpoint, such as `state_dict.model`; `.` if the checkpoint contains
            nothing else.
        preprocess_from: origin of the settings of `preprocess`, such as `open_clip_config.json`.
    """

    name: str
    execution: Execution
    preprocess: Preprocess
    embed_dim: int
    pre_projection_dim: int
    weights_sha256: str
    checkpoint_dtypes: tuple[str, ...]
    weights_dtypes: tuple[str, ...]
    license: str
    pre_projection: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    weights_key: str = WHOLE
    preprocess_from: str = ""

    @property
    def resolution(self) -> int:
        """Side of the square input images, in pixels."""
        return self.preprocess.resolution

    @torch.inference_mode()
    def encode(self, pixels: Tensor, *, wait: bool = True) -> ImageFeatures:
        """Encode a batch of images.

        Args:
            pixels: uint8 (n, 3, resolution, resolution), on any device.
            wait: False returns before a GPU has finished. The features are then valid only after the GPU's stream has
                been synchronized.

        Returns:
            The features at both feature points.
        """
        images = self.preprocess.normalize(pixels.to(self.execution.device, non_blocking=True))
        before = self.pre_projection(images.to(self.execution.dtype))
        is_cuda = self.execution.device.type == "cuda"  # copies from other devices cannot be waited for with an event
        points = [features.float().to("cpu", non_blocking=is_cuda) for features in (self.project(before), before)]
        if wait and is_cuda:
            torch.cuda.current_stream(self.execution.device).synchronize()
        return ImageFeatures(*points)


def dtypes_of(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the names of the floating-point dtypes of tensors, sorted.

    >>> dtypes_of([torch.zeros(1), torch.zeros(1, dtype=torch.float16), torch.arange(3)])
    ('float16', 'float32')
    """
    return tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}))
