"""What a probe will take, before it starts: memory by counting, and time by a measured pass over some rows."""

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

SCIKIT_LEARNS_MEMORY = 10  # pairs that SciPy's L-BFGS keeps
# Passes of a fit: of `fast` about what 54,000 self-supervised features of Fashion-MNIST take, 3 to 100 by C.
# scikit-learn's goes on to `max_iter` at most.
FAST_PASSES = 60
ROWS = 4096  # of the measured pass
SHARE = 0.9  # of the free memory that may be planned with


@dataclass(frozen=True)
class Cost:
    """What a probe takes at most.

    `memory` in bytes beyond the features as they are, where products are computed; `scores` in bytes on the host;
    `seconds`, `passes` over the data, `fits`.
    """

    memory: int
    scores: int
    seconds: float
    passes: int
    fits: int


def num_fits(protocol: Protocol) -> int:
    """Fits that a protocol takes at most for one set of training images, with the final one."""
    num = len(protocol.grid)
    if num == 1:
        return protocol.num_seeds
    first = 1 + (num - 1) // protocol.coarse_step
    return protocol.num_seeds * (first + 2 * (protocol.coarse_step.bit_length() - 1) + 1)


def memory_needed(solver: str, *, n: int, d: int, k: int, num_parts: int) -> int:
    """Bytes that a fit takes beside its features, for n images, d features and k logits."""
    weights = 8 * (d + 1) * k
    if solver == "fast":
        batch, hessian = batch_size(d, k), 4 * max_numbers(d, k)
        copy = 4 * n * d if 4 * n * d <= COPY_BYTES else 0
        candidates = min(n, CANDIDATES) * 12 * (d + k)
        # A Hessian with its copy and what it is made of, a factor and pairs of L-BFGS for each C side by side.
        return (3 + batch) * hessian + batch * (2 * MEMORY + 8) * weights + copy + candidates + (1 << 28)
    joined = 4 * n * d if num_parts > 1 else 0
    return joined + 4 * 4 * n * k + (2 * SCIKIT_LEARNS_MEMORY + 8) * weights


def estimate_cost(
    protocol: Protocol, solver: str, x: np.ndarray, *, n: int, k: int, num_parts: int, num_scored: int
) -> Cost:
    """What fitting on n images will take; a pass over a few rows `x` float32 (m, d) is timed."""
    d, rows = x.shape[1], np.ascontiguousarray(x[:ROWS])
    weights = np.ones((d, k), np.float32)
    started = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):  # it is only timed; what comes of it is refused later
        rows.T @ (rows @ weights)
    a_pass = (time.perf_counter() - started) * n / len(rows)
    fits = num_fits(protocol)
    passes = fits * (FAST_PASSES if solver == "fast" else protocol.max_iter)
    memory = memory_needed(solver, n=n, d=d, k=k, num_parts=num_parts)
    scores = 2 * 8 * num_scored * k  # twice, as a metric may sort them
    return Cost(memory, scores, a_pass * passes, passes, fits)


def refuse_too_much(cost: Cost, solver: str, device: str) -> None:
    """Stop where it will not fit.

    Raises:
        ProtocolError: with the numbers.
    """
    needed = {"cpu": cost.scores, device: cost.memory + (cost.scores if device == "cpu" else 0)}
    for place, memory in needed.items():
        free = device_memory(place).free
        if memory > SHARE * free:
            way_out = "use a larger machine" if solver == "fast" else "use the solver fast, or a larger machine"
            raise ProtocolError(
                f"a fit by the solver {solver} needs about {memory / 1e9:.1f} GB of memory beside the features, and "
                f"{free / 1e9:.1f} GB are free; {way_out}"
            )
