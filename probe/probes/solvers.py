"""Logistic regression at one C after another, by scikit-learn's estimator or by `fast`, with proof of convergence.

A solver holds the training images of a probe; `fit` takes a C and gives weights. Both minimise the same function.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from probe.errors import ProtocolError
from probe.metrics import IGNORED
from probe.names import unknown_name
from probe.probes.curvature import MAX_NUMBERS, Curvature, estimate
from probe.probes.fast import TOL as FAST_TOL
from probe.probes.fast import Solution, Start, coefficients, distance, loss_of, solve
from probe.probes.objective import Logistic, Objective, Rows

logger = logging.getLogger(__name__)

# A fit of scikit-learn's counts as converged where the gradient has shrunk this much from where it began, at weights of
# zero.
GRADIENT_RATIO = 1e-3
# Steps of the fast solver for a C that is one of many, and the multiplications that they may take before so few are
# enough. Fits that need more are of a C so large that the penalty hardly counts, and say that they did not converge.
CHOOSING_ITERATIONS = 100
CHOOSING_COST = 3e10
MAX_BATCH = 8  # values of C side by side; more have little to gain
BATCH_BYTES = 1 << 31  # of the curvatures of a batch and their factors
ROWS = (
    8192  # images at a time when the gradient is measured and scores are made, so that no float64 copy of all is made
)

Tick = Callable[[int], None]  # is told the number of the iteration


@dataclass(frozen=True)
class Fit:
    """A linear probe and what is known about its convergence.

    `coef` is float (k, d), `intercept` (k,); of two classes that exclude each other k is 1, the logit of the second.
    `classes`, int64, are the labels that the rows are of. `several` says that an image can have several of them, each
    with a probe of its own; the numbers below are then the largest of all probes, `objective` their mean.

    `objective` is what is minimised, the mean loss plus ||W||^2 / (2 C n) with the intercept free; `gradient_norm` the
    largest component of its gradient; `gradient_ratio` that over its value at weights of zero; with products in
    float64, but for fits of `fast` that only served to choose C. `excess` is how far the objective can be above its
    minimum: |gradient|^2 / (2 / (C n)), which holds for the intercept at its best. `converged`: of scikit-learn that it
    saw nothing wrong, neither `max_iter` reached nor a line search that failed, and that the ratio is below
    `GRADIENT_RATIO`; of `fast` that it is below `fast.TOL`; of both that it is smaller still where the loss is, see
    `fast.distance`. `curved_at` are the weights, by probe, at which `fast` last estimated the curvature.
    """

    C: float
    coef: np.ndarray
    intercept: np.ndarray
    classes: np.ndarray
    several: bool
    n_iter: int
    converged: bool
    gradient_norm: float
    gradient_ratio: float
    objective: float
    excess: float
    curved_at: Mapping[int, np.ndarray] = field(default_factory=dict, repr=False)

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


class Solver:
    """What both solvers are: the training images of a probe, which `fit` fits at a C.

    Args:
        parts: float32 (n_i, d), C-contiguous; together the training images.
        y: int64 (n,), two classes at least; or (n, k) of 1, 0 and -1, where an image can show several of k classes and
            -1 does not count.
        max_iter: most iterations.
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

    def fit(
        self,
        C: float,  # noqa: N803 - the field's name
        near: Fit | None = None,
        *,
        is_final: bool = True,
        tick: Tick | None = None,
    ) -> Fit:
        """Fit at a C.

        Args:
            C: inverse strength of the L2 penalty on the sum of the losses.
            near: a fit of another C to begin at; None is weights of zero.
            is_final: False for a fit that only serves to choose C.
            tick: is told of iterations as they go.
        """
        raise NotImplementedError

    def batch(self) -> int:
        """How many values of C are best fitted side by side by `fit_all`."""
        return 1

    def fit_all(
        self,
        strengths: Sequence[float],
        nears: Sequence[Fit | None],
        *,
        done: Callable[[Fit], None],
        tick: Tick | None = None,
    ) -> None:
        """Fit at several values of C, to choose one; each fit is handed to `done` as soon as it is there."""
        for C, near in zip(strengths, nears, strict=True):  # noqa: N806 - the field's name
            done(self.fit(C, near, is_final=False, tick=tick))


