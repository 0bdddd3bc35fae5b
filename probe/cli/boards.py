"""`tables`, `leaderboard` and `card`: tables, pages and cards from records."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probe import errors
from probe.cli.printing import print_json

if TYPE_CHECKING:
    from probe.records.schema import RunRecord


def tables(args: argparse.Namespace) -> int:
    """Write all tables, check them, compare scores with the paper, or print all runs; return 1 if a check fails."""
    from probe.leaderboard import derived

    results_dir = find_results_dir(args)
    if args.compare:
        return _compare(args, results_dir)
    if args.format is not None:
        from probe.leaderboard import frames

        frame = frames.results_frame(results_dir)
        if frame.empty:
            raise errors.ResultsError(f"no records in {results_dir}; run one first, or name another folder")
        _print_or_write(frames.FRAME_FORMATS[args.format](frame), args)
        return 0
    if args.check:
        stale = derived.find_stale(results_dir)
        if args.json:
            print_json(
                {name: [str(one) for one in getattr(stale, name)] for name in ("differing", "orphans", "damaged")}
            )
        for path in stale.differing:
            print(f"probe: {_shown(path)} differs from the records; run `python -m probe tables`", file=sys.stderr)
        for path in stale.orphans:
            print(f"probe: {_shown(path)} has no matching record; remove it", file=sys.stderr)
        for fault in stale.damaged:
            print(f"probe: {fault}", file=sys.stderr)
        return 1 if stale.differing or stale.orphans or stale.damaged else 0
    _print_paths(derived.write_derived(results_dir), args)
    return 0


def _compare(args: argparse.Namespace, results_dir: Path) -> int:
    if args.compare != "clip-paper":
        return _compare_with_other(args, results_dir)
    from probe.leaderboard.labels import solver_value
    from probe.leaderboard.published import TABLE_OF_PROTOCOL, compare_markdown, compare_with_published
    from probe.records.record import read_records

    records = read_records(results_dir)
    page = compare_markdown(records)
    if not page:
        raise errors.ResultsError(
            f"no record in {results_dir} has a dataset and model of the paper and the protocol "
            f"{' or '.join(TABLE_OF_PROTOCOL)}; run one of these first"
        )
    if not args.json:
        print(page, end="")
        return 0
    compared = [
        {
            **{name: getattr(found.record, name) for name in ("dataset", "model", "mode", "protocol")},
            "solver": solver_value(found.record.solver),
            "score": found.record.result.score,
            "published": found.theirs,
            "is_outside": found.is_outside,
        }
        for protocol in TABLE_OF_PROTOCOL
        for found in compare_with_published(records, protocol)
    ]
    print_json(compared)
    return 0


def _compare_with_other(args: argparse.Namespace, results_dir: Path) -> int:
    from probe.leaderboard.labels import solver_value
    from probe.leaderboard.published.other_tables import compare_with_other, other_markdown, other_scores
    from probe.records.record import read_records

    records = read_records(results_dir)
    compared = compare_with_other(records, args.compare)
    if not compared:
        published = other_scores(args.compare)
        datasets = errors.listed(dict.fromkeys(one.dataset for one in published))
        protocols = errors.listed(dict.fromkeys(name for one in published for name in one.protocols))
        models = errors.listed(dict.fromkeys(one.model for one in published))
        raise errors.ResultsError(
            f"no record in {results_dir} can be compared with {args.compare}, which has scores of {models} on "
            f"{datasets}, for records of the protocols {protocols}; run one of these first"
        )
    if not args.json:
        print(other_markdown(records, args.compare), end="")
        return 0
    print_json(
        [
            {
                **{name: getattr(found.record, name) for name in ("dataset", "model", "mode", "protocol")},
                "solver": solver_value(found.record.solver),
                "test_set": found.test_set or None,
                "score": found.score,
                "published": found.published.score,
                "is_outside": found.is_outside,
            }
            for found in compared
        ]
    )
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Print the leaderboard, or write its page or plots."""
    from probe.leaderboard import exports
    from probe.leaderboard.sections import make_sections
    from probe.records.record import read_records

    results_dir = find_results_dir(args)
    records = [r for r in read_records(results_dir) if args.protocol is None or r.protocol in args.protocol]
    if not records:
        wanted = f" of {errors.listed(args.protocol)}" if args.protocol else ""
        raise errors.ResultsError(f"no records{wanted} in {results_dir}; run one first, or name another folder")
    if args.plots is not None:
        from probe.leaderboard import plots

        _print_paths(plots.write_plots(records, Path(args.plots)), args)
        return 0
    if args.html:
        _print_paths([_write_page(records, results_dir, args)], args)
        return 0
    options = {"with_calibration": True} if args.calibration else {}
    text = exports.FORMATS["json" if args.json else args.format](make_sections(records), **options)
    _print_or_write(text, args)
    return 0


def _print_or_write(text: str | bytes, args: argparse.Namespace) -> None:
    """Print a text, or write the text to the file that `--out` names."""
    from probe.records.record import encode, write_bytes

    if args.out is not None:
        write_bytes(Path(args.out), text if isinstance(text, bytes) else encode(text))
        _print_paths([Path(args.out)], args)
    else:
        assert isinstance(text, str)  # Parquet needs --out, see `arguments.check_conflicts`
        print(text, end="")


def _write_page(records: Sequence[RunRecord], results_dir: Path, args: argparse.Namespace) -> Path:
    from probe.leaderboard import page
    from probe.leaderboard.derived import PAGE
    from probe.leaderboard.sections import make_sections
    from probe.records.record import write_text

    path = Path(args.out) if args.out is not None else results_dir / PAGE
    folder = Path(os.path.relpath(results_dir, path.parent)).as_posix()
    write_text(path, page.render_page(records, make_sections(records), results_dir=folder))
    return path


def card(args: argparse.Namespace) -> int:
    """Print scores of one model for the Hugging Face hub or for Every Eval Ever."""
    from probe.leaderboard import cards, evaluation_logs
    from probe.records.record import read_record

    formats = {
        "model-index": cards.model_index,
        "eval-results": cards.eval_results,
        "every-eval-ever": evaluation_logs.evaluation_log,
    }
    text = formats[args.format]([read_record(path) for path in args.path])
    if args.json:
        import yaml

        text = f"{json.dumps(yaml.safe_load(text))}\n"
    print(text, end="")
    return 0


def _print_paths(paths: Sequence[Path], args: argparse.Namespace) -> None:
    if args.json:
        print_json([str(path) for path in paths])
        return
    for path in paths:
        print(_shown(path))


def _shown(path: Path) -> str:
    return errors.printable(str(path))


def find_results_dir(args: argparse.Namespace) -> Path:
    """Return the results folder that the options give.

    Raises:
        ResultsError: the folder has no records.
    """
    from probe import paths

    results_dir = paths.results_dir(args.results_dir)
    if not os.path.isdir(results_dir / "records"):  # noqa: PTH112 - `Path.is_dir` raises if a name is too long
        raise errors.ResultsError(f"no records in {results_dir}; name a results folder with --results-dir")
    return results_dir
