"""Measure the cost of leaving SciPy's own OpenBLAS on all threads while scikit-learn fits a probe.

    python benchmarks/blas_threads.py > results/speed/blas_threads.md

Both settings alternate on random features. Prints the median and range of the milliseconds per L-BFGS iteration.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from contextlib import nullcontext
from statistics import median

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probe.environment import describe
from probe.leaderboard.tables import markdown_table
from probe.probes.solvers.scikit_learn import scipys_blas_on_one_thread

WAYS = {"all threads": nullcontext, "SciPy's on one": scipys_blas_on_one_thread}
SIZES = ((1_079, 192, 150), (54_000, 192, 15))  # images, width, iterations
ROUNDS = 5


def main() -> None:
    """Measure both settings, and print a table."""
    rng = np.random.default_rng(0)
    rows = []
    for n, width, iterations in SIZES:
        x = (0.3 * rng.normal(size=(n, width)) + rng.normal(size=width)).astype(np.float32)
        y = rng.integers(0, 10, n)
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, context in WAYS.items():
                taken[way].append(_milliseconds(x, y, iterations, context))
        cells = [f"{median(ms):.2f} ({min(ms):.2f} to {max(ms):.2f})" for ms in taken.values()]
        ratios = [a / b for a, b in zip(*taken.values(), strict=True)]
        rows.append((f"{n:,} x {width}", *cells, f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"))
    print(markdown_table(("features", *(f"{way}, ms" for way in WAYS), "ratio"), rows), end="")
    versions = describe("cpu").packages
    machine = f"{os.cpu_count()} cores {describe('cpu').cpu}, Python {platform.python_version()}"
    print(f"\n{ROUNDS} rounds in turn, {machine},")
    print(f"NumPy {versions['numpy']}, SciPy {versions['scipy']}, scikit-learn {versions['scikit-learn']}.")


def _milliseconds(x: np.ndarray, y: np.ndarray, iterations: int, context: object) -> float:
    with context(), warnings.catch_warnings():  # type: ignore[operator]  # a function without arguments
        # The fits stop early on purpose: only the time per iteration counts.
        warnings.simplefilter("ignore", ConvergenceWarning)
        started = time.perf_counter()
        fitted = LogisticRegression(C=56, max_iter=iterations, tol=1e-9).fit(x, y)
    return 1e3 * (time.perf_counter() - started) / int(fitted.n_iter_[0])


if __name__ == "__main__":
    main()
