"""Records -> tables: one CSV and one Markdown file for each model and mode. Needs neither torch nor scikit-learn."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from probe.errors import brief, printable
from probe.leaderboard.labels import NO_RECORD, solver_text, solver_value
from probe.records.record import model_slug
from probe.records.schema import DoneRecord, IntervalRecord, ResultRecord, RunRecord
from probe.specs import DEFAULT_SOLVER, KNN, LOGISTIC, NO_SOLVER, SUPPLIED, ZERO_SHOT

if TYPE_CHECKING:
    from probe.stats.intervals import Interval

COLUMNS_OF_FIT = ("n_iter", "gradient_ratio", "excess", "num_train", "num_test")
COLUMNS = (
    *("dataset", "protocol", "feature_point", "precision", "solver", "metric"),
    *("score", "low", "high", "interval", "status", "C", *COLUMNS_OF_FIT, "weights_sha256"),
)
CLEAN_COLUMNS = ("clean_score", "clean_low", "clean_high", "num_left_out", "num_differing")

FINAL_NOTE = "* the final fit did not converge"
CHOICE_NOTE = "~ C was chosen among fits of which some did not converge"
UNKNOWN, VARIES = "n/a", "varies"
VARIES_NOTES = {LOGISTIC: f"{VARIES}: each draw or fold has its own C", KNN: f"{VARIES}: each fold has its own k"}
CHOSEN = {LOGISTIC: "C", KNN: "k"}  # what the methods choose by the validation split


def render_tables(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return the tables of each model and mode, from sorted records: file name -> text."""
    tables = {}
    for name, group in groupby(records, key=lambda r: f"{model_slug(r.spec.model)}.{r.mode}"):
        rows = list(group)
        tables[f"{name}.csv"] = records_to_csv(rows)
        tables[f"{name}.md"] = _page(rows)
    return tables


def records_to_csv(records: Iterable[RunRecord]) -> str:
    """Return one line per record, with the columns `COLUMNS`, and `k` if the method of a record is k-NN.

    If a record has a clean score, there are also the columns `CLEAN_COLUMNS`. Scores are unrounded fractions.
    """
    records = list(records)
    names = [*COLUMNS, "k"] if has_neighbours(records) else [*COLUMNS]
    if any(isinstance(record, DoneRecord) and record.clean is not None for record in records):
        names += CLEAN_COLUMNS
    return rows_to_csv(names, [list(map(row(record).get, names)) for record in records])


def has_neighbours(records: Iterable[RunRecord]) -> bool:
    """Return True if the method of a record is k-NN."""
    return any(record.spec.protocol.method == KNN for record in records)


def rows_to_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return CSV: numbers unrounded, texts as `csv_value` returns them, missing values empty."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([map(csv_value, values) for values in (header, *rows)])
    return file.getvalue()


