"""A dataset and encoders -> the features of all its splits, from the cache or extracted now.

`extract` is for one run. `prepare` extracts the features of many runs of one dataset together: one pass over the images
feeds every encoder of one preprocessing, as far as the memory holds them.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from probe import paths
from probe.datasets import dataset_names
from probe.datasets.digests import DigestedDataset, UsedImages, digest_splits
from probe.datasets.images import ImageDataset
from probe.datasets.splits.folds import SPLITS
from probe.decoder import decode
from probe.errors import CacheError, DatasetError, FeaturesError, IncompleteError, listed
from probe.features import store
from probe.features.chunks import Work
from probe.features.encode import Features, Meter, log_rate
from probe.features.keys import EXTRACTION_VERSION, cache_entries
from probe.features.passes import fill
from probe.features.session import FeaturesKey, LazyEncoder, Session, features_key
from probe.features.store import Entry, EntrySpec
from probe.models.encoder import ImageEncoder
from probe.models.memory import device_memory
from probe.models.preprocess import VERSION as PREPROCESS_VERSION
from probe.models.unwrapping import WHOLE
from probe.progress import Progress, show_progress
from probe.records.schema import (
    EncoderRecord,
    ExtractionRecord,
    MeterRecord,
    ReadRecord,
    SkippedImage,
    SplitRecord,
)
from probe.settings import Settings
from probe.specs import RunSpec

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # to write features that are read again as they were written


@dataclass(frozen=True)
class Extraction:
    """The features of a dataset under one encoder, and what a record says of them.

    Args:
        features: of each subset, of the images that some split uses.
        rows: for each fold the subset of each split, and its rows in the subset's features: int64, ascending.
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
        how = {"mode": spec.mode, "precision": spec.precision, "device": spec.device, "batch_size": spec.batch_size}
        splits = {name: asdict(split) for name, split in self.splits.items()}
        return {**names, **how, "encoder": asdict(self.encoder), "read": asdict(self.read), "splits": splits}

    def cut(self) -> list[dict[str, Features]]:
        """Cut the features into `train`, `val` and `test`, once for each fold.

        A split of a whole subset is that subset's features, memory-mapped; others are copies of rows.
        """
        folds = []
        for fold in self.rows:
            splits = {}
            for name, (subset, rows) in fold.items():
                features = self.features[subset]
                splits[name] = features if len(rows) == len(features) else features.take(rows)
            folds.append(splits)
        return folds


@dataclass(eq=False)
class _Job:
    """An encoder whose features are being extracted.

    Args:
        encoder: loaded if `missing` is not empty.
        wanted: its cache entries, by subset.
        entries: those that exist, read.
        cached: whether an earlier run extracted all of them.
        seconds: spent so far.
    """

    encoder: LazyEncoder
    wanted: Mapping[str, EntrySpec]
    entries: dict[str, Entry] = field(default_factory=dict)
    cached: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: {"load": 0.0, "extract": 0.0})

    @property
    def spec(self) -> RunSpec:
        """The run of the encoder; its protocol does not matter."""
        return self.encoder.spec

    @property
    def missing(self) -> list[str]:
        """Subsets that have no entry yet."""
        return [subset for subset in self.wanted if subset not in self.entries]


def extract(encoder: LazyEncoder, dataset: DigestedDataset, session: Session) -> Extraction:
    """Return the features of a dataset under one encoder: prepared before, from the cache, or extracted now.

    Raises:
        Exception: an image, the encoder, the memory or the cache folder prevents it.
    """
    key = features_key(encoder.spec)
    if key not in session.extracted:
        failures = _extract_all({key: encoder}, dataset, session, Progress(is_shown=False))
        if key in failures:
            raise failures[key]
    return session.extracted[key]


def extract_grid(specs: Sequence[RunSpec], settings: Settings) -> Iterator[tuple[RunSpec, Extraction | Exception]]:
    """Extract the features of runs of several datasets; yield each run with its features or with an error."""
    session = Session(settings)
    for group, failures in prepare_grid(specs, session):
        for spec in group:
            key = features_key(spec)
            yield spec, failures[key] if key in failures else session.extracted[key]


