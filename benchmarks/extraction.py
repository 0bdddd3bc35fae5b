"""Compare the speed of extraction with the reference's loop, open_clip and transformers on the same images.

    python benchmarks/extraction.py > results/speed/extraction.md          # about 10 minutes on 2 cores
    python benchmarks/extraction.py --device cuda > results/speed/extraction-GPU.md

Needs clip-anytorch (OpenAI's loader as a package), which needs setuptools<81. All contenders alternate in one process.
The weights are random and have the true sizes; the reference and probe use the same state dict. The images are noise
saved as JPEG, 640 x 480 pixels. Every contender starts with a loaded model and a list of files, and ends with features
in an array. The time of probe includes its feature store, which is empty at the start.
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
from probe.features.passes import Pass, PassSettings
from probe.features.reading import LabelledImages, Reader, Request
from probe.features.sidecars import Provenance
from probe.features.store import find
from probe.grid import plan
from probe.models import get_model
from probe.models.loading import load_encoder, read_weights
from probe.progress import Progress
from probe.records.schema import EncoderRecord

ROUNDS = 4
IMAGES = {"ViT-B/32": 128, "RN50": 64}  # on the CPU; multiplied by GPU_TIMES on a GPU
GPU_TIMES = 64
READINGS = 20
README_BATCH = 100  # batch size of the loop in the reference's README


def reference(model: str, root: Path, device: str) -> Callable[[], np.ndarray]:
    """Return the contender with the loop, model and transform of the reference's README."""
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
    """Return the contender with open_clip's model and transform, in the same loop."""
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
    """Return the contender with the default model of transformers, a ViT-B/32, in the same loop."""
    from clip.clip import _transform
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    assert model == "ViT-B/32"
    loaded: torch.nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig())
    loaded.to(device).eval()
    dataset = ImageFolder(root, transform=_transform(224))

    def run() -> np.ndarray:
        with torch.no_grad():
            batches = DataLoader(dataset, batch_size=README_BATCH)
            return torch.cat([loaded(images.to(device)).image_embeds for images, _ in batches]).cpu().numpy()

    return run


class Ours:
    """The contender probe: reads images, writes features to the feature store, and reads the features back."""

    def __init__(self, model: str, root: Path, device: str, *, precision: str = "auto", compiled: bool = False) -> None:
        (spec,) = plan([f"folder:{root}"], [model], device=device, precision=precision, compiled=compiled)
        self.images: LabelledImages = open_dataset(spec.dataset).subsets["all"]
        self.cell = find_entries(spec, Session())["all"]
        self.encoder = load_encoder(spec.model, device=device, precision=precision, compiled=compiled)
        self.meter = Meter()

    def __call__(self) -> np.ndarray:
        """Extract once, and return the features."""
        with tempfile.TemporaryDirectory() as cache:
            work, settings = Work(Path(cache), self.cell), PassSettings(self.cell.batch_size)
            one = Pass(self.images, [self.encoder], [work], settings, Progress(is_shown=False))
            one.run()
            self.meter = one.meter
            work.finish(Provenance(EncoderRecord(), self.meter.describe()))
            found = find(Path(cache), self.cell)
            assert found is not None
            return np.array(found.features.x)


def compare(model: str, device: str) -> None:
    """Print a table with the rate of each contender, and its ratio to the reference's rate in the same round."""
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
        same = f"random:{model}"
        ours = {"probe": Ours(same, root, device), "probe, bf16": Ours(same, root, device, precision="bf16")}
        if device == "cpu":
            ours["probe, compiled"] = Ours(same, root, device, compiled=True)
        contenders |= ours
        features = {name: run() for name, run in contenders.items()}  # also the warm-up
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        encoding: dict[str, list[float]] = {name: [] for name in ours}
        product: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for _ in range(ROUNDS):
            for precision, found in product.items():
                found.append(product_rate(precision))
            for name, run in contenders.items():
                started = time.perf_counter()
                run()
                rates[name].append(n / (time.perf_counter() - started))
                if name in ours:
                    encoding[name].append(ours[name].meter.seconds["encode"])
            print(".", end="", file=sys.stderr, flush=True)
    print(f"## {model}, {n} images\n")
    print("| way | images a second | times the reference | cosine | inside the model | not the model | matrix rate |")
    print("| --- | --------------- | ------------------- | ------ | ---------------- | ------------- | ----------- |")
    profile = get_model(model).profile
    assert profile is not None
    for name, found in rates.items():
        columns = [name, f"{statistics.median(found):.1f}", spread(found, rates["reference"])]
        same_weights = name == "reference" or name in ours
        columns.append(f"{cosine(features[name], features['reference']):.6f}" if same_weights else "")
        if name in ours:
            inside = [n / seconds for seconds in encoding[name]]
            whole = [n / rate for rate in found]
            around = [1 - seconds / total for seconds, total in zip(encoding[name], whole, strict=True)]
            limit = product["bf16" if "bf16" in name else "fp32"]
            columns += [f"{statistics.median(inside):.1f}", f"{100 * statistics.median(around):.1f} %"]
            columns.append(spread([rate * profile.flops for rate in inside], limit) if device == "cpu" else "")
        print("| " + " | ".join(columns) + " |")
    if device == "cpu":
        print(
            f"\nA product of 1600 x 768 with 768 x 3072: {gflops(product['fp32'])} GFLOP/s in fp32 by torch, ", end=""
        )
        print(f"{gflops(product['bf16'])} in bf16.")
    print()


def spread(found: list[float], base: list[float]) -> str:
    """Return the median, smallest and largest ratio of two series with the same rounds, as text."""
    ratios = [a / b for a, b in zip(found, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def gflops(found: list[float]) -> str:
    """Return the median, smallest and largest rate, as text."""
    return f"{statistics.median(found) / 1e9:.0f} ({min(found) / 1e9:.0f} to {max(found) / 1e9:.0f})"


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest cosine between two features of the same image."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def product_rate(precision: str) -> float:
    """Return the operations per second of a matrix product with the largest shape in ViT-B/32, for 32 images."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = torch.randn(1600, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    torch.nn.functional.linear(a, b)
    started, times = time.perf_counter(), 20
    for _ in range(times):
        torch.nn.functional.linear(a, b)
    return times * 2 * 1600 * 768 * 3072 / (time.perf_counter() - started)


def print_shares(device: str) -> None:
    """Print the shares of reading and of the store in a longer run, where the last steps of the store matter less."""
    n = 512 * (GPU_TIMES if device != "cpu" else 1)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), n, (640, 480))
        ours = Ours("random:ViT-B/32", Path(folder), device)
        shares: dict[str, list[float]] = {"reading": [], "the store and bookkeeping": []}
        for _ in range(3):
            started = time.perf_counter()
            ours()
            whole = time.perf_counter() - started
            read, encode = ours.meter.seconds["read"], ours.meter.seconds["encode"]
            for name, seconds in zip(shares, (read, whole - read - encode), strict=True):
                shares[name].append(100 * seconds / whole)
    texts = [
        f"{name} takes {statistics.median(found):.1f} % ({min(found):.1f} to {max(found):.1f})"
        for name, found in shares.items()
    ]
    print(f"Of {n} images with ViT-B/32, in 3 runs: {', '.join(texts)}; all else is the model.\n")


def print_reading() -> None:
    """Print the time of reading an image, and of Pillow's decoding and resizing alone, on one core, alternating."""
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
            started = time.process_time()  # of this process only, so that other processes do not matter
            bare()
            middle = time.process_time()
            reader[Request(0, range(len(paths)), [0])]
            times["bare"].append(1000 * (middle - started) / len(paths))
            times["reader"].append(1000 * (time.process_time() - middle) / len(paths))
    for how, of in (("median", statistics.median), ("least", min)):
        print(
            f"Reading a photo of 640 x 480 to 224 x 224 takes {of(times['reader']):.2f} ms of one core, the {how} of "
            f"{READINGS} rounds of {len(paths)} images; Pillow's own decoding, resizing and cropping takes in turn "
            f"{of(times['bare']):.2f}."
        )


def main() -> None:
    """Measure, and print a page of Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    warnings.filterwarnings("ignore")  # warnings of the other libraries
    print("# Extraction\n")
    about = describe(device)
    name = about.accelerator or f"{torch.get_num_threads()} cores {about.cpu}"
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
