"""Compare the search of k-NN with one float32 matrix product and `torch.topk`, in time and memory.

    python benchmarks/knn.py > results/speed/knn.md
    python benchmarks/knn.py --bank 6000 --queries 1000     # a quick look

Both methods alternate in one process. The memory of each is the growth of the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from probe.environment import describe
from probe.probes.knn import vote
from probe.probes.neighbours import find_neighbours

NUM_CLASSES, TEMPERATURE = 100, 0.07
ROWS = 256  # queries of one product of the comparison, whose products then fit into memory
METHODS = ("product and topk", "k-NN")


def draw(n: int, d: int, seed: int) -> np.ndarray:
    """Return features float32 (n, d) that share a mean and have few large directions, as features of images do."""
    rng = np.random.default_rng(seed)
    scales = np.float32(1) / np.sqrt(np.arange(1, d + 1, dtype=np.float32))
    x = rng.standard_normal((n, d), dtype=np.float32)
    x += 0.5
    x *= scales
    return x


def make_method(name: str, args: argparse.Namespace) -> Callable[[], object]:
    """Return a function that runs a method once. Its features are made before."""
    bank, x = draw(args.bank, args.width, 0), draw(args.queries, args.width, 1)
    if name == "k-NN":
        y = np.arange(args.bank) % NUM_CLASSES
        return lambda: vote(find_neighbours([bank], x, args.k), y, args.k, TEMPERATURE, NUM_CLASSES)
    columns, rows = torch.from_numpy(bank).T, torch.from_numpy(x)
    return lambda: [(part @ columns).topk(args.k) for part in rows.split(ROWS)]


def peak_bytes() -> int:
    """Return the peak memory of this process. On Linux, `resource.getrusage` would include the peak of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure_memory(name: str, args: argparse.Namespace) -> float:
    """Return by how many MB a method raises the peak memory of a new process in which the features already are."""
    sizes = [f"--{key}={getattr(args, key)}" for key in ("bank", "queries", "width", "k", "threads")]
    command = [sys.executable, __file__, *sizes, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, and print a page of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, default in (("bank", 60_000), ("queries", 10_000), ("width", 512), ("k", 200), ("rounds", 5)):
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        run = make_method(args.memory_of, args)
        before = peak_bytes()
        run()
        print((peak_bytes() - before) / 1e6)
        return
    runs = {name: make_method(name, args) for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(args.rounds + 1):  # A B A B, of which the first round warms up
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    print("# k-nearest neighbours\n")
    print(
        f"Made by `python benchmarks/knn.py` on {args.threads} cores {describe('cpu').cpu}, torch {torch.__version__}."
    )
    print(
        f"The bank has {args.bank} images of {args.width} features, and there are {args.queries} queries; k = {args.k}."
    )
    print("Seconds are medians (minimum to maximum); memory is in addition to the features.\n")
    print("| method | seconds | memory, MB |")
    print("| ------ | ------- | ---------- |")
    for name in METHODS:
        own = seconds[name][1:]
        times = f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f})"
        print(f"| {name} | {times} | {measure_memory(name, args):.0f} |")
    ratios = [ours / theirs for theirs, ours in zip(*(seconds[name][1:] for name in METHODS), strict=True)]
    print(f"\nk-NN takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f}).")


if __name__ == "__main__":
    main()
