"""Compare the speed and the features of models of timm and transformers with a plain loop of their own library.

    python benchmarks/families.py > results/speed/families.md
    python benchmarks/families.py --images 16 --rounds 2      # a quick look

The weights are random. Both loops read the same images from memory, preprocess and encode them in batches, and
alternate in one process. Our loop is the extraction of `probe run`, which also checks that features are finite.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image

from probe.environment import describe, package_version
from probe.features.passes import extract_features
from probe.models.encoder import ImageEncoder
from probe.models.loading import load_encoder

# These ship incomplete types.
timm: Any = import_module("timm")
transformers: Any = import_module("transformers")

Loop = Callable[[Sequence[Image.Image]], np.ndarray]
BATCH = 16
PACKAGES = ("torch", "timm", "transformers")
TIMM = ("resnet18", "vit_small_patch32_224", "mobilenetv3_large_100")
SIZE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
# Configuration and image processor of each model of transformers. The features are the pooled output.
TRANSFORMERS = {
    "dinov2": (transformers.Dinov2Config(**SIZE, image_size=224), transformers.BitImageProcessor),
    "convnext": (transformers.ConvNextConfig(), transformers.ConvNextImageProcessor),
    "siglip_vision_model": (transformers.SiglipVisionConfig(**SIZE, image_size=224), transformers.SiglipImageProcessor),
}


class InMemory(list[tuple[Image.Image, int]]):
    """Labelled images in memory, which several threads may read."""

    is_thread_safe = True


def draw_images(n: int) -> list[Image.Image]:
    """Return n images of 500 x 375 pixels."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)) for _ in range(n)]


def our_loop(encoder: ImageEncoder) -> Loop:
    """Return the loop of this package."""

    def encode(images: Sequence[Image.Image]) -> np.ndarray:
        features = extract_features(encoder, InMemory((image, 0) for image in images), batch_size=BATCH)
        assert features.pre_projection is not None
        return features.pre_projection

    return encode


def timm_loops(name: str) -> tuple[Loop, Loop]:
    """Return our loop and the loop of timm for a model with the same random weights."""
    ours = our_loop(load_encoder(f"random:timm:{name}", device="cpu"))
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    @torch.inference_mode()
    def theirs(images: Sequence[Image.Image]) -> np.ndarray:
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        return torch.cat([model(torch.stack([transform(image) for image in batch])) for batch in batches]).numpy()

    return ours, theirs


def transformers_loops(name: str) -> tuple[Loop, Loop]:
    """Return our loop and the loop of transformers for a model with the same random weights."""
    config, processor_type = TRANSFORMERS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        processor_type().save_pretrained(folder)
        encoder = load_encoder(f"transformers:{folder}", device="cpu")
        model = transformers.AutoModel.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def theirs(images: Sequence[Image.Image]) -> np.ndarray:
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        outputs = [model(**processor(list(batch), return_tensors="pt")) for batch in batches]
        return torch.cat([output.pooler_output for output in outputs]).numpy()

    return our_loop(encoder), theirs


def measure(loops: tuple[Loop, Loop], images: Sequence[Image.Image], rounds: int) -> list[list[float]]:
    """Return the seconds of each round of both loops, which alternate."""
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for own, loop in zip(seconds, loops, strict=True):
            started = time.perf_counter()
            loop(images)
            own.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure, and print a page of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    images, machine = draw_images(args.images), describe("cpu")
    print("# Speed of models of timm and transformers\n")
    print(f"`python benchmarks/families.py --images {args.images} --rounds {args.rounds}`: {machine.cpu}, ", end="")
    print(f"{machine.torch_threads} threads, {', '.join(f'{p} {package_version(p)}' for p in PACKAGES)}.")
    print("Random weights, fp32. The ratio is the time of the library's loop by ours, with its range.\n")
    print("| model | ours, img/s | library, img/s | ratio | largest relative difference of features |")
    print("| --- | --- | --- | --- | --- |")
    for family, names, make in (("timm", TIMM, timm_loops), ("transformers", TRANSFORMERS, transformers_loops)):
        for name in names:
            loops = make(name)
            ours, theirs = (loop(images) for loop in loops)  # also warms up
            difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
            seconds = measure(loops, images, args.rounds)
            ratios = [b / a for a, b in zip(*seconds, strict=True)]
            rates = [f"{len(images) / statistics.median(own):.1f}" for own in seconds]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {family}: {name} | {' | '.join(rates)} | {spread} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
