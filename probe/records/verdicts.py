"""Verdict on a reproduction: the stages in which a run differs from its record, from causes to effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.errors import sentence
from probe.records.diff import Change, Difference, diff
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import KNN, LOGISTIC

IDENTICAL, WITHIN, CHANGED, NOT_RUN = "identical", "within tolerance", "changed", "not run"
NOT_ROUNDING = 0.05  # relative difference of features that is more than rounding; bf16 differs by 0.01 to 0.02
SHARE = 0.001  # share of the test images by which a score may differ; at least one image
_UNKNOWN = "the size of the difference is unknown because the record holds no values of the features"


@dataclass(frozen=True)
class Stage:
    """A stage of a run, and how it differs from the record; `moved` is empty if it does not differ.

    `note` is a remark that does not count as a difference, such as the reason why a further test set has no score.
    """

    name: str
    moved: str
    note: str = ""


@dataclass(frozen=True)
class Distance:
    """Difference between the sampled features of two records.

    `largest` is the largest difference, `size` the root mean square of the `num_values` values.
    """

    largest: float
    size: float
    num_values: int

    @property
    def share(self) -> float:
        """The largest difference divided by the root mean square."""
        return self.largest / max(self.size, 1e-30)

    def __str__(self) -> str:
        """Return a description for messages."""
        return f"the largest difference of {self.num_values} values is {self.largest:.2g}, their RMS is {self.size:.2g}"


@dataclass(frozen=True)
class Reproduction:
    """A record, the record of the same run repeated, and a verdict.

    Args:
        record: the original record.
        again: the new record, of a failure if the run failed; None if the run was not tried.
        verdict: `identical` (features, probe and score to the last bit), `within tolerance`, `changed` or `not run`.
        reason: explanation of the verdict, as a sentence.
        stages: environment, data, weights, execution, features, probe (C, and the numbers of the fits; or k, or the
            prompts), score and, if the record has any, further tests.
        images: the difference of the scores in test images: for the mean per class, the number of images that only one
            run gets right; for other metrics, the difference times the number of test images. None without a new score,
            or if the test images differ.
        tolerance: the largest `images` within tolerance.
    """

    record: DoneRecord
    again: RunRecord | None
    verdict: str
    reason: str
    stages: tuple[Stage, ...] = ()
    images: float | None = None
    tolerance: int = 0

    @property
    def passed(self) -> bool:
        """True if the score is confirmed."""
        return self.verdict in (IDENTICAL, WITHIN)

    @property
    def first_moved(self) -> str:
        """Name of the first stage after the environment that differs; empty if none does."""
        return next((stage.name for stage in self.stages if stage.moved and stage.name != "environment"), "")


def judge(record: DoneRecord, again: RunRecord, *, tolerance: int | None = None) -> Reproduction:
    """Compare a record with the record of the same run repeated."""
    if not isinstance(again, DoneRecord):
        return Reproduction(record, again, NOT_RUN, sentence(again.error.type, again.error.message))
    n = record.result.num_test
    allowed = max(1, math.ceil(SHARE * n)) if tolerance is None else tolerance
    difference = diff(record, again)
    stages = tuple(_stages(record, again, difference))
    if any(change.field.startswith("splits.test") for change in difference.changes):
        reason = "the test images differ, so the scores cannot be compared"
        return Reproduction(record, again, CHANGED, reason, stages, tolerance=allowed)
    images = _images_moved(record, again, difference)
    if not any(stage.moved for stage in stages if stage.name != "environment"):
        if record.features and record.result.outcomes:
            return Reproduction(record, again, IDENTICAL, difference.verdict, stages, 0.0, allowed)
        reason = "the record has no digests of features, or no outcomes of test images, to compare"
        return Reproduction(record, again, WITHIN, reason, stages, images, allowed)
    distance = feature_distance(record, again)
    if distance is not None and distance.share > NOT_ROUNDING:
        reason = f"the features differ by more than rounding: {distance}; the images or the code of the model changed"
        return Reproduction(record, again, CHANGED, reason, stages, images, allowed)
    verdict = WITHIN if images <= allowed + 1e-6 else CHANGED
    return Reproduction(record, again, verdict, difference.verdict, stages, images, allowed)


def feature_distance(record: DoneRecord, again: DoneRecord) -> Distance | None:
    """Return how much the features differ, by the values that both records hold, or None if they hold none."""
    pairs = [
        (before, again.features[split].sample[point])
        for split, kept in record.features.items()
        if split in again.features
        for point, before in kept.sample.items()
        if len(again.features[split].sample.get(point, ())) == len(before)
    ]
    if not pairs:
        return None
    before, after = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    return Distance(float(np.abs(after - before).max()), float(np.sqrt(np.mean(np.square(before)))), len(before))


def _images_moved(record: DoneRecord, again: DoneRecord, difference: Difference) -> float:
    if record.spec.dataset.metric == "mean_per_class" and difference.test is not None:
        # Images of small classes weigh more, so the difference of the scores does not give the number of images.
        return float((difference.test.num_only_a or 0) + (difference.test.num_only_b or 0))
    return abs(again.result.score - record.result.score) * record.result.num_test


def _stages(record: DoneRecord, again: DoneRecord, difference: Difference) -> Iterator[Stage]:
    """Yield every stage and how it differs, ignoring fields that only one of the records has."""
    changes = [c for c in difference.changes if c.a is not None and c.b is not None and not _depends_on_grid(c)]
    of_stage = {name: [c for c in changes if c.stage == name] for name in dict.fromkeys(c.stage for c in changes)}
    titles = {"environment": "environment", "data": "data", "model": "weights", "execution": "execution"}
    for name, title in titles.items():
        yield Stage(title, _words(of_stage.get(name, ())))
    distance = feature_distance(record, again)
    is_other = any(c.field.endswith(".sha256") for c in of_stage.get("features", ()))
    yield Stage("features", f"the bytes differ; {distance or _UNKNOWN}" if is_other else "")
    numbers = [c for name in ("probe", "fit") for c in of_stage.get(name, ())]
    chosen = [c for c in numbers if c.field in ("result.C", "result.k")]
    same = {LOGISTIC: "same C; ", KNN: "same k; "}.get(record.spec.protocol.method, "")
    yield Stage("probe", _words(chosen) if chosen else f"{same}different {_names(numbers)}" if numbers else "")
    scores = [c for c in of_stage.get("score", ()) if c.field == "result.score"]
    others = "same score, but different outcomes of test images" if of_stage.get("score") else ""
    yield Stage("score", _words(scores) or others)
    if record.tests:
        yield _further_tests(record, again)


def _further_tests(record: DoneRecord, again: DoneRecord) -> Stage:
    """Return how the scores on further test sets differ. Test sets that one of the runs did not score are left out."""
    scored = {test.name: test for test in record.tests if test.error is None}
    moved, notes = [], []
    for test in again.tests:
        before = scored.get(test.name)
        if test.error is not None:
            notes.append(f"{test.name} has no score: {test.error.message}")
            continue
        if before is None:
            continue
        pairs = [(before.all_classes, test.all_classes), (before.own_classes, test.own_classes)]
        scores = [(old.score, new.score) for old, new in pairs if old and new and old.score != new.score]
        if scores:
            moved.append(f"{test.name} {', '.join(f'{_short(old)} -> {_short(new)}' for old, new in scores)}")
        elif before.split != test.split:
            moved.append(f"{test.name} has the same scores, but different images")
        elif any(old != new for old, new in pairs):
            moved.append(f"{test.name} has the same scores, but different outcomes of its images")
    return Stage("further tests", "; ".join(moved), "; ".join(notes))


def _depends_on_grid(change: Change) -> bool:
    """Return True if a field depends on the other runs of the grid or on the version of the record."""
    return change.field.startswith(("parity", "schema_version")) or ".sample." in change.field


def _words(changes: Sequence[Change]) -> str:
    return "; ".join(f"{_last(c.field)} {_short(c.a)} -> {_short(c.b)}" for c in changes)


def _names(changes: Sequence[Change]) -> str:
    names = [_last(change.field) for change in changes]
    return ", ".join([*names[:4], f"{len(names) - 4} more"] if len(names) > 4 else names)


def _last(field: str) -> str:
    return ".".join(field.split(".")[1:]) or field


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
