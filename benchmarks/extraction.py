"""Extraction against the reference's loop, open_clip and transformers, on the same images, in turn, in one process.

    python benchmarks/extraction.py > results/speed/extraction.md          # some 10 minutes on 2 cores
    python benchmarks/extraction.py --device cuda > results/speed/extraction-GPU.md

Needs clip-anytorch (OpenAI's loader as a package), which needs setuptools<81. Weights are random and of true size: the
same state dict for the reference and for probe. Photos are stood in for by noise saved as JPEG, 640 x 480 pixels. Every
contender takes images on disk to features in an array, with a loaded model and a list of files; probe's way includes
its feature store, which is empty each time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from photos import write_photos
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from probe.datasets.opening import open_dataset
from probe.environment import describe
from probe.features.chunks import Work
from probe.features.encode import Meter
from probe.features.extraction import Session, find_entries
from probe.features.passes import fill
from probe.features.store import find
from probe.grid import plan
from probe.models import get_model
from probe.models.loading import load_encoder, read_weights
from probe.progress import Progress

ROUNDS = 4
IMAGES = {"ViT-B/32": 128, "RN50": 64}  # on the CPU; times GPU_TIMES on a GPU
GPU_TIMES = 64
READINGS = 20
README_BATCH = 100  # of the loop in the reference's README


def reference(model: str, root: Path, device: str) -> Callable[[], np.ndarray]:
    """The loop of the reference's README, with the reference's model and transform."""
    from clip.clip import _transform
    from clip.model import build_model

    state_dict = {
        name: tensor.clone() for name, tensor in read_weights(get_model(f"random:{model}")).state_dict.items()
    }
    loaded = build_model(state_dict).to(device)
    if device == "cpu":
        loaded.float()
    dataset = ImageFolder(root, transform=_transform(loaded.visual.input_resolution))

    def run() -> np.ndarray:
        found = []
        with torch.no_grad():
            for images, _ in DataLoader(dataset, batch_size=README_BATCH):
                found.append(loaded.encode_image(images.to(device)))
        return torch.cat(found).cpu().numpy()

    return run


def open_clip_loop(model: str, root: Path, device: str) -> Callable[[], np.ndarray]:
    """open_clip's model and transform, in the same loop."""
    import open_clip

    name = {"ViT-B/32": "ViT-B-32-quickgelu", "RN50": "RN50-quickgelu"}[model]
    loaded, _, preprocess = open_clip.create_model_and_transforms(name, device=device)
    dataset = ImageFolder(root, transform=preprocess)
    loaded.eval()

    def run() -> np.ndarray:
        with torch.no_grad():
            batches = DataLoader(dataset, batch_size=README_BATCH)
            return torch.cat([loaded.encode_image(images.to(device)) for images, _ in batches]).cpu().numpy()

    return run


def transformers_loop(model: str, root: Path, device: str) -> Callable[[], np.ndarray]:
    """The model of transformers at its defaults, which are those of ViT-B/32, in the same loop."""
    from clip.clip import _transform
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    assert model == "ViT-B/32"
    loaded = CLIPVisionModelWithProjection(CLIPVisionConfig()).to(device).eval()
    dataset = ImageFolder(root, transform=_transform(224))

    def run() -> np.ndarray:
        with torch.no_grad():
            batches = DataLoader(dataset, batch_size=README_BATCH)
            return torch.cat([loaded(images.to(device)).image_embeds for images, _ in batches]).cpu().numpy()

    return run


class Ours:
    """probe's way, from images on disk to the feature store and out of it again."""

    def __init__(self, model: str, root: Path, device: str, *, precision: str = "auto", compiled: bool = False) -> None:
        (spec,) = plan([f"folder:{root}"], [f"random:{model}"], device=device, precision=precision, compiled=compiled)
        self.images = open_dataset(spec.dataset).subsets["all"]
        self.cell = find_entries(spec, Session())["all"]
        self.encoder = load_encoder(spec.model, device=device, precision=precision, compiled=compiled)
        self.about: dict[str, float] = {}

    def __call__(self) -> np.ndarray:
        """Extract once; the features."""
        with tempfile.TemporaryDirectory() as cache:
            meter, work = Meter(), Work(Path(cache), self.cell)
            fill(
                self.images,
                [self.encoder],
                [work],
                batch_size=self.cell.batch_size,
                meter=meter,
                progress=Progress(is_shown=False),
            )
            self.about = meter.describe()
            work.finish(encoder={}, extraction=self.about)
            found = find(Path(cache), self.cell)
            assert found is not None
            return np.array(found.features.x)


