"""Logging to experiment trackers: what happens if they fail, and what the libraries store offline."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

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
        if run.name in self.names:
            return False
        self.names.append(run.name)
        return True


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
    assert (
        "1 of the runs have records already, which are not logged; "
        f"log them with `python -m probe log mlflow --results-dir {tmp_path}`"
    ) in caplog.text
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
    assert warning.endswith(
        "nothing more is logged to wandb; "
        f"log the missing records later with `python -m probe log wandb --results-dir {tmp_path}`"
    )


def test_an_advised_command_names_no_default_folder(recorders, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PROBE_RESULTS_DIR", str(tmp_path))
    caplog.set_level("INFO", "probe")
    open_trackers(["mlflow"], num_recorded=2, results_dir=tmp_path)
    open_trackers(["mlflow"], num_recorded=2, results_dir=tmp_path / "my results")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("`python -m probe log mlflow`")
    assert second.endswith(f"`python -m probe log mlflow --results-dir '{tmp_path}/my results'`")


def test_one_name_can_be_given_without_a_list(recorders, tmp_path):
    folders = {"results_dir": tmp_path, "cache_dir": tmp_path / "features"}
    probe.run("digits", model="tiny", log="mlflow", offline=True, device="cpu", **folders)
    assert recorders["mlflow"].names == ["digits/tiny.eager.clip-paper.fp32.fast"]
    assert list(open_trackers(Settings(log="mlflow").log).destinations()) == ["mlflow"]


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
    assert rows == [{"tracker": "mlflow", "num_logged": 2, "num_skipped": 0, "destination": "memory"}]
    assert main(["log", "mlflow", "--results-dir", str(tmp_path)]) == 0
    assert "| mlflow  | 0      | 2             | memory      |" in capsys.readouterr().out
    assert main(["log", "wandb", "--results-dir", str(tmp_path)]) == 1  # the second record fails
    assert "| wandb   | 1      | 0             | memory      |" in capsys.readouterr().out


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


class Summary:
    """Summary of a run as wandb has it: it has keys, but does not support `in`."""

    def __init__(self, values):
        self.keys = values.keys

    def __getitem__(self, name):
        raise KeyError(name)


class OnlineRun:
    """Run of wandb on a server that has some metrics already, or fails if metrics are logged."""

    project_url, settings = "https://wandb.example.org/me/probe", SimpleNamespace(sync_dir="run")

    def __init__(self, known=None, error=None):
        self.resumed, self.summary, self.error = known is not None, Summary(known or {}), error
        self.logged, self.exit_codes = [], []

    def log(self, metrics):
        if self.error is not None:
            raise self.error
        self.logged.append(metrics)

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb_online(monkeypatch, tmp_path):
    """Return a function that logs a record by a library in the place of wandb, which opens a given run."""

    def log(run):
        settings = SimpleNamespace(mode="online", project=None, wandb_dir=str(tmp_path))
        library = SimpleNamespace(
            setup=lambda: SimpleNamespace(settings=settings),
            login=lambda **kwargs: True,
            Settings=lambda **kwargs: None,
            init=lambda **kwargs: run,
        )
        monkeypatch.setitem(sys.modules, "wandb", library)
        opened = open_trackers(["wandb"])
        opened.log(make_record())
        return opened

    return log


@pytest.mark.parametrize("known", [{}, {"score": 0.5}])
def test_a_run_on_the_server_of_wandb_that_lacks_metrics_gets_them(wandb_online, known):
    run = OnlineRun(known)
    assert wandb_online(run).num_logged == {"wandb": 1}
    assert run.logged == [dict(describe_run(make_record()).metrics)]
    assert run.exit_codes == [0]


def test_a_complete_run_on_the_server_of_wandb_is_skipped(wandb_online):
    run = OnlineRun(describe_run(make_record()).metrics)
    assert wandb_online(run).num_skipped == {"wandb": 1}
    assert run.logged == []
    assert run.exit_codes == [0]


def test_a_run_of_wandb_ends_after_an_error(wandb_online):
    run = OnlineRun(error=ValueError("too many metrics"))
    assert wandb_online(run).failed == ["wandb"]
    assert run.exit_codes == [1]


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


def call_python(folder, *words, **variables):
    """Run Python in a folder with all libraries, and return what it prints.

    The libraries run in processes of their own: they start threads and services, and raise warnings on import.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; `tox -e tracking` installs them")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    environment |= {"HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio"), "HF_TOKEN": "hf_none", **variables}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(probe.__file__).parents[1]), *sys.path])
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Log a new record by `run`, and two older ones by `log`, twice. Return the records and what the libraries store.

    An earlier command was killed while it logged one of the older records to wandb.
    """
    folder = tmp_path_factory.mktemp("trackers")
    record = make_record("cifar10", tests=FURTHER_TESTS, seconds={"fit": 2.5})
    write_record(record, folder / "results")
    write_record(make_failure("no images", dataset="mnist"), folder / "results")
    (folder / "wandb" / f"offline-run-20260101_000000-{describe_run(record).id}").mkdir(parents=True)
    call_python(folder, "-c", COMMANDS, *RUN, "--protocol", "readme")
    assert not (folder / "network").exists(), (folder / "network").read_text(encoding="utf-8")
    found = json.loads(call_python(folder, str(MAKERS / "tracker_logs.py")).splitlines()[-1])
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


# A run that the user opened continues after a record is logged. Otherwise, Trackio raises an error in `trackio.log`.
OWN_RUN = """
import trackio
from make.records import make_record
from probe.tracking.trackers import open_trackers

trackio.init("own", embed=False, auto_log_gpu=False, auto_log_cpu=False)
opened = open_trackers(["trackio"], offline=True)
opened.log(make_record())
assert opened.num_logged == {"trackio": 1}
trackio.log({"loss": 1.0})
trackio.finish()
"""


@pytest.mark.slow
def test_a_run_of_trackio_that_the_user_has_opened_goes_on(tmp_path):
    call_python(tmp_path, "-c", OWN_RUN, HF_HUB_OFFLINE="1")


SET_UP = """
import sys
from probe.errors import TrackerError
from probe.tracking.trackers import open_trackers

try:
    open_trackers(sys.argv[1:], offline=True)
except TrackerError as err:
    print(err)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("wandb", {"WANDB_MODE": "disabled"}, "wandb is disabled by WANDB_MODE; unset WANDB_MODE"),
        ("wandb", {"WANDB_DIR": "file"}, "file/wandb; set WANDB_DIR to a different folder"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "databricks"}, "the server databricks, which --offline forbids"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://example.org"}, "the server example.org, which --offline forbids"),
    ],
)
def test_settings_of_a_library_that_prevent_logging_are_errors(name, variables, message, tmp_path):
    (tmp_path / "file").touch()
    assert message in call_python(tmp_path, "-c", SET_UP, name, **variables)
