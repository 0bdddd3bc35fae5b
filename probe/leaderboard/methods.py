"""Zero-shot, k-NN and the linear probe of one model on one dataset, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probe.errors import ResultsError
from probe.leaderboard.labels import NO_RECORD, short_names
from probe.leaderboard.sections import natural, sort_datasets
from probe.leaderboard.tables import half_width, markdown_table, markdown_text, marks, protocol_text, score_text
from probe.records.packing import outcomes_of
from probe.records.record import test_images, weights_of
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import DEFAULT_SOLVER, KNN, LOGISTIC, ZERO_SHOT
from probe.stats.outcomes import Outcomes
from probe.stats.paired import PairedTest, compare

ZERO_SHOT_NAME, NEIGHBOUR_NAMES = "zero-shot", ("knn-5", "knn")
PROBES = ("clip-paper", "dinov2", "readme")  # protocols of the probe to show, the first one that has a record
HEADER = (
    *("dataset", "model", "mode", "precision", "zero_shot", "zero_shot_low", "zero_shot_high"),
    *("knn_5", "knn_5_low", "knn_5_high", "knn", "knn_low", "knn_high", "probe", "probe_low", "probe_high"),
    *("probe_protocol", "probe_feature_point", "probe_solver", "difference", "p_value", "test"),
)
SMALLEST_P = 1e-99  # smaller p-values are shown as such
TITLE = "Zero-shot, k-NN and linear probe"
INTRODUCTION = (
    "Each row is one model on one dataset. The difference is the score of the linear probe minus the zero-shot score, "
    "in percentage points. p is the p-value of a paired test of both on the same test images. Zero-shot and k-NN take "
    "projected features; the linear probe takes those of its protocol, named in parentheses if they are not projected."
)


@dataclass(frozen=True)
class MethodRow:
    """Records of one model, dataset, mode and precision by method.

    Args:
        zero_shot: record of `zero-shot`, or None.
        neighbours: records of `NEIGHBOUR_NAMES` in this order; None for those that are missing.
        probe: record of the linear probe, or None: the first protocol of `PROBES` that has a record, or the first one
            by name, fitted by the default solver if both solvers have a record. Few-shot protocols do not count.
        test: paired test of the probe and zero-shot; None if one of them is missing, or for `reason`.
        reason: reason why the two were not tested, as a sentence without its full stop; empty if they were.
    """

    zero_shot: DoneRecord | None
    neighbours: tuple[DoneRecord | None, ...]
    probe: DoneRecord | None
    test: PairedTest | None
    reason: str

    @property
    def records(self) -> list[DoneRecord]:
        """All records of the row."""
        return [record for record in (self.zero_shot, *self.neighbours, self.probe) if record is not None]

    @property
    def probe_name(self) -> str:
        """Protocol of the probe, its solver if that is not the default, and its feature point if that is not projected.

        Empty without a probe.
        """
        if self.probe is None:
            return ""
        point = self.probe.spec.protocol.feature_point
        return f"{protocol_text(self.probe)}{'' if point == 'projected' else f' ({point})'}"


def compare_methods(records: Iterable[RunRecord]) -> list[MethodRow]:
    """Return a row for each model, dataset, mode and precision with several records, one of them zero-shot or k-NN.

    The rows are sorted by dataset, in the order of the catalogue, then by model, mode and precision.
    """
    groups: dict[tuple[str, ...], list[DoneRecord]] = {}
    for record in records:
        if isinstance(record, DoneRecord):
            groups.setdefault((record.dataset, record.model, record.mode, record.precision), []).append(record)
    places = {name: i for i, name in enumerate(sort_datasets({key[0] for key in groups}))}
    rows = [_row(groups[key]) for key in sorted(groups, key=lambda key: (places[key[0]], *map(natural, key[1:])))]
    return [row for row in rows if len(row.records) > 1 and (row.zero_shot is not None or any(row.neighbours))]


def _row(records: Sequence[DoneRecord]) -> MethodRow:
    named = {record.protocol: record for record in records if record.spec.protocol.method in (KNN, ZERO_SHOT)}
    zero_shot, probe = named.get(ZERO_SHOT_NAME), _probe(records)
    test, reason = None, ""
    if zero_shot is not None and probe is not None:
        try:
            test = _test(probe, zero_shot)
        except ResultsError as err:
            reason = str(err)
    return MethodRow(zero_shot, tuple(map(named.get, NEIGHBOUR_NAMES)), probe, test, reason)


def _probe(records: Sequence[DoneRecord]) -> DoneRecord | None:
    """Return the record of the linear probe to show, see `MethodRow.probe`."""
    fitted = [r for r in records if r.spec.protocol.method == LOGISTIC and not r.spec.protocol.shots]
    order = {name: i for i, name in enumerate(PROBES)}
    return min(
        fitted,
        key=lambda r: (order.get(r.protocol, len(order)), natural(r.protocol), r.solver != DEFAULT_SOLVER, r.solver),
        default=None,
    )


def _test(probe: DoneRecord, zero_shot: DoneRecord) -> PairedTest:
    """Return the paired test of the probe and zero-shot.

    Raises:
        ResultsError: the test images, metrics or weights differ, or a record has no outcomes.
    """
    if test_images(probe) != test_images(zero_shot):
        raise ResultsError("the linear probe and zero-shot have different test images")
    if len(weights_of([probe, zero_shot])) > 1:
        raise ResultsError("the linear probe and zero-shot have different weights")
    return compare(_outcomes(probe), _outcomes(zero_shot), same_images=probe.result.same_images)


def _outcomes(record: DoneRecord) -> list[Outcomes]:
    try:
        return outcomes_of(record)
    except ResultsError as err:
        raise ResultsError(f"{record.protocol}: {err}") from err


def values(rows: Sequence[MethodRow]) -> list[list[object]]:
    """Return the values under `HEADER`, scores as fractions and None for missing values."""
    found: list[list[object]] = []
    for row in rows:
        first, test = row.records[0], row.test
        scores = [value for record in (row.zero_shot, *row.neighbours, row.probe) for value in _score(record)]
        probe: tuple[str | None, ...] = (None, None, None)
        if row.probe is not None:
            probe = (row.probe.protocol, row.probe.spec.protocol.feature_point, row.probe.solver)
        # Digits that do not depend on how a machine rounds.
        tested = (
            (test.difference, float(f"{test.p_value:.3g}"), test.method) if test is not None else (None, None, None)
        )
        found.append([first.dataset, first.model, first.mode, first.precision, *scores, *probe, *tested])
    return found


def _score(record: DoneRecord | None) -> tuple[float | None, float | None, float | None]:
    if record is None:
        return None, None, None
    around = record.result.interval
    return (record.result.score, around.low, around.high) if around is not None else (record.result.score, None, None)


def methods_to_text(rows: Sequence[MethodRow]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows to read, with scores in percent. Methods without any record have no column."""
    datasets = short_names(row.records[0].dataset for row in rows)
    models = short_names(row.records[0].model for row in rows)
    columns = {
        ZERO_SHOT_NAME: [row.zero_shot for row in rows],
        **{name: [row.neighbours[i] for row in rows] for i, name in enumerate(NEIGHBOUR_NAMES)},
        "linear probe": [row.probe for row in rows],
    }
    shown = {name: own for name, own in columns.items() if any(own)}
    has_probe, has_pairs = "linear probe" in shown, any(row.zero_shot and row.probe for row in rows)
    header = ["dataset", "model", "mode", "precision", *shown]
    header += ["probe protocol"] * has_probe + ["difference", "p"] * has_pairs
    lines = []
    for i, row in enumerate(rows):
        first = row.records[0]
        line = [datasets[first.dataset], models[first.model], first.mode, first.precision]
        line += [_cell(own[i]) for own in shown.values()]
        line += [row.probe_name or NO_RECORD] * has_probe
        if has_pairs:
            line += [difference_text(row), "" if row.test is None else _p_text(row.test.p_value)]
        lines.append(line)
    return header, lines


