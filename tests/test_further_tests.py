"""One fit, several test sets: scores by hand, resumption, failures, tables."""

import csv
import io
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from make.images import write_image
from make.shifted_layouts import COLOURS, NAMES, WNIDS, shrink, write_further, write_imagenet

import probe
from probe import runner
from probe.cli.main import main
from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.errors import DatasetError, ResultsError, UnknownNameError
from probe.grid import pending, plan
from probe.leaderboard.derived import render_derived
from probe.leaderboard.labels import NO_RECORD
from probe.leaderboard.shifts import shift_rows
from probe.records.packing import unpack
from probe.records.record import read_record, read_records
from probe.records.verdicts import judge
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import Protocol

RULES = Protocol("plain", "plain", "projected", (1.0,))
NORMALIZED = replace(RULES, name="unit", normalize=True)
NEAREST = Protocol("near", "near", "projected", method="knn", neighbours=(3,), temperature=0.1, normalize=True)
DRAWS = replace(RULES, name="draws", shots=2, num_seeds=3, refit=False)


@pytest.fixture
def data(tmp_path):
    """Write ImageNet with four classes, and two further test sets: one with two classes, one with all four."""
    root = tmp_path / "data"
    write_further(
        root,
        "some",
        "some",
        {WNIDS[1]: [1, 1, 0], WNIDS[2]: [2, 0, 1, 2]},
        fields='class_ids = "wordnet"',
    )
    write_further(
        root,
        "numbered",
        "numbered",
        {"0": [0, 0], "1": [1], "2": [2, 3], "3": [3]},
        fields='class_ids = "labels"\nnum_classes = 4',
        options='numbered = ["test"]',
    )
    return write_imagenet(root, ["some", "numbered"])


def run(dataset, tmp_path, protocol=RULES, **options):
    folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache"}
    return probe.run(dataset, model="tiny", device="cpu", protocol=protocol, offline=True, **folders, **options)


def features_of(name, split):
    images = open_dataset(name).subsets[split]
    extracted = probe.extract_features(probe.load_encoder("tiny", device="cpu"), images)
    return extracted.x, [images.class_names[label] for label in images.labels]


def scores_by_hand(scores, names):
    """Return the scores of `some` under both conventions, written out."""
    labels = np.array([WNIDS.index(name) for name in names])
    among_all = np.mean(scores.argmax(axis=1) == labels)
    own = scores.copy()
    own[:, [0, 3]] = -np.inf
    return pytest.approx(among_all), pytest.approx(np.mean(own.argmax(axis=1) == labels))


@pytest.mark.parametrize("rules", [RULES, NORMALIZED, replace(RULES, name="wide", feature_point="pre_projection")])
def test_both_conventions_equal_the_saved_head_on_the_images(data, tmp_path, rules):
    record = run(data, tmp_path, rules, tests=["all"], save_heads=True)
    (path,) = (tmp_path / "results/heads").rglob("*.safetensors")
    head = probe.load_head(path)
    images = open_dataset(record.spec.tests[0]).subsets["test"]
    extracted = probe.extract_features(probe.load_encoder("tiny", device="cpu"), images)
    logits = head.logits(extracted.at(rules.feature_point))
    some, numbered = record.tests
    among_all, among_own = scores_by_hand(logits, [images.class_names[label] for label in images.labels])
    assert (some.name, some.num_classes, some.split.size) == ("some", 2, 7)
    assert (some.all_classes.score, some.own_classes.score) == (among_all, among_own)
    assert some.all_classes.score <= some.own_classes.score
    assert some.own_classes.interval.low < some.own_classes.score < some.own_classes.interval.high
    (outcomes,) = some.own_classes.outcomes
    assert unpack(outcomes).score() == some.own_classes.score
    assert (numbered.num_classes, numbered.own_classes) == (4, None)
    assert numbered.all_classes.score == pytest.approx(5 / 6)  # one image of class 2 has the colour of class 3


def test_the_neighbours_of_further_images_vote(data, tmp_path):
    record = run(data, tmp_path, NEAREST, tests=["some"])
    x, names = features_of(record.spec.tests[0], "test")
    bank, of_bank = features_of(get_dataset(data), "train")
    units = [rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] for rows in (x, bank)]
    similarities = units[0] @ units[1].T
    votes = np.zeros((len(x), 4))
    for row, own in zip(votes, similarities, strict=True):
        for i in np.argsort(-own)[:3]:
            row[WNIDS.index(of_bank[i])] += np.exp((own[i] - own.max()) / 0.1)
    (some,) = record.tests
    assert (some.all_classes.score, some.own_classes.score) == scores_by_hand(votes, names)


