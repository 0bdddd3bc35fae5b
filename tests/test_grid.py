"""Planning, and which runs of a grid are done: the same for every executor."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from make.records import changed

import probe
from probe import grid, runner
from probe.cli.main import main
from probe.grid import pending, plan
from probe.records.record import read_records, record_path, write_record
from probe.records.schema import SkippedImage
from probe.runner import run_grid
from probe.settings import Settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The digits under `tiny` in both modes: runs, settings and records."""
    folder = tmp_path_factory.mktemp("recorded")
    specs = plan(["digits"], ["tiny"], protocols=["readme"], jit_modes=[False, True], device="cpu", solver="fast")
    settings = Settings(results_dir=folder / "results", cache_dir=folder / "cache", offline=True)
    return specs, settings, list(run_grid(specs, settings))


@pytest.fixture
def copied(recorded, tmp_path):
    """The runs and records in a results folder of the test's own."""
    specs, settings, records = recorded
    for record in records:
        write_record(record, tmp_path)
    return specs, replace(settings, results_dir=tmp_path), records


def test_a_repeated_grid_runs_nothing_and_says_so(copied, caplog, monkeypatch):
    specs, settings, records = copied
    monkeypatch.setattr("probe.runner.run_one", None)
    with caplog.at_level(logging.INFO):
        assert list(run_grid(specs, settings)) == read_records(settings.results_dir)
    assert "skipped 2 of 2 runs: already recorded (use --rerun)" in caplog.text
    assert "other library versions" not in caplog.text
    assert (settings.results_dir / "tables" / "tiny.jit.md").is_file()  # as where a run was killed before its tables
    assert pending(specs, settings, rerun=True).runs == specs
    assert len(records) == 2


def test_the_command_skips_what_is_recorded_and_prints_the_whole_table(copied, caplog, capsys):
    _, settings, records = copied
    command = ["run", "--dataset", "digits", "--model", "tiny", "--jit", "both", "--protocol", "readme"]
    command += ["--device", "cpu", "--solver", "fast", "--results-dir", str(settings.results_dir)]
    command += ["--cache-dir", str(settings.cache_dir)]
    with caplog.at_level(logging.INFO):
        assert main(command) == 0
    assert "skipped 2 of 2 runs" in caplog.text
    assert capsys.readouterr().out.count("| digits  | tiny  |") == 3  # two scores, and their comparison
    assert [one.created for one in read_records(settings.results_dir)] == [one.created for one in records]
    caplog.clear()
    assert main([*command, "--rerun"]) == 0
    assert "skipped" not in caplog.text


def test_run_returns_the_record_that_exists(copied):
    _, settings, records = copied
    options = {"model": "tiny", "protocol": "readme", "device": "cpu", "solver": "fast", "offline": True}
    options |= {"results_dir": settings.results_dir, "cache_dir": settings.cache_dir}
    marked = replace(records[0], created="2001-01-01T00:00:00+00:00")
    write_record(marked, settings.results_dir)
    assert probe.run("digits", **options).created == marked.created
    again = probe.run("digits", **options, rerun=True)
    assert again.created != marked.created
    assert again.features == records[0].features


@pytest.mark.parametrize(
    "change",
    [
        lambda r: changed(r, "extraction.extraction_version", 0),
        lambda r: changed(r, "extraction.preprocess_version", 0),
        lambda r: changed(r, "result.probe_version", 0),
        lambda r: changed(r, "spec.batch_size", 1),
        lambda r: changed(r, "read.skipped", (SkippedImage("all", "all/3", "damaged"),)),
        lambda r: runner.failure(r.spec, {"type": "DatasetError", "message": "no images"}),
    ],
    ids=["extraction", "preprocessing", "probe", "specification", "partial", "failed"],
)
def test_a_record_that_would_be_another_now_is_not_done(copied, change):
    (eager, _), settings, records = copied
    record_path(records[0], settings.results_dir).unlink()
    write_record(change(records[0]), settings.results_dir)
    assert pending([eager], settings).runs == [eager]


def test_a_record_of_before_versions_were_recorded_is_done(copied):
    (eager, _), settings, (record, _) = copied
    path = write_record(record, settings.results_dir)
    fields = json.loads(path.read_text())
    for name in ("extraction_version", "preprocess_version"):
        del fields["extraction"][name]
    del fields["result"]["probe_version"]
    path.write_text(json.dumps(fields))
    assert not pending([eager], settings).runs


