"""Descriptions of datasets and of this machine: `probe datasets` and `probe doctor`."""

import json
import sys

import pytest
import torchvision
from huggingface_hub import constants
from make.mnist import write_idx_files

from probe.cli.main import main
from probe.datasets import dataset_names, get_dataset
from probe.datasets.catalog import DATASETS
from probe.datasets.description import BY_HAND, DOWNLOAD, GONE, READY, UNPACK, describe_dataset, state


def test_a_dataset_whose_files_are_here_is_ready(tmp_path):
    assert state(get_dataset("fashion_mnist"), tmp_path).word == DOWNLOAD
    write_idx_files(tmp_path)
    assert state(get_dataset("fashion_mnist"), tmp_path).word == READY


def test_archives_that_are_here_are_to_be_unpacked(tmp_path):
    for name in ("SUN397.tar.gz", "Partitions.zip"):
        (tmp_path / name).touch()
    assert state(get_dataset("sun397"), tmp_path).word == UNPACK


@pytest.mark.parametrize(("name", "word"), [("digits", READY), ("caltech101", BY_HAND), ("birdsnap", GONE)])
def test_every_other_state_is_told_apart(name, word, tmp_path):
    assert state(get_dataset(name), tmp_path).word == word


def test_another_revision_of_a_repository_is_not_the_one_that_a_row_names(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    spec = get_dataset("fer2013")
    revision = dict(spec.sources[1].options)["revision"]
    for commit, word in (("0" * 40, DOWNLOAD), (revision, READY)):
        folder = tmp_path / f"datasets--{spec.sources[1].location.replace('/', '--')}" / "snapshots" / commit
        (folder / "data").mkdir(parents=True)
        assert state(spec, tmp_path / "data").word == word


def test_a_gated_dataset_says_how_to_get_access(tmp_path):
    found = state(get_dataset("imagenet"), tmp_path)
    assert found.word == DOWNLOAD
    assert "accept the terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k" in found.step
    assert "hf auth login" in found.step


def test_what_is_missing_says_what_to_put_where(tmp_path):
    for spec in DATASETS:
        found = state(spec, tmp_path)
        said = describe_dataset(spec.name, data_dir=tmp_path)
        step = said["by hand"] if found.word == DOWNLOAD else found.step
        assert found.word == READY or "into DATA_DIR" in step


@pytest.mark.parametrize("name", dataset_names())
def test_a_row_says_its_licence_sources_and_numbers(name, tmp_path):
    said = describe_dataset(name, data_dir=tmp_path)
    assert {"licence", "source 1", "numbers from", "splits", "state"} <= set(said)


def test_one_dataset_is_printed_whole(capsys, tmp_path):
    assert main(["datasets", "voc2007", "--data-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "marked as difficult" in out
    assert "Flickr's terms of use" in out


def test_an_unknown_dataset_is_one_sentence(capsys):
    assert main(["datasets", "voc20007"]) == 2
    assert "did you mean 'voc2007'" in capsys.readouterr().err


def test_the_doctor_speaks_of_everything(capsys, tmp_path):
    folders = [f"--{name}-dir={tmp_path / name}" for name in ("data", "weights", "results")]
    assert main(["doctor", "--json", *folders]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["datasets"]) == set(dataset_names())
    assert found["datasets"]["digits"]["word"] == READY
    assert found["models"]["tiny"]["word"] == READY
    assert found["models"]["ViT-B/32"]["word"] == DOWNLOAD
    assert found["folders"]["data"][1] > 0
    assert "cpu" in found["devices"]
    assert found["environment"]["packages"]["torchvision"] == torchvision.__version__.partition("+")[0]
    assert not list(tmp_path.iterdir())


def test_the_doctor_prints_tables(capsys, tmp_path):
    assert main(["doctor", "--data-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| imagenet " in out
    assert "| by hand " in out


def test_prompts_are_shown_with_their_origin():
    said = describe_dataset("stl10")
    assert said["class names"] == "airplane, bird, car, cat, deer and 5 more (from the specification of the dataset)"
    assert said["templates"] == "'a photo of a {}.' (from the example of OpenAI's README)"
    assert describe_dataset("food101")["class names"] == "from the files of the dataset"


def test_prompts_of_open_clip_are_described_without_open_clip(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert describe_dataset("imagenet")["templates"] == "from the installed open_clip"
    assert main(["datasets", "imagenet", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["class_names"], facts["templates"]) == ([], [])
    assert facts["class_names_from"] == facts["templates_from"] == "the installed open_clip"
