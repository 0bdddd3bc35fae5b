"""Calibration: how well the probabilities of a probe agree with its hits. Proper scores, ECE and temperature scaling.

With one label per image, an answer is the class with the highest probability, and it is a hit if it is the label. If an
image can show several classes, each pair of an image and a class is an answer: its probability is that of the class,
and it is a hit if the image shows the class. Pairs with the label -1 do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from probe.stats.metrics import IGNORED
from probe.stats.top_classes import SIGMOID, SOFTMAX, to_probabilities

NUM_BINS = 15  # of equal width, as in Guo et al. 2017
NUM_DRAWS = 1000  # draws of the bootstrap of ECE
CELLS = 1 << 16  # drawn images in memory at a time
SEED = 0  # fixed, so that records are reproducible
ROWS = 4096  # images whose probabilities are in memory at a time
SMALLEST_VAL = 50  # images; from fewer, a temperature would be noise
TEMPERATURES = (1e-2, 1e2)  # limits of a fitted temperature


@dataclass(frozen=True)
class Calibration:
    """Calibration of a probe on n answers.

    Args:
        nll: mean negative log-likelihood of the labels in nats; for several labels, of all pairs.
        brier: Brier score: mean over images of the squared distance between the probabilities of all classes and the
            label; for several labels, mean squared difference of all pairs.
        ece: expected calibration error over `NUM_BINS` bins of equal width, weighted by their answers.
        ece_low: lower bound of the 95 % bootstrap interval of `ece`.
        ece_high: upper bound.
        counts: number of answers of each bin.
        confidences: mean probability of the answers of each bin; 0 in an empty bin.
        accuracies: share of hits of each bin; 0 in an empty bin.
    """

    nll: float
    brier: float
    ece: float
    ece_low: float
    ece_high: float
    counts: tuple[int, ...]
    confidences: tuple[float, ...]
    accuracies: tuple[float, ...]


def measure_calibration(
    y: np.ndarray, logits: np.ndarray, *, temperatures: Sequence[float] = (1.0,), draws: int = NUM_DRAWS
) -> list[Calibration]:
    """Measure the calibration of logits, divided by each of some temperatures.

    Args:
        y: int64 (n,), class indices in [0, k); or (n, k) of 1, 0 and -1 if an image can show several classes.
        logits: float64 (n, k). A class without training images has the logit -inf.
        temperatures: numbers that divide all logits.
        draws: number of bootstrap draws, of images, for the intervals of ECE. All temperatures share the draws.

    Raises:
        ValueError: no answer counts.

    Source: Brier 1950; Guo et al. 2017 (arXiv 1706.04599) for ECE and temperature scaling. The values equal
    scikit-learn's `log_loss` and `brier_score_loss` and torchmetrics' `MulticlassCalibrationError` with 15 bins.
    """
    binned = [_bin_answers(y, logits, temperature) for temperature in temperatures]
    intervals = _bootstrap([bins for bins, _ in binned], draws)
    calibrations = []
    for temperature, (bins, brier), (low, high) in zip(temperatures, binned, intervals, strict=True):
        sums = bins.sum(axis=0)
        number, confident, right = sums
        held, ece = np.maximum(number, 1), float(_ece(sums))
        calibrations.append(
            Calibration(
                nll=nll(y, logits, temperature=temperature),
                brier=brier,
                ece=ece,
                ece_low=min(low, ece),
                ece_high=max(high, ece),
                counts=tuple(number.astype(int).tolist()),
                confidences=tuple((confident / held).tolist()),
                accuracies=tuple((right / held).tolist()),
            )
        )
    return calibrations


def _bin_answers(y: np.ndarray, logits: np.ndarray, temperature: float) -> tuple[np.ndarray, float]:
    """Return the answers of each image in bins, see `_in_bins`, and the Brier score."""
    if y.ndim == 2:
        confidence = to_probabilities(logits / temperature, SIGMOID)
        counted = y != IGNORED
        if not counted.any():
            raise ValueError("calibration needs at least one answer that counts, but there is none")
        hit = y == 1
        return _in_bins(confidence, hit, counted), float(((confidence - hit) ** 2)[counted].mean())
    if not len(y):
        raise ValueError("calibration needs at least one answer that counts, but there is none")
    parts = [
        _answers(y[start : start + ROWS], logits[start : start + ROWS] / temperature)
        for start in range(0, len(y), ROWS)
    ]
    confidence, hit, squared = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _in_bins(confidence, hit, np.ones_like(hit)), float(squared.mean())


def _answers(y: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the probability of the answers and their hits, (n, 1), and the squared distances to the labels, (n,)."""
    probabilities, answer, rows = to_probabilities(logits, SOFTMAX), logits.argmax(axis=1), np.arange(len(y))
    squared = (probabilities**2).sum(axis=1) - 2 * probabilities[rows, y] + 1
    return probabilities[rows, answer][:, None], (answer == y)[:, None], squared


