"""Predictions of a head for new images: load its encoder, extract features, and rank the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe.errors import HeadError
from probe.features.passes import BATCH_SIZE, extract_features
from probe.features.reading import LabelledImages
from probe.models import get_model
from probe.models.encoder import ImageEncoder
from probe.models.loading import identify, load_encoder
from probe.probes.heads import Head

TOP = 5  # classes of a prediction


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


@dataclass(frozen=True)
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
        model: a name that `get_model` accepts, for weights that are in another place now; None is the head's model.
        device: see `load_encoder`.
        weights_dir: folder of checkpoints; None is the default of `probe.paths`.
        offline: never use the network.

    Raises:
        HeadError: the head does not name its encoder, or the weights are not those of the head.
        UnknownNameError, CheckpointError, DownloadError, DeviceError, ExtraMissingError: see `load_encoder`.
    """
    info = head.info
    spec = get_model(model) if model is not None else info.model
    if spec is None:
        raise HeadError("the head was fitted on a file of features and does not name its encoder; pass features to it")
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
        DatasetError, FeaturesError: no image can be read, or a feature is not finite.
    """
    features = extract_features(encoder, images, batch_size=batch_size, skip_corrupt=len(images))
    bad = {position for position, _ in features.skipped}
    good = [one for position, one in enumerate(ids) if position not in bad]
    logits = head.logits(features.at(head.info.protocol.feature_point))
    probabilities = head.probabilities(logits)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    predictions = tuple(
        Prediction(
            image=one,
            label=head.info.labels[best[0]],
            name=head.class_name(best[0]),
            probability=float(row[best[0]]),
            top=tuple((head.class_name(k), float(row[k])) for k in best),
        )
        for one, row, best in zip(good, probabilities, order.tolist(), strict=True)
    )
    return Predictions(predictions, logits, tuple((ids[position], message) for position, message in features.skipped))
