"""Few-shot draws: so many images of each class, the same on every machine and with every library version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probe.errors import ProtocolError
from probe.ordering import order
from probe.records.migration import draw_digest


@dataclass(frozen=True)
class Draw:
    """Positions of the drawn images, int64, ascending: those to fit on, and those to choose C on."""

    train: np.ndarray
    held_out: np.ndarray

    def compute_digest(self) -> str:
        """Return the digest of the positions, by which a record knows the draw of a seed again."""
        return draw_digest(*(" ".join(map(str, positions.tolist())) for positions in (self.train, self.held_out)))


def draw_shots(y: np.ndarray, *, shots: int, held_out: int = 0, seed: int) -> Draw:
    """Draw images of each class without replacement.

    A class is put in the `order` of seed, class and number of an image within its class. The first `shots` are to fit
    on, the next `held_out` to choose C on. So the images to fit on for fewer shots are part of those for more, of one
    seed, and what is drawn of a class depends on no other class.

    Args:
        y: int64 (n,), the class of each image.
        shots: of each class, 1 or more.
        held_out: further images of each class, 0 or more.
        seed: another seed is another draw.

    Returns:
        No position is in both. A class that has no image in `y` has none here.

    Raises:
        ProtocolError: a class has too few images, an image has several labels, or nothing is to be drawn.
    """
    if shots < 1 or held_out < 0:
        raise ProtocolError(f"shots = {shots} and held_out = {held_out} is no draw; give shots of 1 or more")
    if y.ndim != 1:
        raise ProtocolError(
            f"few-shot needs one label an image, and the labels are {y.shape}, several for each; choose a protocol "
            "that takes all images"
        )
    train: list[int] = []
    held: list[int] = []
    by_class = np.argsort(y, kind="stable")  # within a class in the order of `y`
    labels, starts = np.unique(y[by_class], return_index=True)
    for label, positions in zip(labels.tolist(), np.split(by_class, starts[1:]), strict=True):
        if len(positions) < shots + held_out:
            raise ProtocolError(_too_few(label, len(positions), shots=shots, held_out=held_out))
        ordered = sorted(range(len(positions)), key=lambda i: order("shots", seed, label, i))
        train += positions[ordered[:shots]].tolist()
        held += positions[ordered[shots : shots + held_out]].tolist()
    return Draw(np.array(sorted(train), dtype=np.int64), np.array(sorted(held), dtype=np.int64))


def _too_few(label: int, num: int, *, shots: int, held_out: int) -> str:
    needed = f"{shots} to fit on and {held_out} to choose C on" if held_out else f"{shots} to fit on"
    has = f"{num} image" if num == 1 else f"{num} images"
    return (
        f"class {label} has {has} for training, and {shots + held_out} are needed, {needed}; choose a protocol of "
        "fewer shots"
    )
