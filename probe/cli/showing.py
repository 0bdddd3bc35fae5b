"""`show`: the command that prints the details of one record."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from probe.cli.printing import print_facts, print_json, print_rows
from probe.errors import ResultsError, printable

if TYPE_CHECKING:
    from probe.records.schema import DoneRecord, RunRecord

MAX_CONFUSIONS = 10  # printed


def show_command(args: argparse.Namespace) -> int:
    """Print the facts of a record and the scores of its classes and further test sets, or write CSV files."""
    from probe.leaderboard import details
    from probe.records.record import read_record
    from probe.records.schema import DoneRecord

    record = read_record(args.record)
    if args.csv is not None or args.confusions is not None:
        return _write_csv(record, args)
    if args.json:
        print_json(details.collect_details(record))
        return 0
    print_facts(details.describe_record(record))
    if isinstance(record, DoneRecord):
        _print_classes(record, args.classes)
        _print_calibration(record)
        _print_further_tests(record)
    return 0


def _write_csv(record: RunRecord, args: argparse.Namespace) -> int:
    """Write the scores of the classes and the confusions of a record as CSV, and print the paths."""
    from probe.leaderboard import details
    from probe.records.record import write_text
    from probe.records.schema import DoneRecord

    rows = details.class_rows(record) if isinstance(record, DoneRecord) else []
    if not isinstance(record, DoneRecord) or not rows:
        raise ResultsError(f"{args.record} has no scores of classes; repeat the run with --rerun")
    if args.confusions is not None and details.score_of_classes(record) != details.RECALL:
        raise ResultsError(
            f"{args.record} has no confusions, because an image of {record.dataset} can show several classes; remove "
            "--confusions"
        )
    files = {}
    if args.csv is not None:
        files[args.csv] = details.classes_to_csv(rows)
    if args.confusions is not None:
        files[args.confusions] = details.confusions_to_csv(details.confusions(record))
    for path, text in files.items():
        write_text(Path(path), text)
    print_json(list(files)) if args.json else print("\n".join(map(printable, files)))
    return 0


def _print_classes(record: DoneRecord, most: int) -> None:
    """Print the scores of the worst classes, and the most frequent confusions."""
    from probe.leaderboard import details
    from probe.leaderboard.cards import METRIC_TITLES
    from probe.leaderboard.labels import NO_RECORD
    from probe.leaderboard.tables import interval_text
    from probe.stats.intervals import Interval

    rows = details.class_rows(record)
    if not rows:
        print(f"\n{details.NO_CLASSES}")
        return
    score, shown = details.score_of_classes(record), details.worst_first(rows)[:most]
    which = "all classes" if len(shown) == len(rows) else f"the {len(shown)} worst of {len(rows)} classes"
    print(f"\n{score.capitalize()} of {which}:\n")
    header = ["class", "images", f"{score}, %"]
    texts = [[row.name, str(row.images), NO_RECORD if row.score is None else f"{100 * row.score:.2f}"] for row in shown]
    if score == details.RECALL:
        header.append("95 % confidence interval")
        for text, row in zip(texts, shown, strict=True):
            around = None if row.low is None or row.high is None else Interval(row.low, row.high, "wilson")
            text.append(NO_RECORD if around is None else interval_text(around))
    print_rows(header, texts)
    metric = record.spec.dataset.metric
    if score == details.RECALL and metric not in ("accuracy", "mean_per_class"):
        print(f"\n{details.FIRST_CLASS.format(METRIC_TITLES.get(metric, metric))}")
    found = details.confusions(record)
    if found:
        print("\nMost frequent confusions:\n")
        texts = [
            [one.name, one.predicted_name, str(one.images), f"{100 * one.share:.2f}"] for one in found[:MAX_CONFUSIONS]
        ]
        print_rows(("class", "predicted", "images", "of the class, %"), texts)


def _print_calibration(record: DoneRecord) -> None:
    from probe.leaderboard import details

    calibration = record.result.calibration
    if calibration is None:
        return
    print("\nCalibration:\n")
    header = ("temperature scaling", "NLL", "Brier score", "ECE, %", "95 % confidence interval of ECE")
    print_rows(header, details.calibration_rows(calibration))
    for reason in calibration.reasons:
        print(f"\n{reason[:1].upper()}{reason[1:]}.")


def _print_further_tests(record: DoneRecord) -> None:
    from probe.leaderboard import shifts

    rows = shifts.shift_rows([record])
    if not rows:
        return
    print(f"\n{shifts.TITLE}:\n")
    print_rows(shifts.TEST_HEADER, [shifts.score_cells(row) for row in rows])
    for error in shifts.shifts_to_text(rows)[2]:
        print(f"\n{printable(error)}")
