"""`tables`, `leaderboard` and `card`: what is made from records."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probe import errors

if TYPE_CHECKING:
    from probe.records.schema import RunRecord


def tables(args: argparse.Namespace) -> int:
    """Write what is made from records, or check or compare it; 1 where something is stale."""
    from probe.leaderboard import derived

    results_dir = _results_dir(args)
    if args.compare:
        from probe.leaderboard.published import compare_markdown
        from probe.records.record import read_records

        page = compare_markdown(read_records(results_dir), args.compare)
        if not page:
            raise errors.ResultsError(
                f"no record in {results_dir} is of a dataset and model of the paper under {args.compare}; run one first"
            )
        print(page, end="")
        return 0
    if args.check:
        stale = derived.find_stale(results_dir)
        for path in stale.differing:
            print(f"probe: {_shown(path)} differs from the records; run python -m probe tables", file=sys.stderr)
        for path in stale.orphans:
            print(f"probe: {_shown(path)} belongs to a model without records; remove it", file=sys.stderr)
        return 1 if stale.differing or stale.orphans else 0
    for path in derived.write_derived(results_dir):
        print(_shown(path))
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Print the leaderboard, or write its page or plots."""
    from probe.leaderboard import exports
    from probe.leaderboard.sections import make_sections
    from probe.records.record import encode, read_records, write_bytes

    results_dir = _results_dir(args)
    records = [r for r in read_records(results_dir) if args.protocol is None or r.protocol in args.protocol]
    if not records:
        raise errors.ResultsError(f"no record in {results_dir} is of {errors.listed(args.protocol or ['any cell'])}")
    if args.plots is not None:
        from probe.leaderboard import plots

        for path in plots.write_plots(records, Path(args.plots)):
            print(_shown(path))
        return 0
    if args.html:
        path = _write_page(records, results_dir, args)
        print(_shown(path))
        return 0
    text = exports.FORMATS[args.format](make_sections(records))
    if args.out is not None:
        write_bytes(Path(args.out), text if isinstance(text, bytes) else encode(text))
    elif isinstance(text, bytes):
        raise errors.ResultsError("Parquet is no text; name a file with --out")
    else:
        print(text, end="")
    return 0


def _write_page(records: Sequence[RunRecord], results_dir: Path, args: argparse.Namespace) -> Path:
    from probe.leaderboard import page
    from probe.leaderboard.derived import PAGE
    from probe.leaderboard.sections import make_sections
    from probe.records.record import write_text

    if args.out is None and args.protocol is not None:
        raise errors.ResultsError(f"{results_dir / PAGE} is of all records; name another file with --out")
    path = Path(args.out) if args.out is not None else results_dir / PAGE
    folder = Path(os.path.relpath(results_dir, path.parent)).as_posix()
    write_text(path, page.render_page(records, make_sections(records), results_dir=folder))
    return path


def card(args: argparse.Namespace) -> int:
    """Print the `model-index` of a model card."""
    from probe.leaderboard.cards import model_index
    from probe.records.record import read_record

    print(model_index([read_record(path) for path in args.path]), end="")
    return 0


def _shown(path: Path) -> str:
    return errors.printable(str(path))


def _results_dir(args: argparse.Namespace) -> Path:
    from probe import paths

    results_dir = paths.results_dir(args.results_dir)
    if not os.path.isdir(results_dir / "records"):  # noqa: PTH112 - `Path.is_dir` raises if a name is too long
        raise errors.ResultsError(f"no records in {results_dir}; name the folder of a run with --results-dir")
    return results_dir
