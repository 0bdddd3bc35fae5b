"""One pass over the images of a part of a dataset feeds every model of one preprocessing, into the feature store.

Processes that make the same features share the work: each takes pieces that nobody has taken, and waits for the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain

from probe.datasets.images import ImageDataset
from probe.features.chunks import Work, shard_of
from probe.features.encode import Meter, encode_pieces, piece_size
from probe.models.encoder import ImageEncoder
from probe.progress import Progress

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.2  # between looks at the pieces that other processes make


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
    """Make the pieces that are missing, of all images or of a shard of them.

    Args:
        images: the part.
        encoders: with one preprocessing and on one device.
        works: where the features of each go.
        batch_size: images encoded at a time.
        meter: is added to.
        progress: likewise; it is told of pieces that others have made as well.
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
    pieces = shard_of(works[0].cell, shard)
    for work in works:
        work.start()
    # Only to count them; each look reads what there is, which many shards would do again and again.
    skipped = set().union(*(work.skipped() for work in works)) if skip_corrupt else set[int]()
    left = _Left(works, pieces, progress)
    try:
        while wanted := left.look(failed):
            claimed = _claimed(works, failed, wanted)
            first = next(claimed, None)
            if first is None:
                left.wait()
                continue
            made_pieces = encode_pieces(
                encoders,
                images,
                chain([first], claimed),
                batch_size=batch_size,
                workers=workers,
                skip_corrupt=skip_corrupt,
                skipped=skipped,
                meter=meter,
            )
            with closing(made_pieces):
                for made in made_pieces:
                    if made.error is not None:
                        failed[made.encoder] = made.error
                        works[made.encoder].close()
                        continue
                    assert made.features is not None
                    works[made.encoder].write(made.piece, made.features)
                    left.count(made.encoder, made.piece)
    finally:
        for work in works:
            work.close()
    return failed


class _Left:
    """The pieces that are not there yet, and what a progress bar has been told of those that are."""

    def __init__(self, works: Sequence[Work], pieces: Sequence[int], progress: Progress) -> None:
        self.works, self.pieces, self.progress = works, pieces, progress
        self._counted: set[tuple[int, int]] = set()
        self._has_waited = False

    def look(self, failed: dict[int, Exception]) -> list[int]:
        """The pieces that some encoder lacks; those that others have made are counted."""
        for i, work in enumerate(self.works):
            for piece in self.pieces:
                if (i, piece) not in self._counted and work.has(piece):
                    self.count(i, piece)
        return [piece for piece in self.pieces if _lacking(self.works, failed, piece)]

    def count(self, encoder: int, piece: int) -> None:
        """Tell the bar of a piece."""
        cell = self.works[encoder].cell
        size = piece_size(cell.batch_size)
        self._counted.add((encoder, piece))
        self.progress.advance(min(size, cell.num_images - piece * size))

    def wait(self) -> None:
        """Let other processes go on with what they have taken."""
        if not self._has_waited:
            logger.info("%s: waiting for another process that makes the same features", self.works[0].cell)
            self._has_waited = True
        time.sleep(WAIT_SECONDS)


def _lacking(works: Sequence[Work], failed: dict[int, Exception], piece: int) -> list[int]:
    return [i for i, work in enumerate(works) if i not in failed and not work.has(piece)]


def _claimed(
    works: Sequence[Work], failed: dict[int, Exception], pieces: Sequence[int]
) -> Iterator[tuple[int, Sequence[int]]]:
    """Pieces that this process has taken, each with the encoders that it has taken it for."""
    for piece in pieces:
        who = [i for i in _lacking(works, failed, piece) if works[i].claim(piece)]
        if who:
            yield piece, who
