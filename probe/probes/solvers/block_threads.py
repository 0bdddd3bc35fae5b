"""Threads that process blocks of rows side by side, with one thread of torch for each block.

Several threads within one product must wait for each other at its end. This costs more than the product if the product
is small, and far more if another process uses the same processors. Threads that process blocks of their own do not
wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Block = tuple[int, Tensor]  # position of the first row, and the rows
Work = Callable[[int, Tensor], Sequence[Tensor]]

SPANS = 2  # spans of blocks for each thread, so that a thread on a busy processor delays the others less


class BlockThreads:
    """Pool of as many threads as torch has at the first call of `sum`.

    The threads end when the pool is no longer used.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._num = 1

    def sum(self, work: Work, blocks: Sequence[Block]) -> list[Tensor]:
        """Return the sums over all blocks of the tensors that a function returns for a block, in float64.

        Each thread sums the results of a span of consecutive blocks. The sums of the spans are added in their order.
        """
        if torch.get_num_threads() == 1 or len(blocks) == 1:
            return sum_results(work(first, block) for first, block in blocks)
        if self._pool is None:
            self._num = torch.get_num_threads()
            self._pool = _start(self._num)
        size = -(-len(blocks) // (SPANS * self._num))
        spans = [blocks[start : start + size] for start in range(0, len(blocks), size)]
        return sum_results(self._pool.map(lambda span: sum_results(work(first, block) for first, block in span), spans))


def sum_results(results: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Return the sums of the tensors of all results, in float64."""
    totals: list[Tensor] = []
    for result in results:
        if not totals:
            totals = [tensor.double() for tensor in result]
            continue
        for total, tensor in zip(totals, result, strict=True):
            total += tensor
    return totals


def _start(num: int) -> ThreadPoolExecutor:
    """Return running threads, each with one thread of torch."""
    barrier = threading.Barrier(num + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first use in a thread sets its number, which would undo the next line
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(num, thread_name_prefix="probe-block")
    for _ in range(num):
        pool.submit(begin)
    barrier.wait()
    torch.set_num_threads(num)  # the setting of a thread is also the default of threads that start later
    return pool
