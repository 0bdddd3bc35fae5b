import json
from dataclasses import replace

import numpy as np
import pytest
from make.records import NUM_TEST, changed, classified_record, make_failure, make_record, scored_record

from probe import diff
from probe.cli.main import main
from probe.records.diff import STAGES, _comparable, _leaves, _stage
from probe.records.record import read_record, write_record
from probe.records.schema import (
    ConventionRecord,
    EncoderRecord,
    EnvironmentRecord,
    FeaturesRecord,
    FurtherTestRecord,
    IntervalRecord,
    SplitRecord,
    SweepRecord,
)
from probe.stats.paired import mcnemar


def test_records_that_differ_in_times_only_are_the_same():
    a = scored_record("a", 20)
    b = replace(a, created="2030-01-01T00:00:00+00:00", seconds={"load": 9.0, "extract": 9.0, "fit": 9.0})
    found = diff(a, b)
    assert found.changes == ()
    assert found.verdict.startswith("the scores and the outcome of every test image are the same: 95.00 % and 95.00 %")


def test_every_field_that_differs_is_named_in_the_order_of_causes():
    a, b = scored_record("a", 20), scored_record("a", 24)
    environment = EnvironmentRecord(python="4.0", packages={"cuda": "99"})
    b = replace(b, environment=environment, encoder=EncoderRecord(weights_sha256="other"))
    found = diff(a, b)
    fields = [change.field for change in found.changes]
    assert fields[:3] == ["environment.packages.cuda", "environment.python", "encoder.weights_sha256"]
    assert "result.score" in fields
    assert any(field.startswith("result.outcomes[0].arrays.right") for field in fields)
    order = [list(STAGES).index(change.stage) for change in found.changes]
    assert order == sorted(order)
    cuda = found.changes[0]
    assert (cuda.stage, cuda.a, cuda.b) == ("environment", None, "99")


def test_prose_that_was_mended_is_no_difference():
    """Titles, notes and licences in the catalogue do not change any number."""
    a = b = scored_record("a", 20)
    for path in ("dataset.title", "dataset.notes", "dataset.license", "model.license", "protocol.source"):
        b = changed(b, f"spec.{path}", "mended")
    assert diff(a, changed(b, "encoder.license", "mended")).changes == ()


@pytest.mark.parametrize(("wrong", "verdict"), [(22, "do not differ"), (60, "differ significantly")])
def test_the_scores_are_tested_image_by_image(wrong, verdict):
    """One model has all errors of the other and n more, so McNemar's p is 2 / 2^n, as for n equal tosses of a coin."""
    found = diff(scored_record("a", 20), scored_record("b", wrong))
    assert found.test is not None
    assert found.test.p_value == pytest.approx(2 * 0.5 ** (wrong - 20)) == pytest.approx(mcnemar(0, wrong - 20))
    assert f"the scores {verdict}" in found.verdict
    assert f"only A is right on {wrong - 20} test images, only B on 0" in found.verdict


def test_scores_of_other_images_are_not_compared():
    other = scored_record("b", 60, splits={"test": SplitRecord("other", NUM_TEST)})
    found = diff(scored_record("a", 20), other)
    assert found.test is None
    assert "different test images" in found.verdict
    assert {"data", "model", "score"} <= {change.stage for change in found.changes}


def test_records_without_outcomes_or_score_are_compared_field_by_field():
    """Records of earlier versions have no outcomes, and records of failed runs have no score."""
    old = make_record(model="a")
    assert "schema 3" in diff(old, old).verdict
    found = diff(old, make_failure("gone", model="a"))
    assert "B has no score" in found.verdict
    assert {"status", "error.message"} <= {change.field for change in found.changes if change.stage == "record"}


def test_every_field_of_a_record_has_a_stage(tmp_path):
    """The record is read from its file, because lists in the file can contain objects."""
    record = read_record(write_record(scored_record("a", 20), tmp_path))
    stages = {path: _stage(path) for path, _ in _leaves(_comparable(record))}
    assert {path for path, stage in stages.items() if stage == "record"} == {"status", "error", "schema_version"}
    assert stages["spec.dataset.name"] == "data"
    assert stages["spec.jit"] == "execution"
    assert stages["result.score"] == "score"


