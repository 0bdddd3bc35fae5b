import csv
import json
from pathlib import Path

import pytest
from make.records import changed, make_record

from probe.cli.main import main
from probe.datasets.catalog import DATASETS
from probe.errors import UnknownNameError
from probe.leaderboard.published import TABLES, compare_markdown, published_scores
from probe.models.catalog import MODELS
from probe.records.record import write_record
from probe.records.schema import IntervalRecord


def _record(dataset="food101", model="ViT-B/32", score=0.888, interval=None, **changes):
    record = make_record(dataset, model, score=score, protocol="clip-paper", **changes)
    if interval is not None:
        record = changed(record, "result.interval", IntervalRecord(*interval, method="wilson"))
    return record


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_have_every_model_and_dataset_of_the_paper(table):
    """Nine models and 27 datasets have the names of the catalogues, and scores are fractions."""
    scores = published_scores(table)
    datasets = {spec.name for spec in DATASETS if spec.in_paper}
    models = {spec.name for spec in MODELS} - {"tiny"}
    assert set(scores) == {(model, dataset) for model in models for dataset in datasets}
    assert all(0 < score < 1 for score in scores.values())


def test_known_cells_are_as_printed():
    assert published_scores("linear-probe")["ViT-L/14@336px", "imagenet"] == pytest.approx(0.854)
    assert published_scores("zero-shot")["ViT-L/14@336px", "imagenet"] == pytest.approx(0.762)
    with pytest.raises(UnknownNameError, match="linear-prob"):
        published_scores("linear-prob")


@pytest.mark.parametrize(
    ("interval", "mark"), [((0.88, 0.89), ""), ((0.8884, 0.9), ""), ((0.8886, 0.9), " !"), ((0.8, 0.87), " !")]
)
def test_a_difference_beyond_the_interval_is_marked(interval, mark):
    """The paper's 88.8 is rounded, and can stand for up to 88.85."""
    page = compare_markdown([_record(score=0.89, interval=interval)])
    cells = [cell.strip() for cell in page.splitlines()[2].split("|")]
    assert cells[-3:-1] == ["88.8", f"+0.20{mark}"]
    assert ("outside of the confidence interval" in page) == bool(mark)


def test_only_cells_of_the_paper_under_its_protocol_are_compared():
    others = [_record(dataset="digits"), _record(model="tiny"), make_record("food101", "ViT-B/32", protocol="readme")]
    assert compare_markdown(others) == ""
    page = compare_markdown([*others, _record(model="RN50"), _record()])
    assert len([line for line in page.splitlines() if line.startswith("| food101")]) == 2
    assert page.endswith("only one source has the published scores of RN50\n")


def _zero_shot(dataset, templates=("a photo of a {}.",)):
    record = make_record(dataset, "ViT-B/32", score=0.8, protocol="zero-shot")
    return changed(record, "prompts.templates", templates)


def test_zero_shot_is_compared_with_the_papers_table_of_zero_shot_beside_that_of_probes():
    page = compare_markdown([_record(), _zero_shot("food101")])
    probes, zero_shot = page.split("Zero-shot, compared with table 11 of the paper:")
    assert probes.startswith("Linear probes, compared with table 10 of the paper:")
    (row,) = [line for line in zero_shot.splitlines() if line.startswith("| food101")]
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["84.4", "-4.40"]
    assert "solver" not in zero_shot
    assert compare_markdown([_zero_shot("food101")]).startswith("Zero-shot, compared")


def test_prompts_that_differ_from_the_papers_are_named():
    """For VOC2007 the paper used the README's template alone; records with other templates may have the paper's."""
    imagenet = changed(_zero_shot("imagenet", ("a {}.", "the {}.")), "prompts.templates_from", "open_clip 3.3.0")
    records = [_zero_shot("food101"), _zero_shot("voc2007"), imagenet]
    page = compare_markdown(records)
    assert page.endswith("\nthe paper used different templates for food101\n")
    assert "different templates" not in compare_markdown(records[1:])


def test_the_comparison_as_json_names_the_protocol(tmp_path, capsys):
    for record in (_record(), _zero_shot("food101")):
        write_record(record, tmp_path)
    assert main(["tables", "--compare", "clip-paper", "--json", "--results-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["protocol"], one["solver"]) for one in found] == [("clip-paper", "sklearn"), ("zero-shot", None)]


def test_the_command_prints_the_comparison(tmp_path, capsys):
    write_record(_record(), tmp_path)
    assert main(["tables", "--compare", "clip-paper", "--results-dir", str(tmp_path)]) == 0
    assert "| +0.00" in capsys.readouterr().out
    assert not (tmp_path / "tables").exists()


def test_nothing_to_compare_is_said(tmp_path, capsys):
    write_record(_record(dataset="digits"), tmp_path)
    assert main(["tables", "--compare", "clip-paper", "--results-dir", str(tmp_path)]) == 1
    assert "has a dataset and model of the paper" in capsys.readouterr().err


def test_the_files_are_read_as_they_were_printed():
    """Every cell has a number with one decimal."""
    for name in TABLES.values():
        with (Path(__file__).parents[2] / "probe" / "leaderboard" / "published" / name).open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                assert all(
                    cell.count(".") == 1 and len(cell.split(".")[1]) == 1 for k, cell in row.items() if k != "model"
                )
