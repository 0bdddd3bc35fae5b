"""Predictions of a head for new images: load its encoder, extract features, and rank the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe.datasets.images import OR_SKIP, ImageDataset
from probe.errors import DatasetError, HeadError
from probe.features.passes import BATCH_SIZE, extract_features
from probe.features.reading import LabelledImages
from probe.models import get_model, split_key
from probe.models.encoder import ImageEncoder
from probe.models.loading import identify, load_encoder
from probe.models.own import FORM
from probe.models.own_files import is_file
from probe.probes.heads import Head
from probe.specs import SUPPLIED
from probe.stats.top_classes import find_top


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Args:
        image: path or id of the image.
        label: label of the class with the highest probability.
        name: its name.
        probability: its probability, in [0, 1].
        top: names and probabilities of up to five classes, the most probable first.
    """

    image: str
    label: int
    name: str
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for images.

    Args:
        images: one prediction for each image that could be read, in their order.
        logits: float64 (n, k) of these images.
        skipped: images that could not be read, each with the error.
    """

    images: tuple[Prediction, ...]
    logits: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()


def load_encoder_of(
    head: Head,
    *,
    model: str | None = None,
    device: str = "auto",
    weights_dir: str | Path | None = None,
    offline: bool = False,
) -> ImageEncoder:
    """Load the encoder of a head, in the mode and precision of the head.

    Args:
        head: the head.
        model: a name that `get_model` accepts, for weights that are in another place now; None is the head's model. The
            name is needed if the model is Python code in a file, because a head alone does not run code.
        device: see `load_encoder`.
        weights_dir: folder of checkpoints; None is the default of `probe.paths`.
        offline: never use the network.

    Raises:
        HeadError: the head does not name its encoder, its file has moved, the encoder is Python code and `model` does
            not name it, or the weights are not those of the head.
        UnknownNameError, CheckpointError, DownloadError, DeviceError, ExtraMissingError: see `load_encoder`.
    """
    info = head.info
    spec = get_model(model) if model is not None else info.model
    if spec is None:
        raise HeadError("the head was fitted on a file of features and does not name its encoder; pass features to it")
    if spec.form == SUPPLIED:
        raise HeadError(
            f"the head was fitted on features of {spec.name}, which the suite cannot run; pass features to it"
        )
    if model is None and spec.form == "file" and not Path(split_key(spec.source)[0]).exists():
        raise HeadError(
            f"the head was fitted on features of {spec.source}, which is not there; give the place of these weights "
            "with --model, or as model= in Python"
        )
    if model is None and spec.form == FORM and is_file(spec):
        raise HeadError(
            f"the encoder of the head is Python code in {spec.source}; to run the code, give --model "
            f"{FORM}:{spec.source}, or model= in Python"
        )
    digest = identify(spec, weights_dir=weights_dir, offline=offline)
    encoder = load_encoder(
        spec,
        jit=info.mode == "jit",
        compiled=info.mode == "compiled",
        device=device,
        precision=info.precision,
        weights_dir=weights_dir,
        offline=offline,
    )
    head.check_encoder(encoder, digest)
    return encoder


def check_encoder_of(
    head: Head, encoder: ImageEncoder, *, weights_dir: str | Path | None = None, offline: bool = False
) -> None:
    """Check that an encoder is the encoder of a head.

    Raises:
        HeadError: the weights, the preprocessing, the mode, the precision or the width of the features differ.
        UnknownNameError, CheckpointError: the weights of the encoder are not known by its name.
    """
    weights = encoder.identity or encoder.weights_sha256
    if not encoder.identity and weights != head.info.weights:  # encoders of several files have a different digest
        weights = identify(get_model(encoder.name), weights_dir=weights_dir, offline=offline)
    head.check_encoder(encoder, weights)


def predict(
    head: Head, images: LabelledImages, encoder: ImageEncoder, *, ids: Sequence[str], batch_size: int = BATCH_SIZE
) -> Predictions:
    """Predict the classes of images. Images that cannot be read are skipped.

    Args:
        head: the head.
        images: the images; their labels are not used.
        encoder: the encoder of the head, see `load_encoder_of`.
        ids: path or id of each image.
        batch_size: images encoded at a time.

    Raises:
        DatasetError, FeaturesError: there are no images, none can be read, or a feature is not finite.
    """
    if not len(images):
        raise DatasetError("there are no images to predict; name at least one")
    features = extract_features(encoder, images, batch_size=batch_size, skip_corrupt=len(images))
    bad = {position for position, _ in features.skipped}
    good = [one for position, one in enumerate(ids) if position not in bad]
    logits = head.logits(features.at(head.info.protocol.feature_point))
    top = find_top(logits, head.conversion)  # class indices
    predictions = tuple(
        Prediction(
            image=one,
            label=head.info.labels[best[0]],
            name=head.class_name(best[0]),
            probability=row[0],
            top=tuple((head.class_name(k), probability) for k, probability in zip(best, row, strict=True)),
        )
        for one, row, best in zip(good, top.probabilities.tolist(), top.labels.tolist(), strict=True)
    )
    skipped = tuple((ids[position], message.replace(OR_SKIP, "")) for position, message in features.skipped)
    return Predictions(predictions, logits, skipped)


def share_right(head: Head, images: ImageDataset, found: Predictions) -> float | None:
    """Return the share of the predicted images of a dataset that are right, in [0, 1].

    Return None if `find_class_mismatch` returns a reason.

    Args:
        head: the head.
        images: the images, with their labels.
        found: their predictions.
    """
    if find_class_mismatch(head, images) or not found.images:
        return None
    labels = dict(zip(images.ids, images.labels.tolist(), strict=True))
    return float(np.mean([one.label == labels[one.image] for one in found.images]))


def find_class_mismatch(head: Head, images: ImageDataset) -> str:
    """Return the reason why predictions cannot be compared with the labels of a dataset; empty if they can.

    There is a reason if images of the dataset show several classes, if names of classes differ, or if the head has no
    names of classes and was fitted on a different dataset.
    """
    info, names, dataset = head.info, images.class_names, images.name.rpartition("/")[0]
    if images.labels.ndim == 2:
        return f"an image of {dataset} can show several classes"
    if not info.class_names:
        if dataset == info.dataset:
            return ""
        return f"the head has no class names and was fitted on {info.dataset or 'a file of features'}, not on {dataset}"
    for label, name in zip(info.labels, info.class_names, strict=True):
        if label >= len(names):
            return f"the head knows the label {label}, {name!r}, but {dataset} has only {len(names)} classes"
        if names[label] != name:
            return f"the label {label} is {name!r} in the head, but {names[label]!r} in {dataset}"
    return ""


def count_unknown(head: Head, images: ImageDataset, found: Predictions) -> int:
    """Return the number of predicted images whose class the head does not know, so that they cannot be right.

    Args:
        head: the head.
        images: the images, with one label each, of a dataset that `share_right` compares.
        found: their predictions.
    """
    labels = dict(zip(images.ids, images.labels.tolist(), strict=True))
    return sum(labels[one.image] not in head.info.labels for one in found.images)
