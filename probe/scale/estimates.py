"""Estimate the cost of a grid before it runs: time from rates in existing records, memory and disk from `needs.py`.

The time of a model without records is unknown. The time of a fit is proportional to images x features x classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from probe.environment import EnvironmentRecord
from probe.probes.costs import num_fits
from probe.records.schema import DoneRecord, RunRecord
from probe.scale.needs import Memory, feature_bytes, fit_shape, memory_of, num_scored
from probe.scale.units import Unit
from probe.specs import KNN, ZERO_SHOT, RunSpec


def fit_work(spec: RunSpec) -> float:
    """Return a number that the time of a run's fits is proportional to; 0 if sizes are not known.

    Numbers of runs with different methods or solvers cannot be compared.
    """
    n, d, k = fit_shape(spec)
    if spec.protocol.method == ZERO_SHOT:
        work = num_scored(spec) * d * k
    elif spec.protocol.method == KNN:
        work = n * d * num_scored(spec)
    else:
        work = n * d * k * num_fits(spec.protocol)
    return float(work * spec.dataset.num_folds)


def fit_kind(spec: RunSpec) -> tuple[str, str]:
    """Return the method and the solver of a run, which determine its time per `fit_work`."""
    return spec.protocol.method, spec.solver


def encoding_kind(spec: RunSpec) -> tuple[Hashable, str, str]:
    """Return the architecture, precision and mode of a run, which determine its time per image.

    A model without an `Architecture` has its form and source instead, also with random weights.
    """
    model = spec.model
    return model.architecture or (model.form, model.source), spec.precision, spec.mode


@dataclass(frozen=True)
class Rates:
    """Rates from the records of one kind of hardware.

    Args:
        hardware: name of the hardware, for a CPU with the number of threads; empty without records.
        threads: number of threads in the records; 0 for a GPU. Time is assumed to be proportional to 1 / threads.
        num_records: number of records.
        encoding: seconds per image, by `encoding_kind`.
        reading: seconds per image, by dataset.
        fits: `fit_work` and seconds of the largest fit, by `fit_kind`.
    """

    hardware: str = ""
    threads: int = 0
    num_records: int = 0
    encoding: Mapping[tuple[Hashable, str, str], float] = field(default_factory=dict)
    reading: Mapping[str, float] = field(default_factory=dict)
    fits: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def unit_seconds(self, unit: Unit, num_threads: int) -> float | None:
        """Return the time of a unit on one worker, in seconds; None if a rate or a size is not known."""
        slowdown = self.threads / num_threads if self.threads and num_threads else 1.0
        spec = unit.specs[0]
        if unit.shard is None:
            # The features of the modes can differ in their last bits, so one fit per mode is assumed.
            work, (measured, seconds) = fit_work(spec), self.fits.get(fit_kind(spec), (0.0, 0.0))
            return len(unit.specs) * seconds * work / measured * slowdown if measured and work else None
        encode = [self._encode_seconds(spec) for spec in unit.specs]
        known = [seconds * slowdown for seconds in encode if seconds is not None]
        if len(known) < len(encode) or not unit.images:
            return None
        read = self.reading.get(spec.dataset.name) or (median(self.reading.values()) if self.reading else 0.0)
        # With a GPU, other processes read at the same time; on a CPU, images are read between batches.
        seconds_per_image = max(sum(known), read) if spec.device.startswith("cuda") else sum(known) + read
        return unit.images // len(unit.specs) * seconds_per_image

    def _encode_seconds(self, spec: RunSpec) -> float | None:
        """Return the seconds per image of a model, from another mode if there are no records of its mode."""
        same = {
            mode: seconds
            for (model, precision, mode), seconds in self.encoding.items()
            if (model, precision) == encoding_kind(spec)[:2]
        }
        return same.get(spec.mode, next(iter(same.values()), None))


def measure_rates(records: Iterable[RunRecord], *, device: str, hardware: str = "") -> Rates:
    """Return the rates of a device from records.

    Args:
        records: records of any runs.
        device: `cpu`, `cuda` and so on.
        hardware: name of the hardware of the grid, if it is known. If no records have this hardware, the records of
            the hardware with the most records are used.
    """
    kind = device.partition(":")[0]
    usable: dict[str, list[DoneRecord]] = {}
    for record in records:
        if isinstance(record, DoneRecord) and record.spec.device.partition(":")[0] == kind:
            usable.setdefault(hardware_of(record.environment), []).append(record)
    if not usable:
        return Rates()
    chosen = hardware if hardware in usable else max(usable, key=lambda name: len(usable[name]))
    encoding: dict[tuple[Hashable, str, str], list[float]] = {}
    reading: dict[str, list[float]] = {}
    fits: dict[tuple[str, str], tuple[float, float]] = {}
    for record in usable[chosen]:
        spec = record.spec
        for subset in record.extraction.subsets.values():
            rate = subset.encoder_images_per_second
            if rate is None and subset.images and subset.models == 1 and subset.encode_seconds is not None:
                rate = subset.images / max(subset.encode_seconds, 1e-9)
            if rate:
                encoding.setdefault(encoding_kind(spec), []).append(1 / rate)
            if subset.images and subset.read_seconds is not None and subset.models is not None:
                seconds = subset.read_seconds * subset.models / subset.images
                reading.setdefault(spec.dataset.name, []).append(seconds)
        # The longest of equal fits, because a fit of a second mode can come from the cache and then takes no time.
        fit = (fit_work(spec), record.seconds.get("fit", 0.0))
        fits[fit_kind(spec)] = max(fits.get(fit_kind(spec), (0.0, 0.0)), fit)
    return Rates(
        chosen,
        (usable[chosen][0].environment.torch_threads or 0) if kind == "cpu" else 0,
        len(usable[chosen]),
        {key: median(seconds) for key, seconds in encoding.items()},
        {name: median(seconds) for name, seconds in reading.items()},
        {kind: measured for kind, measured in fits.items() if all(measured)},
    )


def hardware_of(environment: EnvironmentRecord) -> str:
    """Return the name of the hardware of a record's environment: its GPU, or its CPU with the number of threads."""
    return environment.accelerator or f"{environment.cpu}, {environment.torch_threads} threads"


