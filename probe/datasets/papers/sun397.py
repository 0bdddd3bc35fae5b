"""SUN397: the makers' list of classes and first of ten partitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probe.datasets.images import ImageDataset, in_files
from probe.datasets.papers.lists import read_lines
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset

LISTS = {"train": "Training_01.txt", "test": "Testing_01.txt"}


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset. Class indices are positions in ClassName.txt, images are in the order of their list.

    A missing image is found when it is read: looking for 39,700 files first is slow on a network disk.

    Raises:
        DatasetError: a list is damaged, or names an image of a class that is not in ClassName.txt.
    """
    top = root / source.location
    class_names = read_lines(top / "ClassName.txt", source)  # such as /c/cathedral/indoor
    index = {name: i for i, name in enumerate(class_names)}
    path = top / LISTS[subset.name]
    ids = [line.lstrip("/") for line in read_lines(path, source)]
    folders = [f"/{key.rpartition('/')[0]}" for key in ids]
    for key, folder in zip(ids, folders, strict=True):
        if folder not in index:
            raise DatasetError(
                f"{path} lists /{key}, whose class {folder} is not in ClassName.txt; get {source.files} again"
            )
    return ImageDataset(
        name=f"{spec.name}/{subset.name}",
        labels=np.array([index[folder] for folder in folders], dtype=np.int64),
        class_names=[name[3:] for name in class_names],  # without the folder of the first letter
        ids=ids,
        **in_files(top, ids),
    )
