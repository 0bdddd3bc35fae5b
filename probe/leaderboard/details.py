"""Details of one record, for `show` and the page: facts, scores of classes, confusions, calibration, further tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from probe.datasets.catalog import DATASETS
from probe.errors import brief, printable
from probe.leaderboard.cards import METRIC_TITLES
from probe.leaderboard.clean import clean_text
from probe.leaderboard.labels import NO_RECORD
from probe.leaderboard.tables import fit_cells, interval_text, rows_to_csv, status
from probe.records.packing import unpack_bins, unpack_classes, unpack_outcomes
from probe.records.schema import (
    CalibrationRecord,
    CalibrationScores,
    CleanRecord,
    DoneRecord,
    FurtherTestRecord,
    ResultRecord,
    RunRecord,
)
from probe.records.supplied import SuppliedRecord
from probe.specs import NO_SOLVER, SUPPLIED
from probe.stats.metrics import average_precisions, takes_several_labels
from probe.stats.outcomes import narrow
from probe.stats.per_class import ClassCounts, class_scores

RECALL, AVERAGE_PRECISION = "recall", "average precision"
NO_CLASSES = "The record has no scores of classes, which are new in this version; repeat the run with --rerun."
FIRST_CLASS = "Recall counts an image as right if its label has the highest score. The metric of the dataset is {}."


@dataclass(frozen=True)
class ClassRow:
    """The score of one class on its test images.

    Args:
        label: original label of the class.
        name: its name, or its label if no name is known.
        images: number of its test images; for several labels, of the images that show it.
        score: recall, or average precision if an image can show several classes; None without a test image.
        low: lower bound of Wilson's 95 % interval of the recall; None for average precision.
        high: upper bound.
    """

    label: int
    name: str
    images: int
    score: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Confusion:
    """Test images of one class for which another class was predicted.

    Args:
        label: original label of the class of the images.
        name: its name.
        predicted: original label of the predicted class.
        predicted_name: its name.
        images: number of these images, over all folds or draws.
        share: their share in the test images of the class.
    """

    label: int
    name: str
    predicted: int
    predicted_name: str
    images: int
    share: float


def class_names(record: RunRecord) -> tuple[str, ...]:
    """Return the class names of a record's dataset in the order of the labels; empty if none are known.

    The names come from the record, or else from the catalogue. A dataset of the catalogue whose files hold the
    names has none. Supplied features can have other labels than the dataset in the catalogue, so only the names in
    their record count.
    """
    if record.extraction.supplied is not None:
        return record.read.class_names
    spec = record.spec.dataset
    own = next((row.class_names for row in DATASETS if row.name == spec.name), ())
    return tuple(record.read.class_names or spec.class_names or own)


def score_of_classes(record: DoneRecord) -> str:
    """Return what the scores of the classes are: `recall` or `average precision`."""
    return AVERAGE_PRECISION if takes_several_labels(record.spec.dataset.metric) else RECALL


def class_rows(record: DoneRecord) -> list[ClassRow]:
    """Return the scores of the classes in the order of the labels; empty if the record has none.

    Raises:
        ResultsError: the record is damaged.
    """
    result = record.result
    if takes_several_labels(record.spec.dataset.metric):
        return _precision_rows(record)
    counts = unpack_classes(result)
    if not counts:
        return []
    labels = sorted({label for one in _labels(result, counts) for label in one})
    scores = class_scores(_aligned(result, counts, labels))
    names = class_names(record)
    return [
        ClassRow(label, _name(names, label), one.images, one.score, one.low, one.high)
        for label, one in zip(labels, scores, strict=True)
    ]


def worst_first(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """Return the rows with a score, the lowest first, and then those without test images."""
    return sorted(rows, key=lambda row: (row.score is None, row.score, row.label))


def confusions(record: DoneRecord) -> list[Confusion]:
    """Return the recorded confusions, the most frequent first; empty if an image can show several classes.

    A record holds the most frequent confusions of each fold or draw. Images of several folds or draws are added.

    Raises:
        ResultsError: the record is damaged.
    """
    counts, names = unpack_classes(record.result), class_names(record)
    numbers: Counter[tuple[int, int]] = Counter()
    images: Counter[int] = Counter()
    for one, labels in zip(counts, _labels(record.result, counts), strict=True):
        for label, num in zip(labels, one.images.tolist(), strict=True):
            images[label] += num
        for label, predicted, num in one.confusions.tolist():
            numbers[labels[label], labels[predicted]] += num
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return [
        Confusion(label, _name(names, label), predicted, _name(names, predicted), num, num / images[label])
        for (label, predicted), num in ordered
    ]


def describe_record(record: RunRecord) -> dict[str, str]:
    """Return the facts of a record to read."""
    facts = {name: getattr(record, name) for name in ("dataset", "model", "mode", "precision", "protocol")}
    facts["status"] = status(record)
    if record.extraction.supplied is not None:
        facts |= _describe_supplied(record.extraction.supplied)
    if not isinstance(record, DoneRecord):
        return {**facts, "error": brief(record.error.message)}
    result, method = record.result, record.spec.protocol.method
    metric = record.spec.dataset.metric
    facts["score"] = f"{100 * result.score:.2f} % ({METRIC_TITLES.get(metric, metric)})"
    facts["95 % confidence interval"] = interval_text(result.interval)
    chosen, solver, iterations = fit_cells(result, method, record.solver)
    if record.solver != NO_SOLVER:
        facts |= {"C": chosen, "solver": solver, "iterations": iterations}
        facts["converged"] = "yes" if result.converged else "no"
    elif chosen != NO_RECORD:
        facts["k"] = chosen.removeprefix("k = ")
    facts["test images"] = str(result.num_test)
    if record.clean is not None:
        facts["clean score"] = clean_text(record.clean)
    for subset, meter in record.extraction.subsets.items():
        facts |= _describe_energy(f"energy for 1,000 images of {subset}", meter.joules_per_1000_images)
    return facts | _describe_energy("energy of the fit", record.fit_joules)


def _describe_energy(name: str, joules: Mapping[str, float]) -> dict[str, str]:
    """Return energy as a fact to read, or no fact if the energy is not known."""
    return {name: ", ".join(f"{value:.1f} J ({part})" for part, value in joules.items())} if joules else {}


def _describe_supplied(origin: SuppliedRecord) -> dict[str, str]:
    """Return the origin of supplied features, and the statements of their user that are not in other facts."""
    about = origin.about
    facts = {
        "features": f"{SUPPLIED} in {origin.file}" if origin.file else SUPPLIED,
        "stated weights": about.weights_sha256,
        "stated licence": about.license,
        "stated home page": about.homepage,
        "stated preprocessing": about.preprocessing,
        "stated notes": about.notes,
    }
    if origin.val_fraction is not None:
        facts["validation"] = f"{origin.val_fraction:g} of the training images, held out with seed {origin.seed}"
    return {name: printable(text) for name, text in facts.items() if text}


def calibration_rows(calibration: CalibrationRecord) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of a calibration to read: its name, NLL, Brier score, ECE, and the interval of ECE in percent."""
    states = [("before", calibration.before)]
    if calibration.after is not None:
        temperature = "" if calibration.temperature is None else f", temperature {calibration.temperature:.4g}"
        states.append((f"after{temperature}", calibration.after))
    return [(name, *_scores(one)) for name, one in states]


