"""Results carry the calibration and the counts of classes that the functions of `stats` give for the test logits."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from make.records import make_record
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix

from probe.features.arrays import Features
from probe.features.extraction import Session, extract, prepare
from probe.grid import plan
from probe.probes.fit import fit_folds, fit_probe
from probe.probes.head_files import load_head
from probe.probes.knn import NO_TEMPERATURE as KNN_REASON
from probe.probes.knn import KNNSettings, fit_knn
from probe.probes.zero_shot import NO_TEMPERATURE as ZERO_SHOT_REASON
from probe.progress import Progress
from probe.records.checks import find_fault
from probe.records.packing import unpack_bins, unpack_classes
from probe.records.record import decode_record, head_path, read_record, record_path
from probe.records.schema import CalibrationRecord
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import KNN, NO_SOLVER, Protocol
from probe.stats.calibration import fit_temperature, measure_calibration
from probe.stats.per_class import class_scores

SWEEP = Protocol("sweep", "", "projected", (1e-2, 1.0), 1, 200, 1e-6)
ONE_FIT = Protocol("one-fit", "", "projected", (0.1,), 1, 200, 1e-6)
ON_TRAIN = replace(ONE_FIT, name="on-train", refit=False)
DRAWS = Protocol("draws", "", "projected", (1e-2, 1.0), 1, 200, 1e-6, shots=8, num_seeds=3, refit=False)
VOTES = Protocol("votes", "", "projected", normalize=True, method=KNN, neighbours=(3, 5))
ROUNDING = 1e-6  # records have six decimals


def measure(y, logits, *, temperature=1.0, **options):
    """Measure the calibration for one temperature."""
    (found,) = measure_calibration(y, logits, temperatures=(temperature,), **options)
    return found


@pytest.fixture(scope="module")
def parts():
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    cuts = {"train": slice(0, 400), "val": slice(400, 600), "test": slice(600, 1000)}
    return {name: Features(x[rows], y[rows]) for name, rows in cuts.items()}


def _equals(found, expected):
    for name in ("nll", "brier", "ece", "ece_low", "ece_high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=ROUNDING)
    answers, confidences, accuracies = unpack_bins(found)
    assert answers.tolist() == list(expected.counts)
    assert confidences == pytest.approx(np.array(expected.confidences), abs=ROUNDING)
    assert accuracies == pytest.approx(np.array(expected.accuracies))


def _logits(result, features):
    return result.heads[0].logits(features.x)


def test_the_temperature_comes_from_a_fit_that_did_not_see_the_validation_images(parts):
    result = fit_probe(**parts, protocol=SWEEP, solver="sklearn")
    test, val = parts["test"], parts["val"]
    on_train = replace(ONE_FIT, grid=(result.C,), refit=False)
    before_refit = fit_probe(**parts, protocol=on_train, solver="sklearn")
    temperature = fit_temperature(val.y, _logits(before_refit, val))
    own = result.calibration
    assert own.temperature == pytest.approx(temperature, rel=1e-5)
    assert own.temperature != pytest.approx(fit_temperature(val.y, _logits(result, val)), rel=1e-2)
    _equals(own.before, measure(test.y, _logits(result, test)))
    _equals(own.after, measure(test.y, _logits(result, test) / own.temperature))
    assert own.reasons == ()


def test_a_final_fit_on_train_alone_gives_the_temperature(parts):
    result = fit_probe(**parts, protocol=ON_TRAIN)
    expected = fit_temperature(parts["val"].y, _logits(result, parts["val"]))
    assert result.calibration.temperature == pytest.approx(expected, rel=1e-5)


def test_the_labels_of_the_test_split_cannot_move_the_temperature(parts):
    test = parts["test"]
    shuffled = replace(test, y=test.y[::-1].copy())
    first, second = (fit_probe(**{**parts, "test": one}, protocol=SWEEP).calibration for one in (test, shuffled))
    assert first.temperature == second.temperature
    assert first.after.nll < second.after.nll


@pytest.mark.parametrize(
    ("protocol", "num_val", "reason"),
    [
        (ONE_FIT, 200, "single fit, which uses the validation images"),
        (ONE_FIT, 0, "no validation images"),
        (SWEEP, 40, "at least 50 validation images, but there are 40"),
    ],
)
def test_a_missing_temperature_has_a_reason(parts, protocol, num_val, reason):
    val = parts["val"].take(np.arange(num_val)) if num_val else None
    found = fit_probe(**{**parts, "val": val}, protocol=protocol).calibration
    assert found.temperature is found.after is None
    assert reason in found.reasons[0]
    assert found.before.nll > 0


def test_a_label_without_training_images_has_no_nll(parts):
    """Its probability is 0, and JSON cannot represent an infinite NLL."""
    train = parts["train"].take(np.flatnonzero(parts["train"].y != 9))
    result = fit_probe(train=train, test=parts["test"], protocol=ONE_FIT)
    found = result.calibration
    assert found.before.nll is None
    assert found.before.brier > 0
    assert "no NLL: a test image has a label with the probability 0" in found.reasons
    json.dumps(asdict(result.to_record()), allow_nan=False)
    result = fit_probe(**{**parts, "train": train}, protocol=replace(SWEEP, refit=False))
    assert result.calibration.temperature is None
    assert "has no training image" in result.calibration.reasons[0]


def test_several_labels_are_calibrated_as_pairs_and_have_no_counts(parts):
    several = {}
    for name, one in parts.items():
        y = np.stack([one.y % 2 == 0, one.y > 4], axis=1).astype(np.int64)
        y[one.y == 8, 1] = -1
        several[name] = replace(one, y=y)
    result = fit_probe(**several, protocol=SWEEP, metric="voc2007_11pt_map")
    test = several["test"]
    _equals(result.calibration.before, measure(test.y, _logits(result, test)))
    assert result.classes == ()
    assert result.calibration.temperature > 0
    votes = fit_probe(**several, protocol=VOTES, metric="voc2007_11pt_map")
    assert votes.calibration.before.brier > 0


def test_counts_of_classes_are_those_of_the_predictions(parts):
    result = fit_probe(**parts, protocol=ONE_FIT)
    (found,) = unpack_classes(result.to_record())
    matrix = confusion_matrix(parts["test"].y, result.predictions)
    assert np.array_equal(found.images, matrix.sum(axis=1))
    assert np.array_equal(found.right, matrix.diagonal())
    assert {(i, j): n for i, j, n in found.confusions} == {
        (i, j): n for (i, j), n in np.ndenumerate(matrix) if n and i != j
    }
    assert found.right.sum() / found.images.sum() == result.score


def test_counts_follow_the_order_of_labels_with_gaps(parts):
    gaps = {name: replace(one, y=one.y * 10 + 3) for name, one in parts.items()}
    result, plain = fit_probe(**gaps, protocol=ONE_FIT), fit_probe(**parts, protocol=ONE_FIT)
    assert result.label_values == tuple(range(3, 103, 10))
    assert np.array_equal(result.classes[0].right, plain.classes[0].right)


def test_the_mean_per_class_is_the_mean_of_the_counts(parts):
    result = fit_probe(**parts, protocol=ONE_FIT, metric="mean_per_class")
    assert np.mean([one.score for one in class_scores(result.classes)]) == pytest.approx(result.score)


def test_a_record_of_draws_has_their_mean_calibration_without_bins(parts):
    result = fit_probe(**parts, protocol=DRAWS)
    own = [draw.calibration for draw in result.draws]
    record = result.to_record()
    assert len(result.classes) == len(record.classes) == 3
    assert all(draw.classes == () for draw in record.draws)
    assert [draw.calibration for draw in record.draws] == [None] * 3
    assert record.calibration.before.num_bins == record.calibration.after.num_bins == own[0].before.bins.shape[1]
    assert all(one.temperature and one.before.bins for one in own)
    for name in ("nll", "brier", "ece"):
        for state in ("before", "after"):
            scores = [getattr(getattr(one, state), name) for one in own]
            assert getattr(getattr(record.calibration, state), name) == pytest.approx(np.mean(scores), abs=ROUNDING)
    assert record.calibration.temperature is record.calibration.before.bins is record.calibration.before.ece_low is None


def test_folds_have_counts_each(parts):
    folds = [parts, {**parts, "test": parts["test"].take(np.arange(300))}]
    result = fit_folds(folds, protocol=SWEEP)
    assert [one.images.sum() for one in result.classes] == [400, 300]
    assert len({fold.calibration.temperature for fold in result.folds}) == 1
    assert result.calibration.temperature == result.folds[0].calibration.temperature


def test_the_votes_of_nearest_neighbours_are_their_probabilities(parts):
    result = fit_knn(**parts, settings=KNNSettings(VOTES, "accuracy", 10, (), "cpu"))
    assert "shares of the votes" in result.calibration.reasons[0]
    assert result.calibration.temperature is None
    assert sum(unpack_bins(result.calibration.before)[0]) == 400
    assert result.solver == NO_SOLVER
    assert result.to_record().classes


def test_records_with_and_without_the_fields_are_read():
    record = make_record()
    plain = json.loads(json.dumps(record.to_dict()))
    del plain["result"]["classes"], plain["result"]["calibration"]
    old = decode_record(plain)
    assert (old.result.classes, old.result.calibration) == ((), None)


def test_damaged_fields_are_refused(parts):
    result = fit_probe(**parts, protocol=replace(ONE_FIT, grid=(0.316,))).to_record()
    record = make_record(protocol="readme")
    assert find_fault(replace(record, result=result)) == ""
    (packed,) = result.classes
    for damaged in (
        replace(packed, counts=packed.confusions),
        replace(packed, counts=replace(packed.counts, data="AAAA")),
        replace(packed, confusions=replace(packed.confusions, lowest=100)),
    ):
        found = find_fault(replace(record, result=replace(result, classes=(damaged,))))
        assert found.startswith("the counts of classes are damaged")
    before = result.calibration.before
    damaged = CalibrationRecord(replace(before, bins=packed.counts))
    found = find_fault(replace(record, result=replace(result, calibration=damaged)))
    assert found.startswith("the bins of the calibration are damaged")
    fewer = replace(packed, counts=replace(packed.counts, lowest=packed.counts.lowest + 1))
    found = find_fault(replace(record, result=replace(result, classes=(fewer,))))
    assert "but its classes have 410 test images" in found


@pytest.mark.slow
def test_a_run_records_the_calibration_of_its_heads(tmp_path):
    """Zero-shot and the probe have heads, whose logits give the recorded numbers; k-NN has none."""
    specs = plan(["digits"], ["tiny"], protocols=["clip-paper", "zero-shot", "knn-5"], device="cpu")
    settings = Settings(results_dir=tmp_path, save_heads=True)
    for spec, record in zip(specs, run_grid(specs, settings), strict=True):
        assert read_record(record_path(record, tmp_path)) == record
        (counts,), found = unpack_classes(record.result), record.result.calibration
        assert counts.images.sum() == record.result.num_test == 359
        assert counts.right.sum() == round(record.result.score * 359)
        if spec.protocol.method == KNN:
            assert found.reasons == (KNN_REASON,)
            continue
        assert found.reasons == ((ZERO_SHOT_REASON,) if record.prompts else ())
        session = Session(settings)
        assert not prepare([spec], session, Progress(is_shown=False))
        features = extract(session.find_encoder(spec), session.open_dataset(spec.dataset), session)
        test = features.cut(["test"])[0]["test"]
        logits = load_head(head_path(record, tmp_path)).logits(test.at(spec.protocol.feature_point))
        _equals(found.before, measure(test.y, logits))
        if found.after is not None:
            _equals(found.after, measure(test.y, logits, temperature=found.temperature))


def test_a_temperature_divides_the_logits():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((300, 4))
    for y in (rng.integers(4, size=300), rng.integers(2, size=(300, 4))):
        found, divided = measure(y, logits, temperature=2.5), measure(y, logits / 2.5)
        for name in ("nll", "brier", "ece", "ece_low", "ece_high"):
            assert getattr(found, name) == pytest.approx(getattr(divided, name), rel=1e-12)
