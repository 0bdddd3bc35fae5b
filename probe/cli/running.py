"""`run`, `extract` and `fit`: the commands that compute."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import errors
from probe.cli import grids, planning
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.probes.result import ProbeResult
    from probe.records.schema import ResultRecord, RunRecord
    from probe.settings import Settings
    from probe.specs import RunSpec

MAX_NAMES = 200  # characters for the names of a run in a message
logger = logging.getLogger(__name__)


def run_command(args: argparse.Namespace) -> int:
    """Run a grid and print its scores, or records; 1 where a run failed."""
    from probe.probes.protocols import GROUPS
    from probe.specs import identity

    protocols = grids.expand_groups(args.protocol or ["clip-paper"], GROUPS)
    records: list[RunRecord] = []
    specs: list[RunSpec] = []
    try:
        with _joined(args) as ray:
            device = _device(args, ray)
            if args.executor == "ray" or args.plan is not None:
                from probe.scale.driver import refuse_gpu_number

                refuse_gpu_number(device)
            specs = grids.plan_runs(args, protocols, device=device, elsewhere=ray is not None or args.plan is not None)
            if args.plan is not None:
                return planning.show(args, specs, ray)
            with redirect_stdout(sys.stderr):  # where Ray says what becomes of its processes; results go to the other
                for record in _execute(specs, grids.settings(args), args):
                    records.append(record)
    finally:
        places = {identity(spec): i for i, spec in enumerate(specs)}  # workers end in another order
        records.sort(key=lambda record: places.get(identity(record.spec), len(specs)))
        if records:
            _report(records, specs, as_json=args.json)
    unfinished = [record for record in records if record.result is not None and not record.result.converged]
    if args.strict:
        for record in unfinished:
            _refuse_unfinished(f"{record.dataset} / {record.model} / {record.mode} / {record.protocol}", record.result)
    return 1 if any(record.error for record in records) or (args.strict and unfinished) else 0


@contextmanager
def _joined(args: argparse.Namespace) -> Iterator[Any]:
    """Ray, where the options name a running cluster; it is on other machines, which may have other devices."""
    address = args.ray_address or os.environ.get("RAY_ADDRESS")
    if not address or args.executor != "ray":
        yield None
        return
    from probe.scale import cluster

    with cluster.connected(address) as ray:
        yield ray


def _device(args: argparse.Namespace, ray: Any) -> str:
    if args.device != "auto" or ray is None:
        return str(args.device)
    from probe.scale import cluster

    return "cuda" if cluster.has_gpus(ray) else "cpu"


def _execute(specs: Sequence[RunSpec], settings: Settings, args: argparse.Namespace) -> Iterator[RunRecord]:
    if args.executor == "serial":
        from probe import runner

        with grids.limit_threads(args):
            yield from runner.run_grid(specs, settings, rerun=args.rerun)
        return
    from probe.scale import driver

    yield from driver.run_grid_on_ray(
        specs, settings, address=args.ray_address, num_threads=args.threads or 0, rerun=args.rerun
    )


def _report(records: Sequence[RunRecord], specs: Sequence[RunSpec], *, as_json: bool) -> None:
    from probe.leaderboard import modes, tables

    if as_json:
        for record in records:
            print(json.dumps(record.to_dict(), sort_keys=True))
    else:
        print(tables.records_to_markdown(records), end="")
        parity = modes.modes_to_markdown(records)
        if parity:
            print("\n" + parity, end="")
        for note in tables.footnotes(records):
            print(f"\n{note}")
    for record in records:
        if record.error is not None:
            name = f"{record.dataset} / {record.model} / {record.mode} / {record.protocol}"
            print(f"probe: {_failure(name, record.error.type, record.error.message)}", file=sys.stderr)
    if len(records) < len(specs):
        print(f"probe: {len(records)} of {len(specs)} runs are recorded", file=sys.stderr)


def _failure(what: str, kind: str, message: str) -> str:
    return errors.brief(f"{errors.shorten(what, MAX_NAMES)} failed: {errors.sentence(kind, message)}")


def extract_command(args: argparse.Namespace) -> int:
    """Extract features, and print where they are; 1 where some could not be extracted."""
    from probe.features import files
    from probe.features.arrays import Extraction
    from probe.features.extraction import extract_grid
    from probe.leaderboard import tables

    specs, settings = grids.plan_runs(args, ["readme"]), grids.settings(args)  # the same features for all protocols
    if args.out is not None and (len(specs) > 1 or args.shard is not None):
        raise errors.FeaturesError("--out takes the whole features of one dataset, model and mode; name one of each")
    rows, failed = [], 0
    for spec, outcome in extract_grid(specs, settings):
        name = (spec.dataset.name, spec.model.name, spec.mode)
        if isinstance(outcome, Extraction):
            sizes = ", ".join(f"{part} {len(features)}" for part, features in outcome.features.items())
            state = "cached" if outcome.extraction.from_cache else "extracted"
            rows.append((*name, sizes, state, str(outcome.folder)))
            if args.out is not None:
                files.save(Path(args.out), outcome.features, outcome.rows, outcome.about(spec))
        elif isinstance(outcome, errors.IncompleteError):
            rows.append((*name, "", str(outcome), ""))
        else:
            failed += 1
            logger.debug("%s", spec, exc_info=None if isinstance(outcome, ProbeError) else outcome)
            said = _failure(" / ".join(name), type(outcome).__name__, str(outcome))
            print(f"probe: {said}", file=sys.stderr)
    if rows:
        print(tables.markdown_table(("dataset", "model", "mode", "images", "state", "folder"), rows), end="")
    return 1 if failed else 0


def fit(args: argparse.Namespace) -> int:
    """Fit probes on a file of features, and print their scores."""
    from probe import paths
    from probe.environment import describe
    from probe.features import files
    from probe.features.store import FITS
    from probe.leaderboard import tables
    from probe.models.devices import resolve_execution
    from probe.probes.cached_fits import FitCache
    from probe.probes.fit import fit_folds, hold_out_validation
    from probe.probes.protocols import GROUPS, get_protocol
    from probe.probes.solvers.catalog import device_for

    protocols = [get_protocol(name) for name in grids.expand_groups([args.protocol], GROUPS)]
    found = files.load(Path(args.file))
    metric = args.metric or str(found.about.get("metric", "accuracy"))
    folds = list(found.folds)
    if args.val_fraction is not None:
        if any("val" in fold for fold in folds):
            raise errors.FeaturesError(f"{args.file} has validation features; leave out --val-fraction")
        folds = [hold_out_validation(fold, args.val_fraction, seed=args.seed) for fold in folds]
    if all(features.pre_projection is None for fold in folds for features in fold.values()):
        # The only point that this file has.
        protocols = [replace(protocol, feature_point="projected") for protocol in protocols]
    device = device_for(args.solver, str(resolve_execution(args.device).device))
    fit_cache = FitCache(paths.cache_dir(args.cache_dir) / FITS)
    with grids.limit_threads(args):
        results = {
            protocol.name: fit_folds(
                folds,
                metric=metric,
                protocol=protocol,
                solver=args.solver,
                device=device,
                fit_cache=fit_cache,
                shows_progress=True,
            )
            for protocol in protocols
        }
        environment = describe(device)
    unfinished = {name: result for name, result in results.items() if not result.converged}
    if args.json:
        made_by = {
            "file": args.file,
            "about": found.about,
            "features": [{split: part.compute_sha256() for split, part in fold.items()} for fold in folds],
            "device": device,
            "val_fraction": args.val_fraction,
            "seed": args.seed,
            "environment": environment,
        }
        for protocol in protocols:
            named = {"protocol": protocol.name, "rules": asdict(protocol)}
            print(json.dumps({**made_by, **named, **results[protocol.name].to_dict()}, allow_nan=False))
    else:
        rows = []
        for name, result in results.items():
            C = "differs" if result.C is None else f"{result.C:.4g}"  # noqa: N806 - the field's name
            mark = tables.fit_marks(converged=result.converged, choice_converged=result.choice_converged)
            score = f"{100 * result.score:.2f}{mark}"
            around = tables.interval_text(result.interval)
            rows.append((name, metric, score, around, C, args.solver, str(result.n_iter), str(result.num_test)))
        header = ("protocol", "metric", "score, %", "95 % interval", "C", "solver", "iterations", "test images")
        print(tables.markdown_table(header, rows), end="")
        if unfinished:
            print(f"\n{tables.FINAL_NOTE}")
        if not all(result.choice_converged for result in results.values()):
            print(f"\n{tables.CHOICE_NOTE}")
    fit_cache.clear()
    if args.strict:
        for name, result in unfinished.items():
            _refuse_unfinished(f"{args.file} / {name}", result)
    return 1 if args.strict and unfinished else 0


def _refuse_unfinished(what: str, result: ProbeResult | ResultRecord) -> None:
    way_out = "divide the features by their size" if result.solver == "fast" else "use --solver fast"
    what = errors.shorten(errors.printable(what), MAX_NAMES)
    print(
        f"probe: {what}: the fit did not converge: after {result.n_iter} iterations its objective "
        f"{result.objective:.6g} is about {result.suboptimality:.1e} above its minimum; {way_out}, or raise "
        "max_iter in a protocol of your own",
        file=sys.stderr,
    )
