"""Search over values of C: which values to try, and which value wins. This module does not know about probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Searched(Generic[T]):
    """Result of a search.

    Args:
        tried: result of each evaluated value, ascending by value.
        chosen: the value that wins.
    """

    tried: dict[float, T]
    chosen: float


def search(
    evaluate: Callable[[Sequence[float]], Iterable[T]],
    grid: Sequence[float],
    *,
    coarse_step: int,
    score: Callable[[T], float],
) -> dict[float, T]:
    """Search a grid from coarse to fine.

    Evaluate every `coarse_step`-th value of the grid. Then evaluate the neighbours of the best value at half that
    distance, and halve the distance until it is one.

    Args:
        evaluate: return the result of each of the given values, in order. It is called once per round with all values
            of the round, so that they can be fitted together. No value is evaluated twice.
        grid: the values, ascending.
        coarse_step: distance between the values of the first round, a power of two.
        score: return the score of a result; higher is better.

    Returns:
        The result of each evaluated value, ascending by value; at most 15 for the 97 values of the CLIP paper.

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


def bisect(
    evaluate: Callable[[Sequence[float]], Iterable[T]],
    grid: Sequence[float],
    *,
    steps: int,
    score: Callable[[T], float],
) -> Searched[T]:
    """Search a grid, and then halve an interval around its best value on a log scale.

    All values of the grid are evaluated. On a tie, the largest of the best values is taken. The interval begins at a
    tenth of this value and ends at ten times this value. Each step compares the two ends of the interval, and keeps the
    half at the end with the higher score, or at the lower end on a tie. The winner of the last step is chosen, even if
    a value of the grid has a higher score.

    Args:
        evaluate: see `search`.
        grid: the values, ascending.
        steps: number of steps, 1 or more.
        score: return the score of a result; higher is better.

    Source: KaiyangZhou/CoOp, lpclip/linear_probe.py, with 8 steps.
    """
    tried = dict(zip(grid, evaluate(grid), strict=True))
    peak = max(reversed(grid), key=lambda value: score(tried[value]))
    low, high = -1.0, 1.0  # decades from the peak
    for _ in range(steps):
        ends = (peak * 10**low, peak * 10**high)
        missing = [end for end in ends if end not in tried]
        tried.update(zip(missing, evaluate(missing), strict=True))
        middle = (low + high) / 2
        if score(tried[ends[0]]) < score(tried[ends[1]]):
            chosen, low = ends[1], middle
        else:
            chosen, high = ends[0], middle
    return Searched(dict(sorted(tried.items())), chosen)


def best(tried: dict[float, T], score: Callable[[T], float]) -> float:
    """Return the value with the highest score. On a tie, return the smallest value, which regularises most."""
    return max(sorted(tried), key=lambda value: score(tried[value]))


def _best_index(tried: dict[int, T], score: Callable[[T], float]) -> int:
    return max(sorted(tried), key=lambda i: score(tried[i]))
