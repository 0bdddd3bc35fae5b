"""`tables`, `leaderboard` and `card`: what is made from records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from probe import errors


def tables(args: argparse.Namespace) -> int:
    """Write what is made from records, or check or compare it; 1 where something is stale."""
    from probe import derived

    results_dir = _results_dir(args)
    if args.compare:
        from probe.published import compare_markdown
        from probe.records import read_records

        page = compare_markdown(read_records(results_dir), args.compare)
        if not page:
            raise errors.ResultsError(
                f"no record in {results_dir} is of a dataset and model of the paper under {args.compare}; run one first"
            )
        print(page, end="")
        return 0
    if args.check:
        stale = derived.find_stale(results_dir)
        for path in stale:
            print(
                f"probe: {path} differs from the records; run python -m probe tables, and remove it if it stays",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path in derived.write_derived(results_dir):
        print(path)
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Print the leaderboard, or write its page or plots."""
    from probe import derived, exports, leaderboard
    from probe.records import read_records, write_bytes

    results_dir = _results_dir(args)
    records = [r for r in read_records(results_dir) if args.protocol is None or r.protocol in args.protocol]
    if not records:
        raise errors.ResultsError(f"no record in {results_dir} is of {', '.join(args.protocol or ['any cell'])}")
    if args.html is not None:
        from probe import report

        path = Path(args.html) if args.html else results_dir / derived.PAGE
        write_bytes(path, report.render(records, leaderboard.sections(records)).encode())
        print(path)
    if args.plots is not None:
        from probe import plots

        for path in plots.write_plots(records, Path(args.plots)):
            print(path)
    if args.html is not None or args.plots is not None:
        return 0
    text = exports.FORMATS[args.format](leaderboard.sections(records))
    data = text if isinstance(text, bytes) else text.encode()
    if args.out is not None:
        write_bytes(Path(args.out), data)
    elif args.format == "parquet":
        raise errors.ResultsError("Parquet is no text; name a file with --out")
    else:
        print(data.decode(), end="")
    return 0


def card(args: argparse.Namespace) -> int:
    """Print the `model-index` of a model card."""
    from probe.model_cards import model_index
    from probe.records import read_record

    print(model_index([read_record(path) for path in args.path]), end="")
    return 0


def _results_dir(args: argparse.Namespace) -> Path:
    from probe import paths

    results_dir = paths.results_dir(args.results_dir)
    if not (results_dir / "records").is_dir():
        raise errors.ResultsError(f"no records in {results_dir}; name the folder of a run with --results-dir")
    return results_dir
