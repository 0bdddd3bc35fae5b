"""Records -> leaderboard, models by datasets. Needs neither torch nor scikit-learn.

Protocol and its rules, feature point, solver, mode and precision are never mixed: each has its section.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from probe.datasets.catalog import CATALOG
from probe.errors import listed, printable
from probe.leaderboard.mean_ranking import MeanRanks, mean_ranks
from probe.leaderboard.tables import footnotes, half_width, markdown_table, markdown_text, marks, percent, status
from probe.records.record import test_images
from probe.records.schema import DoneRecord, ResultRecord, RunRecord
from probe.specs import digest, identity_fields

MAX_NAMED = 50  # datasets or models in a note
OTHER_IMAGES = "other test images or metric"
_ORDER = {row.name: i for i, row in enumerate(CATALOG)}
_ENDINGS = ("", "_low", "_high", "_status")  # endings of a dataset's column names


@dataclass(frozen=True)
class Line:
    """A model of a section.

    Args:
        model: its name.
        cells: its record for each dataset that it has one for.
        mean: over the datasets that all models of the section have, in [0, 1]; None where there is none.
        low: end of the 95 % interval of the mean, for which test images were drawn; None where a record has none.
        high: the other end.
        gflops: of an image, in billions of operations; None where no record knows.
        rank: one more than the number of models whose mean is higher by more than chance, `1 =` where it is shared;
            empty where outcomes of test images are missing.
    """

    model: str
    cells: Mapping[str, RunRecord]
    mean: float | None
    low: float | None
    high: float | None
    gflops: float | None
    rank: str

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval; None where there is none."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Section:
    """What can be compared.

    Args:
        protocol: its name.
        feature_point: of its features.
        solver: of its probes.
        mode: `eager`, `jit` or `compiled`.
        precision: of the weights.
        rules: the first of the digest of the protocol's rules, by which two of one name are told apart.
        datasets: in the order of the catalogue, those that it does not have after them.
        common: those that all models have, on the same test images.
        lines: the models, the best mean first.
        others: keys of records of other test images, or another metric, than most in their column.
        unranked: models without a rank, and why.
    """

    protocol: str
    feature_point: str
    solver: str
    mode: str
    precision: str
    rules: str
    datasets: tuple[str, ...]
    common: tuple[str, ...]
    lines: tuple[Line, ...]
    others: frozenset[tuple[str, ...]]
    unranked: Mapping[str, str]

    @property
    def title(self) -> str:
        """What it is of, for people."""
        return f"{self.protocol}, {self.feature_point} features, {self.solver}, {self.mode}, {self.precision}"

    @property
    def records(self) -> list[RunRecord]:
        """All of them, line by line."""
        return [record for line in self.lines for record in line.cells.values()]

    def status(self, record: RunRecord) -> str:
        """As `tables.status`, and whether it is one of `others`."""
        marks = [mark for mark in (status(record), OTHER_IMAGES if record.key in self.others else "") if mark != "ok"]
        return ", ".join(mark for mark in marks if mark) or "ok"


def make_sections(records: Sequence[RunRecord]) -> list[Section]:
    """The sections of some records, one record for each cell, sorted by protocol, solver, mode and precision."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        key = (
            record.protocol,
            record.spec.protocol.feature_point,
            record.solver,
            record.mode,
            record.precision,
            rules_digest(record),
        )
        groups.setdefault(key, []).append(record)
    return [_section(key, groups[key]) for key in sorted(groups, key=lambda key: [_natural(part) for part in key])]


def rules_digest(record: RunRecord) -> str:
    """Return the start of the digest of a protocol's rules, which its name and prose are no part of."""
    rules = identity_fields(record.spec.protocol)
    return digest({name: value for name, value in rules.items() if name != "name"})[:8]


def titles(found: Sequence[Section]) -> list[str]:
    """What each section is of, with its rules where two would be the same."""
    plain = [section.title for section in found]
    return [
        f"{title}, rules {s.rules}" if plain.count(title) > 1 else title for title, s in zip(plain, found, strict=True)
    ]


