"""Heads: the fitted weights of a run in a safetensors file, with all that is needed to use them on new images.

A file has the tensors `weight` (k, d) and `bias` (k,) and a JSON text with the fields of `HeadInfo`. Both tensors are
float32, or float64 if float32 would change the outcome of a test image, see `head_precision`. Reading a file runs no
code of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save as save_tensors

from probe.errors import HeadError, listed
from probe.models.encoder import ImageEncoder
from probe.probes.fits import Weights, normalized
from probe.probes.head_precision import round_weights
from probe.probes.result import ProbeResult
from probe.records.record import head_path, record_path, write_bytes
from probe.records.schema import DoneRecord, PreprocessRecord
from probe.specs import ZERO_SHOT, ModelSpec, Protocol
from probe.stats.metrics import takes_several_labels
from probe.stats.top_classes import SIGMOID, SOFTMAX, to_probabilities

if TYPE_CHECKING:
    from torch import nn

    from probe.datasets.images import Images
    from probe.features.arrays import Features
    from probe.probes.prediction import Predictions

HEAD_VERSION = 1
METADATA = "probe"  # key of the JSON text in the header of the file
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class HeadInfo:
    """Description of a head.

    Args:
        dataset: name of the dataset that it was fitted on.
        class_names: name of each class; empty if they are not known.
        labels: label of each class in the dataset.
        is_multi_label: True if an image can show several classes, each with a probability of its own.
        model: the encoder; None if only the features are known.
        weights: digest of the encoder's weights, see `models.loading.identify`.
        preprocess: preprocessing of the images.
        mode: mode of the encoder.
        precision: precision of its weights.
        protocol: the protocol. Its `feature_point` and `normalize` say which features the head takes.
        solver: the solver.
        C: inverse strength of the penalty; None if nothing was fitted.
        record: name of the file of the record; empty if there is none.
        created: time of the record, which tells the heads of repeated runs apart.
        part: number of the fold or few-shot draw, from 1 on, if the run has several; otherwise 0.
        version: version of this format.
    """

    dataset: str
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    is_multi_label: bool
    model: ModelSpec | None
    weights: str
    preprocess: PreprocessRecord | None
    mode: str
    precision: str
    protocol: Protocol
    solver: str
    C: float | None
    record: str = ""
    created: str = ""
    part: int = 0
    version: int = HEAD_VERSION


@dataclass(frozen=True, eq=False)
class Head:
    """Linear classifier on the features of an encoder.

    Args:
        weights: its weights.
        info: its description.
    """

    weights: Weights = field(repr=False)
    info: HeadInfo
    _encoders: dict[tuple[object, ...], ImageEncoder] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def num_features(self) -> int:
        """Number of features of an image."""
        return self.weights.weight.shape[1]

    def predict(
        self,
        images: Images,
        *,
        encoder: ImageEncoder | None = None,
        model: str | None = None,
        device: str = "auto",
        weights_dir: str | Path | None = None,
        offline: bool = False,
        batch_size: int | None = None,
    ) -> Predictions:
        """Predict the classes of images. Images that are missing or cannot be read are named in the result.

        Args:
            images: paths of images or folders, Pillow's images, one of these, or images from `open_split`.
            encoder: the encoder of the head, from `load_encoder`; None loads it at the first call.
            model: a name or path of the encoder, if its weights have moved; None is the model of the head.
            device: where the encoder runs, see `load_encoder`.
            weights_dir: folder of checkpoints; None is the default of `probe.paths`.
            offline: never use the network.
            batch_size: images encoded at a time; None is `passes.BATCH_SIZE`.

        Raises:
            HeadError: the encoder is not that of the head, is not named in the head, or has moved.
            DatasetMissingError: none of the paths exists.
            DatasetError: there are no images, or `images` is neither paths nor images.
            FeaturesError: no image can be read.
            CheckpointError, DownloadError, DeviceError, ExtraMissingError: see `load_encoder`.
        """
        from probe.datasets.images import open_images
        from probe.features.passes import BATCH_SIZE
        from probe.probes import prediction

        opened = open_images(images)
        if encoder is not None:
            prediction.check_encoder_of(self, encoder, weights_dir=weights_dir, offline=offline)
        else:
            key = (model, device, weights_dir, offline)
            encoder = self._encoders.get(key) or prediction.load_encoder_of(
                self, model=model, device=device, weights_dir=weights_dir, offline=offline
            )
            self._encoders[key] = encoder
        return prediction.predict(self, opened, encoder, ids=opened.ids, batch_size=batch_size or BATCH_SIZE)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return logits float64 (n, k) for features float32 (n, d) at the head's feature point.

        Features are divided by their length first if the protocol says so.

        Raises:
            HeadError: the features have another width.
        """
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise HeadError(
                f"the features have the shape {x.shape}, but the head takes (n, {self.num_features}); extract them at "
                f"{self.info.protocol.feature_point} with {self.model_name}"
            )
        return self.weights.logits(normalized(x) if self.info.protocol.normalize else x)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities float64 (n, k) of logits: of all classes together, or of each class by itself."""
        return to_probabilities(logits, self.conversion)

    @property
    def conversion(self) -> str:
        """How logits become probabilities, see `top_classes.to_probabilities`."""
        # Zero-shot logits have no threshold, so the classes of an image share its probability.
        return SIGMOID if self.info.is_multi_label and self.info.protocol.method != ZERO_SHOT else SOFTMAX

    @property
    def model_name(self) -> str:
        """Name of the encoder, for messages."""
        return "the encoder of the head" if self.info.model is None else self.info.model.name

    def class_name(self, index: int) -> str:
        """Return the name of a class, or its label if the head has no names."""
        return self.info.class_names[index] if self.info.class_names else str(self.info.labels[index])

    def check_encoder(self, encoder: ImageEncoder, weights: str) -> None:
        """Check that an encoder makes the features that the head was fitted on.

        Args:
            encoder: the encoder.
            weights: digest of its weights, see `models.loading.identify`.

        Raises:
            HeadError: the weights, the preprocessing, the mode, the precision or the width of the features differ.
        """
        if weights != self.info.weights:
            model = self.info.model
            if model is not None and (model.form, model.sha256) == ("module", encoder.weights_sha256):
                raise HeadError(
                    f"{encoder.name} has the weights of the head, but other code or preprocessing, or it runs in "
                    "another version of Python; use the encoder and the version of Python of the head"
                )
            raise HeadError(
                f"the head was fitted on features of {self.model_name} with weights {self.info.weights[:12]}, but "
                f"{encoder.name} has weights {weights[:12]}; use the encoder of the head"
            )
        own = PreprocessRecord(**encoder.preprocess.describe())
        if self.info.preprocess is not None and own != self.info.preprocess:
            pairs = [(one.name, getattr(self.info.preprocess, one.name), getattr(own, one.name)) for one in fields(own)]
            differing = [(name.replace("resize", "resizing"), a, b) for name, a, b in pairs if a != b]
            raise HeadError(
                "the head was fitted on images with another preprocessing: "
                f"{listed(f'{name} {_in_words(a)}' for name, a, _ in differing)}; {encoder.name} has "
                f"{listed(f'{name} {_in_words(b)}' for name, _, b in differing)}; use the encoder of the head"
            )
        info, execution = self.info, encoder.execution
        # Heads of files of features without a description have neither.
        wanted = (info.mode or execution.mode, info.precision or execution.precision)
        if wanted != (execution.mode, execution.precision):
            raise HeadError(
                f"the head was fitted on features of {self.model_name} in {wanted[0]} mode and {wanted[1]}, but "
                f"{encoder.name} is in {execution.mode} mode and {execution.precision}; load it in the mode and "
                "precision of the head"
            )
        is_projected = self.info.protocol.feature_point == "projected"
        width = encoder.embed_dim if is_projected else encoder.pre_projection_dim
        if width != self.num_features:
            raise HeadError(
                f"the head takes {self.num_features} features, but {encoder.name} makes {width} at "
                f"{self.info.protocol.feature_point}; use the encoder of the head"
            )

    def to_torch(self) -> nn.Linear:
        """Return the head as an fp32 `torch.nn.Linear` with d inputs and k outputs, the logits.

        If the protocol normalises, divide the features by their length before you pass them to the layer.
        """
        import torch

        layer = torch.nn.Linear(self.num_features, len(self.weights.bias))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weights.weight))
            layer.bias.copy_(torch.from_numpy(self.weights.bias))
        return layer.eval().requires_grad_(False)

    def to_bytes(self) -> bytes:
        """Return the content of the head's file, in float32 if the weights are exact in float32."""
        arrays = {"weight": self.weights.weight, "bias": self.weights.bias}
        with np.errstate(over="ignore"):  # an overflow is not exact
            rounded = {name: array.astype(np.float32) for name, array in arrays.items()}
        is_exact = all(np.array_equal(arrays[name], array) for name, array in rounded.items())
        tensors = {name: np.ascontiguousarray(array) for name, array in (rounded if is_exact else arrays).items()}
        return save_tensors(tensors, metadata={METADATA: json.dumps(asdict(self.info), sort_keys=True)})


