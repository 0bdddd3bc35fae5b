"""The driver of a grid on Ray with simulated workers. `test_grid` uses real workers."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from make.fake_ray import FakeRay, RayError, RayTaskError
from make.records import make_further_test, make_record

from probe.errors import ExecutorError
from probe.grid import plan
from probe.records.record import read_record, write_record
from probe.records.schema import ErrorRecord, FurtherTestRecord
from probe.runner import failure
from probe.scale.cluster import error_line
from probe.scale.driver import _Driver
from probe.scale.worker import NotRunnable, UnitResult
from probe.settings import Settings

TOO_LITTLE = NotRunnable("ExecutorError", "too little memory", is_memory=True)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr("probe.scale.driver.WAIT_SECONDS", 0.01)
    monkeypatch.setattr("probe.scale.cluster.QUIET_SECONDS", 0.05)


def _run(tmp_path, ray, *models, protocols=("readme",)):
    """Return for each run the worker that did it, or the error."""
    specs = plan(["digits"], list(models), protocols=protocols, device="cpu", solver="fast")
    driver = _Driver(ray, specs, Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features"), 1)
    said = [(record.model, record.protocol, record.error.message) for record in driver.run()]
    assert len(said) == len(specs)
    assert not ray.placed  # all workers are stopped
    return said


def _done(node, unit):
    """Put the answer of a worker into the error of a record, to see which worker answered."""
    if unit.shard is not None:
        return UnitResult()
    return UnitResult([failure(spec, {"type": "DatasetError", "message": f"by {node}"}) for spec in unit.specs])


def test_a_unit_without_enough_memory_waits_for_the_other_worker(tmp_path):
    """The unit is repeated alone even if the other worker has ended, because only then the node's memory is known."""
    refused = []

    def answer(node, unit):
        if unit.model == "tiny" and unit.shard and not refused:
            refused.append(node)
            return TOO_LITTLE
        return _done(node, unit)

    ray = FakeRay({"a": 2}, answer)
    assert sorted(_run(tmp_path, ray, "random:tiny", "tiny")) == [
        ("random:tiny", "readme", "by a"),
        ("tiny", "readme", "by a"),
    ]
    assert refused


