"""What came of running a record again: the stages that came out otherwise, in the order of causes, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.errors import sentence
from probe.records.diff import Change, Difference, diff
from probe.records.schema import DoneRecord, RunRecord

IDENTICAL, WITHIN, CHANGED, NOT_RUN = "identical", "within tolerance", "changed", "not run"
# Of their size, by which features of the same images and weights differ at most: those of bf16, by a hundredth or two.
NOT_ROUNDING = 0.05
SHARE = 0.001  # of the test images, by which a score may move; at least one image
_UNKNOWN = "the record does not say by how much, as it keeps none of their values"


@dataclass(frozen=True)
class Stage:
    """A stage of a run, in the order of causes, and what is other than the record says; empty where nothing is."""

    name: str
    moved: str


@dataclass(frozen=True)
class Distance:
    """The largest difference of some values of features, their size (root mean square), and how many they are."""

    largest: float
    size: float
    num_values: int

    @property
    def share(self) -> float:
        """The difference over the size."""
        return self.largest / max(self.size, 1e-30)

    def __str__(self) -> str:
        """In words."""
        return f"largest difference {self.largest:.2g} of {self.num_values} values kept, whose size is {self.size:.2g}"


@dataclass(frozen=True)
class Reproduction:
    """A record, and what came of running it again.

    Args:
        record: as it was.
        again: the new one; a failure where the cell could not be run; None where it was not tried.
        verdict: `identical` (features, probe and score, to the last bit), `within tolerance`, `changed` or `not run`.
        reason: what the verdict rests on, in a sentence.
        stages: environment, data, weights, execution, features, probe (C, and the numbers of the fits) and score.
        images: by how many test images the scores differ: the difference times their number, which for ROC AUC and
            average precision is as many as would move an accuracy so far; of class means the images that are right in
            one run alone. None where there is no new score, or it is of other images.
        tolerance: how many they may.
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
        """Whether the score is confirmed."""
        return self.verdict in (IDENTICAL, WITHIN)

    @property
    def first_moved(self) -> str:
        """The first stage after the environment that came out otherwise; empty where none did."""
        return next((stage.name for stage in self.stages if stage.moved and stage.name != "environment"), "")


def judge(record: DoneRecord, again: RunRecord, *, tolerance: int | None = None) -> Reproduction:
    """Compare a record with that of another run of its cell.

    Args:
        record: as it was, with a score.
        again: the other.
        tolerance: see `reproduce`.
    """
    if not isinstance(again, DoneRecord):
        return Reproduction(record, again, NOT_RUN, sentence(again.error.type, again.error.message))
    n = record.result.num_test
    allowed = max(1, math.ceil(SHARE * n)) if tolerance is None else tolerance
    found = diff(record, again)
    stages = tuple(_stages(record, again, found))
    if any(change.field.startswith("splits.test") for change in found.changes):
        reason = "the test images are others, which no tolerance can judge"
        return Reproduction(record, again, CHANGED, reason, stages, tolerance=allowed)
    images = _images_moved(record, again, found)
    if not any(stage.moved for stage in stages if stage.name != "environment"):
        if record.features and record.result.outcomes:
            return Reproduction(record, again, IDENTICAL, found.verdict, stages, 0.0, allowed)
        reason = "the record keeps no digests of features, or no outcomes of test images, that could be compared"
        return Reproduction(record, again, WITHIN, reason, stages, images, allowed)
    distance = feature_distance(record, again)
    if distance is not None and distance.share > NOT_ROUNDING:
        reason = f"{distance}, which is no rounding: other pixels, or other code of the model"
        return Reproduction(record, again, CHANGED, reason, stages, images, allowed)
    verdict = WITHIN if images <= allowed + 1e-6 else CHANGED
    return Reproduction(record, again, verdict, found.verdict, stages, images, allowed)


def feature_distance(record: DoneRecord, again: DoneRecord) -> Distance | None:
    """How far features are from those of a record, by the values that both keep; None where there are none."""
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


def _images_moved(record: DoneRecord, again: DoneRecord, found: Difference) -> float:
    if record.spec.dataset.metric == "mean_per_class" and found.test is not None:
        return float((found.test.num_only_a or 0) + (found.test.num_only_b or 0))  # of small classes one weighs more
    return abs(again.result.score - record.result.score) * record.result.num_test


def _stages(record: DoneRecord, again: DoneRecord, found: Difference) -> Iterator[Stage]:
    """What differs in what both records have; how the record came to be in another way than the first is not."""
    changes = [c for c in found.changes if c.a is not None and c.b is not None and not _is_by_company(c)]
    of_stage = {name: [c for c in changes if c.stage == name] for name in dict.fromkeys(c.stage for c in changes)}
    titles = {"environment": "environment", "data": "data", "model": "weights", "execution": "execution"}
    for name, title in titles.items():
        yield Stage(title, _words(of_stage.get(name, ())))
    distance = feature_distance(record, again)
    is_other = any(c.field.endswith(".sha256") for c in of_stage.get("features", ()))
    yield Stage("features", f"not the same bytes; {distance or _UNKNOWN}" if is_other else "")
    numbers = [c for name in ("probe", "fit") for c in of_stage.get(name, ())]
    chosen = [c for c in numbers if c.field == "result.C"]
    yield Stage(
        "probe",
        _words(chosen) if chosen else f"C the same; other numbers of the fits: {_names(numbers)}" if numbers else "",
    )
    scores = [c for c in of_stage.get("score", ()) if c.field == "result.score"]
    others = "the same, of other images" if of_stage.get("score") else ""
    yield Stage("score", _words(scores) or others)


def _is_by_company(change: Change) -> bool:
    """Whether it is so only because other cells ran beside, or because one record is of an earlier version."""
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
