import json
import os
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from probe.environment import threads
from probe.errors import FeaturesError, ProtocolError, UnknownNameError
from probe.features.arrays import Features
from probe.models.memory import DeviceMemory
from probe.probes.cached_fits import FitCache
from probe.probes.fit import fit_folds, fit_probe
from probe.probes.fits import Weights, for_classes
from probe.probes.result import mean_result
from probe.probes.shots import draw_shots
from probe.probes.solvers.catalog import SOLVERS, get_solver
from probe.probes.supplied_records import hold_out_validation
from probe.records.packing import unpack
from probe.specs import Protocol
from probe.stats.intervals import interval, wilson
from probe.stats.metrics import get_metric

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
    by_hand = LogisticRegression(C=0.316, max_iter=1000, tol=1e-6).fit(x, y)
    assert result.score == by_hand.score(parts["test"].x, parts["test"].y)
    assert np.array_equal(result.predictions, by_hand.predict(parts["test"].x))
    assert (result.num_train, result.num_test, result.C, result.sweep) == (600, 400, 0.316, ())


@pytest.mark.slow
def test_blas_has_no_more_threads_than_torch():
    """BLAS would use all hyperthreads by default. Workers have fewer threads, which changes the order of sums."""
    rng = np.random.default_rng(0)
    y = np.arange(4000) % 10  # enough images for `fast` to use more than one thread
    x = (rng.normal(size=(10, 256))[y] + 4 * rng.normal(size=(4000, 256))).astype(np.float32)
    parts = {"train": Features(x[:3600], y[:3600]), "test": Features(x[3600:], y[3600:])}
    found = []
    for num_torch, num_blas in ((1, 1), (1, 2), (2, 2)):
        with threads(num_torch, blas=num_blas):
            found.append(fit_probe(**parts, protocol="readme").to_record())
    assert found[0] == found[1]
    if os.cpu_count() > 1:  # with one core, two threads make no difference
        assert found[0] != found[2]


def test_a_search_chooses_on_val_and_refits(parts):
    result = fit_probe(**parts, protocol=SHORT, solver="sklearn")
    train, val, test = parts["train"], parts["val"], parts["test"]
    fits = {C: LogisticRegression(C=C, max_iter=200, tol=1e-6).fit(train.x, train.y) for C in SHORT.grid}
    scores = {C: fit.score(val.x, val.y) for C, fit in fits.items()}
    assert {point.C: point.score for point in result.sweep} == scores
    assert max(scores, key=scores.get) == result.C
    x, y = np.concatenate([train.x, val.x]), np.concatenate([train.y, val.y])
    refit = LogisticRegression(C=result.C, max_iter=200, tol=1e-6).fit(x, y)
    assert result.score == refit.score(test.x, test.y)


def test_test_labels_cannot_move_the_choice(parts):
    """The test split is read once, after C is chosen."""
    shuffled = Features(parts["test"].x, parts["test"].y[::-1].copy(), parts["test"].pre_projection)
    first, second = fit_probe(**parts, protocol=SHORT), fit_probe(**{**parts, "test": shuffled}, protocol=SHORT)
    assert (first.C, first.sweep) == (second.C, second.sweep)
    assert first.score != second.score


def test_the_protocol_names_the_feature_point(parts):
    """The paper takes the features before the projection."""
    same = {name: Features(p.x * 0, p.y, p.pre_projection) for name, p in parts.items()}
    assert fit_probe(**same, protocol="readme").score < 0.2
    before = Protocol("before", "", "pre_projection", (0.1,), 1, 200, 1e-6, "")
    assert fit_probe(**same, protocol=before).score > 0.8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p.pop("val"), ProtocolError, "give val"),
        (lambda p: p.update(train=Features(p["train"].x, p["train"].y * 0)), ProtocolError, "at least two classes"),
        (
            lambda p: p.update(test=Features(p["test"].x[:, :9], p["test"].y)),
            FeaturesError,
            "different numbers of feat",
        ),
        (lambda p: p.update(test=Features(p["test"].x[:9], p["test"].y)), FeaturesError, "400 labels"),
        (lambda p: p.update(test=Features(p["test"].x, p["test"].y[:, None])), FeaturesError, "test has labels"),
        (lambda p: p.update(val=Features(p["val"].x, p["val"].y - 1)), FeaturesError, "val has the label -1 in row"),
    ],
)
def test_invalid_features_are_refused(parts, change, error, message):
    changed = dict(parts)
    change(changed)
    with pytest.raises(error, match=message):
        fit_probe(**changed, protocol=SHORT)


