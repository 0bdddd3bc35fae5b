"""A dataset and encoders -> the features of all its splits, from the cache or extracted now.

`extract` is for one run. `prepare` extracts the features of many runs of one dataset together: one pass over the images
feeds every encoder of one preprocessing, as far as the encoders fit into memory. A `Session` holds what runs share.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from probe import paths
from probe.datasets.opening import OpenedDataset, open_dataset
from probe.errors import CheckpointError, ProbeError
from probe.features import store
from probe.features.arrays import Extraction
from probe.features.description import describe_extraction
from probe.features.groups import extract_missing
from probe.features.jobs import (
    EncoderKey,
    FeaturesKey,
    Job,
    JobKey,
    LazyEncoder,
    encoder_key,
    features_key,
    look_up_job,
)
from probe.features.pixels import find_split_leaks
from probe.features.store import EntrySpec, cache_entries
from probe.models.encoder import ImageEncoder
from probe.models.loading import identify, load_encoder
from probe.models.text import TextEncoder, load_text_encoder
from probe.progress import Progress, show_progress
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import SPLITS, DatasetSpec, ModelSpec, RunSpec
from probe.stats.equal_images import Leaks

if TYPE_CHECKING:
    from probe.features.text import Classifier


EncoderType = TypeVar("EncoderType", ImageEncoder, TextEncoder)


@dataclass
class Session:
    """Datasets and encoders that one process opens once for many runs.

    Args:
        settings: folders and policies.
        keeps_encoders: keep the encoders of the last model in memory, for a process that receives task after task.
        dataset: the dataset opened last.
        weights: digests of weights, by model.
        encoders: encoders in memory, see `keeps_encoders`.
        extracted: features that `prepare` extracted or found in the cache.
        classifiers: text features of the classes of zero-shot runs, see `text.find_classifier`.
        leaks: test images of each fold of the dataset opened last that are also training images; empty if no run asked.
    """

    settings: Settings = DEFAULT_SETTINGS
    keeps_encoders: bool = False
    dataset: OpenedDataset | None = None
    weights: dict[ModelSpec, str] = field(default_factory=dict)
    encoders: dict[EncoderKey, ImageEncoder] = field(default_factory=dict)
    extracted: dict[FeaturesKey, Extraction] = field(default_factory=dict)
    classifiers: dict[RunSpec, Classifier] = field(default_factory=dict)
    leaks: list[Leaks] = field(default_factory=list)

    def open_dataset(self, spec: DatasetSpec) -> OpenedDataset:
        """Open a dataset, unless it is already open.

        Raises:
            DatasetError, ExtraMissingError: see `datasets.opening.open_dataset`.
        """
        if self.dataset is None or self.dataset.spec != spec:
            self.dataset, self.leaks = None, []
            self.dataset = open_dataset(
                spec,
                data_dir=self.settings.data_dir,
                offline=self.settings.offline,
                allow_partial=self.settings.allow_partial,
                skip_corrupt=self.settings.skip_corrupt > 0,
            )
        return self.dataset

    def find_leaks(self, spec: DatasetSpec) -> list[Leaks]:
        """Return the test images of each fold that are also training images, see `pixels.find_split_leaks`.

        Raises:
            DatasetError, ExtraMissingError, CacheError: the dataset or its cached digests cannot be read.
        """
        dataset = self.open_dataset(spec)
        self.leaks = self.leaks or find_split_leaks(dataset, paths.cache_dir(self.settings.cache_dir))
        return self.leaks

    def find_encoder(self, spec: RunSpec) -> LazyEncoder:
        """Identify the encoder of a run by its weights, which are downloaded if they are missing; nothing is loaded.

        Raises:
            CheckpointError, DownloadError, ChecksumError: the weights are not available.
        """
        if spec.model not in self.weights:
            settings = self.settings
            self.weights[spec.model] = identify(spec.model, weights_dir=settings.weights_dir, offline=settings.offline)
        return LazyEncoder(spec, self.weights[spec.model], self.load_encoder)

    def load_encoder(self, spec: RunSpec) -> ImageEncoder:
        """Load the encoder of a run, or return the one in memory."""
        key = encoder_key(spec)
        if key in self.encoders:
            return self.encoders[key]
        for other in [other for other in self.encoders if other[0] != spec.model]:
            del self.encoders[other]  # the next encoder needs its memory
        encoder = self._load(spec, partial(load_encoder, compiled=spec.compiled))
        if self.keeps_encoders:
            self.encoders[key] = encoder
        return encoder

    def load_text_encoder(self, spec: RunSpec) -> TextEncoder:
        """Load the text tower of the model of a run. In compiled mode it is not compiled."""
        return self._load(spec, load_text_encoder)

    def _load(self, spec: RunSpec, load: Callable[..., EncoderType]) -> EncoderType:
        with warnings.catch_warnings():
            # The run fails below, with the same text, so that no JIT table has the score of a rebuilt model.
            warnings.filterwarnings("ignore", message=".* is not a TorchScript archive", category=UserWarning)
            encoder = load(
                spec.model,
                jit=spec.jit,
                device=spec.device,
                precision=spec.precision,
                weights_dir=self.settings.weights_dir,
                offline=self.settings.offline,
            )
        if encoder.execution.jit != spec.jit:
            raise CheckpointError(f"{spec.model.name} is not a TorchScript archive and has no JIT mode; use --jit off")
        return encoder


def extract(encoder: LazyEncoder, dataset: OpenedDataset, session: Session) -> Extraction:
    """Return the features of a dataset under one encoder, from `prepare`, from the cache, or extracted now.

    Raises:
        Exception: an image, the encoder, the memory or the cache folder prevents the extraction.
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
    specs: Sequence[RunSpec], session: Session, *, is_ready: Callable[[RunSpec], bool] = lambda _: True
) -> Iterator[tuple[list[RunSpec], dict[FeaturesKey, Exception]]]:
    """Yield the runs of one dataset after the other, with the result of `prepare` for them.

    The features of a dataset are in `session.extracted` until the next dataset is asked for.

    Args:
        specs: the runs.
        session: opens the datasets and loads the encoders.
        is_ready: return False for a run that will fail, so that no features are extracted for it. It is called when the
            dataset is open.

    Raises:
        CacheError, FolderError: the cache folder cannot be used.
    """
    store.check_usable(paths.cache_dir(session.settings.cache_dir))
    with show_progress() as progress:
        groups = [list(group) for _, group in groupby(specs, key=lambda spec: spec.dataset)]
        progress.expect(sum(map(num_images, groups)))
        for group in groups:
            further = _runs_on_tests(group, session, is_ready)
            for test in dict.fromkeys(one.dataset for one in further):
                runs = [one for one in further if one.dataset == test]
                prepare(runs, replace(session, dataset=None), progress)
            yield group, prepare(group, session, progress, expected=num_images(group), is_ready=is_ready)
            session.extracted.clear()
            session.classifiers.clear()


