"""Records -> sections of the leaderboard, models by datasets. Needs neither torch nor scikit-learn.

A section never mixes protocols and their rules, feature points, solvers, modes or precisions. The first section, with
the most scores, is the overview.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from probe.datasets.catalog import DATASETS
from probe.leaderboard.ranking import Evidence, MeanRanks, mean_ranks
from probe.leaderboard.tables import half_width, marks, status
from probe.records.record import prompts_of, test_images
from probe.records.schema import DoneRecord, ResultRecord, RunRecord
from probe.specs import NO_SOLVER, SUPPLIED, Protocol, digest, identity_fields

OTHER_IMAGES = "other test images, metric or prompts"
BEST, TIED = "best", "tied"  # places of a score in its column
_ORDER = {row.name: i for i, row in enumerate(DATASETS)}


@dataclass(frozen=True)
class Cell:
    """A score in a section.

    Args:
        record: its record.
        rank: rank of the model on the dataset, as `Line.rank`; empty if it was not tested.
        place: `best` for the highest score of the dataset, `tied` if no other model is better by more than chance.
        is_other: True if most records of the dataset have different test images, another metric or different prompts.
    """

    record: RunRecord
    rank: str = ""
    place: str = ""
    is_other: bool = False

    @property
    def status(self) -> str:
        """Status as in `tables.status`, and `OTHER_IMAGES`."""
        own = status(self.record)
        return own if not self.is_other else OTHER_IMAGES if own == "ok" else f"{own}, {OTHER_IMAGES}"

    @property
    def marks(self) -> str:
        """Marks behind the score, see `labels.LEGEND`."""
        return f"{marks(self.record)}{' #' if self.is_other else ''}".strip()


@dataclass(frozen=True)
class Line:
    """A model of a section.

    Args:
        model: its name.
        cells: its cells by dataset.
        mean: mean score over the `common` datasets of the section, in [0, 1]; None if there is none.
        low: lower bound of the 95 % confidence interval of the mean, over the sampling of test images; None if a
            record has no interval.
        high: upper bound.
        gflops: operations of the image tower for one image, in billions; None if it is not known.
        rank: one more than the number of models whose mean is higher by more than chance, `1 =` if it is shared;
            empty if outcomes of test images are missing.
    """

    model: str
    cells: Mapping[str, Cell]
    mean: float | None
    low: float | None
    high: float | None
    gflops: float | None
    rank: str

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval; None if there is none."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Section:
    """Runs that can be compared.

    Args:
        protocol: its name.
        feature_point: of its features.
        solver: of its probes; `specs.NO_SOLVER` if the protocol fits nothing.
        mode: `eager`, `jit` or `compiled`.
        precision: of the weights.
        rules: start of the digest of the protocol's rules, which tells protocols of one name apart.
        datasets: in the order of the catalogue, followed by those that it does not have.
        common: datasets that all models with a score have, on the same test images.
        lines: models, the best mean first.
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
    unranked: Mapping[str, str]

    @property
    def title(self) -> str:
        """Everything that the section is limited to."""
        solver = "" if self.solver == NO_SOLVER else f"{self.solver}, "
        return f"{self.protocol}, {self.feature_point} features, {solver}{self.mode}, {self.precision}"

    @property
    def cells(self) -> list[Cell]:
        """All cells, line by line."""
        return [cell for line in self.lines for cell in line.cells.values()]

    @property
    def records(self) -> list[RunRecord]:
        """All records, line by line."""
        return [cell.record for cell in self.cells]


def make_sections(records: Sequence[RunRecord]) -> list[Section]:
    """Return the sections of records of different runs: the overview, then the others in natural order of their titles.

    The overview is the section with the most scores. If several have as many, the protocol with the most scores in all
    sections comes first, then the section with the most scores without a mark. A section of supplied features is the
    overview only if all sections are sections of supplied features.
    """
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        named = (record.protocol, record.spec.protocol.feature_point, record.solver, record.mode, record.precision)
        groups.setdefault((*named, rules_digest(record)), []).append(record)
    sections = [_section(key, groups[key]) for key in sorted(groups, key=lambda key: [natural(part) for part in key])]
    of_protocol: dict[str, int] = {}
    for section in sections:
        of_protocol[section.protocol] = of_protocol.get(section.protocol, 0) + _num_scores(section)
    overview = max(
        sections,
        key=lambda section: (
            section.mode != SUPPLIED,
            _num_scores(section),
            of_protocol[section.protocol],
            _num_unmarked(section),
        ),
        default=None,
    )
    return sorted(sections, key=lambda section: section is not overview)


def _num_scores(section: Section) -> int:
    return sum(record.result is not None for record in section.records)