def test_zero_shot_compares_further_images_with_the_same_texts(data, tmp_path):
    record = run(data, tmp_path, "zero-shot", tests=["some"])
    x, names = features_of(record.spec.tests[0], "test")
    model, _ = probe.load_clip("tiny", "cpu")
    texts = (
        model.encode_text(probe.tokenize([f"a photo of a {name}." for name in NAMES], model="tiny")).detach().numpy()
    )
    cosines = (x / np.linalg.norm(x, axis=1)[:, None]) @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T
    (some,) = record.tests
    assert (some.all_classes.score, some.own_classes.score) == scores_by_hand(cosines, names)


def test_each_few_shot_draw_is_scored_and_the_interval_is_over_draws(data, tmp_path):
    record = run(data, tmp_path, DRAWS, tests=["some"])
    (some,) = record.tests
    scores = [unpack(outcomes).score() for outcomes in some.all_classes.outcomes]
    assert len(scores) == 3
    assert some.all_classes.score == pytest.approx(np.mean(scores))
    assert some.all_classes.interval.method == "student"


def test_the_probe_is_fitted_once_for_all_test_sets_and_its_own_result_is_unchanged(data, tmp_path, monkeypatch):
    calls, fit_folds = [], runner.fit_folds
    monkeypatch.setattr(runner, "fit_folds", lambda *args, **options: calls.append(1) or fit_folds(*args, **options))
    record = run(data, tmp_path, tests=["all"])
    assert len(calls) == 1
    assert len(record.tests) == 2
    alone = run(data, tmp_path / "alone")
    assert alone.result == record.result
    assert not alone.tests


def write_relabelled(root, written):
    (root / "imagenet/real.json").write_text(json.dumps(written))
    return shrink("imagenet_real", sum(map(bool, written)), None)


def test_reassessed_labels_are_scored_without_new_features(data, tmp_path):
    """One of 12 images has no label, two have only a different label, and one has a second label."""
    written = [[0], [], [1], [1, 3], [1], [0, 2], *[[label] for label in (2, 2, 2, 3, 3, 3)]]
    test = write_relabelled(tmp_path / "data", written)
    options = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "data_dir": tmp_path / "data"}
    (spec,) = plan([data], ["tiny"], protocols=[RULES], device="cpu")
    (record,) = run_grid([replace(spec, tests=(test,))], Settings(**options, offline=True))
    assert record.result.score == 1
    (real,) = record.tests
    assert real.all_classes.score == pytest.approx(9 / 11)
    assert (real.split.size, real.own_classes) == (11, None)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir() and "real" in path.name] == []


def test_relabelled_images_that_are_not_test_images_are_named(data, tmp_path):
    test = write_relabelled(tmp_path / "data", [[0]] * 13)
    write_image(tmp_path / "data/imagenet/val" / WNIDS[0] / "ILSVRC2012_val_00000013.JPEG", COLOURS[0])
    (spec,) = plan([data], ["tiny"], protocols=[RULES], device="cpu")
    path = tmp_path / "data/mini.toml"
    moved = path.with_name("elsewhere.toml")
    moved.write_text(
        path.read_text().replace('folder = "val"', 'folder = "train"').replace('folder = "train"', 'folder = "val"', 1)
    )
    (spec,) = plan([str(moved)], ["tiny"], protocols=[RULES], device="cpu")
    options = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "data_dir": tmp_path / "data"}
    (record,) = run_grid([replace(spec, tests=(test,))], Settings(**options, offline=True))
    assert "is not a test image of mini, as read from" in record.tests[0].error.message


def test_a_test_set_that_is_missing_is_named_and_scored_later(data, tmp_path, caplog):
    images, away = tmp_path / "data/some", tmp_path / "away"
    images.rename(away)
    record = run(data, tmp_path, tests=["all"])
    assert [test.name for test in record.tests] == ["some", "numbered"]
    assert record.tests[0].error.type == "DatasetMissingError"
    assert "some" in record.tests[0].error.message
    assert record.tests[0].all_classes is None
    assert record.tests[1].all_classes is not None
    assert "mini: not scored on some" in caplog.text
    assert record.is_whole
    away.rename(images)
    again = run(data, tmp_path, tests=["all"])
    assert again.tests[0].all_classes is not None
    assert again.extraction.from_cache
    assert run(data, tmp_path, tests=["all"]).created == again.created


