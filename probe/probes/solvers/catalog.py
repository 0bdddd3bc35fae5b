"""Catalogue of the solvers by name, and the device that each solver uses."""

from __future__ import annotations

import logging
import os

import sklearn

from probe.names import unknown_name
from probe.probes.fits import Solver
from probe.probes.solvers.fast_solver import Fast
from probe.probes.solvers.scikit_learn import ScikitLearn

# scikit-learn's LogisticRegression accepts torch tensors since version 1.9.
TAKES_TENSORS = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) >= (1, 9)

logger = logging.getLogger(__name__)

SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (ScikitLearn, Fast)}


def get_solver(name: str) -> type[Solver]:
    """Return a solver class by name.

    Raises:
        UnknownNameError: no solver has this name.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    return SOLVERS[name]


def device_for(solver: str, device: str) -> str:
    """Return the device for a solver: the device of the model if the solver supports it, else `cpu`."""
    if not device.startswith("cuda"):
        return "cpu"
    if solver == "sklearn" and (os.environ.get("SCIPY_ARRAY_API") != "1" or not TAKES_TENSORS):
        logger.info(
            "the solver sklearn fits on the CPU; to fit on the GPU, use the solver fast, or set SCIPY_ARRAY_API=1 and "
            "install scikit-learn >= 1.9"
        )
        return "cpu"
    return device
