"""Clean scores of runs, next to their scores on all test images."""

from __future__ import annotations

from collections.abc import Iterable

from probe.leaderboard.labels import NO_RECORD, short_names, solver_text
from probe.leaderboard.tables import interval_text, markdown_table
from probe.records.schema import CleanRecord, DoneRecord, RunRecord

TITLE = "Clean scores"
INTRODUCTION = (
    "Scores without the test images that have the same pixels as a training or validation image. The difference is the "
    "clean score minus the score on all test images, in points."
)
HEADER = (
    *("images", "left out", "with a different label", "clean score, %", "95 % confidence interval", "difference"),
)


def clean_cells(record: DoneRecord, clean: CleanRecord) -> list[str]:
    """Return the cells under `HEADER` to read, with the score in percent."""
    numbers = [str(n) for n in (clean.num_test, clean.num_left_out, clean.num_differing)]
    if clean.score is None:
        return [*numbers, NO_RECORD, NO_RECORD, NO_RECORD]
    difference = f"{100 * (clean.score - record.result.score):+.2f}"
    return [*numbers, f"{100 * clean.score:.2f}", interval_text(clean.interval), difference]


def clean_text(clean: CleanRecord) -> str:
    """Return a clean score in one line."""
    without = f"{clean.num_left_out} test images left out, {clean.num_differing} of them with a different label"
    if clean.score is None:
        return f"none, because {clean.reason}; {without}"
    return f"{100 * clean.score:.2f} % ({interval_text(clean.interval)}); {without}"


def clean_to_markdown(records: Iterable[RunRecord]) -> str:
    """Return a section of a page to read; empty if no record has a clean score."""
    found = [
        (record, record.clean) for record in records if isinstance(record, DoneRecord) and record.clean is not None
    ]
    if not found:
        return ""
    datasets = short_names(record.dataset for record, _ in found)
    models = short_names(record.model for record, _ in found)
    header = ["dataset", "model", "mode", "precision", "protocol", "solver", *HEADER]
    rows = []
    for record, clean in found:
        named = [datasets[record.dataset], models[record.model], record.mode, record.precision, record.protocol]
        rows.append([*named, solver_text(record.solver), *clean_cells(record, clean)])
    reasons = {record.dataset: clean.reason for record, clean in found if clean.score is None}
    notes = "".join(f"\n{datasets[dataset]} has no clean score, because {why}.\n" for dataset, why in reasons.items())
    return f"## {TITLE}\n\n{INTRODUCTION}\n\n{markdown_table(header, rows)}{notes}"
