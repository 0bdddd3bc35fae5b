"""Draw a fixed number of images, of each class or of all classes together, for probes on few images.

A draw is the same on every machine and with every library version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probe.errors import ProtocolError
from probe.ordering import order
from probe.records.migration import draw_digest
from probe.specs import Protocol


@dataclass(frozen=True)
class Draw:
    """Positions of the drawn images, ascending.

    Args:
        train: int64, images to fit on.
        held_out: int64, images to choose C on.
    """

    train: np.ndarray
    held_out: np.ndarray

    def compute_digest(self) -> str:
        """Return the digest of the positions. Records store the digest to identify a draw."""
        return draw_digest(*(" ".join(map(str, positions.tolist())) for positions in (self.train, self.held_out)))


def draw_shots(y: np.ndarray, *, shots: int, held_out: int = 0, seed: int, per_class: bool = True) -> Draw:
    """Draw images without replacement, of each class or of all classes together.

    The images of a class are sorted by `ordering.order` of the seed, the class and the image's number in the class. The
    first `shots` images are for the fit and the next `held_out` images for the choice of C. For one seed, the images
    for the fit with few shots are a subset of the images with more shots. The draw of a class does not depend on the
    other classes. A draw of all classes together sorts all images in the same way, without regard to the class.

    Args:
        y: int64 (n,), the class of each image.
        shots: number of images to fit on, 1 or more.
        held_out: number of images to choose C on, 0 or more.
        seed: seed of the draw.
        per_class: `shots` and `held_out` are numbers of images of each class, not of all classes together.

    Returns:
        The positions of the drawn images in `y`. No image is both in `train` and in `held_out`.

    Raises:
        ProtocolError: `shots` or `held_out` is out of range, there are too few images, images have several labels, or
            all drawn images to fit on are of one class.
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
    if not per_class:
        return _draw_of_all(y, shots=shots, held_out=held_out, seed=seed)
    train: list[int] = []
    held_out_images: list[int] = []
    by_class = np.argsort(y, kind="stable")  # within a class, in the order of `y`
    labels, starts = np.unique(y[by_class], return_index=True)
    for label, positions in zip(labels.tolist(), np.split(by_class, starts[1:]), strict=True):
        if len(positions) < shots + held_out:
            raise ProtocolError(_too_few(f"class {label}", len(positions), shots=shots, held_out=held_out))
        ordered = sorted(range(len(positions)), key=lambda i: order("shots", seed, label, i))
        train += positions[ordered[:shots]].tolist()
        held_out_images += positions[ordered[shots : shots + held_out]].tolist()
    return Draw(np.array(sorted(train), dtype=np.int64), np.array(sorted(held_out_images), dtype=np.int64))


def count_drawn(protocol: Protocol, num_classes: int) -> int:
    """Return the number of images of the final fit under a protocol with `shots`."""
    num = protocol.shots + (protocol.held_out if protocol.refit else 0)
    return num * num_classes if protocol.per_class else num


def _draw_of_all(y: np.ndarray, *, shots: int, held_out: int, seed: int) -> Draw:
    if len(y) < shots + held_out:
        raise ProtocolError(_too_few("the dataset", len(y), shots=shots, held_out=held_out))
    ordered = sorted(range(len(y)), key=lambda i: order("images", seed, i))
    train, others = (np.array(sorted(part), np.int64) for part in (ordered[:shots], ordered[shots : shots + held_out]))
    if len(np.unique(y[train])) < 2:
        raise ProtocolError(
            f"all images of the draw with seed {seed} are of class {y[train[0]]}; choose a protocol with more images"
        )
    return Draw(train, others)


def _too_few(owner: str, num: int, *, shots: int, held_out: int) -> str:
    needed = f" ({shots} to fit on and {held_out} to choose C on)" if held_out else ""
    has = f"{num} training image" if num == 1 else f"{num} training images"
    return f"{owner} has {has}, but the protocol needs {shots + held_out}{needed}; choose a protocol with fewer shots"
