"""Published scores other than the tables of the CLIP paper: its figure 14, LAION's linear probes, and DINOv2's README.

The file has percentages with one decimal. No entry is read from a figure. Protocols differ from ours, so each table has
a sentence on the differences, which is printed with it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from probe.leaderboard.labels import solver_text
from probe.leaderboard.published import ROUNDING
from probe.leaderboard.shifts import ALL_CLASSES, OWN_CLASSES
from probe.leaderboard.tables import footnotes, interval_text, markdown_table
from probe.names import unknown_name
from probe.records.schema import DoneRecord, IntervalRecord, RunRecord


@dataclass(frozen=True)
class OtherTable:
    """A published table.

    Args:
        title: title of the comparison.
        source: origin of the numbers.
        differences: sentences on how the protocol differs from the protocols that it is compared with.
    """

    title: str
    source: str
    differences: str


OTHER_TABLES = {
    "figure-14": OtherTable(
        "ImageNet and further test sets, compared with figure 14 of the CLIP paper",
        "Radford et al. 2021, section 3.3",
        "The paper gives the scores of its probe on further test sets as differences from zero-shot. Here, the "
        "differences are added to the zero-shot scores. The paper does not say whether predictions are among all "
        "classes or among the classes of the test set, so both are printed. Its zero-shot score on ImageNet-V2, "
        "70.1 %, is left out, because the paper does not name the variant.",
    ),
    "laion": OtherTable(
        "Linear probes, compared with LAION's",
        "LAION-AI/CLIP_benchmark, probe_benchmark/scaling_experiment_data2.json; names of checkpoints from "
        "probe_benchmark/build_df_scaling_experiments.py",
        "LAION trains a layer with AdamW on L2-normalised projected features, and each score is the best of 9 settings "
        "on the test split, so it is too high by an unknown amount. Our C is chosen on a validation split. Two models "
        "of LAION-2B are left out, because several checkpoints have their names: ViT-B-32 and ViT-g-14.",
    ),
    "dinov2": OtherTable(
        "k-NN and linear probes, compared with DINOv2's",
        "facebookresearch/dinov2, README",
        "Our k is chosen on a validation split, whose images then vote, too. DINOv2's linear scores are not from its "
        "logistic regression: dinov2/eval/linear.py trains layers by SGD on the last 1 or 4 blocks, and by default "
        "reports the best layer on the split that it was chosen on.",
    ),
}


@dataclass(frozen=True)
class OtherScore:
    """A published score; `test_set` is empty for the test split of the dataset. Scores are in [0, 1]."""

    table: str
    model: str
    dataset: str
    test_set: str
    protocols: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class ComparedScore:
    """Score of a record with a published score to compare it with.

    Args:
        record: the record.
        published: the published score.
        test_set: name of the further test set with its convention; empty for the test split of the dataset.
        score: our score, in [0, 1].
        interval: its confidence interval; None if the record has none.
    """

    record: DoneRecord
    published: OtherScore
    test_set: str
    score: float
    interval: IntervalRecord | None

    @property
    def is_outside(self) -> bool:
        """True if the published score is outside of our interval."""
        around, theirs = self.interval, self.published.score
        return around is not None and not around.low - ROUNDING <= theirs <= around.high + ROUNDING


@cache
def other_scores(table: str) -> tuple[OtherScore, ...]:
    """Return the scores of a published table, a name of `OTHER_TABLES`.

    Raises:
        UnknownNameError: no table has this name.
    """
    if table not in OTHER_TABLES:
        raise unknown_name("published table", table, OTHER_TABLES)
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8") as file:
        return tuple(
            OtherScore(
                **{name: row[name] for name in ("table", "model", "dataset", "test_set")},
                protocols=tuple(row["protocols"].split()),
                score=float(row["score"]) / 100,
            )
            for row in csv.DictReader(file)
            if row["table"] == table
        )


def compare_with_other(records: Iterable[RunRecord], table: str) -> list[ComparedScore]:
    """Return our scores with the scores of a published table for the same model, dataset and kind of protocol."""
    done = [record for record in records if isinstance(record, DoneRecord)]
    return [
        found
        for published in other_scores(table)
        for record in done
        if (record.model, record.dataset) == (published.model, published.dataset)
        and record.protocol in published.protocols
        for found in _scores_of(record, published)
    ]


def _scores_of(record: DoneRecord, published: OtherScore) -> list[ComparedScore]:
    """Return the score of a record, or its scores on a further test set under both conventions."""
    if not published.test_set:
        return [ComparedScore(record, published, "", record.result.score, record.result.interval)]
    return [
        ComparedScore(record, published, f"{test.name}, {name}", convention.score, convention.interval)
        for test in record.tests
        if test.name == published.test_set
        for name, convention in ((ALL_CLASSES, test.all_classes), (OWN_CLASSES, test.own_classes))
        if convention is not None
    ]


def other_markdown(records: Iterable[RunRecord], table: str) -> str:
    """Return the table of our scores next to the published scores, in percent; empty without scores to compare."""
    compared = compare_with_other(records, table)
    if not compared:
        return ""
    header = (
        *("dataset", "test set", "model", "mode", "protocol", "solver", "score, %", "95 % confidence interval"),
        *("published, %", "difference"),
    )
    rows = [
        (
            *(found.record.dataset, found.test_set, found.record.model, found.record.mode, found.record.protocol),
            solver_text(found.record.solver),
            f"{100 * found.score:.2f}",
            interval_text(found.interval),
            f"{100 * found.published.score:.1f}",
            f"{100 * (found.score - found.published.score):+.2f}{' !' if found.is_outside else ''}",
        )
        for found in compared
    ]
    about = OTHER_TABLES[table]
    notes = [about.differences, f"Source: {about.source}.", *footnotes([found.record for found in compared])]
    if any(found.is_outside for found in compared):
        notes.append("! the published score is outside of the confidence interval")
    return f"{about.title}:\n\n{markdown_table(header, rows)}" + "".join(f"\n{note}\n" for note in notes)
