"""Preconditioned L-BFGS as a generator: it yields points and receives the value and gradient at each point.

The caller evaluates the objective. So the points of several minimisations can be evaluated in one pass over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.lapack import dtrtrs
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
# The minimisation stops if, within `STALL_EVALUATIONS` evaluations, the value decreases by less than the fraction
# `STALL` and the distance does not halve. More steps would not reach the minimum.
STALL, STALL_EVALUATIONS = 1e-7, 50


@dataclass(frozen=True)
class EvaluationRequest:
    """Point whose value and gradient are needed. If `exact` is True, products must be computed in float64."""

    unknowns: Tensor
    exact: bool


@dataclass(frozen=True)
class Limits:
    """Conditions that end a minimisation.

    Args:
        tol: limit of the distance from the minimum, such as max |gradient|.
        max_iter: largest number of steps.
        ends_exact: if True, continue in float64 when float32 allows no more progress, and evaluate the end in float64.
    """

    tol: float
    max_iter: int = 1000
    ends_exact: bool = True


@dataclass(frozen=True)
class Minimum:
    """End point of a minimisation.

    Args:
        unknowns: float64 (r + 1, width), see `Rows.num_components`.
        objective: value of the objective.
        gradient: gradient with respect to the unknowns.
        n_iter: number of steps.
        decrement: estimate of the difference between `objective` and its minimum: half of the decrease that the slope
            predicts for the next step.
    """

    unknowns: Tensor
    objective: float
    gradient: Tensor
    n_iter: int
    decrement: float


ValueAndGradient = tuple[float, Tensor]
Steps = Generator[EvaluationRequest, ValueAndGradient, Minimum]


@dataclass(frozen=True)
class Preconditioners:
    """The preconditioners of a minimisation.

    Args:
        first: preconditioner at the starting point.
        refresh: return a better preconditioner, computed at the given unknowns.
        patience: number of evaluations after which `refresh` is called. It grows by the factor `GROWTH` with each call.
    """

    first: Preconditioner
    refresh: Callable[[Tensor], Preconditioner]
    patience: float


@dataclass
class _Point:
    unknowns: Tensor
    value: float
    gradient: Tensor


def minimise(
    start: Tensor,
    preconditioners: Preconditioners,
    limits: Limits,
    *,
    measure: Callable[[float, Tensor], float],
    is_enough: Callable[[Tensor, float, float], bool],
    goes_on: Callable[[Tensor, float, int], bool] | None = None,
) -> Steps:
    """Minimise until `measure` is at most `limits.tol` and `is_enough` is True.

    Args:
        start: float64 (r + 1, width), starting point.
        preconditioners: the first preconditioner, and how to replace it.
        limits: see `Limits`.
        measure: return the distance from the minimum for a value and a gradient.
        is_enough: take unknowns, value and decrement, and return True if the decrement is negligible. `measure` alone
            is not enough if one feature is far larger than the others.
        goes_on: take unknowns, value and number of steps after each step, and return False to end the minimisation.

    Returns:
        The last point. `measure` can be above the limit there: after `limits.max_iter` steps, if rounding errors allow
        no more progress, or if the value stopped decreasing.
    """
    tol, preconditioner, patience = limits.tol, preconditioners.first, preconditioners.patience
    point = _Point(start, *(yield EvaluationRequest(start, exact=False)))
    memory = _Pairs(start)
    exact, n_iter, n_eval, since, scale = False, 0, 1, 0, 1.0
    mark, marked = point, n_eval  # for the check of whether the value still decreases
    while n_iter < limits.max_iter:
        if since >= patience:
            preconditioner, since, patience = preconditioners.refresh(point.unknowns), 0, GROWTH * patience
        if len(memory) and (n_iter % SCALE_STEPS == 0 or len(memory) < FIRST_STEPS or since == 0):
            scale = memory.fit_scale(preconditioner)
        direction = memory.direction(point.gradient, preconditioner, scale)
        next_point, decrement = None, _dot(point.gradient, direction) / -2
        ended = is_enough(point.unknowns, point.value, decrement) and measure(point.value, point.gradient) <= tol
        if n_eval - marked >= STALL_EVALUATIONS:
            is_slow = mark.value - point.value < STALL * abs(point.value)
            ended = ended or (is_slow and measure(point.value, point.gradient) > measure(mark.value, mark.gradient) / 2)
            mark, marked = point, n_eval
        if not ended:
            next_point, trials = yield from _search(point, direction, exact=exact)
            n_eval, since = n_eval + trials, since + trials
        if next_point is None:
            if exact or not limits.ends_exact:
                break
            exact = True  # float32 allows no more progress, and the end must be evaluated in float64
            if measure(point.value, point.gradient) > tol:
                memory.clear()  # the last changes are rounding errors
                scale = 1.0
            point = _Point(point.unknowns, *(yield EvaluationRequest(point.unknowns, exact)))
            n_eval += 1
            mark, marked = point, n_eval
            continue
        step, change = next_point.unknowns - point.unknowns, next_point.gradient - point.gradient
        memory.add(step, change)
        point, n_iter = next_point, n_iter + 1
        if goes_on is not None and not goes_on(point.unknowns, point.value, n_iter):
            break
    if limits.ends_exact and not exact:
        point = _Point(point.unknowns, *(yield EvaluationRequest(point.unknowns, exact=True)))
    decrement = _dot(point.gradient, memory.direction(point.gradient, preconditioner, scale)) / -2
    return Minimum(point.unknowns, point.value, point.gradient, n_iter, decrement)


def _dot(a: Tensor, b: Tensor) -> float:
    """Return the scalar product of two tensors of the same shape."""
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))


class _Pairs:
    """The last pairs of steps s and changes y of the gradient, and the scalar products of all pairs.

    With the scalar products, a direction takes four products with a matrix instead of four operations for each pair.
    The rows of the matrices are reused in turn, so the oldest pair is not always in the first row.
    """

    def __init__(self, start: Tensor) -> None:
        self.shape = start.shape
        self.steps = start.new_zeros(MEMORY, start.numel())
        self.changes = torch.zeros_like(self.steps)
        self.products = np.zeros((MEMORY, MEMORY))  # s_i . y_j
        self.rows: list[int] = []  # row of each pair, the oldest pair first

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.rows)

    def clear(self) -> None:
        """Forget all pairs."""
        self.rows.clear()

    def add(self, step: Tensor, change: Tensor) -> None:
        """Add a pair, in place of the oldest one if the memory is full. A pair without curvature is ignored."""
        if not _dot(step, change) > 0:
            return
        row = self.rows.pop(0) if len(self.rows) == MEMORY else min(set(range(MEMORY)).difference(self.rows))
        self.steps[row], self.changes[row] = step.reshape(-1), change.reshape(-1)
        self.products[row] = (self.changes @ self.steps[row]).cpu().numpy()
        self.products[:, row] = (self.steps @ self.changes[row]).cpu().numpy()
        self.rows.append(row)

    def fit_scale(self, preconditioner: Preconditioner) -> float:
        """Return the factor that fits the preconditioner P to the last pair (s, y): s.y / y.(P y)."""
        row = self.rows[-1]
        change = self.changes[row]
        return float(self.products[row, row]) / _dot(change, preconditioner.solve(change.view(self.shape)))

    def direction(self, gradient: Tensor, preconditioner: Preconditioner, scale: float) -> Tensor:
        """Return the search direction: the two-loop recursion of Nocedal 1980 with a preconditioner.

        Each loop over the pairs is the solution of a triangular system of their scalar products.
        """
        if not self.rows:
            return preconditioner.solve(gradient) * -scale
        products = self.products[np.ix_(self.rows, self.rows)]
        shares = _solve_upper(products, (self.steps @ gradient.reshape(-1)).cpu().numpy()[self.rows])
        q = gradient.reshape(-1) - self.changes.T @ self._by_row(shares)
        q = preconditioner.solve(q.view(self.shape)).reshape(-1) * scale
        rest = np.diag(products) * shares - (self.changes @ q).cpu().numpy()[self.rows]
        return -(q + self.steps.T @ self._by_row(_solve_upper(products, rest, is_transposed=True))).view(self.shape)

    def _by_row(self, values: np.ndarray) -> Tensor:
        """Return one value for each row of the matrices, 0 for rows without a pair."""
        ordered = np.zeros(MEMORY)
        ordered[self.rows] = values
        return torch.from_numpy(ordered).to(self.steps.device)


def _solve_upper(products: np.ndarray, values: np.ndarray, *, is_transposed: bool = False) -> np.ndarray:
    """Solve a system with the upper triangle of a matrix, or with its transpose."""
    solution, failed = dtrtrs(products, values, trans=int(is_transposed))
    assert not failed, "products of a step and its own change are above 0"
    return solution


def _search(
    point: _Point, direction: Tensor, *, exact: bool
) -> Generator[EvaluationRequest, ValueAndGradient, tuple[_Point | None, int]]:
    """Search along a direction for a point that meets the Wolfe conditions.

    Returns:
        The point, or None if no trial meets the conditions; and the number of evaluated points.
    """
    slope = _dot(point.gradient, direction)
    if not slope < 0:
        return None, 0
    length, low, high = 1.0, 0.0, float("inf")
    slope_low, slope_high = slope, float("nan")
    for trial in range(1, TRIALS + 1):
        unknowns = point.unknowns + length * direction
        trial_point = _Point(unknowns, *(yield EvaluationRequest(unknowns, exact)))
        new_slope = _dot(trial_point.gradient, direction)
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
