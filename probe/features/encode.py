"""Images -> features: float32 NumPy arrays at both feature points, in the order of the dataset.

Images are read, encoded and handed on in *chunks* of a fixed number of images, each of whole batches. What is in a
chunk depends on no other chunk, so chunks can be extracted in any order, by any process, and joined later:
`extract_features` does so in memory, `passes.py` in the feature cache.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probe.errors import DatasetError, DeviceError, FeaturesError
from probe.features.reading import LabelledImages, Read, Reader, name_of, read_chunks
from probe.models.encoder import ImageEncoder, ImageFeatures

logger = logging.getLogger(__name__)

PROJECTED, PRE_PROJECTION = "projected", "pre_projection"
BATCH_SIZE = 64
SAMPLED = 16  # values of a split that a record keeps
CHUNK = 256  # images, or the next multiple of the batch: what a killed run loses, and enough to be worth a file


@dataclass(frozen=True)
class Features:
    """The features of one split.

    Args:
        x: float32 (n, embed_dim), C-contiguous: what `encode_image` returns.
        y: int64 (n,), labels; or (n, k) where an image can show several of k classes.
        pre_projection: float32 (n, pre_projection_dim), C-contiguous; None where nobody took them.
        skipped: positions in the dataset of images that could not be read and have no row here, ascending, and why.
    """

    x: np.ndarray
    y: np.ndarray
    pre_projection: np.ndarray | None = None
    skipped: tuple[tuple[int, str], ...] = ()
    _digest: list[str] = field(default_factory=list, init=False, repr=False, compare=False)  # empty until computed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y)

    def at(self, point: str) -> np.ndarray:
        """The array at a feature point, `projected` or `pre_projection`.

        Raises:
            FeaturesError: these features were not taken there.
        """
        found = {PROJECTED: self.x, PRE_PROJECTION: self.pre_projection}.get(point)
        if found is None:
            raise FeaturesError(
                f"these features have no feature point {point!r}; extract them again, or use another protocol"
            )
        return found

    def take(self, rows: np.ndarray) -> Features:
        """The features of some rows, int64 (m,), in that order."""
        before = None if self.pre_projection is None else self.pre_projection[rows]
        return Features(x=self.x[rows], y=self.y[rows], pre_projection=before)

    def compute_sha256(self) -> str:
        """Return the hex SHA-256 over the bytes of both points and the labels; they are hashed once."""
        if not self._digest:
            sha = hashlib.sha256()
            for array in (self.x, self.pre_projection, self.y):
                if array is not None:
                    sha.update(np.ascontiguousarray(array).data)
            self._digest.append(sha.hexdigest())
        return self._digest[0]

    def sample(self) -> dict[str, list[float]]:
        """Return some values of each feature point, evenly spread over images and columns, to compare features by."""
        points = {PROJECTED: self.x, PRE_PROJECTION: self.pre_projection}
        return {point: _spread(array) for point, array in points.items() if array is not None}


def _spread(array: np.ndarray) -> list[float]:
    # Multiples of an odd share of the size, so that no column is taken twice where the width is a power of two.
    flat = array.ravel()
    rows = np.arange(SAMPLED) * max(flat.size // SAMPLED, 1) + np.arange(SAMPLED)
    return [float(value) for value in flat[rows % flat.size]]


@dataclass
class Meter:
    """Time that one pass over a dataset took, by stage.

    Args:
        seconds: of the whole; `read` waiting for images, `encode` until their features were there, `keep` doing
            something with them.
        encoded: images by encoder, by its position among those of the pass.
        busy: likewise the seconds in which the device computed; a CPU does so all through `encode`.
        device_memory: the most bytes that a GPU had to hold; 0 on the CPU.
    """

    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "encode": 0.0, "keep": 0.0})
    encoded: Counter[int] = field(default_factory=Counter)
    busy: dict[int, float] = field(default_factory=dict)
    device_memory: int = 0

    @property
    def images(self) -> int:
        """Number of encoded images, an image counted once for each encoder."""
        return self.encoded.total()

    def add(self, stage: str, since: float) -> float:
        """Count the time since a moment of `time.perf_counter` to a stage; the moment now."""
        now = time.perf_counter()
        self.seconds[stage] += now - since
        return now

    def describe(self, encoder: int = 0) -> dict[str, float]:
        """Images a second, seconds of each stage, the share of time in which the device idled, peak memory in MB.

        `encoder_images_per_second` is the rate of one encoder while the device computed for it, the rest of the pass.
        """
        if not self.images:  # all chunks were there, and have been put together
            return {"images": 0, **peak_memory()}
        total = max(sum(self.seconds.values()), 1e-9)
        numbers = {
            "images": self.images,
            "images_per_second": self.images / total,
            **{f"{stage}_seconds": seconds for stage, seconds in self.seconds.items()},
            "device_idle": max(0.0, 1 - sum(self.busy.values()) / total),
            **peak_memory(),
        }
        if self.encoded[encoder]:
            numbers["encoder_images_per_second"] = self.encoded[encoder] / max(self.busy[encoder], 1e-9)
        if self.device_memory:
            numbers["peak_device_memory_mb"] = self.device_memory / 1e6
        return {name: round(value, 3) for name, value in numbers.items()}


def peak_memory() -> dict[str, float]:
    """Return the largest resident memory of this process so far, without worker processes, as `peak_memory_mb`.

    The field is missing on Windows, which does not report it.
    """
    try:
        import resource
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 3)}


def chunk_size(batch_size: int) -> int:
    """Images of a chunk: the smallest multiple of the batch that is `CHUNK` or more."""
    return -(-CHUNK // batch_size) * batch_size


def num_chunks(n: int, batch_size: int) -> int:
    """Return the number of chunks of n images."""
    return -(-n // chunk_size(batch_size))


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
        dataset: images and labels; what worker processes read is pickled where they are not forked.
        batch_size: images encoded at a time.
        workers: processes that read images while the model runs, at most one a processor; with 0, this one reads
            between batches. None is `reading.default_workers`.
        skip_corrupt: pass over up to so many images that cannot be read.

    Raises:
        FeaturesError: a feature is not finite; the message names the image.
        DatasetError: an image cannot be read; the message names it.
        DeviceError: the memory of the device does not hold a batch.
    """
    name, meter = name_of(dataset), Meter()
    wanted = ((chunk, [0]) for chunk in range(num_chunks(len(dataset), check_batch_size(batch_size))))
    chunks: list[Features] = []
    made_chunks = encode_chunks(
        [encoder], dataset, wanted, batch_size=batch_size, workers=workers, skip_corrupt=skip_corrupt, meter=meter
    )
    with tqdm(total=len(dataset), desc=name, unit="img", disable=None) as bar, closing(made_chunks):
        for made in made_chunks:
            if made.error is not None:
                raise made.error
            assert made.features is not None
            chunks.append(made.features)
            bar.update(len(made.features) + len(made.features.skipped))
    found = join(chunks)
    if not len(found):
        raise FeaturesError(f"{name}: no image could be read; get its files again")
    log_rate(name, found, meter)
    return found


