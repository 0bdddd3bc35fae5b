"""A grid as units of work for many workers: shards of features, then fits; which comes next, and what is tried again.

Plain bookkeeping, for `ray_grid` to drive; nothing here knows of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from probe.specs import RunSpec

SHARD_IMAGES = 8_192  # about: minutes of work on a CPU, seconds on a GPU, and little to lose with a worker
ATTEMPTS = 3  # to do a unit whose worker is lost


@dataclass(frozen=True)
class Unit:
    """Something that one worker does.

    Args:
        specs: the cells of one dataset and model; of a shard one, whose protocol does not matter.
        shard: which share of the features, from 1 on, and of how many; None for a unit of fits.
        images: that it encodes.
    """

    specs: tuple[RunSpec, ...]
    shard: tuple[int, int] | None
    images: int = 0

    @property
    def model(self) -> str:
        """Whose weights it takes."""
        return self.specs[0].model.name

    def __str__(self) -> str:
        """In a few words, for messages."""
        first = self.specs[0]
        if self.shard is None:
            return f"{first.dataset.name} / {first.model.name} / fits"
        return f"{first.dataset.name} / {first.model.name} / {first.mode} / shard {self.shard[0]} of {self.shard[1]}"


def plan_units(specs: Sequence[RunSpec]) -> list[Unit]:
    """The units of a grid, the shards of a model before its fits.

    Modes of one cell are fitted in one unit, since they are compared. A dataset whose row does not say how many images
    it has is one shard.
    """
    units = []
    for _, group in groupby(specs, key=lambda spec: (spec.dataset, spec.model)):
        cells = tuple(group)
        images = sum(part.size or 0 for part in cells[0].dataset.parts)
        n = max(1, -(-images // SHARD_IMAGES))
        for encoding in dict.fromkeys(replace(spec, protocol=cells[0].protocol) for spec in cells):
            units += [Unit((encoding,), (i + 1, n), (i + 1) * images // n - i * images // n) for i in range(n)]
        units.append(Unit(cells, None))
    return units


class Queue:
    """The units of a grid that are waiting, at work, done or given up."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.waiting = list(units)
        self.running: list[Unit] = []
        self.done: list[Unit] = []
        self.given_up: list[Unit] = []
        self._losses: dict[Unit, int] = {}

    def __bool__(self) -> bool:
        """Whether something is left to be done."""
        return bool(self.waiting or self.running)

    def take(self, held: str | None = None) -> Unit | None:
        """The next unit that can be done, best one of the model whose weights a worker holds; None where none can."""
        ready = [unit for unit in self.waiting if self._is_ready(unit)]
        unit = next((unit for unit in ready if unit.model == held), None)
        if unit is None and ready:
            # Fits at once, for they free no worker's weights; else a model that no other worker is busy with.
            busy = {unit.model for unit in self.running}
            unit = min(ready, key=lambda unit: (unit.shard is not None, unit.model in busy))
        if unit is not None:
            self.waiting.remove(unit)
            self.running.append(unit)
        return unit

    def finish(self, unit: Unit) -> None:
        """Count a unit as done."""
        self.running.remove(unit)
        self.done.append(unit)

    def lose(self, unit: Unit) -> bool:
        """Take back a unit whose worker is lost; False where that happened so often that it is given up."""
        self.running.remove(unit)
        self._losses[unit] = self._losses.get(unit, 0) + 1
        if self._losses[unit] < ATTEMPTS:
            self.waiting.insert(0, unit)
            return True
        self.given_up.append(unit)
        return False

    def _is_ready(self, unit: Unit) -> bool:
        """Shards always are; fits when no shard of their dataset and model is left."""
        cell = (unit.specs[0].dataset, unit.specs[0].model)
        left = [*self.waiting, *self.running]
        return unit.shard is not None or not any(
            other.shard is not None and (other.specs[0].dataset, other.specs[0].model) == cell for other in left
        )
