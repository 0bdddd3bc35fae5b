"""One pass over the images of a subset feeds every encoder of one preprocessing: claim, read, encode, write, join.

Processes that extract the same features share the work: each claims chunks that no other process has, and waits for the
rest.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from probe.datasets.images import OR_SKIP
from probe.energy import EnergyMeter
from probe.errors import DatasetError, FeaturesError
from probe.features.arrays import Features, chunk_range, chunk_size, join
from probe.features.encode import EncodingChunk, Meter, encode_chunk
from probe.features.reading import LabelledImages, Read, Reader, Request, name_of, read_chunks
from probe.heap import keep_freed_memory
from probe.models.encoder import ImageEncoder
from probe.models.loading import load_encoder
from probe.models.own import Encoder
from probe.progress import Progress, show_progress

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
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


class _ChunksInMemory(dict[int, Features]):
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
    encoder: ImageEncoder | Encoder,
    dataset: LabelledImages,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    skip_corrupt: int = 0,
) -> Features:
    """Encode every image of a dataset, once, at both feature points; nothing is cached.

    Images are encoded in the order of the dataset, so the features do not depend on the number of workers. The last
    batch is filled up with black images, because the batch size changes the last bits of features. A batch is never
    larger than the dataset.

    Args:
        encoder: the model; an `Encoder` of your own is loaded on the default device.
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
    if isinstance(encoder, Encoder):
        encoder = load_encoder(encoder)
    name, chunks = name_of(dataset), _ChunksInMemory()
    settings = PassSettings(batch_size, workers, skip_corrupt)
    with show_progress() as progress:
        progress.name(name)
        progress.expect(len(dataset))
        one = Pass(dataset, [encoder], [chunks], settings, progress)
        one.run()
    if one.failed:
        raise one.failed[0]
    features = join([chunks[chunk] for chunk in sorted(chunks)])
    if not len(features):
        reason = f" ({features.skipped[0][1].replace(OR_SKIP, '')})" if features.skipped else "; get its files again"
        raise FeaturesError(f"{name}: no image could be read{reason}")
    logger.debug("%s: %d images, %d-d, %s", name, len(features), features.x.shape[1], one.meter.rate(len(dataset)))
    return features


@dataclass(frozen=True)
class PassSettings:
    """Settings of a pass over the images of a subset.

    Args:
        batch_size: images encoded at a time.
        workers: see `extract_features`.
        skip_corrupt: number of images that may have no features, including images that earlier commands skipped.
        shard: number of the shard, counted from 1, and number of shards; None for all images.
    """

    batch_size: int
    workers: int | None = None
    skip_corrupt: int = 0
    shard: tuple[int, int] | None = None


