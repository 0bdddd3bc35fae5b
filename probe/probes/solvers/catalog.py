"""Catalogue of the solvers by name, and the device that each solver uses.

A solver is imported on first use: scikit-learn takes two seconds, and extraction and the solver `fast` do not need it.
"""

from __future__ import annotations

import logging
import os

from probe.names import unknown_name
from probe.probes.fits import Solver

logger = logging.getLogger(__name__)

SOLVERS = ("sklearn", "fast")


def check_solver(name: str) -> None:
    """Check the name of a solver.

    Raises:
        UnknownNameError: no solver has this name.
    """
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)


def get_solver(name: str) -> type[Solver]:
    """Return a solver class by name.

    Raises:
        UnknownNameError: no solver has this name.
    """
    check_solver(name)
    if name == "sklearn":
        from probe.probes.solvers.scikit_learn import ScikitLearn

        return ScikitLearn
    from probe.probes.solvers.fast_solver import Fast

    return Fast


def device_for(solver: str, device: str) -> str:
    """Return the device for a solver: the device of the model if the solver supports it, else `cpu`."""
    if not device.startswith("cuda"):
        return "cpu"
    if solver == "sklearn" and (os.environ.get("SCIPY_ARRAY_API") != "1" or not _takes_tensors()):
        logger.info(
            "the solver sklearn fits on the CPU; to fit on the GPU, use the solver fast, or set SCIPY_ARRAY_API=1 and "
            "install scikit-learn >= 1.9"
        )
        return "cpu"
    return device


def _takes_tensors() -> bool:
    """Return True if scikit-learn's LogisticRegression accepts torch tensors, as it does since version 1.9."""
    import sklearn

    return tuple(int(part) for part in sklearn.__version__.split(".")[:2]) >= (1, 9)
