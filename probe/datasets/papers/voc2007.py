"""Pascal VOC 2007, classification: each image shows one or more of 20 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probe.datasets.archives import fetch_missing
from probe.datasets.images import ImageDataset, in_files
from probe.datasets.papers.lists import read_lines
from probe.errors import DatasetError, DatasetMissingError
from probe.specs import DatasetSpec, Source, Subset

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# In the files, 1 means that the image shows the class, -1 that it does not, and 0 that it shows only instances marked
# as difficult. Such images do not count for the class: `ImageDataset` has -1 for them, see `stats.metrics.IGNORED`.
LABELS = {"1": 1, "-1": 0, "0": -1}
TRAINVAL, TEST = "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"
ARCHIVES = {"train": TRAINVAL, "val": TRAINVAL, "test": TEST}


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset, in the order of its lists. Both archives fill one folder, so one subset can be present alone.

    Raises:
        DatasetMissingError: the lists or images of the subset are missing and could not be downloaded.
        DatasetError: a list is damaged, or the lists of two classes have different images.
    """
    top = root / source.location
    lists = [top / "ImageSets" / "Main" / f"{name}_{subset.name}.txt" for name in CLASSES]
    if not (lists[0].exists() and (top / "JPEGImages").exists()):
        if offline:
            raise DatasetMissingError(f"{spec.name}: {lists[0]} or the images next to it are missing")
        fetch_missing(source, root, only=ARCHIVES[subset.name])
    columns = [_read_list(path, source) for path in lists]
    for path, column in zip(lists, columns, strict=True):
        if list(column) != list(columns[0]):
            raise DatasetError(f"{path} and {lists[0].name} list different images; get {source.files} again")
    files = [f"{key}.jpg" for key in columns[0]]
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array([list(column.values()) for column in columns], dtype=np.int64).T.copy(),  # (n, 20)
        class_names=CLASSES,
        ids=list(columns[0]),
        **in_files(top / "JPEGImages", files),
    )


def _read_list(path: Path, source: Source) -> dict[str, int]:
    """Read the images of a list and their labels, in its order."""
    labels = {}
    for line in read_lines(path, source):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in LABELS:
            raise DatasetError(
                f"{path} has the line {line!r}, which is not an image and 1, -1 or 0; get {source.files} again"
            )
        labels[fields[0]] = LABELS[fields[1]]
    return labels
