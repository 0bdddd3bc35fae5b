"""Files of predictions on further test sets: they give the scores of the record again."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
from make.shifted_layouts import WNIDS, shrink, write_further, write_imagenet

from probe.cli.main import main
from probe.datasets.opening import open_dataset
from probe.grid import pending, plan
from probe.leaderboard.contact_sheets import make_contact_sheet
from probe.records.packing import unpack
from probe.records.prediction_files import find_errors, predictions_path, read_info
from probe.records.record import record_path
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import Protocol

RULES = Protocol("plain", "plain", "projected", (1.0,))
NEAREST = Protocol("near", "near", "projected", method="knn", neighbours=(3,), normalize=True)
DRAWS = replace(RULES, name="draws", shots=2, num_seeds=3, refit=False)


@pytest.fixture
def data(tmp_path):
    """Write ImageNet with four classes, and two further test sets: one with two classes, one with all four."""
    root = tmp_path / "data"
    wordnet = 'class_ids = "wordnet"'
    write_further(root, "some", "some", {WNIDS[1]: [1, 1, 0], WNIDS[2]: [2, 0, 1, 2]}, fields=wordnet)
    all_four = {wnid: [label, 3 - label] for label, wnid in enumerate(WNIDS)}
    write_further(root, "every", "every", all_four, fields=wordnet)
    return write_imagenet(root, ["some", "every"])


@pytest.fixture
def settings(tmp_path):
    folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "data_dir": tmp_path / "data"}
    return Settings(**folders, predictions_dir=tmp_path / "predictions", with_logits=True, offline=True)


def _specs(data, rules):
    return plan([data], ["tiny"], protocols=[rules], device="cpu", tests=["all"])


def _path(record, settings, test=""):
    return predictions_path(record_path(record, settings.results_dir), settings.predictions_dir, test)


@pytest.mark.parametrize("rules", [RULES, NEAREST, DRAWS, "zero-shot"], ids=str)
def test_each_further_test_set_has_a_file_that_gives_its_scores(data, settings, rules):
    (record,) = run_grid(_specs(data, rules), settings)
    for test, spec in zip(record.tests, record.spec.tests, strict=True):
        frame = pandas.read_parquet(_path(record, settings, test.name))
        parts = [part for _, part in frame.groupby("part")]
        assert len(parts) == (3 if rules == DRAWS else 1)
        images = open_dataset(spec, data_dir=settings.data_dir, offline=True).subsets["test"]
        own = test.own_classes or test.all_classes
        for part, among_all, among_own in zip(parts, test.all_classes.outcomes, own.outcomes, strict=True):
            assert list(part.image) == list(images.ids)
            assert list(part.test_class) == [images.class_names[label] for label in images.labels]
            assert np.array_equal(part.is_right, unpack(among_all).arrays["right"])
            assert np.array_equal(part.own_is_right, unpack(among_own).arrays["right"])
        assert [list(names) for names in frame.label_name] == [[name] for name in frame.test_class]
        pairs = zip(frame.prediction, frame.label, strict=True)
        assert list(frame.is_right) == [predicted in right for predicted, right in pairs]
        assert set(frame.own_prediction) <= ({1, 2} if test.name == "some" else {0, 1, 2, 3})
        assert list(frame.prediction) == [labels[0] for labels in frame.top_labels]
        info = read_info(_path(record, settings, test.name))
        assert (info.test, info.created) == (test.name, record.created)
        if rules == NEAREST:
            assert "logits" not in frame
            assert info.logit_labels == ()
        else:
            assert [np.argmax(logits) for logits in frame.logits] == list(frame.prediction)
            assert info.logit_labels == ((0, 1, 2, 3),) * len(parts)
    assert len(pandas.read_parquet(_path(record, settings))) == 12 * len(parts)


def test_a_run_without_a_file_of_its_further_tests_is_repeated(data, settings):
    specs = _specs(data, RULES)
    (record,) = run_grid(specs, settings)
    assert not pending(specs, settings).runs
    path = _path(record, settings, "some")
    path.unlink()
    assert len(pending(specs, settings).runs) == 1
    assert not pending(plan([data], ["tiny"], protocols=[RULES], device="cpu"), settings).runs
    list(run_grid(specs, settings))
    assert path.is_file()


def test_a_test_set_without_a_score_has_no_file(data, settings):
    (settings.data_dir / "some").rename(settings.data_dir / "away")
    (record,) = run_grid(_specs(data, RULES), settings)
    assert [test.error is None for test in record.tests] == [False, True]
    assert not _path(record, settings, "some").exists()
    assert _path(record, settings, "every").is_file()


def test_each_right_label_of_a_relabelled_image_is_in_its_file(data, settings):
    written = "[[0], [], [1], [1, 3], [1], [0, 2], [2], [2], [2], [3], [3], [3]]"
    (settings.data_dir / "imagenet/real.json").write_text(written)
    (spec,) = plan([data], ["tiny"], protocols=[RULES], device="cpu")
    (record,) = run_grid([replace(spec, tests=(shrink("imagenet_real", 11, None),))], settings)
    frame = pandas.read_parquet(_path(record, settings, "imagenet_real"))
    assert [list(labels) for labels in frame.label][:4] == [[0], [1], [1, 3], [1]]
    assert frame.is_right.mean() == record.tests[0].all_classes.score
    names = list(pandas.read_parquet(_path(record, settings)).image)
    assert list(frame.image) == [name for i, name in enumerate(names) if i != 1]
    errors = find_errors(_path(record, settings, "imagenet_real"), record, test="imagenet_real")
    assert {error.image for error in errors} == set(frame.image[~frame.is_right])
    assert all(name.startswith("n") for error in errors for name in error.label.split(", "))
    sheet = make_contact_sheet(record, errors, test="imagenet_real", data_dir=settings.data_dir, offline=True)
    assert sheet.count("<img") == len(errors) > 0


@pytest.mark.parametrize("rules", [RULES, DRAWS], ids=str)
def test_errors_of_a_further_test_set_as_a_user_would(data, settings, rules, tmp_path, capsys):
    (record,) = run_grid(_specs(data, rules), settings)
    path, page = str(record_path(record, settings.results_dir)), tmp_path / "errors.html"
    options = ["--predictions", str(settings.predictions_dir), "--data-dir", str(settings.data_dir), "--top", "3"]
    assert main(["errors", path, "--test-set", "some", "--html", str(page), *options]) == 0
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    frame = pandas.read_parquet(_path(record, settings, "some"))
    wrong = frame[~frame.is_right].sort_values("probability", ascending=False, kind="stable")[:3]
    assert 0 < len(wrong) == len(shown)
    assert [row[:3] for row in shown] == wrong[["image", "test_class", "prediction_name"]].to_numpy().tolist()
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == len(wrong)
    assert "most confident wrong predictions for images of some: " in text
    assert f"Score among all classes: {100 * record.tests[0].all_classes.score:.2f} %" in text
    write_further(settings.data_dir, "some", "some", {WNIDS[1]: [0, 0, 0, 0]}, fields='class_ids = "wordnet"')
    assert main(["errors", path, "--test-set", "some", "--html", str(page), *options]) == 1
    assert "the ids and labels differ from those of the record" in capsys.readouterr().err


def test_errors_of_a_test_set_without_predictions_say_why(data, settings, capsys):
    (settings.data_dir / "some").rename(settings.data_dir / "away")
    (record,) = run_grid(_specs(data, RULES), settings)
    path, options = str(record_path(record, settings.results_dir)), ["--predictions", str(settings.predictions_dir)]
    assert main(["errors", path, "--test-set", "elsewhere", *options]) == 2
    message = "unknown further test set 'elsewhere'; choose one of some, every"
    assert message in capsys.readouterr().err
    assert main(["errors", path, "--test-set", "", *options]) == 2
    assert "unknown further test set ''; choose one of some, every" in capsys.readouterr().err
    _path(record, settings, "every").unlink()
    assert main(["errors", path, "--test-set", "every", *options]) == 1
    assert f"repeat the run with --predictions {settings.predictions_dir}, or" in capsys.readouterr().err
    assert main(["errors", path, "--test-set", "some", *options]) == 1
    message = f"there are no predictions on some, which has no score: {record.tests[0].error.message}"
    assert message in capsys.readouterr().err
    (plain,) = run_grid(plan([data], ["tiny"], protocols=[NEAREST], device="cpu"), settings)
    assert main(["errors", str(record_path(plain, settings.results_dir)), "--test-set", "some"]) == 1
    assert "the record has no further test sets; remove --test-set, or repeat the run with --also-test" in (
        capsys.readouterr().err
    )
