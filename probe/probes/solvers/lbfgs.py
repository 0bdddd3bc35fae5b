"""Preconditioned L-BFGS as a generator: it yields points and receives the value and gradient at each point.

The caller evaluates the objective. So the points of several minimisations can be evaluated in one pass over the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.probes.solvers.curvature import Preconditioner

GROWTH = 1.5  # factor of `patience` after each new preconditioner
MEMORY = 20  # stored pairs of steps and gradient changes
ARMIJO, CURVATURE = 1e-4, 0.9  # constants of the Wolfe conditions, Nocedal and Wright 2006, section 3.1
TRIALS = 15  # largest number of points of a line search
# Computing the scale of the preconditioner costs as much as applying the preconditioner, and the scale changes slowly.
# The scale is computed while fewer than `FIRST_STEPS` pairs are stored, then at every `SCALE_STEPS`-th step and for
# each new preconditioner.
SCALE_STEPS, FIRST_STEPS = 8, 4
# A smaller relative change of the value is rounding error. Then only the slope decides whether a step is accepted: the
# approximate Wolfe conditions of Hager and Zhang 2005 (SIAM J. Optim. 16).
ROUNDING = 1e-7
# The minimisation stops if in `STALL_EVALUATIONS` evaluations the value decreases by a share of less than `STALL` and
# the gradient does not halve: the minimum is too far away.
STALL, STALL_EVALUATIONS = 1e-7, 50


@dataclass(frozen=True)
class EvaluationRequest:
    """Point whose value and gradient are needed. If `exact` is True, products must be computed in float64."""

    unknowns: Tensor
    exact: bool


@dataclass(frozen=True)
class Minimum:
    """End point of a minimisation.

    Args:
        unknowns: float64 (d + 1, width).
        objective: value of the objective.
        gradient: gradient with respect to the unknowns.
        n_iter: number of steps.
        n_eval: number of evaluations.
        decrement: estimate of the difference between `objective` and its minimum: half of the decrease that the slope
            predicts for the next step.
    """

    unknowns: Tensor
    objective: float
    gradient: Tensor
    n_iter: int
    n_eval: int
    decrement: float


ValueAndGradient = tuple[float, Tensor]
# Pairs: step s and change y of the gradient, both flat, (d + 1) * width; and 1 / (s . y).
Memory = deque[tuple[Tensor, Tensor, float]]
Steps = Generator[EvaluationRequest, ValueAndGradient, Minimum]


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
) -> Steps:
    """Minimise until `measure` is at most `tol` and `is_enough` is True.

    Args:
        start: float64 (d + 1, width), starting point.
        preconditioner: initial preconditioner.
        refresh: return a better preconditioner, computed at the given unknowns.
        measure: return the distance from the minimum for a value and a gradient.
        is_enough: take unknowns, value and decrement, and return True if the decrement is negligible. `measure` alone
            is not enough if one feature is far larger than the others.
        patience: number of evaluations after which `refresh` is called. It grows by the factor `GROWTH` with each call.
        tol: limit of `measure`.
        max_iter: largest number of steps.
        ends_exact: if True, continue in float64 when float32 allows no more progress, and evaluate the end in float64.

    Returns:
        The last point. `measure` can be above `tol` there: after `max_iter` steps, if rounding errors allow no more
        progress, or if the value stopped decreasing.
    """
    point = _Point(start, *(yield EvaluationRequest(start, exact=False)))
    memory: Memory = deque(maxlen=MEMORY)
    exact, n_iter, n_eval, since, scale = False, 0, 1, 0, 1.0
    mark, marked = point, n_eval  # for the check of whether the value still decreases
    while n_iter < max_iter:
        following, ended = None, measure(point.value, point.gradient) <= tol
        if ended:
            decrement = _product(point.gradient, _direction(point.gradient, memory, preconditioner, scale)) / -2
            ended = is_enough(point.unknowns, point.value, decrement)
        if n_eval - marked >= STALL_EVALUATIONS:
            is_slow = mark.value - point.value < STALL * abs(point.value)
            ended = ended or (is_slow and measure(point.value, point.gradient) > measure(mark.value, mark.gradient) / 2)
            mark, marked = point, n_eval
        if not ended:
            if since >= patience:
                preconditioner, since, patience = refresh(point.unknowns), 0, GROWTH * patience
            if memory and (n_iter % SCALE_STEPS == 0 or len(memory) < FIRST_STEPS or since == 0):
                scale = _scale(memory, preconditioner, start.shape)
            direction = _direction(point.gradient, memory, preconditioner, scale)
            following, trials = yield from _search(point, direction, exact=exact)
            n_eval, since = n_eval + trials, since + trials
        if following is None:
            if exact or not ends_exact:
                break
            exact = True  # float32 allows no more progress, and the end must be evaluated in float64
            if measure(point.value, point.gradient) > tol:
                memory.clear()  # the last changes are rounding errors
                scale = 1.0
            point = _Point(point.unknowns, *(yield EvaluationRequest(point.unknowns, exact)))
            n_eval += 1
            mark, marked = point, n_eval
            continue
        step, change = following.unknowns - point.unknowns, following.gradient - point.gradient
        curvature = _product(step, change)
        if curvature > 0:
            memory.append((step.reshape(-1), change.reshape(-1), 1 / curvature))
        point, n_iter = following, n_iter + 1
    if ends_exact and not exact:
        point = _Point(point.unknowns, *(yield EvaluationRequest(point.unknowns, exact=True)))
        n_eval += 1
    decrement = _product(point.gradient, _direction(point.gradient, memory, preconditioner, scale)) / -2
    return Minimum(point.unknowns, point.value, point.gradient, n_iter, n_eval, decrement)


def _product(a: Tensor, b: Tensor) -> float:
    """Return the scalar product of two tensors of the same shape."""
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))


def _scale(memory: Memory, preconditioner: Preconditioner, shape: torch.Size) -> float:
    """Return the factor that fits the preconditioner P to the last pair (s, y): s.y / y.(P y)."""
    _, change, inverse = memory[-1]
    return 1 / (inverse * _product(change, preconditioner.solve(change.view(shape))))


def _direction(gradient: Tensor, memory: Memory, preconditioner: Preconditioner, scale: float) -> Tensor:
    """Return the search direction: the two-loop recursion of Nocedal 1980 with a preconditioner."""
    q = gradient.flatten().clone()
    shares = []
    for step, change, inverse in reversed(memory):
        share = inverse * float(torch.dot(step, q))
        shares.append(share)
        q.add_(change, alpha=-share)
    q = preconditioner.solve(q.view(gradient.shape)).reshape(-1).mul_(scale)
    for (step, change, inverse), share in zip(memory, reversed(shares), strict=True):
        q.add_(step, alpha=share - inverse * float(torch.dot(change, q)))
    return q.neg_().view(gradient.shape)


def _search(
    point: _Point, direction: Tensor, *, exact: bool
) -> Generator[EvaluationRequest, ValueAndGradient, tuple[_Point | None, int]]:
    """Search along a direction for a point that meets the Wolfe conditions.

    Returns:
        The point, or None if no trial meets the conditions; and the number of evaluated points.
    """
    slope = _product(point.gradient, direction)
    if not slope < 0:
        return None, 0
    length, low, high = 1.0, 0.0, float("inf")
    slope_low, slope_high = slope, float("nan")
    for trial in range(1, TRIALS + 1):
        unknowns = point.unknowns + length * direction
        trial_point = _Point(unknowns, *(yield EvaluationRequest(unknowns, exact)))
        new_slope = _product(trial_point.gradient, direction)
        change = trial_point.value - point.value
        is_lower = change <= ARMIJO * length * slope or (
            abs(change) <= ROUNDING * abs(point.value) and new_slope <= -(1 - 2 * ARMIJO) * slope
        )
        if is_lower and abs(new_slope) <= -CURVATURE * slope:
            return trial_point, trial
        if is_lower and new_slope < 0:
            low, slope_low = length, new_slope
        else:
            high, slope_high = length, new_slope
        if high == float("inf"):
            length *= 2
        elif slope_high > 0:  # secant step, but not too close to an end of the bracket
            share = -slope_low / (slope_high - slope_low)
            length = low + min(max(share, 0.1), 0.9) * (high - low)
        else:
            length = (low + high) / 2
    return None, TRIALS
