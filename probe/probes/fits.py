"""Fits of logistic regression with measures of their convergence, and the interface of the solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from probe.features.arrays import Features
from probe.specs import Protocol

if TYPE_CHECKING:
    from probe.probes.contest import Contest

ROWS = 8192  # images that are converted to float64 at a time, to save memory

Tick = Callable[[int], None]  # called with the number of each iteration


@dataclass(frozen=True)
class Convergence:
    """Convergence of a fit. `worst` combines several, such as the fits of one class each.

    Args:
        n_iter: number of iterations from weights of zero. This includes the `n_iter` of the fit that this fit started
            from, such as the fit at a neighbouring C in the sweep. If each class has a binary probe of its own, it is
            the largest number of all classes.
        converged: True if an upper bound of `suboptimality` is negligible, see `optimality.measure_optimality`.
        suboptimality: estimate of the difference between `objective` and its minimum, see
            `optimality.measure_optimality`. Fits of `fast` for the choice of C, on features without outliers, use the
            solver's own estimate.
        gradient_norm: max |g| over the components of the gradient g of the objective. Products are in float64, except
            for fits of `fast` for the choice of C on large datasets.
        gradient_ratio: `gradient_norm` divided by its value at weights of zero.
        objective: minimised function: mean loss + ||W||^2 / (2 C n). The intercept is not penalised.
        excess: upper bound of the difference between `objective` and its minimum, if the intercept is optimal:
            ||g||^2 C n / 2.
        tol: stopping criterion of the solver. scikit-learn's solver stops if `gradient_norm` <= tol, `fast` if
            `gradient_ratio` <= tol.
    """

    n_iter: int
    converged: bool
    suboptimality: float
    gradient_norm: float
    gradient_ratio: float
    objective: float
    excess: float
    tol: float


def worst(fits: Sequence[Convergence]) -> Convergence:
    """Return the convergence of several fits: mean objective, `tol` of the first, worst of the other fields."""
    return Convergence(
        n_iter=max(fit.n_iter for fit in fits),
        converged=all(fit.converged for fit in fits),
        suboptimality=max(fit.suboptimality for fit in fits),
        gradient_norm=max(fit.gradient_norm for fit in fits),
        gradient_ratio=max(fit.gradient_ratio for fit in fits),
        objective=float(np.mean([fit.objective for fit in fits])),
        excess=max(fit.excess for fit in fits),
        tol=fits[0].tol,
    )


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a linear classifier for k classes.

    A class without training images has weights of zero and a bias of -inf.

    Args:
        weight: float64 (k, d).
        bias: float64 (k,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return logits float64 (n, k) for features float32 (n, d). Products are in float64."""
        logits = np.empty((len(x), len(self.bias)))
        for start in range(0, len(x), ROWS):
            logits[start : start + ROWS] = x[start : start + ROWS].astype(np.float64) @ self.weight.T + self.bias
        return logits


def at_feature_point(rules: Protocol, features: Features) -> np.ndarray:
    """Return the features float32 (n, d) at the protocol's feature point, L2-normalised if the protocol says so."""
    x = features.at(rules.feature_point)
    return normalized(x) if rules.normalize else x


