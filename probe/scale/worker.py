"""What runs in the process of a worker of `ray_grid`: it makes shards of features, and fits, one after the other.

Its feature store is that of the driver where both see one folder; else it is given the chunks that the driver has, and
gives back those that it made.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from probe.runner import FinishedRun, run_dataset
from probe.scale.estimates import PROCESS_BYTES, Memory
from probe.scale.units import Unit
from probe.settings import Settings

FOLDERS = ("PROBE_DATA_DIR", "PROBE_WEIGHTS_DIR", "PROBE_CACHE_DIR")  # named for all nodes, unless one has its own
LIMITS = ("PROBE_MAX_IMAGE_PIXELS",)  # set on all nodes, unless one has its own
Files = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Surroundings:
    """Of the driver, for its workers to be like it: the folder of relative paths, variables, the level of logs."""

    folder: str
    variables: Mapping[str, str]
    level: int = logging.WARNING

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process."""
        named = {name: os.environ[name] for name in FOLDERS if name in os.environ}
        variables = {name: str(paths.absolute(folder)) for name, folder in named.items()}
        variables |= {name: os.environ[name] for name in LIMITS if name in os.environ}
        return cls(str(Path.cwd()), variables, logging.getLogger("probe").getEffectiveLevel())

    def apply(self) -> None:
        """Make them those of this process, as far as its machine has them; a relative path is of nothing elsewhere."""
        with suppress(OSError):
            os.chdir(self.folder)
        for name, value in self.variables.items():
            os.environ.setdefault(name, value)


@dataclass(frozen=True)
class About:
    """What a worker says of itself.

    Args:
        node: Ray's name of it; `host` is for people.
        memory: bytes of the machine's.
        versions: see `versions`.
        hardware: what of it changes the last bits of features.
        sees_store: whether its folder of features is that of the driver.
    """

    node: str
    host: str
    memory: int
    versions: Mapping[str, str | None]
    hardware: str
    sees_store: bool


@dataclass(frozen=True)
class Lacking:
    """That a worker cannot begin a unit, since its node lacks something, files or memory; another may have it."""

    type: str
    message: str
    is_memory: bool = False


