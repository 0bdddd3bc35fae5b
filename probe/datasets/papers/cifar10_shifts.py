"""CIFAR-10.1 and CIFAR-10.2, further test sets of CIFAR-10, as NumPy arrays of their repositories.

Options of the source:

- `images` and `labels`: two `.npy` files below the location, for CIFAR-10.1.
- `arrays`: an `.npz` file with the arrays `images` and `labels`, for CIFAR-10.2. The other arrays of the file are
  pickles, which are never loaded.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from probe.datasets.images import ImageDataset, in_array
from probe.errors import DatasetError, summarize
from probe.specs import DatasetSpec, Source, Subset


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open the test images. The name of a class is its label in CIFAR-10.

    Raises:
        DatasetError: a file is damaged, or its arrays are not 32 x 32 RGB images with one label each.
    """
    folder, options = root / source.location, dict(source.options)
    try:
        if "arrays" in options:
            with np.load(folder / options["arrays"], allow_pickle=False) as arrays:
                images, labels = arrays["images"], arrays["labels"]
        else:
            images, labels = (np.load(folder / options[name], allow_pickle=False) for name in ("images", "labels"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
        raise DatasetError(f"{spec.name} in {folder} is damaged ({summarize(err)}); get {source.files} again") from err
    labels = labels.reshape(-1)
    if images.shape != (len(labels), 32, 32, 3) or images.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise DatasetError(
            f"{spec.name} in {folder}: expected uint8 images (n, 32, 32, 3) and n integer labels, found {images.dtype} "
            f"{images.shape} and {labels.dtype} {labels.shape}; get {source.files} again"
        )
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=labels.astype(np.int64),
        class_names=[str(label) for label in range(spec.num_classes or 0)],
        ids=[f"{subset.name}/{i}" for i in range(len(images))],
        **in_array(images),
    )
