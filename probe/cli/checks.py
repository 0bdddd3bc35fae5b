"""`parity`, `diff` and `reproduce`: comparisons of modes and of runs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from probe import errors
from probe.cli.printing import print_json

if TYPE_CHECKING:
    from probe.records.diff import Change
    from probe.records.verdicts import Reproduction

logger = logging.getLogger(__name__)


def parity_command(args: argparse.Namespace) -> int:
    """Compare the modes of a model; return 1 if they differ by more than the tolerance."""
    from probe.comparison import parity
    from probe.leaderboard import tables

    comparison = parity(
        args.model,
        args.dataset,
        protocol=args.protocol,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        data_dir=args.data_dir,
        weights_dir=args.weights_dir,
        cache_dir=args.cache_dir,
        offline=args.offline,
    )
    if args.json:
        verdict = {"verdict": comparison.verdict, "within_tolerance": comparison.within_tolerance}
        print_json(asdict(comparison) | verdict)
    else:
        header = ("eager and JIT", "largest difference", "mean difference", "smallest cosine")
        rows = [
            (f"features, {point}", f"{d.max_abs:.2g}", f"{d.mean_abs:.2g}", f"{d.min_cosine:.8f}")
            for point, d in comparison.features.items()
        ]
        names = ("softmax over texts", "softmax over images")
        rows += [(name, f"{value:.2g}", "", "") for name, value in zip(names, comparison.softmax, strict=True)]
        print(tables.markdown_table(header, rows))
        what = errors.printable(f"{comparison.model} on {comparison.dataset}")
        print(f"{what}, {comparison.device}, {comparison.precision}: {comparison.num_images} images")
        print(f"flipped predictions: {comparison.predictions_flipped} of {comparison.num_test} ({comparison.protocol})")
        eager, jit = (f"{100 * score:.2f} %" for score in comparison.scores)
        unfinished = "" if comparison.converged else "; the fit did not converge"
        print(f"scores: {eager} on eager features, {jit} on JIT features; p = {comparison.p_value:.2g}{unfinished}")
        for reason in comparison.reasons:
            print(f"- {reason}")
        print(f"verdict: {comparison.verdict}")
    return 0 if comparison.within_tolerance else 1


def diff_command(args: argparse.Namespace) -> int:
    """Print the fields in which two records differ, and the result of a test of their scores."""
    from probe.leaderboard import tables
    from probe.records.diff import diff
    from probe.records.record import read_record

    difference = diff(read_record(args.a), read_record(args.b))
    if args.json:
        print_json(asdict(difference))
        return 0
    rows = _differing(difference.changes)
    if rows:
        print(tables.markdown_table(("stage", "field", "A", "B"), rows))
        for stage in dict.fromkeys(row[0] for row in rows):
            print(f"{stage}: {difference.explains(stage)}")
        print()
    if difference.note:
        print(difference.note)
    print(errors.printable(difference.verdict))
    return 0


def _differing(changes: Sequence[Change]) -> list[tuple[str, str, str, str]]:
    """Return a row for each field that differs, and one row for each list, such as the values of C of a sweep.

    Packed outcomes of test images are left out: the verdict counts them.
    """
    rows = []
    for (stage, field), group in groupby(changes, key=lambda change: (change.stage, change.field.partition("[")[0])):
        own = list(group)
        if field.endswith(".outcomes"):
            continue
        if own[0].field != field:
            rows.append((stage, f"{field} ({len(own)} values)", "see --json", "see --json"))
            continue
        texts = [[_short(value, digits) for value in (own[0].a, own[0].b)] for digits in (6, 17)]
        rows.append((stage, field, *(texts[0] if texts[0][0] != texts[0][1] else texts[1])))
    return rows


def _short(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def reproduce_command(args: argparse.Namespace) -> int:
    """Run records again; return 1 unless every score is confirmed."""
    from probe.records.verdicts import NOT_RUN
    from probe.reproduction import estimate_seconds, find_records, reproduce_all
    from probe.settings import Settings

    located = [find_records(path) for path in args.path]
    records = [record for some, _ in located for record in some]
    unread = [fault for _, faults in located for fault in faults]
    for fault in unread:
        print(f"probe: {fault}", file=sys.stderr)
    limit = 60 * args.max_minutes if args.max_minutes else float("inf")
    wanted = [record for record in records if estimate_seconds(record, records) <= limit]
    settings = Settings(
        data_dir=args.data_dir,
        weights_dir=args.weights_dir,
        cache_dir=args.cache_dir,
        results_dir=args.results_dir,
        offline=args.offline,
    )
    done: list[Reproduction] = []
    try:
        for one in reproduce_all(
            wanted,
            tolerance=args.tolerance,
            device=args.device,
            features=args.features,
            settings=settings,
            allow_code=args.allow_code,
        ):
            done.append(one)
            logger.info("%s: %s", one.record.spec, one.verdict)
    finally:  # also after Ctrl-C
        if done and args.json:
            print_json([_plain(one) for one in done])
        elif done:
            print(_reproduced(done) if len(done) > 1 else _stages_page(done[0]), end="")
        passed = sum(one.passed for one in done)
        if len(records) + len(unread) > 1:
            print(
                f"probe: {passed} of {len(done)} confirmed; skipped: {len(unread)} unreadable, "
                f"{sum(1 for record in records if record.error)} failed, "
                f"{len(records) - len(wanted)} longer than --max-minutes",
                file=sys.stderr,
            )
    for one in done:
        if one.verdict == NOT_RUN:
            names = errors.shorten(str(one.record.spec), 200)
            print(f"probe: {errors.brief(f'{names}: {one.reason}')}", file=sys.stderr)
    if not done:
        raise errors.ResultsError("no record was run again; give records that have a score, or raise --max-minutes")
    return 0 if passed == len(done) and not unread else 1


def _plain(one: Reproduction) -> dict[str, Any]:
    """Return a reproduction as JSON values."""
    again = None if one.again is None else one.again.to_dict()
    return {**asdict(one), "record": one.record.to_dict(), "again": again}


def _reproduced(done: Sequence[Reproduction]) -> str:
    from probe.leaderboard import tables
    from probe.leaderboard.labels import solver_text

    header = (
        "dataset",
        "model",
        "mode",
        "protocol",
        "solver",
        "record, %",
        "again, %",
        "images",
        "differs in",
        "verdict",
    )
    rows = [
        (
            *(one.record.dataset, one.record.model, one.record.mode, one.record.protocol),
            solver_text(one.record.solver),
            tables.percent(one.record),
            tables.percent(one.again) if one.again is not None and one.again.result else "",
            "" if one.images is None else f"{one.images:.3g} of {one.tolerance}",
            one.first_moved,
            one.verdict,
        )
        for one in done
    ]
    return tables.markdown_table(header, rows)


def _stages_page(one: Reproduction) -> str:
    from probe.leaderboard import tables

    rows = [
        (
            stage.name,
            "differs" if stage.moved else "not compared" if stage.note else "same",
            "; ".join(filter(None, (stage.moved, stage.note))),
        )
        for stage in one.stages
    ]
    lines = [tables.markdown_table(("stage", "state", "record -> again"), rows)] if rows else []
    if one.images is not None:
        lines.append(f"the scores differ by {one.images:.3g} test images; the tolerance is {one.tolerance}\n")
    return "\n".join([*lines, f"{errors.printable(one.reason)}\nverdict: {one.verdict}\n"])
