"""Measure what predictions, scores of classes and calibration add to a run with cached features.

    python benchmarks/run_extras.py > results/speed/run_extras.md

Runs without and with these extras alternate. A run without them writes no file of predictions, and leaves out the
calibration and the counts of classes. Fashion-MNIST is used if it is in the data folder. Prints the median and range of
the seconds of a run, and of the added shares of seconds and of processor time.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np

import probe
from probe.datasets.opening import open_dataset
from probe.environment import describe
from probe.errors import ProbeError
from probe.leaderboard.tables import markdown_table
from probe.probes import fit, knn, result, zero_shot
from probe.stats.per_class import ClassCounts, count_classes

DATASETS = ("digits", "fashion_mnist")
PROTOCOLS = ("readme", "clip-paper", "knn", "zero-shot")
ROUNDS = 5

Counter = Callable[[np.ndarray, np.ndarray, int], ClassCounts]


def count_once() -> Counter:
    """Return a function that counts the images of classes at its first call, and then returns the same counts."""
    found: list[ClassCounts] = []

    def count(y_true: np.ndarray, y_pred: np.ndarray, num_classes: int) -> ClassCounts:
        if not found:
            found.append(count_classes(y_true, y_pred, num_classes))
        return found[0]

    return count


def without_extras(counter: Counter) -> ExitStack:
    """Leave out the calibration of all methods, and count classes with `counter`."""
    stack = ExitStack()
    for module in (fit, knn, zero_shot):
        stack.enter_context(patch.object(module, "calibrate", lambda *_, **__: None))
    stack.enter_context(patch.object(result, "count_classes", counter))
    return stack


def measure(dataset: str, protocol: str, folder: Path, args: argparse.Namespace) -> list[str]:
    """Return the cells of a row of the table."""
    counter = count_once()

    def take(number: int, *, extras: bool) -> np.ndarray:
        with ExitStack() if extras else without_extras(counter):
            started = np.array([time.perf_counter(), time.process_time()])
            probe.run(
                dataset,
                model="tiny",
                protocol=protocol,
                device="cpu",
                data_dir=args.data_dir,
                cache_dir=folder / "cache",
                results_dir=folder / f"{dataset}-{protocol}-{number}-{extras}",
                predictions_dir=folder / "predictions" if extras else None,
                rerun=True,
                offline=True,
            )
            return np.array([time.perf_counter(), time.process_time()]) - started

    for extras in (True, False):  # extracts and caches the features, and imports libraries
        take(-1, extras=extras)
    taken = np.array([[take(i, extras=extras) for extras in (False, True)] for i in range(args.rounds)])  # (n, 2, 2)
    seconds = [f"{median(own):.3f} ({min(own):.3f} to {max(own):.3f})" for own in taken[:, :, 0].T]
    added = 100 * (taken[:, 1] / taken[:, 0] - 1)
    return [
        dataset,
        protocol,
        *seconds,
        *(f"{median(own):+.1f} ({min(own):+.1f} to {max(own):+.1f})" for own in added.T),
    ]


def main() -> None:
    """Measure all datasets that are here, and print a table."""
    parser = argparse.ArgumentParser(description="Measure what predictions, classes and calibration add to a run.")
    parser.add_argument("--data-dir", type=Path, help="folder of datasets")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each kind")
    parser.add_argument("--dataset", nargs="+", default=DATASETS, help="datasets of the catalogue")
    parser.add_argument("--protocol", nargs="+", default=PROTOCOLS, help="protocols")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dataset in args.dataset:
            try:
                open_dataset(dataset, data_dir=args.data_dir, offline=True)
            except ProbeError:
                continue
            rows += [measure(dataset, protocol, Path(folder), args) for protocol in args.protocol]
    header = ("dataset", "protocol", "without, s", "with, s", "added, %", "added processor time, %")
    machine = f"{os.cpu_count()} cores {describe('cpu').cpu}, Python {platform.python_version()}"
    print(f"# Predictions, classes and calibration\n\nMade by `python benchmarks/run_extras.py` on {machine}.")
    print(f"Seconds of runs of `tiny` with cached features, {args.rounds} rounds in turn: median (range).\n")
    print(markdown_table(header, rows), end="")


if __name__ == "__main__":
    main()
