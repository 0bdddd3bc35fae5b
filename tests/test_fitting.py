import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from probe.errors import FeaturesError, ProtocolError, UnknownNameError
from probe.features import Features
from probe.metrics import get_metric
from probe.probes.fitting import fit_probe
from probe.probes.results import mean_result
from probe.probes.solvers import SOLVERS
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


@pytest.fixture(scope="module")
def several(parts):
    """Digits that show "even", "more than four" and "round"; of the last, eights do not count."""

    def labels(y):
        is_round = np.where(y == 8, -1, np.isin(y, [0, 6, 9]))
        return np.stack([y % 2 == 0, y > 4, is_round], axis=1).astype(np.int64)

    return {name: Features(part.x, labels(part.y)) for name, part in parts.items()}


def test_several_labels_are_one_probe_for_each_class(several):
    """Each is scikit-learn's, fitted on the images that count for it, and the score is of its logits."""
    one = Protocol("one", "", "projected", (0.5,), 1, 500, 1e-6, "")
    result = fit_probe(**several, metric="voc2007_11pt_map", protocol=one)
    x = np.concatenate([several["train"].x, several["val"].x])
    y = np.concatenate([several["train"].y, several["val"].y])
    logits = []
    for k in range(3):
        counts = y[:, k] >= 0
        byhand = LogisticRegression(C=0.5, max_iter=500, tol=1e-6).fit(x[counts], y[counts, k])
        logits.append(byhand.decision_function(several["test"].x))
    scores = np.stack(logits, axis=1)
    assert result.score == get_metric("voc2007_11pt_map")(several["test"].y, scores)
    assert np.array_equal(result.predictions, scores > 0)
    assert 0.9 < result.score < 1


def test_several_labels_are_searched_with_one_c(several):
    result = fit_probe(**several, metric="voc2007_11pt_map", protocol=SHORT)
    assert [point.C for point in result.sweep] == list(SHORT.grid)
    assert result.C in SHORT.grid


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_class_without_examples_gets_the_lowest_scores(several, solver):
    """And does not stop the others."""
    without = {name: Features(p.x, np.where([True, True, False], p.y, 0)) for name, p in several.items()}
    fitted = SOLVERS[solver]([without["train"].x], without["train"].y, max_iter=500, tol=1e-6).fit(0.5)
    assert fitted.classes.tolist() == [0, 1]
    scores = fitted.scores(without["test"].x, 3)
    assert np.isneginf(scores[:, 2]).all()
    assert np.isfinite(scores[:, :2]).all()


def test_labels_of_two_shapes_are_named(parts, several):
    with pytest.raises(FeaturesError, match=r"test has labels \(400,\), train \(400, 3\); give all the same classes"):
        fit_probe(**{**several, "test": parts["test"]}, protocol="readme")


def test_the_mean_over_folds_keeps_every_fold(parts):
    one = fit_probe(**parts, protocol="readme")
    other = fit_probe(train=parts["val"], val=parts["train"], test=parts["test"], protocol=SHORT)
    mean = mean_result([one, other])
    assert mean.score == (one.score + other.score) / 2
    assert mean.folds == (one, other)
    assert mean.C is None
    assert mean_result([one, one]).C == one.C
    assert mean.n_iter == max(one.n_iter, other.n_iter)
    assert len(mean.predictions) == 800
    assert "predictions" not in mean.to_dict()["folds"][0]


def test_the_result_of_one_fold_is_its_own(parts):
    one = fit_probe(**parts, protocol="readme")
    assert mean_result([one]) is one
