"""Compare the solver `fast` with scikit-learn's lbfgs: single fits, the paper's protocol, many classes, large sizes.

    python benchmarks/self_supervised.py --data-dir DIR --out features.npz
    python benchmarks/solvers.py --features self-supervised=features.npz [--features NAME=FILE.npz] fits
    python benchmarks/solvers.py --features self-supervised=features.npz protocol
    python benchmarks/solvers.py classes
    python benchmarks/solvers.py small
    python benchmarks/solvers.py growth
    python benchmarks/solvers.py evaluation
    python benchmarks/solvers.py --features NAME=FILE.npz estimates

Each command prints tables for `results/speed/solvers.md`. Both solvers alternate in one process. The objectives and
gradients are computed in float64; for scikit-learn's solver, after its time has been taken.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probe.environment import describe
from probe.features.arrays import Features
from probe.features.files import load
from probe.leaderboard.tables import markdown_table
from probe.probes import costs
from probe.probes.fit import fit_probe
from probe.probes.protocols import get_protocol
from probe.probes.shots import count_drawn
from probe.probes.solvers.estimator import FastLogisticRegression
from probe.probes.solvers.evaluation import evaluate
from probe.probes.solvers.fast import loss_of
from probe.probes.solvers.fast_solver import Fast
from probe.probes.solvers.objective import Objective, Rows, Softmax
from probe.probes.solvers.scikit_learn import scipys_blas_on_one_thread
from probe.specs import Protocol

PAPER = get_protocol("clip-paper")
ESTIMATED = ("readme", "clip-paper", "dinov2", "few-shot-16", "open-clip")
COARSE = PAPER.grid[:: PAPER.coarse_step]
MANY = (1e-2, 1.0, 1e2)  # values of C for a hundred classes
FEW_ITERATIONS = 100  # of scikit-learn for a hundred classes, half a second per iteration
ROUNDS = 3
TURNS = 31  # evaluations and products; the first of each is not counted
CLASSES, NUM, WIDTH = 100, 50_000, 768
SMALL = ((100, 64, 2), (100, 64, 10), (500, 64, 10), (1_500, 64, 10), (1_500, 512, 10), (5_000, 512, 10))


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", action="append", default=[], metavar="NAME=FILE.npz")
    parser.add_argument("what", choices=tuple(COMMANDS))
    args = parser.parse_args()
    machine = describe("cpu")
    print(f"{machine.cpu}, {machine.torch_threads} threads, torch {machine.packages['torch']}, ", end="")
    print(f"scikit-learn {machine.packages['scikit-learn']}\n")
    for given in args.features or [""]:
        name, _, path = given.partition("=")
        fold = load(Path(path)).folds[0] if path else {}
        COMMANDS[args.what](name, fold)


def fits(name: str, fold: Mapping[str, Features]) -> None:
    """Fit every first C of the paper's search, each from zero weights."""
    x, y = point(fold["train"]), fold["train"].y
    rows = [compare(x, y, C) for C in COARSE]
    print(f"{name}, {x.shape[0]:,} x {x.shape[1]}, {len(np.unique(y))} classes\n")
    print(markdown_table(HEADER, rows))


def classes(_: str, __: Mapping[str, Features]) -> None:
    """Fit a hundred invented classes, with features whose scales decrease as in CLIP's features."""
    x, y = made_up(NUM, WIDTH, CLASSES)
    rows = [compare(x, y, C, max_iter=FEW_ITERATIONS) for C in MANY]
    print(f"invented, {NUM:,} x {WIDTH}, {CLASSES} classes\n")
    print(markdown_table(HEADER, rows))


HEADER = (
    *("C", "sklearn, s", "iterations", "objective", "gradient ratio", "fast, s to that objective", "times faster"),
    *("fast, s to its end", "iterations", "objective", "gradient ratio", "same predictions, %"),
)


@contextmanager
def watched() -> Iterator[list[tuple[float, float]]]:
    """Record the times and objectives of all evaluations of the first probe that is fitted in the block."""
    seen, evaluate = [], Objective.evaluate

    def look(*args: Any, **options: Any) -> list[tuple[float, torch.Tensor]]:
        found = evaluate(*args, **options)
        seen.append((time.perf_counter(), found[0][0]))
        return found

    Objective.evaluate = look  # type: ignore[method-assign]  # only in the block
    try:
        yield seen
    finally:
        Objective.evaluate = evaluate  # type: ignore[method-assign]  # as it was


