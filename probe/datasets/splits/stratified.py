"""Stratified splits, the same on every machine and with every library version."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probe.ordering import order

SEED = 0  # another seed gives another split


class TooFewImagesError(ValueError):
    """Class with too few images, or groups of images, to be divided; `needed` is 0 if two would be enough."""

    def __init__(self, label: int, *, needed: int = 0) -> None:
        super().__init__(f"class {label} has too few images")
        self.label, self.needed = label, needed


def hold_out(
    labels: np.ndarray, fraction: float, *, role: str, groups: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction of the images of each class; return the remaining and the held-out positions.

    Images of a class are ordered by the SHA-256 of their positions, and the first `fraction` of them, rounded and at
    least one, are held out. This is random enough, and independent of the random numbers of any library.

    Groups of images are ordered in the same way. A whole group is held out if this brings the number of held-out images
    nearer to `fraction`; if no group does, the smallest group is held out. A group belongs to the class of its first
    image. If images have several labels, all images count as one class.

    Args:
        labels: int64 (n,), or (n, k) for several labels an image.
        fraction: share of each class to hold out, in (0, 1).
        role: name of the held-out split, such as `val`; it changes the order.
        groups: for each image the name of its group; empty if images have no groups.

    Returns:
        Two sorted int64 arrays.

    Raises:
        TooFewImagesError: a class has only one image or group.
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
    """Return the groups, in their order, that bring the sum of sizes nearer to a fraction: at least one, never all."""
    wanted, total = round(fraction * sum(sizes)), 0
    chosen: list[str] = []
    for name, size in zip(names, sizes, strict=True):
        if abs(total + size - wanted) < abs(total - wanted) and len(chosen) < len(names) - 1:
            total += size
            chosen.append(name)
    return chosen or [names[int(np.argmin(sizes))]]


def draw_splits(labels: np.ndarray, counts: Sequence[int], *, role: str) -> list[np.ndarray]:
    """Draw a number of images of every class for each of several splits, in the order of `hold_out`.

    Args:
        labels: int64 (n,).
        counts: number of images of each class, for each split; -1 takes the remaining images.
        role: changes the order, see `hold_out`.

    Returns:
        A sorted int64 array of positions for each count; no position is in two arrays.

    Raises:
        TooFewImagesError: a class has fewer images than the counts ask for.
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
