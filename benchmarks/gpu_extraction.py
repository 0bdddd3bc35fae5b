"""Extraction on a GPU, compared with the reference's loop and open_clip: the steps `extraction-*` of `gpu.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extraction import Ours, cosine
from gpu_step import Step
from photos import write_photos
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder

from probe.models import get_model
from probe.models.loading import load_encoder, read_weights
from probe.models.openai import save_archive
from probe.models.towers import CLIP
from probe.specs import Architecture

README_BATCH = 100  # batch size of the loop in the reference's README
# Precision and mode of the encoders, the most interesting first, because a step may run out of time.
WAYS = (
    *(("fp16", "eager"), ("fp16", "jit"), ("bf16", "eager")),
    *(("fp16", "compiled"), ("bf16", "jit"), ("bf16", "compiled")),
)


@contextmanager
def archive(step: Step, model: str) -> Iterator[str]:
    """Write random weights of a model as an archive, which loads in less time than weights are drawn."""
    spec = get_model(f"random:{model}")
    assert spec.architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        save_archive(CLIP(spec.architecture).to(step.device), path)  # traced on the device: fp16 is slow on many CPUs
        yield str(path)


class InMemory(Dataset[tuple[Any, int]]):
    """Decoded images in memory, as often as needed; with a transform as torchvision's datasets have one."""

    name, is_thread_safe = "memory", True

    def __init__(self, images: list[Image.Image], n: int, transform: Callable[[Any], Any] | None = None) -> None:
        self.images, self.n, self.transform = images, n, transform

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = self.images[i % len(self.images)]
        return image if self.transform is None else self.transform(image), i % 2


def extraction(step: Step, model: str, n: int) -> None:
    """Measure images per second: inside the model, and of whole loops over files and over images in memory."""
    model = "tiny" if step.quick else model
    architecture = get_model(model).architecture
    assert architecture is not None
    n, few = (16, 8) if step.quick else (n, 512)  # images, and images of the slow loops
    with archive(step, model) as path, tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), n, (64, 48) if step.quick else (640, 480))
        side = architecture.image_resolution
        paths = sorted(Path(folder).rglob("*.jpg"))[:16]
        decoded = [Image.open(file).convert("RGB").resize((side, side)) for file in paths]
        loops = dict(other_loops(step, path, architecture))
        compare_loops(step, path, Path(folder), decoded, loops, n=n, few=few)
        compare_towers(step, path, architecture, loops)