def compare(
    x: np.ndarray,
    y: np.ndarray,
    C: float,  # noqa: N803 - the field's name
    max_iter: int = PAPER.max_iter,
) -> tuple[str, ...]:
    """Fit with both solvers at one C, and return a row of the table."""
    # With its default tolerance, scikit-learn stops early, and the time would cover fewer iterations.
    estimator = LogisticRegression(C=C, max_iter=max_iter, tol=1e-12)
    started = time.perf_counter()
    with warnings.catch_warnings(), scipys_blas_on_one_thread():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the table has the gradients
        estimator.fit(x, y)
    theirs = time.perf_counter() - started
    rows = Rows([x])
    problem = Objective(
        rows, loss_of(np.searchsorted(estimator.classes_, y), len(estimator.classes_), rows.device), [C]
    )
    weights = torch.from_numpy(np.vstack([estimator.coef_.T, estimator.intercept_])).double()
    end, start = (evaluate(problem, 0, at) for at in (weights, torch.zeros_like(weights)))
    objective, ratio = end.value, float(end.gradient.abs().max() / start.gradient.abs().max())
    started = time.perf_counter()
    with watched() as seen:
        fit = Fast([x], y, max_iter=PAPER.max_iter, tol=PAPER.tol).fit(C)
    ours = time.perf_counter() - started
    # Up to the rounding of float32. The last evaluation always counts, since its products are in float64.
    there = next((at - started for at, value in seen if value <= objective * (1 + 1e-7)), ours)
    same = float(
        (fit.scores(x, len(fit.classes)).argmax(axis=1) == estimator.decision_function(x).argmax(axis=1)).mean()
    )
    return (
        *(f"{C:.4g}", f"{theirs:.1f}", str(int(estimator.n_iter_.max())), f"{objective:.7f}", f"{ratio:.1e}"),
        *(f"{there:.2f}", f"{theirs / there:.0f}"),
        *(f"{ours:.2f}", str(fit.n_iter), f"{fit.objective:.7f}", f"{fit.gradient_ratio:.1e}", f"{100 * same:.2f}"),
    )


def protocol(name: str, fold: Mapping[str, Features]) -> None:
    """Run the whole protocol of the paper, several times with the fast solver."""
    rules = _for_features(PAPER, fold)
    spent: dict[str, list[float]] = {}
    rows, outcomes = [], {}
    for solver in ("fast",) * ROUNDS + ("sklearn",):
        started = time.perf_counter()
        result = fit_probe(train=fold["train"], val=fold["val"], test=fold["test"], protocol=rules, solver=solver)
        spent.setdefault(solver, []).append(time.perf_counter() - started)
        converged = sum(point.converged for point in result.sweep)
        cells = (solver, f"{spent[solver][-1]:.1f}", f"{result.C:.4g}", f"{100 * result.score:.2f}")
        numbers = (f"{result.objective:.7f}", f"{result.gradient_ratio:.1e}", f"{converged} of {len(result.sweep)}")
        rows.append((*cells, *numbers))
        outcomes[solver] = np.asarray(result.predictions)
    print(f"{name}, the whole protocol\n")
    header = ("solver", "seconds", "C", "score, %", "objective", "gradient ratio", "fits of the sweep that converged")
    print(markdown_table(header, rows))
    same = float((outcomes["fast"] == outcomes["sklearn"]).mean())
    print(f"sklearn takes {spent['sklearn'][0] / median(spent['fast']):.0f} times as long; ", end="")
    print(f"{100 * same:.2f} % of the predictions of the test split are the same\n")


def small(_: str, __: Mapping[str, Features]) -> None:
    """Fit small problems with both estimators, in turn, at C = 1."""
    rows = []
    for n, d, k in SMALL:
        x, y = made_up(n, d, k)
        taken = []
        for _turn in range(TURNS):
            started = time.perf_counter()
            FastLogisticRegression().fit(x, y)
            middle = time.perf_counter()
            with scipys_blas_on_one_thread():
                LogisticRegression(max_iter=1000).fit(x, y)
            taken.append((middle - started, time.perf_counter() - middle))
        ours, theirs = (median(seconds) for seconds in zip(*taken[1:], strict=True))
        rows.append(
            (f"{n:,} x {d}", str(k), f"{1e3 * ours:.1f}", f"{1e3 * theirs:.1f}", _spread(taken[1:], theirs=True))
        )
    print(markdown_table(("features", "classes", "fast, ms", "sklearn, ms", "times faster, quartiles"), rows))


def _spread(taken: Sequence[tuple[float, float]], *, theirs: bool = False) -> str:
    """Return the median and the quartiles of the ratios of pairs, of the second by the first if `theirs`."""
    ratios = sorted(b / a if theirs else a / b for a, b in taken)
    quarter = len(ratios) // 4
    return f"{median(ratios):.1f} ({ratios[quarter]:.1f} to {ratios[-quarter - 1]:.1f})"


