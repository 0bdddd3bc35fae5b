"""Subsets of a dataset -> folds, each with a train, a validation and a test split. Reads no images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from probe.datasets.images import ImageDataset
from probe.datasets.splits.stratified import TooFewImagesError, hold_out
from probe.errors import DatasetError
from probe.specs import SPLITS, DatasetSpec

T = TypeVar("T")

REPAIR = "replace its files, or correct its specification"  # for a dataset that differs from its specification


@dataclass(frozen=True)
class Selection:
    """Images of a subset: int64 positions, ascending."""

    subset: str
    positions: np.ndarray


@dataclass(frozen=True)
class Fold:
    """Three splits for one fit; no image is in two of them."""

    train: Selection
    val: Selection
    test: Selection

    def __getitem__(self, split: str) -> Selection:
        """Return the images of `train`, `val` or `test`."""
        selection: Selection = getattr(self, split)
        return selection


@dataclass(frozen=True)
class UsedImages:
    """Images of a subset that some split uses.

    Args:
        images: these images, in the order of the subset.
        positions: int64 (n,), their positions in the subset, ascending.
        sha256: digest of their ids and labels.
        fingerprint: digest that changes when images are replaced under the same ids.
    """

    images: ImageDataset
    positions: np.ndarray
    sha256: str
    fingerprint: str


@dataclass(frozen=True)
class SplitDigest:
    """Number of images of a split, and the digest of their ids and labels."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Digests:
    """Digests of the images of a dataset: of each subset's used images, for cache keys; of each split, for records."""

    used: Mapping[str, UsedImages]
    splits: Mapping[str, SplitDigest]


def cut_folds(
    spec: DatasetSpec, subsets: Mapping[str, ImageDataset], rule: Callable[[], Sequence[Fold]], *, allow_partial: bool
) -> Sequence[Fold]:
    """Cut the subsets of a dataset into folds, and compare the sizes of their splits with the specification.

    Raises:
        DatasetError: a class has too few images for a split, or a size differs.
    """
    try:
        folds = rule()
    except TooFewImagesError as err:
        pool = subsets.get("all") or subsets["train"]
        needed = err.needed or (3 if "all" in subsets else 2)
        what = "groups of images" if pool.groups else "images"
        raise DatasetError(
            f"{spec.name}: class {pool.class_names[err.label]!r} has too few {what} to hold out a split; "
            f"give it at least {needed}, drop it, or make train/, val/ and test/ yourself"
        ) from err
    if len(folds) != spec.num_folds:
        raise DatasetError(f"{spec.name}: expected {spec.num_folds} folds, found {len(folds)}; {REPAIR}")
    if allow_partial:
        return folds
    for k, (fold, (size, num_test)) in enumerate(zip(folds, spec.fold_sizes, strict=False)):
        num_fit = len(fold.train.positions) + len(fold.val.positions)
        if (num_fit, len(fold.test.positions)) != (size, num_test):
            raise DatasetError(
                f"{spec.name}: expected {size} images for training and validation and {num_test} for testing in fold "
                f"{k + 1}, found {num_fit} and {len(fold.test.positions)}; {REPAIR}"
            )
    for name, size in spec.split_sizes:
        found = len(folds[0][name].positions)
        if found != size:
            raise DatasetError(f"{spec.name}/{name}: expected {size} images, found {found}; {REPAIR}")
    return folds


def compute_digests(subsets: Mapping[str, ImageDataset], folds: Sequence[Fold]) -> Digests:
    """Find the images that the splits use, and hash their ids, labels and contents."""
    taken: dict[str, list[np.ndarray]] = {name: [] for name in subsets}
    for fold in folds:
        for split in SPLITS:
            taken[fold[split].subset].append(fold[split].positions)
    positions = {name: np.unique(np.concatenate(chosen)) for name, chosen in taken.items() if chosen}
    splits = digest_splits(subsets, folds, positions)
    used = {}
    for name, chosen in positions.items():
        if len(chosen):
            images = subsets[name]
            images = images if len(chosen) == len(images) else images.select(images.name, chosen)
            used[name] = UsedImages(images, chosen, images.compute_sha256(), images.compute_fingerprint())
    return Digests(used, splits)


def digest_splits(
    subsets: Mapping[str, ImageDataset],
    folds: Sequence[Fold],
    readable: Mapping[str, np.ndarray],
    splits: Sequence[str] = SPLITS,
) -> dict[str, SplitDigest]:
    """Return the number of images of each of some splits and the digest of their ids and labels.

    Only the images at the positions `readable`, ascending, count.
    """

    def describe(k: int, name: str) -> SplitDigest:
        selection = folds[k][name]
        read = np.intersect1d(selection.positions, readable[selection.subset], assume_unique=True)
        images = subsets[selection.subset].select(selection.subset, read)
        return SplitDigest(len(images), images.compute_sha256())

    return by_split(folds, describe, splits)


def by_split(
    folds: Sequence[object], describe: Callable[[int, str], T], splits: Sequence[str] = SPLITS
) -> dict[str, T]:
    """Return `describe(fold, split)` by split: `train` and so on, or `train/1` and so on with several folds."""
    return {
        name if len(folds) == 1 else f"{name}/{k + 1}": describe(k, name) for k in range(len(folds)) for name in splits
    }


def select_all(name: str, images: ImageDataset) -> Selection:
    """Select all images of a subset."""
    return Selection(name, np.arange(len(images)))


def default_folds(spec: DatasetSpec, subsets: Mapping[str, ImageDataset]) -> list[Fold]:
    """Return the one fold of the official subsets.

    A missing `test` is held out of `all`, and then a missing `val` of the training split. A further test set has no
    training and validation images.

    Raises:
        TooFewImagesError: a class is too small.
    """
    if spec.is_test_set:
        nothing = Selection("test", np.empty(0, np.int64))
        return [Fold(nothing, nothing, select_all("test", subsets["test"]))]
    name = "all" if "all" in subsets else "train"
    pool = select_all(name, subsets[name])
    if "test" in subsets:
        test, val_fraction = select_all("test", subsets["test"]), spec.val_fraction
    else:
        pool, test = _divide(subsets[name], pool, spec.test_fraction, role="test")
        val_fraction = spec.val_fraction / (1 - spec.test_fraction)
    if "val" in subsets:
        return [Fold(pool, select_all("val", subsets["val"]), test)]
    return [with_validation(subsets, pool, test, val_fraction)]


def with_validation(subsets: Mapping[str, ImageDataset], train: Selection, test: Selection, fraction: float) -> Fold:
    """Return a fold whose validation split is held out of `train`, by class and by whole groups.

    Raises:
        TooFewImagesError: a class is too small.
    """
    kept, held = _divide(subsets[train.subset], train, fraction, role="val")
    return Fold(kept, held, test)


def _divide(images: ImageDataset, pool: Selection, fraction: float, *, role: str) -> tuple[Selection, Selection]:
    groups = [images.groups[i] for i in pool.positions] if images.groups else ()
    kept, held = hold_out(images.labels[pool.positions], fraction, role=role, groups=groups)
    return Selection(pool.subset, pool.positions[kept]), Selection(pool.subset, pool.positions[held])
