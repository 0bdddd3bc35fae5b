"""Pascal VOC 2007, classification: the classes, out of 20, that each image shows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from probe.datasets.archives import fetch_missing
from probe.datasets.fingerprints import of_files
from probe.datasets.images import ImageDataset, read_file
from probe.datasets.papers.lists import read_lines
from probe.errors import DatasetError, DatasetMissingError
from probe.specs import DatasetSpec, Source, Subset

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# In the files: 1 for an image that shows the class, -1 for one that does not, 0 for one that shows only instances that
# are marked as difficult. These do not count, for which `ImageDataset` has -1, as `probe.stats.metrics.IGNORED`.
LABELS = {"1": 1, "-1": 0, "0": -1}
TRAINVAL, TEST = "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"
ARCHIVES = {"train": TRAINVAL, "val": TRAINVAL, "test": TEST}


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset, in the order of its lists. Two archives make one folder, so that a subset can be there alone.

    Raises:
        DatasetMissingError: the lists or images of the subset are not there and could not be fetched.
        DatasetError: a list is damaged, or the lists of two classes have other images.
    """
    top = root / source.location
    lists = [top / "ImageSets" / "Main" / f"{name}_{subset.name}.txt" for name in CLASSES]
    if not (lists[0].exists() and (top / "JPEGImages").exists()):
        if offline:
            raise DatasetMissingError(f"{spec.name}: no {lists[0]}, or no images beside it")
        fetch_missing(source, root, only=ARCHIVES[subset.name])
    columns = [_read_list(path, source) for path in lists]
    for path, column in zip(lists, columns, strict=True):
        if list(column) != list(columns[0]):
            raise DatasetError(f"{path} has other images than {lists[0].name}; get {source.files} again")
    files = [f"{key}.jpg" for key in columns[0]]
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array([list(column.values()) for column in columns], dtype=np.int64).T.copy(),  # (n, 20)
        class_names=CLASSES,
        read=partial(read_file, top / "JPEGImages", files),
        content=partial(of_files, top / "JPEGImages", files),
        ids=list(columns[0]),
    )


def _read_list(path: Path, source: Source) -> dict[str, int]:
    """The images of a list and their labels, in its order."""
    labels = {}
    for line in read_lines(path, source):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in LABELS:
            raise DatasetError(
                f"{path} has the line {line!r}, which is no image and 1, -1 or 0; get {source.files} again"
            )
        labels[fields[0]] = LABELS[fields[1]]
    return labels
