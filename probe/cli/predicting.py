"""`predict`, which applies the head of a run to images, and `errors`, which lists the wrong predictions of a run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from probe.cli.printing import print_json, print_rows

if TYPE_CHECKING:
    from probe.records.schema import DoneRecord


def predict_command(args: argparse.Namespace) -> int:
    """Print the predictions of a head for images, or write them as CSV; return 1 if an image cannot be read."""
    from probe.datasets.images import MISSING, open_files
    from probe.datasets.opening import open_split
    from probe.errors import printable
    from probe.leaderboard.tables import rows_to_csv
    from probe.probes.head_files import load_head
    from probe.probes.prediction import count_unknown, find_class_mismatch, load_encoder_of, predict, share_right
    from probe.records.record import write_text
    from probe.stats.top_classes import TOP

    head = load_head(args.head)
    if args.dataset:
        images = open_split(args.dataset, args.split, data_dir=args.data_dir, offline=args.offline, skip_corrupt=True)
    else:
        images = open_files(args.images)
    encoder = load_encoder_of(
        head, model=args.model or None, device=args.device, weights_dir=args.weights_dir, offline=args.offline
    )
    found = predict(head, images, encoder, ids=images.ids, batch_size=args.batch_size)
    right, mismatch = None, ""
    if args.dataset:
        right, mismatch = share_right(head, images, found), find_class_mismatch(head, images)
    unknown = 0 if right is None else count_unknown(head, images, found)
    if args.json:
        print_json(
            {
                "head": asdict(head.info),
                "share_right": right,
                "mismatch": mismatch,
                "num_unknown": unknown,
                "predictions": [asdict(one) for one in found.images],
                "skipped": [{"image": image, "message": message} for image, message in found.skipped],
            }
        )
    elif args.out is not None:
        ranks = range(1, min(TOP, len(head.info.labels)) + 1)
        tops = [name for rank in ranks for name in (f"name_{rank}", f"probability_{rank}")]
        rows = [[one.image, one.label, *(value for pair in one.top for value in pair)] for one in found.images]
        write_text(Path(args.out), rows_to_csv(["image", "label", *tops], rows))
    else:
        print_rows(
            ("image", "prediction", "probability", "next"),
            [
                (
                    *(one.image, one.name, f"{one.probability:.3f}"),
                    ", ".join(f"{name} {share:.3f}" for name, share in one.top[1:]),
                )
                for one in found.images
            ],
        )
    if right is not None and not args.json:
        blank = "" if args.out is not None else "\n"
        print(f"{blank}{100 * right:.2f} % of {len(found.images)} images are right")
    if mismatch:
        print(f"probe: the share of right predictions is not shown: {printable(mismatch)}", file=sys.stderr)
    if unknown:
        print(f"probe: images of classes that the head does not know, which count as wrong: {unknown}", file=sys.stderr)
    for image, message in found.skipped:  # the log says why
        what = MISSING if MISSING in message else "cannot be read"
        print(f"probe: no prediction for {printable(image)}, which {what}", file=sys.stderr)
    return 1 if found.skipped else 0


def errors_command(args: argparse.Namespace) -> int:
    """Print the test images with the most confident wrong predictions, and write a page with thumbnails of them."""
    from probe.errors import ResultsError, printable
    from probe.paths import expand_home
    from probe.records.prediction_files import FOLDER, find_errors, predictions_path
    from probe.records.record import read_record, write_text

    path = Path(args.record)
    record = read_record(path)
    if record.error is not None:
        raise ResultsError(f"{path} is the record of a failed run ({record.error.type}), which has no predictions")
    test = args.test_set or ""
    if args.test_set is not None:
        _check_test(record, args.test_set)
    folder = (
        path.absolute().parent.parent.parent / FOLDER if args.predictions is None else expand_home(args.predictions)
    )
    errors = find_errors(predictions_path(path, folder, test), record, test=test, most=args.top)
    if args.json:
        print_json([asdict(error) for error in errors])
    elif not errors:
        print("no wrong predictions")
    else:
        parts = any(error.part for error in errors)
        header = ("image", "label", "prediction", "probability", *(("part",) if parts else ()))
        rows = [
            (printable(one.image), one.label, one.prediction, f"{one.probability:.3f}", *((one.part,) if parts else ()))
            for one in errors
        ]
        print_rows(header, rows)
    if args.html is not None:
        from probe.leaderboard.contact_sheets import make_contact_sheet

        sheet = make_contact_sheet(record, errors, test=test, data_dir=args.data_dir, offline=args.offline)
        write_text(Path(args.html), sheet)
    return 0


def _check_test(record: DoneRecord, name: str) -> None:
    """Check that a record has a score on a further test set.

    Raises:
        UnknownNameError: the record does not have this further test set.
        ResultsError: the record has no further test sets, or no score on this one.
    """
    from probe.errors import ResultsError
    from probe.names import unknown_name

    tests = {test.name: test for test in record.tests}
    if not tests:
        raise ResultsError(
            f"the record has no further test sets; remove --test-set, or repeat the run with --also-test {name}"
        )
    if name not in tests:
        raise unknown_name("further test set", name, tests)
    error = tests[name].error
    if error is not None:
        raise ResultsError(f"there are no predictions on {name}, which has no score: {error.message}")
