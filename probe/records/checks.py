"""Contradictions within a record whose types are right. A record is a file that anybody can edit.

Types, missing fields and ranges are the decoder's to find, see `records.record`.
"""

from __future__ import annotations

import math
from datetime import datetime

from probe.errors import ResultsError
from probe.records.schema import DoneRecord, ResultRecord, RunRecord

SLACK = 1e-9  # by which a mean of folds can differ when it is computed again


def find_fault(record: RunRecord) -> str:
    """Return what is wrong with a record, in words; empty if nothing is."""
    if not _is_time(record.created):
        return f"created is {record.created!r}, not a time"
    try:
        hash(record.spec)
    except TypeError:  # objects among the options of a source
        return "the options of spec.dataset.sources hold objects"
    if not isinstance(record, DoneRecord):
        return ""
    result, interval, grid = record.result, record.result.interval, record.spec.protocol.grid
    if result.C is None and not (result.folds or result.draws):
        return "result.C is missing"
    if interval is not None and not interval.low - SLACK <= result.score <= interval.high + SLACK:
        return f"its score {result.score} lies outside of its interval"
    if grid and result.C is not None and not any(math.isclose(result.C, C, rel_tol=SLACK) for C in grid):
        return f"its C, {result.C}, is none that its protocol tries"
    return _find_contradiction(result, record.spec.dataset.metric)


def _find_contradiction(result: ResultRecord, metric: str) -> str:
    """Return how a score differs from that of the outcomes of test images, in words; empty if it does not."""
    if not result.outcomes:
        return ""
    from probe.records.record import unpack_outcomes  # NumPy, which a record without outcomes does without

    try:
        outcomes = unpack_outcomes(result)
        score = sum(one.score() for one in outcomes) / len(outcomes)
    except (ResultsError, ValueError, IndexError) as err:
        return f"its outcomes: {err}"
    if {one.metric for one in outcomes} != {metric}:
        return f"its outcomes are of {outcomes[0].metric}, its dataset is of {metric}"
    if len(outcomes[0]) != result.num_test:
        return f"it has outcomes of {len(outcomes[0])} test images, and says {result.num_test}"
    draws_in_folds = any(fold.draws for fold in result.folds)  # of which it keeps the first alone
    if not draws_in_folds and abs(score - result.score) > SLACK:
        return f"its score is {result.score:.6g}, that of its outcomes {score:.6g}"
    return ""


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
