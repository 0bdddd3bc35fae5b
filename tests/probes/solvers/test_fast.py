import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import AdaBoostClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import probe.probes
from probe.probes.solvers.estimator import FastLogisticRegression
from probe.probes.solvers.fast import Start, coefficients, loss_of, solve
from probe.probes.solvers.lbfgs import Limits
from probe.probes.solvers.objective import Logistic, Objective, Rows


# A weight of 2 equals a repeated row within 1e-7, which takes a smaller tolerance than the default.
@parametrize_with_checks([FastLogisticRegression(tol=1e-10)])
def test_it_is_an_estimator_as_scikit_learn_defines_one(estimator, check):
    with warnings.catch_warnings():
        # Some checks fit noise with very few steps, so the fits do not converge.
        warnings.simplefilter("ignore", ConvergenceWarning)
        check(estimator)


def _tight(x, y, C):
    """Fit by the second way of computing: scikit-learn in float64 with a tight tolerance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's convergence on hostile problems is not tested here
        return LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(x.astype(np.float64), y)


def _log_likelihoods(x, weights, intercept):
    logits = x @ weights.T + intercept
    return log_softmax(np.hstack([np.zeros_like(logits), logits]) if len(weights) == 1 else logits, axis=1)


def _objective(x, y, fit, C):
    """Compute mean loss + ||W||^2 / (2 C n) by NumPy and SciPy in float64."""
    x, weights = x.astype(np.float64), fit.coef_.astype(np.float64)
    own = _log_likelihoods(x, weights, fit.intercept_)[np.arange(len(x)), np.searchsorted(fit.classes_, y)]
    return -own.mean() + np.square(weights).sum() / (2 * C * len(x))


def _gradient_ratio(x, y, fit, C):
    """Compute max |gradient| relative to its value at weights of zero, by NumPy in float64."""
    x = x.astype(np.float64)
    with_ones = np.hstack([x, np.ones((len(x), 1))])
    labels = y[:, None] == fit.classes_
    sizes = []
    for weights, intercept in ((fit.coef_, fit.intercept_), (0 * fit.coef_, 0 * fit.intercept_)):
        residuals = np.exp(_log_likelihoods(x, weights, intercept)) - labels
        gradient = with_ones.T @ residuals[:, -len(weights) :] / len(x)
        gradient[:-1] += weights.T / (C * len(x))
        sizes.append(np.abs(gradient).max())
    return sizes[0] / sizes[1]


def _blobs(n=300, d=8, k=3, spread=0.4, seed=0):
    """Make Gaussian classes in turn, whose means have the standard deviation `spread`."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return rng.normal(size=(k, d))[y] * spread + rng.normal(size=(n, d)), y


def _digits(classes):
    digits = load_digits()
    chosen = np.isin(digits.target, classes)
    return digits.data[chosen] / 16, digits.target[chosen]


DTYPES = [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)]  # encoders give float32


def _with_slow(names, *slow):
    """Mark some of the names, whose problems take scikit-learn a second, as slow."""
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


