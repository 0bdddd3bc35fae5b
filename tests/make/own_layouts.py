"""Miniatures of datasets that have a module of their own, in the layout on disk of their makers.

Each writer returns what it wrote: for every subset the labels of its images, by their grey value. No two images of a
miniature have values nearer than `APART`; lossy files hold them to within half of it.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

Written = dict[str, dict[int, object]]

APART = 5

SCENES = ("/a/abbey", "/c/cathedral/indoor", "/c/cathedral/outdoor")
BIRDS = ("Coopers_Hawk", "Snail_Kite", "Black_Guillemot")  # not in the order of the alphabet
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
DISTANCES = ((8.0, 30.0), (8.01,), (20.0,), (20.01, 70.0), ())  # of the vehicles of KITTI's images, in turns
DISTANCE_CLASSES = (0, 1, 1, 2, 3)
ACTIONS = ("ApplyEyeMakeup", "HandstandPushups")
GROUPS, CLIPS = 6, 2  # of each action


def write_grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, value, value)).save(path)


def write_text(path: Path, lines: list[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())


def sun397(root: Path) -> Written:
    top, values, written = root / "SUN397", iter(range(0, 256, 10)), {}
    write_text(top / "ClassName.txt", list(SCENES))
    for subset, name in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        written[subset] = {next(values): label for label in (0, 0, 1, 1, 2, 2)}
        lines = [f"{SCENES[label]}/sun_{value:03}.jpg" for value, label in written[subset].items()]
        write_text(top / name, lines, end="\r\n")
        for value, line in zip(written[subset], lines, strict=True):
            write_grey(top / line[1:], value)
    return written


def birdsnap(root: Path) -> Written:
    top, values, written = root / "birdsnap", iter(range(0, 256, 10)), {"train": {}, "test": {}}
    rows, tested = ["url\tmd5\tpath\tspecies_id\tbb_x1\tbb_y1\tbb_x2\tbb_y2\tback_x\tback_y"], ["path"]
    for label, name in enumerate(BIRDS):
        for subset in ("train", "test", "train", "train"):
            value = next(values)
            path = f"{name}/{value:04}.jpg"
            rows.append(f"http://127.0.0.1:9/{value}.jpg\t{value:032x}\t{path}\t{label + 1}\t1\t2\t8\t9\tnull\tnull")
            tested += [path] if subset == "test" else []
            written[subset][value] = label
            write_grey(top / "download" / "images" / path, value)
    write_text(top / "images.txt", rows)
    write_text(top / "test_images.txt", tested)
    return written


def fer2013(root: Path, columns: tuple[str, ...] = ("emotion", "pixels", "Usage")) -> Written:
    """Train, validation and test rows in turns; the first pixel of an image is its value less 5."""
    written: Written = {"train": {}, "val": {}, "test": {}}
    path = root / "fer2013" / "fer2013.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        for i in range(28):
            subset, usage = (
                ("train", "Training"),
                ("val", "PublicTest"),
                ("train", "Training"),
                ("test", "PrivateTest"),
            )[i % 4]
            value, label = 10 + 8 * i, (i // 2) % 7
            fields = {"emotion": label, "pixels": " ".join(map(str, [value - 5] + [value] * 2303)), "Usage": usage}
            rows.writerow([fields[name.strip()] for name in columns])
            written[subset][value] = label
    return written


def kitti_frames() -> list[tuple[str, int]]:
    """Video and frame of each line of train_mapping.txt: two frames of each of twelve videos."""
    return [(f"2011_09_{26 + v // 8}_drive_{7 * v % 12:04}_sync", frame) for v in range(12) for frame in range(2)]


def kitti_order() -> list[int]:
    """The line of each image, from 0 on."""
    return [(5 * i + 3) % 24 for i in range(24)]


def kitti(root: Path) -> Written:
    """24 images, whose grey value is ten times their number; `all` stands for the three subsets, which are drawn."""
    top, written = root / "Kitti" / "raw", {}
    frames, order = kitti_frames(), kitti_order()
    write_text(top / "mapping" / "train_mapping.txt", [f"{v[:10]} {v} {frame:010}" for v, frame in frames])
    write_text(top / "mapping" / "train_rand.txt", [",".join(str(line + 1) for line in order)])
    for i in range(len(order)):
        kind = i % 5
        objects = [("Car", "Van", "Truck")[(i + k) % 3] for k in range(len(DISTANCES[kind]))]
        lines = [_kitti_object(name, z) for name, z in zip(objects, DISTANCES[kind], strict=True)]
        lines += [_kitti_object("Pedestrian", 1.5), _kitti_object("DontCare", -1000)]  # neither is a vehicle
        write_text(top / "training" / "label_2" / f"{i:06}.txt", lines)
        write_grey(top / "training" / "image_2" / f"{i:06}.png", 10 * i)
        written[10 * i] = DISTANCE_CLASSES[kind]
    return {"all": written}


def _kitti_object(name: str, z: float) -> str:
    return f"{name} 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 {z} -1.56"


def hateful_memes(root: Path, dev: str = "dev.jsonl") -> Written:
    top, values, written = root / "hateful_memes", iter(range(0, 256, 20)), {}
    for subset, name, labels in (("train", "train.jsonl", (0, 1, 1, 0, 0, 1)), ("test", dev, (1, 0, 0))):
        written[subset] = {next(values): label for label in labels}
        for value in written[subset]:
            write_grey(top / "img" / f"{value:05}.png", value)
        write_text(
            top / name,
            [
                json.dumps({"id": value, "img": f"img/{value:05}.png", "label": label, "text": "\u2028 of a line"})
                for value, label in written[subset].items()
            ],
        )
    return written


def pcam(root: Path) -> Written:
    import h5py

    values, written = iter(range(0, 256, 15)), {}
    (root / "pcam").mkdir(parents=True)
    for subset, split, labels in (
        ("train", "train", (0, 1, 1, 0)),
        ("val", "valid", (1, 0)),
        ("test", "test", (0, 0, 1)),
    ):
        written[subset] = {next(values): label for label in labels}
        x = np.array([*written[subset]], np.uint8)[:, None, None, None] * np.ones((1, 96, 96, 3), np.uint8)
        for kind, data in (("x", x), ("y", np.array(labels, np.uint8)[:, None, None, None])):
            with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{split}_{kind}.h5", "w") as file:
                file[kind] = data
    return written


def ucf101(root: Path) -> Written:
    """Of the six videos of a class the k-th two are tested on in the k-th list; the value is that of middle frames.

    As in the true dataset, the files of one class are spelled otherwise than its folder.
    """
    top, values, written, clips = root / "ucf101", iter(range(8, 256, 10)), {}, []
    for label, name in enumerate(ACTIONS):
        for g in range(1, GROUPS + 1):
            for c in range(1, CLIPS + 1):
                clips.append(f"{name}/v_{name.replace('Handstand', 'HandStand')}_g{g:02}_c{c:02}.avi")
                value = next(values)
                written[value] = label
                write_video(top / "UCF-101" / clips[-1], value)
    lists = top / "ucfTrainTestlist"
    write_text(lists / "classInd.txt", [f"{i} {name}" for i, name in enumerate(ACTIONS, start=1)], end="\r\n")
    for k in (1, 2, 3):
        tested = [clip for clip in clips if f"_g{2 * k - 1:02}_" in clip or f"_g{2 * k:02}_" in clip]
        trained = [f"{clip} {1 + ACTIONS.index(clip.split('/')[0])}" for clip in clips if clip not in tested]
        write_text(lists / f"testlist{k:02}.txt", tested, end="\r\n")
        write_text(lists / f"trainlist{k:02}.txt", trained, end="\r\n")
    return {"all": written}


def write_video(path: Path, value: int) -> None:
    """Five frames, of which the middle one has this grey value, and the others are white or black."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 32, 32, "yuv420p", 1_000_000
        for grey in (255, 0, value, 255, 0):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def voc2007(root: Path, sets: tuple[str, ...] = ("train", "val", "test")) -> dict[str, dict[int, list[int]]]:
    """Six images a set, with their annotations; the lists follow from these. Numbers of images go up by 3."""
    top, written = root / "VOCdevkit" / "VOC2007", {}
    numbers = {name: [3 * i + k for i in range(6)] for k, name in enumerate(("train", "val", "test"))}
    for name in sets:
        written[name] = {}
        for i, number in enumerate(numbers[name]):
            # Every class is in some image; three of them are in another as a difficult one only, and one as both.
            shown = {label for label in range(20) if label % 6 == i}
            difficult = {label for label in range(3) if label % 6 == (i + 1) % 6} | ({0} if i == 0 else set())
            _write_annotation(top / "Annotations" / f"{number:06}.xml", shown, difficult)
            write_grey(top / "JPEGImages" / f"{number:06}.jpg", 10 * number)
            written[name][10 * number] = [1 if k in shown else 0 if k in difficult else -1 for k in range(20)]
        write_text(top / "ImageSets" / "Main" / f"{name}.txt", [f"{number:06}" for number in numbers[name]])
        for k, class_name in enumerate(VOC_CLASSES):
            lines = [f"{number:06} {written[name][10 * number][k]:2}" for number in numbers[name]]
            write_text(top / "ImageSets" / "Main" / f"{class_name}_{name}.txt", lines)
    return written


