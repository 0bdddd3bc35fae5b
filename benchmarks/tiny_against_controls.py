"""How much `tiny` adds: its projected features against raw pixels and random weights, under the same probe.

    python benchmarks/tiny_against_controls.py --data-dir ~/.cache/probe/data > results/tiny_against_controls.md

Two probes: `readme` (C = 0.316), and the search over C of `clip-paper` run on the projected features, which gives each
kind of feature the C that suits it. The test split is scored once, after the choice.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import numpy as np

import probe
from probe.datasets.images import ImageDataset
from probe.datasets.opening import SPLITS
from probe.probes.protocols import get_protocol
from probe.tables import markdown_table

PROBES = {
    "C = 0.316": get_protocol("readme"),
    "best C": replace(get_protocol("clip-paper"), name="search", feature_point="projected"),
}


def raw_pixels(images: ImageDataset) -> probe.Features:
    """Grey values of the source image, in [0, 1]: what a probe has without any model."""
    rows = [np.asarray(images[i][0].convert("L"), dtype=np.float32).ravel() / 255 for i in range(len(images))]
    return probe.Features(np.stack(rows), images.labels)


def main() -> None:
    """Measure every pair of dataset and kind of feature, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", action="append", help="repeatable [digits and fashion_mnist]")
    args = parser.parse_args()
    rows = []
    for dataset in args.dataset or ["digits", "fashion_mnist"]:
        splits = {name: probe.open_split(dataset, name, data_dir=args.data_dir) for name in SPLITS}
        features = {"raw pixels": {name: raw_pixels(images) for name, images in splits.items()}}
        for model in ("random:tiny", "tiny"):
            encoder = probe.load_encoder(model, device="cpu")
            features[model] = {name: probe.extract_features(encoder, images) for name, images in splits.items()}
        for kind, parts in features.items():
            cells = [dataset, kind, str(parts["train"].x.shape[1])]
            for title, protocol in PROBES.items():
                result = probe.fit_probe(**parts, protocol=protocol)
                star = "" if result.converged else " *"
                cells.append(f"{100 * result.score:.2f}{star}")
                print(f"{dataset} {kind} {title}: {cells[-1]} at C = {result.C:.4g}", file=sys.stderr)
            rows.append(cells)
    print(markdown_table(("dataset", "features", "width", *(f"{title}, %" for title in PROBES)), rows), end="")
    if any(cell.endswith("*") for cells in rows for cell in cells):
        print("\n\\* the final fit did not converge")


if __name__ == "__main__":
    main()
