"""Records -> figures for papers, each as PNG and SVG, of the same numbers as the charts of the page."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import ResultsError, printable, shorten
from probe.leaderboard import modes, published
from probe.leaderboard import sections as board
from probe.leaderboard.labels import short_names
from probe.leaderboard.sections import Section
from probe.records.record import write_bytes
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import unique_slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Text stays text in SVG, and the same records give the same bytes.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "probe",
    "font.size": 9,
    "text.usetex": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}
DOTS_PER_INCH = 200
MAX_WIDTH = 300.0  # inches; Matplotlib draws no image of more than 65,536 dots
MAX_TEXT = 40  # characters shown of a name
MAX_TITLE = 80  # characters shown of a title
MAX_LEVEL = 20  # characters of a name that is not rotated
MARKERS = "os^Dv<>ph*"


def write_plots(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Draw all figures that have something to show, and return their paths.

    Each section has `bars` (scores with 95 % confidence intervals), `cost` (the mean against GFLOPs for an image) and,
    for each dataset with a sweep, `sweep` (validation score against C). All records together have `jit` (JIT against
    eager) and `published` (against table 10 of the paper).

    Raises:
        ResultsError: the folder cannot be written to, or there is nothing to draw.
    """
    import matplotlib as mpl

    paths = []
    with mpl.rc_context(STYLE):
        for name, figure in _figures(records):
            for ending in ("png", "svg"):
                paths.append(folder / f"{name}.{ending}")
                write_bytes(paths[-1], _draw(figure, ending))
    if not paths:
        raise ResultsError("no record has a score to plot; run `probe run` first")
    return paths


def _draw(figure: Figure, ending: str) -> bytes:
    file = io.BytesIO()
    metadata = {"Date": None} if ending == "svg" else {}
    with warnings.catch_warnings():
        # A PNG shows boxes for letters that the font lacks; the SVG contains the letters.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(file, format=ending, dpi=DOTS_PER_INCH, bbox_inches="tight", metadata=metadata)
    return file.getvalue()


def _text(name: str, length: int = MAX_TEXT) -> str:
    """Return a name as a label: printable, short, without formulas, and without a leading `_`, which hides a label."""
    text = shorten(printable(name), length).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _figures(records: Sequence[RunRecord]) -> Iterator[tuple[str, Figure]]:
    sections = board.make_sections(records)
    titles = [section.title for section in sections]
    for section in sections:
        parts = (section.protocol, section.feature_point, section.solver, section.mode, section.precision)
        name = "-".join(map(unique_slug, parts))
        if titles.count(section.title) > 1:
            name += f"-{section.rules}"
        if any(record.result for record in section.records):
            yield f"bars.{name}", _bars(section)
        known = [line for line in section.lines if line.mean is not None and line.gflops]
        if known:
            yield f"cost.{name}", _cost(section, known)
        for dataset in section.datasets:
            swept = [record for record in _done(section, dataset) if len(record.result.sweep) > 1]
            if swept:
                yield f"sweep.{unique_slug(dataset, is_path=':' in dataset)}.{name}", _sweep(section, dataset, swept)
    pairs = modes.pair_modes(records)
    if pairs:
        points = [(pair.eager, _score(pair.eager), _score(pair.jit)) for pair in pairs]
        yield "jit", _against(points, "eager, %", "JIT, %")
    compared = published.compare_with_published(records)
    if compared:
        points = [(found.record, 100 * found.theirs, _score(found.record)) for found in compared]
        yield "published", _against(points, "published, %", "here, %")


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    # The axes have a fixed size, and `bbox_inches` adds room around them. A layout would shrink them for long names.
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _score(record: DoneRecord) -> float:
    return 100 * record.result.score


def _done(section: Section, dataset: str) -> list[DoneRecord]:
    """Return the records of a dataset that have a score, line by line."""
    records = [line.cells[dataset].record for line in section.lines if dataset in line.cells]
    return [record for record in records if isinstance(record, DoneRecord)]


