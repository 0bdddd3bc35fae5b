"""Confidence intervals are compared with scipy's, and their coverage of a known value is simulated.

The standard error of a coverage from s simulations is sqrt(0.95 * 0.05 / s): 0.8 % for 800 and 1.3 % for 300. The
bounds below are about two standard errors from 95 %. Seeds are fixed, so a test always passes or always fails.
"""

import math

import numpy as np
import pytest
from scipy import stats

from probe.errors import ResultsError
from probe.stats import resampling
from probe.stats.intervals import LEVEL, NUM_DRAWS, interval, quantile, seeds_interval, wilson
from probe.stats.outcomes import Outcomes, make_outcomes


def _right(bits, metric="accuracy", **arrays):
    return Outcomes(metric, {"right": np.asarray(bits, bool), **arrays})


def _coverage(make, truth, *, simulations, **options):
    intervals = [interval(make(), **options) for _ in range(simulations)]
    return np.mean([each.low <= truth <= each.high for each in intervals])


def _covers(share):
    return 0.93 <= share <= 0.985


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (7300, 10000)])
def test_accuracy_has_wilsons_interval(right, n):
    expected = stats.binomtest(right, n).proportion_ci(LEVEL, method="wilson")
    found = interval([_right(np.arange(n) < right)])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.method == "wilson"


@pytest.mark.parametrize(("p", "n"), [(0.5, 50), (0.9, 50), (0.5, 500), (0.9, 500), (0.99, 500)])
def test_accuracy_is_covered(p, n):
    """The coverage is computed exactly, as the probability of all counts whose interval contains the true accuracy."""
    bounds = [wilson(right / n, n) for right in range(n + 1)]
    share = sum(stats.binom.pmf(right, n, p) for right, (low, high) in enumerate(bounds) if low <= p <= high)
    assert _covers(share)


def test_top1_and_top5_together_are_covered():
    rng = np.random.default_rng(0)

    def make():
        u = rng.random(200)
        return [_right(u < 0.7, "mean_top1_top5", among_five=u < 0.94)]

    assert _covers(_coverage(make, 0.82, simulations=800))


def test_a_value_of_half_narrows_the_interval():
    """Values of 0.5 have a smaller variance than values of 0 and 1."""
    u = np.arange(200) / 200
    same = interval([_right(u < 0.7, "mean_top1_top5", among_five=u < 0.7)])
    halves = interval([_right(u < 0.4, "mean_top1_top5", among_five=np.ones(200, bool))])
    assert halves.high - halves.low < 0.7 * (same.high - same.low)


def _classes(sizes, recalls, rng):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return lambda: [_right(rng.random(len(labels)) < recalls[labels], "mean_per_class", labels=labels)]


@pytest.mark.parametrize(
    ("sizes", "lowest"),
    [
        (np.full(47, 40), 0.5),
        (np.linspace(5, 100, 37).astype(int), 0.9),
        (np.linspace(5, 100, 20).astype(int), 0.95),
        (np.arange(1, 11).repeat(10), 0.8),
        (np.full(100, 2), 0.6),
    ],
    ids=["equal", "uneven near 1", "few errors", "1 to 10 images", "2 images"],
)
def test_the_mean_over_classes_is_covered(sizes, lowest):
    rng = np.random.default_rng(1)
    recalls = rng.permutation(np.linspace(lowest, 1, len(sizes)))
    assert _covers(_coverage(_classes(sizes, recalls, rng), recalls.mean(), simulations=800))


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "negatives", "shift"), [(60, 440, 0.3), (60, 440, 1.0), (250, 250, 2.0)])
def test_roc_auc_is_covered(positives, negatives, shift):
    """For two normal distributions with this shift, ROC AUC is Phi(shift / sqrt(2))."""
    rng, y_true = np.random.default_rng(2), np.repeat([1, 0], [positives, negatives])

    def make():
        margin = rng.normal(size=len(y_true)) + shift * y_true
        return [make_outcomes("roc_auc", y_true, np.stack([-margin, margin], axis=1))]

    assert _covers(_coverage(make, (1 + math.erf(shift / 2)) / 2, simulations=400, draws=200))


@pytest.mark.slow
def test_average_precision_is_covered():
    """The true value is the mean over many splits of the same size, with 60 to 200 positive images per class."""
    rng = np.random.default_rng(3)

    def make():
        y_true = (rng.random((1000, 3)) < [0.06, 0.1, 0.2]).astype(int)
        return [make_outcomes("voc2007_11pt_map", y_true, rng.normal(size=(1000, 3)) + 1.5 * y_true)]

    truth = np.mean([make()[0].score() for _ in range(1000)])
    assert _covers(_coverage(make, truth, simulations=300, draws=150))


