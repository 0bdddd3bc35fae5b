"""Both conventions of further test sets, by hand: the features of an image are the scores of the classes."""

import numpy as np
import pytest

from probe.errors import ProtocolError
from probe.features.arrays import Features
from probe.probes.fit import fit_folds
from probe.probes.further_tests import FittedProbe, score_conventions
from probe.records.packing import unpack
from probe.specs import Protocol

RULES = Protocol("plain", "plain", "projected", (100.0,))


def features(rows, y):
    return Features(np.array(rows, np.float32), np.array(y, np.int64))


def fit(labels, num_classes, rules=RULES):
    """Fit on images that are unit vectors of their classes."""
    axes = {label: i for i, label in enumerate(sorted(set(labels)))}
    split = features([np.eye(len(axes))[axes[label]] for label in labels], labels)
    folds = [{"train": split, "val": split, "test": split}]
    return FittedProbe(fit_folds(folds, metric="accuracy", protocol=rules), folds, rules, num_classes, "cpu")


def right(*sets, k):
    return np.array([[label in own for label in range(k)] for own in sets])


def score(*args, **options):
    found = score_conventions(*args, **options)
    assert found.predictions == ()
    return found.all_classes, found.own_classes


def rights(convention):
    return [unpack(outcomes).arrays["right"].tolist() for outcomes in convention.outcomes]


def test_a_wrong_class_outside_of_the_test_set_counts_only_among_all_classes():
    probe = fit([0, 1, 2, 3] * 2, 4)
    # Class 0 of the test set is class 1 of the dataset, and class 1 is class 3.
    images = features([[0, 3, 0, 1], [3, 2, 0, 0], [0, 3, 0, 2], [0, 1, 3, 2]], [0, 0, 1, 1])
    among_all, among_own = score(probe, images, right({1}, {3}, k=4), metric="accuracy")
    assert rights(among_all) == [[True, False, False, False]]
    assert rights(among_own) == [[True, True, False, True]]
    assert (among_all.score, among_own.score) == (0.25, 0.75)
    assert among_own.interval.method == "wilson"


def test_each_of_several_right_classes_counts():
    probe = fit([0, 1, 2, 3] * 2, 4)
    images = features([[0, 0, 3, 0], [3, 0, 0, 0], [0, 3, 0, 0]], [0, 0, 0])
    among_all, among_own = score(probe, images, right({0, 2}, k=4), metric="accuracy")
    assert rights(among_all) == [[True, True, False]]
    assert among_own.score == 1  # both classes of the test set are right


def test_a_test_set_of_all_classes_has_one_score():
    probe = fit([0, 1, 2] * 2, 3)
    _, among_own = score(probe, features(np.eye(3), [0, 1, 2]), np.eye(3, dtype=bool), metric="accuracy")
    assert among_own is None


class Indivisible(np.ndarray):
    """Scores that refuse to be copied in part."""

    def __getitem__(self, key):
        raise AssertionError(f"{key} was read")


def test_scores_of_all_classes_are_not_copied():
    class Probe(FittedProbe):
        def scores(self, features):
            return (scores.view(Indivisible) for scores in super().scores(features))

    found = Probe(**vars(fit([0, 1, 2] * 2, 3)))
    among_all, _ = score(found, features(np.eye(3), [0, 1, 2]), np.eye(3, dtype=bool), metric="accuracy")
    assert among_all.score == 1


@pytest.mark.parametrize(
    "rules", [RULES, Protocol("near", "near", "projected", method="knn", neighbours=(1,), normalize=True)]
)
def test_labels_with_gaps_keep_their_places(rules):
    """The dataset has five classes, of which images show the classes 1 and 4."""
    probe = fit([1, 4, 1, 4], 5, rules)
    images = features([[1, 0], [0, 1], [0, 1]], [0, 1, 0])
    among_all, _ = score(probe, images, right({1}, {4}, k=5), metric="accuracy")
    assert rights(among_all) == [[True, True, False]]


def test_the_mean_per_class_is_over_classes_of_the_test_set():
    probe = fit([0, 1] * 2, 2)
    images = features([[1, 0], [1, 0], [1, 0], [1, 0]], [0, 0, 0, 1])
    among_all, _ = score(probe, images, right({0}, {1}, k=2), metric="mean_per_class")
    assert among_all.score == 0.5


def test_a_metric_of_ranks_is_refused():
    with pytest.raises(ProtocolError, match="scored by accuracy or mean_per_class, but the metric of the dataset is"):
        score_conventions(fit([0, 1] * 2, 2), features(np.eye(2), [0, 1]), np.eye(2, dtype=bool), metric="roc_auc")
