"""A dataset and models -> the features of all splits, kept or made now, and what a record says of them.

Models of one preprocessing are fed by one pass over the images.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from probe import paths
from probe.datasets import dataset_names
from probe.datasets.images import ImageDataset
from probe.datasets.opening import OpenedDataset, open_dataset, used_positions
from probe.datasets.splits.folds import SPLITS, Selection
from probe.environment import library_versions
from probe.errors import CacheError, CheckpointError, DatasetError, FeaturesError, IncompleteError, listed
from probe.features import store
from probe.features.chunks import Work
from probe.features.encode import Features, Meter, check_batch_size, log_rate
from probe.features.passes import fill
from probe.features.store import Cell, Entry
from probe.models.devices import hardware
from probe.models.encoder import ImageEncoder
from probe.models.loading import identify, load_encoder
from probe.models.memory import device_memory
from probe.models.preprocess import VERSION as PREPROCESS_VERSION
from probe.models.preprocess import libjpeg_version
from probe.models.unwrapping import WHOLE
from probe.progress import Progress, show_progress
from probe.specs import ModelSpec, RunSpec

logger = logging.getLogger(__name__)

EXTRACTION_VERSION = 1  # raised with every change of the suite that changes the bytes of features
ATTEMPTS = 3  # to write features that are read again as they were written
NOT_READING = ("groups", "ignore")  # options of sources that choose, and do not change what is read


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
        workers: processes that read images; None for what `reading.default_workers` says.
        shard: encode only the i-th of n shards, from 1 on, which others complete; None for all.
        held: the model and dataset that this process keeps between calls; None keeps none.
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
    held: Held | None = None

    def absolute(self) -> Access:
        """The same from any folder."""
        data, weights, results, cache = (
            None if folder is None else paths.absolute(folder)
            for folder in (self.data, self.weights, self.results, self.cache)
        )
        return replace(self, data=data, weights=weights, results=results, cache=cache)


@dataclass
class Held:
    """What was used last by a process that is given one task after another: a model in its modes, a dataset."""

    encoders: dict[tuple[object, ...], ImageEncoder] = field(default_factory=dict)
    opened: tuple[Any, _Opened] | None = None
    weights: dict[ModelSpec, str] = field(default_factory=dict)  # what `identify` said of them


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


@dataclass(frozen=True)
class _Part:
    """The images of a part that some split has, their positions in it, and what tells them from others."""

    images: ImageDataset
    used: np.ndarray
    sha256: str
    fingerprint: str


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
        specs: cells of one dataset; their protocols do not matter.
        access: where things are.
        progress: is told of the images that are to be encoded.
        expected: how many it has been told of before.

    Yields:
        Every cell, with its features or with what keeps it from having some.
    """
    started = time.perf_counter()
    try:
        opened = _open_or_held(specs[0], access)
    except Exception as err:  # the grid goes on, and the records of these cells name it
        progress.expect(-expected)
        yield from ((spec, err) for spec in specs)
        return
    seconds = time.perf_counter() - started
    jobs = []
    for spec in specs:
        try:
            job = _look_up(spec, opened, access)
        except Exception as err:
            progress.expect(-expected // len(specs))
            yield spec, err
            continue
        job.seconds["load"] += seconds
        jobs.append(job)
    images = sum(len(opened.parts[part].images) for job in jobs for part in job.missing)
    progress.expect(images - expected * len(jobs) // len(specs))
    for job in [job for job in jobs if not job.missing]:
        job.cached = True
        logger.info("%s: the features are kept in %s", job.spec, next(iter(job.entries.values())).path.parent)
        yield job.spec, _finish(job, opened, access)
    for group in _load([job for job in jobs if job.missing], access):
        yield from _encode(group, opened, access, progress)


def make_cells(spec: RunSpec, access: Access) -> dict[str, Cell]:
    """What the features of a cell are kept under, by part; the dataset is opened, the model is not loaded.

    Raises:
        ProbeError: whatever keeps the dataset from being opened or the weights from being read.
    """
    return _cells(spec, _open_or_held(spec, access), access)


@dataclass(frozen=True)
class _Opened:
    """A dataset, and its parts that some split has images of."""

    dataset: OpenedDataset
    parts: Mapping[str, _Part]


def _open_or_held(spec: RunSpec, access: Access) -> _Opened:
    if access.held is None:
        return _open(spec, access)
    if access.held.opened is None or access.held.opened[0] != spec.dataset:
        access.held.opened = (spec.dataset, _open(spec, access))
    return access.held.opened[1]


def _identify_or_held(model: ModelSpec, access: Access) -> str:
    known = {} if access.held is None else access.held.weights
    if model not in known:
        known[model] = identify(model, weights_dir=access.weights, offline=access.offline)
    return known[model]


def _open(spec: RunSpec, access: Access) -> _Opened:
    dataset = open_dataset(
        spec.dataset,
        data_dir=access.data,
        offline=access.offline,
        allow_partial=access.allow_partial,
        skip_corrupt=access.skip_corrupt > 0,
    )
    parts = {}
    for part, images in dataset.parts.items():
        used = used_positions(dataset.folds, part)
        if len(used):
            images = images if len(used) == len(images) else images.subset(images.name, used)
            parts[part] = _Part(images, used, images.sha256, images.fingerprint)
    return _Opened(dataset, parts)


def _look_up(spec: RunSpec, opened: _Opened, access: Access) -> _Job:
    started = time.perf_counter()
    job = _Job(spec, _cells(spec, opened, access))
    for part, cell in job.cells.items():
        root = paths.cache_dir(access.cache)
        if Work(root, cell).finish_whole():
            logger.debug("%s: all chunks are there", cell)
        entry = store.find(root, cell)
        if entry is not None and _any_is_mended(entry, opened.parts[part].images):
            logger.info("%s: an image that could not be read now can be; the features are made again", cell)
            folder, entry = entry.path, None
            store.remove(root, folder)
        elif entry is not None:
            job.entries[part] = entry
    job.seconds["load"] += time.perf_counter() - started
    return job


def _any_is_mended(entry: Entry, images: ImageDataset) -> bool:
    """Whether an image that was passed over can be read now, as after a change of permissions."""
    for position, _ in entry.features.skipped:
        try:
            images[position]
        except DatasetError:
            continue
        return True
    return False


def _cells(spec: RunSpec, opened: _Opened, access: Access) -> dict[str, Cell]:
    source = opened.dataset.source
    weights = _identify_or_held(spec.model, access)
    media = str(dict(source.options).get("media", ""))
    libraries = library_versions("features", spec.model.form, source.form, media)
    cells = {}
    for part, found in opened.parts.items():
        batch_size = min(check_batch_size(spec.batch_size), len(found.images))
        reading = {name: value for name, value in source.arguments(part).items() if name not in NOT_READING}
        key = {
            "weights": weights,
            "mode": spec.mode,
            "precision": spec.precision,
            "device": spec.device.partition(":")[0],
            "hardware": hardware(spec.device),
            "batch_size": batch_size,
            "images": found.sha256,
            "content": found.fingerprint,
            "reading": {"form": source.form, **reading},
            "preprocess_version": PREPROCESS_VERSION,
            "extraction_version": EXTRACTION_VERSION,
            "libjpeg": libjpeg_version(),
            **libraries,
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
        before = device_memory(job.spec.device).free
        failure = _try_to_load(job, access)
        if failure is not None and any(isinstance(item, _Job) for item in group):  # there may be no room beside others
            yield group
            group, held = [], 0
            failure = _try_to_load(job, access)
        group.append(job if failure is None else (job.spec, failure))
        after = device_memory(job.spec.device).free
        held = max(held, before - after)
        if after < 2 * held:  # the next may be as large, and the batch needs some as well
            yield group
            group, held = [], 0
    if group:
        yield group


def _try_to_load(job: _Job, access: Access) -> Exception | None:
    started = time.perf_counter()
    try:
        job.encoder = _load_or_held(job.spec, access)
    except Exception as err:
        return _without_frames(err)
    job.seconds["load"] += time.perf_counter() - started
    return None


def _without_frames(err: Exception) -> Exception:
    """The error without the variables of the functions that it came through, which would keep models in memory."""
    traceback.clear_frames(err.__traceback__)
    return err


def _load_or_held(spec: RunSpec, access: Access) -> ImageEncoder:
    if access.held is None:
        return _load_encoder(spec, access)
    wanted, encoders = encoder_key(spec), access.held.encoders
    if wanted not in encoders:
        for other in [key for key in encoders if key[0] != spec.model]:
            del encoders[other]  # whose memory the next needs
        encoders[wanted] = _load_encoder(spec, access)
    return encoders[wanted]


def encoder_key(spec: RunSpec) -> tuple[object, ...]:
    """What tells the loaded model of a cell from others."""
    return (spec.model, spec.jit, spec.device, spec.precision, spec.compiled)


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
    group: Sequence[_Job | tuple[RunSpec, Exception]], opened: _Opened, access: Access, progress: Progress
) -> Iterator[tuple[RunSpec, Extraction | Exception]]:
    """Make what a group lacks, one pass for each part, preprocessing and batch size."""
    failures: dict[RunSpec, Exception] = {item[0]: item[1] for item in group if isinstance(item, tuple)}
    jobs = [item for item in group if isinstance(item, _Job)]
    by_preprocess: dict[Any, list[_Job]] = {}
    for job in jobs:
        assert job.encoder is not None
        by_preprocess.setdefault((job.encoder.preprocess, job.spec.batch_size), []).append(job)
    for together in by_preprocess.values():
        for part, found in opened.parts.items():
            lacking = [
                job
                for job in together
                if part in job.missing and isinstance(failures.get(job.spec), IncompleteError | None)
            ]
            if lacking:
                try:
                    failures = _with(failures, _make_part(lacking, part, found.images, access, progress))
                except Exception as err:
                    failures |= {job.spec: _without_frames(err) for job in lacking}
    for job in jobs:
        job.encoder = None  # whose memory others need
    gc.collect()
    for item in group:
        spec = item[0] if isinstance(item, tuple) else item.spec
        if spec in failures:
            yield spec, failures[spec]
        elif isinstance(item, _Job):
            yield spec, _finish(item, opened, access)


def _with(failures: dict[RunSpec, Exception], more: Mapping[RunSpec, Exception]) -> dict[RunSpec, Exception]:
    """Failures of two parts; what is incomplete in both says so of both."""
    joined = dict(failures)
    for spec, err in more.items():
        before = joined.get(spec)
        both = isinstance(before, IncompleteError) and isinstance(err, IncompleteError)
        joined[spec] = IncompleteError(f"{before}; {err}") if both else err
    return joined


def _make_part(
    jobs: Sequence[_Job], part: str, images: ImageDataset, access: Access, progress: Progress
) -> dict[RunSpec, Exception]:
    """Make the features of a part under several encoders; what keeps some of them from having any."""
    root = paths.cache_dir(access.cache)
    skipped = max(sum(len(entry.features.skipped) for entry in job.entries.values()) for job in jobs)  # in other parts
    progress.name(f"{images.name} / {listed(dict.fromkeys(job.spec.model.name for job in jobs), most=2)}")
    left, failed = list(jobs), dict[RunSpec, Exception]()
    started = time.perf_counter()
    for _ in range(ATTEMPTS):  # once more where a chunk turns out to be damaged
        meter = Meter()
        works = [Work(root, job.cells[part]) for job in left]
        broken = fill(
            images,
            [job.encoder for job in left if job.encoder is not None],
            works,
            batch_size=left[0].spec.batch_size,
            meter=meter,
            progress=progress,
            workers=access.workers,
            skip_corrupt=max(0, access.skip_corrupt - skipped),
            shard=access.shard,
        )
        for i, (job, work) in enumerate(zip(left, works, strict=True)):
            assert job.encoder is not None
            about = {**meter.describe(i), "models": len(jobs)}
            if meter.encoded[i]:
                work.describe(encoder=_describe_encoder(job.encoder), extraction=about)
            if i in broken:
                failed[job.spec] = _without_frames(broken[i])
            elif access.shard is not None and not work.is_complete():
                failed[job.spec] = IncompleteError(work.state())
            else:
                if work.finish(encoder=_describe_encoder(job.encoder), extraction=about):
                    entry = store.find(root, job.cells[part])
                    if entry is not None:
                        job.entries[part] = entry
                        what = f"{images.name} / {job.spec.model.name} / {job.spec.mode}"
                        log_rate(what, entry.features, meter)
        left = [job for job in left if part in job.missing and job.spec not in failed]
        if not left:
            break
    for job in left:
        failed[job.spec] = CacheError(f"{root} damages what is written to it; check its disk, or name another folder")
    for job in jobs:
        job.seconds["extract"] += time.perf_counter() - started
    return failed


def _finish(job: _Job, opened: _Opened, access: Access) -> Extraction | Exception:
    """What the entries of a cell say; an error where more images could not be read than are allowed."""
    dataset, parts = opened.dataset, opened.parts
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
    # The catalogue defines the labels of its datasets. For other datasets, only the record can.
    is_listed = dataset.spec.name in dataset_names()
    return {
        **({} if is_listed else {"class_names": list(next(iter(dataset.parts.values())).class_names)}),
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
        # Only if the weights lay in a container or below a prefix, so that other records do not change.
        **({"weights_key": encoder.weights_key} if encoder.weights_key != WHOLE else {}),
        "license": encoder.license,
        "resolution": encoder.resolution,
        "embed_dim": encoder.embed_dim,
        "pre_projection_dim": encoder.pre_projection_dim,
        "preprocess": asdict(encoder.preprocess),
        "preprocess_from": encoder.preprocess_from,
        "dtypes": {
            "checkpoint": encoder.checkpoint_dtypes,
            "weights": encoder.weights_dtypes,
            "features": "float32",
        },
    }