def test_a_near_protocol_is_offered(parts):
    with pytest.raises(UnknownNameError, match="did you mean 'clip-paper'"):
        fit_probe(**parts, protocol="clip_paper")


@pytest.fixture(scope="module")
def several(parts):
    """Label digits as "even", "more than four" and "round". For "round", eights do not count."""

    def labels(y):
        is_round = np.where(y == 8, -1, np.isin(y, [0, 6, 9]))
        return np.stack([y % 2 == 0, y > 4, is_round], axis=1).astype(np.int64)

    return {name: Features(part.x, labels(part.y)) for name, part in parts.items()}


def test_multi_label_images_have_one_probe_for_each_class(several):
    """Each probe equals scikit-learn's on the images that count for the class, and the score uses its logits."""
    one = Protocol("one", "", "projected", (0.5,), 1, 500, 1e-6, "")
    result = fit_probe(**several, metric="voc2007_11pt_map", protocol=one, solver="sklearn")
    x = np.concatenate([several["train"].x, several["val"].x])
    y = np.concatenate([several["train"].y, several["val"].y])
    logits = []
    for k in range(3):
        counts = y[:, k] >= 0
        by_hand = LogisticRegression(C=0.5, max_iter=500, tol=1e-6).fit(x[counts], y[counts, k])
        logits.append(by_hand.decision_function(several["test"].x))
    scores = np.stack(logits, axis=1)
    assert result.score == get_metric("voc2007_11pt_map")(several["test"].y, scores)
    assert np.array_equal(result.predictions, scores > 0)
    assert 0.9 < result.score < 1


def test_all_classes_of_multi_label_images_have_the_same_c(several):
    result = fit_probe(**several, metric="voc2007_11pt_map", protocol=SHORT)
    assert [point.C for point in result.sweep] == list(SHORT.grid)
    assert result.C in SHORT.grid


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_class_without_positive_images_gets_the_lowest_scores(several, solver):
    """The probes of the other classes are fitted."""
    without = {name: Features(p.x, np.where([True, True, False], p.y, 0)) for name, p in several.items()}
    fitted = get_solver(solver)([without["train"].x], without["train"].y, max_iter=500, tol=1e-6).fit(0.5)
    assert fitted.classes.tolist() == [0, 1]
    scores = fitted.scores(without["test"].x, 3)
    assert np.isneginf(scores[:, 2]).all()
    assert np.isfinite(scores[:, :2]).all()


def test_labels_of_different_shapes_are_refused(parts, several):
    with pytest.raises(FeaturesError, match=r"test has labels of shape \(400,\), but one image of train has .* \(3,\)"):
        fit_probe(**{**several, "test": parts["test"]}, protocol="readme")


def test_the_mean_over_folds_contains_every_fold(parts):
    one = fit_probe(**parts, protocol="readme")
    other = fit_probe(train=parts["val"], val=parts["train"], test=parts["test"], protocol=SHORT)
    mean = mean_result([one, other])
    assert mean.score == (one.score + other.score) / 2
    assert mean.folds == (one, other)
    assert mean.C is None
    assert mean_result([one, one]).C == one.C
    assert mean.n_iter == max(one.n_iter, other.n_iter)
    assert len(mean.predictions) == 800
    assert not hasattr(mean.to_record().folds[0], "predictions")


def test_the_mean_over_one_fold_is_the_result_of_the_fold(parts):
    one = fit_probe(**parts, protocol="readme")
    assert mean_result([one]) is one


