"""What a probe did with each test image, in the smallest form from which its score can be computed again.

Also of some images with repeats, as resampling and comparing two probes ask; `intervals` and `paired` do that. As JSON
an image costs a bit where a metric counts right and wrong. Not for predictions: which wrong class was chosen is lost.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.errors import ResultsError
from probe.stats.metrics import METRICS, get_metric, is_among_five, is_first, mean_recall, roc_auc, voc2007_11pt_map

# What is kept for a metric, by its name in METRICS.
KEPT = {
    "accuracy": ("right",),
    "top5": ("right",),
    "mean_top1_top5": ("right", "among_five"),
    "mean_per_class": ("right", "labels"),
    "roc_auc": ("labels", "ranks"),
    "voc2007_11pt_map": ("labels", "ranks"),
}
RANKED = tuple(metric for metric, names in KEPT.items() if "ranks" in names)  # not a mean over images
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")  # what integers are packed as, smallest first


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a probe did with each of n test images, in their order.

    Args:
        metric: a name of `metrics.METRICS`; `KEPT` says which arrays it has.
        arrays: `right`, bool (n,), whether the metric counts the image as right; `among_five`, bool (n,), whether the
            label is among the five highest scores; `labels`, int64 (n,), of ROC AUC bool (n,), of average precision
            int64 (n, k) of 1, 0 and -1; `ranks`, int64 (n,) or (n, k), a lower one for a higher score and the same for
            scores that are equal or whose order no score can depend on, see `rank`.
    """

    metric: str
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.arrays[KEPT[self.metric][0]])

    @property
    def values(self) -> np.ndarray:
        """What each image adds, float64 (n,) in [0, 1], where the metric is a mean over images or classes.

        Raises:
            ValueError: the metric is of ranks.
        """
        if self.metric in RANKED:
            raise ValueError(f"{self.metric} is no mean over images; use score")
        bits = [self.arrays[name] for name in KEPT[self.metric] if name != "labels"]
        return np.asarray(np.mean(bits, axis=0, dtype=np.float64))

    def score(self, rows: np.ndarray | None = None) -> float:
        """The metric of all images, or of some.

        Args:
            rows: int (m,), which images, with repeats if need be, in the order that is to break ties.

        Returns:
            A fraction in [0, 1], as the metric gives for the labels and scores of these rows.

        Raises:
            ValueError: the metric is not defined for these images, as ROC AUC for those of one class.
        """
        kept = {name: array if rows is None else array[rows] for name, array in self.arrays.items()}
        if self.metric == "mean_per_class":
            return mean_recall(kept["labels"], kept["right"])
        if self.metric == "roc_auc":
            return roc_auc(kept["labels"], np.stack([kept["ranks"], -kept["ranks"]], axis=1))
        if self.metric == "voc2007_11pt_map":
            return voc2007_11pt_map(kept["labels"], -kept["ranks"])
        return float(np.mean([array.mean() for array in kept.values()]))

    def pack(self) -> dict[str, Any]:
        """All of it as JSON: bits and the smallest unsigned integers, compressed, as base64 text."""
        arrays = {name: _pack_array(array) for name, array in self.arrays.items()}
        return {"metric": self.metric, "n": len(self), "arrays": arrays}


def make_outcomes(metric: str, y_true: np.ndarray, y_score: np.ndarray) -> Outcomes:
    """Keep what a metric needs of labels and scores.

    Args:
        metric: a name of `metrics.METRICS`.
        y_true: labels, as the metric takes them.
        y_score: scores, as the metric takes them; -inf, of a class that was never seen, is a score like others.

    Raises:
        UnknownNameError: no such metric.
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


def rank(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Ranks from the highest score down, as coarse as they can be with every order of labels the same.

    Neighbours in the order that all have one label share a rank, since no score tells them apart: of most classes of
    VOC that leaves a few hundred ranks for thousands of images, which compress to a fraction.

    Args:
        labels: (n,), of two or three kinds.
        scores: float (n,); equal ones have equal ranks.

    Returns:
        int64 (n,), from 0, without gaps.
    """
    _, dense = np.unique(-scores, return_inverse=True)  # NaN goes last, as in a sort
    lowest, highest = np.full(dense.max() + 1, labels.max()), np.full(dense.max() + 1, labels.min())
    np.minimum.at(lowest, dense, labels)
    np.maximum.at(highest, dense, labels)
    # A rank begins where the labels change, or where a tie holds several labels: its order is that of the images.
    mixed = lowest != highest
    begins = mixed[1:] | mixed[:-1] | (lowest[1:] != lowest[:-1])
    return np.concatenate([[0], np.cumsum(begins)])[dense]


def unpack(packed: Mapping[str, Any]) -> Outcomes:
    """The inverse of `Outcomes.pack`.

    Raises:
        ResultsError: it is damaged.
    """
    try:
        metric, n = packed["metric"], packed["n"]
        if metric not in METRICS or set(packed["arrays"]) != set(KEPT[metric]):
            raise ValueError(f"metric {metric!r} with {sorted(packed['arrays'])}")
        arrays = {name: _unpack_array(packed["arrays"][name]) for name in KEPT[metric]}
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) != 1 or min(shapes)[:1] != (n,):
            raise ValueError(f"arrays of {sorted(shapes)}, not of {n} images")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as err:
        raise ResultsError(f"outcomes of test images are damaged ({err}); run the cell again") from err
    return Outcomes(metric, arrays)


def _pack_array(array: np.ndarray) -> dict[str, Any]:
    if array.dtype == bool:
        dtype, lowest, plain = "bits", 0, np.packbits(array)
    else:
        lowest = int(array.min(initial=0))
        dtype = next(name for name in UNSIGNED if array.max(initial=0) - lowest <= np.iinfo(name).max)
        plain = (array - lowest).astype(np.dtype(dtype).newbyteorder("<"))
    # Class after class, for columns are what repeats.
    text = base64.b64encode(zlib.compress(plain.tobytes(order="F"), 9)).decode("ascii")
    return {"dtype": dtype, "lowest": lowest, "shape": list(array.shape), "data": text}


def _unpack_array(packed: Mapping[str, Any]) -> np.ndarray:
    shape, dtype = tuple(packed["shape"]), packed["dtype"]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, abs(packed["lowest"]))):
        raise ValueError(f"shape {shape}, lowest {packed['lowest']}")
    if dtype not in ("bits", *UNSIGNED):
        raise ValueError(f"dtype {dtype!r}")
    count = math.prod(shape)
    size = -(-count // 8) if dtype == "bits" else count * np.dtype(dtype).itemsize
    # One byte more than there should be is enough to know, however much a damaged text would grow to.
    stream = zlib.decompressobj()
    plain = stream.decompress(base64.b64decode(packed["data"], validate=True), size + 1)
    if len(plain) != size or not stream.eof:
        raise ValueError(f"not the {size} bytes of {dtype} {shape}")
    if dtype == "bits":
        return np.unpackbits(np.frombuffer(plain, np.uint8), count=count).astype(bool).reshape(shape)
    values = np.frombuffer(plain, np.dtype(dtype).newbyteorder("<")).astype(np.int64) + packed["lowest"]
    return np.ascontiguousarray(values.reshape(shape, order="F"))
