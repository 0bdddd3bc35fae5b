"""Splits that no one published: stratified by class, the same on every machine and with every library version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SEED = 0  # part of what orders the images; another seed would be another split


class TooFewImagesError(ValueError):
    """A class has one image, or one group of images, of which nothing can be held out."""

    def __init__(self, label: int) -> None:
        super().__init__(f"class {label} has 1 image")
        self.label = label


def hold_out(
    labels: np.ndarray, fraction: float, *, role: str, groups: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Divide positions into those kept and those held out, class by class.

    Within a class the images are ordered by the SHA-256 of their position, and the first `fraction` of them, rounded
    and at least one, are held out. That is random enough, and depends on no library's random numbers. Where images come
    in groups, groups are ordered so and go whole, as many as come nearest to `fraction` of the images; a group belongs
    to the class of its first image. Where an image has several labels, all images are taken as one class.

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
        ordered = sorted(names, key=lambda name: order(role, name))
        is_held[[i for name in ordered[: _count([len(of_group[name]) for name in ordered], fraction)]
                 for i in of_group[name]]] = True  # fmt: skip
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _count(sizes: Sequence[int], fraction: float) -> int:
    """How many of the first groups come nearest to a fraction of their images: at least one, and not all."""
    wanted = round(fraction * sum(sizes))
    totals = np.cumsum(sizes[:-1])
    return int(np.argmin(np.abs(totals - wanted))) + 1


def draw(labels: np.ndarray, counts: Sequence[int], *, role: str) -> list[np.ndarray]:
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
        rest = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: order(role, str(i)))
        for split, count in zip(taken, counts, strict=True):
            if len(rest) < max(count, 1):
                raise TooFewImagesError(int(label))
            end = len(rest) if count == -1 else count
            split += rest[:end]
            rest = rest[end:]
    return [np.array(sorted(split), dtype=np.int64) for split in taken]


def order(role: str, name: str) -> bytes:
    """What images or groups are sorted by: their name, mixed with their role and the seed."""
    return hashlib.sha256(f"{SEED}:{role}:{name}".encode(errors="surrogateescape")).digest()
