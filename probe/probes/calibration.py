"""Calibration of a probe in its result: before and after temperature scaling, or the reason for no temperature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probe.records.packing import pack_bins
from probe.records.schema import CalibrationRecord, CalibrationScores
from probe.stats.calibration import Calibration, fit_temperature, measure_calibration

DIGITS = 6  # decimals of the numbers in a record
INFINITE = "no NLL: a test image has a label with the probability 0"


def calibrate(
    y: np.ndarray,
    logits: np.ndarray,
    *,
    val_y: np.ndarray | None = None,
    val_logits: np.ndarray | None = None,
    reason: str = "",
) -> CalibrationRecord | None:
    """Measure the calibration of the test logits, and of these logits with a temperature fitted on validation images.

    Args:
        y: labels of the test images, see `measure_calibration`.
        logits: float64 (n, k), of the test images.
        val_y: labels of the validation images.
        val_logits: float64 (m, k), of the validation images by a fit that did not use them; None fits no temperature.
        reason: reason why there are no such logits.

    Returns:
        The calibration; None if no label of a test image counts.
    """
    if y.ndim == 2 and not (y >= 0).any():
        return None
    temperature, reasons = None, [reason] if reason else []
    if val_y is not None and val_logits is not None:
        try:
            temperature = float(f"{fit_temperature(val_y, val_logits):.{DIGITS}g}")
        except ValueError as err:
            reasons.append(f"no temperature: {err}")
    temperatures = (1.0,) if temperature is None else (1.0, temperature)
    before, *after = map(_round, measure_calibration(y, logits, temperatures=temperatures))
    if before.nll is None:
        reasons.append(INFINITE)
    return CalibrationRecord(before, after[0] if after else None, temperature, tuple(reasons))


def mean_calibration(calibrations: Sequence[CalibrationRecord | None]) -> CalibrationRecord | None:
    """Return the mean scores over folds or draws, without intervals and bins; None if a fold or draw has none.

    The mean has `after` if all of them have it.
    """
    known = [one for one in calibrations if one is not None]
    if not known or len(known) < len(calibrations):
        return None
    after = [one.after for one in known if one.after is not None]
    temperatures = {one.temperature for one in known}
    return CalibrationRecord(
        _mean([one.before for one in known]),
        _mean(after) if len(after) == len(known) else None,
        temperatures.pop() if len(temperatures) == 1 else None,
        tuple(dict.fromkeys(reason for one in known for reason in one.reasons)),
    )


def logits_of_shares(shares: np.ndarray, *, is_multi_label: bool) -> np.ndarray:
    """Return logits float64 (n, k) whose probabilities are the shares (n, k) of votes; infinite for 0 and 1.

    Args:
        shares: fractions in [0, 1].
        is_multi_label: True if each class has a separate probability; otherwise, the classes of an image sum to 1.
    """
    with np.errstate(divide="ignore"):
        return np.log(shares) - np.log1p(-shares) if is_multi_label else np.log(shares)


def _round(found: Calibration) -> CalibrationScores:
    return CalibrationScores(
        nll=round(found.nll, DIGITS) if np.isfinite(found.nll) else None,
        brier=round(found.brier, DIGITS),
        ece=round(found.ece, DIGITS),
        ece_low=round(found.ece_low, DIGITS),
        ece_high=round(found.ece_high, DIGITS),
        bins=pack_bins(found.counts, found.confidences, found.accuracies),
    )


def _mean(scores: Sequence[CalibrationScores]) -> CalibrationScores:
    losses = [one.nll for one in scores if one.nll is not None]
    return CalibrationScores(
        nll=round(float(np.mean(losses)), DIGITS) if len(losses) == len(scores) else None,
        brier=round(float(np.mean([one.brier for one in scores])), DIGITS),
        ece=round(float(np.mean([one.ece for one in scores])), DIGITS),
        num_bins=next((one.num_bins if one.bins is None else one.bins.shape[1] for one in scores), None),
    )
