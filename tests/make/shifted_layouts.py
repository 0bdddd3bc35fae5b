"""Miniatures of ImageNet, its further test sets and the further test sets of CIFAR-10, in the layouts of their makers.

ImageNet has the four classes `WNIDS`, one colour each. Images of further test sets have the colour of their class, or
of another class where the probe should be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from make.images import write_image

from probe.datasets import get_dataset
from probe.specs import DatasetSpec, Subset

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")  # the first classes of ImageNet
NAMES = ("tench", "goldfish", "great white shark", "tiger shark")
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30))

IMAGENET = """
name = "mini"
num_classes = 4
val_fraction = 0.34
class_names = [{names}]
subsets = [{{ name = "train" }}, {{ name = "test" }}]
tests = [{tests}]

[[sources]]
form = "folder"
location = "./imagenet"
subsets = {{ train = {{ folder = "train" }}, test = {{ folder = "val" }} }}
"""
FURTHER = """
name = "{name}"
subsets = [{{ name = "test" }}]
{fields}

[[sources]]
form = "folder"
location = "./{folder}"
subsets = {{ test = {{ folder = "." }} }}
options = {{ {options} }}
"""


def write_imagenet(root: Path, tests: Sequence[str] = ()) -> str:
    """Write six training and three validation images of each class, and return the path of a TOML file."""
    number = 0
    for label, wnid in enumerate(WNIDS):
        for i in range(6):
            write_image(root / "imagenet/train" / wnid / f"{wnid}_{i}.JPEG", COLOURS[label])
        for _ in range(3):
            number += 1
            write_image(root / "imagenet/val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", COLOURS[label])
    path = root / "mini.toml"
    names = ", ".join(map(json.dumps, NAMES))
    path.write_text(IMAGENET.format(names=names, tests=", ".join(f'"./{name}.toml"' for name in tests)))
    return str(path)


def write_further(
    root: Path,
    name: str,
    folder: str,
    colours: Mapping[str, Sequence[int]],
    *,
    fields: str = "",
    options: str = "",
    suffix: str = ".jpg",
) -> str:
    """Write a further test set and its TOML file, and return its path.

    Args:
        root: the data folder.
        name: name of the test set.
        folder: its folder below `root`.
        colours: for each class folder, the index in `COLOURS` of each of its images.
        fields: lines of the TOML file.
        options: options of its source.
        suffix: suffix of the images.
    """
    for class_name, chosen in colours.items():
        for i, k in enumerate(chosen):
            write_image(root / folder / class_name / f"{i}{suffix}", COLOURS[k])
    path = root / f"{name}.toml"
    path.write_text(FURTHER.format(name=name, folder=folder, fields=fields, options=options))
    return str(path)


def shrink(name: str, size: int, num_classes: int | None) -> DatasetSpec:
    """Return an entry of the catalogue of further test sets with the sizes of a miniature."""
    return replace(get_dataset(name), subsets=(Subset("test", size),), num_classes=num_classes)


def write_objectnet(root: Path) -> None:
    """Write three classes of ObjectNet, of which ImageNet has two: one of its classes is two classes of ImageNet."""
    top = root / "objectnet-1.0"
    for folder, k in (("air_freshener", 0), ("big_fish", 1), ("tench_folder", 3)):
        write_image(top / "images" / folder / "a.png", COLOURS[k])
    (top / "mappings").mkdir()
    files = {
        "folder_to_objectnet_label.json": {
            "air_freshener": "Air freshener",
            "big_fish": "Big fish",
            "tench_folder": "Tench",
        },
        "objectnet_to_imagenet_1k.json": {"Big fish": "great white shark; tiger shark", "Tench": "tench, Tinca tinca"},
        "pytorch_to_imagenet_2012_id.json": {"0": 2, "1": 0, "2": 1, "3": 3},  # label -> id of the challenge
    }
    for name, content in files.items():
        (top / "mappings" / name).write_text(json.dumps(content))
    names = ["goldfish", "great white shark", "tench, Tinca tinca", "tiger shark"]  # in the order of the ids
    (top / "mappings" / "imagenet_to_label_2012_v2").write_text("".join(f"{name}\n" for name in names))


def write_cifar10_shifts(root: Path, labels: Sequence[int]) -> np.ndarray:
    """Write the files of CIFAR-10.1 and CIFAR-10.2, with the same images, and return the images."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8)
    for folder in ("cifar10.1", "cifar10.2"):
        (root / folder).mkdir()
    np.save(root / "cifar10.1/cifar10.1_v6_data.npy", images)
    np.save(root / "cifar10.1/cifar10.1_v6_labels.npy", np.array(labels, np.int32))
    np.savez(
        root / "cifar10.2/cifar102_test.npz",
        images=images,
        labels=np.array(labels, np.int64),
        label_names=np.array(["airplane", None], dtype=object),  # a pickle, as in the published file
    )
    return images
