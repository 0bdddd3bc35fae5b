"""Zero-shot classification: the logit of an image and a class is their cosine similarity, times the model's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probe.features.arrays import Features
from probe.features.text import Classifier
from probe.probes.calibration import calibrate
from probe.probes.fit_checks import check_metric
from probe.probes.fits import ROWS, Weights, normalized
from probe.probes.result import ProbeResult, have_same_images, make_result, mean_result
from probe.specs import NO_SOLVER
from probe.stats.top_classes import SOFTMAX


def text_weights(classifier: Classifier) -> Weights:
    """Return the weights of k classes for normalised image features: text features times the scale, and the bias."""
    weight = classifier.weights.astype(np.float64) * classifier.logit_scale
    return Weights(weight, np.full(len(weight), classifier.logit_bias))


def zero_shot_logits(x: np.ndarray, classifier: Classifier) -> np.ndarray:
    """Return the logits of a model for images and classes, float64 (n, k).

    Args:
        x: float32 (n, d), projected features.
        classifier: the text features of the k classes.
    """
    return text_weights(classifier).logits(normalized(x))


NO_TEMPERATURE = "no temperature: zero-shot keeps the scale of the model and reads no validation images"


def largest_logit_difference(
    runs: Sequence[Sequence[Mapping[str, Features]]], classifiers: Sequence[Classifier]
) -> float:
    """Return the largest absolute difference of the test logits of two modes of a model.

    Args:
        runs: features of the split `test` of each fold, in each mode.
        classifiers: the texts of the classes, in each mode.
    """
    largest = 0.0
    for folds in zip(*runs, strict=True):
        for start in range(0, len(folds[0]["test"]), ROWS):  # in blocks, to save memory
            a, b = (
                zero_shot_logits(fold["test"].x[start : start + ROWS], classifier)
                for fold, classifier in zip(folds, classifiers, strict=True)
            )
            largest = max(largest, float(np.abs(a - b).max()))
    return largest


def score_zero_shot(
    folds: Sequence[Mapping[str, Features]],
    classifier: Classifier,
    *,
    metric: str = "accuracy",
    finds_top: bool = False,
) -> ProbeResult:
    """Score the test split of each fold zero-shot, and return the mean result. Nothing is fitted or chosen.

    Args:
        folds: features of the split `test`; other splits are not used.
        classifier: the texts of the classes.
        metric: a name of `metrics.METRICS`. ROC AUC ranks images by the logit of the second class minus that of the
            first. Average precision ranks the images of each class by its logit.
        finds_top: if True, the result has the most probable classes of each test image, by the softmax of the logits.

    Raises:
        ProtocolError: the metric does not suit the labels.
    """
    results, weights = [], text_weights(classifier)
    for fold in folds:
        test = fold["test"]
        num_classes = len(classifier.weights)
        check_metric(metric, num_classes=num_classes, scored={"test": test.y})
        logits = weights.logits(normalized(test.x))
        predictions = logits.argmax(axis=1)
        if test.y.ndim == 2:  # there is no threshold, so only the first class of an image is predicted
            predictions = np.eye(num_classes, dtype=np.int64)[predictions]
        results.append(
            make_result(
                metric,
                test.y,
                logits,
                predictions=predictions,
                C=None,
                num_train=0,
                solver=NO_SOLVER,
                calibration=calibrate(test.y, logits, reason=NO_TEMPERATURE),
                heads=(weights,),
                top=SOFTMAX if finds_top else "",
            )
        )
    return mean_result(results, same_images=have_same_images(folds))