def log_rate(name: str, features: Features, meter: Meter) -> None:
    """Say how much there is, how much of it was made here, and how fast."""
    seconds, n = sum(meter.seconds.values()), len(features) + len(features.skipped)
    here = f"{seconds:.1f} s, {meter.images / max(seconds, 1e-9):.0f} img/s"
    if meter.images % n:
        here = f"{meter.images} of them made now, {here}"
    elif not meter.images:
        here = "made before"
    logger.info("%s: %d images, %d-d, %s", name, len(features), features.x.shape[1], here)


def check_batch_size(batch_size: int) -> int:
    """Return the batch size, if it is valid.

    Raises:
        FeaturesError: it is not.
    """
    if batch_size < 1:
        raise FeaturesError(f"the batch size is {batch_size}; give 1 or more")
    return batch_size


def join(chunks: Sequence[Features]) -> Features:
    """Join chunks in their order; no chunks make features of no image."""
    if not chunks:
        return Features(np.empty((0, 0), np.float32), np.empty(0, np.int64), np.empty((0, 0), np.float32))
    return Features(
        x=np.concatenate([chunk.x for chunk in chunks]),
        y=np.concatenate([chunk.y for chunk in chunks if len(chunk)] or [chunks[0].y]),
        pre_projection=np.concatenate([chunk.at(PRE_PROJECTION) for chunk in chunks]),
        skipped=tuple(skipped for chunk in chunks for skipped in chunk.skipped),
    )


