"""Estimator of scikit-learn that minimises with the solver `fast`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from probe.probes.solvers.fast import TOL, Start, coefficients, loss_of, solve
from probe.probes.solvers.lbfgs import Limits
from probe.probes.solvers.objective import Objective, Rows

logger = logging.getLogger(__name__)


class FastLogisticRegression(LogisticRegression):  # type: ignore[misc]  # untyped
    """scikit-learn's `LogisticRegression` with a minimiser that is faster and reaches the optimum.

    Parameters and attributes have the same meaning as in `sklearn.linear_model.LogisticRegression`, with an L2 penalty
    and the multinomial loss.

    A fit ends when all of these conditions hold. A fit that ends earlier gives scikit-learn's `ConvergenceWarning`.

    - max |gradient| is at most `tol`.
    - max |gradient| is at most 1e-6 times its value at weights of zero.
    - The difference between the objective and its minimum is negligible, see `evaluation.is_negligible`. This condition
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
        ValueError: a parameter, the features or the labels are invalid, as for scikit-learn's estimator; the features
            are sparse; `l1_ratio` is not 0; or the coefficients for `warm_start` have a different shape.
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
        (solution,) = solve(objective, Limits(TOL, self.max_iter), starts=[start], max_tol=self.tol)
        coef, intercept = coefficients(rows, solution.minimum.unknowns)
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
            return weights.new_zeros(rows.num_components + 1, width)
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
