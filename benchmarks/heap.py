"""Measure how much faster extraction on the CPU is if the C library does not return freed memory to the system.

    python benchmarks/heap.py > results/speed/heap.md
    python benchmarks/heap.py RN50 module:benchmarks/efficientnet_lite0.py:make_encoder

Both ways alternate in one process, on images in memory. The table has the median and the range of the ratio of rates.
"""

from __future__ import annotations

import argparse
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
    images = InMemory((image, 0) for image in draw_images(IMAGES))
    rows = []
    for name in parser.parse_args().models:
        encoder = load_encoder(name, device="cpu")
        taken = [[_seconds(encoder, images, way) for way in WAYS] for _ in range(ROUNDS)]
        before, after = (IMAGES / statistics.median(seconds) for seconds in zip(*taken, strict=True))
        ratios = [a / b for a, b in taken]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((encoder.name, f"{before:.1f}", f"{after:.1f}", spread))
    columns = ("model", "images a second, memory returned", "images a second, memory kept", "ratio")
    print(markdown_table(columns, rows), end="")
    machine = describe("cpu")
    print(f"\n{ROUNDS} rounds in turn on {machine.cpu}, torch {machine.packages['torch']}.")


def _seconds(encoder: ImageEncoder, images: InMemory, way: Callable[[], AbstractContextManager[None]]) -> float:
    """Return the seconds that extraction takes; checks that the features are those of the other way."""
    setattr(passes, keep_freed_memory.__name__, way)
    started = time.perf_counter()
    features = passes.extract_features(encoder, images)
    seconds = time.perf_counter() - started
    assert np.array_equal(features.x, _expected.setdefault(encoder.name, features.x))
    return seconds


_expected: dict[str, np.ndarray] = {}

if __name__ == "__main__":
    main()
