"""Run records again, from what they say alone, and name the first stage that comes out otherwise.

Nothing is taken from the feature store, unless the caller names one, and nothing of the records is changed.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probe.difference import Change, Difference, diff
from probe.environment import threads
from probe.errors import ProbeError, ResultsError, sentence
from probe.extraction import Access
from probe.models.devices import resolve_execution
from probe.records import FAILED, RunRecord, read_record, record_path, scan_records
from probe.runner import run_grid
from probe.specs import RunSpec, rebuild

logger = logging.getLogger(__name__)

IDENTICAL, WITHIN, CHANGED, NOT_RUN = "identical", "within tolerance", "changed", "not run"
# Of their size, by which features of the same images and weights differ at most: those of bf16, by a hundredth or two.
NOT_ROUNDING = 0.05
SHARE = 0.001  # of the test images, by which a score may move; at least one image
DEFAULT_ACCESS = Access()
_UNKNOWN = "the record does not say by how much, as it keeps none of their values"


@dataclass(frozen=True)
class Stage:
    """A stage of a run, in the order of causes, and what is other than the record says; empty where nothing is."""

    name: str
    moved: str


@dataclass(frozen=True)
class Reproduction:
    """A record, and what came of running it again.

    Args:
        record: as it was.
        again: the new one; a failure where the cell could not be run; None where it was not tried.
        verdict: `identical` (features, probe and score, to the last bit), `within tolerance`, `changed` or `not run`.
        reason: what the verdict rests on, in a sentence.
        stages: environment, data, weights, execution, features, probe (C, and the numbers of the fits) and score.
        images: by how many test images the scores differ: the difference times their number, which for ROC AUC and
            average precision is as many as would move an accuracy so far; of class means the images that are right in
            one run alone. None where there is no new score, or it is of other images.
        tolerance: how many they may.
    """

    record: RunRecord
    again: RunRecord | None
    verdict: str
    reason: str
    stages: tuple[Stage, ...] = ()
    images: float | None = None
    tolerance: int = 0

    @property
    def passed(self) -> bool:
        """Whether the score is confirmed."""
        return self.verdict in (IDENTICAL, WITHIN)

    @property
    def first_moved(self) -> str:
        """The first stage after the environment that came out otherwise; empty where none did."""
        return next((stage.name for stage in self.stages if stage.moved and stage.name != "environment"), "")


@dataclass(frozen=True)
class Distance:
    """The largest difference of some values of features, their size (root mean square), and how many they are."""

    largest: float
    size: float
    num_values: int

    @property
    def share(self) -> float:
        """The difference over the size."""
        return self.largest / max(self.size, 1e-30)

    def __str__(self) -> str:
        """In words."""
        return f"largest difference {self.largest:.2g} of {self.num_values} values kept, whose size is {self.size:.2g}"


def reproduce(
    record: str | Path | RunRecord,
    *,
    tolerance: int | None = None,
    device: str | None = None,
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    offline: bool = False,
) -> Reproduction:
    """Run a record again and compare.

    On the CPU torch computes with as many threads as it did, as far as there are processors: they change last bits.

    Args:
        record: or its file.
        tolerance: test images by which the score may differ; None is one in a thousand, and at least one.
        device: to run on; None is that of the record.
        data_dir: folder of datasets, see `probe.paths`.
        weights_dir: folder of checkpoints, likewise.
        cache_dir: folder of features that may be used; None makes all of them again.
        results_dir: where the new record is written; None is nowhere.
        offline: never touch the network.

    Raises:
        ResultsError: the record cannot be read, is of a cell that failed, or would be overwritten.
    """
    if not isinstance(record, RunRecord):
        record = read_record(record)
    if record.status == FAILED:
        raise ResultsError(f"{_name(record)} failed, so that there is no score to reproduce; run its cell again")
    access = Access(data=data_dir, weights=weights_dir, cache=cache_dir, results=results_dir, offline=offline)
    (found,) = reproduce_all([record], tolerance=tolerance, device=device, access=access)
    return found


def find_records(path: str | Path) -> tuple[list[RunRecord], list[ResultsError]]:
    """The records of a results folder, or the one in a file; and what is wrong with those that cannot be read.

    Raises:
        ResultsError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return [read_record(path)], []
    found, faults = scan_records(path)
    if not found and not faults:
        raise ResultsError(f"no records in {path}; name a results folder, or one of its records/DATASET/....json")
    return [record for _, record in found], faults


