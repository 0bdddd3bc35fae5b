import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from probe.errors import FeaturesError, ProtocolError, UnknownNameError
from probe.features import Features
from probe.probes.fitting import fit_probe
from probe.specs import Protocol

SHORT = Protocol("short", "three values", "projected", (1e-4, 1e-2, 1.0), 1, 200, 1e-6, "this test")


@pytest.fixture(scope="module")
def parts():
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    cuts = {"train": slice(0, 400), "val": slice(400, 600), "test": slice(600, 1000)}
    return {name: Features(x[rows], y[rows], pre_projection=x[rows] * 2) for name, rows in cuts.items()}


def test_readme_is_one_fit_on_train_and_val(parts):
    result = fit_probe(**parts, protocol="readme")
    x = np.concatenate([parts["train"].x, parts["val"].x])
    y = np.concatenate([parts["train"].y, parts["val"].y])
    byhand = LogisticRegression(C=0.316, max_iter=1000, tol=1e-6).fit(x, y)
    assert result.score == byhand.score(parts["test"].x, parts["test"].y)
    assert np.array_equal(result.predictions, byhand.predict(parts["test"].x))
    assert (result.num_train, result.num_test, result.C, result.sweep) == (600, 400, 0.316, ())


def test_a_search_chooses_on_val_and_refits(parts):
    result = fit_probe(**parts, protocol=SHORT)
    train, val, test = parts["train"], parts["val"], parts["test"]
    fits = {C: LogisticRegression(C=C, max_iter=200, tol=1e-6).fit(train.x, train.y) for C in SHORT.grid}
    scores = {C: fit.score(val.x, val.y) for C, fit in fits.items()}
    assert {point.C: point.score for point in result.sweep} == scores
    assert max(scores, key=scores.get) == result.C
    x, y = np.concatenate([train.x, val.x]), np.concatenate([train.y, val.y])
    refit = LogisticRegression(C=result.C, max_iter=200, tol=1e-6).fit(x, y)
    assert result.score == refit.score(test.x, test.y)


def test_test_labels_cannot_move_the_choice(parts):
    """The test split is read once, after everything is chosen."""
    shuffled = Features(parts["test"].x, parts["test"].y[::-1].copy(), parts["test"].pre_projection)
    first, second = fit_probe(**parts, protocol=SHORT), fit_probe(**{**parts, "test": shuffled}, protocol=SHORT)
    assert (first.C, first.sweep) == (second.C, second.sweep)
    assert first.score != second.score


def test_the_protocol_names_the_feature_point(parts):
    """The paper probes what is before the projection."""
    same = {name: Features(p.x * 0, p.y, p.pre_projection) for name, p in parts.items()}
    assert fit_probe(**same, protocol="readme").score < 0.2
    before = Protocol("before", "", "pre_projection", (0.1,), 1, 200, 1e-6, "")
    assert fit_probe(**same, protocol=before).score > 0.8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p.pop("val"), ProtocolError, "give val"),
        (lambda p: p.update(train=Features(p["train"].x, p["train"].y * 0)), ProtocolError, "at least two classes"),
        (lambda p: p.update(test=Features(p["test"].x[:, :9], p["test"].y)), FeaturesError, "different widths"),
        (lambda p: p.update(test=Features(p["test"].x[:9], p["test"].y)), FeaturesError, "400 labels"),
        (lambda p: p.update(test=Features(p["test"].x, p["test"].y[:, None])), FeaturesError, "test has labels"),
        (lambda p: p.update(val=Features(p["val"].x, p["val"].y - 1)), FeaturesError, "val has labels"),
    ],
)
def test_features_that_do_not_fit_are_named(parts, change, error, message):
    changed = dict(parts)
    change(changed)
    with pytest.raises(error, match=message):
        fit_probe(**changed, protocol=SHORT)


def test_a_near_protocol_is_offered(parts):
    with pytest.raises(UnknownNameError, match="did you mean 'clip-paper'"):
        fit_probe(**parts, protocol="clip_paper")
