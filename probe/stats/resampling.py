"""Scores of resampled test images: the bootstrap, by how often each image was drawn rather than by the images drawn.

An image's count is a weight, so that nothing is sorted twice and many draws are scored at once. A score here is that of
the drawn images in their first order, `Outcomes.score(np.sort(rows))`, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probe.errors import ResultsError
from probe.stats.metrics import IGNORED, RECALLS
from probe.stats.outcomes import Outcomes

SEED = 0  # draws are the same in every run, so that tables are
CHUNK = 1 << 20  # counts in memory at once, 8 MB


def bootstrap(probes: Sequence[Sequence[Outcomes]], *, same_images: bool, draws: int) -> np.ndarray:
    """Mean score over folds of one or several probes, all on the same resampled images.

    Args:
        probes: for each probe its folds; those of one fold are of the same images in the same order.
        same_images: whether all folds are of the same images, which are then drawn once for all of them.
        draws: how many times images are drawn.

    Returns:
        float64 (draws, number of probes).

    Raises:
        ResultsError: folds are said to be of the same images and are not.
    """
    check_folds(probes[0], same_images=same_images)
    rng = np.random.default_rng(SEED)
    total = np.zeros((draws, len(probes)))
    groups = [list(zip(*probes, strict=True))] if same_images else [[fold] for fold in zip(*probes, strict=True)]
    for folds in groups:  # each is drawn by itself
        start = 0
        for counts in _draw(folds[0][0], draws, rng):
            scores = [[scores_of(outcomes, counts) for outcomes in fold] for fold in folds]
            total[start : start + len(counts)] += np.sum(scores, axis=0).T
            start += len(counts)
    return total / len(probes[0])


def check_folds(folds: Sequence[Outcomes], *, same_images: bool) -> None:
    """Find out whether a mean over folds makes sense.

    Raises:
        ValueError: there is no fold, or one without images.
        ResultsError: they are of several metrics, or said to be of the same images and are not.
    """
    if not folds or not all(len(fold) for fold in folds):
        raise ValueError("no outcomes; give those of at least one fold and image")
    metrics = sorted({fold.metric for fold in folds})
    if len(metrics) > 1:
        raise ResultsError(f"folds have the metrics {' and '.join(metrics)}; give the folds of one probe")
    if same_images and not all(are_of_same_images(folds[0], fold) for fold in folds):
        raise ResultsError("folds have different test images; give same_images=False")


def are_of_same_images(a: Outcomes, b: Outcomes) -> bool:
    """Whether two outcomes can be of the same images in the same order: as many, and with the same labels."""
    return len(a) == len(b) and ("labels" not in a.arrays or np.array_equal(a.arrays["labels"], b.arrays["labels"]))


def scores_of(outcomes: Outcomes, counts: np.ndarray) -> np.ndarray:
    """Scores of images that were drawn so many times.

    Args:
        outcomes: of n images.
        counts: float64 (draws, n), whole numbers, with which the metric is defined.

    Returns:
        float64 (draws,), fractions in [0, 1].
    """
    if outcomes.metric == "mean_per_class":
        return _mean_per_class(outcomes.arrays["labels"], outcomes.arrays["right"], counts)
    if outcomes.metric == "roc_auc":
        return _roc_auc(outcomes.arrays["labels"], outcomes.arrays["ranks"], counts)
    if outcomes.metric == "voc2007_11pt_map":
        return _mean_average_precision(outcomes.arrays["labels"], outcomes.arrays["ranks"], counts)
    return np.asarray(counts @ outcomes.values / counts.sum(axis=1))


def _draw(outcomes: Outcomes, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Counts in chunks; together (draws, n)."""
    n = len(outcomes)
    for start in range(0, draws, max(CHUNK // n, 1)):
        num = min(max(CHUNK // n, 1), draws - start)
        if outcomes.metric == "roc_auc":  # within each class, so that both are always there
            counts = np.empty((num, n))
            for label in (True, False):
                members = np.flatnonzero(outcomes.arrays["labels"] == label)
                counts[:, members] = _draw_counts(num, len(members), rng)
        else:
            counts = _draw_counts(num, n, rng)
        if outcomes.metric == "voc2007_11pt_map":
            counts = _redraw_without_positives(outcomes.arrays["labels"], counts, rng)
        yield counts


def _draw_counts(num: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n images is among n drawn with replacement, float64 (num, n)."""
    rows = rng.integers(n, size=(num, n)) + n * np.arange(num)[:, None]
    return np.bincount(rows.ravel(), minlength=num * n).reshape(num, n).astype(np.float64)


def _redraw_without_positives(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw again where no class has a positive image, for then there is no score."""
    is_positive = (labels == 1).any(axis=1)
    if not is_positive.any():
        raise ValueError("average precision needs an image that shows a class")
    while len(empty := np.flatnonzero(counts[:, is_positive].sum(axis=1) == 0)):
        counts[empty] = _draw_counts(len(empty), counts.shape[1], rng)
    return counts


def _mean_per_class(labels: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels.min() - 1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)  # (draws, classes that have images)
    found = np.add.reduceat((counts * right)[:, order], starts, axis=1)
    recalls = found / np.maximum(drawn, 1)
    return np.asarray(recalls.sum(axis=1) / (drawn > 0).sum(axis=1))


def _roc_auc(labels: np.ndarray, ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(ranks, kind="stable")
    starts = np.flatnonzero(np.diff(ranks[order], prepend=-1))
    positive = np.add.reduceat((counts * labels)[:, order], starts, axis=1)  # (draws, ranks)
    negative = np.add.reduceat((counts * ~labels)[:, order], starts, axis=1)
    above = np.cumsum(negative, axis=1)
    num_negative = above[:, -1:]
    won = (positive * (num_negative - above + negative / 2)).sum(axis=1)
    return np.asarray(won / (positive.sum(axis=1) * num_negative[:, 0]))


def _mean_average_precision(labels: np.ndarray, ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    total, num_classes = np.zeros(len(counts)), np.zeros(len(counts))
    by_image = np.ascontiguousarray(counts.T)  # (n, draws), whose rows are put into another order for each class
    for own_labels, own_ranks in zip(labels.T, ranks.T, strict=True):
        order = np.argsort(own_ranks, kind="stable")
        order = order[own_labels[order] != IGNORED]
        where = np.flatnonzero(own_labels[order] == 1)
        if len(where):
            found = np.cumsum(by_image[order[where]], axis=0)  # (positives, draws)
            starts = np.concatenate([[0], where[:-1] + 1])  # of the images up to each positive, behind the one before
            read = np.cumsum(np.add.reduceat(by_image[order[: where[-1] + 1]], starts, axis=0), axis=0)
            total += _average_precision(found, read)
            num_classes += found[-1] > 0
    return total / num_classes


def _average_precision(found: np.ndarray, read: np.ndarray) -> np.ndarray:
    """From positives found, and images read, up to each positive one, where alone precision can have a maximum.

    Of an image drawn several times the last copy counts, whose precision is the highest. Zero where none was drawn.

    Args:
        found: float64 (positives, draws).
        read: likewise.

    Returns:
        float64 (draws,).
    """
    precision = found / np.maximum(read, 1)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]  # from here on
    recall = found / np.maximum(found[-1:], 1)
    draws = np.arange(found.shape[1])
    at = [np.minimum((recall < r - 1e-12).sum(axis=0), len(found) - 1) for r in RECALLS]  # slack as in `metrics`
    return np.asarray(np.mean([best[index, draws] for index in at], axis=0))
