"""Grids on several nodes of Ray on this machine; each node has its own processes and home folder."""

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
from make.colours import ROW
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
from probe.grid import plan
from probe.records.record import read_records
from probe.runner import run_grid as run_serially
from probe.scale.driver import run_grid_on_ray
from probe.settings import Settings


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
def _cluster(homes):
    """Start a head without room for workers, and one node for each home folder."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for home in homes:
            home.mkdir(exist_ok=True)
        yield cluster, [cluster.add_node(num_cpus=1, env_vars={"HOME": str(home)}) for home in homes]
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
    """Features go from the worker that extracts them to the driver and to the workers that fit, also on new nodes."""
    import ray

    settings = Settings(results_dir=tmp_path / "results", cache_dir="~/features")
    with _cluster([tmp_path / "a", tmp_path / "b"]) as (cluster, _):
        records = list(run_grid_on_ray(_specs(), settings=settings, address=cluster.address, num_threads=1))
        assert {record.key: content(record) for record in records} == serial
        assert not ray.is_initialized()  # the grid has left the cluster
    assert {folder.name for home in "ab" for folder in (tmp_path / home / "features").glob("digits/tiny*")}
    shutil.rmtree(tmp_path / "results")
    with _cluster([tmp_path / "c"]) as (cluster, _):
        again = list(run_grid_on_ray(_specs(), settings=settings, address=cluster.address, num_threads=1))
    assert {record.key: content(record) for record in again} == serial
    assert all(record.extraction.from_cache for record in again)  # nothing was encoded again
    assert [record.extraction.subsets for record in again] == [record.extraction.subsets for record in records]


def test_an_address_that_does_not_answer_is_named(tmp_path, capsys):
    options = ["--dataset", "digits", "--model", "tiny", "--results-dir", str(tmp_path), "--executor", "ray"]
    assert main(["run", *options, "--ray-address", "127.0.0.1:1"]) == 1
    assert "Ray does not answer at 127.0.0.1:1" in capsys.readouterr().err


@contextlib.contextmanager
def _ray_start(home, *options):
    """Start a node from the command line."""
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
    with socket.socket() as one, socket.socket() as other:  # both are open, so that their ports differ
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (one, other)]
    options = ["--head", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--include-dashboard=false"]
    with _ray_start(tmp_path / "a", *options):
        until = time.monotonic() + 240  # Ray does not tell another process when it listens
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", ports[1])).close()
                break
            time.sleep(0.5)
        # In its own process, because Ray's client stays in a process.
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
        if "Starting Ray client server failed" in run.stderr:  # Ray gives its server 30 s, too few for a busy machine
            run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
    assert {record.key: content(record) for record in read_records(tmp_path / "results")} == serial


def test_a_unit_without_its_dataset_on_a_node_runs_on_another_node(tmp_path, image_folder, caplog):
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
        assert " (1 other node cannot run it either)" in failed.error.message
        images.rename((tmp_path / "b" / "data").parent / "moved")
        (tmp_path / "b" / "data").mkdir()
        (tmp_path / "b" / "moved").rename(tmp_path / "b" / "data" / "images")
        records = list(run_grid_on_ray(specs, settings=settings, address=cluster.address, num_threads=1))
    assert [record.error for record in records] == [None, None]


def test_a_grid_survives_the_loss_of_nodes_and_workers(tmp_path, image_folder):
    """Workers are killed, and one of two nodes is lost and replaced; every record is right.

    `benchmarks/ray_faults.py` provokes more losses.
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
def test_finished_records_remain_when_the_driver_is_stopped(tmp_path, how):
    """After Ctrl-C or a kill, no worker is left, and the same command runs the remaining runs."""
    options = ["--dataset", "digits", "--model", "tiny", "--model", "random:ViT-B/32", "--protocol", "readme"]
    options += ["--solver", "fast", "--executor", "ray", "--threads", "1", "--device", "cpu"]
    options += ["--cache-dir", str(tmp_path / "features"), "--results-dir", str(tmp_path / "results")]
    # Without this, a background process ignores Ctrl-C.
    driver = subprocess.Popen(
        [sys.executable, "-m", "probe", "run", *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 240  # a process that is stopped from outside cannot tell how far it is
    # Wait for the record of `tiny`; the long run is still running then.
    while not read_records(tmp_path / "results") and time.monotonic() < until:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.2)
    # Like Ctrl-C in a terminal, or a kill by an operator.
    (os.killpg if how is signal.SIGINT else os.kill)(driver.pid, how)
    try:
        _, said = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == (130 if how is signal.SIGINT else -how), said
    (finished,) = read_records(tmp_path / "results")
    wait_until_gone("ray::Worker")
    if how is signal.SIGINT:
        assert "interrupted; finished runs are saved" in said
        assert "Traceback" not in said
        assert (tmp_path / "results" / "leaderboard.csv").is_file()
    specs = _specs(jit_modes=(False,))
    again = list(
        run_grid_on_ray(specs, settings=Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "features"))
    )
    assert [record.created for record in again] == [finished.created]
