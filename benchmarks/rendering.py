"""Measure rendering of a thousand records: seconds for all files, size of the page, time it takes to sort and filter.

The records are made up and as large as real ones, with outcomes of all test images: 9 models x 27 datasets x 2 modes x
2 protocols. `python benchmarks/rendering.py [DIR]` keeps the results folder in DIR. Sorting and filtering are measured
if playwright and chromium are installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from probe.datasets.catalog import DATASETS
from probe.decoder import decode
from probe.environment import EnvironmentRecord
from probe.models.catalog import MODELS
from probe.probes.protocols import get_protocol
from probe.records.packing import pack
from probe.records.record import write_record
from probe.records.schema import (
    DoneRecord,
    EncoderRecord,
    IntervalRecord,
    ParityRecord,
    ResultRecord,
    SplitRecord,
    SweepRecord,
)
from probe.specs import DatasetSpec, ModelSpec, RunSpec
from probe.stats.intervals import interval
from probe.stats.outcomes import Outcomes, make_outcomes

RENDER = """
import sys, time
from pathlib import Path
started = time.perf_counter()
from probe.leaderboard.derived import write_derived
write_derived(sys.argv[1])
print(time.perf_counter() - started)
assert not {"torch", "sklearn", "scipy.stats"} & set(sys.modules), "something heavy was imported"
"""

# Milliseconds for each sortable column, then for a word typed into the filter of models, layout included.
MEASURE = """() => {
    const time = (act) => {
        const start = performance.now();
        act();
        document.body.offsetHeight;
        return performance.now() - start;
    };
    const buttons = [...document.querySelectorAll(".board:not([hidden]) thead button")];
    const box = document.getElementById("models");
    const type = (text) => { box.value = text; box.dispatchEvent(new Event("input")); };
    return [
        buttons.map((button) => time(() => button.click())),
        ["v", "vi", "vit", ""].map((text) => time(() => type(text))),
    ];
}"""


def random_outcomes(row: DatasetSpec, skill: float, seed: int) -> list[Outcomes]:
    """Return outcomes of a probe of some skill on a test split of true size. Images are equally hard for all models."""
    rng = np.random.default_rng(sum(row.name.encode()))  # the same images for all models
    n = next((subset.size for subset in row.subsets if subset.name == "test"), None) or 3_000
    shared, own = rng.normal(size=n), np.random.default_rng(seed).normal(size=n)
    if row.metric == "voc2007_11pt_map":
        labels = (rng.random((n, 20)) < 0.08).astype(np.int64)
        scores = skill * labels + np.random.default_rng(seed).normal(size=(n, 20))
        return [make_outcomes(row.metric, labels, scores)]
    labels = rng.integers(0, row.num_classes or 10, n)
    if row.metric == "roc_auc":
        margin = skill * (2 * labels - 1) + shared + own
        return [make_outcomes(row.metric, labels, np.stack([0 * margin, margin], axis=1))]
    right = shared + 0.5 * own < skill
    arrays: dict[str, np.ndarray] = {"right": right}
    if row.metric == "mean_top1_top5":
        arrays["among_five"] = right | (shared < skill)
    if row.metric == "mean_per_class":
        arrays["labels"] = labels
    return [Outcomes(row.metric, arrays)] * row.num_folds


def make_record(row: DatasetSpec, model: ModelSpec, protocol: str, *, jit: bool, skill: float, seed: int) -> DoneRecord:
    """Return a record as a run writes it, with made-up numbers."""
    rules = get_protocol(protocol)
    outcomes = random_outcomes(row, skill, seed)
    spec = RunSpec(row, model, rules, jit, "cuda:0", "fp16", 256)
    score = float(np.mean([fold.score() for fold in outcomes]))
    points = [SweepRecord(10.0**e, score - 0.01 * abs(e), n_iter=300, converged=True) for e in range(-6, 7)]
    result = ResultRecord(
        score=score,
        C=rules.grid[len(rules.grid) // 2],
        n_iter=300,
        converged=True,
        gradient_ratio=1e-6,
        num_train=10_000,
        num_test=len(outcomes[0]),
        interval=decode(asdict(interval(outcomes[:1], draws=20)), IntervalRecord),
        outcomes=tuple(map(pack, outcomes)),
        sweep=tuple(points) if len(rules.grid) > 1 else (),
    )
    return DoneRecord(
        spec=spec,
        created="2026-01-01T00:00:00+00:00",
        encoder=EncoderRecord(weights_sha256=model.sha256),
        splits={"test": SplitRecord("ab" * 32, len(outcomes[0]))},
        features={},
        result=result,
        parity=ParityRecord({"projected": 1e-3}, 3, p_value=0.5) if jit else None,
        seconds={"load": 1.0, "extract": 100.0, "fit": 100.0},
        environment=EnvironmentRecord(cpu="made up", packages={"torch": "2.15.0"}),
    )


def write_records(folder: Path) -> int:
    """Write the records of the grid and return their number."""
    models = [model for model in MODELS if model.name != "tiny"]
    rows = [row for row in DATASETS if row.in_paper]
    count = 0
    for i, model in enumerate(models):
        for row in rows:
            for protocol in ("readme", "clip-paper"):
                for jit in (False, True):
                    count += 1
                    skill = 0.8 + 0.1 * i + 0.05 * (protocol == "readme")
                    write_record(make_record(row, model, protocol, jit=jit, skill=skill, seed=count // 2), folder)
    return count


def main() -> None:
    """Make the records, render them in three processes one after another, and print what it took."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        started = time.perf_counter()
        count = write_records(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*.json")) / 1e6
        print(f"{count} records of {size:.0f} MB in all, made up in {time.perf_counter() - started:.0f} s")
        command = [sys.executable, "-c", RENDER, str(folder)]
        seconds = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
        print(f"all tables, leaderboard and page: {', '.join(f'{s:.1f}' for s in seconds)} s, without torch")
        page = folder / "leaderboard.html"
        print(f"the page: {page.stat().st_size / 1e6:.2f} MB")
        measure_page(page.resolve())


def measure_page(page: Path) -> None:
    """Print how long the page takes to sort and to filter in headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or find_spec("playwright") is None:
        print("sorting and filtering: not measured; install playwright and chromium")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page()
        opened.goto(page.as_uri())
        for name, times in zip(("sorting", "filtering"), opened.evaluate(MEASURE), strict=True):
            print(f"{name}: {min(times):.0f} to {max(times):.0f} ms, median {np.median(times):.0f} ms")
        browser.close()


if __name__ == "__main__":
    main()