def _runs_on_tests(group: Sequence[RunSpec], session: Session, is_ready: Callable[[RunSpec], bool]) -> list[RunSpec]:
    """Return the runs on further test sets; none if the dataset itself cannot be opened, because its runs will fail."""
    if not any(spec.tests for spec in group):
        return []
    try:
        session.open_dataset(group[0].dataset)
    except Exception:  # a run meets the error again and records it
        return []
    return [one for spec in group if is_ready(spec) for one in spec.on_tests]


def num_images(specs: Sequence[RunSpec]) -> int:
    """Return the number of images to encode for runs of one dataset; unknown sizes count as 0."""
    images: dict[JobKey, int] = {}
    for spec in specs:
        key = features_key(spec).job
        images[key] = max(images.get(key, 0), spec.num_images)
    return sum(images.values())


def prepare(
    specs: Sequence[RunSpec],
    session: Session,
    progress: Progress,
    *,
    expected: int = 0,
    is_ready: Callable[[RunSpec], bool] = lambda _: True,
) -> dict[FeaturesKey, Exception]:
    """Look up or extract the features of all runs of one dataset, and put them into `session.extracted`.

    Args:
        specs: runs of one dataset. Their protocols only decide which splits are needed. Runs of one encoder share one
            pass over the images, but each has the features and the description of its own splits.
        session: opens the dataset and loads the encoders.
        progress: counts the images to encode.
        expected: number of images of these runs that `progress` already expects.
        is_ready: see `prepare_grid`.

    Returns:
        The exceptions of runs without features, by `features_key`. An encoder that fails does not stop the others, and
        a subset that fails does not stop the runs that do not need it.
    """
    progress.expect(-expected)
    started = time.perf_counter()
    try:
        dataset = session.open_dataset(specs[0].dataset)
    except Exception as error:  # the grid continues, and the records of these runs name the error
        return dict.fromkeys(map(features_key, specs), error)
    seconds = time.perf_counter() - started
    wanted = {features_key(spec): spec for spec in specs if is_ready(spec)}  # may encode texts, which are timed apart
    started = time.perf_counter()
    failures, encoders = dict[FeaturesKey, Exception](), dict[FeaturesKey, LazyEncoder]()
    for key, spec in wanted.items():
        try:
            encoders[key] = session.find_encoder(spec)
        except Exception as error:
            failures[key] = error
    seconds += time.perf_counter() - started
    failures |= _extract_all(encoders, dataset, session, progress)
    for key in wanted.keys() - failures.keys():
        session.extracted[key].seconds["load"] += seconds
    return failures


