"""What two records differ in, in the order of causes, and whether their scores differ by more than chance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from probe.errors import ResultsError
from probe.records.record import outcomes_of, test_images
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import identity_fields
from probe.stats.paired import SIGNIFICANT, PairedTest, compare

# What comes first can move what comes after. A field belongs to the stage with the longest name that it begins with.
STAGES = {
    "environment": (("environment",), "other versions, hardware or threads round differently, in features and in fits"),
    "data": (
        ("spec.dataset", "splits", "read"),
        "other images, labels or splits are another experiment: scores of different test images do not compare",
    ),
    "model": (("spec.model", "encoder"), "other weights or preprocessing make other features"),
    "execution": (
        ("spec.jit", "spec.compiled", "spec.device", "spec.precision", "spec.batch_size"),
        "the same model run in another way: features differ by rounding, more in half precision",
    ),
    "features": (("features", "parity"), "not the same bytes: what stands above is why, or the code of the model is"),
    "probe": (("spec.protocol", "spec.solver"), "other rules, or another solver of the same problem"),
    "fit": (("result",), "how the probe came out of all that stands above; alone it is the code of the fit"),
    "score": (("result.score", "result.interval", "result.outcomes"), "what the test images say of it"),
    "record": (("status", "error", "schema_version"), "a cell that failed, or a record of another version"),
}
TIMES = ("created", "seconds", "extraction")  # which differ in every run, and say nothing


@dataclass(frozen=True)
class Change:
    """A field that differs, by its path in the record, and both values; None where it is missing."""

    stage: str
    field: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Difference:
    """What two records differ in.

    Args:
        changes: the fields, stage after stage.
        test: of the scores; None where they cannot be compared.
        verdict: what follows, in a sentence.
    """

    changes: tuple[Change, ...]
    test: PairedTest | None
    verdict: str

    def explains(self, stage: str) -> str:
        """What a difference in a stage can explain."""
        return STAGES[stage][1]


def diff(a: RunRecord, b: RunRecord) -> Difference:
    """Name every field that differs in two records, but for times and prose, and test whether their scores do."""
    left, right = (dict(_leaves(_comparable(record))) for record in (a, b))
    differing = [path for path in {**left, **right} if left.get(path) != right.get(path)]
    changes = [Change(_stage(path), path, left.get(path), right.get(path)) for path in differing]
    ordered = sorted(changes, key=lambda change: (list(STAGES).index(change.stage), change.field))
    try:
        test, verdict = _test(a, b)
    except ResultsError as err:
        return Difference(tuple(ordered), None, f"the scores cannot be compared: {err}")
    return Difference(tuple(ordered), test, verdict)


def _comparable(record: RunRecord) -> Any:
    """Return a record as JSON has it, without times and prose."""
    fields = {**record.to_dict(), "spec": identity_fields(record.spec)}
    source = record.read.source
    fields["read"] = {**fields["read"], "source": None if source is None else identity_fields(source)}
    fields["encoder"] = {**fields["encoder"], "license": ""}
    return json.loads(json.dumps({name: value for name, value in fields.items() if name not in TIMES}))


def _test(a: RunRecord, b: RunRecord) -> tuple[PairedTest, str]:
    """Return the test of both scores, and the verdict."""
    done = (_scored("A", a), _scored("B", b))
    if test_images(a) != test_images(b):
        raise ResultsError("they are of different test images; run both on the same ones")
    outcomes = [outcomes_of(record) for record in done]
    for name, record, found in zip("AB", done, outcomes, strict=True):
        if len(found) == 1 and abs(found[0].score() - record.result.score) > 1e-9:
            raise ResultsError(f"the score of {name} is not that of its outcomes; run it again")
    test = compare(*outcomes, same_images=done[0].result.same_images)
    return test, _verdict(*done, test)


def _scored(name: str, record: RunRecord) -> DoneRecord:
    if isinstance(record, DoneRecord):
        return record
    raise ResultsError(f"{name} has no score, as its run failed; run it again")


def _verdict(a: DoneRecord, b: DoneRecord, test: PairedTest) -> str:
    alone = ""
    if test.num_only_a is not None:
        alone = f"; {test.num_only_a} test images only A has right, {test.num_only_b} only B"
    scores = f"{100 * a.result.score:.2f} % and {100 * b.result.score:.2f} %{alone}"
    if test.num_only_a == test.num_only_b == 0 and test.difference == 0:
        return f"the scores are the same, image for image: {scores}"
    p = f"p = {test.p_value:.2g} by {test.method}"
    if test.p_value < SIGNIFICANT:
        return f"the scores differ by more than chance in the test images would: {scores}; {p}"
    return f"the scores do not differ by more than chance in the test images would: {scores}; {p}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that has no parts, with its path."""
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
