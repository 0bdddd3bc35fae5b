"""Audit of a dataset: equal images by a second way of comparing, near-duplicates, classes, sizes, damaged files."""

import csv
import gzip
import json
import struct
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from make import layouts, own_layouts
from make.mnist import SMALL_MNIST
from make.twins import COPIES, DIFFERING, LEAKED, groups_by_bytes, write_twins
from PIL import Image

import probe
from probe.cli.main import main
from probe.datasets.audit import make_audit
from probe.datasets.opening import open_dataset
from probe.datasets.pixel_digests import digest_images, digest_pixels
from probe.stats.near_hashes import count_bits

DEBIANS = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


def audit(name, *, distance=4, most=20, threads=2):
    dataset = open_dataset(name, offline=True, allow_partial=True, skip_corrupt=True)
    digests = {subset: digest_images(images, threads=threads) for subset, images in dataset.subsets.items()}
    return make_audit(dataset, digests, distance=distance, most=most)


def paths(group):
    return {image.id if image.id.startswith(image.subset) else f"{image.subset}/{image.id}" for image in group.images}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins")
    write_twins(folder)
    return folder


@pytest.fixture(scope="module")
def report(root):
    return audit(f"folder:{root}")


def test_groups_are_those_of_a_comparison_of_bytes(root, report):
    expected = groups_by_bytes(root)
    assert len(expected) == len({source for source, _ in COPIES})
    assert sorted(map(sorted, map(paths, report.equal.groups))) == sorted(map(sorted, expected))


def test_pairs_are_counted_by_split_and_label(root, report):
    counts = {}
    for group in groups_by_bytes(root):
        for a, b in combinations(group, 2):
            (one, first, _), (other, second, _) = a.split("/"), b.split("/")
            key = tuple(sorted((one, other), key=["train", "val", "test"].index))
            pairs, differing = counts.get(key, (0, 0))
            counts[key] = (pairs + 1, differing + (first != second))
    found = {row.splits: (row.pairs, row.differing) for row in report.equal.pairs if row.pairs}
    assert found == counts
    assert found["train", "test"] == (4, 1)
    assert found["test", "test"] == (2, 0)


def test_leaked_test_images_are_counted(report):
    assert (report.equal.leaked, report.equal.leaked_differing) == (len(LEAKED), len(DIFFERING))


def test_groups_across_splits_and_with_different_labels_come_first(report):
    order = [(group.is_across, group.labels_differ) for group in report.equal.groups]
    assert order == sorted(order, reverse=True)
    assert order[0] == (True, True)
    assert order[-1] == (False, False)


def test_the_digest_covers_height_and_width():
    assert digest_pixels(Image.new("RGB", (2, 8))) != digest_pixels(Image.new("RGB", (8, 2)))
    assert digest_pixels(Image.new("RGB", (2, 8))) == digest_pixels(Image.new("L", (2, 8)).convert("RGB"))


def test_the_number_of_threads_changes_nothing(root):
    images = open_dataset(f"folder:{root}", offline=True).subsets["train"]
    one, four = (digest_images(images, threads=threads) for threads in (1, 4))
    for name in ("sha256", "hashes", "sizes", "modes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(four, name))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Write four scenes, each with noise of several strengths, in two classes and two splits; some copies are equal."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for scene in range(4):
        pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (5, 5)).astype(np.uint8)).resize((40, 40)), int)
        for i, strength in enumerate((0, 0, 0, 4, 8, 12, 16, 24, 32, 48)):
            noisy = (pixels + rng.integers(-strength, strength + 1, pixels.shape)).clip(0, 255).astype(np.uint8)
            path = root / ("test" if i in (2, 4, 6, 9) else "train") / "ab"[scene % 2] / f"{scene}-{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(path)
    return root


def test_near_pairs_are_those_of_all_pairs(scenes):
    distance = 12
    found = audit(f"folder:{scenes}", distance=distance, most=10_000)
    dataset = open_dataset(f"folder:{scenes}", offline=True)
    columns = []
    for split in ("train", "val", "test"):
        images = dataset.split(split)
        digests = digest_images(images, threads=1)
        columns += [(hashed, images[i][0].tobytes(), split) for i, hashed in enumerate(digests.hashes)]
    counts, contents = np.zeros((distance + 1, 2), int), set()
    for a, b in combinations(columns, 2):
        space = int(count_bits(np.array([a[0] ^ b[0]]))[0])
        if a[1] != b[1] and space <= distance:
            counts[space] += [1, a[2] != b[2]]
            contents.add((a[2] != b[2], frozenset((a[1], b[1]))))
    assert found.candidates.counts == tuple(map(tuple, counts.tolist()))
    assert counts.sum() > 20
    closest = found.candidates.closest
    assert len(closest) == len(contents)  # of pairs with equal pixels, one is listed
    keys = [(not one.is_across, one.distance) for one in closest]
    assert keys == sorted(keys)
    for one in closest:
        assert one.is_across == (one.images[0].split != one.images[1].split)


