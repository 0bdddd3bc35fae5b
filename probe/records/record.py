"""A run's record <-> JSON, one file a cell: `<results>/records/<dataset>/<model>.<mode>.<protocol>.<precision>.json`.

Fits of another solver than scikit-learn's have it before the `.json`.

A cell that failed has its record beside, `....failed.json`, and one of which images were missing or passed over has
`....partial.json`: neither takes the place of a whole result, and a whole result removes both. Files are written under
another name and renamed, so that a reader never meets half of one.

Schema history: 1, the first; `encoder` was given `license`, `preprocess` and `dtypes` later on. 2: `spec.dataset` has
`sources` in place of `form` and `source`; `read`, and `folds` in `result`, are new; `extraction`, and `compiled` in
`spec`, came later on. 3: `result` has `solver`, `tol`, `excess`, `interval`, `outcomes`, `same_images`, and `draws`
with their `seed` and `indices`; points of its `sweep` have `gradient_ratio` and `objective`; `parity` has `p_value`;
`sample` in `features`, `eager_score` in `parity`, `blas_threads` in `environment`, and `preprocess_from` and
`weights_key` in `encoder` came later on. So did `suboptimality` in `result` and the points of its `sweep`, and
`choice_converged` and `label_values` in `result`. `converged` follows `probes.solvers.optimality` in a record that has
`suboptimality`, and the gradient in earlier records.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.atomic import make_folder, temporary_beside, write_atomically
from probe.errors import ResultsError, listed
from probe.models.catalog import CATALOG as MODELS
from probe.records.checks import find_contradiction, find_fault
from probe.specs import unique_slug

if TYPE_CHECKING:
    from probe.stats.outcomes import Outcomes

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 3
DEFAULT_SOLVER = "sklearn"
DONE, FAILED = "done", "failed"
STATES = (".failed", ".partial", "")  # in the names of files, by `RunRecord.rank`
PUBLISHED_MODELS = tuple(name for row in MODELS for name in (row.name, f"random:{row.name}"))


@dataclass(frozen=True)
class RunRecord:
    """How one number was made; all values are JSON's.

    Args:
        status: `done` or `failed`.
        spec: the whole `RunSpec`: dataset, model, protocol, jit, device, precision, batch size, solver.
        encoder: SHA-256 and licence of the weights, widths, preprocessing and its origin, and the `dtypes` of the
            checkpoint, of the image tower's weights in use, and of the stored features; `weights_key` if the weights
            lay in a container or below a prefix. Empty if the run failed before these were known.
        splits: for `train`, `val`, `test`, or `train/1` and so on where there are several folds: number of the images
            that were read and SHA-256 of their ids and labels, in order; ids are positions in a part of the source, or
            names of files.
        features: for the same: SHA-256 of the bytes, and a `sample` of the values at each feature point, see
            `features.Features.sample`, by which others can tell how far theirs are off.
        result: a `ProbeResult` without its predictions, `outcomes` packed as `outcomes.Outcomes.pack` does; None where
            the cell failed.
        parity: against the eager mode of the same cell, in JIT records made beside it: `max_abs_difference` for each
            feature point over all splits, the number of test `predictions_flipped`, the `p_value` of the paired test of
            both scores, and the `eager_score` that was compared with.
        seconds: wall time of `load`, `extract` and `fit`; next to nothing for `fit` where JIT features had the bytes of
            the eager ones, and so their probe.
        environment: see `environment.describe`.
        error: `type` and `message`; None where the cell is done.
        read: the `source` that had the images; `revisions`, the commit of each part that came from the hub; `partial`,
            for parts with other numbers of images than their row says: how many there were, and how many it says;
            `skipped`, `part`, `id` and `message` of images that could not be read; `class_names`, in the order of the
            labels, for datasets that are not in the catalogue.
        extraction: how the features were made: `from_cache`, whether an earlier run made them; `parts`, for each part
            what the process that completed it measured: `images` a second, seconds reading, encoding and keeping, the
            share of time in which the device idled, peak memory, the number of models that shared the reading, and
            images a second of this one while the device computed for it.
        created: when the cell ended, ISO 8601 in UTC.
    """

    status: str
    spec: Mapping[str, Any]
    created: str
    encoder: Mapping[str, Any]
    splits: Mapping[str, Any]
    features: Mapping[str, Any]
    result: Mapping[str, Any] | None
    parity: Mapping[str, Any] | None
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    error: Mapping[str, str] | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    extraction: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.spec["dataset"]["name"])

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.spec["model"]["name"])

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return str(self.spec["protocol"]["name"])

    @property
    def mode(self) -> str:
        """`eager`, `jit` or `compiled`."""
        return "jit" if self.spec["jit"] else "compiled" if self.spec.get("compiled") else "eager"

    @property
    def precision(self) -> str:
        """Precision of the weights: `fp32`, `fp16` or `bf16`."""
        return str(self.spec["precision"])

    @property
    def solver(self) -> str:
        """Name of the solver."""
        return str(self.spec.get("solver", DEFAULT_SOLVER))

    @property
    def is_partial(self) -> bool:
        """Whether images were missing, or passed over because they could not be read."""
        return bool(self.read.get("partial") or self.read.get("skipped"))

    @property
    def rank(self) -> int:
        """Which record of a cell counts: a whole result (2) before a partial one (1) before a failure (0)."""
        return 0 if self.status == FAILED else 1 if self.is_partial else 2

    @property
    def is_whole(self) -> bool:
        """Whether it is a result of all images."""
        return self.rank == len(STATES) - 1

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """What the record is of: model, mode, dataset, protocol, precision, solver."""
        return (self.model, self.mode, self.dataset, self.protocol, self.precision, self.solver)


def model_slug(record: RunRecord) -> str:
    """Return the model of a record as a part of a file name, unique for each model."""
    return unique_slug(record.model, is_path=record.spec["model"]["form"] == "file", catalog=PUBLISHED_MODELS)


def dataset_slug(record: RunRecord) -> str:
    """Return the dataset of a record as a part of a file name. A path, as in folder:PATH, keeps only its last part."""
    return unique_slug(record.dataset, is_path=":" in record.dataset)  # no name of the catalogue has a colon


def record_path(record: RunRecord, results_dir: Path) -> Path:
    """Return the path of a record in a results folder."""
    solver = "" if record.solver == DEFAULT_SOLVER else f".{unique_slug(record.solver)}"
    name = f"{model_slug(record)}.{record.mode}.{unique_slug(record.protocol)}.{unique_slug(record.precision)}{solver}"
    return results_dir / "records" / dataset_slug(record) / f"{name}{STATES[record.rank]}.json"


def write_record(record: RunRecord, results_dir: Path) -> Path:
    """Write a record in one step; the path.

    Raises:
        ResultsError: the folder cannot be written to, or the file holds the record of a different run.
    """
    path = record_path(record, results_dir)
    _refuse_other(path, record)
    write_text(path, json.dumps(asdict(record), indent=2, sort_keys=True, allow_nan=False) + "\n")
    state = STATES[record.rank]
    for lower in STATES[: record.rank]:
        path.with_name(f"{path.name.removesuffix(f'{state}.json')}{lower}.json").unlink(missing_ok=True)
    return path


def _refuse_other(path: Path, record: RunRecord) -> None:
    """Refuse to replace the record of a different run; a damaged file may be replaced.

    Two runs can have the same file name on a file system that ignores case.
    """
    try:
        key = read_record(path).key
    except ResultsError:
        return
    if key != record.key:
        raise ResultsError(
            f"{path} holds the record of {listed(key)}, and the record of {listed(record.key)} would overwrite it; "
            "rename the dataset, model or protocol of one of them, or name another results folder"
        )


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: under another name, then renamed.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    write_bytes(path, encode(text))


def encode(text: str) -> bytes:
    """UTF-8; names of files need not be text, and what is none is escaped."""
    return text.encode("utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """The same with bytes.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    try:
        make_folder(path.parent)
        with write_atomically(path) as file:
            file.write(data)
    except OSError as err:
        raise ResultsError(f"cannot write {path} ({err.strerror}); free it, or name another folder") from err


