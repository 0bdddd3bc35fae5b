"""Records -> one HTML page that needs nothing else: tables to sort and filter, charts, each record behind its cell.

The tables are HTML and can be read without scripts; `report.js` adds the rest, from the data that the page carries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from probe.datasets.catalog import CATALOG
from probe.errors import brief, printable
from probe.leaderboard import modes, published
from probe.leaderboard import sections as board
from probe.leaderboard.tables import status
from probe.records.record import record_path
from probe.records.schema import RunRecord
from probe.specs import canonical_json

FOLDER = Path(__file__).parent
SHORT = 8  # characters of a commit
Index = dict[tuple[str, ...], int]  # where a record, by its key, stands in the data of the page


def render_page(records: Sequence[RunRecord], sections: Sequence[board.Section], *, results_dir: str = ".") -> str:
    """The page of some records.

    Args:
        records: one for each cell.
        sections: that they make.
        results_dir: the folder of the records, from that of the page, to link to them.
    """
    index: Index = {record.key: i for i, record in enumerate(records)}
    folder = "" if results_dir == "." else f"{quote(os.fsencode(results_dir))}/"  # `#` and `?` would end the path
    data = {"folder": folder, **_data(records, sections, index)}
    loader = FileSystemLoader(FOLDER)
    templates = Environment(
        loader=loader,
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html").render(
        sections=[_section(*pair, index) for pair in zip(board.titles(sections), sections, strict=True)],
        num_records=len(records),
        newest=max((record.created for record in records), default="")[:10],
        # `<` could end the script that the data stand in.
        data=Markup(json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")),
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "report.js").read_text(encoding="utf-8")),
    )


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _section(title: str, section: board.Section, index: Index) -> dict[str, Any]:
    return {
        "title": title,
        "datasets": section.datasets,
        "has_ranks": board.has_ranks(section),
        "has_mean": board.has_mean(section),
        "num_common": len(section.common),
        "notes": [note.removeprefix("\\") for note in board.notes(section)],
        "lines": [
            {
                "line": line,
                "mean": board.mean_text(section, line).partition(" "),
                "cells": [_cell(section, line.cells.get(name), index) for name in section.datasets],
            }
            for line in section.lines
        ],
    }


def _cell(section: board.Section, record: RunRecord | None, index: Index) -> dict[str, Any] | None:
    if record is None:
        return None
    score, _, around = board.cell_text(section, record).partition(" ")
    return {
        "record": index[record.key],
        "value": record.result.score if record.result is not None else None,
        "text": score,
        "around": around,
        "status": section.status(record),
    }


def _data(records: Sequence[RunRecord], sections: Sequence[board.Section], index: Index) -> dict[str, Any]:
    environments: dict[str, int] = {}
    described = [_record(record, environments) for record in records]
    titles = {row.name: row.title for row in CATALOG}
    return {
        "records": described,
        "environments": [json.loads(text) for text in environments],
        "sections": [
            {
                "lines": [
                    {
                        "model": printable(line.model),
                        "mean": line.mean,
                        "low": line.low,
                        "high": line.high,
                        "gflops": line.gflops,
                        "cells": {name: index[record.key] for name, record in line.cells.items()},
                    }
                    for line in section.lines
                ],
                "datasets": section.datasets,
                "common": section.common,
            }
            for section in sections
        ],
        "pairs": [
            {
                "eager": index[pair.eager.key],
                "jit": index[pair.jit.key],
                "flipped": pair.flipped,
                "p": pair.p_value and float(f"{pair.p_value:.3g}"),
                "largest": pair.largest,
            }
            for pair in modes.pair_modes(records)
        ],
        "published": [[index[found.record.key], found.theirs] for found in published.compare_with_published(records)],
        "titles": {name: titles[name] for section in sections for name in section.datasets if name in titles},
    }


def _record(record: RunRecord, environments: dict[str, int]) -> dict[str, Any]:
    """What the page says of a record; what is missing is left out."""
    place = environments.setdefault(canonical_json(_environment(record)), len(environments))
    found = {
        "file": record_path(record, Path()).as_posix(),
        "dataset": printable(record.dataset),
        "model": printable(record.model),
        "mode": record.mode,
        "protocol": printable(record.protocol),
        "precision": record.precision,
        "solver": record.solver,
        "status": status(record),
        "metric": record.spec.dataset.metric,
        **_result(record),
        "seconds": {name: round(value, 1) for name, value in record.seconds.items()},
        "weights": record.encoder.weights_sha256,
        "gflops": board.gflops(record),
        "error": brief(record.error.message) if record.error is not None else "",
        "created": record.created,
        "environment": place,
    }
    return {name: value for name, value in found.items() if value not in (None, [], {}, "")}


def _result(record: RunRecord) -> dict[str, Any]:
    """What the page says of a score and its fit."""
    if record.result is None:
        return {}
    result, interval = record.result, record.result.interval
    return {
        "score": result.score,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "C": result.C,
        "iterations": result.n_iter,
        "gradient": result.gradient_ratio,
        "train": result.num_train,
        "test": result.num_test,
        "sweep": [[point.C, point.score] for point in result.sweep],
    }


def _environment(record: RunRecord) -> dict[str, Any]:
    """What a record says of its machine, in a line or two."""
    known = record.environment
    versions = {name: known.packages.get(name) for name in ("torch", "scikit-learn", "numpy")}
    commit = (known.git_commit or "")[:SHORT]
    found = {
        "hardware": known.accelerator or known.cpu,
        "threads": known.torch_threads,
        "python": known.python,
        **versions,
        "commit": f"{commit}, changed" if commit and known.git_dirty else commit,
    }
    return {name: value for name, value in found.items() if value}
