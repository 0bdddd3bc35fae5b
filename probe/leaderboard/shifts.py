"""Scores of probes on further test sets, next to their scores on the test split of the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probe.leaderboard.labels import NO_RECORD, short_names, solver_text
from probe.leaderboard.tables import interval_text, markdown_table, markdown_text, marks
from probe.records.schema import ConventionRecord, DoneRecord, FurtherTestRecord, RunRecord
from probe.specs import NO_SOLVER

ALL_CLASSES, OWN_CLASSES = "all classes", "own classes"  # conventions, see `probes.further_tests`
HEADER = (
    *("dataset", "model", "mode", "protocol", "precision", "solver", "test_set", "num_test", "num_classes"),
    *("convention", "metric", "score", "low", "high", "interval", "dataset_score", "difference", "status"),
)
TEST_HEADER = ("test set", "images", "predictions among", "score, %", "95 % confidence interval", "difference")
TITLE = "Further test sets"
INTRODUCTION = (
    "The same probes on further test images. Predictions are among all classes of the dataset, or among the classes "
    "that the test set shows. The difference is the score among all classes minus the score on the test split of the "
    "dataset, in points."
)


@dataclass(frozen=True)
class ShiftRow:
    """Score of a run on a further test set under one convention; `convention` and `score` are empty if it failed."""

    record: DoneRecord
    test: FurtherTestRecord
    convention: str
    score: ConventionRecord | None

    @property
    def difference(self) -> float | None:
        """Its score minus the score on the test split of the dataset, a fraction.

        It is None without a score, and among the classes of the test set, because the score on the test split is among
        all classes.
        """
        if self.score is None or self.convention != ALL_CLASSES:
            return None
        return self.score.score - self.record.result.score

    @property
    def status(self) -> str:
        """`ok`, `partial` or `failed`."""
        return "failed" if self.score is None else "ok" if self.test.is_whole else "partial"


def shift_rows(records: Iterable[RunRecord]) -> list[ShiftRow]:
    """Return a row for each further test set and convention of the records, in the order of the records."""
    rows = []
    for record in records:
        if not isinstance(record, DoneRecord):
            continue
        for test in record.tests:
            if test.all_classes is None:
                rows.append(ShiftRow(record, test, "", None))
            else:
                rows.append(ShiftRow(record, test, ALL_CLASSES, test.all_classes))
            if test.own_classes is not None:
                rows.append(ShiftRow(record, test, OWN_CLASSES, test.own_classes))
    return rows


@dataclass(frozen=True)
class ShiftPoint:
    """A point of a chart: the score of a record on a further test set, among all classes of the dataset."""

    record: DoneRecord
    test: str
    score: float


def shift_points(records: Iterable[RunRecord]) -> list[ShiftPoint]:
    """Return the points of the charts of further test sets. Scores on the test split are among all classes, too."""
    return [
        ShiftPoint(row.record, row.test.name, row.score.score)
        for row in shift_rows(records)
        if row.score is not None and row.convention == ALL_CLASSES
    ]


def shift_values(rows: Sequence[ShiftRow]) -> list[list[object]]:
    """Return the values under `HEADER`, scores as fractions and None for missing values."""
    found: list[list[object]] = []
    for row in rows:
        record, test, score = row.record, row.test, row.score
        solver = None if record.solver == NO_SOLVER else record.solver
        named = [record.dataset, record.model, record.mode, record.protocol, record.precision, solver, test.name]
        size = None if test.split is None else test.split.size
        around = score.interval if score is not None else None
        interval = (around.low, around.high, around.method) if around is not None else (None, None, None)
        found.append(
            [
                *(*named, size, test.num_classes, row.convention or None, test.metric or None),
                *(None if score is None else score.score, *interval, record.result.score, row.difference, row.status),
            ]
        )
    return found


def shifts_to_text(rows: Sequence[ShiftRow]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return header and rows to read, with scores in percent, and a sentence for each error."""
    datasets = short_names(row.record.dataset for row in rows)
    models = short_names(row.record.model for row in rows)
    header = ["dataset", "model", "mode", "precision", "protocol", "solver", *TEST_HEADER]
    lines = []
    for row in rows:
        record = row.record
        named = [datasets[record.dataset], models[record.model], record.mode, record.precision, record.protocol]
        lines.append([*named, solver_text(record.solver), *score_cells(row)])
    errors = {
        f"{row.test.name} of {datasets[row.record.dataset]} has no score: {row.test.error.message}"
        for row in rows
        if row.test.error is not None
    }
    return header, lines, sorted(errors)


def score_cells(row: ShiftRow) -> list[str]:
    """Return the cells under `TEST_HEADER` to read, with the score in percent."""
    score, test = row.score, row.test
    if score is None:
        return [test.name, NO_RECORD, NO_RECORD, "failed", NO_RECORD, NO_RECORD]
    size = "" if test.split is None else f"{test.split.size}"
    among = row.convention if row.convention == ALL_CLASSES else f"its {test.num_classes} classes"
    mark = marks(row.record) if test.is_whole or row.record.is_partial else f"{marks(row.record)} +"
    difference = NO_RECORD if row.difference is None else f"{100 * row.difference:+.2f}"
    return [test.name, size, among, f"{100 * score.score:.2f}{mark}", interval_text(score.interval), difference]


def shifts_to_markdown(records: Iterable[RunRecord]) -> str:
    """Return a section of a page to read; empty without further test sets."""
    header, lines, errors = shifts_to_text(shift_rows(records))
    if not lines:
        return ""
    remarks = "".join(f"\n{markdown_text(remark)}\n" for remark in errors)
    return f"## {TITLE}\n\n{INTRODUCTION}\n\n{markdown_table(header, lines)}{remarks}"
