"""Fits of logistic regression with proof of their convergence, and what a solver is that makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ROWS = 8192  # images at a time in float64, so that no such copy of all is made

Tick = Callable[[int], None]  # is told the number of the iteration


@dataclass(frozen=True)
class Convergence:
    """How a fit ended; of several, such as those of a class each, see `worst`.

    Args:
        n_iter: all iterations that led to the fit, from weights of zero on: those of this fit, plus the `n_iter` of the
            fit in whose weights it began, such as that of a neighbouring C in the sweep. Of several labels, each with a
            probe of its own, the label with the most counts.
        converged: True if an upper bound of `suboptimality` is negligible, see `optimality.measure`.
        suboptimality: estimate of how far the objective is above its minimum. It is computed by Newton's method, see
            `optimality.measure`; for fits of `fast` that only serve to choose C, on features without outliers, by the
            solver's own next step.
        gradient_norm: largest component of the gradient of `objective`, with products in float64, but for fits of
            `fast` that only served to choose C.
        gradient_ratio: that over its value at weights of zero.
        objective: what is minimised, the mean loss plus ||W||^2 / (2 C n) with the intercept free.
        excess: how far the objective can be above its minimum: |gradient|^2 / (2 / (C n)), which holds for the
            intercept at its best.
        tol: where the solver was to stop: scikit-learn's at a gradient whose largest component is that, `fast` at that
            share of where it began.
    """

    n_iter: int
    converged: bool
    suboptimality: float
    gradient_norm: float
    gradient_ratio: float
    objective: float
    excess: float
    tol: float


def worst(found: Sequence[Convergence]) -> dict[str, Any]:
    """The fields of `Convergence` for several: the worst of each, the mean of the objectives, the first's `tol`."""
    return {
        "n_iter": max(one.n_iter for one in found),
        "converged": all(one.converged for one in found),
        "suboptimality": max(one.suboptimality for one in found),
        "gradient_norm": max(one.gradient_norm for one in found),
        "gradient_ratio": max(one.gradient_ratio for one in found),
        "objective": float(np.mean([one.objective for one in found])),
        "excess": max(one.excess for one in found),
        "tol": found[0].tol,
    }


@dataclass(frozen=True)
class Fit(Convergence):
    """A linear probe and how its fit ended.

    `coef` is float (k, d), `intercept` (k,); of two classes that exclude each other k is 1, the logit of the second.
    `classes`, int64, are the labels that the rows are of. `several` says that an image can have several of them, each
    with a probe of its own. `needs_curvature`: `fast` estimated the curvature, on the way or, for a neighbour of such a
    fit, at its start.
    """

    C: float
    coef: np.ndarray
    intercept: np.ndarray
    classes: np.ndarray
    several: bool
    needs_curvature: bool = False

    def scores(self, x: np.ndarray, num_classes: int) -> np.ndarray:
        """Logits float64 (n, num_classes) for features float32 (n, d); a class without a training image gets -inf."""
        scores = np.full((len(x), num_classes), -np.inf)
        coef, intercept = self.coef.astype(np.float64), self.intercept.astype(np.float64)
        for start in range(0, len(x), ROWS):
            logits = x[start : start + ROWS].astype(np.float64) @ coef.T + intercept
            if len(coef) == 1 and not self.several:  # two classes: the logit of the first is zero
                logits = np.hstack([np.zeros_like(logits), logits])
            scores[start : start + ROWS, self.classes] = logits
        return scores


class Solver(ABC):
    """The training images of a probe, to be fitted at one C after another.

    Args:
        parts: float32 (n_i, d), C-contiguous; together the training images.
        y: int64 (n,), two classes at least; or (n, k) of 1, 0 and -1, where an image can show several of k classes and
            -1 does not count.
        max_iter: most iterations of one fit; those of the fit in whose weights it began do not count.
        tol: largest component of the gradient of the mean loss at which scikit-learn's solver may stop; `fast` goes on
            to `fast.TOL` of where the gradient began.
        device: where products are computed.
    """

    name: str

    def __init__(
        self, parts: Sequence[np.ndarray], y: np.ndarray, *, max_iter: int, tol: float, device: str = "cpu"
    ) -> None:
        self.parts, self.y, self.max_iter, self.tol, self.device = parts, y, max_iter, tol, device
        if y.ndim == 2:  # a class that all images show, or none, has nothing to be told from
            self.classes = np.flatnonzero((y == 1).any(axis=0) & (y == 0).any(axis=0))
        else:
            self.classes = np.unique(y)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Do what serves all fits."""

    @property
    def batch(self) -> int:
        """How many values of C are best fitted side by side."""
        return 1

    def fit(
        self,
        C: float,  # noqa: N803 - the field's name
        near: Fit | None = None,
        *,
        tick: Tick | None = None,
    ) -> Fit:
        """The final fit at a C; arguments as those of `fit_all`."""
        found: list[Fit] = []
        self.fit_all([C], [near], is_final=True, done=found.append, tick=tick)
        return found[0]

    @abstractmethod
    def fit_all(
        self,
        strengths: Sequence[float],
        nears: Sequence[Fit | None],
        *,
        is_final: bool,
        done: Callable[[Fit], None],
        tick: Tick | None = None,
    ) -> None:
        """Fit at several values of C.

        Args:
            strengths: inverse strengths of the L2 penalty on the sum of the losses.
            nears: for each strength, a fit of a different C to start from, or None to start from weights of zero. The
                fit may have different classes, see `for_classes`.
            is_final: False for fits that only serve to choose C.
            done: is given each fit as soon as it is there.
            tick: is told of iterations as they go.
        """


def join_classes(C: float, fits: Sequence[Fit], classes: np.ndarray) -> Fit:  # noqa: N803 - the field's name
    """The fits of several labels, one for each of the classes, as one."""
    return Fit(
        C=C,
        coef=np.concatenate([fit.coef for fit in fits]),
        intercept=np.concatenate([fit.intercept for fit in fits]),
        classes=classes,
        several=True,
        needs_curvature=any(fit.needs_curvature for fit in fits),
        **worst(fits),
    )


def count_start(fit: Fit, near: Fit | None) -> Fit:
    """Return a fit whose iterations include those of the fit in whose weights it began, if there is one."""
    return fit if near is None else replace(fit, n_iter=near.n_iter + fit.n_iter)


def for_classes(fit: Fit, classes: np.ndarray) -> Fit:
    """Return a fit to start from with rows for the given classes. Classes that the fit did not know get zeros."""
    if np.array_equal(fit.classes, classes):
        return fit
    coef, intercept = fit.coef, fit.intercept
    if len(coef) == 1 and not fit.several:  # two classes: the logit of the first is zero
        coef, intercept = (np.concatenate([np.zeros_like(array), array]) for array in (coef, intercept))
    _, new, known = np.intersect1d(classes, fit.classes, return_indices=True)
    matched = np.zeros((len(classes), coef.shape[1]), coef.dtype), np.zeros(len(classes), intercept.dtype)
    for array, values in zip(matched, (coef, intercept), strict=True):
        array[new] = values[known]
    coef, intercept = matched
    if len(classes) == 2 and not fit.several:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    return replace(fit, coef=coef, intercept=intercept, classes=classes)


def select_class(fit: Fit | None, k: int) -> Fit | None:
    """The probe of one of several labels."""
    if fit is None:
        return None
    i = int(np.flatnonzero(fit.classes == k)[0])
    return Fit(**{**vars(fit), "coef": fit.coef[i : i + 1], "intercept": fit.intercept[i : i + 1], "several": False})
