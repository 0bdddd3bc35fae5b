"""Outcomes of test images as text in a record, one bit per image for metrics that count right answers.

Arrays are packed into bits or small integers, compressed, and encoded in base64.
"""

from __future__ import annotations

import base64
import math
import zlib

import numpy as np

from probe.errors import ResultsError
from probe.records.schema import PackedArray, PackedOutcomes, ResultRecord, RunRecord
from probe.stats.metrics import METRICS
from probe.stats.outcomes import STORED_ARRAYS, Outcomes

UNSIGNED = ("uint8", "uint16", "uint32", "uint64")  # dtypes of packed integers, smallest first


def pack(outcomes: Outcomes) -> PackedOutcomes:
    """Return outcomes packed for a record."""
    arrays = {name: _pack_array(array) for name, array in outcomes.arrays.items()}
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


def _pack_array(array: np.ndarray) -> PackedArray:
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
    return np.ascontiguousarray(values.reshape(shape, order="F"))
