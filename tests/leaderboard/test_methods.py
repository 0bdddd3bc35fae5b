import csv
import io
import json
from dataclasses import replace

import pytest
from make.records import NUM_TEST, changed, make_failure, make_record, page_record, scored_record

from probe.cli.main import main
from probe.leaderboard.cards import model_index
from probe.leaderboard.derived import METHODS, find_stale, render_derived, write_derived
from probe.leaderboard.exports import to_json, to_latex
from probe.leaderboard.methods import HEADER, compare_methods, methods_to_markdown
from probe.leaderboard.modes import HEADER as HEADER_OF_MODES
from probe.leaderboard.modes import modes_to_markdown, pair_modes, rows
from probe.leaderboard.ranking import dataset_ranks
from probe.leaderboard.sections import make_sections
from probe.leaderboard.tables import footnotes, records_to_csv, records_to_markdown
from probe.leaderboard.texts import sections_to_markdown
from probe.records.diff import diff
from probe.records.record import read_records, record_path, write_record
from probe.records.schema import IntervalRecord, SplitRecord
from probe.records.verdicts import judge
from probe.stats.paired import mcnemar

NAMES = ("zero-shot", "knn-5", "knn", "clip-paper", "readme")
WRONG = dict(zip(NAMES, (100, 60, 50, 30, 40), strict=True))
ALL = [page_record("digits", "tiny", WRONG[name], protocol=name) for name in NAMES]


