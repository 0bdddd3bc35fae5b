"""`run --plan`: what a grid will take, before it runs."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from probe.cli import grids
from probe.errors import ExecutorError, printable

if TYPE_CHECKING:
    from probe.scale.estimates import GridCost, ModelCost
    from probe.specs import RunSpec

HEADER = (
    *("model", "runs", "images", "img/s", "extraction, h", "fits", "fitting, h"),
    *("memory, GB", "GPU memory, GB", "disk, GB"),
)


def show(args: argparse.Namespace, specs: Sequence[RunSpec], ray: Any) -> int:
    """Print the units of a grid, and an estimate of time, memory and disk; nothing runs.

    Args:
        args: of the command.
        specs: the runs.
        ray: with the cluster that was joined; None for this machine.

    Raises:
        ExecutorError: there is no room for a worker.
    """
    from probe import environment, grid, paths
    from probe.datasets.opening import with_sizes
    from probe.decoder import decode
    from probe.features.reading import processors
    from probe.records.record import read_records
    from probe.records.schema import EnvironmentRecord
    from probe.scale import cluster, estimates
    from probe.scale.units import plan_units

    device = specs[0].device
    on_gpu, num_threads = device.startswith("cuda"), args.threads or environment.torch_threads()
    workers = args.plan or 1
    if not args.plan and args.executor == "ray":
        resources = {"Alive": True, "Resources": {"CPU": processors(), "GPU": environment.num_gpus()}}
        nodes = [resources] if ray is None else ray.nodes()
        workers = cluster.find_room(nodes, on_gpu=on_gpu, num_threads=num_threads)
        if not workers:
            raise ExecutorError("there is no room for a worker; say for how many to plan, such as --plan 8")
    results_dir, cache_dir = paths.results_dir(args.results_dir), paths.cache_dir(args.cache_dir)
    done = grid.pending(specs, grids.settings(args), rerun=args.rerun).done
    rows = {spec.dataset: with_sizes(spec.dataset, data_dir=args.data_dir) for spec in specs}
    left = [replace(spec, dataset=rows[spec.dataset]) for spec in specs if spec not in done]
    described = decode(environment.describe(device), EnvironmentRecord)
    here = estimates.hardware_of(replace(described, torch_threads=num_threads))
    cost = estimates.estimate_grid(
        plan_units(left),
        estimates.measure_rates(read_records(results_dir), device=device, hardware=here),
        num_workers=workers,
        num_threads=num_threads,
    )
    if args.json:
        print(json.dumps({"runs": len(specs), "done": len(done), **asdict(cost)}, allow_nan=False))
        return 0
    print(f"runs: {len(specs)}, of which {len(done)} are done; workers: {cost.workers}, each of ", end="")
    print("a GPU" if on_gpu else f"{num_threads} processors", end="\n\n")
    _print(cost)
    existing = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.exists())
    disk = [one.disk for one in cost.models]
    needed = "not known" if None in disk else f"{_gb(sum(size or 0 for size in disk))} GB"
    free = _gb(shutil.disk_usage(existing).free)
    print(f"disk: {needed} of features, {free} GB are free in {printable(str(cache_dir))}")
    return 0


def _print(cost: GridCost) -> None:
    from probe.leaderboard import tables

    print(tables.markdown_table(HEADER, [_row(one) for one in cost.models]))
    print(f"units: {cost.units}, of which {cost.shards} are shards of features, the others fits")
    memory = max((one.memory.host for one in cost.models), default=0)
    print(f"memory: {_gb(memory)} GB of a machine for a worker, {_gb(memory * cost.workers)} GB for all of them")
    if not cost.hardware:
        print("time: not known, since no record was made on such a device; run a small dataset there first")
        return
    if cost.seconds is None:
        print("time: not known where the columns have -; run a small dataset with that model and solver first")
    else:
        of_one = sum((one.extract_seconds or 0) + (one.fit_seconds or 0) for one in cost.models)
        print(f"time: {_hours(cost.seconds)} h, of {_hours(of_one)} h of work")
    print(f"measured: by {cost.records} of the records, on {cost.hardware}", end="")
    print(f"; the largest fit is {cost.stretch:,.0f} times the largest measured" if cost.stretch > 2 else "")


def _row(one: ModelCost) -> tuple[str, ...]:
    rate = f"{one.images / one.extract_seconds:,.1f}" if one.extract_seconds else "-"
    extract, fit = (None if value is None else _hours(value) for value in (one.extract_seconds, one.fit_seconds))
    memory, gpu = (_gb(size) if size else None for size in (one.memory.host, one.memory.gpu))
    return (
        *(one.model, f"{one.runs:,}", f"{one.images:,}", rate, extract or "-"),
        *(f"{one.fits:,}", fit or "-", memory or "-", gpu or "-", "-" if one.disk is None else _gb(one.disk)),
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}" if seconds > 3600 else f"{seconds / 3600:.2g}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}"