def _bars(section: Section) -> Figure:
    n = len(section.lines)
    width = 0.9 + 0.22 * n * len(section.datasets) + 0.3 * len(section.datasets)
    figure, axes = _new(min(max(4.0, width), MAX_WIDTH), 3.2)
    for i, line in enumerate(section.lines):
        cells = [(k, line.cells[name].record) for k, name in enumerate(section.datasets) if name in line.cells]
        done = [(k, record) for k, record in cells if isinstance(record, DoneRecord)]
        places = [k + (i - (n - 1) / 2) * 0.8 / n for k, _ in done]
        scores = [_score(record) for _, record in done]
        axes.bar(
            places,
            scores,
            width=0.8 / n,
            label=_text(line.model),
            yerr=_errors([r for _, r in done], scores),
            capsize=2,
        )
    names = [_text(name) for name in short_names(section.datasets).values()]
    is_crowded = len(names) > 3 or max(map(len, names)) > MAX_LEVEL
    slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_crowded else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_ylabel("score, %")
    axes.set_title(_text(section.title, MAX_TITLE))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _errors(records: Sequence[DoneRecord], scores: Sequence[float]) -> Any:
    """Return the distances to the bounds of intervals, (2, n) in points; 0 for records without an interval."""
    ends = [record.result.interval for record in records]
    below = [0.0 if end is None else score - 100 * end.low for end, score in zip(ends, scores, strict=True)]
    above = [0.0 if end is None else 100 * end.high - score for end, score in zip(ends, scores, strict=True)]
    return [[max(value, 0.0) for value in side] for side in (below, above)]


def _cost(section: Section, lines: Sequence[board.Line]) -> Figure:
    figure, axes = _new(4.5, 3.2)
    for i, line in enumerate(lines):
        assert line.mean is not None
        at, half = (line.gflops or 0.0, 100 * line.mean), 100 * (line.half_width or 0.0)
        axes.errorbar(*at, yerr=half, fmt=MARKERS[i % len(MARKERS)], capsize=2, label=_text(line.model))
    axes.set_xscale("log")
    axes.set_xlabel("GFLOPs for an image")
    axes.set_ylabel(f"{_text(section.common[0]) if len(section.common) == 1 else f'mean of {len(section.common)}'}, %")
    axes.set_title(_text(section.title, MAX_TITLE))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _sweep(section: Section, dataset: str, records: Sequence[DoneRecord]) -> Figure:
    figure, axes = _new(4.5, 3.2)
    for i, record in enumerate(records):
        result = record.result
        points = sorted((point.C, 100 * point.score) for point in result.sweep)
        (drawn,) = axes.plot(
            *zip(*points, strict=True), marker=MARKERS[i % len(MARKERS)], ms=3, label=_text(record.model)
        )
        chosen = [point for point in points if result.C and math.isclose(point[0], result.C)]
        axes.plot(*zip(*chosen, strict=True) if chosen else ((), ()), "o", ms=9, mfc="none", color=drawn.get_color())
    axes.set_xscale("log")
    axes.set_xlabel("C; the ring marks the chosen value")
    axes.set_ylabel("validation score, %")
    axes.set_title(f"{_text(dataset)}: {_text(section.title, MAX_TITLE)}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _against(points: Sequence[tuple[DoneRecord, float, float]], x_name: str, y_name: str) -> Figure:
    figure, axes = _new(4.0, 4.0)
    protocols = sorted({record.protocol for record, _, _ in points})
    for i, protocol in enumerate(protocols):
        own = [(x, y) for record, x, y in points if record.protocol == protocol]
        axes.plot(*zip(*own, strict=True), MARKERS[i % len(MARKERS)], ms=4, label=_text(protocol))
    axes.axline((50, 50), slope=1, ls="--", lw=1, color="grey")
    values = [value for _, x, y in points for value in (x, y)]
    room = max(1.0, 0.05 * (max(values) - min(values)))
    limits = (min(values) - room, max(values) + room)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=x_name, ylabel=y_name)
    axes.legend()
    return figure
