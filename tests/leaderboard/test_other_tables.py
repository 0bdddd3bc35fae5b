import json

import pytest
from make.records import changed, make_record

from probe.cli.main import main
from probe.datasets import get_dataset
from probe.errors import UnknownNameError
from probe.leaderboard.published import published_scores
from probe.leaderboard.published.other_tables import OTHER_TABLES, compare_with_other, other_markdown, other_scores
from probe.models import get_model
from probe.probes.protocols import protocol_names
from probe.records.record import write_record
from probe.records.schema import ConventionRecord, FurtherTestRecord, IntervalRecord

MODEL = "ViT-L/14@336px"


def _test(name, among_all, among_own):
    both = [ConventionRecord(score, IntervalRecord(score - 0.01, score + 0.01)) for score in (among_all, among_own)]
    return FurtherTestRecord(name, metric="accuracy", num_classes=200, all_classes=both[0], own_classes=both[1])


def _record(protocol="clip-paper", dataset="imagenet", model=MODEL, score=0.85, tests=()):
    record = make_record(dataset, model, score=score, protocol=protocol, tests=tests)
    return changed(record, "result.interval", IntervalRecord(score - 0.01, score + 0.01, method="wilson"))


def _cells(page):
    lines = [line for line in page.splitlines() if line.startswith("| imagenet")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize("table", OTHER_TABLES)
def test_every_score_is_of_a_model_dataset_and_protocol_that_can_be_run(table):
    assert other_scores(table)
    for one in other_scores(table):
        assert get_model(one.model).name == one.model
        assert not one.test_set or one.test_set in get_dataset(one.dataset).tests
        assert set(one.protocols) <= set(protocol_names())
        assert 0.5 < one.score < 1


def test_figure_14_agrees_with_the_tables_of_the_same_paper():
    own = {one.protocols: one.score for one in other_scores("figure-14") if not one.test_set}
    assert own["zero-shot",] == published_scores("zero-shot")[MODEL, "imagenet"]
    assert own["clip-paper",] == published_scores("linear-probe")[MODEL, "imagenet"]


def test_the_probe_of_figure_14_differs_from_zero_shot_as_printed():
    """The paper prints differences: -4.7 on ImageNet-R, -3.8 on ObjectNet, -2.8 on Sketch and -1.9 on ImageNet-A."""
    scores = {(one.protocols[0], one.test_set): one.score for one in other_scores("figure-14")}
    differences = {"imagenet_r": -4.7, "objectnet": -3.8, "imagenet_sketch": -2.8, "imagenet_a": -1.9}
    for test_set, points in differences.items():
        assert 100 * (scores["clip-paper", test_set] - scores["zero-shot", test_set]) == pytest.approx(points)


def test_a_test_set_is_compared_under_both_conventions():
    record = _record(tests=(_test("imagenet_r", 0.8, 0.84), _test("imagenet_v2_matched", 0.7, 0.7)))
    rows = _cells(other_markdown([record], "figure-14"))
    assert [row[1] for row in rows] == ["", "imagenet_r, all classes", "imagenet_r, own classes"]
    assert [row[-2:] for row in rows] == [["85.4", "-0.40"], ["84.2", "-4.20 !"], ["84.2", "-0.20"]]


def test_differences_of_the_protocol_are_said():
    page = other_markdown([_record("knn", model="transformers:facebook/dinov2-base")], "dinov2")
    assert page.startswith("k-NN and linear probes, compared with DINOv2's:\n")
    assert "Our k is chosen on a validation split" in page
    assert page.count("82.1") == 1
    assert "84.5" not in page  # the score of a linear probe
    laion = other_markdown([_record("open-clip", model="open_clip:ViT-B-16/laion400m_e32", score=0.78)], "laion")
    assert "the best of 9 settings on the test split" in laion


def test_only_the_protocols_of_a_table_are_compared():
    assert compare_with_other([_record("readme"), _record("few-shot-4"), _record(dataset="digits")], "figure-14") == []
    assert other_markdown([_record("readme")], "laion") == ""
    with pytest.raises(UnknownNameError, match="did you mean 'laion'"):
        other_scores("lion")


def test_the_command_compares_as_text_and_as_json(tmp_path, capsys):
    write_record(_record(), tmp_path)
    command = ["tables", "--compare", "figure-14", "--results-dir", str(tmp_path)]
    assert main(command) == 0
    assert "| -0.40" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["test_set"], found["is_outside"]) == (None, False)
    assert found["published"] == pytest.approx(0.854)


def test_nothing_to_compare_is_said_in_one_sentence(tmp_path, capsys):
    write_record(_record(dataset="digits"), tmp_path)
    assert main(["tables", "--compare", "laion", "--results-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "can be compared with laion, which has scores of" in said
    assert "on imagenet, cifar100, for records of the protocols open-clip, clip-paper; run one of these first" in said
    assert said.count("\n") == 1
