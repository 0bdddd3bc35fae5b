"""`fit`: the command that fits probes on supplied features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from probe.cli import grids
from probe.cli.arguments import UsageError
from probe.cli.printing import print_json
from probe.cli.running import refuse_unfinished, report

if TYPE_CHECKING:
    from probe.probes.supplied_records import SuppliedFit
    from probe.supplied import SuppliedResults


def fit_command(args: argparse.Namespace) -> int:
    """Fit probes on supplied features, print their scores, and write their records with --record."""
    from probe import paths, supplied
    from probe.leaderboard import derived
    from probe.probes.protocols import GROUPS, get_protocol

    protocols = [get_protocol(name) for name in grids.expand_groups(args.protocol or ["clip-paper"], GROUPS)]
    if args.save_head is not None and len(protocols) > 1:
        raise UsageError(f"--save-head writes one head, but there are {len(protocols)} protocols; name one of them")
    if args.about is not None and not args.record and args.save_head is None:
        raise UsageError("--about describes the features in a record or head; add --record or --save-head FILE")
    folder = paths.results_dir(args.results_dir) if args.record else None
    settings = supplied.SuppliedSettings(
        metric=args.metric or "",
        solver=args.solver,
        device=args.device,
        val_fraction=args.val_fraction,
        seed=args.seed or 0,
        head=None if args.save_head is None else Path(args.save_head),
        results_dir=folder,
        cache_dir=args.cache_dir,
    )
    results = supplied.fit_protocols(Path(args.file), protocols, args.about, settings)
    if folder is not None:
        derived.write_derived(folder)
        report(results.records, [record.spec for record in results.records], as_json=args.json)
    elif args.json:
        _print_json(results, args.file)
    else:
        _print_scores(results.fitted, results.metric)
    unfinished = [one for one in results.fitted if not one.result.converged]
    if args.strict:
        for one in unfinished:
            refuse_unfinished(f"{args.file} / {one.protocol.name}", one.result)
    return 1 if args.strict and unfinished else 0


def _print_json(results: SuppliedResults, file: str) -> None:
    from probe.environment import describe

    source = results.source
    made_by = {
        "file": file,
        "about": source.content.about,
        "features": source.compute_digests(),
        "val_fraction": source.val_fraction,
        "seed": source.seed,
        "environment": asdict(describe(results.device)),
    }
    print_json(
        [
            {
                **made_by,
                "device": one.device,
                "protocol": one.protocol.name,
                "rules": asdict(one.protocol),
                **asdict(one.result.to_record()),
            }
            for one in results.fitted
        ]
    )


def _print_scores(fitted: Sequence[SuppliedFit], metric: str) -> None:
    from probe.leaderboard import tables

    rows, methods = [], [one.protocol.method for one in fitted]
    results = [one.result for one in fitted]
    for one in fitted:
        mark = tables.fit_marks(converged=one.result.converged, choice_converged=one.result.choice_converged)
        score = f"{100 * one.result.score:.2f}{mark}"
        around = tables.interval_text(one.result.interval)
        cells = tables.fit_cells(one.result.to_record(), one.protocol.method, one.solver)
        rows.append((one.protocol.name, metric, score, around, *cells, str(one.result.num_test)))
    named = ("protocol", "metric", "score, %", "95 % confidence interval")
    print(tables.markdown_table((*named, *tables.fit_header(methods), "test images"), rows), end="")
    if not all(result.converged for result in results):
        print(f"\n{tables.FINAL_NOTE}")
    if not all(result.choice_converged for result in results):
        print(f"\n{tables.CHOICE_NOTE}")
    for note in tables.varies_notes((one.protocol.method, one.result.to_record()) for one in fitted):
        print(f"\n{note}")
