"""Features -> the result of a probe under a protocol: choose C on validation images, fit, read the test split once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from probe.errors import FeaturesError, ProtocolError
from probe.features import Features
from probe.metrics import Metric, get_metric
from probe.probes.protocols import get_protocol
from probe.probes.solvers import Fit, fit_logistic_regression
from probe.probes.sweep import best, search
from probe.specs import Protocol

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepPoint:
    """One value of C that was tried: its score on the validation split, and how its fit ended."""

    C: float
    score: float
    n_iter: int
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """What a probe scored, and how its final fit ended; see `solvers.Fit` for the last four numbers.

    `score` is a fraction on the test split. `sweep` is ascending in C and empty where nothing was searched.
    `predictions` are int64 (num_test,).
    """

    metric: str
    score: float
    C: float
    num_train: int
    num_test: int
    n_iter: int
    converged: bool
    gradient_norm: float
    gradient_ratio: float
    objective: float
    sweep: tuple[SweepPoint, ...] = ()
    predictions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)


def fit_probe(
    *,
    train: Features,
    test: Features,
    val: Features | None = None,
    metric: str = "accuracy",
    protocol: str | Protocol = "clip-paper",
) -> ProbeResult:
    """Fit a linear probe under a protocol.

    Args:
        train: features to fit on.
        test: features to score on; read once, after everything is chosen.
        val: features on which C is chosen; they join `train` for the final fit.
        metric: a name of `metrics.METRICS`.
        protocol: a name, or a protocol of your own.

    Raises:
        UnknownNameError: no such protocol or metric.
        ProtocolError: the protocol searches and there is no `val`, or `train` has a single class.
        FeaturesError: the features were not taken at the protocol's feature point, or do not fit each other.
    """
    rules = get_protocol(protocol) if isinstance(protocol, str) else protocol
    score = get_metric(metric)
    _check(rules, train=train, val=val, test=test)
    num_classes = 1 + max(int(part.y.max()) for part in (train, val, test) if part is not None)
    fit = partial(fit_logistic_regression, max_iter=rules.max_iter, tol=rules.tol)

    sweep: tuple[SweepPoint, ...] = ()
    C = rules.grid[0]  # noqa: N806 - the field's name
    if len(rules.grid) > 1:
        assert val is not None
        sweep = _sweep(rules, train, val, fit=fit, score=score, num_classes=num_classes)
        C = best({point.C: point for point in sweep}, lambda point: point.score)  # noqa: N806 - the field's name
    parts = [train] if val is None else [train, val]
    x = np.concatenate([part.at(rules.feature_point) for part in parts])  # (n, d) float32
    y = np.concatenate([part.y for part in parts])
    final = fit(x, y, C=C)
    if not final.converged:
        logger.warning(
            "the final fit at C = %.4g did not converge: %d iterations, gradient at %.1e of its start",
            C,
            final.n_iter,
            final.gradient_ratio,
        )
    y_score = final.scores(test.at(rules.feature_point), num_classes)
    return ProbeResult(
        metric=metric,
        score=score(test.y, y_score),
        C=C,
        num_train=len(y),
        num_test=len(test),
        n_iter=final.n_iter,
        converged=final.converged,
        gradient_norm=final.gradient_norm,
        gradient_ratio=final.gradient_ratio,
        objective=final.objective,
        sweep=sweep,
        predictions=y_score.argmax(axis=1),
    )


def _sweep(
    rules: Protocol, train: Features, val: Features, *, fit: partial[Fit], score: Metric, num_classes: int
) -> tuple[SweepPoint, ...]:
    x_train, x_val = train.at(rules.feature_point), val.at(rules.feature_point)

    def evaluate(C: float) -> SweepPoint:  # noqa: N803 - the field's name
        fitted = fit(x_train, train.y, C=C)
        point = SweepPoint(C, score(val.y, fitted.scores(x_val, num_classes)), fitted.n_iter, fitted.converged)
        logger.debug("C = %.4g: %.4f on validation, %d iterations", C, point.score, point.n_iter)
        return point

    tried = search(evaluate, rules.grid, coarse_step=rules.coarse_step, score=lambda point: point.score)
    return tuple(tried.values())


def _check(rules: Protocol, *, train: Features, val: Features | None, test: Features) -> None:
    if len(rules.grid) > 1 and val is None:
        raise ProtocolError(f"protocol {rules.name!r} chooses C on a validation split; give val")
    if len(np.unique(train.y)) < 2:
        raise ProtocolError("all training images have one label; a probe needs at least two classes")
    widths = {}
    for name, part in (("train", train), ("val", val), ("test", test)):
        if part is not None:
            x = part.at(rules.feature_point)
            if x.ndim != 2 or len(x) != len(part.y) or len(x) == 0:
                raise FeaturesError(
                    f"{name} has features of shape {x.shape} and {len(part.y)} labels; give (n, d) and n"
                )
            if part.y.ndim != 1 or part.y.dtype.kind not in "iu" or part.y.min() < 0:
                raise FeaturesError(
                    f"{name} has labels {part.y.dtype} {part.y.shape}; give integers from 0 on, one an image"
                )
            widths[name] = x.shape[1]
    if len(set(widths.values())) > 1:
        raise FeaturesError(f"the splits have features of different widths, {widths}; use one model for all")
