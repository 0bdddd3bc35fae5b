"""One split of a labelled image dataset, opened: images are read when they are asked for, labels are there at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels, in a fixed order. `len` and `[i] -> (RGB image, label)` are all that extraction needs.

    Args:
        name: the dataset's and the split's, such as `digits/train`.
        labels: int64 (n,), class indices in [0, len(class_names)).
        class_names: in the order of the labels.
        read: position -> image of any mode.
        ids: what tells an image from others, in order: a path, or a position in the source.
    """

    name: str
    labels: np.ndarray
    class_names: Sequence[str]
    read: Callable[[int], Image.Image] = field(repr=False)
    ids: Sequence[str] = field(repr=False)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        """The image at a position, in RGB, and its label."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has no image {i}; it has {len(self)}")
        return self.read(i).convert("RGB"), int(self.labels[i])

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over ids and labels in order: the same for the same split of the same source."""
        lines = (f"{key}\t{label}\n" for key, label in zip(self.ids, self.labels, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def subset(self, name: str, positions: np.ndarray) -> ImageDataset:
        """The images at `positions`, int64 (m,), in that order."""
        return ImageDataset(
            name=name,
            labels=self.labels[positions],
            class_names=self.class_names,
            read=lambda i: self.read(int(positions[i])),
            ids=[self.ids[p] for p in positions],
        )
