"""Records of one model -> texts from which the Hugging Face hub shows results on a model's page.

`model-index` is the older form, at the top of a model card. Files in `.eval_results` are the newer form. The format of
Every Eval Ever is in `evaluation_logs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probe.errors import ResultsError, listed, printable
from probe.hub import is_repository
from probe.leaderboard.labels import METHOD_NAMES, short_names, solver_value
from probe.leaderboard.tables import status
from probe.records.record import dataset_slug
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import ZERO_SHOT, Source

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

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

    label, done = one_model(records)
    card = ModelCardData(model_name=label, eval_results=[_result(record) for record in done])
    return f"{card.to_yaml()}\n"


def eval_results(records: Sequence[RunRecord]) -> str:
    """Return YAML for a file in the folder `.eval_results` of a model's repository. Scores are fractions.

    The dataset is the repository that the images came from, or else the first repository among the sources of the
    dataset. `task_id` is `default`, because a record does not know the tasks of a benchmark.

    Args:
        records: records of one model with the same weights, all with scores, on datasets that the hub has.

    Raises:
        ResultsError: as `model_index`, or a dataset has no repository on the hub.

    Source: https://huggingface.co/docs/hub/eval-results
    """
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    _, done = one_model(records)
    plain = eval_result_entries_to_yaml([_entry(record) for record in done])
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=math.inf))


def one_model(records: Sequence[RunRecord]) -> tuple[str, list[DoneRecord]]:
    """Return the label of the model of some records, and the records.

    Raises:
        ResultsError: the list is empty, the models or weights differ, or a run failed.
    """
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
    return short_names(models)[models[0]], done


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


def conditions(record: DoneRecord) -> dict[str, Any]:
    """Return the conditions of a score by name, without conditions that its run does not have."""
    result = record.result
    values = {
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
    return {name: value for name, value in values.items() if value is not None}


def find_repository(record: DoneRecord) -> Source | None:
    """Return the source of a record's dataset that is a repository of the Hugging Face hub, or None.

    The source that the images came from has precedence, and repositories of the hub's own format come before shards.
    """
    sources = (record.read.source, *record.spec.dataset.sources)
    found = [source for source in sources if source is not None and _is_on_hub(source)]
    return min(found, key=lambda source: source.form != "huggingface", default=None)


def _is_on_hub(source: Source) -> bool:
    """Return True if a source is a repository of the Hugging Face hub, and not a local folder or an address."""
    return source.form in ("huggingface", "webdataset") and is_repository(source.location)


def dataset_label(record: DoneRecord) -> str:
    """Return the title of a record's dataset, or the name of a local dataset without its folder."""
    dataset = record.spec.dataset
    label = short_names([dataset.name])[dataset.name]
    return printable(dataset.title) if dataset.title and label == dataset.name else label


def _entry(record: DoneRecord) -> EvalResultEntry:
    from huggingface_hub import EvalResultEntry

    source, commits = find_repository(record), set(record.read.revisions.values())
    if source is None:
        (label,) = short_names([record.dataset]).values()
        raise ResultsError(
            f"{label} has no repository on the Hugging Face hub, and .eval_results names only such datasets; leave "
            f"{label} / {printable(record.protocol)} out, or use --format model-index"
        )
    how = conditions(record)
    texts = [f"{name} {_text(value)}" for name, value in how.items() if name not in ("interval_95", "templates")]
    if record.result.interval is not None:
        texts.append(f"95 % confidence interval {' to '.join(f'{end:.4f}' for end in how['interval_95'])}")
    metric = METRIC_TITLES.get(record.spec.dataset.metric, record.spec.dataset.metric)
    return EvalResultEntry(
        dataset_id=source.location,
        task_id="default",
        value=record.result.score,
        dataset_revision=commits.pop() if source == record.read.source and len(commits) == 1 else None,
        date=record.created,
        notes=f"{METHOD_NAMES[record.spec.protocol.method].task}, {metric}: {', '.join(texts)}",
    )


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _result(record: DoneRecord) -> EvalResult:
    from huggingface_hub import EvalResult

    dataset, source = record.spec.dataset, record.read.source
    return EvalResult(
        task_type="zero-shot-image-classification"
        if record.spec.protocol.method == ZERO_SHOT
        else "image-classification",
        task_name=METHOD_NAMES[record.spec.protocol.method].task,
        # The hub knows data sets by its own names. Of local files, the card has the name, but not the path.
        dataset_type=source.location if source is not None and _is_on_hub(source) else dataset_slug(dataset),
        dataset_name=dataset_label(record),
        dataset_split="test",
        metric_type=dataset.metric,
        metric_name=f"{METRIC_TITLES.get(dataset.metric, dataset.metric)} ({printable(record.protocol)})",
        metric_value=record.result.score,
        metric_args=conditions(record),
    )
