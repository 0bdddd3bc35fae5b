"""Standardised features: scikit-learn's StandardScaler is the second way of computing."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probe.features.arrays import Features
from probe.probes.cached_fits import FitCache
from probe.probes.fit import fit_probe
from probe.probes.fits import ROWS
from probe.probes.head_files import load_head
from probe.probes.heads import Head, HeadInfo
from probe.probes.scaling import fit_scaling
from probe.probes.solvers.catalog import SOLVERS, get_solver
from probe.specs import Protocol

RULES = Protocol("own", "", "projected", (1e-4, 1e-2, 1.0), tol=1e-8, max_iter=5000, standardize=True)


@pytest.fixture(scope="module")
def parts():
    """Return digits with features of very different sizes; some pixels are 0 in all images."""
    digits = load_digits()
    x = (digits.data * np.geomspace(0.01, 100, 64) + 3).astype(np.float32)
    y = digits.target.astype(np.int64)
    cuts = {"train": slice(0, 400), "val": slice(400, 600), "test": slice(600, 1000)}
    return {name: Features(x[rows], y[rows]) for name, rows in cuts.items()}


def _pipeline(C, x, y):
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=20000, tol=1e-9)).fit(x.astype(float), y)


def test_means_and_deviations_equal_scikit_learns():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((ROWS + 300, 5)) * [1, 1e-3, 1e3, 1, 0] + [0, 1, -1e3, 1e4, 0.1]).astype(np.float32)
    scaling, theirs = fit_scaling([x[:100], x[100:]]), StandardScaler().fit(x.astype(np.float64))
    assert np.allclose(scaling.mean, theirs.mean_, rtol=1e-12)
    assert np.allclose(scaling.std, theirs.scale_, rtol=1e-9)
    assert scaling.std[4] == 1  # does not vary
    scaled = scaling.apply(x)
    assert scaled.dtype == np.float32
    assert np.allclose(scaled, theirs.transform(x.astype(np.float64)), atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_folded_fit_has_the_same_logits_and_unfolds_to_itself(num_classes):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((90, 4)) * [1, 20, 0.1, 3] + 5).astype(np.float32)
    y = np.arange(90) % num_classes
    scaling = fit_scaling([x])
    fit = get_solver("fast")([scaling.apply(x)], y, max_iter=500, tol=1e-6).fit(1.0)
    folded = scaling.fold(fit)
    assert np.allclose(folded.scores(x, num_classes), fit.scores(scaling.apply(x), num_classes), atol=1e-6)
    again = scaling.unfold(folded)
    assert np.allclose(again.coef, fit.coef)
    assert np.allclose(again.intercept, fit.intercept)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("refit", [False, True])
def test_a_probe_equals_scikit_learns_pipeline(parts, solver, refit):
    """C is chosen with the scaling of train; the final fit has the scaling of all images that it is fitted on."""
    result = fit_probe(**parts, protocol=replace(RULES, refit=refit), solver=solver)
    train, val, test = parts["train"], parts["val"], parts["test"]
    fits = {C: _pipeline(C, train.x, train.y) for C in RULES.grid}
    scores = [fit.score(val.x.astype(float), val.y) for fit in fits.values()]
    assert [point.score for point in result.sweep] == pytest.approx(scores, abs=1.5 / 200)  # one image
    final = fits[result.C]
    if refit:
        final = _pipeline(result.C, np.concatenate([train.x, val.x]), np.concatenate([train.y, val.y]))
    (weights,) = result.heads
    logits, theirs = weights.logits(test.x), final.decision_function(test.x.astype(float))
    logits, theirs = (z - z.mean(axis=1, keepdims=True) for z in (logits, theirs))
    # scikit-learn's fit in the suite is in float32. It ends 1e-7 above the minimum, and logits of up to 23 differ by
    # up to 0.04.
    assert np.allclose(logits, theirs, atol=0.1 if solver == "sklearn" else 1e-3)
    assert np.mean(result.predictions == theirs.argmax(axis=1)) >= (0.99 if solver == "sklearn" else 1)


def test_the_choice_is_not_moved_by_the_scale_of_features(parts):
    scaled = {
        name: Features(part.x * np.geomspace(1e-3, 1e3, 64, dtype=np.float32), part.y) for name, part in parts.items()
    }
    ours, theirs = (fit_probe(**one, protocol=RULES, solver="fast") for one in (parts, scaled))
    assert (ours.C, ours.score) == (theirs.C, theirs.score)
    assert fit_probe(**parts, protocol=replace(RULES, standardize=False), solver="fast").sweep != ours.sweep


def test_multi_label_images_are_standardised(parts):
    labels = {name: replace(part, y=np.stack([part.y % 2, part.y // 5], axis=1)) for name, part in parts.items()}
    rules = replace(RULES, grid=(0.5,))
    result = fit_probe(**labels, metric="voc2007_11pt_map", protocol=rules, solver="fast")
    x = np.concatenate([labels["train"].x, labels["val"].x])
    y = np.concatenate([labels["train"].y, labels["val"].y])
    test = labels["test"].x.astype(float)
    theirs = np.stack([_pipeline(0.5, x, y[:, k]).predict(test) for k in range(2)], axis=1)
    assert np.array_equal(result.predictions, theirs)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fits_that_start_from_others_and_cached_fits_are_the_same(parts, solver, tmp_path):
    rules = replace(RULES, warm_start=True)
    whole = fit_probe(**parts, protocol=rules, solver=solver)
    for _ in range(2):  # the second time, all fits are cached
        cached = fit_probe(**parts, protocol=rules, solver=solver, fit_cache=FitCache(tmp_path))
        assert (cached.C, cached.score) == (whole.C, whole.score)
    plain = fit_probe(**parts, protocol=replace(rules, standardize=False), solver=solver, fit_cache=FitCache(tmp_path))
    assert plain.objective != whole.objective


def test_a_head_takes_features_as_they_are(parts, tmp_path):
    rules = replace(RULES, normalize=True)
    result = fit_probe(**parts, protocol=rules, solver="fast")
    info = HeadInfo("made", (), tuple(range(10)), False, None, "", None, "", "", rules, "fast", result.C)
    path = tmp_path / "own.safetensors"
    path.write_bytes(Head(result.heads[0], info).to_bytes())
    head = load_head(path)
    assert head.info.protocol == rules
    assert np.array_equal(head.logits(parts["test"].x).argmax(axis=1), result.predictions)