@dataclass(frozen=True)
class Made:
    """Chunk under one of several encoders: its features, or the error that prevented them."""

    chunk: int
    encoder: int
    features: Features | None = None
    error: Exception | None = None


def encode_chunks(
    encoders: Sequence[ImageEncoder],
    dataset: LabelledImages,
    wanted: Iterable[tuple[int, Sequence[int]]],
    *,
    batch_size: int,
    workers: int | None = None,
    skip_corrupt: int = 0,
    skipped: Collection[int] = (),
    meter: Meter,
) -> Generator[Made]:
    """Read chunks of a dataset, each once, and encode them with every encoder that wants them.

    Args:
        encoders: with one preprocessing and on one device.
        dataset: images and labels.
        wanted: numbers of chunks, each with the positions in `encoders` of those that want it. It is gone through as
            chunks are read, which is before they are encoded.
        batch_size: images encoded at a time.
        workers: as in `extract`.
        skip_corrupt: likewise.
        skipped: positions of images that are known not to be readable, and count already.
        meter: is added to.

    Yields:
        One `Made` for each pair that was wanted, in their order. An encoder that breaks, or whose features are not
        finite, yields that error and is asked no more; the others go on.

    Raises:
        DatasetError: an image cannot be read; the message names it.
    """
    size, batch_size = chunk_size(batch_size), min(batch_size, max(len(dataset), 1))
    device = encoders[0].execution.device
    asked: deque[tuple[int, Sequence[int]]] = deque()

    def positions() -> Iterator[range]:
        for chunk, who in wanted:
            asked.append((chunk, who))
            yield range(chunk * size, min((chunk + 1) * size, len(dataset)))

    known, broken = set(skipped), set[int]()
    pending: deque[_Pending] = deque()  # a GPU computes one chunk while that before it is kept
    since = time.perf_counter()
    with closing(read_chunks(Reader(dataset, encoders[0].preprocess), positions(), device, workers, size)) as reads:
        for read in reads:
            chunk, who = asked.popleft()
            since = meter.add("read", since)
            for position, error in read.errors:
                if not isinstance(error, DatasetError) or len(known | {position}) > skip_corrupt:
                    raise error
                if position not in known:
                    logger.warning("passed over: %s", error)
                known.add(position)
            for encoder in who:
                if encoder in broken:
                    continue
                pending.append(_launch(encoders[encoder], Made(chunk, encoder), read, batch_size))
                since = meter.add("encode", since)
                while len(pending) > (device.type == "cuda"):
                    yield from _collect(pending.popleft(), encoders, dataset, broken, meter, since)
                    since = time.perf_counter()
        while pending:
            yield from _collect(pending.popleft(), encoders, dataset, broken, meter, since)
            since = time.perf_counter()


def _collect(
    pending: _Pending,
    encoders: Sequence[ImageEncoder],
    dataset: LabelledImages,
    broken: set[int],
    meter: Meter,
    since: float,
) -> Iterator[Made]:
    made = pending.collect(encoders[pending.made.encoder], dataset, meter)
    since = meter.add("encode", since)
    if made.error is not None:
        broken.add(made.encoder)
    yield made
    meter.add("keep", since)


