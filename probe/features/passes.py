"""One pass over the images of a subset feeds every encoder of one preprocessing, into the feature cache.

Processes that extract the same features share the work: each takes chunks that no other has, and waits for the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain

from probe.datasets.images import ImageDataset
from probe.features.chunks import Work, shard_of
from probe.features.encode import Meter, chunk_size, encode_chunks
from probe.models.encoder import ImageEncoder
from probe.progress import Progress

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.2  # between looks at the chunks that other processes make


def fill(
    images: ImageDataset,
    encoders: Sequence[ImageEncoder],
    works: Sequence[Work],
    *,
    batch_size: int,
    meter: Meter,
    progress: Progress,
    workers: int | None = None,
    skip_corrupt: int = 0,
    shard: tuple[int, int] | None = None,
) -> dict[int, Exception]:
    """Extract the chunks that are missing, of all images or of a shard of them.

    Args:
        images: of the subset.
        encoders: with one preprocessing and on one device.
        works: where the features of each go.
        batch_size: images encoded at a time.
        meter: is added to.
        progress: is told of the images, also of those that other processes encode.
        workers: as in `features.extract`.
        skip_corrupt: how many images may have no features, those of earlier runs included.
        shard: number and count of shards, from 1 on; None for all.

    Returns:
        What broke some encoders, by position; where features are not finite, an error that names the image.

    Raises:
        DatasetError: an image cannot be read.
        CacheError: the store cannot be written to.
    """
    failed: dict[int, Exception] = {}
    chunks = shard_of(works[0].spec, shard)
    for work in works:
        work.start()
    # Only to count them; each look reads what there is, which many shards would do again and again.
    skipped = set().union(*(work.skipped() for work in works)) if skip_corrupt else set[int]()
    left = _Left(works, chunks, progress)
    try:
        while wanted := left.look(failed):
            claimed = _claimed(works, failed, wanted)
            first = next(claimed, None)
            if first is None:
                left.wait()
                continue
            made_chunks = encode_chunks(
                encoders,
                images,
                chain([first], claimed),
                batch_size=batch_size,
                workers=workers,
                skip_corrupt=skip_corrupt,
                skipped=skipped,
                meter=meter,
            )
            with closing(made_chunks):
                for made in made_chunks:
                    if made.error is not None:
                        failed[made.encoder] = made.error
                        works[made.encoder].close()
                        continue
                    assert made.features is not None
                    works[made.encoder].write(made.chunk, made.features)
                    left.count(made.encoder, made.chunk)
    finally:
        for work in works:
            work.close()
    return failed


class _Left:
    """Chunks that are not cached yet; tells the progress bar of those that are."""

    def __init__(self, works: Sequence[Work], chunks: Sequence[int], progress: Progress) -> None:
        self.works, self.chunks, self.progress = works, chunks, progress
        self._counted: set[tuple[int, int]] = set()
        self._has_waited = False

    def look(self, failed: dict[int, Exception]) -> list[int]:
        """Return the chunks that some encoder lacks; chunks that other processes extracted are counted."""
        for i, work in enumerate(self.works):
            for chunk in self.chunks:
                if (i, chunk) not in self._counted and work.has(chunk):
                    self.count(i, chunk)
        return [chunk for chunk in self.chunks if _lacking(self.works, failed, chunk)]

    def count(self, encoder: int, chunk: int) -> None:
        """Tell the bar of a chunk."""
        spec = self.works[encoder].spec
        size = chunk_size(spec.batch_size)
        self._counted.add((encoder, chunk))
        self.progress.advance(min(size, spec.num_images - chunk * size))

    def wait(self) -> None:
        """Wait for other processes to extract the chunks that they have taken."""
        if not self._has_waited:
            logger.info("%s: waiting for another process that extracts the same features", self.works[0].spec)
            self._has_waited = True
        time.sleep(WAIT_SECONDS)


def _lacking(works: Sequence[Work], failed: dict[int, Exception], chunk: int) -> list[int]:
    return [i for i, work in enumerate(works) if i not in failed and not work.has(chunk)]


def _claimed(
    works: Sequence[Work], failed: dict[int, Exception], chunks: Sequence[int]
) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield chunks that this process has taken, each with the encoders that it is extracted for."""
    for chunk in chunks:
        who = [i for i in _lacking(works, failed, chunk) if works[i].claim(chunk)]
        if who:
            yield chunk, who