def prepare_grid(
    specs: Sequence[RunSpec], session: Session
) -> Iterator[tuple[list[RunSpec], dict[FeaturesKey, Exception]]]:
    """Yield the runs of one dataset after the other, with the result of `prepare` for them.

    The features of a dataset are in `session.extracted` until the next dataset is asked for.
    """
    with show_progress() as progress:
        groups = [list(group) for _, group in groupby(specs, key=lambda spec: spec.dataset)]
        progress.expect(sum(map(num_images, groups)))
        for group in groups:
            yield group, prepare(group, session, progress, expected=num_images(group))
            session.extracted.clear()


def num_images(specs: Sequence[RunSpec]) -> int:
    """Return how many images are encoded for runs of one dataset, as far as its specification says."""
    return len({features_key(spec) for spec in specs}) * sum(subset.size or 0 for subset in specs[0].dataset.subsets)


def prepare(
    specs: Sequence[RunSpec], session: Session, progress: Progress, *, expected: int = 0
) -> dict[FeaturesKey, Exception]:
    """Extract the features of all runs of one dataset into `session.extracted`, as far as they are not cached.

    Args:
        specs: runs of one dataset; their protocols and solvers do not matter.
        session: opens the dataset and loads the encoders.
        progress: is told of the images that are to be encoded.
        expected: how many images it has been told of before.

    Returns:
        What prevents some runs from having features, by `features_key`. One encoder that fails stops no other.
    """
    started = time.perf_counter()
    wanted = {features_key(spec): spec for spec in specs}
    progress.expect(-expected)
    try:
        dataset = session.open_dataset(specs[0].dataset)
    except Exception as error:  # the grid goes on, and the records of these runs name it
        return dict.fromkeys(wanted, error)
    failures, encoders = dict[FeaturesKey, Exception](), dict[FeaturesKey, LazyEncoder]()
    for key, spec in wanted.items():
        try:
            encoders[key] = session.find_encoder(spec)
        except Exception as error:
            failures[key] = error
    seconds = time.perf_counter() - started
    failures |= _extract_all(encoders, dataset, session, progress)
    for key in wanted.keys() - failures.keys():
        session.extracted[key].seconds["load"] += seconds
    return failures


def find_entries(spec: RunSpec, session: Session) -> dict[str, EntrySpec]:
    """Return the cache entries of a run's features, by subset; the dataset is opened, the encoder is not loaded.

    Raises:
        ProbeError: the dataset cannot be opened, or the weights cannot be read.
    """
    return cache_entries(session.find_encoder(spec), session.open_dataset(spec.dataset))


def _extract_all(
    encoders: Mapping[FeaturesKey, LazyEncoder], dataset: DigestedDataset, session: Session, progress: Progress
) -> dict[FeaturesKey, Exception]:
    """Extract the features of a dataset under several encoders; return what prevents some of them from having any."""
    failures, jobs = dict[FeaturesKey, Exception](), dict[FeaturesKey, _Job]()
    for key, encoder in encoders.items():
        try:
            jobs[key] = _look_up(encoder, dataset, session)
        except Exception as error:
            failures[key] = error
    missing = [job for job in jobs.values() if job.missing]
    progress.expect(sum(len(dataset.used[subset].images) for job in missing for subset in job.missing))
    for group in _load(missing, failures):
        failures |= _encode(group, dataset, session.settings, progress)
    for key in jobs.keys() - failures.keys():
        try:
            session.extracted[key] = _describe(jobs[key], dataset, session.settings)
        except Exception as error:
            failures[key] = error
    return failures


def _look_up(encoder: LazyEncoder, dataset: DigestedDataset, session: Session) -> _Job:
    """Find the cache entries of an encoder."""
    started = time.perf_counter()
    job, root = _Job(encoder, cache_entries(encoder, dataset)), paths.cache_dir(session.settings.cache_dir)
    for subset, wanted in job.wanted.items():
        if Work(root, wanted).finish_whole():
            logger.debug("%s: all chunks are there", wanted)
        entry = store.find(root, wanted)
        if entry is not None and _any_is_mended(entry, dataset.used[subset].images):
            logger.info("%s: an image that could not be read now can be; the features are extracted again", wanted)
            folder, entry = entry.path, None
            store.remove(root, folder)
        elif entry is not None:
            job.entries[subset] = entry
    if not job.missing:
        job.cached = True
        logger.info("%s: the features are cached in %s", encoder.spec, next(iter(job.entries.values())).path.parent)
    job.seconds["load"] += time.perf_counter() - started
    return job


