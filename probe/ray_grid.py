"""A grid on Ray: the units of `units` on workers of one machine or a cluster, with the records of one process.

Every worker is an actor with as many processors, or one GPU, as a process would use, so that features have the same
bytes. Features pass through the feature store, in a folder that all nodes share. The driver writes the records.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from probe import derived, paths
from probe.environment import package_version, threads, torch_threads
from probe.errors import ExecutorError, ExtraMissingError
from probe.extraction import Access, Held, extract_dataset
from probe.progress import Progress
from probe.records import STATES, RunRecord, check_writable, read_records, write_record
from probe.runner import compute, failure
from probe.specs import RunSpec, rebuild
from probe.units import ATTEMPTS, Queue, Unit, plan_units

logger = logging.getLogger(__name__)

VERSIONS = ("probe", "torch", "torchvision", "scikit-learn", "numpy", "scipy", "pillow")  # that change numbers
WAIT_SECONDS = 1.0  # between looks at what is done
ANSWER_SECONDS = 10.0  # for a cluster to answer


class Worker:
    """What runs in a worker's process: models and datasets are held between units."""

    def __init__(self, access: Access, num_threads: int) -> None:
        self.access = replace(access, held=Held())
        self.num_threads = num_threads

    def describe(self) -> dict[str, Any]:
        """The versions here, and whether the folder of features is that of the driver."""
        return {
            "versions": {name: package_version(name) for name in VERSIONS},
            "node": os.uname().nodename,
            "pid": os.getpid(),
        }

    def sees(self, name: str) -> bool:
        """Whether there is such a file in the folder of features here."""
        return (paths.cache_dir(self.access.cache) / name).is_file()

    def extract(self, spec: RunSpec, shard: tuple[int, int]) -> None:
        """Make a shard of features. What keeps it from that is met again by the fits, whose records name it."""
        with threads(self.num_threads):
            for _ in extract_dataset([spec], replace(self.access, shard=shard), Progress(is_shown=False)):
                pass

    def fit(self, specs: Sequence[RunSpec]) -> list[RunRecord]:
        """Fit and score cells of one dataset and model, whose features are there."""
        with threads(self.num_threads):
            return list(compute(specs, self.access))


@dataclass(frozen=True)
class _Running:
    """A unit at work, and the actor that does it."""

    unit: Unit
    worker: Any


def run_grid(
    specs: Sequence[RunSpec], *, access: Access, address: str | None = None, num_threads: int = 0
) -> Iterator[RunRecord]:
    """Run cells on Ray; each record is written before it is yielded, the tables when all are done.

    Cells that have a whole record are not run again: their records come first. A unit whose worker is lost (killed, out
    of memory, its node gone) is done again by another, up to `units.ATTEMPTS` times; then its cells are recorded as
    failed. Whatever was finished stays, and the same grid goes on from there.

    Args:
        specs: the cells, as `runner.plan` gives them.
        access: where things are, on every node.
        address: of a running cluster, `auto` or `ray://HOST:PORT`; None starts Ray on this machine.
        num_threads: processors of a worker, and threads that it computes with; 0 is what torch would use here.

    Raises:
        ExtraMissingError: Ray is not installed.
        ExecutorError: the cluster does not answer, has no room for a worker, or has other versions of libraries.
        ResultsError: the results folder cannot be written to.
    """
    ray = _import_ray()
    results_dir = paths.results_dir(access.results)
    check_writable(results_dir)
    done = _find_done(specs, results_dir)
    yield from done.values()
    left = [spec for spec in specs if spec not in done]
    if not left:
        return
    _start(ray, address)
    try:
        yield from _Driver(ray, left, access, num_threads or torch_threads()).run()
    finally:
        derived.write_derived(results_dir)
        ray.shutdown()


