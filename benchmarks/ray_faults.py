"""Run a grid of 200 small runs on a simulated cluster, where workers are killed and a node is lost.

    python benchmarks/ray_faults.py > results/speed/ray_faults.md

A worker is killed every few seconds, and a node halfway through. The nodes are simulated on one machine by
`ray.cluster_utils`; each has its own home folder and feature store. Every record is compared with the record of a
serial run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from probe.environment import describe, package_version, threads
from probe.grid import plan
from probe.records.schema import RunRecord
from probe.runner import run_grid as run_serially
from probe.scale.driver import run_grid_on_ray
from probe.settings import Settings
from probe.specs import RunSpec

DATASETS, IMAGES, NODES, KILL_SECONDS = 50, 40, 3, 3.0
MARK = uuid.uuid4().hex  # in the environment of all processes that this script starts


def make_specs(root: Path) -> list[RunSpec]:
    """Return the runs: folders with two classes of noise, two models, two modes."""
    rng = np.random.default_rng(0)
    for i in range(DATASETS):
        for label, name in enumerate("ab"):
            folder = root / f"set{i}" / name
            folder.mkdir(parents=True)
            for k in range(IMAGES // 2):
                pixels = rng.integers(0, 200, (32, 32, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k:04}.png")
    names, models = [f"folder:{root}/set{i}" for i in range(DATASETS)], ["tiny", "random:tiny"]
    return plan(names, models, protocols=["readme"], jit_modes=[False, True], device="cpu")


def content(record: RunRecord) -> dict[str, Any]:
    """Return the content of a record without times and without the machine."""
    passed_over = ("created", "seconds", "extraction", "environment")
    return {k: v for k, v in json.loads(json.dumps(asdict(record))).items() if k not in passed_over}


def find_workers() -> list[int]:
    """Return the process numbers of the workers that this script started, from /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            if b"ray::Worker" in name and MARK.encode() in environment:
                found.append(int(folder.name))
    return found


def main() -> None:
    """Run the grid serially and on Ray, and print a page of Markdown."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("probe").setLevel(logging.WARNING)
    # All nodes need the same token, but have different home folders. Ray reads the variable on import.
    os.environ.update(PROBE_BENCHMARK=MARK, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=MARK)
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        specs = make_specs(root / "images")
        started = time.perf_counter()
        with threads(1, blas=1):
            settings = Settings(results_dir=root / "one", cache_dir=root / "one" / "cache")
            wanted = {record.key: content(record) for record in run_serially(specs, settings=settings)}
        alone = time.perf_counter() - started
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = []
        for i in range(NODES):
            (root / f"home{i}").mkdir()
            nodes.append(cluster.add_node(num_cpus=1, env_vars={"HOME": str(root / f"home{i}")}))
        os.environ["HOME"] = folder
        found: dict[Any, dict[str, Any]] = {}
        killed: list[float] = []
        is_over = threading.Event()

        def kill() -> None:
            while not is_over.wait(KILL_SECONDS):
                workers = find_workers()
                with contextlib.suppress(ProcessLookupError):
                    if workers:
                        os.kill(workers[len(killed) % len(workers)], signal.SIGKILL)
                        killed.append(time.perf_counter())
                if len(nodes) == NODES and len(found) > len(specs) // 2:
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                    print("a node is lost", file=sys.stderr)

        killer = threading.Thread(target=kill)
        killer.start()
        started = time.perf_counter()
        try:
            settings = Settings(results_dir=root / "ray", cache_dir="~/cache")
            with contextlib.redirect_stdout(sys.stderr):  # Ray prints messages about its processes
                for record in run_grid_on_ray(specs, settings=settings, address=cluster.address, num_threads=1):
                    found[record.key] = content(record)
        finally:
            is_over.set()
            killer.join()
            cluster.shutdown()
        seconds = time.perf_counter() - started
    right = sum(found.get(key) == value for key, value in wanted.items())
    about = describe("cpu")
    print("# A grid that is disturbed\n")
    print(f"Made by `python benchmarks/ray_faults.py` on {about.cpu_count} cores {about.cpu}, ", end="")
    print(f"torch {torch.__version__}, Ray {package_version('ray')}, Python {platform.python_version()}.\n")
    print(f"{len(specs)} runs of {IMAGES} images on {NODES} nodes of one worker each, without a shared folder; ")
    print(f"{len(killed)} workers killed, one every {KILL_SECONDS:g} s, and {NODES - len(nodes)} node in the middle.\n")
    print(f"- records equal to those of a serial run: {right} of {len(wanted)}")
    print(f"- seconds: {seconds:.0f}; of the serial run: {alone:.0f}")


if __name__ == "__main__":
    main()
