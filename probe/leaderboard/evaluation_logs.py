"""Records of one model -> JSON in the format of Every Eval Ever, a public collection of evaluation results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from probe.environment import DISTRIBUTION
from probe.hub import is_repository
from probe.leaderboard.cards import METRIC_TITLES, conditions, dataset_label, find_repository, one_model
from probe.leaderboard.labels import METHOD_NAMES
from probe.models.open_clip_config import HUB, LOCAL
from probe.records.record import record_path
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import ModelSpec, slug

SCHEMA_VERSION = "0.3.0"  # of the package `every-eval-ever`, September 2026
NOT_KNOWN = "unknown"
# First part of a model's id, by the form of the model. Other forms have the name of a library.
DEVELOPERS = {"url": "openai", "embedded": DISTRIBUTION, "random": DISTRIBUTION}


def evaluation_log(records: Sequence[RunRecord]) -> str:
    """Return one JSON document for all records. Scores are fractions.

    A record knows neither the organization that ran it nor its relationship to the model's developer, so
    `source_organization_name` is `unknown` and `evaluator_relationship` is `other`. `retrieved_timestamp` is the end of
    the last run.

    Args:
        records: records of one model with the same weights, all with scores.

    Raises:
        ResultsError: the list is empty, the models or weights differ, or a run failed.

    Source: eval.schema.json of the package `every-eval-ever`; arXiv:2606.14516
    """
    label, done = one_model(records)
    spec, ended = done[0].spec.model, str(int(max(datetime.fromisoformat(one.created).timestamp() for one in done)))
    versions = sorted({one.environment.packages.get("probe") or NOT_KNOWN for one in done})
    model_id = _model_id(spec, label)
    document = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{DISTRIBUTION}/{model_id}/{ended}",
        "retrieved_timestamp": ended,
        "source_metadata": {
            "source_name": DISTRIBUTION,
            "source_type": "evaluation_run",
            "source_organization_name": NOT_KNOWN,
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": DISTRIBUTION, "version": ", ".join(versions)},
        "model_info": {
            "name": label,
            "id": model_id,
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights" if _is_open(spec) else NOT_KNOWN,
                "weights_sha256": next((one.encoder.weights_sha256 for one in done if one.encoder.weights_sha256), ""),
            },
        },
        "evaluation_results": [_result(record) for record in done],
    }
    return json.dumps(document, indent=2) + "\n"


def _model_id(spec: ModelSpec, label: str) -> str:
    """Return the id of a model: its repository on the hub, or DEVELOPER/NAME, or for a local file only a name."""
    if repository := _find_repository(spec):
        return repository
    if spec.form == "file":
        return slug(label)
    if spec.form in DEVELOPERS:
        return f"{DEVELOPERS[spec.form]}/{slug(label)}"
    return f"{spec.form}/{slug(label.removeprefix(f'{spec.form}:'))}"


def _find_repository(spec: ModelSpec) -> str:
    """Return the repository of a model on the hub, `ORG/NAME`; empty if the weights come from another place."""
    if spec.form == "hf":
        return spec.source
    written = spec.source.partition("?")[0]
    if spec.form == "open_clip" and written.startswith(HUB):
        return written.removeprefix(HUB)
    return written if spec.form == "transformers" and is_repository(written) else ""


def _is_open(spec: ModelSpec) -> bool:
    """Return True if everybody can get the weights. The weights of a user's files and modules may be secret."""
    if spec.form == "timm":  # the source is `ARCH.TAG`, with a slash only before the path of a checkpoint
        return spec.seed is None and "/" not in spec.source
    if spec.form == "open_clip" and not spec.source.startswith((HUB, LOCAL)):  # `ARCH/TAG` or `ARCH/PATH`
        return spec.source.count("/") == 1 and "\\" not in spec.source
    return spec.form in ("url", "embedded") or _find_repository(spec) != ""


def _result(record: DoneRecord) -> dict[str, Any]:
    result, dataset, name = record.result, record.spec.dataset, dataset_label(record)
    how = {key: value for key, value in conditions(record).items() if key != "interval_95"}
    uncertainty: dict[str, Any] = {"num_samples": result.num_test}
    if (around := result.interval) is not None:
        ends = {"lower": around.low, "upper": around.high, "confidence_level": 0.95}
        uncertainty["confidence_interval"] = {**ends, "method": around.method or NOT_KNOWN}
    return {
        "evaluation_result_id": record_path(record, Path()).as_posix(),
        "evaluation_name": f"{name}, {how['protocol']}",
        "source_data": _source(record, name),
        "evaluation_timestamp": record.created,
        "metric_config": {
            "evaluation_description": f"{METHOD_NAMES[record.spec.protocol.method].task}, scored on the test split",
            "metric_id": dataset.metric,
            "metric_name": METRIC_TITLES.get(dataset.metric, dataset.metric),
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
        },
        "score_details": {
            "score": result.score,
            "details": {key: value if isinstance(value, str) else json.dumps(value) for key, value in how.items()},
            "uncertainty": uncertainty,
        },
    }


def _source(record: DoneRecord, name: str) -> dict[str, Any]:
    """Return the dataset: its repository on the hub, or the address of its makers, or only its name."""
    dataset, source = record.spec.dataset, find_repository(record)
    details = {"test_images_sha256": record.splits["test"].sha256} if "test" in record.splits else {}
    found: dict[str, Any] = {"dataset_name": name}
    if source is not None:
        found |= {"source_type": "hf_dataset", "hf_repo": source.location, "hf_split": "test"}
        found["samples_number"] = record.result.num_test
    elif dataset.homepage:
        found |= {"source_type": "url", "url": [dataset.homepage]}
    else:
        found["source_type"] = "other"
    return {**found, "additional_details": details}
