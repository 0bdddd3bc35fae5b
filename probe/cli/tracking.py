"""`log`: the command that logs existing records to experiment trackers."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from probe.cli.boards import find_results_dir
from probe.cli.printing import print_json, print_rows
from probe.errors import ResultsError


def log_command(args: argparse.Namespace) -> int:
    """Log all records of a results folder and print the numbers of records; return 1 if a tracker failed."""
    from probe.records.record import read_records
    from probe.tracking.trackers import open_trackers

    results_dir = find_results_dir(args)
    trackers = open_trackers(args.tracker, offline=args.offline, results_dir=results_dir)
    records = read_records(results_dir)
    if not records:
        raise ResultsError(f"no records in {results_dir}; run one first, or name another folder")
    with redirect_stdout(sys.stderr):  # libraries print messages to stdout, which is for results
        for record in records:
            trackers.log(record)
    rows = [
        (name, trackers.num_logged[name], trackers.num_skipped[name], place)
        for name, place in trackers.destinations().items()
    ]
    if args.json:
        names = ("tracker", "num_logged", "num_skipped", "destination")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        print_rows(("tracker", "logged", "already there", "destination"), rows)
    return 1 if trackers.failed else 0
