"""Worker process of a grid on Ray, which extracts shards of features and fits probes, one unit after the other.

A worker that can access the driver's cache folder uses that folder. Otherwise the worker has its own cache folder: the
driver sends the chunks that the worker needs, and receives the chunks that the driver needs.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue

from probe import errors, paths
from probe.environment import library_versions, threads
from probe.errors import ExecutorError, ProbeError
from probe.features.arrays import chunk_range
from probe.features.chunks import Work
from probe.features.extraction import Session, find_entries, find_test_entries, prepare
from probe.features.jobs import encoder_key
from probe.features.store import EntrySpec
from probe.models.devices import hardware
from probe.models.memory import device_memory
from probe.models.preprocess import libjpeg_version
from probe.probes.cached_fits import FitCache
from probe.progress import Progress
from probe.records.schema import ErrorRecord, RunRecord
from probe.runner import FinishedRun, has_prompts, run_all
from probe.scale.needs import PROCESS_BYTES, Memory
from probe.scale.units import Unit
from probe.settings import Settings

FOLDERS = ("PROBE_DATA_DIR", "PROBE_WEIGHTS_DIR", "PROBE_CACHE_DIR")  # variables that name folders
LIMITS = ("PROBE_MAX_IMAGE_PIXELS",)  # other variables that workers receive
Files = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class DriverEnvironment:
    """Environment of the driver's process that workers use.

    Args:
        folder: current folder, where relative paths start.
        variables: environment variables, with absolute paths.
        level: logging level of the package.
    """

    folder: str
    variables: Mapping[str, str]
    level: int = logging.WARNING

    @classmethod
    def here(cls) -> DriverEnvironment:
        """Return the environment of this process."""
        named = {name: os.environ[name] for name in FOLDERS if name in os.environ}
        variables = {name: str(paths.absolute(folder)) for name, folder in named.items()}
        variables |= {name: os.environ[name] for name in LIMITS if name in os.environ}
        return cls(str(Path.cwd()), variables, logging.getLogger("probe").getEffectiveLevel())

    def apply(self) -> None:
        """Change to the folder if it exists on this machine, and set the variables that are not set in this process."""
        with suppress(OSError):
            os.chdir(self.folder)
        for name, value in self.variables.items():
            os.environ.setdefault(name, value)


@dataclass(frozen=True)
class WorkerInfo:
    """Description of a worker.

    Args:
        node: Ray's id of the node.
        host: name of the node for messages.
        memory: memory of the machine, in bytes.
        versions: versions of libraries; see the function `versions`.
        hardware: hardware that determines the last bits of features.
        sees_store: True if the worker can access the driver's cache folder.
    """

    node: str
    host: str
    memory: int
    versions: Mapping[str, str | None]
    hardware: str
    sees_store: bool


@dataclass(frozen=True)
class NotRunnable:
    """Error of a unit that cannot start on a node because files or memory are missing. Another node may have them."""

    type: str
    message: str
    is_memory: bool = False


@dataclass(frozen=True)
class MissingChunks:
    """Cache entries that a unit needs: the specification, the needed chunks, and the chunks that the worker lacks."""

    entries: Sequence[tuple[EntrySpec, Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class UnitResult:
    """Result of a unit.

    Args:
        records: records of the fits.
        chunks: files of the chunks that the driver requested.
        is_expected: True if every error in the records is a `ProbeError`. Otherwise the worker may be faulty.
        logs: log records of the package.
        heads: for each finished run, by the position of its record, the content of the files of its heads, by path
            below the results folder.
        predictions: for each finished run, by the position of its record, the content of the files of its predictions,
            by path below their folder.
    """

    records: Sequence[RunRecord] = ()
    chunks: Sequence[tuple[EntrySpec, Files]] = ()
    is_expected: bool = True
    logs: Sequence[logging.LogRecord] = ()
    heads: Mapping[int, Mapping[Path, bytes]] = field(default_factory=dict)
    predictions: Mapping[int, dict[Path, bytes]] = field(default_factory=dict)


class _ImageCounter(Progress):
    """Progress that counts encoded images for the driver's progress bar."""

    def __init__(self) -> None:
        super().__init__(is_shown=False)
        self.images = 0

    def advance(self, n: int) -> None:
        self.images += n


