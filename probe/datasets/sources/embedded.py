"""scikit-learn's digits, which need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from probe.datasets.images import ImageDataset, in_array
from probe.specs import DatasetSpec, Source, Subset


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open the 1,797 digits: 8 x 8 grey images, with their 17 levels scaled to 0 to 255."""
    digits = _load_digits()
    pixels = np.rint(digits[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=digits[:, -1].astype(np.int64),
        class_names=[str(digit) for digit in range(10)],
        ids=[f"{subset.name}/{i}" for i in range(len(pixels))],
        **in_array(pixels),
    )


def _load_digits() -> np.ndarray:
    """Return 64 levels and the label of each digit, float64 (n, 65).

    This is the file that `sklearn.datasets.load_digits` reads. Importing scikit-learn takes two seconds.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "datasets/data/digits.csv.gz"
    return np.loadtxt(path, delimiter=",")  # unpacks the file
