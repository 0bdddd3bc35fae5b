"""What a grid will take before it runs: seconds from rates that records measured, memory and disk by counting.

A rate that no record has is taken from the nearest that one has: of a model by its operations an image, of a fit by
images x features x classes. On other numbers of threads it is taken as proportional to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from probe.features.encode import chunk_size
from probe.models.memory import activation_bytes
from probe.probes.costs import memory_needed, num_fits
from probe.records.schema import DoneRecord, EnvironmentRecord, RunRecord
from probe.scale.units import Unit, play
from probe.specs import Architecture, DatasetSpec, ModelSpec, RunSpec

PROCESS_BYTES = 1_000_000_000  # of a process with its libraries; `results/speed/store.md` measures 993 MB with `tiny`
FLOAT = 4
LOADED_COPIES = 2  # of the weights in memory at once while they are loaded: as the file has them, and as they compute
CHUNKS_WAITING = 2  # of uint8 pixels: one that is read, one that is encoded


@dataclass(frozen=True)
class Memory:
    """Bytes that a unit takes at most, of the machine and of a GPU; 0 where its model's sizes are not known."""

    host: int
    gpu: int


def memory_of(unit: Unit) -> Memory:
    """What a worker needs for a unit, its own libraries included."""
    spec = unit.specs[0]
    model, on_gpu = spec.model, spec.device.startswith("cuda")
    if model.architecture is None or model.profile is None:
        return Memory(0, 0)
    if unit.shard is not None:
        architecture = model.architecture
        weights = (len(unit.specs) + LOADED_COPIES - 1) * FLOAT * model.profile.parameters
        pixels = CHUNKS_WAITING * chunk_size(spec.batch_size) * 3 * architecture.image_resolution**2
        batch = spec.batch_size * activation_bytes(architecture)
        return Memory(
            PROCESS_BYTES + weights + pixels + (0 if on_gpu else batch),
            len(unit.specs) * FLOAT * model.profile.parameters + batch if on_gpu else 0,
        )
    n, d, k = fit_shape(spec)
    needed = memory_needed(spec.solver, n=n, d=d, k=k, num_parts=2) if n and k else 0
    if on_gpu:  # where the features of the fit are copied to
        return Memory(PROCESS_BYTES, FLOAT * n * d + needed)
    return Memory(PROCESS_BYTES + needed, 0)  # features are mapped, and read again where there is no room for them


def feature_bytes(dataset: DatasetSpec, model: ModelSpec) -> int | None:
    """Of the features of a dataset under one mode of a model; None where one of their rows says no sizes."""
    images = sum(part.size or 0 for part in dataset.parts)
    if model.architecture is None or not images:
        return None
    return images * (FLOAT * (model.architecture.embed_dim + model.architecture.pre_projection_dim) + 8)


def fit_shape(spec: RunSpec) -> tuple[int, int, int]:
    """Images, features and classes of the final fit of a cell, 0 where a row does not say."""
    dataset, architecture, k = spec.dataset, spec.model.architecture, spec.dataset.num_classes or 0
    d = 0
    if architecture is not None:
        is_projected = spec.protocol.feature_point == "projected"
        d = architecture.embed_dim if is_projected else architecture.pre_projection_dim
    if spec.protocol.shots:
        return spec.protocol.shots * k, d, k
    if dataset.fold_sizes:
        return dataset.fold_sizes[0][0], d, k
    if dataset.split_sizes and {"train", "val"} <= dict(dataset.split_sizes).keys():
        return sum(size for name, size in dataset.split_sizes if name != "test"), d, k
    sizes = {part.name: part.size or 0 for part in dataset.parts}
    n = sum(size for name, size in sizes.items() if name != "test")
    return n if "test" in sizes else round(n * (1 - dataset.test_fraction)), d, k


def fit_work(spec: RunSpec) -> float:
    """What the time of a cell's fits grows with, 0 where a row does not say."""
    n, d, k = fit_shape(spec)
    return float(n * d * k * num_fits(spec.protocol) * spec.dataset.num_folds)


@dataclass(frozen=True)
class _Fit:
    """Of a record: the seconds of its fits, and what they grow with."""

    solver: str
    protocol: str
    work: float
    seconds: float


@dataclass(frozen=True)
class _Encoding:
    """Of a record: images a second of a model while the device computed, and its operations an image."""

    architecture: Architecture | None
    mode: str
    precision: str
    flops: int
    rate: float


