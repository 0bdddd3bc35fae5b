"""Linear probes: protocols, few-shot draws, the sweep over C, solvers, and the fit under a protocol.

`FastLogisticRegression` is imported on first use, because it imports torch and scikit-learn. Protocols need neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.probes.solvers.estimator import FastLogisticRegression

__all__ = ["FastLogisticRegression"]


def __getattr__(name: str) -> Any:
    if name != "FastLogisticRegression":
        raise AttributeError(f"module 'probe.probes' has no attribute {name!r}")
    from probe.probes.solvers.estimator import FastLogisticRegression

    return FastLogisticRegression
