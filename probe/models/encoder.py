"""An image encoder: uint8 pixels in, both feature points out in fp32."""

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
    """Features of a batch: fp32 on the CPU, (n, embed_dim) and (n, pre_projection_dim)."""

    projected: Tensor
    pre_projection: Tensor


@dataclass(frozen=True)
class ImageEncoder:
    """A loaded image tower in two steps, up to the projection and the projection itself.

    Args:
        name: as in its `ModelSpec`.
        execution: where it runs and in which precision.
        preprocess: what its images go through first.
        embed_dim: width of the projected features.
        pre_projection_dim: width before the projection; a model without one has the same features at both points.
        weights_sha256: that of the checkpoint file, or of the tensors where there is no file.
        checkpoint_dtypes: the dtypes in the checkpoint, such as `float16`, sorted.
        weights_dtypes: those of the image tower as it computes.
        license: of the weights; empty where nobody says.
        pre_projection: normalised pixels (n, 3, r, r) in the dtype of `execution` -> (n, pre_projection_dim).
        project: (n, pre_projection_dim) -> (n, embed_dim).
        weights_key: place of the weights in the checkpoint, such as `state_dict.model`; `.` if it holds nothing else.
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
        """Side of the square images it takes, in pixels."""
        return self.preprocess.resolution

    @torch.inference_mode()
    def encode(self, pixels: Tensor, *, wait: bool = True) -> ImageFeatures:
        """uint8 (n, 3, resolution, resolution), on any device -> both feature points.

        Without `wait`, a GPU is only handed the work: the features are there once its stream has come so far.
        """
        images = self.preprocess.normalize(pixels.to(self.execution.device, non_blocking=True))
        before = self.pre_projection(images.to(self.execution.dtype))
        is_cuda = self.execution.device.type == "cuda"  # the only kind that can be waited for by an event
        points = [features.float().to("cpu", non_blocking=is_cuda) for features in (self.project(before), before)]
        if wait and is_cuda:
            torch.cuda.current_stream(self.execution.device).synchronize()
        return ImageFeatures(*points)


def dtypes_of(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """The names of the floating dtypes among tensors, sorted.

    >>> dtypes_of([torch.zeros(1), torch.zeros(1, dtype=torch.float16), torch.arange(3)])
    ('float16', 'float32')
    """
    return tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}))
