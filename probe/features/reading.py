"""Images of a dataset -> pixels, a chunk at a time: with threads between batches, or with worker processes."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.utils.data
from PIL import Image
from torch import Tensor

from probe.cgroups import processor_limits
from probe.errors import DeviceError, ProbeError, summarize
from probe.models.preprocess import AnyPreprocess

WAITING_BYTES = 1 << 30  # limit for pixels that worker processes have read ahead


class LabelledImages(Protocol):
    """Images with labels, such as torchvision's datasets without a transform.

    If the attribute `is_thread_safe` exists and is true, several threads read images at a time.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, i: int, /) -> tuple[Image.Image, int | np.ndarray]:
        """Return an image and its label, or its row of labels."""


def name_of(dataset: LabelledImages) -> str:
    """Return the name of a dataset for messages."""
    name: str = getattr(dataset, "name", type(dataset).__name__)
    return name


@dataclass(frozen=True)
class Request:
    """Request to read a chunk: its number, the positions of its images, and the encoders that will encode it."""

    chunk: int
    images: range
    encoders: Sequence[int]


@dataclass(frozen=True)
class Read:
    """Chunk that was read: pixels (m, 3, height, width), labels and positions; errors of images that cannot be read."""

    request: Request
    pixels: Tensor
    labels: list[int | np.ndarray]
    positions: list[int]
    errors: list[tuple[int, ProbeError]]

    def pin_memory(self) -> Read:
        """Return a copy in page-locked memory, from which a GPU copies asynchronously; `DataLoader` calls this."""
        return replace(self, pixels=self.pixels.pin_memory())


class Reader(torch.utils.data.Dataset[Read]):
    """Images of a dataset, read and preprocessed, a chunk at a time."""

    def __init__(self, dataset: LabelledImages, preprocess: AnyPreprocess) -> None:
        self.dataset, self.preprocess = dataset, preprocess

    def __getitem__(self, request: Request) -> Read:
        shape = (len(request.images), *self.preprocess.shape, 3)  # channels last, as Pillow has them
        pixels = np.empty(shape, self.preprocess.dtype)
        labels: list[int | np.ndarray] = []
        good: list[int] = []
        errors: list[tuple[int, ProbeError]] = []
        for i in request.images:
            try:
                image, label = self.dataset[i]
                pixels[len(good)] = self.preprocess.to_pixels(image).transpose(1, 2, 0)
            except ProbeError as err:  # returned, because DataLoader would put it into the traceback of the worker
                errors.append((i, err))
            else:
                good.append(i)
                labels.append(label)
        return Read(request, torch.from_numpy(pixels[: len(good)]).permute(0, 3, 1, 2), labels, good, errors)


def default_workers(device: str) -> int:
    """Return the default number of processes that read images.

    With a GPU it is the number of processors, up to 16. On the CPU it is 0, because the model uses all processors: this
    process then reads images between batches, see `results/speed/reading.md`.
    """
    return min(16, processors()) if device.startswith("cuda") else 0


def processors() -> int:
    """Return the number of processors that this process may use. A quota of a container or a job is rounded up."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([n, *processor_limits()])))


def read_chunks(
    reader: Reader, requests: Iterable[Request], device: torch.device, workers: int | None, size: int
) -> Generator[Read]:
    """Yield chunks in the order of the requests; with workers, one or two chunks for each worker wait in memory."""
    workers = default_workers(device.type) if workers is None else workers
    workers = min(workers, processors())  # more workers are slower, and DataLoader warns about them
    if workers == 0:
        yield from _read_here(reader, requests)
        return
    height, width = reader.preprocess.shape
    room = WAITING_BYTES // (3 * size * height * width * reader.preprocess.dtype.itemsize)  # chunks
    loader = torch.utils.data.DataLoader(
        reader,
        sampler=requests,
        batch_size=None,  # an item is a chunk
        num_workers=max(1, min(workers, room)),
        prefetch_factor=2 if 2 * workers <= room else 1,
        pin_memory=device.type == "cuda",
    )
    try:
        yield from loader
    except RuntimeError as err:  # a worker was killed: too little memory, or too little space in /dev/shm
        if "DataLoader worker" not in str(err):
            raise
        raise DeviceError(f"a process that reads images ended ({summarize(err)}); use --workers 0, or fewer") from err


def _read_here(reader: Reader, requests: Iterable[Request]) -> Generator[Read]:
    """Read each chunk with a thread for each processor, while no model runs: Pillow releases Python's lock.

    Reading while a model runs on the same processors is slower, because all threads of the model wait for the thread
    that is held up. If torch has fewer threads than there are processors, other processes use the rest of the
    processors; a hyperthread counts as a processor.
    """
    most = min(processors(), 2 * torch.get_num_threads())
    threads = most if getattr(reader.dataset, "is_thread_safe", False) else 1
    with ThreadPoolExecutor(threads, "probe-read") as pool:
        for request in requests:
            step = -(-len(request.images) // threads)
            shares = [request.images[i : i + step] for i in range(0, len(request.images), step)]
            parts = list(pool.map(reader.__getitem__, [replace(request, images=share) for share in shares]))
            yield Read(
                request,
                torch.cat([part.pixels for part in parts]),
                [label for part in parts for label in part.labels],
                [position for part in parts for position in part.positions],
                [error for part in parts for error in part.errors],
            )
