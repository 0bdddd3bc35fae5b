"""Exact search for the most similar images of a bank, without a matrix of all similarities in memory.

- The similarity of two images is the cosine of their features, rounded to a multiple of 1 / `STEPS_PER_UNIT`. An
  image whose features are all zero has similarity 0 to all images.
- Of equally similar images, those that come first in the bank are neighbours. The arrays of a bank are in their order,
  such as training before validation images.

Products in float32 find candidates quickly. Products in float64, summed in a fixed order on the CPU, then decide among
them, so the result does not depend on the device, the number of threads or the sizes of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from probe.probes.fits import ROWS

# Hides the rounding of float64, and leaves sums of up to 8192 weights that are multiples of 1 / STEPS_PER_UNIT exact.
STEPS_PER_UNIT = 2.0**40
ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
MARGIN = 16  # candidates besides the k nearest; more make it less likely that a query needs a second search
GROUP = 16  # columns of a group of products of which only the maximum is looked at first
DECIDED = 2**16  # candidates that a thread decides among at a time
BANK_BYTES = 2**27  # size of a block of the bank
PRODUCT_BYTES = 2**26  # size of the products of a block of queries and a block of the bank


@dataclass(frozen=True)
class Neighbours:
    """The k nearest images of each query, the most similar first.

    Args:
        positions: int64 (n, k), positions in the bank.
        similarities: float64 (n, k), descending.
    """

    positions: np.ndarray
    similarities: np.ndarray


def find_neighbours(bank: Sequence[np.ndarray], x: np.ndarray, k: int, device: str = "cpu") -> Neighbours:
    """Return the k nearest images of the bank for each query, or the whole bank if it is smaller.

    Args:
        bank: arrays float32 (m_i, d), which together are the features of the m images of the bank.
        x: float32 (n, d), features of the queries.
        k: number of neighbours.
        device: where candidates are searched.
    """
    images, queries = _Images(bank), _Images([x])
    k = min(k, len(images))
    found = Neighbours(np.empty((len(x), k), np.int64), np.empty((len(x), k)))
    rows = np.arange(len(x))  # queries whose neighbours are not proven yet
    for dtype in (torch.float32, torch.float64, None):
        if len(rows) == 0:
            break
        if dtype is None:  # more than MARGIN images are about as similar as the k-th
            candidates = np.broadcast_to(np.arange(len(images)), (len(rows), len(images)))
            bounds = np.full(len(rows), -np.inf)
        else:
            candidates, bounds = _search(images, queries, rows, k + MARGIN, dtype, device)
        nearest = _decide(images, queries, rows, candidates, k)
        proven = nearest.similarities[:, -1] > bounds
        found.positions[rows[proven]] = nearest.positions[proven]
        found.similarities[rows[proven]] = nearest.similarities[proven]
        rows = rows[~proven]
    return found


class _Images:
    """Features float32 (m, d) in one or more arrays, and their lengths in float64."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = [np.asarray(array) for array in arrays]
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.lengths = np.ones(len(self))
        for rows in self.blocks(ROWS):
            x = self.take(rows)
            self.lengths[rows] = np.sqrt(np.einsum("md,md->m", x, x))
        self.lengths[self.lengths == 0] = 1

    def __len__(self) -> int:
        return int(self.starts[-1])

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield the positions of successive images, up to `size` at a time."""
        for start in range(0, len(self), size):
            yield np.arange(start, min(start + size, len(self)))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of images in float64; `rows` are ascending positions."""
        x = np.empty((len(rows), self.arrays[0].shape[1]))
        if len(self.arrays) == 1:
            x[:] = self.arrays[0][rows]
            return x
        cuts = np.searchsorted(rows, self.starts)
        for array, start, low, high in zip(self.arrays, self.starts, cuts, cuts[1:], strict=False):
            x[low:high] = array[rows[low:high] - start]
        return x

    def unit(self, rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """Return L2-normalised features of images; `rows` are ascending positions."""
        x = torch.empty((len(rows), self.arrays[0].shape[1]), dtype=dtype)
        for i in range(0, len(rows), ROWS):
            part = rows[i : i + ROWS]
            x[i : i + ROWS] = torch.from_numpy(self.take(part) / self.lengths[part, None])
        return x

    def similarities(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return the cosines of images and a query of length 1, float64; `rows` are ascending positions."""
        parts = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
        products = [np.einsum("md,d->m", self.take(part), query) for part in parts]
        return np.asarray(np.concatenate(products) / self.lengths[rows])


def _search(
    images: _Images, queries: _Images, rows: np.ndarray, num: int, dtype: torch.dtype, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates, int64 (n, num) ascending, and an upper bound of the similarity of other images, (n,).

    Let u be the unit roundoff. Dividing by the length and rounding change the features of a query and of an image by at
    most u, relatively. Summing d products in any order adds at most d u times the sum of absolute products, which is at
    most 1 for unit vectors. Twice (d + 4) u covers this, terms of higher order and the rounding of the similarity to a
    multiple of 1 / `STEPS_PER_UNIT`.
    """
    num = min(num, len(images))
    x = queries.unit(rows, dtype).to(device)
    values = torch.empty((len(x), 0), dtype=dtype, device=device)
    positions = torch.empty((len(x), 0), dtype=torch.int64, device=device)
    for part in images.blocks(max(1, BANK_BYTES // (x.shape[1] * x.itemsize))):
        bank = images.unit(part, dtype).to(device).T
        size = max(1, PRODUCT_BYTES // (len(part) * x.itemsize))
        with _full_precision():
            found = [_top(some @ bank, min(num, len(part))) for some in x.split(size)]
        values = torch.cat([values, torch.cat([top for top, _ in found])], dim=1)
        positions = torch.cat([positions, torch.cat([columns for _, columns in found]) + int(part[0])], dim=1)
        if values.shape[1] > num:
            values, order = values.topk(num, sorted=False)
            positions = positions.gather(1, order)
    highest = values.amin(dim=1).cpu().double().numpy() if num < len(images) else np.full(len(x), -np.inf)
    bounds = highest + 2 * (x.shape[1] + 4) * ROUNDOFF[dtype] + 1 / STEPS_PER_UNIT
    return positions.sort().values.cpu().numpy(), bounds


def _top(products: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `num` largest values of each row and their columns, in no order.

    The largest values are in the groups of columns with the largest maxima, which are faster to find.
    """
    width = products.shape[1] // GROUP
    if width < 4 * num:
        values, columns = products.topk(num, sorted=False)
        return values, columns
    cut = width * GROUP
    groups = products[:, :cut].unflatten(1, (GROUP, width)).amax(1).topk(num, sorted=False).indices
    offsets = torch.arange(0, cut, width, device=products.device)[:, None]
    rest = torch.arange(cut, products.shape[1], device=products.device).expand(len(products), -1)
    columns = torch.cat([(groups[:, None] + offsets).flatten(1), rest], dim=1)
    values, order = products.gather(1, columns).topk(num, sorted=False)
    return values, columns.gather(1, order)


def _decide(images: _Images, queries: _Images, rows: np.ndarray, candidates: np.ndarray, k: int) -> Neighbours:
    """Return the k nearest candidates of some queries, with the work divided among threads.

    Args:
        images: the bank.
        queries: all queries.
        rows: int64 (n,), positions of the n queries, ascending.
        candidates: int64 (n, m), positions in the bank, ascending.
        k: number of neighbours, at most m.
    """
    cuts = range(0, len(rows), max(1, DECIDED // candidates.shape[1]))[1:]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        decide = partial(_decide_block, images, queries, k)
        parts = list(pool.map(decide, np.split(rows, cuts), np.split(candidates, cuts)))
    return Neighbours(
        np.concatenate([part.positions for part in parts]), np.concatenate([part.similarities for part in parts])
    )


def _decide_block(images: _Images, queries: _Images, k: int, rows: np.ndarray, candidates: np.ndarray) -> Neighbours:
    """Return the k nearest candidates of some queries by products in float64, see `_decide`."""
    units = queries.take(rows) / queries.lengths[rows, None]
    exact = np.stack([images.similarities(near, unit) for near, unit in zip(candidates, units, strict=True)])
    exact = np.rint(exact * STEPS_PER_UNIT) / STEPS_PER_UNIT
    first = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    return Neighbours(np.take_along_axis(candidates, first, axis=1), np.take_along_axis(exact, first, axis=1))


@contextmanager
def _full_precision() -> Iterator[None]:
    """Forbid TF32 and bfloat16 in products of float32 inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
