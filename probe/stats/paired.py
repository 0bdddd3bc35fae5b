"""Paired tests of whether two probes on the same test images differ by more than the sampling of test images explains.

For accuracy and top-5 on one fold the test is McNemar's exact test. For other metrics it is the paired bootstrap, whose
smallest p-value is 2 / (draws + 1). The tests do not cover randomness in the training of the probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probe.errors import ResultsError
from probe.stats.outcomes import Outcomes
from probe.stats.resampling import are_of_same_images, bootstrap, check_folds

NUM_DRAWS = 1999  # gives a smallest p-value of 0.001

SIGNIFICANT = 0.05  # largest p-value of a significant difference


@dataclass(frozen=True)
class PairedTest:
    """Result of a paired test of two probes, a and b, on the same test images.

    Args:
        difference: score of a minus score of b, in [-1, 1].
        p_value: two-sided p-value of the difference under the hypothesis that neither probe is better.
        method: `mcnemar` or `bootstrap`.
        num_only_a: number of images that only a got right, over all folds; None for metrics of ranks.
        num_only_b: number of images that only b got right, over all folds; None for metrics of ranks.
    """

    difference: float
    p_value: float
    method: str
    num_only_a: int | None
    num_only_b: int | None


def compare(
    a: Sequence[Outcomes], b: Sequence[Outcomes], *, same_images: bool = False, draws: int = NUM_DRAWS
) -> PairedTest:
    """Test whether the scores of two probes differ.

    McNemar's test compares the number of images that only a got right with the number that only b got right. It is used
    for accuracy and top-5 on one fold.

    The bootstrap is used otherwise. It resamples the images and counts the draws in which the score of a is at most the
    score of b, and the draws in which it is at least the score of b. With the smaller of the two counts,
    p = 2 (1 + count) / (1 + draws), at most 1.

    Args:
        a: outcomes of the first probe, one for each fold.
        b: outcomes of the second probe, for the same images in the same order.
        same_images: True if all folds have the same test images, as in STL-10.
        draws: number of bootstrap draws.

    Raises:
        ValueError: there is no fold, or a fold has no images.
        ResultsError: the probes have different metrics, folds or images.

    Source: McNemar 1947 (Psychometrika 12); Efron and Tibshirani 1993, chapter 16; Davison and Hinkley 1997,
    section 4.2, for the 1 that is added to the counts.
    """
    check_pair(a, b)
    check_folds(a, same_images=same_images)
    difference = float(np.mean([x.score() for x in a]) - np.mean([x.score() for x in b]))
    only_a, only_b = _count_alone(a, b), _count_alone(b, a)
    if len(a) == 1 and a[0].metric in ("accuracy", "top5") and only_a is not None and only_b is not None:
        return PairedTest(difference, mcnemar(only_a, only_b), "mcnemar", only_a, only_b)
    scores = bootstrap([a, b], same_images=same_images, draws=draws)
    p_value = _p_of_differences(scores[:, 0] - scores[:, 1])
    return PairedTest(difference, p_value, "bootstrap", only_a, only_b)


def check_pair(a: Sequence[Outcomes], b: Sequence[Outcomes]) -> None:
    """Check that two probes have the same metric, folds and images.

    Raises:
        ResultsError: the probes cannot be compared.
    """
    if len(a) != len(b):
        raise ResultsError(f"one probe has {len(a)} folds and the other has {len(b)}; compare runs of the same dataset")
    for fold, (x, y) in enumerate(zip(a, b, strict=True), 1):
        if x.metric != y.metric:
            raise ResultsError(
                f"one probe has the metric {x.metric} and the other has {y.metric}; use the same metric for both"
            )
        if len(x) != len(y):
            raise ResultsError(
                f"fold {fold} has {len(x)} test images for one probe and {len(y)} for the other; run both probes on "
                "the same images"
            )
        if not are_of_same_images(x, y):
            raise ResultsError(
                f"fold {fold} has different labels for the two probes; run both probes on the same images"
            )


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the p-value of McNemar's exact test: the two-sided binomial test of only_a successes with p = 1/2.

    It equals `scipy.stats.binomtest(only_a, only_a + only_b)`, but `scipy.stats` takes too long to import.
    """
    return float(mcnemar_of_pairs(np.array(only_a), np.array(only_b)))


def mcnemar_of_pairs(only_a: np.ndarray, only_b: np.ndarray) -> np.ndarray:
    """Return the p-values of many tests of `mcnemar`, float64, in the shape of the integer arrays."""
    from scipy.special import bdtr  # here, because tables without ranks do not need SciPy

    return np.asarray(np.minimum(1.0, 2 * bdtr(np.minimum(only_a, only_b), only_a + only_b, 0.5)))


def _p_of_differences(differences: np.ndarray) -> float:
    # A difference of zero counts for both signs, also if rounding makes it slightly different from zero.
    tails = [int((sign * differences <= 1e-12).sum()) for sign in (1, -1)]
    return min(1.0, 2 * (1 + min(tails)) / (1 + len(differences)))


def _count_alone(a: Sequence[Outcomes], b: Sequence[Outcomes]) -> int | None:
    if "right" not in a[0].arrays:
        return None
    return int(sum((x.arrays["right"] & ~y.arrays["right"]).sum() for x, y in zip(a, b, strict=True)))
