"""Heads of probes on supplied features, see `probe.supplied`."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from probe.decoder import decode
from probe.errors import HeadError, ProbeError, summarize
from probe.models import get_model
from probe.probes.head_precision import round_weights
from probe.probes.heads import Head, HeadInfo
from probe.probes.result import ProbeResult
from probe.records.supplied import PREFIX, AboutFeatures
from probe.specs import KNN, SUPPLIED, ModelSpec, Protocol, canonical_json

if TYPE_CHECKING:
    from probe.features.arrays import Features
    from probe.features.files import FeatureFile


def check_single_fit(protocol: Protocol, num_folds: int) -> None:
    """Check that a probe on a file of features has one head.

    Raises:
        HeadError: the protocol fits nothing, or there are several draws or folds.
    """
    num = num_folds * (protocol.num_seeds if protocol.shots else 1)
    if protocol.method == KNN or num > 1:
        what = "has no weights" if protocol.method == KNN else f"has {num} heads, one for each fold or draw"
        raise HeadError(f"a probe by the protocol {protocol.name} {what}; use a protocol with a single fit")


def describe_head_of_file(
    content: FeatureFile,
    result: ProbeResult,
    protocol: Protocol,
    test: Features,
    *,
    said: AboutFeatures | None = None,
) -> Head:
    """Return the head of a probe that was fitted on a file of features.

    Args:
        content: the features of the file, with the description in it, see `Extraction.about`.
        result: the probe, of one fold and a protocol that `check_single_fit` accepts.
        protocol: its protocol.
        test: the test images that the probe was scored on.
        said: statements of the user, which replace the description. A model that the description does not name is an
            encoder of supplied features, as in records.

    Raises:
        HeadError: the description is damaged.
    """
    weights, about = round_weights(result, test, protocol), content.about
    labels = result.label_values or tuple(range(len(weights.bias)))
    read, encoder = about.get("read") or {}, about.get("encoder") or {}
    stated = said.class_names if said is not None else ()
    names = content.class_names or stated or read.get("class_names") or ()
    info = {
        "dataset": about.get("dataset", ""),
        "class_names": [names[label] for label in labels] if len(names) > max(labels) else (),
        "labels": labels,
        "is_multi_label": test.y.ndim == 2,
        "model": None,
        "weights": about.get("weights") or "",
        "preprocess": encoder.get("preprocess"),
        "mode": about.get("mode", ""),
        "precision": about.get("precision", ""),
        "protocol": protocol,
        "solver": result.solver,
        "C": result.C,
    }
    try:
        with suppress(ProbeError):  # a file that has moved; `predict --model` names its place
            info["model"] = get_model(about["model"]) if about.get("model") else None
        if said is not None:
            info |= {"dataset": said.dataset, "precision": said.precision}
            if said.model != about.get("model"):
                own = ModelSpec(f"{PREFIX}{said.model}", SUPPLIED, "", license=said.license)
                info |= {"model": own, "weights": said.weights_sha256, "preprocess": None, "mode": ""}
        return Head(weights, decode(json.loads(canonical_json(info)), HeadInfo))
    except (ValueError, TypeError) as err:
        raise HeadError(f"the description in the file of features is damaged ({summarize(err)})") from err