def test_the_command_prints_what_differs_and_the_verdict(tmp_path, capsys):
    paths = [str(write_record(record, tmp_path)) for record in (scored_record("a", 20), scored_record("b", 60))]
    assert main(["diff", *paths]) == 0
    out = capsys.readouterr().out
    assert "| model" in out
    assert "model: different weights or preprocessing give different features" in out
    assert out.splitlines()[-1].startswith("the scores differ significantly")
    assert "outcomes" not in out
    assert main(["diff", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test"]["num_only_a"] == 40
    assert np.isclose(found["test"]["difference"], 0.1)


def test_splits_that_only_one_run_uses_are_said_in_a_sentence(tmp_path, capsys):
    """Zero-shot uses only the test images, which are the same."""
    zero_shot = scored_record("a", 20, protocol="zero-shot", splits={"test": SplitRecord("t", NUM_TEST)})
    splits = {name: SplitRecord(name[0], NUM_TEST) for name in ("train", "val", "test")}
    probe = scored_record("a", 30, splits=splits, features={"val": FeaturesRecord("f")})
    found = diff(zero_shot, probe)
    assert found.note == "one record uses no training or validation images; the test images are the same"
    assert not any(change.field.startswith(("splits", "features")) for change in found.changes)
    other = diff(probe, replace(zero_shot, splits={"test": SplitRecord("other", NUM_TEST)}))
    assert other.note == "one record uses no training or validation images; the test images differ"
    assert [change.field for change in other.changes if change.stage == "data"] == ["splits.test.sha256"]
    assert diff(probe, probe).note == ""
    assert diff(zero_shot, make_failure("gone", model="a")).note == ""
    assert main(["diff", *(str(write_record(record, tmp_path)) for record in (zero_shot, probe))]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == found.note


def further_test(name, score):
    convention = ConventionRecord(score, IntervalRecord(0.0, 1.0))
    return FurtherTestRecord(name, split=SplitRecord("s", 10), metric="accuracy", all_classes=convention)


def test_results_that_only_one_record_has_are_no_difference():
    """Records of earlier versions have neither classes nor calibration, and a run chooses its further test sets."""
    full = classified_record("digits", "a", tests=(further_test("one", 0.5),))
    fold = replace(full.result, outcomes=(), classes=())
    full = changed(full, "result.folds", (replace(fold, draws=(fold,)),))
    old_fold = replace(fold, calibration=None)
    old = changed(full, "result.folds", (replace(old_fold, draws=(old_fold,)),))
    old = replace(changed(changed(old, "result.classes", ()), "result.calibration", None), tests=())
    assert diff(old, full).changes == diff(full, old).changes == ()
    other = changed(full, "result.calibration.before.ece", 0.5)
    assert [change.field for change in diff(full, other).changes] == ["result.calibration.before.ece"]


def test_scores_on_further_test_sets_have_a_stage_of_their_own():
    """The scores are compared by name. A test set that only one record has is not a difference."""
    a = scored_record("a", 20, tests=(further_test("one", 0.5), further_test("two", 0.5)))
    b = replace(a, tests=(further_test("three", 0.5), further_test("two", 0.75)))
    (change,) = diff(a, b).changes
    assert (change.stage, change.field) == ("further tests", "tests.two.all_classes.score")
    assert (change.a, change.b) == (0.5, 0.75)


def test_a_score_that_is_not_that_of_its_outcomes_is_not_believed():
    found = diff(scored_record("a", 20), changed(scored_record("b", 20), "result.score", 0.5))
    assert found.test is None
    assert "the score of B differs from the score of its outcomes" in found.verdict


def test_a_record_that_cannot_be_read_is_named(tmp_path, capsys):
    path = write_record(scored_record("a", 20), tmp_path)
    damaged = tmp_path / "half.json"
    damaged.write_text(path.read_text()[:-20])
    for name, said in ((damaged, "half.json is damaged"), (tmp_path / "none.json", "cannot read")):
        assert main(["diff", str(path), str(name)]) == 1
        assert said in capsys.readouterr().err


def test_the_command_prints_one_row_for_a_sweep_and_short_numbers(tmp_path, capsys):
    points = [SweepRecord(C=C, score=0.5, n_iter=3, converged=True) for C in (0.1, 1.0)]
    a = changed(scored_record("a", 20), "result.sweep", tuple(points))
    b = changed(a, "result.sweep", tuple(replace(point, score=0.25, n_iter=4) for point in points))
    b = changed(b, "result.objective", 0.123456789)
    paths = [str(write_record(record, tmp_path / name)) for name, record in (("a", a), ("b", b))]
    assert main(["diff", *paths]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["fit", "result.sweep (4 values)", "see --json", "see --json"] in rows
    assert [row[3] for row in rows if row[1:2] == ["result.objective"]] == ["0.123457"]
