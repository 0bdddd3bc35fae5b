"""A grid of 200 small cells on a simulated cluster, with a worker killed every few seconds and a node in the middle.

    python benchmarks/ray_faults.py > results/speed/ray_faults.md

Nodes are those of `ray.cluster_utils`, on one machine, each with a home folder and so a feature store of its own.
Every record is compared with that of one process.
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
MARK = uuid.uuid4().hex  # in the environment of what this run starts


def make_specs(root: Path) -> list[RunSpec]:
    """Folders of two classes of noise, under two models in two modes."""
    rng = np.random.default_rng(0)
    for i in range(DATASETS):
        for label, name in enumerate("ab"):
            folder = root / f"set{i}" / name
            folder.mkdir(parents=True)
            for k in range(IMAGES // 2):
                pixels = rng.integers(0, 200, (32, 32, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k:04}.png")
    names, models = [f"folder:{root}/set{i}" for i in range(DATASETS)], ["tiny", "random:tiny"]
    return plan(names, models, protocols=["readme"], jit_modes=[False, True], device="cpu", solver="fast")


def content(record: RunRecord) -> dict[str, Any]:
    """All of a record but times and where it was made."""
    passed_over = ("created", "seconds", "extraction", "environment")
    return {k: v for k, v in json.loads(json.dumps(asdict(record))).items() if k not in passed_over}


def find_workers() -> list[int]:
    """The processes of this run's workers, as Linux lists them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            if b"ray::Worker" in name and MARK.encode() in environment:
                found.append(int(folder.name))
    return found


def main() -> None:
    """Run the grid in both ways and print a page of Markdown."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("probe").setLevel(logging.WARNING)
    # One token for all nodes, which have home folders of their own; Ray reads it when it is imported.
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
        killed, is_over = [], threading.Event()

        def kill() -> None:
            while not is_over.wait(KILL_SECONDS):
                workers = find_workers()
                with contextlib.suppress(ProcessLookupError):
                    if workers:
                        os.kill(workers[len(killed) % len(workers)], signal.SIGKILL)
                        killed.append(time.perf_counter())
                if len(nodes) == NODES and len(found) > len(specs) // 2:
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                    print("a node is gone", file=sys.stderr)

        killer = threading.Thread(target=kill)
        killer.start()
        started = time.perf_counter()
        try:
            settings = Settings(results_dir=root / "ray", cache_dir="~/cache")
            with contextlib.redirect_stdout(sys.stderr):  # where Ray says what becomes of its processes
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
    print(f"Made by `python benchmarks/ray_faults.py` on {about['cpu_count']} cores {about['cpu']}, ", end="")
    print(f"torch {torch.__version__}, Ray {package_version('ray')}, Python {platform.python_version()}.\n")
    print(f"{len(specs)} cells of {IMAGES} images on {NODES} nodes of one worker each, without a folder in common; ")
    print(f"{len(killed)} workers killed, one every {KILL_SECONDS:g} s, and {NODES - len(nodes)} node in the middle.\n")
    print(f"- records that are those of one process: {right} of {len(wanted)}")
    print(f"- seconds: {seconds:.0f}; of one process that nobody disturbs: {alone:.0f}")


if __name__ == "__main__":
    main()
