"""How far a grid has come: one bar on a terminal for all that is to be encoded, with images a second and time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from probe.errors import printable


class Progress:
    """Images that are to be encoded and that are, an image counted once for each model and mode."""

    def __init__(self, *, is_shown: bool = True) -> None:
        self._bar = tqdm(total=0, unit="img", disable=None if is_shown else True, dynamic_ncols=True)

    @property
    def is_shown(self) -> bool:
        """True if the bar is on a terminal."""
        return not self._bar.disable

    def name(self, what: str) -> None:
        """Say what is being encoded."""
        self._bar.set_description(printable(what))

    def expect(self, n: int) -> None:
        """Add images that are to be encoded, or, below zero, take off those that need not be."""
        self._bar.total = max(0, (self._bar.total or 0) + n)
        self._bar.refresh()

    def advance(self, n: int) -> None:
        """Count images that have been."""
        self._bar.update(n)

    def close(self) -> None:
        """Leave the terminal to others."""
        self._bar.close()


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar on stderr, or none where that is no terminal."""
    shown = Progress()
    try:
        yield shown
    finally:
        shown.close()