@dataclass(frozen=True)
class Rates:
    """What records of one kind of hardware measured.

    Args:
        hardware: its name, with the number of threads on a CPU; empty where there are no records.
        threads: that it was measured with, 0 on a GPU.
        num_records: that said something.
        encodings: of models.
        reading: seconds an image, by dataset.
        fits: of protocols.
    """

    hardware: str = ""
    threads: int = 0
    num_records: int = 0
    encodings: Sequence[_Encoding] = ()
    reading: Mapping[str, float] = field(default_factory=dict)
    fits: Sequence[_Fit] = ()

    def extraction_seconds(self, specs: Sequence[RunSpec], images: int, num_threads: int) -> float | None:
        """To read so many images and encode each in some modes; None where a rate or the sizes are not known."""
        encode = 0.0
        for spec in specs:
            found = self.nearest_encoding(spec)
            if found is None or not images:
                return None
            scale = 1.0 if found.architecture == spec.model.architecture else self._flops(spec) / found.flops
            encode += scale / found.rate * self._slowdown(num_threads)
        read = self.reading.get(specs[0].dataset.name) or (median(self.reading.values()) if self.reading else 0.0)
        # Beside a GPU other processes read; on a CPU it is done between batches.
        return images * (max(encode, read) if specs[0].device.startswith("cuda") else encode + read)

    def nearest_encoding(self, spec: RunSpec) -> _Encoding | None:
        """That of the same sizes, mode and precision, as far as there is one; else of the nearest in operations."""
        flops = self._flops(spec)
        usable = [one for one in self.encodings if flops and one.flops]

        def distance(one: _Encoding) -> tuple[bool, bool, float, bool]:
            is_other = one.architecture != spec.model.architecture
            apart = abs(math.log(one.flops / flops))
            return one.precision != spec.precision, is_other, apart, one.mode != spec.mode

        return min(usable, key=distance, default=None)

    def fit_seconds(self, spec: RunSpec, num_threads: int) -> float | None:
        """Of the fits of a cell; None where nothing was measured, or sizes are not known."""
        found, work = self.nearest_fit(spec), fit_work(spec)
        return found.seconds * work / found.work * self._slowdown(num_threads) if found and work else None

    def nearest_fit(self, spec: RunSpec) -> _Fit | None:
        """Of the same solver, and protocol where there is one, that of the nearest size."""
        work = fit_work(spec)
        usable = [one for one in self.fits if one.solver == spec.solver and work]
        return min(
            usable,
            key=lambda one: (one.protocol != spec.protocol.name, abs(math.log(one.work / work))),
            default=None,
        )

    def _slowdown(self, num_threads: int) -> float:
        return self.threads / num_threads if self.threads and num_threads else 1.0

    @staticmethod
    def _flops(spec: RunSpec) -> int:
        return spec.model.profile.flops if spec.model.profile is not None else 0