def test_folds_of_the_same_images_are_covered():
    """An image that is hard for one probe is hard for all probes, so ten folds do not count as ten times the images."""
    rng = np.random.default_rng(4)

    def make():
        probability = rng.beta(2, 0.5, 200)  # of a right answer for each image, mean 0.8
        return [_right(rng.random(200) < probability) for _ in range(10)]

    assert _covers(_coverage(make, 0.8, simulations=800, same_images=True))


def test_folds_of_different_images_are_covered():
    rng, probabilities = np.random.default_rng(5), (0.6, 0.8, 0.95)

    def make():
        return [_right(rng.random(100) < probability) for probability in probabilities]

    assert _covers(_coverage(make, np.mean(probabilities), simulations=800))


@pytest.mark.parametrize("metric", ["roc_auc", "voc2007_11pt_map"])
def test_folds_with_different_images_narrow_the_interval_of_rank_metrics(metric):
    """A second, equal fold changes nothing if it has the same images, and halves the variance if it has others."""
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 2, (300, 1))
    score = rng.normal(size=(300, 1)) + y_true
    fold = (
        make_outcomes(metric, y_true, score)
        if metric != "roc_auc"
        else make_outcomes(metric, y_true[:, 0], np.concatenate([-score, score], axis=1))
    )
    one, same, other = (
        interval([fold] * num, same_images=same_images, draws=1000)
        for num, same_images in ((1, False), (2, True), (2, False))
    )
    assert (same.low, same.high) == pytest.approx((one.low, one.high), abs=1e-12)
    # Tolerance: the 2 % standard error of 1000 draws; and Wilson's interval is not quite linear in the standard error.
    assert (other.high - other.low) / (one.high - one.low) == pytest.approx(0.5**0.5, rel=0.08)


def _perfect():
    y_true = np.arange(40) % 2
    yield _right(np.ones(40), "mean_top1_top5", among_five=np.ones(40, bool))
    yield _right(np.ones(40), "mean_per_class", labels=y_true)
    yield make_outcomes("roc_auc", y_true, np.stack([-y_true, y_true], axis=1))
    yield make_outcomes("voc2007_11pt_map", y_true[:, None], y_true[:, None])


@pytest.mark.parametrize("outcomes", list(_perfect()), ids=lambda outcomes: outcomes.metric)
def test_a_perfect_score_is_not_certain(outcomes):
    """If 20 of 20 or 40 of 40 answers are right, an error rate of some percent is still possible."""
    found = interval([outcomes])
    assert found.high == 1
    assert 0.8 < found.low < 0.95


def test_the_same_outcomes_have_the_same_interval():
    rng = np.random.default_rng(0)
    outcomes = make_outcomes("roc_auc", rng.integers(0, 2, 100), rng.normal(size=(100, 2)))
    assert interval([outcomes]) == interval([outcomes])


def test_voc_is_resampled_in_few_passes(monkeypatch):
    """Draws are scored together in a few vectorised passes over the classes, which take most of the time."""
    passes = []

    def scores_of(outcomes, counts):
        passes.append(len(counts))
        return counts @ np.ones(len(outcomes)) / counts.sum(axis=1) / 2

    monkeypatch.setattr(resampling, "scores_of", scores_of)
    rng = np.random.default_rng(0)
    y_true = (rng.random((5000, 20)) < 0.06).astype(int)
    interval([make_outcomes("voc2007_11pt_map", y_true, rng.normal(size=(5000, 20)))])
    assert sum(passes) == NUM_DRAWS
    assert len(passes) <= 8


def test_folds_of_different_images_or_metrics_are_refused():
    short, long = _right(np.ones(3)), _right(np.ones(4))
    with pytest.raises(ValueError, match="expected the outcomes of at least one fold"):
        interval([])
    with pytest.raises(ValueError, match="expected the outcomes of at least one fold"):
        interval([_right([])])
    with pytest.raises(ResultsError, match="different test images"):
        interval([short, long], same_images=True)
    with pytest.raises(ResultsError, match="accuracy and top5"):
        interval([short, _right(np.ones(3), "top5")])


@pytest.mark.parametrize("freedom", [1, 4, 4.9, 30, 31, 40.5, 1000])
def test_quantiles_are_students(freedom):
    """This includes more than 30 degrees of freedom, where tables often end, and fractions."""
    assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


def test_the_quantile_for_infinite_freedom_is_the_normal_distributions():
    assert quantile(math.inf) == pytest.approx(stats.norm.ppf(0.975), rel=1e-15)


@pytest.mark.parametrize("n", [2, 3, 10, 31, 32, 100])
def test_seeds_have_students_interval(n):
    scores = np.random.default_rng(n).normal(0.5, 0.02, n)
    expected = stats.t.interval(LEVEL, n - 1, scores.mean(), stats.sem(scores))
    found = seeds_interval(scores)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)


def test_seeds_stay_between_zero_and_one():
    found = seeds_interval([0.9, 1.0])
    assert 0 <= found.low < found.high == 1


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="expected the scores of at least 2 draws, got 1"):
        seeds_interval([0.5])