@pytest.mark.parametrize("solver", SOLVERS)
def test_few_shots_are_fits_on_draws_and_their_mean(parts, solver):
    """The second way of computing draws the images, chooses C on `val`, and leaves `val` out of the final fit."""
    rules = replace(SHORT, shots=3, num_seeds=2, refit=False)
    result = fit_probe(**parts, protocol=rules, solver=solver)
    scores = []
    for seed, drawn in enumerate(result.draws):
        images = draw_shots(parts["train"].y, shots=3, seed=seed)
        rows = images.train
        assert (drawn.seed, drawn.num_train, drawn.draw_sha256) == (seed, 30, images.compute_digest())
        shots = parts["train"].take(rows)
        fits = {C: LogisticRegression(C=C, max_iter=2000, tol=1e-8).fit(shots.x, shots.y) for C in SHORT.grid}
        on_val = {C: fit.score(parts["val"].x, parts["val"].y) for C, fit in fits.items()}
        scores.append(fits[max(on_val, key=on_val.get)].score(parts["test"].x, parts["test"].y))
    assert [drawn.score for drawn in result.draws] == pytest.approx(scores, abs=1 / 400)  # one image
    assert result.score == pytest.approx(np.mean(scores), abs=1 / 400)
    assert result.interval.method == "student"


@pytest.mark.parametrize("solver", SOLVERS)
def test_iterations_of_the_final_fit_include_the_fit_of_the_sweep(parts, solver):
    """The final fit of `fast` starts from the sweep's fit at the same C and needs almost no iterations of its own."""
    result = fit_probe(**parts, protocol=replace(SHORT, shots=3, num_seeds=2, refit=False), solver=solver)
    for drawn in result.draws:
        (chosen,) = [point for point in drawn.sweep if point.C == drawn.C]
        assert drawn.n_iter >= chosen.n_iter > 1


def test_held_out_shots_choose_c_and_need_no_validation_split(parts):
    rules = replace(SHORT, shots=2, held_out=2, num_seeds=2, refit=False)
    result = fit_probe(train=parts["train"], test=parts["test"], protocol=rules, solver="fast")
    drawn = draw_shots(parts["train"].y, shots=2, held_out=2, seed=1)
    other = fit_probe(
        train=parts["train"].take(drawn.train),
        val=parts["train"].take(drawn.held_out),
        test=parts["test"],
        protocol=replace(SHORT, refit=False),
        solver="fast",
    )
    assert result.draws[1].sweep == other.sweep
    assert result.draws[1].score == other.score


def test_normalized_features_do_not_depend_on_their_length(parts):
    rules = replace(SHORT, normalize=True)
    scaled = {name: Features(p.x * 7, p.y) for name, p in parts.items()}
    assert fit_probe(**scaled, protocol=rules, solver="fast").score == pytest.approx(
        fit_probe(**parts, protocol=rules, solver="fast").score, abs=1 / 400
    )


def test_the_fast_solver_equals_scikit_learn_in_float64(parts):
    """In float32 scikit-learn would stop early because of rounding errors, and single predictions could differ."""
    result = fit_probe(**parts, protocol=SHORT, solver="fast")
    exact = {name: (part.x.astype(np.float64), part.y) for name, part in parts.items()}
    fits = {C: LogisticRegression(C=C, max_iter=20000, tol=1e-9).fit(*exact["train"]) for C in SHORT.grid}
    assert [point.score for point in result.sweep] == [fit.score(*exact["val"]) for fit in fits.values()]
    both = [np.concatenate(pair) for pair in zip(exact["train"], exact["val"], strict=True)]
    refit = LogisticRegression(C=result.C, max_iter=20000, tol=1e-9).fit(*both)
    assert np.array_equal(result.predictions, refit.predict(exact["test"][0]))
    assert result.converged


def test_multi_label_probes_of_fast_equal_separate_probes(several):
    """The separate probes are scikit-learn's in float64."""
    result = fit_probe(**several, metric="voc2007_11pt_map", protocol=replace(SHORT, grid=(0.5,)), solver="fast")
    x = np.concatenate([several["train"].x, several["val"].x]).astype(np.float64)
    y = np.concatenate([several["train"].y, several["val"].y])
    logits = []
    for k in range(3):
        counts = y[:, k] >= 0
        by_hand = LogisticRegression(C=0.5, max_iter=5000, tol=1e-9).fit(x[counts], y[counts, k])
        logits.append(by_hand.decision_function(several["test"].x))
    scores = np.stack(logits, axis=1)
    assert result.converged
    assert np.array_equal(result.predictions, scores > 0)
    # Average precision jumps when two images swap ranks, which rounding errors of their scores can cause.
    assert result.score == pytest.approx(get_metric("voc2007_11pt_map")(several["test"].y, scores), abs=1e-3)


