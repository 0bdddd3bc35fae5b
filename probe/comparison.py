"""Eager against JIT: the same images, texts and probe through both modes of a model, and how far they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe.datasets import get_dataset
from probe.datasets.folds import SPLITS
from probe.datasets.images import ImageDataset
from probe.datasets.opening import open_dataset
from probe.errors import CheckpointError
from probe.features import PRE_PROJECTION, PROJECTED, Features, extract
from probe.models import get_model
from probe.models.checkpoints import Checkpoint
from probe.models.consistency import ATOL, RTOL, softmax_of_logits
from probe.models.devices import Execution, resolve_execution
from probe.models.loading import as_encoder, has_jit_mode, open_model, read_weights
from probe.models.memory import find_batch_size
from probe.probes.fitting import fit_probe
from probe.probes.protocols import get_protocol
from probe.specs import DatasetSpec, ModelSpec, Protocol

NUM_PAIRS = 16  # images, and texts, whose logits are compared


@dataclass(frozen=True)
class Difference:
    """How far two arrays of features, (n, d), are apart; `min_cosine` is that of the worst pair of rows."""

    max_abs: float
    mean_abs: float
    min_cosine: float


@dataclass(frozen=True)
class Parity:
    """The outcome of a comparison.

    Args:
        features: for each feature point, over all images of all splits.
        softmax: largest difference between the softmax of both modes' logits, of each image over the texts and of each
            text over the images, in the order of `forward`.
        predictions_flipped: test images whose class changes when the probe fitted on eager features reads JIT ones.
        num_images: how many images were encoded.
        num_test: how many of them are in the test split.
        within_tolerance: whether the softmax agrees within atol 0.01 and rtol 0.1, the reference's tolerance.
    """

    model: str
    dataset: str
    protocol: str
    device: str
    precision: str
    features: Mapping[str, Difference]
    softmax: tuple[float, float]
    predictions_flipped: int
    num_images: int
    num_test: int
    within_tolerance: bool

    @property
    def identical(self) -> bool:
        """Whether no feature and no probability differs in any bit."""
        return max(d.max_abs for d in self.features.values()) == 0 and max(self.softmax) == 0

    @property
    def verdict(self) -> str:
        """`identical`, `within tolerance` or `outside tolerance`."""
        if self.identical:
            return "identical"
        return "within tolerance" if self.within_tolerance else "outside tolerance"


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Compare two float32 arrays (n, d), row by row; the cosine of equal rows is 1, of zeros to anything else 0."""
    apart = np.abs(a.astype(np.float64) - b)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    products = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    cosines = np.clip(products / np.where(lengths > 0, lengths, 1), -1, 1)
    cosines[apart.max(axis=1) == 0] = 1  # rather than one less the rounding of the product
    return Difference(float(apart.max()), float(apart.mean()), float(cosines.min()))


def compare_features(eager: Mapping[str, Features], jit: Mapping[str, Features]) -> dict[str, Difference]:
    """The differences at both feature points, over the images of all splits or parts."""
    return {
        point: difference(*(np.concatenate([mode[split].at(point) for split in eager]) for mode in (eager, jit)))
        for point in (PROJECTED, PRE_PROJECTION)
    }


def count_flips(eager: np.ndarray, jit: np.ndarray) -> int:
    """Images that are read differently: labels (n,), or rows of them (n, k)."""
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
    offline: bool = False,
) -> Parity:
    """Compare the eager and the JIT mode of a model.

    Args:
        model: a name of the catalogue, `random:NAME`, or the path of a TorchScript archive.
        dataset: whose images, of the first fold; their labels train the probe.
        protocol: of that probe.
        device: `auto` is CUDA where there is one, else the CPU.
        precision: `auto` is fp16 on CUDA, fp32 elsewhere.
        batch_size: images encoded at a time; None is what `models.memory` finds.
        data_dir: folder of datasets, see `probe.paths`.
        weights_dir: folder of checkpoints, likewise.
        offline: never touch the network.

    Raises:
        CheckpointError: the model is no archive and has no JIT mode.
        ProbeError: whatever else keeps it from being loaded or the dataset from being read.
    """
    spec = get_model(model)
    row = dataset if isinstance(dataset, DatasetSpec) else get_dataset(dataset)
    rules = get_protocol(protocol) if isinstance(protocol, str) else protocol
    modes = [resolve_execution(device, precision=precision, jit=jit) for jit in (False, True)]
    if batch_size is None:
        batch_size = find_batch_size(str(modes[0].device), spec.architecture)
    checkpoint = _read_archive(spec, weights_dir=weights_dir, offline=offline)
    opened = open_dataset(row, data_dir=data_dir, offline=offline)
    splits = {name: opened.split(name) for name in SPLITS}  # of the first fold
    eager, jit = (_run(spec, checkpoint, execution, splits, batch_size=batch_size) for execution in modes)
    pairs = list(zip(eager.softmax, jit.softmax, strict=True))
    per_image, per_text = (float(np.abs(a - b).max()) for a, b in pairs)
    return Parity(
        model=spec.name,
        dataset=row.name,
        protocol=rules.name,
        device=str(modes[0].device),
        precision=modes[0].precision,
        features=compare_features(eager.features, jit.features),
        softmax=(per_image, per_text),
        predictions_flipped=_count_flipped(eager.features, jit.features, metric=row.metric, protocol=rules),
        num_images=sum(len(part) for part in eager.features.values()),
        num_test=len(splits["test"]),
        within_tolerance=all(np.allclose(b, a, atol=ATOL, rtol=RTOL) for a, b in pairs),
    )


@dataclass(frozen=True)
class _Outcome:
    """What one mode gives: features of every split, and both softmaxes of `softmax_of_logits`."""

    features: Mapping[str, Features]
    softmax: tuple[np.ndarray, np.ndarray]


def _read_archive(spec: ModelSpec, *, weights_dir: str | Path | None, offline: bool) -> Checkpoint:
    checkpoint = None
    if spec.form != "open_clip":  # whose models have no archives
        checkpoint = read_weights(spec, weights_dir=weights_dir, offline=offline)
    if checkpoint is None or not has_jit_mode(checkpoint):
        raise CheckpointError(
            f"{spec.name} is no TorchScript archive and has no JIT mode; give an archive or random:NAME"
        )
    return checkpoint


def _run(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    execution: Execution,
    splits: Mapping[str, ImageDataset],
    *,
    batch_size: int,
) -> _Outcome:
    model = open_model(checkpoint, execution)
    # The logits first: as an encoder the model no longer projects.
    first = [splits["test"][i][0] for i in range(min(NUM_PAIRS, len(splits["test"])))]
    softmax = softmax_of_logits(model, checkpoint, execution, first)
    encoder = as_encoder(spec, checkpoint, model, execution)
    features = {name: extract(encoder, images, batch_size=batch_size) for name, images in splits.items()}
    return _Outcome(features, softmax)


def _count_flipped(
    eager: Mapping[str, Features], jit: Mapping[str, Features], *, metric: str, protocol: Protocol
) -> int:
    """One probe, fitted on eager features, reads the test images of both modes."""
    tests = [eager["test"], jit["test"]]
    both = Features(
        x=np.concatenate([f.x for f in tests]),
        y=np.concatenate([f.y for f in tests]),
        pre_projection=np.concatenate([f.at(PRE_PROJECTION) for f in tests]),
    )
    result = fit_probe(train=eager["train"], val=eager["val"], test=both, metric=metric, protocol=protocol)
    on_eager, on_jit = np.split(result.predictions, 2)
    return count_flips(on_eager, on_jit)
