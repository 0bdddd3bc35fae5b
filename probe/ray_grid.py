"""A grid on Ray: the units of `units` on workers of one machine or a cluster, with the records of one process.

Every worker is an actor with as many processors, or one GPU, as a process would use, so that features have the same
bytes. Features pass through a folder that all nodes share, or, to and from nodes that do not see it, through Ray's
object store. The driver writes the records.
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probe import derived, estimates, paths
from probe.cache import Cell
from probe.datasets.opening import with_sizes
from probe.environment import blas_threads, torch_threads
from probe.errors import DeviceError, ExecutorError
from probe.extraction import Access
from probe.pieces import Work
from probe.ray_cluster import ANSWER_SECONDS, connected, find_difference, find_room, one_line, share_of_gpu
from probe.ray_progress import WAIT_SECONDS, UnitBar
from probe.ray_worker import About, Done, Files, Lacking, Surroundings, Worker, versions
from probe.records import STATES, RunRecord, check_writable, read_records, write_record
from probe.runner import failure
from probe.specs import RunSpec, rebuild
from probe.units import ATTEMPTS, Queue, Unit, plan_units

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.9  # of a node's that units may be planned with
START_SECONDS = 60.0  # for the first workers, until work begins without the rest
CHUNK_BYTES = 64_000_000  # of pieces that are sent at a time


def run_grid(
    specs: Sequence[RunSpec], *, access: Access, address: str | None = None, num_threads: int = 0
) -> Iterator[RunRecord]:
    """Run cells on Ray; each record is written before it is yielded, the tables when all are done.

    Cells that have a whole record are not run again: their records come first. A unit whose worker is lost (killed, out
    of memory, its node gone) is done again by another, up to `units.ATTEMPTS` times; then its cells are recorded as
    failed. What a node lacks, a dataset, weights, or memory, is looked for on the others. Whatever was finished stays,
    and the same grid goes on from there.

    Args:
        specs: the cells, as `runner.plan` gives them.
        access: where things are, on every node; relative paths start where this process is.
        address: of a running cluster, `auto` or `ray://HOST:PORT`; None starts Ray on this machine.
        num_threads: processors of a worker, and threads that it computes with; 0 is what torch would use here, or,
            beside GPUs, the share of a GPU in the processors of its node.

    Raises:
        ExtraMissingError: Ray is not installed.
        ExecutorError: the cluster does not answer, has no room for a worker, or has other versions of libraries.
        DeviceError: the cells name a GPU by number, which Ray chooses.
        ResultsError: the results folder cannot be written to.
    """
    results_dir = paths.results_dir(access.results)
    check_writable(results_dir)
    done = find_done(specs, results_dir)
    yield from done.values()
    left = [spec for spec in specs if spec not in done]
    try:
        if left:
            with connected(address) as ray:
                yield from _Driver(ray, left, access, num_threads).run()
    finally:
        derived.write_derived(results_dir)


def find_done(specs: Sequence[RunSpec], results_dir: Path) -> dict[RunSpec, RunRecord]:
    """The cells of a grid that have a whole record of their specification, and so has what they are compared with."""
    found = {}
    for record in read_records(results_dir):
        with suppress(KeyError, TypeError):  # of an earlier schema, which does not say all
            if record.rank == max(range(len(STATES))):
                found[rebuild(record.spec)] = record
    left = {_probe(spec) for spec in specs if spec not in found}
    return {spec: found[spec] for spec in specs if spec in found and _probe(spec) not in left}


def _probe(spec: RunSpec) -> RunSpec:
    """One cell for all modes of a probe."""
    return replace(spec, jit=False, compiled=False)


@dataclass
class _Member:
    """A worker that has answered: what it is, the model that it holds, and what it does."""

    actor: Any
    about: About
    held: str | None = None
    unit: Unit | None = None
    is_waiting: bool = False  # for memory that others on its node use
    images: int = 0


class _Driver:
    def __init__(self, ray: Any, specs: Sequence[RunSpec], access: Access, num_threads: int) -> None:
        self.ray, self.access = ray, access
        self.device = _one_device(specs)
        self.on_gpu = self.device.startswith("cuda")
        self.num_threads = num_threads or (share_of_gpu(ray) if self.on_gpu else torch_threads())
        # As fits in this process would have; where workers are given a number, BLAS has it too.
        self.num_blas = self.num_threads if num_threads or self.on_gpu else (blas_threads() or 0)
        if self.on_gpu and access.workers is None:  # of which one a processor of the node would be for each GPU
            self.access = replace(access, workers=min(16, self.num_threads))
        rows = {row: with_sizes(row, data_dir=access.data) for row in {spec.dataset for spec in specs}}
        sizes = {row.name: sum(part.size or 0 for part in sized.parts) for row, sized in rows.items()}
        self.units = plan_units(specs, sizes)
        sized = [
            replace(unit, specs=tuple(replace(spec, dataset=rows[spec.dataset]) for spec in unit.specs))
            for unit in self.units
        ]
        self.needs = {unit: estimates.memory_of(one) for unit, one in zip(self.units, sized, strict=True)}
        rates = estimates.measure(read_records(paths.results_dir(access.results)), device=self.device)
        self.seconds = _relative_seconds(dict(zip(self.units, sized, strict=True)), rates, self.num_threads)
        self.queue = Queue(self.units)
        self.root = paths.cache_dir(access.cache)
        self.marker = f".ray-{uuid.uuid4().hex}"
        self.members: dict[Any, _Member] = {}  # by actor
        self.starting: dict[Any, Any] = {}  # reference -> actor
        self.running: dict[Any, _Member] = {}  # reference -> who
        self.num_failed_starts = 0
        self.next_start = time.monotonic()
        self.num_failed = 0  # units without a result
        self.gone_images = 0  # that workers had encoded which are lost
        self.last_change = time.monotonic()  # of the workers that there are
        self.last_loss = -math.inf
        options = {"num_gpus": 1} if self.on_gpu else {"num_cpus": self.num_threads}
        # A method is not tried again by Ray: the queue counts what is lost. Its images are asked for while it works.
        # The variable is read by SciPy on import, for fits on a GPU, as `cli.entry_point` says.
        variables = {"SCIPY_ARRAY_API": os.environ.get("SCIPY_ARRAY_API", "1")}
        self.actor = ray.remote(
            **options,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"asked": 1},
            runtime_env={"env_vars": variables},
        )(Worker)

    def run(self) -> Iterator[RunRecord]:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / self.marker).touch()
        try:
            self._start_first()
            with UnitBar(self.units, self.seconds) as bar:
                while self.queue:
                    self._start_more()
                    self._assign()
                    if self._is_stuck():
                        yield from self._give_up()
                    yield from self._collect()
                    self._report(bar)
        finally:
            (self.root / self.marker).unlink(missing_ok=True)
            for actor in [*self.members, *self.starting.values()]:
                self._kill(actor)

    def _start_first(self) -> None:
        """As many as there is room for, and no more than there are units; each has to answer, with our versions."""
        until = time.monotonic() + ANSWER_SECONDS
        while not self._room():  # a node that has just started says so a moment later
            if time.monotonic() > until:
                self._refuse_no_room()
            time.sleep(WAIT_SECONDS)
        until = time.monotonic() + START_SECONDS
        self._start_more()
        while self.starting and time.monotonic() < until:
            ready, _ = self.ray.wait(list(self.starting), timeout=WAIT_SECONDS)
            for reference in ready:
                fault = self._admit(reference)
                if fault is not None:
                    raise fault
            self._start_more()
        if not self.members:
            logger.warning("no worker has started yet; other work may have the room; waiting")
        n, each = len(self.members), "a GPU" if self.on_gpu else f"{self.num_threads} processors"
        nodes = {member.about.node for member in self.members.values()}
        logger.info("%d workers of %s on %d nodes", n, each, len(nodes))

    def _room(self) -> int:
        return find_room(self.ray.nodes(), on_gpu=self.on_gpu, num_threads=self.num_threads)

    def _refuse_no_room(self) -> None:
        each = "a GPU" if self.on_gpu else f"{self.num_threads} processors"
        there = self.ray.cluster_resources()
        raise ExecutorError(
            f"a worker takes {each}, and no node has as much: there are {there.get('GPU', 0):g} GPUs and "
            f"{there.get('CPU', 0):g} processors in all; give {'--device cpu' if self.on_gpu else '--threads N'}, or "
            "add a node"
        )

    def _start_more(self) -> None:
        """Workers for what waits and has none, where there is room: at first, after one was lost, on new nodes."""
        idle = sum(
            member.unit is None and self.queue.has_for(member.about.node, member.about.hardware)
            for member in self.members.values()
        )
        wanted = self.queue.num_waiting - idle - len(self.starting)
        if wanted <= 0 or time.monotonic() < self.next_start:
            return
        available = self.ray.available_resources()  # that no other work of the cluster has
        free = int(available.get("GPU", 0) if self.on_gpu else available.get("CPU", 0) // self.num_threads)
        room = min(self._room() - len(self.members), free) - len(self.starting)
        for _ in range(min(wanted, room)):
            actor = self.actor.remote(self.access, self.num_threads, self.num_blas, Surroundings.here())
            self.starting[actor.describe.remote(self.device, self.marker)] = actor
            self.last_change = time.monotonic()

    def _admit(self, reference: Any) -> ExecutorError | None:
        """Take in a worker that has answered; the reason where it cannot be used."""
        actor = self.starting.pop(reference)
        try:
            about: About = self.ray.get(reference)
        except self.ray.exceptions.RayError as err:
            reason = one_line(err)
            logger.warning("a worker was lost while it started (%s)", reason)
            is_hopeless = self._count_failed_start(actor)
            return ExecutorError(f"workers are lost as soon as they start ({reason})") if is_hopeless else None
        fault = find_difference(versions(), about)
        if fault is not None:
            self._count_failed_start(actor)
            return fault
        self.num_failed_starts, self.last_change = 0, time.monotonic()
        self.members[actor] = _Member(actor, about)
        return None

    def _count_failed_start(self, actor: Any) -> bool:
        """Note that a worker cannot be used; whether there are none, and there have been too many such."""
        self._kill(actor)
        self.num_failed_starts += 1
        if self.num_failed_starts % ATTEMPTS == 0:  # of a node that has nothing but those
            self.next_start = time.monotonic() + START_SECONDS
        return self.num_failed_starts >= ATTEMPTS and not self.members

    def _assign(self) -> None:
        for member in self.members.values():
            if member.unit is not None or member.is_waiting:
                continue
            about = member.about
            beside = sum(self.needs[one.unit].host for one in self._busy_beside(member) if one.unit is not None)
            room = MEMORY_SHARE * about.memory - beside if beside else math.inf
            too_large = {unit for unit, need in self.needs.items() if need.host > room}
            unit = self.queue.take(member.held, about.node, about.hardware, too_large=too_large)
            if unit is None:
                continue
            member.unit = unit
            if unit.shard is not None:
                member.held = unit.model
            method = member.actor.do if about.sees_store else member.actor.wanted
            self.running[method.remote(unit, self.needs[unit])] = member

    def _busy_beside(self, member: _Member) -> list[_Member]:
        """The workers on the same node that have a unit."""
        node = member.about.node
        return [one for one in self.members.values() if one.unit is not None and one.about.node == node]

    def _collect(self) -> Iterator[RunRecord]:
        """What workers have answered by now."""
        asked = [*self.starting, *self.running]
        if not asked:
            if self.queue and not self.members:
                logger.warning("no worker is left, and no node has room for one; waiting")
                time.sleep(ANSWER_SECONDS)
            return
        ready, _ = self.ray.wait(asked, num_returns=len(asked), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(asked, timeout=WAIT_SECONDS)
        for reference in ready:
            if reference in self.starting:
                fault = self._admit(reference)
                if fault is not None:
                    if not self.members:
                        raise fault
                    logger.warning("a worker is not used: %s", fault)
                continue
            member = self.running.pop(reference)
            try:
                yield from self._take(member, self.ray.get(reference))
            except self.ray.exceptions.RayTaskError as err:  # raised there, by a worker that is well
                cause = err.cause if isinstance(err.cause, Exception) else err
                self._pass_on(member, Lacking(type(cause).__name__, one_line(cause)))
            except self.ray.exceptions.RayError as err:
                yield from self._lose(member, err)

    def _take(self, member: _Member, answer: Lacking | Done | list[tuple[Cell, list[int]]]) -> Iterator[RunRecord]:
        unit = member.unit
        assert unit is not None
        if isinstance(answer, list):  # of pieces that the worker lacks
            for cell, pieces in answer:
                for files in _in_chunks(Work(self.root, cell).files(pieces)):
                    self.ray.get(member.actor.take_in.remote(cell, files))
            self.running[member.actor.do.remote(unit, self.needs[unit])] = member
            return
        if isinstance(answer, Lacking):
            self._pass_on(member, answer)
            return
        member.unit = None
        self._wake(member)
        for cell, made in answer.pieces:
            work = Work(self.root, cell)
            work.take_in(made)
            work.finish_whole()
        self.queue.finish(unit)
        self.num_failed += any(record.error for record in answer.records)
        logger.info("%s: done on %s (%d of %d units)", unit, member.about.host, self.queue.num_done, len(self.units))
        for record in answer.records:
            write_record(record, paths.results_dir(self.access.results))
            yield record

    def _pass_on(self, member: _Member, lacking: Lacking) -> None:
        """Give a unit that cannot begin on a node to others, or, where others fill the memory, wait for them."""
        unit, node, member.unit = member.unit, member.about.node, None
        assert unit is not None
        if self._busy_beside(member):
            if lacking.is_memory:
                member.is_waiting = True
                self.queue.put_back(unit)
                return
        else:
            self._wake(member)  # there is nothing left to wait for
        error = {"type": lacking.type, "message": lacking.message}
        self.queue.refuse(unit, node, error, alone=lacking.is_memory)
        others = {one.about.node for one in self.members.values()} - self.queue.reasons(unit).keys()
        if others:
            logger.warning("%s: not on %s, but on others (%s)", unit, member.about.host, lacking.message)

    def _wake(self, member: _Member) -> None:
        """Let those of a node that waited for memory try again."""
        for one in self.members.values():
            one.is_waiting = one.is_waiting and one.about.node != member.about.node

    def _lose(self, member: _Member, err: Exception) -> Iterator[RunRecord]:
        """A unit whose worker is lost: by another, or, where that happens again and again, recorded as failed."""
        unit, reason = member.unit, one_line(err)
        assert unit is not None
        logger.warning("%s: its worker was lost (%s)", unit, reason)
        self._kill(member.actor)
        del self.members[member.actor]
        self._wake(member)
        self.gone_images += member.images
        self.last_change = self.last_loss = time.monotonic()
        if not self.queue.lose(unit):
            message = f"its worker was lost {ATTEMPTS} times, the last time so: {reason}"
            yield from self._fail(unit, {"type": ExecutorError.__name__, "message": message})

    def _give_up(self) -> Iterator[RunRecord]:
        """Record as failed what waits and no node can do, not even anew on hardware that is there."""
        if self.queue.leave_hardware({member.about.hardware for member in self.members.values()}):
            return
        for unit in self.queue.give_up():
            yield from self._fail(unit, self._why_not(unit))

    def _why_not(self, unit: Unit) -> dict[str, str]:
        reasons = self.queue.reasons(unit)
        if not reasons:
            return {"type": ExecutorError.__name__, "message": "no worker is left that could do it; run it again"}
        error = next(iter(reasons.values()))
        n = len(reasons) - 1
        others = f"; nor is it on the {n} other node{'s' if n > 1 else ''}" if n else ""
        return {"type": error["type"], "message": error["message"] + others}

    def _is_stuck(self) -> bool:
        """Whether there are workers, but none for what waits, and nothing goes on that would change it."""
        if not self.queue or not self.members or self.running:
            return False
        is_quiet = time.monotonic() > self.last_change + START_SECONDS
        is_full = len(self.members) >= self._room() and time.monotonic() > self.last_loss + START_SECONDS
        return is_quiet or (is_full and not self.starting)

    def _fail(self, unit: Unit, error: Mapping[str, str]) -> Iterator[RunRecord]:
        self.num_failed += 1
        if unit.shard is not None:
            return  # the fits meet what keeps it from its features
        for spec in unit.specs:
            record = failure(spec, error)
            write_record(record, paths.results_dir(self.access.results))
            yield record

    def _report(self, bar: UnitBar) -> None:
        """Ask workers how far they are, and show it."""
        asked = {
            member.actor.num_images.options(concurrency_group="asked").remote(): member
            for member in self.running.values()
            if bar.is_due and member.unit is not None and member.unit.shard is not None
        }
        if asked:
            answered, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=WAIT_SECONDS)
            for reference in answered:
                with suppress(self.ray.exceptions.RayError):  # lost, which `_collect` hears too
                    asked[reference].images = self.ray.get(reference)
        images = self.gone_images + sum(member.images for member in self.members.values())
        bar.show(self.queue, images=images, num_failed=self.num_failed)

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # that is gone already
            self.ray.kill(actor)


def _relative_seconds(sized: Mapping[Unit, Unit], rates: estimates.Rates, num_threads: int) -> dict[Unit, float]:
    """How long units take beside each other: by measured rates, or, where one is not known, all as long."""
    seconds = {unit: estimates.seconds_of(one, rates, num_threads) for unit, one in sized.items()}
    if None in seconds.values():
        return dict.fromkeys(sized, 1.0)
    return {unit: value or 0.0 for unit, value in seconds.items()}


def _one_device(specs: Sequence[RunSpec]) -> str:
    devices = {spec.device for spec in specs}
    if len(devices) > 1:
        raise DeviceError(
            f"one grid is for one device, not for {' and '.join(sorted(devices))}; run one after the other"
        )
    (device,) = devices
    if ":" in device:
        raise DeviceError(f"Ray chooses which GPU a worker has; give --device cuda instead of {device}")
    return device


def _in_chunks(files: Iterable[tuple[str, bytes]]) -> Iterator[Files]:
    chunk: list[tuple[str, bytes]] = []
    for file in files:
        chunk.append(file)
        if sum(len(content) for _, content in chunk) > CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