def _num_unmarked(section: Section) -> int:
    return sum(cell.status == "ok" for cell in section.cells)


def rules_digest(record: RunRecord) -> str:
    """Return the start of the digest of a protocol's rules, without its name and prose."""
    return _digest_rules(record.spec.protocol)


@cache
def _digest_rules(protocol: Protocol) -> str:
    rules = identity_fields(protocol)
    return digest({name: value for name, value in rules.items() if name != "name"})[:8]


def titles(sections: Sequence[Section]) -> list[str]:
    """Return the title of each section, with its rules if two titles are equal."""
    plain = [section.title for section in sections]
    return [
        f"{title}, rules {s.rules}" if plain.count(title) > 1 else title
        for title, s in zip(plain, sections, strict=True)
    ]


def has_ranks(section: Section) -> bool:
    """Return True if any model has a rank."""
    return any(line.rank for line in section.lines)


def has_mean(section: Section) -> bool:
    """Return True if several datasets have scores of all models; the mean of one is its score."""
    return len(section.common) > 1


def sort_datasets(names: set[str]) -> list[str]:
    """Return the names of the catalogue in its order, then the other names sorted."""
    return sorted(names, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))


def _section(key: tuple[str, ...], records: Sequence[RunRecord]) -> Section:
    of_dataset: dict[str, list[RunRecord]] = {}
    for record in records:
        of_dataset.setdefault(record.dataset, []).append(record)
    datasets = sort_datasets(set(of_dataset))
    evidence: dict[tuple[str, ...], Evidence] = {
        record.key: Evidence(record) for record in records if isinstance(record, DoneRecord)
    }
    by_model: dict[str, dict[str, Cell]] = {record.model: {} for record in records}
    for name in datasets:
        for cell in _column(of_dataset[name], evidence):
            by_model[cell.record.model][name] = cell
    # A model whose runs all failed does not take the mean from the others.
    done = {model: cells for model, cells in by_model.items() if any(c.record.result for c in cells.values())}
    common = [name for name in datasets if done and all(has_score(cells.get(name)) for cells in done.values())]
    whole = {model: [evidence[cells[name].record.key] for name in common] for model, cells in done.items()}
    ranking = mean_ranks(whole) if common else MeanRanks({}, {})
    lines = [
        Line(
            model,
            cells,
            *_summary([one.record.result for one in whole.get(model, ())]),
            _gflops(cell.record for cell in cells.values()),
            ranking.ranks.get(model, ""),
        )
        for model, cells in by_model.items()
    ]
    lines.sort(key=_order)
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
        unranked=ranking.reasons,
    )


def _order(line: Line) -> tuple[object, ...]:
    """Return a sort key: the best mean first, then the most scores."""
    scores = sum(cell.record.result is not None for cell in line.cells.values())
    return -(line.mean if line.mean is not None else -1), -scores, natural(line.model)


def _column(records: Sequence[RunRecord], evidence: Mapping[tuple[str, ...], Evidence]) -> list[Cell]:
    """Return the cells of one dataset, with ranks and places of the scores that count."""
    others = {record.key for record in _others(records)}
    done = [r for r in records if isinstance(r, DoneRecord) and r.key not in others]
    ranks = mean_ranks({record.model: [evidence[record.key]] for record in done}).ranks
    best = max((record.result.score for record in done), default=None)
    is_tested = any(record.result.score == best and record.model in ranks for record in done)
    cells = []
    for record in records:
        rank, place = "", ""
        if record.key not in others and record.result is not None:
            rank = ranks.get(record.model, "")
            if len(done) > 1 and record.result.score == best:
                place = BEST
            elif is_tested and rank.partition(" ")[0] == "1":
                place = TIED
        cells.append(Cell(record, rank, place, record.key in others))
    return cells


def has_score(cell: Cell | None) -> bool:
    """Return True if a cell has a score that can be compared with the others of its dataset."""
    return cell is not None and cell.record.result is not None and not cell.is_other


def _others(column: Sequence[RunRecord]) -> Iterator[RunRecord]:
    """Yield the records whose test images, metric or prompts differ from most; if equal, from the newest."""
    done = [record for record in column if isinstance(record, DoneRecord)]
    images = [(test_images(record), record.spec.dataset.metric, prompts_of(record)) for record in done]
    if len(set(images)) > 1:
        most = max(zip(images, done, strict=True), key=lambda pair: (images.count(pair[0]), pair[1].created))[0]
        yield from (record for record, own in zip(done, images, strict=True) if own != most)


def _summary(results: Sequence[ResultRecord]) -> tuple[float | None, float | None, float | None]:
    """Return the mean score and the bounds of its interval: test splits of different datasets are independent."""
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


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key by which few-shot-2 comes before few-shot-16."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]
