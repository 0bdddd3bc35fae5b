"""`fit`: the command that fits probes on supplied features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from probe.cli import grids
from probe.cli.arguments import UsageError
from probe.cli.printing import print_json
from probe.cli.running import refuse_unfinished, report

if TYPE_CHECKING:
    from probe.probes.cached_fits import FitCache
    from probe.specs import Protocol
    from probe.supplied import SuppliedFeatures, SuppliedFit


def fit_command(args: argparse.Namespace) -> int:
    """Fit probes on supplied features, print their scores, and write their records with --record."""
    from probe import paths, supplied
    from probe.features.store import FITS
    from probe.leaderboard import derived
    from probe.probes.cached_fits import FitCache
    from probe.probes.heads import check_single_fit
    from probe.probes.protocols import GROUPS, get_protocol
    from probe.records.record import check_writable, write_record

    protocols = [get_protocol(name) for name in grids.expand_groups(args.protocol or ["clip-paper"], GROUPS)]
    if args.save_head is not None and len(protocols) > 1:
        raise UsageError(f"--save-head writes one head, but there are {len(protocols)} protocols; name one of them")
    if args.about is not None and not args.record:
        raise UsageError("--about describes the features in a record; add --record")
    source = supplied.open_features(Path(args.file), val_fraction=args.val_fraction, seed=args.seed or 0)
    if args.save_head is not None:
        check_single_fit(protocols[0], len(source.folds))
    fit_cache = FitCache(paths.cache_dir(args.cache_dir) / FITS)
    if args.record:
        folder = paths.results_dir(args.results_dir)
        check_writable(folder)
        about = supplied.find_about(args.about, source)
        about = replace(about, metric=args.metric or about.metric)
        fitted = _fit(args, source, protocols, supplied.find_metric(about), fit_cache)
        records = [supplied.make_record(source, about, one) for one in fitted]
        for record in records:
            write_record(record, folder)
        derived.write_derived(folder)
        report(records, [record.spec for record in records], as_json=args.json)
    else:
        metric = args.metric or str(source.content.about.get("metric", "accuracy"))
        fitted = _fit(args, source, protocols, metric, fit_cache)
        _print_json(args, source, fitted) if args.json else _print_scores(fitted, metric)
    fit_cache.clear()
    unfinished = [one for one in fitted if not one.result.converged]
    if args.strict:
        for one in unfinished:
            refuse_unfinished(f"{args.file} / {one.protocol.name}", one.result)
    return 1 if args.strict and unfinished else 0


def _fit(
    args: argparse.Namespace,
    source: SuppliedFeatures,
    protocols: Sequence[Protocol],
    metric: str,
    fit_cache: FitCache,
) -> list[SuppliedFit]:
    """Fit a probe by each protocol, and write the head if there is one to save."""
    from probe import supplied
    from probe.models.devices import resolve_execution
    from probe.probes.heads import describe_head_of_file
    from probe.records.record import write_bytes

    device = str(resolve_execution(args.device).device)
    fitted = {
        rules.name: supplied.fit_protocol(
            source, rules, metric=metric, solver=args.solver, device=device, fit_cache=fit_cache
        )
        for rules in protocols
    }
    if args.save_head is not None:
        (one,) = fitted.values()
        head = describe_head_of_file(source.content.about, one.result, one.protocol, source.folds[0]["test"])
        write_bytes(Path(args.save_head), head.to_bytes())
    return list(fitted.values())


def _print_json(args: argparse.Namespace, source: SuppliedFeatures, fitted: Sequence[SuppliedFit]) -> None:
    from probe.environment import describe
    from probe.models.devices import resolve_execution

    made_by = {
        "file": args.file,
        "about": source.content.about,
        "features": source.compute_digests(),
        "val_fraction": source.val_fraction,
        "seed": source.seed,
        "environment": asdict(describe(str(resolve_execution(args.device).device))),
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
            for one in fitted
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
