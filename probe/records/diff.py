"""Comparison of two records: the fields that differ, from causes to effects, and a test of their scores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from probe.errors import ResultsError
from probe.records.packing import outcomes_of
from probe.records.record import test_images
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import identity_fields
from probe.stats.paired import SIGNIFICANT, PairedTest, compare

# Stages of a run, the fields that belong to each, and what a difference there means. Differences in one stage can cause
# differences in later stages. A field belongs to the stage with the longest matching prefix.
STAGES = {
    "environment": (
        ("environment",),
        "different versions, hardware or threads round differently",
    ),
    "data": (
        ("spec.dataset", "splits", "read"),
        "different images, labels or splits make a different experiment, whose scores cannot be compared",
    ),
    "model": (("spec.model", "encoder"), "different weights or preprocessing give different features"),
    "execution": (
        ("spec.jit", "spec.compiled", "spec.device", "spec.precision", "spec.batch_size"),
        "the same model run differently: features differ by rounding, more so in half precision",
    ),
    "features": (
        ("features", "parity"),
        "the bytes differ because of the stages above, or because the code of the model changed",
    ),
    "probe": (
        ("spec.protocol", "spec.solver", "spec.prompts", "prompts"),
        "different rules or prompts, or a different solver of the same problem",
    ),
    "fit": (
        ("result",),
        "the fit differs because of the stages above, or because the code of the fit changed",
    ),
    "score": (
        ("result.score", "result.interval", "result.outcomes", "result.classes"),
        "the score on the test images differs",
    ),
    "further tests": (("tests",), "scores on further test sets differ"),
    "clean score": (("clean",), "the scores without test images that are also training images differ"),
    "record": (("status", "error", "schema_version"), "one of the runs failed, or the records have different versions"),
}
TIMES = ("created", "seconds", "extraction")  # differ in every run
NESTED = re.compile(r"\b(folds|draws)\[\d+\]\.")  # in the path of a field of a single fold or draw
OPTIONAL = ("classes", "calibration")  # fields of a result that records of earlier versions do not have


@dataclass(frozen=True)
class Change:
    """A field that differs: its stage, its path in the record, and both values, None if the field is missing."""

    stage: str
    field: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Difference:
    """The result of comparing two records.

    Args:
        changes: the fields that differ, in the order of `STAGES`.
        test: test of the scores; None if they cannot be compared.
        verdict: conclusion, as a sentence.
        note: a sentence on splits that only one of the runs uses, whose fields are not among the changes; may be empty.
    """

    changes: tuple[Change, ...]
    test: PairedTest | None
    verdict: str
    note: str = ""

    def explains(self, stage: str) -> str:
        """Return what a difference in a stage means, as a sentence."""
        return STAGES[stage][1]


def diff(a: RunRecord, b: RunRecord) -> Difference:
    """Return the fields in which two records differ, except times and descriptions, and a test of their scores.

    Scores of classes, calibration, further test sets and clean scores that only one record has are not differences.
    """
    left, right = (dict(_leaves(_comparable(record))) for record in (a, b))
    own = {f"{kind}.{name}" for kind in ("splits", "features") for name in _own_splits(a, b)}
    skipped = (*own, *_own_results(a, b))
    differing = [
        path
        for path in {**left, **right}
        if left.get(path) != right.get(path) and not _is_in(NESTED.sub("", path), skipped)
    ]
    changes = [Change(_stage(path), path, left.get(path), right.get(path)) for path in differing]
    ordered = sorted(changes, key=lambda change: (list(STAGES).index(change.stage), change.field))
    note = ""
    if own:
        images = "are the same" if test_images(a) == test_images(b) else "differ"
        note = f"one record uses no training or validation images; the test images {images}"
    try:
        test, verdict = _test(a, b)
    except ResultsError as err:
        return Difference(tuple(ordered), None, f"the scores cannot be compared: {err}", note)
    return Difference(tuple(ordered), test, verdict, note)


def _own_splits(a: RunRecord, b: RunRecord) -> set[str]:
    """Return the splits that only one of two runs uses, such as `train`; empty if a run failed and has none."""
    if not (a.splits and b.splits):
        return set()
    used = set(a.spec.splits) ^ set(b.spec.splits)
    return {name for name in {**a.splits, **b.splits} if name.partition("/")[0] in used}


def _own_results(a: RunRecord, b: RunRecord) -> set[str]:
    """Return the optional results that only one of two records has, such as `result.calibration`."""
    if not (isinstance(a, DoneRecord) and isinstance(b, DoneRecord)):
        return set()
    tests = {test.name for test in a.tests} ^ {test.name for test in b.tests}
    fields = {name for name in OPTIONAL if bool(getattr(a.result, name)) != bool(getattr(b.result, name))}
    clean = {"clean"} if (a.clean is None) != (b.clean is None) else set()
    return {f"tests.{name}" for name in tests} | {f"result.{name}" for name in fields} | clean


def _comparable(record: RunRecord) -> Any:
    """Return a record as plain values of JSON, without times and descriptions; further test sets by name."""
    fields = {**record.to_dict(), "spec": identity_fields(record.spec)}
    source = record.read.source
    fields["read"] = {**fields["read"], "source": None if source is None else identity_fields(source)}
    fields["encoder"] = {**fields["encoder"], "license": ""}
    fields["tests"] = {test["name"]: test for test in fields.get("tests", ())}
    return json.loads(json.dumps({name: value for name, value in fields.items() if name not in TIMES}))


def _test(a: RunRecord, b: RunRecord) -> tuple[PairedTest, str]:
    """Return the test of both scores, and the verdict."""
    done = (_scored("A", a), _scored("B", b))
    if test_images(a) != test_images(b):
        raise ResultsError("the records have different test images; run both on the same test images")
    outcomes = [outcomes_of(record) for record in done]
    for name, record, found in zip("AB", done, outcomes, strict=True):
        if len(found) == 1 and abs(found[0].score() - record.result.score) > 1e-9:
            raise ResultsError(f"the score of {name} differs from the score of its outcomes; run it again")
    test = compare(*outcomes, same_images=done[0].result.same_images)
    return test, _verdict(*done, test)


def _scored(name: str, record: RunRecord) -> DoneRecord:
    if isinstance(record, DoneRecord):
        return record
    raise ResultsError(f"{name} has no score because its run failed; run it again")


def _verdict(a: DoneRecord, b: DoneRecord, test: PairedTest) -> str:
    scores = f"{100 * a.result.score:.2f} % and {100 * b.result.score:.2f} %"
    if test.num_only_a == test.num_only_b == 0 and test.difference == 0:
        return f"the scores and the outcome of every test image are the same: {scores}"
    if test.num_only_a is not None:
        scores += f"; only A is right on {test.num_only_a} test images, only B on {test.num_only_b}"
    p = f"p = {test.p_value:.2g} by {test.method}"
    if test.p_value < SIGNIFICANT:
        return f"the scores differ significantly: {scores}; {p}"
    return f"the scores do not differ significantly: {scores}; {p}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is not a container, with its path."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for i, part in enumerate(value):
            yield from _leaves(part, f"{path}[{i}]")
    else:
        yield path, value


def _is_in(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith((f"{prefix}.", f"{prefix}[")) for prefix in prefixes)


def _stage(path: str) -> str:
    known = {prefix: stage for stage, (prefixes, _) in STAGES.items() for prefix in prefixes}
    return known[max((prefix for prefix in known if _is_in(path, (prefix,))), key=len, default="status")]
