"""Jobs of extraction: the cache entries that a dataset needs under one encoder, and those that exist."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from probe.datasets.images import ImageDataset
from probe.datasets.opening import OpenedDataset
from probe.errors import IncompleteError
from probe.features import store
from probe.features.chunks import Work
from probe.features.store import Entry, EntrySpec, cache_entries
from probe.models.encoder import ImageEncoder
from probe.specs import DatasetSpec, ModelSpec, RunSpec

logger = logging.getLogger(__name__)

EncoderKey = tuple[ModelSpec, bool, str, str, bool]
JobKey = tuple[DatasetSpec, EncoderKey, int]


class FeaturesKey(NamedTuple):
    """Fields of a run that decide which features it uses: all but the solver and most of the protocol.

    Args:
        job: the fields that decide how images are encoded; one `Job` extracts the features of all runs that share them.
        splits: splits whose images the run needs.
    """

    job: JobKey
    splits: tuple[str, ...]


def encoder_key(spec: RunSpec) -> EncoderKey:
    """Return the fields of a run that decide which encoder it loads."""
    return (spec.model, spec.jit, spec.device, spec.precision, spec.compiled)


def features_key(spec: RunSpec) -> FeaturesKey:
    """Return the fields of a run that decide which features it uses."""
    return FeaturesKey((spec.dataset, encoder_key(spec), spec.batch_size), spec.splits)


@dataclass(eq=False)
class LazyEncoder:
    """Encoder of a run, loaded when the first image is encoded: cached features need only the digest of its weights.

    Args:
        spec: the run; its protocol does not matter.
        weights: digest of the weights, see `models.loading.identify`.
        load_encoder: return the loaded encoder of a run.
        loaded: the encoder while it is in use.
    """

    spec: RunSpec
    weights: str
    load_encoder: Callable[[RunSpec], ImageEncoder] = field(repr=False)
    loaded: ImageEncoder | None = None

    def load(self) -> ImageEncoder:
        """Return the loaded encoder.

        Raises:
            CheckpointError, DownloadError, DeviceError, ExtraMissingError: the encoder cannot be loaded.
        """
        if self.loaded is None:
            self.loaded = self.load_encoder(self.spec)
        return self.loaded


@dataclass(eq=False)
class Job:
    """Cache entries that a dataset needs under one encoder, and those that exist.

    Args:
        encoder: the encoder, loaded if `missing` is not empty.
        wanted: specification of the cache entry of each subset that some run needs.
        entries: the entries that exist.
        failures: exceptions that prevent entries, by subset.
        cached: subsets whose entries existed before.
        load_seconds: wall time of finding the entries and loading the encoder.
        extract_seconds: wall time of extraction, by subset.
    """

    encoder: LazyEncoder
    wanted: Mapping[str, EntrySpec]
    entries: dict[str, Entry] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    load_seconds: float = 0.0
    extract_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def spec(self) -> RunSpec:
        """The run of the encoder; its protocol does not matter."""
        return self.encoder.spec

    @property
    def missing(self) -> list[str]:
        """Subsets that have neither an entry nor an exception yet."""
        return [subset for subset in self.wanted if subset not in self.entries and subset not in self.failures]

    def failure(self, subsets: Iterable[str]) -> Exception | None:
        """Return the exception that prevents features of some subsets, or None. Incomplete subsets come last."""
        errors = [self.failures[subset] for subset in subsets if subset in self.failures]
        final = [error for error in errors if not isinstance(error, IncompleteError)]
        if final or len(errors) < 2:
            return next(iter(final or errors), None)
        return IncompleteError("; ".join(map(str, errors)))


def look_up_job(encoder: LazyEncoder, dataset: OpenedDataset, root: Path) -> Job:
    """Find the cache entries of an encoder below the cache folder `root`."""
    started = time.perf_counter()
    job = Job(encoder, cache_entries(encoder.spec, encoder.weights, dataset))
    for subset, wanted in job.wanted.items():
        try:
            entry = _find_entry(root, wanted, dataset.used[subset].images)
        except Exception as error:
            job.failures[subset] = error
            continue
        if entry is not None:
            job.entries[subset] = entry
    job.cached = set(job.entries)
    if len(job.entries) == len(job.wanted):
        folder = next(iter(job.entries.values())).path.parent
        names = (encoder.spec.dataset.name, encoder.spec.model.name, encoder.spec.mode)
        logger.debug("%s: the features are cached in %s", " / ".join(names), folder)
    job.load_seconds += time.perf_counter() - started
    return job


def _find_entry(root: Path, wanted: EntrySpec, images: ImageDataset) -> Entry | None:
    """Return a cache entry; None if it must be extracted."""
    entry = store.find(root, wanted)
    if entry is None and Work(root, wanted).finish_whole():  # all chunks are cached
        entry = store.find(root, wanted)
    if entry is not None and images.can_read_any(position for position, _ in entry.features.skipped):
        logger.info("%s: an image that could not be read can be read now; extracting again", wanted)
        folder, entry = entry.path, None
        store.remove(root, folder)
    return entry
