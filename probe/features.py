"""Images -> features: float32 NumPy arrays at both feature points, in the order of the dataset."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from probe.errors import FeaturesError
from probe.models.encoder import ImageEncoder
from probe.preprocess import Preprocess

logger = logging.getLogger(__name__)

PROJECTED, PRE_PROJECTION = "projected", "pre_projection"
BATCH_SIZE = 64


class LabelledImages(Protocol):
    """What extraction reads: torchvision's datasets without a transform are one."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, i: int, /) -> tuple[Image.Image, int]:
        """An image and its label."""


@dataclass(frozen=True)
class Features:
    """The features of one split.

    Args:
        x: float32 (n, embed_dim), C-contiguous: what `encode_image` returns.
        y: int64 (n,), labels.
        pre_projection: float32 (n, pre_projection_dim), C-contiguous; None where nobody took them.
    """

    x: np.ndarray
    y: np.ndarray
    pre_projection: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y)

    def at(self, point: str) -> np.ndarray:
        """The array at a feature point, `projected` or `pre_projection`.

        Raises:
            FeaturesError: these features were not taken there.
        """
        found = {PROJECTED: self.x, PRE_PROJECTION: self.pre_projection}.get(point)
        if found is None:
            raise FeaturesError(
                f"these features have no feature point {point!r}; extract them again, or use another protocol"
            )
        return found

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over the bytes of both points and the labels."""
        sha = hashlib.sha256()
        for array in (self.x, self.pre_projection, self.y):
            if array is not None:
                sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


def extract(encoder: ImageEncoder, dataset: LabelledImages, *, batch_size: int = BATCH_SIZE) -> Features:
    """Encode every image of a dataset, once, at both feature points.

    The last batch is filled up with black images, because the batch size changes the last bits of features. A batch is
    never larger than the dataset.

    Raises:
        FeaturesError: a feature is not finite; the message names the image.
    """
    if batch_size < 1:
        raise FeaturesError(f"the batch size is {batch_size}; give 1 or more")
    name, n = getattr(dataset, "name", type(dataset).__name__), len(dataset)
    batch_size = min(batch_size, max(n, 1))
    x = np.empty((n, encoder.embed_dim), dtype=np.float32)
    pre_projection = np.empty((n, encoder.pre_projection_dim), dtype=np.float32)
    y = np.empty(n, dtype=np.int64)
    started = time.perf_counter()
    with tqdm(total=n, desc=name, unit="img", disable=None) as bar:
        for start, pixels, labels in _batches(dataset, encoder.preprocess, batch_size):
            rows = slice(start, start + len(labels))
            batch = encoder.encode(pixels)
            x[rows] = batch.projected[: len(labels)].numpy()
            pre_projection[rows] = batch.pre_projection[: len(labels)].numpy()
            y[rows] = labels
            for point in (x, pre_projection):
                _check_finite(point[rows], dataset, start=start, name=name)
            bar.update(len(labels))
    seconds = time.perf_counter() - started
    logger.info("%s: %d images, %d-d, %.1f s, %.0f img/s", name, n, x.shape[1], seconds, n / max(seconds, 1e-9))
    return Features(x=x, y=y, pre_projection=pre_projection)


def _batches(
    dataset: LabelledImages, preprocess: Preprocess, batch_size: int
) -> Iterator[tuple[int, Tensor, list[int]]]:
    """Position of the first image, uint8 pixels of always `batch_size` images, labels of those that count."""
    resolution = preprocess.resolution
    for start in range(0, len(dataset), batch_size):
        pixels = np.zeros((batch_size, 3, resolution, resolution), dtype=np.uint8)
        labels = []
        for row, i in enumerate(range(start, min(start + batch_size, len(dataset)))):
            image, label = dataset[i]
            pixels[row] = preprocess.to_pixels(image)
            labels.append(int(label))
        yield start, torch.from_numpy(pixels), labels


def _check_finite(rows: np.ndarray, dataset: LabelledImages, *, start: int, name: str) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if finite.all():
        return
    i = start + int(np.argmin(finite))
    ids: Sequence[str] = getattr(dataset, "ids", ())
    which = f" ({ids[i]})" if ids else ""
    raise FeaturesError(f"{name}: the features of image {i}{which} are not finite; try --precision fp32")
