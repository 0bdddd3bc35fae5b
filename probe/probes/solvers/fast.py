"""Fast solver for logistic regression on dense features, with scikit-learn's objective.

The solver minimises several probes together with preconditioned L-BFGS, see `lbfgs.py` and `objective.py`. If a fit
takes many evaluations, the preconditioner is replaced by a better one, see `curvature.py`. `estimator.py` gives the
solver the interface of scikit-learn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from probe.probes.solvers import curvature
from probe.probes.solvers.curvature import Estimates, Preconditioner
from probe.probes.solvers.evaluation import is_negligible
from probe.probes.solvers.lbfgs import EvaluationRequest, Limits, Minimum, Preconditioners, Steps, minimise
from probe.probes.solvers.objective import Logistic, Loss, Objective, Rows, Softmax

logger = logging.getLogger(__name__)

# Takes the index of a probe, its unknowns, the value of its objective and the number of its steps.
GoesOn = Callable[[int, Tensor, float, int], bool]

TOL = 1e-6  # default limit of max |gradient| relative to its value at weights of zero
DEFAULT_LIMITS = Limits(TOL)
# If classes are separable and the penalty is weak, the loss becomes small, and so does its gradient. If the objective
# is below this share of its value at weights of zero, the limit of the gradient is reduced in proportion, see
# `distance`.
SMALL = 1e-3
PATIENCE = 25  # smallest number of evaluations before the preconditioner is replaced
MARGIN = 100  # factor by which a fit must be below `evaluation.LIMIT`, because its own estimate can be too small


@dataclass
class Start:
    """Starting point of one or several minimisations.

    Args:
        unknowns: float64 (r + 1, width), see `Rows.num_components`.
        needs_curvature: if True, begin with a preconditioner from the Hessian at the starting point.
    """

    unknowns: Tensor
    needs_curvature: bool = False


@dataclass(frozen=True)
class Solution:
    """End of the minimisation of one probe.

    Args:
        minimum: end point of the minimisation.
        gradient_norm: max |g|, where g is the gradient with respect to the weights of the original features.
        gradient_ratio: `gradient_norm` divided by its value at weights of zero.
        suboptimality: estimate of the difference between the objective and its minimum.
        is_optimal: True if `suboptimality` is negligible, see `evaluation.is_negligible`.
        converged: True if `is_optimal` and `gradient_ratio` is at most `tol`. If the loss is small, the limit is lower,
            see `distance`.
        excess: upper bound of the difference between the objective and its minimum, if the intercept is optimal:
            ||g||^2 C n / 2.
        needs_curvature: True if the minimisation began with, or switched to, a preconditioner from an estimate of the
            Hessian. A fit at a neighbouring C should begin with such a preconditioner.
        ended_early: True if `goes_on` ended the minimisation, see `solve`. Then `is_optimal` and `converged` are False.
    """

    minimum: Minimum
    gradient_norm: float
    gradient_ratio: float
    suboptimality: float
    is_optimal: bool
    converged: bool
    excess: float
    needs_curvature: bool
    ended_early: bool


def solve(
    objective: Objective,
    limits: Limits = DEFAULT_LIMITS,
    *,
    starts: Sequence[Start] | None = None,
    estimates: Estimates | None = None,
    max_tol: float = float("inf"),
    goes_on: GoesOn | None = None,
    tick: Callable[[int], None] | None = None,
    done: Callable[[int, Solution], None] | None = None,
) -> list[Solution]:
    """Minimise all probes of an objective together.

    Args:
        objective: objective of one or several probes.
        limits: limits of each probe; `tol` is relative to max |gradient| at weights of zero.
        starts: starting point of each probe. None starts all probes from weights of zero.
        estimates: estimates of the Hessian from earlier calls with the same rows and labels. New estimates are added.
        max_tol: limit of max |gradient|. The smaller of both limits applies.
        goes_on: called after each step of each probe. It returns False to end the minimisation of the probe.
        tick: called with the number of each pass over the data.
        done: called with the index and the solution of each probe as soon as it is finished.
    """
    probes = range(len(objective.penalties))
    estimates = Estimates() if estimates is None else estimates
    zero = objective.zeros()
    first = _gradients(objective, zero, exact=False)
    if any(_is_rounding(objective.rows, gradient, objective.rows.dtype) for gradient in first):
        first = _gradients(objective, zero, exact=True)
    norms = [float(gradient.abs().max()) for gradient in first]
    runs = []
    for probe, start in zip(probes, starts or [Start(zero) for _ in probes], strict=True):
        if not _is_rounding(objective.rows, first[probe], torch.float64):
            tol = min(limits.tol * norms[probe], max_tol)
            runs.append(_Run(objective, probe, start, estimates, replace(limits, tol=tol), goes_on))
        else:  # balanced classes and uninformative features: zero is the optimum, and its gradient is rounding error
            norms[probe] = 0.0
            runs.append(
                _Run(objective, probe, Start(zero), estimates, replace(limits, tol=float("inf"), ends_exact=True))
            )
    solutions: dict[int, Solution] = {}
    active = runs
    while active:
        for exact in sorted({one.request.exact for one in active}):
            group = [one for one in active if one.request.exact == exact]
            points = [one.request.unknowns for one in group]
            evaluations = objective.evaluate(points, [one.probe for one in group], exact=exact)
            if tick is not None:
                tick(objective.num_passes)
            for one, evaluation in zip(group, evaluations, strict=True):
                if one.advance(evaluation):
                    solutions[one.probe] = one.solution(norms[one.probe])
                    if done is not None:
                        done(one.probe, solutions[one.probe])
        active = [one for one in active if one.probe not in solutions]
    return [solutions[probe] for probe in probes]


def distance(gradient: float, value: float, at_zero: float) -> float:
    """Return the size of a gradient, increased if the objective is far below its value at weights of zero.

    It is `gradient` * max(1, SMALL * `at_zero` / `value`).
    """
    return gradient * max(1.0, SMALL * at_zero / value) if value > 0 else gradient


def _gradients(objective: Objective, unknowns: Tensor, *, exact: bool) -> list[Tensor]:
    """Return the gradient of each probe at the same unknowns, with respect to the weights of the original features."""
    probes = range(len(objective.penalties))
    evaluations = objective.evaluate([unknowns for _ in probes], probes, exact=exact)
    return [objective.rows.by_weights(gradient) for _, gradient in evaluations]


def _norm(objective: Objective, gradient: Tensor) -> float:
    """Return max |g| with respect to the weights of the original features, ignoring components that are rounding error.

    If the features are tiny, the gradient of the intercept is larger than all others but can be only rounding error.
    """
    sizes = objective.rows.by_weights(gradient).abs()
    return float(sizes.masked_fill_(sizes <= objective.rows.rounding * torch.finfo(torch.float64).eps, 0.0).max())


def _is_rounding(rows: Rows, gradient: Tensor, dtype: torch.dtype) -> bool:
    """Return True if rounding errors in `dtype` can explain a gradient with respect to the weights."""
    return bool((gradient.abs() <= rows.rounding * torch.finfo(dtype).eps).all())


class _Run:
    """Minimisation of one probe that waits for an evaluation of its objective, `request`."""

    def __init__(
        self,
        objective: Objective,
        probe: int,
        start: Start,
        estimates: Estimates,
        limits: Limits,
        goes_on: GoesOn | None = None,
    ) -> None:
        self.objective, self.probe, self.tol, self.estimates = objective, probe, limits.tol, estimates
        self.goes_on, self.ended_early = goes_on, False
        self.estimated_at: Tensor | None = None  # unknowns of the last estimate, whose memory `estimates` can free
        loss = objective.loss
        self.without_features = loss.without_features(probe) if objective.rows.has_intercept else loss.at_zero
        margin = MARGIN if limits.ends_exact else 1
        patience = max(PATIENCE, curvature.passes(objective))
        first = self._estimate(start.unknowns) if start.needs_curvature else curvature.at_zero(objective, probe)
        self.steps: Steps = minimise(
            start.unknowns,
            Preconditioners(first, self._estimate, patience=patience),
            limits,
            measure=self._measure,
            is_enough=lambda unknowns, value, decrement: self._is_optimal(unknowns, value, margin * decrement),
            goes_on=self._goes_on,
        )
        self.request: EvaluationRequest = next(self.steps)
        self.minimum: Minimum | None = None

    def advance(self, evaluation: tuple[float, Tensor]) -> bool:
        """Continue with the requested value and gradient. Return True if the minimisation has ended."""
        try:
            self.request = self.steps.send(evaluation)
        except StopIteration as end:
            self.minimum = end.value
            return True
        return False

    def _measure(self, value: float, gradient: Tensor) -> float:
        return distance(_norm(self.objective, gradient), value, self.objective.loss.at_zero)

    def _is_optimal(self, unknowns: Tensor, value: float, decrement: float) -> bool:
        basis, strength = self.objective.rows.basis, self.objective.penalties[self.probe]
        penalty = strength * float((basis.penalty[:, None] * unknowns.square()).sum()) / 2
        if self.tol == float("inf"):  # uninformative features
            return True
        return is_negligible(decrement, objective=value, without_features=self.without_features, penalty=penalty)

    def _goes_on(self, unknowns: Tensor, value: float, num_steps: int) -> bool:
        self.ended_early = self.goes_on is not None and not self.goes_on(self.probe, unknowns, value, num_steps)
        return not self.ended_early

    def _estimate(self, unknowns: Tensor) -> Preconditioner:
        estimate = self.estimates.find(self.objective, self.probe, unknowns, used=self.estimated_at)
        self.estimated_at = estimate.unknowns
        return estimate.invert(self.objective, self.probe)

    def solution(self, norm: float) -> Solution:
        """Return the solution after the minimisation has ended.

        Args:
            norm: max |g| at weights of zero.
        """
        assert self.minimum is not None
        gradient_norm = _norm(self.objective, self.minimum.gradient)
        squared_norm = float(self.objective.rows.by_weights(self.minimum.gradient).square().sum())
        is_optimal = not self.ended_early and self._is_optimal(
            self.minimum.unknowns, self.minimum.objective, self.minimum.decrement
        )
        return Solution(
            self.minimum,
            gradient_norm=gradient_norm,
            gradient_ratio=gradient_norm / norm if norm else 0.0,
            suboptimality=self.minimum.decrement,
            is_optimal=is_optimal,
            converged=is_optimal and self._measure(self.minimum.objective, self.minimum.gradient) <= self.tol,
            excess=squared_norm / (2 * penalty) if (penalty := self.objective.penalties[self.probe]) else float("inf"),
            needs_curvature=self.estimated_at is not None,
            ended_early=self.ended_early,
        )


def loss_of(targets: np.ndarray, num_classes: int, device: torch.device, row_weights: np.ndarray | None = None) -> Loss:
    """Return the loss for images with one label each: multinomial, or binary for two classes.

    Args:
        targets: int64 (n,), class indices in [0, num_classes).
        num_classes: number of classes, 2 or more. With two classes there is one logit, for the second class.
        device: where the labels are stored.
        row_weights: float (n,), weight of each image. None weights all images equally.
    """
    labels = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64)).to(device)
    weights = None if row_weights is None else torch.from_numpy(row_weights).to(device)
    if num_classes > 2:
        return Softmax(labels, num_classes, weights)
    columns = torch.zeros(1, dtype=torch.int64, device=device)
    return Logistic(labels[:, None], columns, row_weights=weights)


def coefficients(rows: Rows, unknowns: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return weights float64 (width, d) for the original features, and intercepts float64 (width,)."""
    weights = rows.weights_of(unknowns).cpu().numpy()
    return np.ascontiguousarray(weights[:-1].T), weights[-1]