class _Clock:
    """The time that a device computes between two moments of its stream, which it reaches later than the program."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self.started = self._now(0)
        self.seconds = 0.0

    def stop(self) -> None:
        """The work whose end is waited for has been handed over."""
        self.seconds = self._now(1) - self.started

    def wait(self) -> float:
        """Wait for that end; the seconds until there."""
        if self.events:
            self.events[1].synchronize()
            self.seconds = self.events[0].elapsed_time(self.events[1]) / 1000
        return self.seconds

    def _now(self, which: int) -> float:
        if self.events:  # of the device's own stream, as the current device can be another one
            self.events[which].record(torch.cuda.current_stream(self.device))
        return time.perf_counter()


def _launch(encoder: ImageEncoder, made: Made, read: Read, batch_size: int) -> _Pending:
    """Hand the batches of a chunk to the device; on a GPU their features are there when the clock has stopped."""
    clock = _Clock(encoder.execution.device)
    try:
        batches = read.pixels.split(batch_size) if len(read.pixels) else ()
        features = [encoder.encode(_fill(batch, batch_size), wait=False) for batch in batches]
    except torch.cuda.OutOfMemoryError as err:
        device_error = DeviceError(
            f"the memory of {encoder.execution.device} does not hold a batch of {batch_size} images of {encoder.name}; "
            "give a smaller --batch-size, or fewer models at a time"
        )
        device_error.__cause__ = err
        return _Pending(replace(made, error=device_error), read, [], clock)
    except Exception as err:  # whatever a graph raises, which is its own model's affair alone
        return _Pending(replace(made, error=err), read, [], clock)
    clock.stop()
    return _Pending(made, read, features, clock)


@dataclass(frozen=True)
class _Pending:
    """A chunk that the device may still be busy with."""

    made: Made
    read: Read
    batches: Sequence[ImageFeatures]
    clock: _Clock

    def collect(self, encoder: ImageEncoder, dataset: LabelledImages, meter: Meter) -> Made:
        """Wait for the features, and check them."""
        if self.made.error is not None:
            return self.made
        encoder_index = self.made.encoder
        meter.busy[encoder_index] = meter.busy.get(encoder_index, 0.0) + self.clock.wait()
        if self.clock.events:
            meter.device_memory = max(meter.device_memory, torch.cuda.max_memory_allocated(self.clock.device))
        labels = self.read.labels
        meter.encoded[encoder_index] += len(labels)
        arrays = [np.empty((0, width), np.float32) for width in (encoder.embed_dim, encoder.pre_projection_dim)]
        if labels:
            points = (PROJECTED, PRE_PROJECTION)
            arrays = [np.concatenate([getattr(batch, point).numpy() for batch in self.batches]) for point in points]
        x, before = (array[: len(labels)] for array in arrays)  # without the black images at the end
        try:
            _check_finite([x, before], dataset, self.read.positions, precision=encoder.execution.precision)
        except FeaturesError as err:
            return replace(self.made, error=err)
        skipped = tuple((position, str(error)) for position, error in self.read.errors)
        return replace(self.made, features=Features(x, np.array(labels, dtype=np.int64), before, skipped))


def _fill(pixels: Tensor, batch_size: int) -> Tensor:
    """A batch of always `batch_size` images, uint8 (b, 3, r, r): black ones after those that there are.

    They lie in memory as the others do, as another order would be another sum in the first convolution.
    """
    if len(pixels) == batch_size:
        return pixels
    n, channels, height, width = pixels.shape
    black = pixels.new_zeros((batch_size - n, height, width, channels)).permute(0, 3, 1, 2)
    return torch.cat([pixels, black])


def _check_finite(
    arrays: Sequence[np.ndarray], dataset: LabelledImages, positions: Sequence[int], *, precision: str
) -> None:
    finite = np.logical_and.reduce([np.isfinite(rows).all(axis=1) for rows in arrays])
    if finite.all():
        return
    i = positions[int(np.argmin(finite))]
    ids: Sequence[str] = getattr(dataset, "ids", ())
    which = f" ({ids[i]})" if ids else ""
    advice = "look at the image, or use another model" if precision == "fp32" else "try --precision fp32"
    raise FeaturesError(f"{name_of(dataset)}: the features of image {i}{which} are not finite; {advice}")