def _scores(scores: CalibrationScores) -> tuple[str, str, str, str]:
    loss = NO_RECORD if scores.nll is None else f"{scores.nll:.4f}"
    around = NO_RECORD
    if scores.ece_low is not None and scores.ece_high is not None:
        around = f"{100 * scores.ece_low:.2f} to {100 * scores.ece_high:.2f}"
    return loss, f"{scores.brier:.4f}", f"{100 * scores.ece:.2f}", around


def collect_details(record: RunRecord) -> dict[str, Any]:
    """Return the details of a record as plain values, with all classes and with scores as fractions.

    Raises:
        ResultsError: the record is damaged.
    """
    names = ("dataset", "model", "mode", "precision", "protocol")
    found: dict[str, Any] = {name: getattr(record, name) for name in names}
    found |= {"status": status(record), "metric": record.spec.dataset.metric}
    found["solver"] = None if record.solver == NO_SOLVER else record.solver
    if not isinstance(record, DoneRecord):
        return {**found, "error": asdict(record.error)}
    result = record.result
    found |= {name: getattr(result, name) for name in ("score", "C", "k", "num_train", "num_test")}
    fitted = record.solver != NO_SOLVER
    found |= {name: getattr(result, name) if fitted else None for name in ("n_iter", "converged")}
    found["interval"] = None if result.interval is None else asdict(result.interval)
    found["score_of_classes"] = score_of_classes(record)
    found["classes"] = [asdict(row) for row in class_rows(record)]
    found["confusions"] = [asdict(one) for one in confusions(record)]
    found["calibration"] = None if result.calibration is None else _calibration(result.calibration)
    found["clean"] = None if record.clean is None else _clean(record.clean)
    found["tests"] = [_further_test(test) for test in record.tests]
    return found


