"""PIL image -> what the image tower eats: the transform of OpenAI's CLIP, in two halves.

`to_pixels` does what needs PIL (resize, crop, RGB) and leaves uint8; `normalize` does the arithmetic, on whatever
device holds the batch. One after the other they equal the reference's transform bit for bit; so does `transform`.

Source: Radford et al. 2021, appendix A; openai/CLIP `_transform`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the red, green and blue of OpenAI's training images
STD = (0.26862954, 0.26130258, 0.27577711)


def to_pixels(resolution: int) -> Callable[[Image.Image], np.ndarray]:
    """The half that needs PIL: image of any mode and size -> uint8 (3, resolution, resolution).

    The short side is resized bicubically to `resolution`, then the middle is cut out. The image becomes RGB after
    that, as in the reference; it matters for images with a palette or an alpha channel, and not for those of an
    `ImageDataset`, which are RGB already, as torchvision's `ImageFolder` gives them.
    """
    crop = Compose(_crop(resolution))
    return lambda image: np.ascontiguousarray(np.asarray(crop(image)).transpose(2, 0, 1))


def normalize(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, r, r) -> fp32 (n, 3, r, r), zero mean and unit variance over OpenAI's training images."""
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def transform(resolution: int) -> Callable[[Image.Image], Tensor]:
    """The whole transform, as `load_clip` returns it: image -> fp32 (3, resolution, resolution)."""
    return Compose([*_crop(resolution), ToTensor(), Normalize(MEAN, STD)])


def _crop(resolution: int) -> list[Callable[[Image.Image], Image.Image]]:
    return [Resize(resolution, interpolation=InterpolationMode.BICUBIC), CenterCrop(resolution), _to_rgb]


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
