import json
import os
from dataclasses import replace

import numpy as np
import pytest
from make.colours import write_colours
from make.images import write_image
from make.records import NUM_TEST, changed, make_failure, make_record, scored_record

import probe
from probe.cli.main import main
from probe.environment import threads
from probe.errors import ResultsError
from probe.records.packing import pack
from probe.records.record import read_record, record_path, write_record
from probe.records.schema import FeaturesRecord, MeterRecord
from probe.records.verdicts import CHANGED, IDENTICAL, NOT_RUN, WITHIN, judge
from probe.reproduction import estimate_seconds, reproduce_all
from probe.settings import Settings


def _write_images(folder, *, shift=0):
    rng = np.random.default_rng(shift)
    for split, n in (("train", 6), ("test", 4)):
        for label, base in (("a", 40), ("b", 160)):
            for i in range(n):
                colour = tuple(int(value) for value in base + rng.integers(0, 60, 3))
                write_image(folder / split / label / f"{i}.png", colour)


@pytest.fixture
def made(tmp_path):
    """Return a record of a small folder of images, and the path of the record."""
    _write_images(tmp_path / "images")
    results = tmp_path / "results"
    record = probe.run(
        f"folder:{tmp_path / 'images'}", model="tiny", protocol="readme", device="cpu", results_dir=results
    )
    return record, record_path(record, results)


def test_a_record_is_reproduced_from_its_own_specification(made, tmp_path):
    """All bytes of features and all numbers of the probe are equal. Nothing is cached and nothing is written."""
    _, path = made
    before = sorted(tmp_path.rglob("*"))
    found = probe.reproduce(path)
    assert found.verdict == IDENTICAL
    assert found.images == 0
    assert found.first_moved == ""
    assert not found.again.extraction.from_cache
    assert [stage.name for stage in found.stages] == [
        *("environment", "data", "weights", "execution", "features", "probe", "score")
    ]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_both_modes_are_run_in_one_grid(tmp_path):
    specs = probe.grid.plan(
        [write_colours(tmp_path)], ["tiny"], protocols=["readme"], jit_modes=[False, True], device="cpu"
    )
    records = list(probe.runner.run_grid(specs, settings=Settings(results_dir=tmp_path)))
    assert [found.verdict for found in reproduce_all(records)] == [IDENTICAL, IDENTICAL]


@pytest.mark.slow
def test_records_of_several_solvers_keep_their_own_probes(tmp_path):
    """The records share features, so one probe would be used for both if the solver were ignored."""
    dataset = write_colours(tmp_path)
    records = [
        probe.run(dataset, model="tiny", protocol="readme", device="cpu", solver=solver, results_dir=tmp_path)
        for solver in ("sklearn", "fast")
    ]
    found = list(reproduce_all(records))
    assert [one.record.solver for one in found] == ["sklearn", "fast"]
    assert [one.verdict for one in found] == [IDENTICAL, IDENTICAL]


def test_different_images_are_the_first_change_whatever_the_tolerance(made, tmp_path):
    moved = tmp_path / "images" / "test" / "a" / "3.png"
    moved.rename(moved.with_name("4.png"))
    found = probe.reproduce(made[1], tolerance=100)
    assert (found.verdict, found.first_moved) == (CHANGED, "data")
    assert "the test images differ" in found.reason
    assert found.images is None


@pytest.mark.slow
def test_images_that_changed_without_a_new_name_change_the_features(made, tmp_path):
    """Ids and labels are unchanged. The record contains some values of the features, which show the difference."""
    _write_images(tmp_path / "images", shift=1)
    found = probe.reproduce(made[1], tolerance=100)
    assert (found.verdict, found.first_moved) == (CHANGED, "features")
    assert "more than rounding" in found.reason
    words = {stage.name: stage.moved for stage in found.stages}["features"]
    assert words.startswith("the bytes differ; the largest difference ")