def _calibration(calibration: CalibrationRecord) -> dict[str, Any]:
    states = {name: getattr(calibration, name) for name in ("before", "after")}
    plain = {name: None if one is None else {**asdict(one), "bins": bins(one)} for name, one in states.items()}
    return {**plain, "temperature": calibration.temperature, "reasons": list(calibration.reasons)}


def _clean(clean: CleanRecord) -> dict[str, Any]:
    names = ("score", "num_test", "num_left_out", "num_differing", "reason")
    interval = None if clean.interval is None else asdict(clean.interval)
    return {**{name: getattr(clean, name) for name in names}, "interval": interval}


def _further_test(test: FurtherTestRecord) -> dict[str, Any]:
    conventions = {name: getattr(test, name) for name in ("all_classes", "own_classes")}
    return {
        "name": test.name,
        "error": None if test.error is None else asdict(test.error),
        "metric": test.metric,
        "num_test": None if test.split is None else test.split.size,
        "num_classes": test.num_classes,
        **{
            name: None if one is None else {"score": one.score, "interval": asdict(one.interval)}
            for name, one in conventions.items()
        },
    }


def bins(scores: CalibrationScores) -> list[dict[str, float]]:
    """Return the bins of a calibration that hold answers: their number, mean probability and share of hits.

    Raises:
        ResultsError: the record is damaged.
    """
    columns = [array.tolist() for array in unpack_bins(scores)]
    return [
        {"answers": answers, "probability": probability, "accuracy": accuracy}
        for answers, probability, accuracy in zip(*columns, strict=True)
        if answers
    ]


def classes_to_csv(rows: Sequence[ClassRow]) -> str:
    """Return CSV with a line for each class. Scores are unrounded fractions."""
    header = ["label", "name", "images", "score", "low", "high"]
    return rows_to_csv(header, [list(asdict(row).values()) for row in rows])


def confusions_to_csv(rows: Sequence[Confusion]) -> str:
    """Return CSV with a line for each confusion, under the names of the fields of `Confusion`."""
    return rows_to_csv([one.name for one in fields(Confusion)], [list(asdict(row).values()) for row in rows])


def _precision_rows(record: DoneRecord) -> list[ClassRow]:
    """Return the average precision of each class, the mean over folds or draws."""
    outcomes, names = unpack_outcomes(record.result), class_names(record)
    if not outcomes:
        return []
    labels = [one.arrays["labels"] for one in outcomes]
    each = [average_precisions(y, -narrow(one.arrays["ranks"])) for y, one in zip(labels, outcomes, strict=True)]
    rows = []
    for label, scores in enumerate(zip(*each, strict=True)):
        known = [score for score in scores if score is not None]
        images = round(float(np.mean([(y[:, label] == 1).sum() for y in labels])))
        rows.append(ClassRow(label, _name(names, label), images, float(np.mean(known)) if known else None))
    return rows


def _labels(result: ResultRecord, counts: Sequence[ClassCounts]) -> list[tuple[int, ...]]:
    """Return the labels of the classes for each element of `counts`; folds can have different labels."""
    owners = [result] * len(counts)
    if result.folds and not result.label_values:
        owners = [fold for fold in result.folds for _ in range(len(counts) // len(result.folds))]
    return [owner.label_values or tuple(range(len(one.images))) for owner, one in zip(owners, counts, strict=True)]


def _aligned(result: ResultRecord, counts: Sequence[ClassCounts], labels: Sequence[int]) -> list[ClassCounts]:
    """Return counts in which all folds or draws have the same classes, `labels`; their confusions are left out."""
    aligned = []
    for one, own in zip(counts, _labels(result, counts), strict=True):
        rows = np.searchsorted(labels, own)
        images, right = np.zeros((2, len(labels)), np.int64)
        images[rows], right[rows] = one.images, one.right
        aligned.append(ClassCounts(images, right, one.confusions[:0]))
    return aligned


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)
