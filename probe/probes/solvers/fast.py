"""A fast solver for logistic regression on dense features: scikit-learn's problem, optimum and estimator interface.

Preconditioned L-BFGS (`lbfgs.py`) on as many probes at once as are wanted (`objective.py`), with a preconditioner that
is made anew where a fit takes long (`curvature.py`).
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
from probe.probes.solvers.lbfgs import Dialogue, Minimum, Question, minimise
from probe.probes.solvers.objective import Logistic, Loss, Objective, Rows, Softmax
from probe.probes.solvers.optimality import is_negligible

TOL = 1e-6  # of the gradient's largest component, relative to that at weights of zero
# Where the loss is below this share of what it began at, as that of separable classes under a weak penalty, the
# gradient has to be smaller than `TOL` by as much: else it would say nothing of how near the minimum is.
SMALL = 1e-3
PATIENCE = 25  # evaluations at least before a preconditioner is made
MARGIN = 100  # factor by which a fit goes below `optimality.LIMIT`, because its own estimate can be too small


@dataclass(frozen=True)
class Start:
    """Where a minimisation begins.

    `unknowns` are float64 (d + 1, width); `needs_curvature` asks for the curvature there to begin with.
    """

    unknowns: Tensor
    needs_curvature: bool = False


@dataclass(frozen=True)
class Solution:
    """A probe at its optimum, or as near as was possible.

    Args:
        minimum: where the minimisation ended.
        gradient_norm: largest component of the gradient by the weights of the features as they are.
        gradient_ratio: that, relative to its value at weights of zero.
        suboptimality: estimate of how far the objective is above its minimum.
        is_optimal: True if `suboptimality` is negligible, see `optimality.is_negligible`.
        converged: True if `is_optimal` and `gradient_ratio` is at most `tol`. If the loss is small, the limit is lower,
            see `distance`.
        excess: how far the objective can be above its minimum at most: the squared length of the gradient over twice
            the strength of the penalty. It holds for the intercept at its best.
        needs_curvature: the curvature was estimated, at its start or on the way, as it should be for a neighbouring C.
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
    """Minimise all probes of an objective, side by side.

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
    asking = runs
    while asking:
        for exact in sorted({run.question.exact for run in asking}):
            group = [run for run in asking if run.question.exact == exact]
            points = [run.question.unknowns for run in group]
            answers = objective.evaluate(points, [run.probe for run in group], exact=exact)
            if tick is not None:
                tick(objective.num_passes)
            for run, answer in zip(group, answers, strict=True):
                if run.tell(answer):
                    solutions[run.probe] = run.solution(norms[run.probe])
                    if done is not None:
                        done(run.probe, solutions[run.probe])
        asking = [run for run in asking if run.probe not in solutions]
    return [solutions[probe] for probe in probes]


def distance(gradient: float, value: float, at_zero: float) -> float:
    """The size of a gradient, larger where the objective is far below its value at weights of zero."""
    return gradient * max(1.0, SMALL * at_zero / value) if value > 0 else gradient


def _gradients(objective: Objective, unknowns: Tensor, *, exact: bool) -> list[Tensor]:
    """Of all probes at the same unknowns, by the weights of the features as they are."""
    probes = range(len(objective.penalties))
    found = objective.evaluate([unknowns for _ in probes], probes, exact=exact)
    return [objective.rows.by_weights(gradient) for _, gradient in found]


def _norm(objective: Objective, gradient: Tensor) -> float:
    """The largest component by the weights but for rounding, as all of the intercept's can be beside tiny features."""
    sizes = objective.rows.by_weights(gradient).abs()
    return float(sizes.masked_fill_(sizes <= objective.rows.rounding * torch.finfo(torch.float64).eps, 0.0).max())


def _is_rounding(rows: Rows, gradient: Tensor, dtype: torch.dtype) -> bool:
    """Whether a gradient by the weights is no more than a gradient that should be zero can come out as."""
    return bool((gradient.abs() <= rows.rounding * torch.finfo(dtype).eps).all())


class _Run:
    """One minimisation and the question that it waits on."""

    def __init__(
        self, objective: Objective, probe: int, start: Start, *, tol: float, max_iter: int, ends_exact: bool
    ) -> None:
        self.objective, self.probe, self.tol = objective, probe, tol
        self.without_features = objective.loss.without_features(probe)
        margin = MARGIN if ends_exact else 1
        self.needs_curvature = start.needs_curvature
        patience = max(PATIENCE, curvature.passes(objective))
        self.dialogue: Dialogue = minimise(
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
        self.question: Question = next(self.dialogue)
        self.minimum: Minimum | None = None

    def tell(self, answer: tuple[float, Tensor]) -> bool:
        """Answer the question, and hear the next; whether there is none."""
        try:
            self.question = self.dialogue.send(answer)
        except StopIteration as end:
            self.minimum = end.value
            return True
        return False

    def _measure(self, value: float, gradient: Tensor) -> float:
        return distance(_norm(self.objective, gradient), value, self.objective.loss.at_zero)

    def _is_optimal(self, unknowns: Tensor, value: float, decrement: float) -> bool:
        basis, strength = self.objective.rows.basis, self.objective.penalties[self.probe]
        penalty = strength * float((basis.penalty[:, None] * unknowns.square()).sum()) / 2
        if self.tol == float("inf"):  # features without information
            return True
        return is_negligible(decrement, objective=value, without_features=self.without_features, penalty=penalty)

    def _refresh(self, unknowns: Tensor) -> Preconditioner:
        self.needs_curvature = True
        return curvature.at(self.objective, self.probe, unknowns)

    def solution(self, norm: float) -> Solution:
        """What came of it."""
        assert self.minimum is not None
        found = _norm(self.objective, self.minimum.gradient)
        length = float(self.objective.rows.by_weights(self.minimum.gradient).square().sum())  # squared
        is_optimal = self._is_optimal(self.minimum.unknowns, self.minimum.objective, self.minimum.decrement)
        return Solution(
            self.minimum,
            gradient_norm=found,
            gradient_ratio=found / norm if norm else 0.0,
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
    """Weights float64 (width, d) and intercepts (width,) of the features as they are."""
    weights = rows.weights_of(solution.minimum.unknowns).cpu().numpy()
    return np.ascontiguousarray(weights[:-1].T), weights[-1]
