"""Check a protocol before anything is fitted under it, whether it was read from TOML or made in Python."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import MISSING, fields
from itertools import pairwise

from probe.decoder import decode
from probe.errors import ProtocolError
from probe.names import unknown_name
from probe.specs import FEATURE_POINTS, KNN, LOGISTIC, METHODS, ZERO_SHOT, Protocol, canonical_json

# Fields that each method uses, besides `COMMON`.
COMMON = ("name", "title", "feature_point", "normalize", "source", "method")
USED = {
    LOGISTIC: (
        *("grid", "coarse_step", "max_iter", "tol", "shots", "num_seeds", "held_out", "refit"),
        *("warm_start", "standardize", "mean_loss", "bisections", "per_class"),
    ),
    KNN: ("neighbours", "temperature", "refit"),
    ZERO_SHOT: (),
}
LEAST_TEMPERATURE = 1e-6  # similarities divided by it stay finite
LEAST = {"max_iter": 1, "shots": 0, "num_seeds": 1, "held_out": 0, "bisections": 0}
MOST_BISECTIONS = 50  # after 50 steps, the two ends of the interval are the same number


def check_protocol(protocol: Protocol, *, where: str) -> None:
    """Check the types and values of a protocol's fields.

    Raises:
        ProtocolError: a field has a wrong type or value, or two fields contradict each other.
    """
    _check_types(protocol, where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", protocol.name):
        raise ProtocolError(
            f"{where}: name = {protocol.name!r} is not valid; use letters, digits, '-', '_' and '.', beginning with a "
            "letter or digit"
        )
    if protocol.feature_point not in FEATURE_POINTS:
        raise ProtocolError(f"{where}: {unknown_name('feature_point', protocol.feature_point, FEATURE_POINTS)}")
    for name, least in LEAST.items():
        if getattr(protocol, name) < least:
            raise ProtocolError(f"{where}: {name} = {getattr(protocol, name)} is too small; give {least} or more")
    if not _is_positive(protocol.tol):
        raise ProtocolError(f"{where}: tol = {protocol.tol} is not valid; give a finite number above zero")
    if protocol.method not in METHODS:
        raise ProtocolError(f"{where}: {unknown_name('method', protocol.method, METHODS)}")
    _check_unused(protocol, where)
    if protocol.method == LOGISTIC:
        _check_grid(protocol.grid, where)
        _check_coarse_step(protocol, where)
        _check_bisections(protocol, where)
        _check_draws(protocol, where)
    if protocol.method == KNN:
        _check_neighbours(protocol, where)
    if protocol.method == ZERO_SHOT and protocol.feature_point != "projected":
        raise ProtocolError(f'{where}: zero-shot compares projected features; set feature_point = "projected"')
    if protocol.method != LOGISTIC and not protocol.normalize:
        raise ProtocolError(
            f"{where}: the method {protocol.method} compares L2-normalised features; set normalize = true"
        )


def _check_unused(protocol: Protocol, where: str) -> None:
    """Check that fields that the method does not use have their defaults."""
    used = USED[protocol.method]
    for own in fields(Protocol):
        if own.name in used or own.default is MISSING or own.name in COMMON:
            continue
        if getattr(protocol, own.name) != own.default:
            raise ProtocolError(
                f"{where}: {own.name} has no effect on the method {protocol.method}; remove it, or set "
                f"{own.name} = {json.dumps(own.default)}"
            )


def _check_neighbours(protocol: Protocol, where: str) -> None:
    values = protocol.neighbours
    if not values:
        raise ProtocolError(f"{where}: neighbours is empty; give one or more numbers of neighbours, such as [10, 20]")
    if values[0] < 1 or any(after <= before for before, after in pairwise(values)):
        raise ProtocolError(
            f"{where}: neighbours = {list(values)} is not valid; give integers of 1 or more in ascending order, each "
            "once"
        )
    if protocol.temperature != 0 and not LEAST_TEMPERATURE <= protocol.temperature <= sys.float_info.max:
        raise ProtocolError(
            f"{where}: temperature = {protocol.temperature} is not valid; give a finite number of 1e-6 or more, "
            "or 0 for plain votes"
        )


def _check_types(protocol: Protocol, where: str) -> None:
    try:
        decode(json.loads(canonical_json(protocol)), Protocol)  # JSON turns NumPy's numbers into Python's
    except (ValueError, TypeError) as err:
        raise ProtocolError(f"{where}: {err}") from err
    for name in ("grid", "neighbours"):
        if not isinstance(getattr(protocol, name), tuple):  # a list would make the protocol unhashable
            raise ProtocolError(
                f"{where}: {name} = {getattr(protocol, name)!r} is not a tuple; give a tuple of numbers"
            )


def _check_grid(grid: tuple[float, ...], where: str) -> None:
    if not grid:
        raise ProtocolError(f"{where}: grid is empty; give one or more values of C")
    for C in grid:  # noqa: N806 - the field's name
        if not _is_positive(C):
            raise ProtocolError(f"{where}: grid contains C = {C}; give finite values above zero")
    for before, after in pairwise(grid):
        if after <= before:
            raise ProtocolError(
                f"{where}: grid contains {after} after {before}; give the values in ascending order, each once"
            )


def _check_coarse_step(protocol: Protocol, where: str) -> None:
    step, num = protocol.coarse_step, len(protocol.grid)
    if step < 1 or step & (step - 1):  # the sweep halves it until it is 1
        raise ProtocolError(
            f"{where}: coarse_step = {step} is not a power of two; give 1 to try every C, or 2, 4, 8 and so on"
        )
    if (num - 1) % step:
        raise ProtocolError(
            f"{where}: coarse_step = {step} does not lead from the first to the last of {num} values of C; set "
            f"coarse_step = 1, or make the number of values one more than a multiple of {step}"
        )


def _check_bisections(protocol: Protocol, where: str) -> None:
    if not protocol.bisections:
        return
    if protocol.bisections > MOST_BISECTIONS:
        raise ProtocolError(
            f"{where}: bisections = {protocol.bisections} is too large; give {MOST_BISECTIONS} or fewer"
        )
    if len(protocol.grid) == 1:
        raise ProtocolError(
            f"{where}: bisections = {protocol.bisections} has no effect with a single value of C; give several values, "
            "or set bisections = 0"
        )
    if protocol.coarse_step != 1:
        raise ProtocolError(
            f"{where}: bisections = {protocol.bisections} needs the scores of all values of C; set coarse_step = 1"
        )


def _check_draws(protocol: Protocol, where: str) -> None:
    if protocol.shots == 0:
        for name, without in (("held_out", 0), ("num_seeds", 1), ("per_class", True)):
            if getattr(protocol, name) != without:
                raise ProtocolError(
                    f"{where}: {name} = {json.dumps(getattr(protocol, name))} has no effect without shots; set shots, "
                    f"or set {name} = {json.dumps(without)}"
                )
    elif protocol.refit and not protocol.held_out:
        raise ProtocolError(  # LAION-AI/CLIP_benchmark#125
            f"{where}: shots = {protocol.shots} with refit = true would also fit on the whole validation split; set "
            "refit = false"
        )
    if protocol.held_out and len(protocol.grid) == 1:
        raise ProtocolError(
            f"{where}: held_out = {protocol.held_out} has no effect with a single value of C; give several values, or "
            "set held_out = 0"
        )


def _is_positive(value: float) -> bool:
    return 0 < value <= sys.float_info.max  # integers in TOML can be larger than any float