def describe_heads(
    record: DoneRecord, result: ProbeResult, folds: Sequence[Mapping[str, Features]], class_names: Sequence[str]
) -> dict[Path, bytes]:
    """Return the content of the files of a run's heads, by path below the results folder; empty for k-NN.

    Args:
        record: the record of the run.
        result: its probe.
        folds: features of each fold, with `test`.
        class_names: names in the order of the labels.
    """
    spec = record.spec
    heads = {}
    fitted = [one for one in result.parts if one.heads]
    num_draws = len(fitted) // len(folds)
    for i, (one, labels) in enumerate(zip(fitted, result.find_head_labels(), strict=True)):
        part = i + 1 if len(fitted) > 1 else 0
        weights = round_weights(one, folds[i // num_draws]["test"], spec.protocol)
        has_names = len(class_names) > max(labels)
        info = HeadInfo(
            dataset=spec.dataset.name,
            class_names=tuple(class_names[label] for label in labels) if has_names else (),
            labels=labels,
            is_multi_label=takes_several_labels(spec.dataset.metric),
            model=spec.model,
            weights=record.extraction.weights or "",
            preprocess=record.encoder.preprocess,
            mode=spec.mode,
            precision=spec.precision,
            protocol=spec.protocol,
            solver=spec.solver,
            C=one.C,
            record=record_path(record, Path()).as_posix(),
            created=record.created,
            part=part,
        )
        heads[head_path(record, Path(), part)] = Head(weights, info).to_bytes()
    return heads


def write_heads(heads: Mapping[Path, bytes], results_dir: Path) -> None:
    """Write the heads of a run below a results folder.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    for path, content in heads.items():
        write_bytes(results_dir / path, content)


def _in_words(value: object) -> str:
    """Return a value of the preprocessing to read. Means and standard deviations have a number for each colour."""
    return " ".join(f"{number:.4g}" for number in value) if isinstance(value, tuple) else str(value)
