"""Outcomes of test images as text in a record, one bit per image for metrics that count right answers.

The counts of classes and the bins of a calibration are packed too. Arrays are packed into bits or small integers,
compressed, and encoded in base64.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence

import numpy as np

from probe.errors import ResultsError
from probe.records.schema import (
    CalibrationScores,
    CleanRecord,
    PackedArray,
    PackedClasses,
    PackedOutcomes,
    ResultRecord,
    RunRecord,
)
from probe.stats.metrics import METRICS
from probe.stats.outcomes import STORED_ARRAYS, Outcomes
from probe.stats.per_class import ClassCounts

MILLION = 1_000_000
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")  # dtypes of packed integers, smallest first


def pack(outcomes: Outcomes) -> PackedOutcomes:
    """Return outcomes packed for a record."""
    arrays = {name: pack_array(array) for name, array in outcomes.arrays.items()}
    return PackedOutcomes(outcomes.metric, len(outcomes), arrays)


def unpack(packed: PackedOutcomes) -> Outcomes:
    """Return the outcomes that `pack` has packed.

    Raises:
        ResultsError: the packed outcomes are damaged.
    """
    metric = packed.metric
    try:
        if metric not in METRICS or set(packed.arrays) != set(STORED_ARRAYS[metric]):
            raise ValueError(f"metric {metric!r} with the arrays {sorted(packed.arrays)}")
        arrays = {name: _unpack_array(packed.arrays[name]) for name in STORED_ARRAYS[metric]}
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) != 1 or min(shapes)[:1] != (packed.n,):
            raise ValueError(f"expected arrays of {packed.n} images, got shapes {sorted(shapes)}")
    except (ValueError, OverflowError, zlib.error) as err:
        raise ResultsError(f"the outcomes of test images are damaged ({err}); repeat the run with --rerun") from err
    return Outcomes(metric, arrays)


def outcomes_of(record: RunRecord) -> list[Outcomes]:
    """Return the outcomes of the test images, for each fold or draw.

    Raises:
        ResultsError: the record has no outcomes, or they are damaged.
    """
    if record.result is None or not record.result.outcomes:
        raise ResultsError("it has no outcomes of test images, which are new in schema 3; repeat the run")
    return unpack_outcomes(record.result)


def unpack_outcomes(result: ResultRecord) -> list[Outcomes]:
    """Return the outcomes of a result, or an empty list if it has none.

    Raises:
        ResultsError: the outcomes are damaged.
    """
    return [unpack(packed) for packed in result.outcomes]


def unpack_left_out(clean: CleanRecord) -> list[np.ndarray]:
    """Return the test images that a clean score leaves out, bool (n,), for each fold, or once for all folds.

    Raises:
        ResultsError: they are damaged.
    """
    try:
        arrays = [_unpack_array(packed) for packed in clean.left_out]
        if any(array.dtype != bool or array.ndim != 1 for array in arrays):
            raise ValueError("they are not bits")
    except (ValueError, OverflowError, zlib.error) as err:
        raise ResultsError(f"the images left out of the clean score are damaged ({err}); repeat the run") from err
    return arrays


def pack_classes(counts: ClassCounts) -> PackedClasses:
    """Return counts of classes packed for a record."""
    return PackedClasses(pack_array(np.stack([counts.images, counts.right])), pack_array(counts.confusions))


def unpack_classes(result: ResultRecord) -> list[ClassCounts]:
    """Return the counts of the classes of a result for each fold or draw, or an empty list if it has none.

    Raises:
        ResultsError: the counts are damaged.
    """
    try:
        return [_unpack_classes(packed) for packed in result.classes]
    except (ValueError, OverflowError, zlib.error) as err:
        raise ResultsError(f"the counts of classes are damaged ({err}); repeat the run with --rerun") from err


def _unpack_classes(packed: PackedClasses) -> ClassCounts:
    counts, confusions = _unpack_array(packed.counts), _unpack_array(packed.confusions)
    if counts.ndim != 2 or len(counts) != 2 or confusions.ndim != 2 or confusions.shape[1] != 3:
        raise ValueError(f"invalid shapes {counts.shape} and {confusions.shape}")
    images, right = counts
    labels = confusions[:, :2]
    if (right > images).any() or counts.min(initial=0) < 0 or not ((labels >= 0) & (labels < len(images))).all():
        raise ValueError("numbers of images that contradict one another")
    return ClassCounts(images, right, confusions)


def unpack_bins(scores: CalibrationScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bins of a calibration: numbers of answers, mean probabilities and shares of hits.

    Empty bins have a mean probability and a share of 0. The arrays are empty if the scores have no bins.

    Raises:
        ResultsError: the bins are damaged.
    """
    if scores.bins is None:
        return np.empty(0, np.int64), np.empty(0), np.empty(0)
    try:
        bins = _unpack_array(scores.bins)
        if bins.ndim != 2 or len(bins) != 3 or bins.min(initial=0) < 0 or (bins[1] > bins[0]).any():
            raise ValueError(f"invalid bins of shape {bins.shape}")
    except (ValueError, OverflowError, zlib.error) as err:
        raise ResultsError(f"the bins of the calibration are damaged ({err}); repeat the run with --rerun") from err
    answers, hits, confidences = bins
    return answers, confidences / MILLION, hits / np.maximum(answers, 1)


def pack_bins(answers: Sequence[int], confidences: Sequence[float], accuracies: Sequence[float]) -> PackedArray:
    """Return the bins of a calibration packed for a record. Probabilities are rounded to millionths."""
    hits = np.rint(np.array(answers) * np.array(accuracies))
    return pack_array(np.stack([answers, hits, np.rint(np.array(confidences) * MILLION)]).astype(np.int64))


def pack_array(array: np.ndarray) -> PackedArray:
    """Return an array of bool or of integers packed for a record."""
    if array.dtype == bool:
        dtype, lowest, plain = "bits", 0, np.packbits(array)
    else:
        lowest = int(array.min(initial=0))
        dtype = next(name for name in UNSIGNED if array.max(initial=0) - lowest <= np.iinfo(name).max)
        plain = (array - lowest).astype(np.dtype(dtype).newbyteorder("<"))
    # Fortran order stores class after class, which compresses better because values repeat within a column.
    text = base64.b64encode(zlib.compress(plain.tobytes(order="F"), 9)).decode("ascii")
    return PackedArray(dtype, lowest, array.shape, text)


def _unpack_array(packed: PackedArray) -> np.ndarray:
    shape, dtype = packed.shape, packed.dtype
    if any(size < 0 for size in shape):
        raise ValueError(f"invalid shape {shape}")
    if dtype not in ("bits", *UNSIGNED):
        raise ValueError(f"unknown dtype {dtype!r}")
    count = math.prod(shape)
    size = -(-count // 8) if dtype == "bits" else count * np.dtype(dtype).itemsize
    # Decompress at most one byte more than expected, because damaged data can expand without limit.
    stream = zlib.decompressobj()
    plain = stream.decompress(base64.b64decode(packed.data, validate=True), size + 1)
    if len(plain) != size or not stream.eof:
        raise ValueError(f"expected {size} bytes for dtype {dtype} and shape {shape}")
    if dtype == "bits":
        return np.unpackbits(np.frombuffer(plain, np.uint8), count=count).astype(bool).reshape(shape)
    values = np.frombuffer(plain, np.dtype(dtype).newbyteorder("<")).astype(np.int64) + packed.lowest
    return values.reshape(shape, order="F")
