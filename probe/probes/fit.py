"""Fit a linear probe on features under a protocol.

C is chosen on validation images, the final probe is fitted, and the test split is scored once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import numpy as np

from probe.environment import blas_threads, threads
from probe.errors import ProtocolError
from probe.features.arrays import Features
from probe.probes.cached_fits import FitCache
from probe.probes.calibration import calibrate
from probe.probes.fit_checks import check_cost, check_metric, check_splits, needs_choice, warn_of_missing_classes
from probe.probes.fits import Fit, at_feature_point, worst
from probe.probes.fitter import FitSettings, Fitter
from probe.probes.knn import KNNSettings, fit_knn
from probe.probes.protocols import get_protocol, validate
from probe.probes.result import ProbeResult, have_same_images, make_result, mean_result
from probe.probes.shots import draw_shots
from probe.probes.solvers.catalog import get_solver
from probe.probes.sweep import Searched, best, bisect, search
from probe.records.schema import SweepRecord
from probe.specs import DEFAULT_SOLVER, KNN, LOGISTIC, ZERO_SHOT, Protocol
from probe.stats.metrics import get_metric
from probe.stats.top_classes import SIGMOID, SOFTMAX

logger = logging.getLogger(__name__)

PROBE_VERSION = 2  # raised by every change of the package that gives the same features a different score


class FitOptions(TypedDict, total=False):
    """Keyword options that `fit_folds` passes to `fit_probe`."""

    metric: str
    protocol: str | Protocol
    solver: str
    device: str
    fit_cache: FitCache | None
    shows_progress: bool
    finds_top: bool


def fit_probe(
    *,
    train: Features,
    test: Features,
    val: Features | None = None,
    metric: str = "accuracy",
    protocol: str | Protocol = "clip-paper",
    solver: str = DEFAULT_SOLVER,
    device: str = "cpu",
    fit_cache: FitCache | None = None,
    shows_progress: bool = False,
    finds_top: bool = False,
) -> ProbeResult:
    """Fit a linear probe, or let the nearest images vote, under a protocol, and score it on the test split.

    Args:
        train: features to fit on, or of the images that vote. Labels are (n,), or (n, k) if an image can show several
            of k classes.
        test: features to score on. They are read once, after C or k is chosen.
        val: features to choose C or k on. They join `train` for the final fit if the protocol has `refit`.
        metric: a name of `metrics.METRICS`.
        protocol: name of a protocol, path of a protocol in TOML, or a `Protocol`.
        solver: a name of `solvers.catalog.SOLVERS`: `fast` or `sklearn`. k-NN has none.
        device: where the solver or the search computes, such as `cpu` or `cuda`.
        fit_cache: cache of finished fits, which the caller clears after writing the result. None disables the cache.
        shows_progress: if True, show a progress bar on stderr if stderr is a terminal.
        finds_top: if True, the result has the most probable classes of each test image, see `ProbeResult.tops`.

    Raises:
        UnknownNameError: the protocol, metric or solver is unknown.
        ProtocolError: the protocol is invalid, it needs `val` and there is none, the metric does not suit the labels,
            `train` has a single class, or there is not enough memory.
        FeaturesError: the features were not taken at the protocol's feature point, are not finite, or have shapes or
            labels that do not match.
    """
    rules = get_protocol(protocol) if isinstance(protocol, str) else protocol
    validate(rules)
    get_metric(metric)
    if rules.method == ZERO_SHOT:
        raise ProtocolError(
            f"protocol {rules.name!r} cannot score features alone, because it needs the text tower of a model; use "
            "`probe run` or probe.run"
        )
    if rules.method == LOGISTIC:
        get_solver(solver)
    check_splits(rules, train=train, val=val, test=test)
    label_values: tuple[int, ...] = ()
    if train.y.ndim == 2:
        num_classes = train.y.shape[1]
    else:
        labels = np.unique(np.concatenate([features.y for features in (train, val, test) if features is not None]))
        num_classes = len(labels)
        if labels[-1] >= num_classes:  # labels with gaps, such as ids
            label_values = tuple(labels.tolist())
            train, test = _renumber(train, labels), _renumber(test, labels)
            val = None if val is None else _renumber(val, labels)
    scored = {"test": test.y}
    if val is not None and needs_choice(rules) and not rules.held_out:
        scored["val"] = val.y
    check_metric(metric, num_classes=num_classes, scored=scored)
    fitted = [train] if val is None or not rules.refit else [train, val]
    if rules.method == KNN:
        warn_of_missing_classes(fitted, test, label_values)
        knn_settings = KNNSettings(rules, metric, num_classes, label_values, device, finds_top=finds_top)
        return fit_knn(train, val, test, knn_settings)
    settings = FitSettings(PROBE_VERSION, rules, solver, device, fit_cache or FitCache(None), shows_progress, finds_top)
    probe = _Probe(settings, metric, num_classes, label_values)
    num_scored = max(len(features) for features in (val, test) if features is not None)
    check_cost(settings, fitted, num_classes=num_classes, num_scored=num_scored)
    with threads(0, blas=blas_threads() or 0):
        if not rules.shots:
            return probe.fit(train, val, test)
        return mean_result([probe.fit_draw(seed, train, val, test) for seed in range(rules.num_seeds)], of="draws")


@dataclass
class _Probe:
    """Probe of one fold: the sweep over C, the final fit and the test score."""

    settings: FitSettings
    metric: str
    num_classes: int
    label_values: tuple[int, ...]

    @property
    def rules(self) -> Protocol:
        """Return the protocol."""
        return self.settings.rules

    def fit_draw(self, seed: int, train: Features, val: Features | None, test: Features) -> ProbeResult:
        """Fit on a few-shot draw from the training images."""
        rules = self.rules
        draw = draw_shots(train.y, shots=rules.shots, held_out=rules.held_out, seed=seed, per_class=rules.per_class)
        val = train.take(draw.held_out) if rules.held_out else val
        result = self.fit(train.take(draw.train), val, test)
        return replace(result, seed=seed, draw_sha256=draw.compute_digest())

    def fit(self, train: Features, val: Features | None, test: Features) -> ProbeResult:
        """Choose C if the grid has several values, fit the final probe and score it on the test split."""
        rules = self.rules
        sweep: tuple[SweepRecord, ...] = ()
        fitted = [train] if val is None or not rules.refit else [train, val]
        num_train = sum(map(len, fitted))
        C, chosen = _strengths(rules, num_train)[0], None  # noqa: N806 - the field's name
        if len(rules.grid) > 1:
            assert val is not None
            searched, fits = self._sweep(train, val)
            sweep, chosen = tuple(searched.tried.values()), fits[searched.chosen]
            is_rescaled = rules.mean_loss and num_train != len(train)
            C = chosen.C * len(train) / num_train if is_rescaled else chosen.C  # noqa: N806 - the field's name
        warn_of_missing_classes(fitted, test, self.label_values)
        # scikit-learn's fit of the sweep is already the final fit if it is on the same images. `fast` fits a sweep with
        # fewer iterations, so its final fit is always made.
        if chosen is not None and len(fitted) == 1 and self.settings.solver == "sklearn":
            final = chosen
        else:
            final = Fitter(self.settings, fitted).fit(C, chosen)
        if not final.converged:
            logger.warning(
                "the final fit at C = %.4g did not converge: after %d iterations its objective %.6g is about %.1e "
                "above the minimum",
                C,
                final.n_iter,
                final.objective,
                final.suboptimality,
            )
        weights = final.weights(self.num_classes)
        y_score = weights.logits(at_feature_point(rules, test))
        if test.y.ndim == 2:
            predictions = (y_score > 0).astype(np.int64)
        else:
            predictions = y_score.argmax(axis=1)
            predictions = np.array(self.label_values)[predictions] if self.label_values else predictions
        val_logits, reason = self._validation_logits(val, final, chosen)
        calibration = calibrate(
            test.y, y_score, val_y=val.y if val is not None else None, val_logits=val_logits, reason=reason
        )
        return make_result(
            self.metric,
            test.y,
            y_score,
            predictions=predictions,
            fit=worst([final]),
            C=C,
            num_train=num_train,
            solver=self.settings.solver,
            label_values=self.label_values,
            sweep=sweep,
            choice_converged=all(point.converged or point.ended_early for point in sweep),
            calibration=calibration,
            heads=(weights,),
            top=(SIGMOID if test.y.ndim == 2 else SOFTMAX) if self.settings.finds_top else "",
        )

    def _validation_logits(self, val: Features | None, final: Fit, chosen: Fit | None) -> tuple[np.ndarray | None, str]:
        """Return logits of the validation images by a fit on the training images alone, or the reason for none.

        Args:
            val: validation images.
            final: final fit, which has seen `val` if the protocol has `refit`.
            chosen: fit of the sweep at the chosen C, which has not.
        """
        if val is None:
            return None, "no temperature: there are no validation images"
        fit = chosen if self.rules.refit else final
        if fit is None:
            return None, "no temperature: the protocol has a single fit, which uses the validation images"
        return fit.scores(at_feature_point(self.rules, val), self.num_classes), ""

    def _sweep(self, train: Features, val: Features) -> tuple[Searched[SweepRecord], dict[float, Fit]]:
        """Return the sweep over C, and the fit of each tried value of C."""
        fitter, x_val = Fitter(self.settings, [train]), at_feature_point(self.rules, val)
        score = get_metric(self.metric)
        fits: dict[float, Fit] = {}

        def evaluate(strengths: Sequence[float]) -> list[SweepRecord]:
            fitter.fit_all(strengths, fits)
            return [point(fits[C]) for C in strengths]

        def point(fit: Fit) -> SweepRecord:
            val_score = score(val.y, fit.scores(x_val, self.num_classes))
            logger.debug("C = %.4g: validation score %.4f, %d iterations", fit.C, val_score, fit.n_iter)
            return SweepRecord(
                C=fit.C,
                score=val_score,
                n_iter=fit.n_iter,
                converged=fit.converged,
                ended_early=fit.ended_early,
                gradient_ratio=fit.gradient_ratio,
                objective=fit.objective,
                suboptimality=fit.suboptimality,
            )

        def score_of(point: SweepRecord) -> float:
            return point.score

        rules, grid = self.rules, _strengths(self.rules, len(train))
        if rules.bisections:  # compares scores that need not be the best, so no fit may end early
            return bisect(evaluate, grid, steps=rules.bisections, score=score_of), fits
        fitter.hold_contest(x_val, val.y, self.metric)
        tried = search(evaluate, grid, coarse_step=rules.coarse_step, score=score_of)
        return Searched(tried, best(tried, score_of)), fits


def fit_folds(folds: Sequence[Mapping[str, Features]], **options: Unpack[FitOptions]) -> ProbeResult:
    """Fit one probe on each fold and return the mean result, see `mean_result`.

    Args:
        folds: features of each fold: the splits `train`, `test` and, unless C is fixed, `val`.
        options: keyword arguments of `fit_probe`.

    Raises:
        UnknownNameError, ProtocolError, FeaturesError: see `fit_probe`.
    """
    results = [fit_probe(train=fold["train"], val=fold.get("val"), test=fold["test"], **options) for fold in folds]
    return mean_result(results, same_images=have_same_images(folds))


def _strengths(rules: Protocol, num_train: int) -> tuple[float, ...]:
    """Return the values of C of the protocol's grid for fits on `num_train` images."""
    return tuple(value / num_train for value in rules.grid) if rules.mean_loss else rules.grid


def _renumber(features: Features, labels: np.ndarray) -> Features:
    """Return features whose labels are replaced by their positions in the ascending `labels`."""
    return replace(features, y=np.searchsorted(labels, features.y))
