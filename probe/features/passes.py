"""One pass over the images of a subset feeds every encoder of one preprocessing: claim, read, encode, write, join.

Processes that extract the same features share the work: each claims chunks that no other process has, and waits for the
rest.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from probe import paths
from probe.datasets.images import OR_SKIP
from probe.datasets.opening import OpenedDataset
from probe.datasets.splits.folds import UsedImages
from probe.errors import CacheError, DatasetError, FeaturesError, IncompleteError, listed
from probe.features import store
from probe.features.arrays import Features, chunk_range, chunk_size, join
from probe.features.chunks import Work
from probe.features.description import describe_encoder
from probe.features.encode import EncodingChunk, Meter, encode_chunk
from probe.features.reading import LabelledImages, Reader, Request, name_of, read_chunks
from probe.models.encoder import ImageEncoder
from probe.progress import Progress, show_progress
from probe.settings import Settings

if TYPE_CHECKING:
    from probe.features.extraction import FeaturesKey, Job

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
ATTEMPTS = 3  # at writing features that are damaged when they are read again
WAIT_SECONDS = 0.2  # between looks at the chunks that other processes extract


class ChunkStore(Protocol):
    """Place for the chunks of a subset under one encoder: the cache, see `chunks.Work`, or memory."""

    def start(self) -> None:
        """Prepare to write chunks."""

    def skipped(self) -> set[int]:
        """Return the positions of images without features in the chunks that are there."""

    def has(self, chunk: int) -> bool:
        """Return True if a chunk is there."""

    def claim(self, chunk: int) -> bool:
        """Claim a chunk that is missing and that no other process extracts; return False if it cannot be claimed."""

    def write(self, chunk: int, features: Features) -> None:
        """Write a chunk that was claimed."""

    def close(self) -> None:
        """Give up the chunks that were claimed and not written."""


class _Memory(dict[int, Features]):
    """Chunks in memory."""

    def start(self) -> None:
        pass

    def skipped(self) -> set[int]:
        return set()

    def has(self, chunk: int) -> bool:
        return chunk in self

    def claim(self, chunk: int) -> bool:
        return not self.has(chunk)

    def write(self, chunk: int, features: Features) -> None:
        self[chunk] = features

    def close(self) -> None:
        pass


def extract_features(
    encoder: ImageEncoder,
    dataset: LabelledImages,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    skip_corrupt: int = 0,
) -> Features:
    """Encode every image of a dataset, once, at both feature points; nothing is cached.

    Images are encoded in the order of the dataset: the features do not depend on who reads them. The last batch is
    filled up with black images, because the batch size changes the last bits of features. A batch is never larger than
    the dataset.

    Args:
        encoder: the model.
        dataset: images and labels; it is pickled for worker processes that are not forked.
        batch_size: images encoded at a time.
        workers: processes that read images while the model runs, at most one for each processor; with 0, this process
            reads between batches. None is `reading.default_workers`.
        skip_corrupt: skip up to this many images that cannot be read.

    Raises:
        FeaturesError: a feature is not finite; the message names the image.
        DatasetError: an image cannot be read; the message names it.
        DeviceError: the memory of the device does not hold a batch.
    """
    name, meter, chunks = name_of(dataset), Meter(), _Memory()
    with show_progress() as progress:
        progress.name(name)
        progress.expect(len(dataset))
        failed = fill(
            dataset,
            [encoder],
            [chunks],
            batch_size=batch_size,
            meter=meter,
            progress=progress,
            workers=workers,
            skip_corrupt=skip_corrupt,
        )
    if failed:
        raise failed[0]
    features = join([chunks[chunk] for chunk in sorted(chunks)])
    if not len(features):
        raise FeaturesError(f"{name}: no image could be read; get its files again")
    logger.debug("%s: %d images, %d-d, %s", name, len(features), features.x.shape[1], meter.rate(len(dataset)))
    return features


def encode_group(
    jobs: Sequence[Job], dataset: OpenedDataset, settings: Settings, progress: Progress
) -> dict[FeaturesKey, Exception]:
    """Extract the missing features of encoders that are in memory: one pass for each subset and preprocessing.

    Returns:
        The exception that prevents the features of some runs, by `features_key`.
    """
    failures: dict[FeaturesKey, Exception] = {}
    by_preprocess: dict[Any, list[Job]] = {}
    for job in jobs:
        by_preprocess.setdefault((job.encoder.load().preprocess, job.spec.batch_size), []).append(job)
    for together in by_preprocess.values():
        for subset, used in dataset.used.items():
            # A shard is incomplete in every subset.
            able = [job for job in together if isinstance(failures.get(job.key), IncompleteError | None)]
            missing = [job for job in able if subset in job.missing]
            if not missing:
                continue
            try:
                failed = _extract_subset(missing, subset, used, settings, progress)
            except Exception as err:
                failed = dict.fromkeys((job.key for job in missing), without_frames(err))
            for key, error in failed.items():
                before = failures.get(key)
                both = isinstance(before, IncompleteError) and isinstance(error, IncompleteError)
                failures[key] = IncompleteError(f"{before}; {error}") if both else error
    for job in jobs:
        job.encoder.loaded = None  # the next group needs its memory
    gc.collect()
    return failures


def _extract_subset(
    jobs: Sequence[Job], subset: str, used: UsedImages, settings: Settings, progress: Progress
) -> dict[FeaturesKey, Exception]:
    """Extract the features of a subset under several encoders; return the exceptions that prevent some of them."""
    root, images = paths.cache_dir(settings.cache_dir), used.images
    # Images that other subsets lack count as well.
    skipped = max(sum(len(entry.features.skipped) for entry in job.entries.values()) for job in jobs)
    progress.name(f"{images.name} / {listed(dict.fromkeys(job.spec.model.name for job in jobs), most=2)}")
    left = list(jobs)
    failed: dict[FeaturesKey, Exception] = {}
    started = time.perf_counter()
    for _ in range(ATTEMPTS):  # again if a chunk turns out to be damaged
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
            encoder, extraction = describe_encoder(job.encoder.load()), {**meter.describe(i), "models": len(jobs)}
            if meter.encoded[i]:
                work.describe(encoder=encoder, extraction=extraction)
            if i in broken:
                failed[job.key] = without_frames(broken[i])
            elif settings.shard is not None and not work.is_complete():
                failed[job.key] = IncompleteError(work.state())
            elif work.finish(encoder=encoder, extraction=extraction):
                entry = store.find(root, job.wanted[subset])
                if entry is not None:
                    job.entries[subset] = entry
                    n, width = entry.features.x.shape
                    name = f"{images.name} / {job.spec.model.name} / {job.spec.mode}"
                    logger.debug("%s: %d images, %d-d, %s", name, n, width, meter.rate(len(images)))
        left = [job for job in left if subset in job.missing and job.key not in failed]
        if not left:
            break
    for job in left:
        error = CacheError(
            f"{root} changes the files that are written to it; check the disk, or name a different folder"
        )
        failed[job.key] = error
    for job in jobs:
        job.seconds["extract"] += time.perf_counter() - started
    return failed


def without_frames(err: Exception) -> Exception:
    """Return the error without the local variables of its traceback, which would keep encoders in memory."""
    traceback.clear_frames(err.__traceback__)
    return err


def fill(
    dataset: LabelledImages,
    encoders: Sequence[ImageEncoder],
    stores: Sequence[ChunkStore],
    *,
    batch_size: int,
    meter: Meter,
    progress: Progress,
    workers: int | None = None,
    skip_corrupt: int = 0,
    shard: tuple[int, int] | None = None,
) -> dict[int, Exception]:
    """Extract the missing chunks of all images, or of a shard of them: claim, read, encode and write each.

    Args:
        dataset: images and labels.
        encoders: models with one preprocessing and on one device.
        stores: for each encoder, the place of its features.
        batch_size: images encoded at a time.
        meter: adds up the time of this pass.
        progress: counts images, including images that other processes encode.
        workers: see `extract_features`.
        skip_corrupt: number of images that may have no features, including images that earlier commands skipped.
        shard: number and count of shards, from 1 on; None for all images.

    Returns:
        The exceptions of encoders that failed, by position. The other encoders go on.

    Raises:
        DatasetError: an image cannot be read; the message names it.
        CacheError: the cache cannot be written to.
    """
    size, chunks = chunk_size(batch_size), chunk_range(len(dataset), batch_size, shard)
    batch_size = min(batch_size, max(len(dataset), 1))
    reader, device = Reader(dataset, encoders[0].preprocess), encoders[0].execution.device
    ahead = 1 if device.type == "cuda" else 0  # a GPU encodes a chunk while the chunk before is written
    left = {(i, chunk) for i in range(len(stores)) for chunk in chunks}  # encoder, chunk
    pending: deque[tuple[int, int, EncodingChunk]] = deque()  # encoder, chunk, on the device
    failed: dict[int, Exception] = {}
    has_waited = False

    def images_of(chunk: int) -> range:
        return range(chunk * size, min((chunk + 1) * size, len(dataset)))

    def claim(missing: Sequence[int]) -> Iterator[Request]:
        for chunk in missing:
            able = [i for i in range(len(stores)) if i not in failed and (i, chunk) in left]
            if claimed := [i for i in able if stores[i].claim(chunk)]:
                yield Request(chunk, images_of(chunk), claimed)

    def count(i: int, chunk: int) -> None:
        left.remove((i, chunk))
        progress.advance(len(images_of(chunk)))

    def fail(i: int, error: Exception) -> None:
        failed[i] = error
        stores[i].close()  # other processes may try

    def write_next() -> float:
        (i, chunk, encoding), since = pending.popleft(), time.perf_counter()
        try:
            features = encoding.collect(dataset)
        except FeaturesError as error:
            fail(i, error)
        else:
            meter.count(i, encoding)
            since = meter.add("encode", since)
            stores[i].write(chunk, features)
            count(i, chunk)
        return meter.add("keep", since)

    try:
        for store in stores:
            store.start()
        # Read only if needed, because it reads all cached chunks, and every shard would do so.
        unreadable = set[int]().union(*(store.skipped() for store in stores)) if skip_corrupt else set[int]()
        while True:
            for i, chunk in sorted(left):
                if stores[i].has(chunk):  # from an earlier command, or from another process
                    count(i, chunk)
            missing = sorted({chunk for i, chunk in left if i not in failed})
            if not missing:
                return failed
            requests = claim(missing)
            first = next(requests, None)
            if first is None:
                if not has_waited:
                    logger.info("%s: waiting for another process that extracts the same features", name_of(dataset))
                    has_waited = True
                time.sleep(WAIT_SECONDS)
                continue
            since = time.perf_counter()
            with closing(read_chunks(reader, chain([first], requests), device, workers, size)) as reads:
                for read in reads:
                    since = meter.add("read", since)
                    for position, error in read.errors:
                        if not isinstance(error, DatasetError) or len(unreadable | {position}) > skip_corrupt:
                            raise error
                        if position not in unreadable:
                            logger.warning("skipped %s", str(error).removesuffix(OR_SKIP))
                        unreadable.add(position)
                    for i in read.request.encoders:
                        if i in failed:
                            continue
                        try:
                            pending.append((i, read.request.chunk, encode_chunk(encoders[i], read, batch_size)))
                        except Exception as err:  # whatever a model raises; the other encoders go on
                            fail(i, err)
                        since = meter.add("encode", since)
                        while len(pending) > ahead:
                            since = write_next()
                while pending:
                    since = write_next()
    finally:
        for store in stores:
            store.close()
