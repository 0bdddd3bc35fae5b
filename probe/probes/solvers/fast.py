"""Fast solver for logistic regression on dense features, with scikit-learn's objective and estimator interface.

The solver minimises several probes together with preconditioned L-BFGS, see `lbfgs.py` and `objective.py`. If a fit
takes many evaluations, the preconditioner is replaced by a better one, see `curvature.py`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from probe.probes.solvers import curvature
from probe.probes.solvers.curvature import HessianBlock, Preconditioner
from probe.probes.solvers.lbfgs import EvaluationRequest, Minimum, Steps, minimise
from probe.probes.solvers.objective import Logistic, Loss, Objective, Rows, Softmax
from probe.probes.solvers.optimality import is_negligible

logger = logging.getLogger(__name__)

TOL = 1e-6  # default limit of max |gradient| relative to its value at weights of zero
# If classes are separable and the penalty is weak, the loss becomes small, and so does its gradient. If the objective
# is below this share of its value at weights of zero, the limit of the gradient is reduced in proportion, see
# `distance`.
SMALL = 1e-3
PATIENCE = 25  # smallest number of evaluations before the preconditioner is replaced
MARGIN = 100  # factor by which a fit must be below `optimality.LIMIT`, because its own estimate can be too small


@dataclass
class Start:
    """Starting point of one or several minimisations.

    Args:
        unknowns: float64 (d + 1, width).
        needs_curvature: if True, begin with a preconditioner from the Hessian at the starting point.
        hessian: estimate of the Hessian of the loss, made when it is first needed. All probes that share the starting
            point must have the same loss.
    """

    unknowns: Tensor
    needs_curvature: bool = False
    hessian: Sequence[HessianBlock] | None = None

    def precondition(self, objective: Objective, probe: int) -> Preconditioner:
        """Return the initial preconditioner of a probe of an objective."""
        if not self.needs_curvature:
            return curvature.at_zero(objective, probe)
        if self.hessian is None:
            self.hessian = curvature.estimate_hessian(objective, probe, self.unknowns)
        return curvature.invert(objective, probe, self.hessian)


@dataclass(frozen=True)
class Solution:
    """End of the minimisation of one probe.

    Args:
        minimum: end point of the minimisation.
        gradient_norm: max |g|, where g is the gradient with respect to the weights of the original features.
        gradient_ratio: `gradient_norm` divided by its value at weights of zero.
        suboptimality: estimate of the difference between the objective and its minimum.
        is_optimal: True if `suboptimality` is negligible, see `optimality.is_negligible`.
        converged: True if `is_optimal` and `gradient_ratio` is at most `tol`. If the loss is small, the limit is lower,
            see `distance`.
        excess: upper bound of the difference between the objective and its minimum, if the intercept is optimal:
            ||g||^2 C n / 2.
        needs_curvature: True if the minimisation began with, or switched to, a preconditioner from an estimate of the
            Hessian. A fit at a neighbouring C should begin with such a preconditioner.
    """

    minimum: Minimum
    gradient_norm: float
    gradient_ratio: float
    suboptimality: float
    is_optimal: bool
    converged: bool
    excess: float
    needs_curvature: bool


def solve(
    objective: Objective,
    *,
    starts: Sequence[Start] | None = None,
    tol: float = TOL,
    max_tol: float = float("inf"),
    max_iter: int = 1000,
    ends_exact: bool = True,
    tick: Callable[[int], None] | None = None,
    done: Callable[[int, Solution], None] | None = None,
) -> list[Solution]:
    """Minimise all probes of an objective together.

    Args:
        objective: objective of one or several probes.
        starts: starting point of each probe. None starts all probes from weights of zero.
        tol: limit of max |gradient| relative to its value at weights of zero.
        max_tol: limit of max |gradient|. The smaller of both limits applies.
        max_iter: largest number of steps of each probe.
        ends_exact: if True, continue in float64 when float32 allows no more progress, and evaluate the end in float64.
        tick: called with the number of each pass over the data.
        done: called with the index and the solution of each probe as soon as it is finished.
    """
    probes = range(len(objective.penalties))
    zero = objective.zeros()
    first = _gradients(objective, zero, exact=False)
    if any(_is_rounding(objective.rows, gradient, objective.rows.dtype) for gradient in first):
        first = _gradients(objective, zero, exact=True)
    norms = [float(gradient.abs().max()) for gradient in first]
    runs = []
    for probe, start in zip(probes, starts or [Start(zero) for _ in probes], strict=True):
        if not _is_rounding(objective.rows, first[probe], torch.float64):
            limit = min(tol * norms[probe], max_tol)
            runs.append(_Run(objective, probe, start, tol=limit, max_iter=max_iter, ends_exact=ends_exact))
        else:  # balanced classes and uninformative features: zero is the optimum, and its gradient is rounding error
            norms[probe] = 0.0
            runs.append(_Run(objective, probe, Start(zero), tol=float("inf"), max_iter=max_iter, ends_exact=True))
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

    Args:
        gradient: max |gradient|.
        value: value of the objective.
        at_zero: value of the objective at weights of zero.
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
        self, objective: Objective, probe: int, start: Start, *, tol: float, max_iter: int, ends_exact: bool
    ) -> None:
        self.objective, self.probe, self.tol = objective, probe, tol
        loss = objective.loss
        self.without_features = loss.without_features(probe) if objective.rows.has_intercept else loss.at_zero
        margin = MARGIN if ends_exact else 1
        self.needs_curvature = start.needs_curvature
        patience = max(PATIENCE, curvature.passes(objective))
        self.steps: Steps = minimise(
            start.unknowns,
            start.precondition(objective, probe),
            refresh=self._refresh,
            measure=self._measure,
            is_enough=lambda unknowns, value, decrement: self._is_optimal(unknowns, value, margin * decrement),
            patience=patience,
            tol=tol,
            max_iter=max_iter,
            ends_exact=ends_exact,
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

    def _refresh(self, unknowns: Tensor) -> Preconditioner:
        self.needs_curvature = True
        return curvature.at(self.objective, self.probe, unknowns)

    def solution(self, norm: float) -> Solution:
        """Return the solution after the minimisation has ended.

        Args:
            norm: max |g| at weights of zero.
        """
        assert self.minimum is not None
        gradient_norm = _norm(self.objective, self.minimum.gradient)
        length = float(self.objective.rows.by_weights(self.minimum.gradient).square().sum())  # squared
        is_optimal = self._is_optimal(self.minimum.unknowns, self.minimum.objective, self.minimum.decrement)
        return Solution(
            self.minimum,
            gradient_norm=gradient_norm,
            gradient_ratio=gradient_norm / norm if norm else 0.0,
            suboptimality=self.minimum.decrement,
            is_optimal=is_optimal,
            converged=is_optimal and self._measure(self.minimum.objective, self.minimum.gradient) <= self.tol,
            excess=length / (2 * penalty) if (penalty := self.objective.penalties[self.probe]) else float("inf"),
            needs_curvature=self.needs_curvature,
        )


class FastLogisticRegression(LogisticRegression):  # type: ignore[misc]  # untyped
    """scikit-learn's `LogisticRegression` with a minimiser that is faster and reaches the optimum.

    Parameters and attributes have the same meaning as in `sklearn.linear_model.LogisticRegression`, with an L2 penalty
    and the multinomial loss.

    A fit ends when all of these conditions hold. A fit that ends earlier gives scikit-learn's `ConvergenceWarning`.

    - max |gradient| is at most `tol`.
    - max |gradient| is at most 1e-6 times its value at weights of zero.
    - The difference between the objective and its minimum is negligible, see `optimality.is_negligible`. This condition
      does not depend on the scales of the features.

    Args:
        C: inverse strength of the L2 penalty on the sum of the losses, above 0. `np.inf` disables the penalty;
            separable classes then have no optimum.
        l1_ratio: must be 0, because L1 penalties are not supported.
        tol: limit of max |gradient| of the objective.
        fit_intercept: if True, fit an intercept, which is not penalised.
        class_weight: weight of each class as a dict, or `balanced`. None weights all classes equally.
        random_state: not used, because the fit is deterministic.
        max_iter: largest number of steps.
        verbose: if above 0, log the convergence of the fit at level INFO.
        warm_start: if True, start from the coefficients of the previous fit.
        device: torch device that computes, such as `cpu` or `cuda`.

    Attributes:
        classes_: (k,), labels of the classes, sorted.
        coef_: (k, d) in the dtype of the features, or (1, d) for two classes.
        intercept_: (k,), or (1,) for two classes.
        n_iter_: int32 (1,), number of steps.
        objective_: weighted mean loss + ||coef_||^2 / (2 C n) at the end of the fit.
        gradient_ratio_: max |gradient| at the end of the fit, relative to its value at weights of zero.
        excess_: upper bound of the difference between `objective_` and its minimum, see `Solution`.

    Raises:
        ValueError: scikit-learn's estimator would not accept the parameters, features or labels either; the features
            are sparse; or `l1_ratio` is not 0.
    """

    _parameter_constraints: ClassVar = {
        **{
            name: LogisticRegression._parameter_constraints[name]
            for name in (
                *("C", "l1_ratio", "tol", "fit_intercept", "class_weight"),
                *("random_state", "max_iter", "verbose", "warm_start"),
            )
        },
        "device": [str, torch.device],
    }
    # Methods of the parent class read these parameters, which have fixed values in this class.
    solver, penalty, dual, intercept_scaling, n_jobs = "lbfgs", "deprecated", False, 1, None

    def __init__(
        self,
        *,
        C: float = 1.0,  # noqa: N803 - the field's name
        l1_ratio: float = 0.0,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: Mapping[Any, float] | str | None = None,
        random_state: int | np.random.RandomState | None = None,
        max_iter: int = 1000,
        verbose: int = 0,
        warm_start: bool = False,
        device: str = "cpu",
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.random_state = random_state
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.device = device

    def fit(
        self,
        X: np.ndarray,  # noqa: N803 - scikit-learn's name
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
    ) -> FastLogisticRegression:
        """Fit the model.

        Args:
            X: float32 or float64 (n, d). Products are computed in this dtype.
            y: (n,), labels of at least two classes.
            sample_weight: float (n,), weight of each row. None weights all rows equally.
        """
        self._validate_params()
        if self.l1_ratio != 0:
            raise ValueError(f"l1_ratio must be 0, got {self.l1_ratio}; use LogisticRegression for an L1 penalty")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], order="C")  # noqa: N806 - scikit-learn's name
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{self.classes_[0]!r}"
            )
        rows = Rows([X], self.device, has_intercept=self.fit_intercept)
        loss = loss_of(targets, len(self.classes_), rows.device, self._row_weights(X, y, targets, sample_weight))
        objective = Objective(rows, loss, [float(self.C)])
        start = Start(self._first_unknowns(rows, loss.width))
        (solution,) = solve(objective, starts=[start], tol=TOL, max_tol=self.tol, max_iter=self.max_iter)
        coef, intercept = coefficients(rows, solution)
        if loss.width > 1:  # at the optimum, coefficients sum to zero over the classes; remove rounding errors
            coef, intercept = coef - coef.mean(axis=0), intercept - intercept.mean()
        self.coef_, self.intercept_ = coef.astype(X.dtype), intercept.astype(X.dtype)
        self.n_iter_ = np.array([solution.minimum.n_iter], np.int32)
        self.objective_ = solution.minimum.objective
        self.gradient_ratio_, self.excess_ = solution.gradient_ratio, solution.excess
        ending = (
            f"the largest component of the gradient is {solution.gradient_norm:.1e}, and the objective is about "
            f"{solution.suboptimality:.1e} above its minimum"
        )
        if self.verbose:
            logger.info("%s: after %d iterations %s", type(self).__name__, self.n_iter_[0], ending)
        if not solution.converged:
            advice = (
                "The classes may be separable, so that no optimum exists without a penalty: give a finite C"
                if np.isinf(self.C)
                else "Increase max_iter or tol, or scale the data"
            )
            message = f"preconditioned lbfgs failed to converge after {self.n_iter_[0]} iterations: {ending}. {advice}."
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

    def _row_weights(
        self, x: np.ndarray, y: np.ndarray, targets: np.ndarray, sample_weight: np.ndarray | None
    ) -> np.ndarray | None:
        """Return the product of `sample_weight` and class weights, float64 (n,), or None without both."""
        if sample_weight is None and self.class_weight is None:
            return None
        weights: np.ndarray = _check_sample_weight(
            sample_weight, x, dtype=np.float64, copy=True, ensure_non_negative=True
        )
        if self.class_weight is not None:
            by_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=sample_weight)
            weights *= by_class[targets]
        return weights

    def _first_unknowns(self, rows: Rows, width: int) -> Tensor:
        """Return the unknowns at zero or, with `warm_start`, at the previous coefficients."""
        weights = torch.zeros(rows.num_features + 1, width, dtype=torch.float64, device=rows.device)
        if not (self.warm_start and hasattr(self, "coef_")):
            return weights
        if self.coef_.shape != (width, rows.num_features):
            raise ValueError(
                f"warm_start begins at coef_ of shape {self.coef_.shape}, but these data need "
                f"{(width, rows.num_features)}; fit data of the same shape, or set warm_start=False"
            )
        weights[:-1] = torch.from_numpy(self.coef_.astype(np.float64)).T.to(rows.device)
        if self.fit_intercept:
            weights[-1] = torch.from_numpy(self.intercept_.astype(np.float64)).to(rows.device)
        return rows.unknowns_of(weights)

    def __sklearn_tags__(self) -> Tags:
        """Return scikit-learn's tags. Unlike the parent class, the estimator accepts only dense NumPy arrays."""
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.array_api_support = False
        return tags


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


def coefficients(rows: Rows, solution: Solution) -> tuple[np.ndarray, np.ndarray]:
    """Return weights float64 (width, d) for the original features, and intercepts float64 (width,)."""
    weights = rows.weights_of(solution.minimum.unknowns).cpu().numpy()
    return np.ascontiguousarray(weights[:-1].T), weights[-1]
