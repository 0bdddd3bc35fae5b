"""The error for a name that is in no catalogue."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from probe.errors import UnknownNameError, joined, listed, shorten

MAX_NAME = 80  # characters shown of an unknown name


def unknown_name(kind: str, name: str, known: Iterable[str], *, forms: str = "") -> UnknownNameError:
    """Return the error for an unknown name. The message suggests similar names, or else lists all names.

    Args:
        kind: kind of the thing, such as `dataset`.
        name: the unknown name.
        known: all names.
        forms: description of names that cannot be listed, such as `folder:PATH`.
    """
    folded = {candidate.lower(): candidate for candidate in known}
    said = shorten(repr(name), MAX_NAME)
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3)]
    if near:
        return UnknownNameError(f"unknown {kind} {said}; did you mean {joined([*map(repr, near)], 'or')}?")
    also = f", or {forms}" if forms else ""
    return UnknownNameError(f"unknown {kind} {said}; choose one of {listed(folded.values())}{also}")
