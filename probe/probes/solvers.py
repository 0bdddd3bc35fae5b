"""Logistic regression at one C: scikit-learn's estimator, and the proof of how near to the optimum it came."""

from __future__ import annotations

import re
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

# A fit counts as converged where the gradient has shrunk this much from where it began, at weights of zero.
GRADIENT_RATIO = 1e-3
ROWS = 8192  # images at a time when the gradient is measured, so that no float64 copy of all features is made


@dataclass(frozen=True)
class Fit:
    """A fitted estimator and what is known about its convergence.

    `objective` is what scikit-learn minimises, the mean loss plus ||W||^2 / (2 C n) with the intercept free, computed
    here in float64; `gradient_norm` the largest component of its gradient; `gradient_ratio` that over its value at
    weights of zero. `converged` says that the solver itself saw nothing wrong, neither `max_iter` reached
    nor a line search that failed, and that the ratio is below `GRADIENT_RATIO`.
    """

    estimator: LogisticRegression
    n_iter: int
    converged: bool
    gradient_norm: float
    gradient_ratio: float
    objective: float

    def scores(self, x: np.ndarray, num_classes: int) -> np.ndarray:
        """Logits (n, num_classes) for features float32 (n, d); a class without a training image gets -inf."""
        logits = self.estimator.decision_function(x)
        if logits.ndim == 1:  # two classes: the logit of the second, the first's being zero
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        scores = np.full((len(x), num_classes), -np.inf)
        scores[:, self.estimator.classes_] = logits
        return scores


def fit_logistic_regression(
    x: np.ndarray,
    y: np.ndarray,
    *,
    C: float,  # noqa: N803 - the field's name
    max_iter: int,
    tol: float,
) -> Fit:
    """Fit scikit-learn's LogisticRegression (lbfgs), all else at its defaults.

    Args:
        x: float32 (n, d), C-contiguous.
        y: int64 (n,), at least two classes.
        C: inverse strength of the L2 penalty on the sum of the losses.
        max_iter: most iterations of L-BFGS.
        tol: largest component of the gradient of the mean loss at which the solver may stop.
    """
    estimator = LogisticRegression(C=C, max_iter=max_iter, tol=tol)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _scipys_blas_on_one_thread():
            estimator.fit(x, y)
    cut_off = False
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            cut_off = True  # not silenced: `converged` is in the record and in every table
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    weights = np.hstack([estimator.coef_, estimator.intercept_[:, None]]).astype(np.float64)
    targets = np.searchsorted(estimator.classes_, y)
    objective, gradient_norm = _evaluate(weights, x, targets, C=C)
    _, first_norm = _evaluate(np.zeros_like(weights), x, targets, C=C)
    ratio = gradient_norm / first_norm if first_norm else 0.0
    return Fit(
        estimator=estimator,
        n_iter=int(estimator.n_iter_.max()),
        converged=not cut_off and ratio <= GRADIENT_RATIO,
        gradient_norm=gradient_norm,
        gradient_ratio=ratio,
        objective=objective,
    )


def _scipys_blas_on_one_thread() -> AbstractContextManager[object]:
    """Keep the OpenBLAS that SciPy's wheels carry on one thread, and leave NumPy's own as it is.

    L-BFGS does its vector work in SciPy's copy, and the idle threads of the two copies spin against each other: 10 ms
    an iteration in place of 1.2 for 1,079 images of 192 features on 2 cores, 70 in place of 36 for 54,000; measured by
    `benchmarks/blas_threads.py`, see `results/speed/blas_threads.md`.
    """
    controller = ThreadpoolController()
    carried = [
        info["filepath"] for info in controller.info() if re.search(r"scipy(\.libs|[/\\]\.dylibs)", info["filepath"])
    ]
    return controller.select(filepath=carried).limit(limits=1)


def _evaluate(weights: np.ndarray, x: np.ndarray, targets: np.ndarray, *, C: float) -> tuple[float, float]:  # noqa: N803 - the field's name
    """Objective and largest component of its gradient, for weights (k, d + 1), or (1, d + 1) for two classes."""
    n = len(x)
    penalty = np.hstack([weights[:, :-1], np.zeros((len(weights), 1))]) / (C * n)
    loss, gradient = 0.0, penalty.copy()
    for start in range(0, n, ROWS):
        rows = x[start : start + ROWS].astype(np.float64)
        rows = np.hstack([rows, np.ones((len(rows), 1))])  # (m, d + 1)
        logits = rows @ weights.T
        if len(weights) == 1:  # two classes: the one row of weights is the second's
            logits = np.hstack([np.zeros_like(logits), logits])
        own = np.eye(logits.shape[1])[targets[start : start + ROWS]]  # (m, k) one-hot
        logits -= logits.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss += float(np.sum(log_total) - np.sum(logits * own))
        residual = (np.exp(logits - log_total) - own)[:, -len(weights) :]
        gradient += residual.T @ rows / n
    return loss / n + float(np.sum(weights * penalty)) / 2, float(np.abs(gradient).max())
