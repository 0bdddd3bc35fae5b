"""Measure how much faster extraction on the CPU is if the C library does not return freed memory to the system.

    python benchmarks/heap.py MODEL... > results/speed/heap.md

Both ways alternate in one process, on images in memory. The table has the median and the range of the ratio of rates.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from families import InMemory, draw_images

from probe.environment import describe
from probe.features import passes
from probe.heap import keep_freed_memory
from probe.leaderboard.tables import markdown_table
from probe.models.encoder import ImageEncoder
from probe.models.loading import load_encoder

WAYS = (nullcontext, keep_freed_memory)
MODELS = ("random:RN50", "random:ViT-B/32")
IMAGES, ROUNDS = 128, 5


def main() -> None:
    """Measure the models, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    models = parser.parse_args().models
    images = InMemory((image, 0) for image in draw_images(IMAGES))
    rows = []
    for name in models:
        encoder = load_encoder(name, device="cpu")
        taken = [[_seconds(encoder, images, way) for way in WAYS] for _ in range(ROUNDS)]
        before, after = (IMAGES / statistics.median(seconds) for seconds in zip(*taken, strict=True))
        ratios = [a / b for a, b in taken]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((encoder.name, f"{before:.1f}", f"{after:.1f}", spread))
    columns = ("model", "images a second, memory returned", "images a second, memory kept", "ratio")
    machine = describe("cpu")
    print(f"# Memory of a batch\n\nMade by `python benchmarks/heap.py {' '.join(models)}` on")
    print(
        f"{os.cpu_count()} cores {machine.cpu}, torch {machine.packages['torch']}. "
        f"{IMAGES} images, {ROUNDS} rounds in turn.\n"
    )
    print(markdown_table(columns, rows), end="")


def _seconds(encoder: ImageEncoder, images: InMemory, way: Callable[[], AbstractContextManager[None]]) -> float:
    """Return the seconds that extraction takes, and check that both ways give the same features."""
    setattr(passes, keep_freed_memory.__name__, way)
    started = time.perf_counter()
    features = passes.extract_features(encoder, images)
    seconds = time.perf_counter() - started
    assert np.array_equal(features.x, _expected.setdefault(encoder.name, features.x))
    return seconds


_expected: dict[str, np.ndarray] = {}

if __name__ == "__main__":
    main()
