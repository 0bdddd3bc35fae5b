import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from make.records import NUM_TEST, changed, make_failure, make_record, make_result, scored_record

from probe.leaderboard.exports import FORMATS, to_json, to_latex, to_parquet
from probe.leaderboard.labels import short_names
from probe.leaderboard.ranking import Evidence, dataset_ranks, mean_ranks
from probe.leaderboard.sections import OTHER_IMAGES, make_sections
from probe.leaderboard.tables import rows_to_csv
from probe.leaderboard.texts import notes, sections_to_markdown, table, to_text
from probe.records.packing import pack
from probe.records.schema import EncoderRecord, IntervalRecord, ReadRecord, SplitRecord
from probe.stats.outcomes import Outcomes
from probe.stats.paired import compare


def _cell(dataset, model, num_wrong, **changes):
    """Return a record of a dataset of 400 test images, with an interval around its score."""
    record = scored_record(model, num_wrong, dataset=dataset, **changes)
    score = record.result.score
    return changed(record, "result.interval", IntervalRecord(score - 0.02, score + 0.01))


def _ranks(records):
    return mean_ranks({model: [Evidence(record) for record in own] for model, own in records.items()})


def _rows(found):
    return list(csv.DictReader(io.StringIO(rows_to_csv(*table(found)))))


def test_what_does_not_compare_has_sections_of_its_own():
    """This holds for different protocols, rules under the same name, feature points, solvers, modes and precisions."""
    base = make_record()
    variants = [base, make_record(protocol="clip-paper"), make_record(jit=True)]
    variants += [changed(base, "spec.solver", "fast"), changed(base, "spec.precision", "fp16")]
    variants += [changed(base, "spec.protocol.feature_point", "pre_projection")]
    variants += [changed(base, "spec.protocol.max_iter", 5)]
    found = make_sections(variants)
    assert [len(section.lines) for section in found] == [1] * len(variants)
    text = sections_to_markdown(found)
    assert text.count(", rules ") == 2  # in the titles of the two that differ only in max_iter


def test_a_protocol_whose_prose_was_mended_is_the_same_protocol():
    mended = changed(changed(make_record(model="b"), "spec.protocol.source", "X"), "spec.protocol.title", "X")
    assert len(make_sections([make_record(), mended])) == 1


def test_datasets_are_in_the_order_of_the_catalogue_and_few_shot_in_that_of_numbers():
    records = [make_record(name, protocol="few-shot-16") for name in ("zoo", "cifar10", "abc", "digits")]
    found = make_sections([*records, make_record(protocol="few-shot-2")])
    assert found[0].datasets == ("digits", "cifar10", "abc", "zoo")
    found = make_sections([make_record(protocol=f"few-shot-{shots}") for shots in (16, 2, 1)])
    assert [section.protocol for section in found] == ["few-shot-1", "few-shot-2", "few-shot-16"]


def test_the_section_with_the_most_scores_is_first():
    """Failures are not scores. On a tie, the protocol with more scores is first, then the section with fewer marks."""
    broad = [make_record(name, model, protocol="zz") for name in ("digits", "mnist") for model in "ab"]
    narrow = [make_record(protocol="aa"), *(make_failure(dataset=f"d{k}", protocol="aa") for k in range(9))]
    assert [section.protocol for section in make_sections([*narrow, *broad])] == ["zz", "aa"]
    equal = [make_record(protocol="aa"), make_record(protocol="zz"), make_record(protocol="zz", jit=True)]
    assert make_sections(equal)[0].protocol == "zz"
    marked = [make_record(converged=False), make_record(jit=True)]
    assert make_sections(marked)[0].mode == "jit"


