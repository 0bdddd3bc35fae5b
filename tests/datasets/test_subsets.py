"""Names of splits: all forms of datasets know the same names."""

from contextlib import suppress
from itertools import product

import datasets
import pandas
import pytest
import webdataset
from datasets.data_files import SPLIT_KEYWORDS
from make.images import write_image

from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.datasets.subsets import SPELLINGS, choose_subsets, find_subsets, subset_of
from probe.errors import DatasetError

CASES = (str, str.title, str.upper)


def test_the_spellings_are_those_of_the_library():
    """The names of Hugging Face's `datasets` are known; the library itself knows them only in lower case."""
    theirs = {str(split): sorted(words) for split, words in SPLIT_KEYWORDS.items()}
    assert {subset: sorted(words) for subset, words in SPELLINGS.items()} == {
        "train": theirs["train"], "val": theirs["validation"], "test": theirs["test"]
    }  # fmt: skip


@pytest.mark.parametrize("name", ["trainer", "train1", "tests", "valley", "devil", "all", "", "te st", "train-test"])
def test_other_names_are_none(name):
    assert subset_of(name) is None


def test_what_the_user_names_wins():
    """Name the three splits, or some of them, in every way: named splits are used, and no split is used twice."""
    names = ["train", "valid", "test"]
    found = find_subsets("set", names)
    accepted = 0
    for chosen in product([None, *names], repeat=3):
        options = {subset: name for subset, name in zip(("train", "val", "test"), chosen, strict=True) if name}
        with suppress(DatasetError):
            subsets = choose_subsets("set", options, found, names=names)
            accepted += 1
            assert options.items() <= subsets.items()
            assert len(set(subsets.values())) == len(subsets)
            assert {"train", "test"} <= set(subsets)
    assert accepted == 22  # counted by hand; all other combinations use a split twice


def test_a_split_that_would_be_left_out_is_named():
    names = ["train", "test", "holdout", "test_v2"]
    found = find_subsets("set", names)
    with pytest.raises(DatasetError, match=r"set has 'holdout', 'test_v2', .* as in \?train=train&test=test"):
        choose_subsets("set", {}, found, names=names)


def test_what_the_user_leaves_out_is_reported(caplog):
    names = ["train", "val", "test", "holdout"]
    options = {"train": "train", "test": "test"}
    subsets = choose_subsets("set", {"all": "test"}, find_subsets("set", names), names=names)
    assert subsets == {"all": "test"}
    assert "set: the split 'train' is not used; take it with ?train=train" in caplog.text
    assert "set: the split 'holdout' is not used; take a split with ?train=" in caplog.text
    assert choose_subsets("set", options, find_subsets("set", names), names=names) == {**options, "val": "val"}


@pytest.mark.parametrize("form", ["csv", "folder", "hf", "wds"])
def test_no_form_drops_a_split_in_silence(form, tmp_path, monkeypatch, caplog):
    """The split `holdout` has no usual name. An error or a warning names it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = []
    for split in ("train", "test", "holdout"):
        for i in range(8):
            path = tmp_path / "images" / split / "ab"[i % 2] / f"{i}.png"
            write_image(path, (9, 9, 9))
            lines.append((path.relative_to(tmp_path).as_posix(), i % 2, split))
        (tmp_path / "shards" / split).mkdir(parents=True)
        with webdataset.TarWriter(str(tmp_path / "shards" / split / "0.tar")) as writer:
            for i in range(8):
                writer.write({"__key__": str(i), "png": path.read_bytes(), "cls": i % 2})
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        pictures = [{"bytes": path.read_bytes(), "path": None}] * 8
        table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 4}, features=features)
        table.to_parquet(tmp_path / "parquet" / "data" / f"{split}-00000-of-00001.parquet")
    pandas.DataFrame(lines, columns=["path", "label", "split"]).to_csv(tmp_path / "list.csv", index=False)
    place = {"csv": "list.csv", "folder": "images", "hf": "parquet", "wds": "shards"}[form]
    if form == "hf":
        open_dataset(f"hf:{tmp_path / place}")
        assert "the split 'holdout' is not used" in caplog.text
        return
    with pytest.raises(DatasetError, match="holdout"):
        get_dataset(f"{form}:{tmp_path / place}")
    if form != "folder":  # the form `folder` has no options
        opened = open_dataset(f"{form}:{tmp_path / place}?train=train&test=test")
        assert [len(opened.split(split)) for split in ("train", "val", "test")] == [6, 2, 8]
        assert "the split 'holdout' is not used" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("has_val", [True, False])
def test_all_forms_take_a_set_apart_alike(has_val, tmp_path, monkeypatch):
    """Try every spelling in three letter cases, as folders, tables, shards, and through Hugging Face's library."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = [[case(word) for word in SPELLINGS[subset] for case in CASES] for subset in ("train", "val", "test")]
    for n in range(max(map(len, words))):
        train, val, test = (spelled[n % len(spelled)] for spelled in words)
        sizes = {train: 3, test: 2} | ({val: 1} if has_val else {})
        root = tmp_path / str(n)
        lines = []
        for split, count in sizes.items():
            for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
                for i in range(count):
                    path = root / "images" / split / name / f"{i}.png"
                    write_image(path, colour)
                    lines.append((path.relative_to(root).as_posix(), name, split))
            (root / "shards" / split).mkdir(parents=True)
            with webdataset.TarWriter(str(root / "shards" / split / "0.tar")) as writer:
                for i, (path, name, _) in enumerate(line for line in lines if line[2] == split):
                    content = (root / path).read_bytes()
                    writer.write({"__key__": f"{i}", "png": content, "cls": int(name == "red")})
        pandas.DataFrame(lines, columns=["path", "label", "split"]).to_csv(root / "list.csv", index=False)
        expected = {"train": 6} | ({"val": 2} if has_val else {}) | {"test": 4}
        for name in (f"folder:{root}/images", f"hf:{root}/images", f"wds:{root}/shards", f"csv:{root}/list.csv"):
            opened = open_dataset(get_dataset(name))
            assert {subset: len(images) for subset, images in opened.subsets.items()} == expected, (name, sizes)
            for images in opened.subsets.values():
                labels = [int(image.getpixel((5, 5))[0] > 100) for image, _ in images]
                assert images.labels.tolist() == labels, (name, sizes)
