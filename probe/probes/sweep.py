"""The search over C, as pure logic: which values to try, which one wins. Knows nothing of probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def search(
    evaluate: Callable[[Sequence[float]], Iterable[T]],
    grid: Sequence[float],
    *,
    coarse_step: int,
    score: Callable[[T], float],
) -> dict[float, T]:
    """Try some values of an ascending grid: every `coarse_step`-th, then around the best at half the distance, to one.

    Args:
        evaluate: what comes of some values, each asked for once: those that may be tried side by side come together.
        grid: the values, ascending.
        coarse_step: distance of the first values, a power of two.
        score: what makes an outcome better, higher is better.

    Returns:
        What was tried and what came of it, ascending. With the 97 values of the CLIP paper: at most 15.

    Source: Radford et al. 2021, appendix A.3.
    """
    tried: dict[int, T] = {}

    def try_all(indices: Sequence[int]) -> None:
        tried.update(zip(indices, evaluate([grid[i] for i in indices]), strict=True))

    try_all(range(0, len(grid), coarse_step))
    step = coarse_step // 2
    while step:
        best = _best_index(tried, score)
        try_all([i for i in (best - step, best + step) if 0 <= i < len(grid) and i not in tried])
        step //= 2
    return {grid[i]: tried[i] for i in sorted(tried)}


def best(tried: dict[float, T], score: Callable[[T], float]) -> float:
    """The value with the highest score; of equals the smallest, which regularises most, so that reruns agree."""
    return max(sorted(tried), key=lambda value: score(tried[value]))


def _best_index(tried: dict[int, T], score: Callable[[T], float]) -> int:
    return max(sorted(tried), key=lambda i: score(tried[i]))
