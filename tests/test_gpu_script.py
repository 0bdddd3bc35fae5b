"""`benchmarks/gpu.py` with tiny sizes on the CPU, so that it works when a GPU is available."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = (
    *("machine", "solver-paper", "solver-imagenet-768", "tests", "extraction-ViT-B-32"),
    *("solver-equal", "ray", "plan"),
)


def run(out, *options):
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--out", str(out), "--quick", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def figures(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Return the folder that the script has written to."""
    out = tmp_path_factory.mktemp("out")
    done = run(out, "--device", "cpu", "--minutes", "30")
    (page,) = out.glob("gpu-*.md")
    assert done.returncode == 0, done.stdout + done.stderr + page.read_text()
    return out


@pytest.mark.slow
@pytest.mark.ray  # a step starts Ray
def test_every_step_writes_figures_and_ends(trial):
    for step in STEPS:
        lines = figures(trial / f"{step}.jsonl")
        assert lines[-1]["outcome"] == "done", lines[-1]
        assert any(line.get("row") or (step == "ray" and "note" in line) for line in lines), step
    tests, *distances = (line["row"] for line in figures(trial / "tests.jsonl") if "row" in line)
    assert tests["tests"] > 40
    assert tests["failures"] == tests["errors"] == tests["skipped"] == 0
    assert len(distances) == 18  # three models, three precisions and two modes


@pytest.mark.slow
@pytest.mark.ray
def test_the_page_has_all_steps_and_says_that_it_is_a_trial(trial):
    (page,) = (path.read_text() for path in trial.glob("gpu-*.md"))
    assert all(f"\n## {step}\n" in page for step in STEPS)
    assert "This is a trial" in page


@pytest.mark.slow
def test_a_step_that_fails_is_listed_with_the_end_of_its_output(tmp_path):
    done = run(tmp_path, "--device", "nowhere", "--only", "plan")
    (page,) = (path.read_text() for path in tmp_path.glob("gpu-*.md"))
    assert done.returncode == 1
    assert "| plan | " in page
    assert "unknown device 'nowhere'" in page


def test_a_step_without_time_is_not_started(tmp_path):
    """The page lists the step, so that readers know which figures are missing."""
    done = run(tmp_path, "--device", "cpu", "--only", "plan", "--minutes", "0.1")
    assert done.returncode == 1
    assert (tmp_path / "gpu-unknown.md").read_text().count("| no time was left |") == 2  # also `machine`
