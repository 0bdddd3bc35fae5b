"""Small encoders of one's own: a module, a function that preprocesses images, and a file with both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from probe.models.own import Encoder

SIDE, WIDTH = 16, 6


class Patches(nn.Module):
    """Mean of a convolution over all patches, through a `view` that fails on images with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4)
        self.dropout = nn.Dropout(0.5)  # random in training mode

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, WIDTH) for images (n, 3, SIDE, SIDE)."""
        n = len(images.view(len(images), -1))
        return self.dropout(self.convolution(images).reshape(n, WIDTH, -1).mean(dim=2))


def scale(image: Image.Image) -> np.ndarray:
    """Return an image as float32 (3, SIDE, SIDE) in [0, 1]."""
    return np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32).transpose(2, 0, 1) / 255


def make_patches(seed: int = 0) -> Patches:
    """Return a module with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Patches()


def make_own(name: str = "mine", seed: int = 0) -> Encoder:
    """Return an encoder with seeded random weights."""
    return Encoder(make_patches(seed), scale, name=name)


FILE = """
import numpy as np
import torch
from torch import nn

import neighbour
import probe


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(neighbour.SEED)
        self.convolution = nn.Conv2d(3, 6, kernel_size=4, stride=4)

    def forward(self, images):
        return self.convolution(images).flatten(2).mean(dim=2)


def scale(image):
    return np.asarray(image.resize((16, 16)), dtype=np.float32).transpose(2, 0, 1) / 255


def make_encoder():
    print("loading")
    return probe.Encoder(Patches(), scale, name="from-file", license="MIT")


def make_pair():
    return Patches(), scale


def make_nothing():
    return None


def make_fault():
    size = 0
    return 1 / size
"""


def write_own(folder: Path) -> Path:
    """Write a file with functions that return encoders, and a module next to it that it imports; return its path."""
    (folder / "neighbour.py").write_text("SEED = 3\n", encoding="utf-8")
    path = folder / "own.py"
    path.write_text(FILE, encoding="utf-8")
    return path
