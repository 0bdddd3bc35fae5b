"""Probes: protocols as data, the search over C, the solvers, and the fit that ties them together.

`FastLogisticRegression` is imported when it is first used: the protocols are light, and it is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.probes.solvers.fast import FastLogisticRegression

__all__ = ["FastLogisticRegression"]


def __getattr__(name: str) -> Any:
    if name != "FastLogisticRegression":
        raise AttributeError(f"module 'probe.probes' has no attribute {name!r}")
    from probe.probes.solvers.fast import FastLogisticRegression

    return FastLogisticRegression
