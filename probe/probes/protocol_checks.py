"""What a protocol must be before anything is fitted under it; the same for one in TOML and one made in Python."""

from __future__ import annotations

import json
import re
import sys
from itertools import pairwise

from probe.decoder import decode
from probe.errors import ProtocolError
from probe.names import unknown_name
from probe.specs import FEATURE_POINTS, Protocol, canonical_json

LEAST = {"max_iter": 1, "shots": 0, "num_seeds": 1, "held_out": 0}


def check_protocol(protocol: Protocol, *, where: str) -> None:
    """Find the first fault of a protocol.

    Args:
        protocol: its fields may be of any type.
        where: what messages begin with, such as the file that it was read from.

    Raises:
        ProtocolError: a field is of the wrong type or out of range, or two do not go together.
    """
    _check_types(protocol, where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", protocol.name):
        raise ProtocolError(f"{where}: name = {protocol.name!r}; use letters, digits, and - _ . between them")
    if protocol.feature_point not in FEATURE_POINTS:
        raise ProtocolError(f"{where}: {unknown_name('feature_point', protocol.feature_point, FEATURE_POINTS)}")
    for name, least in LEAST.items():
        if getattr(protocol, name) < least:
            raise ProtocolError(f"{where}: {name} = {getattr(protocol, name)} is too small; give {least} or more")
    if not _is_positive(protocol.tol):
        raise ProtocolError(f"{where}: tol = {protocol.tol} is no bound of a gradient; give a finite number above zero")
    _check_grid(protocol.grid, where)
    _check_coarse_step(protocol, where)
    _check_draws(protocol, where)


def _check_types(protocol: Protocol, where: str) -> None:
    try:
        decode(json.loads(canonical_json(protocol)), Protocol)  # JSON, as NumPy's numbers are as good as Python's
    except (ValueError, TypeError) as err:
        raise ProtocolError(f"{where}: {err}") from err
    if not isinstance(protocol.grid, tuple):  # which keys of dictionaries need
        raise ProtocolError(f"{where}: grid = {protocol.grid!r} is not a tuple of numbers; give a tuple of numbers")


def _check_grid(grid: tuple[float, ...], where: str) -> None:
    if not grid:
        raise ProtocolError(f"{where}: grid has no value of C; give one, or several to choose from")
    for C in grid:  # noqa: N806 - the field's name
        if not _is_positive(C):
            raise ProtocolError(f"{where}: grid has C = {C}; give finite values above zero")
    for before, after in pairwise(grid):
        if after <= before:
            raise ProtocolError(f"{where}: grid has {after} after {before}; give the values ascending, each once")


def _check_coarse_step(protocol: Protocol, where: str) -> None:
    step, num = protocol.coarse_step, len(protocol.grid)
    if step < 1 or step & (step - 1):  # halved until it is 1
        raise ProtocolError(
            f"{where}: coarse_step = {step} is no power of two; give 1 to try every C, or 2, 4, 8 and so on"
        )
    if (num - 1) % step:
        raise ProtocolError(
            f"{where}: coarse_step = {step} does not lead from the first of {num} values of C to the last; give 1, or "
            f"one value more than a multiple of {step}"
        )


def _check_draws(protocol: Protocol, where: str) -> None:
    if protocol.shots == 0:
        for name, without in (("held_out", 0), ("num_seeds", 1)):
            if getattr(protocol, name) != without:
                raise ProtocolError(
                    f"{where}: {name} = {getattr(protocol, name)} without shots, where nothing is drawn; give shots, "
                    f"or {name} = {without}"
                )
    elif protocol.refit:
        raise ProtocolError(  # LAION-AI/CLIP_benchmark#125
            f"{where}: shots = {protocol.shots} with refit = true would fit on the whole validation split as well; "
            "give refit = false"
        )
    if protocol.held_out and len(protocol.grid) == 1:
        raise ProtocolError(
            f"{where}: held_out = {protocol.held_out} with one C, where nothing is chosen; give several values, or "
            "held_out = 0"
        )


def _is_positive(value: float) -> bool:
    return 0 < value <= sys.float_info.max  # TOML has whole numbers beyond
