"""Measure the speed of reading images with worker processes, and check that memory does not grow with the dataset.

    python benchmarks/reading.py > results/speed/reading.md

The images are noise saved as JPEG, 500 x 375 pixels, which is about the size in Food-101 or ImageNet. The numbers of
workers alternate in one process; the first round is not counted.
"""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from photos import write_photos

from probe.datasets.opening import open_dataset
from probe.environment import describe
from probe.features.passes import extract_features
from probe.models.loading import load_encoder

ROUNDS, WORKERS, MODELS = 3, (0, 1, 2), {"tiny": 1024, "random:ViT-B/32": 64}
SIZES = (1000, 8000)


def rate(model: str, root: Path, workers: int) -> float:
    """Return the images per second over all images of a folder."""
    images = open_dataset(f"folder:{root}").subsets["all"]
    encoder = load_encoder(model, device="cpu")
    started = time.perf_counter()
    extract_features(encoder, images, workers=workers)
    return len(images) / (time.perf_counter() - started)


def print_rates(model: str, n: int) -> None:
    """Print rows of a table: the median rate for each number of workers, and its ratio to the rate without workers."""
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), n, (500, 375))
        rate(model, Path(folder), 0)
        rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
        for _ in range(ROUNDS):
            for workers in WORKERS:
                rates[workers].append(rate(model, Path(folder), workers))
    for workers, found in rates.items():
        ratios = [value / base for value, base in zip(found, rates[0], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {model} | {n} | {workers} | {statistics.median(found):.0f} | {spread} |")


def peak_memory(n: int) -> tuple[float, float]:
    """Return the peak memory, in MB, of a process that extracts n images with two workers, and of a worker."""
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), n, (500, 375))
        script = f"import reading; reading.report_memory({folder!r})"
        done = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
        )
    own, worker = map(float, done.stdout.split())
    return own, worker


def report_memory(folder: str) -> None:
    """Extract, and print the peak memory of this process and of its largest child, in MB."""
    rate("tiny", Path(folder), 2)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss / 1024)


def main() -> None:
    """Measure, and print a page of Markdown."""
    print("# Reading images\n")
    versions = f"{describe('cpu').cpu}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"Made by `python benchmarks/reading.py` on {torch.get_num_threads()} cores {versions}.")
    print(f"JPEG, 500 x 375 pixels; {ROUNDS} rounds, in turn.\n")
    print("| model | images | workers | images a second | times as fast as with none |")
    print("| ----- | ------ | ------- | --------------- | -------------------------- |")
    for model, n in MODELS.items():
        print_rates(model, n)
    print("\n| images | peak memory, MB | of a worker, MB |")
    print("| ------ | --------------- | --------------- |")
    for n in SIZES:
        own, worker = peak_memory(n)
        print(f"| {n} | {own:.0f} | {worker:.0f} |")


if __name__ == "__main__":
    main()
