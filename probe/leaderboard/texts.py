"""Sections -> text: one table for programs, and Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probe.errors import listed, printable
from probe.leaderboard.cards import METRIC_TITLES
from probe.leaderboard.clean import clean_to_markdown
from probe.leaderboard.labels import METHOD_NAMES, NO_RECORD, legend, scope, short_names, solver_value
from probe.leaderboard.methods import compare_methods, methods_to_markdown
from probe.leaderboard.sections import BEST, Cell, Line, Section, has_mean, has_ranks, has_score, sort_datasets, titles
from probe.leaderboard.shifts import shifts_to_markdown
from probe.leaderboard.tables import (
    CLEAN_COLUMNS,
    clean_values,
    half_width,
    markdown_table,
    markdown_text,
    score_text,
)
from probe.records.record import weights_of
from probe.records.schema import CalibrationScores, ResultRecord, RunRecord
from probe.specs import LOGISTIC

MAX_NAMED = 50  # datasets or models in a note
_ENDINGS: tuple[str, ...] = ("", "_low", "_high", "_rank", "_status")  # endings of a dataset's column names
_MEASURES = ("nll", "brier", "ece", "ece_low", "ece_high")
CALIBRATION_NAMES = (
    *(f"{name}{when}" for when in ("", "_after") for name in _MEASURES),
    *("temperature", "ece_bins"),
)
_CALIBRATION_HEADER = (
    *("dataset", "model", "NLL", "NLL after", "Brier score", "Brier score after"),
    *("ECE, % (95 % interval)", "ECE after, % (95 % interval)", "temperature", "bins of ECE"),
)
CALIBRATION_NOTE = (
    "Calibration on the test images: negative log-likelihood, Brier score and expected calibration error; lower is "
    "better. Columns with 'after' have the values after temperature scaling on the validation images. A mean over "
    "folds or draws has no interval."
)


def table(found: Sequence[Section], *, with_calibration: bool = False) -> tuple[list[str], list[list[object]]]:
    """Return all sections as one table, a row for each model: header and rows, with None for missing values.

    Each dataset has five columns: score and both bounds of its interval as fractions, rank, and status. If a record of
    a dataset has a clean score, five more columns have the values of `tables.clean_values`. With `with_calibration`,
    twelve more columns have the values of `calibration_values`.
    """
    names = sort_datasets({name for section in found for name in section.datasets})
    header = [*("protocol", "feature_point", "solver", "mode", "precision", "rules", "rank", "model")]
    header += ["mean", "mean_low", "mean_high", "num_datasets"]
    cleaned = {cell.record.dataset for section in found for cell in section.cells if clean_values(cell.record)}
    for name in names:
        endings = _ENDINGS
        if name in cleaned:
            endings += tuple(f"_{column}" for column in CLEAN_COLUMNS)
        if with_calibration:
            endings += tuple(f"_{column}" for column in CALIBRATION_NAMES)
        column = printable(name)
        while set(header) & {f"{column}{ending}" for ending in endings}:  # for example, a dataset named `mean`
            column = f"dataset:{column}"
        header += [f"{column}{ending}" for ending in endings]
    rows: list[list[object]] = []
    for section in found:
        solver = solver_value(section.solver)
        named = (section.protocol, section.feature_point, solver, section.mode, section.precision)
        for line in section.lines:
            means = (line.mean, line.low, line.high, len(section.common))
            cells = [
                value
                for name in names
                for value in (
                    *_values(line.cells.get(name)),
                    *(_clean(line.cells.get(name)) if name in cleaned else ()),
                    *(_calibration(line.cells.get(name)) if with_calibration else ()),
                )
            ]
            rows.append([*named, section.rules, line.rank, line.model, *means, *cells])
    return header, rows


def _values(cell: Cell | None) -> list[object]:
    """Return the values of a cell under the columns of its dataset."""
    if cell is None:
        return [None] * len(_ENDINGS)
    result = cell.record.result
    interval = result.interval if result is not None else None
    ends = (interval.low, interval.high) if interval is not None else (None, None)
    return [result.score if result is not None else None, *ends, cell.rank or None, cell.status]


def _clean(cell: Cell | None) -> list[float | None]:
    values = {} if cell is None else clean_values(cell.record)
    return [values.get(name) for name in CLEAN_COLUMNS]


def _calibration(cell: Cell | None) -> list[float | None]:
    return list(calibration_values(None if cell is None else cell.record).values())


def calibration_values(record: RunRecord | None) -> dict[str, float | None]:
    """Return the calibration of a record by the names of `CALIBRATION_NAMES`, with None for missing values.

    These are the NLL, the Brier score, and the ECE with the bounds of its interval, before and after temperature
    scaling; the temperature; and the number of bins of the ECE.
    """
    result = record.result if record is not None else None
    if result is None or result.calibration is None:
        return dict.fromkeys(CALIBRATION_NAMES)
    calibration = result.calibration
    states = (calibration.before, calibration.after)
    values = [None if state is None else getattr(state, name) for state in states for name in _MEASURES]
    return dict(zip(CALIBRATION_NAMES, [*values, calibration.temperature, _num_bins(result)], strict=True))


def _num_bins(result: ResultRecord) -> int | None:
    """Return the number of bins of the ECE. In records of earlier versions, only single folds and draws have it."""
    if result.calibration is not None:
        before = result.calibration.before
        if before.bins is not None or before.num_bins is not None:
            return before.num_bins if before.bins is None else before.bins.shape[1]
    return next((num for one in (*result.folds, *result.draws) if (num := _num_bins(one))), None)


def sections_to_markdown(found: Sequence[Section], *, with_calibration: bool = False) -> str:
    """Return the overview, the legend and the other sections as a page to read, with scores in percent.

    With `with_calibration`, each section has a second table, of the calibration of its records.
    """
    records = [record for section in found for record in section.records]
    page = [f"# Leaderboard\n\nScores of {method_titles(found)} in percent: {scope(records)}.\n"]
    parts = [_markdown(title, section) for title, section in zip(titles(found), found, strict=True)]
    if with_calibration:
        parts = [f"{part}{_calibration_markdown(section)}" for part, section in zip(parts, found, strict=True)]
    if parts:
        parts[0] = parts[0].replace("## ", "## Overview: ", 1)
    terms = legend((section.protocol for section in found), (section.mode for section in found))
    explained = "".join(f"- `{term}`: {text}\n" for term, text in terms)
    explained = explained.replace("`bold`", "**bold**").replace("`bold and =`", "**bold =**")
    if len(found) > 1:
        page.append("The first table has the most scores. The tables below the legend have other protocols, solvers, ")
        page[-1] += "modes or precisions. Compare models only within one table.\n"
    side_by_side = [part for part in [methods_to_markdown(compare_methods(records))] if part]
    side_by_side += [part for part in [shifts_to_markdown(records), clean_to_markdown(records)] if part]
    return "\n".join([*page, *parts[:1], *side_by_side, f"## Legend\n\n{explained}", *parts[1:]])


def method_titles(found: Sequence[Section], *, but: str = "") -> str:
    """Return the methods of the sections in plain words, without the method `but`; linear probes without a section.

    >>> method_titles([])
    'linear probes'
    """
    methods = {record.spec.protocol.method for section in found for record in section.records} if found else {LOGISTIC}
    *others, last = [names.title for method, names in METHOD_NAMES.items() if method in methods - {but}] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _markdown(title: str, section: Section) -> str:
    remarks = "".join(f"\n{markdown_text(note)}\n" for note in [*metric_notes(section), *notes(section)])
    return f"## {markdown_text(title)}\n\n{markdown_table(*to_text(section, emphasize=True))}{remarks}"


def _calibration_markdown(section: Section) -> str:
    """Return the table of the calibration of a section, with a row for each record that has one."""
    datasets = short_names(section.datasets)
    models = short_names(line.model for line in section.lines)
    rows = []
    for name in section.datasets:
        for line in section.lines:
            result = line.cells[name].record.result if name in line.cells else None
            if result is None or result.calibration is None:
                continue
            values = calibration_values(line.cells[name].record)
            texts = [
                NO_RECORD if value is None else f"{value:.4f}"
                for measure in ("nll", "brier")
                for value in (values[measure], values[f"{measure}_after"])
            ]
            texts += [_ece_text(result.calibration.before), _ece_text(result.calibration.after)]
            temperature, num = values["temperature"], values["ece_bins"]
            texts += [NO_RECORD if value is None else f"{value:.4g}" for value in (temperature, num)]
            rows.append((datasets[name], models[line.model], *texts))
    if not rows:
        return "\nNo record of this section has its calibration; repeat the runs with --rerun.\n"
    return f"\n{CALIBRATION_NOTE}\n\n{markdown_table(_CALIBRATION_HEADER, rows)}"


def _ece_text(scores: CalibrationScores | None) -> str:
    """Return the ECE to read, in percent, with its interval if it has one."""
    if scores is None:
        return NO_RECORD
    if scores.ece_low is None or scores.ece_high is None:
        return f"{100 * scores.ece:.2f}"
    return f"{100 * scores.ece:.2f} ({100 * scores.ece_low:.2f} to {100 * scores.ece_high:.2f})"


def metric_notes(section: Section) -> list[str]:
    """Return a remark on each metric other than accuracy."""
    cells = sorted(section.cells, key=lambda cell: not cell.is_other)  # the last one of a dataset decides
    metrics = {cell.record.dataset: cell.record.spec.dataset.metric for cell in cells}
    by_metric: dict[str, list[str]] = {}
    for name, label in short_names(section.datasets).items():
        by_metric.setdefault(metrics[name], []).append(label)
    return [
        f"{METRIC_TITLES.get(metric, metric)}, not accuracy: {listed(own, most=MAX_NAMED)}."
        for metric, own in by_metric.items()
        if metric != "accuracy"
    ]


def notes(section: Section) -> list[str]:
    """Return remarks on the means, ranks and weights of a section."""
    found, models = [], short_names(line.model for line in section.lines)
    done = [line for line in section.lines if any(cell.record.result for cell in line.cells.values())]
    if len(done) > 1 and (len(section.datasets) > 1 or not section.common):
        found.append(_note_on_mean(section, {line.model: models[line.model] for line in done}))
    failed = [models[line.model] for line in section.lines if line not in done]
    if failed:
        found.append(f"All runs of {listed(failed, most=MAX_NAMED)} failed; the records have the reasons.")
    found += [f"{models[model]} has no rank: {reason}." for model, reason in section.unranked.items()]
    for line in section.lines:
        weights = weights_of(cell.record for cell in line.cells.values())
        if len(weights) > 1:
            found.append(f"The records of {models[line.model]} have {len(weights)} different sets of weights.")
    return found


def _note_on_mean(section: Section, models: Mapping[str, str]) -> str:
    labels = short_names(section.datasets)
    if len(section.common) == 1:
        label = labels[section.common[0]]
        return f"Only {label} has scores of all models, so ranks are by {label} and no mean is shown."
    if section.common:
        names = listed([labels[name] for name in section.common], most=MAX_NAMED)
        return f"The mean is over the datasets for which all models have scores: {names}."
    lacking = {
        name: [
            models[line.model] for line in section.lines if line.model in models and not has_score(line.cells.get(name))
        ]
        for name in section.datasets
    }
    name = min(lacking, key=lambda name: len(lacking[name]))
    those = listed(lacking[name], most=MAX_NAMED)
    return f"No dataset has scores of all models, so no mean is shown; {labels[name]} lacks {those}."


def to_text(section: Section, *, with_ranks: bool = True, emphasize: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a section to read. Ranks and means have no column if there are none.

    `emphasize` sets the best scores in bold and marks those that are tied with them, as Markdown does.
    """
    with_ranks, with_means = with_ranks and has_ranks(section), has_mean(section)
    labels = short_names(section.datasets)
    models = short_names(line.model for line in section.lines)
    means = [f"mean of {len(section.common)}"] if with_means else []
    header = [*(["rank"] if with_ranks else []), "model", *means, *(labels[name] for name in section.datasets)]
    rows = []
    for line in section.lines:
        means = [mean_text(section, line)] if with_means else []
        cells = [cell_text(line.cells.get(name), emphasize=emphasize) for name in section.datasets]
        rows.append([*([line.rank] if with_ranks else []), models[line.model], *means, *cells])
    return header, rows


def mean_text(section: Section, line: Line) -> str:
    """Return a mean to read, with half the width of its interval and the marks of its cells; empty if there is none."""
    if line.mean is None:
        return ""
    of_cells = "".join(line.cells[name].marks for name in section.common)
    return score_text(f"{100 * line.mean:.2f}", line.half_width, *(mark for mark in "*~+" if mark in of_cells))


def cell_text(cell: Cell | None, *, emphasize: bool = False) -> str:
    """Return a cell to read: score, half the width of the interval, marks; see `to_text`."""
    if cell is None:
        return NO_RECORD
    result = cell.record.result
    if result is None:
        return "failed"
    score = f"{100 * result.score:.2f}"
    if emphasize and cell.place:
        score = f"**{score}**" if cell.place == BEST else f"**{score} =**"
    return score_text(score, half_width(result), cell.marks)
