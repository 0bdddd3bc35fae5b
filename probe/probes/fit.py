"""Fit a linear probe on features under a protocol.

C is chosen on validation images, the final probe is fitted, and the test split is scored once.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from tqdm import tqdm

from probe.environment import blas_threads, library_versions, threads
from probe.errors import FeaturesError, ProtocolError, listed
from probe.features.arrays import Features
from probe.ordering import order
from probe.probes import costs
from probe.probes.cached_fits import FitCache, FitKey
from probe.probes.calibration import calibrate
from probe.probes.fits import Fit, Solver, at_feature_point, worst
from probe.probes.knn import KNNSettings, fit_knn
from probe.probes.protocols import get_protocol, validate
from probe.probes.result import ProbeResult, make_result, mean_result
from probe.probes.scaling import Scaling, fit_scaling
from probe.probes.shots import count_drawn, draw_shots
from probe.probes.solvers.catalog import get_solver
from probe.probes.sweep import Searched, best, bisect, search
from probe.records.schema import SweepRecord
from probe.specs import DEFAULT_SOLVER, KNN, LOGISTIC, ZERO_SHOT, Protocol
from probe.stats.metrics import IGNORED, find_mismatch, find_undefined, get_metric
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
    _check(rules, train=train, val=val, test=test)
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
    reason = find_mismatch(metric, num_classes=num_classes, is_multi_label=train.y.ndim == 2)
    if reason:
        raise ProtocolError(reason)
    is_searched = needs_choice(rules) and val is not None and not rules.held_out
    for name, scored in (("test", test), ("val", val if is_searched else None)):
        reason = "" if scored is None else find_undefined(metric, scored.y)
        if reason:
            raise ProtocolError(
                f"the metric {metric} is not defined on the {name} split: {reason}; use a different metric"
            )
    fitted = [train] if val is None or not rules.refit else [train, val]
    if rules.method == KNN:
        _warn_of_missing_classes(fitted, test, label_values)
        knn_settings = KNNSettings(rules, metric, num_classes, label_values, device, finds_top=finds_top)
        return fit_knn(train, val, test, knn_settings)
    settings = _Settings(rules, solver, device, fit_cache or FitCache(None), shows_progress, finds_top)
    probe = _Probe(settings, metric, num_classes, label_values)
    num_scored = max(len(features) for features in (val, test) if features is not None)
    _check_cost(settings, fitted, num_classes=num_classes, num_scored=num_scored)
    with threads(0, blas=blas_threads() or 0):
        if not rules.shots:
            return probe.fit(train, val, test)
        return mean_result([probe.fit_draw(seed, train, val, test) for seed in range(rules.num_seeds)], of="draws")


@dataclass(frozen=True)
class _Settings:
    """Protocol and options of all fits, see `fit_probe`."""

    rules: Protocol
    solver: str
    device: str
    fit_cache: FitCache
    shows_progress: bool
    finds_top: bool


@dataclass
class _Probe:
    """Probe of one fold: the sweep over C, the final fit and the test score."""

    settings: _Settings
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
        _warn_of_missing_classes(fitted, test, self.label_values)
        # scikit-learn's fit of the sweep is already the final fit if it is on the same images. `fast` fits a sweep with
        # fewer iterations, so its final fit is always made.
        if chosen is not None and len(fitted) == 1 and self.settings.solver == "sklearn":
            final = chosen
        else:
            final = _Fitter(self.settings, fitted).fit(C, chosen)
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
            choice_converged=all(point.converged for point in sweep),
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
        fitter, x_val = _Fitter(self.settings, [train]), at_feature_point(self.rules, val)
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
                gradient_ratio=fit.gradient_ratio,
                objective=fit.objective,
                suboptimality=fit.suboptimality,
            )

        def score_of(point: SweepRecord) -> float:
            return point.score

        rules, grid = self.rules, _strengths(self.rules, len(train))
        if rules.bisections:
            return bisect(evaluate, grid, steps=rules.bisections, score=score_of), fits
        tried = search(evaluate, grid, coarse_step=rules.coarse_step, score=score_of)
        return Searched(tried, best(tried, score_of)), fits


class _Fitter:
    """Fits on the same training images at several values of C.

    Fits are read from the cache where possible. The solver is created for the first fit that is not cached. If the
    protocol standardises features, a fit has weights for the features as they are, but its convergence is measured on
    standardised features.
    """

    def __init__(self, settings: _Settings, splits: Sequence[Features]) -> None:
        self.settings, self.rules, self.fit_cache, self.splits = settings, settings.rules, settings.fit_cache, splits
        self.is_warm = settings.solver == "fast" or self.rules.warm_start  # fits may start from other fits
        self.key: dict[str, Any] = {}
        if self.fit_cache.folder is not None:
            rules, point = self.rules, self.rules.feature_point
            self.key = {
                "features": [(split.compute_sha256(), split.at(point).shape, split.y.shape) for split in splits],
                "point": [point, rules.normalize, rules.standardize],
                "fit": [rules.max_iter, rules.tol, settings.solver, settings.device],
                "threads": [torch.get_num_threads(), blas_threads()],
                "packages": library_versions("fits"),
                "version": PROBE_VERSION,
            }

    @cached_property
    def solver(self) -> Solver:
        """Return the solver for the training images."""
        arrays = [at_feature_point(self.rules, split) for split in self.splits]
        if self.rules.standardize:
            arrays = [self.scaling.apply(x) for x in arrays]
        y = np.concatenate([split.y for split in self.splits])
        solver_class = get_solver(self.settings.solver)
        return solver_class(arrays, y, max_iter=self.rules.max_iter, tol=self.rules.tol, device=self.settings.device)

    @cached_property
    def scaling(self) -> Scaling:
        """Return the scaling of the training images."""
        return fit_scaling([at_feature_point(self.rules, split) for split in self.splits])

    def _fold(self, fit: Fit) -> Fit:
        """Return a fit of the solver with weights for the features as they are."""
        return self.scaling.fold(fit) if self.rules.standardize else fit

    def _unfold(self, fit: Fit | None) -> Fit | None:
        """Return a fit with weights for the features that the solver has; None for None."""
        return fit if fit is None or not self.rules.standardize else self.scaling.unfold(fit)

    def fit(self, C: float, start: Fit | None) -> Fit:  # noqa: N803 - the field's name
        """Return the final fit at C, started from another fit if there is one and the solver or protocol allows it."""
        start = start if self.is_warm else None
        key = self._key(C, start, is_final=True)
        fit = self.fit_cache.find(key)
        if fit is None:
            with self._progress(f"C = {C:.3g}") as bar:
                fit = self._fold(self.solver.fit(C, self._unfold(start), tick=_make_tick(bar)))
            self.fit_cache.store(key, fit)
        return fit

    def fit_all(self, strengths: Sequence[float], fits: dict[float, Fit]) -> None:
        """Add fits for the choice of C to `fits`.

        If the solver or the protocol allows it, each fit starts from the existing fit with the nearest C.
        """
        remaining, size = list(strengths), 0
        while remaining:
            # A single value needs no batch size. So the solver is not created if the fit is cached.
            size = size or (1 if len(remaining) == 1 or self.settings.solver == "sklearn" else self.solver.batch)
            batch, remaining = remaining[:size], remaining[size:]
            starts = {C: _nearest(fits, C) if self.is_warm else None for C in batch}
            keys = {C: self._key(C, start, is_final=False) for C, start in starts.items()}
            cached = {C: self.fit_cache.find(key) for C, key in keys.items()}
            missing = [C for C, fit in cached.items() if fit is None]
            done: dict[float, Fit] = {C: fit for C, fit in cached.items() if fit is not None}

            def add(fit: Fit, keys: dict[float, FitKey] = keys, done: dict[float, Fit] = done) -> None:
                fit = self._fold(fit)
                self.fit_cache.store(keys[fit.C], fit)
                done[fit.C] = fit

            if missing:
                with self._progress(f"{len(missing)} of {len(strengths)} values of C") as bar:
                    unfolded = {id(start): self._unfold(start) for start in starts.values()}  # shared, see `Fast`
                    self.solver.fit_all(
                        missing,
                        [unfolded[id(starts[C])] for C in missing],
                        is_final=False,
                        done=add,
                        tick=_make_tick(bar),
                    )
            fits.update(done)

    def _key(self, C: float, start: Fit | None, *, is_final: bool) -> FitKey:  # noqa: N803 - the field's name
        sha256 = None if start is None else hashlib.sha256(start.coef.tobytes() + start.intercept.tobytes()).hexdigest()
        return {**self.key, "C": C, "start": sha256, "is_final": is_final}

    def _progress(self, description: str) -> tqdm[Any]:
        disable = None if self.settings.shows_progress else True  # None: disable unless stderr is a terminal
        return tqdm(desc=f"{self.rules.name}, {description}", unit="it", disable=disable)


def _make_tick(bar: tqdm[Any]) -> Callable[[int], None]:
    """Return a callback that advances a progress bar by one iteration."""

    def tick(_: int) -> None:
        bar.update()

    return tick


def _nearest(fits: Mapping[float, Fit], C: float) -> Fit | None:  # noqa: N803 - the field's name
    """Return the fit with the nearest C on a log scale, or None if there are no fits.

    On a tie, return the fit with the smaller C, because its stronger penalty makes the optimum easier to reach.
    """
    nearest = min(fits, key=lambda known: (round(abs(math.log(known / C)), 9), known), default=None)
    return None if nearest is None else fits[nearest]


def _check_cost(settings: _Settings, splits: Sequence[Features], *, num_classes: int, num_scored: int) -> None:
    """Estimate and log the cost of a probe, and check that there is enough memory, before anything is fitted."""
    rules = settings.rules
    arrays = [split.at(rules.feature_point) for split in splits]
    n = sum(map(len, arrays))
    if rules.shots:
        n = min(n, count_drawn(rules, num_classes))
    cost = costs.estimate_cost(
        rules, settings.solver, arrays[0], n=n, k=num_classes, num_parts=len(arrays), num_scored=num_scored
    )
    costs.check_memory(cost, settings.solver, settings.device)
    logger.debug(
        "protocol %s, solver %s: %d images of %d features, at most %d fits, about %.0f s on the CPU, %.1f GB of memory",
        rules.name,
        settings.solver,
        n,
        arrays[0].shape[1],
        cost.fits,
        cost.seconds,
        cost.memory / 1e9,
    )


def fit_folds(folds: Iterable[Mapping[str, Features]], **options: Unpack[FitOptions]) -> ProbeResult:
    """Fit one probe on each fold and return the mean result, see `mean_result`.

    Args:
        folds: features of each fold: the splits `train`, `test` and, unless C is fixed, `val`.
        options: keyword arguments of `fit_probe`.

    Raises:
        UnknownNameError, ProtocolError, FeaturesError: see `fit_probe`.
    """
    results, digests = [], set()
    for fold in folds:
        digests.add(fold["test"].compute_sha256())
        results.append(fit_probe(train=fold["train"], val=fold.get("val"), test=fold["test"], **options))
    return mean_result(results, of="folds", same_images=len(digests) == 1)


def hold_out_validation(fold: Mapping[str, Features], fraction: float, *, seed: int = 0) -> dict[str, Features]:
    """Split the training features of a fold into `train` and `val`, stratified by class.

    The same seed gives the same split on every machine.

    Args:
        fold: features of the splits `train` and `test`.
        fraction: share of the images of each class to hold out, in (0, 1). The number of images is rounded, and at
            least one image of each class stays in `train`.
        seed: seed of the choice.

    Raises:
        FeaturesError: the fraction is outside (0, 1), or no image would be held out.
    """
    if not 0 < fraction < 1:  # NaN too
        raise FeaturesError(f"the fraction to hold out for validation is {fraction}; give a number between 0 and 1")
    y = fold["train"].y
    classes = y if y.ndim == 1 else np.zeros(len(y), np.int64)  # images with several labels are not stratified
    chosen = [
        position
        for label in np.unique(classes).tolist()
        for position in _hold_out_of(np.flatnonzero(classes == label), fraction, f"{seed}:{label}")
    ]
    if not chosen:
        raise FeaturesError(
            f"no class has enough images to hold out a fraction of {fraction} for validation; give a larger fraction"
        )
    is_val = np.zeros(len(y), dtype=bool)
    is_val[chosen] = True
    train, val = (fold["train"].take(np.flatnonzero(rows)) for rows in (~is_val, is_val))
    return {**fold, "train": train, "val": val}


def _hold_out_of(positions: np.ndarray, fraction: float, name: str) -> list[int]:
    num = min(round(fraction * len(positions)), len(positions) - 1)
    ordered = sorted(range(len(positions)), key=lambda i: order("val", name, i))
    return positions[ordered[:num]].tolist()


def _strengths(rules: Protocol, num_train: int) -> tuple[float, ...]:
    """Return the values of C of the protocol's grid for fits on `num_train` images."""
    return tuple(value / num_train for value in rules.grid) if rules.mean_loss else rules.grid


