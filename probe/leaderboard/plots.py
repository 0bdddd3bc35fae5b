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
from probe.leaderboard.few_shot import SHOTS, FewShotChart, few_shot_charts
from probe.leaderboard.labels import short_names
from probe.leaderboard.methods import compare_methods
from probe.leaderboard.sections import Section
from probe.leaderboard.shifts import ShiftPoint, shift_points
from probe.records.packing import unpack_bins
from probe.records.record import write_bytes
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import NO_SOLVER, unique_slug

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
MAX_PANELS = 40  # of a figure of reliability diagrams
MARKERS = "os^Dv<>ph*"


def write_plots(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Draw all figures that have something to show, and return their paths.

    Each section has `bars` (scores with 95 % confidence intervals), `cost` (the mean against GFLOPs for an image) and,
    for each dataset with a sweep, `sweep` (validation score against C). Each dataset of a section whose records have
    the bins of their calibration has `reliability`: a reliability diagram for each of the `MAX_PANELS` best models.
    Each further test set of a dataset of a section has `further` (the score there against the score on the dataset).
    Each group of few-shot protocols has `shots` (mean score against the number of training images of each class, with
    zero-shot at 0). All records together have `zero-shot` (zero-shot against the linear probe), `jit` (JIT against
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
        name = "-".join(unique_slug(part) for part in parts if part != NO_SOLVER)
        if titles.count(section.title) > 1:
            name += f"-{section.rules}"
        if any(record.result for record in section.records):
            yield f"bars.{name}", _bars(section)
        known = [line for line in section.lines if line.mean is not None and line.gflops]
        if known:
            yield f"cost.{name}", _cost(section, known)
        for dataset in section.datasets:
            slug = unique_slug(dataset, is_path=":" in dataset)
            swept = [record for record in _done(section, dataset) if len(record.result.sweep) > 1]
            if swept:
                yield f"sweep.{slug}.{name}", _sweep(section, dataset, swept)
            binned = [record for record in _done(section, dataset) if _has_bins(record)]
            if binned:
                yield f"reliability.{slug}.{name}", _reliability(section, dataset, binned[:MAX_PANELS])
            shifted = shift_points(_done(section, dataset))
            for test in dict.fromkeys(point.test for point in shifted):
                drawn = [point for point in shifted if point.test == test]
                yield f"further.{unique_slug(test)}.{slug}.{name}", _further(section, dataset, drawn)
    charts = few_shot_charts(records)
    titles = [chart.title for chart in charts]
    for chart in charts:
        key = chart.key if titles.count(chart.title) > 1 else chart.key[:-1]  # the last part is the rules
        yield f"shots.{'-'.join(map(unique_slug, key))}", _shots(chart)
    compared_methods = [row for row in compare_methods(records) if row.test is not None]
    if compared_methods:
        models = short_names(sorted({row.records[0].model for row in compared_methods}))
        both = [
            (models[row.probe.model], _score(row.zero_shot), _score(row.probe))
            for row in compared_methods
            if row.probe is not None and row.zero_shot is not None
        ]
        yield "zero-shot", _against(both, "zero-shot, %", "linear probe, %")
    pairs = modes.pair_modes(records)
    if pairs:
        points = [(pair.eager.protocol, _score(pair.eager), _score(pair.jit)) for pair in pairs]
        yield "jit", _against(points, "eager, %", "JIT, %")
    compared = published.compare_with_published(records)
    if compared:
        points = [(found.record.protocol, 100 * found.theirs, _score(found.record)) for found in compared]
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
        marker = MARKERS[i % len(MARKERS)]
        (drawn,) = axes.plot(*zip(*points, strict=True), marker=marker, ms=3, label=_text(record.model))
        unfinished = [(point.C, 100 * point.score) for point in result.sweep if point.ended_early]
        if unfinished:
            axes.plot(*zip(*unfinished, strict=True), marker, ls="", ms=3, mfc="white", color=drawn.get_color())
        chosen = [point for point in points if result.C and math.isclose(point[0], result.C)]
        axes.plot(*zip(*chosen, strict=True) if chosen else ((), ()), "o", ms=9, mfc="none", color=drawn.get_color())
    axes.set_xscale("log")
    axes.set_xlabel("C; the ring marks the chosen value")
    axes.set_ylabel("validation score, %")
    axes.set_title(f"{_text(dataset)}: {_text(section.title, MAX_TITLE)}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _has_bins(record: DoneRecord) -> bool:
    return record.result.calibration is not None and record.result.calibration.before.bins is not None


def _reliability(section: Section, dataset: str, records: Sequence[DoneRecord]) -> Figure:
    """Draw the share of hits against the mean probability of each bin, before and after temperature scaling."""
    from matplotlib.figure import Figure

    columns = min(4, len(records))
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, gridspec_kw={"hspace": 0.3})
    for axes in panels.flat[len(records) :]:
        axes.set_visible(False)
    models = short_names(record.model for record in records)
    for axes, record in zip(panels.flat, records, strict=False):
        calibration = record.result.calibration
        assert calibration is not None
        axes.axline((50, 50), slope=1, ls="--", lw=1, color="grey")
        for (name, scores), marker in zip(
            (("before", calibration.before), ("after", calibration.after)), MARKERS, strict=False
        ):
            if scores is None:
                continue
            answers, probabilities, hits = unpack_bins(scores)
            held = answers > 0
            label = f"{name}: ECE {100 * scores.ece:.2f} %"
            axes.plot(100 * probabilities[held], 100 * hits[held], marker=marker, ms=3, lw=1, label=label)
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="mean probability, %", ylabel="hits, %")
        axes.label_outer()
        axes.set_title(_text(models[record.model]), fontsize=9)
        axes.legend(fontsize=6, loc="lower right")
    title = f"{_text(dataset)}: {_text(section.title, MAX_TITLE)}"
    figure.suptitle(title, y=1 + 0.05 / rows, va="bottom", fontsize=10)
    return figure


def _further(section: Section, dataset: str, points: Sequence[ShiftPoint]) -> Figure:
    models = short_names(point.record.model for point in points)
    name = _text(next(iter(short_names([dataset]).values())))
    figure = _against(
        [(models[point.record.model], _score(point.record), 100 * point.score) for point in points],
        f"test split of {name}, %",
        f"{_text(points[0].test)}, %",
    )
    figure.axes[0].set_title(_text(section.title, MAX_TITLE))
    return figure


def _shots(chart: FewShotChart) -> Figure:
    figure, axes = _new(4.5, 3.2)
    has_levels = any(curve.zero_shot is not None for curve in chart.curves)
    models = short_names(curve.model for curve in chart.curves)
    places = range(1, 1 + len(SHOTS))  # at equal distances, because each number is twice the one before it
    for i, curve in enumerate(chart.curves):
        marker = MARKERS[i % len(MARKERS)]
        (drawn,) = axes.plot(
            places, [100 * score for score in curve.scores], marker=marker, ms=4, label=_text(models[curve.model])
        )
        if curve.zero_shot is not None:
            level = 100 * curve.zero_shot
            axes.plot([0], [level], marker, ms=6, mfc="none", color=drawn.get_color())
            axes.axhline(level, ls="--", lw=1, color=drawn.get_color())
    axes.set_xticks([*([0] if has_levels else []), *places], [*(["0"] if has_levels else []), *map(str, SHOTS)])
    axes.set_xlabel("training images of each class")
    one = next(iter(short_names(chart.datasets).values()))
    axes.set_ylabel(f"{_text(one) if len(chart.datasets) == 1 else f'mean of {len(chart.datasets)}'}, %")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _against(points: Sequence[tuple[str, float, float]], x_name: str, y_name: str) -> Figure:
    """Draw points of label, x and y, with a marker for each label."""
    figure, axes = _new(4.0, 4.0)
    labels = sorted({label for label, _, _ in points}, key=board.natural)
    for i, label in enumerate(labels):
        own = [(x, y) for other, x, y in points if other == label]
        axes.plot(*zip(*own, strict=True), MARKERS[i % len(MARKERS)], ms=4, label=_text(label))
    axes.axline((50, 50), slope=1, ls="--", lw=1, color="grey")
    values = [value for _, x, y in points for value in (x, y)]
    room = max(1.0, 0.05 * (max(values) - min(values)))
    limits = (min(values) - room, max(values) + room)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=x_name, ylabel=y_name)
    axes.legend()
    return figure
