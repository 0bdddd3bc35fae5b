"""A progress bar, which shows the encoded images or texts, their number per second, and the remaining time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from probe.errors import printable


class Progress:
    """Progress bar of encoded images or texts. An image counts once for each model and mode."""

    def __init__(self, *, is_shown: bool = True, unit: str = "img") -> None:
        self._bar = tqdm(total=0, unit=unit, disable=None if is_shown else True, dynamic_ncols=True)

    @property
    def is_shown(self) -> bool:
        """True if the bar is on a terminal."""
        return not self._bar.disable

    def name(self, what: str) -> None:
        """Show what is being encoded."""
        self._bar.set_description(printable(what))

    def expect(self, n: int) -> None:
        """Add images or texts to the total, or, if `n` is negative, remove those that need not be encoded."""
        self._bar.total = max(0, (self._bar.total or 0) + n)
        self._bar.refresh()

    def advance(self, n: int) -> None:
        """Count encoded images or texts."""
        self._bar.update(n)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.close()


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show a progress bar on stderr if it is a terminal."""
    shown = Progress()
    try:
        yield shown
    finally:
        shown.close()
