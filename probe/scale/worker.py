"""Worker process of a grid on Ray: it makes shards of features, and fits, one after the other.

Its feature store is that of the driver where both see one folder; else the driver sends chunks that the worker lacks,
and gets back chunks that the driver lacks.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue

from probe import errors, paths
from probe.environment import library_versions, threads
from probe.errors import ExecutorError, ProbeError
from probe.features.chunks import Work, shard_of
from probe.features.extraction import find_entries, prepare
from probe.features.session import Session, encoder_key
from probe.features.store import EntrySpec
from probe.models.devices import hardware
from probe.models.memory import device_memory
from probe.models.preprocess import libjpeg_version
from probe.progress import Progress
from probe.records.schema import ErrorRecord, RunRecord
from probe.runner import FinishedRun, run_all
from probe.scale.estimates import PROCESS_BYTES, Memory
from probe.scale.units import Unit
from probe.settings import Settings

FOLDERS = ("PROBE_DATA_DIR", "PROBE_WEIGHTS_DIR", "PROBE_CACHE_DIR")  # variables that name folders on all nodes
LIMITS = ("PROBE_MAX_IMAGE_PIXELS",)  # other variables for all nodes; a node's own counts more
Files = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class DriverEnvironment:
    """Environment of the driver's process that workers take over.

    Args:
        folder: where relative paths start.
        variables: environment variables.
        level: level of the package's log.
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
        """Take over the folder, if the machine has it, and the variables that this process has not."""
        with suppress(OSError):
            os.chdir(self.folder)
        for name, value in self.variables.items():
            os.environ.setdefault(name, value)


@dataclass(frozen=True)
class WorkerInfo:
    """Description of a worker.

    Args:
        node: Ray's name of its node; `host` is for people.
        memory: bytes of the machine's memory.
        versions: see `versions`.
        hardware: what changes the last bits of features.
        sees_store: its folder of features is that of the driver.
    """

    node: str
    host: str
    memory: int
    versions: Mapping[str, str | None]
    hardware: str
    sees_store: bool


@dataclass(frozen=True)
class NotRunnable:
    """Error of a unit that cannot begin on a node, for want of files or of memory; another node may have them."""

    type: str
    message: str
    is_memory: bool = False


