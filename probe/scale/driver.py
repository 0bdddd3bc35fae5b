"""Run a grid on Ray: workers of one machine or a cluster compute the units, and the driver writes the records.

Every worker is an actor with one GPU, or with as many CPUs as a single process would use, so that features have the
same bytes as without Ray. Features are exchanged through a cache folder that all nodes share. Nodes without access to
that folder exchange features through Ray's object store.
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from probe import grid, paths
from probe.datasets.opening import with_sizes
from probe.environment import blas_threads, torch_threads
from probe.errors import DeviceError, ExecutorError
from probe.features.chunks import Work
from probe.features.store import check_usable
from probe.leaderboard import derived
from probe.models.own import ADVICE, FORM
from probe.models.own_files import is_file
from probe.progress import Progress, show_progress
from probe.records.prediction_files import check_predictions_dir
from probe.records.record import check_writable, write_record
from probe.records.schema import RunRecord
from probe.runner import failure, write_run
from probe.scale.cluster import Member, Workers, connected, cpus_per_gpu, error_line
from probe.scale.needs import memory_of
from probe.scale.units import ATTEMPTS, Queue, Unit, plan_units
from probe.scale.worker import DriverEnvironment, MissingChunks, NotRunnable, UnitResult, Worker
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import RunSpec
from probe.tracking.trackers import open_trackers

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.5  # for the next answer of a worker, and between two updates of the progress bar
MEMORY_SHARE = 0.9  # fraction of a node's memory that its units may use together
RELEASE_SECONDS = 10.0  # time limit for workers to release their models


def run_grid_on_ray(
    specs: Sequence[RunSpec],
    settings: Settings = DEFAULT_SETTINGS,
    *,
    address: str | None = None,
    num_threads: int = 0,
    rerun: bool = False,
) -> Iterator[RunRecord]:
    """Run a grid on Ray. Each record is written before it is yielded, and the tables after the last run.

    Runs with a complete record are not run again; their records are yielded first.

    - If a worker is lost (killed, out of memory, node lost), another worker repeats its unit, at most `units.ATTEMPTS`
      times in total. After an unexpected error, the limit is `units.ATTEMPTS_RAISED`. Then the runs are recorded as
      failed.
    - If a node lacks a dataset, weights or memory, the unit is tried on other nodes.
    - After an interruption, the same grid continues with the runs that have no complete record.

    Args:
        specs: runs of the grid, from `grid.plan`.
        settings: folders and policies on every node. Relative paths start at the current folder of this process.
        address: address of a running cluster, `auto` or `ray://HOST:PORT`; None starts Ray on this machine.
        num_threads: number of CPUs and threads of a worker. 0 means the number of threads that torch uses here; with
            GPUs, the number of CPUs per GPU of a node.
        rerun: True to repeat runs that have a complete record.

    Raises:
        ExtraMissingError: Ray is not installed.
        ExecutorError: the cluster does not answer, has no room for a worker, or has different library versions.
        DeviceError: the runs name a GPU by its number, which only Ray can choose.
        ResultsError, CacheError: the folder of results, or the driver's cache folder, is not writable.
    """
    results_dir = paths.results_dir(settings.results_dir)
    check_writable(results_dir)
    check_predictions_dir(settings.predictions_dir)
    pending = grid.pending(specs, settings, rerun=rerun)
    trackers = open_trackers(
        settings.log, offline=settings.offline, num_recorded=len(pending.done), results_dir=results_dir
    )
    yield from pending.done.values()
    try:
        if pending.runs:
            refuse_gpu_number(pending.runs[0].device)
            refuse_encoders_in_memory(pending.runs)
            with connected(address) as ray:
                for record in _Driver(ray, pending.runs, settings, num_threads).run():
                    trackers.log(record)
                    yield record
        trackers.report()
    finally:
        derived.write_derived(results_dir)


def refuse_gpu_number(device: str) -> None:
    """Check that a device does not name a GPU by its number, such as `cuda:1`, because Ray chooses the GPU of a worker.

    Raises:
        DeviceError: the device has a number.
    """
    if ":" in device:
        raise DeviceError(f"Ray chooses the GPU of each worker; give --device cuda instead of --device {device}")


def refuse_encoders_in_memory(specs: Sequence[RunSpec]) -> None:
    """Check that workers can load the encoders.

    Raises:
        ExecutorError: an `Encoder` was made in this process; the message says what to use.
    """
    for spec in specs:
        if spec.model.form == FORM and not is_file(spec.model):
            raise ExecutorError(f"workers of Ray cannot load the encoder {spec.model.name!r} of this process; {ADVICE}")


class _Driver:
    """Driver of a grid: gives units to workers and stores their results. All runs use one kind of device."""

    def __init__(self, ray: Any, specs: Sequence[RunSpec], settings: Settings, num_threads: int) -> None:
        self.ray, self.device = ray, specs[0].device
        on_gpu = self.device.startswith("cuda")
        self.num_threads = num_threads or (cpus_per_gpu(ray) if on_gpu else torch_threads())
        # Without a given number of threads, BLAS uses as many threads as in a single process.
        self.num_blas = self.num_threads if num_threads or on_gpu else (blas_threads() or 0)
        self.settings = settings.absolute()
        if on_gpu and settings.workers is None:  # otherwise each worker would use all CPUs of the node for reading
            self.settings = replace(self.settings, workers=min(16, self.num_threads))
        rows = {row: with_sizes(row, data_dir=self.settings.data_dir) for row in {spec.dataset for spec in specs}}
        sized = [replace(spec, dataset=rows[spec.dataset]) for spec in specs]
        self.units = plan_units(specs, rows)
        self.needs = dict(zip(self.units, map(memory_of, plan_units(sized)), strict=True))
        self.queue = Queue(self.units)
        self.num_failed = 0  # number of failed units
        self.shown_at, self.num_shown = time.monotonic(), 0  # when the bar was updated, and the images that it shows
        self.running: dict[Any, Member] = {}  # workers by the reference to their result
        # Pairs of unit and node: the memory of the node is too small for the unit together with other units.
        self.only_alone: set[tuple[Unit, str]] = set()
        self.root = paths.cache_dir(self.settings.cache_dir)
        self.marker = self.root / f".ray-{uuid.uuid4().hex}"
        # Ray would restart a lost actor and its unit at once, before other units, and would not repeat a unit that
        # raised an error. So Ray restarts nothing, and the queue counts the attempts. The concurrency group lets the
        # driver ask for the number of images while an actor computes. SciPy reads SCIPY_ARRAY_API on import, for fits
        # on a GPU; see `cli.entry_point`.
        self.actor = ray.remote(
            **({"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": self.num_threads}),
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"progress": 1},
            runtime_env={"env_vars": {"SCIPY_ARRAY_API": os.environ.get("SCIPY_ARRAY_API", "1")}},
        )(Worker)
        self.workers = Workers(ray, self._make, on_gpu=on_gpu, num_threads=self.num_threads)

    def _make(self) -> tuple[Any, Any]:
        actor = self.actor.remote(self.settings, self.num_threads, self.num_blas, DriverEnvironment.here())
        return actor, actor.describe.remote(self.device, self.marker.name)

    def run(self) -> Iterator[RunRecord]:
        """Run all units, and yield the records in the order in which they finish."""
        check_usable(self.root)
        self.marker.touch()
        try:
            self.workers.wait_for_room()
            with show_progress() as progress:
                progress.expect(sum(unit.images for unit in self.units))
                while self.queue:
                    self._assign()
                    if not self.running and not self.workers.may_grow():
                        yield from self._give_up()
                    yield from self._collect()
                    if progress.is_shown and time.monotonic() > self.shown_at + WAIT_SECONDS:
                        self._report(progress)
                self._report(progress)
        finally:
            self.marker.unlink(missing_ok=True)
            self.workers.stop()

    def _assign(self) -> None:
        """Give units to idle workers, and request more workers for the units that still wait."""
        num_idle = 0
        for member in self.workers.members:
            if member.unit is not None:
                continue
            others, info = self.workers.on_node(member), member.info
            busy = {one.unit for one in others if one.unit is not None}
            available = MEMORY_SHARE * info.memory - sum(self.needs[unit].host for unit in busy) if busy else math.inf
            alone = {unit for unit, node in self.only_alone if node == info.node}
            too_large = {
                unit
                for unit, need in self.needs.items()
                if need.host > available or (busy and unit in alone) or not busy.isdisjoint(alone)
            }
            unit = self.queue.take(member.model, info.node, info.hardware, too_large=too_large)
            if unit is None:
                num_idle += self.queue.has_for(info.node, info.hardware)
                continue
            if unit in alone and others:
                self._release(others)
            if unit.shard is not None:
                member.model = unit.model
            member.unit, member.images = unit, 0
            method = member.actor.do if info.sees_store else member.actor.find_missing
            self.running[method.remote(unit, self.needs[unit])] = member
        self.workers.request(len(self.queue.waiting) - num_idle)

    def _release(self, members: Sequence[Member]) -> None:
        """Tell workers to release the memory of their models."""
        for one in members:
            one.model = None
        answers = [one.actor.release.remote() for one in members]
        self.ray.wait(answers, num_returns=len(answers), timeout=RELEASE_SECONDS)

    def _collect(self) -> Iterator[RunRecord]:
        """Wait a moment for a result of a worker, and process it."""
        references = [*self.workers.starting, *self.running]
        if not references:
            time.sleep(WAIT_SECONDS)
            return
        for reference in self.ray.wait(references, timeout=WAIT_SECONDS)[0]:
            if reference in self.workers.starting:
                difference = self.workers.admit(reference)
                if difference is not None and not self.queue.done:
                    raise difference
                if difference is not None:
                    logger.warning("a worker is not used: %s", difference)
                continue
            member = self.running.pop(reference)
            unit, member.unit = member.unit, None
            assert unit is not None
            try:
                answer = self.ray.get(reference)
                if isinstance(answer, MissingChunks):
                    self._exchange(member, unit, answer)
                elif isinstance(answer, NotRunnable):
                    self._refuse(member, unit, answer)
                else:
                    yield from self._finish(member, unit, answer)
            except self.ray.exceptions.RayError as err:
                yield from self._lose(member, unit, err)

    def _exchange(self, member: Member, unit: Unit, missing: MissingChunks) -> None:
        """Send a worker its missing chunks, and request the chunks that the driver does not have.

        A shard is done when the driver has all of its chunks.
        """
        works = [(Work(self.root, entry), chunks, absent) for entry, chunks, absent in missing.entries]
        wanted = [(work.spec, [chunk for chunk in chunks if not work.has(chunk)]) for work, chunks, _ in works]
        if unit.shard is not None and not any(chunks for _, chunks in wanted):
            for work, _, _ in works:
                work.finish_whole()
            self.queue.finish(unit)
            self._log_end(unit, "all features were cached")
            return
        for work, _, absent in works:
            # One at a time, because all files may not fit into memory.
            for file in work.files(absent) if absent else ():
                self.ray.get(member.actor.take_in.remote(work.spec, [file]))
        member.unit = unit
        self.running[member.actor.do.remote(unit, self.needs[unit], wanted)] = member

    def _finish(self, member: Member, unit: Unit, result: UnitResult) -> Iterator[RunRecord]:
        """Store the result of a unit. After an unexpected error, let another worker repeat the unit."""
        for log in result.logs:
            logging.getLogger(log.name).handle(log)
        if not result.is_expected:
            error = next(record.error for record in result.records if record.error is not None)
            self.workers.remove(member)
            if self.queue.retry(unit, has_raised=True):
                logger.warning(
                    "%s: unexpected error, another worker repeats the unit (%s: %s)", unit, error.type, error.message
                )
                return
        else:
            for entry, files in result.chunks:
                work = Work(self.root, entry)
                work.take_in(files)
                work.finish_whole()
            self.queue.finish(unit)
        records = [
            write_run(record, result.heads.get(i, {}), dict(result.predictions.get(i, {})), self.settings)
            for i, record in enumerate(result.records)
        ]
        failed = [record for record in records if record.error is not None]
        self.num_failed += bool(failed)
        self._log_end(unit, f"{'failed' if failed else 'done'} on {member.info.host}")
        yield from records
        if unit.shard is None and result.is_expected:
            with suppress(self.ray.exceptions.RayError):  # the worker is lost; `cache gc` removes its fits
                self.ray.get(member.actor.clear_fits.remote())

    def _log_end(self, unit: Unit, outcome: str) -> None:
        logger.debug("%s: %s (%d of %d units)", unit, outcome, self.queue.num_ended, len(self.units))

    def _refuse(self, member: Member, unit: Unit, reason: NotRunnable) -> None:
        """Leave a unit that cannot start on a node to other nodes.

        If other workers on the node use memory, the unit is first tried alone on this node.
        """
        node = member.info.node
        if reason.is_memory and self.workers.on_node(member) and (unit, node) not in self.only_alone:
            self.only_alone.add((unit, node))
            self.queue.put_back(unit)
            return
        error = {"type": reason.type, "message": reason.message}
        # A node without a further test set can still run the other units of the group.
        only_this = reason.is_memory or unit.specs[0].dataset.is_test_set
        self.queue.refuse(unit, node, error, only_this=only_this)
        if {one.info.node for one in self.workers.members} - self.queue.reasons(unit).keys():
            logger.warning("%s: cannot run on %s, trying other nodes (%s)", unit, member.info.host, reason.message)

    def _lose(self, member: Member, unit: Unit, err: Exception) -> Iterator[RunRecord]:
        """Let another worker repeat a unit that raised an error or whose worker was lost.

        After the last attempt, record the runs of the unit as failed.
        """
        self.workers.remove(member)
        reason, has_raised = error_line(err), isinstance(err, self.ray.exceptions.RayTaskError)
        if has_raised:
            cause = getattr(err, "cause", None)
            cause = cause if isinstance(cause, Exception) else err
            error = {"type": type(cause).__name__, "message": str(cause) or repr(cause)}
        else:
            message = f"its worker was lost {ATTEMPTS} times, the last time because: {reason}"
            error = {"type": ExecutorError.__name__, "message": message}
        logger.warning("%s: %s", unit, reason if has_raised else f"its worker was lost ({reason})")
        if not self.queue.retry(unit, has_raised=has_raised):
            yield from self._fail(unit, error)

    def _give_up(self) -> Iterator[RunRecord]:
        """Record the waiting units as failed if no node can run them, not even with features from other hardware."""
        nodes = {member.info.node: member.info.hardware for member in self.workers.members}
        if self.queue.change_hardware(nodes):
            return
        for unit in self.queue.give_up():
            yield from self._fail(unit, self._why_not(unit))

    def _why_not(self, unit: Unit) -> dict[str, str]:
        reasons = self.queue.reasons(unit)
        if not reasons:
            return {"type": ExecutorError.__name__, "message": "no worker is left that can run it; run the grid again"}
        error = next(iter(reasons.values()))
        n = len(reasons) - 1
        others = f" ({n} other node{'s' if n > 1 else ''} cannot run it either)" if n else ""
        return {"type": error["type"], "message": error["message"] + others}

    def _fail(self, unit: Unit, error: Mapping[str, str]) -> Iterator[RunRecord]:
        self.num_failed += 1
        self._log_end(unit, f"failed ({error['message']})")
        if unit.shard is not None:
            return  # the fits meet the same error and record it
        for spec in unit.specs:
            record = failure(spec, error)
            write_record(record, paths.results_dir(self.settings.results_dir))
            yield record

    def _report(self, progress: Progress) -> None:
        """Show how many units and images are done. Running workers report the images of their units."""
        answers = {
            member.actor.num_images.options(concurrency_group="progress").remote(): member
            for member in self.running.values()
            if member.unit is not None and member.unit.shard is not None
        }
        if answers:
            for reference in self.ray.wait(list(answers), num_returns=len(answers), timeout=WAIT_SECONDS)[0]:
                with suppress(self.ray.exceptions.RayError):  # the worker is lost, which `_collect` handles
                    answers[reference].images = self.ray.get(reference)
        images = sum(unit.images for unit in (*self.queue.done, *self.queue.given_up))
        images += sum(member.images for member in self.running.values())
        progress.advance(images - self.num_shown)
        self.num_shown, self.shown_at = images, time.monotonic()
        ended, running = self.queue.num_ended, len(self.running)
        progress.name(f"{ended} of {len(self.units)} units, {running} running, {self.num_failed} failed")
