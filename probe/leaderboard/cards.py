"""Records -> the `model-index` of a model card, from which the Hugging Face hub shows results on a model's page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probe.errors import ResultsError, listed, printable
from probe.leaderboard.labels import METHOD_NAMES, short_names, solver_value
from probe.leaderboard.tables import status
from probe.records.record import dataset_slug
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import ZERO_SHOT

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

METRIC_TITLES = {
    "accuracy": "Accuracy",
    "top5": "Top-5 accuracy",
    "mean_top1_top5": "Mean of top-1 and top-5 accuracy",
    "mean_per_class": "Mean per-class recall",
    "roc_auc": "ROC AUC",
    "voc2007_11pt_map": "11-point mAP",
}


def model_index(records: Sequence[RunRecord]) -> str:
    """Return the block of YAML for the top of a card, between its lines of dashes. Scores are fractions.

    Args:
        records: of one model with the same weights, all with scores.

    Raises:
        ResultsError: the list is empty, the models or weights differ, or a run failed.
    """
    from huggingface_hub import ModelCardData

    models = sorted({record.model for record in records})
    if len(models) != 1:
        raise ResultsError(
            f"a card describes one model, but the records are of {listed(models) or 'none'}; give records of one"
        )
    done = []
    for record in records:
        if not isinstance(record, DoneRecord):
            raise ResultsError(f"{record.dataset} / {record.protocol} failed and has no score; leave it out")
        done.append(record)
    _check_weights(done)
    card = ModelCardData(model_name=short_names(models)[models[0]], eval_results=[_result(record) for record in done])
    return f"{card.to_yaml()}\n"


def _check_weights(records: Sequence[DoneRecord]) -> None:
    """Raise an error if a checkpoint changed between the runs: its card would mix the scores of two models."""
    runs: dict[str, str] = {}  # digest of weights -> a run with these weights; early versions recorded no digest
    for record in records:
        weights = record.encoder.weights_sha256
        if weights:
            runs.setdefault(weights, f"{record.dataset} / {record.protocol} has {weights[:12]}")
    if len(runs) > 1:
        raise ResultsError(
            f"the records of {records[0].model} have {len(runs)} different weights ({listed(runs.values())}); run "
            "all of them with the same checkpoint"
        )


def _result(record: DoneRecord) -> EvalResult:
    from huggingface_hub import EvalResult

    result, dataset, source = record.result, record.spec.dataset, record.read.source
    label = short_names([dataset.name])[dataset.name]
    how = {
        "protocol": printable(record.protocol),
        "feature_point": record.spec.protocol.feature_point,
        "solver": solver_value(record.solver),
        "mode": record.mode,
        "precision": record.precision,
        "C": result.C,
        "k": result.k,
        "templates": list(record.prompts.templates) if record.prompts is not None else None,
        "status": status(record),
        "interval_95": [result.interval.low, result.interval.high] if result.interval else None,
    }
    return EvalResult(
        task_type="zero-shot-image-classification"
        if record.spec.protocol.method == ZERO_SHOT
        else "image-classification",
        task_name=METHOD_NAMES[record.spec.protocol.method].task,
        # The hub knows data sets by its own names. Of local files, the card has the name, but not the path.
        dataset_type=source.location
        if source is not None and source.form == "huggingface" and not Path(source.location).is_absolute()
        else dataset_slug(dataset),
        dataset_name=printable(dataset.title) if dataset.title and label == dataset.name else label,
        dataset_split="test",
        metric_type=dataset.metric,
        metric_name=f"{METRIC_TITLES.get(dataset.metric, dataset.metric)} ({printable(record.protocol)})",
        metric_value=result.score,
        metric_args={name: value for name, value in how.items() if value is not None},
    )
