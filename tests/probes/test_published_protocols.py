"""Protocols of other suites: the rules of their code, written again here, are the second way of computing."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probe.features.arrays import Features
from probe.probes.fit import fit_probe
from probe.probes.protocols import GROUPS, get_protocol
from probe.probes.shots import draw_shots


@pytest.fixture(scope="module")
def parts():
    """Return digits with random features that are not linearly separable."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    x = (digits.data / 16 @ rng.standard_normal((64, 12)) + rng.standard_normal((1797, 12))) / 4
    x, y = x.astype(np.float32), digits.target.astype(np.int64)
    cuts = {"train": slice(0, 1200), "val": slice(1200, 1400), "test": slice(1400, 1797)}
    return {name: Features(x[rows], y[rows], pre_projection=x[rows]) for name, rows in cuts.items()}


def _fit(C, x, y):
    return LogisticRegression(C=C, solver="newton-cg", max_iter=2000, tol=1e-7).fit(x.astype(np.float64), y)


def _score(fit, part):
    return fit.score(part.x.astype(np.float64), part.y)


def _minimize_mean_loss(x, y, l2):
    """Return the weights (d, k) and bias (k,) that minimise mean cross-entropy + l2 * sum(W^2) / 2."""
    (n, d), k = x.shape, y.max() + 1
    targets = np.eye(k)[y]

    def loss(flat):
        weights, bias = flat[: d * k].reshape(d, k), flat[d * k :]
        logits = x @ weights + bias
        slope = (softmax(logits, axis=1) - targets) / n
        value = -(targets * log_softmax(logits, axis=1)).sum() / n + l2 * (weights**2).sum() / 2
        return value, np.concatenate([(x.T @ slope + l2 * weights).ravel(), slope.sum(axis=0)])

    start = np.concatenate([np.zeros(d * k), np.log(np.bincount(y) / n)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 0, "gtol": 1e-9})
    return found.x[: d * k].reshape(d, k), found.x[d * k :]


def test_open_clip_minimises_the_scripts_objective(parts):
    """The script's grid has penalties of the mean loss, the largest first; the first of equal scores wins."""
    x = {name: part.x.astype(np.float64) for name, part in parts.items()}
    x = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in x.items()}
    mean, std = x["train"].mean(axis=0), x["train"].std(axis=0).clip(1e-6)
    x = {name: (rows - mean) / std for name, rows in x.items()}
    scores, fits = {}, {}
    for l2 in (1.0, 0.1, 0.01, 0.001, 0.0001):
        weights, bias = fits[l2] = _minimize_mean_loss(x["train"], parts["train"].y, l2)
        scores[l2] = float(np.mean((x["val"] @ weights + bias).argmax(axis=1) == parts["val"].y))
    chosen = max(scores, key=scores.get)
    weights, bias = fits[chosen]
    logits = x["test"] @ weights + bias

    result = fit_probe(**parts, protocol="open-clip", solver="fast")
    assert pytest.approx(1 / (chosen * 1200), rel=1e-12) == result.C
    assert [point.score for point in result.sweep] == list(scores.values())
    assert np.array_equal(result.predictions, logits.argmax(axis=1))
    rows = parts["test"].x / np.linalg.norm(parts["test"].x, axis=1, keepdims=True)
    ours = result.heads[0].logits(rows)
    assert np.allclose(softmax(ours, axis=1), softmax(logits, axis=1), atol=1e-3)  # features are float32 here
    assert result.num_train == 1200


