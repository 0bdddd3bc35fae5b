"""Preconditioned L-BFGS as a conversation: it asks for values and gradients at points, and somebody computes them.

So several minimisations can go on side by side and have all that they ask for computed in one pass over the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from probe.probes.solvers.curvature import Preconditioner

GROWTH = 1.5  # of the patience with a preconditioner
MEMORY = 20  # pairs of steps and gradient changes
ARMIJO, CURVATURE = 1e-4, 0.9  # conditions of Wolfe, as Nocedal and Wright 2006, section 3.1, give them
TRIALS = 15  # of a line search
# The preconditioner's scale changes slowly, and finding it costs as much as using it: it is found at every step at
# first, then at each of so many.
SCALE_STEPS, FIRST_STEPS = 8, 4
# Where the value changes by less than this it is rounding, and the slope alone decides: the approximate conditions of
# Hager and Zhang 2005 (SIAM J. Optim. 16).
ROUNDING = 1e-7
# Where the value falls by less than a share of `STALL` in so many evaluations, and the gradient not to half, the rest
# of the way is too long to go.
STALL, STALL_EVALUATIONS = 1e-7, 50


@dataclass(frozen=True)
class Question:
    """A point whose value and gradient are wanted; `exact` asks for products in float64."""

    unknowns: Tensor
    exact: bool


@dataclass(frozen=True)
class Minimum:
    """End of a minimisation. `decrement` estimates how much lower the minimum is, by the slope of the next step."""

    unknowns: Tensor
    objective: float
    gradient: Tensor
    n_iter: int
    n_eval: int
    decrement: float


Answer = tuple[float, Tensor]
Memory = deque[tuple[Tensor, Tensor, float]]  # steps, changes of the gradient, and the inverses of their products
Dialogue = Generator[Question, Answer, Minimum]


@dataclass
class _Point:
    unknowns: Tensor
    value: float
    gradient: Tensor


def minimise(
    start: Tensor,
    preconditioner: Preconditioner,
    *,
    refresh: Callable[[Tensor], Preconditioner],
    measure: Callable[[float, Tensor], float],
    is_enough: Callable[[Tensor, float, float], bool],
    patience: float,
    tol: float,
    max_iter: int,
    ends_exact: bool = True,
) -> Dialogue:
    """Go down until what is left measures `tol` or less.

    Args:
        start: float64 unknowns.
        preconditioner: to begin with.
        refresh: makes a better one at some unknowns.
        measure: how far a value and gradient are from a minimum.
        is_enough: takes unknowns, value and decrement; returns True if almost nothing is left to gain. A gradient below
            `tol` is not enough if one feature is far larger than the others.
        patience: evaluations after which it is asked for one; `GROWTH` times as many for the next, and so on.
        tol: what may be left in the end.
        max_iter: most steps.
        ends_exact: go on in float64 where float32 has said all it can, and end there.

    Returns:
        The last point, if `ends_exact` with products in float64. It may be above `tol`: after `max_iter` steps, where
        rounding hides the way down, or where there is next to nothing left to gain.
    """
    point = _Point(start, *(yield Question(start, exact=False)))
    memory: Memory = deque(maxlen=MEMORY)
    exact, n_iter, n_eval, since, scale = False, 0, 1, 0, 1.0
    mark, marked = point, n_eval
    while n_iter < max_iter:
        found, ended = None, measure(point.value, point.gradient) <= tol
        if ended:
            decrement = _slope(point.gradient, _direction(point.gradient, memory, preconditioner, scale)) / -2
            ended = is_enough(point.unknowns, point.value, decrement)
        if n_eval - marked >= STALL_EVALUATIONS:
            is_slow = mark.value - point.value < STALL * abs(point.value)
            ended = ended or (is_slow and measure(point.value, point.gradient) > measure(mark.value, mark.gradient) / 2)
            mark, marked = point, n_eval
        if not ended:
            if since >= patience:
                preconditioner, since, patience = refresh(point.unknowns), 0, GROWTH * patience
            if memory and (n_iter % SCALE_STEPS == 0 or len(memory) < FIRST_STEPS or since == 0):
                scale = _scale(memory, preconditioner)
            direction = _direction(point.gradient, memory, preconditioner, scale)
            found, trials = yield from _search(point, direction, exact=exact)
            n_eval, since = n_eval + trials, since + trials
        if found is None:
            if exact or not ends_exact:
                break
            exact = True  # float32 products have no more to say, and what is said of the end is to hold
            if measure(point.value, point.gradient) > tol:
                memory.clear()  # the last changes are rounding
                scale = 1.0
            point = _Point(point.unknowns, *(yield Question(point.unknowns, exact)))
            n_eval += 1
            mark, marked = point, n_eval
            continue
        step, change = found.unknowns - point.unknowns, found.gradient - point.gradient
        curvature = float((step * change).sum())
        if curvature > 0:
            memory.append((step, change, 1 / curvature))
        point, n_iter = found, n_iter + 1
    if ends_exact and not exact:
        point = _Point(point.unknowns, *(yield Question(point.unknowns, exact=True)))
        n_eval += 1
    decrement = _slope(point.gradient, _direction(point.gradient, memory, preconditioner, scale)) / -2
    return Minimum(point.unknowns, point.value, point.gradient, n_iter, n_eval, decrement)


def _slope(gradient: Tensor, direction: Tensor) -> float:
    return float((gradient * direction).sum())


def _scale(memory: Memory, preconditioner: Preconditioner) -> float:
    """How much the preconditioner is too large or too small for the last change of the gradient."""
    _, change, inverse = memory[-1]
    return 1 / (inverse * float((change * preconditioner.solve(change)).sum()))


def _direction(gradient: Tensor, memory: Memory, preconditioner: Preconditioner, scale: float) -> Tensor:
    """The two loops of Nocedal 1980, around the preconditioner."""
    q = gradient.clone()
    shares = []
    for step, change, inverse in reversed(memory):
        share = inverse * float((step * q).sum())
        shares.append(share)
        q -= share * change
    q = scale * preconditioner.solve(q)
    for (step, change, inverse), share in zip(memory, reversed(shares), strict=True):
        q += (share - inverse * float((change * q).sum())) * step
    return -q


def _search(point: _Point, direction: Tensor, *, exact: bool) -> Generator[Question, Answer, tuple[_Point | None, int]]:
    """Find a step that meets the conditions; None where none does. Also how many points were tried."""
    slope = _slope(point.gradient, direction)
    if not slope < 0:
        return None, 0
    length, low, high = 1.0, 0.0, float("inf")
    slope_low, slope_high = slope, float("nan")
    for trial in range(1, TRIALS + 1):
        unknowns = point.unknowns + length * direction
        found = _Point(unknowns, *(yield Question(unknowns, exact)))
        new_slope = float((found.gradient * direction).sum())
        change = found.value - point.value
        is_lower = change <= ARMIJO * length * slope or (
            abs(change) <= ROUNDING * abs(point.value) and new_slope <= -(1 - 2 * ARMIJO) * slope
        )
        if is_lower and abs(new_slope) <= -CURVATURE * slope:
            return found, trial
        if is_lower and new_slope < 0:
            low, slope_low = length, new_slope
        else:
            high, slope_high = length, new_slope
        if high == float("inf"):
            length *= 2
        elif slope_high > 0:  # where the slope would be zero if it changed evenly, but not too near an end
            share = -slope_low / (slope_high - slope_low)
            length = low + min(max(share, 0.1), 0.9) * (high - low)
        else:
            length = (low + high) / 2
    return None, TRIALS
