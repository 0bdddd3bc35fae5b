"""Grids on several nodes of Ray, each with processes and a home folder of its own, all on this machine."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from make.ray_processes import beside, content, find_workers, marked, pytestmark  # noqa: F401 - the last two are for pytest

from probe.environment import threads
from probe.errors import ExecutorError
from probe.grid import plan
from probe.records.record import read_records
from probe.runner import run_grid as run_serially
from probe.scale.cluster import connected
from probe.scale.driver import run_grid_on_ray
from probe.settings import Settings

ROW = """
name = "colours"
num_classes = 2
val_fraction = 0.34
subsets = [{ name = "train", size = 12 }, { name = "test", size = 8 }]

[[sources]]
form = "folder"
location = "images"
subsets = { train = { folder = "train" }, test = { folder = "test" } }
"""


def _specs(*datasets, models=("tiny",), jit_modes=(False, True)):
    return plan(
        list(datasets or ["digits"]),
        list(models),
        protocols=["readme"],
        jit_modes=jit_modes,
        device="cpu",
        solver="fast",
    )


@contextlib.contextmanager
def _cluster(homes, *, num_cpus=1):
    """A head without room for workers, and a node for each home."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for home in homes:
            home.mkdir(exist_ok=True)
        yield cluster, [cluster.add_node(num_cpus=num_cpus, env_vars={"HOME": str(home)}) for home in homes]
    finally:
        cluster.shutdown()


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    (tmp_path / "driver").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "driver"))
    monkeypatch.delenv("PROBE_CACHE_DIR", raising=False)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    with threads(1, blas=1):
        return {
            record.key: content(record)
            for record in run_serially(
                _specs(), settings=Settings(results_dir=folder / "results", cache_dir=folder / "features")
            )
        }


def test_features_travel_between_nodes_that_share_no_folder(tmp_path, serial):
    """From those that make them to the driver, and to those that fit, also when the nodes are others by then."""
    settings = Settings(results_dir=tmp_path / "results", cache_dir="~/features")
    with _cluster([tmp_path / "a", tmp_path / "b"]) as (cluster, _):
        records = list(run_grid_on_ray(_specs(), settings=settings, address=cluster.address, num_threads=1))
        assert {record.key: content(record) for record in records} == serial
    assert {folder.name for home in "ab" for folder in (tmp_path / home / "features").glob("digits/tiny*")}
    shutil.rmtree(tmp_path / "results")
    with _cluster([tmp_path / "c"]) as (cluster, _):
        again = list(run_grid_on_ray(_specs(), settings=settings, address=cluster.address, num_threads=1))
    assert {record.key: content(record) for record in again} == serial
    assert all(record.extraction.from_cache for record in again)  # nothing was encoded there
    assert [record.extraction.subsets for record in again] == [record.extraction.subsets for record in records]


def test_four_workers_have_the_same_records(tmp_path, serial):
    """One is that of the tests beside this, two are those of `test_grid`."""
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features")
    with _cluster([tmp_path / "a"], num_cpus=4) as (cluster, _):
        records = list(run_grid_on_ray(_specs(), settings=settings, address=cluster.address, num_threads=1))
        assert {record.key: content(record) for record in records} == serial
        with pytest.raises(ExecutorError, match="no node has as much"):
            list(
                run_grid_on_ray(
                    _specs(), settings=Settings(results_dir=tmp_path / "no"), address=cluster.address, num_threads=5
                )
            )


def test_a_ray_that_is_there_is_used_and_stays(tmp_path):
    import ray

    with _cluster([]) as (cluster, _):
        with connected(cluster.address):
            with connected(None):
                assert ray.is_initialized()
            assert ray.is_initialized()
        assert not ray.is_initialized()


