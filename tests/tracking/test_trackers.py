"""Logging to experiment trackers: what happens if they fail, and what the libraries store offline."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from make.fake_ray import FakeRay
from make.records import FURTHER_TESTS, make_failure, make_record

import probe
from probe.cli.main import main
from probe.errors import ExtraMissingError, TrackerError, UnknownNameError
from probe.grid import plan
from probe.records.record import read_records, write_record
from probe.runner import failure
from probe.scale.driver import run_grid_on_ray
from probe.scale.worker import UnitResult
from probe.settings import Settings
from probe.tracking import trackers
from probe.tracking.contents import describe_run
from probe.tracking.trackers import open_trackers

LIBRARIES = ("wandb", "mlflow", "trackio")
MAKERS = Path(__file__).parent.parent / "make"


class Recorder:
    """Tracker that remembers the names of runs, and raises an error after `limit` runs."""

    destination = "memory"

    def __init__(self, limit=100):
        self.limit, self.names = limit, []

    def log(self, run):
        if len(self.names) == self.limit:
            raise ConnectionError("no answer from http://me:secret@example.org")
        self.names.append(run.name)


@pytest.fixture
def recorders(monkeypatch):
    """Replace MLflow by a tracker that remembers runs, and wandb by one that fails at the second run."""
    known = {"mlflow": Recorder(), "wandb": Recorder(limit=1)}
    monkeypatch.setattr(trackers, "TRACKERS", {name: lambda offline, one=one: one for name, one in known.items()})
    return known


RUN = ["run", "--dataset", "digits", "--model", "tiny", "--device", "cpu", "--offline"]


def test_each_new_record_is_logged_once(recorders, tmp_path, capsys, caplog):
    command = [*RUN, "--results-dir", str(tmp_path), "--log", "mlflow"]
    for protocols in (["readme"], ["readme", "knn"]):
        assert main([*command, *(word for name in protocols for word in ("--protocol", name))]) == 0
    assert recorders["mlflow"].names == ["digits/tiny.eager.readme.fp32.fast", "digits/tiny.eager.knn.fp32"]
    assert "1 runs have records already; `probe log mlflow` logs these too" in caplog.text
    assert "records logged to mlflow: 1 (memory)" in caplog.text


def test_a_tracker_that_fails_stops_no_run(recorders, tmp_path, capsys, caplog):
    names = ["readme", "knn", "knn-5"]
    protocols = [word for name in names for word in ("--protocol", name)]
    command = [*RUN, *protocols, "--results-dir", str(tmp_path), "--log", "wandb", "--log", "mlflow"]
    assert main(command) == 0
    assert len(read_records(tmp_path)) == len(recorders["mlflow"].names) == 3
    assert len(recorders["wandb"].names) == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("cannot log digits / tiny")
    assert "(no answer from http://example.org)" in warning
    assert "`python -m probe log wandb` logs all records later" in warning


def test_a_failed_run_is_logged_before_its_error_is_raised(recorders, tmp_path):
    with pytest.raises(probe.ProbeError):
        probe.run("cifar10", model="tiny", log=["mlflow"], results_dir=tmp_path, data_dir=tmp_path, offline=True)
    (record,) = read_records(tmp_path)
    assert recorders["mlflow"].names == [describe_run(record).name]
    assert record.error is not None


def test_the_driver_of_a_grid_on_ray_logs_the_records(recorders, tmp_path, monkeypatch):
    def answer(node, unit):
        if unit.shard is not None:
            return UnitResult()
        return UnitResult([failure(spec, {"type": "DatasetError", "message": "no"}) for spec in unit.specs])

    monkeypatch.setattr("probe.scale.driver.connected", lambda address: nullcontext(FakeRay({"a": 1}, answer)))
    monkeypatch.setattr("probe.scale.driver.WAIT_SECONDS", 0.01)
    specs = plan(["digits"], ["tiny"], protocols=["readme", "knn"], device="cpu")
    settings = Settings(results_dir=tmp_path, cache_dir=tmp_path / "features", log=("mlflow",))
    assert len(list(run_grid_on_ray(specs, settings, num_threads=1))) == 2
    assert sorted(recorders["mlflow"].names) == [
        "digits/tiny.eager.knn.fp32.failed",
        "digits/tiny.eager.readme.fp32.fast.failed",
    ]


def test_existing_records_are_logged_by_a_command(recorders, tmp_path, capsys):
    for record in (make_record(), make_failure(dataset="mnist")):
        write_record(record, tmp_path)
    assert main(["log", "mlflow", "--results-dir", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == [{"tracker": "mlflow", "records": 2, "destination": "memory"}]
    assert main(["log", "wandb", "--results-dir", str(tmp_path)]) == 1  # the second record fails
    assert "| wandb   | 1       | memory      |" in capsys.readouterr().out


def test_a_folder_without_records_is_refused(tmp_path, capsys):
    assert main(["log", "mlflow", "--results-dir", str(tmp_path)]) == 1
    assert "no records in" in capsys.readouterr().err


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown tracker 'mlfow'; did you mean 'mlflow'\?"):
        probe.run("digits", model="tiny", log=["mlfow"], results_dir=tmp_path)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_before_the_first_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)  # Python then raises ImportError
    with pytest.raises(ExtraMissingError, match=rf"needs its library; install it with pip install .*\[{name}\]"):
        open_trackers([name])
    assert main([*RUN, "--results-dir", str(tmp_path), "--log", name]) == 1
    assert read_records(tmp_path) == []


def test_offline_refuses_a_server_of_trackio(monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/board")
    with pytest.raises(TrackerError, match="TRACKIO_SPACE_ID names a server"):
        open_trackers(["trackio"], offline=True)


# Names of hosts that this process looks up are written to a file; the libraries ignore the error.
COMMANDS = """
import socket, sys


