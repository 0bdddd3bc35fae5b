"""The types of a record: everything that documents one run. Plain data; `records.record` reads and writes it.

Fields that earlier versions of the suite did not record have a default, None or empty.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

from msgspec import Meta

from probe.specs import RunSpec, Source

SCHEMA_VERSION = 5
DONE, FAILED = "done", "failed"
STATES = (".failed", ".partial", "")  # in the names of files, by `RunRecord.rank`

Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=sys.maxsize)]


@dataclass(frozen=True)
class PreprocessRecord:
    """Preprocessing of images, see `models.preprocess.Preprocess`."""

    resolution: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = ""
    resize: str = ""


@dataclass(frozen=True)
class DtypesRecord:
    """Data types of the checkpoint, of the image tower's weights in use, and of the stored features."""

    checkpoint: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    features: str = ""


@dataclass(frozen=True)
class EncoderRecord:
    """The encoder that was loaded; all fields are empty if the run failed before.

    `weights_key` names the weights within their file if they lay in a container or below a prefix.
    """

    weights_sha256: str | None = None
    weights_key: str = ""
    license: str = ""
    resolution: int | None = None
    embed_dim: int | None = None
    pre_projection_dim: int | None = None
    preprocess: PreprocessRecord | None = None
    preprocess_from: str = ""
    dtypes: DtypesRecord = field(default_factory=DtypesRecord)


@dataclass(frozen=True)
class SplitRecord:
    """Images that were read of a split: their number, and the SHA-256 of their ids and labels, in order."""

    sha256: str
    size: int | None = None