def table(found: Sequence[Section]) -> tuple[list[str], list[list[object]]]:
    """All sections as one table, a line a model: header and rows; None where there is nothing.

    Datasets have four columns each: score, ends of the interval, fractions all of them, and the status.
    """
    names = sort_datasets({name for section in found for name in section.datasets})
    header = [*("protocol", "feature_point", "solver", "mode", "precision", "rules", "rank", "model")]
    header += ["mean", "mean_low", "mean_high", "num_datasets"]
    for name in names:
        column = printable(name)
        while set(header) & {f"{column}{ending}" for ending in _ENDINGS}:  # for example, a dataset named `mean`
            column = f"dataset:{column}"
        header += [f"{column}{ending}" for ending in _ENDINGS]
    rows: list[list[object]] = []
    for section in found:
        for line in section.lines:
            named = [section.protocol, section.feature_point, section.solver, section.mode, section.precision]
            cells = [cell for name in names for cell in _four(section, line.cells.get(name))]
            rows.append(
                [
                    *named,
                    section.rules,
                    line.rank,
                    line.model,
                    line.mean,
                    line.low,
                    line.high,
                    len(section.common),
                    *cells,
                ]
            )
    return header, rows


def sections_to_markdown(found: Sequence[Section]) -> str:
    """All sections as tables to read: percent, with half the width of the 95 % interval behind a ±."""
    parts = ["# Leaderboard\n"]
    for title, section in zip(titles(found), found, strict=True):
        texts = [markdown_text(note) for note in notes(section)]
        parts += [f"## {markdown_text(title)}\n", markdown_table(*to_text(section)), *(f"{text}\n" for text in texts)]
    return "\n".join(parts)


def notes(section: Section) -> list[str]:
    """What is to be known of a section, beside its numbers."""
    found = [f"\\{note}" for note in footnotes(section.records)]
    if section.others:
        found.append("\\# of other test images, or another metric, than most in its column, and not in the mean")
    if len(section.lines) > 1 and (len(section.datasets) > 1 or not section.common):
        found.append(_of_mean(section))
    found += [f"{model} has no rank: {reason}." for model, reason in section.unranked.items()]
    for line in section.lines:
        weights = {record.encoder.weights_sha256 for record in line.cells.values()} - {None, ""}
        if len(weights) > 1:
            found.append(f"Records of {line.model} are of {len(weights)} different sets of weights.")
    return found


def _of_mean(section: Section) -> str:
    if len(section.common) == 1:
        (name,) = (printable(name) for name in section.common)
        return f"There is no mean, as only {name} has scores of all models; ranks are by {name}."
    if section.common:
        return f"The mean is over the datasets that all models have: {listed(section.common, most=MAX_NAMED)}."
    lacking = {
        name: [line.model for line in section.lines if not _counts(line.cells.get(name), section.others)]
        for name in section.datasets
    }
    name = min(lacking, key=lambda name: len(lacking[name]))
    models = listed(lacking[name], most=MAX_NAMED)
    return f"There is no mean, as no dataset has a score of all models; {name} lacks those of {models}."