@dataclass(frozen=True)
class ModelCost:
    """Cost of a grid for one model. Times are the seconds of one worker, or None if a rate is not known."""

    model: str
    runs: int
    shards: int
    images: int
    extract_seconds: float | None
    fits: int
    fit_seconds: float | None
    memory: Memory
    disk: int | None


@dataclass(frozen=True)
class GridCost:
    """Cost of a grid.

    Args:
        models: cost for each model.
        units: number of units.
        shards: number of units that are shards of features.
        workers: number of workers.
        seconds: time from start to end with all workers; None if a rate is not known.
        hardware: hardware of the rates; empty without records.
        records: number of records that the rates come from.
        stretch: work of the largest fit divided by the work of the largest fit in the records of its kind.
    """

    models: Sequence[ModelCost]
    units: int
    shards: int
    workers: int
    seconds: float | None
    hardware: str
    records: int
    stretch: float


def estimate_grid(units: Sequence[Unit], rates: Rates, *, num_workers: int, num_threads: int) -> GridCost:
    """Return the estimated cost of units."""
    durations = {unit: rates.unit_seconds(unit, num_threads) for unit in units}
    num_workers = max(1, min(num_workers, len(units)))  # more workers would be idle
    by_model: dict[str, list[Unit]] = {}
    for unit in units:
        by_model.setdefault(unit.model, []).append(unit)
    total = _sum(durations.values())
    if total is not None:  # the bound of Graham (1966) for any order of the units
        longest = max((seconds or 0.0 for seconds in durations.values()), default=0.0)
        total = total / num_workers + longest * (1 - 1 / num_workers)
    fits = [unit.specs[0] for unit in units if unit.shard is None]
    return GridCost(
        [_cost_of(model, of_model, durations) for model, of_model in by_model.items()],
        len(units),
        len(units) - len(fits),
        num_workers,
        total,
        rates.hardware,
        rates.num_records,
        max((fit_work(one) / rates.fits[fit_kind(one)][0] for one in fits if fit_kind(one) in rates.fits), default=0.0),
    )


def _cost_of(model: str, units: Sequence[Unit], durations: Mapping[Unit, float | None]) -> ModelCost:
    shards, fits = [u for u in units if u.shard is not None], [u for u in units if u.shard is None]
    of_group = {unit.group: unit for unit in shards}.values()
    disk = [feature_bytes(spec) for unit in of_group for spec in unit.specs]
    needs = [memory_of(unit) for unit in units]
    return ModelCost(
        model=model,
        runs=sum(len(unit.specs) for unit in fits),
        shards=len(shards),
        images=sum(unit.images for unit in shards),
        extract_seconds=_sum(durations[unit] for unit in shards),
        fits=len(fits),
        fit_seconds=_sum(durations[unit] for unit in fits),
        memory=Memory(max(need.host for need in needs), max(need.gpu for need in needs)),
        disk=None if None in disk else sum(size or 0 for size in disk),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum of values, or None if a value is None."""
    all_values = list(values)
    return None if None in all_values else sum(value or 0.0 for value in all_values)
