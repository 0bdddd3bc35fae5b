"""Records -> leaderboard, models by datasets. Needs neither torch nor scikit-learn.

Protocol and its rules, feature point, solver, mode and precision are never mixed: each has its section.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields

from probe.datasets.catalog import CATALOG
from probe.ranking import mean_ranks, test_images
from probe.records import RunRecord
from probe.specs import Protocol, digest
from probe.tables import footnotes, half_width, markdown_table, percent, status

OTHER_IMAGES = "other test images"
_ORDER = {row.name: i for i, row in enumerate(CATALOG)}
_TEXTS = ("name", "title", "source")  # of a protocol, which are no rules


@dataclass(frozen=True)
class Line:
    """A model of a section.

    Args:
        model: its name.
        cells: its record for each dataset that it has one for.
        mean: over the datasets that all models of the section have, in [0, 1]; None where there is none.
        half_width: of the 95 % interval of the mean, for which test images were drawn; None where a record has none.
        rank: one more than the number of models whose mean is higher by more than chance, `1 =` where it is shared;
            empty where outcomes of test images are missing.
    """

    model: str
    cells: Mapping[str, RunRecord]
    mean: float | None
    half_width: float | None
    rank: str


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
        others: keys of records that read other test images than most in their column.
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

    @property
    def title(self) -> str:
        """What it is of, for people."""
        return f"{self.protocol}, {self.feature_point} features, {self.solver}, {self.mode}, {self.precision}"

    @property
    def records(self) -> list[RunRecord]:
        """All of them, line by line."""
        return [record for line in self.lines for record in line.cells.values()]

    def status(self, record: RunRecord) -> str:
        """As `tables.status`, and whether it read other test images than most in its column."""
        marks = [mark for mark in (status(record), OTHER_IMAGES if record.key in self.others else "") if mark != "ok"]
        return ", ".join(mark for mark in marks if mark) or "ok"


def sections(records: Sequence[RunRecord]) -> list[Section]:
    """The sections of some records, one record for each cell, sorted by protocol, solver, mode and precision."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        point = str(record.spec["protocol"]["feature_point"])
        key = (record.protocol, point, record.solver, record.mode, record.precision, rules_digest(record))
        groups.setdefault(key, []).append(record)
    return [_section(key, groups[key]) for key in sorted(groups, key=lambda key: [_natural(part) for part in key])]


def rules_digest(record: RunRecord) -> str:
    """The first of the digest of a protocol's rules, whose defaults earlier versions left out."""
    defaults = {own.name: own.default for own in fields(Protocol) if own.default is not MISSING}
    rules = {**defaults, **record.spec["protocol"]}
    return digest({name: value for name, value in rules.items() if name not in _TEXTS})[:8]


def table(found: Sequence[Section]) -> tuple[list[str], list[list[object]]]:
    """All sections as one table, a line a model: header and rows; None where there is nothing.

    Datasets have four columns each: score, ends of the interval, fractions all of them, and the status.
    """
    names = sort_datasets({name for section in found for name in section.datasets})
    header = [*("protocol", "feature_point", "solver", "mode", "precision", "rules", "rank", "model")]
    header += ["mean", "mean_low", "mean_high", "num_datasets"]
    header += [f"{name}{ending}" for name in names for ending in ("", "_low", "_high", "_status")]
    rows: list[list[object]] = []
    for section in found:
        for line in section.lines:
            named = [section.protocol, section.feature_point, section.solver, section.mode, section.precision]
            cells = [cell for name in names for cell in _four(section, line.cells.get(name))]
            rows.append([*named, section.rules, line.rank, line.model, *_mean(line), len(section.common), *cells])
    return header, rows


def to_markdown(found: Sequence[Section]) -> str:
    """All sections as tables to read: percent, with half the width of the 95 % interval behind a ±."""
    parts = ["# Leaderboard\n"]
    titles = [section.title for section in found]
    for section in found:
        rules = f" (rules {section.rules})" if titles.count(section.title) > 1 else ""
        parts += [f"## {section.title}{rules}\n", _markdown(section), *(f"{note}\n" for note in notes(section))]
    return "\n".join(parts)


def notes(section: Section) -> list[str]:
    """What is to be known of a section, beside its numbers."""
    found = [f"\\{note}" for note in footnotes(section.records)]
    if section.others:
        found.append("# read other test images than most in its column, and is not in the mean")
    if len(section.lines) > 1:
        common = ", ".join(section.common) or "none"
        found.append(f"The mean is over the datasets that all models have: {common}.")
    for line in section.lines:
        weights = {record.encoder.get("weights_sha256") for record in line.cells.values()} - {None, ""}
        if len(weights) > 1:
            found.append(f"Records of {line.model} are of {len(weights)} different sets of weights.")
    return found


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
    whole = {model: [cells[name] for name in common] for model, cells in by_model.items()}
    ranks = mean_ranks(whole) if common else {}
    lines = [Line(model, by_model[model], *_summary(cells), ranks.get(model, "")) for model, cells in whole.items()]
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
    )


def _counts(record: RunRecord | None, others: frozenset[tuple[str, ...]]) -> bool:
    return record is not None and record.result is not None and record.key not in others


def _others(column: Sequence[RunRecord]) -> Iterator[RunRecord]:
    """The records of a dataset that read other test images than most; of as many, than the newest."""
    done = [record for record in column if record.result is not None]
    images = [test_images(record) for record in done]
    if len(set(images)) > 1:
        most = max(zip(images, done, strict=True), key=lambda pair: (images.count(pair[0]), pair[1].created))[0]
        yield from (record for record, own in zip(done, images, strict=True) if own != most)


def _summary(records: Sequence[RunRecord]) -> tuple[float | None, float | None]:
    """Mean score, and half the width of its interval: test splits of different datasets are independent."""
    results = [record.result for record in records if record.result is not None]
    if not results:
        return None, None
    halves = [half_width(result) for result in results]
    known = [half for half in halves if half is not None]
    half = math.sqrt(sum(half**2 for half in known)) / len(known) if len(known) == len(halves) else None
    return sum(result["score"] for result in results) / len(results), half


def _mean(line: Line) -> list[float | None]:
    if line.mean is None or line.half_width is None:
        return [line.mean, None, None]
    return [line.mean, max(line.mean - line.half_width, 0.0), min(line.mean + line.half_width, 1.0)]


def _four(section: Section, record: RunRecord | None) -> list[object]:
    if record is None:
        return [None, None, None, None]
    result = record.result or {}
    around = result.get("interval") or {}
    return [result.get("score"), around.get("low"), around.get("high"), section.status(record)]


def _markdown(section: Section) -> str:
    has_mean = len(section.datasets) > 1
    header = ["rank", "model", *([f"mean of {len(section.common)}"] if has_mean else []), *section.datasets]
    rows = []
    for line in section.lines:
        mean = "" if line.mean is None else f"{100 * line.mean:.2f}"
        if line.half_width is not None:
            mean += f" ±{100 * line.half_width:.2f}"
        cells = [cell_text(section, line.cells.get(name)) for name in section.datasets]
        rows.append([line.rank, line.model, *([mean] if has_mean else []), *cells])
    return markdown_table(header, rows)


def _natural(text: str) -> list[tuple[int, str]]:
    """So that few-shot-2 comes before few-shot-16."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", text)]
