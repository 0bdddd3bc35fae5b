"""The runs of a grid as units of work for many workers (shards of features, then fits), and the queue of them.

The queue says which unit a worker does next and what becomes of a unit that was not done. It knows no processes: the
driver does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from probe.specs import RunSpec

SHARD_IMAGES = 8_192  # about: minutes of work on a CPU, seconds on a GPU, and little to lose with a worker
NO_SIZES: Mapping[str, int] = {}
ATTEMPTS = 5  # at a unit whose worker is lost
ATTEMPTS_RAISED = 2  # at a unit that raises an unforeseen error, by different workers, since a worker may be at fault


@dataclass(frozen=True, eq=False)
class Unit:
    """Work of one worker: a shard of features, or the fits of one probe.

    Args:
        specs: for a shard, the modes of a model, which are fed by one pass over the images, and whose protocol does not
            matter; for fits, the modes of one probe, which are compared.
        shard: number of the shard, from 1 on, and number of shards; None for fits.
        group: number of the dataset and model, all of whose features must be there before the fits.
        images: images that a shard encodes, counted once for each mode, as far as the catalogue says.
    """

    specs: tuple[RunSpec, ...]
    shard: tuple[int, int] | None
    group: int = 0
    images: int = 0

    @property
    def model(self) -> str:
        """Name of the model whose weights the unit needs."""
        return self.specs[0].model.name

    def __str__(self) -> str:
        """Name the unit in messages."""
        first = self.specs[0]
        if self.shard is None:
            return f"{first.dataset.name} / {first.model.name} / {first.protocol.name}"
        return f"{first.dataset.name} / {first.model.name} / shard {self.shard[0]} of {self.shard[1]}"


def plan_units(specs: Sequence[RunSpec], sizes: Mapping[str, int] = NO_SIZES) -> list[Unit]:
    """Return the units of a grid, the shards of a dataset and model before its fits.

    Args:
        specs: the runs.
        sizes: number of images by dataset; datasets that are not here have the sizes of their catalogue entry, or are
            one shard.
    """
    units = []
    for i, (_, group) in enumerate(groupby(specs, key=lambda spec: (spec.dataset, spec.model))):
        runs = tuple(group)
        images = sizes.get(runs[0].dataset.name) or sum(subset.size or 0 for subset in runs[0].dataset.subsets)
        n = max(1, -(-images // SHARD_IMAGES))
        modes = tuple(dict.fromkeys(replace(spec, protocol=runs[0].protocol) for spec in runs))
        shares = [(k + 1) * images // n - k * images // n for k in range(n)]
        units += [Unit(modes, (k + 1, n), i, share * len(modes)) for k, share in enumerate(shares)]
        probes: dict[RunSpec, list[RunSpec]] = {}
        for spec in runs:
            probes.setdefault(spec.of_all_modes, []).append(spec)
        units += [Unit(tuple(same), None, i) for same in probes.values()]
    return units


class Queue:
    """The units of a grid: waiting, running, done or given up.

    Fits wait until each shard of their group is done or given up. All features of a group are made on one kind of
    hardware, since the last bits of features depend on it.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        self.waiting = list(units)
        self.running: set[Unit] = set()
        self.done: list[Unit] = []
        self.given_up: list[Unit] = []
        self._lost: Counter[Unit] = Counter()  # attempts that ended with the worker
        self._raised: Counter[Unit] = Counter()  # attempts that ended with an unforeseen error
        self._refused: dict[int | Unit, dict[str, Mapping[str, str]]] = {}  # group, or one unit -> node -> error
        self._hardware: dict[int, str] = {}  # group -> where its features are made
        self._left: set[tuple[int, str]] = set()  # groups, and hardware that cannot do some of their units

    def __bool__(self) -> bool:
        """Tell if something is left to do."""
        return bool(self.waiting or self.running)

    @property
    def num_ended(self) -> int:
        """Units that are done or given up."""
        return len(self.done) + len(self.given_up)

    def take(
        self, model: str | None = None, node: str = "", hardware: str = "", *, too_large: Collection[Unit] = ()
    ) -> Unit | None:
        """Start the next unit that a worker can do; None where there is none.

        Fits come first, since they give results early and need no other weights; then shards of the model that the
        worker has loaded, or else that the fewest workers are busy with; last what failed before, since whatever kills
        workers may be over by then, and keeps nothing else waiting.

        Args:
            model: the model that the worker has loaded.
            node: where the worker is; units that were refused there are not for it.
            hardware: what changes the last bits of the features that the worker makes.
            too_large: units for which the memory is not free at the moment.
        """
        usable = [unit for unit in self._ready() if self._is_for(unit, node, hardware) and unit not in too_large]
        busy = Counter(unit.model for unit in self.running if unit.shard is not None)

        def rank(unit: Unit) -> tuple[bool, bool, bool, int]:
            has_failed = unit in self._lost or unit in self._raised
            return has_failed, unit.shard is not None, unit.model != model, busy[unit.model]

        unit = min(usable, key=rank, default=None)
        if unit is not None:
            self.waiting.remove(unit)
            self.running.add(unit)
            self._hardware[unit.group] = hardware
        return unit

    def has_for(self, node: str, hardware: str) -> bool:
        """Tell if a unit waits that a worker could do."""
        return any(self._is_for(unit, node, hardware) for unit in self._ready())

    def finish(self, unit: Unit) -> None:
        """Count a unit as done."""
        self.done.append(unit)
        self._end(unit)

    def retry(self, unit: Unit, *, has_raised: bool = False) -> bool:
        """Take back a unit that failed; False where it has had all its attempts and is given up.

        Args:
            unit: which one.
            has_raised: it raised an unforeseen error; else its worker was lost.
        """
        failures, attempts = (self._raised, ATTEMPTS_RAISED) if has_raised else (self._lost, ATTEMPTS)
        failures[unit] += 1
        is_left = failures[unit] < attempts
        (self.waiting if is_left else self.given_up).append(unit)
        self._end(unit)
        return is_left

    def put_back(self, unit: Unit) -> None:
        """Take back a unit that could not begin."""
        self.waiting.insert(0, unit)
        self._end(unit)

    def refuse(self, unit: Unit, node: str, error: Mapping[str, str], *, only_this: bool = False) -> None:
        """Take back a unit that a node cannot do, nor the others of its dataset and model unless `only_this`."""
        self._refused.setdefault(unit if only_this else unit.group, {})[node] = error
        self.put_back(unit)

    def reasons(self, unit: Unit) -> dict[str, Mapping[str, str]]:
        """Return the nodes that cannot do a unit, with the error."""
        return {**self._refused.get(unit.group, {}), **self._refused.get(unit, {})}

    def change_hardware(self, nodes: Mapping[str, str]) -> bool:
        """Have features made again on other hardware where theirs can do none of what waits; True if there are any.

        Args:
            nodes: those with workers, and their hardware.
        """
        changed: set[int] = set()
        for unit in [unit for unit in self._ready() if unit.group in self._hardware]:
            kind = self._hardware[unit.group]
            usable = {other for node, other in nodes.items() if node not in self.reasons(unit)}
            others = {other for other in usable if (unit.group, other) not in self._left}
            if others and kind not in usable and unit.group not in changed:
                changed.add(unit.group)
                self._hardware[unit.group] = min(others)
                if kind in nodes.values():
                    self._left.add((unit.group, kind))
        again = [unit for unit in self.done if unit.group in changed and unit.shard is not None]
        self.waiting += again
        removed = set(again)
        self.done = [unit for unit in self.done if unit not in removed]
        return bool(changed)

    def give_up(self) -> list[Unit]:
        """Give up what waits and could begin, where no worker can do it; return these units."""
        units = list(self._ready())
        removed = set(units)
        self.waiting = [unit for unit in self.waiting if unit not in removed]
        self.given_up += units
        return units

    def _ready(self) -> Iterator[Unit]:
        """Yield the units that could begin."""
        unfinished = {unit.group for unit in (*self.waiting, *self.running) if unit.shard is not None}
        return (unit for unit in self.waiting if unit.shard is not None or unit.group not in unfinished)

    def _is_for(self, unit: Unit, node: str, hardware: str) -> bool:
        return self._hardware.get(unit.group, hardware) == hardware and node not in self.reasons(unit)

    def _end(self, unit: Unit) -> None:
        self.running.remove(unit)
        of_group = [other for other in (*self.running, *self.done) if other.group == unit.group]
        if not any(other in self.running or other.shard is not None for other in of_group):
            self._hardware.pop(unit.group, None)  # nothing was made there