class ScikitLearn(Solver):
    """scikit-learn's LogisticRegression (lbfgs), all else at its defaults; on a GPU the same through its array API."""

    name = "sklearn"

    def __init__(
        self, parts: Sequence[np.ndarray], y: np.ndarray, *, max_iter: int, tol: float, device: str = "cpu"
    ) -> None:
        super().__init__(parts, y, max_iter=max_iter, tol=tol, device=device)
        self.x = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
        self.first_norms: dict[int, float] = {}  # of the gradient at weights of zero, by column of `y`

    def fit(
        self,
        C: float,  # noqa: N803 - the field's name
        near: Fit | None = None,
        *,
        is_final: bool = True,  # noqa: ARG002 - every fit is the same
        tick: Tick | None = None,
    ) -> Fit:
        """Fit; several labels class after class, each on the images that count for it."""
        if self.y.ndim == 1:
            return self._fit(C, -1, self.x, self.y, near, tick)
        fits = []
        for k in self.classes.tolist():
            counts = self.y[:, k] != IGNORED
            x = self.x if counts.all() else self.x[counts]
            fits.append(self._fit(C, k, x, self.y[counts, k], _row(near, k), tick))
        return _join(C, fits, self.classes)

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
            with _scipys_blas_on_one_thread():
                if self.device == "cpu":
                    estimator.fit(x, y)
                else:
                    fit_on_device(estimator, x, y, self.device)
        cut_off = False
        for warning in caught:
            if issubclass(warning.category, ConvergenceWarning):
                cut_off = True  # not silenced: `converged` is in the record and in every table
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        weights = np.hstack([estimator.coef_, estimator.intercept_[:, None]]).astype(np.float64)
        targets = np.searchsorted(estimator.classes_, y)
        objective, norm, length = evaluate(weights, x, targets, C=C)
        if column not in self.first_norms:
            self.first_norms[column] = evaluate(np.zeros_like(weights), x, targets, C=C)[1]
        first = self.first_norms[column]
        ratio = norm / first if first else 0.0
        return Fit(
            C=C,
            coef=estimator.coef_,
            intercept=estimator.intercept_,
            classes=estimator.classes_,
            several=False,
            n_iter=int(np.max(estimator.n_iter_)),
            converged=not cut_off and distance(ratio, objective, math.log(len(estimator.classes_))) <= GRADIENT_RATIO,
            gradient_norm=norm,
            gradient_ratio=ratio,
            objective=objective,
            excess=length**2 * C * len(x) / 2,
        )


