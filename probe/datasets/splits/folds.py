"""Which images of a dataset's subsets make the splits of one fit. Knows labels and groups; reads no images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.datasets.images import ImageDataset
from probe.datasets.splits.stratified import hold_out
from probe.specs import SPLITS, DatasetSpec

__all__ = ["SPLITS", "Fold", "Selection", "by_split", "default_fold", "select_all", "with_validation"]


@dataclass(frozen=True)
class Selection:
    """Images of a subset: int64 positions, ascending."""

    subset: str
    positions: np.ndarray


@dataclass(frozen=True)
class Fold:
    """The three splits of one fit; no image is in two of them."""

    train: Selection
    val: Selection
    test: Selection

    def __getitem__(self, split: str) -> Selection:
        """`train`, `val` or `test`."""
        selection: Selection = getattr(self, split)
        return selection


def by_split(folds: Sequence[Any], describe: Callable[[int, str], Any]) -> dict[str, Any]:
    """Call `describe(fold, split)` for each split; names are `train`, or `train/1` and so on with several folds."""
    return {
        name if len(folds) == 1 else f"{name}/{k + 1}": describe(k, name) for k in range(len(folds)) for name in SPLITS
    }


def select_all(name: str, images: ImageDataset) -> Selection:
    """Select all images of a subset."""
    return Selection(name, np.arange(len(images)))


def default_fold(spec: DatasetSpec, subsets: Mapping[str, ImageDataset]) -> Fold:
    """The official subsets as splits; a missing `test` is held out of `all`, a missing `val` of what is left.

    Raises:
        TooFewImagesError: a class is too small.
    """
    name = "all" if "all" in subsets else "train"
    pool = select_all(name, subsets[name])
    if "test" in subsets:
        test, val_fraction = select_all("test", subsets["test"]), spec.val_fraction
    else:
        pool, test = _divide(subsets[name], pool, spec.test_fraction, role="test")
        val_fraction = spec.val_fraction / (1 - spec.test_fraction)
    if "val" in subsets:
        return Fold(pool, select_all("val", subsets["val"]), test)
    return with_validation(subsets, pool, test, val_fraction)


def with_validation(subsets: Mapping[str, ImageDataset], train: Selection, test: Selection, fraction: float) -> Fold:
    """A fold whose validation split is held out of `train`, by class and by whole groups.

    Raises:
        TooFewImagesError: a class is too small.
    """
    kept, held = _divide(subsets[train.subset], train, fraction, role="val")
    return Fold(kept, held, test)


def _divide(images: ImageDataset, pool: Selection, fraction: float, *, role: str) -> tuple[Selection, Selection]:
    groups = [images.groups[i] for i in pool.positions] if images.groups else ()
    kept, held = hold_out(images.labels[pool.positions], fraction, role=role, groups=groups)
    return Selection(pool.subset, pool.positions[kept]), Selection(pool.subset, pool.positions[held])