def test_no_other_unit_starts_while_a_unit_is_tried_alone(tmp_path):
    """Otherwise, the memory of another unit would look like a lack of memory of the node."""
    beside = []

    def answer(node, unit):
        if unit is driver.units[0]:
            beside.extend(ray.busy_units())
        return _done(node, unit)

    ray = FakeRay({"a": 2}, answer)
    specs = plan(["digits"], ["tiny", "random:tiny"], protocols=["readme"], device="cpu", solver="fast")
    driver = _Driver(ray, specs, Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features"), 1)
    driver.only_alone.add((driver.units[0], "a"))
    assert len(list(driver.run())) == 2
    assert not beside


def test_idle_workers_release_memory_before_a_unit_is_refused(tmp_path):
    given_back = []

    def answer(node, unit):
        if unit.shard is None and not given_back:
            given_back.append(node)
            return TOO_LITTLE
        return _done(node, unit)

    ray = FakeRay({"a": 2}, answer)
    assert _run(tmp_path, ray, "tiny", "random:tiny")
    ray.released.clear()
    ray = FakeRay({"a": 2}, lambda node, unit: TOO_LITTLE if unit.shard is None else _done(node, unit))
    said = _run(tmp_path / "no", ray, "tiny", "random:tiny")
    assert {message for *_, message in said} == {"too little memory"}
    assert set(ray.released) == {"a"}


def test_a_unit_runs_on_the_node_that_has_its_files(tmp_path):
    missing = NotRunnable("DatasetMissingError", "no digits here")
    ray = FakeRay({"a": 1, "b": 1}, lambda node, unit: missing if node == "a" else _done(node, unit))
    assert _run(tmp_path, ray, "tiny") == [("tiny", "readme", "by b")]
    ray = FakeRay({"a": 1, "b": 1}, lambda node, unit: missing)
    assert _run(tmp_path / "no", ray, "tiny") == [
        ("tiny", "readme", "no digits here (1 other node cannot run it either)"),
    ]


def test_a_worker_is_replaced_after_an_unexpected_error(tmp_path):
    """A worker may be faulty after an error, for example of its GPU, and must not make all other units fail."""
    sick, raised = [], []

    def answer(node, unit):
        worker = len(sick)
        if worker == 0:
            sick.append(unit)
            raise RayTaskError(ValueError("a faulty GPU"))
        return _done(node, unit)

    ray = FakeRay({"a": 1}, answer)
    assert _run(tmp_path, ray, "tiny", protocols=("readme", "clip-paper"))[0][-1] == "by a"

    def always(node, unit):
        raised.append(unit)
        raise RayTaskError(ValueError("a bug"))

    assert _run(tmp_path / "no", FakeRay({"a": 1}, always), "tiny") == [("tiny", "readme", "a bug")]
    assert len(raised) == 4  # the shard twice, and the fits twice


def test_a_run_is_repeated_once_after_an_unexpected_error(tmp_path):
    """After the last attempt, the run is recorded as failed, and the other runs of its unit as done."""
    tried = []

    def answer(node, unit):
        if unit.shard is not None:
            return UnitResult()
        tried.append(unit)
        error = {"type": "RuntimeError", "message": f"attempt {len(tried)}"}
        return UnitResult([failure(spec, error) for spec in unit.specs], is_expected=False)

    assert _run(tmp_path, FakeRay({"a": 1}, answer), "tiny") == [("tiny", "readme", "attempt 2")]


def test_a_unit_that_loses_its_workers_delays_no_other_unit(tmp_path):
    done = []

    def answer(node, unit):
        if unit.model == "tiny" and unit.shard is None:
            raise RayError("killed")
        done.append(unit)
        return _done(node, unit)

    said = _run(tmp_path, FakeRay({"a": 1}, answer), "tiny", "random:tiny")
    assert [model for model, *_ in said] == ["random:tiny", "tiny"]
    assert said[-1][-1] == "its worker was lost 5 times, the last time because: killed"


def test_features_are_extracted_again_if_no_node_of_their_hardware_can_run_the_fits(tmp_path):
    made = []

    def answer(node, unit):
        if unit.shard is not None:
            made.append(node)
        return TOO_LITTLE if unit.shard is None and node == "a" else _done(node, unit)

    ray = FakeRay({"a": 1, "b": 1}, answer, hardware={"a": "AVX2", "b": "AVX512"})
    assert _run(tmp_path, ray, "tiny") == [("tiny", "readme", "by b")]
    assert made == ["a", "b"]


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_bar_shows_units_images_and_the_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    monkeypatch.setattr("probe.scale.driver.WAIT_SECONDS", 0.0)
    _run(tmp_path, FakeRay({"a": 2}, _done), "tiny", "random:tiny")
    shown = terminal.getvalue().split("\r")
    assert any("1 of 4 units, 1 running, 0 failed: " in line and "| 2097/3594 [" in line for line in shown)
    last = next(line for line in shown if "4 of 4 units, 0 running, 2 failed: 100%" in line)
    assert re.search(r"3594/3594 \[\d+:\d\d<\d+:\d\d, +[\d.]+img/s\]", last)


def test_different_versions_are_reported_before_the_first_unit(tmp_path):
    ray = FakeRay({"a": 1}, _done)
    ray.versions = {**ray.versions, "torch": "2.0", "av": None}
    with pytest.raises(ExecutorError, match=r"a has torch 2\.0, here [^;]*; install the same versions"):
        _run(tmp_path, ray, "tiny")


def test_an_error_of_ray_becomes_one_line():
    assert error_line(RayTaskError(ValueError("no such file"))) == "no such file"
    long = RayError(
        "The actor died because of an error raised in its creation task, \x1b[36mray::Worker\x1b[39m\n  a\nKeyError: 1"
    )
    assert error_line(long) == "KeyError: 1"
    assert error_line(RayError("killed\n by  somebody")) == "killed by somebody"


def test_workers_that_wait_for_a_lost_node_are_replaced(tmp_path):
    """When a node is lost, Ray gives up all actors that would start there, but the grid continues."""
    ray = FakeRay({"a": 0, "b": 0}, _done)
    specs = plan(["digits"], ["tiny"], protocols=[f"few-shot-{n}" for n in (1, 2, 4, 8, 16)], device="cpu")
    driver = _Driver(ray, specs, Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features"), 1)
    driver.workers.request(8)
    assert len(ray.pending) == 8
    ray.lose_pending(RayError("its node is gone"))
    for answer in list(driver.workers.starting):
        assert driver.workers.admit(answer) is None
    ray.workers["b"] = 1
    assert [record.error.message for record in driver.run()] == ["by b"] * len(specs)


def test_workers_that_cannot_start_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("probe.scale.cluster.TOGETHER_SECONDS", -1.0)
    ray = FakeRay({"a": 0}, _done)
    specs = plan(["digits"], ["tiny"], protocols=["readme"], device="cpu")
    driver = _Driver(ray, specs, Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features"), 1)
    driver.workers.request(5)
    ray.lose_pending(RayError("no memory"))
    *first, last = driver.workers.starting
    for answer in first:
        assert driver.workers.admit(answer) is None
    with pytest.raises(ExecutorError, match=r"workers fail while they start \(no memory\)"):
        driver.workers.admit(last)


def test_a_record_with_a_score_that_the_new_run_lacks_is_not_replaced(tmp_path):
    """The worker does not have the images of a further test set that the record has a score on."""
    (spec,) = plan(["digits"], ["tiny"], protocols=["readme"], device="cpu", solver="fast")
    first = make_record(spec=spec, tests=(make_further_test("moved", 0.4),))
    path = write_record(first, tmp_path / "results")
    gone = FurtherTestRecord("moved", ErrorRecord("DatasetMissingError", "no folder"))
    predictions = {Path("digits/run.parquet"): b"new"}

    def answer(_, unit):
        if unit.shard is not None:
            return UnitResult()
        return UnitResult(
            [replace(first, tests=(gone,))], heads={0: {Path("heads/new"): b""}}, predictions={0: predictions}
        )

    ((_, _, message),) = _run(tmp_path, FakeRay({"a": 1}, answer), "tiny")
    assert message.startswith("the record has scores on moved that the new run lacks (no folder), so the record was")
    assert read_record(path) == first
    assert not (tmp_path / "results/heads").exists()
