"""PIL image -> what the image tower eats, in two halves; by default the transform of OpenAI's CLIP.

`to_pixels` does what needs PIL (resize, crop, RGB) and leaves uint8; `normalize` does the arithmetic, on whatever
device holds the batch. One after the other they equal the reference's transform bit for bit; so does `transform`.

Source: Radford et al. 2021, appendix A; openai/CLIP `_transform`; for the other settings, open_clip `PreprocessCfg`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

VERSION = 1  # raised with every change of this module that changes what a model sees
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the red, green and blue of OpenAI's training images
STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = ("bicubic", "bilinear")
RESIZES = ("shortest", "squash")


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before a model sees it.

    Args:
        resolution: side of the square that the model takes, in pixels.
        mean: what is taken off red, green and blue, of pixels in [0, 1].
        std: what they are then divided by.
        interpolation: one of `INTERPOLATIONS`.
        resize: `shortest` resizes the short side to `resolution` and cuts out the middle, `squash` resizes both sides.
    """

    resolution: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bicubic"
    resize: str = "shortest"

    def to_pixels(self, image: Image.Image) -> np.ndarray:
        """The half that needs PIL: image of any mode and size -> uint8 (3, resolution, resolution), channels last.

        The image becomes RGB last, as in the reference; it matters for images with a palette or an alpha channel, and
        not for those of an `ImageDataset`, which are RGB already, as torchvision's `ImageFolder` gives them.
        """
        return np.array(self._crop(image)).transpose(2, 0, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3, r, r) -> fp32 (n, 3, r, r), on the same device and in the same order in memory."""
        mean, std = (_on_device(values, pixels.device) for values in (self.mean, self.std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    @property
    def transform(self) -> Compose:
        """Return the complete transform, as `load_clip` returns it: image -> fp32 (3, resolution, resolution).

        Its `transforms` are the five steps of OpenAI's transform, for code that selects, replaces or inserts steps.
        """
        return Compose([*self._crop.transforms, ToTensor(), Normalize(self.mean, self.std)])

    @cached_property
    def _crop(self) -> Compose:
        side, interpolation = self.resolution, InterpolationMode(self.interpolation)
        if self.resize == "squash":
            return Compose([Resize((side, side), interpolation=interpolation), _to_rgb])
        return Compose([Resize(side, interpolation=interpolation), CenterCrop(side), _to_rgb])


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Three values as (3, 1, 1), made once: to copy them to a GPU at every batch would wait for the batches before."""
    with torch.inference_mode(False):  # what is made in it cannot be used outside
        return torch.tensor(values, device=device).view(3, 1, 1)


def libjpeg_version() -> str:
    """That of the library with which Pillow decodes JPEG, and which another build of Pillow can have another of."""
    return features.version("libjpeg_turbo") or features.version("jpg") or ""


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies
