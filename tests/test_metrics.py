import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from probe.errors import UnknownNameError
from probe.metrics import accuracy, get_metric


def test_accuracy_equals_scikit_learns():
    rng = np.random.default_rng(0)
    y_true, y_score = rng.integers(0, 5, 200), rng.random((200, 5))
    assert accuracy(y_true, y_score) == accuracy_score(y_true, y_score.argmax(axis=1))


def test_a_near_metric_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        get_metric("acuracy")
