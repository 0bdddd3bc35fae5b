"""Parity of modes: a comparison of the eager and the JIT mode of a model on the same images, texts and probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe.datasets import get_dataset
from probe.datasets.opening import open_split
from probe.errors import CheckpointError, ProtocolError
from probe.features.arrays import PRE_PROJECTION, PROJECTED, Features
from probe.features.extraction import extract_grid
from probe.models import get_model
from probe.models.checkpoints import Checkpoint
from probe.models.consistency import ATOL, RTOL, softmax_of_logits
from probe.models.devices import Execution, resolve_execution
from probe.models.families import find_family
from probe.models.loading import has_jit_mode, open_model, read_weights
from probe.models.memory import find_batch_size
from probe.probes.fit import fit_probe
from probe.probes.protocols import get_protocol
from probe.settings import Settings
from probe.specs import ZERO_SHOT, DatasetSpec, ModelSpec, Protocol, RunSpec
from probe.stats import paired
from probe.stats.outcomes import Outcomes
from probe.stats.paired import SIGNIFICANT, PairedTest

NUM_PAIRS = 16  # images, and texts, whose logits are compared
# Smallest cosine of the features of an image in both modes that rounding explains, also for the deepest models.
# Different code, such as GELU instead of QuickGELU, gives smaller cosines.
MIN_COSINE = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.99}
MAX_FLIPS = 0.01  # share of test predictions; half precision flips some near the border of two classes


@dataclass(frozen=True)
class ModeDifference:
    """Difference of two arrays of features, (n, d); `min_cosine` is the smallest cosine of a pair of rows."""

    max_abs: float
    mean_abs: float
    min_cosine: float


@dataclass(frozen=True)
class Parity:
    """Result of comparing the eager and the JIT mode of a model.

    Args:
        features: difference of the features at each feature point, over all images of all splits.
        softmax: largest difference of the softmax of the logits, over the texts for each image and over the images for
            each text, in the order of `forward`.
        predictions_flipped: number of test images that a probe fitted on eager features classifies differently when it
            is given JIT features.
        num_images: number of encoded images.
        num_test: number of test images.
        scores: scores of the probe on eager and on JIT features, fractions.
        p_value: p-value of a paired test of both scores.
        converged: True if the fit of the probe converged.
        reasons: reasons why the modes do not agree, as sentences; empty if they agree, see `find_reasons`.
    """

    model: str
    dataset: str
    protocol: str
    device: str
    precision: str
    features: Mapping[str, ModeDifference]
    softmax: tuple[float, float]
    predictions_flipped: int
    num_images: int
    num_test: int
    scores: tuple[float, float]
    p_value: float
    converged: bool
    reasons: tuple[str, ...]

    @property
    def within_tolerance(self) -> bool:
        """True if the modes agree."""
        return not self.reasons

    @property
    def identical(self) -> bool:
        """True if all features and probabilities are identical to the last bit."""
        return max(d.max_abs for d in self.features.values()) == 0 and max(self.softmax) == 0

    @property
    def verdict(self) -> str:
        """Verdict: `identical`, `within tolerance` or `outside tolerance`."""
        if self.identical:
            return "identical"
        return "within tolerance" if self.within_tolerance else "outside tolerance"


def find_reasons(
    *,
    softmax_agrees: bool,
    features: Mapping[str, ModeDifference],
    precision: str,
    flips: tuple[int, int],
    test: PairedTest,
    converged: bool,
) -> tuple[str, ...]:
    """Return the reasons why two modes do not agree, as sentences.

    The modes agree if all of these conditions hold:

    - the softmax of the logits is within the tolerance of the reference;
    - the cosine of the features of each image in both modes is at least `MIN_COSINE`;
    - at most a share `MAX_FLIPS` of the predictions flips, or one prediction;
    - the scores do not differ significantly.

    Args:
        softmax_agrees: True if the softmax is within `ATOL` and `RTOL`.
        features: see `compare_features`.
        precision: precision of the weights.
        flips: number of predictions that flip, and number of predictions.
        test: paired test of the scores.
        converged: True if the fit of the probe converged.
    """
    reasons = []
    if not softmax_agrees:
        reasons.append(f"the softmax of the logits differs by more than atol {ATOL} and rtol {RTOL}")
    for point, difference in features.items():
        if difference.min_cosine < MIN_COSINE[precision]:
            least = MIN_COSINE[precision]
            reasons.append(f"{point} features of an image have a cosine of {difference.min_cosine:.6f}, below {least}")
    flipped, num_test = flips
    if flipped > max(1, MAX_FLIPS * num_test):
        reasons.append(f"{flipped} of {num_test} predictions flip, more than {MAX_FLIPS:.0%}")
    if test.p_value < SIGNIFICANT:
        reasons.append(f"the scores differ significantly, p = {test.p_value:.2g} by {test.method}")
    if flipped and reasons and not converged:
        reasons.append("the fit of the probe did not converge, which can cause flips")
    return tuple(reasons)


def difference(a: np.ndarray, b: np.ndarray) -> ModeDifference:
    """Compare two float32 arrays (n, d) row by row. The cosine of equal rows is 1; a row of zeros has the cosine 0."""
    apart = np.abs(a.astype(np.float64) - b)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    products = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    cosines = np.clip(products / np.where(lengths > 0, lengths, 1), -1, 1)
    cosines[apart.max(axis=1) == 0] = 1  # the product would round to slightly less
    return ModeDifference(float(apart.max()), float(apart.mean()), float(cosines.min()))


def compare_features(eager: Mapping[str, Features], jit: Mapping[str, Features]) -> dict[str, ModeDifference]:
    """Return the differences at both feature points, over the images of all splits or subsets."""
    return {
        point: difference(*(np.concatenate([mode[split].at(point) for split in eager]) for mode in (eager, jit)))
        for point in (PROJECTED, PRE_PROJECTION)
    }


def count_flips(eager: np.ndarray, jit: np.ndarray) -> int:
    """Return the number of images with different predictions, labels (n,) or rows of labels (n, k)."""
    return int((eager != jit).reshape(len(eager), -1).any(axis=1).sum())


def parity(
    model: str | Path,
    dataset: str | DatasetSpec = "digits",
    *,
    protocol: str | Protocol = "readme",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    data_dir: str | Path | None = None,
    weights_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Parity:
    """Compare the eager and the JIT mode of a model.

    Args:
        model: a name from the catalogue, `random:NAME`, or the path of a TorchScript archive.
        dataset: dataset whose first fold is used.
        protocol: protocol of the probe; its solver is the default.
        device: a device as torch names it; `auto` is CUDA if available, and else the CPU.
        precision: precision of the weights; `auto` is fp16 on CUDA and else fp32.
        batch_size: number of images encoded at a time; None chooses the number that fits into memory.
        data_dir: folder of datasets; None is the default of `probe.paths`, as for the other folders.
        weights_dir: folder of checkpoints.
        cache_dir: folder of cached features. Cached features are not extracted again.
        offline: do not use the network.

    Raises:
        CheckpointError: the model has no JIT mode, because it is not a TorchScript archive.
        ProtocolError: the protocol is zero-shot.
        ProbeError: the model cannot be loaded, or the dataset cannot be read.
    """
    spec = get_model(model)
    row = dataset if isinstance(dataset, DatasetSpec) else get_dataset(dataset)
    rules = get_protocol(protocol) if isinstance(protocol, str) else protocol
    if rules.method == ZERO_SHOT:
        raise ProtocolError(
            f"protocol {rules.name!r} fits no probe; compare its modes with `probe run --jit both` or probe.run"
        )
    modes = [resolve_execution(device, precision=precision, jit=jit) for jit in (False, True)]
    if batch_size is None:
        batch_size = find_batch_size(str(modes[0].device), spec.architecture)
    checkpoint = _read_archive(spec, weights_dir=weights_dir, offline=offline)
    test = open_split(row, "test", data_dir=data_dir, offline=offline)  # of the first fold
    images = [test[i][0] for i in range(min(NUM_PAIRS, len(test)))]
    softmax = [
        softmax_of_logits(open_model(checkpoint, execution), checkpoint, execution, images) for execution in modes
    ]
    del checkpoint  # extraction loads its own
    per_image, per_text = (np.stack(pair) for pair in zip(*softmax, strict=True))
    settings = Settings(data_dir=data_dir, weights_dir=weights_dir, cache_dir=cache_dir, offline=offline)
    eager, jit = _extract([_spec(row, spec, rules, execution, batch_size) for execution in modes], settings)
    features = compare_features(eager, jit)
    probe = _fit_on_eager(eager, jit, metric=row.metric, protocol=rules)
    return Parity(
        model=spec.name,
        dataset=row.name,
        protocol=rules.name,
        device=str(modes[0].device),
        precision=modes[0].precision,
        features=features,
        softmax=(float(np.ptp(per_image, axis=0).max()), float(np.ptp(per_text, axis=0).max())),
        predictions_flipped=probe.flipped,
        num_images=sum(len(part) for part in eager.values()),
        num_test=len(eager["test"]),
        scores=probe.scores,
        p_value=probe.test.p_value,
        converged=probe.converged,
        reasons=find_reasons(
            softmax_agrees=all(np.allclose(b, a, atol=ATOL, rtol=RTOL) for a, b in (per_image, per_text)),
            features=features,
            precision=modes[0].precision,
            flips=(probe.flipped, len(eager["test"])),
            test=probe.test,
            converged=probe.converged,
        ),
    )


def _spec(dataset: DatasetSpec, model: ModelSpec, protocol: Protocol, execution: Execution, batch_size: int) -> RunSpec:
    device, precision = str(execution.device), execution.precision
    return RunSpec(dataset, model, protocol, execution.jit, device, precision, batch_size)


def _read_archive(spec: ModelSpec, *, weights_dir: str | Path | None, offline: bool) -> Checkpoint:
    checkpoint = None
    if find_family(spec.form) is None:  # only CLIP checkpoints can be archives
        checkpoint = read_weights(spec, weights_dir=weights_dir, offline=offline)
    if checkpoint is None or not has_jit_mode(checkpoint):
        raise CheckpointError(
            f"{spec.name} is not a TorchScript archive, so it has no JIT mode; give an archive or random:NAME"
        )
    return checkpoint


def _extract(specs: Sequence[RunSpec], settings: Settings) -> list[dict[str, Features]]:
    """Return the features of the splits of the first fold for each mode, from the cache if possible."""
    by_mode = {}
    for spec, outcome in extract_grid(specs, settings):
        if isinstance(outcome, Exception):
            raise outcome
        by_mode[spec.jit] = outcome.cut()[0]
    return [by_mode[spec.jit] for spec in specs]


@dataclass(frozen=True)
class _Pair:
    """Comparison of one probe on the test images in both modes; fields as in `Parity`."""

    flipped: int
    scores: tuple[float, float]
    test: PairedTest
    converged: bool


def _fit_on_eager(
    eager: Mapping[str, Features], jit: Mapping[str, Features], *, metric: str, protocol: Protocol
) -> _Pair:
    """Fit a probe on eager features, and score the test images in both modes."""
    tests = [eager["test"], jit["test"]]
    both = Features(
        x=np.concatenate([f.x for f in tests]),
        y=np.concatenate([f.y for f in tests]),
        pre_projection=np.concatenate([f.at(PRE_PROJECTION) for f in tests]),
    )
    result = fit_probe(train=eager["train"], val=eager["val"], test=both, metric=metric, protocol=protocol)
    # If the protocol has few-shot draws, only the first is compared.
    arrays, n = result.outcomes[0].arrays, len(eager["test"])
    on_eager, on_jit = (
        Outcomes(metric, {name: array[rows] for name, array in arrays.items()})
        for rows in (slice(None, n), slice(n, None))
    )
    flipped = count_flips(*np.split(result.predictions[: 2 * n], 2))
    return _Pair(flipped, (on_eager.score(), on_jit.score()), paired.compare([on_eager], [on_jit]), result.converged)
