"""Divide the runs of a grid into units of work for many workers: shards of features, then fits. Queue the units.

The queue decides which unit a worker runs next, and whether a failed unit is repeated. The queue starts no processes;
the driver does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from probe.specs import DatasetSpec, RunSpec

SHARD_IMAGES = 8_192  # approximate; takes minutes on a CPU and seconds on a GPU, so a lost worker costs little
AS_GIVEN: Mapping[DatasetSpec, DatasetSpec] = {}
ATTEMPTS = 5  # for a unit whose worker is lost
ATTEMPTS_RAISED = 2  # for a unit that raises an unexpected error; by different workers, since a worker may be faulty


@dataclass(frozen=True, eq=False)
class Unit:
    """Work of one worker: a shard of features, or the fits of one probe.

    Args:
        specs: for a shard, one specification per mode of a model, with any protocol; all modes are extracted in one
            pass over the images. For fits, one specification per mode of a probe.
        shard: number of the shard, from 1, and the number of shards; None for fits.
        group: number of the pair of dataset and model. Fits need the features of all shards of their group.
        images: number of images that a shard encodes, counted once per mode; 0 if the catalogue has no sizes.
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
        """Return the name of the unit for messages."""
        first = self.specs[0]
        if self.shard is None:
            return f"{first.dataset.name} / {first.model.name} / {first.protocol.name}"
        return f"{first.dataset.name} / {first.model.name} / shard {self.shard[0]} of {self.shard[1]}"


