"""Files of predictions of a run: for its test split and for each further test set, fold by fold and draw by draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from probe.features.further_tests import FurtherTest
from probe.probes.fits import at_feature_point
from probe.probes.further_tests import FittedProbe, ScoredTest
from probe.records.prediction_files import PartPredictions, describe_predictions
from probe.records.schema import DoneRecord
from probe.specs import KNN


def describe_all_predictions(
    record: DoneRecord,
    probe: FittedProbe,
    ids: Sequence[Sequence[str]],
    tests: Sequence[ScoredTest],
    class_names: Sequence[str],
    *,
    with_logits: bool,
) -> dict[Path, bytes]:
    """Return the content of all files of predictions of a run, by path below the folder of predictions.

    Args:
        record: the record of the run.
        probe: its probe.
        ids: for each fold the ids of its test images.
        tests: its further test sets. A test set that could not be scored has no file.
        class_names: names in the order of the labels.
        with_logits: also write logits, unless the probe is k-NN.
    """
    labels = probe.result.find_head_labels() if with_logits else ()
    parts = _predict_test_split(probe, ids, with_logits=with_logits)
    files = dict([describe_predictions(record, parts, class_names, with_logits=with_logits, logit_labels=labels)])
    of_all = (tuple(range(len(class_names))),) * len(labels)
    for scored in tests:
        if scored.test is not None:
            parts, name = _predict_further_test(probe, scored, scored.test, with_logits=with_logits), scored.record.name
            path, content = describe_predictions(
                record, parts, class_names, with_logits=with_logits, logit_labels=of_all, test=name
            )
            files[path] = content
    return files


def _predict_test_split(
    probe: FittedProbe, ids: Sequence[Sequence[str]], *, with_logits: bool
) -> Iterator[PartPredictions]:
    """Yield the predictions for the test split. Results hold no logits, so logits are computed again."""
    start, result = 0, probe.result
    num_draws = len(result.tops) // len(probe.folds)
    for i, top in enumerate(result.tops):
        test = probe.folds[i // num_draws]["test"]
        logits = None
        if with_logits and result.heads:
            logits = result.heads[i].logits(at_feature_point(probe.rules, test))
        yield PartPredictions(ids[i // num_draws], test.y, result.predictions[start : start + len(top)], top, logits)
        start += len(top)


def _predict_further_test(
    probe: FittedProbe, scored: ScoredTest, test: FurtherTest, *, with_logits: bool
) -> Iterator[PartPredictions]:
    """Yield the predictions for a further test set, with logits of all classes of the dataset, computed again."""
    y = test.features.y
    scores = probe.scores(test.features) if with_logits and probe.rules.method != KNN else None
    for found in scored.predictions:
        yield PartPredictions(
            test.ids,
            scored.is_right[y],
            found.top.labels[:, 0],
            found.top,
            None if scores is None else next(scores),
            test_classes=[test.class_names[label] for label in y],
            own_predictions=found.own,
        )
