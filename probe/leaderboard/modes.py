"""JIT against eager: the records of one run in both modes, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from probe.errors import ResultsError
from probe.leaderboard.labels import solver_value
from probe.leaderboard.sections import rules_digest
from probe.leaderboard.tables import UNKNOWN, markdown_table, percent, protocol_text
from probe.records.packing import outcomes_of
from probe.records.record import prompts_of, test_images
from probe.records.schema import LOGITS, DoneRecord, RunRecord
from probe.stats.paired import compare

HEADER = (
    *("dataset", "model", "protocol", "precision", "solver", "eager", "jit", "difference", "predictions_flipped"),
    *("p_value", "largest_feature_difference"),
)
INTRODUCTION = """\
Each row is one run in both modes. `leaderboard.md` explains the marks behind scores.

- changed predictions: test images whose predicted class differs between the modes.
- p: p-value of a paired test of both scores.
- n/a: a record does not have what is needed, as records of earlier versions.
"""


@dataclass(frozen=True)
class ModePair:
    """A run in both modes.

    Args:
        eager: its record in eager mode.
        jit: its record in JIT mode.
        flipped: number of test predictions that differ; None if the modes were not run together.
        largest: largest difference of features over both feature points and all splits, or None.
        p_value: of a paired test of both scores; None if outcomes of test images are missing.
    """

    eager: DoneRecord
    jit: DoneRecord
    flipped: int | None
    largest: float | None
    p_value: float | None

    @property
    def difference(self) -> float:
        """Score of JIT minus score of eager, a fraction."""
        return self.jit.result.score - self.eager.result.score


def pair_modes(records: Iterable[RunRecord]) -> list[ModePair]:
    """Return the runs that have a score in both modes, in the order of the JIT records."""
    done = [record for record in records if isinstance(record, DoneRecord)]
    eager = {_run_of(record): record for record in done if record.mode == "eager"}
    return [_pair(eager[_run_of(jit)], jit) for jit in done if jit.mode == "jit" and _run_of(jit) in eager]


def rows(pairs: Sequence[ModePair]) -> list[list[object]]:
    """Return the values under `HEADER`, scores as fractions and None for missing values."""
    found: list[list[object]] = []
    for pair in pairs:
        record, scores = pair.jit, [one.result.score for one in (pair.eager, pair.jit)]
        run = [record.dataset, record.model, record.protocol, record.precision, solver_value(record.solver)]
        # Digits that do not depend on how a machine rounds.
        p_value = None if pair.p_value is None else float(f"{pair.p_value:.3g}")
        found.append([*run, *scores, pair.difference, pair.flipped, p_value, pair.largest])
    return found


def modes_to_markdown(records: Iterable[RunRecord]) -> str:
    """Return a table to read, with scores in percent; empty without a pair."""
    columns = ("dataset", "model", "protocol", "eager, %", "jit, %")
    header = (*columns, "largest feature difference", "changed predictions", "p")
    lines = []
    for pair in pair_modes(records):
        record = pair.jit
        scores = (percent(pair.eager), percent(record))
        numbers = [_text(pair.largest), _text(pair.flipped), _text(pair.p_value)]
        lines.append((record.dataset, record.model, protocol_text(record), *scores, *numbers))
    return markdown_table(header, lines) if lines else ""


def _text(number: float | None) -> str:
    return UNKNOWN if number is None else f"{number:.2g}" if isinstance(number, float) else str(number)


def _run_of(record: RunRecord) -> tuple[object, ...]:
    """Return the values that must agree in two records, so that their modes can be compared."""
    rules, weights = rules_digest(record), record.encoder.weights_sha256
    return (*record.key_of_all_modes, rules, weights, test_images(record), prompts_of(record))


def _pair(eager: DoneRecord, jit: DoneRecord) -> ModePair:
    parity = jit.parity
    if parity is not None and parity.eager_score in (None, eager.result.score):
        largest = max(value for name, value in parity.max_abs_difference.items() if name != LOGITS)
        return ModePair(eager, jit, parity.predictions_flipped, largest, parity.p_value)
    p_value = None
    with suppress(ResultsError):  # without outcomes, as earlier versions' records are
        p_value = compare(outcomes_of(eager), outcomes_of(jit), same_images=jit.result.same_images).p_value
    return ModePair(eager, jit, None, None, p_value)
