"""Features -> the result of a probe under a protocol: choose C on validation images, fit, read the test split once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from probe.errors import FeaturesError, ProtocolError
from probe.features import Features
from probe.metrics import IGNORED, Metric, get_metric, misfit
from probe.probes.multilabel import MultiLabelFit, fit_each_class
from probe.probes.protocols import get_protocol
from probe.probes.solvers import Fit, fit_logistic_regression
from probe.probes.sweep import best, search
from probe.specs import Protocol

logger = logging.getLogger(__name__)

MAX_CLASSES = 1 << 20  # a label beyond is no index, and scores for so many classes would fill the memory


@dataclass(frozen=True)
class SweepPoint:
    """One value of C that was tried: its score on the validation split, and how its fit ended."""

    C: float
    score: float
    n_iter: int
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """What a probe scored, and how its final fit ended; see `solvers.Fit` for its four numbers.

    `score` is a fraction on the test split. `sweep` is ascending in C; it is empty where nothing was searched, and of
    several folds.
    `predictions` are int64 (num_test,), or (num_test, k) of 0 and 1 where an image can show several of k classes.
    Of several folds, whose results are `folds`, see `mean_result`.
    """

    metric: str
    score: float
    C: float | None
    num_train: int
    num_test: int
    n_iter: int
    converged: bool
    gradient_norm: float
    gradient_ratio: float
    objective: float
    sweep: tuple[SweepPoint, ...] = ()
    predictions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)
    folds: tuple[ProbeResult, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All but the predictions, as JSON has it."""
        fields = asdict(self)
        for result in (fields, *fields["folds"]):
            del result["predictions"]
        return fields


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
        train: features to fit on; labels (n, k) where an image can show several of k classes.
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
    if train.y.ndim == 2:
        num_classes = train.y.shape[1]
    else:
        num_classes = 1 + max(int(part.y.max()) for part in (train, val, test) if part is not None)
    reason = misfit(metric, num_classes=num_classes, is_multi_label=train.y.ndim == 2)
    if reason:
        raise ProtocolError(reason)
    solve: Callable[..., Fit | MultiLabelFit] = fit_each_class if train.y.ndim == 2 else fit_logistic_regression
    fit = partial(solve, max_iter=rules.max_iter, tol=rules.tol)

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
        predictions=y_score.argmax(axis=1) if train.y.ndim == 1 else (y_score > 0).astype(np.int64),
    )


def fit_folds(
    folds: Iterable[Mapping[str, Features]], *, metric: str = "accuracy", protocol: str | Protocol = "clip-paper"
) -> ProbeResult:
    """Fit a probe on the splits `train`, `test` and, where there is one, `val` of each fold; see `mean_result`.

    Raises:
        UnknownNameError, ProtocolError, FeaturesError: as `fit_probe`.
    """
    return mean_result(
        [
            fit_probe(train=fold["train"], val=fold.get("val"), test=fold["test"], metric=metric, protocol=protocol)
            for fold in folds
        ]
    )


def mean_result(results: Sequence[ProbeResult]) -> ProbeResult:
    """The result over folds: the mean of their scores and objectives, the worst of their iterations and gradients.

    `C` is theirs if it is the same for all, else None; `num_train` and `num_test` are those of the first fold,
    `predictions` those of all folds one after the other.
    """
    first = results[0]
    if len(results) == 1:
        return first
    return replace(
        first,
        score=float(np.mean([result.score for result in results])),
        C=first.C if len({result.C for result in results}) == 1 else None,
        n_iter=max(result.n_iter for result in results),
        converged=all(result.converged for result in results),
        gradient_norm=max(result.gradient_norm for result in results),
        gradient_ratio=max(result.gradient_ratio for result in results),
        objective=float(np.mean([result.objective for result in results])),
        sweep=(),
        predictions=np.concatenate([result.predictions for result in results]),
        folds=tuple(results),
    )


def _sweep(
    rules: Protocol,
    train: Features,
    val: Features,
    *,
    fit: partial[Fit | MultiLabelFit],
    score: Metric,
    num_classes: int,
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
    labels = train.y if train.y.ndim == 1 else train.y[:, (train.y == 1).any(axis=0)]
    if len(np.unique(labels[labels != IGNORED])) < 2:
        raise ProtocolError("all training images have one label; a probe needs at least two classes")
    widths = {}
    for name, part in (("train", train), ("val", val), ("test", test)):
        if part is not None:
            x = part.at(rules.feature_point)
            if x.ndim != 2 or len(x) != len(part.y) or len(x) == 0:
                raise FeaturesError(
                    f"{name} has features of shape {x.shape} and {len(part.y)} labels; give (n, d) and n"
                )
            lowest = 0 if part.y.ndim == 1 else IGNORED
            if part.y.ndim not in (1, 2) or part.y.dtype.kind not in "iu" or part.y.min() < lowest:
                raise FeaturesError(
                    f"{name} has labels {part.y.dtype} {part.y.shape}; give integers from 0 on, one an image, or a row "
                    "of 1, 0 and -1 for each"
                )
            if part.y.ndim == 1 and part.y.max() >= MAX_CLASSES:
                raise FeaturesError(f"{name} has the label {part.y.max()}; give class indices from 0 on")
            if part.y.shape[1:] != train.y.shape[1:]:
                raise FeaturesError(
                    f"{name} has labels {part.y.shape}, train {train.y.shape}; give all the same classes"
                )
            widths[name] = x.shape[1]
    if len(set(widths.values())) > 1:
        raise FeaturesError(f"the splits have features of different widths, {widths}; use one model for all")
