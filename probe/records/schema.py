"""The types of a record, which documents one run. Plain data; `records.record` reads and writes the files.

Fields that earlier versions of the suite did not record have a default, which is None or empty.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

from msgspec import Meta

from probe.environment import EnvironmentRecord
from probe.records.supplied import SuppliedRecord
from probe.specs import RunSpec, Source

SCHEMA_VERSION = 5
DONE, FAILED = "done", "failed"
LOGITS = "logits"  # key of `ParityRecord.max_abs_difference`, in addition to the feature points
STATES = (".failed", ".partial", "")  # what `RunRecord.rank` adds to the name of the file

Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=sys.maxsize)]


@dataclass(frozen=True)
class PreprocessRecord:
    """Preprocessing of the images, see `models.preprocess`.

    `width` is 0 if it equals the height, which is `resolution`. `function` describes the function of a
    `CustomPreprocess`; it is empty for the settings of a `Preprocess`.
    """

    resolution: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = ""
    resize: str = ""
    resize_to: int = 0
    width: int = 0
    function: str = ""


@dataclass(frozen=True)
class DtypesRecord:
    """Data types of the checkpoint, of the image tower's weights in use, and of the stored features."""

    checkpoint: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    features: str = ""


@dataclass(frozen=True)
class EncoderRecord:
    """The encoder that was loaded. All fields are empty if the run failed before.

    `weights_key` names the weights within their file, if the file has several or nests them below a prefix.
    `has_projection` and `pooling` have the meaning that they have in `models.encoder.ImageEncoder`.
    """

    weights_sha256: str | None = None
    weights_key: str = ""
    license: str = ""
    resolution: int | None = None
    embed_dim: int | None = None
    pre_projection_dim: int | None = None
    preprocess: PreprocessRecord | None = None
    preprocess_from: str = ""
    has_projection: bool = True
    pooling: str = ""
    dtypes: DtypesRecord = field(default_factory=DtypesRecord)


@dataclass(frozen=True)
class SplitRecord:
    """The images of a split: their number, and the SHA-256 of their ids and labels, in order."""

    sha256: str
    size: int | None = None


@dataclass(frozen=True)
class FeaturesRecord:
    """Features of a split: the SHA-256 of their bytes, and some values at each feature point, see `Features.sample`."""

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
        source: the source that the images came from.
        revisions: the commit of each subset that came from the Hugging Face hub.
        partial: the found and the expected number of images of each subset where the two differ.
        skipped: images that could not be read.
        class_names: names in the order of the labels, for datasets that are not in the catalogue.
    """

    source: Source | None = None
    revisions: dict[str, str] = field(default_factory=dict)
    partial: dict[str, tuple[int, int]] = field(default_factory=dict)
    skipped: tuple[SkippedImage, ...] = ()
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeterRecord:
    """Measurements of the extraction of a subset's features, see `features.encode.Meter.describe`.

    `models` is the number of models that the images were read for at the same time. `joules_per_1000_images` is the
    energy by `cpu` and `gpu`, see `probe.energy`; energy that is not known has no entry. The energy of one model is not
    known if several models shared the pass over the images.
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
    joules_per_1000_images: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtractionRecord:
    """Extraction of the features.

    Args:
        from_cache: True if all features were cached.
        subsets: measurements of each subset.
        weights: digest of the weights in the keys of the cache, see `models.loading.identify`.
        extraction_version: `features.store.EXTRACTION_VERSION`; 1 in records that do not have it.
        preprocess_version: `models.preprocess.PREPROCESS_VERSION`; 1 in records that do not have it.
        supplied: origin of the features if they were supplied in a file; None if the suite extracted them.
    """

    from_cache: bool | None = None
    subsets: dict[str, MeterRecord] = field(default_factory=dict)
    weights: str | None = None
    extraction_version: int = 1
    preprocess_version: int = 1
    supplied: SuppliedRecord | None = None


@dataclass(frozen=True)
class IntervalRecord:
    """A 95 % confidence interval of a score, and its method, see `stats.intervals.Interval`."""

    low: Fraction
    high: Fraction
    method: str = ""


@dataclass(frozen=True)
class SweepRecord:
    """One value of C of a sweep: its score on the validation images, and fields of `probes.fits.Fit`."""

    C: float
    score: float
    n_iter: int
    converged: bool
    gradient_ratio: float | None = None
    objective: float | None = None
    suboptimality: float | None = None
    ended_early: bool = False


