"""Encoders in groups that fit into memory, and one pass over the images for each group, subset and preprocessing."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Iterator, Sequence

from probe import paths
from probe.datasets.opening import OpenedDataset
from probe.datasets.splits.folds import UsedImages
from probe.errors import CacheError, IncompleteError, listed
from probe.features import store
from probe.features.chunks import Work
from probe.features.description import describe_encoder
from probe.features.jobs import Job
from probe.features.passes import Pass, PassSettings
from probe.features.sidecars import Provenance
from probe.models.memory import device_memory
from probe.models.preprocess import AnyPreprocess
from probe.progress import Progress
from probe.settings import Settings

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at writing features that are damaged when they are read again


def extract_missing(jobs: Sequence[Job], dataset: OpenedDataset, settings: Settings, progress: Progress) -> None:
    """Load encoders in groups that fit into memory, and extract their features."""
    progress.expect(sum(len(dataset.used[subset].images) for job in jobs for subset in job.missing))
    for group in _load(jobs):
        encode_group(group, dataset, settings, progress)


def _load(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Load encoders in groups that fit into memory; jobs whose encoders cannot be loaded get the errors."""
    group: list[Job] = []
    largest = 0  # bytes of an encoder of the group
    for job in jobs:
        before = device_memory(job.spec.device).free
        error = _try_to_load(job)
        if error is not None and group:  # the memory may not hold one more encoder
            yield group
            group, largest = [], 0
            error = _try_to_load(job)
        if error is not None:
            job.failures |= dict.fromkeys(job.missing, error)
            continue
        group.append(job)
        after = device_memory(job.spec.device).free
        largest = max(largest, before - after)
        if after < 2 * largest:  # room for one more encoder of this size and for a batch
            yield group
            group, largest = [], 0
    if group:
        yield group


def _try_to_load(job: Job) -> Exception | None:
    started = time.perf_counter()
    try:
        job.encoder.load()
    except Exception as err:
        return without_frames(err)
    job.load_seconds += time.perf_counter() - started
    return None


def encode_group(jobs: Sequence[Job], dataset: OpenedDataset, settings: Settings, progress: Progress) -> None:
    """Extract the missing features of encoders that are in memory: one pass for each subset and preprocessing.

    The exceptions that prevent features of a subset are in `failures` of the jobs. They do not stop the next subset,
    because some runs do not need both.
    """
    by_preprocess: dict[tuple[AnyPreprocess, int], list[Job]] = {}
    for job in jobs:
        by_preprocess.setdefault((job.encoder.load().preprocess, job.spec.batch_size), []).append(job)
    for together in by_preprocess.values():
        for subset, used in dataset.used.items():
            missing = [job for job in together if subset in job.missing]
            if not missing:
                continue
            try:
                _extract_subset(missing, subset, used, settings, progress)
            except Exception as err:
                error = without_frames(err)
                for job in missing:
                    if subset in job.missing:
                        job.failures[subset] = error
    for job in jobs:
        job.encoder.loaded = None  # the next group needs its memory
    gc.collect()


def _extract_subset(jobs: Sequence[Job], subset: str, used: UsedImages, settings: Settings, progress: Progress) -> None:
    """Extract the features of a subset under several encoders."""
    root, images = paths.cache_dir(settings.cache_dir), used.images
    progress.name(f"{images.name} / {listed(dict.fromkeys(job.spec.model.name for job in jobs), most=2)}")
    pass_settings = PassSettings(jobs[0].spec.batch_size, settings.workers, settings.skip_corrupt, settings.shard)
    left = list(jobs)
    started = time.perf_counter()
    for _ in range(ATTEMPTS):  # again if a chunk turns out to be damaged
        encoders, works = [job.encoder.load() for job in left], [Work(root, job.wanted[subset]) for job in left]
        one = Pass(images, encoders, works, pass_settings, progress)
        one.run()
        for i, (job, encoder, work) in enumerate(zip(left, encoders, works, strict=True)):
            provenance = Provenance(describe_encoder(encoder), one.meter.describe(i, models=len(jobs)))
            if one.meter.encoded[i]:
                work.describe(provenance)
            if i in one.failed:
                job.failures[subset] = without_frames(one.failed[i])
            elif settings.shard is not None and not work.is_complete():
                job.failures[subset] = IncompleteError(work.state())
            elif work.finish(provenance):
                entry = store.find(root, job.wanted[subset])
                if entry is not None:
                    job.entries[subset] = entry
                    n, width = entry.features.x.shape
                    name = f"{images.name} / {job.spec.model.name} / {job.spec.mode}"
                    logger.debug("%s: %d images, %d-d, %s", name, n, width, one.meter.rate(len(images)))
        left = [job for job in left if subset in job.missing]
        if not left:
            break
    for job in left:
        job.failures[subset] = CacheError(
            f"{root} changes the files that are written to it; check the disk, or name a different folder"
        )
    for job in jobs:
        job.extract_seconds[subset] = time.perf_counter() - started


def without_frames(err: Exception) -> Exception:
    """Return the error without the local variables of its traceback, which would keep encoders in memory."""
    traceback.clear_frames(err.__traceback__)
    return err
