"""A dataset and a model -> the features of all splits, and what a record says of how they were made."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.datasets.folds import SPLITS, Selection
from probe.datasets.opening import OpenedDataset, open_dataset, used_positions
from probe.errors import CheckpointError
from probe.features import Features, extract
from probe.models.encoder import ImageEncoder
from probe.models.loading import load_encoder
from probe.specs import RunSpec


@dataclass(frozen=True)
class Access:
    """Where things are, and how they may be got at.

    Args:
        data: folder of datasets; here and below None is the default of `probe.paths`.
        weights: folder of checkpoints.
        results: folder of records and tables.
        offline: never touch the network.
        allow_partial: evaluate on what is there where images of a dataset are missing; the result is marked.
        skip_corrupt: pass over up to so many images of a dataset that cannot be read; the record names them.
        workers: processes that read images; None for what `features.default_workers` says.
    """

    data: str | Path | None = None
    weights: str | Path | None = None
    results: str | Path | None = None
    offline: bool = False
    allow_partial: bool = False
    skip_corrupt: int = 0
    workers: int | None = None


@dataclass(frozen=True)
class Extraction:
    """The features of a dataset under one model and mode, and what they came from.

    Args:
        features: of each part, of the images that some split has.
        rows: for each fold, which rows of a part's features are a split: the part and int64 positions, ascending.
        read: what `RunRecord.read` says.
        splits: what `RunRecord.splits` says.
        encoder: what `RunRecord.encoder` says.
        seconds: what `RunRecord.seconds` says.
    """

    features: Mapping[str, Features]
    rows: Sequence[Mapping[str, tuple[str, np.ndarray]]]
    read: Mapping[str, Any]
    splits: Mapping[str, Any]
    encoder: Mapping[str, Any]
    seconds: Mapping[str, float]

    def split(self, name: str, fold: int) -> Features:
        """The features of `train`, `val` or `test` of a fold: those of the part, or a copy of some of its rows."""
        part, rows = self.rows[fold][name]
        features = self.features[part]
        return features if len(rows) == len(features) else features.take(rows)


def extract_dataset(spec: RunSpec, access: Access) -> Extraction:
    """Open a dataset, load a model, and encode every image that a split of some fold has, once.

    Raises:
        ProbeError: whatever keeps one of the three from being done.
    """
    started = time.perf_counter()
    dataset = open_dataset(
        spec.dataset,
        data_dir=access.data,
        offline=access.offline,
        allow_partial=access.allow_partial,
        skip_corrupt=access.skip_corrupt > 0,
    )
    with warnings.catch_warnings():
        # The cell that it speaks of fails below, with the same words: no rebuilt model stands in a JIT table.
        warnings.filterwarnings("ignore", message=".* is no TorchScript archive", category=UserWarning)
        encoder = load_encoder(
            spec.model,
            jit=spec.jit,
            device=spec.device,
            precision=spec.precision,
            weights_dir=access.weights,
            offline=access.offline,
        )
    if encoder.execution.jit != spec.jit:
        raise CheckpointError(f"{spec.model.name} is no TorchScript archive and has no JIT mode; use --jit off")
    loaded = time.perf_counter()
    features, positions = _extract_parts(spec, dataset, encoder, access)
    rows = [
        {
            # Those that were skipped have no row.
            name: (fold[name].part, np.flatnonzero(np.isin(positions[fold[name].part], fold[name].positions)))
            for name in SPLITS
        }
        for fold in dataset.folds
    ]
    return Extraction(
        features=features,
        rows=rows,
        read=_describe_reading(dataset, features),
        splits=by_split(dataset.folds, lambda k, name: _describe_split(dataset, dataset.folds[k][name], positions)),
        encoder=_describe_encoder(encoder),
        seconds={"load": loaded - started, "extract": time.perf_counter() - loaded},
    )


def _extract_parts(
    spec: RunSpec, dataset: OpenedDataset, encoder: ImageEncoder, access: Access
) -> tuple[dict[str, Features], dict[str, np.ndarray]]:
    """The features of each part, every image once, and where in the part the rows are from."""
    features, positions = {}, {}
    left = access.skip_corrupt
    for part, images in dataset.parts.items():
        used = used_positions(dataset.folds, part)
        if len(used) == 0:
            continue
        extracted = extract(
            encoder,
            images if len(used) == len(images) else images.subset(images.name, used),
            batch_size=spec.batch_size,
            workers=access.workers,
            skip_corrupt=left,
        )
        left -= len(extracted.skipped)
        features[part] = extracted
        positions[part] = np.delete(used, [row for row, _ in extracted.skipped])
    return features, positions


def _describe_reading(dataset: OpenedDataset, features: Mapping[str, Features]) -> dict[str, Any]:
    skipped = []
    for part, extracted in features.items():
        images, used = dataset.parts[part], used_positions(dataset.folds, part)
        skipped += [
            {"part": part, "id": images.ids[used[row]], "message": message} for row, message in extracted.skipped
        ]
    return {
        "source": asdict(dataset.source),
        "revisions": {name: images.revision for name, images in dataset.parts.items() if images.revision},
        "partial": {name: [len(dataset.parts[name]), size] for name, size in dataset.incomplete.items()},
        "skipped": skipped,
    }


def _describe_split(
    dataset: OpenedDataset, selection: Selection, positions: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What was read of a split, which are all of its images unless some were skipped."""
    read = np.intersect1d(selection.positions, positions[selection.part], assume_unique=True)
    images = dataset.parts[selection.part].subset(selection.part, read)
    return {"size": len(images), "sha256": images.sha256}


def by_split(folds: Sequence[Any], describe: Callable[[int, str], Any]) -> dict[str, Any]:
    """`train`, `val` and `test`; where there are several folds `train/1` and so on."""
    return {
        name if len(folds) == 1 else f"{name}/{k + 1}": describe(k, name) for k in range(len(folds)) for name in SPLITS
    }


def _describe_encoder(encoder: ImageEncoder) -> dict[str, Any]:
    return {
        "weights_sha256": encoder.weights_sha256,
        "license": encoder.license,
        "resolution": encoder.resolution,
        "embed_dim": encoder.embed_dim,
        "pre_projection_dim": encoder.pre_projection_dim,
        "preprocess": asdict(encoder.preprocess),
        "dtypes": {
            "checkpoint": encoder.checkpoint_dtypes,
            "weights": encoder.weights_dtypes,
            "features": "float32",
        },
    }