@dataclass(frozen=True)
class NeighboursRecord:
    """One number of neighbours, k, that k-NN tried: its score on the validation images."""

    k: int
    score: float


@dataclass(frozen=True)
class PackedArray:
    """An array of outcomes, encoded as text by `records.packing`."""

    dtype: str
    lowest: int
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True)
class PackedOutcomes:
    """Outcomes of n test images, encoded as text by `records.packing`."""

    metric: str
    n: int
    arrays: dict[str, PackedArray]


@dataclass(frozen=True)
class PackedClasses:
    """Numbers of test images of k classes, see `stats.per_class.ClassCounts`, encoded as text by `records.packing`.

    `counts` (2, k) has the number of images of each class and the number of right ones. `confusions` is (m, 3).
    """

    counts: PackedArray
    confusions: PackedArray


@dataclass(frozen=True)
class CalibrationScores:
    """Calibration of some logits on the test images, see `stats.calibration.Calibration`.

    `nll` is None if it is infinite. `bins` is (3, b): the number of answers of each bin, the number of hits, and the
    mean probability in millionths. A mean over folds or draws has no interval and no bins; it has their number.
    """

    nll: Annotated[float, Meta(ge=0)] | None
    brier: Annotated[float, Meta(ge=0, le=2)]
    ece: Fraction
    ece_low: Fraction | None = None
    ece_high: Fraction | None = None
    bins: PackedArray | None = None
    num_bins: Annotated[int, Meta(ge=1)] | None = None