def compare(model: str, device: str) -> None:
    """Rows of a table: each contender's rate, and its ratio to the reference's in the same round."""
    n = IMAGES[model] * (GPU_TIMES if device != "cpu" else 1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root, n, (640, 480))
        contenders: dict[str, Callable[[], np.ndarray]] = {
            "reference": reference(model, root, device),
            "open_clip": open_clip_loop(model, root, device),
        }
        if model == "ViT-B/32":
            contenders["transformers"] = transformers_loop(model, root, device)
        ours = {"probe": Ours(model, root, device), "probe, bf16": Ours(model, root, device, precision="bf16")}
        if device == "cpu":
            ours["probe, compiled"] = Ours(model, root, device, compiled=True)
        contenders |= ours
        features = {name: run() for name, run in contenders.items()}  # also what warms everything up
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        abouts: dict[str, list[dict[str, float]]] = {name: [] for name in ours}
        product: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for _ in range(ROUNDS):
            for precision, found in product.items():
                found.append(product_rate(precision))
            for name, run in contenders.items():
                started = time.perf_counter()
                run()
                rates[name].append(n / (time.perf_counter() - started))
                if name in ours:
                    abouts[name].append(ours[name].about)
            print(".", end="", file=sys.stderr, flush=True)
    print(f"## {model}, {n} images\n")
    print("| way | images a second | times the reference | cosine | inside the model | not the model | matrix rate |")
    print("| --- | --------------- | ------------------- | ------ | ---------------- | ------------- | ----------- |")
    flops = get_model(model).profile.flops
    for name, found in rates.items():
        columns = [name, f"{statistics.median(found):.1f}", spread(found, rates["reference"])]
        same_weights = name == "reference" or name in ours
        columns.append(f"{cosine(features[name], features['reference']):.6f}" if same_weights else "")
        if name in ours:
            inside = [about["images"] / about["encode_seconds"] for about in abouts[name]]
            whole = [n / rate for rate in found]
            around = [1 - about["encode_seconds"] / total for about, total in zip(abouts[name], whole, strict=True)]
            limit = product["bf16" if "bf16" in name else "fp32"]
            columns += [f"{statistics.median(inside):.1f}", f"{100 * statistics.median(around):.1f} %"]
            columns.append(spread([rate * flops for rate in inside], limit) if device == "cpu" else "")
        print("| " + " | ".join(columns) + " |")
    if device == "cpu":
        print(
            f"\nA product of 1600 x 768 with 768 x 3072: {gflops(product['fp32'])} GFLOP/s in fp32 by torch, ", end=""
        )
        print(f"{gflops(product['bf16'])} in bf16.")
    print()


def spread(found: list[float], base: list[float]) -> str:
    """Ratio of two series of one rhythm: the median, and the smallest and largest."""
    ratios = [a / b for a, b in zip(found, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def gflops(found: list[float]) -> str:
    """A rate and its spread."""
    return f"{statistics.median(found) / 1e9:.0f} ({min(found) / 1e9:.0f} to {max(found) / 1e9:.0f})"


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest cosine of two features of one image."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def product_rate(precision: str) -> float:
    """Operations a second of a plain product of the shape of the largest in ViT-B/32, at 32 images."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = torch.randn(1600, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    torch.nn.functional.linear(a, b)
    started, times = time.perf_counter(), 20
    for _ in range(times):
        torch.nn.functional.linear(a, b)
    return times * 2 * 1600 * 768 * 3072 / (time.perf_counter() - started)


def print_shares(device: str) -> None:
    """What a longer run of ViT-B/32 spends on what: the store's last steps count less there."""
    n = 512 * (GPU_TIMES if device != "cpu" else 1)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), n, (640, 480))
        ours = Ours("ViT-B/32", Path(folder), device)
        shares: dict[str, list[float]] = {"reading": [], "the store and bookkeeping": []}
        for _ in range(3):
            started = time.perf_counter()
            ours()
            whole = time.perf_counter() - started
            read, encode = ours.about["read_seconds"], ours.about["encode_seconds"]
            for name, seconds in zip(shares, (read, whole - read - encode), strict=True):
                shares[name].append(100 * seconds / whole)
    subsets = [
        f"{name} takes {statistics.median(found):.1f} % ({min(found):.1f} to {max(found):.1f})"
        for name, found in shares.items()
    ]
    print(f"Of {n} images with ViT-B/32, in 3 runs: {', '.join(subsets)}; all else is the model.\n")


def print_reading() -> None:
    """What reading costs beyond Pillow's own decoding and resizing, on one core, in turn."""
    from probe.features.reading import Reader

    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), 64, (640, 480))
        images = open_dataset(f"folder:{folder}").subsets["all"]
        reader = Reader(images, load_encoder("random:ViT-B/32", device="cpu").preprocess)
        paths = [Path(folder) / name for name in images.ids]
        resize, crop = Resize(224, interpolation=InterpolationMode.BICUBIC), CenterCrop(224)

        def bare() -> None:
            for path in paths:
                with Image.open(path) as image:
                    crop(resize(image))

        times: dict[str, list[float]] = {"bare": [], "reader": []}
        for _ in range(READINGS):
            started = time.process_time()  # of this process alone, whoever else is on the machine
            bare()
            middle = time.process_time()
            reader[range(len(paths))]
            times["bare"].append(1000 * (middle - started) / len(paths))
            times["reader"].append(1000 * (time.process_time() - middle) / len(paths))
    for how, of in (("median", statistics.median), ("least", min)):
        print(
            f"Reading a photo of 640 x 480 to 224 x 224 takes {of(times['reader']):.2f} ms of one core, the {how} of "
            f"{READINGS} rounds of {len(paths)} images; Pillow's own decoding, resizing and cropping takes in turn "
            f"{of(times['bare']):.2f}."
        )


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    warnings.filterwarnings("ignore")  # of the libraries that are compared with
    print("# Extraction\n")
    name = describe(device)["accelerator"] or f"{torch.get_num_threads()} cores {describe(device)['cpu']}"
    print(f"Made by `python benchmarks/extraction.py` on {name}, torch {torch.__version__}, ", end="")
    print(f"Python {platform.python_version()}.")
    print(f"{ROUNDS} rounds, in turn: medians, and the smallest and largest ratio. *Cosine* is the smallest, with the")
    print(
        "reference's features of the same weights. *Inside the model* counts from pixels to features; *not the model*"
    )
    print("is the rest: reading, the store, bookkeeping. *Matrix rate* is the rate of operations inside the model over")
    print("that of a plain product by torch.\n")
    for model in IMAGES:
        compare(model, device)
    print_shares(device)
    print_reading()


if __name__ == "__main__":
    main()
