"""One pass over the images of a part of a dataset feeds every model of one preprocessing, into the feature store.

Processes that make the same features share the work: each takes pieces that nobody has taken, and waits for the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from probe.cache import Work, shard_of
from probe.datasets.images import ImageDataset
from probe.errors import ProbeError
from probe.features import Meter, encode_pieces
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
) -> dict[int, ProbeError]:
    """Make the pieces that are missing, of all images or of a shard of them.

    Args:
        images: the part.
        encoders: with one preprocessing and on one device.
        works: where the features of each go.
        batch_size: images encoded at a time.
        meter: is added to.
        progress: likewise.
        workers: as in `features.extract`.
        skip_corrupt: how many images may have no features, those of earlier runs included.
        shard: number and count of shards, from 1 on; None for all.

    Returns:
        For encoders that gave features that are not finite, by position: the error that names the image.

    Raises:
        DatasetError: an image cannot be read.
        CacheError: the store cannot be written to.
    """
    failed: dict[int, ProbeError] = {}
    pieces = shard_of(works[0].cell, shard)
    for work in works:
        work.start()
    skip_corrupt -= max(work.num_skipped() for work in works) if skip_corrupt else 0
    try:
        while wanted := [piece for piece in pieces if _lacking(works, failed, piece)]:
            made_any = False
            for made in encode_pieces(
                encoders,
                images,
                _claimed(works, failed, wanted),
                batch_size=batch_size,
                workers=workers,
                skip_corrupt=skip_corrupt,
                meter=meter,
            ):
                made_any = True
                if made.error is not None or made.features is None:
                    failed.setdefault(made.encoder, made.error or ProbeError("no features"))
                    works[made.encoder].drop(made.piece)
                    continue
                works[made.encoder].write(made.piece, made.features)
                progress.advance(len(made.features) + len(made.features.skipped))
            if not made_any and any(_lacking(works, failed, piece) for piece in wanted):
                logger.debug("%s: waiting for another process that extracts it", works[0].cell)
                time.sleep(WAIT_SECONDS)
    finally:
        for work in works:
            work.close()
    return failed


def _lacking(works: Sequence[Work], failed: dict[int, ProbeError], piece: int) -> list[int]:
    return [i for i, work in enumerate(works) if i not in failed and not work.has(piece)]


def _claimed(
    works: Sequence[Work], failed: dict[int, ProbeError], pieces: Sequence[int]
) -> Iterator[tuple[int, Sequence[int]]]:
    """Pieces that this process has taken, each with the encoders that it has taken it for."""
    for piece in pieces:
        who = [i for i in _lacking(works, failed, piece) if works[i].claim(piece)]
        if who:
            yield piece, who
