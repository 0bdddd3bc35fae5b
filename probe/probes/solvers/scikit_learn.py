"""The solver `sklearn`: scikit-learn's LogisticRegression, with the convergence measured in float64."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from probe.errors import ProtocolError
from probe.probes.contest import Contest
from probe.probes.fits import Fit, Solver, Tick, count_start, for_classes, join_classes, select_class
from probe.probes.solvers.evaluation import evaluate
from probe.probes.solvers.fast import loss_of
from probe.probes.solvers.objective import Objective, Rows
from probe.probes.solvers.optimality import measure_optimality
from probe.stats.metrics import IGNORED


class ScikitLearn(Solver):
    """Solver that calls scikit-learn's LogisticRegression with lbfgs and default options, on the CPU or on a GPU."""

    name = "sklearn"

    def prepare(self) -> None:
        """Concatenate the features, because the estimator needs one array."""
        self.x = np.ascontiguousarray(self.arrays[0] if len(self.arrays) == 1 else np.concatenate(self.arrays))
        self.zero_norms: dict[int, float] = {}  # max |gradient| at weights of zero, by column of `y`

    def fit_all(
        self,
        strengths: Sequence[float],
        starts: Sequence[Fit | None],
        *,
        is_final: bool,  # noqa: ARG002 - all fits are made in the same way
        done: Callable[[Fit], None],
        tick: Tick | None = None,
        contest: Contest | None = None,  # noqa: ARG002 - scikit-learn's fits cannot be ended from outside
    ) -> None:
        """Fit one C after the other. For multi-label data, fit each class on the images that count for the class."""
        for C, other in zip(strengths, starts, strict=True):  # noqa: N806 - the field's name
            start = None if other is None else for_classes(other, self.classes)
            if self.y.ndim == 1:
                fit = self._fit(C, -1, self.x, self.y, start, tick)
            else:
                fits = [self._fit_class(C, k, start, tick) for k in self.classes.tolist()]
                fit = join_classes(C, fits, self.classes)
            done(count_start(fit, start))

    def _fit_class(
        self,
        C: float,  # noqa: N803 - the field's name
        k: int,
        start: Fit | None,
        tick: Tick | None,
    ) -> Fit:
        counts = self.y[:, k] != IGNORED
        x = self.x if counts.all() else self.x[counts]
        return self._fit(C, k, x, self.y[counts, k], select_class(start, k), tick)

    def _fit(
        self,
        C: float,  # noqa: N803 - the field's name
        column: int,
        x: np.ndarray,
        y: np.ndarray,
        start: Fit | None,
        tick: Tick | None,
    ) -> Fit:
        estimator = LogisticRegression(C=C, max_iter=self.max_iter, tol=self.tol, warm_start=start is not None)
        if start is not None:
            estimator.coef_, estimator.intercept_ = start.coef.astype(x.dtype), start.intercept.astype(x.dtype)
            estimator.classes_ = np.unique(y)
        if tick is not None and hasattr(estimator, "set_callbacks"):  # since scikit-learn 1.9
            estimator.set_callbacks(_Ticker(tick))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with scipys_blas_on_one_thread():
                if self.device == "cpu":
                    estimator.fit(x, y)
                else:
                    fit_on_device(estimator, x, y, self.device)
        for warning in caught:  # convergence is measured below, so scikit-learn's warning about convergence is dropped
            if not issubclass(warning.category, ConvergenceWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        rows = Rows([x], self.device)
        targets = np.searchsorted(estimator.classes_, y)
        objective = Objective(rows, loss_of(targets, len(estimator.classes_), rows.device), [C])
        weights = torch.from_numpy(np.vstack([estimator.coef_.T, estimator.intercept_])).double().to(rows.device)
        n_iter = int(np.max(estimator.n_iter_))
        optimality = measure_optimality(objective, 0, weights, num_iter=n_iter)
        if column not in self.zero_norms:
            gradient = evaluate(objective, 0, torch.zeros_like(weights)).gradient
            self.zero_norms[column] = float(gradient.abs().max())
        norm, at_zero = float(optimality.gradient.abs().max()), self.zero_norms[column]
        return Fit(
            C=C,
            coef=estimator.coef_,
            intercept=estimator.intercept_,
            classes=estimator.classes_,
            is_multi_label=False,
            n_iter=n_iter,
            converged=optimality.converged,
            suboptimality=optimality.suboptimality,
            gradient_norm=norm,
            gradient_ratio=norm / at_zero if at_zero else 0.0,
            objective=optimality.objective,
            excess=float(optimality.gradient.square().sum()) * C * len(x) / 2,
            tol=self.tol,
        )


def fit_on_device(estimator: LogisticRegression, x: np.ndarray, y: np.ndarray, device: str) -> None:
    """Fit scikit-learn's estimator on a GPU with its array API, and convert its attributes to NumPy arrays.

    Raises:
        ProtocolError: the environment variable SCIPY_ARRAY_API is not 1.
    """
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        raise ProtocolError(
            f"the solver sklearn fits on {device} only if SCIPY_ARRAY_API=1 is set before SciPy is imported; set it "
            "before Python starts, or use the solver fast"
        )
    classes, targets = np.unique(y, return_inverse=True)
    with sklearn.config_context(array_api_dispatch=True):
        estimator.fit(torch.from_numpy(x).to(device), torch.from_numpy(targets).to(device))
    for name in ("coef_", "intercept_", "n_iter_"):
        setattr(estimator, name, torch.as_tensor(getattr(estimator, name)).cpu().numpy())
    estimator.classes_ = classes


class _Ticker:
    """Callback of scikit-learn that counts iterations."""

    def __init__(self, tick: Tick) -> None:
        self.tick, self.iteration = tick, 0

    def setup(self, estimator: object, context: object) -> None:
        """Do nothing."""

    def on_fit_task_begin(self, estimator: object, context: object, **_: object) -> None:
        """Do nothing."""

    def on_fit_task_end(self, estimator: object, context: object, **_: object) -> None:  # noqa: ARG002 - its signature
        """Count one iteration and call `tick`."""
        self.iteration += 1
        self.tick(self.iteration)

    def teardown(self, estimator: object, context: object) -> None:
        """Do nothing."""


def scipys_blas_on_one_thread() -> AbstractContextManager[object]:
    """Limit the copy of OpenBLAS in SciPy's wheels to one thread. NumPy's copy is not changed.

    SciPy's L-BFGS uses SciPy's copy for its vectors, and scikit-learn uses NumPy's copy for its products. The waiting
    threads of both copies compete for the cores. On 2 cores, one iteration takes 10 ms instead of 1.2 ms for 1,079
    images of 192 features, and 70 ms instead of 36 ms for 54,000 images. Measured by `benchmarks/blas_threads.py`, see
    `results/speed/blas_threads.md`.
    """
    controller = ThreadpoolController()
    bundled = [
        info["filepath"] for info in controller.info() if re.search(r"scipy(\.libs|[/\\]\.dylibs)", info["filepath"])
    ]
    return controller.select(filepath=bundled).limit(limits=1)