def estimates(name: str, fold: Mapping[str, Features]) -> None:
    """Compare the estimate before a fit with the time that all fits of a protocol take."""
    rows = []
    k, num_scored = len(np.unique(fold["train"].y)), max(len(fold["val"]), len(fold["test"]))
    for rules in (_for_features(get_protocol(protocol_name), fold) for protocol_name in ESTIMATED):
        arrays = [fold[split].at(rules.feature_point) for split in ("train", "val")]
        n = min(sum(map(len, arrays)), count_drawn(rules, k) if rules.shots else sys.maxsize)
        pairs = []
        for _ in range(ROUNDS):
            estimate = costs.estimate_cost(rules, "fast", arrays, n=n, k=k, num_scored=num_scored).seconds
            started = time.perf_counter()
            fit_probe(train=fold["train"], val=fold["val"], test=fold["test"], protocol=rules, solver="fast")
            pairs.append((estimate, time.perf_counter() - started))
        ratios = sorted(estimate / taken for estimate, taken in pairs)
        estimate, taken = (median(seconds) for seconds in zip(*pairs, strict=True))
        spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append((name, rules.name, f"{estimate:.2f}", f"{taken:.2f}", spread))
    print(markdown_table(("features", "protocol", "estimate, s", "taken, s", "ratio"), rows))


def _for_features(rules: Protocol, fold: Mapping[str, Features]) -> Protocol:
    """Return a protocol for the projected features if there are no others."""
    return replace(rules, feature_point="projected") if fold["train"].pre_projection is None else rules


def growth(_: str, __: Mapping[str, Features]) -> None:
    """Measure the milliseconds of a pass for numbers of rows and classes, and for a tenth of ImageNet."""
    rows = [
        (f"{n:,}", str(d), str(k), f"{1e3 * seconds:.0f}", f"{4e-9 * n * d * k / seconds:.0f}")
        for n, d, k in (
            *((n, 512, 10) for n in (12_500, 25_000, 50_000, 100_000, 200_000)),
            *((50_000, 512, k) for k in (10, 20, 50, 100, 200, 500, 1000)),
            (128_117, 768, 1000),
        )
        for seconds in [a_pass(n, d, k)]
    ]
    print(markdown_table(("rows", "features", "classes", "ms a pass", "GFLOP/s"), rows))


def evaluation(_: str, __: Mapping[str, Features]) -> None:
    """Measure evaluations of the objective, in turn with products of the same features and a vector."""
    rows = []
    for n, d, k, probes in ((54_000, 512, 10, 1), (54_000, 512, 10, 8), (54_000, 512, 100, 1)):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d), dtype=np.float32)
        objective = Objective(Rows([x]), Softmax(torch.from_numpy(rng.integers(k, size=n)), k), [1.0] * probes)
        weights = [torch.full((d + 1, k), 1e-3, dtype=torch.float64)] * probes
        features, vector = torch.from_numpy(x), torch.ones(d)
        taken = []
        for _turn in range(TURNS):
            started = time.perf_counter()
            objective.evaluate(weights, range(probes))
            middle = time.perf_counter()
            features @ vector
            taken.append((middle - started, time.perf_counter() - middle))
        ours, product = (median(seconds) for seconds in zip(*taken[1:], strict=True))
        cells = (f"{n:,} x {d}", str(k), str(probes), f"{1e3 * ours:.0f}", f"{1e3 * product:.1f}")
        rows.append((*cells, _spread(taken[1:])))
    header = ("features", "classes", "probes", "ms an evaluation", "ms a product with a vector", "ratio, quartiles")
    print(markdown_table(header, rows))


def a_pass(n: int, d: int, k: int) -> float:
    """Return the median seconds of an evaluation of objective and gradient."""
    rng = np.random.default_rng(0)
    rows = Rows([rng.standard_normal((n, d), dtype=np.float32)])
    objective = Objective(rows, Softmax(torch.from_numpy(rng.integers(k, size=n)), k), [1.0])
    weights = [torch.full((d + 1, k), 1e-3, dtype=torch.float64)]
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        objective.evaluate(weights, [0])
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def made_up(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and features float32 (n, d) around class means, in directions of decreasing scale."""
    rng = np.random.default_rng(0)
    scales = (1 + np.arange(d)) ** -0.7
    mixing = np.linalg.qr(rng.standard_normal((d, d)))[0]
    y = rng.integers(k, size=n)
    means = 0.6 * rng.standard_normal((k, d))
    x = (means[y] + rng.standard_normal((n, d))) * scales @ mixing + rng.standard_normal(d) * 0.1
    return x.astype(np.float32), y


def point(features: Features) -> np.ndarray:
    """Return the pre-projection features, which the paper's protocol uses, or the projected features without them."""
    return features.x if features.pre_projection is None else features.pre_projection


COMMANDS = {
    "fits": fits,
    "protocol": protocol,
    "classes": classes,
    "small": small,
    "growth": growth,
    "evaluation": evaluation,
    "estimates": estimates,
}

if __name__ == "__main__":
    main()
