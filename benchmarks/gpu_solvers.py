"""Fits on a GPU, also compared with scikit-learn's array API and torch's L-BFGS: the steps `solver-*` of `gpu.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_step import Step
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from solvers import watched
from torch.nn.functional import cross_entropy

from probe.environment import package_version
from probe.features.arrays import Features
from probe.probes.fit import fit_probe
from probe.probes.fits import Fit
from probe.probes.protocols import get_protocol
from probe.probes.solvers.catalog import device_for
from probe.probes.solvers.evaluation import evaluate
from probe.probes.solvers.fast import loss_of
from probe.probes.solvers.fast_solver import Fast
from probe.probes.solvers.objective import Objective, Rows
from probe.probes.solvers.scikit_learn import fit_on_device

PAPER = replace(get_protocol("clip-paper"), feature_point="projected")


def made_up(n: int, d: int, k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Return invented features float32 (n, d) and labels int64 (n,), made on the device.

    As in `solvers.py`, the features are around class means, and their scales decrease as in CLIP's features.
    The distance of the means is such that about three of four images can be classified.
    """
    generator = torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=device)
    scales = (1 + torch.arange(d, device=device)) ** -0.7
    mixing = torch.linalg.qr(draw(d, d))[0]
    apart = 2 * norm.isf(0.25 / (k - 1))  # in standard deviations, by the union bound over the other classes
    means = apart / (2 * d) ** 0.5 * draw(k, d)
    offset = 0.1 * draw(d)
    y = torch.randint(k, (n,), generator=generator, device=device)
    x = np.empty((n, d), np.float32)
    for own, part in zip(y.split(1 << 16), np.array_split(x, range(1 << 16, n, 1 << 16)), strict=True):
        part[:] = (((means[own] + draw(len(own), d)) * scales) @ mixing + offset).cpu().numpy()
    return x, y.cpu().numpy()


@contextmanager
def watched_fits(step: Step, table: str) -> Iterator[list[float]]:
    """Write a row for every fit in the block as soon as it is done; yield a list of the seconds inside the solver."""
    original, started, spent = Fast.fit_all, time.perf_counter(), [0.0]

    def fit_all(self: Fast, *args: Any, is_final: bool, done: Callable[[Fit], None], **options: Any) -> None:
        def note(fit: Fit) -> None:
            step.add(
                table,
                C=fit.C,
                fit="final" if is_final else "sweep",
                **{
                    "done after, s": time.perf_counter() - started,
                    "iterations": fit.n_iter,
                    "objective": fit.objective,
                },
                **{"gradient ratio": fit.gradient_ratio, "converged": str(fit.converged)},
            )
            done(fit)

        since = time.perf_counter()
        original(self, *args, is_final=is_final, done=note, **options)
        spent[0] += time.perf_counter() - since

    Fast.fit_all = fit_all  # type: ignore[method-assign]  # only in the block
    try:
        yield spent
    finally:
        Fast.fit_all = original  # type: ignore[method-assign]  # as it was


def protocol(step: Step, n: int, d: int, k: int, *, num_test: int, rounds: int = 1) -> None:
    """Run the whole protocol `clip-paper`: a sweep over C, the final fit at a gradient of 1e-6, and the test score."""
    if step.quick:
        n, d, k, num_test, rounds = 800, 16, min(k, 20), 100, 1
    x, y = made_up(n + num_test, d, k, step.device)
    ends = [round(0.9 * n), n]  # a tenth is for validation
    train, val, test = map(Features, np.split(x, ends), np.split(y, ends))
    size = f"{n:,} x {d}, {k:,} classes"
    for _ in range(rounds):
        step.memory()  # resets the peak
        started = time.perf_counter()
        with watched_fits(step, f"Fits of the protocol, {size}") as spent:
            result = fit_probe(train=train, val=val, test=test, protocol=PAPER, solver="fast", device=step.device)
        step.add(
            f"The protocol clip-paper, {size}",
            seconds=time.perf_counter() - started,
            **{"of these in fits": spent[0], "values of C": len(result.sweep), "C": result.C},
            **{"score, %": 100 * result.score, "iterations of the final fit": result.n_iter},
            objective=result.objective,
            **{"gradient ratio": result.gradient_ratio, "converged": str(result.converged)},
            **{"fits of the sweep that converged": sum(point.converged for point in result.sweep)},
            **step.memory(),
        )


