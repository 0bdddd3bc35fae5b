"""Features -> the result of a probe under a protocol: choose C on validation images, fit, read the test split once."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from probe.environment import blas_threads, library_versions, threads
from probe.errors import FeaturesError, ProtocolError, listed
from probe.features.arrays import Features
from probe.ordering import order
from probe.probes import costs
from probe.probes.cached_fits import FitCache
from probe.probes.fits import Fit, Solver, worst
from probe.probes.protocols import get_protocol, validate
from probe.probes.result import ProbeResult, SweepPoint, mean_result
from probe.probes.shots import draw_shots
from probe.probes.solvers.catalog import get_solver
from probe.probes.sweep import best, search
from probe.specs import Protocol
from probe.stats.intervals import interval
from probe.stats.metrics import IGNORED, find_undefined, get_metric, misfit
from probe.stats.outcomes import make_outcomes

logger = logging.getLogger(__name__)

WORTH_SAYING = 1.0  # seconds that fits must take for a line that announces them
PROBE_VERSION = 1  # raised with every change of the suite that changes fits: the same features, another score


def fit_probe(
    *,
    train: Features,
    test: Features,
    val: Features | None = None,
    metric: str = "accuracy",
    protocol: str | Protocol = "clip-paper",
    solver: str = "sklearn",
    device: str = "cpu",
    fit_cache: FitCache | None = None,
    shows_progress: bool = False,
) -> ProbeResult:
    """Fit a linear probe under a protocol.

    Args:
        train: features to fit on; labels (n, k) where an image can show several of k classes.
        test: features to score on, once, after everything is chosen.
        val: features on which C is chosen; they join `train` for the final fit unless the protocol says no.
        metric: a name of `metrics.METRICS`.
        protocol: a name, or a protocol of your own.
        solver: `sklearn` or `fast`, a name of `solvers.SOLVERS`.
        device: where the solver computes.
        fit_cache: cache of finished fits, which the caller clears when the result is written; None caches none.
        shows_progress: a bar on stderr where that is a terminal.

    Raises:
        UnknownNameError: no such protocol, metric or solver.
        ProtocolError: the protocol is at fault, searches and there is no `val`, or `train` has a single class; or there
            is not enough memory.
        FeaturesError: the features were not taken at the protocol's feature point, are not finite, or do not fit each
            other.
    """
    rules = get_protocol(protocol) if isinstance(protocol, str) else protocol
    validate(rules)
    get_metric(metric)
    get_solver(solver)
    _check(rules, train=train, val=val, test=test)
    label_values: tuple[int, ...] = ()
    if train.y.ndim == 2:
        num_classes = train.y.shape[1]
    else:
        labels = np.unique(np.concatenate([part.y for part in (train, val, test) if part is not None]))
        num_classes = len(labels)
        if labels[-1] >= num_classes:  # labels with gaps, such as ids
            label_values = tuple(labels.tolist())
            train, test = _number(train, labels), _number(test, labels)
            val = None if val is None else _number(val, labels)
    reason = misfit(metric, num_classes=num_classes, is_multi_label=train.y.ndim == 2)
    if reason:
        raise ProtocolError(reason)
    is_searched = len(rules.grid) > 1 and val is not None and not rules.held_out
    for name, part in (("test", test), ("val", val if is_searched else None)):
        reason = "" if part is None else find_undefined(metric, part.y)
        if reason:
            raise ProtocolError(f"the metric {metric} is not defined on the {name} split: {reason}; use another metric")
    settings = _Settings(rules, solver, device, fit_cache or FitCache(None), shows_progress)
    probe = _Probe(settings, metric, num_classes, label_values)
    scored = max(len(part) for part in (val, test) if part is not None)
    fitted = [train] if val is None or not rules.refit else [train, val]
    _announce(settings, fitted, num_classes=num_classes, num_scored=scored)
    with threads(0, blas=blas_threads() or 0):
        if not rules.shots:
            return probe.fit(train, val, test)
        return mean_result([probe.fit_draw(seed, train, val, test) for seed in range(rules.num_seeds)], of="draws")


@dataclass(frozen=True)
class _Settings:
    """The protocol and what fits are made by; see `fit_probe`."""

    rules: Protocol
    solver: str
    device: str
    fit_cache: FitCache
    shows_progress: bool


@dataclass
class _Probe:
    """A protocol at work on one dataset and fold."""

    settings: _Settings
    metric: str
    num_classes: int
    label_values: tuple[int, ...]

    @property
    def rules(self) -> Protocol:
        """The protocol."""
        return self.settings.rules

    def fit_draw(self, seed: int, train: Features, val: Features | None, test: Features) -> ProbeResult:
        """Fit on so many images a class."""
        drawn = draw_shots(train.y, shots=self.rules.shots, held_out=self.rules.held_out, seed=seed)
        chooser = train.take(drawn.held_out) if self.rules.held_out else val
        result = self.fit(train.take(drawn.train), chooser, test)
        return replace(result, seed=seed, draw_sha256=drawn.compute_digest())

    def fit(self, train: Features, val: Features | None, test: Features) -> ProbeResult:
        """Choose C where there is a choice, and fit."""
        rules = self.rules
        sweep: tuple[SweepPoint, ...] = ()
        C, near = rules.grid[0], None  # noqa: N806 - the field's name
        parts = [train] if val is None or not rules.refit else [train, val]
        if len(rules.grid) > 1:
            assert val is not None
            found, fits = self._sweep(train, val)
            sweep = tuple(found.values())
            C = best(found, lambda point: point.score)  # noqa: N806 - the field's name
            near = fits[C]
        _warn_of_missing_classes(parts, test, self.label_values)
        # On the same images scikit-learn has made it; `fast` fits only as far as a choice needs.
        is_made = near is not None and len(parts) == 1 and self.settings.solver == "sklearn"
        final = near if near is not None and is_made else _Fitter(self.settings, parts).fit(C, near)
        if not final.converged:
            logger.warning(
                "the final fit at C = %.4g did not converge: after %d iterations its objective %.6g is about %.1e "
                "above its minimum",
                C,
                final.n_iter,
                final.objective,
                final.suboptimality,
            )
        y_score = final.scores(_features(rules, test), self.num_classes)
        outcomes = make_outcomes(self.metric, test.y, y_score)
        if test.y.ndim == 2:
            predictions = (y_score > 0).astype(np.int64)
        else:
            predictions = y_score.argmax(axis=1)
            predictions = np.array(self.label_values)[predictions] if self.label_values else predictions
        return ProbeResult(
            metric=self.metric,
            score=get_metric(self.metric)(test.y, y_score),
            C=C,
            num_train=sum(len(part) for part in parts),
            num_test=len(test),
            **worst([final]),
            solver=self.settings.solver,
            interval=interval([outcomes]),
            label_values=self.label_values,
            sweep=sweep,
            choice_converged=all(point.converged for point in sweep),
            predictions=predictions,
            outcomes=(outcomes,),
        )

    def _sweep(self, train: Features, val: Features) -> tuple[dict[float, SweepPoint], dict[float, Fit]]:
        """The values of C that were tried, ascending, and their fits."""
        fitter, x_val = _Fitter(self.settings, [train]), _features(self.rules, val)
        score = get_metric(self.metric)
        fits: dict[float, Fit] = {}

        def evaluate(strengths: Sequence[float]) -> list[SweepPoint]:
            fitter.fit_all(strengths, fits)
            return [point(fits[C]) for C in strengths]

        def point(fit: Fit) -> SweepPoint:
            on_val = score(val.y, fit.scores(x_val, self.num_classes))
            logger.debug("C = %.4g: %.4f on validation, %d iterations", fit.C, on_val, fit.n_iter)
            return SweepPoint(
                C=fit.C,
                score=on_val,
                n_iter=fit.n_iter,
                converged=fit.converged,
                gradient_ratio=fit.gradient_ratio,
                objective=fit.objective,
                suboptimality=fit.suboptimality,
            )

        tried = search(evaluate, self.rules.grid, coarse_step=self.rules.coarse_step, score=lambda point: point.score)
        return tried, fits


class _Fitter:
    """Fits on some training images: those that are cached, the rest by a solver, which is made when needed."""

    def __init__(self, settings: _Settings, parts: Sequence[Features]) -> None:
        self.settings, self.rules, self.fit_cache, self.parts = settings, settings.rules, settings.fit_cache, parts
        self.can_start_near = settings.solver == "fast" or self.rules.warm_start
        self.key: dict[str, Any] = {}
        if self.fit_cache.folder is not None:
            rules, point = self.rules, self.rules.feature_point
            self.key = {
                "features": [(part.compute_sha256(), part.at(point).shape, part.y.shape) for part in parts],
                "point": [point, rules.normalize],
                "fit": [rules.max_iter, rules.tol, settings.solver, settings.device],
                "threads": [torch.get_num_threads(), blas_threads()],
                "packages": library_versions("fits"),
            }

    @cached_property
    def solver(self) -> Solver:
        """On these images."""
        arrays = [_features(self.rules, part) for part in self.parts]
        y = np.concatenate([part.y for part in self.parts])
        kind = get_solver(self.settings.solver)
        return kind(arrays, y, max_iter=self.rules.max_iter, tol=self.rules.tol, device=self.settings.device)

    def fit(self, C: float, near: Fit | None) -> Fit:  # noqa: N803 - the field's name
        """The final fit."""
        near = near if self.can_start_near else None
        found = self.fit_cache.find(self._name(C, near, is_final=True))
        if found is None:
            with self._progress(f"C = {C:.3g}") as bar:
                found = self.solver.fit(C, near, tick=_ticks(bar))
            self.fit_cache.store(self._name(C, near, is_final=True), found)
        return found

    def fit_all(self, strengths: Sequence[float], fits: dict[float, Fit]) -> None:
        """Add fits that serve to choose C, each beginning at the nearest one that is there, where that is allowed."""
        left, size = list(strengths), 0
        while left:
            # Cached fits need no solver, and so no room for one.
            size = size or (1 if len(left) == 1 or self.settings.solver == "sklearn" else self.solver.batch)
            batch, left = left[:size], left[size:]
            nears = {C: _nearest(fits, C) if self.can_start_near else None for C in batch}
            names = {C: self._name(C, near, is_final=False) for C, near in nears.items()}
            found = {C: self.fit_cache.find(name) for C, name in names.items()}
            missing = [C for C, fit in found.items() if fit is None]
            done: dict[float, Fit] = {C: fit for C, fit in found.items() if fit is not None}

            def keep(fit: Fit, names: dict[float, Any] = names, done: dict[float, Fit] = done) -> None:
                self.fit_cache.store(names[fit.C], fit)
                done[fit.C] = fit

            if missing:
                with self._progress(f"{len(missing)} of {len(strengths)} values of C") as bar:
                    starts = [nears[C] for C in missing]
                    self.solver.fit_all(missing, starts, is_final=False, done=keep, tick=_ticks(bar))
            fits.update(done)

    def _name(self, C: float, near: Fit | None, *, is_final: bool) -> Any:  # noqa: N803 - the field's name
        start = None if near is None else hashlib.sha256(near.coef.tobytes() + near.intercept.tobytes()).hexdigest()
        return {**self.key, "C": C, "start": start, "is_final": is_final}

    def _progress(self, what: str) -> tqdm[Any]:
        shown = None if self.settings.shows_progress else True
        return tqdm(desc=f"{self.rules.name}, {what}", unit="it", disable=shown)


def _ticks(bar: tqdm[Any]) -> Callable[[int], None]:
    """What moves a bar with every iteration."""

    def tick(_: int) -> None:
        bar.update()

    return tick


def _nearest(fits: Mapping[float, Fit], C: float) -> Fit | None:  # noqa: N803 - the field's name
    """The fit of the nearest C; of two as near that of the smaller, whose optimum is the easier one."""
    near = min(fits, key=lambda known: (round(abs(math.log(known / C)), 9), known), default=None)
    return None if near is None else fits[near]


def _announce(settings: _Settings, parts: Sequence[Features], *, num_classes: int, num_scored: int) -> None:
    """Say what a probe will take, and stop where there is no room for it; before anything is fitted."""
    rules = settings.rules
    arrays = [part.at(rules.feature_point) for part in parts]
    n = sum(map(len, arrays))
    if rules.shots:
        n = min(n, num_classes * rules.shots)
    cost = costs.estimate_cost(
        rules, settings.solver, arrays[0], n=n, k=num_classes, num_parts=len(arrays), num_scored=num_scored
    )
    costs.refuse_too_much(cost, settings.solver, settings.device)
    logger.log(
        logging.INFO if cost.seconds > WORTH_SAYING else logging.DEBUG,
        "%s by %s: %d images of %d features, at most %d fits, about %.0f s or less on the CPU, %.1f GB of memory",
        rules.name,
        settings.solver,
        n,
        arrays[0].shape[1],
        cost.fits,
        cost.seconds,
        cost.memory / 1e9,
    )


def fit_folds(
    folds: Iterable[Mapping[str, Features]],
    *,
    metric: str = "accuracy",
    protocol: str | Protocol = "clip-paper",
    solver: str = "sklearn",
    device: str = "cpu",
    fit_cache: FitCache | None = None,
    shows_progress: bool = False,
) -> ProbeResult:
    """Fit a probe on the splits `train`, `test` and, where there is one, `val` of each fold; see `mean_result`.

    The rest as `fit_probe`.

    Raises:
        UnknownNameError, ProtocolError, FeaturesError: as `fit_probe`.
    """
    results, digests = [], set()
    for fold in folds:
        digests.add(fold["test"].compute_sha256())
        results.append(
            fit_probe(
                train=fold["train"],
                val=fold.get("val"),
                test=fold["test"],
                metric=metric,
                protocol=protocol,
                solver=solver,
                device=device,
                fit_cache=fit_cache,
                shows_progress=shows_progress,
            )
        )
    return mean_result(results, of="folds", same_images=len(digests) == 1)


def hold_out_validation(fold: Mapping[str, Features], fraction: float, *, seed: int = 0) -> dict[str, Features]:
    """Give a fold validation features: a share of the training ones, of each class, the same for a seed everywhere.

    Args:
        fold: `train` and `test`.
        fraction: above 0 and below 1; of each class it is rounded, and leaves one image to train on.
        seed: another seed is another choice.

    Raises:
        FeaturesError: nothing would be held out.
    """
    y = fold["train"].y
    classes = y if y.ndim == 1 else np.zeros(len(y), np.int64)  # several labels have no classes to hold out of
    chosen = [
        position
        for label in np.unique(classes).tolist()
        for position in _hold_out_of(np.flatnonzero(classes == label), fraction, f"{seed}:{label}")
    ]
    if not chosen:
        raise FeaturesError(f"{fraction} of every class is no image; hold out more")
    is_val = np.zeros(len(y), dtype=bool)
    is_val[chosen] = True
    train, val = (fold["train"].take(np.flatnonzero(rows)) for rows in (~is_val, is_val))
    return {**fold, "train": train, "val": val}


def _hold_out_of(positions: np.ndarray, fraction: float, name: str) -> list[int]:
    num = min(round(fraction * len(positions)), len(positions) - 1)
    ordered = sorted(range(len(positions)), key=lambda i: order("val", name, i))
    return positions[ordered[:num]].tolist()


def _features(rules: Protocol, part: Features) -> np.ndarray:
    """Float32 (n, d) at the protocol's feature point, of length one if it wants that."""
    x = part.at(rules.feature_point)
    if not rules.normalize:
        return x
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def _number(part: Features, labels: np.ndarray) -> Features:
    """Return features whose labels are replaced by their positions in the ascending `labels`."""
    return replace(part, y=np.searchsorted(labels, part.y))


