"""`run --plan`: an estimate of the time, memory and disk space that a grid needs."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from probe.cli.printing import print_json
from probe.errors import ExecutorError, printable

if TYPE_CHECKING:
    from probe.scale.estimates import GridCost, ModelCost
    from probe.settings import Settings
    from probe.specs import RunSpec

HEADER = (
    *("model", "runs", "images", "img/s", "extraction, h", "fits", "fitting, h"),
    *("memory, GB", "GPU memory, GB", "disk, GB"),
)


def show(args: argparse.Namespace, specs: Sequence[RunSpec], settings: Settings, ray: Any) -> int:
    """Print the units of a grid, and an estimate of the time, memory and disk space. Nothing runs.

    Args:
        args: options of the command.
        specs: the runs.
        settings: folders and policies.
        ray: Ray, connected to a cluster; None for this machine.

    Raises:
        ExecutorError: no node has room for a worker.
    """
    from probe import environment, grid, paths
    from probe.datasets.opening import with_sizes
    from probe.features.reading import processors
    from probe.records.record import read_records
    from probe.scale import cluster, estimates
    from probe.scale.units import plan_units

    device = specs[0].device
    on_gpu, num_threads = device.startswith("cuda"), args.threads or environment.torch_threads()
    workers = args.ray_workers or 1
    if args.ray_workers is None and args.executor == "ray":
        resources = {"Alive": True, "Resources": {"CPU": processors(), "GPU": environment.num_gpus()}}
        nodes = [resources] if ray is None else ray.nodes()
        workers = cluster.find_room(nodes, on_gpu=on_gpu, num_threads=num_threads)
        if not workers:
            raise ExecutorError("no node has room for a worker; give a number to plan for, such as --ray-workers 8")
    results_dir, cache_dir = paths.results_dir(args.results_dir), paths.cache_dir(args.cache_dir)
    done = grid.pending(specs, settings, rerun=args.rerun).done
    rows = {spec.dataset: with_sizes(spec.dataset, data_dir=args.data_dir) for spec in specs}
    left = [replace(spec, dataset=rows[spec.dataset]) for spec in specs if spec not in done]
    here = estimates.hardware_of(replace(environment.describe(device), torch_threads=num_threads))
    cost = estimates.estimate_grid(
        plan_units(left),
        estimates.measure_rates(read_records(results_dir), device=device, hardware=here),
        num_workers=workers,
        num_threads=num_threads,
    )
    if args.json:
        print_json({"runs": len(specs), "done": len(done), **asdict(cost)})
        return 0
    print(f"runs: {len(specs)}, of which {len(done)} are done; workers: {cost.workers}, each with ", end="")
    print("one GPU" if on_gpu else f"{num_threads} processor{'s' * (num_threads != 1)}", end="\n\n")
    _print(cost)
    existing = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.exists())
    disk = [one.disk for one in cost.models]
    needed = "not known" if None in disk else f"{_gb(sum(size or 0 for size in disk))} GB"
    free = _gb(shutil.disk_usage(existing).free)
    print(f"disk: {needed} for features; {free} GB are free in {printable(str(cache_dir))}")
    return 0


def _print(cost: GridCost) -> None:
    from probe.leaderboard import tables

    print(tables.markdown_table(HEADER, [_row(one) for one in cost.models]))
    print(f"units: {cost.units} ({cost.shards} extract features, {cost.units - cost.shards} fit probes)")
    sizes = [one.memory.host for one in cost.models]
    if any(sizes):
        largest, unknown = max(sizes), "" if all(sizes) else "; not known for the rows with -"
        print(f"memory: {_gb(largest)} GB for each worker, {_gb(largest * cost.workers)} GB for all workers{unknown}")
    elif sizes:
        print("memory: not known, because the sizes of the models are not known")
    if not cost.hardware:
        print("time: not known, because no record was made on such a device; run a small dataset on it first")
        return
    if cost.seconds is None:
        print("time: not known for the rows with -; run a small dataset with the same model, protocol and solver first")
    else:
        of_one = sum((one.extract_seconds or 0) + (one.fit_seconds or 0) for one in cost.models)
        print(f"time: {_hours(cost.seconds)} h with all workers, {_hours(of_one)} h with one")
    print(f"measured: in {cost.records} records, on {cost.hardware}", end="")
    print(f"; the largest fit is {cost.stretch:,.0f} times as large as any of them" if cost.stretch > 2 else "")


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
