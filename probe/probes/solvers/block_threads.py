"""Threads that process blocks of rows side by side, with one thread of torch for each block.

Several threads within one product must wait for each other at its end. This costs more than the product if the product
is small, and far more if another process uses the same processors. Threads that process blocks of their own do not
wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class BlockThreads:
    """Pool of as many threads as torch has at the first call of `map`.

    The threads end when the pool is no longer used.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the result of a function for each item, in the order of the items.

        The function runs in the calling thread if torch is limited to one thread.
        """
        if torch.get_num_threads() == 1:
            return map(work, items)
        if self._pool is None:
            self._pool = _start(torch.get_num_threads())
        return self._pool.map(work, items)


def _start(num: int) -> ThreadPoolExecutor:
    """Return running threads, each with one thread of torch."""
    barrier = threading.Barrier(num + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(num, thread_name_prefix="probe-block")
    for _ in range(num):
        pool.submit(begin)
    barrier.wait()
    torch.set_num_threads(num)  # the setting of a thread is also the default of threads that start later
    return pool
