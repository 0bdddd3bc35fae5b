"""Statements of a user about features that were supplied in a file. The suite cannot check the statements."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from probe.decoder import decode_strictly, with_advice
from probe.errors import FeaturesError, summarize

PREFIX = "supplied:"  # of the names of models in records
UNSTATED = "unstated"  # precision in records whose user does not state one
NEEDED = "give dataset and model in the file of --about"


@dataclass(frozen=True)
class AboutFeatures:
    """Statements of a user about supplied features, from a TOML file.

    Args:
        dataset: name of the dataset; a name of the catalogue if it is that dataset.
        model: name of the encoder.
        metric: metric of the scores; empty for the metric of the dataset in the catalogue, or else accuracy.
        feature_point: where the features were taken, if the file has features of one point only; empty for `projected`.
        precision: precision of the encoder, such as `fp16`.
        weights_sha256: SHA-256 of the weights of the encoder.
        license: licence of the encoder.
        homepage: address of the encoder.
        preprocessing: preprocessing of the images.
        class_names: names of the classes in the order of the labels, if the labels are integers.
        notes: anything else that a reader of the score should know.
    """

    dataset: str
    model: str
    metric: str = ""
    feature_point: Literal["", "projected", "pre_projection"] = ""
    precision: str = ""
    weights_sha256: str = ""
    license: str = ""
    homepage: str = ""
    preprocessing: str = ""
    class_names: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class SuppliedRecord:
    """Origin of supplied features: the file, and how validation images were held out of the training images, if any.

    Args:
        about: statements of the user.
        file: name of the file or folder, without the folders above it; empty if the features were arrays in Python.
        val_fraction: share of the training images of each class that was held out; None if the file has `val`, or the
            protocol needs none.
        seed: seed of this choice.
    """

    about: AboutFeatures
    file: str = ""
    val_fraction: float | None = None
    seed: int = 0


def read_about(path: str | Path) -> dict[str, Any]:
    """Return the plain values of a TOML file about features.

    Raises:
        FeaturesError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as err:
        raise FeaturesError(f"cannot read {path} ({err.strerror or err}); give a TOML file about the features") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise FeaturesError(f"{path} is not valid TOML ({summarize(err)}); correct it") from err


def decode_about(plain: Mapping[str, Any], *, where: str) -> AboutFeatures:
    """Return checked statements about features; `where` is their origin, for messages.

    Raises:
        FeaturesError: the dataset or the model is missing, a key is unknown, or a value is invalid.
    """
    try:
        about = decode_strictly(dict(plain), AboutFeatures)
    except ValueError as err:
        raise FeaturesError(f"{where}: {with_advice(err, NEEDED)}") from err
    for name in ("dataset", "model"):
        if not getattr(about, name).strip():
            raise FeaturesError(f"{where}: {name} is an empty text; {NEEDED}")
    if about.weights_sha256 and not re.fullmatch(r"[0-9a-f]{64}", about.weights_sha256):
        raise FeaturesError(
            f"{where}: weights_sha256 is {about.weights_sha256!r}; give the 64 hexadecimal digits of a SHA-256"
        )
    if len(set(about.class_names)) < len(about.class_names) or not all(name.strip() for name in about.class_names):
        raise FeaturesError(f"{where}: class_names has an empty or repeated name; name each class")
    return about
