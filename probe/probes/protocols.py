"""The named protocols, as data. All run on the same features; each says where it comes from."""

from __future__ import annotations

from probe.names import unknown_name
from probe.specs import Protocol

# scikit-learn stops where no component of the gradient of the mean loss exceeds `tol`. Its default of 1e-4 stops far
# from the optimum since 1.4, when the loss became a mean (scikit-learn#28700).
TOL = 1e-6

CATALOG: tuple[Protocol, ...] = (
    Protocol(
        name="readme",
        title="the example of OpenAI's README",
        feature_point="projected",
        grid=(0.316,),
        coarse_step=1,
        max_iter=1000,
        tol=TOL,
        source="openai/CLIP README, 'Linear-probe evaluation'",
    ),
    Protocol(
        name="clip-paper",
        title="the sweep of the CLIP paper",
        feature_point="pre_projection",
        grid=tuple(10.0 ** (k / 8) for k in range(-48, 49)),
        coarse_step=16,
        max_iter=1000,
        tol=TOL,
        source="Radford et al. 2021, appendix A.3; openai/CLIP#39",
    ),
)


def protocol_names() -> tuple[str, ...]:
    """The protocols there are."""
    return tuple(protocol.name for protocol in CATALOG)


def get_protocol(name: str) -> Protocol:
    """Find a protocol by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    for protocol in CATALOG:
        if protocol.name == name:
            return protocol
    raise unknown_name("protocol", name, protocol_names())
