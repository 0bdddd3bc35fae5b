"""Ranks of models on the same test images: one more than the number of models that a paired test finds better.

Models with the same number share a rank. Two of different ranks may still be a tie, if a third is better than one of
them only; and of many pairs one in twenty passes a test by chance. Of means over datasets see `mean_ranking`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import permutations

from probe.errors import ResultsError
from probe.records.record import outcomes_of, test_images
from probe.records.schema import DoneRecord, RunRecord
from probe.stats.paired import SIGNIFICANT, compare

logger = logging.getLogger(__name__)


def ranks(records: Sequence[RunRecord]) -> dict[tuple[str, ...], str]:
    """The rank of each record that can be compared with another: its key -> `1`, or `1 =` where it is shared.

    Compared are records of one dataset, protocol, mode, precision and solver that read the same test images. Those
    without outcomes, which earlier versions wrote, have no rank.
    """
    groups: dict[tuple[object, ...], list[DoneRecord]] = {}
    for record in records:
        if isinstance(record, DoneRecord) and record.result.outcomes:
            groups.setdefault(_cell(record), []).append(record)
    found: dict[tuple[str, ...], str] = {}
    for group in groups.values():
        if len({record.model for record in group}) > 1:
            found.update(_rank(group))
    return found


def _cell(record: DoneRecord) -> tuple[object, ...]:
    return (record.dataset, record.protocol, record.mode, record.precision, record.solver, test_images(record))


def _rank(group: Sequence[DoneRecord]) -> dict[tuple[str, ...], str]:
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
        if a.result.score > b.result.score:
            try:
                test = compare(outcomes[a.key], outcomes[b.key], same_images=a.result.same_images)
            except ResultsError:  # of other folds or metrics, which nothing ranks
                return {}
            better[b.key] += test.p_value < SIGNIFICANT and test.difference > 0
    numbers = list(better.values())
    return {key: f"{1 + n}{' =' if numbers.count(n) > 1 else ''}" for key, n in better.items()}