@dataclass(frozen=True)
class Loop:
    """The loop of the reference's README with a model and a transform."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    transform: Callable[[Image.Image], torch.Tensor]
    device: str
    dtype: torch.dtype

    def run(self, dataset: Dataset[Any]) -> np.ndarray:
        """Return the features of a dataset whose images are transformed."""
        with torch.no_grad():
            batches = DataLoader(dataset, batch_size=README_BATCH)
            found = [self.encode(images.to(self.device, self.dtype)) for images, _ in batches]
            return torch.cat(found).float().cpu().numpy()


def other_loops(step: Step, path: str, architecture: Architecture) -> Iterator[tuple[str, Loop]]:
    """Yield the reference's loop and open_clip's, with the same weights, if their packages are installed."""
    weights = read_weights(get_model(path)).state_dict
    dtype = torch.float16 if step.is_cuda else torch.float32
    try:
        from clip.clip import _transform
        from clip.model import build_model
    except ImportError as err:
        step.note(f"the reference was not measured, because clip-anytorch cannot be imported: {err}")
    else:
        theirs = build_model({name: tensor.clone() for name, tensor in weights.items()}).to(step.device)
        theirs = theirs if step.is_cuda else theirs.float()
        yield "reference", Loop(theirs.encode_image, _transform(architecture.image_resolution), step.device, dtype)
    try:
        import open_clip
    except ImportError as err:
        step.note(f"open_clip was not measured, because it cannot be imported: {err}")
        return
    vision = {
        "image_size": architecture.image_resolution,
        "layers": architecture.vision_layers,
        "width": architecture.vision_width,
        "patch_size": architecture.vision_patch_size,
        "head_width": architecture.vision_head_width,
    }
    text = {
        "context_length": architecture.context_length,
        "vocab_size": architecture.vocab_size,
        "width": architecture.transformer_width,
        "heads": architecture.transformer_heads,
        "layers": architecture.transformer_layers,
    }
    half = dtype if step.is_cuda else None  # as `open_clip.create_model` does for the precision fp16
    other = open_clip.CLIP(architecture.embed_dim, vision, text, quick_gelu=True, cast_dtype=half)
    other.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    other.eval().to(step.device)
    if half is not None:
        open_clip.model.convert_weights_to_lp(other, half)
    transform = open_clip.image_transform(architecture.image_resolution, is_train=False)
    yield "open_clip", Loop(other.encode_image, transform, step.device, dtype)


def compare_loops(
    step: Step, path: str, folder: Path, decoded: list[Image.Image], loops: dict[str, Loop], *, n: int, few: int
) -> None:
    """Measure the loops over JPEG files and over images in memory, from images to features in an array."""
    rates: dict[str, float] = {}
    features: dict[str, np.ndarray] = {}

    def add(name: str, source: str, num: int, run: Callable[[], np.ndarray], batch: int) -> None:
        started = time.perf_counter()
        found = run()
        rate = num / (time.perf_counter() - started)
        base, same = rates.setdefault(source, rate), features.setdefault(source, found)
        step.add(
            f"From images to features, fp16 on a GPU; {len(decoded)} distinct images",
            way=name,
            images=source,
            **{"number of images": num, "batch": batch, "images a second": rate, "times the first way": rate / base},
            **{"1 - smallest cosine with the first way": 1 - cosine(found[:few], same[:few])},
            **({"idle share of the device": run.meter.describe().device_idle} if isinstance(run, Ours) else {}),
        )

    sources = {"JPEG files": None, "memory": decoded}
    for name, loop in loops.items():
        for source, images in sources.items():
            if images is None:
                whole: Dataset[Any] = ImageFolder(folder, transform=loop.transform)
            else:
                whole = InMemory(images, n, loop.transform)
            loop.run(Subset(whole, range(min(few, README_BATCH))))  # to warm up
            add(name, source, few, partial(loop.run, Subset(whole, range(few))), README_BATCH)
    for numbers in ("auto", "bf16"):
        ours = Ours(path, folder, step.device, precision=numbers)
        files = ours.images
        for source, images in sources.items():
            ours.images = files if images is None else InMemory(images, n)
            ours()  # to warm up
            name = "probe" if numbers == "auto" else f"probe, {numbers}"
            add(name, source, n, ours, ours.cell.batch_size)


def compare_towers(step: Step, path: str, architecture: Architecture, loops: dict[str, Loop]) -> None:
    """Measure images per second inside the models, for pixels that are on the device."""
    batches = (1, 2) if step.quick else (256, 64, 1024)
    side = architecture.image_resolution

    def add(way: str, batch: int, run: Callable[[], object]) -> None:
        row = {"way": way, "batch": batch}
        try:
            row["images a second"] = batch / seconds_of(step, run, least=0 if step.quick else 0.5)
        except Exception as err:  # too little memory, or a mode that this GPU or torch does not support
            row["images a second"] = f"{type(err).__name__}: {str(err).splitlines()[0][:80]}"
        step.add("Inside the image tower, pixels on the device", **row, **step.memory())

    for name, loop in loops.items():
        for batch in batches:
            images = torch.zeros(batch, 3, side, side, dtype=loop.dtype, device=step.device)
            add(name, batch, torch.no_grad()(partial(loop.encode, images)))
    for numbers, mode in WAYS:
        if step.quick and mode == "compiled":
            continue  # compiling takes longer than all else
        for batch in batches:
            if mode == "compiled" or batch == batches[0]:  # a compiled encoder has one batch size
                jit, compiled = mode == "jit", mode == "compiled"
                encoder = load_encoder(path, jit=jit, device=step.device, precision=numbers, compiled=compiled)
            # In memory, channels come last, as Pillow has them.
            pixels = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=step.device).permute(0, 3, 1, 2)
            add(f"probe, {numbers}, {mode}", batch, partial(encoder.encode, pixels, wait=False))


def seconds_of(step: Step, run: Callable[[], object], *, least: float) -> float:
    """Return the seconds of a call, the mean over calls that take `least` seconds together, after three to warm up."""
    for _ in range(3):
        run()
    step.wait()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < least or calls < 3:
        run()
        calls += 1
        if calls % 4 == 0:
            step.wait()  # the program must not run far ahead of the device
    step.wait()
    return (time.perf_counter() - started) / calls