def normalized(x: np.ndarray) -> np.ndarray:
    """Return features (n, d) divided by the length of each row. A row of zeros stays as it is."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(lengths > 0, lengths, 1))


@dataclass(frozen=True)
class Fit(Convergence):
    """Weights of a linear probe and the convergence of its fit.

    Args:
        C: inverse strength of the penalty.
        coef: float (k, d), one row for each logit. With two mutually exclusive classes there is one row, for the logit
            of the second class; the logit of the first class is 0.
        intercept: float (k,).
        classes: int64, labels of the classes, ascending.
        is_multi_label: True if an image can show several classes, each with a binary probe of its own.
        needs_curvature: True if `fast` estimated the curvature during the fit, or if it started from such a fit.
        ended_early: True if a contest ended the fit before it converged, see `contest.Contest`.
    """

    C: float
    coef: np.ndarray
    intercept: np.ndarray
    classes: np.ndarray
    is_multi_label: bool
    needs_curvature: bool = False
    ended_early: bool = False

    def weights(self, num_classes: int) -> Weights:
        """Return weights with a row for each of `num_classes` classes."""
        coef, intercept = self.coef.astype(np.float64), self.intercept.astype(np.float64)
        if len(coef) == 1 and not self.is_multi_label:  # two classes: the logit of the first is zero
            coef, intercept = (np.concatenate([np.zeros_like(array), array]) for array in (coef, intercept))
        weights = Weights(np.zeros((num_classes, coef.shape[1])), np.full(num_classes, -np.inf))
        weights.weight[self.classes], weights.bias[self.classes] = coef, intercept
        return weights

    def scores(self, x: np.ndarray, num_classes: int) -> np.ndarray:
        """Return logits float64 (n, num_classes) for features float32 (n, d). Classes without a probe get -inf."""
        return self.weights(num_classes).logits(x)


class Solver(ABC):
    """Base class of the solvers. An instance fits probes on the same training images at several values of C.

    Args:
        arrays: float32 (n_i, d), C-contiguous; their concatenation (n, d) holds the features of the training images.
        y: int64 (n,) with at least two classes; or (n, k) of 1, 0 and -1 if an image can show several of k classes,
            where images with -1 are ignored for the class.
        max_iter: largest number of iterations of one fit, without the iterations of the fit that it started from.
        tol: scikit-learn's solver stops if no component of the gradient of the objective exceeds `tol`. `fast` does not
            use `tol` but `fast.TOL`.
        device: where products are computed.
    """

    name: str

    def __init__(
        self, arrays: Sequence[np.ndarray], y: np.ndarray, *, max_iter: int, tol: float, device: str = "cpu"
    ) -> None:
        self.arrays, self.y, self.max_iter, self.tol, self.device = arrays, y, max_iter, tol, device
        if y.ndim == 2:  # a class without positive or without negative images cannot be learnt
            self.classes = np.flatnonzero((y == 1).any(axis=0) & (y == 0).any(axis=0))
        else:
            self.classes = np.unique(y)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Prepare the data once for all fits."""

    @property
    def batch(self) -> int:
        """Return how many values of C to fit in one call of `fit_all`."""
        return 1

    def fit(
        self,
        C: float,  # noqa: N803 - the field's name
        start: Fit | None = None,
        *,
        tick: Tick | None = None,
    ) -> Fit:
        """Return the final fit at one C. See `fit_all` for the arguments."""
        fits: list[Fit] = []
        self.fit_all([C], [start], is_final=True, done=fits.append, tick=tick)
        return fits[0]

    @abstractmethod
    def fit_all(
        self,
        strengths: Sequence[float],
        starts: Sequence[Fit | None],
        *,
        is_final: bool,
        done: Callable[[Fit], None],
        tick: Tick | None = None,
        contest: Contest | None = None,
    ) -> None:
        """Fit at several values of C.

        Args:
            strengths: values of C, the inverse strength of the L2 penalty on the sum of the losses.
            starts: for each C, a fit at a different C to start from, or None to start from weights of zero. The fit may
                have different classes, see `for_classes`.
            is_final: False for fits that only serve to choose C.
            done: called with each fit as soon as it is finished.
            tick: called with the number of each iteration.
            contest: may end fits for the choice of C. Only `fast` asks it, for images with one label each.
        """


def join_classes(C: float, fits: Sequence[Fit], classes: np.ndarray) -> Fit:  # noqa: N803 - the field's name
    """Combine the binary fits of several classes, one for each class, into one multi-label fit."""
    return Fit(
        C=C,
        coef=np.concatenate([fit.coef for fit in fits]),
        intercept=np.concatenate([fit.intercept for fit in fits]),
        classes=classes,
        is_multi_label=True,
        needs_curvature=any(fit.needs_curvature for fit in fits),
        **vars(worst(fits)),
    )


def count_start(fit: Fit, start: Fit | None) -> Fit:
    """Return a fit whose `n_iter` includes the iterations of the fit that it started from, if there is one."""
    return fit if start is None else replace(fit, n_iter=start.n_iter + fit.n_iter)


def for_classes(fit: Fit, classes: np.ndarray) -> Fit:
    """Return a fit to start from with rows for the given classes. Classes without a row in `fit` get zeros."""
    if np.array_equal(fit.classes, classes):
        return fit
    coef, intercept = fit.coef, fit.intercept
    if len(coef) == 1 and not fit.is_multi_label:  # two classes: the logit of the first is zero
        coef, intercept = (np.concatenate([np.zeros_like(array), array]) for array in (coef, intercept))
    _, new, known = np.intersect1d(classes, fit.classes, return_indices=True)
    matched = np.zeros((len(classes), coef.shape[1]), coef.dtype), np.zeros(len(classes), intercept.dtype)
    for array, values in zip(matched, (coef, intercept), strict=True):
        array[new] = values[known]
    coef, intercept = matched
    if len(classes) == 2 and not fit.is_multi_label:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    return replace(fit, coef=coef, intercept=intercept, classes=classes)


def select_class(fit: Fit | None, k: int) -> Fit | None:
    """Return the binary probe of class k of a multi-label fit, or None for None."""
    if fit is None:
        return None
    i = int(np.flatnonzero(fit.classes == k)[0])
    return replace(fit, coef=fit.coef[i : i + 1], intercept=fit.intercept[i : i + 1], is_multi_label=False)
