"""Images -> digests of their pixels, perceptual hashes, sizes and modes, in one pass that decodes each image once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from probe.datasets.images import OR_SKIP, ImageDataset
from probe.errors import DatasetError
from probe.stats.near_hashes import SIDE, hash_images

SHARE = 256  # images that a thread reads at a time


@dataclass(frozen=True, eq=False)
class PixelDigests:
    """Digests of the n images of a subset. Rows of images that cannot be read are zero.

    Args:
        sha256: uint8 (n, 32), SHA-256 of the height, the width and the RGB pixels, before any resizing.
        hashes: uint64 (n,), perceptual hashes, see `stats.near_hashes`.
        sizes: int32 (n, 2), width and height in pixels.
        modes: uint8 (n,), indices of `mode_names`.
        mode_names: modes in which the images are stored, as Pillow names them, such as `L`.
        unreadable: positions of images that cannot be read, ascending, each with the error.
    """

    sha256: np.ndarray = field(repr=False)
    hashes: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    modes: np.ndarray = field(repr=False)
    mode_names: tuple[str, ...] = ()
    unreadable: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        """Number of images, including those that cannot be read."""
        return len(self.hashes)

    @property
    def readable(self) -> np.ndarray:
        """Positions of the images that can be read, int64, ascending."""
        return np.delete(np.arange(len(self)), [position for position, _ in self.unreadable])


def digest_pixels(image: Image.Image) -> bytes:
    """Return the SHA-256 of the height, the width and the pixels of an RGB image: 32 bytes."""
    return hashlib.sha256(f"{image.height} {image.width}\n".encode() + image.tobytes()).digest()


def digest_images(
    images: ImageDataset, *, threads: int, advance: Callable[[int], object] = lambda _: None
) -> PixelDigests:
    """Decode all images of a subset, and return their digests.

    Args:
        images: the images. Several threads read them only if `is_thread_safe` is true.
        threads: number of threads; Pillow and hashlib release Python's lock.
        advance: called with the number of images of each share that was read.
    """
    shares = [range(start, min(start + SHARE, len(images))) for start in range(0, len(images), SHARE)]
    parts: list[PixelDigests] = []
    with ThreadPoolExecutor(threads if images.is_thread_safe else 1, "probe-digest") as pool:
        for part in pool.map(partial(_digest_share, images), shares):
            parts.append(part)
            advance(len(part))
    names = tuple(sorted({name for part in parts for name in part.mode_names}))
    return PixelDigests(
        np.concatenate([part.sha256 for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([_renumber(part, names) for part in parts]),
        names,
        tuple(error for part in parts for error in part.unreadable),
    )


def _digest_share(images: ImageDataset, positions: range) -> PixelDigests:
    n, names = len(positions), dict[str, int]()
    sha256, sizes, modes = np.zeros((n, 32), np.uint8), np.zeros((n, 2), np.int32), np.zeros(n, np.uint8)
    grey, unreadable = np.zeros((n, SIDE, SIDE), np.uint8), []
    for row, i in enumerate(positions):
        try:
            image, mode = images.read_rgb(i)
        except DatasetError as err:
            unreadable.append((i, str(err).removesuffix(OR_SKIP)))
            continue
        sha256[row] = np.frombuffer(digest_pixels(image), np.uint8)
        sizes[row] = image.size
        modes[row] = names.setdefault(mode, len(names))
        grey[row] = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return PixelDigests(sha256, hash_images(grey), sizes, modes, tuple(names), tuple(unreadable))


def _renumber(part: PixelDigests, names: tuple[str, ...]) -> np.ndarray:
    """Return the modes of a share as indices of the names of all shares; 0 for images that cannot be read."""
    indices = np.array([names.index(name) for name in part.mode_names] or [0], np.uint8)
    return np.asarray(indices[part.modes])
