"""Fits on the same training images at several values of C, from the cache of fits where possible."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from probe.environment import blas_threads, library_versions
from probe.features.arrays import Features
from probe.probes import contest
from probe.probes.cached_fits import FitCache, FitKey
from probe.probes.fits import Fit, Solver, at_feature_point
from probe.probes.scaling import Scaling, fit_scaling
from probe.probes.solvers.catalog import get_solver
from probe.specs import Protocol


@dataclass(frozen=True)
class FitSettings:
    """Protocol and options of fits, see `fit.fit_probe`; `version` is `fit.PROBE_VERSION`, for keys of the cache."""

    version: int
    rules: Protocol
    solver: str
    device: str
    fit_cache: FitCache
    shows_progress: bool
    finds_top: bool


class Fitter:
    """Fits on the same training images at several values of C.

    Fits are read from the cache where possible. The solver is created for the first fit that is not cached. If the
    protocol standardises features, a fit has weights for the features as they are, but its convergence is measured on
    standardised features.
    """

    def __init__(self, settings: FitSettings, splits: Sequence[Features]) -> None:
        self.settings, self.rules, self.fit_cache, self.splits = settings, settings.rules, settings.fit_cache, splits
        self.is_warm = settings.solver == "fast" or self.rules.warm_start  # fits may start from other fits
        self.contest: contest.Contest | None = None
        self.key: dict[str, Any] = {}
        if self.fit_cache.folder is not None:
            rules, point = self.rules, self.rules.feature_point
            self.key = {
                "features": [(split.compute_sha256(), split.at(point).shape, split.y.shape) for split in splits],
                "point": [point, rules.normalize, rules.standardize],
                "fit": [rules.max_iter, rules.tol, settings.solver, settings.device],
                "threads": [torch.get_num_threads(), blas_threads()],
                "packages": library_versions("fits"),
                "version": settings.version,
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

    def hold_contest(self, x: np.ndarray, y: np.ndarray, metric: str) -> None:
        """Let fits of `fast` for the choice of C end if they are unlikely to win, see `Contest`.

        Args:
            x: float32 (n, d), features of the validation images at the feature point of the protocol.
            y: int64 (n,), or (n, k) if an image can show several classes. No fit ends early if images can show several
                classes, or if there are fewer than `contest.MIN_IMAGES` images.
            metric: a name of `metrics.METRICS`. No fit ends early if the score is not a sum over images.
        """
        can_end = self.settings.solver == "fast" and y.ndim == 1 and len(y) >= contest.MIN_IMAGES
        shares = contest.shares_of(metric, y) if can_end else None
        if shares is not None:
            x = self.scaling.apply(x) if self.rules.standardize else x
            self.contest = contest.Contest(x, y, shares, num_train=sum(map(len, self.splits)))

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
            starts = _find_starts(fits if self.is_warm else {}, batch)
            keys = {C: self._key(C, start, is_final=False) for C, start in starts.items()}
            cached = {C: self.fit_cache.find(key) for C, key in keys.items()}
            missing = [C for C, fit in cached.items() if fit is None]
            done: dict[float, Fit] = {C: fit for C, fit in cached.items() if fit is not None}
            for fit in done.values():
                if self.contest is not None:
                    self.contest.enter(self.scaling.unfold(fit) if self.rules.standardize else fit)

            def add(fit: Fit, keys: dict[float, FitKey] = keys, done: dict[float, Fit] = done) -> None:
                if self.contest is not None:
                    self.contest.enter(fit)
                fit = done[fit.C] = self._fold(fit)
                if not fit.ended_early:  # which depends on the validation images and on the other fits
                    self.fit_cache.store(keys[fit.C], fit)

            if missing:
                with self._progress(f"{len(missing)} of {len(strengths)} values of C") as bar:
                    unfolded = {id(start): self._unfold(start) for start in starts.values()}  # shared, see `Fast`
                    self.solver.fit_all(
                        missing,
                        [unfolded[id(starts[C])] for C in missing],
                        is_final=False,
                        done=add,
                        tick=_make_tick(bar),
                        contest=self.contest,
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


def _find_starts(fits: Mapping[float, Fit], strengths: Sequence[float]) -> dict[float, Fit | None]:
    """Return for each C the fit to start from: the fit with the nearest C on a log scale. Without fits, return None.

    On a tie, return the fit that is nearest to most of the values, because fits that start from the same fit share an
    estimate of the curvature. If this is a tie, too, return the fit with the smaller C.
    """
    tied: dict[float, list[float]] = {}
    for C in strengths:  # noqa: N806 - the field's name
        distances = {known: round(abs(math.log(known / C)), 9) for known in fits}
        tied[C] = [known for known, distance in distances.items() if distance == min(distances.values())]
    count = Counter(chain.from_iterable(tied.values()))
    return {C: fits[min(tied[C], key=lambda known: (-count[known], known))] if fits else None for C in strengths}
