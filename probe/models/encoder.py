"""An image encoder: takes preprocessed pixels, returns the features at both feature points in fp32."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.errors import CheckpointError
from probe.models.devices import Execution, naming_precision
from probe.models.preprocess import AnyPreprocess
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
        pre_projection_dim: width of the features before the projection.
        weights_sha256: SHA-256 of the checkpoint file, or of the tensors of a model without a file.
        checkpoint_dtypes: dtypes of the tensors in the checkpoint, such as `float16`, sorted.
        weights_dtypes: dtypes of the loaded image tower, sorted.
        license: licence of the weights; empty if it is not known.
        pre_projection: maps normalised pixels (n, 3, r, r) in the dtype of `execution` to (n, pre_projection_dim).
        project: maps (n, pre_projection_dim) to (n, embed_dim); `no_projection` for a model without a projection, which
            has the same features at both feature points.
        weights_key: place of the weights in the checkpoint, such as `state_dict.model`; `.` if the checkpoint contains
            nothing else.
        preprocess_from: origin of the settings of `preprocess`, such as `open_clip_config.json`.
        identity: digest of the encoder in the keys of cached features, see `loading.identify`; empty if the name of the
            encoder, as one that `get_model` accepts, identifies it.
        pooling: rule by which patches become one feature, such as `mean`; empty if the model has only one rule.
    """

    name: str
    execution: Execution
    preprocess: AnyPreprocess
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
    pooling: str = ""
    identity: str = ""

    @property
    def resolution(self) -> int:
        """Height of the input images, in pixels. The images are square for most models."""
        return self.preprocess.shape[0]

    @property
    def has_projection(self) -> bool:
        """False if both feature points have the same features."""
        return self.project is not no_projection

    @torch.inference_mode()
    def encode(self, pixels: Tensor, *, wait: bool = True) -> ImageFeatures:
        """Encode a batch of images.

        Args:
            pixels: images from `preprocess.to_pixels`, (n, 3, height, width), on any device.
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


def no_projection(features: Tensor) -> Tensor:
    """Return features as they are: the projection of a model that has none."""
    return features


def measure_widths(
    name: str,
    before: Callable[[Tensor], Tensor],
    project: Callable[[Tensor], Tensor],
    *,
    shape: tuple[int, int],
    execution: Execution,
) -> tuple[int, int]:
    """Return the widths of the features before and after the projection, from encoding two black images.

    Args:
        name: name of the model, for messages.
        before: maps pixels (n, 3, height, width) to features (n, pre_projection_dim).
        project: maps these features to (n, embed_dim).
        shape: height and width of the pixels.
        execution: device and precision of the model.

    Raises:
        CheckpointError: the model does not return one row of features for each image.
        DeviceError: the model cannot compute in this precision on this device.
    """
    zeros = torch.zeros(2, 3, *shape, device=execution.device, dtype=execution.dtype)
    with naming_precision(name, execution), torch.inference_mode():
        middle = check_rows(name, before(zeros), len(zeros))
        return middle.shape[1], check_rows(name, project(middle), len(zeros)).shape[1]


def check_rows(name: str, features: object, n: int) -> Tensor:
    """Return the features of n images that a model returned, after checking their shape.

    Raises:
        CheckpointError: they are not a float tensor with one row for each image.
    """
    if not isinstance(features, Tensor):
        found = f"a {type(features).__name__}"
    elif features.ndim != 2 or len(features) != n or not features.shape[1]:
        found = f"the shape {tuple(features.shape)}"
    elif not features.is_floating_point():
        found = str(features.dtype)
    else:
        return features
    raise CheckpointError(f"{name} returned {found} for {n} images; an encoder returns a float tensor ({n}, features)")


def dtypes_of(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the names of the floating-point dtypes of tensors, sorted.

    >>> dtypes_of([torch.zeros(1), torch.zeros(1, dtype=torch.float16), torch.arange(3)])
    ('float16', 'float32')
    """
    return tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of tensors on any device."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # NumPy has no bf16, so the bytes are viewed.
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