class Pass:
    """Extraction of the missing chunks of all images, or of a shard of them: claim, read, encode and write each.

    Args:
        dataset: images and labels.
        encoders: models with one preprocessing and on one device.
        stores: for each encoder, the place of its features.
        settings: see `PassSettings`.
        progress: counts images, including images that other processes encode.

    Attributes:
        meter: time of the pass, by stage.
        failed: exceptions of encoders that failed, by position. The other encoders go on.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        encoders: Sequence[ImageEncoder],
        stores: Sequence[ChunkStore],
        settings: PassSettings,
        progress: Progress,
    ) -> None:
        self.dataset, self.encoders, self.stores = dataset, encoders, stores
        self.settings, self.progress, self.meter = settings, progress, Meter()
        self.batch_size = min(settings.batch_size, max(len(dataset), 1))
        self.chunk_size = chunk_size(settings.batch_size)
        self.device = encoders[0].execution.device
        chunks = chunk_range(len(dataset), settings.batch_size, settings.shard)
        self.left = {(i, chunk) for i in range(len(stores)) for chunk in chunks}  # encoder, chunk
        self.pending: deque[tuple[int, int, EncodingChunk]] = deque()  # encoder, chunk, on the device
        self.unreadable: set[int] = set()  # positions of images
        self.failed: dict[int, Exception] = {}

    def run(self) -> None:
        """Extract until no chunk is missing, except for encoders that failed.

        Raises:
            DatasetError: an image cannot be read; the message names it.
            CacheError: the cache cannot be written to.
        """
        with EnergyMeter(str(self.device)) as energy, keep_freed_memory():
            self._run()
        self.meter.joules = energy.joules

    def _run(self) -> None:
        has_waited = False
        try:
            for chunks in self.stores:
                chunks.start()
            if self.settings.skip_corrupt:  # this reads all cached chunks, and every shard would do so
                self.unreadable.update(*(chunks.skipped() for chunks in self.stores))
            while missing := self._find_missing():
                requests = self._claim(missing)
                first = next(requests, None)
                if first is not None:
                    self._encode(chain([first], requests))
                    continue
                if not has_waited:
                    name = name_of(self.dataset)
                    logger.info("%s: waiting for another process that extracts the same features", name)
                    has_waited = True
                time.sleep(WAIT_SECONDS)
        finally:
            for chunks in self.stores:
                chunks.close()

    def _find_missing(self) -> list[int]:
        """Report the chunks that exist as progress, and return the numbers of the missing chunks."""
        for i, chunk in sorted(self.left):
            if self.stores[i].has(chunk):  # from an earlier command, or from another process
                self._count(i, chunk)
        return sorted({chunk for i, chunk in self.left if i not in self.failed})

    def _claim(self, missing: Sequence[int]) -> Iterator[Request]:
        """Claim one chunk after the other, as they are read, for all encoders that lack it."""
        for chunk in missing:
            able = [i for i in range(len(self.stores)) if i not in self.failed and (i, chunk) in self.left]
            if claimed := [i for i in able if self.stores[i].claim(chunk)]:
                yield Request(chunk, self._images_of(chunk), claimed)

    def _encode(self, requests: Iterator[Request]) -> None:
        """Read, encode and write chunks. A GPU encodes a chunk while the chunk before it is written."""
        since, most_pending = time.perf_counter(), 1 if self.device.type == "cuda" else 0
        reader = Reader(self.dataset, self.encoders[0].preprocess)
        with closing(read_chunks(reader, requests, self.device, self.settings.workers, self.chunk_size)) as reads:
            for read in reads:
                since = self.meter.add("read", since)
                self._note_unreadable(read)
                for i in read.request.encoders:
                    if i in self.failed:
                        continue
                    try:
                        encoding = encode_chunk(self.encoders[i], read, self.batch_size)
                    except Exception as err:  # whatever a model raises; the other encoders go on
                        self._fail(i, err)
                    else:
                        self.pending.append((i, read.request.chunk, encoding))
                    since = self.meter.add("encode", since)
                    while len(self.pending) > most_pending:
                        since = self._write_next()
            while self.pending:
                since = self._write_next()

    def _note_unreadable(self, read: Read) -> None:
        """Record the images that could not be read. Raise the error of the first image above the limit."""
        for position, error in read.errors:
            if not isinstance(error, DatasetError) or len(self.unreadable | {position}) > self.settings.skip_corrupt:
                raise error
            if position not in self.unreadable:
                logger.warning("skipped %s", str(error).removesuffix(OR_SKIP))
            self.unreadable.add(position)

    def _write_next(self) -> float:
        """Wait for the first chunk on the device, and write it; return the current time."""
        (i, chunk, encoding), since = self.pending.popleft(), time.perf_counter()
        try:
            features = encoding.collect(self.dataset)
        except FeaturesError as error:
            self._fail(i, error)
        else:
            self.meter.count(i, encoding)
            since = self.meter.add("encode", since)
            self.stores[i].write(chunk, features)
            self._count(i, chunk)
        return self.meter.add("keep", since)

    def _images_of(self, chunk: int) -> range:
        return range(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, len(self.dataset)))

    def _count(self, i: int, chunk: int) -> None:
        self.left.remove((i, chunk))
        self.progress.advance(len(self._images_of(chunk)))

    def _fail(self, i: int, error: Exception) -> None:
        self.failed[i] = error
        self.stores[i].close()  # other processes may try
