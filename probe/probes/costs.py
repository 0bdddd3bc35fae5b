"""Estimate the memory and time of a probe before it is fitted.

Memory is counted from the shapes of the arrays. Time is extrapolated from timed matrix products over some rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probe.errors import ProtocolError
from probe.models.memory import device_memory
from probe.probes.solvers.block_threads import SPANS
from probe.probes.solvers.curvature import ESTIMATES_BYTES, max_numbers, multiplications
from probe.probes.solvers.fast_solver import EXACT_COST, batch_size
from probe.probes.solvers.lbfgs import MEMORY
from probe.probes.solvers.objective import CANDIDATES, COPY_BYTES
from probe.specs import Protocol

MAX_STORED = 100  # estimates and inverses that the fits of a sweep store, if there is room: about 3 of each for a fit
SCIKIT_LEARN_PAIRS = 10  # correction pairs that SciPy's L-BFGS stores
# Evaluations of the objective and estimates of the Hessian that one fit of `fast` typically takes, from the committed
# records of `tiny` and `random:tiny` and from `benchmarks/solvers.py`.
SWEEP_EVALUATIONS, SWEEP_ESTIMATES = 45, 1.25  # of a sweep, in which several values of C share an evaluation
SINGLE_EVALUATIONS, SINGLE_ESTIMATES = 60, 1.0  # of a fit at a single C
STEP_SECONDS = 2e-3  # seconds of a step without its products
TIMED_ROWS = 4096  # rows of the timed matrix products
FREE_SHARE = 0.9  # largest share of the free memory that a fit may plan to use


@dataclass(frozen=True)
class Cost:
    """Upper estimate of the resources that a probe needs.

    Args:
        memory: bytes on the solver's device, in addition to the features.
        scores: bytes of the scores of the largest scored split, on the host.
        seconds: time of all fits on the CPU. For `fast`, the typical time; for scikit-learn's solver, the time at its
            limit of iterations.
        fits: largest number of fits.
    """

    memory: int
    scores: int
    seconds: float
    fits: int


def num_fits(protocol: Protocol) -> int:
    """Return the largest number of fits under a protocol for one fold, including the final fits."""
    num = len(protocol.grid)
    if num == 1:
        return protocol.num_seeds
    first = 1 + (num - 1) // protocol.coarse_step
    further = 2 * (protocol.coarse_step.bit_length() - 1)
    if protocol.bisections:
        further = max(2, protocol.bisections)  # both ends, and later the new end; the first middle is in the grid
    return protocol.num_seeds * (first + further + 1)


def memory_needed(solver: str, *, n: int, d: int, k: int, num_parts: int) -> int:
    """Return the bytes of memory that a fit needs in addition to its features.

    Args:
        solver: `fast` or `sklearn`.
        n: number of training images.
        d: number of features of an image.
        k: number of logits.
        num_parts: number of arrays that the training features consist of. scikit-learn needs them concatenated.
    """
    if solver == "fast":
        r = max(1, min(d, n - 1))  # principal components, see `Rows.num_components`
        weights, batch, hessian = 8 * (r + 1) * k, batch_size(r, k), 4 * max_numbers(r, k)
        copy = 4 * n * r if 4 * n * d <= COPY_BYTES else 0
        if 4 * n * r * k <= EXACT_COST:  # the features and the whitened features in float64
            copy = 8 * n * (d + r)
        candidates = min(n, CANDIDATES) * 12 * (r + k)
        gradients = 2 * MEMORY + 8 + SPANS * torch.get_num_threads()  # the pairs of L-BFGS, and the sums of spans
        # Stored estimates of Hessians and their inverses; before a new estimate they leave room for two of these three:
        # the Hessian, its copy and its products. For each C of a batch, a Cholesky factor and gradients.
        estimates = max(2 * hessian, min(ESTIMATES_BYTES, MAX_STORED * hessian))
        return estimates + (1 + batch) * hessian + batch * gradients * weights + copy + candidates + (1 << 28)
    weights, concatenated = 8 * (d + 1) * k, 4 * n * d if num_parts > 1 else 0
    return concatenated + 4 * 4 * n * k + (2 * SCIKIT_LEARN_PAIRS + 8) * weights


def estimate_cost(
    protocol: Protocol, solver: str, arrays: Sequence[np.ndarray], *, n: int, k: int, num_scored: int
) -> Cost:
    """Estimate what a probe needs, from timed matrix products over the first rows of the first array.

    Args:
        protocol: the rules of the fits.
        solver: `fast` or `sklearn`.
        arrays: training features float32 (m, d), in one or several arrays.
        n: number of training images.
        k: number of logits.
        num_scored: number of images of the largest scored split.
    """
    x, d, fits = arrays[0], arrays[0].shape[1], num_fits(protocol)
    rows, weights = torch.from_numpy(np.array(x[:TIMED_ROWS])), torch.ones(k, d)
    pass_seconds = _seconds(lambda: (weights @ rows.T) @ rows) * n / len(rows)
    if solver == "fast":
        is_single = len(protocol.grid) == 1
        evaluations = SINGLE_EVALUATIONS if is_single else SWEEP_EVALUATIONS
        estimates = SINGLE_ESTIMATES if is_single else SWEEP_ESTIMATES
        # Seconds of one multiplication in a large matrix product.
        rate = _seconds(lambda: rows.T @ rows) / (d * d * len(rows))
        curvature = rate * multiplications(n, min(n, d), k)
        preparation = 2 * rate * n * d * d  # the covariance and the whitened copy
        seconds = preparation + fits * (evaluations * (pass_seconds + STEP_SECONDS) + estimates * curvature)
    else:
        seconds = fits * protocol.max_iter * pass_seconds
    memory = memory_needed(solver, n=n, d=d, k=k, num_parts=len(arrays))
    scores = 2 * 8 * num_scored * k  # float64, and a copy because some metrics sort them
    return Cost(memory, scores, seconds, fits)


def _seconds(work: Callable[[], object]) -> float:
    """Call `work` three times and return the shortest duration in seconds."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def check_memory(cost: Cost, solver: str, device: str) -> None:
    """Check that a probe fits into the free memory of the host and of the device.

    Raises:
        ProtocolError: there is not enough memory.
    """
    needed = {"cpu": cost.scores, device: cost.memory + (cost.scores if device == "cpu" else 0)}
    for place, memory in needed.items():
        free = device_memory(place).free
        if memory > FREE_SHARE * free:
            remedy = "use a larger machine" if solver == "fast" else "use the solver fast or a larger machine"
            raise ProtocolError(
                f"a fit by the solver {solver} needs about {memory / 1e9:.1f} GB of memory in addition to the features,"
                f" but only {free / 1e9:.1f} GB are free; {remedy}"
            )