@pytest.mark.parametrize("asks", [["numbered"], ["all"], []])
def test_a_score_is_not_lost_when_the_images_are(data, tmp_path, asks):
    """The images of `some` are lost. The run is repeated for another test set, for all of them, or by --rerun alone."""
    options = {"save_heads": True, "predictions_dir": tmp_path / "predictions"}
    first = run(data, tmp_path, tests=["some"], **options)
    path = next((tmp_path / "results/records").rglob("*.json"))
    files = {
        file: file.read_bytes() for folder in ("results/heads", "predictions") for file in _files(tmp_path / folder)
    }
    assert len(files) == 3
    (tmp_path / "data/some").rename(tmp_path / "away")
    with pytest.raises(ResultsError) as caught:
        run(data, tmp_path, tests=asks, rerun=True, **options)
    assert str(caught.value).startswith("the record has scores on some that the new run lacks (some/test: no folder")
    assert str(caught.value).endswith(
        f"make the images available again, or remove {path} to accept a record without these scores"
    )
    assert read_record(path) == first
    assert read_records(tmp_path / "results") == [first]
    assert {file: file.read_bytes() for file in files} == files
    (tmp_path / "away").rename(tmp_path / "data/some")
    again = run(data, tmp_path, tests=asks, rerun=True, **options)
    assert "some" in [test.name for test in again.tests if test.error is None]
    assert _files(path.parent) == [path]


def test_scores_are_kept_if_the_batch_size_changes(data, tmp_path):
    """The path of a record has no batch size, so the new run takes the place of the record."""
    run(data, tmp_path, tests=["some"])
    again = run(data, tmp_path, tests=[], batch_size=7)
    assert again.spec.batch_size == 7
    assert [test.name for test in again.tests if test.error is None] == ["some"]


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_command_says_that_a_score_would_be_lost_and_exits_with_1(data, tmp_path, capsys):
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    given = ["run", "--dataset", data, "--model", "tiny", "--device", "cpu", "--protocol", "readme", *folders]
    assert main([*given, "--also-test", "some"]) == 0
    (first,) = read_records(tmp_path / "results")
    (tmp_path / "data/some").rename(tmp_path / "away")
    assert main([*given, "--also-test", "some"]) == 0  # the record is complete
    capsys.readouterr()
    assert main([*given, "--also-test", "numbered"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "failed: " in line]
    assert "failed: the record has scores on some that the new run lacks (some/test: no folder" in line
    assert read_records(tmp_path / "results") == [first]


def test_a_test_set_that_never_had_a_score_is_recorded_without_one(data, tmp_path):
    (tmp_path / "data/some").rename(tmp_path / "away")
    run(data, tmp_path, tests=["all"])
    again = run(data, tmp_path, tests=["all"], rerun=True)
    assert [test.error is None for test in again.tests] == [False, True]


def test_a_missing_test_set_does_not_change_the_verdict_of_a_reproduction(data, tmp_path, capsys):
    record = run(data, tmp_path, tests=["all"])
    (path,) = (tmp_path / "results/records").rglob("*.json")
    images = tmp_path / "data/some"
    images.rename(tmp_path / "away")
    assert main(["reproduce", str(path)]) == 0
    printed = capsys.readouterr().out
    (row,) = (line for line in printed.splitlines() if line.startswith("| further tests"))
    assert "| not compared |" in row
    assert "some has no score: " in row
    assert "verdict: identical" in printed
    some, numbered = record.tests
    moved = replace(numbered, all_classes=replace(numbered.all_classes, score=0.5))
    stages = {stage.name: stage for stage in judge(record, replace(record, tests=(some, moved))).stages}
    assert stages["probe"].moved == ""
    assert stages["further tests"].moved == "numbered 0.833333 -> 0.5"
    assert judge(record, replace(record, tests=(some, moved))).first_moved == "further tests"
    relabelled = replace(numbered, split=replace(numbered.split, sha256="other"))
    (*_, last) = judge(record, replace(record, tests=(some, relabelled))).stages
    assert (last.moved, last.note) == ("numbered has the same scores, but different images", "")
    (*_, last) = judge(record, record).stages
    assert (last.name, last.moved, last.note) == ("further tests", "", "")


def test_a_run_is_repeated_for_further_test_sets_and_keeps_those_of_its_record(data, tmp_path):
    first = run(data, tmp_path, tests=["some"])
    specs = plan([data], ["tiny"], protocols=[RULES], device="cpu", tests=["numbered"])
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "cache", offline=True)
    (left,) = pending(specs, settings).runs
    assert [test.name for test in left.tests] == ["numbered", "some"]
    (second,) = run_grid(specs, settings)
    assert {test.name for test in second.tests} == {"some", "numbered"}
    assert second.result == first.result
    assert not pending(specs, settings).runs
    assert not pending(plan([data], ["tiny"], protocols=[RULES], device="cpu"), settings).runs


