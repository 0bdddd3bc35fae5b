"""Files that are made from records: tables of each model and mode, leaderboard and page, JIT against eager, methods.

Records are the truth. All of these files can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.errors import ResultsError
from probe.leaderboard import methods, modes, page, shifts, tables, texts
from probe.leaderboard.sections import make_sections
from probe.records.record import encode, model_slug, read_records, scan_records, write_text
from probe.records.schema import RunRecord
from probe.specs import SUPPLIED

TABLES = "tables"
PAGE = "leaderboard.html"
METHODS = "methods.csv"  # zero-shot, k-NN and linear probe side by side, if there are such records
SHIFTS = "further_tests.csv"  # scores on further test sets, if there are such records


def write_derived(results_dir: str | Path = "results") -> list[Path]:
    """Make all files from the records under `results_dir`, write those that changed, and return the paths of all.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    folder = Path(results_dir)
    records = read_records(folder)
    if not records and not (folder / PAGE).is_file():  # a grid that was interrupted before its first run ended
        return []
    files = render_derived(records)
    _write_changed(folder, files)
    return [folder / name for name in files]


def write_tables_of(record: RunRecord, results_dir: str | Path) -> None:
    """Write the tables of the model and mode of a record, without reading the records of other models.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    folder = Path(results_dir)
    records = read_records(folder, files=f"*/{model_slug(record.spec.model)}.{record.mode}.*.json")
    _write_changed(folder, {f"{TABLES}/{name}": text for name, text in tables.render_tables(records).items()})


def _write_changed(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        if not _holds(folder / name, text):
            write_text(folder / name, text)


@dataclass(frozen=True)
class Stale:
    """Files that are missing or differ from the records, tables that belong to no record, and damaged records."""

    differing: list[Path]
    orphans: list[Path]
    damaged: list[ResultsError]


def find_stale(results_dir: str | Path = "results") -> Stale:
    """Return the files under `results_dir` that are not as `write_derived` would leave them, and damaged records."""
    folder = Path(results_dir)
    found, damaged = scan_records(folder)
    files = render_derived([record for _, record in found])
    differing = [folder / name for name, text in files.items() if not _holds(folder / name, text)]
    return Stale(differing, _orphans(folder, files), damaged)


def render_derived(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return all files for sorted records: path below the results folder -> text."""
    sections = make_sections(records)
    shifted = shifts.shift_values(shifts.shift_rows(records))
    side_by_side = methods.values(methods.compare_methods(records))
    return {
        **{f"{TABLES}/{name}": text for name, text in tables.render_tables(records).items()},
        "leaderboard.csv": tables.rows_to_csv(*texts.table(sections)),
        **({METHODS: tables.rows_to_csv(methods.HEADER, side_by_side)} if side_by_side else {}),
        **({SHIFTS: tables.rows_to_csv(shifts.HEADER, shifted)} if shifted else {}),
        "leaderboard.md": texts.sections_to_markdown(sections),
        PAGE: page.render_page(records, sections),
        "jit_against_eager.csv": tables.rows_to_csv(modes.HEADER, modes.rows(modes.pair_modes(records))),
        "jit_against_eager.md": f"# JIT against eager\n\n{modes.INTRODUCTION}\n{modes.modes_to_markdown(records)}",
    }


def _orphans(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Return files whose records no longer exist: tables named `MODEL.MODE.csv` or `.md`, `METHODS` and `SHIFTS`."""
    named = [
        path
        for mode in ("eager", "jit", "compiled", SUPPLIED)
        for suffix in ("csv", "md")
        for path in (folder / TABLES).glob(f"*.{mode}.{suffix}")
    ]
    orphans = [path for path in named if f"{TABLES}/{path.name}" not in files]
    orphans += [folder / name for name in (METHODS, SHIFTS) if (folder / name).is_file() and name not in files]
    return sorted(orphans)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == encode(text)