def _write_annotation(path: Path, shown: set[int], difficult: set[int]) -> None:
    objects = [(VOC_CLASSES[k], 0) for k in sorted(shown)] + [(VOC_CLASSES[k], 1) for k in sorted(difficult)]
    text = "".join(f"<object><name>{name}</name><difficult>{flag}</difficult></object>" for name, flag in objects)
    write_text(path, [f"<annotation><filename>{path.stem}.jpg</filename>{text}</annotation>"])


def gtsrb_39209(root: Path) -> Written:
    top, values, written = root / "gtsrb", iter(range(0, 256, 5)), {"train": {}, "test": {}}
    for label in range(2):
        folder = top / "GTSRB" / "Final_Training" / "Images" / f"{label:05}"
        for track in range(4):
            for frame in range(3):
                value = next(values)
                write_grey(folder / f"{track:05}_{frame:05}.ppm", value)
                written["train"][value] = label
        write_text(folder / f"GT-{label:05}.csv", ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"])
    table = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, label in enumerate((1, 0, 1)):
        value = next(values)
        write_grey(top / "GTSRB" / "Final_Test" / "Images" / f"{i:05}.ppm", value)
        table.append(f"{i:05}.ppm;12;10;1;1;9;9;{label}")
        written["test"][value] = label
    write_text(top / "GT-final_test.csv", table)
    return written


WRITERS = {
    writer.__name__: writer
    for writer in (sun397, birdsnap, fer2013, kitti, hateful_memes, pcam, ucf101, voc2007, gtsrb_39209)
}
