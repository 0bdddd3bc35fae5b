"""Outcomes of test images: the smallest data from which the score of a probe can be recomputed.

The score of a resample of the images can be recomputed as well, which `intervals` and `paired` need. Outcomes do not
contain the predicted classes. `records.packing` stores them in records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from probe.stats.metrics import get_metric, is_among_five, is_first, mean_recall, roc_auc, voc2007_11pt_map

# The arrays that are stored for each metric of METRICS.
STORED_ARRAYS = {
    "accuracy": ("right",),
    "top5": ("right",),
    "mean_top1_top5": ("right", "among_five"),
    "mean_per_class": ("right", "labels"),
    "roc_auc": ("labels", "ranks"),
    "voc2007_11pt_map": ("labels", "ranks"),
}
RANKED = tuple(metric for metric, names in STORED_ARRAYS.items() if "ranks" in names)  # metrics that rank all images


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Outcomes of n test images under a probe, in the order of the images.

    Args:
        metric: a name of `metrics.METRICS`.
        arrays: the arrays that `STORED_ARRAYS` lists for the metric:

            - `right`: bool (n,), True if the metric counts the image as right.
            - `among_five`: bool (n,), True if the label is among the five highest scores.
            - `labels`: int64 (n,) class indices; bool (n,) for ROC AUC; int64 (n, k) of 1, 0 and -1 for average
              precision.
            - `ranks`: int64 (n,) or (n, k), lower for a higher score, see `rank`.
    """

    metric: str
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.arrays[STORED_ARRAYS[self.metric][0]])

    @property
    def values(self) -> np.ndarray:
        """Return the value of each image, float64 (n,) in [0, 1], for a metric that is a mean over images or classes.

        Raises:
            ValueError: the metric is a function of the ranks of all images.
        """
        if self.metric in RANKED:
            raise ValueError(f"the metric {self.metric} is not a mean over images; use score()")
        bits = [self.arrays[name] for name in STORED_ARRAYS[self.metric] if name != "labels"]
        return np.asarray(np.mean(bits, axis=0, dtype=np.float64))

    def score(self, rows: np.ndarray | None = None) -> float:
        """Return the metric of all images or of a resample.

        Args:
            rows: int (m,), positions of the images of the resample, which may repeat. Their order breaks ties. None
                scores all images.

        Returns:
            A fraction in [0, 1], equal to the metric of the labels and scores of these rows.

        Raises:
            ValueError: the metric is not defined for these images, such as ROC AUC if all have the same class.
        """
        arrays = {name: array if rows is None else array[rows] for name, array in self.arrays.items()}
        if self.metric == "mean_per_class":
            return mean_recall(arrays["labels"], arrays["right"])
        if self.metric == "roc_auc":
            return roc_auc(arrays["labels"], np.stack([arrays["ranks"], -arrays["ranks"]], axis=1))
        if self.metric == "voc2007_11pt_map":
            return voc2007_11pt_map(arrays["labels"], -narrow(arrays["ranks"]))
        return float(np.mean([array.mean() for array in arrays.values()]))


def make_outcomes(metric: str, y_true: np.ndarray, y_score: np.ndarray) -> Outcomes:
    """Make the outcomes of test images from their labels and scores.

    Args:
        metric: a name of `metrics.METRICS`.
        y_true: labels in the form that the metric takes.
        y_score: scores in the form that the metric takes. Classes without training images have scores of -inf.

    Raises:
        UnknownNameError: the metric is unknown.
    """
    get_metric(metric)
    if metric == "roc_auc":
        labels = y_true == 1
        return Outcomes(metric, {"labels": labels, "ranks": rank(labels, y_score[:, 1] - y_score[:, 0])})
    if metric == "voc2007_11pt_map":
        ranks = [rank(labels, scores) for labels, scores in zip(y_true.T, y_score.T, strict=True)]
        return Outcomes(metric, {"labels": y_true.astype(np.int64), "ranks": np.stack(ranks, axis=1)})
    arrays = {"right": (is_among_five if metric == "top5" else is_first)(y_true, y_score)}
    if metric == "mean_top1_top5":
        arrays["among_five"] = is_among_five(y_true, y_score)
    if metric == "mean_per_class":
        arrays["labels"] = y_true.astype(np.int64)
    return Outcomes(metric, arrays)


def narrow(ranks: np.ndarray) -> np.ndarray:
    """Return ranks as 16-bit integers if they fit, which NumPy sorts in a fifth of the time, by radix."""
    return ranks.astype(np.int16) if ranks.max(initial=0) < 1 << 15 else ranks


def rank(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Rank images from the highest score down, with as few ranks as possible.

    Consecutive images with the same label share a rank, because no metric depends on their order. For most classes of
    VOC, a few hundred ranks remain for thousands of images, so the ranks compress well.

    Args:
        labels: (n,), with two or three different values.
        scores: float (n,). Equal scores get equal ranks.

    Returns:
        int64 (n,), ranks from 0 without gaps.
    """
    _, dense = np.unique(-scores, return_inverse=True)  # NaN goes last, as in a sort
    lowest, highest = np.full(dense.max() + 1, labels.max()), np.full(dense.max() + 1, labels.min())
    np.minimum.at(lowest, dense, labels)
    np.maximum.at(highest, dense, labels)
    # A rank begins where the label changes, and before and after a tie of images with several labels.
    mixed = lowest != highest
    begins = mixed[1:] | mixed[:-1] | (lowest[1:] != lowest[:-1])
    return np.concatenate([[0], np.cumsum(begins)])[dense]
