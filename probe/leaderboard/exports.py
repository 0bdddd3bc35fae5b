"""Formats of the leaderboard: CSV, JSON, LaTeX and Parquet for other programs, Markdown for people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from probe.errors import printable
from probe.leaderboard import methods, texts
from probe.leaderboard.labels import LEGEND, solver_value
from probe.leaderboard.sections import Cell, Section, titles
from probe.leaderboard.tables import clean_values, rows_to_csv
from probe.records.record import encode, record_path

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
_SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}"}
_SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def to_json(sections: Sequence[Section], *, with_calibration: bool = False) -> str:
    """Return JSON, section by section and model by model; each cell has its record's path below the results folder.

    Zero-shot, k-NN and the linear probe side by side follow under `methods` if there are such rows.
    """
    values: dict[str, Any] = {
        "sections": [_section(section, with_calibration=with_calibration) for section in sections]
    }
    if rows := _methods(sections):
        values["methods"] = [dict(zip(methods.HEADER, row, strict=True)) for row in methods.values(rows)]
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def to_latex(sections: Sequence[Section]) -> str:
    """Return a `tabular` for each section, and for zero-shot, k-NN and the linear probe side by side, in percent.

    It needs the package booktabs and a table around it.
    """
    tables = [_latex(title, section) for title, section in zip(titles(sections), sections, strict=True)]
    if rows := _methods(sections):
        comments = [methods.TITLE, methods.INTRODUCTION, *methods.find_untested(rows)]
        tables.append(latex_table(comments, *methods.methods_to_text(rows)))
    return "\n".join(tables)


def _methods(sections: Sequence[Section]) -> list[methods.MethodRow]:
    return methods.compare_methods(record for section in sections for record in section.records)


def to_parquet(sections: Sequence[Section], *, with_calibration: bool = False) -> bytes:
    """Return Parquet with the columns of the CSV and their types. Bytes that are not UTF-8 are escaped in names."""
    import pandas as pd

    header, rows = texts.table(sections, with_calibration=with_calibration)
    frame = pd.DataFrame([[_utf8(value) for value in values] for values in rows], columns=header)
    return bytes(frame.to_parquet(index=False))


def to_csv(sections: Sequence[Section], *, with_calibration: bool = False) -> str:
    """Return CSV with a row for each model, see `texts.table`."""
    return rows_to_csv(*texts.table(sections, with_calibration=with_calibration))


# All formats but LaTeX have the option `with_calibration`.
FORMATS: dict[str, Callable[..., str | bytes]] = {
    "md": texts.sections_to_markdown,
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
    "parquet": to_parquet,
}


def _utf8(value: object) -> object:
    return encode(value).decode() if isinstance(value, str) else value


def _section(section: Section, *, with_calibration: bool) -> dict[str, Any]:
    names = ("protocol", "feature_point", "solver", "mode", "precision", "rules", "datasets", "common")
    lines = [
        {
            "model": line.model,
            "rank": line.rank,
            "mean": line.mean,
            "half_width": line.half_width,
            "cells": {name: _cell(cell, with_calibration=with_calibration) for name, cell in line.cells.items()},
        }
        for line in section.lines
    ]
    values = {name: getattr(section, name) for name in names}
    return {**values, "solver": solver_value(section.solver), "models": lines}


def _cell(cell: Cell, *, with_calibration: bool) -> dict[str, Any]:
    result = cell.record.result
    calibration = {"calibration": texts.calibration_values(cell.record)} if with_calibration else {}
    interval = result.interval if result is not None else None
    neighbours = {"k": result.k} if result is not None and result.k is not None else {}
    return {
        **neighbours,
        **calibration,
        **clean_values(cell.record),
        "score": result.score if result is not None else None,
        "low": interval.low if interval is not None else None,
        "high": interval.high if interval is not None else None,
        "rank": cell.rank,
        "C": result.C if result is not None else None,
        "metric": cell.record.spec.dataset.metric,
        "status": cell.status,
        "record": record_path(cell.record, Path()).as_posix(),
    }


def _latex(title: str, section: Section) -> str:
    header, rows = texts.to_text(section, with_ranks=False)  # which a paper would have to explain
    used = {mark for cell in section.cells for mark in cell.marks.split()}
    marks = [f"{term}: {text}" for term, text in LEGEND if term in used]
    notes = [*marks, *texts.metric_notes(section), *texts.notes(section)]
    return latex_table([title, "± is half the width of the 95 % confidence interval", *notes], header, rows)


def latex_table(remarks: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a `tabular` of texts for the package booktabs, with remarks as comments above."""
    comments = [f"% {_one_line(remark)}" for remark in remarks]
    body = [_latex_row(row) for row in rows]
    table = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\toprule", _latex_row(header), "\\midrule"]
    return "\n".join([*comments, *table, *body, "\\bottomrule", "\\end{tabular}", ""])


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ["".join(_SPECIAL.get(character, character) for character in _one_line(cell)) for cell in cells]
    escaped = [re.sub("-(?=-)", "-{}", cell).replace(" ±", "\\,$\\pm$\\,") for cell in escaped]  # `--` is a dash
    if escaped[0].startswith(("[", "*")):  # LaTeX would take it as the argument of the \\ before it
        escaped[0] = f"{{}}{escaped[0]}"
    return " & ".join(escaped) + " \\\\"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