def check_writable(results_dir: Path) -> None:
    """Find out before the work, not after it, whether results can be written.

    Raises:
        ResultsError: they cannot.
    """
    marker = temporary_beside(results_dir / "records" / "writable")
    write_text(marker, "")
    marker.unlink(missing_ok=True)


def read_records(results_dir: str | Path = "results") -> list[RunRecord]:
    """Read all records of a results folder, sorted by what they are of.

    A file that is damaged or of a later schema is named in a warning and passed over, never changed. Of a cell the
    record of the highest `rank` is taken, of equal ranks the newest; two of one rank are named.
    """
    return [record for _, record in locate_records(results_dir)]


def locate_records(results_dir: str | Path) -> list[tuple[Path, RunRecord]]:
    """The same, each with the file that it is from."""
    found, faults = scan_records(results_dir)
    for fault in faults:
        logger.warning("%s; it is passed over", fault)
    return found


def scan_records(results_dir: str | Path) -> tuple[list[tuple[Path, RunRecord]], list[ResultsError]]:
    """The same, and what is wrong with the files that cannot be read."""
    best: dict[tuple[str, ...], tuple[Path, RunRecord]] = {}
    faults = []
    for path in sorted((Path(results_dir) / "records").glob("*/*.json")):
        try:
            record = read_record(path)
        except ResultsError as err:
            faults.append(err)
            continue
        other = best.get(record.key, (path, record))
        newer, older = sorted([(path, record), other], key=lambda one: (one[1].rank, one[1].created), reverse=True)
        if newer[0] != older[0] and newer[1].rank == older[1].rank:
            logger.warning("%s is passed over: %s is of the same cell, and newer", older[0], newer[0])
        best[record.key] = newer
    return [best[key] for key in sorted(best)], faults


