"""Print plans (`run --plan`) for large grids, and compare a plan with the true time of a grid.

    python benchmarks/plans.py > results/speed/plans.md

OpenAI's nine models with random weights encode a few images of true size. The plans use the rates in these records.
Then one model runs on more images, and its time is compared with the plan.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from probe.cli.main import main as probe
from probe.environment import describe
from probe.grid import plan
from probe.models import model_names
from probe.runner import run_grid
from probe.settings import Settings

FEW, MORE, SIDE = 8, 160, 375
PLANS = {
    "1,080 runs: the paper's 27 datasets, ten models, two modes, two protocols, on 64 workers like this machine": (
        *("--dataset", "paper", "--model", "all", "--jit", "both", "--protocol", "readme", "--protocol", "clip-paper"),
        *("--device", "cpu", "--plan", "--ray-workers", "64"),
    ),
    "ImageNet and nine models, on 8 workers like this machine": (
        *("--dataset", "imagenet", "--protocol", "readme", "--device", "cpu", "--plan", "--ray-workers", "8"),
        *(subset for name in model_names() if name != "tiny" for subset in ("--model", name)),
    ),
    "The same on 8 GPUs": (
        *("--dataset", "imagenet", "--protocol", "readme", "--device", "cuda", "--plan", "--ray-workers", "8"),
        *(subset for name in model_names() if name != "tiny" for subset in ("--model", name)),
    ),
}


def write_photos(root: Path, n: int) -> str:
    """Write two classes of noise as JPEG, in the size of ImageNet's images."""
    rng = np.random.default_rng(0)
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(n // 2):
            coarse = rng.integers(0, 200, (SIDE // 8, SIDE // 6, 3)) + 20 * label
            image = Image.fromarray(coarse.astype(np.uint8)).resize((SIDE * 4 // 3, SIDE))
            image.save(root / name / f"{i:04}.jpg", quality=90)
    return f"folder:{root}"


def said(options: tuple[str, ...], results: str) -> str:
    """Return the output of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert probe(["run", *options, "--solver", "fast", "--results-dir", results, "--cache-dir", "features"]) == 0
    return out.getvalue()


def main() -> None:
    """Measure rates, make plans, and print a page of Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        few, more = (write_photos(Path(folder, str(n)), n) for n in (FEW, MORE))
        settings = Settings(results_dir=f"{folder}/results", cache_dir=f"{folder}/cache")
        names = [f"random:{name}" for name in model_names() if name != "tiny"]
        for name in ["tiny", *names]:  # one at a time, because the memory of a small machine is not enough for all
            specs = plan([few], [name], protocols=["readme"], device="cpu", batch_size=FEW)
            for record in run_grid(specs, settings=settings):
                rate = next(iter(record.extraction.subsets.values())).encoder_images_per_second
                print(f"{name}: {rate:.2f} img/s", file=sys.stderr)
        # Larger fits, closer to the size of the planned fits.
        list(run_grid(plan(["digits"], ["tiny"], protocols=["readme", "clip-paper"]), settings=settings))
        pages = {title: said(options, f"{folder}/results") for title, options in PLANS.items()}
        (spec,) = plan([more], ["random:ViT-B/32"], protocols=["readme"], device="cpu")
        options = ("--dataset", more, "--model", "random:ViT-B/32", "--protocol", "readme", "--plan", "--json")
        planned = json.loads(said(options, f"{folder}/results"))["models"][0]["extract_seconds"]
        (record,) = run_grid([spec], settings=settings)
    about = describe("cpu")
    print("# Plans\n")
    print(f"Made by `python benchmarks/plans.py` on {about.cpu_count} cores {about.cpu}, ", end="")
    print(f"torch {torch.__version__}, Python {platform.python_version()}.")
    print(f"Rates of models are from {FEW} photos each, with random weights of the true sizes.\n")
    for title, page in pages.items():
        print(f"## {title}\n\n{page}")
    print(
        f"## A plan and a run\n\nFor the features of {MORE} photos under ViT-B/32 the plan says {planned:.1f} s, ",
        end="",
    )
    print(f"by the rate of {FEW}; they took {record.seconds['extract']:.1f} s.")


if __name__ == "__main__":
    main()