def test_the_mean_is_over_the_datasets_that_all_models_have():
    """Otherwise, a model would gain by leaving out the datasets on which it is bad."""
    records = [_cell("digits", "a", 20), _cell("mnist", "a", 40), _cell("cifar10", "a", 80)]
    records += [_cell("digits", "b", 30), _cell("mnist", "b", 20), make_failure(dataset="cifar10", model="b")]
    (section,) = make_sections(records)
    assert section.common == ("digits", "mnist")
    means = {line.model: line.mean for line in section.lines}
    assert means == {"a": pytest.approx(1 - 60 / 800), "b": pytest.approx(1 - 50 / 800)}
    assert [line.model for line in section.lines] == ["b", "a"]
    assert section.lines[0].half_width == pytest.approx(math.hypot(0.015, 0.015) / 2)
    assert "digits, mnist" in notes(section)[-1]
    rows = _rows([section])
    assert [row["num_datasets"] for row in rows] == ["2", "2"]
    assert [(row["cifar10"], row["cifar10_status"]) for row in rows] == [("", "failed"), ("0.8", "ok")]


def test_missing_failed_unfinished_partial_and_zero_look_different():
    partial = make_record("mnist", "d", read=ReadRecord(partial={"test": (4, 5)}))
    records = [make_failure(model="a"), make_record(model="b", score=0.0), make_record(model="c", converged=False)]
    text = sections_to_markdown(make_sections([*records, partial]))
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]] for line in text.splitlines()[8:12]
    }
    assert lines == {"a": ["failed", "—"], "b": ["0.00", "—"], "c": ["**50.00** *", "—"], "d": ["—", "50.00 +"]}


def test_scores_of_other_test_images_are_marked_and_left_out():
    """A dataset can change between two runs. The column then has the test images of most records."""
    mine, other = ({"test": SplitRecord(digest, NUM_TEST)} for digest in ("mine", "other"))
    records = [_cell("digits", model, 20, splits=mine) for model in "ab"] + [_cell("digits", "c", 2, splits=other)]
    records += [_cell("mnist", model, 20, splits=mine) for model in "abc"]
    (section,) = make_sections(records)
    assert section.common == ("mnist",)
    assert {cell.record.model: cell.status for cell in section.cells if cell.is_other} == {"c": OTHER_IMAGES}
    text = sections_to_markdown([section])
    assert "99.50 ±1.50 #" in text
    assert "- `#`: Scored on other test images" in text


def test_zero_shot_scores_with_other_prompts_are_marked_and_left_out():
    a, b, c = (scored_record(model, wrong, protocol="zero-shot") for model, wrong in (("a", 20), ("b", 60), ("c", 2)))
    other = changed(c, "prompts.templates", ("a drawing of a {}.",))
    (section,) = make_sections([a, b, other])
    assert {cell.record.model: cell.rank for cell in section.cells} == {"a": "1", "b": "2", "c": ""}
    assert {cell.record.model: cell.status for cell in section.cells if cell.is_other} == {"c": OTHER_IMAGES}
    ranks = dataset_ranks([a, b, other])
    assert [ranks.get(record.key) for record in (a, b, other)] == ["1", "2", None]


def _places(records):
    (section,) = make_sections(records)
    return {cell.record.model: cell.place for cell in section.cells}


def test_the_best_score_and_those_tied_with_it_are_marked():
    """Five more errors can be chance, six cannot; see `test_one_dataset_is_ranked_by_mcnemars_test`."""
    records = [scored_record("a", 20), scored_record("b", 25), scored_record("c", 26)]
    assert _places(records) == {"a": "best", "b": "tied", "c": ""}
    text = sections_to_markdown(make_sections(records))
    assert "| **95.00**" in text
    assert "| **93.75 =**" in text
    assert "| 93.50 " in text
    assert [row["digits_rank"] for row in _rows(make_sections(records))] == ["1 =", "1 =", "2"]
    assert _places([scored_record("a", 20), scored_record("b", 20)]) == {"a": "best", "b": "best"}


def test_a_score_alone_is_not_the_best_and_one_without_outcomes_ties_with_nothing():
    assert _places([scored_record("a", 20)]) == {"a": ""}
    old = make_record(model="old", score=0.99)
    assert _places([old, scored_record("b", 20), scored_record("c", 21)]) == {"old": "best", "b": "", "c": ""}


