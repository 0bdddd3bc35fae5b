"""Images -> features: float32 NumPy arrays at both feature points, in the order of the dataset."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.utils.data
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from probe.errors import DatasetError, FeaturesError, ProbeError
from probe.models.encoder import ImageEncoder
from probe.preprocess import Preprocess

logger = logging.getLogger(__name__)

PROJECTED, PRE_PROJECTION = "projected", "pre_projection"
BATCH_SIZE = 64
SMALL = 2048  # images that are read sooner than worker processes start


class LabelledImages(Protocol):
    """What extraction reads: torchvision's datasets without a transform are one."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, i: int, /) -> tuple[Image.Image, int | np.ndarray]:
        """An image and its label, or its row of labels."""


@dataclass(frozen=True)
class Features:
    """The features of one split.

    Args:
        x: float32 (n, embed_dim), C-contiguous: what `encode_image` returns.
        y: int64 (n,), labels; or (n, k) where an image can show several of k classes.
        pre_projection: float32 (n, pre_projection_dim), C-contiguous; None where nobody took them.
        skipped: positions in the dataset of images that could not be read and have no row here, ascending, and why.
    """

    x: np.ndarray
    y: np.ndarray
    pre_projection: np.ndarray | None = None
    skipped: tuple[tuple[int, str], ...] = ()

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

    def take(self, rows: np.ndarray) -> Features:
        """The features of some rows, int64 (m,), in that order."""
        before = None if self.pre_projection is None else self.pre_projection[rows]
        return Features(x=self.x[rows], y=self.y[rows], pre_projection=before)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over the bytes of both points and the labels."""
        sha = hashlib.sha256()
        for array in (self.x, self.pre_projection, self.y):
            if array is not None:
                sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


def default_workers(device: str) -> int:
    """Processes that read images where none are asked for.

    As many as there are processors beside a GPU, up to 16, and none on the CPU, where the model takes the processors
    itself: there they bring 0.88 to 1.05 times the images, see `results/speed/reading.md`.
    """
    return min(16, _processors()) if device.startswith("cuda") else 0


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def extract(
    encoder: ImageEncoder,
    dataset: LabelledImages,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    skip_corrupt: int = 0,
) -> Features:
    """Encode every image of a dataset, once, at both feature points.

    Images are read in this process, or by workers a few batches ahead, and encoded in the order of the dataset: the
    features do not depend on how many workers there are. The last batch is filled up with black images, because the
    batch size changes the last bits of features. A batch is never larger than the dataset.

    Args:
        encoder: the model.
        dataset: images and labels; what worker processes read is pickled where they are not forked.
        batch_size: images encoded at a time.
        workers: processes that read images, at most one a processor; 0 reads in this one. None is `default_workers`,
            and 0 for at most `SMALL` images.
        skip_corrupt: pass over up to so many images that cannot be read.

    Raises:
        FeaturesError: a feature is not finite; the message names the image.
        DatasetError: an image cannot be read; the message names it.
    """
    if batch_size < 1:
        raise FeaturesError(f"the batch size is {batch_size}; give 1 or more")
    name, n = getattr(dataset, "name", type(dataset).__name__), len(dataset)
    batch_size = min(batch_size, max(n, 1))
    x = np.empty((n, encoder.embed_dim), dtype=np.float32)
    pre_projection = np.empty((n, encoder.pre_projection_dim), dtype=np.float32)
    y: list[int | np.ndarray] = []
    skipped: list[tuple[int, str]] = []
    started = time.perf_counter()
    with tqdm(total=n, desc=name, unit="img", disable=None) as bar:
        for read in _read_ahead(dataset, encoder, batch_size, workers):
            for position, error in read.errors:
                skipped.append((position, str(error)))
                if len(skipped) > skip_corrupt or not isinstance(error, DatasetError):
                    raise error
                logger.warning("passed over: %s", error)
            rows = slice(len(y), len(y) + len(read.labels))
            batch = encoder.encode(_fill(read.pixels, batch_size))
            x[rows] = batch.projected[: len(read.labels)].numpy()
            pre_projection[rows] = batch.pre_projection[: len(read.labels)].numpy()
            y += read.labels
            for point in (x, pre_projection):
                _check_finite(point[rows], dataset, read.positions, name=name)
            bar.update(len(read.positions) + len(read.errors))
    if not y:
        raise FeaturesError(f"{name}: no image could be read; get its files again")
    seconds = time.perf_counter() - started
    logger.info(
        "%s: %d images, %d-d, %.1f s, %.0f img/s", name, len(y), x.shape[1], seconds, len(y) / max(seconds, 1e-9)
    )
    return Features(
        x=x[: len(y)], y=np.array(y, dtype=np.int64), pre_projection=pre_projection[: len(y)], skipped=tuple(skipped)
    )


@dataclass(frozen=True)
class _Batch:
    """Images as a worker hands them over: pixels uint8 (m, 3, r, r), labels, places; errors where it cannot read."""

    pixels: Tensor
    labels: list[int | np.ndarray]
    positions: list[int]
    errors: list[tuple[int, ProbeError]]


_Image = tuple[int, np.ndarray, int | np.ndarray] | tuple[int, ProbeError]


class _Reader(torch.utils.data.Dataset[_Image]):
    """The images of a dataset, read and preprocessed; runs in worker processes."""

    def __init__(self, dataset: LabelledImages, preprocess: Preprocess) -> None:
        self.dataset, self.preprocess = dataset, preprocess

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> _Image:
        try:
            image, label = self.dataset[i]
            return i, self.preprocess.to_pixels(image), label
        except ProbeError as err:  # handed over, as DataLoader would bury it in the worker's traceback
            return i, err

    def collate(self, images: Sequence[_Image]) -> _Batch:
        good = [image for image in images if len(image) == 3]
        side = self.preprocess.resolution
        pixels = np.stack([image[1] for image in good]) if good else np.empty((0, 3, side, side), np.uint8)
        return _Batch(
            pixels=torch.from_numpy(pixels),
            labels=[image[2] for image in good],
            positions=[image[0] for image in good],
            errors=[(image[0], image[1]) for image in images if len(image) == 2],
        )


def _read_ahead(
    dataset: LabelledImages, encoder: ImageEncoder, batch_size: int, workers: int | None
) -> Iterator[_Batch]:
    """The images in batches, in the order of the dataset; at most two batches for each worker wait in memory."""
    if workers is None:
        workers = default_workers(encoder.execution.device.type) if len(dataset) > SMALL else 0
    workers = min(workers, _processors())  # more are slower; DataLoader warns of it
    reader = _Reader(dataset, encoder.preprocess)
    return iter(
        torch.utils.data.DataLoader(reader, batch_size=batch_size, num_workers=workers, collate_fn=reader.collate)
    )


def _fill(pixels: Tensor, batch_size: int) -> Tensor:
    """A batch of always `batch_size` images, uint8 (b, 3, r, r): black ones after those that there are."""
    black = torch.zeros((batch_size - len(pixels), *pixels.shape[1:]), dtype=torch.uint8)
    return torch.cat([pixels, black]) if len(black) else pixels


def _check_finite(rows: np.ndarray, dataset: LabelledImages, positions: Sequence[int], *, name: str) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if finite.all():
        return
    i = positions[int(np.argmin(finite))]
    ids: Sequence[str] = getattr(dataset, "ids", ())
    which = f" ({ids[i]})" if ids else ""
    raise FeaturesError(f"{name}: the features of image {i}{which} are not finite; try --precision fp32")