PROBLEMS = {
    "digits": lambda: _digits(range(10)),
    "digits-3": lambda: _digits([1, 4, 7]),
    "digits-2": lambda: _digits([3, 8]),
    "blobs": lambda: _blobs(k=10),
    "blobs-2": lambda: _blobs(k=2),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("problem", _with_slow(PROBLEMS, "digits"))
def test_the_optimum_is_scikit_learns(problem, C, dtype):
    """The objective is within the 1e-7 that `tol` promises, and predictions are equal.

    Tolerance of the weights: tol divided by the curvature of the penalty.
    """
    x, y = PROBLEMS[problem]()
    x = x.astype(dtype)
    fit, theirs = FastLogisticRegression(C=C, tol=1e-8).fit(x, y), _tight(x, y, C)
    assert _objective(x, y, fit, C) == pytest.approx(_objective(x, y, theirs, C), rel=1e-7)
    assert fit.objective_ == pytest.approx(_objective(x, y, fit, C), rel=1e-6)
    assert (fit.coef_.shape, fit.intercept_.shape) == (theirs.coef_.shape, theirs.intercept_.shape)
    assert fit.coef_.dtype == dtype
    if C <= 1:
        np.testing.assert_allclose(fit.coef_, theirs.coef_, atol=1e-4 * np.abs(theirs.coef_).max())
        np.testing.assert_array_equal(fit.predict(x), theirs.predict(x))
        # Tolerance: the rounding of float32 logits below 100.
        np.testing.assert_allclose(fit.predict_proba(x), theirs.predict_proba(x), atol=2e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_default_tolerance_is_enough(problem):
    """The objective is within 1e-7 of scikit-learn's, and the reported gradient and excess are right."""
    x, y = PROBLEMS[problem]()
    x = x.astype(np.float32)
    fit, best = FastLogisticRegression().fit(x, y), _objective(x, y, _tight(x, y, 1.0), 1.0)
    found = _objective(x, y, fit, 1.0)
    assert found == pytest.approx(best, rel=1e-7)
    assert fit.gradient_ratio_ <= 1e-6
    assert fit.gradient_ratio_ == pytest.approx(_gradient_ratio(x, y, fit, 1.0), abs=1e-6)
    assert found - best <= fit.excess_ + 1e-12  # scikit-learn's objective is above the minimum by rounding


def _with(x, y, change):
    x = x.copy()
    change(x)
    return x, y


def _constants(x):
    x[:, 2], x[:, 5] = 7.3, -1e4 / 3


def _mixed_scales(x):
    x[:, ::2] *= 1e-6
    x[:, 1::2] *= 1e6


def _unbalanced(counts):
    y = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).normal(size=(len(y), 6)) + y[:, None] * 0.5, y


HOSTILE = {
    "separable": (lambda: _blobs(k=4, spread=6), 1e6),
    "separable-2": (lambda: _blobs(k=2, spread=6), 1e6),
    "constant": (lambda: _with(*_blobs(), _constants), 1.0),
    "all-constant": (lambda: (np.full((90, 4), 3.7), np.arange(90) % 3), 1.0),
    "all-zero": (lambda: (np.zeros((90, 4)), np.arange(90) % 3), 1.0),
    "all-zero-unbalanced": (lambda: (np.zeros((90, 4)), np.arange(90) // 40), 1.0),
    "all-zero-2": (lambda: (np.zeros((90, 4)), np.arange(90) % 2), 1.0),
    "tiny": (lambda: (_blobs()[0] * 1e-15, _blobs()[1]), 1.0),
    "duplicate-features": (lambda: (np.hstack([_blobs()[0]] * 3), _blobs()[1]), 10.0),
    "duplicate-rows": (lambda: (np.vstack([_blobs()[0]] * 3), np.tile(_blobs()[1], 3)), 10.0),
    "mixed-scales": (lambda: _with(*_blobs(), _mixed_scales), 1.0),
    "large": (lambda: (_blobs()[0] * 1e4, _blobs()[1]), 1.0),
    "offset": (lambda: (_blobs()[0] + 1e3, _blobs()[1]), 1.0),
    "wide": (lambda: _blobs(n=50, d=300), 1.0),
    "wide-separable": (lambda: _blobs(n=50, d=300), 1e6),
    "many-classes": (lambda: _blobs(n=2000, d=6, k=1000, spread=1), 0.01),
    "unbalanced": (lambda: _unbalanced([990, 7, 3]), 1.0),
    "unbalanced-2": (lambda: _unbalanced([990, 3]), 100.0),
    "single-row": (lambda: _unbalanced([99, 100, 1]), 1e6),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", _with_slow(HOSTILE, "offset", "many-classes"))
def test_hostile_problems_reach_scikit_learns_objective_in_silence(problem, dtype):
    """A warning would be an error here. Within 2e-6, the default tolerance and a float32 ulp of the losses."""
    make, C = HOSTILE[problem]
    x, y = make()
    x = x.astype(dtype)
    fit = FastLogisticRegression(C=C).fit(x, y)
    found, best = _objective(x, y, fit, C), _objective(x, y, _tight(x, y, C), C)
    assert np.isfinite(fit.coef_).all()
    assert np.isfinite(fit.intercept_).all()
    assert np.isfinite(fit.predict_proba(x)).all()
    assert found <= best + 2e-6
    assert found - best <= fit.excess_ + 1e-9
    assert fit.objective_ == pytest.approx(found, abs=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("problem", sorted(set(HOSTILE) - {"many-classes"}))
def test_hostile_problems_are_solved_to_a_tight_tolerance(problem, dtype):
    """Fits continue in float64 when float32 allows no more progress. They end at most tol above scikit-learn's."""
    make, C = HOSTILE[problem]
    x, y = make()
    x = x.astype(dtype)
    fit = FastLogisticRegression(C=C, tol=1e-8).fit(x, y)
    best = _objective(x, y, _tight(x, y, C), C)
    assert _objective(x, y, fit, C) <= best + 1e-8


def test_labels_may_be_strings_or_any_numbers():
    """Weights are in the order of the sorted labels, and predictions are labels."""
    x, y = _blobs()
    expected = FastLogisticRegression().fit(x, y)
    for names in (np.array(["ant", "bee", "cat"]), np.array([-7, 3, 1000])):
        fit = FastLogisticRegression().fit(x, names[y])
        np.testing.assert_array_equal(fit.classes_, names)
        np.testing.assert_array_equal(fit.coef_, expected.coef_)
        np.testing.assert_array_equal(fit.predict(x), names[expected.predict(x)])


@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
def test_multi_label_probes_are_binary_fits_on_the_rows_that_count(together):
    """Tolerance of the weights: tol divided by the curvature of the penalty."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    scores = x @ rng.normal(size=(5, 4)) + rng.normal(size=(300, 4)) + [0, 1, -1, 2]
    targets = np.where(rng.random((300, 4)) < [0, 0.1, 0.5, 0.9], -1, scores > 0)
    rows, strengths = Rows([x]), [0.1, 1.0, 1.0, 10.0]
    solutions = []
    for columns in [[0, 1, 2, 3]] if together else [[0], [1], [2], [3]]:
        loss = Logistic(torch.from_numpy(targets), torch.tensor(columns))
        solutions += solve(Objective(rows, loss, [strengths[column] for column in columns]), Limits(1e-9))
    for column, solution in enumerate(solutions):
        counts, C = targets[:, column] >= 0, strengths[column]
        theirs = _tight(x[counts], targets[counts, column], C)
        weights, intercept = coefficients(rows, solution.minimum.unknowns)
        assert solution.converged
        np.testing.assert_allclose(weights, theirs.coef_, atol=1e-5)
        np.testing.assert_allclose(intercept, theirs.intercept_, atol=1e-5)
        best = _objective(x[counts], targets[counts, column], theirs, C)
        assert solution.minimum.objective == pytest.approx(best, rel=1e-9)


def _solve(x, y, strengths, *, starts=None, tol=1e-6, max_iter=1000):
    rows, k = Rows([x]), len(np.unique(y))
    return solve(Objective(rows, loss_of(y, k, rows.device), strengths), Limits(tol, max_iter), starts=starts)


def test_probes_solved_together_equal_probes_solved_alone():
    """Tolerance: the objective differs by the square of a gradient of 1e-8."""
    x, y = _digits(range(10))
    strengths = [0.01, 1.0, 100.0]
    for C, together in zip(strengths, _solve(x, y, strengths, tol=1e-8), strict=True):
        (alone,) = _solve(x, y, [C], tol=1e-8)
        assert together.converged
        assert together.minimum.objective == pytest.approx(alone.minimum.objective, rel=1e-10)


def test_a_start_at_a_neighbour_leads_to_the_same_optimum():
    """The weights and the curvature of the neighbour save steps and change nothing else."""
    x, y = _digits(range(10))
    (neighbour,) = _solve(x, y, [100.0], tol=1e-8)
    (cold,) = _solve(x, y, [150.0], tol=1e-8)
    (warm,) = _solve(x, y, [150.0], starts=[Start(neighbour.minimum.unknowns, neighbour.needs_curvature)], tol=1e-8)
    assert neighbour.needs_curvature
    assert warm.minimum.objective == pytest.approx(cold.minimum.objective, rel=1e-10)
    assert warm.minimum.n_iter < cold.minimum.n_iter


@pytest.mark.slow
@pytest.mark.parametrize("C", [1.0, 1e4])
def test_features_too_large_for_a_copy_reach_the_same_optimum(C, monkeypatch):
    """The features are correlated and have a large common mean, which causes most cancellation without whitening.

    `tol` is smaller than the default, with which fits end up to 1e-5 above the minimum if classes are separable.
    """
    x, y = _digits(range(10))
    turned = np.random.default_rng(0).normal(size=(64, 64))
    x = ((x @ turned) + 30).astype(np.float32)
    expected = FastLogisticRegression(C=C, tol=1e-8).fit(x, y)
    monkeypatch.setattr(probe.probes.solvers.objective, "COPY_BYTES", 0)
    fit = FastLogisticRegression(C=C, tol=1e-8).fit(x, y)
    assert fit.gradient_ratio_ <= 1e-8
    assert fit.objective_ == pytest.approx(expected.objective_, rel=1e-6)
    assert _objective(x, y, fit, C) <= _objective(x, y, _tight(x, y, C), C) * (1 + 1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-10])
def test_tiny_features_are_not_taken_for_rounding_errors(scale):
    """With a penalty that is weaker in proportion, the fit equals the fit on features of size one."""
    x, y = _blobs(n=300, k=3)
    expected = FastLogisticRegression(C=1.0).fit(x, y)
    fit = FastLogisticRegression(C=scale**-2).fit(x * scale, y)
    assert fit.n_iter_ > 0
    assert fit.objective_ == pytest.approx(expected.objective_, rel=1e-6)
    np.testing.assert_array_equal(fit.predict(x * scale), expected.predict(x))


def test_a_fit_that_was_cut_off_says_so():
    x, y = _blobs(k=10)
    with pytest.warns(ConvergenceWarning, match="after 3 iterations: .* Increase max_iter or tol"):
        fit = FastLogisticRegression(C=1e4, max_iter=3).fit(x, y)
    assert fit.n_iter_.tolist() == [3]
    assert fit.gradient_ratio_ == pytest.approx(_gradient_ratio(x, y, fit, 1e4), abs=1e-9)
    assert _objective(x, y, fit, 1e4) - _objective(x, y, _tight(x, y, 1e4), 1e4) <= fit.excess_
    (solution,) = _solve(x, y, [1e4], max_iter=3)
    assert not solution.converged


def test_a_fit_that_was_ended_has_not_converged_even_if_it_was_near_the_optimum():
    """Its end depends on other fits, so it must not pass for an ordinary fit, which can be cached."""
    x, y = _blobs()
    objective = Objective(Rows([x]), loss_of(y, 3, torch.device("cpu")), [1.0])
    (whole,) = solve(objective, Limits(1e-6))
    starts, limits = [Start(whole.minimum.unknowns)], Limits(1e-12)
    (ended,) = solve(objective, limits, starts=starts, goes_on=lambda *_: False)
    (optimal,) = solve(objective, replace(limits, max_iter=1), starts=starts)
    assert ended.minimum.n_iter == 1
    assert (ended.ended_early, ended.is_optimal, ended.converged) == (True, False, False)
    assert (optimal.ended_early, optimal.is_optimal) == (False, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    x, y = _blobs()
    x[3, 2] = value
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        FastLogisticRegression().fit(x, y)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        FastLogisticRegression().fit(np.eye(4), np.zeros(4, int))


@pytest.mark.parametrize("C", [0, -1.0, np.nan, "1", None, [1.0]])
def test_a_strength_that_is_no_number_above_zero_is_refused(C):
    x, y = _blobs()
    with pytest.raises(ValueError, match="The 'C' parameter of FastLogisticRegression must be"):
        FastLogisticRegression(C=C).fit(x, y)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_memory_mapped_arrays_give_the_same_bits(tmp_path, dtype):
    """The feature store returns such read-only arrays. torch would warn about them."""
    x, y = _blobs()
    np.save(tmp_path / "x.npy", x.astype(dtype))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected, fit = (FastLogisticRegression(C=10.0).fit(features, y) for features in (x.astype(dtype), mapped))
    np.testing.assert_array_equal(fit.coef_, expected.coef_)
    np.testing.assert_array_equal(fit.intercept_, expected.intercept_)
    np.testing.assert_array_equal(fit.decision_function(mapped), expected.decision_function(x.astype(dtype)))


def test_a_second_fit_gives_the_same_bits():
    """C is so large that the curvature is estimated from a sample of rows."""
    x, y = _digits(range(10))
    first, second = (FastLogisticRegression(C=1e4).fit(x.astype(np.float32), y) for _ in range(2))
    np.testing.assert_array_equal(first.coef_, second.coef_)
    np.testing.assert_array_equal(first.intercept_, second.intercept_)


def test_typical_features_take_few_passes():
    """The features are correlated and have a large common mean, like CLIP's. scikit-learn takes hundreds of passes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 4000)
    spectrum = np.arange(1, 65) ** -0.5
    turned, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    x = (rng.normal(size=(10, 64))[y] * 0.3 + rng.normal(size=(4000, 64))) * spectrum @ turned + rng.normal(size=64)
    rows = Rows([x.astype(np.float32)])
    objective = Objective(rows, loss_of(y, 10, rows.device), [1.0])
    (solution,) = solve(objective)
    assert solution.converged
    assert objective.num_passes < 100


def test_the_estimator_is_imported_on_first_use():
    assert probe.FastLogisticRegression is FastLogisticRegression
    with pytest.raises(AttributeError, match="no attribute 'Fast'"):
        _ = probe.Fast


WEIGHTS = {
    "sample": lambda n, _: ({}, np.random.default_rng(1).uniform(0, 3, n)),
    "zeros": lambda n, _: ({}, (np.arange(n) % 5 > 0).astype(float)),
    "balanced": lambda *_: ({"class_weight": "balanced"}, None),
    "both": lambda n, k: (
        {"class_weight": dict(enumerate((3.0, 0.5, 1.5)[:k]))},
        np.random.default_rng(1).uniform(0, 3, n),
    ),
}


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("C", [0.1, 10.0, np.inf])
def test_weights_of_samples_and_classes_mean_what_they_mean_in_scikit_learn(kind, num_classes, fit_intercept, C):
    x, y = _blobs(n=400, k=num_classes)
    x, y = x[(y > 0) | (np.arange(400) % 3 > 0)] + 1, y[(y > 0) | (np.arange(400) % 3 > 0)]
    parameters, sample_weight = WEIGHTS[kind](len(y), num_classes)
    parameters |= {"C": C, "fit_intercept": fit_intercept}
    fit = FastLogisticRegression(tol=1e-10, **parameters).fit(x, y, sample_weight)
    theirs = LogisticRegression(tol=1e-12, max_iter=10_000, solver="newton-cg", **parameters).fit(x, y, sample_weight)
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(fit.coef_, theirs.coef_, rtol=0, atol=1e-7 * scale)
    np.testing.assert_allclose(fit.intercept_, theirs.intercept_, rtol=0, atol=1e-7 * scale)
    np.testing.assert_allclose(fit.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_only_the_product_of_weights_and_strength_counts(scale):
    x, y = _blobs(k=10, spread=2.0)
    expected = FastLogisticRegression(C=1e5).fit(x, y)
    fit = FastLogisticRegression(C=1e5 / scale).fit(x, y, sample_weight=np.full(len(y), scale))
    assert fit.n_iter_ <= 1.2 * expected.n_iter_
    np.testing.assert_allclose(fit.coef_, expected.coef_, rtol=0, atol=1e-3 * np.abs(expected.coef_).max())


def test_separable_classes_without_a_penalty_have_no_optimum():
    x, y = _blobs(k=2, spread=20.0)
    with pytest.warns(ConvergenceWarning, match=r"may be separable, .* give a finite C\.$"):
        FastLogisticRegression(C=np.inf).fit(x, y)


def test_a_float32_fit_without_an_intercept_reaches_the_optimum():
    x, y = _digits(range(10))
    x = x.astype(np.float32)
    fit = FastLogisticRegression(C=100.0, fit_intercept=False).fit(x, y)
    theirs = LogisticRegression(C=100.0, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x.astype(np.float64), y)
    assert fit.intercept_.tolist() == [0.0] * 10
    assert _objective(x, y, fit, 100.0) == pytest.approx(_objective(x, y, theirs, 100.0), rel=1e-6)


def test_a_penalty_on_absolute_values_is_refused():
    with pytest.raises(ValueError, match=r"l1_ratio must be 0, got 0\.5"):
        FastLogisticRegression(l1_ratio=0.5).fit(*_blobs())


def test_negative_weights_are_refused():
    x, y = _blobs()
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        FastLogisticRegression().fit(x, y, np.where(y == 0, -1.0, 1.0))


def test_a_warm_start_begins_at_the_coefficients_and_refuses_others():
    x, y = _digits(range(10))
    cold = FastLogisticRegression(C=10.0).fit(x, y)
    warm = FastLogisticRegression(C=10.0, warm_start=True).fit(x, y).fit(x, y)
    assert warm.n_iter_ < cold.n_iter_ / 2
    with pytest.raises(ValueError, match=r"warm_start begins at coef_ of shape \(10, 64\), but .* \(1, 64\)"):
        warm.fit(*_digits([3, 8]))


def test_a_verbose_fit_logs_how_it_ended(caplog):
    with caplog.at_level("INFO", logger="probe"):
        FastLogisticRegression(verbose=1).fit(*_blobs())
    assert "FastLogisticRegression: after" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda estimator: make_pipeline(StandardScaler(), estimator),
        lambda estimator: GridSearchCV(estimator, {"C": [0.1, 10.0]}, cv=3),
        lambda estimator: CalibratedClassifierCV(estimator, cv=3),
        lambda estimator: OneVsRestClassifier(estimator),
        lambda estimator: AdaBoostClassifier(estimator, n_estimators=3, random_state=0),
        lambda estimator: pickle.loads(pickle.dumps(clone(estimator).fit(*_digits(range(10))))),
    ],
)
def test_it_takes_the_place_of_scikit_learns_estimator(wrap):
    x, y = _digits(range(10))
    assert isinstance(FastLogisticRegression(), LogisticRegression)
    fast, theirs = (
        wrap(estimator).fit(x, y).predict_proba(x)
        for estimator in (FastLogisticRegression(tol=1e-8), LogisticRegression(tol=1e-8, max_iter=10_000))
    )
    np.testing.assert_allclose(fast, theirs, rtol=0, atol=1e-4)


def test_scores_of_cross_validation_are_scikit_learns():
    x, y = _digits(range(10))
    fast, theirs = (
        cross_val_score(estimator, x, y, scoring="neg_log_loss", cv=3)
        for estimator in (FastLogisticRegression(), LogisticRegression(tol=1e-8, max_iter=10_000))
    )
    np.testing.assert_allclose(fast, theirs, rtol=1e-5)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_fewer_images_than_features_need_only_the_components_that_they_span(fit_intercept):
    """The weights of all other components are 0 at the optimum, so nothing is lost by leaving them out."""
    x, y = _blobs(n=30, d=100)
    rows = Rows([x], has_intercept=fit_intercept)
    assert rows.num_components == 30 - fit_intercept
    assert rows.basis.matrix.shape == (101, rows.num_components + 1)
    fit = FastLogisticRegression(C=10.0, tol=1e-10, fit_intercept=fit_intercept).fit(x, y)
    theirs = LogisticRegression(C=10.0, tol=1e-12, max_iter=10_000, fit_intercept=fit_intercept).fit(x, y)
    np.testing.assert_allclose(fit.coef_, theirs.coef_, rtol=0, atol=1e-6 * np.abs(theirs.coef_).max())
