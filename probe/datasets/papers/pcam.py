"""PatchCamelyon: images and labels in HDF5 files, which torchvision downloads. Needs the extra `hdf5`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from probe.datasets.class_names import PCAM
from probe.datasets.fingerprints import of_files
from probe.datasets.images import ImageDataset
from probe.datasets.sources.torchvision import download
from probe.errors import DatasetError, ExtraMissingError
from probe.specs import DatasetSpec, Source, Subset

SPLITS = {"train": "train", "val": "valid", "test": "test"}  # in the names of files
_AGAIN = "run again to fetch it, or put it there"


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset, in the order of its files; images are read one by one.

    Raises:
        DatasetMissingError: files are missing and could not be downloaded.
        DatasetError: a file is damaged, or the numbers of images and labels differ.
        ExtraMissingError: h5py is not installed.
    """
    missing = [path for path in source.paths if not (root / path).exists()]
    import_h5py()  # fail before gigabytes are downloaded
    if missing:
        download(spec, source.location, root=root, **source.arguments(subset.name))
    path, labels_path = (
        root / "pcam" / f"camelyonpatch_level_2_split_{SPLITS[subset.name]}_{kind}.h5" for kind in "xy"
    )
    labels = _read_labels(path, labels_path)
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=labels,
        class_names=PCAM,
        read=partial(_read, path),
        ids=[f"{subset.name}/{i}" for i in range(len(labels))],
        content=partial(of_files, path.parent, [path.name]),
    )


def import_h5py() -> Any:
    """Import and return the module h5py.

    Raises:
        ExtraMissingError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as err:
        raise ExtraMissingError(
            "PatchCamelyon's files are read with h5py, which is not installed; pip install h5py"
        ) from err
    return h5py


def _read_labels(path: Path, labels_path: Path) -> np.ndarray:
    """Read the labels, int64 (n,), of the images of a file, from the file next to it."""
    h5py = import_h5py()
    try:
        with h5py.File(path) as file, h5py.File(labels_path) as labels_file:
            shape, dtype = file["x"].shape, file["x"].dtype
            labels = labels_file["y"][...].reshape(-1).astype(np.int64)  # (n, 1, 1, 1) there
    except (OSError, KeyError, AttributeError) as err:
        raise DatasetError(f"{path} or {labels_path.name} is damaged ({err}); remove it, then {_AGAIN}") from err
    if len(shape) != 4 or dtype != np.uint8 or shape[0] != len(labels):
        raise DatasetError(
            f"{path} has images {shape} of {dtype} for {len(labels)} labels; remove it and {labels_path.name}, "
            f"then {_AGAIN}"
        )
    return labels


def _read(path: Path, i: int) -> Image.Image:
    # The file is opened for each image, because an open file does not survive the start of worker processes. Opening
    # takes 0.4 ms, CLIP's transform 1.6 ms (both measured on one core, on a local disk).
    with import_h5py().File(path) as file:
        return Image.fromarray(file["x"][i])
