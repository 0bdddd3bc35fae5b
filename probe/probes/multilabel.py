"""Images that show several classes: one logistic regression of two classes for each, all at one C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probe.metrics import IGNORED
from probe.probes.solvers import Fit, fit_logistic_regression


@dataclass(frozen=True)
class MultiLabelFit:
    """The fits of all classes; None for a class of which no training image, or every one, is an example.

    `n_iter`, `gradient_norm` and `gradient_ratio` are the largest of them, `objective` is their mean, and `converged`
    says that all of them did.
    """

    fits: Sequence[Fit | None]

    @property
    def _fitted(self) -> list[Fit]:
        return [fit for fit in self.fits if fit is not None]

    @property
    def n_iter(self) -> int:
        """Most iterations."""
        return max(fit.n_iter for fit in self._fitted)

    @property
    def converged(self) -> bool:
        """Whether every fit did."""
        return all(fit.converged for fit in self._fitted)

    @property
    def gradient_norm(self) -> float:
        """Largest."""
        return max(fit.gradient_norm for fit in self._fitted)

    @property
    def gradient_ratio(self) -> float:
        """Largest."""
        return max(fit.gradient_ratio for fit in self._fitted)

    @property
    def objective(self) -> float:
        """Mean."""
        return float(np.mean([fit.objective for fit in self._fitted]))

    def scores(self, x: np.ndarray, num_classes: int) -> np.ndarray:
        """Logits (n, num_classes) for features float32 (n, d); -inf for a class that was not fitted."""
        scores = np.full((len(x), num_classes), -np.inf)
        for k, fit in enumerate(self.fits):
            if fit is not None:
                scores[:, k] = fit.scores(x, 2)[:, 1]
        return scores


def fit_each_class(
    x: np.ndarray,
    y: np.ndarray,
    *,
    C: float,  # noqa: N803 - the field's name
    max_iter: int,
    tol: float,
) -> MultiLabelFit:
    """Fit one probe for each class, on the images that count for it.

    Args:
        x: float32 (n, d), C-contiguous.
        y: int64 (n, k): 1 where the image shows the class, 0 where not, -1 where it does not count.
        C: inverse strength of the L2 penalty on the sum of the losses.
        max_iter: most iterations of L-BFGS.
        tol: see `solvers.fit_logistic_regression`.
    """
    fits: list[Fit | None] = []
    for labels in y.T:
        counts = labels != IGNORED
        x_class = x if counts.all() else x[counts]
        both = len(np.unique(labels[counts])) == 2
        fits.append(fit_logistic_regression(x_class, labels[counts], C=C, max_iter=max_iter, tol=tol) if both else None)
    return MultiLabelFit(fits)
