"""Whether two probes differ by more than chance in which images were in the test split, from the same test images.

For right-or-wrong answers of one fold McNemar's test, which is exact; for other scores the paired bootstrap, whose
smallest p is 2 / (draws + 1). Chance in the training of the probes is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probe.errors import ResultsError
from probe.stats.outcomes import Outcomes
from probe.stats.resampling import are_of_same_images, bootstrap, check_folds

NUM_DRAWS = 1999  # the smallest p is 0.001

SIGNIFICANT = 0.05  # largest p at which a difference counts


@dataclass(frozen=True)
class PairedTest:
    """Two probes, a and b, on the same test images.

    Args:
        difference: score of a less that of b, in [-1, 1].
        p_value: how likely a difference as large is, either way, if neither is better.
        method: `mcnemar` or `bootstrap`.
        num_only_a: images that a alone got right, over all folds; None where the metric is of ranks.
        num_only_b: those that b alone got right.
    """

    difference: float
    p_value: float
    method: str
    num_only_a: int | None
    num_only_b: int | None


def compare(
    a: Sequence[Outcomes], b: Sequence[Outcomes], *, same_images: bool = False, draws: int = NUM_DRAWS
) -> PairedTest:
    """Test whether two probes score differently.

    Args:
        a: outcomes of one probe for each fold, usually one.
        b: those of the other, for the same images in the same order.
        same_images: whether all folds are of the same test images, as STL-10's.
        draws: of the bootstrap.

    Raises:
        ValueError: there is no fold, or one without images.
        ResultsError: the two are not of the same metric, folds and images.

    Source: McNemar 1947 (Psychometrika 12); Efron and Tibshirani 1993, chapter 16; the one that is added to the counts,
    Davison and Hinkley 1997, section 4.2.
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
    """Find out whether two probes can be compared.

    Raises:
        ResultsError: they are not of the same metric, folds and images.
    """
    if len(a) != len(b):
        raise ResultsError(f"one probe has {len(a)} folds, the other {len(b)}; compare runs of one dataset")
    for fold, (x, y) in enumerate(zip(a, b, strict=True), 1):
        if x.metric != y.metric:
            raise ResultsError(f"one probe has the metric {x.metric}, the other {y.metric}; score both by one")
        if len(x) != len(y):
            raise ResultsError(
                f"fold {fold} has {len(x)} test images for one probe, {len(y)} for the other; run both on the same ones"
            )
        if not are_of_same_images(x, y):
            raise ResultsError(f"fold {fold} has other labels for one probe than the other; run both on the same")


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the p-value of the exact two-sided test that heads and tails of a coin are equally likely.

    Equals `scipy.stats.binomtest`, whose import takes longer than most tables.

    Args:
        only_a: images that one probe alone got right.
        only_b: images that the other alone got right.
    """
    from scipy.special import bdtr  # here, because tables without ranks need no SciPy

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _p_of_differences(differences: np.ndarray) -> float:
    # A difference of zero may come out as a rounding, and then counts for both sides as well.
    tails = [int((sign * differences <= 1e-12).sum()) for sign in (1, -1)]
    return min(1.0, 2 * (1 + min(tails)) / (1 + len(differences)))


def _count_alone(a: Sequence[Outcomes], b: Sequence[Outcomes]) -> int | None:
    if "right" not in a[0].arrays:
        return None
    return int(sum((x.arrays["right"] & ~y.arrays["right"]).sum() for x, y in zip(a, b, strict=True)))
