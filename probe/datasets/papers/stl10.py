"""STL-10: torchvision's files, and the ten folds of its makers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from probe.datasets.images import ImageDataset
from probe.datasets.sources import torchvision
from probe.datasets.splits.folds import Fold, Selection, select_all, with_validation
from probe.errors import DatasetError
from probe.specs import DatasetSpec, Source, Subset

INDICES = Path("stl10_binary") / "fold_indices.txt"


def open_subset(spec: DatasetSpec, source: Source, subset: Subset, *, root: Path, offline: bool) -> ImageDataset:
    """Open the 5,000 training or the 8,000 test images through torchvision."""
    return torchvision.open_subset(spec, source, subset, root=root, offline=offline)


def open_folds(spec: DatasetSpec, source: Source, subsets: Mapping[str, ImageDataset], *, root: Path) -> list[Fold]:
    """Read the makers' folds: each line has the positions of a fold in train. All folds have the same test subset.

    Raises:
        DatasetError: the file of folds is missing or damaged.
        TooFewImagesError: a class is too small to hold out a validation split.
    """
    path = root / INDICES
    try:
        lines = [
            np.array(line.split(), dtype=np.int64)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (OSError, ValueError) as err:
        raise DatasetError(f"{path} cannot be read ({err}); get {source.files} again") from err
    if len(lines) != spec.num_folds:
        raise DatasetError(f"{path}: expected {spec.num_folds} lines, found {len(lines)}; get {source.files} again")
    n = len(subsets["train"])
    for k, positions in enumerate(lines, start=1):
        if len(np.unique(positions)) != len(positions) or positions.min() < 0 or positions.max() >= n:
            raise DatasetError(
                f"{path}: line {k} names an image twice, or one that is not among the {n}; get {source.files} again"
            )
    test = select_all("test", subsets["test"])
    return [with_validation(subsets, Selection("train", np.sort(line)), test, spec.val_fraction) for line in lines]