@dataclass(frozen=True)
class CalibrationRecord:
    """Calibration of a probe on the test images.

    Args:
        before: scores of the logits.
        after: scores of the logits divided by `temperature`.
        temperature: the temperature that was fitted on the validation images; None if there is none, and if folds or
            draws have different temperatures.
        reasons: reasons why `after`, `temperature` or an NLL is missing.
    """

    before: CalibrationScores
    after: CalibrationScores | None = None
    temperature: Annotated[float, Meta(gt=0)] | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResultRecord:
    """A `ProbeResult` without its predictions.

    The results of single draws and folds have neither outcomes nor classes nor a calibration. In records of earlier
    versions, they have a calibration.

    `draw_sha256` is the digest of the images of a few-shot draw, see `probes.shots.Draw`; `seed` draws the same images
    again. `probe_version` is `probes.fit.PROBE_VERSION`; 1 in records that do not have it.

    If the protocol fits nothing, fields of the fit are None, 0 or empty, and `solver` is `specs.NO_SOLVER`.
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
    k: int | None = None
    k_sweep: tuple[NeighboursRecord, ...] = ()
    outcomes: tuple[PackedOutcomes, ...] = ()
    classes: tuple[PackedClasses, ...] = ()
    calibration: CalibrationRecord | None = None
    same_images: bool = True
    seed: int | None = None
    draw_sha256: str | None = None
    draws: tuple[ResultRecord, ...] = ()
    folds: tuple[ResultRecord, ...] = ()
    probe_version: int = 1


@dataclass(frozen=True)
class ErrorRecord:
    """The error that a run, or the scoring of a further test set, failed with."""

    type: str
    message: str


@dataclass(frozen=True)
class ConventionRecord:
    """Score on a further test set under one convention, with its interval and the outcomes of each fold or draw."""

    score: Fraction
    interval: IntervalRecord
    outcomes: tuple[PackedOutcomes, ...] = ()


@dataclass(frozen=True)
class FurtherTestRecord:
    """Scores of a probe on a further test set, or the error that prevented them.

    Args:
        name: name of the test set.
        error: the error; None if the test set was scored.
        split: its images.
        read: how its images were read, without class names.
        metric: metric of the scores, that of the dataset.
        num_classes: number of classes of the dataset that are right for some image.
        all_classes: scores of predictions among all classes of the dataset.
        own_classes: scores of predictions among these `num_classes` classes; None if they are all classes.
    """

    name: str
    error: ErrorRecord | None = None
    split: SplitRecord | None = None
    read: ReadRecord = field(default_factory=ReadRecord)
    metric: str = ""
    num_classes: int | None = None
    all_classes: ConventionRecord | None = None
    own_classes: ConventionRecord | None = None

    @property
    def is_whole(self) -> bool:
        """True if the test set was scored on all of its images."""
        return self.error is None and not (self.read.partial or self.read.skipped)


@dataclass(frozen=True)
class CleanRecord:
    """Clean score of a run: the score without test images that have the same pixels as a training or validation image.

    Args:
        score: the score; None if it is not defined on the remaining images.
        interval: its interval; None without a score.
        num_test: number of the remaining test images. If folds have different test images, it is the sum over folds.
        num_left_out: number of the test images that were left out.
        num_differing: number of these images for which an equal training or validation image has a different label.
        left_out: for each fold, or once if all folds have the same test images, the images that were left out: bits of
            the test images with features, in their order.
        reason: reason why there is no score; empty if there is one.
    """

    score: Fraction | None
    interval: IntervalRecord | None
    num_test: Count
    num_left_out: Count
    num_differing: Count
    left_out: tuple[PackedArray, ...]
    reason: str = ""


@dataclass(frozen=True)
class PromptsRecord:
    """The prompts of a zero-shot run.

    Args:
        templates: texts with `{}` in place of the class name.
        templates_from: their origin.
        class_names_from: origin of the class names.
        class_names_sha256: digest of the class names in the order of the labels.
        duplicates: class names that several classes share, which only `--allow-duplicate-names` permits.
        logit_scale: factor of the cosine similarities in the logits of the model.
        text_version: `features.text.TEXT_VERSION`.
    """

    templates: tuple[str, ...]
    templates_from: str
    class_names_from: str
    class_names_sha256: str
    duplicates: tuple[str, ...] = ()
    logit_scale: float = 1.0
    text_version: int = 1


@dataclass(frozen=True)
class ParityRecord:
    """Comparison of a JIT run with the eager run of the same grid.

    Args:
        max_abs_difference: largest absolute difference of the features at each feature point, over all splits; and,
            under `LOGITS`, of the test logits of a zero-shot run.
        predictions_flipped: number of test images with different predictions.
        p_value: p-value of the paired test of both scores.
        eager_score: score of the eager run, a fraction.
    """

    max_abs_difference: Annotated[dict[str, float], Meta(min_length=1)]
    predictions_flipped: int
    p_value: float | None = None
    eager_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """Fields that the records of completed and of failed runs share.

    Args:
        spec: the run.
        created: time of the end of the run, ISO 8601 in UTC.
        encoder: see `EncoderRecord`.
        read: see `ReadRecord`.
        splits: the images of `train`, `val` and `test`, or of `train/1` and so on if the dataset has several folds.
        features: the features of the same splits.
        seconds: wall time of `load`, `extract`, `fit` and, in a zero-shot run, `text`, the text features of the
            classes. `fit` is almost 0 for a JIT run with the same features as the eager run, because it reuses the
            eager run's probe. `tests` is the time of further test sets, with the extraction of features that `prepare`
            did not extract before. `clean` is the time of the clean score, with the digests of pixels if they are not
            cached.
        fit_joules: energy of the fit by `cpu` and `gpu`, see `probe.energy`; energy that is not known has no entry.
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
    fit_joules: dict[str, float] = field(default_factory=dict)
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
        """Mode of the encoder: `eager`, `jit` or `compiled`; `supplied` if the features were supplied in a file."""
        return self.spec.mode

    @property
    def precision(self) -> str:
        """Precision of the weights: `fp32`, `fp16` or `bf16`; for supplied features, as the user stated it."""
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
        """Precedence among records of one run: a complete result (2), a partial result (1), a failure (0)."""
        return 0 if self.status == FAILED else 1 if self.is_partial else 2

    @property
    def is_whole(self) -> bool:
        """True if the record is a result on all images of the dataset."""
        return self.rank == len(STATES) - 1

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """Names that identify a record: model, mode, dataset, protocol, precision, solver."""
        return (self.model, self.mode, self.dataset, self.protocol, self.precision, self.solver)

    @property
    def key_of_all_modes(self) -> tuple[str, ...]:
        """Names that identify the records of one probe in all modes: `key` without the mode."""
        return (self.model, self.dataset, self.protocol, self.precision, self.solver)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        return {"status": self.status, "result": None, "parity": None, "error": None, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class DoneRecord(BaseRecord):
    """Record of a run that has a score.

    `parity` compares a JIT run with the eager run of the same grid. `prompts` is None unless the run is zero-shot.
    `tests` has a record for each further test set of the run. `clean` is the clean score, if it was asked for.
    """

    result: ResultRecord
    tests: tuple[FurtherTestRecord, ...] = ()
    clean: CleanRecord | None = None
    parity: ParityRecord | None = None
    prompts: PromptsRecord | None = None

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
