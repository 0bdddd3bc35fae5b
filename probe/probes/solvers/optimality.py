"""Measure how far a fit is from its optimum, independently of the scales of its features.

The size of the gradient does not show this distance. Its largest component belongs to the feature with the largest
values, and a fit can reduce this component while all others stay as they were.

Newton's decrement shows the distance: g^T H^-1 g / 2, for the gradient g and the Hessian H at the end of the fit,
estimates the difference between the objective and its minimum. The decrement does not depend on the scales of the
features. It is computed by conjugate gradients. If features are nearly equal, a few steps of conjugate gradients can
underestimate the decrement. So a fit counts as converged only if an upper bound of the decrement is negligible.

The measurement also gives a step of Newton's method. With this step, `finish` continues a fit that stopped early.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probe.probes.solvers.decrement import bound_decrement
from probe.probes.solvers.evaluation import evaluate
from probe.probes.solvers.objective import Objective

MAX_NEWTON_STEPS = 50
MAX_HALVINGS, ARMIJO = 30, 1e-4  # of a line search: number of trials, and sufficient share of the expected decrease


@dataclass(frozen=True)
class Optimality:
    """Distance of a fit from its optimum.

    Args:
        objective: mean loss plus penalty, in float64.
        gradient: float64 (d + 1, width), for the weights of the unscaled features; the last row is the intercept's.
        suboptimality: estimate of how far the objective is above its minimum: Newton's decrement, or a lower bound of
            it if the Hessian is large.
        converged: True if an upper bound of the decrement is negligible, see `is_negligible`.
        step: float64 (d + 1, width), step of Newton's method, or an approximation of this step.
    """

    objective: float
    gradient: Tensor
    suboptimality: float
    converged: bool
    step: Tensor


def measure_optimality(objective: Objective, probe: int, weights: Tensor, *, num_iter: int) -> Optimality:
    """Measure how far a fit is from its optimum.

    The fit has converged if an upper bound of Newton's decrement g^T H^-1 g / 2 is negligible. Conjugate gradients give
    a lower bound. For their residual r, the upper bound is the lower bound plus an upper bound of r^T H^-1 r / 2, which
    holds because H is at least the penalty.

    The objective and the gradient are computed in float64. Products with H are first computed with the whitened
    features, if the solver has made them, and then with standardised features in their dtype. If this leaves open
    whether the fit has converged, they are computed in float64.

    Args:
        objective: objective of one or several probes.
        probe: index of the probe.
        weights: float64 (d + 1, width), for the unscaled features; the last row is the intercept.
        num_iter: iterations of the fit, which limit the number of steps of conjugate gradients.
    """
    end = evaluate(objective, probe, weights)
    bounds = bound_decrement(objective, probe, weights, end, num_iter=num_iter)
    return Optimality(end.value, end.gradient, bounds.lower, end.is_negligible(bounds.upper), bounds.step)


@dataclass(frozen=True)
class Finish:
    """End of a fit after `finish`.

    Args:
        weights: float64 (d + 1, width), for the unscaled features; the last row is the intercept.
        optimality: distance of the weights from the optimum.
        num_steps: number of steps of Newton's method.
    """

    weights: Tensor
    optimality: Optimality
    num_steps: int


def finish(objective: Objective, probe: int, weights: Tensor, *, num_iter: int, max_steps: int) -> Finish:
    """Measure the end of a fit and, if it has not converged, continue with Newton's method in float64.

    Outliers can hide from a solver with products in float32 that it is far from the optimum.

    See `measure_optimality` for the arguments; `max_steps` limits the steps of Newton's method.
    """
    optimality = measure_optimality(objective, probe, weights, num_iter=num_iter)
    num_steps = 0
    while not optimality.converged and num_steps < min(max_steps, MAX_NEWTON_STEPS):
        lower = _search(objective, probe, weights, optimality)
        if lower is None:
            break
        weights, num_steps = lower, num_steps + 1
        optimality = measure_optimality(objective, probe, weights, num_iter=num_iter)
    return Finish(weights, optimality, num_steps)


def _search(objective: Objective, probe: int, weights: Tensor, optimality: Optimality) -> Tensor | None:
    """Return weights with a lower objective in the direction of Newton's step, or None if there are none."""
    slope, length = float((optimality.gradient * optimality.step).sum()), 1.0
    for _ in range(MAX_HALVINGS):
        trial = weights + length * optimality.step
        if evaluate(objective, probe, trial).value < optimality.objective + ARMIJO * length * slope:
            return trial
        length /= 2
    return None
