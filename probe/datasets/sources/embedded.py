"""scikit-learn's digits, which need no download."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from probe.datasets.fingerprints import of_array
from probe.datasets.images import ImageDataset
from probe.specs import DatasetSpec, Source, Subset


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open the 1,797 digits: 8 x 8 grey images, with their 17 levels scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=digits.target.astype(np.int64),
        class_names=[str(name) for name in digits.target_names],
        read=partial(_read, pixels),
        content=partial(of_array, pixels),
        ids=[f"{subset.name}/{i}" for i in range(len(pixels))],
    )


def _read(pixels: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(pixels[i])