def test_the_interval_is_wilsons_and_the_outcomes_give_the_score(parts):
    result = fit_probe(**parts, protocol="readme", solver="fast")
    assert (result.interval.low, result.interval.high) == wilson(result.score, 400)
    (outcomes,) = result.outcomes
    assert np.array_equal(outcomes.values == 1, result.predictions == parts["test"].y)
    (packed,) = result.to_record().outcomes
    assert unpack(packed).score() == result.score
    json.dumps(asdict(result.to_record()))


def test_the_first_row_that_is_not_finite_is_named(parts):
    x = parts["val"].x.copy()
    x[7, 3] = np.inf
    x[9] = np.nan
    with pytest.raises(FeaturesError, match="val has features that are not finite, first in row 7"):
        fit_probe(**{**parts, "val": Features(x, parts["val"].y)}, protocol=SHORT)


def test_a_class_without_training_images_is_logged(parts, caplog):
    few = {name: part.take(np.flatnonzero(part.y != 4)) for name, part in parts.items() if name != "test"}
    fit_probe(**few, test=parts["test"], protocol=SHORT, solver="fast")
    assert "1 classes of the test split have no training image, so their test images count as wrong: 4" in caplog.text


class _StopError(Exception):
    pass


@dataclass
class _Counting(FitCache):
    """Cache that counts the stored fits and raises an error after some."""

    breaks_after: int = 1000
    made: int = 0

    def store(self, key, fit):
        super().store(key, fit)
        self.made += 1
        if self.made == self.breaks_after:
            raise _StopError


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_interrupted_sweep_goes_on_where_it_was(parts, solver, tmp_path):
    """Finished fits are not repeated, and the result equals the result of an uninterrupted sweep."""
    rules = replace(SHORT, grid=tuple(10.0 ** np.arange(-6, 1)), coarse_step=2)
    whole = fit_probe(**parts, protocol=rules, solver=solver)
    with pytest.raises(_StopError):
        fit_probe(**parts, protocol=rules, solver=solver, fit_cache=_Counting(tmp_path, breaks_after=3))
    assert len(list(tmp_path.glob("*.npz"))) == 3
    cached = _Counting(tmp_path)
    resumed = fit_probe(**parts, protocol=rules, solver=solver, fit_cache=cached)
    assert cached.made == len(whole.sweep) + 1 - 3
    if solver == "sklearn":
        assert resumed == whole
    # Fits that run together are equal up to their tolerance, because the width of a product changes its order of sums.
    assert (resumed.C, resumed.score) == (whole.C, whole.score)
    assert [(point.C, point.score) for point in resumed.sweep] == [(point.C, point.score) for point in whole.sweep]
    assert resumed.objective == pytest.approx(whole.objective, rel=1e-9)
    cached.clear()
    assert not list(tmp_path.glob("*.npz"))


def test_a_damaged_cached_fit_is_not_read(parts, tmp_path):
    cached = FitCache(tmp_path)
    fit = get_solver("fast")([parts["train"].x], parts["train"].y, max_iter=100, tol=1e-6).fit(1.0)
    cached.store("name", fit)
    again = cached.find("name")
    assert np.array_equal(again.coef, fit.coef)
    assert (again.C, again.converged, again.classes.tolist()) == (1.0, True, list(range(10)))
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-100])
    assert cached.find("name") is None


def test_held_out_images_are_a_share_of_every_class(parts):
    fold = hold_out_validation({"train": parts["train"], "test": parts["test"]}, 0.25, seed=3)
    counts = [np.bincount(fold[name].y, minlength=10) for name in ("train", "val")]
    assert np.array_equal(sum(counts), np.bincount(parts["train"].y))
    assert np.all(np.abs(counts[1] / sum(counts) - 0.25) < 0.02)
    same, other = (hold_out_validation({"train": parts["train"], "test": parts["test"]}, 0.25, seed=s) for s in (3, 4))
    assert np.array_equal(same["val"].x, fold["val"].x)
    assert not np.array_equal(other["val"].x, fold["val"].x)


