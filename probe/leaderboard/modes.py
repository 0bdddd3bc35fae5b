"""JIT beside eager: the records of one cell in both modes, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from probe.errors import ResultsError
from probe.leaderboard.sections import rules_digest
from probe.leaderboard.tables import markdown_table, percent
from probe.records.record import outcomes_of, test_images
from probe.records.schema import DoneRecord, RunRecord
from probe.stats.paired import compare

HEADER = (
    *("dataset", "model", "protocol", "precision", "solver", "eager", "jit", "difference", "predictions_flipped"),
    *("p_value", "largest_feature_difference"),
)


@dataclass(frozen=True)
class ModePair:
    """A cell in both modes.

    Args:
        eager: its record in the one.
        jit: in the other.
        flipped: test predictions that differ; None, here and below, where the two were not run side by side.
        largest: the largest difference of features over both points and all splits.
        p_value: of a paired test of both scores; None where outcomes of test images are missing.
    """

    eager: DoneRecord
    jit: DoneRecord
    flipped: int | None
    largest: float | None
    p_value: float | None

    @property
    def difference(self) -> float:
        """Score of JIT less that of eager, a fraction."""
        return self.jit.result.score - self.eager.result.score


def pair_modes(records: Iterable[RunRecord]) -> list[ModePair]:
    """The cells that have a score in both modes, in the order of the JIT records."""
    done = [record for record in records if isinstance(record, DoneRecord)]
    eager = {_cell(record): record for record in done if record.mode == "eager"}
    return [_pair(eager[_cell(jit)], jit) for jit in done if jit.mode == "jit" and _cell(jit) in eager]


def rows(pairs: Sequence[ModePair]) -> list[list[object]]:
    """The values under `HEADER`, scores as fractions; None where there is nothing."""
    found: list[list[object]] = []
    for pair in pairs:
        record, scores = pair.jit, [one.result.score for one in (pair.eager, pair.jit)]
        cell = [record.dataset, record.model, record.protocol, record.precision, record.solver]
        # Digits that do not depend on how a machine rounds.
        p_value = None if pair.p_value is None else float(f"{pair.p_value:.3g}")
        found.append([*cell, *scores, pair.difference, pair.flipped, p_value, pair.largest])
    return found


def modes_to_markdown(records: Iterable[RunRecord]) -> str:
    """A table to read, scores in percent; empty where there is no pair."""
    header = ("dataset", "model", "protocol", "eager, %", "jit, %", "largest feature difference", "flips", "p")
    lines = []
    for pair in pair_modes(records):
        record = pair.jit
        scores = (percent(pair.eager), percent(record))
        numbers = [_text(pair.largest), _text(pair.flipped), _text(pair.p_value)]
        lines.append((record.dataset, record.model, _protocol(record), *scores, *numbers))
    return markdown_table(header, lines) if lines else ""


def _protocol(record: RunRecord) -> str:
    return record.protocol if record.solver == "sklearn" else f"{record.protocol} by {record.solver}"


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}" if isinstance(number, float) else str(number)


def _cell(record: RunRecord) -> tuple[object, ...]:
    """What both records of a pair have in common; of other rules, weights or test images they tell nothing of modes."""
    return (*record.key_of_all_modes, rules_digest(record), record.encoder.weights_sha256, test_images(record))


def _pair(eager: DoneRecord, jit: DoneRecord) -> ModePair:
    parity = jit.parity
    if parity is not None and parity.eager_score in (None, eager.result.score):
        largest = max(parity.max_abs_difference.values())
        return ModePair(eager, jit, parity.predictions_flipped, largest, parity.p_value)
    p_value = None
    with suppress(ResultsError):  # without outcomes, as earlier versions' records are
        p_value = compare(outcomes_of(eager), outcomes_of(jit), same_images=jit.result.same_images).p_value
    return ModePair(eager, jit, None, None, p_value)
