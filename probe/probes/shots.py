"""Draw a fixed number of images of each class for few-shot probes.

A draw is the same on every machine and with every library version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probe.errors import ProtocolError
from probe.ordering import order
from probe.records.migration import draw_digest


@dataclass(frozen=True)
class Draw:
    """Positions of the drawn images, ascending.

    Args:
        train: int64 (shots * k,), images to fit on.
        held_out: int64 (held_out * k,), images to choose C on.
    """

    train: np.ndarray
    held_out: np.ndarray

    def compute_digest(self) -> str:
        """Return the digest of the positions. Records store the digest to identify a draw."""
        return draw_digest(*(" ".join(map(str, positions.tolist())) for positions in (self.train, self.held_out)))


def draw_shots(y: np.ndarray, *, shots: int, held_out: int = 0, seed: int) -> Draw:
    """Draw images of each class without replacement.

    The images of a class are sorted by `ordering.order` of the seed, the class and the image's number in the class. The
    first `shots` images are for the fit and the next `held_out` images for the choice of C. For one seed, the images
    for the fit with few shots are a subset of the images with more shots. The draw of a class does not depend on the
    other classes.

    Args:
        y: int64 (n,), the class of each image.
        shots: number of images of each class to fit on, 1 or more.
        held_out: number of images of each class to choose C on, 0 or more.
        seed: seed of the draw.

    Returns:
        The positions of the drawn images in `y`. No image is both in `train` and in `held_out`.

    Raises:
        ProtocolError: `shots` or `held_out` is out of range, a class has too few images, or images have several labels.
    """
    if shots < 1 or held_out < 0:
        raise ProtocolError(
            f"expected shots >= 1 and held_out >= 0, got shots = {shots} and held_out = {held_out}; change them in the "
            "protocol"
        )
    if y.ndim != 1:
        raise ProtocolError(
            f"few-shot protocols need one label per image, but the labels have shape {y.shape}; choose a protocol that "
            "uses all images"
        )
    train: list[int] = []
    held_out_images: list[int] = []
    by_class = np.argsort(y, kind="stable")  # within a class, in the order of `y`
    labels, starts = np.unique(y[by_class], return_index=True)
    for label, positions in zip(labels.tolist(), np.split(by_class, starts[1:]), strict=True):
        if len(positions) < shots + held_out:
            raise ProtocolError(_too_few(label, len(positions), shots=shots, held_out=held_out))
        ordered = sorted(range(len(positions)), key=lambda i: order("shots", seed, label, i))
        train += positions[ordered[:shots]].tolist()
        held_out_images += positions[ordered[shots : shots + held_out]].tolist()
    return Draw(np.array(sorted(train), dtype=np.int64), np.array(sorted(held_out_images), dtype=np.int64))


def _too_few(label: int, num: int, *, shots: int, held_out: int) -> str:
    needed = f" ({shots} to fit on and {held_out} to choose C on)" if held_out else ""
    has = f"{num} training image" if num == 1 else f"{num} training images"
    return (
        f"class {label} has {has}, but the protocol needs {shots + held_out}{needed}; choose a protocol with fewer "
        "shots"
    )