@pytest.mark.parametrize("fraction", [1.5, 1.0, 0.0, -0.3, float("nan")])
def test_only_a_share_of_the_images_is_held_out(parts, fraction):
    with pytest.raises(FeaturesError, match=f"validation is {fraction}; give a number between 0 and 1"):
        hold_out_validation({"train": parts["train"], "test": parts["test"]}, fraction)


def test_a_fit_that_needs_more_than_the_free_memory_is_refused(parts, monkeypatch):
    monkeypatch.setattr("probe.probes.costs.device_memory", lambda device: DeviceMemory(10**6, 10**6))
    with pytest.raises(
        ProtocolError, match=r"needs about 0.\d GB of memory in addition to the features, but only 0.0 GB are free"
    ):
        fit_probe(**parts, protocol="readme", solver="fast")


def test_folds_of_the_same_test_images_are_one_sample_of_images(parts):
    """The folds of STL-10 have the same test images, so they do not make the interval narrower."""
    folds = [{**parts, "train": parts["train"].take(np.arange(k, 400, 2))} for k in range(2)]
    result = fit_folds(folds, protocol="readme", solver="fast")
    assert result.same_images
    assert len(result.outcomes) == 2
    assert result.interval == interval(result.outcomes, same_images=True)


def _blobs(n, labels, seed):
    """Make Gaussian classes whose means lie on a line, with the given labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(labels, n)
    return Features((rng.normal(size=(n, 8)) + y[:, None]).astype(np.float32), y)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("trained", [(0, 1, 2), (0, 2), (1, 3), (3, 0, 1)], ids=str)
def test_a_class_that_only_validation_has_is_in_the_final_fit(trained, solver):
    """A fit that starts from a fit with fewer classes has the same optimum as a fit from weights of zero."""
    splits = {"train": _blobs(90, trained, 1), "val": _blobs(60, range(4), 2), "test": _blobs(60, range(4), 3)}
    rules = replace(SHORT, grid=(0.01, 0.1, 1.0), max_iter=5000, tol=1e-8, warm_start=True)
    result = fit_probe(**splits, protocol=rules, solver=solver)
    x, y = (np.concatenate([getattr(splits[name], at) for name in ("train", "val")]) for at in "xy")
    by_hand = LogisticRegression(C=result.C, max_iter=5000, tol=1e-9).fit(x.astype(np.float64), y)
    assert result.converged
    # One prediction may differ, because the features are rounded to float32.
    assert np.mean(result.predictions != by_hand.predict(splits["test"].x.astype(np.float64))) <= 1 / 60


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_label_that_only_validation_has_is_in_the_final_fit(several, solver):
    """Images can have several labels, as in Pascal VOC."""
    without = Features(several["train"].x, np.where([True, True, False], several["train"].y, 0))
    rules = replace(SHORT, warm_start=True)
    result = fit_probe(**{**several, "train": without}, metric="voc2007_11pt_map", protocol=rules, solver=solver)
    assert result.predictions[:, 2].any()


@pytest.mark.parametrize(("known", "wanted"), [((0, 2, 5), (0, 1, 2, 5, 7)), ((2, 5), (1, 2, 5)), ((0, 2, 5), (2, 5))])
def test_a_start_for_other_classes_has_the_same_logits_for_common_classes(known, wanted):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    fit = get_solver("sklearn")([x], np.resize(known, 60), max_iter=50, tol=1e-6).fit(1.0)
    matched = for_classes(fit, np.array(wanted))
    assert len(matched.coef) == (1 if len(wanted) == 2 else len(wanted))
    both = np.intersect1d(known, wanted)
    # Logits may differ by a shift of all logits and by float32 rounding.
    differences = [np.diff(one.scores(x, 8)[:, both], axis=1) for one in (fit, matched)]
    np.testing.assert_allclose(*differences, atol=1e-5)


def test_weights_are_compared_by_identity():
    """The truth value of a comparison of arrays is an error in NumPy."""
    first, second = (Weights(np.zeros((3, 2)), np.zeros(3)) for _ in range(2))
    assert first != second
    assert len({first, second}) == 2
