"""The error for a name that no catalogue has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from probe.errors import UnknownNameError, listed, shorten

MAX_NAME = 80  # characters shown of an unknown name


def unknown_name(kind: str, name: str, known: Iterable[str], *, forms: str = "") -> UnknownNameError:
    """The error for a name no catalogue has: it offers what is near, else everything.

    Args:
        kind: what the name was to name, such as `dataset`.
        name: what the user said.
        known: the names there are.
        forms: names that are made rather than listed, such as `folder:PATH`.
    """
    folded = {candidate.lower(): candidate for candidate in known}
    said = shorten(repr(name), MAX_NAME)
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3)]
    if near:
        return UnknownNameError(f"unknown {kind} {said}; did you mean {' or '.join(map(repr, near))}?")
    also = f", or {forms}" if forms else ""
    return UnknownNameError(f"unknown {kind} {said}; known are {listed(folded.values())}{also}")