def _any_is_mended(entry: Entry, images: ImageDataset) -> bool:
    """Return True if an image that was skipped can be read now, as after a change of permissions."""
    for position, _ in entry.features.skipped:
        try:
            images[position]
        except DatasetError:
            continue
        return True
    return False


def _load(jobs: Sequence[_Job], failures: dict[FeaturesKey, Exception]) -> Iterator[list[_Job]]:
    """Load encoders, in groups that the memory holds; those that cannot be loaded are added to `failures`."""
    group: list[_Job] = []
    largest = 0  # bytes of an encoder of the group
    for job in jobs:
        before = device_memory(job.spec.device).free
        error = _try_to_load(job)
        if error is not None and group:  # there may be no room beside the others
            yield group
            group, largest = [], 0
            error = _try_to_load(job)
        if error is not None:
            failures[features_key(job.spec)] = error
            continue
        group.append(job)
        after = device_memory(job.spec.device).free
        largest = max(largest, before - after)
        if after < 2 * largest:  # the next may be as large, and the batch needs some as well
            yield group
            group, largest = [], 0
    if group:
        yield group


def _try_to_load(job: _Job) -> Exception | None:
    started = time.perf_counter()
    try:
        job.encoder.load()
    except Exception as err:
        return _without_frames(err)
    job.seconds["load"] += time.perf_counter() - started
    return None


def _without_frames(err: Exception) -> Exception:
    """Return the error without the local variables of its traceback, which would keep encoders in memory."""
    traceback.clear_frames(err.__traceback__)
    return err


def _encode(
    jobs: Sequence[_Job], dataset: DigestedDataset, settings: Settings, progress: Progress
) -> dict[FeaturesKey, Exception]:
    """Extract what the encoders of a group lack: one pass for each subset, preprocessing and batch size."""
    failures: dict[FeaturesKey, Exception] = {}
    by_preprocess: dict[Any, list[_Job]] = {}
    for job in jobs:
        by_preprocess.setdefault((job.encoder.load().preprocess, job.spec.batch_size), []).append(job)
    for together in by_preprocess.values():
        for subset, used in dataset.used.items():
            # A shard is incomplete in every subset.
            able = [job for job in together if isinstance(failures.get(features_key(job.spec)), IncompleteError | None)]
            missing = [job for job in able if subset in job.missing]
            if not missing:
                continue
            try:
                failed = _extract_subset(missing, subset, used, settings, progress)
            except Exception as err:
                failed = dict.fromkeys((features_key(job.spec) for job in missing), _without_frames(err))
            for key, error in failed.items():
                before = failures.get(key)
                both = isinstance(before, IncompleteError) and isinstance(error, IncompleteError)
                failures[key] = IncompleteError(f"{before}; {error}") if both else error
    for job in jobs:
        job.encoder.loaded = None  # the next group needs its memory
    gc.collect()
    return failures


