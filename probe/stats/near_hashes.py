"""Perceptual hashes of images, and all pairs of hashes within a Hamming distance.

The hash follows Zauner 2010 (Implementation and benchmarking of perceptual image hash functions, section 3.2.1): the
signs of 64 low frequencies of the discrete cosine transform, relative to their median. Pillow's resizing replaces the
mean filter. Images that are scaled, compressed or slightly changed have close hashes. Images of equal layout that show
different things can also have close hashes, so close hashes name candidates only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np

SIDE = 32  # pixels of the grey images that are hashed
BITS = 64
MAX_DISTANCE = 16  # beyond it, pairs of bands are so short that nearly all pairs of hashes would be compared
DECIMALS = 6  # of frequencies; smaller differences are rounding errors, for example in a blank image


def hash_images(grey: np.ndarray) -> np.ndarray:
    """Return the perceptual hashes of grey images, uint64 (n,).

    The frequencies 1 to 8 of both directions count. A bit is 1 if its frequency is above the median of all 64. Blank
    images have the hash 0. In other images 32 bits are 1, unless frequencies are equal, so most distances are even.

    Args:
        grey: uint8 (n, `SIDE`, `SIDE`).
    """
    from scipy.fft import dctn

    frequencies = dctn(grey.astype(np.float64), axes=(1, 2), norm="ortho")[:, 1:9, 1:9].reshape(-1, BITS)
    frequencies = frequencies.round(DECIMALS)
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def count_bits(values: np.ndarray) -> np.ndarray:
    """Return the number of bits that are 1 in each value, uint8 (n,), for uint64 (n,).

    Source: Warren 2012 (Hacker's Delight), section 5-1. `numpy.bitwise_count` needs NumPy 2.
    """
    pairs = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + ((pairs >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bytes_ = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((bytes_ * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)


def find_near_hashes(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all pairs of different hashes within a Hamming distance, each pair once, in blocks.

    The 64 bits are cut into `distance` + 2 bands. Two hashes within the distance differ in at most `distance` bands, so
    they agree in at least two (pigeonhole principle). Hashes are sorted by each pair of bands, and only hashes that
    agree there are compared. Two hashes are yielded for the first pair of bands in which they agree.

    Args:
        hashes: uint64 (n,), all different.
        distance: from 0 to `MAX_DISTANCE`.

    Yields:
        For each pair the positions of both hashes, int64, and their distance, uint8. A block has at most n pairs.
    """
    edges = np.linspace(0, BITS, distance + 3).round().astype(int).tolist()
    masks = [np.uint64((1 << end) - (1 << start)) for start, end in pairwise(edges)]
    for first, second in combinations(range(len(masks)), 2):
        others = [mask for band, mask in enumerate(masks[:second]) if band != first]
        for a, b in _pairs_of_equal_keys(hashes & (masks[first] | masks[second])):
            differing = hashes[a] ^ hashes[b]
            found = count_bits(differing)
            near = np.flatnonzero(found <= distance)
            near = near[np.all([(differing[near] & mask) != 0 for mask in others], axis=0)] if others else near
            if len(near):
                yield a[near], b[near], found[near]


def _pairs_of_equal_keys(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the positions of all pairs of equal keys: neighbours in sorted order first, then keys further apart."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ends = np.searchsorted(ordered, ordered, side="right")  # of the run of equal keys around each key
    left, step = np.arange(len(keys)), 1
    while len(left := left[ends[left] > left + step]):
        yield order[left], order[left + step]
        step += 1
