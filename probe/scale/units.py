"""A grid as units of work for many workers: shards of features, then fits; which comes next, and what is tried again.

Plain bookkeeping, for `ray_grid` to drive and `estimates` to play through; nothing here knows of processes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from probe.specs import RunSpec

SHARD_IMAGES = 8_192  # about: minutes of work on a CPU, seconds on a GPU, and little to lose with a worker
NO_SIZES: Mapping[str, int] = {}
ATTEMPTS = 5  # to do a unit whose worker is lost
ATTEMPTS_RAISED = 2  # to do a unit that raises what nobody foresaw, by another worker, for that one may be at fault


@dataclass(frozen=True, eq=False)
class Unit:
    """Something that one worker does.

    Args:
        specs: of a shard the modes of a model, which are fed by one pass over the images, and whose protocol does not
            matter; of fits the modes of one probe, which are compared.
        shard: which share of the features, from 1 on, and of how many; None for fits.
        group: number of the dataset and model, whose features all have to be there before the fits.
        images: that a shard encodes, one in two modes being two, as far as the row of the dataset says.
    """

    specs: tuple[RunSpec, ...]
    shard: tuple[int, int] | None
    group: int = 0
    images: int = 0

    @property
    def model(self) -> str:
        """Whose weights it takes."""
        return self.specs[0].model.name

    def __str__(self) -> str:
        """In a few words, for messages."""
        first = self.specs[0]
        if self.shard is None:
            return f"{first.dataset.name} / {first.model.name} / {first.protocol.name}"
        return f"{first.dataset.name} / {first.model.name} / shard {self.shard[0]} of {self.shard[1]}"


def plan_units(specs: Sequence[RunSpec], sizes: Mapping[str, int] = NO_SIZES) -> list[Unit]:
    """The units of a grid, the shards of a dataset and model before its fits.

    Args:
        specs: the cells.
        sizes: images by dataset; of those that are not here the row says it, or else they are one shard.
    """
    units = []
    for i, (_, group) in enumerate(groupby(specs, key=lambda spec: (spec.dataset, spec.model))):
        cells = tuple(group)
        images = sizes.get(cells[0].dataset.name) or sum(part.size or 0 for part in cells[0].dataset.parts)
        n = max(1, -(-images // SHARD_IMAGES))
        modes = tuple(dict.fromkeys(replace(spec, protocol=cells[0].protocol) for spec in cells))
        shares = [(k + 1) * images // n - k * images // n for k in range(n)]
        units += [Unit(modes, (k + 1, n), i, share * len(modes)) for k, share in enumerate(shares)]
        probes: dict[RunSpec, list[RunSpec]] = {}
        for spec in cells:
            probes.setdefault(spec.of_all_modes, []).append(spec)
        units += [Unit(tuple(same), None, i) for same in probes.values()]
    return units


class Queue:
    """The units of a grid that are waiting, at work, done or given up."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._shards: dict[str, deque[Unit]] = {}  # by model
        self._fits: deque[Unit] = deque()  # whose features are there
        self._lost: deque[Unit] = deque()  # by workers
        self._blocked: dict[int, list[Unit]] = {}  # by group
        self._left: Counter[int] = Counter()  # shards of a group that are not done
        self._losses: Counter[tuple[Unit, int]] = Counter()  # by how many attempts there are
        self._refused: dict[int | Unit, dict[str, Mapping[str, str]]] = {}  # of a group, or a unit alone -> node -> why
        self._made: dict[int, list[Unit]] = {}  # shards, by group
        self._hardware: dict[int, str] = {}  # group -> whose last bits its features have
        self._shunned: dict[int, set[str]] = {}  # group -> hardware that some of it cannot be done on
        self._busy: Counter[str] = Counter()  # model -> shards at work
        self.running: set[Unit] = set()
        self.num_waiting = self.num_done = self.num_given_up = 0
        for unit in units:
            self.num_waiting += 1
            if unit.shard is None:
                self._blocked.setdefault(unit.group, []).append(unit)
            else:
                self._shards.setdefault(unit.model, deque()).append(unit)
                self._left[unit.group] += 1
        for group in list(self._blocked):
            self._release(group)

    def __bool__(self) -> bool:
        """Whether something is left to be done."""
        return bool(self.num_waiting or self.running)

    def take(
        self, held: str | None = None, node: str = "", hardware: str = "", *, too_large: Collection[Unit] = ()
    ) -> Unit | None:
        """The next unit that a worker can do; None where there is none.

        Fits come first, since results are seen early then, and they free no worker's weights; then of shards those of
        the model whose weights the worker holds, or of the model that the fewest are busy with; last what was lost
        before: what takes workers away may be over by then, and what kills them keeps nothing else waiting.

        Args:
            held: the model whose weights the worker holds.
            node: where it is; units that were refused there are not for it.
            hardware: what of it changes the last bits of features; those of one group are made on one kind.
            too_large: for the memory that there is at the moment.
        """
        names = sorted(self._shards, key=lambda name: (name != held, self._busy[name], -len(self._shards[name])))
        for waiting in (self._fits, *(self._shards[name] for name in names), self._lost):
            usable = (unit for unit in waiting if unit not in too_large and self._is_for(unit, node, hardware))
            unit = next(usable, None)
            if unit is not None:
                waiting.remove(unit)
                self._begin(unit, hardware)
                return unit
        return None

    def has_for(self, node: str, hardware: str) -> bool:
        """Whether something waits that a worker could do."""
        return any(self._is_for(unit, node, hardware) for unit in self._waiting())

    def finish(self, unit: Unit) -> None:
        """Count a unit as done."""
        if unit.shard is not None:
            self._made.setdefault(unit.group, []).append(unit)
        self._end(unit)
        self.num_done += 1
        self._settle(unit)

    def lose(self, unit: Unit, attempts: int = ATTEMPTS) -> bool:
        """Take back a unit whose worker is lost; False where that makes so many attempts, and it is given up."""
        self._losses[unit, attempts] += 1
        self._end(unit)
        if self._losses[unit, attempts] < attempts:
            self.num_waiting += 1
            self._lost.append(unit)
            return True
        self.num_given_up += 1
        self._settle(unit)
        return False

    def put_back(self, unit: Unit) -> None:
        """Take back a unit that could not begin."""
        self._end(unit)
        self.num_waiting += 1
        self._queue_of(unit).appendleft(unit)

    def refuse(self, unit: Unit, node: str, error: Mapping[str, str], *, alone: bool = False) -> None:
        """Take back a unit that lacks something on a node, as do others of its dataset and model, unless `alone`."""
        self._refused.setdefault(unit if alone else unit.group, {})[node] = error
        self.put_back(unit)

    def reasons(self, unit: Unit) -> dict[str, Mapping[str, str]]:
        """The nodes that lack something for a unit, and what."""
        return {**self._refused.get(unit.group, {}), **self._refused.get(unit, {})}

    def leave_hardware(self, nodes: Mapping[str, str]) -> bool:
        """Make features anew on other hardware where something waits that none of theirs can do; whether there is such.

        Args:
            nodes: those with workers, and their hardware.
        """
        gone = set()
        for unit in self._waiting():
            usable = {kind for node, kind in nodes.items() if node not in self.reasons(unit)}
            if usable and self._hardware.get(unit.group, "") not in ("", *usable):
                gone.add(unit.group)
        for group in gone:
            kind = self._hardware.pop(group)
            if kind in nodes.values():
                self._shunned.setdefault(group, set()).add(kind)
            made = self._made.pop(group, [])
            for unit in made:
                self.num_done -= 1
                self.num_waiting += 1
                self._left[group] += 1
                self._queue_of(unit).append(unit)
            for waiting in (self._fits, self._lost) if made else ():
                fits = [unit for unit in waiting if unit.group == group and unit.shard is None]
                self._blocked.setdefault(group, []).extend(fits)  # until the features are there again
                for unit in fits:
                    waiting.remove(unit)
        return bool(gone)

    def give_up(self) -> list[Unit]:
        """Give up what waits and could begin, where no worker can do it; these units."""
        units = [*self._waiting()]
        self._fits.clear()
        self._shards.clear()
        self._lost.clear()
        self.num_waiting -= len(units)
        self.num_given_up += len(units)
        for unit in units:
            self._settle(unit)
        return units

    def _waiting(self) -> Iterator[Unit]:
        """What could begin."""
        yield from (*self._fits, *self._lost)
        for units in self._shards.values():
            yield from units

    def left(self) -> Iterator[Unit]:
        """What is not done yet."""
        yield from (*self._waiting(), *self.running)
        for units in self._blocked.values():
            yield from units

    def _is_for(self, unit: Unit, node: str, hardware: str) -> bool:
        is_refused = node in self._refused.get(unit.group, ()) or node in self._refused.get(unit, ())
        is_other = self._hardware.get(unit.group, hardware) != hardware
        return not (is_refused or is_other or hardware in self._shunned.get(unit.group, ()))

    def _queue_of(self, unit: Unit) -> deque[Unit]:
        return self._fits if unit.shard is None else self._shards.setdefault(unit.model, deque())

    def _begin(self, unit: Unit, hardware: str) -> None:
        self._hardware[unit.group] = hardware
        self.num_waiting -= 1
        self.running.add(unit)
        if unit.shard is not None:
            self._busy[unit.model] += 1
            if unit.model in self._shards and not self._shards[unit.model]:
                del self._shards[unit.model]

    def _end(self, unit: Unit) -> None:
        self.running.remove(unit)
        if unit.shard is not None:
            self._busy[unit.model] -= 1
        if unit.group not in self._made and not any(other.group == unit.group for other in self.running):
            self._hardware.pop(unit.group, None)  # nothing was made there

    def _settle(self, unit: Unit) -> None:
        """A shard that is done or given up: after the last of its group the fits, which meet what kept a shard."""
        if unit.shard is not None:
            self._left[unit.group] -= 1
            self._release(unit.group)

    def _release(self, group: int) -> None:
        if not self._left[group]:
            self._fits.extend(self._blocked.pop(group, ()))


def play(units: Sequence[Unit], seconds: Callable[[Unit], float], num_workers: int) -> float:
    """How long workers take that are given units as `Queue` does, each as long as `seconds` says."""
    queue, now = Queue(units), 0.0
    held: list[str | None] = [None] * num_workers
    at_work: dict[int, tuple[float, Unit]] = {}
    while queue:
        for i in range(num_workers):
            if i not in at_work and (unit := queue.take(held[i])) is not None:
                at_work[i] = (now + seconds(unit), unit)
                held[i] = unit.model if unit.shard else held[i]
        i = min(at_work, key=lambda i: at_work[i][0])
        now, unit = at_work.pop(i)
        queue.finish(unit)
    return now
