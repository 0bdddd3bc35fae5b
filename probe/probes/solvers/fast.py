"""Fast solver for logistic regression on dense features, with scikit-learn's objective and estimator interface.

The solver minimises several probes together with preconditioned L-BFGS, see `lbfgs.py` and `objective.py`. If a fit
takes many evaluations, the preconditioner is replaced by a better one, see `curvature.py`.
"""

from __future__ import annotations

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
from probe.probes.solvers.curvature import Preconditioner
from probe.probes.solvers.lbfgs import EvaluationRequest, Minimum, Steps, minimise
from probe.probes.solvers.objective import Logistic, Loss, Objective, Rows, Softmax
from probe.probes.solvers.optimality import is_negligible

TOL = 1e-6  # default limit of max |gradient| relative to its value at weights of zero
# If classes are separable and the penalty is weak, the loss becomes small, and so does its gradient. If the objective
# is below this share of its value at weights of zero, the limit of the gradient is reduced in proportion, see
# `distance`.
SMALL = 1e-3
PATIENCE = 25  # smallest number of evaluations before the preconditioner is replaced
MARGIN = 100  # factor by which a fit must be below `optimality.LIMIT`, because its own estimate can be too small


@dataclass(frozen=True)
class Start:
    """Starting point of a minimisation.

    Args:
        unknowns: float64 (d + 1, width).
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
        objective: of one probe or several.
        starts: where each begins; None is at weights of zero.
        tol: when to stop, relative to the gradient at zero.
        max_tol: when to stop, as the largest component of the gradient; the smaller of both counts.
        max_iter: most steps.
        ends_exact: go on in float64 where float32 has said all it can, and measure the end there.
        tick: is told the number of every pass over the data.
        done: is given each probe's number and solution as soon as it is there.
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
        else:  # balanced classes and features that tell nothing: zero is the optimum, and its gradient is rounding
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
            self._refresh(start.unknowns) if start.needs_curvature else curvature.at_zero(objective, probe),
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
    """scikit-learn's `LogisticRegression` with a different minimiser: it converges, and takes a fraction of the time.

    Parameters and attributes mean what they mean in `sklearn.linear_model.LogisticRegression`, with an L2 penalty and
    the multinomial loss. A fit ends when the largest component of the gradient is at most `tol`, and at most a
    millionth of its value at weights of zero, and the objective is as good as its minimum whatever the scales of the
    features, see `optimality.is_negligible`. A fit that ends earlier gives scikit-learn's `ConvergenceWarning`.

    Args:
        C: inverse strength of the L2 penalty on the sum of the losses, above 0. `np.inf` is no penalty.
        l1_ratio: 0, because there is no L1 penalty here.
        tol: largest component of the gradient of the objective at which a fit may stop.
        fit_intercept: fit an intercept, which is not penalised.
        class_weight: weight of each class as a dict, or `balanced`; None weights all classes equally.
        random_state: has no effect, because the fit does not depend on chance.
        max_iter: largest number of steps.
        verbose: if above 0, print how the fit ended.
        warm_start: start at the coefficients of the previous fit.
        device: `cpu`, `cuda` and so on: where torch computes.

    Attributes:
        classes_: (k,), sorted.
        coef_: (k, d) in the type of the features, or (1, d) for two classes.
        intercept_: (k,), or (1,) for two classes.
        n_iter_: int32 (1,), number of steps.
        objective_: value at the end: the weighted mean loss, plus ||coef_||^2 / (2 C n).
        gradient_ratio_: largest component of the gradient at the end, divided by that at weights of zero.
        excess_: upper bound of the distance from `objective_` to its minimum, see `Solution`.

    Raises:
        ValueError: parameters, features or labels that scikit-learn's estimator refuses; sparse features; an L1
            penalty.
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
    # Methods of the parent ask for these parameters. They are fixed here, and no parameters.
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
            X: float32 or float64 (n, d); products are computed in its type.
            y: (n,), labels of two classes or more.
            sample_weight: float (n,), the weight of each row; None weights all rows equally.
        """
        self._validate_params()
        if self.l1_ratio != 0:
            raise ValueError(f"l1_ratio must be 0, got {self.l1_ratio}; only LogisticRegression has an L1 penalty")
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
        if loss.width > 1:  # the optimum sums to zero over the classes; rounding does not
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
            print(f"{type(self).__name__}: after {self.n_iter_[0]} iterations {ending}")  # noqa: T201 - what it is for
        if not solution.converged:
            message = (
                f"preconditioned lbfgs failed to converge after {self.n_iter_[0]} iterations: {ending}. Increase "
                "max_iter or tol, or scale the data."
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

    def _row_weights(
        self, x: np.ndarray, y: np.ndarray, targets: np.ndarray, sample_weight: np.ndarray | None
    ) -> np.ndarray | None:
        """Return the weights of rows by `sample_weight` and `class_weight`, float64 (n,), or None if all are equal."""
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
        """Return scikit-learn's tags: unlike its parent, the estimator takes only dense NumPy arrays."""
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.array_api_support = False
        return tags


def loss_of(targets: np.ndarray, num_classes: int, device: torch.device, row_weights: np.ndarray | None = None) -> Loss:
    """Return the loss of one label per image: the multinomial loss, or of two classes that of the second's logit.

    Args:
        targets: int64 (n,) in [0, num_classes).
        num_classes: number of classes, 2 or more.
        device: where the labels are to be.
        row_weights: float (n,), the weight of each image; None weights all images equally.
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
