"""Details of a record: scores of classes, confusions and calibration, in Python and by `show`."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from make.records import changed, make_failure, make_record
from sklearn.metrics import confusion_matrix, recall_score

from probe.cli.main import main
from probe.features.arrays import Features
from probe.leaderboard.details import (
    class_names,
    class_rows,
    collect_details,
    confusions,
    describe_record,
    worst_first,
)
from probe.probes.fit import fit_folds, fit_probe
from probe.records.record import write_record
from probe.specs import KNN, NO_SOLVER, Protocol
from probe.stats.intervals import wilson
from probe.stats.metrics import average_precisions, voc2007_11pt_map

ONE_FIT = Protocol("one-fit", "", "projected", (0.316,), 1, 200, 1e-6)
SWEEP = replace(ONE_FIT, name="sweep", grid=(0.1, 0.316))
DRAWS = replace(ONE_FIT, name="draws", grid=(0.1, 0.316), shots=4, num_seeds=2, refit=False)
VOTES = Protocol("votes", "", "projected", normalize=True, method=KNN, neighbours=(5,))
NAMES = ("apple", "bear", "cat | dog", "deer")


def _parts(seed=0, k=4, scale=1.2):
    rng = np.random.default_rng(seed)
    means, parts = rng.standard_normal((k, 8)), {}
    for name, n in (("train", 200), ("val", 100), ("test", 300)):
        y = rng.integers(k, size=n)
        parts[name] = Features((means[y] + scale * rng.standard_normal((n, 8))).astype(np.float32), y)
    return parts


def _record(result, protocol=ONE_FIT, *, metric="accuracy", names=NAMES):
    record = make_record(protocol="readme")
    record = changed(record, "spec.protocol", protocol)
    record = changed(record, "spec.solver", result.solver)
    record = changed(record, "spec.dataset.metric", metric)
    record = changed(record, "spec.dataset.name", "pictures")
    record = changed(record, "read.class_names", names)
    return replace(record, result=result.to_record())


@pytest.fixture(scope="module")
def one():
    parts = _parts()
    result = fit_probe(**parts, protocol=SWEEP)
    return _record(result, SWEEP), parts["test"].y, result.predictions


def test_scores_of_classes_equal_scikit_learn(one):
    record, y, predictions = one
    rows = class_rows(record)
    assert [row.name for row in rows] == list(NAMES)
    assert [row.score for row in rows] == pytest.approx(recall_score(y, predictions, average=None))
    for row in rows:
        assert row.images == (y == row.label).sum()
        assert (row.low, row.high) == wilson(row.score, row.images)
    scores = [row.score for row in worst_first(rows)]
    assert scores == sorted(scores)


def test_confusions_are_those_of_the_matrix_and_have_names(one):
    record, y, predictions = one
    matrix = confusion_matrix(y, predictions)
    found = confusions(record)
    assert [row.images for row in found] == sorted((row.images for row in found), reverse=True)
    for row in found:
        assert row.images == matrix[row.label, row.predicted]
        assert row.share == pytest.approx(matrix[row.label, row.predicted] / matrix[row.label].sum())
        assert (row.name, row.predicted_name) == (NAMES[row.label], NAMES[row.predicted])
    assert sum(row.images for row in found) == (y != predictions).sum()


def test_draws_are_added_and_share_the_images():
    result = fit_probe(**_parts(), protocol=DRAWS)
    record = _record(result, DRAWS)
    rows = class_rows(record)
    scores = [[recall for recall in one.right / one.images] for one in result.classes]
    assert [row.score for row in rows] == pytest.approx(np.mean(scores, axis=0))
    assert sum(row.images for row in rows) == 300
    wrong = sum(int(one.images.sum() - one.right.sum()) for one in result.classes)
    assert sum(row.images for row in confusions(record)) == wrong


def test_folds_with_different_labels_are_joined_by_label():
    first, second = _parts(k=3), _parts(seed=1, k=3)
    gaps = {name: replace(one, y=one.y * 2 + 1) for name, one in second.items()}
    result = fit_folds([first, gaps], protocol=ONE_FIT)
    assert result.label_values == ()
    record = _record(result, names=())
    rows = {row.label: row for row in class_rows(record)}
    assert sorted(rows) == [0, 1, 2, 3, 5]
    alone = fit_probe(**gaps, protocol=ONE_FIT).classes[0]
    assert rows[5].score == pytest.approx(alone.right[2] / alone.images[2])
    assert rows[5].name == "5"


def test_several_labels_have_average_precisions(tmp_path, capsys):
    rng = np.random.default_rng(0)
    parts = {}
    for name in ("train", "val", "test"):
        x = rng.standard_normal((200, 6)).astype(np.float32)
        y = (x[:, :4] + rng.standard_normal((200, 4)) > 0.8).astype(np.int64)
        y[::9, 1] = -1
        y[:, 3] = y[:, 3] if name != "test" else np.minimum(y[:, 3], 0)
        parts[name] = Features(x, y)
    metric = "voc2007_11pt_map"
    result = fit_probe(**parts, protocol=ONE_FIT, metric=metric)
    record = _record(result, metric=metric)
    rows, y = class_rows(record), parts["test"].y
    logits = result.heads[0].logits(parts["test"].x)
    assert [row.score for row in rows] == pytest.approx(average_precisions(y, logits))
    assert rows[3].score is None
    assert np.mean([row.score for row in rows[:3]]) == pytest.approx(voc2007_11pt_map(y, logits))
    assert [row.images for row in rows] == (y == 1).sum(axis=0).tolist()
    assert confusions(record) == []
    path = write_record(record, tmp_path)
    assert main(["show", str(path), "--confusions", str(tmp_path / "a.csv")]) == 1
    assert "because an image of pictures can show several classes; remove --confusions" in capsys.readouterr().err


def test_names_are_those_of_the_record_then_of_the_catalogue():
    record = make_record("mnist")
    assert class_names(record) == tuple("0123456789")
    assert class_names(changed(record, "read.class_names", NAMES)) == NAMES
    assert class_names(make_record("folder:pictures")) == ()


def test_old_and_failed_records_have_facts():
    old = collect_details(make_record())
    assert (old["classes"], old["confusions"], old["calibration"]) == ([], [], None)
    failed = collect_details(make_failure("no images"))
    assert failed["error"]["message"] == "no images"
    assert describe_record(make_failure("no images"))["error"] == "no images"


def _show(capsys, tmp_path, record, *options):
    path = write_record(record, tmp_path)
    capsys.readouterr()
    assert main(["show", str(path), *options]) == 0
    return capsys.readouterr().out


def test_show_prints_facts_classes_confusions_and_calibration(one, tmp_path, capsys):
    record, _, _ = one
    out = _show(capsys, tmp_path, record, "--classes", "2")
    assert "C                         0." in out
    assert "Recall of the 2 worst of 4 classes:" in out
    table = out.split("worst of 4 classes:")[1].split("Most frequent")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    for line, row in zip(lines, worst_first(class_rows(record))[:2], strict=True):
        assert row.name.split(" | ")[0] in line
        assert f"| {row.images} " in line
        assert f"| {100 * row.score:.2f} " in line
        assert f"| {100 * row.low:.2f} to {100 * row.high:.2f} " in line
    calibration = record.result.calibration
    assert f"after, temperature {calibration.temperature:.4g}" in out
    assert f"{calibration.after.nll:.4f}" in out
    assert f"{100 * calibration.before.ece_low:.2f} to {100 * calibration.before.ece_high:.2f}" in out


@pytest.mark.parametrize(
    ("protocol", "metric", "said"),
    [
        (ONE_FIT, "accuracy", "No temperature: the protocol has a single fit"),
        (ONE_FIT, "mean_per_class", "Recall of all classes:"),
        (ONE_FIT, "top5", "Recall counts an image as right if its label has the highest score."),
        (DRAWS, "accuracy", "before"),
        (VOTES, "accuracy", "k                         5"),
    ],
)
def test_show_prints_every_kind_of_record(protocol, metric, said, tmp_path, capsys):
    result = fit_probe(**_parts(), protocol=protocol, metric=metric)
    out = _show(capsys, tmp_path, _record(result, protocol, metric=metric))
    assert said in out
    assert ("Recall counts" in out) == (metric == "top5")
    assert "Calibration:" in out
    assert ("iterations" in out) == (result.solver != NO_SOLVER)


def test_show_prints_records_without_classes(tmp_path, capsys):
    assert "The record has no scores of classes" in _show(capsys, tmp_path, make_record())
    out = _show(capsys, tmp_path, make_failure("no images", dataset="cifar10"))
    assert "no images" in out
    assert "Calibration" not in out


def test_show_writes_json_and_csv_of_all_classes(one, tmp_path, capsys):
    record, _, _ = one
    document = json.loads(_show(capsys, tmp_path, record, "--json"), parse_constant=pytest.fail)
    assert [row["name"] for row in document["classes"]] == list(NAMES)
    assert len(document["confusions"]) == len(confusions(record))
    bins = document["calibration"]["before"]["bins"]
    assert sum(one["answers"] for one in bins) == 300
    gap = sum(one["answers"] * abs(one["probability"] - one["accuracy"]) for one in bins) / 300
    assert gap == pytest.approx(document["calibration"]["before"]["ece"], abs=2e-6)
    file = tmp_path / "classes.csv"
    assert _show(capsys, tmp_path, record, "--csv", str(file), "--classes", "1") == f"{file}\n"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [float(row["score"]) for row in rows] == [row.score for row in class_rows(record)]
    assert rows[2]["name"] == "cat | dog"


def test_show_writes_confusions_as_csv(one, tmp_path, capsys):
    record, y, predictions = one
    classes, file = tmp_path / "classes.csv", tmp_path / "confusions.csv"
    shown = _show(capsys, tmp_path, record, "--csv", str(classes), "--confusions", str(file))
    assert shown == f"{classes}\n{file}\n"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    matrix = confusion_matrix(y, predictions)
    assert rows
    for row in rows:
        label, predicted = int(row["label"]), int(row["predicted"])
        assert int(row["images"]) == matrix[label, predicted]
        assert float(row["share"]) == matrix[label, predicted] / matrix[label].sum()
        assert (row["name"], row["predicted_name"]) == (NAMES[label], NAMES[predicted])
    assert json.loads(_show(capsys, tmp_path, record, "--confusions", str(file), "--json")) == [str(file)]


def test_show_refuses_what_it_cannot_show(tmp_path, capsys):
    path = write_record(make_record(), tmp_path)
    assert main(["show", str(path), "--csv", str(tmp_path / "a.csv")]) == 1
    assert "has no scores of classes; repeat the run with --rerun" in capsys.readouterr().err
    assert main(["show", str(path), "--confusions", str(tmp_path / "a.csv")]) == 1
    assert "has no scores of classes; repeat the run with --rerun" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "missing.json")]) == 1
    assert "give the .json file of a record" in capsys.readouterr().err


def _board(tmp_path, capsys, *options):
    capsys.readouterr()
    assert main(["leaderboard", "--results-dir", str(tmp_path), *options]) == 0
    return capsys.readouterr().out


def test_the_leaderboard_has_calibration_only_if_asked(one, tmp_path, capsys):
    record, _, _ = one
    write_record(record, tmp_path)
    write_record(make_record(protocol="few-shot-1"), tmp_path)
    calibration = record.result.calibration
    plain = _board(tmp_path, capsys)
    assert "NLL" not in plain
    text = _board(tmp_path, capsys, "--calibration")
    row = next(line for line in text.splitlines() if line.startswith("| pictures"))
    numbers = [f"{value:.4f}" for value in (calibration.before.nll, calibration.after.nll)]
    numbers += [f"{value:.4f}" for value in (calibration.before.brier, calibration.after.brier)]
    numbers += [
        f"{100 * one.ece:.2f} ({100 * one.ece_low:.2f} to {100 * one.ece_high:.2f})"
        for one in (calibration.before, calibration.after)
    ]
    assert [cell.strip() for cell in row.split("|")[3:-1]] == [*numbers, f"{calibration.temperature:.4g}", "15"]
    assert "No record of this section has its calibration" in text
    rows = list(csv.DictReader(_board(tmp_path, capsys, "--calibration", "--format", "csv").splitlines()))
    (own,) = (row for row in rows if row["pictures_nll"])
    assert float(own["pictures_nll"]) == calibration.before.nll
    assert float(own["pictures_ece_after"]) == calibration.after.ece
    assert float(own["pictures_ece_low"]) == calibration.before.ece_low
    assert float(own["pictures_ece_high_after"]) == calibration.after.ece_high
    assert float(own["pictures_temperature"]) == calibration.temperature
    assert own["pictures_ece_bins"] == "15"
    assert {row["digits_nll"] for row in rows} == {""}
    document = json.loads(_board(tmp_path, capsys, "--calibration", "--json"))
    cells = [cell for section in document["sections"] for one in section["models"] for cell in one["cells"].values()]
    assert {cell["calibration"]["brier"] for cell in cells} == {calibration.before.brier, None}
    assert "calibration" not in _board(tmp_path, capsys, "--json")


def test_a_mean_of_draws_has_bins_but_no_interval_of_its_ece(tmp_path, capsys):
    write_record(_record(fit_probe(**_parts(), protocol=DRAWS), DRAWS), tmp_path)
    (row,) = csv.DictReader(_board(tmp_path, capsys, "--calibration", "--format", "csv").splitlines())
    assert row["pictures_ece"]
    assert (row["pictures_ece_low"], row["pictures_ece_bins"]) == ("", "15")


@pytest.mark.parametrize("options", [["--html"], ["--plots", "x"], ["--format", "latex"]])
def test_calibration_is_refused_where_it_has_no_columns(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["leaderboard", "--calibration", *options])
    assert end.value.code == 2
    assert "remove --calibration" in capsys.readouterr().err
