"""The catalogue against the facts that were collected of the paper's datasets, field by field.

`facts/clip_paper_datasets.csv` is table 9 of Radford et al. 2021, with the true sizes next to the printed sizes.
`facts/sources.csv` lists facts about further sources, and the public material that each fact comes from.
"""

import csv
import re
from pathlib import Path

import pytest

from probe.datasets.catalog import DATASETS

with (Path(__file__).parent / "facts" / "clip_paper_datasets.csv").open(encoding="utf-8") as file:
    FACTS = {row["key"]: row for row in csv.DictReader(file)}
with (Path(__file__).parent / "facts" / "sources.csv").open(encoding="utf-8") as file:
    FURTHER = {(row["dataset"], row["source"]): row for row in csv.DictReader(file)}


def _first_number(text):
    return int(re.match(r"\d+", text)[0])


# Sizes for which the facts have no total, or a different number first: printed sizes, or numbers next to them.
TRAINVAL = {"stl10": 5_000, "kinetics700": 494_801}
TEST = {"kinetics700": 31_669}


@pytest.mark.parametrize("spec", [spec for spec in DATASETS if spec.in_paper], ids=lambda spec: spec.name)
def test_a_row_has_the_papers_facts(spec):
    facts, sizes = FACTS[spec.name], {subset.name: subset.size for subset in spec.subsets} | dict(spec.split_sizes)
    assert spec.metric == facts["metric"]
    assert spec.num_classes == _first_number(facts["classes_actual"])
    if spec.name == "ucf101":  # its three splits divide the same clips
        splits = [(train, test) for train, test in zip((9537, 9586, 9624), (3783, 3734, 3696), strict=True)]
        assert facts["actual_trainval_size"].startswith(" / ".join(str(train) for train, _ in splits))
        assert {train + test for train, test in splits} == {sizes["all"]}
        return
    train = sizes["train"] if spec.name != "clevr_counts" else 2_000  # 2,000 of CLEVR's 70,000 images
    trainval = TRAINVAL.get(spec.name) or _first_number(facts["actual_trainval_size"])
    assert train + sizes.get("val", 0) == trainval
    halves = re.search(r"\((\d+)\+(\d+)\)", facts["actual_trainval_size"])
    if halves and "val" in sizes:
        assert (train, sizes["val"]) == tuple(map(int, halves.groups()))
    assert sizes["test"] == (TEST.get(spec.name) or _first_number(facts["actual_test_size"]))


@pytest.mark.parametrize("spec", [spec for spec in DATASETS if spec.in_paper], ids=lambda spec: spec.name)
def test_validation_is_official_where_the_facts_say_so(spec):
    has_val = FACTS[spec.name]["has_official_val"]
    official = "val" in {subset.name for subset in spec.subsets}
    made = "val" in dict(spec.split_sizes) and spec.recipe in ("eurosat", "resisc45")
    assert official == has_val.startswith("yes")
    assert made == has_val.startswith("author-made")


@pytest.mark.parametrize("spec", [spec for spec in DATASETS if spec.in_paper], ids=lambda spec: spec.name)
def test_sources_are_those_of_the_facts(spec):
    """Every class of torchvision and every repository of the hub is in a list of facts."""
    facts = FACTS[spec.name]
    for source in spec.sources:
        if source.form in ("torchvision", "stl10", "pcam"):
            assert facts["torchvision_class"].startswith((source.location, f'"{source.location}'))
        if source.form in ("huggingface", "webdataset") and (spec.name, source.location) not in FURTHER:
            assert source.location in facts["hf_dataset_ids"].partition("NOT")[0]


def test_further_sources_are_those_of_the_facts():
    """Repositories, revisions, addresses and checksums in the catalogue are exactly those in the list of facts."""
    used = {}
    for spec in DATASETS:
        for source in spec.sources:
            used[spec.name, source.location] = (dict(source.options).get("revision", ""), "")
            used |= {(spec.name, url): ("", md5) for url, md5 in source.downloads}
    assert {key: (row["revision"], row["md5"]) for key, row in FURTHER.items()} == {
        key: used.get(key, "not in the catalogue") for key in FURTHER
    }
    pinned = {key for key, found in used.items() if any(found)} | {key for key in used if key[1].startswith("https:")}
    assert pinned <= set(FURTHER)


@pytest.mark.parametrize("spec", [spec for spec in DATASETS if any(subset.class_counts for subset in spec.subsets)])
def test_images_of_each_class_add_up(spec):
    for subset in spec.subsets:
        if subset.class_counts:
            assert sum(subset.class_counts) == subset.size
            assert len(subset.class_counts) == spec.num_classes


def test_images_of_each_class_are_those_that_mteb_counted():
    """FER 2013 in mteb has its classes in alphabetical order, and both test subsets together."""
    order = (0, 1, 2, 3, 6, 4, 5)  # angry, disgust, fear, happy, neutral, sad, surprise
    train, val, test = (
        subset.class_counts for subset in next(spec for spec in DATASETS if spec.name == "fer2013").subsets
    )
    assert [train[k] for k in order] == [3995, 436, 4097, 7215, 4965, 4830, 3171]
    assert [val[k] + test[k] for k in order] == [958, 111, 1024, 1774, 1233, 1247, 831]
    train, val, test = (
        subset.class_counts for subset in next(spec for spec in DATASETS if spec.name == "fgvc_aircraft").subsets
    )
    assert (train[:6], test[:6]) == ((34, 33, 33, 34, 33, 33), (33, 33, 34, 33, 33, 34))
    assert {sum(counts) for counts in zip(train, val, test, strict=True)} == {100}


# Permitted origins of a number: the makers, a paper, a thread with the authors, a library that has counted.
SOURCES = re.compile(r"home page|makers'|et al\. \d{4}|openai/CLIP#\d+|TensorFlow Datasets|scikit-learn|torchvision")


@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec.name)
def test_every_row_says_where_its_numbers_come_from(spec):
    assert SOURCES.search(spec.numbers_from)


@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec.name)
def test_labels_of_the_ends_are_those_of_a_sorted_tree_or_read_from_the_files(spec):
    """The first and the last label are unknown, or the first and the last class, or were read from the files."""
    for subset in spec.subsets:
        ends = (subset.first_label, subset.last_label)
        assert ends in {(None, None), (0, spec.num_classes - 1)} or spec.name in ("digits", "fashion_mnist")


def test_all_datasets_of_the_paper_are_here():
    assert {spec.name for spec in DATASETS if spec.in_paper} == set(FACTS)
