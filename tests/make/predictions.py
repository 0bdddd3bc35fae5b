"""Labels and scores of test images, in the forms that metrics take."""

import numpy as np

from probe.stats.metrics import IGNORED

NUM_IMAGES = 240


def make_predictions(metric, *, levels, seed=0):
    """Make labels and scores. With few levels most scores are tied. One class has no training images."""
    rng = np.random.default_rng(seed)
    k = {"roc_auc": 2, "voc2007_11pt_map": 4}.get(metric, 12)
    y_score = rng.integers(0, levels, (NUM_IMAGES, k)) / levels
    if metric == "voc2007_11pt_map":
        y_score[:, 3] = -np.inf
        y_score[:5, 0] = -np.inf
        return rng.choice([0, 0, 0, 1, IGNORED], (NUM_IMAGES, k)), y_score
    y_score[:, -1] = -np.inf if k > 2 else y_score[:, -1]
    return rng.integers(0, k, NUM_IMAGES), y_score
