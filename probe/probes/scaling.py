"""Standardise features: mean 0 and variance 1 of each feature over the images that a probe is fitted on.

A probe is fitted on standardised features. `Scaling.fold` then turns it into the same probe on the features as they
are, so that only the fit itself knows of the scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probe.probes.fits import ROWS, Fit


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation of each feature.

    Args:
        mean: float64 (d,).
        std: float64 (d,), above zero; 1 for a feature that does not vary.
    """

    mean: np.ndarray
    std: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return features (n, d) standardised, as float32 (n, d)."""
        scaled = np.empty(x.shape, np.float32)
        for start in range(0, len(x), ROWS):
            scaled[start : start + ROWS] = (x[start : start + ROWS].astype(np.float64) - self.mean) / self.std
        return scaled

    def fold(self, fit: Fit) -> Fit:
        """Return the fit whose logits of features equal the logits of `fit` of standardised features."""
        coef = fit.coef.astype(np.float64) / self.std
        return replace(fit, coef=coef, intercept=fit.intercept - coef @ self.mean)

    def unfold(self, fit: Fit) -> Fit:
        """Return the fit whose logits of standardised features equal the logits of `fit` of features."""
        coef = fit.coef.astype(np.float64)
        return replace(fit, coef=coef * self.std, intercept=fit.intercept + coef @ self.mean)


def fit_scaling(arrays: Sequence[np.ndarray]) -> Scaling:
    """Return the scaling of the concatenation of features (n_i, d). Sums are in float64.

    The variance is the population variance, as in scikit-learn's `StandardScaler`.
    """
    n = sum(map(len, arrays))
    blocks = [x[start : start + ROWS] for x in arrays for start in range(0, len(x), ROWS)]
    mean = np.sum([block.sum(axis=0, dtype=np.float64) for block in blocks], axis=0) / n
    squares = [((block.astype(np.float64) - mean) ** 2).sum(axis=0) for block in blocks]
    std = np.sqrt(np.sum(squares, axis=0) / n)
    return Scaling(mean, np.where(std > 0, std, 1.0))