def test_missing_images_are_the_reason_for_not_running(made, tmp_path):
    (tmp_path / "images" / "test" / "a" / "3.png").unlink()
    found = probe.reproduce(made[1])
    assert found.verdict == NOT_RUN
    assert "expected 8 images" in found.reason


def test_a_missing_dataset_is_the_reason_for_not_running(made, tmp_path, capsys):
    (tmp_path / "images").rename(tmp_path / "moved")
    found = probe.reproduce(made[1])
    assert found.verdict == NOT_RUN
    assert "images" in found.reason
    assert main(["reproduce", str(made[1])]) == 1
    assert "verdict: not run" in capsys.readouterr().out


def test_an_unavailable_device_can_be_replaced(made, tmp_path):
    record = changed(made[0], "spec.device", "cuda:63")
    (found,) = reproduce_all([record])
    assert found.verdict == NOT_RUN
    assert "made on cuda:63" in found.reason
    assert "--device" in found.reason
    (found,) = reproduce_all([record], device="cpu")
    assert (found.verdict, found.first_moved) == (WITHIN, "execution")


def test_a_failed_run_has_nothing_to_reproduce():
    with pytest.raises(ResultsError, match="no score to reproduce"):
        probe.reproduce(make_failure())
    assert list(reproduce_all([make_failure()])) == []


@pytest.mark.parametrize(("wrong", "tolerance", "verdict"), [(21, None, WITHIN), (22, None, CHANGED), (22, 2, WITHIN)])
def test_tolerance_counts_test_images(wrong, tolerance, verdict):
    """By default, one of 400 images may differ."""
    found = judge(scored_record("a", 20), scored_record("a", wrong), tolerance=tolerance)
    assert found.verdict == verdict
    assert found.images == pytest.approx(wrong - 20)


def test_equal_scores_with_different_wrong_images_are_not_identical():
    a, right = scored_record("a", 20), np.arange(NUM_TEST) >= 20
    outcomes = probe.stats.outcomes.Outcomes("accuracy", {"right": right[::-1]})
    b = changed(a, "result.outcomes", (pack(outcomes),))
    found = judge(a, b)
    assert (found.verdict, found.images, found.first_moved) == (WITHIN, 0, "score")


def test_features_that_differ_by_rounding_are_within_tolerance():
    """A relative difference of 1e-6 is rounding. A difference of 0.1 is not, whatever the score."""
    features = [FeaturesRecord(str(shift), {"projected": (1.0 + shift, -1.0)}) for shift in (0.0, 1e-6, 0.1)]
    a, b, c = (scored_record("a", 20, features={"test": one}) for one in features)
    assert judge(a, b).verdict == WITHIN
    assert judge(a, c).verdict == CHANGED


def test_a_record_without_outcomes_is_not_called_identical():
    """Records of earlier versions have no outcomes."""
    old = make_record()
    found = judge(old, old)
    assert found.verdict == WITHIN
    assert "has no digests" in found.reason


def test_class_means_count_the_images_that_are_right_in_only_one_run():
    """The difference of the scores does not give this count: an image of a small class changes the score by more."""
    labels = np.concatenate([np.zeros(395, np.int64), np.ones(5, np.int64)])
    runs = []
    for wrong in (0, 1):
        record = changed(scored_record("a", 0), "spec.dataset.metric", "mean_per_class")
        outcomes = probe.stats.outcomes.Outcomes(
            "mean_per_class", {"right": np.arange(NUM_TEST) < NUM_TEST - wrong, "labels": labels}
        )
        record = changed(record, "result.outcomes", (pack(outcomes),))
        runs.append(changed(record, "result.score", outcomes.score()))
    found = judge(*runs)
    assert (found.verdict, found.images) == (WITHIN, 1)


def test_two_records_of_the_same_run_are_refused(made):
    """Otherwise each record would be compared with the reproduction of the other."""
    other = changed(made[0], "spec.batch_size", 4)
    with pytest.raises(ResultsError, match="two records have the run"):
        list(reproduce_all([made[0], other]))