def test_local_datasets_have_the_name_of_their_folder():
    records = [make_record("folder:/data/moths", "/weights/mine.pt"), make_record("digits", "/weights/mine.pt")]
    (section,) = make_sections(records)
    assert to_text(section)[0] == ["model", "mean of 2", "digits", "moths"]
    assert to_text(section)[1][0][0] == "mine.pt"
    assert "/data" not in sections_to_markdown([section])
    assert _rows([section])[0]["folder:/data/moths"] == "0.5"  # files for programs have the full name


@pytest.mark.parametrize("names", [["folder:/", "folder:"], ["", "."], ["csv:/a/b.csv", "b.csv", "folder:/x/b.csv"]])
def test_labels_of_different_names_differ(names):
    assert len(set(short_names(names).values())) == len(names)


def test_weights_that_changed_under_a_name_are_noted():
    records = [_cell("digits", "a", 20), _cell("mnist", "a", 20, encoder=EncoderRecord(weights_sha256="other"))]
    assert "The records of a have 2 different sets of weights." in notes(make_sections(records)[0])


def _random(rng, shared, skill):
    return Outcomes("accuracy", {"right": shared + 0.5 * rng.normal(size=len(shared)) < skill})


def _with(record, outcomes):
    return replace(record, result=replace(record.result, outcomes=(pack(outcomes),), score=outcomes.score()))


def test_means_are_tested_as_a_bootstrap_of_all_test_images_would():
    """The ranks equal those from paired tests on the images of both datasets, which have one size, in one array."""
    rng = np.random.default_rng(0)
    easy, hard = rng.normal(size=(2, 2000))
    skills = {"a": 1.0, "b": 1.02, "c": 1.2}
    outcomes = {model: [_random(rng, shared, skill) for shared in (easy, hard)] for model, skill in skills.items()}
    names = ("digits", "mnist")
    records = {
        m: [_with(scored_record(m, 0, dataset=d), o) for d, o in zip(names, own, strict=True)]
        for m, own in outcomes.items()
    }
    ranks = _ranks(records).ranks
    joined = {
        m: Outcomes("accuracy", {"right": np.concatenate([o.arrays["right"] for o in own])})
        for m, own in outcomes.items()
    }
    better = {
        m: sum(
            compare([joined[o]], [joined[m]]).p_value < 0.05 and joined[o].score() > joined[m].score() for o in joined
        )
        for m in joined
    }
    assert {m: int(rank.split()[0]) - 1 for m, rank in ranks.items()} == better == {"a": 1, "b": 1, "c": 0}
    assert ranks["a"] == ranks["b"] == "2 ="


def test_one_dataset_is_ranked_by_mcnemars_test():
    """Five more errors can be chance (p = 2 / 2^5), six cannot (p = 2 / 2^6)."""
    assert _ranks({"a": [scored_record("a", 20)], "b": [scored_record("b", 25)]}).ranks == {"a": "1 =", "b": "1 ="}
    assert _ranks({"a": [scored_record("a", 20)], "b": [scored_record("b", 26)]}).ranks == {"a": "1", "b": "2"}


def _of_draws(name, wrong, *, folds=False):
    """Return one record, with a number of wrong test images for each draw, in one fold or in two equal folds."""
    record = scored_record(name, 0)
    outcomes = [Outcomes("accuracy", {"right": np.arange(NUM_TEST) >= n}) for n in wrong]
    draws = tuple(make_result(outcome.score()) for outcome in outcomes)
    subsets = {"folds": (make_result(draws=draws),) * 2} if folds else {"draws": draws}
    score = float(np.mean([outcome.score() for outcome in outcomes]))
    result = replace(record.result, outcomes=tuple(map(pack, outcomes)), score=score, **subsets)
    return [replace(record, result=result)]