def test_a_mended_note_leaves_a_run_done(copied):
    (eager, _), settings, _ = copied
    mended = replace(eager, dataset=replace(eager.dataset, notes="mended"))
    assert not pending([mended], settings).runs


def test_records_of_other_libraries_are_done_and_named(copied, caplog):
    specs, settings, records = copied
    for record in records:
        packages = {**record.environment.packages, "torch": "1.0"}
        write_record(changed(record, "environment.packages", packages), settings.results_dir)
    with caplog.at_level(logging.INFO):
        found = pending(specs, settings)
    assert not found.runs
    assert "2 of them were recorded with other library versions: torch 1.0" in caplog.text


def test_other_weights_in_the_file_of_a_checkpoint_are_another_run(copied, tmp_path, monkeypatch):
    (eager, _), settings, (record, _) = copied
    model = replace(probe.get_model("tiny"), form="file", source=str(tmp_path / "mine.pt"), sha256="")
    spec = replace(eager, model=model)
    write_record(replace(record, spec=spec), settings.results_dir)
    for digest, is_done in ((record.extraction.weights, True), ("ab" * 32, False)):
        monkeypatch.setattr(grid, "identify", lambda *_, digest=digest, **__: digest)
        assert (spec in pending([spec], settings).done) == is_done


def test_a_jit_run_is_done_only_with_its_comparison(copied):
    (eager, jit), settings, records = copied
    write_record(replace(records[1], parity=None), settings.results_dir)
    assert pending([eager, jit], settings).runs == [eager, jit]  # the comparison needs both
    assert not pending([jit], settings).runs
    assert not pending([eager], settings).runs


def test_a_loop_over_run_reads_the_records_of_one_model(copied, monkeypatch):
    """Another model's record, here a damaged one, is not opened; tables that do not change are not written."""
    _, settings, _ = copied
    other = settings.results_dir / "records" / "digits" / "other.eager.readme.fp32.json"
    other.write_text("damaged")
    options = {"model": "tiny", "protocol": "readme", "device": "cpu", "solver": "fast", "rerun": True}
    options |= {"results_dir": settings.results_dir, "cache_dir": settings.cache_dir}
    read = []
    real = probe.records.record.read_record
    monkeypatch.setattr(probe.records.record, "read_record", lambda path: read.append(Path(path).name) or real(path))
    probe.run("digits", **options)
    assert read
    assert not [name for name in read if not name.startswith("tiny.eager.")]
    table = settings.results_dir / "tables" / "tiny.eager.csv"
    os.utime(table, ns=(1, 1))
    probe.run("digits", **options)
    assert table.stat().st_mtime_ns == 1


PROTOCOL = """name = "quick-{i}"
title = "one value of C"
feature_point = "projected"
grid = [{C}]
coarse_step = 1
max_iter = 20
tol = 1e-3
source = "this test"
"""


@pytest.mark.slow
def test_a_grid_that_is_killed_again_and_again_does_every_run_once(tmp_path):
    """20 quick runs, killed as the kernel kills at 10 random moments, then repeated until done."""
    command = [sys.executable, "-m", "probe", "run", "--dataset", "digits", "--device", "cpu", "--offline"]
    command += ["--model", "tiny", "--model", "random:tiny"]
    command += ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    for i in range(10):
        path = tmp_path / f"quick-{i}.toml"
        path.write_text(PROTOCOL.format(i=i, C=0.01 * (i + 1)))
        command += ["--protocol", str(path)]
    folder = tmp_path / "results" / "records" / "digits"
    rng, written = random.Random(0), {}

    def look():
        """Compare the records with those seen before: none is written again."""
        now = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.json")}
        assert written.items() <= now.items()
        written.update(now)

    for _ in range(10):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted, before = len(written) + rng.randint(0, 2), time.monotonic()
        while process.poll() is None and len(list(folder.glob("*.json"))) < wanted:
            time.sleep(0.01)
        time.sleep(min(rng.random() / 5, time.monotonic() - before))
        process.send_signal(signal.SIGKILL)
        process.wait()
        look()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    num_before = len(written)
    look()
    assert len(written) == len(read_records(tmp_path / "results")) == 20
    assert f"skipped {num_before} of 20 runs" in done.stderr
    assert done.stdout.count("| digits") == 20
