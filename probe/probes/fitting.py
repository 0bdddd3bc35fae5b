"""Features -> the result of a probe under a protocol: choose C on validation images, fit, read the test split once."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from probe.environment import package_version
from probe.errors import FeaturesError, ProtocolError
from probe.features import Features
from probe.intervals import interval
from probe.metrics import IGNORED, get_metric, misfit
from probe.outcomes import outcomes_of
from probe.probes import costs
from probe.probes.kept import KeptFits
from probe.probes.protocols import get_protocol, validate
from probe.probes.results import ProbeResult, SweepPoint, mean_result
from probe.probes.shots import draw
from probe.probes.solvers import Fit, Solver, get_solver
from probe.probes.sweep import best, search
from probe.specs import Protocol

logger = logging.getLogger(__name__)

MAX_CLASSES = 1 << 20  # a label beyond is no index, and scores for so many classes would fill the memory
WORTH_SAYING = 1.0  # seconds that fits must take for a line that announces them
LIBRARIES = ("scikit-learn", "scipy", "numpy", "torch")  # that compute fits


@dataclass(frozen=True)
class How:
    """How fits are made, which is no part of the protocol.

    Args:
        solver: a name of `solvers.SOLVERS`.
        device: where it computes.
        kept_in: folder in which finished fits are kept until the result is there; None keeps none.
        shows_progress: a bar on stderr where that is a terminal.
    """

    solver: str = "sklearn"
    device: str = "cpu"
    kept_in: Path | None = None
    shows_progress: bool = False


def fit_probe(
    *,
    train: Features,
    test: Features,
    val: Features | None = None,
    metric: str = "accuracy",
    protocol: str | Protocol = "clip-paper",
    how: How | None = None,
    solver: str = "sklearn",
) -> ProbeResult:
    """Fit a linear probe under a protocol.

    Args:
        train: features to fit on; labels (n, k) where an image can show several of k classes.
        test: features to score on; read once, after everything is chosen.
        val: features on which C is chosen; they join `train` for the final fit unless the protocol says no.
        metric: a name of `metrics.METRICS`.
        protocol: a name, or a protocol of your own.
        how: solver, device and so on.
        solver: `sklearn` or `fast`, where `how` is not given.

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
    how = how or How(solver=solver)
    get_solver(how.solver)
    _check(rules, train=train, val=val, test=test)
    if train.y.ndim == 2:
        num_classes = train.y.shape[1]
    else:
        num_classes = 1 + max(int(part.y.max()) for part in (train, val, test) if part is not None)
    reason = misfit(metric, num_classes=num_classes, is_multi_label=train.y.ndim == 2)
    if reason:
        raise ProtocolError(reason)
    probe = _Probe(rules, metric, num_classes, how)
    if not rules.shots:
        _warn_of_missing_classes(train, val, test)
        result = probe.fit(train, val, test)
    else:
        result = mean_result([probe.fit_draw(seed, train, val, test) for seed in range(rules.num_seeds)], of="draws")
    return result


@dataclass
class _Probe:
    """A protocol at work on one dataset and fold."""

    rules: Protocol
    metric: str
    num_classes: int
    how: How

    def fit_draw(self, seed: int, train: Features, val: Features | None, test: Features) -> ProbeResult:
        """Fit on so many images a class."""
        drawn = draw(train.y, shots=self.rules.shots, held_out=self.rules.held_out, seed=seed)
        chooser = train.take(drawn.held_out) if self.rules.held_out else val
        result = self.fit(train.take(drawn.train), chooser, test)
        return replace(result, seed=seed, indices=" ".join(map(str, drawn.train.tolist())))

    def fit(self, train: Features, val: Features | None, test: Features) -> ProbeResult:
        """Choose C where there is a choice, and fit."""
        rules = self.rules
        sweep: tuple[SweepPoint, ...] = ()
        C, near = rules.grid[0], None  # noqa: N806 - the field's name
        parts = [train] if val is None or not rules.refit else [train, val]
        kept: list[KeptFits] = []
        if len(rules.grid) > 1:
            assert val is not None
            found, fits = self._sweep(train, val, kept)
            sweep = tuple(found.values())
            C = best(found, lambda point: point.score)  # noqa: N806 - the field's name
            near = fits[C]
        # On the same images it has been made.
        final = near if near is not None and len(parts) == 1 else self._fitter(parts, kept)(C, near)
        if not final.converged:
            logger.warning(
                "the final fit at C = %.4g did not converge: %d iterations, gradient at %.1e of its start",
                C,
                final.n_iter,
                final.gradient_ratio,
            )
        y_score = final.scores(_features(rules, test), self.num_classes)
        outcomes = outcomes_of(self.metric, test.y, y_score)
        for fits_of_stage in kept:
            fits_of_stage.clear()
        return ProbeResult(
            metric=self.metric,
            score=get_metric(self.metric)(test.y, y_score),
            C=C,
            num_train=sum(len(part) for part in parts),
            num_test=len(test),
            n_iter=final.n_iter,
            converged=final.converged,
            gradient_norm=final.gradient_norm,
            gradient_ratio=final.gradient_ratio,
            objective=final.objective,
            excess=final.excess,
            solver=self.how.solver,
            interval=interval([outcomes]),
            sweep=sweep,
            predictions=y_score.argmax(axis=1) if test.y.ndim == 1 else (y_score > 0).astype(np.int64),
            outcomes=(outcomes,),
        )

    def _sweep(
        self, train: Features, val: Features, kept: list[KeptFits]
    ) -> tuple[dict[float, SweepPoint], dict[float, Fit]]:
        """The values of C that were tried, ascending, and their fits."""
        fit, x_val = self._fitter([train], kept), _features(self.rules, val)
        score = get_metric(self.metric)
        fits: dict[float, Fit] = {}

        def evaluate(C: float) -> SweepPoint:  # noqa: N803 - the field's name
            # The nearest that is there, of two the smaller, whose optimum is the easier one.
            near = min(fits, key=lambda known: (round(abs(math.log(known / C)), 9), known), default=None)
            fitted = fits[C] = fit(C, None if near is None else fits[near])
            on_val = score(val.y, fitted.scores(x_val, self.num_classes))
            logger.debug("C = %.4g: %.4f on validation, %d iterations", C, on_val, fitted.n_iter)
            return SweepPoint(C, on_val, fitted.n_iter, fitted.converged, fitted.gradient_ratio, fitted.objective)

        tried = search(evaluate, self.rules.grid, coarse_step=self.rules.coarse_step, score=lambda point: point.score)
        return tried, fits

    def _fitter(self, parts: Sequence[Features], kept: list[KeptFits]) -> _Fitter:
        fitter = _Fitter(self.rules, parts, self.how, num_classes=self.num_classes)
        kept.append(fitter.kept)
        return fitter