def _cells(text):
    """Return the rows of a Markdown table by their header, in the order of the table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def _rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def _by_fast(record):
    return changed(record, "spec.solver", "fast")


@pytest.mark.parametrize("name", ["zero-shot", "knn", "knn-5"])
def test_a_record_without_a_fit_is_read_as_it_was_written(name, tmp_path):
    record = make_record(protocol=name)
    write_record(record, tmp_path)
    assert read_records(tmp_path) == [record]
    assert record_path(record, tmp_path).name == f"tiny.eager.{name}.fp32.json"


def test_tables_show_k_and_neither_c_nor_solver_nor_iterations_of_what_is_not_fitted():
    shown = {row["protocol"]: row for row in _cells(records_to_markdown(ALL))}
    columns = ("C or k", "solver", "iterations")
    assert {name: tuple(shown[name][column] for column in columns) for name in NAMES} == {
        "zero-shot": ("—", "—", "—"),
        "knn-5": ("k = 5", "—", "—"),
        "knn": ("k = 20", "—", "—"),
        "clip-paper": ("1", "sklearn", "12"),
        "readme": ("0.316", "sklearn", "12"),
    }
    assert footnotes(ALL) == []
    for row in _rows(records_to_csv(ALL)):
        is_fitted = row["protocol"] in ("clip-paper", "readme")
        assert all(bool(row[column]) == is_fitted for column in ("C", "solver", "n_iter", "gradient_ratio"))
        assert row["k"] == {"knn-5": "5", "knn": "20"}.get(row["protocol"], "")
        assert bool(row["num_train"]) == (row["protocol"] != "zero-shot")


def test_folds_with_different_k_are_said_to_vary():
    record = changed(make_record(protocol="knn"), "result.k", None)
    assert _cells(records_to_markdown([record]))[0]["C or k"] == "varies"
    assert footnotes([record])[-1].startswith("varies: each fold has its own k;")


def test_a_failed_zero_shot_run_has_no_solver():
    (row,) = _cells(records_to_markdown([make_failure(protocol="zero-shot")]))
    assert (row["score, %"], row["solver"]) == ("failed", "—")


def test_sections_without_a_fit_have_no_solver_in_their_titles():
    assert [section.title for section in make_sections([make_record(protocol="knn")])] == [
        "knn, projected features, eager, fp32"
    ]


def test_models_are_ranked_zero_shot_as_by_probes():
    records = [scored_record(name, wrong, protocol="zero-shot") for name, wrong in (("a", 20), ("b", 25), ("c", 60))]
    assert [dataset_ranks(records)[record.key] for record in records] == ["1 =", "1 =", "3"]
    (section,) = make_sections(records)
    assert [line.rank for line in section.lines] == ["1 =", "1 =", "3"]


def test_methods_stand_side_by_side_with_the_paired_test_of_the_probe_and_zero_shot():
    """On 70 images, the probe is right and zero-shot is wrong. On no image is it the other way round."""
    (row,) = compare_methods(ALL)
    assert row.probe_name == "clip-paper by sklearn"
    assert row.test.p_value == mcnemar(70, 0)
    assert row.test.difference == pytest.approx(0.175)
    (cells,) = _cells(methods_to_markdown([row]))
    assert cells == {
        **{"dataset": "digits", "model": "tiny", "mode": "eager", "precision": "fp32"},
        **{"zero-shot": "75.00 ±1.50", "knn-5": "85.00 ±1.50", "knn": "87.50 ±1.50", "linear probe": "92.50 ±1.50"},
        **{"probe protocol": "clip-paper by sklearn", "difference": "+17.50", "p": f"{mcnemar(70, 0):.2g}"},
    }


def test_the_probe_is_that_of_the_paper_by_the_default_solver_if_it_is_there():
    few = page_record("digits", "tiny", 10, protocol="few-shot-16")
    zero_shot, paper, readme = ALL[0], ALL[3], ALL[4]
    assert compare_methods([zero_shot, few]) == []  # a few-shot probe is not fitted on all images
    for records, name in (
        ([readme, few, zero_shot], "readme by sklearn"),
        ([readme, paper, zero_shot], "clip-paper by sklearn"),
        ([_by_fast(readme), paper, zero_shot], "clip-paper by sklearn"),
        ([paper, _by_fast(paper), zero_shot], "clip-paper"),
        ([page_record("digits", "tiny", 1, protocol="mine"), zero_shot], "mine by sklearn"),
    ):
        assert [row.probe_name for row in compare_methods(records)] == [name]


def test_modes_and_models_have_rows_of_their_own():
    records = [
        page_record("digits", model, 20, protocol=name, jit=jit)
        for model in "ab"
        for jit in (False, True)
        for name in ("knn", "readme")
    ]
    found = [(row.records[0].model, row.records[0].mode) for row in compare_methods(records)]
    assert found == [("a", "eager"), ("a", "jit"), ("b", "eager"), ("b", "jit")]
    (first, *_) = _cells(methods_to_markdown(compare_methods(records)))
    assert "zero-shot" not in first  # no record has it, so there is no column and no difference
    assert "difference" not in first


def test_scores_on_different_test_images_are_not_compared():
    other = replace(ALL[3], splits={"test": SplitRecord("other", NUM_TEST)})
    (row,) = compare_methods([ALL[0], other])
    assert row.test is None
    text = methods_to_markdown([row])
    assert _cells(text)[0]["difference"] == _cells(text)[0]["p"] == ""
    assert (
        "tiny on digits, eager, fp32, has no difference: the linear probe and zero-shot have different test images."
        in text
    )


def test_scores_of_different_weights_are_not_compared():
    (row,) = compare_methods([ALL[0], changed(ALL[3], "encoder.weights_sha256", "cd" * 32)])
    assert row.test is None
    assert "different weights" in row.reason


def test_the_feature_point_of_the_probe_is_named_if_it_is_not_projected():
    before = changed(ALL[3], "spec.protocol.feature_point", "pre_projection")
    (row,) = compare_methods([ALL[0], before])
    assert _cells(methods_to_markdown([row]))[0]["probe protocol"] == "clip-paper by sklearn (pre_projection)"
    (row,) = compare_methods([ALL[0], _by_fast(before)])
    assert row.probe_name == "clip-paper (pre_projection)"
    for records, point in ((ALL, "projected"), ([ALL[0], before], "pre_projection"), (ALL[:3], "")):
        assert _rows(render_derived(records)[METHODS])[0]["probe_feature_point"] == point


def test_a_record_without_outcomes_is_named_as_the_reason_why_there_is_no_test():
    (row,) = compare_methods([ALL[0], make_record(protocol="readme")])
    assert row.reason.startswith("readme: it has no outcomes of test images")


def test_every_format_of_the_leaderboard_has_the_methods(tmp_path):
    sections = make_sections(ALL)
    assert "## Zero-shot, k-NN and linear probe\n" in sections_to_markdown(sections)
    (values,) = json.loads(to_json(sections))["methods"]
    assert tuple(values) == tuple(sorted(HEADER))
    assert (values["zero_shot"], values["probe"], values["test"]) == (0.75, 0.925, "mcnemar")
    assert "linear probe" in to_latex(sections)
    (row,) = _rows(render_derived(ALL)[METHODS])
    assert tuple(row) == HEADER
    assert row["probe_solver"] == "sklearn"
    assert 'id="methods"' in render_derived(ALL)["leaderboard.html"]


def test_without_zero_shot_and_neighbours_nothing_of_them_is_shown():
    files = render_derived(ALL[3:])
    assert METHODS not in files
    for name, text in files.items():
        shown = text.partition("<script id=")[0]
        assert "k-NN" not in shown, name
        assert "knn" not in shown, name
    assert "methods" not in json.loads(to_json(make_sections(ALL[3:])))
    assert "C or k" not in records_to_markdown(ALL[3:])
    assert "k" not in _rows(records_to_csv(ALL[3:]))[0]


def test_methods_of_removed_records_are_stale(tmp_path):
    for record in ALL:
        write_record(record, tmp_path)
    write_derived(tmp_path)
    assert not find_stale(tmp_path).differing
    for record in ALL[:3]:
        record_path(record, tmp_path).unlink()
    assert find_stale(tmp_path).orphans == [tmp_path / METHODS]


def test_the_command_prints_the_methods(tmp_path, capsys):
    for record in ALL:
        write_record(record, tmp_path)
    assert main(["leaderboard", "--results-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Scores of linear probes, k-nearest neighbours and zero-shot classification in percent: 5 runs" in text
    assert "- `zero-shot`: Images are compared with texts" in text
    assert "+17.50" in text


def test_both_modes_of_zero_shot_are_compared():
    records = [scored_record("tiny", 20 + jit, protocol="zero-shot", jit=bool(jit)) for jit in (0, 1)]
    (row,) = _cells(modes_to_markdown(records))
    assert row["protocol"] == "zero-shot"
    assert dict(zip(HEADER_OF_MODES, rows(pair_modes(records))[0], strict=True))["solver"] is None


def test_a_card_names_the_method_and_the_prompts():
    text = model_index(ALL[:3])
    assert "type: zero-shot-image-classification" in text
    assert "name: Zero-shot classification" in text
    assert "name: Nearest neighbours of image features" in text
    assert "a photo of a {}." in text
    assert "k: 20" in text
    assert "solver" not in text


def test_diff_tests_a_probe_against_zero_shot():
    difference = diff(ALL[3], ALL[0])
    assert "only A is right on 70 test images, only B on 0" in difference.verdict
    assert {change.stage for change in difference.changes} >= {"probe", "fit", "score"}


def test_a_reproduction_says_what_changed_of_prompts_and_neighbours():
    zero_shot, neighbours = ALL[0], ALL[2]
    moved = changed(zero_shot, "prompts.templates", ("a drawing of a {}.",))
    assert _probe_stage(zero_shot, moved) == "different templates"
    assert _probe_stage(neighbours, changed(neighbours, "result.k", 10)) == "k 20 -> 10"


def _probe_stage(record, again):
    return next(stage.moved for stage in judge(record, again).stages if stage.name == "probe")


def test_intervals_of_methods_are_fractions_in_csv():
    record = changed(ALL[0], "result.interval", IntervalRecord(0.7, 0.8))
    (row,) = _rows(render_derived([record, *ALL[1:]])[METHODS])
    assert (row["zero_shot_low"], row["zero_shot_high"]) == ("0.7", "0.8")
