"""Measure the feature store: memory for many images, and the time until a probe starts on cached features.

    python benchmarks/store.py > results/speed/store.md

If Fashion-MNIST is in the data folder, the scores of `tiny` in fp32 and in bf16 are also printed.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from probe.environment import describe
from probe.errors import ProbeError
from probe.features.arrays import Features, chunk_size
from probe.features.chunks import Work
from probe.features.store import EntrySpec, find
from probe.runner import run

SIZES = (20_000, 200_000)
LINKS = 1000  # links to one file; file systems allow only some ten thousand
CACHED, WIDTH, ROUNDS = 60_000, 512, 5


def write_images(root: Path, n: int) -> None:
    """Write two classes of images with 8 x 8 pixels, as many links to few files."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir(parents=True)
        original = root
        for i in range(n // 2):
            path = root / name / f"{i:06}.png"
            if i % LINKS:
                path.hardlink_to(original)
            else:
                original = path
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def peak_memory(n: int) -> float:
    """Return the peak memory, in MB, of a process that extracts n images and also writes their features to a file."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images"), n)
        command = [sys.executable, "-m", "probe", "extract", "--dataset", f"folder:{folder}/images", "--model", "tiny"]
        command += ["--device", "cpu", "--cache-dir", f"{folder}/cache", "--out", f"{folder}/features.npz"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        return usage.ru_maxrss / 1024


def fill(root: Path) -> EntrySpec:
    """Write a complete cache entry of `CACHED` images at both feature points."""
    cell = EntrySpec("benchmark", "all", "tiny", "eager", "fp32", {"made": "up"}, CACHED, 64)
    work, size = Work(root, cell), chunk_size(64)
    work.start()
    x = np.random.default_rng(0).normal(size=(size, WIDTH)).astype(np.float32)
    for chunk in range(cell.num_chunks):
        n = min(size, CACHED - chunk * size)
        work.write(chunk, Features(x[:n], np.arange(n) % 10, x[:n]))
    work.finish(encoder={}, extraction={})
    return cell


def seconds_to_start() -> list[float]:
    """Return the seconds from looking features up until the features of a split are in memory."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        cell = fill(Path(folder))
        for _ in range(ROUNDS):
            started = time.perf_counter()
            entry = find(Path(folder), cell)
            assert entry is not None
            entry.features.take(np.arange(0, CACHED - CACHED // 10))
            found.append(time.perf_counter() - started)
    return found


def scores() -> dict[str, float]:
    """Return the score of the protocol `readme` on Fashion-MNIST, by precision."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            precision: 100
            * run(
                "fashion_mnist",
                model="tiny",
                protocol="readme",
                device="cpu",
                precision=precision,
                results_dir=folder,
                offline=True,
            ).result.score
            for precision in ("fp32", "bf16")
        }


def main() -> None:
    """Measure, and print a page of Markdown."""
    print("# The feature store\n")
    versions = f"{describe('cpu').cpu}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"Made by `python benchmarks/store.py` on {torch.get_num_threads()} cores {versions}.\n")
    print("| images of 8 x 8 pixels | peak memory of extract --out, MB |")
    print("| ---------------------- | -------------------------------- |")
    for n in SIZES:
        print(f"| {n} | {peak_memory(n):.0f} |", flush=True)
    found = seconds_to_start()
    print(
        f"\nFeatures of {CACHED} images, {WIDTH}-d at both points, are looked up, compared with their digests and put"
    )
    print(
        f"into memory in {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f}), of {ROUNDS} times.\n"
    )
    try:
        by_precision = scores()
    except ProbeError as err:
        print(f"Not measured, precision and score: {err}")
        return
    for precision, score in by_precision.items():
        print(f"- Fashion-MNIST, `tiny`, `readme`, {precision}: {score:.2f} %")


if __name__ == "__main__":
    main()