def estimate_seconds(record: RunRecord, others: Iterable[RunRecord] = ()) -> float:
    """How long its machine took, features made anew.

    Args:
        record: of which to say it.
        others: records among which is perhaps the other mode of the cell: one whose features had the same bytes took
            its probe from there, in no time.
    """
    parts = record.extraction.get("parts", {}).values()
    encoding = sum(part["images"] / part["images_per_second"] for part in parts if part.get("images"))
    same = [one for one in others if (one.key[0], *one.key[2:]) == (record.key[0], *record.key[2:])]
    fit = max(one.seconds.get("fit", 0.0) for one in (record, *same))
    return float(record.seconds.get("load", 0.0) + max(encoding, record.seconds.get("extract", 0.0)) + fit)


def reproduce_all(
    records: Sequence[RunRecord],
    *,
    tolerance: int | None = None,
    device: str | None = None,
    access: Access = DEFAULT_ACCESS,
) -> Iterator[Reproduction]:
    """Run records again, each as soon as it is done; features of one model and dataset are made once.

    While it is at work, the caller's own torch computes with the threads of the record, too.

    Args:
        records: any; those whose cell failed are passed over.
        tolerance: see `reproduce`.
        device: likewise.
        access: where things are; `cache` and `results` as `reproduce` takes them.

    Raises:
        ResultsError: two of them are of one cell, or the results folder cannot be written to.
    """
    planned: dict[RunSpec, RunRecord] = {}
    for record in records:
        if record.status == FAILED:
            logger.info("%s: failed, there is no score to reproduce", _name(record))
            continue
        try:
            spec = _plan(record, device)
        except ProbeError as err:
            yield Reproduction(record, None, NOT_RUN, str(err))
            continue
        if record.key in [other.key for other in planned.values()]:
            raise ResultsError(f"two records are of {spec}; reproduce one after the other")
        if access.results is not None:
            _refuse_overwriting(record, Path(access.results))
        planned[spec] = record
    with ExitStack() as stack:
        cache, results = (
            folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="probe-"))
            for folder in (access.cache, access.results)
        )
        access = replace(access, cache=cache, results=results)
        for (num_threads, num_blas, is_partial, num_corrupt), specs in _group(planned).items():
            own = replace(access, allow_partial=is_partial, skip_corrupt=num_corrupt)
            of_key = {planned[spec].key: planned[spec] for spec in specs}
            with threads(num_threads, blas=num_blas):
                for again in run_grid(specs, access=own):
                    yield judge(of_key[again.key], again, tolerance=tolerance)


def judge(record: RunRecord, again: RunRecord, *, tolerance: int | None = None) -> Reproduction:
    """Compare a record with that of another run of its cell.

    Args:
        record: as it was, with a score.
        again: the other.
        tolerance: see `reproduce`.
    """
    assert record.result is not None
    if again.result is None:
        assert again.error is not None
        return Reproduction(record, again, NOT_RUN, sentence(again.error))
    n = int(record.result["num_test"])
    allowed = max(1, math.ceil(SHARE * n)) if tolerance is None else tolerance
    found = diff(record, again)
    stages = tuple(_stages(record, again, found))
    if any(change.field.startswith("splits.test") for change in found.changes):
        reason = "the test images are others, which no tolerance can judge"
        return Reproduction(record, again, CHANGED, reason, stages, tolerance=allowed)
    images = _images_moved(record, again, found)
    if not any(stage.moved for stage in stages if stage.name != "environment"):
        if all(kept for kept in (record.features, record.result.get("outcomes"))):
            return Reproduction(record, again, IDENTICAL, found.verdict, stages, 0.0, allowed)
        reason = "the record keeps no digests of features, or no outcomes of test images, that could be compared"
        return Reproduction(record, again, WITHIN, reason, stages, images, allowed)
    distance = feature_distance(record, again)
    if distance is not None and distance.share > NOT_ROUNDING:
        reason = f"{distance}, which is no rounding: other pixels, or other code of the model"
        return Reproduction(record, again, CHANGED, reason, stages, images, allowed)
    verdict = WITHIN if images <= allowed + 1e-6 else CHANGED
    return Reproduction(record, again, verdict, found.verdict, stages, images, allowed)


def feature_distance(record: RunRecord, again: RunRecord) -> Distance | None:
    """How far features are from those of a record, by the values that both keep; None where there are none."""
    pairs = [
        (before, again.features[split]["sample"][point])
        for split, kept in record.features.items()
        for point, before in kept.get("sample", {}).items()
        if len(again.features.get(split, {}).get("sample", {}).get(point, ())) == len(before)
    ]
    if not pairs:
        return None
    before, after = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    return Distance(float(np.abs(after - before).max()), float(np.sqrt(np.mean(np.square(before)))), len(before))