def read_record(path: str | Path) -> RunRecord:
    """Read one record.

    Raises:
        ResultsError: it is not there, damaged, or of a later schema.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as err:
        raise ResultsError(f"cannot read {path} ({err.strerror or err}); name a record, a .json file") from err
    except (ValueError, RecursionError) as err:  # also bytes that are not text, and a name with a NUL
        raise ResultsError(f"{path} is damaged: no JSON ({err}); run its cell again") from err
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if not isinstance(version, int):
        raise ResultsError(f"{path} is damaged, or no record: it has no schema version; remove it, or run its cell")
    if version > SCHEMA_VERSION:
        raise ResultsError(f"{path} has schema {version}, newer than {SCHEMA_VERSION}; update probe")
    known = {own.name for own in dataclass_fields(RunRecord)}
    if unknown := sorted(set(fields) - known):
        raise ResultsError(f"{path} is damaged: no record has {listed(unknown)}; remove it, or run it again")
    if fault := find_fault(fields) or find_contradiction(fields.get("result"), fields["spec"]["dataset"]["metric"]):
        raise ResultsError(f"{path} is damaged: {fault}; run its cell again")
    return RunRecord(**{"result": None, "parity": None, **fields})


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def test_images(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """The test splits of a record and their digests: scores of others do not compare."""
    return tuple(sorted((name, split["sha256"]) for name, split in record.splits.items() if name.startswith("test")))


def outcomes_of(record: RunRecord) -> list[Outcomes]:
    """What became of each test image, one for each fold or draw.

    Raises:
        ResultsError: they are damaged, or an earlier version kept none.
    """
    packed = (record.result or {}).get("outcomes")
    if not packed:
        raise ResultsError("it has no outcomes of test images, which records have from schema 3 on; run its cell again")
    from probe.stats.outcomes import unpack  # NumPy, which records without outcomes do without

    return [unpack(one) for one in packed]