class Fast(Solver):
    """`probe.probes.fast`, which reads the features in blocks, and all classes of several labels at once."""

    name = "fast"

    def __init__(
        self, parts: Sequence[np.ndarray], y: np.ndarray, *, max_iter: int, tol: float, device: str = "cpu"
    ) -> None:
        super().__init__(parts, y, max_iter=max_iter, tol=tol, device=device)
        self.rows = Rows(parts, device)
        if y.ndim == 2:
            targets = torch.from_numpy(np.ascontiguousarray(y[:, self.classes])).to(self.rows.device)
            columns = torch.arange(len(self.classes), device=self.rows.device)
            self.loss: Any = Logistic(targets, columns, ignored=IGNORED)
        else:
            self.loss = loss_of(np.searchsorted(self.classes, y), len(self.classes), self.rows.device)
        self.curvatures: dict[tuple[float, int], Curvature] = {}  # by C and probe, of fits that were made here

    def fit(
        self,
        C: float,  # noqa: N803 - the field's name
        near: Fit | None = None,
        *,
        is_final: bool = True,
        tick: Tick | None = None,
    ) -> Fit:
        """Fit; where it began is not seen in the optimum, which is one."""
        found: list[Fit] = []
        self._fit([C], [near], is_final=is_final, done=found.append, tick=tick)
        return found[0]

    def batch(self) -> int:
        """As many as have room for their curvature."""
        numbers = self.loss.width**2 * (self.rows.num_features + 1) ** 2 * self._num_probes
        return max(1, min(MAX_BATCH, BATCH_BYTES // (8 * min(numbers, MAX_NUMBERS))))

    def fit_all(
        self,
        strengths: Sequence[float],
        nears: Sequence[Fit | None],
        *,
        done: Callable[[Fit], None],
        tick: Tick | None = None,
    ) -> None:
        """Fit side by side, so that the features are read once for all.

        To choose C, some iterations are enough, and what is said of the end has products in float32.
        """
        self._fit(strengths, nears, is_final=False, done=done, tick=tick)

    @property
    def _num_probes(self) -> int:
        return len(self.classes) if self.y.ndim == 2 else 1

    def _fit(
        self,
        strengths: Sequence[float],
        nears: Sequence[Fit | None],
        *,
        is_final: bool,
        done: Callable[[Fit], None],
        tick: Tick | None,
    ) -> None:
        num = self._num_probes
        loss = self.loss
        if isinstance(loss, Logistic):  # the probes of all classes, once for each C
            loss = Logistic(loss.targets, loss.columns.repeat(len(strengths)), loss.ignored)
        objective = Objective(self.rows, loss, [C for C in strengths for _ in range(num)])
        starts = [self._start(objective, i * num + k, k, near) for i, near in enumerate(nears) for k in range(num)]
        ready: dict[int, dict[int, Fit]] = {i: {} for i in range(len(strengths))}

        def keep(probe: int, solution: Solution) -> None:
            i, k = divmod(probe, num)
            ready[i][k] = self._as_fit(strengths[i], k, solution)
            if len(ready[i]) == num:
                fits = [ready[i][k] for k in range(num)]
                done(_join(strengths[i], fits, self.classes) if self.y.ndim == 2 else fits[0])

        solve(
            objective,
            starts=starts,
            tol=FAST_TOL,
            max_iter=self.max_iter if is_final else min(self.max_iter, self._choosing_iterations()),
            ends_exact=is_final,
            tick=tick,
            done=keep,
        )

    def _choosing_iterations(self) -> int:
        a_pass = 4 * len(self.rows) * self.rows.num_features * self.loss.width * self._num_probes
        return max(CHOOSING_ITERATIONS, int(CHOOSING_COST / a_pass))

    def _as_fit(self, C: float, k: int, solution: Solution) -> Fit:  # noqa: N803 - the field's name
        if solution.curvature is not None:
            self.curvatures[C, k] = solution.curvature
            for old in list(dict.fromkeys(known for known, _ in self.curvatures))[: -self.batch() - 1]:
                self.curvatures = {at: kept for at, kept in self.curvatures.items() if at[0] != old}
        coef, intercept = coefficients(self.rows, solution)
        return Fit(
            C=C,
            coef=coef,
            intercept=intercept,
            classes=self.classes,
            several=False,
            n_iter=solution.minimum.n_iter,
            converged=solution.converged,
            gradient_norm=solution.gradient_norm,
            gradient_ratio=solution.gradient_ratio,
            objective=solution.minimum.objective,
            excess=solution.excess,
            curved_at={k: solution.curvature.weights.cpu().numpy()} if solution.curvature else {},
        )

    def _start(self, objective: Objective, probe: int, k: int, near: Fit | None) -> Start:
        """At the weights of a fit, with the curvature that it ended with, which is made again if it is not at hand."""
        if near is None:
            return Start(objective.zeros())
        rows = slice(k, k + 1) if near.several else slice(None)
        coef, intercept = (torch.from_numpy(a[rows]).double().to(self.rows.device) for a in (near.coef, near.intercept))
        weights = torch.cat([coef.T, (intercept + coef @ self.rows.mean)[None]])
        curvature = self.curvatures.get((near.C, k))
        if curvature is None and k in near.curved_at:
            curvature = estimate(objective, probe, torch.from_numpy(near.curved_at[k]).to(self.rows.device))
        return Start(weights, curvature)


SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (ScikitLearn, Fast)}


def get_solver(name: str) -> type[Solver]:
    """Find a solver by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    return SOLVERS[name]


def device_for(solver: str, device: str) -> str:
    """Where a solver is to compute, if models do so on a device: there if it can, else on the CPU."""
    if not device.startswith("cuda"):
        return "cpu"
    if solver == "sklearn" and os.environ.get("SCIPY_ARRAY_API") != "1":
        logger.info("scikit-learn fits on the CPU; for the GPU set SCIPY_ARRAY_API=1, or use the solver fast")
        return "cpu"
    return device


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


def _row(fit: Fit | None, k: int) -> Fit | None:
    """The probe of one of several labels."""
    if fit is None:
        return None
    i = int(np.flatnonzero(fit.classes == k)[0])
    return Fit(**{**vars(fit), "coef": fit.coef[i : i + 1], "intercept": fit.intercept[i : i + 1], "several": False})


def _join(C: float, fits: Sequence[Fit], classes: np.ndarray) -> Fit:  # noqa: N803 - the field's name
    return Fit(
        C=C,
        coef=np.concatenate([fit.coef for fit in fits]),
        intercept=np.concatenate([fit.intercept for fit in fits]),
        classes=classes,
        several=True,
        n_iter=max(fit.n_iter for fit in fits),
        converged=all(fit.converged for fit in fits),
        gradient_norm=max(fit.gradient_norm for fit in fits),
        gradient_ratio=max(fit.gradient_ratio for fit in fits),
        objective=float(np.mean([fit.objective for fit in fits])),
        excess=max(fit.excess for fit in fits),
        curved_at={probe: at for fit in fits for probe, at in fit.curved_at.items()},
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


def evaluate(
    weights: np.ndarray,
    x: np.ndarray,
    targets: np.ndarray,
    *,
    C: float,  # noqa: N803 - the field's name
) -> tuple[float, float, float]:
    """Objective, largest component of its gradient and the gradient's length, in float64.

    Args:
        weights: float64 (k, d + 1), or (1, d + 1) of two classes; the last column is the intercept.
        x: float32 (n, d).
        targets: int64 (n,), in [0, k).
        C: inverse strength of the penalty.
    """
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
    value = loss / n + float(np.sum(weights * penalty)) / 2
    return value, float(np.abs(gradient).max()), float(np.linalg.norm(gradient))