def _extract_subset(
    jobs: Sequence[_Job], subset: str, used: UsedImages, settings: Settings, progress: Progress
) -> dict[FeaturesKey, Exception]:
    """Extract the features of a subset under several encoders; return what prevents some of them from having any."""
    root, images = paths.cache_dir(settings.cache_dir), used.images
    skipped = max(sum(len(entry.features.skipped) for entry in job.entries.values()) for job in jobs)  # in others
    progress.name(f"{images.name} / {listed(dict.fromkeys(job.spec.model.name for job in jobs), most=2)}")
    left, failed = list(jobs), dict[FeaturesKey, Exception]()
    started = time.perf_counter()
    for _ in range(ATTEMPTS):  # once more where a chunk turns out to be damaged
        meter = Meter()
        works = [Work(root, job.wanted[subset]) for job in left]
        broken = fill(
            images,
            [job.encoder.load() for job in left],
            works,
            batch_size=left[0].spec.batch_size,
            meter=meter,
            progress=progress,
            workers=settings.workers,
            skip_corrupt=max(0, settings.skip_corrupt - skipped),
            shard=settings.shard,
        )
        for i, (job, work) in enumerate(zip(left, works, strict=True)):
            encoder, extraction = _describe_encoder(job.encoder.load()), {**meter.describe(i), "models": len(jobs)}
            if meter.encoded[i]:
                work.describe(encoder=encoder, extraction=extraction)
            if i in broken:
                failed[features_key(job.spec)] = _without_frames(broken[i])
            elif settings.shard is not None and not work.is_complete():
                failed[features_key(job.spec)] = IncompleteError(work.state())
            elif work.finish(encoder=encoder, extraction=extraction):
                entry = store.find(root, job.wanted[subset])
                if entry is not None:
                    job.entries[subset] = entry
                    log_rate(f"{images.name} / {job.spec.model.name} / {job.spec.mode}", entry.features, meter)
        left = [job for job in left if subset in job.missing and features_key(job.spec) not in failed]
        if not left:
            break
    for job in left:
        error = CacheError(f"{root} damages what is written to it; check its disk, or name another folder")
        failed[features_key(job.spec)] = error
    for job in jobs:
        job.seconds["extract"] += time.perf_counter() - started
    return failed


def _describe(job: _Job, dataset: DigestedDataset, settings: Settings) -> Extraction:
    """Return the features of the cache entries of a run, with the rows of each split.

    Raises:
        DatasetError: more images could not be read than are allowed.
        FeaturesError: no image of a subset could be read.
    """
    opened, used = dataset.opened, dataset.used
    features = {subset: job.entries[subset].features for subset in used}
    skipped = [message for subset in used for _, message in features[subset].skipped]
    if len(skipped) > settings.skip_corrupt:
        raise DatasetError(skipped[settings.skip_corrupt])
    for subset in used:
        if not len(features[subset]):
            raise FeaturesError(f"{opened.subsets[subset].name}: no image could be read; get its files again")
    # Skipped images have no row.
    readable = {s: np.delete(used[s].positions, [row for row, _ in features[s].skipped]) for s in used}
    rows = [
        {
            name: (fold[name].subset, np.flatnonzero(np.isin(readable[fold[name].subset], fold[name].positions)))
            for name in SPLITS
        }
        for fold in opened.folds
    ]
    splits = digest_splits(opened, readable) if skipped else dataset.splits
    entries = job.entries
    first = next(iter(entries.values()))
    return Extraction(
        features=features,
        rows=rows,
        read=_describe_reading(dataset, features),
        splits={name: SplitRecord(**split) for name, split in splits.items()},
        encoder=decode(first.encoder, EncoderRecord),
        extraction=ExtractionRecord(
            from_cache=job.cached,
            subsets={subset: decode(entries[subset].extraction, MeterRecord) for subset in used},
            weights=job.encoder.weights,
            extraction_version=EXTRACTION_VERSION,
            preprocess_version=PREPROCESS_VERSION,
        ),
        seconds=job.seconds,
        folder=first.path.parent,
    )


def _describe_reading(dataset: DigestedDataset, features: Mapping[str, Features]) -> ReadRecord:
    opened = dataset.opened
    skipped = [
        SkippedImage(subset, dataset.used[subset].images.ids[row], message)
        for subset, extracted in features.items()
        for row, message in extracted.skipped
    ]
    # The catalogue defines the labels of its datasets. For other datasets, only the record can.
    is_listed = opened.spec.name in dataset_names()
    return ReadRecord(
        source=opened.source,
        revisions={name: images.revision for name, images in opened.subsets.items() if images.revision},
        partial={name: (len(opened.subsets[name]), size) for name, size in opened.incomplete.items()},
        skipped=tuple(skipped),
        class_names=() if is_listed else tuple(next(iter(opened.subsets.values())).class_names),
    )


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