def find_entries(spec: RunSpec, session: Session) -> dict[str, EntrySpec]:
    """Return the specifications of the cache entries of a run, by subset. The encoder is not loaded.

    Raises:
        ProbeError: the dataset cannot be opened, or the weights cannot be read.
    """
    dataset = session.open_dataset(spec.dataset).only(spec.splits)
    return cache_entries(spec, session.find_encoder(spec).weights, dataset)


def find_test_entries(spec: RunSpec, session: Session) -> list[EntrySpec]:
    """Return the specifications of the cache entries of the further test sets of a run that can be opened."""
    found: list[EntrySpec] = []
    for one in spec.on_tests:
        with suppress(ProbeError):
            found += find_entries(one, replace(session, dataset=None)).values()
    return found


def _extract_all(
    encoders: Mapping[FeaturesKey, LazyEncoder], dataset: OpenedDataset, session: Session, progress: Progress
) -> dict[FeaturesKey, Exception]:
    """Look up the features of a dataset under several encoders, and extract those that are missing.

    Returns:
        The exceptions that prevent some features.
    """
    failures, jobs, keys = dict[FeaturesKey, Exception](), dict[JobKey, Job](), dict[JobKey, list[FeaturesKey]]()
    for key in encoders:
        keys.setdefault(key.job, []).append(key)
    for job_key, alike in keys.items():
        splits = tuple(split for split in SPLITS if any(split in key.splits for key in alike))
        try:
            root = paths.cache_dir(session.settings.cache_dir)
            jobs[job_key] = look_up_job(encoders[alike[0]], dataset.only(splits), root)
        except Exception as error:
            failures |= dict.fromkeys(alike, error)
    extract_missing([job for job in jobs.values() if job.missing], dataset, session.settings, progress)
    for key in encoders.keys() - failures.keys():
        try:
            session.extracted[key] = _describe(jobs[key.job], dataset.only(key.splits), session.settings)
        except Exception as error:
            failures[key] = error
    return failures


def _describe(job: Job, dataset: OpenedDataset, settings: Settings) -> Extraction:
    """Return the features of the runs that need the splits of `dataset`."""
    error = job.failure(dataset.used)
    if error is not None:
        raise error
    return describe_extraction(
        {subset: job.entries[subset] for subset in dataset.used},
        dataset,
        weights=job.encoder.weights,
        from_cache=job.cached.issuperset(dataset.used),
        seconds={
            "load": job.load_seconds,
            "extract": sum(job.extract_seconds.get(subset, 0.0) for subset in dataset.used),
        },
        skip_corrupt=settings.skip_corrupt,
    )
