"""Files of predictions: they give the score of the record again, and `errors` lists what is wrong in them."""

import base64
import io
import json
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from make import layouts, own_layouts
from PIL import Image

import probe
from probe.cli.main import main
from probe.datasets import get_dataset
from probe.datasets.opening import open_split
from probe.errors import DatasetError, ResultsError
from probe.grid import plan
from probe.leaderboard.contact_sheets import make_contact_sheet
from probe.probes.head_files import load_head
from probe.records.packing import unpack_outcomes
from probe.records.prediction_files import WrongImage, find_errors, predictions_path, read_info
from probe.records.record import head_path, record_path, run_path
from probe.runner import run_grid, run_one
from probe.settings import Settings
from probe.specs import Protocol, Subset
from probe.stats.metrics import get_metric

ONCE = Protocol("once", "", "projected", (0.1,))
DRAWS = Protocol("two-draws", "", "pre_projection", (0.1,), shots=4, num_seeds=2, refit=False)
PROTOCOLS = (ONCE, DRAWS, "zero-shot", "knn")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Return settings with which a run writes all of its files."""
    root = tmp_path_factory.mktemp("predictions")
    folder = root / "results/predictions"
    return Settings(results_dir=root / "results", predictions_dir=folder, with_logits=True, save_heads=True)


@pytest.fixture(scope="module")
def specs():
    return plan(["digits"], ["tiny"], protocols=PROTOCOLS, jit_modes=[False, True], device="cpu")


@pytest.fixture(scope="module")
def records(specs, settings):
    """Run all methods in both modes, and return the records."""
    return {record.spec: record for record in run_grid(specs, settings)}


def _path(record, settings):
    return predictions_path(record_path(record, settings.results_dir), settings.predictions_dir)


def _record(records, **names):
    return next(one for one in records.values() if all(getattr(one, name) == value for name, value in names.items()))


@pytest.mark.parametrize("i", range(2 * len(PROTOCOLS)))
def test_predictions_give_the_score_of_the_record(records, settings, i):
    record = list(records.values())[i]
    assert record.error is None
    frame = pandas.read_parquet(_path(record, settings))
    outcomes = unpack_outcomes(record.result)
    parts = [frame[frame.part == part] for part in sorted(set(frame.part))]
    assert sorted(set(frame.part)) == ([1, 2] if record.protocol == "two-draws" else [0])
    test = open_split("digits", "test")
    for part, outcome in zip(parts, outcomes, strict=True):
        assert list(part.image) == list(test.ids)
        assert list(part.label) == test.labels.tolist()
        assert np.array_equal(part.prediction == part.label, outcome.arrays["right"])
    assert record.result.score == pytest.approx(np.mean(frame.prediction == frame.label), abs=1e-12)
    assert (frame.prediction_name == frame.prediction.astype(str)).all()
    assert list(frame.prediction) == [labels[0] for labels in frame.top_labels]
    assert list(frame.probability) == [values[0] for values in frame.top_probabilities]
    assert all(np.all(np.diff(values) <= 0) and values[-1] >= 0 for values in frame.top_probabilities)


def test_logits_are_those_of_the_head(records, settings):
    record = _record(records, protocol="zero-shot", mode="eager")
    frame = pandas.read_parquet(_path(record, settings))
    logits = np.stack(frame.logits)
    assert np.array_equal(logits.argmax(axis=1), frame.prediction)
    head = load_head(head_path(record, settings.results_dir))
    chances = head.probabilities(logits)
    top = np.stack(frame.top_labels)
    assert np.allclose(np.take_along_axis(chances, top, axis=1), np.stack(frame.top_probabilities), atol=1e-12)
    knn = pandas.read_parquet(_path(_record(records, protocol="knn", mode="eager"), settings))
    assert "logits" not in knn.columns
    assert read_info(_path(_record(records, protocol="knn", mode="eager"), settings)).logit_labels == ()
    draws = read_info(_path(_record(records, protocol="two-draws", mode="eager"), settings))
    assert draws.logit_labels == (tuple(range(10)),) * 2


def test_a_run_is_repeated_if_its_predictions_are_missing_or_of_another_run(specs, records, settings, caplog):
    caplog.set_level("INFO", logger="probe")
    (spec,) = [one for one in specs if one.protocol.name == "knn" and not one.jit]
    made = _record(records, protocol="knn", mode="eager")
    path = _path(made, settings)
    content = path.read_bytes()
    list(run_grid([spec], settings))
    assert "skipped 1 of 1 runs" in caplog.text
    for damage in (path.unlink, lambda: path.write_bytes(content[:-20])):
        caplog.clear()
        damage()
        list(run_grid([spec], replace(settings, predictions_dir=None)))
        assert "skipped 1 of 1 runs" in caplog.text
        caplog.clear()
        (record,) = run_grid([spec], settings)
        assert "skipped" not in caplog.text
        assert len(pandas.read_parquet(path)) == record.result.num_test
    caplog.clear()
    (record,) = run_grid([spec], replace(settings, predictions_dir=None), rerun=True)
    if record.created == read_info(path).created:  # within a second
        record = replace(record, created="2020-01-01T00:00:00+00:00")
    with pytest.raises(ResultsError, match="has the predictions of the run of"):
        find_errors(path, record)
    list(run_grid([spec], settings, rerun=True))


def test_logits_are_written_only_if_asked_for(tmp_path, specs):
    (spec,) = [one for one in specs if one.protocol.name == "once" and not one.jit]
    settings = Settings(results_dir=tmp_path, predictions_dir=tmp_path / "own")
    path = tmp_path / "own" / "digits" / "tiny.eager.once.fp32.fast.parquet"
    for with_logits in (False, True):
        list(run_grid([spec], replace(settings, with_logits=with_logits)))
        assert ("logits" in pandas.read_parquet(path).columns) == with_logits
        assert bool(read_info(path).logit_labels) == with_logits
    run = run_one(spec, settings)
    assert list(run.predictions) == [path.relative_to(tmp_path / "own")]
    assert run_one(spec, Settings()).result.tops == ()


@pytest.mark.parametrize("protocol", ["readme", "zero-shot", "knn-5"])
def test_predictions_of_images_with_several_labels(tmp_path, protocol):
    own_layouts.voc2007(tmp_path)
    spec = get_dataset("voc2007")
    spec = replace(spec, subsets=tuple(replace(subset, size=6) for subset in spec.subsets))
    (run,) = plan([spec.name], ["tiny"], protocols=[protocol], device="cpu")
    settings = Settings(
        data_dir=tmp_path, results_dir=tmp_path / "r", predictions_dir=tmp_path / "p", with_logits=True, offline=True
    )
    (record,) = run_grid([replace(run, dataset=spec)], settings)
    assert record.error is None
    frame = pandas.read_parquet(_path(record, settings))
    test = open_split(spec, "test", data_dir=tmp_path)
    y = np.zeros(test.labels.shape, np.int64)
    for i, row in enumerate(frame.itertuples()):
        y[i, row.label], y[i, row.ignored] = 1, -1
        assert list(row.label_name) == [test.class_names[label] for label in row.label]
        assert set(row.prediction) <= set(range(y.shape[1]))
        assert len(row.top_labels) == len(row.top_probabilities) == 5
    assert np.array_equal(y, test.labels)
    if protocol != "knn-5":
        score = get_metric("voc2007_11pt_map")(y, np.stack(frame.logits))
        assert score == pytest.approx(record.result.score, abs=1e-12)
    errors = find_errors(_path(record, settings), record)
    wrong = {row.image for row in frame.itertuples() if set(row.prediction) - set(row.label) - set(row.ignored)}
    assert {error.image for error in errors} <= wrong
    assert [error.probability for error in errors] == sorted((error.probability for error in errors), reverse=True)


@pytest.mark.parametrize("metric", ["mean_per_class", "top5", "roc_auc"])
def test_other_metrics_can_be_computed_from_the_file(image_folder, tmp_path, metric):
    """One test image is damaged and skipped. The labels of a folder are its names."""
    classes = ["red", "green"] if metric == "roc_auc" else ["red", "green", "blue"]
    root = image_folder({f"{split}/{name}": 6 + i for split in ("train", "test") for i, name in enumerate(classes)})
    next(path for path in sorted((root / "test/green").iterdir()) if path.is_file()).write_bytes(b"damaged")
    dataset = replace(get_dataset(f"folder:{root}"), metric=metric)
    (run,) = plan(["digits"], ["tiny"], protocols=[ONCE], device="cpu")
    settings = Settings(
        results_dir=tmp_path / "r", predictions_dir=tmp_path / "p", with_logits=True, skip_corrupt=1, offline=True
    )
    (record,) = run_grid([replace(run, dataset=dataset)], settings)
    assert record.error is None
    assert record.is_partial
    path = _path(record, settings)
    assert path.name.endswith(".partial.parquet")
    frame = pandas.read_parquet(path)
    assert len(frame) == record.result.num_test == sum(6 + i for i in range(len(classes))) - 1
    names = sorted(classes)
    assert list(frame.label_name) == [names[label] for label in frame.label]
    assert all(Path(one).parts[-2] == name for one, name in zip(frame.image, frame.label_name, strict=True))
    score = get_metric(metric)(frame.label.to_numpy(), np.stack(frame.logits))
    assert score == pytest.approx(record.result.score, abs=1e-12)
    everything = find_errors(path, record)
    sheet = make_contact_sheet(record, everything or [_as_error(frame.iloc[0])], offline=True)
    assert sheet.count("<img") == max(1, len(everything))


@pytest.mark.parametrize("protocol", ["readme", DRAWS, "zero-shot"])
def test_logits_of_labels_with_gaps_have_their_labels(image_folder, tmp_path, protocol):
    """No image of the class 1 can be read, so that a fit has no logit for it; zero-shot has logits of all classes."""
    root = image_folder({f"{split}/{name}": 8 for split in ("train", "test") for name in "abcd"})
    for file in root.glob("*/b/*"):
        file.write_bytes(b"damaged")
    (run,) = plan([f"folder:{root}"], ["tiny"], protocols=[protocol], device="cpu")
    settings = Settings(
        results_dir=tmp_path / "r", predictions_dir=tmp_path / "p", with_logits=True, skip_corrupt=16, offline=True
    )
    (record,) = run_grid([run], settings)
    assert record.error is None
    path = _path(record, settings)
    info, frame = read_info(path), pandas.read_parquet(path)
    labels = (0, 1, 2, 3) if protocol == "zero-shot" else (0, 2, 3)
    assert info.logit_labels == (labels,) * frame.part.nunique()
    assert frame.part.nunique() == (2 if protocol is DRAWS else 1)
    assert np.array_equal(np.array(labels)[np.stack(frame.logits).argmax(axis=1)], frame.prediction)


def test_parts_are_numbered_by_fold_and_then_by_draw(tmp_path, monkeypatch):
    layouts.stl10(tmp_path, monkeypatch)
    spec = get_dataset("stl10")
    subsets = tuple(Subset(subset.name, size) for subset, size in zip(spec.subsets, (20, 4), strict=True))
    spec = replace(spec, subsets=subsets, num_classes=2, fold_sizes=(), val_fraction=0.34)
    rules = replace(DRAWS, shots=1)
    (run,) = plan(["stl10"], ["tiny"], protocols=[rules], device="cpu")
    settings = Settings(data_dir=tmp_path, results_dir=tmp_path / "r", predictions_dir=tmp_path / "p", offline=True)
    (record,) = run_grid([replace(run, dataset=spec)], settings)
    assert record.error is None
    frame = pandas.read_parquet(_path(record, settings))
    right = (frame.prediction == frame.label).groupby(frame.part).mean()
    assert list(right.index) == list(range(1, 21))
    assert list(right) == [draw.score for fold in record.result.folds for draw in fold.draws]
    assert [*dict.fromkeys(frame.image)] == list(open_split(spec, "test", data_dir=tmp_path).ids)
    error = replace(_as_error(frame.iloc[-1]), part=20)
    assert "<img" in make_contact_sheet(record, [error], data_dir=tmp_path, offline=True)


def _as_error(row):
    return WrongImage(row.image, int(row.part), row.label_name, row.prediction_name, row.probability)


@pytest.mark.parametrize("protocol", ["zero-shot", "two-draws"])
def test_errors_as_a_user_would(records, settings, tmp_path, capsys, protocol):
    record = _record(records, protocol=protocol, mode="eager")
    path, page = str(run_path(record.spec, settings.results_dir)), tmp_path / "errors.html"
    assert main(["errors", path, "--top", "4", "--html", str(page)]) == 0
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    frame = pandas.read_parquet(_path(record, settings))
    wrong = frame[frame.label != frame.prediction].sort_values("probability", ascending=False, kind="stable")[:4]
    assert [row[:3] for row in shown] == wrong[["image", "label_name", "prediction_name"]].to_numpy().tolist()
    assert ("part" in frame.columns and len(shown[0]) == 5) == (protocol == "two-draws")
    root = ET.fromstring(page.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>\n"))
    assert Counter(node.tag for node in root.iter())["img"] == 4
    assert not list(root.iter("script"))
    test = open_split("digits", "test")
    for node, one in zip(root.iter("img"), wrong.image, strict=True):
        kind, _, data = node.get("src").partition(",")
        assert kind == "data:image/jpeg;base64"
        thumbnail = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), np.int64)
        image = np.asarray(test[list(test.ids).index(one)][0].convert("L"), np.int64)
        assert np.abs(thumbnail - image).mean() < 10  # of 255, because JPEG is lossy
        assert node.get("alt") == one
    assert main(["errors", path, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 20


def test_names_are_escaped_and_other_images_are_refused(records, settings):
    record = _record(records, protocol="zero-shot", mode="eager")
    (error,) = find_errors(_path(record, settings), record, most=1)
    page = make_contact_sheet(record, [replace(error, prediction="<script>&</script>")])
    assert "&lt;script&gt;&amp;" in page
    assert "<script" not in page
    other = replace(record, splits={**record.splits, "test": replace(record.splits["test"], sha256="0" * 64)})
    with pytest.raises(DatasetError, match="the ids and labels differ from those of the record"):
        make_contact_sheet(other, [error])


def test_errors_without_predictions(records, settings, tmp_path, capsys):
    record = _record(records, protocol="knn", mode="eager")
    path = str(run_path(record.spec, settings.results_dir))
    assert main(["errors", path, "--predictions", str(tmp_path)]) == 1
    assert f"repeat the run with --predictions {tmp_path}" in capsys.readouterr().err
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "tiny.eager.knn.fp32.parquet").write_bytes(b"no Parquet")
    assert main(["errors", path, "--predictions", str(tmp_path)]) == 1
    assert "is damaged or holds no predictions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", "--dataset", "digits", "--with-logits"])
    assert "--with-logits requires --predictions" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="cannot write to the folder of predictions"):
        probe.run("digits", model="tiny", results_dir=tmp_path / "r", predictions_dir=tmp_path / "file")
