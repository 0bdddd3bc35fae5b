"""What a probe will take, before it starts: memory by counting, and time by a measured pass over some rows."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from probe.errors import ProtocolError
from probe.models.memory import device_memory
from probe.probes.curvature import CANDIDATES, MAX_BLOCK, MAX_NUMBERS
from probe.probes.lbfgs import MEMORY
from probe.probes.objective import COPY_BYTES
from probe.specs import Protocol

SCIKIT_LEARNS_MEMORY = 10  # pairs that SciPy's L-BFGS keeps
# Passes of a fit: of `fast` about what 54,000 self-supervised features of Fashion-MNIST take, 3 to 100 by C.
# scikit-learn's goes on to `max_iter` at most.
FAST_PASSES = 60
ROWS = 4096  # of the measured pass
SHARE = 0.9  # of the free memory that may be planned with


@dataclass(frozen=True)
class Cost:
    """`memory` in bytes beyond the features as they are, `seconds` at most, `passes` over the data, `fits`."""

    memory: int
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


def memory_needed(solver: str, *, n: int, d: int, k: int, num_parts: int, num_scored: int) -> int:
    """Bytes that a fit takes beside its features, for n images, d features and k logits, and scores of further images.

    Scores are there twice, as a metric may sort them.
    """
    return 2 * 8 * num_scored * k + _memory_of_fit(solver, n=n, d=d, k=k, num_parts=num_parts)


def _memory_of_fit(solver: str, *, n: int, d: int, k: int, num_parts: int) -> int:
    weights = 8 * (d + 1) * k
    if solver == "fast":
        # A Hessian with its copy and factor, of one C and its neighbour; pairs of L-BFGS; features in the basis.
        hessian = 4 * max(k * (d + 1) ** 2, min(k * (d + 1) * min(k * (d + 1), MAX_BLOCK), MAX_NUMBERS))
        copy = 4 * n * d if 4 * n * d <= COPY_BYTES else 0
        copy += min(n, CANDIDATES) * 12 * (d + k)  # of the rows that the Hessian is drawn from
        return 5 * hessian + (2 * MEMORY + 8) * weights + copy + (1 << 28)
    joined = 4 * n * d if num_parts > 1 else 0
    return joined + 4 * 4 * n * k + (2 * SCIKIT_LEARNS_MEMORY + 8) * weights


def estimate(
    protocol: Protocol, solver: str, x: np.ndarray, *, n: int, k: int, num_parts: int, num_scored: int
) -> Cost:
    """What fitting on n images will take; a pass over a few rows `x` float32 (m, d) is timed."""
    d, rows = x.shape[1], np.ascontiguousarray(x[:ROWS])
    weights = np.ones((d, k), np.float32)
    started = time.perf_counter()
    rows.T @ (rows @ weights)
    a_pass = (time.perf_counter() - started) * n / len(rows)
    fits = num_fits(protocol)
    passes = fits * (FAST_PASSES if solver == "fast" else protocol.max_iter)
    memory = memory_needed(solver, n=n, d=d, k=k, num_parts=num_parts, num_scored=num_scored)
    return Cost(memory, a_pass * passes, passes, fits)


def refuse_too_much(cost: Cost, solver: str, device: str) -> None:
    """Stop where it will not fit.

    Raises:
        ProtocolError: with the numbers.
    """
    free = device_memory(device).free
    if cost.memory > SHARE * free:
        way_out = "use a larger machine" if solver == "fast" else "use the solver fast, or a larger machine"
        raise ProtocolError(
            f"a fit by the solver {solver} needs about {cost.memory / 1e9:.1f} GB of memory beside the features, and "
            f"{free / 1e9:.1f} GB are free; {way_out}"
        )