def test_a_changed_test_set_is_scored_again(data, tmp_path):
    run(data, tmp_path, tests=["some"])
    write_further(
        tmp_path / "data",
        "some",
        "some",
        {},
        fields=f'class_ids = "wordnet"\nclass_map = {{ {WNIDS[1]} = "{WNIDS[0]}" }}',
    )
    specs = plan([data], ["tiny"], protocols=[RULES], device="cpu", tests=["some"])
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "cache", offline=True)
    assert len(pending(specs, settings).runs) == 1


def test_classes_that_are_not_a_subset_are_an_error_of_this_test_set_alone(data, tmp_path):
    path = write_further(tmp_path / "data", "other", "other", {"n99999999": [0]}, fields='class_ids = "wordnet"')
    record = run(data, tmp_path, tests=[path, "some"])
    some, other = record.tests
    assert some.error is None
    assert "'n99999999' is not a WordNet id of a class of mini" in other.error.message


def test_jit_and_eager_runs_score_the_same_test_sets_and_are_compared(data, tmp_path):
    specs = plan([data], ["tiny"], protocols=[RULES], jit_modes=[False, True], device="cpu", tests=["some"])
    settings = Settings(results_dir=tmp_path / "results", cache_dir=tmp_path / "cache", offline=True)
    eager, jit = run_grid(specs, settings)
    assert jit.parity is not None
    assert jit.tests[0].all_classes.score == eager.tests[0].all_classes.score


def test_a_dataset_without_this_test_set_and_a_test_set_as_dataset_are_refused(data):
    with pytest.raises(UnknownNameError, match="unknown further test set 'imagenet_r'; choose one of"):
        plan([data], ["tiny"], device="cpu", tests=["imagenet_r"])
    with pytest.raises(DatasetError, match="digits has no further test sets; remove --also-test"):
        plan(["digits"], ["tiny"], device="cpu", tests=["all"])
    with pytest.raises(DatasetError, match="imagenet_a has only test images, so no probe can be fitted on it"):
        plan(["imagenet_a"], ["tiny"], device="cpu")


def test_a_metric_that_ranks_images_is_refused_by_name(data, tmp_path):
    path = tmp_path / "data/mini.toml"
    path.write_text(path.read_text().replace("num_classes", 'metric = "top5"\nnum_classes'))
    record = run(data, tmp_path, tests=["some"])
    assert (
        "scored by accuracy or mean_per_class, but the metric of the dataset is top5" in record.tests[0].error.message
    )


def test_the_mean_per_class_is_over_the_classes_of_the_test_set(data, tmp_path):
    path = tmp_path / "data/mini.toml"
    path.write_text(path.read_text().replace("num_classes", 'metric = "mean_per_class"\nnum_classes'))
    (some,) = run(data, tmp_path, tests=["some"]).tests
    assert some.all_classes.score == pytest.approx((2 / 3 + 2 / 4) / 2)


def test_tables_show_both_conventions_with_the_difference_to_the_dataset(data, tmp_path):
    run(data, tmp_path, tests=["all"])
    records = read_records(tmp_path / "results")
    files = render_derived(records)
    rows = list(csv.DictReader(io.StringIO(files["further_tests.csv"])))
    assert [(row["test_set"], row["convention"]) for row in rows] == [
        ("some", "all classes"),
        ("some", "own classes"),
        ("numbered", "all classes"),
    ]
    for row, shown in zip(rows, shift_rows(records), strict=True):
        if row["convention"] == "own classes":  # the score on the test split is among all classes
            assert row["difference"] == ""
            continue
        assert float(row["difference"]) == pytest.approx(float(row["score"]) - records[0].result.score)
        assert f"{100 * shown.difference:+.2f}" in files["tables/tiny.eager.md"]
    assert "its 2 classes" in files["leaderboard.md"]


