"""`run` and `extract`: the commands that run encoders."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import errors, paths
from probe.cli import grids, planning
from probe.cli.arguments import UsageError
from probe.cli.experiments import write_experiment
from probe.cli.printing import print_json
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.probes.result import ProbeResult
    from probe.records.schema import ResultRecord, RunRecord
    from probe.specs import RunSpec

MAX_NAMES = 200  # characters for the names of a run in a message
logger = logging.getLogger(__name__)


def run_command(args: argparse.Namespace) -> int:
    """Run a grid and print its scores or records; return 1 if a run or one of its further test sets has no score."""
    from probe.specs import identity

    records: list[RunRecord] = []
    specs: list[RunSpec] = []
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with _joined(args) as (ray, device):
            settings = grids.settings(args)
            specs = grids.plan_runs(args, device=device, elsewhere=ray is not None or args.plan)
            if args.plan:
                return planning.show(args, specs, settings, ray)
            write_experiment(args, paths.results_dir(args.results_dir))
            # Ray prints messages about its processes to stdout, which is for results.
            with redirect_stdout(sys.stderr):
                if args.executor == "ray":
                    from probe.scale.driver import run_grid_on_ray

                    ended = run_grid_on_ray(
                        specs, settings, address=args.ray_address, num_threads=args.threads or 0, rerun=args.rerun
                    )
                else:
                    from probe.runner import run_grid

                    ended = run_grid(specs, settings, rerun=args.rerun)
                for record in ended:
                    records.append(record)
                    if sys.stderr.isatty() and record.created >= started:
                        _show_summary(record)
    finally:
        places = {identity(spec): i for i, spec in enumerate(specs)}  # Ray's workers end in a different order
        records.sort(key=lambda record: places.get(identity(record.spec), len(specs)))
        if records:
            report(records, specs, as_json=args.json)
    unfinished = [record for record in records if record.result is not None and not record.result.converged]
    if args.strict:
        for record in unfinished:
            refuse_unfinished(str(record.spec), record.result)
    has_failed = any(record.error for record in records) or _lacks_test(records, specs)
    return 1 if has_failed or (args.strict and unfinished) else 0


def _lacks_test(records: Sequence[RunRecord], specs: Sequence[RunSpec]) -> bool:
    """Return True if a record has no score on a further test set that its run in `specs` asks for."""
    from probe.records.schema import DoneRecord
    from probe.specs import identity

    asked = {identity(spec): {test.name for test in spec.tests} for spec in specs}
    return any(
        test.error is not None and test.name in asked.get(identity(record.spec), ())
        for record in records
        if isinstance(record, DoneRecord)
        for test in record.tests
    )


@contextmanager
def _joined(args: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """Yield Ray, if the options name a running cluster, or None; and the device of the runs."""
    address = (args.ray_address or os.environ.get("RAY_ADDRESS")) if args.executor == "ray" else None
    if not address:
        yield None, args.device
        return
    from probe.scale import cluster

    with cluster.connected(address) as ray:
        # The machines of a cluster can have other devices than this machine.
        yield ray, ("cuda" if cluster.has_gpus(ray) else "cpu") if args.device == "auto" else args.device


def _show_summary(record: RunRecord) -> None:
    """Print the score of a run that has just ended, above the progress bar."""
    from tqdm import tqdm

    from probe.leaderboard import tables

    if record.error is not None:
        text = _failure(str(record.spec), record.error.type, record.error.message)
    else:
        around = tables.interval_text(record.result.interval)
        seconds = sum(record.seconds.values())
        name = errors.shorten(errors.printable(str(record.spec)), MAX_NAMES)
        text = f"{name}: {100 * record.result.score:.2f} %{tables.marks(record)} ({around}), {seconds:.1f} s"
    tqdm.write(text, file=sys.stderr)


def report(records: Sequence[RunRecord], specs: Sequence[RunSpec], *, as_json: bool) -> None:
    """Print the records of some runs as JSON or as tables, and failures to stderr."""
    from probe.leaderboard import clean, modes, shifts, tables

    if as_json:
        print_json([record.to_dict() for record in records])
    else:
        print(tables.records_to_markdown(records), end="")
        parity = modes.modes_to_markdown(records)
        if parity:
            print("\n" + parity, end="")
        further = shifts.shifts_to_markdown(records)
        if further:
            print("\n" + further, end="")
        without = clean.clean_to_markdown(records)
        if without:
            print("\n" + without, end="")
        for note in tables.footnotes(records):
            print(f"\n{note}")
    for record in records:
        if record.error is not None:
            print(f"probe: {_failure(str(record.spec), record.error.type, record.error.message)}", file=sys.stderr)
    if len(records) < len(specs):
        print(f"probe: {len(records)} of {len(specs)} runs are recorded", file=sys.stderr)


def _failure(what: str, kind: str, message: str) -> str:
    return errors.brief(f"{errors.shorten(what, MAX_NAMES)} failed: {errors.sentence(kind, message)}")


def extract_command(args: argparse.Namespace) -> int:
    """Extract features and print where they are; return 1 if some could not be extracted."""
    from probe.features import files
    from probe.features.arrays import Extraction
    from probe.features.extraction import extract_grid
    from probe.leaderboard import tables

    specs, settings = grids.plan_runs(args), grids.settings(args)
    if args.out is not None and len(specs) > 1:
        raise UsageError(
            f"--out writes the features of one run, but this command has {len(specs)} runs; give one --dataset, one "
            "--model, and --jit off or on"
        )
    rows, failed = [], 0
    for spec, outcome in extract_grid(specs, settings):
        name = (spec.dataset.name, spec.model.name, spec.mode)
        if isinstance(outcome, Extraction):
            sizes = {subset: len(features) for subset, features in outcome.features.items()}
            rows.append((*name, sizes, "cached" if outcome.extraction.from_cache else "extracted", str(outcome.folder)))
            if args.out is not None:
                files.save(Path(args.out), outcome.features, outcome.rows, outcome.about(spec))
        elif isinstance(outcome, errors.IncompleteError):
            rows.append((*name, {}, str(outcome), ""))
        else:
            failed += 1
            logger.debug("%s", spec, exc_info=None if isinstance(outcome, ProbeError) else outcome)
            text = _failure(" / ".join(name), type(outcome).__name__, str(outcome))
            print(f"probe: {text}", file=sys.stderr)
            rows.append((*name, {}, "failed", ""))
    header = ("dataset", "model", "mode", "images", "state", "folder")
    if args.json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        texts = [(*row[:3], ", ".join(f"{subset} {n}" for subset, n in row[3].items()), *row[4:]) for row in rows]
        print(tables.markdown_table(header, texts), end="")
    return 1 if failed else 0


def refuse_unfinished(name: str, result: ProbeResult | ResultRecord) -> None:
    """Print that a final fit did not converge, and what to do."""
    advice = "use --solver fast" if result.solver == "sklearn" else "scale the features to unit variance"
    name = errors.shorten(errors.printable(name), MAX_NAMES)
    print(
        f"probe: {name}: the fit did not converge: after {result.n_iter} iterations its objective "
        f"{result.objective:.6g} is about {result.suboptimality:.1e} above its minimum; {advice}, or raise max_iter in "
        "a protocol of your own",
        file=sys.stderr,
    )