def _renumber(features: Features, labels: np.ndarray) -> Features:
    """Return features whose labels are replaced by their positions in the ascending `labels`."""
    return replace(features, y=np.searchsorted(labels, features.y))


def _warn_of_missing_classes(fitted: Sequence[Features], test: Features, label_values: Sequence[int]) -> None:
    """Warn about test classes that the training images cannot teach, and about classes that do not count."""
    y = np.concatenate([features.y for features in fitted])
    if y.ndim == 2:
        is_scored = (test.y == 1).any(axis=0)
        missing = np.flatnonzero(is_scored & ~((y == 1).any(axis=0) & (y == 0).any(axis=0)))
        message = (
            "%d classes of the test split have no positive or no negative training image, so the probe cannot rank "
            "their images: %s"
        )
        if not is_scored.all():
            unscored = np.flatnonzero(~is_scored).tolist()
            logger.warning(
                "%d classes have no positive image in the test split and do not count in the mean: %s",
                len(unscored),
                listed(unscored),
            )
    else:
        missing = np.setdiff1d(test.y, y)
        missing = np.array(label_values)[missing] if label_values else missing
        message = "%d classes of the test split have no training image, so their test images count as wrong: %s"
    if len(missing):
        logger.warning(message, len(missing), listed(missing.tolist()))


