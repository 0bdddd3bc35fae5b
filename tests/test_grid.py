"""Planning of grids, and which runs of a grid are already done. All executors share this code."""

import json
import logging
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from make.colours import write_colours
from make.kills import kill_and_repeat
from make.records import changed

import probe
from probe import grid, runner
from probe.cli.main import main
from probe.errors import ExtraMissingError
from probe.grid import pending, plan
from probe.records.record import read_records, record_path, write_record
from probe.records.schema import SkippedImage
from probe.runner import run_grid
from probe.settings import Settings


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Run `tiny` on a small dataset in both modes, and return runs, settings and records."""
    folder = tmp_path_factory.mktemp("recorded")
    dataset = write_colours(folder)
    specs = plan([dataset], ["tiny"], protocols=["readme"], jit_modes=[False, True], device="cpu", solver="fast")
    settings = Settings(results_dir=folder / "results", cache_dir=folder / "cache", offline=True)
    return specs, settings, list(run_grid(specs, settings))


def dataset_of(settings):
    """Return the name of the dataset of `recorded`."""
    return str(settings.cache_dir.parent / "colours.toml")


@pytest.fixture
def copied(recorded, tmp_path):
    """Return the runs, settings and records in a results folder that belongs to the test."""
    specs, settings, records = recorded
    for record in records:
        write_record(record, tmp_path)
    return specs, replace(settings, results_dir=tmp_path), records


def test_a_repeated_grid_runs_nothing_and_logs_it(copied, caplog, monkeypatch):
    specs, settings, records = copied
    monkeypatch.setattr("probe.runner.run_one", None)
    with caplog.at_level(logging.INFO):
        assert list(run_grid(specs, settings)) == read_records(settings.results_dir)
    assert "skipped 2 of 2 runs: already recorded (use --rerun)" in caplog.text
    assert "different library versions" not in caplog.text
    assert (
        settings.results_dir / "tables" / "tiny.jit.md"
    ).is_file()  # even if the first grid was killed before it wrote its tables
    assert pending(specs, settings, rerun=True).runs == specs
    assert len(records) == 2


def test_the_command_skips_what_is_recorded_and_prints_the_whole_table(copied, caplog, capsys):
    _, settings, records = copied
    command = ["run", "--dataset", dataset_of(settings), "--model", "tiny", "--jit", "both", "--protocol", "readme"]
    command += ["--device", "cpu", "--solver", "fast", "--results-dir", str(settings.results_dir)]
    command += ["--cache-dir", str(settings.cache_dir)]
    with caplog.at_level(logging.INFO):
        assert main(command) == 0
    assert "skipped 2 of 2 runs" in caplog.text
    assert capsys.readouterr().out.count("| colours | tiny  |") == 3  # two scores, and their comparison
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
    assert probe.run(dataset_of(settings), **options).created == marked.created
    again = probe.run(dataset_of(settings), **options, rerun=True)
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
def test_a_run_is_not_done_if_its_record_would_be_different_now(copied, change):
    (eager, _), settings, records = copied
    record_path(records[0], settings.results_dir).unlink()
    write_record(change(records[0]), settings.results_dir)
    assert pending([eager], settings).runs == [eager]


def test_a_record_that_is_older_than_the_version_fields_has_the_first_versions(copied):
    """Extraction still has its first versions, but the solver has given other scores since its first version."""
    (eager, _), settings, (record, _) = copied
    path = write_record(record, settings.results_dir)
    fields = json.loads(path.read_text())
    for name in ("extraction_version", "preprocess_version"):
        del fields["extraction"][name]
    path.write_text(json.dumps(fields))
    assert not pending([eager], settings).runs
    del fields["result"]["probe_version"]
    path.write_text(json.dumps(fields))
    assert pending([eager], settings).runs == [eager]


def test_a_run_is_done_if_a_note_was_corrected(copied):
    (eager, _), settings, _ = copied
    mended = replace(eager, dataset=replace(eager.dataset, notes="mended"))
    assert not pending([mended], settings).runs


def test_runs_with_other_library_versions_are_done_and_the_versions_are_logged(copied, caplog):
    specs, settings, records = copied
    for record in records:
        packages = {**record.environment.packages, "torch": "1.0"}
        write_record(changed(record, "environment.packages", packages), settings.results_dir)
    with caplog.at_level(logging.INFO):
        found = pending(specs, settings)
    assert not found.runs
    assert "2 of them were recorded with different library versions: torch 1.0" in caplog.text


def test_a_run_is_not_done_if_the_weights_of_its_checkpoint_changed(copied, tmp_path, monkeypatch):
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
    """The damaged record of another model is not opened, and unchanged tables are not written."""
    _, settings, _ = copied
    other = settings.results_dir / "records" / "colours" / "other.eager.readme.fp32.json"
    other.write_text("damaged")
    options = {"model": "tiny", "protocol": "readme", "device": "cpu", "solver": "fast", "rerun": True}
    options |= {"results_dir": settings.results_dir, "cache_dir": settings.cache_dir}
    read = []
    real = probe.records.record.read_record
    monkeypatch.setattr(probe.records.record, "read_record", lambda path: read.append(Path(path).name) or real(path))
    probe.run(dataset_of(settings), **options)
    assert read
    assert not [name for name in read if not name.startswith("tiny.eager.")]
    table = settings.results_dir / "tables" / "tiny.eager.csv"
    os.utime(table, ns=(1, 1))
    probe.run(dataset_of(settings), **options)
    assert table.stat().st_mtime_ns == 1


@pytest.mark.slow
def test_a_grid_that_is_killed_again_and_again_does_every_run_once(tmp_path):
    """20 quick runs are killed with SIGKILL at 10 random moments, then repeated until done."""
    rng = random.Random(0)
    # There are up to 180 moments before the first record, later 60 and one for each record. A run has 8 moments.
    kill_and_repeat(tmp_path, lambda seen: rng.randint(1, 90 + seen if seen else 200), num_kills=10)


def test_prompts_of_runs_for_other_machines_must_be_known_here(monkeypatch):
    """The other machines may have open_clip, and would then score a run whose identity lacks its prompts."""
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ExtraMissingError, match="install the extra open-clip"):
        plan(["imagenet"], ["tiny"], protocols=["zero-shot"], device="cpu", elsewhere=True)
    (here,) = plan(["imagenet"], ["tiny"], protocols=["zero-shot"], device="cpu")  # fails alone, with the same reason
    assert not here.prompts