class Worker:
    """Actor that runs units one after the other. It caches the model and the dataset that it used last."""

    def __init__(self, settings: Settings, num_threads: int, num_blas: int, environment: DriverEnvironment) -> None:
        environment.apply()
        self.level, self.logs = environment.level, SimpleQueue[logging.LogRecord]()
        self.session = Session(settings, keeps_encoders=True)
        self.num_threads, self.num_blas = num_threads, num_blas
        self.progress = _ImageCounter()
        self.fits: list[FitCache] = []  # of the last unit

    def describe(self, device: str, marker: str) -> WorkerInfo:
        """Return a description of this worker.

        Args:
            device: device of the units.
            marker: name of a file that the driver has put into its cache folder.
        """
        with self._at_work():
            kind = hardware(device)
        import ray  # Ray is an optional dependency, but every worker has it

        node = ray.get_runtime_context().get_node_id()  # several nodes can be on one host
        sees_store = (self._root / marker).is_file()
        return WorkerInfo(node, platform.node(), device_memory("cpu").total, versions(), kind, sees_store)

    def num_images(self) -> int:
        """Return the number of encoded images of the running unit. The driver calls this while the worker computes."""
        return self.progress.images

    def find_missing(self, unit: Unit, need: Memory) -> NotRunnable | MissingChunks:
        """Return which chunks of features a unit needs and which the worker lacks; `need` is the memory of the unit."""
        with self._at_work():
            entries = self._begin(unit, need)
        if isinstance(entries, NotRunnable):
            return entries
        works = [(Work(self._root, entry), chunks) for entry, chunks in entries]
        return MissingChunks([(work.spec, chunks, [i for i in chunks if not work.has(i)]) for work, chunks in works])

    def take_in(self, entry: EntrySpec, files: Files) -> None:
        """Store chunks that the driver has sent."""
        Work(self._root, entry).take_in(files)

    def release(self) -> None:
        """Release the memory of loaded models."""
        self.session.encoders.clear()
        gc.collect()

    def do(
        self, unit: Unit, need: Memory, wanted: Sequence[tuple[EntrySpec, Sequence[int]]] = ()
    ) -> NotRunnable | UnitResult:
        """Run a unit.

        The result has the `wanted` chunks if the driver cannot access the cache folder of this worker.

        Raises:
            Exception: an unexpected error while a shard was extracted. A `ProbeError` is not raised, because the fits
                meet the same error and record it.
        """
        self.progress.images = 0
        with self._at_work():
            entries = self._begin(unit, need)
            if isinstance(entries, NotRunnable):
                return entries
            runs = list(run_all(unit.specs, self.session)) if unit.shard is None else []
            finished = {i: run for i, run in enumerate(runs) if isinstance(run, FinishedRun)}
            records = [run.record for run in runs]
            self.fits = [run.fits for run in finished.values()]
            heads = {i: run.heads for i, run in finished.items()}
            predictions = {i: run.predictions for i, run in finished.items()}
            if unit.shard is not None:
                self._extract(unit)
            chunks = [(entry, list(Work(self._root, entry).files(numbers))) for entry, numbers in wanted if numbers]
        logs = [self.logs.get() for _ in range(self.logs.qsize())]
        all_expected = all(is_expected(record.error) for record in records)
        if not all_expected:  # this worker may be faulty, so another one fits again
            self.clear_fits()
        return UnitResult(records, chunks, all_expected, logs, heads, predictions)

    def clear_fits(self) -> None:
        """Remove the cached fits of the last unit. The driver calls this when it has written the records."""
        for fits in self.fits:
            fits.clear()
        self.fits = []

    def _extract(self, unit: Unit) -> None:
        session = replace(self.session, settings=replace(self.session.settings, shard=unit.shard), extracted={})
        is_ready = partial(has_prompts, session)
        for error in prepare(unit.specs, session, self.progress, is_ready=is_ready).values():
            if not isinstance(error, ProbeError):
                raise error

    @property
    def _root(self) -> Path:
        return paths.cache_dir(self.session.settings.cache_dir)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Use the threads of this worker, and collect the log records of the package for the driver."""
        package, collecting = logging.getLogger("probe"), QueueHandler(self.logs)
        before = package.level
        package.setLevel(self.level)
        package.addHandler(collecting)
        try:
            with threads(self.num_threads, blas=self.num_blas):
                yield
        finally:
            package.removeHandler(collecting)
            package.setLevel(before)

    def _begin(self, unit: Unit, need: Memory) -> NotRunnable | list[tuple[EntrySpec, Sequence[int]]]:
        """Return the cache entries that a unit needs and their chunks, or the reason why the unit cannot start here."""
        try:
            self._free_memory(unit, need)
            entries = [
                entry
                for spec in unit.specs
                for entry in (*find_entries(spec, self.session).values(), *find_test_entries(spec, self.session))
            ]
        except ProbeError as err:
            return NotRunnable(type(err).__name__, str(err), is_memory=isinstance(err, ExecutorError))
        return [(entry, chunk_range(entry.num_images, entry.batch_size, unit.shard)) for entry in entries]

    def _free_memory(self, unit: Unit, need: Memory) -> None:
        if unit.shard is not None and all(encoder_key(spec) in self.session.encoders for spec in unit.specs):
            return  # the models are in memory already
        try:
            refuse_too_large(unit, need)
        except ExecutorError:
            self.release()
            refuse_too_large(unit, need)


def refuse_too_large(unit: Unit, need: Memory) -> None:
    """Check that the free memory is sufficient for a unit.

    Raises:
        ExecutorError: the free memory is too small; the message gives both sizes.
    """
    device = unit.specs[0].device
    # The memory of the process and its libraries is in use already.
    needs = {"cpu": max(0, need.host - PROCESS_BYTES)} | ({device: need.gpu} if device.startswith("cuda") else {})
    for place, needed in needs.items():
        free = device_memory(place).free
        if needed > free:
            kind, advice = ("memory", "a larger machine") if place == "cpu" else ("GPU memory", "a larger GPU")
            smaller = "a smaller --batch-size, or " if unit.shard is not None else ""
            raise ExecutorError(
                f"{unit} needs about {needed / 1e9:.1f} GB of {kind}, but only {free / 1e9:.1f} GB are free on "
                f"{platform.node()}; use {smaller}{advice}"
            )


def is_expected(error: ErrorRecord | None) -> bool:
    """Return True if the error of a record is a `ProbeError` or None."""
    return error is None or issubclass(getattr(errors, error.type, Exception), ProbeError)


def versions() -> dict[str, str | None]:
    """Return the versions of all software that can change results, and a digest of the source of this package."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    own = {"python": platform.python_version(), "libjpeg": libjpeg_version()}
    return {**own, **library_versions(), "source of probe": source.hexdigest()[:12]}
