"""Contest of fits at several values of C for the best score on the validation images.

A fit with a large C takes long, and its score on the validation images usually gets worse from some step on. A contest
ends a fit that is unlikely to get the best score.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from probe.probes.fits import Fit

# With fewer validation images, no fit ends early, because the choice of C changed with 40 and with 200 images. With 40
# images of digits, a fit at C = 100 ended at 36 right predictions. Without the rule it reached 37, and 178 was chosen.
MIN_IMAGES = 1000
STEPS = 10  # of a fit, from one comparison to the next
ROUNDING = 1e-9  # of a score


@dataclass
class Contest:
    """Finished fits, and the last predictions of the fits that go on.

    A fit is unlikely to win if two conditions hold. This is a heuristic, because later steps could change more
    predictions.

    - At its C, its objective is lower than the objective of the weights of the best finished fit.
    - Its score would stay below the best score even if every prediction that changed in the last `STEPS` steps became
      right.

    Args:
        x: float32 (n, d), features of the validation images, standardised if the solver gets standardised features.
        y: int64 (n,), their labels.
        shares: float64 (n,), share of each image in the score.
        num_train: number of training images.
    """

    x: np.ndarray
    y: np.ndarray
    shares: np.ndarray
    num_train: int
    _best: Fit | None = None
    _best_score: float = 0.0
    _last: dict[float, np.ndarray] = field(default_factory=dict)  # predictions at the last comparison, by C

    def __post_init__(self) -> None:
        """Centre the features, because products in float32 lose small differences if features have a large offset."""
        self._mean = self.x.mean(axis=0, dtype=np.float64)
        self._centred = (self.x - self._mean).astype(np.float32)

    def enter(self, fit: Fit) -> None:
        """Add a finished fit. A fit that was ended by `can_win` does not count."""
        score = self._score(self._predict(fit.coef, fit.intercept, fit.classes))
        if not fit.ended_early and (self._best is None or score > self._best_score):
            self._best, self._best_score = fit, score

    def can_win(
        self,
        C: float,  # noqa: N803 - the field's name
        coef: np.ndarray,
        intercept: np.ndarray,
        *,
        classes: np.ndarray,
        objective: float,
    ) -> bool:
        """Return False if a fit is unlikely to win, see `Contest`. This is called after every `STEPS` steps.

        Args:
            C: inverse strength of the penalty.
            coef: float (k, d), see `Fit`.
            intercept: float (k,).
            classes: int64, labels of the classes, ascending.
            objective: value of the objective at C.
        """
        predictions = self._predict(coef, intercept, classes)
        before, self._last[C] = self._last.get(C), predictions
        if before is None or self._best is None or objective > self._objective_of(self._best, C):
            return True
        changed = float(self.shares[predictions != before].sum())
        return self._score(predictions) + changed > self._best_score - ROUNDING

    def _objective_of(self, fit: Fit, C: float) -> float:  # noqa: N803 - the field's name
        """Return the objective at C of the weights of a fit at another C."""
        half_square = float(np.square(fit.coef, dtype=np.float64).sum()) / (2 * self.num_train)
        return fit.objective - half_square / fit.C + half_square / C

    def _score(self, predictions: np.ndarray) -> float:
        return float(self.shares[predictions == self.y].sum())

    def _predict(self, coef: np.ndarray, intercept: np.ndarray, classes: np.ndarray) -> np.ndarray:
        shift = intercept.astype(np.float64) + coef.astype(np.float64) @ self._mean
        logits = self._centred @ coef.T.astype(np.float32) + shift  # (n, k) float64
        chosen = logits[:, 0] > 0 if len(coef) == 1 else logits.argmax(axis=1)  # two classes have one logit
        return np.asarray(classes[chosen.astype(np.int64)])


def shares_of(metric: str, y: np.ndarray) -> np.ndarray | None:
    """Return the share of each image in a score, float64 (n,), or None if the score is not a sum over images.

    Args:
        metric: a name of `metrics.METRICS`.
        y: int64 (n,), labels.
    """
    if metric == "accuracy":
        return np.full(len(y), 1 / len(y))
    if metric == "mean_per_class":
        _, positions, counts = np.unique(y, return_inverse=True, return_counts=True)
        return np.asarray(1 / (len(counts) * counts[positions]))
    return None