def test_a_record_that_is_given_is_not_overwritten_either(made, tmp_path):
    with pytest.raises(ResultsError, match="would replace the original"):
        probe.reproduce(made[0], results_dir=tmp_path / "results")


@pytest.mark.slow
def test_records_are_never_overwritten(made, tmp_path):
    _, path = made
    with pytest.raises(ResultsError, match="would replace the original"):
        probe.reproduce(path, results_dir=tmp_path / "results")
    assert probe.reproduce(path, results_dir=tmp_path / "new").passed
    assert read_record(record_path(read_record(path), tmp_path / "new")).result == read_record(path).result


@pytest.mark.slow
def test_a_folder_of_records_is_run_except_long_runs(made, tmp_path, capsys):
    """Failed and long runs are skipped and counted. The exit code depends only on the other runs."""
    record, _ = made
    results = tmp_path / "results"
    write_record(make_failure(), results)
    long = changed(record, "spec.protocol.name", "long")
    write_record(replace(long, seconds={"fit": 3600.0}), results)
    assert main(["reproduce", str(results), "--max-minutes", "10"]) == 0
    said = capsys.readouterr()
    assert "1 of 1 confirmed; skipped: 0 unreadable, 1 failed, 1 longer than --max-minutes" in said.err
    assert "identical" in said.out
    (results / "records" / "digits" / "half.json").write_text("{")
    assert main(["reproduce", str(results), "--max-minutes", "10"]) == 1
    assert "half.json is damaged" in capsys.readouterr().err
    assert main(["reproduce", str(tmp_path / "nowhere")]) == 1
    assert main(["reproduce", str(tmp_path / "images")]) == 1
    assert "no records in" in capsys.readouterr().err


@pytest.mark.slow
def test_json_contains_both_records(made, capsys):
    assert main(["reproduce", str(made[1]), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["verdict"] == IDENTICAL
    assert found["again"]["features"] == found["record"]["features"]


def test_an_estimate_includes_the_extraction_of_features():
    record = make_record(seconds={"load": 1.0, "extract": 0.0, "fit": 2.0})
    subsets = {"train": MeterRecord(100, images_per_second=10.0), "test": MeterRecord(0)}
    record = changed(record, "extraction.subsets", subsets)
    assert estimate_seconds(record) == 13.0
    jit = make_record(jit=True, seconds={"load": 1.0, "extract": 5.0, "fit": 0.0})  # the probe is the eager run's
    assert estimate_seconds(jit, [record, jit]) == 8.0


def test_thread_counts_are_set_and_restored():
    import torch
    from threadpoolctl import threadpool_info

    def blas():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = torch.get_num_threads(), blas()
    with threads(1, blas=1):
        assert (torch.get_num_threads(), blas()) == (1, {1})
    with threads(0):
        assert (torch.get_num_threads(), blas()) == before
    assert (torch.get_num_threads(), blas()) == before


@pytest.mark.slow
def test_records_run_with_their_number_of_threads(made):
    """A record contains the number of threads that the run used, so the new record has the same number."""
    num = min(2, os.cpu_count() or 1)  # tests use one thread by default
    environment = replace(made[0].environment, torch_threads=num, blas_threads=num)
    record = replace(made[0], environment=environment)
    (found,) = reproduce_all([record])
    assert found.again.environment.torch_threads == num
    assert found.again.environment.blas_threads == num


@pytest.mark.slow
def test_a_partial_record_runs_again_as_partial(tmp_path):
    _write_images(tmp_path / "images")
    (tmp_path / "images" / "train" / "a" / "0.png").write_bytes(b"no image")
    record = probe.run(
        f"folder:{tmp_path / 'images'}",
        model="tiny",
        protocol="readme",
        device="cpu",
        results_dir=tmp_path,
        skip_corrupt=1,
    )
    assert record.is_partial
    (found,) = reproduce_all([record])
    assert found.verdict == IDENTICAL
