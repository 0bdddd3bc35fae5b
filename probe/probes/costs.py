"""Estimate the memory and time of a probe before it is fitted.

Memory is counted from the shapes of the arrays. Time is extrapolated from a timed matrix product over some rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from probe.errors import ProtocolError
from probe.models.memory import device_memory
from probe.probes.solvers.curvature import max_numbers
from probe.probes.solvers.fast_solver import batch_size
from probe.probes.solvers.lbfgs import MEMORY
from probe.probes.solvers.objective import CANDIDATES, COPY_BYTES
from probe.specs import Protocol

SCIKIT_LEARN_PAIRS = 10  # correction pairs that SciPy's L-BFGS stores
# Passes over the data in one fit of `fast`: 54,000 self-supervised features of Fashion-MNIST take 3 to 100, depending
# on C. For scikit-learn's solver the estimate is its limit, `max_iter`.
FAST_PASSES = 60
TIMED_ROWS = 4096  # rows of the timed matrix product
FREE_SHARE = 0.9  # largest share of the free memory that a fit may plan to use


@dataclass(frozen=True)
class Cost:
    """Upper estimate of the resources that a probe needs.

    Args:
        memory: bytes on the solver's device, in addition to the features.
        scores: bytes of the scores of the largest scored split, on the host.
        seconds: time of all fits on the CPU.
        passes: number of passes over the training features.
        fits: number of fits.
    """

    memory: int
    scores: int
    seconds: float
    passes: int
    fits: int


def num_fits(protocol: Protocol) -> int:
    """Return the largest number of fits under a protocol for one fold, including the final fits."""
    num = len(protocol.grid)
    if num == 1:
        return protocol.num_seeds
    first = 1 + (num - 1) // protocol.coarse_step
    return protocol.num_seeds * (first + 2 * (protocol.coarse_step.bit_length() - 1) + 1)


def memory_needed(solver: str, *, n: int, d: int, k: int, num_parts: int) -> int:
    """Return the bytes of memory that a fit needs in addition to its features.

    Args:
        solver: `fast` or `sklearn`.
        n: number of training images.
        d: number of features of an image.
        k: number of logits.
        num_parts: number of arrays that the training features consist of. scikit-learn needs them concatenated.
    """
    weights = 8 * (d + 1) * k
    if solver == "fast":
        batch, hessian = batch_size(d, k), 4 * max_numbers(d, k)
        copy = 4 * n * d if 4 * n * d <= COPY_BYTES else 0
        candidates = min(n, CANDIDATES) * 12 * (d + k)
        # One Hessian, its copy and its products; for each C of a batch, a Cholesky factor and the pairs of L-BFGS.
        return (3 + batch) * hessian + batch * (2 * MEMORY + 8) * weights + copy + candidates + (1 << 28)
    concatenated = 4 * n * d if num_parts > 1 else 0
    return concatenated + 4 * 4 * n * k + (2 * SCIKIT_LEARN_PAIRS + 8) * weights


def estimate_cost(
    protocol: Protocol, solver: str, x: np.ndarray, *, n: int, k: int, num_parts: int, num_scored: int
) -> Cost:
    """Estimate what a probe needs, from a timed matrix product over the first rows of `x`.

    Args:
        protocol: the rules of the fits.
        solver: `fast` or `sklearn`.
        x: float32 (m, d), features of which up to `TIMED_ROWS` rows are used.
        n: number of training images.
        k: number of logits.
        num_parts: number of arrays that the training features consist of.
        num_scored: number of images of the largest scored split.
    """
    d, rows = x.shape[1], np.ascontiguousarray(x[:TIMED_ROWS])
    weights = np.ones((d, k), np.float32)
    started = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):  # only the time matters; the fit itself checks the values
        rows.T @ (rows @ weights)
    pass_seconds = (time.perf_counter() - started) * n / len(rows)
    fits = num_fits(protocol)
    passes = fits * (FAST_PASSES if solver == "fast" else protocol.max_iter)
    memory = memory_needed(solver, n=n, d=d, k=k, num_parts=num_parts)
    scores = 2 * 8 * num_scored * k  # float64, and a copy because some metrics sort them
    return Cost(memory, scores, pass_seconds * passes, passes, fits)


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
