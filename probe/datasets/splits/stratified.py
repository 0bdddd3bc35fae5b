"""Splits that no one published: stratified by class, the same on every machine and with every library version."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probe.ordering import order

SEED = 0  # part of what orders the images; another seed would be another split


class TooFewImagesError(ValueError):
    """A class has too few images, or groups of images, to be divided; `needed` is 0 where two would do."""

    def __init__(self, label: int, *, needed: int = 0) -> None:
        super().__init__(f"class {label} has too few images")
        self.label, self.needed = label, needed


def hold_out(
    labels: np.ndarray, fraction: float, *, role: str, groups: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Divide positions into those kept and those held out, class by class.

    Within a class the images are ordered by the SHA-256 of their position, and the first `fraction` of them, rounded
    and at least one, are held out. That is random enough, and depends on no library's random numbers. Where images come
    in groups, groups are ordered so and go whole, each that brings what is held out nearer to `fraction` of the images,
    or the smallest if none does; a group belongs to the class of its first image. Where an image has several labels,
    all images are taken as one class.

    Args:
        labels: int64 (n,), or (n, k) for several labels an image.
        fraction: of each class to hold out, in (0, 1).
        role: what is held out, such as `val`; another role is another order.
        groups: for each image the name of its group; empty where images are on their own.

    Returns:
        Two sorted int64 arrays.

    Raises:
        TooFewImagesError: a class has one image or group, of which nothing can be held out.
    """
    of_group: dict[str, list[int]] = {}
    for i, group in enumerate(groups or map(str, range(len(labels)))):
        of_group.setdefault(group, []).append(i)
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)
    of_class: dict[int, list[str]] = {}
    for group, positions in of_group.items():
        of_class.setdefault(int(classes[positions[0]]), []).append(group)
    is_held = np.zeros(len(labels), dtype=bool)
    for label, names in sorted(of_class.items()):
        if len(names) < 2:
            raise TooFewImagesError(label)
        ordered = sorted(names, key=lambda name: order(SEED, role, name))
        for name in _choose(ordered, [len(of_group[name]) for name in ordered], fraction):
            is_held[of_group[name]] = True
    for label in np.setdiff1d(classes, classes[~is_held]):  # a group held images of several classes
        raise TooFewImagesError(int(label))
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _choose(names: Sequence[str], sizes: Sequence[int], fraction: float) -> list[str]:
    """The groups, in their order, that bring the sum of sizes nearer to a fraction of all: at least one, never all."""
    wanted, total = round(fraction * sum(sizes)), 0
    chosen: list[str] = []
    for name, size in zip(names, sizes, strict=True):
        if abs(total + size - wanted) < abs(total - wanted) and len(chosen) < len(names) - 1:
            total += size
            chosen.append(name)
    return chosen or [names[int(np.argmin(sizes))]]


def draw_splits(labels: np.ndarray, counts: Sequence[int], *, role: str) -> list[np.ndarray]:
    """Take so many images of every class for each of several splits, in the order of `hold_out`.

    Args:
        labels: int64 (n,).
        counts: images of each class for one split after the other; -1 for all that are left.
        role: what orders the images.

    Returns:
        A sorted int64 array of positions for each count; no position is in two.

    Raises:
        TooFewImagesError: a class has fewer images than are to be taken.
    """
    taken: list[list[int]] = [[] for _ in counts]
    for label in np.unique(labels):
        rest = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: order(SEED, role, i))
        for split, count in zip(taken, counts, strict=True):
            if len(rest) < max(count, 1):
                raise TooFewImagesError(int(label), needed=sum(max(count, 1) for count in counts))
            end = len(rest) if count == -1 else count
            split += rest[:end]
            rest = rest[end:]
    return [np.array(sorted(split), dtype=np.int64) for split in taken]
