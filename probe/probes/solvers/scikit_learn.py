"""scikit-learn's LogisticRegression as a solver, with its convergence measured in float64."""

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
from probe.probes.fits import Fit, Solver, Tick, count_start, for_classes, join_classes, select_class
from probe.probes.solvers.fast import loss_of
from probe.probes.solvers.objective import Objective, Rows
from probe.probes.solvers.optimality import evaluate, measure_optimality
from probe.stats.metrics import IGNORED


class ScikitLearn(Solver):
    """scikit-learn's LogisticRegression (lbfgs), all else at its defaults; on a GPU the same through its array API."""

    name = "sklearn"

    def prepare(self) -> None:
        """Join the features, as the estimator takes one array."""
        self.x = np.ascontiguousarray(self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts))
        self.first_norms: dict[int, float] = {}  # of the gradient at weights of zero, by column of `y`

    def fit_all(
        self,
        strengths: Sequence[float],
        nears: Sequence[Fit | None],
        *,
        is_final: bool,  # noqa: ARG002 - every fit is the same
        done: Callable[[Fit], None],
        tick: Tick | None = None,
    ) -> None:
        """Fit one C after another; several labels class after class, each on the images that count for it."""
        for C, other in zip(strengths, nears, strict=True):  # noqa: N806 - the field's name
            near = None if other is None else for_classes(other, self.classes)
            if self.y.ndim == 1:
                fit = self._fit(C, -1, self.x, self.y, near, tick)
            else:
                fits = [self._fit_class(C, k, near, tick) for k in self.classes.tolist()]
                fit = join_classes(C, fits, self.classes)
            done(count_start(fit, near))

    def _fit_class(
        self,
        C: float,  # noqa: N803 - the field's name
        k: int,
        near: Fit | None,
        tick: Tick | None,
    ) -> Fit:
        counts = self.y[:, k] != IGNORED
        x = self.x if counts.all() else self.x[counts]
        return self._fit(C, k, x, self.y[counts, k], select_class(near, k), tick)

    def _fit(
        self,
        C: float,  # noqa: N803 - the field's name
        column: int,
        x: np.ndarray,
        y: np.ndarray,
        near: Fit | None,
        tick: Tick | None,
    ) -> Fit:
        estimator = LogisticRegression(C=C, max_iter=self.max_iter, tol=self.tol, warm_start=near is not None)
        if near is not None:
            estimator.coef_, estimator.intercept_ = near.coef.astype(x.dtype), near.intercept.astype(x.dtype)
            estimator.classes_ = np.unique(y)
        if tick is not None and hasattr(estimator, "set_callbacks"):  # from scikit-learn 1.9 on
            estimator.set_callbacks(_Ticker(tick))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with scipys_blas_on_one_thread():
                if self.device == "cpu":
                    estimator.fit(x, y)
                else:
                    fit_on_device(estimator, x, y, self.device)
        for warning in caught:  # convergence is measured below, so scikit-learn's warning about it is dropped
            if not issubclass(warning.category, ConvergenceWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        rows = Rows([x], self.device)
        targets = np.searchsorted(estimator.classes_, y)
        objective = Objective(rows, loss_of(targets, len(estimator.classes_), rows.device), [C])
        weights = torch.from_numpy(np.vstack([estimator.coef_.T, estimator.intercept_])).double().to(rows.device)
        n_iter = int(np.max(estimator.n_iter_))
        found = measure_optimality(objective, 0, weights, num_iter=n_iter)
        if column not in self.first_norms:
            gradient = evaluate(objective, 0, torch.zeros_like(weights)).gradient
            self.first_norms[column] = float(gradient.abs().max())
        norm, first = float(found.gradient.abs().max()), self.first_norms[column]
        return Fit(
            C=C,
            coef=estimator.coef_,
            intercept=estimator.intercept_,
            classes=estimator.classes_,
            several=False,
            n_iter=n_iter,
            converged=found.converged,
            suboptimality=found.suboptimality,
            gradient_norm=norm,
            gradient_ratio=norm / first if first else 0.0,
            objective=found.objective,
            excess=float(found.gradient.square().sum()) * C * len(x) / 2,
            tol=self.tol,
        )


def fit_on_device(estimator: LogisticRegression, x: np.ndarray, y: np.ndarray, device: str) -> None:
    """Fit scikit-learn's estimator on a GPU, through its array API; it ends with NumPy's arrays.

    Raises:
        ProtocolError: SciPy was imported without the array API.
    """
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        raise ProtocolError(
            f"scikit-learn fits on {device} only where SCIPY_ARRAY_API=1 was set before SciPy was imported; set it, or "
            "use the solver fast"
        )
    classes, targets = np.unique(y, return_inverse=True)
    with sklearn.config_context(array_api_dispatch=True):
        estimator.fit(torch.from_numpy(x).to(device), torch.from_numpy(targets).to(device))
    for name in ("coef_", "intercept_"):
        setattr(estimator, name, getattr(estimator, name).cpu().numpy())
    estimator.classes_ = classes


class _Ticker:
    """A callback of scikit-learn that counts iterations."""

    def __init__(self, tick: Tick) -> None:
        self.tick, self.iteration = tick, 0

    def setup(self, estimator: object, context: object) -> None:
        """Nothing to do."""

    def on_fit_task_begin(self, estimator: object, context: object, **_: object) -> None:
        """Nothing to do."""

    def on_fit_task_end(self, estimator: object, context: object, **_: object) -> None:  # noqa: ARG002 - its signature
        """Count."""
        self.iteration += 1
        self.tick(self.iteration)

    def teardown(self, estimator: object, context: object) -> None:
        """Nothing to do."""


def scipys_blas_on_one_thread() -> AbstractContextManager[object]:
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
