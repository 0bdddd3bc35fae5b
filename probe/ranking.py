"""Ranks of models on the same test images: one more than the number of models that a paired test finds better.

Of one dataset `ranks` tests pair by pair; of means over datasets `mean_ranks` takes variances and covariances of all
models at once. Models with the same number share a rank. Two of different ranks may still be a tie, if a third is
better than one of them only; and of many pairs one in twenty passes a test by chance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np

from probe.deviations import deviations
from probe.errors import ResultsError
from probe.outcomes import Outcomes, unpack
from probe.paired import compare, mcnemar
from probe.records import RunRecord

logger = logging.getLogger(__name__)

SIGNIFICANT = 0.05  # largest p at which a difference counts


def ranks(records: Sequence[RunRecord]) -> dict[tuple[str, ...], str]:
    """The rank of each record that can be compared with another: its key -> `1`, or `1 =` where it is shared.

    Compared are records of one dataset, protocol, mode, precision and solver that read the same test images. Those
    without outcomes, which earlier versions wrote, have no rank.
    """
    groups: dict[tuple[object, ...], list[RunRecord]] = {}
    for record in records:
        if record.result is not None and record.result.get("outcomes"):
            groups.setdefault(_cell(record), []).append(record)
    found: dict[tuple[str, ...], str] = {}
    for group in groups.values():
        if len({record.model for record in group}) > 1:
            found.update(_rank(group))
    return found


def mean_ranks(records: Mapping[str, Sequence[RunRecord]]) -> dict[str, str]:
    """The rank of each model by its mean score over datasets: its name -> `1`, or `1 =` where it is shared.

    Means are tested by the normal distribution, with the variance of their difference over test images, and for
    few-shot over draws of training images too; one dataset of right and wrong answers by McNemar's test.

    Args:
        records: of each model those of the same datasets, in one order, on the same test images.

    Returns:
        Ranks of the models whose outcomes of test images are all there; a model alone has none.
    """
    outcomes: dict[str, list[list[Outcomes]]] = {}
    for model, own in records.items():
        try:
            outcomes[model] = [outcomes_of(record) for record in own]
        except ResultsError as err:
            logger.warning("%s has no rank under %s: %s", model, own[0].protocol, err)
    models = list(outcomes)
    if len(models) < 2:
        return {}
    scores = np.array([[(record.result or {})["score"] for record in records[model]] for model in models])
    means = scores.mean(axis=1)
    p_values = _p_values(means, [[records[model][i] for model in models] for i in range(scores.shape[1])], outcomes)
    better = ((p_values < SIGNIFICANT) & (means[None, :] > means[:, None])).sum(axis=1)
    shared = [int((better == n).sum()) > 1 for n in better]
    return {model: f"{1 + n}{' =' if tie else ''}" for model, n, tie in zip(models, better, shared, strict=True)}


def _p_values(
    means: np.ndarray, columns: Sequence[Sequence[RunRecord]], outcomes: Mapping[str, list[list[Outcomes]]]
) -> np.ndarray:
    """P of every pair of models, (n, n)."""
    first = [folds[0] for folds in outcomes.values()]
    if len(columns) == 1 and all(len(folds) == 1 and folds[0].metric in ("accuracy", "top5") for folds in first):
        right = np.stack([folds[0].arrays["right"] for folds in first]).astype(np.float64)
        alone = np.rint(right @ (1 - right).T).astype(int)  # images that the one of the row has right alone
        return np.vectorize(mcnemar)(alone, alone.T)
    covariance = np.zeros((len(means), len(means)))
    for i, column in enumerate(columns):
        result = column[0].result or {}
        folds = [own[i] for own in outcomes.values()]
        apart = np.stack([deviations(own, same_images=bool(result["same_images"])) for own in folds])
        covariance += apart @ apart.T
        if result.get("draws"):
            draws = np.array([[fold.score() for fold in own] for own in folds])
            covariance += np.cov(draws) / draws.shape[1]
    own = np.diag(covariance)
    variance = np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0) / len(columns) ** 2
    size = np.abs(means[:, None] - means[None, :]) / np.sqrt(np.maximum(variance, 1e-30))
    return np.vectorize(lambda z: math.erfc(z / math.sqrt(2)))(size)


def pair_p_value(a: RunRecord, b: RunRecord) -> float:
    """P of the test of `mean_ranks` for two records of the same test images.

    Raises:
        ResultsError: outcomes are damaged, or an earlier version kept none.
    """
    means = np.array([(record.result or {})["score"] for record in (a, b)])
    return float(_p_values(means, [[a, b]], {"a": [outcomes_of(a)], "b": [outcomes_of(b)]})[0, 1])


def test_images(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """The test splits of a record and their digests: scores of others do not compare."""
    return tuple(sorted((name, split["sha256"]) for name, split in record.splits.items() if name.startswith("test")))


def _cell(record: RunRecord) -> tuple[object, ...]:
    return (record.dataset, record.protocol, record.mode, record.precision, record.solver, test_images(record))


def _rank(group: Sequence[RunRecord]) -> dict[tuple[str, ...], str]:
    outcomes = {}
    for record in group:
        try:
            outcomes[record.key] = outcomes_of(record)
        except ResultsError as err:
            logger.warning("%s has no rank: %s", " / ".join(record.key), err)
    ranked = [record for record in group if record.key in outcomes]
    if len({record.model for record in ranked}) < 2:
        return {}
    better = {record.key: 0 for record in ranked}
    for a, b in permutations(ranked, 2):
        assert a.result is not None
        assert b.result is not None
        if a.result["score"] > b.result["score"]:
            same = bool(a.result["same_images"])
            try:
                test = compare(outcomes[a.key], outcomes[b.key], same_images=same)
            except ResultsError:  # of other folds or metrics, which nothing ranks
                return {}
            better[b.key] += test.p_value < SIGNIFICANT and test.difference > 0
    numbers = list(better.values())
    return {key: f"{1 + n}{' =' if numbers.count(n) > 1 else ''}" for key, n in better.items()}


def outcomes_of(record: RunRecord) -> list[Outcomes]:
    """What became of each test image, one for each fold or draw.

    Raises:
        ResultsError: they are damaged, or an earlier version kept none.
    """
    packed = (record.result or {}).get("outcomes")
    if not packed:
        raise ResultsError("it has no outcomes of test images, which records have from schema 3 on; run its cell again")
    return [unpack(one) for one in packed]
