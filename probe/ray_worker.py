"""What runs in the process of a worker of `ray_grid`: it makes shards of features, and fits, one after the other.

Its feature store is that of the driver where both see one folder; else it is given the pieces that the driver has, and
gives back those that it made.
"""

from __future__ import annotations

import gc
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probe import paths
from probe.cache import Cell
from probe.environment import package_version, threads
from probe.errors import ExecutorError
from probe.estimates import PROCESS_BYTES, Memory
from probe.extraction import Access, Held, encoder_key, extract_dataset, make_cells
from probe.models.devices import hardware
from probe.models.memory import device_memory
from probe.pieces import Work, shard_of
from probe.preprocess import libjpeg_version
from probe.progress import Progress
from probe.records import RunRecord
from probe.runner import compute
from probe.units import Unit

PACKAGES = (
    *("probe", "torch", "torchvision", "scikit-learn", "numpy", "scipy", "pillow", "open_clip_torch", "timm"),
    *("datasets", "av", "h5py"),
)
FOLDERS = ("PROBE_DATA_DIR", "PROBE_WEIGHTS_DIR", "PROBE_CACHE_DIR")  # named for all nodes, unless one has its own
Files = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Surroundings:
    """Of the driver, for its workers to be like it: the folder that relative paths start at, and variables."""

    folder: str
    variables: Mapping[str, str]

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process."""
        return cls(str(Path.cwd()), {name: os.environ[name] for name in FOLDERS if name in os.environ})

    def apply(self) -> None:
        """Make them those of this process, as far as its machine has them."""
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
class Done:
    """What came of a unit: records, and the pieces that the driver's store is to be given."""

    records: Sequence[RunRecord] = ()
    pieces: Sequence[tuple[Cell, Files]] = ()


class _Counted(Progress):
    """Counts images, for the driver's bar."""

    def __init__(self) -> None:
        super().__init__(is_shown=False)
        self.images = 0

    def advance(self, n: int) -> None:
        self.images += n


class Worker:
    """Holds the model and the dataset that it used last."""

    def __init__(self, access: Access, num_threads: int, num_blas: int, surroundings: Surroundings) -> None:
        surroundings.apply()
        self.access = replace(access, held=Held())
        self.num_threads, self.num_blas = num_threads, num_blas
        self.progress = _Counted()
        self.shares_store = True

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

    def wanted(self, unit: Unit, need: Memory) -> Lacking | list[tuple[Cell, list[int]]]:
        """The pieces of features that a unit is about and that are not here; `need` is the memory that it takes."""
        found = self._begin(unit, need)
        if isinstance(found, Lacking):
            return found
        works = [(Work(self._root, cell), pieces) for cell, pieces in found]
        return [(work.cell, [piece for piece in pieces if not work.has(piece)]) for work, pieces in works]

    def take_in(self, cell: Cell, files: Files) -> None:
        """Keep pieces that the driver has."""
        Work(self._root, cell).take_in(files)

    def do(self, unit: Unit, need: Memory) -> Lacking | Done:
        """Do a unit. What keeps a shard from its features is met again by the fits, whose records name it."""
        found = self._begin(unit, need)
        if isinstance(found, Lacking):
            return found
        with self._threads():
            if unit.shard is None:
                return Done(records=list(compute(unit.specs, self.access)))
            for _ in extract_dataset(unit.specs, replace(self.access, shard=unit.shard), self.progress):
                pass
        if self.shares_store:
            return Done()
        return Done(pieces=[(cell, list(Work(self._root, cell).files(pieces))) for cell, pieces in found])

    @property
    def _root(self) -> Path:
        return paths.cache_dir(self.access.cache)

    def _threads(self) -> Any:
        return threads(self.num_threads, blas=self.num_blas)

    def _begin(self, unit: Unit, need: Memory) -> Lacking | list[tuple[Cell, Sequence[int]]]:
        """The features that a unit is about, or what it lacks here: files of the dataset or model, or memory."""
        try:
            self._make_room(unit, need)
            with self._threads():
                found = [cell for spec in unit.specs for cell in make_cells(spec, self.access).values()]
        except ExecutorError as err:
            return Lacking(type(err).__name__, str(err), is_memory=True)
        except Exception as err:  # whatever it is, another node may not have it
            return Lacking(type(err).__name__, str(err) or repr(err))
        return [(cell, shard_of(cell, unit.shard)) for cell in found]

    def _make_room(self, unit: Unit, need: Memory) -> None:
        held = self.access.held
        assert held is not None
        if unit.shard is not None and all(encoder_key(spec) in held.encoders for spec in unit.specs):
            return  # what takes the memory is there already
        try:
            refuse_too_large(unit, need)
        except ExecutorError:
            held.encoders.clear()
            gc.collect()
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
            raise ExecutorError(
                f"{unit} needs about {needed / 1e9:.1f} GB of memory of {'the machine' if place == 'cpu' else place}, "
                f"and {free / 1e9:.1f} GB are free on {platform.node()}; use a larger machine, or fewer workers"
            )


def versions() -> dict[str, str | None]:
    """Of what changes numbers, and of this package's source, which can be another under one version."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source.update(path.read_bytes())
    found = {name: package_version(name) for name in PACKAGES}
    own = {"python": platform.python_version(), "libjpeg": libjpeg_version()}
    return {**own, **found, "source of probe": source.hexdigest()[:12]}
