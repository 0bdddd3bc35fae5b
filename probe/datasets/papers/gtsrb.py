"""German Traffic Signs with the final training set, which torchvision lacks; the test subset is torchvision's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from probe.datasets.images import ImageDataset, in_files
from probe.datasets.sources import torchvision
from probe.datasets.sources.folder import list_class_files
from probe.datasets.splits.groups import groups_of
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open one subset; training images come in tracks, which are their groups.

    Raises:
        DatasetError: an unknown class folder, an unexpected file, or a damaged table.
    """
    if subset.name == "test":
        official = replace(source, location="GTSRB", subsets=(("test", (("split", "test"),)),))
        return torchvision.open_subset(spec, official, subset, root=root, offline=True)
    folder = root / source.location / "GTSRB" / "Final_Training" / "Images"
    folders = [f"{i:05}" for i in range(spec.num_classes or 0)]
    tables = tuple(f"GT-{name}.csv" for name in folders)  # boxes around the signs, one table a class
    names = list_class_files(folder, ignore=tables)
    classes = [name.split("/")[0] for name in names]
    for class_name in classes:
        if class_name not in folders:
            raise DatasetError(
                f"{folder / class_name} is not one of the classes {folders[0]} to {folders[-1]}; remove it"
            )
    name = f"{spec.name}/{subset.name}"
    ids = [f"{folder.relative_to(root).as_posix()}/{key}" for key in names]  # as torchvision's, from the data folder on
    return ImageDataset(
        name=name,
        labels=np.array([int(class_name) for class_name in classes], dtype=np.int64),
        class_names=[str(i) for i in range(len(folders))],
        ids=ids,
        groups=groups_of(name, subset, ids, dict(source.options)),
        **in_files(folder, names),
    )