@pytest.mark.parametrize("folds", [False, True])
def test_draws_of_training_images_count_in_ranks_of_few_shot(folds):
    """A difference of means can be chance if the sign of the difference changes from draw to draw."""
    a, steady, unsteady = [100] * 5, [140] * 5, [0, 280, 20, 280, 120]
    ranks = [
        _ranks({"a": _of_draws("a", a, folds=folds), "b": _of_draws("b", b, folds=folds)}).ranks
        for b in (steady, unsteady)
    ]
    assert ranks == [{"a": "1", "b": "2"}, {"a": "1 =", "b": "1 ="}]


@pytest.mark.parametrize("num_draws", [3, 5])
def test_few_draws_are_judged_by_students_t(num_draws):
    """Chance alone separates one in twenty pairs by Student's t. By the normal distribution, it would be one in six."""
    rng = np.random.default_rng(num_draws)
    told = 0
    for _ in range(200):
        wrong = rng.integers(40, 200, size=(2, num_draws))
        ranks = _ranks({"a": _of_draws("a", wrong[0]), "b": _of_draws("b", wrong[1])}).ranks
        told += ranks["a"] != ranks["b"]
    assert told <= 20  # 10 are expected; more than 20 occur in one of a thousand such tests


def test_a_model_without_outcomes_has_no_rank_and_the_others_do():
    found = _ranks({"a": [scored_record("a", 20)], "b": [scored_record("b", 60)], "old": [make_record(model="old")]})
    assert found.ranks == {"a": "1", "b": "2"}
    assert found.reasons["old"].startswith("digits: it has no outcomes")
    (section,) = make_sections([scored_record("a", 20), scored_record("b", 60), make_record(model="old")])
    assert any(note.startswith("old has no rank: digits: ") for note in notes(section))


def test_outcomes_that_do_not_go_together_cost_a_rank_and_nothing_else():
    """After an edit by hand, a record can have the digest of the test images, but outcomes of a different number."""
    outcomes = pack(Outcomes("accuracy", {"right": np.ones(300, bool)}))
    odd = changed(scored_record("c", 20), "result.outcomes", (outcomes,))
    found = _ranks({"a": [scored_record("a", 20)], "b": [scored_record("b", 60)], "c": [odd]})
    assert found.ranks == {"a": "1", "b": "2"}
    assert "300 test images" in found.reasons["c"]


def test_another_metric_is_not_averaged_with_the_others():
    other = changed(scored_record("c", 2), "spec.dataset.metric", "mean_per_class")
    (section,) = make_sections([scored_record("a", 20), scored_record("b", 60), other])
    assert section.common == ()
    assert {cell.record.model for cell in section.cells if cell.is_other} == {"c"}
    assert "no mean is shown" in " ".join(notes(section))
    assert "digits lacks c" in " ".join(notes(section))


def test_metrics_other_than_accuracy_are_named():
    cars = changed(make_record("cars"), "spec.dataset.metric", "mean_per_class")
    text = sections_to_markdown(make_sections([make_record(), cars]))
    assert "\nMean per-class recall, not accuracy: cars.\n" in text


def test_the_mean_of_one_dataset_and_ranks_that_nobody_has_get_no_column():
    one = [_cell("digits", "a", 20), _cell("digits", "b", 40)]
    several = [*one, _cell("mnist", "a", 40)]
    alone = [make_failure(model="a"), make_record("mnist", "b")]
    headers = [to_text(section)[0] for records in (one, several, alone) for section in make_sections(records)]
    assert headers == [["rank", "model", "digits"], ["rank", "model", "digits", "mnist"], ["model", "digits", "mnist"]]
    assert not any("mean" in note for note in notes(make_sections(one)[0]))
    assert "Only digits has scores of all models" in notes(make_sections(several)[0])[-1]


