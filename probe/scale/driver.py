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
from dataclasses import replace
from typing import Any

from probe import grid, paths
from probe.atomic import make_folder
from probe.datasets.opening import with_sizes
from probe.environment import blas_threads, torch_threads
from probe.errors import DeviceError, ExecutorError
from probe.features.chunks import Work
from probe.leaderboard import derived
from probe.records.record import check_writable, read_records, write_record
from probe.records.schema import RunRecord
from probe.runner import failure
from probe.scale import estimates
from probe.scale.cluster import QUIET_SECONDS, Member, Workers, connected, one_line, share_of_gpu
from probe.scale.progress import WAIT_SECONDS, UnitBar
from probe.scale.units import ATTEMPTS, ATTEMPTS_RAISED, Queue, Unit, plan_units
from probe.scale.worker import Files, Lacking, Missing, Outcome, Surroundings, Worker
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import RunSpec

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.9  # of a node's that units may be planned with
CHUNK_BYTES = 64_000_000  # of chunks that are sent at a time


def run_grid(
    specs: Sequence[RunSpec],
    settings: Settings = DEFAULT_SETTINGS,
    *,
    address: str | None = None,
    num_threads: int = 0,
    rerun: bool = False,
) -> Iterator[RunRecord]:
    """Run a grid on Ray; each record is written before it is yielded, the tables when all are done.

    Runs that have a complete record are not run again: their records come first. A unit whose worker is lost (killed,
    out of memory, its node gone) is done again by another, up to `units.ATTEMPTS` times, one that raises what nobody
    foresaw up to `ATTEMPTS_RAISED` times; then its runs are recorded as failed. What a node lacks, a dataset, weights,
    or memory, is looked for on the others. Whatever was finished stays, and the same grid goes on from there.

    Args:
        specs: the runs, as `grid.plan` gives them.
        settings: folders and policies, on every node; relative paths start where this process is.
        address: of a running cluster, `auto` or `ray://HOST:PORT`; None starts Ray on this machine.
        num_threads: processors of a worker, and threads that it computes with; 0 is what torch would use here, or,
            beside GPUs, the share of a GPU in the processors of its node.
        rerun: also run what has a complete record.

    Raises:
        ExtraMissingError: Ray is not installed.
        ExecutorError: the cluster does not answer, has no room for a worker, or has other versions of libraries.
        DeviceError: the runs name a GPU by number, which Ray chooses.
        ResultsError, CacheError: the folder of results, or here that of features, cannot be written to.
    """
    results_dir = paths.results_dir(settings.results_dir)
    check_writable(results_dir)
    pending = grid.pending(specs, settings, rerun=rerun)
    pending.log()
    yield from pending.done.values()
    try:
        if pending.runs:
            refuse_gpu_number(pending.runs[0].device)
            with connected(address) as ray:
                yield from _Driver(ray, pending.runs, settings, num_threads).run()
    finally:
        derived.write_derived(results_dir)


def refuse_gpu_number(device: str) -> None:
    """Stop where cells name a GPU by number, as `cuda:1`.

    Raises:
        DeviceError: Ray chooses.
    """
    if ":" in device:
        raise DeviceError(f"Ray chooses which GPU a worker has; give --device cuda instead of {device}")