def needs_choice(rules: Protocol) -> bool:
    """Return True if a protocol chooses C or k among several values."""
    return len(rules.grid) > 1 or len(rules.neighbours) > 1


def _check(rules: Protocol, *, train: Features, val: Features | None, test: Features) -> None:
    if needs_choice(rules) and val is None and not rules.held_out:
        chosen = "k" if rules.method == KNN else "C"
        raise ProtocolError(
            f"protocol {rules.name!r} chooses {chosen} on a validation split, but there is none; give val (val_x and "
            "val_y in a file), or hold out some training images with --val-fraction 0.1"
        )
    labels = train.y if train.y.ndim == 1 else train.y[:, (train.y == 1).any(axis=0)]
    if len(np.unique(labels[labels != IGNORED])) < 2:
        raise ProtocolError("all training images have the same label; a probe needs at least two classes")
    widths = {}
    for name, features in (("train", train), ("val", val), ("test", test)):
        if features is not None:
            x = features.at(rules.feature_point)
            _check_split(name, x, features.y, label_shape=train.y.shape[1:])
            widths[name] = x.shape[1]
    if len(set(widths.values())) > 1:
        raise FeaturesError(
            f"the splits have different numbers of features, {widths}; extract all splits with the same model"
        )


def _check_split(name: str, x: np.ndarray, y: np.ndarray, *, label_shape: tuple[int, ...]) -> None:
    """Check the features and labels of one split.

    Args:
        name: name of the split, for messages.
        x: features.
        y: labels.
        label_shape: expected shape of the labels of one image: (), or (k,) if an image can show several of k classes.
    """
    if x.ndim != 2 or len(x) != len(y) or len(x) == 0:
        raise FeaturesError(
            f"{name} has features of shape {x.shape} and {len(y)} labels; give features (n, d) and n labels, n >= 1"
        )
    is_finite = np.isfinite(x.sum(axis=1, dtype=np.float64))
    if not is_finite.all():
        raise FeaturesError(
            f"{name} has features that are not finite, first in row {int(np.argmin(is_finite))}; remove the row or "
            "extract its image again"
        )
    if y.ndim == 1 and y.dtype.kind in "iu" and y.min() < 0:
        row = int(y.argmin())
        raise FeaturesError(f"{name} has the label {y[row]} in row {row}; give integers >= 0")
    if y.ndim not in (1, 2) or y.dtype.kind not in "iu" or (y.ndim == 2 and y.min() < IGNORED):
        raise FeaturesError(
            f"{name} has labels of dtype {y.dtype} and shape {y.shape}; give one integer >= 0 per image, or one row of "
            "1, 0 and -1 per image"
        )
    if y.shape[1:] != label_shape:
        raise FeaturesError(
            f"{name} has labels of shape {y.shape}, but one image of train has labels of shape {label_shape}; use the "
            "same classes in all splits"
        )
    if y.ndim == 2 and y.max() > 1:
        raise FeaturesError(f"{name} has the label {y.max()}; give rows of 1, 0 and -1")
