"""The progress bar of a grid on many workers."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from tqdm import tqdm

from probe.scale.units import Queue

WAIT_SECONDS = 0.5  # between two looks at how far workers are
RATE_SECONDS = 30.0  # over which images a second are counted


class UnitBar:
    """One line for the whole grid: units that are done, running and failed, images a second, and the time left."""

    def __init__(self, num_units: int) -> None:
        self.shown = time.monotonic()
        self.history: deque[tuple[float, int]] = deque([(self.shown, 0)])  # images by time
        layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} units [{elapsed}, {remaining} left{postfix}]"
        self._bar = tqdm(total=num_units, disable=None, dynamic_ncols=True, bar_format=layout)

    def __enter__(self) -> UnitBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def is_due(self) -> bool:
        """True if the bar is on a terminal, and it is time for new numbers."""
        return not self._bar.disable and time.monotonic() > self.shown + WAIT_SECONDS

    def show(self, queue: Queue, *, images: int, num_failed: int) -> None:
        """Show the state of the queue."""
        self.shown = time.monotonic()
        self.history.append((self.shown, images))
        while self.shown - self.history[0][0] > RATE_SECONDS:
            self.history.popleft()
        since, before = self.history[0]
        rate = (images - before) / max(self.shown - since, 1e-9)
        self._bar.n = queue.num_ended
        self._bar.set_postfix_str(f"{len(queue.running)} running, {num_failed} failed, {rate:,.0f} img/s")