def _coops_choice(fit_at, score_at):
    """Return the C of CoOp's search: 7 values from the largest on, then 8 steps between 0.1 and 10 times the best."""
    values = [1e6, 1e4, 1e2, 1e0, 1e-2, 1e-4, 1e-6]
    peak = values[int(np.argmax([score_at(fit_at(C)) for C in values]))]
    left, right = 0.1 * peak, 10 * peak
    for _ in range(8):
        middle = 10 ** (0.5 * (np.log10(left) + np.log10(right)))
        if score_at(fit_at(left)) < score_at(fit_at(right)):
            chosen, left = right, middle
        else:
            chosen, right = left, middle
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1, 8])
def test_coops_probe_follows_its_search(parts, shots):
    rules = get_protocol(f"coop-lp-{shots}")
    result = fit_probe(train=parts["train"], test=parts["test"], protocol=rules, solver="fast")
    assert len(result.draws) == 3
    for seed, drawn in enumerate(result.draws):
        images = draw_shots(parts["train"].y, shots=shots, held_out=rules.held_out, seed=seed)
        train, val = parts["train"].take(images.train), parts["train"].take(images.held_out)
        fits = {}

        def fit_at(C, train=train, fits=fits):
            return fits.setdefault(C, _fit(C, train.x, train.y))

        chosen = _coops_choice(fit_at, lambda fit, val=val: _score(fit, val))
        assert pytest.approx(chosen, rel=1e-9) == drawn.C
        assert len(drawn.sweep) == 15  # the middle of the first interval is a value of the grid
        assert drawn.score == pytest.approx(_score(fit_at(chosen), parts["test"]), abs=1 / 397)  # one image


def test_coops_group_has_the_shots_of_its_script():
    """C is chosen on 1, 2, 4, 4 and 4 images of each class."""
    assert {get_protocol(name).shots: get_protocol(name).held_out for name in GROUPS["coop-lp"]} == {
        **{1: 1, 2: 2, 4: 4},
        **{8: 4, 16: 4},
    }


def test_mtebs_probe_is_scikit_learns_default_on_16_images_a_class(parts):
    result = fit_probe(train=parts["train"], test=parts["test"], protocol="mteb-16", solver="sklearn")
    scores = []
    for seed in range(5):
        drawn = parts["train"].take(draw_shots(parts["train"].y, shots=16, seed=seed).train)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # mteb has the same warning
            theirs = LogisticRegression(max_iter=100).fit(drawn.x, drawn.y)
        scores.append(theirs.score(parts["test"].x, parts["test"].y))
    assert [drawn.score for drawn in result.draws] == scores


@pytest.mark.slow
def test_vtabs_probe_is_fitted_on_800_images_and_then_on_1000(parts):
    rules = replace(get_protocol("vtab-1k"), num_seeds=1)
    result = fit_probe(train=parts["train"], test=parts["test"], protocol=rules, solver="fast")
    images = draw_shots(parts["train"].y, shots=800, held_out=200, seed=0, per_class=False)
    train, val = parts["train"].take(images.train), parts["train"].take(images.held_out)
    assert (len(train), len(val), result.num_train) == (800, 200, 1000)
    scores = {point.C: _score(_fit(point.C, train.x, train.y), val) for point in result.sweep}
    assert [point.score for point in result.sweep] == list(scores.values())
    assert max(scores, key=scores.get) == result.C
    both = np.concatenate([train.x, val.x]), np.concatenate([train.y, val.y])
    assert result.score == _score(_fit(result.C, *both), parts["test"])


@pytest.mark.parametrize("solver", ["fast", "sklearn"])
def test_a_penalty_of_the_mean_loss_is_the_same_in_the_final_fit(parts, solver):
    """With `refit` the number of images changes, and C with it."""
    rules = replace(get_protocol("open-clip"), refit=True)
    result = fit_probe(**parts, protocol=rules, solver=solver)
    assert 1 / (result.C * 1400) in [pytest.approx(l2) for l2 in (1.0, 0.1, 0.01, 0.001, 0.0001)]
    assert pytest.approx(result.C * 1400) == max(result.sweep, key=lambda point: point.score).C * 1200
    single = fit_probe(**parts, protocol=replace(rules, grid=(100.0,)), solver=solver)
    assert single.C == 100 / 1400