class _Fitter:
    """Fits on some training images: what is kept from before, the rest by a solver, which is made when needed."""

    def __init__(self, rules: Protocol, parts: Sequence[Features], how: How, *, num_classes: int) -> None:
        self.rules, self.parts, self.how, self.num_classes = rules, parts, how, num_classes
        key = None
        if how.kept_in is not None:
            key = {
                "features": [part.sha256 for part in parts],
                "point": [rules.feature_point, rules.normalize],
                "fit": [rules.max_iter, rules.tol, rules.warm_start, how.solver, how.device],
                "packages": [package_version(name) for name in LIBRARIES],
            }
        self.kept = KeptFits(how.kept_in, key)
        self.solver: Solver | None = None

    def __call__(self, C: float, near: Fit | None) -> Fit:  # noqa: N803 - the field's name
        """Fit at a C; where the protocol does not let scikit-learn's begin at a near fit, it begins at zero."""
        if self.how.solver == "sklearn" and not self.rules.warm_start:
            near = None
        name = [C, None if near is None else near.C]
        found = self.kept.find(name)
        if found is None:
            if self.solver is None:
                self.solver = self._make_solver()
            with tqdm(
                desc=f"{self.rules.name}, C = {C:.3g}", unit="it", disable=None if self.how.shows_progress else True
            ) as bar:
                found = self.solver.fit(C, near, tick=lambda _: bar.update() and None)
            self.kept.keep(name, found)
        return found

    def _make_solver(self) -> Solver:
        arrays = [_features(self.rules, part) for part in self.parts]
        y = np.concatenate([part.y for part in self.parts])
        cost = costs.estimate(
            self.rules, self.how.solver, arrays[0], n=len(y), k=self.num_classes, num_parts=len(arrays)
        )
        costs.refuse_too_much(cost, self.how.solver, self.how.device)
        logger.log(
            logging.INFO if cost.seconds > WORTH_SAYING else logging.DEBUG,
            "%s by %s: %d images of %d features, at most %d fits, about %.0f s, %.1f GB of memory",
            self.rules.name,
            self.how.solver,
            len(y),
            arrays[0].shape[1],
            cost.fits,
            cost.seconds,
            cost.memory / 1e9,
        )
        return get_solver(self.how.solver)(
            arrays, y, max_iter=self.rules.max_iter, tol=self.rules.tol, device=self.how.device
        )


def fit_folds(
    folds: Iterable[Mapping[str, Features]],
    *,
    metric: str = "accuracy",
    protocol: str | Protocol = "clip-paper",
    how: How | None = None,
) -> ProbeResult:
    """Fit a probe on the splits `train`, `test` and, where there is one, `val` of each fold; see `mean_result`.

    Raises:
        UnknownNameError, ProtocolError, FeaturesError: as `fit_probe`.
    """
    results, digests = [], set()
    for fold in folds:
        digests.add(fold["test"].sha256)
        results.append(
            fit_probe(
                train=fold["train"], val=fold.get("val"), test=fold["test"], metric=metric, protocol=protocol, how=how
            )
        )
    return mean_result(results, of="folds", same_images=len(digests) == 1)


def hold_out(fold: Mapping[str, Features], fraction: float, *, seed: int = 0) -> dict[str, Features]:
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
    order = sorted(range(len(positions)), key=lambda i: hashlib.sha256(f"val:{name}:{i}".encode()).digest())
    return positions[order[:num]].tolist()


def _features(rules: Protocol, part: Features) -> np.ndarray:
    """Float32 (n, d) at the protocol's feature point, of length one if it wants that."""
    x = part.at(rules.feature_point)
    if not rules.normalize:
        return x
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def _warn_of_missing_classes(train: Features, val: Features | None, test: Features) -> None:
    """Say which classes are scored and cannot be right, as no training image shows them."""
    if train.y.ndim == 2:
        return
    seen = np.unique(np.concatenate([part.y for part in (train, val) if part is not None]))
    missing = np.setdiff1d(test.y, seen)
    if len(missing):
        logger.warning(
            "%d classes of the test split have no training image and count as wrong: %s",
            len(missing),
            ", ".join(map(str, missing[:10].tolist())),
        )


def _check(rules: Protocol, *, train: Features, val: Features | None, test: Features) -> None:
    if len(rules.grid) > 1 and val is None and not rules.held_out:
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
            finite = np.isfinite(x.sum(axis=1, dtype=np.float64))
            if not finite.all():
                raise FeaturesError(
                    f"{name} has features that are not finite, first in row {int(np.argmin(finite))}; take it out, or "
                    "extract it again"
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
