"""Grids on Ray on this machine, with real processes, some of which are killed."""

import contextlib
import os
import random
import signal
import sys
from dataclasses import replace

import pytest
from make.colours import write_colours
from make.kills import KILLED, Records, quick_grid, run_command
from make.ray_processes import (  # noqa: F401 - `marked` and `pytestmark` are for pytest
    beside,
    content,
    find_workers,
    marked,
    pytestmark,
    wait_until_gone,
)

from probe.cli.main import main
from probe.environment import threads
from probe.errors import ExecutorError, ExtraMissingError
from probe.grid import pending, plan
from probe.records.record import read_records, write_record
from probe.runner import run_grid as run_serially
from probe.scale.cluster import find_difference
from probe.scale.driver import run_grid_on_ray
from probe.scale.worker import WorkerInfo
from probe.settings import Settings


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("colours"))


def _grid(tmp_path, dataset="digits", *, models=("tiny", "random:tiny")):
    specs = plan([dataset], list(models), protocols=["readme"], jit_modes=[False, True], device="cpu", solver="fast")
    return specs, Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features")


@pytest.fixture(scope="module")
def serial(tmp_path_factory, colours):
    specs, settings = _grid(tmp_path_factory.mktemp("serial"), colours)
    with threads(1, blas=1):
        return {record.key: content(record) for record in run_serially(specs, settings=settings)}


def test_records_equal_the_records_of_one_process(tmp_path, serial, colours, monkeypatch):
    """Two workers give the same bits of features and fits as one process, and a second grid has nothing to do."""
    specs, settings = _grid(tmp_path, colours)
    records = list(run_grid_on_ray(specs, settings=settings, num_threads=1))
    assert {record.key: content(record) for record in records} == serial
    written = read_records(tmp_path / "results")
    assert len(written) == len(specs) == 4
    monkeypatch.setattr("probe.scale.cluster._start", None)  # Ray is not even started
    again = list(run_grid_on_ray(specs, settings=settings, num_threads=1))
    assert sorted(record.created for record in again) == sorted(record.created for record in written)
    (jit,) = (tmp_path / "results" / "records" / "colours").glob("tiny.jit.*")
    jit.unlink()  # JIT mode is compared with eager mode, so both are run again
    assert {spec.model.name for spec in pending(specs, settings).done} == {"random:tiny"}
    (uncompared,) = (record for record in written if (record.model, record.mode) == ("random:tiny", "jit"))
    # Without parity, the record is like one that was made without eager mode.
    write_record(replace(uncompared, parity=None), tmp_path / "results")
    assert not pending(specs, settings).done
    assert set(pending([spec for spec in specs if spec.jit], settings).done) == {uncompared.spec}


def test_what_a_killed_worker_was_doing_is_done_by_another(tmp_path, serial, colours):
    specs, settings = _grid(tmp_path, colours)
    killed = []

    def kill_some(is_over):
        while not is_over.wait(0.1) and len(killed) < 2:
            for pid in find_workers("ray::Worker.do")[:1]:  # in the middle of a unit
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    with beside(kill_some):
        records = list(run_grid_on_ray(specs, settings=settings, num_threads=1))
    assert killed
    assert {record.key: content(record) for record in records} == serial


NUM_KILLS = 3  # each costs a start of Ray with two workers, half a minute of a core


@pytest.mark.slow
def test_a_grid_that_is_killed_again_and_again_does_every_run_once(tmp_path):
    """20 quick runs, killed with all processes of Ray at random moments, then repeated until done."""
    command, output, work = quick_grid(tmp_path), tmp_path / "output", tmp_path / "work"
    command += ["--executor", "ray", "--threads", "1"]
    records, rng = Records(work / "results"), random.Random(5)
    for _ in range(NUM_KILLS):
        # The driver has 28 moments before its first record and 5 for each run, so this is some of the runs.
        moment = rng.randint(1, 28 + 3 * 20 // NUM_KILLS)
        assert run_command(command, output, watched=work, moment=moment, with_group=True) == KILLED
        wait_until_gone()
        records.look()
    num_before = len(records.seen)
    assert 0 < num_before < 20
    output.unlink()
    assert run_command(command, output, watched=work) == 0
    records.look()
    assert len(records.seen) == len(read_records(work / "results")) == 20
    assert f"skipped {num_before} of 20 runs" in output.read_text()
    assert output.read_text().count("| colours") == 20


def test_a_unit_that_kills_its_workers_is_recorded_as_failed(tmp_path, monkeypatch):
    """The shard has all its attempts; then the fits, which try to extract the features, have theirs."""
    for module in ("units", "driver"):
        monkeypatch.setattr(f"probe.scale.{module}.ATTEMPTS", 2)
    specs, settings = _grid(tmp_path, models=("random:ViT-B/32",))
    killed = set()

    def kill_at_work(is_over):
        while not is_over.wait(0.2):
            for pid in find_workers("ray::Worker.do"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)

    with beside(kill_at_work):
        records = list(run_grid_on_ray(specs, settings=settings))
    assert len(killed) >= 4
    assert [record.error.type for record in records] == ["ExecutorError"] * 2
    assert "its worker was lost" in records[0].error.message
    assert "worker process has died" in records[0].error.message
    assert len(read_records(tmp_path / "results")) == 2


def test_a_run_fails_with_the_error_of_one_process(tmp_path):
    specs = plan(["mnist"], ["tiny"], protocols=["readme"], device="cpu")
    settings = Settings(
        results_dir=tmp_path / "results", cache_dir=tmp_path / "features", data_dir=tmp_path, offline=True
    )
    messages = []
    for execute in (run_serially, run_grid_on_ray):
        (record,) = execute(specs, settings=settings)
        messages.append(record.error)
    assert messages[0] == messages[1]


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    specs, settings = _grid(tmp_path)
    with pytest.raises(ExtraMissingError, match=r"clip-linear-probe\[ray\]"):
        list(run_grid_on_ray(specs, settings=settings))


def test_more_threads_than_cpus_are_refused(tmp_path):
    specs, settings = _grid(tmp_path)
    with pytest.raises(ExecutorError, match="10000 CPUs"):
        list(run_grid_on_ray(specs, settings=settings, num_threads=10_000))


def test_an_address_that_does_not_answer_is_named(tmp_path, capsys):
    options = ["--dataset", "digits", "--model", "tiny", "--results-dir", str(tmp_path), "--executor", "ray"]
    assert main(["run", *options, "--ray-address", "127.0.0.1:1"]) == 1
    assert "Ray does not answer at 127.0.0.1:1" in capsys.readouterr().err


def test_workers_with_other_versions_are_refused():
    """Workers with other versions would give other numbers, in some of the records."""
    info = WorkerInfo("1", "node7", 1, {"torch": "2.0", "numpy": "2"}, "AVX2", sees_store=True)
    assert "node7 has torch 2.0, here 2.15;" in str(find_difference({"torch": "2.15", "numpy": "2"}, info))
    assert find_difference({"torch": "2.0", "numpy": "2"}, info) is None
