"""How far a grid on many workers has come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

from tqdm import tqdm

from probe.scale.units import Queue, Unit

WAIT_SECONDS = 0.5  # between looks at how far workers are
RATE_SECONDS = 30.0  # that images a second are of


class UnitBar:
    """One line for the whole grid: units that are done, at work and failed, images a second, and the time left."""

    def __init__(self, units: Sequence[Unit], seconds: Mapping[Unit, float]) -> None:
        self.seconds, self.total = seconds, sum(seconds.values())
        self.started = self.shown = time.monotonic()
        self.history: deque[tuple[float, int]] = deque([(self.started, 0)])  # images by time
        layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} units [{elapsed}{postfix}]"
        self._bar = tqdm(total=len(units), disable=None, dynamic_ncols=True, bar_format=layout)

    def __enter__(self) -> UnitBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def is_due(self) -> bool:
        """Whether somebody looks, and it is time for new numbers."""
        return not self._bar.disable and time.monotonic() > self.shown + WAIT_SECONDS

    def show(self, queue: Queue, *, images: int, num_failed: int) -> None:
        """Show how far the units are."""
        self.shown = time.monotonic()
        self.history.append((self.shown, images))
        while self.shown - self.history[0][0] > RATE_SECONDS:
            self.history.popleft()
        (since, before) = self.history[0]
        rate = (images - before) / max(self.shown - since, 1e-9)
        done = self.total - sum(self.seconds[unit] for unit in queue.left())
        elapsed = self.shown - self.started
        left = tqdm.format_interval(elapsed * (self.total - done) / done) if done else "?"
        self._bar.n = queue.num_done + queue.num_given_up
        self._bar.set_postfix_str(f"{len(queue.running)} running, {num_failed} failed, {rate:,.0f} img/s, {left} left")
