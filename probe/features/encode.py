"""Pixels of a chunk -> its features at both feature points. Knows the device; `passes.py` has the loop over chunks.

The content of a chunk depends on no other chunk, so chunks can be extracted in any order, by any process, and joined
later.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from probe.errors import DeviceError, FeaturesError
from probe.features.arrays import PRE_PROJECTION, PROJECTED, Features
from probe.features.reading import LabelledImages, Read, name_of
from probe.models.encoder import ImageEncoder, ImageFeatures
from probe.records.schema import MeterRecord


@dataclass
class Meter:
    """Time of one pass over a dataset, by stage.

    Args:
        seconds: wall time by stage: `read` waits for images, `encode` for their features, `keep` writes features.
        encoded: number of images by encoder, by its position among the encoders of the pass.
        busy: seconds in which the device computed, by encoder; a CPU computes during all of `encode`.
        device_memory: peak memory of a GPU in bytes; 0 on the CPU.
        joules: energy of the pass by `cpu` and `gpu`, see `probe.energy`.
    """

    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "encode": 0.0, "keep": 0.0})
    encoded: Counter[int] = field(default_factory=Counter)
    busy: dict[int, float] = field(default_factory=dict)
    device_memory: int = 0
    joules: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of encoded images, an image counted once for each encoder."""
        return self.encoded.total()

    def add(self, stage: str, since: float) -> float:
        """Add the time since a moment of `time.perf_counter` to a stage; return the moment now."""
        now = time.perf_counter()
        self.seconds[stage] += now - since
        return now

    def count(self, encoder: int, chunk: EncodingChunk) -> None:
        """Count the images of an encoded chunk, and the time and the memory of the device."""
        self.encoded[encoder] += len(chunk.read.labels)
        self.busy[encoder] = self.busy.get(encoder, 0.0) + chunk.clock.seconds
        if chunk.clock.events:
            self.device_memory = max(self.device_memory, torch.cuda.max_memory_allocated(chunk.clock.device))

    def rate(self, n: int) -> str:
        """Return seconds and images per second as text, for the log; n is the number of images with features."""
        seconds = sum(self.seconds.values())
        text = f"{seconds:.1f} s, {self.images / max(seconds, 1e-9):.0f} img/s"
        if not self.images:
            return "extracted before"
        return f"{self.images} of them extracted now, {text}" if self.images % n else text

    def describe(self, encoder: int = 0, *, models: int | None = None) -> MeterRecord:
        """Return the measurements of the encoder at a position in the pass, which `models` encoders share.

        `encoder_images_per_second` is the rate of the encoder while the device computed for it. The energy of a pass
        that several encoders share is not divided among them, and is left out.
        """
        n, own, seconds = self.images, self.encoded[encoder], self.seconds
        if not n:  # all chunks were cached, and were only joined
            return MeterRecord(images=0, models=models, peak_memory_mb=peak_memory())
        total = max(sum(seconds.values()), 1e-9)
        return MeterRecord(
            images=n,
            models=models,
            images_per_second=round(n / total, 3),
            encoder_images_per_second=round(own / max(self.busy[encoder], 1e-9), 3) if own else None,
            read_seconds=round(seconds["read"], 3),
            encode_seconds=round(seconds["encode"], 3),
            keep_seconds=round(seconds["keep"], 3),
            device_idle=round(max(0.0, 1 - sum(self.busy.values()) / total), 3),
            peak_memory_mb=peak_memory(),
            peak_device_memory_mb=round(self.device_memory / 1e6, 3) if self.device_memory else None,
            joules_per_1000_images=(
                {part: round(1000 * joules / n, 3) for part, joules in self.joules.items()} if models == 1 else {}
            ),
        )


def peak_memory() -> float | None:
    """Return the largest resident memory of this process so far in MB, without worker processes.

    On Windows, which does not report it, return None.
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 3)


class _Clock:
    """Time that a device takes between two points of its stream. The device reaches them later than the program."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self.started = self._now(0)
        self.seconds = 0.0

    def stop(self) -> None:
        """Mark the end: all work has been handed to the device."""
        self.seconds = self._now(1) - self.started

    def wait(self) -> None:
        """Wait until the device reaches the end, and measure the seconds since the start."""
        if self.events:
            self.events[1].synchronize()
            self.seconds = self.events[0].elapsed_time(self.events[1]) / 1000

    def _now(self, which: int) -> float:
        if self.events:  # of the device's own stream, as the current device can be another one
            self.events[which].record(torch.cuda.current_stream(self.device))
        return time.perf_counter()


@dataclass(frozen=True)
class EncodingChunk:
    """Chunk that the device may still be encoding."""

    encoder: ImageEncoder
    read: Read
    batches: Sequence[ImageFeatures]
    clock: _Clock

    def collect(self, dataset: LabelledImages) -> Features:
        """Wait for the features, and check that they are finite.

        Raises:
            FeaturesError: a feature is not finite; the message names the image.
        """
        self.clock.wait()
        labels, n = np.array(self.read.labels, dtype=np.int64), len(self.read.labels)
        arrays = [
            np.empty((0, width), np.float32) for width in (self.encoder.embed_dim, self.encoder.pre_projection_dim)
        ]
        if n:
            points = (PROJECTED, PRE_PROJECTION)
            arrays = [np.concatenate([getattr(batch, point).numpy() for batch in self.batches]) for point in points]
        x, before = (array[:n] for array in arrays)  # without the black images at the end
        _check_finite([x, before], dataset, self.read.positions, precision=self.encoder.execution.precision)
        skipped = tuple((position, str(error)) for position, error in self.read.errors)
        return Features(x, labels, before, skipped)


def encode_chunk(encoder: ImageEncoder, read: Read, batch_size: int) -> EncodingChunk:
    """Hand the batches of a chunk to the device. A GPU is still busy when this function returns.

    The last batch is filled up with black images, because the batch size changes the last bits of features.

    Raises:
        DeviceError: the memory of the device does not hold a batch.
        Exception: whatever the model raises.
    """
    clock = _Clock(encoder.execution.device)
    try:
        batches = read.pixels.split(batch_size) if len(read.pixels) else ()
        features = [encoder.encode(_fill(batch, batch_size), wait=False) for batch in batches]
    except torch.cuda.OutOfMemoryError as err:
        raise DeviceError(
            f"the memory of {encoder.execution.device} does not hold a batch of {batch_size} images of {encoder.name}; "
            "give a smaller --batch-size, or fewer models at a time"
        ) from err
    clock.stop()
    return EncodingChunk(encoder, read, features, clock)


def _fill(pixels: Tensor, batch_size: int) -> Tensor:
    """Fill a batch, (b, 3, height, width), with black images up to `batch_size` images.

    The black images have the memory layout of the others: another layout would change the sums of the first
    convolution.
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