def csv_value(value: object) -> object:
    """Return a value for CSV: printable text, with a `'` before text that a spreadsheet would compute as a formula."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(("=", "+", "-", "@")) else printable(value)


def row(record: RunRecord) -> dict[str, object]:
    """Return the values of a record under `COLUMNS`, with `k` for k-NN, and with the clean score if it has one.

    Values that do not apply are None.
    """
    values: dict[str, object] = {
        "dataset": record.dataset,
        "protocol": record.protocol,
        "feature_point": record.spec.protocol.feature_point,
        "precision": record.precision,
        "solver": solver_value(record.solver),
        "metric": record.spec.dataset.metric,
        "status": status(record),
        "weights_sha256": record.encoder.weights_sha256,
    }
    if isinstance(record, DoneRecord):
        result = record.result
        values |= {name: getattr(result, name) for name in ("score", "C", *COLUMNS_OF_FIT)}
        if result.interval is not None:
            values |= {"low": result.interval.low, "high": result.interval.high, "interval": result.interval.method}
        if record.solver == NO_SOLVER:
            values["n_iter"] = None
        if record.spec.protocol.method == ZERO_SHOT:
            values["num_train"] = None
    found = {name: values.get(name) for name in COLUMNS}
    found |= clean_values(record)
    if has_neighbours([record]):
        found["k"] = record.result.k if record.result is not None else None
    return found


def clean_values(record: RunRecord) -> dict[str, float | None]:
    """Return the clean score of a record by the names of `CLEAN_COLUMNS`; empty if it has none."""
    clean = record.clean if isinstance(record, DoneRecord) else None
    if clean is None:
        return {}
    ends = (None, None) if clean.interval is None else (clean.interval.low, clean.interval.high)
    numbers = (clean.score, *ends, clean.num_left_out, clean.num_differing)
    return dict(zip(CLEAN_COLUMNS, numbers, strict=True))


def status(record: RunRecord) -> str:
    """Return `ok`, `failed`, or `not converged`, `sweep not converged` and `partial`, joined by commas."""
    if record.result is None:
        return "failed"
    states = {
        "not converged": not has_converged(record),
        "sweep not converged": not has_converged_choice(record),
        "partial": record.is_partial,
    }
    return ", ".join(word for word, is_so in states.items() if is_so) or "ok"


def has_converged(record: RunRecord) -> bool:
    """Return True if the final fit converged, or if there is none."""
    return record.result is None or record.result.converged


def has_converged_choice(record: RunRecord) -> bool:
    """Return True if all fits among which C was chosen converged, or if the record does not say."""
    return record.result is None or record.result.choice_converged


def footnotes(records: Sequence[RunRecord]) -> list[str]:
    """Return the explanations of the marks and words that the table of these records has."""
    notes = []
    if not all(map(has_converged, records)):
        notes.append(f"{FINAL_NOTE}; its record says how near it came")
    if not all(map(has_converged_choice, records)):
        notes.append(CHOICE_NOTE)
    if any(record.is_partial for record in records):
        notes.append("+ images are missing or could not be read; the record says how many, or which")
    if any(record.result is not None and record.result.interval is None for record in records):
        notes.append(f"{UNKNOWN}: the record is from a version that did not compute intervals")
    if any(record.mode == SUPPLIED for record in records):
        notes.append(f"{SUPPLIED}: the features came from a file, and the user stated the names of model and dataset")
    results = [(record.spec.protocol.method, record.result) for record in records if record.result is not None]
    notes += [f"{note}; the record has them" for note in varies_notes(results)]
    return notes


def varies_notes(results: Iterable[tuple[str, ResultRecord]]) -> list[str]:
    """Return the explanations of `VARIES` in `fit_cells` of some results, each with the method of its protocol."""
    methods = {method for method, result in results if method in CHOSEN and getattr(result, CHOSEN[method]) is None}
    return [note for method, note in VARIES_NOTES.items() if method in methods]


def records_to_markdown(records: Iterable[RunRecord]) -> str:
    """Return a table to read, with scores in percent; `footnotes` explains its marks.

    A table of several models has their ranks, see `ranking.dataset_ranks`.
    """
    records = list(records)
    named = ("dataset", "model", "mode", "protocol", "score, %", "95 % confidence interval")
    header: tuple[str, ...] = (*named, *fit_header(record.spec.protocol.method for record in records), "test images")
    rows = [_cells(record) for record in records]
    if len({record.model for record in records}) > 1:
        from probe.leaderboard.ranking import dataset_ranks  # NumPy, which tables of one model do without

        found = dataset_ranks(records)
        if found:
            header = (*header, "rank")
            rows = [(*cells, found.get(record.key, "")) for cells, record in zip(rows, records, strict=True)]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up."""
    header, *rows = ([_escape_pipes(markdown_text(cell)) for cell in row] for row in (header, *rows))
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |\n" for line in lines)


def markdown_text(text: str) -> str:
    r"""Return a name or message for a Markdown page: one line, printable, and without HTML.

    >>> markdown_text("two\nlines of <b>")
    'two lines of &lt;b>'
    """
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", printable(" ".join(text.split())))


