"""Published scores to compare with: Radford et al. 2021 (arXiv 2103.00020), tables 10 and 11.

The files have percentages with one decimal, as printed. Table 10 agrees with one full transcription. A second source
confirms 13 scores of ViT-B/32, 6 of ViT-L/14 and 15 of ViT-L/14@336px, and none of the other models. Table 11 is not
compared with other sources.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from probe.datasets.prompts import SPECIFICATION, TEMPLATE_FROM
from probe.errors import listed
from probe.leaderboard.tables import footnotes, interval_text, markdown_table, percent
from probe.names import unknown_name
from probe.records.schema import DoneRecord, RunRecord

TABLES = {"linear-probe": "clip_paper_table10.csv", "zero-shot": "clip_paper_table11.csv"}
# Our protocol -> the table of the paper to compare it with.
TABLE_OF_PROTOCOL = {"clip-paper": "linear-probe", "zero-shot": "zero-shot"}
TITLES = {
    "clip-paper": "Linear probes, compared with table 10 of the paper",
    "zero-shot": "Zero-shot, compared with table 11 of the paper",
}
SECOND_SOURCE = ("ViT-B/32", "ViT-L/14", "ViT-L/14@336px")  # models of which it has some scores
ROUNDING = 0.0005  # of a printed score
MAX_NAMED = 50  # datasets in a note
PLAIN_IN_PAPER = (
    "voc2007",
)  # the only dataset for which the paper used the README's template alone, see openai/CLIP, data/prompts.md


@cache
def published_scores(table: str) -> dict[tuple[str, str], float]:
    """Return the scores of a table of the paper, in [0, 1], by model and dataset.

    Args:
        table: `linear-probe` (table 10) or `zero-shot` (table 11).

    Raises:
        UnknownNameError: no table has this name.
    """
    if table not in TABLES:
        raise unknown_name("published table", table, TABLES)
    with (Path(__file__).parent / TABLES[table]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["model"], dataset): float(cell) / 100
        for row in rows
        for dataset, cell in row.items()
        if dataset != "model" and cell
    }


@dataclass(frozen=True)
class Compared:
    """A record, the score that the paper has for its run, in [0, 1], and whether that is outside of our interval."""

    record: DoneRecord
    theirs: float
    is_outside: bool


def compare_with_published(records: Iterable[RunRecord], protocol: str = "clip-paper") -> list[Compared]:
    """Return the records of a protocol, dataset and model of the paper, with the paper's scores."""
    scores = published_scores(TABLE_OF_PROTOCOL[protocol])
    found = []
    for record in records:
        theirs = scores.get((record.model, record.dataset))
        if record.protocol == protocol and isinstance(record, DoneRecord) and theirs is not None:
            around = record.result.interval
            is_outside = around is not None and not around.low - ROUNDING <= theirs <= around.high + ROUNDING
            found.append(Compared(record, theirs, is_outside))
    return found


def compare_markdown(records: Iterable[RunRecord]) -> str:
    """Return tables of our scores and the published ones, in percent; empty without records to compare.

    A difference is our score minus the published one; `!` marks a difference that our interval does not explain.
    """
    records = list(records)
    tables = {protocol: _table(records, protocol) for protocol in TABLE_OF_PROTOCOL}
    if not tables["zero-shot"]:
        return tables["clip-paper"]
    return "\n".join(f"{TITLES[protocol]}:\n\n{table}" for protocol, table in tables.items() if table)


def _table(records: Iterable[RunRecord], protocol: str) -> str:
    """Return the table of one protocol with its notes; empty without records to compare."""
    rows: list[tuple[str, ...]] = []
    compared: list[DoneRecord] = []
    has_solver = protocol == "clip-paper"
    for found in compare_with_published(records, protocol):
        record, result = found.record, found.record.result
        difference = f"{100 * (result.score - found.theirs):+.2f}{' !' if found.is_outside else ''}"
        named = (record.dataset, record.model, record.mode, *([record.solver] if has_solver else []))
        rows.append((*named, percent(record), interval_text(result.interval), f"{100 * found.theirs:.1f}", difference))
        compared.append(record)
    if not rows:
        return ""
    columns = ("dataset", "model", "mode", *(["solver"] if has_solver else []))
    header = (*columns, "score, %", "95 % confidence interval", "published, %", "difference")
    notes = footnotes(compared)
    if any(row[-1].endswith("!") for row in rows):
        notes.append("! the published score is outside of the confidence interval")
    alone = sorted({record.model for record in compared} - set(SECOND_SOURCE))
    if alone and protocol == "clip-paper":
        notes.append(f"only one source has the published scores of {', '.join(alone)}")
    notes += _notes_on_prompts(compared)
    return markdown_table(header, rows) + "".join(f"\n{note}\n" for note in notes)


def _notes_on_prompts(records: Iterable[DoneRecord]) -> list[str]:
    """Return a sentence on the datasets whose records have a different template than the paper, if there are any."""
    origins = (TEMPLATE_FROM, SPECIFICATION)  # of templates that are not the paper's
    others = [r.dataset for r in records if r.prompts is not None and r.prompts.templates_from in origins]
    names = [name for name in dict.fromkeys(others) if name not in PLAIN_IN_PAPER]
    return [f"the paper used different templates for {listed(names, most=MAX_NAMED)}"] if names else []