def _p_text(p_value: float) -> str:
    """Return a p-value with two digits; one that is too small for a floating-point number is not 0."""
    return f"{p_value:.2g}" if p_value >= SMALLEST_P else f"< {SMALLEST_P:g}"


def _cell(record: DoneRecord | None) -> str:
    if record is None:
        return NO_RECORD
    return score_text(f"{100 * record.result.score:.2f}", half_width(record.result), marks(record).strip())


def difference_text(row: MethodRow) -> str:
    """Return the score of the probe minus that of zero-shot, in points; empty if the two were not tested."""
    return "" if row.test is None else f"{100 * row.test.difference:+.2f}"


def find_untested(rows: Sequence[MethodRow]) -> list[str]:
    """Return the reasons why rows with zero-shot and a probe have no test, as sentences."""
    found = []
    for row in rows:
        if row.reason:
            first = row.records[0]
            (model,), (dataset,) = short_names([first.model]).values(), short_names([first.dataset]).values()
            found.append(f"{model} on {dataset}, {first.mode}, {first.precision}, has no difference: {row.reason}.")
    return found


def methods_to_markdown(rows: Sequence[MethodRow]) -> str:
    """Return a section of a page to read; empty without rows."""
    if not rows:
        return ""
    remarks = "".join(f"\n{markdown_text(note)}\n" for note in find_untested(rows))
    return f"## {TITLE}\n\n{INTRODUCTION}\n\n{markdown_table(*methods_to_text(rows))}{remarks}"
