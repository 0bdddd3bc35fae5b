"""What a probe scored: with its interval, its convergence, and what became of each test image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from probe.decoder import decode
from probe.errors import ProtocolError
from probe.probes.fits import Convergence, worst
from probe.records.schema import IntervalRecord, PackedOutcomes, ResultRecord, SweepRecord
from probe.stats.intervals import Interval, interval, seeds_interval
from probe.stats.outcomes import Outcomes


@dataclass(frozen=True)
class SweepPoint:
    """One value of C that was tried: its score on the validation images, and how its fit ended; see `Convergence`."""

    C: float
    score: float
    n_iter: int
    converged: bool
    gradient_ratio: float = math.nan
    objective: float = math.nan
    suboptimality: float = math.nan


@dataclass(frozen=True)
class ProbeResult(Convergence):
    """What a probe scored, and how its final fit ended.

    `score` is a fraction on the test split, and `interval` a 95 % one: around the score of one training set for the
    choice of test images, around the mean over few-shot draws for the choice of training images.
    `sweep` is ascending in C; it is empty where nothing was searched, and of several folds or draws.
    `choice_converged` is True if every fit of the sweep converged, or if there was no sweep.
    `label_values` are the original labels, ascending, if labels with gaps were renumbered from 0; otherwise, and if
    folds have different labels, it is empty.
    `predictions` are int64 (num_test,), the labels as given, or (num_test, k) of 0 and 1 if an image can show several
    of k classes.
    `outcomes` are what became of each test image, one for each fold or draw; `same_images` says that these are of the
    same images. `seed` and `draw_sha256` are of a few-shot draw; the second is the digest of its images, see
    `shots.Draw`.
    Of several folds or draws, whose results are `folds` and `draws`, see `mean_result`.
    """

    metric: str
    score: float
    C: float | None
    num_train: int
    num_test: int
    solver: str
    interval: Interval
    label_values: tuple[int, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    choice_converged: bool = True
    predictions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)
    outcomes: tuple[Outcomes, ...] = field(default=(), repr=False, compare=False)
    same_images: bool = True
    seed: int | None = None
    draw_sha256: str | None = None
    draws: tuple[ProbeResult, ...] = ()
    folds: tuple[ProbeResult, ...] = ()

    def to_record(self) -> ResultRecord:
        """Return the result as a record holds it: without predictions, with packed outcomes.

        Raises:
            ProtocolError: a number is infinite or NaN, which JSON cannot represent.
        """
        gradient = (self.gradient_norm, self.gradient_ratio)
        numbers = (self.score, self.objective, *gradient, self.excess, self.suboptimality)
        if not np.isfinite(numbers).all():
            raise ProtocolError(f"score, objective or gradient is not finite, {numbers}; check the features")
        return ResultRecord(
            score=self.score,
            C=self.C,
            n_iter=self.n_iter,
            converged=self.converged,
            num_test=self.num_test,
            num_train=self.num_train,
            metric=self.metric,
            solver=self.solver,
            interval=IntervalRecord(**asdict(self.interval)),
            suboptimality=self.suboptimality,
            gradient_norm=self.gradient_norm,
            gradient_ratio=self.gradient_ratio,
            objective=self.objective,
            excess=self.excess,
            tol=self.tol,
            label_values=self.label_values,
            sweep=tuple(SweepRecord(**asdict(point)) for point in self.sweep),
            choice_converged=self.choice_converged,
            outcomes=tuple(decode(outcomes.pack(), PackedOutcomes) for outcomes in self.outcomes),
            same_images=self.same_images,
            seed=self.seed,
            draw_sha256=self.draw_sha256,
            draws=tuple(replace(draw.to_record(), outcomes=()) for draw in self.draws),
            folds=tuple(replace(fold.to_record(), outcomes=()) for fold in self.folds),
        )


def mean_result(results: Sequence[ProbeResult], *, of: str = "folds", same_images: bool = True) -> ProbeResult:
    """The result over folds or draws: the mean of their scores and objectives, the worst of their convergence.

    `C` is theirs if it is the same for all, else None; `num_train` and `num_test` are those of the first,
    `predictions` those of all one after the other. The outcomes are those of all; of few-shot draws within folds with
    different test images those of the first draw of each.

    Args:
        results: of each.
        of: `folds` or `draws`.
        same_images: whether all have the same test images.
    """
    first = results[0]
    if len(results) == 1:
        return first
    scores = [result.score for result in results]
    outcomes = [kept for result in results for kept in (result.outcomes if same_images else result.outcomes[:1])]
    if of == "draws":
        around = seeds_interval(scores)
    elif first.draws:  # the mean over folds of each draw
        around = seeds_interval(np.mean([[drawn.score for drawn in result.draws] for result in results], axis=0))
    else:
        around = interval(outcomes, same_images=same_images)
    return replace(
        first,
        score=float(np.mean(scores)),
        C=first.C if len({result.C for result in results}) == 1 else None,
        **worst(results),
        interval=around,
        label_values=first.label_values if len({result.label_values for result in results}) == 1 else (),
        sweep=(),
        choice_converged=all(result.choice_converged for result in results),
        predictions=np.concatenate([result.predictions for result in results]),
        outcomes=tuple(outcomes),
        same_images=same_images,
        seed=None,
        draw_sha256=None,
        draws=tuple(results) if of == "draws" else (),
        folds=tuple(results) if of == "folds" else (),
    )
