"""Data of the page of results for its script: frozen dataclasses, and their encoding as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from probe.datasets.catalog import DATASETS
from probe.environment import EnvironmentRecord
from probe.errors import brief, printable
from probe.leaderboard import details, modes, published
from probe.leaderboard.clean import clean_text
from probe.leaderboard.few_shot import SHOTS, FewShotChart, chart_key, few_shot_charts
from probe.leaderboard.labels import count, short_names
from probe.leaderboard.methods import MethodRow
from probe.leaderboard.sections import Line, Section, gflops
from probe.leaderboard.shifts import shift_points
from probe.leaderboard.tables import status
from probe.records.record import record_path
from probe.records.schema import CalibrationRecord, CalibrationScores, DoneRecord, PromptsRecord, RunRecord
from probe.specs import DEFAULT_SOLVER, NO_SOLVER, SUPPLIED, ZERO_SHOT, ModelSpec

DIGITS = 6  # of numbers; the page shows at most four
SHARE_DIGITS = 4  # decimals of the scores of classes and of bins, of which there are many
SHORT = 8  # characters of a commit
MAX_CLASSES, MAX_CONFUSIONS = 20, 10  # of a record, to keep the page small
DATASET_TITLES = {row.name: row.title for row in DATASETS}


@dataclass(frozen=True)
class Labels:
    """Short names of models and datasets by name, and the place of each model and record in the data of the page."""

    models: Mapping[str, str]
    datasets: Mapping[str, str]
    model_index: Mapping[str, int]
    record_index: Mapping[tuple[str, ...], int]


@dataclass(frozen=True)
class PageModel:
    """A model: its facts by name, as texts. Its place in the list is its colour."""

    name: str
    label: str
    facts: Mapping[str, str]
    gflops: float | None = None


@dataclass(frozen=True)
class PageScores:
    """Calibration of a record before or after temperature scaling.

    `bins` has the number of answers, the mean probability and the share of hits of each bin that has answers.
    """

    brier: float
    ece: float
    nll: float | None = None
    low: float | None = None
    high: float | None = None
    bins: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class PageCalibration:
    """Calibration of a record; see `records.schema.CalibrationRecord`."""

    before: PageScores
    after: PageScores | None = None
    temperature: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageRecord:
    """A record; `model` and `environment` are indices, `sweep` has pairs of C and validation score.

    `ended_early` has each C of the sweep whose fit ended early, before its optimum.

    `classes` has the index of the name, the number of images, the score and the bounds of its interval of the worst of
    `num_classes` classes. `confusions` has two such indices, the number of images and their share of the class.
    """

    file: str
    dataset: str
    model: int
    protocol: str
    mode: str
    precision: str
    solver: str
    status: str
    metric: str
    created: str
    environment: int
    seconds: str
    error: str = ""
    weights: str | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    C: float | None = None
    iterations: int | None = None
    gradient: float | None = None
    train: int | None = None
    test: int | None = None
    sweep: tuple[tuple[float, float], ...] = ()
    ended_early: tuple[float, ...] = ()
    k: int | None = None
    prompts: str = ""
    num_classes: int = 0
    classes: tuple[tuple[float, ...], ...] = ()
    confusions: tuple[tuple[float, ...], ...] = ()
    calibration: PageCalibration | None = None
    clean: str = ""


@dataclass(frozen=True)
class PageLine:
    """A model of a section: its mean with its interval, and the index of its record for each dataset."""

    model: int
    cells: tuple[int | None, ...]
    mean: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PageSection:
    """A section: the value of each filter, labels and titles of its datasets, the number of them in the mean, lines.

    `shots` is the index of the few-shot chart that is shown with the section; None without one.
    """

    protocol: str
    mode: str
    precision: str
    solver: str
    datasets: tuple[str, ...]
    titles: tuple[str, ...]
    common: int
    lines: tuple[PageLine, ...]
    shots: int | None = None


@dataclass(frozen=True)
class PageMethods:
    """Records of zero-shot and the linear probe of one model and dataset, by index, and the p-value of their test."""

    zero_shot: int
    probe: int
    p: float


@dataclass(frozen=True)
class PageFurther:
    """Score of a record, by index, on a further test set, with predictions among all classes of the dataset."""

    record: int
    test: str
    score: float


@dataclass(frozen=True)
class PageCurve:
    """A model, by index, of a few-shot chart; see `few_shot.FewShotCurve`."""

    model: int
    scores: tuple[float, ...]
    zero_shot: float | None = None


@dataclass(frozen=True)
class PageShots:
    """A few-shot chart: its title, labels of its datasets, numbers of shots, curves."""

    title: str
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    curves: tuple[PageCurve, ...]


@dataclass(frozen=True)
class PagePair:
    """Records of a run in eager and in JIT mode, by index; see `modes.ModePair`."""

    eager: int
    jit: int
    flipped: int | None = None
    p: float | None = None
    largest: float | None = None


@dataclass(frozen=True)
class PagePublished:
    """A record, by index, and the score that the CLIP paper has for it."""

    record: int
    theirs: float


@dataclass(frozen=True)
class PageData:
    """Data for the script of the page. `folder` is the path from the page to the folder of the records.

    `names` are the class names that records refer to.
    """

    folder: str
    models: tuple[PageModel, ...]
    records: tuple[PageRecord, ...]
    environments: tuple[str, ...]
    sections: tuple[PageSection, ...]
    pairs: tuple[PagePair, ...]
    published: tuple[PagePublished, ...]
    methods: tuple[PageMethods, ...] = ()
    shots: tuple[PageShots, ...] = ()
    names: tuple[str, ...] = ()
    further: tuple[PageFurther, ...] = ()


def encode_data(data: PageData) -> str:
    """Return the data as JSON: fields that have their default are left out, and numbers have `DIGITS` digits."""
    return json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, str | int | None):  # before the checks of types that are rarer and take longer
        return value
    if isinstance(value, tuple):
        return [_plain(own) for own in value]
    if is_dataclass(value):
        values = [(field, getattr(value, field.name)) for field in fields(value)]
        return {field.name: _plain(own) for field, own in values if own != field.default}
    return {name: _plain(own) for name, own in value.items()}


def make_labels(records: Sequence[RunRecord]) -> Labels:
    """Return the short names of all models and datasets, and where models and records are in the data."""
    models = sorted({record.model for record in records})
    return Labels(
        short_names(models),
        short_names(sorted({record.dataset for record in records})),
        {name: i for i, name in enumerate(models)},
        {record.key: i for i, record in enumerate(records)},
    )


def make_data(
    records: Sequence[RunRecord],
    sections: Sequence[Section],
    protocols: Sequence[str],
    labels: Labels,
    *,
    folder: str,
    rows: Sequence[MethodRow],
) -> PageData:
    """Return the data of the page; `protocols` has a label for each section, and `rows` are those of the records."""
    environments: dict[str, int] = {}
    names: dict[str, int] = {}
    described = tuple(_record(record, labels, environments, names) for record in records)
    by_model: dict[str, list[RunRecord]] = {name: [] for name in labels.model_index}
    for record in records:
        by_model[record.model].append(record)
    index, charts = labels.record_index, few_shot_charts(records)
    return PageData(
        folder,
        tuple(_model(name, own, labels) for name, own in by_model.items()),
        described,
        tuple(environments),
        tuple(_section(*pair, labels, charts) for pair in zip(sections, protocols, strict=True)),
        tuple(
            PagePair(index[one.eager.key], index[one.jit.key], one.flipped, one.p_value, one.largest)
            for one in modes.pair_modes(records)
        ),
        tuple(PagePublished(index[one.record.key], one.theirs) for one in published.compare_with_published(records)),
        tuple(
            PageMethods(index[row.zero_shot.key], index[row.probe.key], row.test.p_value)
            for row in rows
            if row.zero_shot is not None and row.probe is not None and row.test is not None
        ),
        tuple(_shots(chart, labels) for chart in charts),
        tuple(names),
        tuple(PageFurther(index[one.record.key], printable(one.test), one.score) for one in shift_points(records)),
    )


def _shots(chart: FewShotChart, labels: Labels) -> PageShots:
    return PageShots(
        printable(chart.title),
        tuple(labels.datasets[name] for name in chart.datasets),
        SHOTS,
        tuple(PageCurve(labels.model_index[one.model], one.scores, one.zero_shot) for one in chart.curves),
    )


def _find_chart(section: Section, charts: Sequence[FewShotChart]) -> int | None:
    """Return the index of the few-shot chart of a section: its own, or one of its mode and precision; or None."""
    keys = {chart_key(record) for record in section.records}
    found = [i for i, one in enumerate(charts) if (one.mode, one.precision) == (section.mode, section.precision)]
    solvers = (section.solver, DEFAULT_SOLVER)
    return min(
        found,
        key=lambda i: (charts[i].key not in keys, *(charts[i].solver != solver for solver in solvers), i),
        default=None,
    )


def _section(section: Section, protocol: str, labels: Labels, charts: Sequence[FewShotChart]) -> PageSection:
    return PageSection(
        protocol,
        section.mode,
        section.precision,
        section.solver,
        tuple(labels.datasets[name] for name in section.datasets),
        tuple(DATASET_TITLES.get(name, "") for name in section.datasets),
        len(section.common),
        tuple(_line(section, line, labels) for line in section.lines),
        _find_chart(section, charts),
    )


def _line(section: Section, line: Line, labels: Labels) -> PageLine:
    cells = [line.cells.get(name) for name in section.datasets]
    indices = tuple(None if cell is None else labels.record_index[cell.record.key] for cell in cells)
    return PageLine(labels.model_index[line.model], indices, line.mean, line.low, line.high)


def _model(name: str, records: Sequence[RunRecord], labels: Labels) -> PageModel:
    newest = max(records, key=lambda record: (record.result is not None, bool(gflops(record)), record.created))
    spec, encoder = newest.spec.model, newest.encoder
    digests = dict.fromkeys(record.encoder.weights_sha256 for record in records if record.encoder.weights_sha256)
    flops, profile = gflops(newest), spec.profile
    datasets = {record.dataset for record in records}
    facts = {
        "name": printable(name) if labels.models[name] != printable(name) else "",
        "weights": printable(_source(spec)),
        "SHA-256 of the weights": ", ".join(digests),
        "licence": printable(encoder.license or spec.license),
        "parameters": _parameters(profile.parameters, profile.image_parameters) if profile is not None else "",
        "cost of an image": f"{flops:.3g} GFLOPs" if flops else "",
        "image size": f"{encoder.resolution} × {encoder.resolution} pixels" if encoder.resolution else "",  # noqa: RUF001 - a multiplication sign
        "features": f"{encoder.embed_dim} projected" if encoder.embed_dim else "",
        "runs": f"{count(len(records), 'run')} on {count(len(datasets), 'dataset')}",
    }
    if encoder.embed_dim and encoder.pre_projection_dim:
        facts["features"] += f", {encoder.pre_projection_dim} before the projection"
    return PageModel(printable(name), labels.models[name], {key: text for key, text in facts.items() if text}, flops)


def _source(spec: ModelSpec) -> str:
    """Return a description of where the weights of a model are from."""
    if spec.seed is not None:
        return f"random numbers in the shape of {spec.source}"
    return {
        "embedded": "part of this package",
        "file": f"the file {next(iter(short_names([spec.source]).values()))}",
        "open_clip": f"open_clip, {spec.source}",
        "timm": f"timm, {spec.source}",
        "transformers": f"transformers, {spec.source}",
        "module": "a module of the user",
        "hf": f"Hugging Face hub, {spec.source}",
        SUPPLIED: "unknown; the features were supplied in a file",
    }.get(spec.form, spec.source)


def _parameters(total: int, image: int) -> str:
    return f"{total / 1e6:.1f} million, of which {image / 1e6:.1f} million in the image tower"


def _record(record: RunRecord, labels: Labels, environments: dict[str, int], names: dict[str, int]) -> PageRecord:
    result = record.result
    interval = result.interval if result is not None else None
    rows = details.class_rows(record) if isinstance(record, DoneRecord) else []
    confused = details.confusions(record)[:MAX_CONFUSIONS] if isinstance(record, DoneRecord) else []
    index: Callable[[str], int] = lambda name: names.setdefault(printable(name), len(names))  # noqa: E731 - short
    return PageRecord(
        file=record_path(record, Path()).as_posix(),
        dataset=labels.datasets[record.dataset],
        model=labels.model_index[record.model],
        protocol=printable(record.protocol),
        mode=record.mode,
        precision=record.precision,
        solver=record.solver,
        status=status(record),
        metric=record.spec.dataset.metric,
        created=record.created,
        environment=environments.setdefault(_environment(record.environment), len(environments)),
        seconds=", ".join(f"{stage} {value:.1f}" for stage, value in record.seconds.items()),
        error=brief(record.error.message) if record.error is not None else "",
        weights=record.encoder.weights_sha256,
        score=result.score if result is not None else None,
        low=interval.low if interval is not None else None,
        high=interval.high if interval is not None else None,
        C=result.C if result is not None else None,
        iterations=result.n_iter if result is not None and record.solver != NO_SOLVER else None,
        gradient=result.gradient_ratio if result is not None else None,
        train=result.num_train if result is not None and record.spec.protocol.method != ZERO_SHOT else None,
        test=result.num_test if result is not None else None,
        sweep=tuple((point.C, point.score) for point in result.sweep) if result is not None else (),
        ended_early=tuple(point.C for point in result.sweep if point.ended_early) if result is not None else (),
        k=result.k if result is not None else None,
        prompts=_prompts(record.prompts) if isinstance(record, DoneRecord) and record.prompts is not None else "",
        num_classes=len(rows),
        classes=tuple(
            (index(row.name), row.images, *_shares(row.score, row.low, row.high))
            for row in details.worst_first(rows)[:MAX_CLASSES]
            if row.score is not None
        ),
        confusions=tuple(
            (index(one.name), index(one.predicted_name), one.images, *_shares(one.share)) for one in confused
        ),
        calibration=_calibration(result.calibration) if result is not None and result.calibration else None,
        clean=clean_text(record.clean) if isinstance(record, DoneRecord) and record.clean is not None else "",
    )


def _shares(*values: float | None) -> tuple[float, ...]:
    """Return the fractions that are known with few digits."""
    return tuple(round(value, SHARE_DIGITS) for value in values if value is not None)


def _calibration(calibration: CalibrationRecord) -> PageCalibration:
    return PageCalibration(
        _page_scores(calibration.before),
        None if calibration.after is None else _page_scores(calibration.after),
        calibration.temperature,
        calibration.reasons,
    )


def _page_scores(scores: CalibrationScores) -> PageScores:
    bins = tuple((one["answers"], *_shares(one["probability"], one["accuracy"])) for one in details.bins(scores))
    return PageScores(scores.brier, scores.ece, scores.nll, scores.ece_low, scores.ece_high, bins)


def _prompts(prompts: PromptsRecord) -> str:
    """Return the first template of zero-shot prompts, the number of the others, and the origins of the prompts."""
    first, *others = prompts.templates
    more = f" and {count(len(others), 'more template')}" if others else ""
    return printable(f"{first!r}{more} (from {prompts.templates_from}), class names from {prompts.class_names_from}")


def _environment(known: EnvironmentRecord) -> str:
    """Return versions and hardware of a run in one line."""
    commit = (known.git_commit or "")[:SHORT]
    parts = {
        "": known.accelerator or known.cpu,
        "threads": known.torch_threads,
        "Python": known.python,
        **{name: known.packages.get(name) for name in ("torch", "scikit-learn", "numpy")},
        "commit": f"{commit} with local changes" if commit and known.git_dirty else commit,
    }
    return printable(", ".join(f"{name} {value}".strip() for name, value in parts.items() if value))
