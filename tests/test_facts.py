"""The catalogue against the facts that were collected of the paper's datasets, field by field.

`facts/clip_paper_datasets.csv` is Radford et al. 2021, table 9, with the true sizes beside the printed ones.
"""

import csv
import re
from pathlib import Path

import pytest

from probe.datasets.catalog import CATALOG

with (Path(__file__).parent / "facts" / "clip_paper_datasets.csv").open(encoding="utf-8") as file:
    FACTS = {row["key"]: row for row in csv.DictReader(file)}


def _first_number(text):
    return int(re.match(r"\d+", text)[0])


def test_what_is_marked_as_in_the_paper_is():
    assert {spec.name for spec in CATALOG if spec.in_paper} <= set(FACTS)
    assert not {spec.name for spec in CATALOG if not spec.in_paper} & set(FACTS)


@pytest.mark.parametrize("spec", [spec for spec in CATALOG if spec.in_paper], ids=lambda spec: spec.name)
def test_a_row_has_the_papers_facts(spec):
    facts, sizes = FACTS[spec.name], {part.name: part.size for part in spec.parts}
    assert spec.metric == facts["metric"]
    assert spec.num_classes == _first_number(facts["classes_actual"])
    assert sizes["train"] + sizes.get("val", 0) == _first_number(facts["actual_trainval_size"])
    assert sizes["test"] == _first_number(facts["actual_test_size"])
    assert ("val" in sizes) == facts["has_official_val"].startswith("yes")
    assert facts["torchvision_class"].startswith(spec.source)