@dataclass(frozen=True)
class Missing:
    """The chunks of features that a unit is about, by cell, and those of them that are not here."""

    cells: Sequence[tuple[EntrySpec, Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Outcome:
    """What came of a unit: records, and the chunks that the driver's store is to be given.

    `is_foreseen` says that whatever kept a cell from its score is a `ProbeError`; else the worker may be at fault.
    `logged` are the levels and messages that one process would have logged.
    """

    records: Sequence[RunRecord] = ()
    chunks: Sequence[tuple[EntrySpec, Files]] = ()
    is_foreseen: bool = True
    logged: Sequence[tuple[int, str]] = ()


class _Counted(Progress):
    """Counts images, for the driver's bar."""

    def __init__(self) -> None:
        super().__init__(is_shown=False)
        self.images = 0

    def advance(self, n: int) -> None:
        self.images += n


class _Heard(logging.Handler):
    """Keeps what this package logs in blocks, for the driver to log."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[tuple[int, str]] = []

    def take(self) -> list[tuple[int, str]]:
        """What was not taken yet."""
        taken, self.messages = self.messages, []
        return taken

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((record.levelno, record.getMessage()))

    def __enter__(self) -> _Heard:
        logger = logging.getLogger("probe")
        self.before = logger.level
        logger.setLevel(self.level)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("probe")
        logger.removeHandler(self)
        logger.setLevel(self.before)


class Worker:
    """Holds the model and the dataset that it used last."""

    def __init__(self, settings: Settings, num_threads: int, num_blas: int, surroundings: Surroundings) -> None:
        surroundings.apply()
        self.heard = _Heard(surroundings.level)
        self.session = Session(settings, keeps_encoders=True)
        self.num_threads, self.num_blas = num_threads, num_blas
        self.progress = _Counted()
        self.shares_store = True
        self.taken: set[tuple[Path, int]] = set()  # chunks that the driver has

    def describe(self, device: str, marker: str) -> About:
        """What is here; `marker` is the name of a file that the driver has put into its feature store."""
        with self._threads():
            kind = hardware(device)
        self.shares_store = (self._root / marker).is_file()
        import ray  # which only a worker has for certain

        node = ray.get_runtime_context().get_node_id()  # several can be on one host
        return About(node, platform.node(), device_memory("cpu").total, versions(), kind, self.shares_store)

    def num_images(self) -> int:
        """How many it has encoded; asked while it is at work."""
        return self.progress.images

    def find_missing(self, unit: Unit, need: Memory) -> Lacking | Missing:
        """What a unit needs of features; `need` is the memory that it takes."""
        with self.heard:
            found = self._begin(unit, need)
        if isinstance(found, Lacking):
            return found
        works = [(Work(self._root, cell), chunks) for cell, chunks in found]
        return Missing([(work.spec, chunks, [i for i in chunks if not work.has(i)]) for work, chunks in works])

    def take_in(self, cell: EntrySpec, chunks: Sequence[int], files: Files) -> None:
        """Keep chunks that the driver has."""
        Work(self._root, cell).take_in(files)
        self.taken.update((cell.folder(self._root), chunk) for chunk in chunks)

    def release(self) -> None:
        """Give back the memory of models."""
        self.session.encoders.clear()
        gc.collect()

    def do(self, unit: Unit, need: Memory) -> Lacking | Outcome:
        """Do a unit.

        Raises:
            Exception: what nobody foresaw kept a shard from its features. What was foreseen is met again by the fits,
                whose records name it.
        """
        with self.heard:
            found = self._begin(unit, need)
            outcome = found if isinstance(found, Lacking) else self._do(unit, found)
        return outcome if isinstance(outcome, Lacking) else replace(outcome, logged=self.heard.take())

    def _do(self, unit: Unit, found: Sequence[tuple[EntrySpec, Sequence[int]]]) -> Outcome:
        with self._threads():
            if unit.shard is None:
                runs = list(run_dataset(unit.specs, self.session))
                for run in runs:
                    if isinstance(run, FinishedRun):
                        run.fits.clear()
                records = [run.record for run in runs]
                return Outcome(records, is_foreseen=all(is_foreseen(record.error) for record in records))
            session = replace(self.session, settings=replace(self.session.settings, shard=unit.shard), extracted={})
            for error in prepare(unit.specs, session, self.progress).values():
                if not isinstance(error, ProbeError):
                    raise error
        if self.shares_store:
            return Outcome()
        made = [(cell, self._made_here(cell, chunks)) for cell, chunks in found]
        return Outcome(chunks=[(cell, list(Work(self._root, cell).files(chunks))) for cell, chunks in made])

    def _made_here(self, cell: EntrySpec, chunks: Iterable[int]) -> list[int]:
        folder = cell.folder(self._root)
        return [chunk for chunk in chunks if (folder, chunk) not in self.taken]

    @property
    def _root(self) -> Path:
        return paths.cache_dir(self.session.settings.cache_dir)

    def _threads(self) -> Any:
        return threads(self.num_threads, blas=self.num_blas)

    def _begin(self, unit: Unit, need: Memory) -> Lacking | list[tuple[EntrySpec, Sequence[int]]]:
        """The features that a unit is about, or what it lacks here: files of the dataset or model, or memory."""
        try:
            self._make_room(unit, need)
            with self._threads():
                found = [cell for spec in unit.specs for cell in find_entries(spec, self.session).values()]
        except ExecutorError as err:
            return Lacking(type(err).__name__, str(err), is_memory=True)
        except ProbeError as err:
            return Lacking(type(err).__name__, str(err))
        return [(cell, shard_of(cell, unit.shard)) for cell in found]

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
        ExecutorError: with the numbers.
    """
    device = unit.specs[0].device
    # A process with its libraries is there already.
    needs = {"cpu": max(0, need.host - PROCESS_BYTES)} | ({device: need.gpu} if device.startswith("cuda") else {})
    for place, needed in needs.items():
        free = device_memory(place).free
        if needed > free:
            of, way_out = ("the machine", "a larger machine") if place == "cpu" else ("the GPU", "a larger GPU")
            smaller = "a smaller --batch-size, or " if unit.shard is not None else ""
            raise ExecutorError(
                f"{unit} needs about {needed / 1e9:.1f} GB of memory of {of}, and {free / 1e9:.1f} GB are free on "
                f"{platform.node()}; use {smaller}{way_out}"
            )


def is_foreseen(error: ErrorRecord | None) -> bool:
    """Return True if the error of a record is a `ProbeError`, or None."""
    return error is None or issubclass(getattr(errors, error.type, Exception), ProbeError)


def versions() -> dict[str, str | None]:
    """Of what changes numbers, and of this package's source, which can be another under one version."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    own = {"python": platform.python_version(), "libjpeg": libjpeg_version()}
    return {**own, **library_versions(), "source of probe": source.hexdigest()[:12]}