def _images_moved(record: RunRecord, again: RunRecord, found: Difference) -> float:
    assert record.result is not None
    assert again.result is not None
    if record.spec["dataset"]["metric"] == "mean_per_class" and found.test is not None:
        return float((found.test.num_only_a or 0) + (found.test.num_only_b or 0))  # of small classes one weighs more
    return float(abs(again.result["score"] - record.result["score"]) * record.result["num_test"])


def _refuse_overwriting(record: RunRecord, results_dir: Path) -> None:
    path = record_path(record, results_dir)
    if path.is_file() and read_record(path).created == record.created:
        raise ResultsError(f"the new record would replace {path}, which is run again; name another folder")


def _plan(record: RunRecord, device: str | None) -> RunSpec:
    try:
        spec = rebuild(record.spec)
    except (KeyError, TypeError) as err:
        raise ResultsError(
            f"{_name(record)} is of schema {record.schema_version}, which does not say all of its cell ({err}); "
            "run the cell again"
        ) from err
    try:
        run = resolve_execution(
            device or spec.device, precision=spec.precision, jit=spec.jit, compiled=bool(spec.compiled)
        )
    except ProbeError as err:
        raise ResultsError(f"it was made on {spec.device}, and {err}") from err
    return replace(spec, device=str(run.device))


def _group(planned: Mapping[RunSpec, RunRecord]) -> dict[tuple[int, int, bool, int], list[RunSpec]]:
    """Cells that run in one grid: with as many threads, of torch and of BLAS, and images that may be missing."""
    groups: dict[tuple[int, int, bool, int], list[RunSpec]] = {}
    for spec in sorted(planned, key=lambda spec: (spec.dataset.name, spec.model.name, spec.jit)):
        record = planned[spec]
        # Of earlier versions and other devices 0: as many as there are here.
        num_threads = int(record.environment.get("torch_threads") or 0) if spec.device == "cpu" else 0
        num_blas = int(record.environment.get("blas_threads") or 0)
        missing, corrupt = bool(record.read.get("partial")), len(record.read.get("skipped", ()))
        groups.setdefault((num_threads, num_blas, missing, corrupt), []).append(spec)
    return groups


def _stages(record: RunRecord, again: RunRecord, found: Difference) -> Iterator[Stage]:
    """What differs in what both records have; how the record came to be in another way than the first is not."""
    changes = [c for c in found.changes if c.a is not None and c.b is not None and not _is_by_company(c)]
    of_stage = {name: [c for c in changes if c.stage == name] for name in dict.fromkeys(c.stage for c in changes)}
    titles = {"environment": "environment", "data": "data", "model": "weights", "execution": "execution"}
    for name, title in titles.items():
        yield Stage(title, _words(of_stage.get(name, ())))
    distance = feature_distance(record, again)
    is_other = any(c.field.endswith(".sha256") for c in of_stage.get("features", ()))
    yield Stage("features", f"not the same bytes; {distance or _UNKNOWN}" if is_other else "")
    assert record.result is not None
    assert again.result is not None
    numbers = [c for name in ("probe", "fit") for c in of_stage.get(name, ())]
    chosen = [c for c in numbers if c.field == "result.C"]
    yield Stage(
        "probe",
        _words(chosen) if chosen else f"C the same; other numbers of the fits: {_names(numbers)}" if numbers else "",
    )
    scores = [c for c in of_stage.get("score", ()) if c.field == "result.score"]
    others = "the same, of other images" if of_stage.get("score") else ""
    yield Stage("score", _words(scores) or others)


def _is_by_company(change: Change) -> bool:
    """Whether it is so only because other cells ran beside, or because one record is of an earlier version."""
    return change.field.startswith(("parity", "schema_version")) or ".sample." in change.field


def _words(changes: Sequence[Change]) -> str:
    return "; ".join(f"{_last(c.field)} {_short(c.a)} -> {_short(c.b)}" for c in changes)


def _names(changes: Sequence[Change]) -> str:
    names = [_last(change.field) for change in changes]
    return ", ".join([*names[:4], f"{len(names) - 4} more"] if len(names) > 4 else names)


def _last(field: str) -> str:
    return ".".join(field.split(".")[1:]) or field


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _name(record: RunRecord) -> str:
    return f"{record.dataset} / {record.model} / {record.mode} / {record.protocol}"
