"""Bootstrap of scores: resample the test images and score each draw.

A draw is represented by the number of times that each image was drawn. These counts are weights of the images, so
images are sorted once and many draws are scored together. The score of a draw equals `Outcomes.score(np.sort(rows))`
for the positions `rows` of the drawn images, up to rounding errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probe.errors import ResultsError
from probe.stats.metrics import IGNORED, RECALLS
from probe.stats.outcomes import Outcomes, narrow

SEED = 0  # fixed, so that tables are reproducible
MAX_COUNTS = 1 << 20  # counts in memory at a time, 8 MB


def bootstrap(probes: Sequence[Sequence[Outcomes]], *, same_images: bool, draws: int) -> np.ndarray:
    """Return the mean scores over folds of one or several probes on resampled images.

    All probes are scored on the same draws.

    Args:
        probes: outcomes of each probe, one for each fold. In each fold, all probes must have the same images in the
            same order.
        same_images: True if all folds have the same images. Then the folds share the draws.
        draws: number of draws.

    Returns:
        float64 (draws, number of probes).

    Raises:
        ValueError: there is no fold, or a fold has no images.
        ResultsError: the folds have different metrics, or different images although `same_images` is True.
    """
    check_folds(probes[0], same_images=same_images)
    rng = np.random.default_rng(SEED)
    total = np.zeros((draws, len(probes)))
    groups = [list(zip(*probes, strict=True))] if same_images else [[fold] for fold in zip(*probes, strict=True)]
    for folds in groups:  # each group has draws of its own
        start = 0
        for counts in _draw(folds[0][0], draws, rng):
            scores = [[scores_of(outcomes, counts) for outcomes in fold] for fold in folds]
            total[start : start + len(counts)] += np.sum(scores, axis=0).T
            start += len(counts)
    return total / len(probes[0])


def check_folds(folds: Sequence[Outcomes], *, same_images: bool) -> None:
    """Check that a mean over folds is defined.

    Raises:
        ValueError: there is no fold, or a fold has no images.
        ResultsError: the folds have different metrics, or different images although `same_images` is True.
    """
    if not folds or not all(len(fold) for fold in folds):
        raise ValueError("expected the outcomes of at least one fold, each with at least one image")
    metrics = sorted({fold.metric for fold in folds})
    if len(metrics) > 1:
        raise ResultsError(f"the folds have different metrics, {' and '.join(metrics)}; give the folds of one probe")
    if same_images and not all(are_of_same_images(folds[0], fold) for fold in folds):
        raise ResultsError("the folds have different test images; set same_images=False")


def are_of_same_images(a: Outcomes, b: Outcomes) -> bool:
    """Return True if two outcomes can be of the same images: their lengths and, if stored, their labels are equal."""
    return len(a) == len(b) and ("labels" not in a.arrays or np.array_equal(a.arrays["labels"], b.arrays["labels"]))


def scores_of(outcomes: Outcomes, counts: np.ndarray) -> np.ndarray:
    """Return the score of each draw.

    Args:
        outcomes: outcomes of n images.
        counts: float64 (draws, n), number of times that each image was drawn. The metric must be defined for each draw.

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
    """Yield the counts of some draws at a time, float64 (m, n), for `draws` draws in total."""
    n = len(outcomes)
    for start in range(0, draws, max(MAX_COUNTS // n, 1)):
        num = min(max(MAX_COUNTS // n, 1), draws - start)
        if outcomes.metric == "roc_auc":  # draw within each class, so that no draw lacks a class
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
    """Draw n of n images with replacement, `num` times, and return the count of each image, float64 (num, n)."""
    counts = np.empty((num, n))
    for own, rows in zip(counts, rng.integers(n, size=(num, n)), strict=True):  # faster than all draws at once
        own[:] = np.bincount(rows, minlength=n)
    return counts


def _redraw_without_positives(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeat draws in which no class has a positive image, because average precision is not defined for them."""
    is_positive = (labels == 1).any(axis=1)
    if not is_positive.any():
        raise ValueError("average precision needs an image that shows a class, but there is none")
    while len(empty := np.flatnonzero(counts[:, is_positive].sum(axis=1) == 0)):
        counts[empty] = _draw_counts(len(empty), counts.shape[1], rng)
    return counts


def _mean_per_class(labels: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels.min() - 1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)  # (draws, classes that have images)
    num_right = np.add.reduceat((counts * right)[:, order], starts, axis=1)
    recalls = num_right / np.maximum(drawn, 1)
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
    from scipy.sparse import csr_array  # here, because other metrics do not need SciPy

    total, num_classes = np.zeros(len(counts)), np.zeros(len(counts))
    # Small integers take less memory, which the sums below have to read for each class.
    by_image = np.ascontiguousarray(counts.T, dtype=np.min_scalar_type(int(counts.sum(axis=1).max())))  # (n, draws)
    for class_labels, class_ranks in zip(labels.T, narrow(ranks).T, strict=True):
        order = np.argsort(class_ranks, kind="stable")
        order = order[class_labels[order] != IGNORED]
        ends = np.flatnonzero(class_labels[order] == 1) + 1  # a segment of the ranking ends with each positive image
        if len(ends):
            ones, starts = np.ones(ends[-1], by_image.dtype), np.append(0, ends)
            segments = csr_array((ones, order[: ends[-1]], starts), shape=(len(ends), len(labels)))
            num_images, num_positive = map(_running_sums, (segments @ by_image, by_image[order[ends - 1]]))
            total += _average_precision(num_positive, num_images)
            num_classes += num_positive[:, -1] > 0
    return total / num_classes


def _running_sums(counts: np.ndarray) -> np.ndarray:
    """Return the sums of the counts (positives, draws) up to each positive image, int64 (draws, positives)."""
    return np.cumsum(counts.T.astype(np.int64, order="C"), axis=1)  # a sum that converts takes several times as long


def _average_precision(num_positive: np.ndarray, num_images: np.ndarray) -> np.ndarray:
    """Return the 11-point average precision of a class for each draw, or 0 if a draw has no positive image.

    The counts are only needed at the positive images, because the highest precision at a recall is always at a positive
    image. If an image was drawn several times, the count is taken after its last copy, where the precision is highest.

    Args:
        num_positive: int64 (draws, positives), number of drawn positive images up to each positive image.
        num_images: int64 (draws, positives), number of drawn images up to each positive image.

    Returns:
        float64 (draws,).
    """
    precision = num_positive / np.maximum(num_images, 1)
    draws, most = np.arange(len(precision))[:, None], num_positive[:, -1:]
    # One search finds the recalls of all draws: the numbers of a draw begin above the highest number of the draw before
    # it. The tolerance is the same as in `metrics`.
    begin = (most.max() + 1) * draws
    wanted = np.ceil((RECALLS - 1e-12) * most).astype(np.int64)  # (draws, recalls), number of positive images
    at = np.searchsorted((num_positive + begin).ravel(), wanted + begin)
    at = np.minimum(at, precision.shape[1] * (draws + 1) - 1)
    best = np.maximum.reduceat(precision.ravel(), at.ravel()).reshape(at.shape)  # up to the next recall
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]  # highest precision at this recall or above
    return np.asarray(np.mean(list(best.T), axis=0))
