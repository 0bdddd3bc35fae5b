"""Features as NumPy arrays: of a subset or split, of a chunk of images, and of all splits of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probe.datasets.opening import OpenedDataset
from probe.errors import FeaturesError
from probe.records.schema import EncoderRecord, ExtractionRecord, ReadRecord, SplitRecord
from probe.specs import SPLITS, RunSpec

PROJECTED, PRE_PROJECTION = "projected", "pre_projection"
SAMPLED = 16  # values of a split that a record contains
CHUNK = 256  # images, or the next multiple of the batch: what a killed run loses, and enough to be worth a file


@dataclass(frozen=True)
class Features:
    """Features of one subset or split.

    Args:
        x: float32 (n, embed_dim), C-contiguous: what `encode_image` returns.
        y: int64 (n,), labels; or (n, k) where an image can show several of k classes.
        pre_projection: float32 (n, pre_projection_dim), C-contiguous; None if they were not taken.
        skipped: positions of images that could not be read and have no row, ascending, each with its error.
    """

    x: np.ndarray
    y: np.ndarray
    pre_projection: np.ndarray | None = None
    skipped: tuple[tuple[int, str], ...] = ()
    _digest: list[str] = field(default_factory=list, init=False, repr=False, compare=False)  # empty until computed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y)

    def at(self, point: str) -> np.ndarray:
        """Return the array at a feature point, `projected` or `pre_projection`.

        Raises:
            FeaturesError: these features were not taken at this point.
        """
        array = {PROJECTED: self.x, PRE_PROJECTION: self.pre_projection}.get(point)
        if array is None:
            raise FeaturesError(
                f"these features have no feature point {point!r}; extract them again, or use another protocol"
            )
        return array

    def take(self, rows: np.ndarray) -> Features:
        """Return the features of some rows, int64 (m,), in that order."""
        before = None if self.pre_projection is None else self.pre_projection[rows]
        return Features(x=self.x[rows], y=self.y[rows], pre_projection=before)

    def compute_sha256(self) -> str:
        """Return the hex SHA-256 over the bytes of the labels and both feature points. It is computed only once."""
        if not self._digest:
            sha = hashlib.sha256()
            for array in (self.x, self.pre_projection, self.y):
                if array is not None:
                    sha.update(np.ascontiguousarray(array).data)
            self._digest.append(sha.hexdigest())
        return self._digest[0]

    def sample(self) -> dict[str, list[float]]:
        """Return some values of each feature point, evenly spread over images and columns, to compare features by."""
        points = {PROJECTED: self.x, PRE_PROJECTION: self.pre_projection}
        return {point: _spread(array) for point, array in points.items() if array is not None}


def _spread(array: np.ndarray) -> list[float]:
    # Multiples of an odd share of the size, so that no column is taken twice where the width is a power of two.
    flat = array.ravel()
    rows = np.arange(SAMPLED) * max(flat.size // SAMPLED, 1) + np.arange(SAMPLED)
    return [float(value) for value in flat[rows % flat.size]]


@dataclass(frozen=True)
class Extraction:
    """Features of a dataset under one encoder, and their description in a record.

    Args:
        features: features of each subset, for the images that splits use.
        rows: for each fold the subset of each needed split, and the rows of the split in its features, int64,
            ascending.
        read: the images that were read.
        splits: the images of each split.
        encoder: the encoder, as its cache entries describe it.
        extraction: how the features were extracted.
        seconds: wall time of `load` and `extract`.
        folder: the folder of the cache entries.
    """

    features: Mapping[str, Features]
    rows: Sequence[Mapping[str, tuple[str, np.ndarray]]]
    read: ReadRecord
    splits: Mapping[str, SplitRecord]
    encoder: EncoderRecord
    extraction: ExtractionRecord
    seconds: dict[str, float]
    folder: Path

    def about(self, spec: RunSpec) -> dict[str, Any]:
        """Return the description that a file of these features holds."""
        names = {"dataset": spec.dataset.name, "metric": spec.dataset.metric, "model": spec.model.name}
        how: dict[str, Any] = {"weights": self.extraction.weights}
        how |= {"mode": spec.mode, "precision": spec.precision, "device": spec.device, "batch_size": spec.batch_size}
        splits = {name: asdict(split) for name, split in self.splits.items()}
        return {**names, **how, "encoder": asdict(self.encoder), "read": asdict(self.read), "splits": splits}

    def cut(self, splits: Sequence[str] = SPLITS) -> list[dict[str, Features]]:
        """Cut the features into `train`, `val` and `test`, or some of them, once for each fold.

        A split of a whole subset is that subset's features, memory-mapped; others are copies of rows.
        """
        folds = []
        for fold in self.rows:
            cut = {}
            for name in splits:
                subset, rows = fold[name]
                features = self.features[subset]
                cut[name] = features if len(rows) == len(features) else features.take(rows)
            folds.append(cut)
        return folds

    def test_ids(self, dataset: OpenedDataset) -> Iterator[list[str]]:
        """Yield, for each fold, the ids of the test images that have features, in the order of the features."""
        for fold, positions in zip(self.rows, self.test_positions(dataset), strict=True):
            ids = dataset.subsets[fold["test"][0]].ids
            yield [ids[i] for i in positions.tolist()]

    def test_positions(self, dataset: OpenedDataset) -> Iterator[np.ndarray]:
        """Yield, for each fold, the positions in the subset of the test images that have features, int64, ascending."""
        for fold in self.rows:
            subset, rows = fold["test"]
            used = dataset.used[subset].positions
            readable = np.delete(np.arange(len(used)), [row for row, _ in self.features[subset].skipped])
            yield used[readable[rows]]


def chunk_size(batch_size: int) -> int:
    """Return the number of images of a chunk: the smallest multiple of the batch size that is at least `CHUNK`.

    Raises:
        FeaturesError: the batch size is not positive.
    """
    if batch_size < 1:
        raise FeaturesError(f"the batch size is {batch_size}; give 1 or more")
    return -(-CHUNK // batch_size) * batch_size


def chunk_range(n: int, batch_size: int, shard: tuple[int, int] | None = None) -> range:
    """Return the numbers of the chunks of n images, or of shard i of k of them, from 1 on."""
    num_chunks, (i, k) = -(-n // chunk_size(batch_size)), shard or (1, 1)
    return range((i - 1) * num_chunks // k, i * num_chunks // k)


def join(chunks: Sequence[Features]) -> Features:
    """Join chunks in their order; no chunks make features of no image."""
    if not chunks:
        return Features(np.empty((0, 0), np.float32), np.empty(0, np.int64), np.empty((0, 0), np.float32))
    return Features(
        x=np.concatenate([chunk.x for chunk in chunks]),
        y=np.concatenate([chunk.y for chunk in chunks if len(chunk)] or [chunks[0].y]),
        pre_projection=np.concatenate([chunk.at(PRE_PROJECTION) for chunk in chunks]),
        skipped=tuple(skipped for chunk in chunks for skipped in chunk.skipped),
    )
