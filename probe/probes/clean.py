"""Clean score of a run: its score without test images that have the same pixels as a training or validation image.

Nothing is fitted again. The score on all test images stays the score of the run. All images of the training and
validation splits count, whichever of them a protocol uses, so that the clean scores of all protocols are on the same
test images. A zero-shot run, which has no training images, leaves out the same test images for this reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from probe.probes.result import ProbeResult, score_parts
from probe.records.packing import pack_array
from probe.records.schema import CleanRecord, IntervalRecord
from probe.stats.equal_images import Leaks
from probe.stats.outcomes import Outcomes


def score_clean(result: ProbeResult, leaks: Sequence[Leaks]) -> CleanRecord:
    """Score a run without the leaked test images.

    Args:
        result: the result of the run.
        leaks: leaked images among the test images of each fold, in the order of the outcomes. If all folds have the
            same test images, an image that is leaked in one fold is left out of all folds.
    """
    if result.same_images:
        leaks = [Leaks(*(np.any([getattr(one, name) for one in leaks], axis=0) for name in ("leaked", "differing")))]
    parts, num_folds = result.parts, len(result.folds) or 1
    num_draws = len(parts) // num_folds
    kept = [np.flatnonzero(~one.leaked) for one in leaks]
    outcomes = [_take(part.outcomes[0], kept[i // num_draws % len(kept)]) for i, part in enumerate(parts)]
    around, reason = None, ""
    scores = [0.0]
    try:
        if any(len(one) == 0 for one in outcomes):
            raise ValueError("no test image remains")
        scores, around = score_parts(outcomes, num_draws, same_images=result.same_images)
    except ValueError as err:
        reason = str(err)
    return CleanRecord(
        score=None if around is None else float(np.mean(scores)),
        interval=None if around is None else IntervalRecord(**asdict(around)),
        num_test=sum(map(len, kept)),
        num_left_out=sum(int(one.leaked.sum()) for one in leaks),
        num_differing=sum(int((one.leaked & one.differing).sum()) for one in leaks),
        left_out=tuple(pack_array(one.leaked) for one in leaks),
        reason=reason,
    )


def _take(outcomes: Outcomes, rows: np.ndarray) -> Outcomes:
    return Outcomes(outcomes.metric, {name: array[rows] for name, array in outcomes.arrays.items()})
