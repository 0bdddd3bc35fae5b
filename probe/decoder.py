"""Decoder of plain values from JSON and TOML into dataclasses, for records, entries of datasets, and protocols.

Errors begin with the path of the wrong field. Callers check what types cannot express, such as two fields that
contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from probe.errors import UnknownNameError
from probe.names import unknown_name

T = TypeVar("T")
MISSING_FIELD = "Object missing required field "
WORDS = {
    "array": "a list",
    "object": "a table",
    "str": "a text",
    "int": "an integer",
    "float": "a decimal number",
    "bool": "true or false",
}


def decode(plain: Any, kind: type[T]) -> T:
    """Return a value of a type, such as a dataclass, from plain values. Unknown keys are ignored.

    Raises:
        ValueError: a field is missing or has a wrong type; the message begins with its path.
    """
    return _convert(plain, kind, lambda name: name)


def decode_strictly(plain: Any, kind: type[T]) -> T:
    """Decode values that users write in TOML: as `decode`, but unknown keys are errors, and types have plain names.

    Raises:
        ValueError: a field is missing or has a wrong type, or a key is unknown; the message suggests similar keys.
    """
    for unknown in _unknown_keys(plain, kind, ""):
        raise ValueError(str(unknown)) from unknown
    return _convert(plain, kind, _name_plainly)


def with_advice(error: ValueError, advice: str) -> str:
    """Return the message of an error of `decode_strictly` with advice, unless it already suggests keys."""
    return str(error) if isinstance(error.__cause__, UnknownNameError) else f"{error}; {advice}"


def _convert(plain: Any, kind: type[T], name_type: Callable[[str], str]) -> T:
    try:
        return msgspec.convert(plain, kind)
    except (msgspec.ValidationError, OverflowError) as err:  # an integer too large for a float
        raise ValueError(_describe(re.sub("`(.*?)`", lambda quoted: name_type(quoted[1]), str(err)))) from err


def _name_plainly(types: str) -> str:
    """Return plain English for the names of msgspec's types. Text without such names is unchanged.

    >>> _name_plainly("int | null"), _name_plainly("array"), _name_plainly("$.grid[1]")
    ('an integer', 'a list', '$.grid[1]')
    """
    return " or ".join(WORDS.get(name, name) for name in types.split(" | ") if name != "null")  # TOML has no null


def _describe(message: str) -> str:
    """Return a message of msgspec with the path first.

    >>> _describe("Expected float, got null - at $.result.score")
    'result.score: expected float, got null'
    >>> _describe("Object missing required field sha256 - at $.splits[...]")
    'splits[...].sha256 is missing'
    """
    what, _, path = message.partition(" - at ")
    path = path.removeprefix("$").removeprefix(".")
    if what.startswith(MISSING_FIELD):
        return f"{path}.{what.removeprefix(MISSING_FIELD)} is missing".removeprefix(".")
    return f"{path}: {what[:1].lower()}{what[1:]}" if path else what


def _unknown_keys(plain: Any, kind: Any, path: str) -> Iterator[UnknownNameError]:
    if isinstance(plain, list | tuple):
        for own in get_args(kind):
            for i, part in enumerate(plain):
                yield from _unknown_keys(part, own, f"{path}[{i}]")
    elif is_dataclass(kind) and isinstance(plain, dict):
        hints, known = get_type_hints(kind), [own.name for own in fields(kind)]
        for name, part in plain.items():
            if name in known:
                yield from _unknown_keys(part, hints[name], f"{path}.{name}" if path else name)
            else:
                yield unknown_name(f"key of {path}" if path else "key", name, known)