def nll(y: np.ndarray, logits: np.ndarray, *, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of labels in nats; see `measure_calibration` for the arguments.

    It is infinite if a label has the logit -inf.
    """
    if y.ndim == 2:
        losses = np.logaddexp(0, np.where(y == 1, -logits, logits) / temperature)
        return float(losses[y != IGNORED].mean())
    losses = np.empty(len(y))
    for start in range(0, len(y), ROWS):
        some, labels = logits[start : start + ROWS] / temperature, y[start : start + ROWS]
        highest = some.max(axis=1, keepdims=True)
        total = np.log(np.exp(some - highest).sum(axis=1)) + highest[:, 0]
        losses[start : start + ROWS] = total - some[np.arange(len(labels)), labels]
    return float(losses.mean())


def fit_temperature(y: np.ndarray, logits: np.ndarray) -> float:
    """Return the temperature that minimises the negative log-likelihood of logits / temperature on validation images.

    Args:
        y: labels of the validation images, see `measure_calibration`.
        logits: float64 (n, k), by a probe that was not fitted on these images.

    Raises:
        ValueError: there are fewer than `SMALLEST_VAL` images, no label counts, a label has the logit -inf, or the
            likelihood is highest at a limit of `TEMPERATURES`.
    """
    if len(y) < SMALLEST_VAL:
        raise ValueError(f"a temperature needs at least {SMALLEST_VAL} validation images, but there are {len(y)}")
    if (y == IGNORED).all():
        raise ValueError("a temperature needs a label that counts, but all labels of the validation images are -1")
    if not np.isfinite(nll(y, logits)):
        raise ValueError("a class of the validation images has no training image, so its probability is 0")
    from scipy.optimize import minimize_scalar

    loss: Callable[[float], float] = lambda power: nll(y, logits, temperature=float(np.exp(power)))  # noqa: E731 - of one argument
    limits = tuple(np.log(TEMPERATURES))
    found = minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-6})
    if min(map(loss, limits)) <= found.fun:
        low, high = TEMPERATURES
        raise ValueError(f"the NLL of the validation images is lowest at a limit of the range from {low:g} to {high:g}")
    return float(np.exp(found.x))


def _in_bins(confidence: np.ndarray, hit: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the number of answers, their summed probability and their hits of each image in each bin.

    Bin i holds the probabilities in (i / NUM_BINS, (i + 1) / NUM_BINS], and the first also 0.

    Args:
        confidence: float64 (n, a), the probabilities of the answers of each image.
        hit: bool (n, a).
        counted: bool (n, a), False for answers that do not count.

    Returns:
        float64 (n, 3, NUM_BINS).
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, NUM_BINS - 1)
    flat = (np.arange(len(place))[:, None] * NUM_BINS + place).ravel()
    shape = (len(place), NUM_BINS)
    sums = [
        np.bincount(flat, weights=(values * counted).ravel(), minlength=len(place) * NUM_BINS).reshape(shape)
        for values in (np.ones_like(confidence), confidence, hit)
    ]
    return np.stack(sums, axis=1)


def _ece(sums: np.ndarray) -> np.ndarray:
    """Return the expected calibration error of summed bins, float64 (..., 3, NUM_BINS)."""
    number, confident, right = np.moveaxis(sums, -2, 0)
    return np.asarray(np.abs(confident - right).sum(axis=-1) / number.sum(axis=-1))


def _bootstrap(binned: Sequence[np.ndarray], draws: int) -> list[tuple[float, float]]:
    """Return the 2.5 % and 97.5 % percentiles of ECE over resamples of the images, for each array of `_in_bins`."""
    rng, n = np.random.default_rng(SEED), len(binned[0])
    # All that ECE needs, so a draw is cheap: differences of each bin, and the number of answers.
    columns = [np.column_stack([bins[:, 1] - bins[:, 2], bins[:, 0].sum(axis=1)]) for bins in binned]
    flat, drawn, at_once = np.concatenate(columns, axis=1), [], max(1, CELLS // n)
    for start in range(0, draws, at_once):
        images = rng.integers(n, size=(min(at_once, draws - start), n), dtype=np.int32)
        drawn.append(np.stack([np.bincount(row, minlength=n) for row in images]) @ flat)
    intervals = []
    for sums in np.split(np.concatenate(drawn), len(binned), axis=1):
        usable = sums[sums[:, -1] > 0]
        low, high = np.percentile(np.abs(usable[:, :-1]).sum(axis=1) / usable[:, -1], (2.5, 97.5))
        intervals.append((float(low), float(high)))
    return intervals
