"""Measure the overhead of `--executor ray` over one process, with a grid of 40 runs on one machine.

    python benchmarks/ray_overhead.py > results/speed/ray_overhead.md

The grid has ten folders of images, two models and two modes. Both ways alternate, and features are extracted again each
time. The worker has as many threads as the single process.
"""

from __future__ import annotations

import logging
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from probe.environment import describe, package_version
from probe.grid import plan
from probe.runner import run_grid as run_serially
from probe.scale.cluster import connected
from probe.scale.driver import run_grid_on_ray
from probe.settings import Settings
from probe.specs import RunSpec

DATASETS, IMAGES, ROUNDS = 10, 800, 3


def write_images(root: Path, seed: int) -> None:
    """Write images of two classes with noise, 32 x 32 pixels."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(IMAGES // 2):
            pixels = rng.integers(0, 200, (32, 32, 3)) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:04}.png")


def make_specs(root: Path) -> list[RunSpec]:
    """Return the runs of the grid."""
    folders = [root / f"set{i}" for i in range(DATASETS)]
    for i, folder in enumerate(folders):
        write_images(folder, i)
    names = [f"folder:{folder}" for folder in folders]
    models, modes = ["tiny", "random:tiny"], [False, True]
    return plan(names, models, protocols=["readme"], jit_modes=modes, device="cpu")


class Moment(logging.Handler):
    """Handler that records the time at which the driver logs that its worker has started."""

    def emit(self, record: logging.LogRecord) -> None:
        """Record the time of the message."""
        if "workers: " in record.getMessage():
            self.time = time.perf_counter()


def main() -> None:
    """Run both ways alternately, and print a page of Markdown."""
    moment = Moment()
    logging.getLogger("probe").setLevel(logging.INFO)
    logging.getLogger("probe").addHandler(moment)
    one, ray, starts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        specs = make_specs(Path(folder, "images"))
        for i in range(ROUNDS + 1):
            settings = Settings(results_dir=f"{folder}/{i}.one", cache_dir=f"{folder}/{i}.one/cache")
            started = time.perf_counter()
            serial = {record.key: record.features for record in run_serially(specs, settings=settings)}
            seconds = time.perf_counter() - started
            settings = Settings(results_dir=f"{folder}/{i}.ray", cache_dir=f"{folder}/{i}.ray/cache")
            begun = time.perf_counter()
            with connected(None):
                same = {record.key: record.features for record in run_grid_on_ray(specs, settings=settings)}
                ended = time.perf_counter()
            assert same == serial
            print(f"{i}: {seconds:.1f} s, {moment.time - begun:.1f} + {ended - moment.time:.1f} s", file=sys.stderr)
            if i:  # the first round is the warm-up
                one.append(seconds)
                ray.append(ended - moment.time)
                starts.append(moment.time - begun)
    about = describe("cpu")
    ratios = [b / a for a, b in zip(one, ray, strict=True)]
    print("# What Ray costs\n")
    print(f"Made by `python benchmarks/ray_overhead.py` on {about.cpu_count} cores {about.cpu}, ", end="")
    print(f"torch {torch.__version__}, Ray {package_version('ray')}, Python {platform.python_version()}.\n")
    print(f"A grid of {len(specs)} runs, {IMAGES} images each, in one process and by one worker of Ray with as many ")
    print(f"threads, in turn, {ROUNDS} times after one to warm up; features had the same bytes each time.\n")
    print("| | seconds |\n| - | - |")
    for name, values in (("one process", one), ("Ray, from when its worker is there", ray), ("its start", starts)):
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f}) |")
    print(f"\nThe second by the first: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}).")


if __name__ == "__main__":
    main()