def plan_units(specs: Sequence[RunSpec], sized: Mapping[DatasetSpec, DatasetSpec] = AS_GIVEN) -> list[Unit]:
    """Return the units of a grid. The shards of a dataset, of its further test sets and a model come before the fits.

    Args:
        specs: runs of the grid.
        sized: specifications with sizes, by the specification of the runs. Other datasets have their own sizes; a
            dataset without sizes is one shard.
    """
    units = []
    for i, (_, group) in enumerate(groupby(specs, key=lambda spec: (spec.dataset, spec.model))):
        runs = tuple(group)
        widest = max(runs, key=lambda spec: len(spec.splits))  # the features that it needs serve all runs
        further = [one for spec in runs for one in spec.on_tests]  # runs on further test sets
        for dataset in dict.fromkeys([widest.dataset, *(one.dataset for one in further)]):
            of_dataset = replace(widest, dataset=dataset, tests=())
            images = replace(of_dataset, dataset=sized.get(dataset, dataset)).num_images
            n = max(1, -(-images // SHARD_IMAGES))
            wanted = runs if dataset == widest.dataset else [one for one in further if one.dataset == dataset]
            modes = tuple(dict.fromkeys(replace(of_dataset, jit=one.jit, compiled=one.compiled) for one in wanted))
            shares = [(k + 1) * images // n - k * images // n for k in range(n)]
            units += [Unit(modes, (k + 1, n), i, share * len(modes)) for k, share in enumerate(shares)]
        probes: dict[RunSpec, list[RunSpec]] = {}
        for spec in runs:
            probes.setdefault(spec.of_all_modes, []).append(spec)
        units += [Unit(tuple(same), None, i) for same in probes.values()]
    return units


class Queue:
    """Queue of the units of a grid. A unit is waiting, running, done or given up.

    Fits wait until all shards of their group are done or given up. All features of a group are extracted on one kind of
    hardware, because the last bits of features depend on the hardware.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        self.waiting = list(units)
        self.running: set[Unit] = set()
        self.done: list[Unit] = []
        self.given_up: list[Unit] = []
        self._lost: Counter[Unit] = Counter()  # attempts that ended with the loss of the worker
        self._raised: Counter[Unit] = Counter()  # attempts that ended with an unexpected error
        self._refused: dict[int | Unit, dict[str, Mapping[str, str]]] = {}  # (group or unit) -> node -> error
        self._hardware: dict[int, str] = {}  # group -> hardware of its features
        self._unsuitable: set[tuple[int, str]] = set()  # (group, hardware that cannot run some of its units)

    def __bool__(self) -> bool:
        """Return True if units are waiting or running."""
        return bool(self.waiting or self.running)

    @property
    def num_ended(self) -> int:
        """Number of units that are done or given up."""
        return len(self.done) + len(self.given_up)

    def take(
        self, model: str | None = None, node: str = "", hardware: str = "", *, too_large: Collection[Unit] = ()
    ) -> Unit | None:
        """Start the next unit that a worker can run, and return it; None if there is no such unit.

        The order of the units is:

        1. fits, because they give results early; only fits of zero-shot load a model, and only for a moment;
        2. shards of the model that the worker has loaded;
        3. shards of the model that the fewest workers are extracting;
        4. units that failed before. They come last so that they delay no other unit, and because the cause of the
           failure may be gone by then.

        Args:
            model: name of the model that the worker has loaded.
            node: node of the worker. Units that were refused on this node are skipped.
            hardware: hardware of the worker, which determines the last bits of features.
            too_large: units for which the node has too little free memory at the moment.
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
        """Return True if a waiting unit could run on a node with this hardware."""
        return any(self._is_for(unit, node, hardware) for unit in self._ready())

    def finish(self, unit: Unit) -> None:
        """Mark a running unit as done."""
        self.done.append(unit)
        self._end(unit)

    def retry(self, unit: Unit, *, has_raised: bool = False) -> bool:
        """Put a failed unit back into the queue, or give it up after its last attempt.

        Args:
            unit: the failed unit.
            has_raised: True if the unit raised an unexpected error; False if its worker was lost.

        Returns:
            True if the unit will be repeated, False if it is given up.
        """
        failures, attempts = (self._raised, ATTEMPTS_RAISED) if has_raised else (self._lost, ATTEMPTS)
        failures[unit] += 1
        is_left = failures[unit] < attempts
        (self.waiting if is_left else self.given_up).append(unit)
        self._end(unit)
        return is_left

    def put_back(self, unit: Unit) -> None:
        """Put a unit that could not start back to the front of the queue."""
        self.waiting.insert(0, unit)
        self._end(unit)

    def refuse(self, unit: Unit, node: str, error: Mapping[str, str], *, only_this: bool = False) -> None:
        """Put back a unit that a node cannot run, and exclude the unit from that node.

        The other units of its group are excluded from the node, too, unless `only_this` is True.
        """
        self._refused.setdefault(unit if only_this else unit.group, {})[node] = error
        self.put_back(unit)

    def reasons(self, unit: Unit) -> dict[str, Mapping[str, str]]:
        """Return the nodes that cannot run a unit, with the errors."""
        return {**self._refused.get(unit.group, {}), **self._refused.get(unit, {})}

    def change_hardware(self, nodes: Mapping[str, str]) -> bool:
        """Move groups to other hardware if no node with the hardware of their features can run their waiting units.

        The finished shards of such a group are extracted again on the other hardware.

        Returns:
            True if a group was moved.
        """
        changed: set[int] = set()
        for unit in [unit for unit in self._ready() if unit.group in self._hardware]:
            kind = self._hardware[unit.group]
            usable = {other for node, other in nodes.items() if node not in self.reasons(unit)}
            others = {other for other in usable if (unit.group, other) not in self._unsuitable}
            if others and kind not in usable and unit.group not in changed:
                changed.add(unit.group)
                self._hardware[unit.group] = min(others)
                if kind in nodes.values():
                    self._unsuitable.add((unit.group, kind))
        again = [unit for unit in self.done if unit.group in changed and unit.shard is not None]
        self.waiting += again
        removed = set(again)
        self.done = [unit for unit in self.done if unit not in removed]
        return bool(changed)

    def give_up(self) -> list[Unit]:
        """Give up all units that could start, because no worker can run them; return these units."""
        units = list(self._ready())
        removed = set(units)
        self.waiting = [unit for unit in self.waiting if unit not in removed]
        self.given_up += units
        return units

    def _ready(self) -> Iterator[Unit]:
        """Yield the waiting units that could start: shards, and fits whose shards have ended."""
        unfinished = {unit.group for unit in (*self.waiting, *self.running) if unit.shard is not None}
        return (unit for unit in self.waiting if unit.shard is not None or unit.group not in unfinished)

    def _is_for(self, unit: Unit, node: str, hardware: str) -> bool:
        return self._hardware.get(unit.group, hardware) == hardware and node not in self.reasons(unit)

    def _end(self, unit: Unit) -> None:
        self.running.remove(unit)
        group = [other for other in (*self.running, *self.done) if other.group == unit.group]
        if not any(other in self.running or other.shard is not None for other in group):
            self._hardware.pop(unit.group, None)  # no features exist yet, so the hardware is free again
