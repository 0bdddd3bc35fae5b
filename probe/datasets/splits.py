"""Splits that no one published: stratified by class, the same on every machine and with every library version."""

from __future__ import annotations

import hashlib

import numpy as np

SEED = 0  # part of what orders the images; another seed would be another split


class TooFewImagesError(ValueError):
    """A class has one image, of which nothing can be held out."""

    def __init__(self, label: int) -> None:
        super().__init__(f"class {label} has 1 image")
        self.label = label


def hold_out(labels: np.ndarray, fraction: float, *, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide positions into those kept and those held out, class by class.

    Within a class the images are ordered by the SHA-256 of their position, and the first `fraction` of them, rounded
    and at least one, are held out. That is random enough, and depends on no library's random numbers.

    Args:
        labels: int64 (n,).
        fraction: of each class to hold out, in (0, 1).
        role: what is held out, such as `val`; another role is another order.

    Returns:
        Two sorted int64 arrays.

    Raises:
        TooFewImagesError: a class has one image, of which nothing can be held out.
    """
    held: list[int] = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label).tolist()
        if len(positions) < 2:
            raise TooFewImagesError(int(label))
        count = min(max(1, round(fraction * len(positions))), len(positions) - 1)
        held += sorted(positions, key=lambda p: _order(role, p))[:count]
    is_held = np.zeros(len(labels), dtype=bool)
    is_held[held] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _order(role: str, position: int) -> bytes:
    return hashlib.sha256(f"{SEED}:{role}:{position}".encode()).digest()