@contextlib.contextmanager
def _ray_start(home, *options):
    """A node that is started from the command line."""
    home.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *options]
    environment = {**os.environ, "HOME": str(home)}
    log = (home / "log").open("wb")
    with log, subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def test_a_client_from_outside_of_the_cluster_has_the_same_records(tmp_path, serial):
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    options = ["--head", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--include-dashboard=false"]
    with _ray_start(tmp_path / "a", *options):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", ports[1])).close()
                break
            time.sleep(0.5)
        # In a process of its own, as Ray's client stays in one.
        options = [
            "--dataset",
            "digits",
            "--model",
            "tiny",
            "--jit",
            "both",
            "--protocol",
            "readme",
            "--solver",
            "fast",
        ]
        options += ["--cache-dir", "~/features", "--results-dir", str(tmp_path / "results"), "--threads", "1"]
        options += ["--executor", "ray", "--ray-address", f"ray://127.0.0.1:{ports[1]}"]
        command = [sys.executable, "-m", "probe", "run", *options]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
    assert {record.key: content(record) for record in read_records(tmp_path / "results")} == serial


def test_what_a_node_has_no_dataset_for_is_done_on_another(tmp_path, image_folder, caplog):
    images = image_folder({"train/green": 6, "train/red": 6, "test/green": 4, "test/red": 4})
    (tmp_path / "colours.toml").write_text(ROW)
    specs = _specs(str(tmp_path / "colours.toml"), "digits", jit_modes=(False,))
    settings = Settings(
        results_dir=tmp_path / "results", cache_dir=tmp_path / "features", data_dir="~/data", offline=True
    )
    with _cluster([tmp_path / "a", tmp_path / "b"]) as (cluster, _):
        (failed, done) = sorted(
            run_grid_on_ray(specs, settings=settings, address=cluster.address, num_threads=1),
            key=lambda record: record.status,
        )[::-1]
        assert done.dataset == "digits"
        assert failed.error.type == "DatasetMissingError"
        assert "; nor is it on the 1 other node" in failed.error.message
        images.rename((tmp_path / "b" / "data").parent / "moved")
        (tmp_path / "b" / "data").mkdir()
        (tmp_path / "b" / "moved").rename(tmp_path / "b" / "data" / "images")
        records = list(run_grid_on_ray(specs, settings=settings, address=cluster.address, num_threads=1))
    assert [record.error for record in records] == [None, None]


def test_a_grid_outlives_nodes_and_workers(tmp_path, image_folder):
    """Workers are killed, one of two nodes goes and another comes; every record is right.

    `benchmarks/ray_faults.py` does more of it.
    """
    images = image_folder({"train/green": 6, "train/red": 6, "test/green": 4, "test/red": 4})
    names = []
    for i in range(8):
        path = tmp_path / f"colours{i}.toml"
        path.write_text(ROW.replace('"colours"', f'"colours{i}"').replace('"images"', f'"{images}"'))
        names.append(str(path))
    specs = _specs(*names, models=("tiny", "random:tiny"))
    with threads(1, blas=1):
        wanted = {
            record.key: content(record)
            for record in run_serially(
                specs, settings=Settings(results_dir=tmp_path / "one", cache_dir=tmp_path / "one")
            )
        }
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features")
    killed = []
    with _cluster([tmp_path / name for name in "ab"]) as (cluster, nodes), contextlib.ExitStack() as late:

        def trouble(is_over):
            while not is_over.wait(2) and len(killed) < 2:
                with contextlib.suppress(ProcessLookupError, IndexError):
                    pid = find_workers()[0]
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            late.enter_context(_ray_start(tmp_path / "c", f"--address={cluster.address}"))

        with beside(trouble):
            records = list(run_grid_on_ray(specs, settings=settings, address=cluster.address, num_threads=1))
    assert len(killed) == 2
    assert len(nodes) == 1
    assert {record.key: content(record) for record in records} == wanted


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_stopped_leaves_what_was_finished(tmp_path, how):
    """By Ctrl-C, or killed; then no worker is left, and the same command does the rest."""
    options = ["--dataset", "digits", "--model", "tiny", "--model", "random:ViT-B/32", "--protocol", "readme"]
    options += ["--solver", "fast", "--executor", "ray", "--threads", "1", "--device", "cpu"]
    options += ["--cache-dir", str(tmp_path / "features"), "--results-dir", str(tmp_path / "results")]
    driver = subprocess.Popen(
        [sys.executable, "-m", "probe", "run", *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in `test_cli`
    )
    until = time.monotonic() + 240
    while not read_records(tmp_path / "results") and time.monotonic() < until:  # of tiny, beside the long one
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.2)
    (os.killpg if how is signal.SIGINT else os.kill)(driver.pid, how)  # as a terminal does, or an operator
    try:
        _, said = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert driver.returncode == (130 if how is signal.SIGINT else -how), said
    (finished,) = read_records(tmp_path / "results")
    until = time.monotonic() + 30
    while find_workers() and time.monotonic() < until:
        time.sleep(0.2)
    assert not find_workers()
    if how is signal.SIGINT:
        assert "interrupted; finished runs are saved" in said
        assert "Traceback" not in said
        assert (tmp_path / "results" / "leaderboard.csv").is_file()
    specs = _specs(jit_modes=(False,))
    again = list(
        run_grid_on_ray(specs, settings=Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features"))
    )
    assert [record.created for record in again] == [finished.created]