@dataclass(frozen=True)
class FeaturesRecord:
    """Features of a split: SHA-256 of their bytes, and some values at each feature point, see `Features.sample`."""

    sha256: str
    sample: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be read: its subset, its id and the error."""

    subset: str
    id: str
    message: str


@dataclass(frozen=True)
class ReadRecord:
    """The images that were read.

    Args:
        source: the source that had the images.
        revisions: the commit of each subset that came from the hub.
        partial: for subsets with another number of images than their entry says: the number found, the number said.
        skipped: images that could not be read.
        class_names: in the order of the labels, for datasets that are not in the catalogue.
    """

    source: Source | None = None
    revisions: dict[str, str] = field(default_factory=dict)
    partial: dict[str, tuple[int, int]] = field(default_factory=dict)
    skipped: tuple[SkippedImage, ...] = ()
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeterRecord:
    """Measurements of the process that extracted the features of a subset, see `features.encode.Meter.describe`.

    `models` is the number of models that shared the reading of the images.
    """

    images: Count
    models: int | None = None
    images_per_second: float | None = None
    encoder_images_per_second: float | None = None
    read_seconds: float | None = None
    encode_seconds: float | None = None
    keep_seconds: float | None = None
    device_idle: float | None = None
    peak_memory_mb: float | None = None
    peak_device_memory_mb: float | None = None


@dataclass(frozen=True)
class ExtractionRecord:
    """How the features were extracted.

    Args:
        from_cache: True if all of them were cached.
        subsets: measurements by subset.
        weights: digest of the weights by which features are cached, see `models.loading.identify`.
        extraction_version: `features.store.EXTRACTION_VERSION`; records from before it existed are of the first.
        preprocess_version: `models.preprocess.VERSION`, likewise.
    """

    from_cache: bool | None = None
    subsets: dict[str, MeterRecord] = field(default_factory=dict)
    weights: str | None = None
    extraction_version: int = 1
    preprocess_version: int = 1


@dataclass(frozen=True)
class EnvironmentRecord:
    """Versions, hardware and threads of the process that fitted the probe, see `environment.describe`."""

    python: str | None = None
    platform: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)
    cpu: str | None = None
    cpu_count: int | None = None
    torch_threads: Count | None = None
    blas_threads: Count | None = None
    accelerator: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None


@dataclass(frozen=True)
class IntervalRecord:
    """A 95 % confidence interval of a score, and the method that gave it, see `stats.intervals.Interval`."""

    low: Fraction
    high: Fraction
    method: str = ""


@dataclass(frozen=True)
class SweepRecord:
    """One value of C of a sweep, see `probes.result.SweepPoint`."""

    C: float
    score: float
    n_iter: int
    converged: bool
    gradient_ratio: float | None = None
    objective: float | None = None
    suboptimality: float | None = None


@dataclass(frozen=True)
class PackedArray:
    """An array of outcomes as text, see `stats.outcomes.Outcomes.pack`."""

    dtype: str
    lowest: int
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True)
class PackedOutcomes:
    """Outcomes of n test images as text."""

    metric: str
    n: int
    arrays: dict[str, PackedArray]


@dataclass(frozen=True)
class ResultRecord:
    """A `ProbeResult` without its predictions. Results of single draws and folds hold no outcomes.

    `draw_sha256` is the digest of the images that a few-shot draw took, see `probes.shots.Draw`; with `seed` they can
    be drawn again. `probe_version` is `probes.fit.PROBE_VERSION`; records from before it existed are of the first.
    """

    score: Fraction
    C: float | None
    n_iter: int
    converged: bool
    num_test: Annotated[int, Meta(ge=1)]
    num_train: int | None = None
    metric: str = ""
    solver: str = ""
    interval: IntervalRecord | None = None
    suboptimality: float | None = None
    gradient_norm: float | None = None
    gradient_ratio: float | None = None
    objective: float | None = None
    excess: float | None = None
    tol: float | None = None
    label_values: tuple[int, ...] = ()
    sweep: tuple[SweepRecord, ...] = ()
    choice_converged: bool = True
    outcomes: tuple[PackedOutcomes, ...] = ()
    same_images: bool = True
    seed: int | None = None
    draw_sha256: str | None = None
    draws: tuple[ResultRecord, ...] = ()
    folds: tuple[ResultRecord, ...] = ()
    probe_version: int = 1


@dataclass(frozen=True)
class ParityRecord:
    """Comparison of a JIT run with the eager run beside it.

    Args:
        max_abs_difference: for each feature point, over all splits.
        predictions_flipped: number of test images.
        p_value: of the paired test of both scores.
        eager_score: the score that was compared with.
    """

    max_abs_difference: Annotated[dict[str, float], Meta(min_length=1)]
    predictions_flipped: int
    p_value: float | None = None
    eager_score: float | None = None


@dataclass(frozen=True)
class ErrorRecord:
    """The error that kept a run from its score."""

    type: str
    message: str


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """What records of done and of failed runs have in common.

    Args:
        spec: the run.
        created: when the run ended, ISO 8601 in UTC.
        encoder: see `EncoderRecord`.
        read: see `ReadRecord`.
        splits: for `train`, `val`, `test`, or `train/1` and so on where there are several folds.
        features: for the same splits.
        seconds: wall time of `load`, `extract` and `fit`; next to nothing for `fit` where JIT features had the bytes of
            the eager ones, and so their probe.
        extraction: see `ExtractionRecord`.
        environment: see `EnvironmentRecord`.
    """

    spec: RunSpec
    created: str
    encoder: EncoderRecord
    read: ReadRecord = field(default_factory=ReadRecord)
    splits: dict[str, SplitRecord]
    features: dict[str, FeaturesRecord]
    seconds: dict[str, float]
    extraction: ExtractionRecord = field(default_factory=ExtractionRecord)
    environment: EnvironmentRecord
    schema_version: int = SCHEMA_VERSION

    status: ClassVar[str]

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.spec.dataset.name

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.spec.model.name

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.spec.protocol.name

    @property
    def mode(self) -> str:
        """`eager`, `jit` or `compiled`."""
        return self.spec.mode

    @property
    def precision(self) -> str:
        """Precision of the weights: `fp32`, `fp16` or `bf16`."""
        return self.spec.precision

    @property
    def solver(self) -> str:
        """Name of the solver."""
        return self.spec.solver

    @property
    def is_partial(self) -> bool:
        """True if images were missing or skipped because they could not be read."""
        return bool(self.read.partial or self.read.skipped)

    @property
    def rank(self) -> int:
        """Which record of a run counts: a whole result (2) before a partial one (1) before a failure (0)."""
        return 0 if self.status == FAILED else 1 if self.is_partial else 2

    @property
    def is_whole(self) -> bool:
        """True if the record is a result of all images."""
        return self.rank == len(STATES) - 1

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """Names that tell a record from others: model, mode, dataset, protocol, precision, solver."""
        return (self.model, self.mode, self.dataset, self.protocol, self.precision, self.solver)

    @property
    def key_of_all_modes(self) -> tuple[str, ...]:
        """The key without the mode."""
        return (self.model, self.dataset, self.protocol, self.precision, self.solver)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        return {"status": self.status, "result": None, "parity": None, "error": None, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class DoneRecord(BaseRecord):
    """Record of a run that has a score; `parity` compares a JIT run with the eager run beside it."""

    result: ResultRecord
    parity: ParityRecord | None = None

    status: ClassVar[str] = DONE
    error: ClassVar[None] = None


@dataclass(frozen=True, kw_only=True)
class FailedRecord(BaseRecord):
    """Record of a run that has no score."""

    error: ErrorRecord

    status: ClassVar[str] = FAILED
    result: ClassVar[None] = None
    parity: ClassVar[None] = None


RunRecord: TypeAlias = DoneRecord | FailedRecord