class _Driver:
    def __init__(self, ray: Any, specs: Sequence[RunSpec], access: Access, num_threads: int) -> None:
        self.ray, self.access, self.num_threads = ray, access, num_threads
        self.queue = Queue(plan_units(specs))
        self.uses_gpu = any(spec.device.startswith("cuda") for spec in specs)
        options = {"num_gpus": 1} if self.uses_gpu else {"num_cpus": num_threads}
        # A method is not tried again by Ray: the queue counts what is lost.
        self.actor = ray.remote(**options, max_restarts=0, max_task_retries=0)(Worker)
        self.held: dict[Any, str] = {}  # worker -> model whose weights it has
        self.running: dict[Any, _Running] = {}  # reference -> what is at work
        self.idle: list[Any] = []

    def run(self) -> Iterator[RunRecord]:
        self._start_workers()
        with tqdm(total=len(self.queue.waiting), unit="unit", disable=None, dynamic_ncols=True) as bar:
            try:
                while self.queue:
                    self._assign()
                    yield from self._collect(bar)
            finally:
                for worker in [*self.idle, *(one.worker for one in self.running.values())]:
                    with suppress(Exception):  # that is gone already
                        self.ray.kill(worker)

    def _start_workers(self) -> None:
        """As many as there is room for, and no more than there are units; each has to answer, with our versions."""
        n = self._room()
        path = paths.cache_dir(self.access.cache) / f".ray-{uuid.uuid4().hex}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        try:
            starting = [self._new_worker() for _ in range(min(n, len(self.queue.waiting)))]
            for _ in range(ATTEMPTS):  # one that is lost while it starts is started again
                starting = [self._new_worker() for worker in starting if not self._admit(worker, path)]
                if not starting:
                    break
            for worker in starting:
                self.ray.kill(worker)
        finally:
            path.unlink(missing_ok=True)
        if not self.idle:
            raise ExecutorError("workers are lost as soon as they start; see the logs of Ray below /tmp/ray")
        logger.info("%d workers of %s", len(self.idle), "a GPU" if self.uses_gpu else f"{self.num_threads} processors")

    def _room(self) -> int:
        """For how many workers."""
        until = time.monotonic() + ANSWER_SECONDS
        while True:  # a node that has just started says so a moment later
            free = self.ray.available_resources()
            n = int(free.get("GPU", 0)) if self.uses_gpu else int(free.get("CPU", 0)) // self.num_threads
            if n >= 1:
                return n
            if time.monotonic() > until or free.get("CPU", 0) > 0:
                raise ExecutorError(
                    f"a worker takes {'a GPU' if self.uses_gpu else f'{self.num_threads} processors'}, and the cluster "
                    f"has {free.get('GPU', 0):g} GPUs and {free.get('CPU', 0):g} processors free; give --threads N, or "
                    "wait"
                )
            time.sleep(WAIT_SECONDS)

    def _admit(self, worker: Any, path: Path) -> bool:
        """See whether a worker can be used; False where it was lost."""
        try:
            about = self.ray.get(worker.describe.remote())
            _check_versions({name: package_version(name) for name in VERSIONS}, about["versions"], about["node"])
            is_shared = self.ray.get(worker.sees.remote(path.name))
        except self.ray.exceptions.RayError as err:
            logger.warning("a worker was lost while it started (%s)", " ".join(str(err).split())[:300])
            return False
        if not is_shared:
            raise ExecutorError(
                f"{path.parent} on {about['node']} is not the folder of this machine; name one that all nodes share "
                "with --cache-dir"
            )
        self.idle.append(worker)
        return True

    def _new_worker(self) -> Any:
        return self.actor.remote(self.access, self.num_threads)

    def _assign(self) -> None:
        for worker in list(self.idle):
            unit = self.queue.take(self.held.get(worker))
            if unit is None:
                return
            self.idle.remove(worker)
            self.held[worker] = unit.model
            work = (
                worker.fit.remote(unit.specs)
                if unit.shard is None
                else worker.extract.remote(unit.specs[0], unit.shard)
            )
            self.running[work] = _Running(unit, worker)

    def _collect(self, bar: Any) -> Iterator[RunRecord]:
        ready, _ = self.ray.wait(list(self.running), timeout=WAIT_SECONDS)
        for reference in ready:
            one = self.running.pop(reference)
            try:
                records = self.ray.get(reference) or []
            except self.ray.exceptions.RayError as err:
                yield from self._lose(one, err, bar)
                continue
            self.queue.finish(one.unit)
            self.idle.append(one.worker)
            bar.update()
            for record in records:
                write_record(record, paths.results_dir(self.access.results))
                yield record
        bar.set_postfix(running=len(self.running), failed=len(self.queue.given_up))

    def _lose(self, one: _Running, err: Exception, bar: Any) -> Iterator[RunRecord]:
        """A unit whose worker is lost: by another, or, where that happens again and again, recorded as failed."""
        reason = " ".join(str(err).split())[:300]
        logger.warning("%s: its worker was lost (%s)", one.unit, reason)
        with suppress(Exception):  # that is gone already
            self.ray.kill(one.worker)
        self.held.pop(one.worker, None)
        self.idle.append(self._new_worker())
        if self.queue.lose(one.unit):
            return
        bar.update()
        if one.unit.shard is None:
            lost = ExecutorError(f"its worker was lost {ATTEMPTS} times, the last time so: {reason}")
            for spec in one.unit.specs:
                record = failure(spec, lost)
                write_record(record, paths.results_dir(self.access.results))
                yield record


def _find_done(specs: Sequence[RunSpec], results_dir: Path) -> dict[RunSpec, RunRecord]:
    """The cells of a grid that have a whole record, of the same specification."""
    found = {}
    for record in read_records(results_dir):
        with suppress(KeyError, TypeError):  # of an earlier schema, which does not say all
            if record.rank == max(range(len(STATES))):
                found[rebuild(record.spec)] = record
    return {spec: found[spec] for spec in specs if spec in found}


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as err:
        raise ExtraMissingError("--executor ray needs Ray; install it with pip install '.[ray]'") from err
    return ray


def _start(ray: Any, address: str | None) -> None:
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself tries for ten minutes
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(
            address=address, log_to_driver=False, include_dashboard=None if address else False, logging_level="error"
        )
    except (OSError, RuntimeError, ValueError) as err:
        where = f"no Ray answers at {address}" if address else "Ray does not start here"
        raise ExecutorError(f"{where} ({' '.join(str(err).split())[:200]}); start it with ray start --head") from err


def _check_versions(own: dict[str, str | None], theirs: dict[str, str | None], node: str) -> None:
    differing = [f"{name} {theirs[name]}, here {version}" for name, version in own.items() if theirs[name] != version]
    if differing:
        raise ExecutorError(f"{node} has {'; '.join(differing)}; install the same there, for numbers depend on it")