def _warn_of_missing_classes(parts: Sequence[Features], test: Features, label_values: Sequence[int]) -> None:
    """Warn about scored classes that the training images do not separate from others, and about unscored classes."""
    y = np.concatenate([part.y for part in parts])
    if y.ndim == 2:
        is_scored = (test.y == 1).any(axis=0)
        missing = np.flatnonzero(is_scored & ~((y == 1).any(axis=0) & (y == 0).any(axis=0)))
        said = "%d classes of the test split have no positive or no negative training image, so nothing ranks them: %s"
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
        said = "%d classes of the test split have no training image and count as wrong: %s"
    if len(missing):
        logger.warning(said, len(missing), listed(missing.tolist()))


def _check(rules: Protocol, *, train: Features, val: Features | None, test: Features) -> None:
    if len(rules.grid) > 1 and val is None and not rules.held_out:
        raise ProtocolError(
            f"protocol {rules.name!r} chooses C on a validation split; give val, which in a file is val_x and "
            "val_y, or hold some of train out with --val-fraction 0.1"
        )
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
            finite = np.isfinite(x.sum(axis=1, dtype=np.float64))
            if not finite.all():
                raise FeaturesError(
                    f"{name} has features that are not finite, first in row {int(np.argmin(finite))}; take it out, or "
                    "extract it again"
                )
            lowest = 0 if part.y.ndim == 1 else IGNORED
            if part.y.ndim == 1 and part.y.dtype.kind in "iu" and part.y.min() < 0:
                row = int(part.y.argmin())
                raise FeaturesError(f"{name} has the label {part.y[row]} in row {row}; give integers from 0 on")
            if part.y.ndim not in (1, 2) or part.y.dtype.kind not in "iu" or part.y.min() < lowest:
                raise FeaturesError(
                    f"{name} has labels {part.y.dtype} {part.y.shape}; give integers from 0 on, one an image, or a row "
                    "of 1, 0 and -1 for each"
                )
            if part.y.shape[1:] != train.y.shape[1:]:
                raise FeaturesError(
                    f"{name} has labels {part.y.shape}, train {train.y.shape}; give all the same classes"
                )
            if part.y.ndim == 2 and part.y.max() > 1:
                raise FeaturesError(f"{name} has the label {part.y.max()}; give rows of 1, 0 and -1")
            widths[name] = x.shape[1]
    if len(set(widths.values())) > 1:
        raise FeaturesError(f"the splits have features of different widths, {widths}; use one model for all")