def test_records_without_further_tests_have_no_such_tables(data, tmp_path):
    run(data, tmp_path)
    files = render_derived(read_records(tmp_path / "results"))
    assert "further_tests.csv" not in files
    assert 'id="tests"' not in files["leaderboard.html"]
    assert not any("Further test" in text for name, text in files.items() if name != "leaderboard.html")


def test_a_record_that_contradicts_its_outcomes_is_damaged(data, tmp_path):
    run(data, tmp_path, tests=["some"])
    (path,) = (tmp_path / "results/records").rglob("*.json")
    plain = json.loads(path.read_text())
    assert (
        read_record(path).to_dict()
        == probe.run(
            data, model="tiny", device="cpu", protocol=RULES, results_dir=tmp_path / "results", tests=["some"]
        ).to_dict()
    )
    plain["tests"][0]["own_classes"]["score"] = plain["tests"][0]["own_classes"]["interval"]["low"]
    path.write_text(json.dumps(plain))
    with pytest.raises(ResultsError, match=r"tests, some: its score is .*, but the score of its outcomes is"):
        read_record(path)


def test_show_prints_further_test_sets_and_errors(data, tmp_path, capsys):
    (tmp_path / "data/numbered").rename(tmp_path / "away")
    some, numbered = run(data, tmp_path, tests=["all"]).tests
    (path,) = (tmp_path / "results/records").rglob("*.json")
    assert main(["show", str(path)]) == 0
    printed = capsys.readouterr().out.split("\nFurther test sets:\n")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert [row[:4] for row in rows[2:]] == [
        ["some", "7", "all classes", f"{100 * some.all_classes.score:.2f}"],
        ["some", "7", "its 2 classes", f"{100 * some.own_classes.score:.2f}"],
        ["numbered", NO_RECORD, NO_RECORD, "failed"],
    ]
    assert f"numbered of mini has no score: {numbered.error.message}" in printed
    assert main(["show", str(path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["tests"]
    assert (first["name"], first["num_test"], first["num_classes"], first["error"]) == ("some", 7, 2, None)
    assert first["own_classes"]["score"] == some.own_classes.score
    assert first["own_classes"]["interval"]["low"] == some.own_classes.interval.low
    assert second["error"]["message"] == numbered.error.message
    assert second["all_classes"] is second["own_classes"] is None


def test_the_command_scores_and_prints_further_test_sets(data, tmp_path, capsys, caplog):
    caplog.set_level(logging.ERROR)
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    given = ["run", "--dataset", data, "--model", "tiny", "--device", "cpu", "--protocol", "readme", *folders]
    assert main([*given, "--also-test", "some", "--also-test", "numbered"]) == 0
    printed = capsys.readouterr().out
    assert "## Further test sets" in printed
    assert "its 2 classes" in printed
    assert main([*given, "--also-test", "numberd"]) == 2
    assert "did you mean 'numbered'?" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_exits_with_1_if_a_test_set_that_it_asks_for_has_no_score(data, tmp_path, capsys, caplog, as_json):
    (tmp_path / "data/some").rename(tmp_path / "away")
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    given = ["run", "--dataset", data, "--model", "tiny", "--device", "cpu", "--protocol", "readme", *folders]
    assert main([*given, "--also-test", "all", *(["--json"] if as_json else [])]) == 1
    assert "mini: not scored on some" in caplog.text
    (record,) = read_records(tmp_path / "results")
    assert [test.error is None for test in record.tests] == [False, True]
    printed = capsys.readouterr().out
    if as_json:
        (plain,) = json.loads(printed)
        assert plain["tests"][0]["error"]["type"] == "DatasetMissingError"
    else:
        assert f"{100 * record.result.score:.2f}" in printed
        assert "some of mini has no score: " in printed
    assert main(given) == 0  # the record is complete, and its test sets are not asked for
    assert main([*given, "--also-test", "numbered"]) == 0
    (tmp_path / "away").rename(tmp_path / "data/some")
    assert main([*given, "--also-test", "all"]) == 0
