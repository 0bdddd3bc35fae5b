"""Grids on Ray, started on this machine; a real one, with real processes that are killed."""

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from probe.cli import main
from probe.environment import threads
from probe.errors import ExecutorError, ExtraMissingError
from probe.extraction import Access
from probe.ray_grid import _check_versions, run_grid
from probe.records import read_records
from probe.runner import plan
from probe.runner import run_grid as run_serially

pytest.importorskip("ray")
# Ray leaves sockets, files and processes to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray")


def _grid(tmp_path, *, models=("tiny", "random:tiny")):
    specs = plan(["digits"], list(models), protocols=["readme"], jit_modes=[False, True], device="cpu", solver="fast")
    return specs, Access(results=tmp_path / "results", cache=tmp_path / "features")


def _content(record):
    """A record but for times, and for where it was made."""
    passed_over = ("created", "seconds", "extraction", "environment")
    return {name: value for name, value in asdict(record).items() if name not in passed_over}


def _workers():
    """The processes of workers."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::Worker" in (folder / "cmdline").read_bytes():
                yield int(folder.name)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    specs, access = _grid(tmp_path_factory.mktemp("serial"))
    with threads(1):
        return {record.key: _content(record) for record in run_serially(specs, access=access)}


def test_records_are_those_of_one_process(tmp_path, serial):
    """To the last bit of features and fits, with two workers; and a second run has nothing left to do."""
    specs, access = _grid(tmp_path)
    records = list(run_grid(specs, access=access, num_threads=1))
    assert {record.key: _content(record) for record in records} == serial
    written = read_records(tmp_path / "results")
    assert len(written) == len(specs) == 4
    started = time.perf_counter()
    again = list(run_grid(specs, access=access, num_threads=1))
    assert sorted(record.created for record in again) == sorted(record.created for record in written)
    assert time.perf_counter() - started < 2  # Ray is not even started


def test_what_a_killed_worker_was_doing_is_done_by_another(tmp_path, serial):
    specs, access = _grid(tmp_path)
    killed, is_over = [], threading.Event()

    def kill_some():
        while not is_over.wait(0.1) and len(killed) < 2:
            for pid in list(_workers())[:1]:
                time.sleep(1.5)  # in the middle of something
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        records = list(run_grid(specs, access=access, num_threads=1))
    finally:
        is_over.set()
        killer.join()
    assert killed
    assert {record.key: _content(record) for record in records} == serial


def test_a_cell_that_fails_does_so_as_in_one_process(tmp_path):
    specs = plan(["mnist"], ["tiny"], protocols=["readme"], device="cpu")
    access = Access(results=tmp_path / "results", cache=tmp_path / "features", data=tmp_path, offline=True)
    messages = []
    for execute in (run_serially, run_grid):
        (record,) = execute(specs, access=access)
        messages.append(record.error)
    assert messages[0] == messages[1]


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    specs, access = _grid(tmp_path)
    with pytest.raises(ExtraMissingError, match=r"\.\[ray\]"):
        list(run_grid(specs, access=access))


def test_more_threads_than_there_are_processors_are_refused(tmp_path):
    specs, access = _grid(tmp_path)
    with pytest.raises(ExecutorError, match="10000 processors"):
        list(run_grid(specs, access=access, num_threads=10_000))


def test_an_address_that_does_not_answer_is_named(tmp_path, capsys):
    options = ["--dataset", "digits", "--model", "tiny", "--results-dir", str(tmp_path), "--executor", "ray"]
    assert main(["run", *options, "--ray-address", "127.0.0.1:1"]) == 1
    assert "no Ray answers at 127.0.0.1:1" in capsys.readouterr().err


def test_workers_with_other_versions_are_refused():
    """They would give other numbers, and only some of them."""
    with pytest.raises(ExecutorError, match=r"node7 has torch 2\.0, here 2\.15"):
        _check_versions({"torch": "2.15", "numpy": "2"}, {"torch": "2.0", "numpy": "2"}, "node7")
