"""Calibration equals scikit-learn and torchmetrics, and temperatures equal the results of a direct minimisation."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss

from probe.stats.calibration import fit_temperature, measure_calibration, nll

RNG = np.random.default_rng(0)


def measure(y, logits, *, temperature=1.0, **options):
    """Measure the calibration for one temperature."""
    (found,) = measure_calibration(y, logits, temperatures=(temperature,), **options)
    return found


def _made(n=400, k=5, scale=3.0):
    rng = np.random.default_rng(n + k)
    y = rng.integers(k, size=n)
    logits = rng.standard_normal((n, k))
    logits[np.arange(n), y] += 1.5
    return y, scale * logits


@pytest.mark.parametrize(("n", "k"), [(400, 5), (60, 2), (1000, 40)])
def test_scores_equal_scikit_learn(n, k):
    y, logits = _made(n, k)
    found, chances = measure(y, logits, draws=20), softmax(logits, axis=1)
    assert found.nll == pytest.approx(log_loss(y, chances, labels=range(k)), rel=1e-9)
    one_hot = np.eye(k)[y]
    assert found.brier == pytest.approx(((chances - one_hot) ** 2).sum(axis=1).mean(), rel=1e-12)
    expected = brier_score_loss(y, chances, labels=range(k), scale_by_half=False)
    assert found.brier == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "k"), [(400, 5), (60, 2), (1000, 40)])
def test_ece_equals_torchmetrics(n, k):
    classification = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    y, logits = _made(n, k)
    chances = torch.from_numpy(softmax(logits, axis=1))
    expected = classification.multiclass_calibration_error(chances, torch.from_numpy(y), num_classes=k, n_bins=15)
    assert measure(y, logits, draws=20).ece == pytest.approx(float(expected), abs=1e-6)


def test_ece_is_the_weighted_gap_of_its_bins():
    y, logits = _made()
    found = measure(y, logits)
    chances = softmax(logits, axis=1)
    confidence, hit = chances.max(axis=1), chances.argmax(axis=1) == y
    gaps = []
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        assert found.counts[i] == inside.sum()
        if inside.any():
            assert found.confidences[i] == pytest.approx(confidence[inside].mean())
            assert found.accuracies[i] == pytest.approx(hit[inside].mean())
            gaps.append(inside.mean() * abs(confidence[inside].mean() - hit[inside].mean()))
    assert found.ece == pytest.approx(sum(gaps))
    assert 0 <= found.ece_low <= found.ece <= found.ece_high <= 1
    assert found == measure(y, logits)


def test_several_labels_count_as_pairs():
    y = (RNG.random((200, 4)) < 0.3).astype(np.int64)
    y[::9, 2] = -1
    logits = RNG.standard_normal((200, 4)) * 2
    found, counted = measure(y, logits, draws=20), y != -1
    chances, hits = expit(logits)[counted], y[counted]
    assert found.nll == pytest.approx(log_loss(hits, chances), rel=1e-9)
    assert found.brier == pytest.approx(brier_score_loss(hits, chances), rel=1e-9)
    assert sum(found.counts) == counted.sum()


def test_a_temperature_minimises_the_likelihood_and_repairs_scaled_logits():
    y, logits = _made(2000, 5, scale=1.0)
    best = fit_temperature(y, logits)
    losses = {step: nll(y, logits / (best * step)) for step in (0.9, 0.99, 1.0, 1.01, 1.1)}
    assert min(losses, key=losses.__getitem__) == 1.0
    assert fit_temperature(y, 7 * logits) == pytest.approx(7 * best, rel=1e-3)
    scaled = measure(y, 7 * logits / fit_temperature(y, 7 * logits))
    assert scaled.ece < measure(y, 7 * logits).ece / 3


def test_bad_input():
    y, logits = _made(40)
    with pytest.raises(ValueError, match="at least 50 validation images, but there are 40"):
        fit_temperature(y, logits)
    y, logits = _made(60)
    logits[:, 1] = -np.inf
    with pytest.raises(ValueError, match="has no training image"):
        fit_temperature(y, logits)
    with pytest.raises(ValueError, match="all labels of the validation images are -1"):
        fit_temperature(np.full((60, 2), -1), np.zeros((60, 2)))
    with pytest.raises(ValueError, match="at least one answer"):
        measure(np.full((3, 2), -1), np.zeros((3, 2)))


@pytest.mark.parametrize("factor", [1e4, 1.0, -1.0, 0.0])
def test_a_temperature_at_a_limit_is_refused(factor):
    """If all answers are right, any lower temperature is better; if all are wrong, any higher one."""
    y = np.arange(60) % 3
    with pytest.raises(ValueError, match=r"lowest at a limit of the range from 0\.01 to 100"):
        fit_temperature(y, factor * np.eye(3)[y])


def test_temperatures_together_equal_each_alone():
    y, logits = _made()
    together = measure_calibration(y, logits, temperatures=(1.0, 2.5), draws=50)
    assert together == [measure(y, logits, draws=50), measure(y, logits, temperature=2.5, draws=50)]
