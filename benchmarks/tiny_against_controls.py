"""Compare the projected features of `tiny` with raw pixels and with random weights, under the protocol `readme`.

    python benchmarks/tiny_against_controls.py --data-dir ~/.cache/probe/data > results/tiny_against_controls.md

The scores of `tiny` and `random:tiny` come from the records in `results/`. Raw pixels are fitted on the same splits.
"""

from __future__ import annotations

import argparse

import numpy as np

import probe
from probe.datasets.images import ImageDataset
from probe.leaderboard.tables import markdown_table
from probe.specs import DEFAULT_SOLVER, SPLITS

DATASETS = ("digits", "fashion_mnist")
MODELS = ("random:tiny", "tiny")


def raw_pixels(images: ImageDataset) -> probe.Features:
    """Return the grey values of the source images, in [0, 1], as features without a model."""
    rows = [np.asarray(images[i][0].convert("L"), dtype=np.float32).ravel() / 255 for i in range(len(images))]
    return probe.Features(np.stack(rows), images.labels)


def percent(score: float, *, converged: bool) -> str:
    """Return a score as text with two decimals, and with a star if the fit did not converge."""
    return f"{100 * score:.2f}{'' if converged else ' *'}"


def main() -> None:
    """Fit raw pixels, read the other scores from records, and print a table."""
    parser = argparse.ArgumentParser(description="compare raw pixels, random weights and tiny under one protocol")
    parser.add_argument("--data-dir", help="folder of datasets, as for probe run")
    parser.add_argument("--results-dir", default="results", help="folder of records [results]")
    args = parser.parse_args()
    found = {
        (r.dataset, r.model): r.result
        for r in probe.read_records(args.results_dir)
        if r.result is not None and (r.protocol, r.mode, r.solver) == ("readme", "eager", DEFAULT_SOLVER)
    }
    rows = []
    for dataset in DATASETS:
        splits = (raw_pixels(probe.open_split(dataset, name, data_dir=args.data_dir)) for name in SPLITS)
        train, val, test = splits
        pixels = probe.fit_probe(train=train, val=val, test=test, protocol="readme")
        cells = [dataset, percent(pixels.score, converged=pixels.converged)]
        for model in MODELS:
            result = found[dataset, model]
            cells.append(percent(result.score, converged=result.converged))
        rows.append(cells)
    print(markdown_table(("dataset", "raw pixels, %", "random:tiny, %", "tiny, %"), rows), end="")
    if any(cell.endswith("*") for cells in rows for cell in cells):
        print("\n\\* the final fit did not converge")


if __name__ == "__main__":
    main()