def test_the_closest_pairs_are_the_first_of_all(scenes):
    every = audit(f"folder:{scenes}", distance=12, most=10_000).candidates.closest
    some = audit(f"folder:{scenes}", distance=12, most=7).candidates.closest
    assert [one.distance for one in some] == [one.distance for one in every[:7]]
    assert all(one.is_across for one in some)


def test_images_of_one_hash_and_different_pixels_are_candidates(tmp_path):
    for split, colours in (("train", (10, 20, 20, 30)), ("test", (40, 40))):
        for i, colour in enumerate(colours):
            for name, shift in (("a", 0), ("b", 100)):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 9), (colour + shift,) * 3).save(path)
    found = audit(f"folder:{tmp_path}", distance=0, most=100)
    (pairs,) = found.candidates.counts
    assert pairs[0] == 12 * 11 // 2 - 4  # blank images have one hash; 4 pairs are equal
    across = [one for one in found.candidates.closest if one.is_across]
    assert len(across) <= pairs[1]
    assert found.candidates.closest[0].distance == 0


def test_classes_sizes_and_modes_are_counted(root, report):
    balance = {one.split: one for one in report.balance}
    assert balance["train"].counts == (20, 22)
    assert balance["train"].ratio == pytest.approx(1.1)
    assert report.sizes.smallest == report.sizes.median == report.sizes.largest == (10, 14)
    assert report.sizes.modes == {"RGB": sum(report.subsets.values())}
    assert report.splits == report.subsets == {"train": 42, "val": 16, "test": 26}


def test_sizes_are_ordered_by_area_and_classes_may_be_empty(tmp_path):
    sizes = {"train/a/0.png": (4, 4), "train/a/1.png": (30, 20), "train/b/0.png": (6, 5), "test/a/0.png": (4, 4)}
    for i in range(2, 8):
        sizes[f"train/b/{i}.png"] = (6, 5)
        sizes[f"train/a/{i}.png"] = (7, 5)
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, len(name) + size[0]).save(tmp_path / name)
    (tmp_path / "test" / "b").mkdir()
    Image.new("P", (1, 1)).save(tmp_path / "test" / "b" / "9.png")
    found = audit(f"folder:{tmp_path}")
    assert (found.sizes.smallest, found.sizes.median, found.sizes.largest) == ((1, 1), (6, 5), (30, 20))
    assert found.sizes.num_sizes == 5
    assert found.sizes.frequent[0] == ((6, 5), 7)
    assert found.sizes.modes == {"L": 16, "P": 1}


def write_fashion(root, arrays):
    """Write the four files of Fashion-MNIST from images uint8 (n, 28, 28) and labels, for `train` and `t10k`."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, (pixels, labels) in arrays.items():
        header = struct.pack(">IIII", 2051, len(pixels), 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + labels.tobytes())


def test_files_like_those_of_fashion_mnist_have_the_duplicates_of_numpy_unique(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 28, 28)).astype(np.uint8)
    pixels[rng.permutation(50)[:15]] = pixels[rng.permutation(50)[:15]]  # some are equal now
    labels = (np.arange(50) % 10).astype(np.uint8)
    write_fashion(tmp_path, {"train": (pixels[:40], labels[:40]), "t10k": (pixels[40:], labels[40:])})
    monkeypatch.setenv("PROBE_DATA_DIR", str(tmp_path))
    found = audit(SMALL_MNIST)
    _, inverse, counts = np.unique(pixels.reshape(50, -1), axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    assert len(found.equal.groups) == (counts > 1).sum() > 3
    assert sum(row.pairs for row in found.equal.pairs) == (counts * (counts - 1) // 2).sum()
    leaked = np.isin(inverse[40:], inverse[:40])
    assert found.equal.leaked == leaked.sum() > 0
    ids = sorted(image.id for group in found.equal.groups for image in group.images)
    equal = np.flatnonzero(counts[inverse] > 1).tolist()
    assert ids == sorted(f"train/{i}" if i < 40 else f"test/{i - 40}" for i in equal)


@pytest.mark.slow
@pytest.mark.skipif(not DEBIANS.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_has_the_duplicates_of_numpy_unique(tmp_path, monkeypatch):
    """NumPy and the audit agree on the 70,000 real images."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in DEBIANS.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    monkeypatch.setenv("PROBE_DATA_DIR", str(tmp_path))
    found = audit("fashion_mnist")
    stored = [(raw / f"{prefix}-images-idx3-ubyte").read_bytes()[16:] for prefix in ("train", "t10k")]
    pixels = np.frombuffer(b"".join(stored), np.uint8).reshape(70_000, 28 * 28)
    _, counts = np.unique(pixels, axis=0, return_counts=True)
    assert sum(found.splits.values()) == counts.sum() == 70_000
    assert len(found.equal.groups) == (counts > 1).sum()
    assert sum(row.pairs for row in found.equal.pairs) == (counts * (counts - 1) // 2).sum()


def test_an_image_counts_for_each_class_that_it_shows(tmp_path, monkeypatch):
    own_layouts.voc2007(tmp_path)
    monkeypatch.setenv("PROBE_DATA_DIR", str(tmp_path))
    found, dataset = audit("voc2007"), open_dataset("voc2007", offline=True, allow_partial=True)
    for one in found.balance:
        assert one.counts == tuple((dataset.split(one.split).labels == 1).sum(axis=0).tolist())
    shown = [image for pair in found.candidates.closest for image in pair.images]
    assert all(image.classes for image in shown)


def test_splits_are_those_of_the_first_of_several_folds(tmp_path, monkeypatch):
    layouts.stl10(tmp_path, monkeypatch)
    monkeypatch.setenv("PROBE_DATA_DIR", str(tmp_path))
    found, dataset = audit("stl10"), open_dataset("stl10", offline=True, allow_partial=True)
    sizes = {split: len(dataset.split(split, 0)) for split in ("train", "val", "test")}
    assert (found.num_folds, found.splits) == (10, {**sizes, "unused": 24 - sum(sizes.values())})


def test_a_dataset_without_a_readable_image_has_a_report(tmp_path, capsys):
    for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "test/a/1.png", "test/b/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"no image")
    assert command(tmp_path / "images", tmp_path, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (len(document["unreadable"]), document["sizes"], document["equal"]["pairs"]) == (6, None, [])


def command(root, tmp_path, *options):
    return main(["audit", "--dataset", f"folder:{root}", "--cache-dir", str(tmp_path / "cache"), "--offline", *options])


def test_the_command_prints_a_report_and_writes_all_groups(root, tmp_path, capsys):
    assert command(root, tmp_path, "--csv", str(tmp_path / "groups.csv"), "--top", "2", "--classes", "1") == 0
    out = capsys.readouterr().out
    assert (
        "5 of 26 test images equal a training or validation image; 2 of them equal one with a different label." in out
    )
    assert "across splits first (2 of 7)" in out
    assert "The smallest classes (1 of 2)" in out
    rows = list(csv.DictReader((tmp_path / "groups.csv").read_text().splitlines()))
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], set()).add(row["image"])
    assert len(groups) == 7
    assert {row["labels_differ"] for row in rows if row["image"].endswith("51.png")} == {"yes"}


