"""A dataset and models -> the features of all splits, kept or made now, and what a record says of them.

Models of one preprocessing are fed by one pass over the images.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from probe import cache, paths
from probe.cache import Cell, Entry, Work
from probe.datasets.folds import SPLITS, Selection
from probe.datasets.images import ImageDataset
from probe.datasets.opening import OpenedDataset, open_dataset, used_positions
from probe.environment import package_version
from probe.errors import CheckpointError, DatasetError, FeaturesError, ProbeError
from probe.features import Features, Meter, check_batch_size, log_rate
from probe.models.devices import hardware
from probe.models.encoder import ImageEncoder
from probe.models.loading import identify, load_encoder
from probe.models.memory import device_memory
from probe.passes import fill
from probe.preprocess import VERSION as PREPROCESS_VERSION
from probe.preprocess import libjpeg_version
from probe.progress import Progress, show_progress
from probe.specs import RunSpec

logger = logging.getLogger(__name__)

EXTRACTION_VERSION = 1  # raised with every change of the suite that changes the bytes of features
LIBRARIES = ("torch", "torchvision", "pillow")  # that decode, resize and compute; others where they do
LIBRARIES_OF_FORMS = {"open_clip": ("open_clip_torch", "timm")}
LIBRARIES_OF_MEDIA = {"video": ("av",)}


@dataclass(frozen=True)
class Access:
    """Where things are, and how they may be got at.

    Args:
        data: folder of datasets; here and below None is the default of `probe.paths`.
        weights: folder of checkpoints.
        results: folder of records and tables.
        cache: folder of features.
        offline: never touch the network.
        allow_partial: evaluate on what is there where images of a dataset are missing; the result is marked.
        skip_corrupt: pass over up to so many images of a dataset that cannot be read; the record names them.
        workers: processes that read images; None for what `features.default_workers` says.
        shard: encode only the i-th of n shards, from 1 on, which others complete; None for all.
    """

    data: str | Path | None = None
    weights: str | Path | None = None
    results: str | Path | None = None
    cache: str | Path | None = None
    offline: bool = False
    allow_partial: bool = False
    skip_corrupt: int = 0
    workers: int | None = None
    shard: tuple[int, int] | None = None


@dataclass(frozen=True)
class Extraction:
    """The features of a dataset under one model and mode, and what they came from.

    Args:
        features: of each part, of the images that some split has.
        rows: for each fold, which rows of a part's features are a split: the part and int64 positions, ascending.
        read: what `RunRecord.read` says.
        splits: what `RunRecord.splits` says.
        encoder: what `RunRecord.encoder` says.
        extraction: what `RunRecord.extraction` says.
        seconds: what `RunRecord.seconds` says.
        folder: where they are kept.
    """

    features: Mapping[str, Features]
    rows: Sequence[Mapping[str, tuple[str, np.ndarray]]]
    read: Mapping[str, Any]
    splits: Mapping[str, Any]
    encoder: Mapping[str, Any]
    extraction: Mapping[str, Any]
    seconds: Mapping[str, float]
    folder: Path

    def about(self, spec: RunSpec) -> dict[str, Any]:
        """What a file of these features says of itself."""
        names = {"dataset": spec.dataset.name, "metric": spec.dataset.metric, "model": spec.model.name}
        how = {"mode": spec.mode, "precision": spec.precision, "device": spec.device, "batch_size": spec.batch_size}
        return {**names, **how, "encoder": dict(self.encoder), "read": dict(self.read), "splits": dict(self.splits)}

    def split(self, name: str, fold: int) -> Features:
        """The features of `train`, `val` or `test` of a fold: those of the part, or a copy of some of its rows."""
        part, rows = self.rows[fold][name]
        features = self.features[part]
        return features if len(rows) == len(features) else features.take(rows)


class IncompleteError(ProbeError):
    """A shard has been made, and others have not; `entries` says which pieces there are."""


@dataclass(frozen=True)
class _Part:
    """The images of a part that some split has, and their positions in it."""

    images: ImageDataset
    used: np.ndarray


@dataclass
class _Job:
    """A cell on its way to its features: the entries that are there, by part, and what the rest needs."""

    spec: RunSpec
    cells: Mapping[str, Cell]
    entries: dict[str, Entry] = field(default_factory=dict)
    cached: bool = False
    encoder: ImageEncoder | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"load": 0.0, "extract": 0.0})

    @property
    def missing(self) -> list[str]:
        return [part for part in self.cells if part not in self.entries]


def extract_grid(specs: Sequence[RunSpec], access: Access) -> Iterator[tuple[RunSpec, Extraction | Exception]]:
    """The features of cells of several datasets, one dataset after the other; see `extract_dataset`."""
    with show_progress() as progress:
        groups = [list(group) for _, group in groupby(specs, key=lambda spec: spec.dataset)]
        sizes = [num_images(group) for group in groups]
        progress.expect(sum(sizes))
        for group, size in zip(groups, sizes, strict=True):
            yield from extract_dataset(group, access, progress, expected=size)


def num_images(specs: Sequence[RunSpec]) -> int:
    """Images that are to be encoded for cells of a dataset, as far as its row says."""
    return len(specs) * sum(part.size or 0 for part in specs[0].dataset.parts)


def extract_dataset(
    specs: Sequence[RunSpec], access: Access, progress: Progress, *, expected: int = 0
) -> Iterator[tuple[RunSpec, Extraction | Exception]]:
    """Open a dataset and give its features under several models and modes: those that are kept first.

    The others are made together, in one pass over the images for as many of one preprocessing as the memory holds.

    Args:
        specs: cells of one dataset and batch size; their protocols do not matter.
        access: where things are.
        progress: is told of the images that are to be encoded.
        expected: how many it has been told of before.

    Yields:
        Every cell, with its features or with what keeps it from having some.
    """
    started = time.perf_counter()
    try:
        dataset = open_dataset(
            specs[0].dataset,
            data_dir=access.data,
            offline=access.offline,
            allow_partial=access.allow_partial,
            skip_corrupt=access.skip_corrupt > 0,
        )
        parts = _used_parts(dataset)
        fingerprints = {part: (found.images.sha256, found.images.fingerprint) for part, found in parts.items()}
    except Exception as err:  # the grid goes on, and the records of these cells name it
        progress.expect(-expected)
        yield from ((spec, err) for spec in specs)
        return
    opened = time.perf_counter() - started
    jobs = []
    for spec in specs:
        try:
            job = _look_up(spec, parts, fingerprints, dataset, access)
        except Exception as err:
            yield spec, err
            continue
        job.seconds["load"] += opened
        jobs.append(job)
    progress.expect(sum(len(parts[part].images) for job in jobs for part in job.missing) - expected)
    for job in [job for job in jobs if not job.missing]:
        job.cached = True
        logger.info("%s: the features are kept in %s", job.spec, next(iter(job.entries.values())).path.parent)
        yield job.spec, _finish(job, dataset, parts, access)
    for group in _load([job for job in jobs if job.missing], access):
        yield from _encode(group, dataset, parts, access, progress)


def make_cells(spec: RunSpec, access: Access) -> dict[str, Cell]:
    """What the features of a cell are kept under, by part; the dataset is opened, the model is not loaded.

    Raises:
        ProbeError: whatever keeps the dataset from being opened or the weights from being read.
    """
    dataset = open_dataset(
        spec.dataset, data_dir=access.data, offline=access.offline, allow_partial=access.allow_partial
    )
    parts = _used_parts(dataset)
    fingerprints = {part: (found.images.sha256, found.images.fingerprint) for part, found in parts.items()}
    return _cells(spec, parts, fingerprints, dataset, access)


def _used_parts(dataset: OpenedDataset) -> dict[str, _Part]:
    found = {}
    for part, images in dataset.parts.items():
        used = used_positions(dataset.folds, part)
        if len(used):
            found[part] = _Part(images if len(used) == len(images) else images.subset(images.name, used), used)
    return found


def _look_up(
    spec: RunSpec,
    parts: Mapping[str, _Part],
    fingerprints: Mapping[str, tuple[str, str]],
    dataset: OpenedDataset,
    access: Access,
) -> _Job:
    started = time.perf_counter()
    job = _Job(spec, _cells(spec, parts, fingerprints, dataset, access))
    for part, cell in job.cells.items():
        entry = cache.find(paths.cache_dir(access.cache), cell)
        if entry is not None:
            job.entries[part] = entry
    job.seconds["load"] += time.perf_counter() - started
    return job


def _cells(
    spec: RunSpec,
    parts: Mapping[str, _Part],
    fingerprints: Mapping[str, tuple[str, str]],
    dataset: OpenedDataset,
    access: Access,
) -> dict[str, Cell]:
    weights = identify(spec.model, weights_dir=access.weights, offline=access.offline)
    media = str(dict(dataset.source.options).get("media", ""))
    libraries = (*LIBRARIES, *LIBRARIES_OF_FORMS.get(spec.model.form, ()), *LIBRARIES_OF_MEDIA.get(media, ()))
    cells = {}
    for part, found in parts.items():
        batch_size = min(check_batch_size(spec.batch_size), len(found.images))
        images, content = fingerprints[part]
        key = {
            "weights": weights,
            "mode": spec.mode,
            "precision": spec.precision,
            "device": spec.device.partition(":")[0],
            "hardware": hardware(spec.device),
            "batch_size": batch_size,
            "images": images,
            "content": content,
            "preprocess_version": PREPROCESS_VERSION,
            "extraction_version": EXTRACTION_VERSION,
            "libjpeg": libjpeg_version(),
            **{library: package_version(library) for library in libraries},
        }
        cells[part] = Cell(
            spec.dataset.name, part, spec.model.name, spec.mode, spec.precision, key, len(found.images), batch_size
        )
    return cells


def _load(jobs: Sequence[_Job], access: Access) -> Iterator[list[_Job | tuple[RunSpec, Exception]]]:
    """Load encoders, and give them in groups that the memory holds, with those that cannot be loaded."""
    group: list[_Job | tuple[RunSpec, Exception]] = []
    held = 0
    for job in jobs:
        started = time.perf_counter()
        before = device_memory(job.spec.device).free
        try:
            job.encoder = _load_encoder(job.spec, access)
        except Exception as err:
            group.append((job.spec, err))
            continue
        job.seconds["load"] += time.perf_counter() - started
        group.append(job)
        after = device_memory(job.spec.device).free
        held = max(held, before - after)
        if after < 2 * held:  # the next may be as large, and the batch needs some as well
            yield group
            group, held = [], 0
    if group:
        yield group


def _load_encoder(spec: RunSpec, access: Access) -> ImageEncoder:
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
            compiled=spec.compiled,
        )
    if encoder.execution.jit != spec.jit:
        raise CheckpointError(f"{spec.model.name} is no TorchScript archive and has no JIT mode; use --jit off")
    return encoder


def _encode(
    group: Sequence[_Job | tuple[RunSpec, Exception]],
    dataset: OpenedDataset,
    parts: Mapping[str, _Part],
    access: Access,
    progress: Progress,
) -> Iterator[tuple[RunSpec, Extraction | Exception]]:
    """Make what a group lacks, one pass for each part, preprocessing and batch size."""
    outcomes: dict[RunSpec, Exception] = {item[0]: item[1] for item in group if isinstance(item, tuple)}
    jobs = [item for item in group if isinstance(item, _Job)]
    by_preprocess: dict[Any, list[_Job]] = {}
    for job in jobs:
        assert job.encoder is not None
        by_preprocess.setdefault((job.encoder.preprocess, job.spec.batch_size), []).append(job)
    for together in by_preprocess.values():
        for part in parts:
            lacking = [job for job in together if part in job.missing and job.spec not in outcomes]
            if lacking:
                try:
                    outcomes |= _make_part(lacking, part, parts[part].images, access, progress)
                except Exception as err:
                    outcomes |= {job.spec: err for job in lacking}
    for item in group:
        if isinstance(item, tuple):
            yield item
            continue
        item.encoder = None  # whose memory others need
        failure = outcomes.get(item.spec)
        yield item.spec, failure if failure is not None else _finish(item, dataset, parts, access)
    gc.collect()


def _make_part(
    jobs: Sequence[_Job], part: str, images: ImageDataset, access: Access, progress: Progress
) -> dict[RunSpec, Exception]:
    """Make the features of a part under several encoders; what keeps some of them from having any."""
    root = paths.cache_dir(access.cache)
    works = [Work(root, job.cells[part]) for job in jobs]
    encoders = [job.encoder for job in jobs if job.encoder is not None]
    progress.name(f"{images.name} / {', '.join(dict.fromkeys(job.spec.model.name for job in jobs))}")
    done: dict[int, Entry] = {}
    failed: dict[int, ProbeError] = {}
    started, meter = time.perf_counter(), Meter()
    while len(done) + len(failed) < len(jobs):  # once more where a piece turns out to be damaged
        open_ = [i for i in range(len(jobs)) if i not in done and i not in failed]
        found = fill(
            images,
            [encoders[i] for i in open_],
            [works[i] for i in open_],
            batch_size=jobs[0].spec.batch_size,
            meter=meter,
            progress=progress,
            workers=access.workers,
            skip_corrupt=access.skip_corrupt,
            shard=access.shard,
        )
        failed |= {open_[i]: err for i, err in found.items()}
        about = {**meter.describe(), "models": len(jobs)}
        for i in set(open_) - set(failed):
            if access.shard is not None and not works[i].is_complete():
                failed[i] = IncompleteError(works[i].state())
            elif works[i].finish(encoder=_describe_encoder(encoders[i]), extraction=about):
                entry = cache.find(root, jobs[i].cells[part])
                if entry is not None:
                    done[i] = entry
    for i, entry in done.items():
        jobs[i].entries[part] = entry
        log_rate(f"{images.name} / {jobs[i].spec.model.name} / {jobs[i].spec.mode}", entry.features, meter)
    for job in jobs:
        job.seconds["extract"] += time.perf_counter() - started
    return {jobs[i].spec: err for i, err in failed.items()}


def _finish(job: _Job, dataset: OpenedDataset, parts: Mapping[str, _Part], access: Access) -> Extraction | Exception:
    """What the entries of a cell say; an error where more images could not be read than are allowed now."""
    features = {part: job.entries[part].features for part in parts}
    skipped = [message for part in parts for _, message in features[part].skipped]
    if len(skipped) > access.skip_corrupt:
        return DatasetError(skipped[access.skip_corrupt])
    empty = [part for part in parts if not len(features[part])]
    if empty:
        return FeaturesError(f"{dataset.parts[empty[0]].name}: no image could be read; get its files again")
    positions = {part: np.delete(parts[part].used, [row for row, _ in features[part].skipped]) for part in parts}
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
        encoder=next(iter(job.entries.values())).encoder,
        extraction={"from_cache": job.cached, "parts": {part: job.entries[part].extraction for part in parts}},
        seconds=job.seconds,
        folder=next(iter(job.entries.values())).path.parent,
    )


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