class _Driver:
    """Gives units to workers, and keeps what they answer; all cells are of one device, as `plan` makes them."""

    def __init__(self, ray: Any, specs: Sequence[RunSpec], access: Settings, num_threads: int) -> None:
        self.ray, self.device = ray, specs[0].device
        on_gpu = self.device.startswith("cuda")
        self.num_threads = num_threads or (share_of_gpu(ray) if on_gpu else torch_threads())
        # As fits in this process would have; where workers are given a number, BLAS has it too.
        self.num_blas = self.num_threads if num_threads or on_gpu else (blas_threads() or 0)
        self.access = access.absolute()
        if on_gpu and access.workers is None:  # of which one a processor of the node would be for each GPU
            self.access = replace(self.access, workers=min(16, self.num_threads))
        self.units, self.needs, self.seconds = self._plan(specs)
        self.queue = Queue(self.units)
        self.num_failed = 0  # units without a result
        self.was_deserted = False  # by all workers, when it was last looked
        self.running: dict[Any, Member] = {}  # by reference to what they will answer
        self.cleared: set[tuple[Unit, str]] = set()  # units, and nodes where others gave back memory for them
        self.root = paths.cache_dir(self.access.cache_dir)
        self.marker = self.root / f".ray-{uuid.uuid4().hex}"
        # A method is not tried again by Ray: the queue counts what is lost. Its images are asked for while it works.
        # The variable is read by SciPy on import, for fits on a GPU, as `cli.entry_point` says.
        self.actor = ray.remote(
            **({"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": self.num_threads}),
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"asked": 1},
            runtime_env={"env_vars": {"SCIPY_ARRAY_API": os.environ.get("SCIPY_ARRAY_API", "1")}},
        )(Worker)
        way_out = f"give {'--device cpu' if on_gpu else '--threads N'}"
        self.workers = Workers(ray, self._make, on_gpu=on_gpu, num_threads=self.num_threads, way_out=way_out)

    def _plan(
        self, specs: Sequence[RunSpec]
    ) -> tuple[Sequence[Unit], Mapping[Unit, estimates.Memory], Mapping[Unit, float]]:
        """The units, what each needs, and how long each takes beside the others."""
        rows = {row: with_sizes(row, data_dir=self.access.data_dir) for row in {spec.dataset for spec in specs}}
        sizes = {row.name: sum(part.size or 0 for part in sized.parts) for row, sized in rows.items()}
        units = plan_units(specs, sizes)
        sized = [
            replace(unit, specs=tuple(replace(spec, dataset=rows[spec.dataset]) for spec in unit.specs))
            for unit in units
        ]
        needs = {unit: estimates.memory_of(one) for unit, one in zip(units, sized, strict=True)}
        rates = estimates.measure(read_records(paths.results_dir(self.access.results_dir)), device=self.device)
        seconds = [estimates.seconds_of(one, rates, self.num_threads) for one in sized]
        if None in seconds:  # then all are taken to be as long
            seconds = [1.0] * len(units)
        return units, needs, {unit: value or 0.0 for unit, value in zip(units, seconds, strict=True)}

    def _make(self) -> tuple[Any, Any]:
        actor = self.actor.remote(self.access, self.num_threads, self.num_blas, Surroundings.here())
        return actor, actor.describe.remote(self.device, self.marker.name)

    def run(self) -> Iterator[RunRecord]:
        """Do all units; the records as they come."""
        make_folder(self.root)
        self.marker.touch()
        try:
            self._start_first()
            with UnitBar(self.units, self.seconds) as bar:
                while self.queue:
                    self._start_more()
                    self._assign()
                    if not self.running and self.queue and self.workers.are_all():
                        yield from self._give_up()
                    yield from self._collect()
                    self._report(bar)
                bar.show(self.queue, images=self._num_images(), num_failed=self.num_failed)
        finally:
            self.marker.unlink(missing_ok=True)
            self.workers.stop()

    def _start_first(self) -> None:
        """As many as there is room for, and no more than there are units; each has to answer, with our versions."""
        self.workers.wait_for_room()
        until = time.monotonic() + QUIET_SECONDS
        while (self.workers.starting or not self.workers.members) and time.monotonic() < until:
            self._start_more()
            for reference in self._wait(list(self.workers.starting)):
                fault = self.workers.admit(reference)
                if fault is not None:
                    raise fault
        if not self.workers.members:
            logger.warning("no worker has started yet; other work may have the room; waiting")
        logger.info("%s", self.workers)

    def _start_more(self) -> None:
        """Workers for what waits and has none, where there is room: at first, after one was lost, on new nodes."""
        idle = sum(
            member.unit is None and self.queue.has_for(member.about.node, member.about.hardware)
            for member in self.workers.members
        )
        self.workers.start(self.queue.num_waiting - idle - len(self.workers.starting))

    def _wait(self, references: Sequence[Any]) -> Sequence[Any]:
        """Those that have been answered by now, or soon."""
        if not references:
            time.sleep(WAIT_SECONDS)
            return ()
        ready, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        return ready or self.ray.wait(references, timeout=WAIT_SECONDS)[0]

    def _assign(self) -> None:
        for member in self.workers.members:
            busy = self._busy_beside(member)
            if member.unit is not None or (member.is_waiting and busy):
                continue
            taken = sum(self.needs[one.unit].host for one in busy if one.unit is not None)
            room = MEMORY_SHARE * member.about.memory - taken if busy else math.inf
            too_large = {unit for unit, need in self.needs.items() if need.host > room}
            unit = self.queue.take(member.held, member.about.node, member.about.hardware, too_large=too_large)
            if unit is None:
                continue
            member.unit, member.is_alone, member.is_waiting = unit, not busy, False
            for one in busy:
                one.is_alone = False
            if unit.shard is not None:
                member.held = unit.model
            method = member.actor.do if member.about.sees_store else member.actor.find_missing
            self.running[method.remote(unit, self.needs[unit])] = member

    def _busy_beside(self, member: Member) -> list[Member]:
        return [one for one in self.workers.on_node(member) if one.unit is not None]

    def _collect(self) -> Iterator[RunRecord]:
        """What workers have answered by now."""
        is_deserted = not self.workers.members and not self.workers.starting
        if is_deserted and not self.was_deserted:
            logger.warning("no worker is left; others start as soon as a node has room")
        self.was_deserted = is_deserted
        for reference in self._wait([*self.workers.starting, *self.running]):
            if reference in self.workers.starting:
                fault = self.workers.admit(reference)
                if fault is not None:
                    logger.warning("a worker is not used: %s", fault)
                continue
            member = self.running.pop(reference)
            try:
                answer = self.ray.get(reference)
                if isinstance(answer, Missing):
                    self._send(member, answer)
                elif isinstance(answer, Lacking):
                    self._pass_on(member, answer)
                else:
                    yield from self._finish(member, answer)
            except self.ray.exceptions.RayError as err:
                yield from self._lose(member, err)

    def _send(self, member: Member, missing: Missing) -> None:
        """Give a worker the features that it lacks, as far as they are here; a shard that is here whole is done."""
        unit = member.unit
        assert unit is not None
        works = [(Work(self.root, cell), chunks, lacking) for cell, chunks, lacking in missing.cells]
        if unit.shard is not None and all(work.has(chunk) for work, chunks, _ in works for chunk in chunks):
            for work, _, _ in works:
                work.finish_whole()
            member.unit = None
            self.queue.finish(unit)
            self._log_end(unit, "all features are there")
            return
        for work, _, lacking in works:
            for files in _in_chunks(work.files(lacking)):
                self.ray.get(member.actor.take_in.remote(work.spec, lacking, files))
        self.running[member.actor.do.remote(unit, self.needs[unit])] = member

    def _finish(self, member: Member, outcome: Outcome) -> Iterator[RunRecord]:
        """Keep what came of a unit, or have another worker try it once more."""
        unit = member.unit
        assert unit is not None
        for level, message in outcome.logged:
            logger.log(level, "%s", message)
        if not outcome.is_foreseen:
            error = next(record.error for record in outcome.records if record.error is not None)
            member.unit = None
            self.workers.lose(member)
            if self.queue.lose(unit, ATTEMPTS_RAISED):
                logger.warning("%s: another worker tries it (%s: %s)", unit, error.type, error.message)
                return
        else:
            member.unit = None
            for cell, made in outcome.chunks:
                work = Work(self.root, cell)
                work.take_in(made)
                work.finish_whole()
            self.queue.finish(unit)
        failed = [record for record in outcome.records if record.error is not None]
        self.num_failed += bool(failed)
        what = f"failed on {member.about.host}" if failed else f"done on {member.about.host}"
        self._log_end(unit, what)
        for record in outcome.records:
            write_record(record, paths.results_dir(self.access.results_dir))
            yield record

    def _log_end(self, unit: Unit, what: str) -> None:
        ended = self.queue.num_done + self.queue.num_given_up
        logger.info("%s: %s (%d of %d units)", unit, what, ended, len(self.units))

    def _pass_on(self, member: Member, lacking: Lacking) -> None:
        """Give a unit that cannot begin on a node to others, or, where others have the memory, wait for them."""
        unit, node, was_alone = member.unit, member.about.node, member.is_alone
        assert unit is not None
        member.unit = None
        if lacking.is_memory and not was_alone:
            member.is_waiting = True  # so that at last one tries it alone
            self.queue.put_back(unit)
            return
        idle = self.workers.on_node(member)
        if lacking.is_memory and idle and (unit, node) not in self.cleared:
            self.cleared.add((unit, node))
            for one in idle:
                one.held = None
                one.actor.release.remote()
            self.queue.put_back(unit)
            return
        self.queue.refuse(unit, node, {"type": lacking.type, "message": lacking.message}, alone=lacking.is_memory)
        others = {one.about.node for one in self.workers.members} - self.queue.reasons(unit).keys()
        if others:
            logger.warning("%s: not on %s, but on others (%s)", unit, member.about.host, lacking.message)

    def _lose(self, member: Member, err: Exception) -> Iterator[RunRecord]:
        """A unit whose worker is lost, or raised what nobody foresaw: by another, or at last recorded as failed."""
        unit, reason = member.unit, one_line(err)
        assert unit is not None
        member.unit = None
        self.workers.lose(member)
        if isinstance(err, self.ray.exceptions.RayTaskError):
            cause = err.cause if isinstance(err.cause, Exception) else err
            logger.warning("%s: %s", unit, reason)
            attempts, error = ATTEMPTS_RAISED, {"type": type(cause).__name__, "message": str(cause) or repr(cause)}
        else:
            logger.warning("%s: its worker was lost (%s)", unit, reason)
            message = f"its worker was lost {ATTEMPTS} times, the last time so: {reason}"
            attempts, error = ATTEMPTS, {"type": ExecutorError.__name__, "message": message}
        if not self.queue.lose(unit, attempts):
            yield from self._fail(unit, error)

    def _give_up(self) -> Iterator[RunRecord]:
        """Record as failed what waits and no node can do, not even anew on hardware that is there."""
        nodes = {member.about.node: member.about.hardware for member in self.workers.members}
        if self.queue.leave_hardware(nodes):
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

    def _fail(self, unit: Unit, error: Mapping[str, str]) -> Iterator[RunRecord]:
        self.num_failed += 1
        self._log_end(unit, f"failed ({error['message']})")
        if unit.shard is not None:
            return  # the fits meet what keeps it from its features
        for spec in unit.specs:
            record = failure(spec, error)
            write_record(record, paths.results_dir(self.access.results_dir))
            yield record

    def _report(self, bar: UnitBar) -> None:
        """Ask workers how far they are, and show it."""
        if not bar.is_due:
            return
        asked = {
            member.actor.num_images.options(concurrency_group="asked").remote(): member
            for member in self.running.values()
            if member.unit is not None and member.unit.shard is not None
        }
        if asked:
            answered, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=WAIT_SECONDS)
            for reference in answered:
                with suppress(self.ray.exceptions.RayError):  # lost, which `_collect` hears too
                    asked[reference].images = self.ray.get(reference)
        bar.show(self.queue, images=self._num_images(), num_failed=self.num_failed)

    def _num_images(self) -> int:
        return self.workers.lost_images + sum(member.images for member in self.workers.members)


def _in_chunks(files: Iterable[tuple[str, bytes]]) -> Iterator[Files]:
    chunk: list[tuple[str, bytes]] = []
    for file in files:
        chunk.append(file)
        if sum(len(content) for _, content in chunk) > CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