def test_the_mean_of_one_dataset_has_its_interval():
    (section,) = make_sections([_cell("digits", "a", 20), _cell("digits", "b", 40), _cell("mnist", "a", 40)])
    assert (section.lines[0].low, section.lines[0].high) == pytest.approx((0.93, 0.96))


def test_a_mean_has_the_marks_of_what_it_is_of():
    """The mean has the mark of a score whose fit did not converge."""
    unfinished = changed(_cell("mnist", "a", 40), "result.converged", False)
    (section,) = make_sections([_cell("digits", "a", 20), unfinished])
    assert "92.50 ±1.06 *" in sections_to_markdown([section])


def test_a_dataset_may_be_called_as_a_column_is():
    header, _ = table(make_sections([make_record("model")]))
    assert len(header) == len(set(header))
    assert "dataset:model" in header


def test_no_two_columns_have_one_name():
    """A dataset can have the name of a column, or the name of another dataset with a column's ending."""
    names = ["a", "a_low", "a_low_status", "mean", "dataset:mean", "model", "rank_status"]
    records = [make_record(name, score=k / 10) for k, name in enumerate(names)]
    header, rows = table(make_sections(records))
    assert len(set(header)) == len(header)
    scores = [rows[0][header.index("num_datasets") + 1 + 5 * k] for k in range(len(names))]
    assert scores == [names.index(name) / 10 for name in sorted(names)]


RECORDS = [_cell("digits", "a_b & c", 20), _cell("mnist", "a_b & c", 40), make_failure(dataset="digits", model="x|y")]


def test_json_names_the_record_of_each_cell():
    (section,) = json.loads(to_json(make_sections(RECORDS)))["sections"]
    cells = {line["model"]: line["cells"] for line in section["models"]}
    assert cells["a_b & c"]["digits"]["record"] == "records/digits/a_b-c-7d2fe811.eager.readme.fp32.json"
    assert cells["a_b & c"]["digits"]["score"] == pytest.approx(0.95)
    assert cells["x|y"]["digits"]["status"] == "failed"
    assert cells["x|y"]["digits"]["score"] is None


def test_latex_escapes_names_and_has_as_many_cells_in_every_row():
    text = to_latex(make_sections(RECORDS))
    assert r"a\_b \& c" in text
    assert r"x\textbar{}y" in text
    assert r"95.00\,$\pm$\,1.50" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {3}
    assert "% All runs of x" in text  # a note


def test_a_model_whose_runs_all_failed_is_named_and_does_not_take_the_mean_from_the_others():
    done = [scored_record("a", 20), scored_record("b", 60), _cell("mnist", "a", 20), _cell("mnist", "b", 60)]
    failed = [make_failure(dataset="digits", model="c"), make_failure(dataset="mnist", model="c")]
    (alone,), (section,) = make_sections(done), make_sections([*done, *failed])
    assert section.common == alone.common == ("digits", "mnist")
    assert [(line.model, line.mean) for line in section.lines[:2]] == [(line.model, line.mean) for line in alone.lines]
    assert (section.lines[2].model, section.lines[2].mean, section.lines[2].rank) == ("c", None, "")
    assert notes(section) == [*notes(alone), "All runs of c failed; the records have the reasons."]
    assert "4 runs of 2 models on 2 datasets (2 more runs failed)." in sections_to_markdown([section])


def test_parquet_has_the_columns_of_the_csv_with_their_types(tmp_path):
    import pandas as pd

    (tmp_path / "board.parquet").write_bytes(to_parquet(make_sections(RECORDS)))
    found = pd.read_parquet(tmp_path / "board.parquet")
    header, rows = table(make_sections(RECORDS))
    assert list(found.columns) == header
    assert len(found) == len(rows) == 2
    assert found["digits"].dtype == np.float64
    assert found["digits"].tolist()[0] == pytest.approx(0.95)
    assert np.isnan(found["digits"].tolist()[1])


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_can_be_written_in_every_format(name):
    assert isinstance(FORMATS[name](make_sections([])), str | bytes)