def test_the_json_report_has_everything_and_images_are_decoded_once(root, tmp_path, capsys, monkeypatch):
    assert command(root, tmp_path, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert len(first["equal"]["groups"]) == 7
    assert first["equal"]["groups"][0]["is_across"] is True
    assert {one["split"] for one in first["balance"]} == {"train", "val", "test"}
    monkeypatch.setattr("probe.features.pixels.digest_images", pytest.fail)
    assert command(root, tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == first


def test_unreadable_images_are_named_and_the_rest_is_reported(tmp_path, capsys):
    root = tmp_path / "images"
    write_twins(root)
    (root / "train/red/07.png").write_bytes(b"no image")
    (root / "test/red/08.png").write_bytes(b"no image")
    assert command(root, tmp_path) == 1
    out = capsys.readouterr().out
    assert "unreadable       2" in out
    assert "train/red/07.png" in out
    assert "--skip-corrupt" not in out
    assert "train and test | 3      | 4 " in out  # unreadable images equal no other image
    Image.new("RGB", (10, 14), "red").save(root / "train/red/07.png")
    assert command(root, tmp_path, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in document["unreadable"]] == ["test/red/08.png"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--dataset", "no such"], 2, "unknown dataset 'no such'"),
        (["--dataset", "folder:/nowhere/at/all"], 2, "/nowhere/at/all"),
        (["--dataset", "digits", "--distance", "17"], 2, "expected an integer from 0 to 16, got '17'"),
        (["--dataset", "digits", "--top", "0"], 2, "expected an integer >= 1, got '0'"),
        ([], 2, "the following arguments are required: --dataset"),
    ],
)
def test_bad_input_is_one_sentence(options, code, message, capsys):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["audit", "--offline", *options]))
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(root, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command(root, tmp_path, "--csv", str(tmp_path / "file" / "groups.csv")) == 1
    said = capsys.readouterr().err
    assert said.startswith("probe: cannot write ")
    assert said.count("\n") == 1


def test_python_gives_the_report_of_the_command(scenes, tmp_path, capsys):
    report = probe.audit(f"folder:{scenes}", distance=12, most=3, cache_dir=tmp_path, offline=True)
    command = ["audit", "--dataset", f"folder:{scenes}", "--distance", "12", "--top", "3", "--offline", "--json"]
    assert main([*command, "--cache-dir", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    groups = printed["equal"]["groups"]
    assert len(groups) > 0
    assert [group.pop("is_across") for group in groups] == [group.is_across for group in report.equal.groups]
    assert [one.pop("ratio") for one in printed["balance"]] == [one.ratio for one in report.balance]
    assert printed == json.loads(json.dumps(asdict(report)))
    assert len(report.candidates.closest) == 3
    with pytest.raises(ValueError, match="expected a distance from 0 to 16, got 17"):
        probe.audit("digits", distance=17)
