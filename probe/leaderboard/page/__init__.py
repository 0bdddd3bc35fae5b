"""Records -> one HTML page that needs no network: an overview to filter and sort, charts, models and records.

The tables are HTML and can be read without scripts. `charts.js` and `page.js` do the rest from `data.PageData`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from probe.errors import printable
from probe.leaderboard import methods, shifts, texts
from probe.leaderboard import sections as board
from probe.leaderboard.cards import METRIC_TITLES
from probe.leaderboard.labels import (
    MODE_LABELS,
    NO_RECORD,
    POINT_LABELS,
    PRECISION_LABELS,
    SOLVER_LABELS,
    legend,
    scope,
)
from probe.leaderboard.page.data import DATASET_TITLES, Labels, encode_data, make_data, make_labels
from probe.leaderboard.tables import around_text, half_width
from probe.records.schema import RunRecord
from probe.specs import LOGISTIC, NO_SOLVER

FOLDER = Path(__file__).parent
HEAT_LEVELS = 6  # colours from the lowest score of a dataset to its highest
LEAST_SPAN = 0.05  # scores of a dataset that are nearer to each other than this get similar colours
FIXED_COLUMNS = ("model", "rank", "mean")


@dataclass(frozen=True)
class CellView:
    """A score in the table; `heat` is its level of colour, None for none."""

    record: int
    value: float | None
    text: str
    around: str
    marks: str
    status: str
    place: str
    heat: int | None


@dataclass(frozen=True)
class LineView:
    """A model in the table, with a cell for each dataset; `mean` is text and half the width of its interval."""

    name: str
    label: str
    index: int
    rank: str
    mean: float | None
    mean_text: str
    cells: tuple[CellView | None, ...]


@dataclass(frozen=True)
class ColumnView:
    """A dataset in the header: its label, its key in addresses, its title, and its metric if that is not accuracy."""

    label: str
    key: str
    title: str
    metric: str


@dataclass(frozen=True)
class SectionView:
    """A table of the page."""

    title: str
    about: str
    columns: tuple[ColumnView, ...]
    mean: str
    has_ranks: bool
    lines: tuple[LineView, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TableView:
    """A table below the sections: title, text, header, rows as pairs of a model's name and its cells, and notes."""

    title: str
    about: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Filter:
    """A choice of sections: its name, and its options as pairs of value and text."""

    name: str
    options: Mapping[str, str]


def render_page(records: Sequence[RunRecord], sections: Sequence[board.Section], *, results_dir: str = ".") -> str:
    """Return the page of some records.

    Args:
        records: of different runs.
        sections: the sections of these records.
        results_dir: path from the folder of the page to the results folder, for links to records.
    """
    folder = "" if results_dir == "." else f"{quote(os.fsencode(results_dir))}/"  # `#` and `?` would end the path
    labels, protocols = make_labels(records), _protocols(sections)
    rows = methods.compare_methods(records)
    data = make_data(records, sections, protocols, labels, folder=folder, rows=rows)
    return _template().render(
        scope=scope(records),
        others=texts.method_titles(sections, but=LOGISTIC),
        newest=max((record.created for record in records), default="")[:10],
        filters=_filters(sections, protocols),
        sections=[_section(*pair, labels) for pair in zip(sections, protocols, strict=True)],
        tables=[
            (name, view) for name, view in (("methods", _methods(rows)), ("tests", _further(records))) if view.rows
        ],
        legend=legend((section.protocol for section in sections), (section.mode for section in sections)),
        missing=NO_RECORD,
        heat_levels=range(HEAT_LEVELS),
        data=Markup(encode_data(data).replace("<", "\\u003c")),  # `<` could end the script that the data are in
        style=_read("page.css"),
        script=_read("charts.js") + _read("page.js"),
    )


@cache
def _template() -> Template:
    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html")