def measure(records: Iterable[RunRecord], *, device: str, hardware: str = "") -> Rates:
    """The rates that records have of a device.

    Args:
        records: any.
        device: `cpu`, `cuda` and so on.
        hardware: the name of what the grid will run on, if it is known: records of the same are taken, or, where there
            are none, of that which has the most.
    """
    kind = device.partition(":")[0]
    usable: dict[str, list[DoneRecord]] = {}
    for record in records:
        if isinstance(record, DoneRecord) and record.spec.device.partition(":")[0] == kind:
            usable.setdefault(hardware_of(record.environment), []).append(record)
    if not usable:
        return Rates()
    chosen = hardware if hardware in usable else max(usable, key=lambda name: len(usable[name]))
    encodings: dict[tuple[object, ...], list[_Encoding]] = {}
    reading: dict[str, list[float]] = {}
    fits: dict[tuple[object, ...], _Fit] = {}
    for record in usable[chosen]:
        spec = record.spec
        flops = spec.model.profile.flops if spec.model.profile is not None else 0
        for part in record.extraction.parts.values():
            own = part.encoder_images_per_second
            if own is None and part.images and part.models == 1 and part.encode_seconds is not None:
                own = part.images / max(part.encode_seconds, 1e-9)
            if own:
                one = _Encoding(spec.model.architecture, spec.mode, spec.precision, flops, own)
                encodings.setdefault((one.architecture, one.mode, one.precision), []).append(one)
            if part.images and part.read_seconds is not None and part.models is not None:
                seconds = part.read_seconds * part.models / part.images
                reading.setdefault(spec.dataset.name, []).append(seconds)
        work, seconds = fit_work(spec), record.seconds.get("fit", 0.0)
        # The modes of a cell can have one probe, which the second then takes no time for.
        cell = record.key_of_all_modes
        if work and seconds > (fits[cell].seconds if cell in fits else 0.0):
            fits[cell] = _Fit(spec.solver, spec.protocol.name, work, seconds)
    return Rates(
        chosen,
        (usable[chosen][0].environment.torch_threads or 0) if kind == "cpu" else 0,
        len(usable[chosen]),
        [sorted(same, key=lambda one: one.rate)[len(same) // 2] for same in encodings.values()],
        {name: median(seconds) for name, seconds in reading.items()},
        list(fits.values()),
    )


def hardware_of(environment: EnvironmentRecord) -> str:
    """Return the hardware of a record: its GPU, or its CPU with the number of threads."""
    return environment.accelerator or f"{environment.cpu}, {environment.torch_threads} threads"


@dataclass(frozen=True)
class ModelCost:
    """What a grid takes under one model.

    `seconds` are those of one worker, None where no rate is known; `is_scaled` says that the rate is another model's.
    """

    model: str
    cells: int
    shards: int
    images: int
    petaflops: float
    images_per_second: float | None
    is_scaled: bool
    extract_seconds: float | None
    fits: int
    fit_seconds: float | None
    memory: Memory
    disk: int | None


@dataclass(frozen=True)
class GridCost:
    """What a grid takes: of each model, and `seconds` of all workers together, None where a rate is not known.

    `stretch` is how many times larger than the nearest that was measured the largest fit is.
    """

    models: Sequence[ModelCost]
    units: int
    shards: int
    workers: int
    seconds: float | None
    rates: Rates
    stretch: float


def estimate_grid(units: Sequence[Unit], rates: Rates, *, num_workers: int, num_threads: int) -> GridCost:
    """What units take on so many workers of so many threads each.

    Args:
        units: as `plan_units` gives them.
        rates: as `measure` found them.
        num_workers: 1 or more; of more than units that many are taken.
        num_threads: of a worker.
    """
    durations = {unit: seconds_of(unit, rates, num_threads) for unit in units}
    num_workers = max(1, min(num_workers, len(units)))  # more have nothing to do
    by_model: dict[str, list[Unit]] = {}
    for unit in units:
        by_model.setdefault(unit.model, []).append(unit)
    total = None
    if None not in durations.values():
        total = play(units, lambda unit: durations[unit] or 0.0, num_workers)
    stretches = [
        fit_work(spec) / found.work
        for unit in units
        if unit.shard is None
        for spec in unit.specs[:1]
        if (found := rates.nearest_fit(spec)) is not None
    ]
    return GridCost(
        [_cost_of(model, of_model, durations, rates) for model, of_model in by_model.items()],
        len(units),
        sum(unit.shard is not None for unit in units),
        num_workers,
        total,
        rates,
        max(stretches, default=0.0),
    )


def seconds_of(unit: Unit, rates: Rates, num_threads: int) -> float | None:
    """How long one worker takes for a unit."""
    if unit.shard is not None:
        return rates.extraction_seconds(unit.specs, unit.images // len(unit.specs), num_threads)
    # Modes whose features have the same bytes have one probe; that they do not is taken to be so.
    seconds = [rates.fit_seconds(spec, num_threads) for spec in unit.specs]
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def _cost_of(model: str, units: Sequence[Unit], durations: Mapping[Unit, float | None], rates: Rates) -> ModelCost:
    shards, fits = [u for u in units if u.shard is not None], [u for u in units if u.shard is None]
    first = units[0].specs[0]
    found = rates.nearest_encoding(first)
    extract, fit = (_sum([durations[unit] for unit in some]) for some in (shards, fits))
    images = sum(unit.images for unit in shards)
    flops = first.model.profile.flops if first.model.profile is not None else 0
    of_group = {unit.group: unit for unit in shards}.values()
    disk = [feature_bytes(spec.dataset, spec.model) for unit in of_group for spec in unit.specs]
    needs = [memory_of(unit) for unit in units]
    return ModelCost(
        model=model,
        cells=sum(len(unit.specs) for unit in fits),
        shards=len(shards),
        images=images,
        petaflops=images * flops / 1e15,
        images_per_second=images / extract if extract else None,
        is_scaled=found is not None and found.architecture != first.model.architecture,
        extract_seconds=extract,
        fits=len(fits),
        fit_seconds=fit,
        memory=Memory(max(need.host for need in needs), max(need.gpu for need in needs)),
        disk=None if None in disk else sum(size or 0 for size in disk),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