@dataclass(frozen=True)
class MissingChunks:
    """Chunks of features that a unit needs, by cache entry, and those of them that the worker does not have."""

    entries: Sequence[tuple[EntrySpec, Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class UnitResult:
    """Result of a unit.

    Args:
        records: of fits.
        chunks: files of the chunks that the driver wants.
        is_foreseen: all errors of records are a `ProbeError`; else the worker may be at fault.
        logs: what the package logged.
    """

    records: Sequence[RunRecord] = ()
    chunks: Sequence[tuple[EntrySpec, Files]] = ()
    is_foreseen: bool = True
    logs: Sequence[logging.LogRecord] = ()


class _ImageCounter(Progress):
    """Number of encoded images, for the driver's bar."""

    def __init__(self) -> None:
        super().__init__(is_shown=False)
        self.images = 0

    def advance(self, n: int) -> None:
        self.images += n


class Worker:
    """Actor that does units one after the other; it keeps the model and the dataset that it used last."""

    def __init__(self, settings: Settings, num_threads: int, num_blas: int, environment: DriverEnvironment) -> None:
        environment.apply()
        self.level, self.logs = environment.level, SimpleQueue[logging.LogRecord]()
        self.session = Session(settings, keeps_encoders=True)
        self.num_threads, self.num_blas = num_threads, num_blas
        self.progress = _ImageCounter()

    def describe(self, device: str, marker: str) -> WorkerInfo:
        """Describe this worker; `marker` is the name of a file that the driver has put into its feature store."""
        with self._at_work():
            kind = hardware(device)
        import ray  # which only a worker has for certain

        node = ray.get_runtime_context().get_node_id()  # several can be on one host
        sees_store = (self._root / marker).is_file()
        return WorkerInfo(node, platform.node(), device_memory("cpu").total, versions(), kind, sees_store)

    def num_images(self) -> int:
        """Return how many images of its unit were encoded; asked for while the worker is busy."""
        return self.progress.images

    def find_missing(self, unit: Unit, need: Memory) -> NotRunnable | MissingChunks:
        """Return which chunks of features a unit needs; `need` is the memory that it takes."""
        with self._at_work():
            found = self._begin(unit, need)
        if isinstance(found, NotRunnable):
            return found
        works = [(Work(self._root, entry), chunks) for entry, chunks in found]
        return MissingChunks([(work.spec, chunks, [i for i in chunks if not work.has(i)]) for work, chunks in works])

    def take_in(self, entry: EntrySpec, files: Files) -> None:
        """Store chunks that the driver has."""
        Work(self._root, entry).take_in(files)

    def release(self) -> None:
        """Give back the memory of models."""
        self.session.encoders.clear()
        gc.collect()

    def do(
        self, unit: Unit, need: Memory, wanted: Sequence[tuple[EntrySpec, Sequence[int]]] = ()
    ) -> NotRunnable | UnitResult:
        """Do a unit.

        Args:
            unit: which one.
            need: the memory that it takes.
            wanted: chunks that the driver does not have and cannot see.

        Raises:
            Exception: an unforeseen error prevented the features of a shard. A `ProbeError` is met again by the fits,
                whose records name it.
        """
        self.progress.images = 0
        with self._at_work():
            found = self._begin(unit, need)
            if isinstance(found, NotRunnable):
                return found
            records = self._fit(unit) if unit.shard is None else []
            if unit.shard is not None:
                self._extract(unit)
            chunks = [(entry, list(Work(self._root, entry).files(numbers))) for entry, numbers in wanted if numbers]
        logs = [self.logs.get() for _ in range(self.logs.qsize())]
        return UnitResult(records, chunks, all(is_foreseen(record.error) for record in records), logs)

    def _fit(self, unit: Unit) -> list[RunRecord]:
        runs = list(run_all(unit.specs, self.session))
        for run in runs:
            if isinstance(run, FinishedRun):
                run.fits.clear()
        return [run.record for run in runs]

    def _extract(self, unit: Unit) -> None:
        session = replace(self.session, settings=replace(self.session.settings, shard=unit.shard), extracted={})
        for error in prepare(unit.specs, session, self.progress).values():
            if not isinstance(error, ProbeError):
                raise error

    @property
    def _root(self) -> Path:
        return paths.cache_dir(self.session.settings.cache_dir)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Compute with the threads of this worker, and collect what the package logs, for the driver."""
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
        """Return the features that a unit is about, or why it cannot begin: files or memory are missing here."""
        try:
            self._make_room(unit, need)
            found = [entry for spec in unit.specs for entry in find_entries(spec, self.session).values()]
        except ProbeError as err:
            return NotRunnable(type(err).__name__, str(err), is_memory=isinstance(err, ExecutorError))
        return [(entry, shard_of(entry, unit.shard)) for entry in found]

    def _make_room(self, unit: Unit, need: Memory) -> None:
        if unit.shard is not None and all(encoder_key(spec) in self.session.encoders for spec in unit.specs):
            return  # what takes the memory is there already
        try:
            refuse_too_large(unit, need)
        except ExecutorError:
            self.release()
            refuse_too_large(unit, need)


def refuse_too_large(unit: Unit, need: Memory) -> None:
    """Stop before a unit that the free memory does not hold.

    Raises:
        ExecutorError: the memory is too small; the message has the numbers.
    """
    device = unit.specs[0].device
    # A process with its libraries is there already.
    needs = {"cpu": max(0, need.host - PROCESS_BYTES)} | ({device: need.gpu} if device.startswith("cuda") else {})
    for place, needed in needs.items():
        free = device_memory(place).free
        if needed > free:
            of, advice = ("the machine", "a larger machine") if place == "cpu" else ("the GPU", "a larger GPU")
            smaller = "a smaller --batch-size, or " if unit.shard is not None else ""
            raise ExecutorError(
                f"{unit} needs about {needed / 1e9:.1f} GB of memory of {of}, and {free / 1e9:.1f} GB are free on "
                f"{platform.node()}; use {smaller}{advice}"
            )


def is_foreseen(error: ErrorRecord | None) -> bool:
    """Return True if the error of a record is a `ProbeError`, or None."""
    return error is None or issubclass(getattr(errors, error.type, Exception), ProbeError)


def versions() -> dict[str, str | None]:
    """Return the versions of what changes numbers, and a digest of the source of this package."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    own = {"python": platform.python_version(), "libjpeg": libjpeg_version()}
    return {**own, **library_versions(), "source of probe": source.hexdigest()[:12]}