def to_text(section: Section, *, with_ranks: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return a section to read: header and rows. Ranks and means have no column if there are none."""
    with_ranks, with_means = with_ranks and has_ranks(section), has_mean(section)
    means = [f"mean of {len(section.common)}"] if with_means else []
    header = [*(["rank"] if with_ranks else []), "model", *means, *section.datasets]
    rows = []
    for line in section.lines:
        means = [mean_text(section, line)] if with_means else []
        cells = [cell_text(section, line.cells.get(name)) for name in section.datasets]
        rows.append([*([line.rank] if with_ranks else []), line.model, *means, *cells])
    return header, rows


def has_ranks(section: Section) -> bool:
    """Return True if any model has a rank."""
    return any(line.rank for line in section.lines)


def has_mean(section: Section) -> bool:
    """Return True if several datasets have scores of all models; the mean of one is its score."""
    return len(section.common) > 1


def mean_text(section: Section, line: Line) -> str:
    """The mean to read, with half the width of its interval and the marks of its cells; empty where there is none."""
    if line.mean is None:
        return ""
    around = "" if line.half_width is None else f" ±{100 * line.half_width:.2f}"
    of_cells = "".join(marks(line.cells[name]) for name in section.common)
    return f"{100 * line.mean:.2f}{around}" + "".join(mark for mark in (" *", " ~", " +") if mark in of_cells)


def cell_text(section: Section, record: RunRecord | None) -> str:
    """A cell to read: score, half the width of the interval, marks; what failed says so, what is missing is empty."""
    if record is None:
        return ""
    mark = " #" if record.key in section.others else ""
    return f"{percent(record, with_interval=True)}{mark}"


def sort_datasets(names: set[str]) -> list[str]:
    """Those of the catalogue in its order, then the others by name."""
    return sorted(names, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))


def _section(key: tuple[str, ...], records: Sequence[RunRecord]) -> Section:
    by_model: dict[str, dict[str, RunRecord]] = {}
    for record in records:
        by_model.setdefault(record.model, {})[record.dataset] = record
    datasets = sort_datasets({record.dataset for record in records})
    others = frozenset(record.key for name in datasets for record in _others([r for r in records if r.dataset == name]))
    common = [name for name in datasets if all(_counts(cells.get(name), others) for cells in by_model.values())]
    whole = {
        model: [record for name in common if isinstance(record := cells[name], DoneRecord)]
        for model, cells in by_model.items()
    }
    found = mean_ranks(whole) if common else MeanRanks({}, {})
    lines = [
        Line(
            model,
            by_model[model],
            *_summary([record.result for record in cells]),
            _gflops(by_model[model].values()),
            found.ranks.get(model, ""),
        )
        for model, cells in whole.items()
    ]
    lines.sort(key=lambda line: (-(line.mean if line.mean is not None else -1), _natural(line.model)))
    protocol, point, solver, mode, precision, rules = key
    return Section(
        protocol=protocol,
        feature_point=point,
        solver=solver,
        mode=mode,
        precision=precision,
        rules=rules,
        datasets=tuple(datasets),
        common=tuple(common),
        lines=tuple(lines),
        others=others,
        unranked=found.reasons,
    )


def _counts(record: RunRecord | None, others: frozenset[tuple[str, ...]]) -> bool:
    return record is not None and record.result is not None and record.key not in others


def _others(column: Sequence[RunRecord]) -> Iterator[RunRecord]:
    """The records of a dataset of other test images, or another metric, than most; of as many, than the newest."""
    done = [record for record in column if isinstance(record, DoneRecord)]
    images = [(test_images(record), record.spec.dataset.metric) for record in done]
    if len(set(images)) > 1:
        most = max(zip(images, done, strict=True), key=lambda pair: (images.count(pair[0]), pair[1].created))[0]
        yield from (record for record, own in zip(done, images, strict=True) if own != most)


def _summary(results: Sequence[ResultRecord]) -> tuple[float | None, float | None, float | None]:
    """Mean score, and the ends of its interval: test splits of different datasets are independent."""
    if not results:
        return None, None, None
    mean = sum(result.score for result in results) / len(results)
    if len(results) == 1 and results[0].interval is not None:
        return mean, results[0].interval.low, results[0].interval.high
    halves = [half_width(result) for result in results]
    known = [half for half in halves if half is not None]
    if len(known) < len(halves):
        return mean, None, None
    half = math.sqrt(sum(half**2 for half in known)) / len(known)
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def _gflops(records: Iterable[RunRecord]) -> float | None:
    return next((flops for record in records if (flops := gflops(record)) is not None), None)


def gflops(record: RunRecord) -> float | None:
    """Return the operations of the image tower for one image, in billions; None if they are not known."""
    profile = record.spec.model.profile
    return profile.flops / 1e9 if profile is not None and profile.flops else None


def _four(section: Section, record: RunRecord | None) -> list[object]:
    if record is None:
        return [None, None, None, None]
    if record.result is None:
        return [None, None, None, section.status(record)]
    interval = record.result.interval
    ends = (None, None) if interval is None else (interval.low, interval.high)
    return [record.result.score, *ends, section.status(record)]


def _natural(text: str) -> list[tuple[int, str]]:
    """So that few-shot-2 comes before few-shot-16."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]
