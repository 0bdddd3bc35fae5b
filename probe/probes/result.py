"""Results of probes: score, confidence interval, convergence, sweep and the outcome of each test image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Required, TypedDict, Unpack

import numpy as np

from probe.errors import ProtocolError
from probe.features.arrays import Features
from probe.probes.calibration import mean_calibration
from probe.probes.fits import Convergence, Weights, worst
from probe.records.packing import pack, pack_classes
from probe.records.schema import CalibrationRecord, IntervalRecord, NeighboursRecord, ResultRecord, SweepRecord
from probe.specs import NO_SOLVER
from probe.stats.intervals import Interval, interval, seeds_interval
from probe.stats.metrics import get_metric
from probe.stats.outcomes import Outcomes, make_outcomes
from probe.stats.per_class import ClassCounts, count_classes
from probe.stats.top_classes import TopClasses, find_top


@dataclass(frozen=True)
class ProbeResult(Convergence):
    """Result of a probe: its test score and the convergence of its final fit.

    The result over several folds or draws is made by `mean_result`.

    Args:
        metric: a name of `metrics.METRICS`.
        score: fraction in [0, 1] on the test split.
        C: inverse strength of the penalty in the final fit; None if folds or draws chose different values.
        num_train: number of images of the final fit.
        num_test: number of scored images.
        solver: name of the solver.
        interval: 95 % confidence interval of the score. For one training set it covers the sampling of test images. For
            the mean over few-shot draws it covers the sampling of training images.
        label_values: original labels, ascending, if labels with gaps were renumbered from 0. Empty otherwise, and if
            folds have different labels.
        sweep: tried values of C, ascending. Empty without a sweep, and for a mean over folds or draws.
        choice_converged: True if every fit of the sweep converged or ended early, or if there was no sweep.
        k: number of neighbours of k-NN; None for other methods, and if folds chose different numbers.
        k_sweep: tried numbers of neighbours, ascending. Empty without a choice, and for a mean over folds.
        predictions: int64 (num_test,), original labels; or (num_test, k) of 0 and 1 if an image can show several of k
            classes.
        outcomes: outcomes of the test images, one for each fold or draw.
        classes: test images of each class and their errors, one for each fold or draw; empty if an image can show
            several classes. With `label_values`, the i-th class has the i-th of these labels.
        calibration: calibration on the test images.
        heads: weights of the final fit, one for each fold or draw; empty if the protocol has no linear head.
        tops: the classes with the highest scores of the test images, one for each fold or draw; empty if they were not
            asked for.
        same_images: True if all `outcomes` are of the same test images.
        seed: seed of a few-shot draw.
        draw_sha256: digest of the images of a few-shot draw, see `shots.Draw`.
        draws: results of the few-shot draws, if this is a mean over draws.
        folds: results of the folds, if this is a mean over folds.
    """

    metric: str
    score: float
    C: float | None
    num_train: int
    num_test: int
    solver: str
    interval: Interval
    label_values: tuple[int, ...] = ()
    sweep: tuple[SweepRecord, ...] = ()
    choice_converged: bool = True
    k: int | None = None
    k_sweep: tuple[NeighboursRecord, ...] = ()
    predictions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)
    outcomes: tuple[Outcomes, ...] = field(default=(), repr=False, compare=False)
    classes: tuple[ClassCounts, ...] = field(default=(), repr=False, compare=False)
    calibration: CalibrationRecord | None = None
    heads: tuple[Weights, ...] = field(default=(), repr=False, compare=False)
    tops: tuple[TopClasses, ...] = field(default=(), repr=False, compare=False)
    same_images: bool = True
    seed: int | None = None
    draw_sha256: str | None = None
    draws: tuple[ProbeResult, ...] = ()
    folds: tuple[ProbeResult, ...] = ()

    @property
    def parts(self) -> tuple[ProbeResult, ...]:
        """Results of single fits: of each draw of each fold, or the result itself."""
        return tuple(part for fold in self.folds or (self,) for part in fold.draws or (fold,))

    def find_head_labels(self) -> tuple[tuple[int, ...], ...]:
        """Return the original labels of the classes of each of `heads`; folds can have different labels."""
        return tuple(part.label_values or tuple(range(len(part.heads[0].bias))) for part in self.parts if part.heads)

    def to_record(self) -> ResultRecord:
        """Return the result as a record holds it: without predictions, with packed outcomes.

        Raises:
            ProtocolError: a number is infinite or NaN, which JSON cannot represent.
        """
        gradient = (self.gradient_norm, self.gradient_ratio)
        numbers = (self.score, self.objective, *gradient, self.excess, self.suboptimality)
        if not np.isfinite(numbers).all():
            raise ProtocolError(f"score, objective or gradient is not finite, {numbers}; check the features")
        result = ResultRecord(
            score=self.score,
            C=None,
            n_iter=0,
            converged=True,
            num_test=self.num_test,
            num_train=self.num_train,
            metric=self.metric,
            solver=self.solver,
            interval=IntervalRecord(**asdict(self.interval)),
            label_values=self.label_values,
            k=self.k,
            k_sweep=self.k_sweep,
            outcomes=tuple(map(pack, self.outcomes)),
            classes=tuple(map(pack_classes, self.classes)),
            calibration=self.calibration,
            same_images=self.same_images,
            folds=tuple(map(_part_to_record, self.folds)),
        )
        if self.solver == NO_SOLVER:
            return result
        return replace(
            result,
            C=self.C,
            n_iter=self.n_iter,
            converged=self.converged,
            suboptimality=self.suboptimality,
            gradient_norm=self.gradient_norm,
            gradient_ratio=self.gradient_ratio,
            objective=self.objective,
            excess=self.excess,
            tol=self.tol,
            sweep=self.sweep,
            choice_converged=self.choice_converged,
            seed=self.seed,
            draw_sha256=self.draw_sha256,
            draws=tuple(map(_part_to_record, self.draws)),
        )


def _part_to_record(part: ProbeResult) -> ResultRecord:
    """Return the record of a single fold or draw, without outcomes, counts of classes and calibration."""
    return replace(part.to_record(), outcomes=(), classes=(), calibration=None)


# Convergence of protocols that fit nothing.
NO_FIT = Convergence(
    n_iter=0,
    converged=True,
    suboptimality=0.0,
    gradient_norm=0.0,
    gradient_ratio=0.0,
    objective=0.0,
    excess=0.0,
    tol=0.0,
)


class ResultFields(TypedDict, total=False):
    """Fields of `ProbeResult` that `make_result` does not compute."""

    C: Required[float | None]
    num_train: Required[int]
    solver: Required[str]
    label_values: tuple[int, ...]
    sweep: tuple[SweepRecord, ...]
    choice_converged: bool
    k: int | None
    k_sweep: tuple[NeighboursRecord, ...]
    calibration: CalibrationRecord | None
    heads: tuple[Weights, ...]


def make_result(
    metric: str,
    y: np.ndarray,
    y_score: np.ndarray,
    *,
    predictions: np.ndarray,
    fit: Convergence = NO_FIT,
    top: str = "",
    **fields: Unpack[ResultFields],
) -> ProbeResult:
    """Return the result of scores of the test split: the score, its interval, outcomes, and counts of each class.

    Args:
        metric: a name of `metrics.METRICS`.
        y: labels in the form that the metric takes.
        y_score: float (n, k), scores in the form that the metric takes.
        predictions: see `ProbeResult`.
        fit: convergence of the final fit.
        top: how scores become probabilities, see `top_classes.find_top`; empty for a result without `tops`.
        fields: other fields of `ProbeResult`, see `ResultFields`.
    """
    outcomes = make_outcomes(metric, y, y_score)
    return ProbeResult(
        metric=metric,
        score=get_metric(metric)(y, y_score),
        num_test=len(y),
        interval=interval([outcomes]),
        predictions=predictions,
        outcomes=(outcomes,),
        tops=(find_top(y_score, top, fields.get("label_values", ())),) if top else (),
        classes=(count_classes(y, y_score.argmax(axis=1), y_score.shape[1]),) if y.ndim == 1 else (),
        **vars(fit),
        **fields,
    )


def have_same_images(folds: Sequence[Mapping[str, Features]]) -> bool:
    """Return True if all folds have the same test features."""
    return len({fold["test"].compute_sha256() for fold in folds}) == 1


def mean_result(results: Sequence[ProbeResult], *, of: str = "folds", same_images: bool = True) -> ProbeResult:
    """Combine the results of several folds or draws into one result. A single result is returned as it is.

    | field | value |
    | --- | --- |
    | `score`, `objective` | mean |
    | other fields of `Convergence` | worst value, see `fits.worst` |
    | `C`, `k` | common value, or None if the values differ |
    | `num_train`, `num_test` | value of the first result |
    | `predictions`, `heads`, `tops` | concatenation |
    | `outcomes` | all outcomes; only the first draw of each fold if folds have different test images |
    | `classes` | all counts |
    | `calibration` | mean, see `calibration.mean_calibration` |

    Args:
        results: one result for each fold or draw.
        of: `folds` or `draws`.
        same_images: True if all results have the same test images.
    """
    first = results[0]
    if len(results) == 1:
        return first
    scores = [result.score for result in results]
    outcomes = [one for result in results for one in (result.outcomes if same_images else result.outcomes[:1])]
    if of == "draws":
        around = seeds_interval(scores)
    elif first.draws:  # for each draw, the mean over folds
        around = seeds_interval(np.mean([[draw.score for draw in result.draws] for result in results], axis=0))
    else:
        around = interval(outcomes, same_images=same_images)
    return replace(
        first,
        score=float(np.mean(scores)),
        C=first.C if len({result.C for result in results}) == 1 else None,
        k=first.k if len({result.k for result in results}) == 1 else None,
        k_sweep=(),
        **vars(worst(results)),
        interval=around,
        label_values=first.label_values if len({result.label_values for result in results}) == 1 else (),
        sweep=(),
        choice_converged=all(result.choice_converged for result in results),
        predictions=np.concatenate([result.predictions for result in results]),
        outcomes=tuple(outcomes),
        classes=tuple(one for result in results for one in result.classes),
        calibration=mean_calibration([result.calibration for result in results]),
        heads=tuple(head for result in results for head in result.heads),
        tops=tuple(top for result in results for top in result.tops),
        same_images=same_images,
        seed=None,
        draw_sha256=None,
        draws=tuple(results) if of == "draws" else (),
        folds=tuple(results) if of == "folds" else (),
    )


def score_parts(outcomes: Sequence[Outcomes], num_draws: int, *, same_images: bool) -> tuple[list[float], Interval]:
    """Return the scores of all folds and draws, and the interval of their mean; draws of a fold are consecutive.

    Raises:
        ValueError: the metric is not defined on some images.
    """
    scores = [one.score() for one in outcomes]
    if num_draws > 1:  # for each draw, the mean over folds
        return scores, seeds_interval(np.reshape(scores, (-1, num_draws)).mean(axis=0).tolist())
    return scores, interval(outcomes, same_images=same_images)