def _escape_pipes(cell: str) -> str:
    return re.sub(r"(\\*)\|", lambda found: f"{2 * found[1]}\\|", cell)


def _cells(record: RunRecord) -> tuple[str, ...]:
    names = (record.dataset, record.model, record.mode, record.protocol)
    if record.result is None:
        return (*names, "failed", NO_RECORD, NO_RECORD, solver_text(record.solver), NO_RECORD, NO_RECORD)
    result = record.result
    fit = fit_cells(result, record.spec.protocol.method, record.solver)
    return (*names, percent(record), interval_text(result.interval), *fit, str(result.num_test))


def fit_header(methods: Iterable[str]) -> tuple[str, str, str]:
    """Return the header of the columns of `fit_cells` for results of some methods."""
    return "C or k" if KNN in methods else "C", "solver", "iterations"


def fit_cells(result: ResultRecord, method: str, solver: str) -> tuple[str, str, str]:
    """Return C or k, the solver and its iterations to read; `—` for what the method does not have."""
    if method == LOGISTIC:
        return VARIES if result.C is None else f"{result.C:.4g}", solver, str(result.n_iter)
    k = VARIES if result.k is None else f"k = {result.k}"
    return k if method == KNN else NO_RECORD, NO_RECORD, NO_RECORD


def interval_text(interval: Interval | IntervalRecord | None) -> str:
    """Return an interval in percent; `n/a` if there is none, as in records of earlier schemas."""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}" if interval is not None else UNKNOWN


def half_width(result: ResultRecord) -> float | None:
    """Return half the width of a result's interval, a fraction; None if an earlier schema has none."""
    return None if result.interval is None else (result.interval.high - result.interval.low) / 2


def score_text(score: str, half: float | None, *marks: str) -> str:
    """Return a score to read with its marks, and with half the width of its interval, a fraction, in percent."""
    return " ".join(part for part in (score, around_text(half), *marks) if part)


def around_text(half: float | None) -> str:
    """Return half the width of an interval to read, in percent; empty if there is none."""
    return "" if half is None else f"±{100 * half:.2f}"


def protocol_text(record: RunRecord) -> str:
    """Return the protocol of a record, and its solver unless that is the default or the protocol fits nothing."""
    is_plain = record.solver in (DEFAULT_SOLVER, NO_SOLVER)
    return record.protocol if is_plain else f"{record.protocol} by {record.solver}"


def percent(record: RunRecord) -> str:
    """Return a score in percent with the marks that `footnotes` explains, or `failed`."""
    return "failed" if record.result is None else f"{100 * record.result.score:.2f}{marks(record)}"


def marks(record: RunRecord) -> str:
    """Return the marks after a score, see `footnotes`."""
    of_fits = fit_marks(converged=has_converged(record), choice_converged=has_converged_choice(record))
    return of_fits + (" +" if record.is_partial else "")


def fit_marks(*, converged: bool, choice_converged: bool) -> str:
    """Return the marks after the score of a probe, see `FINAL_NOTE` and `CHOICE_NOTE`."""
    return ("" if converged else " *") + ("" if choice_converged else " ~")


def _page(records: Sequence[RunRecord]) -> str:
    first = records[0]
    lines = [f"# {markdown_text(first.model)}, {first.mode}\n", records_to_markdown(records)]
    lines += [f"{note}\n" if note[0].isalpha() else f"\\{note}\n" for note in footnotes(records)]  # a mark is escaped
    from probe.leaderboard.clean import clean_to_markdown  # these import this module
    from probe.leaderboard.shifts import shifts_to_markdown

    lines += filter(None, [shifts_to_markdown(records), clean_to_markdown(records)])
    for record in records:
        if record.error is not None:
            failure = f"{record.dataset}, {record.protocol} failed: {brief(record.error.message)}"
            lines.append(f"{markdown_text(failure)}\n")
    return "\n".join(lines)
