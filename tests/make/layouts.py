"""Miniatures of datasets, in the layout on disk that torchvision's classes expect: two classes, four images a split."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

CLASSES = ("alpha", "beta")
LABELS = (0, 1, 0, 1)  # of every split, in the order of its files


def write_image(path: Path, value: int = 0) -> None:
    """A 12 x 10 picture of one colour, red as `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, 30, 60)).save(path)


def food101(root: Path, _: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        listed = {name: [f"{name}/{split}{i}" for i, k in enumerate(LABELS) if CLASSES[k] == name] for name in CLASSES}
        for path in (path for paths in listed.values() for path in paths):
            write_image(root / "food-101" / "images" / f"{path}.jpg")
        (root / "food-101" / "meta").mkdir(exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))


def dtd(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = [f"{CLASSES[k]}/{CLASSES[k]}_{split}{i}.jpg" for i, k in enumerate(LABELS)]
        for name in names:
            write_image(base / "images" / name)
        (base / "labels" / f"{split}1.txt").write_text("".join(f"{name}\n" for name in names))


def fgvc_aircraft(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    base.mkdir(parents=True)
    (base / "variants.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split in ("train", "val", "test"):
        lines = [f"{split}{i} {CLASSES[k]}\n" for i, k in enumerate(LABELS)]
        for line in lines:
            write_image(base / "images" / f"{line.split()[0]}.jpg")
        (base / f"images_variant_{split}.txt").write_text("".join(lines))


def oxford_pets(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        names = [f"{CLASSES[k]}_{split}{i}" for i, k in enumerate(LABELS)]
        for name in names:
            write_image(base / "images" / f"{name}.jpg")
        lines = [f"{name} {k + 1} 1 1\n" for name, k in zip(names, LABELS, strict=True)]
        (base / "annotations" / f"{split}.txt").write_text("".join(lines))


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "flowers-102"
    base.mkdir(parents=True)
    for i in range(1, 13):
        write_image(base / "jpg" / f"image_{i:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([k + 1 for k in LABELS * 3])})
    savemat(base / "setid.mat", {"trnid": np.arange(1, 5), "valid": np.arange(5, 9), "tstid": np.arange(9, 13)})
    for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        entry = (file, hashlib.md5((base / file).read_bytes()).hexdigest())
        monkeypatch.setitem(torchvision.datasets.Flowers102._file_dict, key, entry)


def country211(root: Path, _: pytest.MonkeyPatch) -> None:
    for split in ("train", "valid", "test"):
        for i, k in enumerate(LABELS):
            write_image(root / "country211" / split / CLASSES[k] / f"{i}.jpg")


def rendered_sst2(root: Path, _: pytest.MonkeyPatch) -> None:
    for split in ("train", "valid", "test"):
        for i, k in enumerate(LABELS):
            write_image(root / "rendered-sst2" / split / ("negative", "positive")[k] / f"{i}.png")


def stanford_cars(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(CLASSES, dtype=object)})
    for split, listing in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array(
            [(k + 1, f"{i}.jpg") for i, k in enumerate(LABELS)], dtype=[("class", object), ("fname", object)]
        )
        savemat(base / listing, {"annotations": rows})
        for i in range(len(LABELS)):
            write_image(base / f"cars_{split}" / f"{i}.jpg")


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ("train", "test"):
        path = root / f"{split}_32x32.mat"
        pixels = np.zeros((32, 32, 3, len(LABELS)), np.uint8)
        savemat(path, {"X": pixels, "y": np.array([k or 10 for k in LABELS], np.uint8)[:, None]})  # 10 is the digit 0
        files[split] = ["http://127.0.0.1:9/", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", files)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 training and 4 test images; each of the ten folds is six of the former."""
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    files = {}
    for split, labels in (("train", LABELS * 5), ("test", LABELS)):
        pixels = np.zeros((len(labels), 3, 96, 96), np.uint8)
        pixels[:, 0] = np.array([200 * k + 20 for k in labels])[:, None, None]
        pixels.tofile(base / f"{split}_X.bin")
        (np.array(labels, np.uint8) + 1).tofile(base / f"{split}_y.bin")
        files[split] = [
            [name, hashlib.md5((base / name).read_bytes()).hexdigest()] for name in (f"{split}_X.bin", f"{split}_y.bin")
        ]
    (base / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    folds = [[(6 * k + i) % 20 for i in range(6)] for k in range(10)]
    (base / "fold_indices.txt").write_text("".join(" ".join(map(str, sorted(fold))) + "\n" for fold in folds))
    monkeypatch.setattr(torchvision.datasets.STL10, "train_list", files["train"])
    monkeypatch.setattr(torchvision.datasets.STL10, "test_list", files["test"])


def gtsrb(root: Path, _: pytest.MonkeyPatch) -> None:
    """Two classes of four tracks of three frames, red as their class and track; the test subset is listed in a file."""
    base = root / "gtsrb"
    for k in range(2):
        for track in range(4):
            for frame in range(3):
                name = f"{track:05d}_{frame:05d}.ppm"
                write_image(base / "GTSRB" / "Training" / f"{k:05d}" / name, 100 * k + 10 * track)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, k in enumerate(LABELS):
        write_image(base / "GTSRB" / "Final_Test" / "Images" / f"{i:05d}.ppm", 100 * k)
        lines.append(f"{i:05d}.ppm;12;10;0;0;12;10;{k}")
    (base / "GT-final_test.csv").write_text("".join(f"{line}\n" for line in lines))


def eurosat(root: Path, _: pytest.MonkeyPatch) -> None:
    for k, name in enumerate(("AnnualCrop", "Forest")):
        for i in range(5):
            write_image(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", 100 * k)


def clevr_counts(root: Path, _: pytest.MonkeyPatch) -> None:
    """Scenes of three and of four objects."""
    base = root / "clevr" / "CLEVR_v1.0"
    (base / "scenes").mkdir(parents=True)
    for split in ("train", "val"):
        scenes = []
        for i, k in enumerate(LABELS):
            name = f"CLEVR_{split}_{i:06d}.png"
            write_image(base / "images" / split / name)
            scenes.append({"image_filename": name, "objects": [{}] * (3 + k)})
        (base / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))


def emnist(root: Path, _: pytest.MonkeyPatch) -> None:
    raw = root / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "test"):
        header = struct.pack(">IIII", 2051, len(LABELS), 28, 28)
        (raw / f"emnist-balanced-{split}-images-idx3-ubyte").write_bytes(header + bytes(len(LABELS) * 28 * 28))
        header = struct.pack(">II", 2049, len(LABELS))
        (raw / f"emnist-balanced-{split}-labels-idx1-ubyte").write_bytes(header + bytes(LABELS))


def places365(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True, exist_ok=True)
    lists = {"categories_places365.txt": "".join(f"/{name[0]}/{name} {k}\n" for k, name in enumerate(CLASSES))}
    lists["places365_train_standard.txt"] = "".join(
        f"/{CLASSES[k][0]}/{CLASSES[k]}/{i:08d}.jpg {k}\n" for i, k in enumerate(LABELS)
    )
    lists["places365_val.txt"] = "".join(f"Places365_val_{i:08d}.jpg {k}\n" for i, k in enumerate(LABELS))
    for i, k in enumerate(LABELS):
        write_image(root / "data_256_standard" / CLASSES[k][0] / CLASSES[k] / f"{i:08d}.jpg")
        write_image(root / "val_256" / f"Places365_val_{i:08d}.jpg")
    for name, text in lists.items():
        (root / name).write_text(text)
    md5 = {name: hashlib.md5(text.encode()).hexdigest() for name, text in lists.items()}
    places = torchvision.datasets.Places365
    monkeypatch.setattr(places, "_CATEGORIES_META", ("categories_places365.txt", md5["categories_places365.txt"]))
    for split, name in (("train-standard", "places365_train_standard.txt"), ("val", "places365_val.txt")):
        monkeypatch.setitem(places._FILE_LIST_META, split, (name, md5[name]))


# Those whose splits are all there and as long as `LABELS`; the others have tests of their own.
WRITERS = {
    writer.__name__: writer
    for writer in (
        *(food101, dtd, fgvc_aircraft, oxford_pets, flowers102, country211, rendered_sst2, stanford_cars, svhn),
        *(emnist, places365),
    )
}
