"""`log`: the command that logs existing records to experiment trackers."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from probe.cli.boards import find_results_dir
from probe.cli.printing import print_json, print_rows
from probe.errors import ResultsError


def log_command(args: argparse.Namespace) -> int:
    """Log all records of a results folder and print how many; return 1 if a tracker failed."""
    from probe.records.record import read_records
    from probe.tracking.trackers import open_trackers

    results_dir = find_results_dir(args)
    trackers = open_trackers(args.tracker, offline=args.offline)
    records = read_records(results_dir)
    if not records:
        raise ResultsError(f"no records in {results_dir}; run one first, or name another folder")
    with redirect_stdout(sys.stderr):  # libraries print messages to stdout, which is for results
        for record in records:
            trackers.log(record)
    rows = [(name, trackers.num_logged[name], place) for name, place in trackers.destinations().items()]
    header = ("tracker", "records", "destination")
    print_json([dict(zip(header, row, strict=True)) for row in rows]) if args.json else print_rows(header, rows)
    return 1 if trackers.failed else 0
