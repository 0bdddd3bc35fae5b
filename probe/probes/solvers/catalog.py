"""Solvers by name."""

from __future__ import annotations

import logging
import os

import sklearn

from probe.names import unknown_name
from probe.probes.fits import Solver
from probe.probes.solvers.fast_solver import Fast
from probe.probes.solvers.scikit_learn import ScikitLearn

# scikit-learn's LogisticRegression takes arrays of other libraries from 1.9 on.
TAKES_TENSORS = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) >= (1, 9)

logger = logging.getLogger(__name__)

SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (ScikitLearn, Fast)}


def get_solver(name: str) -> type[Solver]:
    """Find a solver by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    return SOLVERS[name]


def device_for(solver: str, device: str) -> str:
    """Where a solver is to compute, if models do so on a device: there if it can, else on the CPU."""
    if not device.startswith("cuda"):
        return "cpu"
    if solver == "sklearn" and (os.environ.get("SCIPY_ARRAY_API") != "1" or not TAKES_TENSORS):
        logger.info(
            "scikit-learn fits on the CPU; for the GPU set SCIPY_ARRAY_API=1 and use scikit-learn 1.9 or later, or use "
            "the solver fast"
        )
        return "cpu"
    return device
