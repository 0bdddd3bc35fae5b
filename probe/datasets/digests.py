"""Digests of the images of an opened dataset, computed once: they are part of cache keys and of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.datasets.images import ImageDataset
from probe.datasets.opening import OpenedDataset
from probe.datasets.splits.folds import SPLITS, Fold, by_split


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
class DigestedDataset:
    """An opened dataset, the images that its splits use, and the description of the splits in a record."""

    opened: OpenedDataset
    used: Mapping[str, UsedImages]
    splits: Mapping[str, Any]


def compute_digests(opened: OpenedDataset) -> DigestedDataset:
    """Find the images that the splits use, and hash their ids, labels and contents."""
    used = {}
    for name, images in opened.subsets.items():
        positions = used_positions(opened.folds, name)
        if len(positions):
            images = images if len(positions) == len(images) else images.select(images.name, positions)
            used[name] = UsedImages(images, positions, images.compute_sha256(), images.compute_fingerprint())
    return DigestedDataset(opened, used, digest_splits(opened, {name: one.positions for name, one in used.items()}))


def used_positions(folds: Sequence[Fold], subset: str) -> np.ndarray:
    """Return the positions in a subset of the images that some split of some fold uses, int64, ascending."""
    taken = [fold[name].positions for fold in folds for name in SPLITS if fold[name].subset == subset]
    return np.unique(np.concatenate(taken)) if taken else np.empty(0, dtype=np.int64)


def digest_splits(opened: OpenedDataset, readable: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the number of images of each split and the digest of their ids and labels.

    Args:
        opened: the dataset.
        readable: for each subset the positions of the images that could be read.
    """

    def describe(k: int, name: str) -> dict[str, Any]:
        selection = opened.folds[k][name]
        read = np.intersect1d(selection.positions, readable[selection.subset], assume_unique=True)
        images = opened.subsets[selection.subset].select(selection.subset, read)
        return {"size": len(images), "sha256": images.compute_sha256()}

    return by_split(opened.folds, describe)