def _read(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _protocols(sections: Sequence[board.Section]) -> list[str]:
    """Return a label of the protocol for each section, with feature point and rules if its name has several."""
    points: dict[str, set[str]] = {}
    rules: dict[tuple[str, str], set[str]] = {}
    for s in sections:
        points.setdefault(s.protocol, set()).add(s.feature_point)
        rules.setdefault((s.protocol, s.feature_point), set()).add(s.rules)
    labels = []
    for s in sections:
        point = f", {POINT_LABELS.get(s.feature_point, s.feature_point)}" if len(points[s.protocol]) > 1 else ""
        label = f"{s.protocol}{point}"
        labels.append(f"{label}, rules {s.rules}" if len(rules[s.protocol, s.feature_point]) > 1 else label)
    return [printable(label) for label in labels]


def _filters(sections: Sequence[board.Section], protocols: Sequence[str]) -> list[Filter]:
    """Return the four choices that together name a section."""
    about = {label: _about(section) for label, section in zip(protocols, sections, strict=True)}
    order = sorted(dict.fromkeys(protocols), key=board.natural)
    words = {"mode": MODE_LABELS, "precision": PRECISION_LABELS, "solver": SOLVER_LABELS}
    named = {name: sorted({getattr(section, name) for section in sections}) for name in words}
    return [
        Filter("protocol", {label: f"{label}: {about[label]}" if about[label] else label for label in order}),
        *(Filter(name, {value: words[name].get(value, value) for value in values}) for name, values in named.items()),
    ]


def _about(section: board.Section) -> str:
    """Return the title of a section's protocol, as its records have it."""
    return next((record.spec.protocol.title for record in section.records), "")


def _section(section: board.Section, protocol: str, labels: Labels) -> SectionView:
    words = (
        _about(section),
        POINT_LABELS.get(section.feature_point, section.feature_point),
        f"{section.mode} mode",
        section.precision,
        f"{section.solver} solver" if section.solver != NO_SOLVER else "",
    )
    return SectionView(
        protocol,
        " · ".join(word for word in words if word),
        tuple(_column(section, name, labels.datasets[name]) for name in section.datasets),
        f"mean of {len(section.common)}" if board.has_mean(section) else "",
        board.has_ranks(section),
        tuple(_line(section, line, labels) for line in section.lines),
        tuple(texts.notes(section)),
    )


def _methods(rows: Sequence[methods.MethodRow]) -> TableView:
    header, lines = methods.methods_to_text(rows)
    cells = zip((row.records[0].model for row in rows), map(tuple, lines), strict=True)
    return TableView(
        methods.TITLE, methods.INTRODUCTION, tuple(header), tuple(cells), tuple(methods.find_untested(rows))
    )


def _further(records: Sequence[RunRecord]) -> TableView:
    rows = shifts.shift_rows(records)
    header, lines, errors = shifts.shifts_to_text(rows)
    cells = zip((row.record.model for row in rows), map(tuple, lines), strict=True)
    return TableView(shifts.TITLE, shifts.INTRODUCTION, tuple(header), tuple(cells), tuple(errors))


def _column(section: board.Section, name: str, label: str) -> ColumnView:
    cell = min((line.cells[name] for line in section.lines if name in line.cells), key=lambda cell: cell.is_other)
    metric = cell.record.spec.dataset.metric
    key = f"dataset:{label}" if label in FIXED_COLUMNS else label
    return ColumnView(
        label, key, DATASET_TITLES.get(name, ""), "" if metric == "accuracy" else METRIC_TITLES.get(metric, metric)
    )


def _line(section: board.Section, line: board.Line, labels: Labels) -> LineView:
    return LineView(
        line.model,
        labels.models[line.model],
        labels.model_index[line.model],
        line.rank,
        line.mean,
        texts.mean_text(section, line),
        tuple(_cell(section, name, line.cells.get(name), labels) for name in section.datasets),
    )


def _cell(section: board.Section, name: str, cell: board.Cell | None, labels: Labels) -> CellView | None:
    if cell is None:
        return None
    result = cell.record.result
    return CellView(
        labels.record_index[cell.record.key],
        result.score if result is not None else None,
        f"{100 * result.score:.2f}" if result is not None else "failed",
        around_text(half_width(result)) if result is not None else "",
        cell.marks,
        cell.status,
        cell.place,
        _heat(section, name, cell),
    )


def _heat(section: board.Section, name: str, cell: board.Cell) -> int | None:
    """Return the level of a score between the lowest and the highest of its dataset; None if there is one score."""
    own = [line.cells[name] for line in section.lines if name in line.cells]
    scores = [one.record.result.score for one in own if one.record.result is not None and not one.is_other]
    if cell.record.result is None or cell.is_other or len(scores) < 2:
        return None
    span = max(max(scores) - min(scores), LEAST_SPAN)
    return round((HEAT_LEVELS - 1) * (1 - (max(scores) - cell.record.result.score) / span))
