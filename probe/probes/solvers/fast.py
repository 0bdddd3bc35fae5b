"""Fast solver for logistic regression on dense features, with scikit-learn's objective and estimator interface.

The solver minimises several probes together with preconditioned L-BFGS, see `lbfgs.py` and `objective.py`. If a fit
takes many evaluations, the preconditioner is replaced by a better one, see `curvature.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
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
            runs.append(_Run(objective, probe, start, tol=tol * norms[probe], max_iter=max_iter, ends_exact=ends_exact))
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
        self.without_features = objective.loss.without_features(probe)
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
            excess=length / (2 * self.objective.penalties[self.probe]),
            needs_curvature=self.needs_curvature,
        )


class FastLogisticRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """Logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression(solver="lbfgs")` defines it.

    Of two classes one row of weights, of more the multinomial loss; the intercept is not penalised. Products are in the
    features' type, float32 or float64; coefficients are float64.

    Args:
        C: inverse strength of the penalty on the sum of the losses, above 0.
        tol: largest component of the gradient at which a fit may stop, relative to its value at weights of zero. The
            fit continues if the objective is still far from its minimum, as with one feature much larger than the rest.
        max_iter: most steps.
        device: `cpu`, `cuda`, ...: where to compute.

    Attributes:
        classes_: (k,), sorted.
        coef_: float64 (k, d), or (1, d) of two classes.
        intercept_: float64 (k,), or (1,).
        n_iter_: int32 (1,), steps.
        objective_: the minimum, mean loss and penalty over n.
        gradient_ratio_: largest component of the gradient there, relative to that at weights of zero.
        excess_: how far `objective_` can be above the true minimum, see `Solution`.

    Raises:
        ValueError: features or labels that scikit-learn's estimator would not take either.

    A fit that ends before it converges gives scikit-learn's `ConvergenceWarning`. With the default `tol` the objective
    is within 1e-7 of its minimum where classes overlap; of separable classes under a weak penalty it can be 1e-5 above,
    a share of next to nothing, which a smaller `tol` takes away.
    """

    def __init__(
        self,
        C: float = 1.0,  # noqa: N803 - the field's name
        *,
        tol: float = TOL,
        max_iter: int = 1000,
        device: str = "cpu",
    ) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(self, X: np.ndarray, y: np.ndarray) -> FastLogisticRegression:  # noqa: N803 - scikit-learn's name
        """Fit on features float (n, d) and labels (n,) of two classes or more."""
        if not isinstance(self.C, int | float | np.number) or not 0 < self.C < float("inf"):
            raise ValueError(f"C is {self.C!r}; give a number above 0")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], order="C")  # noqa: N806 - scikit-learn's name
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"there is one class, {self.classes_[0]!r}; a classifier needs samples of at least 2 classes"
            )
        rows = Rows([X], self.device)
        objective = Objective(rows, loss_of(targets, len(self.classes_), rows.device), [self.C])
        (solution,) = solve(objective, tol=self.tol, max_iter=self.max_iter)
        self.coef_, self.intercept_ = coefficients(rows, solution)
        self.n_iter_ = np.array([solution.minimum.n_iter], np.int32)
        self.objective_ = solution.minimum.objective
        self.gradient_ratio_, self.excess_ = solution.gradient_ratio, solution.excess
        if not solution.converged:
            warnings.warn(
                f"the gradient is {solution.gradient_ratio:.1e} of its start, and the objective is about "
                f"{solution.suboptimality:.1e} above its minimum, after {solution.minimum.n_iter} steps; raise "
                "max_iter, or tol, or scale the features",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Logits (n, k), classes as in `classes_`; of two classes (n,), those of the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806 - scikit-learn's name
        logits: np.ndarray = X @ self.coef_.T.astype(X.dtype) + self.intercept_
        return logits[:, 0] if len(self.coef_) == 1 else logits

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """The likeliest class (n,), one of `classes_`."""
        logits = self._logits(X)
        return np.asarray(self.classes_[logits.argmax(axis=1)])

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Probabilities (n, k), classes as in `classes_`."""
        return np.asarray(softmax(self._logits(X), axis=1))

    def predict_log_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Logarithms of `predict_proba`."""
        return np.asarray(log_softmax(self._logits(X), axis=1))

    def _logits(self, x: np.ndarray) -> np.ndarray:
        """(n, k), of two classes too."""
        logits = self.decision_function(x)
        return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], axis=1)


def loss_of(targets: np.ndarray, num_classes: int, device: torch.device) -> Loss:
    """The loss of one label an image: int64 (n,) in [0, num_classes); of two classes the logit of the second."""
    labels = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64)).to(device)
    if num_classes > 2:
        return Softmax(labels, num_classes)
    return Logistic(labels[:, None], torch.zeros(1, dtype=torch.int64, device=device))


def coefficients(rows: Rows, solution: Solution) -> tuple[np.ndarray, np.ndarray]:
    """Return weights float64 (width, d) for the original features, and intercepts float64 (width,)."""
    weights = rows.weights_of(solution.minimum.unknowns).cpu().numpy()
    return np.ascontiguousarray(weights[:-1].T), weights[-1]
