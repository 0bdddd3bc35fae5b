"""Grids on Ray on this machine, with real processes, some of which are killed."""

import contextlib
import os
import random
import signal
import sys
from dataclasses import replace

import pytest
from make.colours import write_colours
from make.kills import kill_and_repeat
from make.own_modules import make_own, write_own
from make.ray_processes import (  # noqa: F401 - `marked` and `pytestmark` are for pytest
    MARK,
    beside,
    content,
    find_workers,
    marked,
    pytestmark,
    wait_until_gone,
)
from make.shifted_layouts import WNIDS, write_further, write_imagenet

from probe.environment import threads
from probe.errors import ExecutorError, ExtraMissingError
from probe.grid import pending, plan
from probe.records.record import read_records, write_record
from probe.runner import run_grid as run_serially
from probe.scale.cluster import connected, find_difference
from probe.scale.driver import run_grid_on_ray
from probe.scale.worker import WorkerInfo
from probe.settings import Settings

SHARED = f"{MARK}-shared"  # in the environment of the processes of `shared_ray`


@pytest.fixture(scope="module")
def ray_here():
    """Start Ray in this process, with room for four workers of one thread, for all tests of a module that ask for it.

    A grid starts its own workers and stops them, but does not stop a Ray that it has not started.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_TEST", SHARED)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="error", include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def shared_ray(ray_here):
    """Return the module `ray`, connected to a Ray that other tests use too, and wait for the end of the workers."""
    yield ray_here
    wait_until_gone("ray::Worker", SHARED)


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


def test_records_equal_the_records_of_one_process(tmp_path, serial, colours, monkeypatch, shared_ray):
    """Four workers give the same bits of features and fits as one process, and a second grid has nothing to do."""
    specs, settings = _grid(tmp_path, colours)
    records = list(run_grid_on_ray(specs, settings=settings, num_threads=1))
    assert {record.key: content(record) for record in records} == serial
    written = read_records(tmp_path / "results")
    assert len(written) == len(specs) == 4
    monkeypatch.setattr("probe.scale.driver.connected", None)  # Ray is not even started
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


def test_further_test_sets_have_the_records_of_one_process(tmp_path, shared_ray):
    """One of them is missing, which stops neither the others nor the run."""
    root = tmp_path / "data"
    write_further(root, "some", "some", {WNIDS[1]: [1, 1, 0], WNIDS[2]: [2, 0]}, fields='class_ids = "wordnet"')
    write_further(root, "gone", "gone", {}, fields='class_ids = "wordnet"')
    dataset = write_imagenet(root, ["some", "gone"])
    specs = plan([dataset], ["tiny"], protocols=["readme", "knn-5"], device="cpu", tests=["all"])
    (tmp_path / "serial").mkdir()
    folders = {"results_dir": tmp_path / "serial/results", "cache_dir": tmp_path / "serial/features"}
    with threads(1, blas=1):
        serial = {record.key: content(record) for record in run_serially(specs, settings=Settings(**folders))}
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features")
    records = list(run_grid_on_ray(specs, settings=settings, num_threads=1))
    assert {record.key: content(record) for record in records} == serial
    for record in records:
        some, gone = record.tests
        assert some.own_classes is not None
        assert gone.error.type == "DatasetMissingError"


def test_an_encoder_of_a_file_has_the_records_of_one_process(tmp_path, colours, monkeypatch, shared_ray):
    """Workers run the function in the user's file. An encoder that only this process has is refused."""
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path)
    specs = plan([colours], ["module:own.py:make_encoder"], protocols=["readme"], device="cpu")
    with threads(1, blas=1):
        settings = Settings(results_dir=tmp_path / "serial", cache_dir=tmp_path / "serial/features")
        serial = {record.key: content(record) for record in run_serially(specs, settings=settings)}
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features")
    records = list(run_grid_on_ray(specs, settings=settings, num_threads=1))
    assert {record.key: content(record) for record in records} == serial
    in_memory = plan([colours], [make_own()], protocols=["readme"], device="cpu")
    with pytest.raises(ExecutorError, match=r"cannot load the encoder 'mine'.*module:FILE.py:FUNCTION"):
        list(run_grid_on_ray(in_memory, settings=settings, num_threads=1))


def test_what_a_killed_worker_was_doing_is_done_by_another(tmp_path, serial, colours, shared_ray):
    specs, settings = _grid(tmp_path, colours, models=("tiny",))
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
    assert len(records) == len(specs) == 2
    assert {record.key: content(record) for record in records}.items() <= serial.items()


NUM_KILLS = 3  # each costs a start of Ray with two workers, half a minute of a core


@pytest.mark.slow
def test_a_grid_that_is_killed_again_and_again_does_every_run_once(tmp_path):
    """20 quick runs are killed with all processes of Ray at random moments, then repeated until done."""
    rng = random.Random(5)
    kill_and_repeat(
        tmp_path,
        # The driver has 28 moments before its first record and 5 for each run, so this is some of the runs.
        lambda seen: rng.randint(1, 28 + 3 * 20 // NUM_KILLS),
        num_kills=NUM_KILLS,
        options=["--executor", "ray", "--threads", "1"],
        with_group=True,
        wait=wait_until_gone,
    )


def test_a_unit_that_kills_its_workers_is_recorded_as_failed(tmp_path, monkeypatch, shared_ray):
    """First the shard uses all of its attempts, then the fits do, which try to extract the features."""
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


def test_a_run_fails_with_the_error_of_one_process(tmp_path, shared_ray):
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


def test_more_threads_than_cpus_are_refused(tmp_path, shared_ray):
    specs, settings = _grid(tmp_path)
    with pytest.raises(ExecutorError, match="10000 CPUs"):
        list(run_grid_on_ray(specs, settings=settings, num_threads=10_000))


def test_a_running_ray_is_used_and_not_stopped(shared_ray):
    with connected(None) as ray:
        assert ray is shared_ray
    assert shared_ray.is_initialized()


def test_workers_with_other_versions_are_refused():
    """Workers with other versions would give other numbers, in some of the records."""
    info = WorkerInfo("1", "node7", 1, {"torch": "2.0", "numpy": "2"}, "AVX2", sees_store=True)
    assert "node7 has torch 2.0, here 2.15;" in str(find_difference({"torch": "2.15", "numpy": "2"}, info))
    assert find_difference({"torch": "2.0", "numpy": "2"}, info) is None
