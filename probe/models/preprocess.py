"""Preprocessing of images for an image tower, by default the transform of OpenAI's CLIP.

The preprocessing has two steps. `to_pixels` resizes, crops and converts to RGB with PIL, and returns uint8. `normalize`
subtracts the mean and divides by the standard deviation, on the device of the batch. Both steps together, and
`transform`, give the same bits as the reference's transform. Only `transform` imports torchvision.

Source: Radford et al. 2021, appendix A; openai/CLIP `_transform`; for the other settings, open_clip `PreprocessCfg`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from probe.errors import FeaturesError

if TYPE_CHECKING:
    from torchvision.transforms import Compose

PREPROCESS_VERSION = 1  # increased with every change of this module that changes the input of a model
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue in OpenAI's training images
STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = ("bicubic", "bilinear")
RESIZES = ("shortest", "squash")


@dataclass(frozen=True)
class Preprocess:
    """Settings of the preprocessing of images.

    Args:
        resolution: side of the square input of the model, in pixels.
        mean: values that are subtracted from red, green and blue, for pixels in [0, 1].
        std: values that red, green and blue are divided by, after the subtraction.
        interpolation: one of `INTERPOLATIONS`.
        resize: `shortest` resizes the short side and crops the centre; `squash` resizes both sides.
        resize_to: side or sides after the resizing, in pixels, of which the centre is cropped; 0 for `resolution`.
    """

    resolution: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bicubic"
    resize: str = "shortest"
    resize_to: int = 0

    dtype = np.dtype(np.uint8)  # of the pixels

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.resolution, self.resolution

    def describe(self) -> dict[str, Any]:
        """Return the fields of a `PreprocessRecord`."""
        return asdict(self)

    def to_pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an image of any mode and size; return uint8 (3, resolution, resolution), channels last.

        The conversion to RGB comes last, as in the reference. The order changes the pixels of images with a palette or
        an alpha channel. Images of an `ImageDataset` are RGB from the start.
        """
        return np.array(_to_rgb(self._crop(image))).transpose(2, 0, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels (n, 3, r, r); return fp32 on the same device and with the same memory format."""
        mean, std = (_on_device(values, pixels.device) for values in (self.mean, self.std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    @property
    def transform(self) -> Compose:
        """The complete transform that `load_clip` returns, from a PIL image to fp32 (3, resolution, resolution).

        Its `transforms` are the five steps of OpenAI's transform, for code that selects, replaces or inserts steps.
        """
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

        side, interpolation = self.resolution, InterpolationMode(self.interpolation)
        between = self.resize_to or side
        if self.resize == "squash":
            steps = [Resize((between, between), interpolation=interpolation), CenterCrop(side)]
        else:
            steps = [Resize(between, interpolation=interpolation), CenterCrop(side)]
        return Compose([*steps, _to_rgb, ToTensor(), Normalize(self.mean, self.std)])

    def _crop(self, image: Image.Image) -> Image.Image:
        """Resize and crop as torchvision does, which takes two seconds to import."""
        side, (width, height) = self.resolution, image.size
        between, short = self.resize_to or side, min(width, height)
        if self.resize == "squash":
            width, height = between, between
        else:
            width, height = int(between * width / short), int(between * height / short)
        resized = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = round((width - side) / 2), round((height - side) / 2)
        is_whole = (width, height) == (side, side)
        return resized if is_whole else resized.crop((left, top, left + side, top + side))


@dataclass(frozen=True, eq=False)
class CustomPreprocess:
    """Preprocessing by a function of another library or of the user, such as a transform of torchvision.

    Args:
        function: maps a PIL image in RGB to a normalised tensor or array, (3, height, width), float.
        shape: height and width of the result, in pixels.
        description: text that names the function and its settings, for records and for the keys of cached features.
    """

    function: Callable[[Image.Image], Any] = field(repr=False)
    shape: tuple[int, int]
    description: str

    dtype = np.dtype(np.float32)

    def describe(self) -> dict[str, Any]:
        """Return the fields of a `PreprocessRecord`."""
        height, width = self.shape
        return {"resolution": height, "width": width if width != height else 0, "function": self.description}

    def to_pixels(self, image: Image.Image) -> np.ndarray:
        """Return the result of the function as float32 (3, height, width).

        Raises:
            FeaturesError: the result has another shape.
        """
        found = to_array(self.function(image.convert("RGB")))
        if found.shape != (3, *self.shape):
            height, width = self.shape
            raise FeaturesError(
                f"the preprocessing {self.description} returned the shape {found.shape} for an image of "
                f"{image.width} x {image.height} pixels; return (3, {height}, {width}) for every image"
            )
        return found

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return the pixels as they are: the function has normalised them."""
        return pixels


AnyPreprocess = Preprocess | CustomPreprocess


def to_array(pixels: object) -> np.ndarray:
    """Return a tensor of any device and float dtype, also one that requires grad, or an array as float32."""
    return np.asarray(pixels.detach().cpu().float() if isinstance(pixels, Tensor) else pixels, dtype=np.float32)


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return three values as (3, 1, 1). They are cached, since a copy to a GPU would wait for the previous batches."""
    with torch.inference_mode(False):  # tensors of inference mode cannot be used outside of it
        return torch.tensor(values, device=device).view(3, 1, 1)


def libjpeg_version() -> str:
    """Return the version of the library with which Pillow decodes JPEG. It differs between builds of Pillow."""
    return features.version("libjpeg_turbo") or features.version("jpg") or ""


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` always copies