def refuse(host, *args, **kwargs):
    open("network", "a").write(f"{host} ")
    raise OSError("no network")

socket.getaddrinfo = refuse

from probe.cli.main import main

trackers, results, run = ["wandb", "mlflow", "trackio"], ["--results-dir", "results", "--offline"], sys.argv[1:]
assert main([*run, *results, *(word for name in trackers for word in ("--log", name))]) == 0
for _ in range(2):
    assert main(["log", *trackers, *results]) == 0
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Log a new record by `run`, and two older ones by `log`, twice. Return the records and what the libraries store.

    The libraries run in processes of their own: they start threads and services, and raise warnings on import.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; `tox -e tracking` installs them")
    folder = tmp_path_factory.mktemp("trackers")
    write_record(make_record("cifar10", tests=FURTHER_TESTS, seconds={"fit": 2.5}), folder / "results")
    write_record(make_failure("no images", dataset="mnist"), folder / "results")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    environment |= {"HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio"), "HF_TOKEN": "hf_none"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(probe.__file__).parents[1]), *sys.path])

    def call(*words):
        done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    call("-c", COMMANDS, *RUN, "--protocol", "readme")
    assert not (folder / "network").exists(), (folder / "network").read_text(encoding="utf-8")
    found = json.loads(call(str(MAKERS / "tracker_logs.py")).splitlines()[-1])
    return {record.dataset: describe_run(record) for record in read_records(folder / "results")}, found


@pytest.mark.slow
def test_wandb_stores_each_record_once(stored):
    runs, found = stored
    assert sorted(one["id"] for one in found["wandb"]) == sorted(run.id for run in runs.values())
    for one in found["wandb"]:
        run = runs[one["config"]["dataset"]]
        assert (one["project"], one["name"], one["rows"]) == ("probe", run.name, 1)
        assert {name: one["config"][name] for name in run.config} == dict(run.config)
        assert {name: one["metrics"][name] for name in run.metrics} == dict(run.metrics)
        assert one["exit_code"] == run.has_failed
        assert set(one["tags"]) == set(run.tags.values())
        assert "extra" not in one  # neither files nor output nor measurements of the machine


@pytest.mark.slow
def test_mlflow_stores_each_record_once(stored):
    runs, found = stored
    assert len(found["mlflow"]) == len(runs) == 3
    for one in found["mlflow"]:
        run = runs[one["config"]["dataset"]]
        assert one["name"] == run.name
        assert one["config"] == {name: str(value) for name, value in run.config.items()}
        assert one["metrics"] == dict(run.metrics)
        assert one["status"] == ("FAILED" if run.has_failed else "FINISHED")
        assert one["times"] == [int(1000 * run.started), int(1000 * run.ended)]
        assert dict(run.tags).items() <= one["tags"].items()


@pytest.mark.slow
def test_trackio_stores_each_record_once(stored):
    runs, found = stored
    assert len(found["trackio"]) == len(runs) == 3
    for one in found["trackio"]:
        run = runs[one["config"]["dataset"]]
        assert one["name"] == f"{run.name} {run.id}"
        assert one["rows"] == 1
        assert dict(run.config).items() <= one["config"].items()
        assert one["metrics"] == dict(run.metrics)
