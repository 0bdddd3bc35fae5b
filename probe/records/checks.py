"""Checks for contradictions within a record, which is a file that anybody can edit.

The decoder has already checked types, ranges and missing fields, see `records.record`.
"""

from __future__ import annotations

import math
from datetime import datetime

from probe.errors import ResultsError
from probe.records.schema import DoneRecord, FurtherTestRecord, ResultRecord, RunRecord
from probe.records.supplied import PREFIX
from probe.specs import KNN, LOGISTIC, SUPPLIED, ZERO_SHOT, Protocol

SLACK = 1e-9  # difference of a mean over folds when it is computed again


def find_fault(record: RunRecord) -> str:
    """Return a sentence about the first contradiction in a record, or "" if there is none."""
    if not _is_time(record.created):
        return f"created is {record.created!r}, expected a time in ISO 8601"
    try:
        hash(record.spec)
    except TypeError:  # objects among the options of a source
        return "spec.dataset.sources has options that are objects or arrays"
    is_supplied = record.extraction.supplied is not None
    if is_supplied != (record.spec.model.form == SUPPLIED) or is_supplied != record.model.startswith(PREFIX):
        return "extraction.supplied, spec.model.form and spec.model.name disagree about the origin of the features"
    if not isinstance(record, DoneRecord):
        return ""
    result, interval, rules = record.result, record.result.interval, record.spec.protocol
    chosen = {LOGISTIC: "C", KNN: "k"}.get(rules.method, "")
    if chosen and getattr(result, chosen) is None and not (result.folds or result.draws):
        return f"result.{chosen} is missing"
    if interval is not None and not interval.low - SLACK <= result.score <= interval.high + SLACK:
        return f"its score {result.score} lies outside its confidence interval"
    scale = (result.num_train or 1) if rules.mean_loss else 1
    if rules.grid and result.C is not None and not _is_tried(scale * result.C, rules):
        return f"its C, {result.C}, is not in the grid of its protocol"
    for test in record.tests:
        if fault := _find_contradiction_of_test(test):
            return f"tests, {test.name}: {fault}"
    if fault := _find_contradiction_of_clean(record):
        return f"clean: {fault}"
    if rules.method == KNN and result.k is not None and result.k not in rules.neighbours:
        return f"its k, {result.k}, is not among the neighbours of its protocol"
    if rules.method == ZERO_SHOT and record.prompts is None:
        return "prompts is missing"
    return _find_contradiction(result, record.spec.dataset.metric)


def _is_tried(value: float, rules: Protocol) -> bool:
    """Return True if a protocol can choose a value, in the unit of its grid."""
    if rules.bisections:  # between a tenth and ten times a value of the grid
        return rules.grid[0] / 10 * (1 - SLACK) <= value <= rules.grid[-1] * 10 * (1 + SLACK)
    return any(math.isclose(value, C, rel_tol=SLACK) for C in rules.grid)


def _find_contradiction_of_test(test: FurtherTestRecord) -> str:
    """Return a sentence that says how a further test set contradicts itself, or "" if it does not."""
    if (test.error is None) != (test.all_classes is not None):
        return "it must have either a score or an error"
    for convention in (test.all_classes, test.own_classes):
        if convention is None:
            continue
        if not convention.interval.low - SLACK <= convention.score <= convention.interval.high + SLACK:
            return f"its score {convention.score} lies outside its confidence interval"
        from probe.records.packing import unpack

        try:
            outcomes = [unpack(packed) for packed in convention.outcomes]
            score = sum(one.score() for one in outcomes) / len(outcomes) if outcomes else convention.score
        except (ResultsError, ValueError, IndexError) as err:
            return f"its outcomes cannot be read: {err}"
        if abs(score - convention.score) > SLACK:
            return f"its score is {convention.score:.6g}, but the score of its outcomes is {score:.6g}"
    return ""


def _find_contradiction_of_clean(record: DoneRecord) -> str:
    """Return a sentence that says how a clean score contradicts the record, or "" if it does not."""
    clean, result = record.clean, record.result
    if clean is None:
        return ""
    if (clean.score is None) != bool(clean.reason) or (clean.score is None) != (clean.interval is None):
        return "it must have either a score with its interval, or a reason"
    if (
        clean.interval is not None
        and not clean.interval.low - SLACK <= (clean.score or 0) <= clean.interval.high + SLACK
    ):
        return f"its score {clean.score} lies outside its confidence interval"
    from probe.records.packing import unpack_left_out, unpack_outcomes  # imports NumPy

    try:
        left_out, outcomes = unpack_left_out(clean), unpack_outcomes(result)
        if sum(int(own.sum()) for own in left_out) != clean.num_left_out:
            return f"num_left_out is {clean.num_left_out}, but left_out marks a different number of images"
        draws_in_folds = any(fold.draws for fold in result.folds)  # only the first draw may have outcomes
        if clean.score is None or draws_in_folds or len(left_out) not in (1, len(outcomes)):
            return ""
        kept = [(~own).nonzero()[0] for own in left_out]
        score = sum(one.score(kept[i % len(kept)]) for i, one in enumerate(outcomes)) / max(1, len(outcomes))
    except (ResultsError, ValueError, IndexError) as err:
        return f"the images that were left out cannot be read: {err}"
    if outcomes and abs(score - clean.score) > SLACK:
        return f"its score is {clean.score:.6g}, but the score of its outcomes is {score:.6g}"
    return ""


def _find_contradiction(result: ResultRecord, metric: str) -> str:
    """Return a sentence that says how a result contradicts its outcomes of test images, or "" if they agree."""
    if not result.outcomes:
        return ""
    from probe.records.packing import unpack_bins, unpack_classes, unpack_outcomes  # imports NumPy

    try:
        classes = unpack_classes(result)
        for one in (result, *result.folds, *result.draws):
            for scores in () if one.calibration is None else (one.calibration.before, one.calibration.after):
                if scores is not None:
                    unpack_bins(scores)
    except ResultsError as err:
        return str(err)
    if classes and classes[0].images.sum() != result.num_test:
        return f"result.num_test is {result.num_test}, but its classes have {classes[0].images.sum()} test images"
    owners = result.folds if result.folds and not result.label_values else (result,)  # of the labels of the classes
    num = len(classes) // len(owners)
    for i, counts in enumerate(classes):
        values = owners[i // num].label_values if num * len(owners) == len(classes) else None
        if values is None or (values and len(values) != len(counts.images)):
            return "result.classes do not fit its label_values or folds"
    try:
        outcomes = unpack_outcomes(result)
        score = sum(one.score() for one in outcomes) / len(outcomes)
    except (ResultsError, ValueError, IndexError) as err:
        return f"its outcomes cannot be read: {err}"
    if {one.metric for one in outcomes} != {metric}:
        return f"the metric of its outcomes is {outcomes[0].metric}, but the metric of its dataset is {metric}"
    if len(outcomes[0]) != result.num_test:
        return f"result.num_test is {result.num_test}, but result.outcomes has {len(outcomes[0])} test images"
    draws_in_folds = any(fold.draws for fold in result.folds)  # only the first draw has outcomes
    if not draws_in_folds and abs(score - result.score) > SLACK:
        return f"its score is {result.score:.6g}, but the score of its outcomes is {score:.6g}"
    return ""


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
