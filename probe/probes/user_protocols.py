"""Read a user's own protocol from a TOML file, whose keys are the fields of `Protocol`.

name = "my-sweep"
feature_point = "pre_projection"                 # default: projected
grid = { from = 1e-6, to = 1e6, num = 97 }       # evenly spaced in log10; or a list such as [0.01, 0.1, 1]
coarse_step = 16                                 # default: 1, which tries every value of C
standardize = true                               # default: false, which leaves features as they are

or, for k-nearest neighbours,

name = "my-knn"
method = "knn"
neighbours = [1, 5, 20]
temperature = 0.07                               # default: 0, one vote for each neighbour

The default of `normalize` is true for k-nearest neighbours and zero-shot, which compare L2-normalised features.
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from probe import paths
from probe.decoder import decode_strictly
from probe.errors import ProtocolError, UnknownNameError
from probe.names import unknown_name
from probe.probes.protocol_checks import check_protocol
from probe.specs import KNN, ZERO_SHOT, Protocol

DEFAULTS = {"title": "", "feature_point": "projected"}
RANGE = ("from", "to", "num")
MAX_GRID = 100_000  # values of C; a larger number is a typing error


def make_protocol(path: str, *, taken: Collection[str]) -> Protocol:
    """Read a protocol from a TOML file.

    Args:
        path: path of the TOML file.
        taken: names of the catalogue, which the protocol may not use.

    Raises:
        UnknownNameError: the file does not exist.
        ProtocolError: the file cannot be read, is not valid TOML, or a key is missing, unknown or invalid. The message
            names the file and the key.
    """
    file = paths.expand_home(path)
    given = _read(file)
    row = {**DEFAULTS, "normalize": given.get("method") in (KNN, ZERO_SHOT), **given}
    if isinstance(row.get("grid"), dict):
        row["grid"] = _spread(row["grid"], file)
    try:
        protocol = decode_strictly(row, Protocol)
    except ValueError as err:
        raise ProtocolError(f"{file}: {err}") from err
    check_protocol(protocol, where=str(file))
    if protocol.name in taken:
        raise ProtocolError(
            f"{file}: name = {protocol.name!r} is already a protocol of the catalogue; choose a different name"
        )
    return protocol


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise UnknownNameError(f"{file} does not exist; give the path of a protocol in TOML") from err
    except OSError as err:
        raise ProtocolError(f"{file} cannot be read ({err.strerror}); give the path of a protocol in TOML") from err
    except ValueError as err:  # invalid TOML, invalid UTF-8, or a number with thousands of digits
        raise ProtocolError(f"{file} is not valid TOML ({err}); write lines such as grid = [0.01, 0.1, 1]") from err


def _spread(table: Mapping[str, Any], file: Path) -> tuple[float, ...]:
    """Return `num` values from `from` to `to`, evenly spaced in log10. The first and the last value are exact."""
    for key in table:
        if key not in RANGE:
            raise ProtocolError(f"{file}: grid: {unknown_name('key', key, RANGE)}")
    for key in RANGE:
        value = table.get(key)
        if isinstance(value, bool) or not isinstance(value, int if key == "num" else int | float):
            kind = "an integer" if key == "num" else "a number"
            raise ProtocolError(
                f"{file}: grid: {key} must be {kind}; write for example {{ from = 1e-6, to = 1e6, num = 97 }}"
            )
    first, last, num = table["from"], table["to"], table["num"]
    if not (0 < first < last <= sys.float_info.max) or not 2 <= num <= MAX_GRID:
        raise ProtocolError(
            f"{file}: grid = {{ from = {first}, to = {last}, num = {num} }} is not a valid range; give "
            f"0 < from < to, both finite, and num from 2 to {MAX_GRID}"
        )
    low, high = math.log10(first), math.log10(last)
    between = [10.0 ** (low + (high - low) * k / (num - 1)) for k in range(1, num - 1)]
    return (float(first), *between, float(last))
