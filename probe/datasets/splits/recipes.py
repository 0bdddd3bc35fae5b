"""Rules of the CLIP paper's authors for datasets without official splits, or with several: subsets -> folds.

Some rules depend on the order in which a file system lists files. Here a sorted list and a seed fix the order. The
splits then have the sizes of the paper's splits, but different images; the `notes` of the dataset say so.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np

from probe.datasets.images import ImageDataset
from probe.datasets.splits.folds import Fold, Selection, with_validation
from probe.datasets.splits.stratified import SEED, TooFewImagesError, draw_splits
from probe.ordering import order

Recipe = Callable[[Mapping[str, ImageDataset], float], list[Fold]]


def eurosat(subsets: Mapping[str, ImageDataset], _: float) -> list[Fold]:
    """Draw 500 images of each class for each split.

    The authors draw 1,500 images of each class with Python's `random.sample` and seed 42. They sort the classes, but
    not the files; here the files are sorted too.

    Source: openai/CLIP#45.
    """
    labels, generator = subsets["all"].labels, random.Random(42)
    taken: list[list[int]] = [[], [], []]
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label).tolist()
        if len(positions) < 1500:
            raise TooFewImagesError(int(label), needed=1500)
        drawn = generator.sample(positions, 1500)
        for k, split in enumerate(taken):
            split += drawn[500 * k : 500 * (k + 1)]
    return [_of_all(*map(_sorted, taken))]


def resisc45(subsets: Mapping[str, ImageDataset], _: float) -> list[Fold]:
    """Take a tenth of all images for training, a tenth for validation, and the rest for testing.

    The authors shuffle all images with a seed, 42 from memory; here the list is sorted first.

    Source: openai/CLIP#45.
    """
    n = len(subsets["all"])
    shuffled = list(range(n))
    random.Random(42).shuffle(shuffled)
    train, val, test = shuffled[: n // 10], shuffled[n // 10 : 2 * (n // 10)], shuffled[2 * (n // 10) :]
    return [_of_all(_sorted(train), _sorted(val), _sorted(test))]


def caltech101(subsets: Mapping[str, ImageDataset], val_fraction: float) -> list[Fold]:
    """Draw 30 images of each class for training and validation; all others are for testing.

    Source: Kornblith et al. 2019, appendix A, which Radford et al. 2021 follow. The images that they drew are not
    published.
    """
    train, test = draw_splits(subsets["all"].labels, (30, -1), role="caltech101")
    return [with_validation(subsets, Selection("all", train), Selection("all", test), val_fraction)]


def clevr_counts(subsets: Mapping[str, ImageDataset], val_fraction: float) -> list[Fold]:
    """Draw 2,000 images of CLEVR's training subset and 500 of its validation subset.

    Source: Radford et al. 2021, table 9, for the numbers. The images of the paper are not published.
    """
    train, test = (
        Selection(
            name, _sorted(sorted(range(len(subsets[name])), key=lambda i: order(SEED, "clevr_counts", i))[:count])
        )
        for name, count in (("train", 2000), ("test", 500))
    )
    return [with_validation(subsets, train, test, val_fraction)]


RECIPES: dict[str, Recipe] = {
    "eurosat": eurosat,
    "resisc45": resisc45,
    "caltech101": caltech101,
    "clevr_counts": clevr_counts,
}
# Recipe -> the subsets that it divides.
SUBSETS_OF_RECIPES = {
    "eurosat": ("all",),
    "resisc45": ("all",),
    "caltech101": ("all",),
    "clevr_counts": ("train", "test"),
}


def _of_all(train: np.ndarray, val: np.ndarray, test: np.ndarray) -> Fold:
    return Fold(*(Selection("all", positions) for positions in (train, val, test)))


def _sorted(positions: list[int]) -> np.ndarray:
    return np.array(sorted(positions), dtype=np.int64)