def solver_equal(step: Step) -> None:
    """Compare the solver with scikit-learn's array API and with torch's L-BFGS, each on the device."""
    n, d, k = (2000, 32, 10) if step.quick else (100_000, 768, 100)
    most = 100 if step.quick else 500  # iterations of the other solvers
    x, y = made_up(n, d, k, step.device)
    Fast([x[:2000]], y[:2000], max_iter=20, tol=1e-6, device=step.device).fit(1.0)  # to warm up
    for C in (1e-2, 1.0):  # noqa: N806 - the field's name
        began = time.perf_counter()
        with watched() as seen:
            fit = Fast([x], y, max_iter=1000, tol=1e-6, device=step.device).fit(C)
        ours = time.perf_counter() - began
        table = f"Solvers at equal objective, {n:,} x {d}, {k} classes, C = {C:g}"
        step.add(
            table,
            **{"solver": "fast", "seconds": ours, "iterations": fit.n_iter, "objective": fit.objective},
            **{"gradient ratio": fit.gradient_ratio},
        )
        objective = Objective(Rows([x], step.device), loss_of(y, k, torch.device(step.device)), [C])
        zeros = torch.zeros(d + 1, k, dtype=torch.float64, device=step.device)
        at_zero = float(evaluate(objective, 0, zeros).gradient.abs().max())
        others = {"torch.optim.LBFGS": torch_lbfgs, "scikit-learn, array API": array_api}
        for name, solve in others.items():
            if solve is array_api and device_for("sklearn", "cuda") == "cpu":
                step.note(f"scikit-learn {package_version('scikit-learn')} takes no tensors; 1.9 does")
                continue
            started = time.perf_counter()
            weights, iterations = solve(step, x, y, C, most)
            theirs = time.perf_counter() - started
            end = evaluate(objective, 0, weights.double())
            # Up to the rounding of float32. The last evaluation always counts, since its products are in float64.
            there = next((at - began for at, value in seen if value <= end.value * (1 + 1e-7)), ours)
            step.add(
                table,
                **{"solver": name, "seconds": theirs, "iterations": iterations, "objective": end.value},
                **{"gradient ratio": float(end.gradient.abs().max()) / at_zero},
                **{"fast, s to this objective": there, "times faster": theirs / there},
            )


def torch_lbfgs(
    step: Step,
    x: np.ndarray,
    y: np.ndarray,
    C: float,  # noqa: N803 - the field's name
    most: int,
) -> tuple[torch.Tensor, int]:
    """Fit with torch's own L-BFGS, and return weights (d + 1, k) and the number of iterations."""
    features, labels = torch.from_numpy(x).to(step.device), torch.from_numpy(y).to(step.device)
    weights = torch.zeros(x.shape[1] + 1, int(y.max()) + 1, device=step.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=most,
        history_size=10,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(features @ weights[:-1] + weights[-1], labels)
        loss = loss + weights[:-1].square().sum() / (2 * C * len(x))
        loss.backward()
        return loss

    optimizer.step(closure)
    step.wait()
    return weights.detach(), int(optimizer.state[weights]["n_iter"])


def array_api(
    step: Step,
    x: np.ndarray,
    y: np.ndarray,
    C: float,  # noqa: N803 - the field's name
    most: int,
) -> tuple[torch.Tensor, int]:
    """Fit with scikit-learn on tensors, and return weights (d + 1, k) and the number of iterations."""
    # With its default tolerance, scikit-learn stops early, and the time would cover fewer iterations.
    estimator = LogisticRegression(C=C, max_iter=most, tol=1e-12)
    fit_on_device(estimator, x, y, step.device)
    weights = torch.from_numpy(np.vstack([estimator.coef_.T, estimator.intercept_])).to(step.device)
    return weights, int(np.max(estimator.n_iter_))
