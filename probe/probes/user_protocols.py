"""A protocol of the user's own, in a TOML file, with the fields of `Protocol`.

name = "my-sweep"
feature_point = "pre_projection"                 # or projected, the default
grid = { from = 1e-6, to = 1e6, num = 97 }       # evenly in log10, or a list: [0.01, 0.1, 1]
coarse_step = 16                                 # 1, the default, tries every C
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from probe import paths
from probe.decoder import decode_strictly
from probe.errors import ProtocolError
from probe.names import unknown_name
from probe.probes.protocol_checks import check_protocol
from probe.specs import Protocol

DEFAULTS = {
    "title": "",
    "feature_point": "projected",
    "coarse_step": 1,
    "max_iter": 1000,
    "tol": 1e-6,  # that of the catalogue
    "source": "",
}
RANGE = ("from", "to", "num")
MAX_GRID = 100_000  # values of C; nobody means more


def make_protocol(path: str, *, taken: Collection[str]) -> Protocol:
    """Read a protocol.

    Args:
        path: of the TOML file.
        taken: names that it may not have.

    Raises:
        ProtocolError: no such file, it is no TOML, or a key is missing, unknown, or not as it should be; the message
            names file and key.
    """
    file = paths.expand_home(path)
    row = {**DEFAULTS, **_read(file)}
    if isinstance(row.get("grid"), dict):
        row["grid"] = _spread(row["grid"], file)
    try:
        protocol = decode_strictly(row, Protocol)
    except ValueError as err:
        raise ProtocolError(f"{file}: {err}") from err
    check_protocol(protocol, where=str(file))
    if protocol.name in taken:
        raise ProtocolError(f"{file}: name = {protocol.name!r} is a name of the catalogue; give yours its own")
    return protocol


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ProtocolError(f"no file {file}; give the path of a protocol in TOML") from err
    except OSError as err:
        raise ProtocolError(f"{file} cannot be read ({err.strerror}); give the path of a protocol in TOML") from err
    except ValueError as err:  # of the TOML, of its encoding, or of a number with thousands of digits
        raise ProtocolError(f"{file} is no TOML ({err}); write lines such as grid = [0.01, 0.1, 1]") from err


def _spread(found: dict[str, Any], file: Path) -> tuple[float, ...]:
    """Values spaced evenly in log10, the first and the last as they were said."""
    for key in found:
        if key not in RANGE:
            raise ProtocolError(f"{file}: grid: {unknown_name('key', key, RANGE)}")
    for key in RANGE:
        value = found.get(key)
        if isinstance(value, bool) or not isinstance(value, int if key == "num" else int | float):
            said = "whole number" if key == "num" else "number"
            raise ProtocolError(f"{file}: grid has no {said} {key!r}; write {{ from = 1e-6, to = 1e6, num = 97 }}")
    first, last, num = found["from"], found["to"], found["num"]
    if not (0 < first < last <= sys.float_info.max) or not 2 <= num <= MAX_GRID:
        raise ProtocolError(
            f"{file}: grid = {{ from = {first}, to = {last}, num = {num} }} is no range; give finite values above "
            "zero, the smaller first, and 2 or more of them"
        )
    low, high = math.log10(first), math.log10(last)
    between = [10.0 ** (low + (high - low) * k / (num - 1)) for k in range(1, num - 1)]
    return (float(first), *between, float(last))
