import csv
import io
import json
import logging
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pandas as pd
import pytest
from make.records import changed, classified_record, make_failure, make_record, page_record

import probe
from probe.cli.main import main
from probe.datasets import dataset_names
from probe.errors import ResultsError
from probe.leaderboard import tables
from probe.leaderboard.frames import COLUMNS, FRAME_FORMATS, KEYS, READABLE, results_frame
from probe.leaderboard.tables import status
from probe.models import model_names
from probe.records.record import read_record, write_record
from probe.records.schema import CleanRecord, IntervalRecord, MeterRecord, SplitRecord
from probe.specs import NO_SOLVER, ZERO_SHOT, digest

RESULTS = Path(__file__).parents[2] / "results"
MEASURES = ("nll", "brier", "ece", "ece_low", "ece_high")
# Columns, and the paths of their values in a record. The names of the other columns are names of fields of a record.
PATHS = {
    **{name: f"spec.{name}.name" for name in ("dataset", "model", "protocol")},
    **{name: f"spec.{name}" for name in ("precision", "device")},
    "feature_point": "spec.protocol.feature_point",
    "metric": "spec.dataset.metric",
    **{name: f"result.{name}" for name in ("score", "C", "k", "gradient_ratio", "excess", "num_test")},
    **{name: f"result.{name}" for name in ("converged", "choice_converged", "probe_version")},
    **{name: f"result.interval.{name}" for name in ("low", "high")},
    "interval": "result.interval.method",
    **{name: f"result.calibration.before.{name}" for name in MEASURES},
    **{f"{name}_after": f"result.calibration.after.{name}" for name in MEASURES},
    "temperature": "result.calibration.temperature",
    **{f"{name}_seconds": f"seconds.{name}" for name in ("load", "extract", "text", "fit", "tests")},
    **{f"fit_{name}_joules": f"fit_joules.{name}" for name in ("cpu", "gpu")},
    **{name: f"environment.{name}" for name in ("cpu", "accelerator", "platform", "python", "git_commit", "git_dirty")},
    **{name: f"extraction.{name}" for name in ("extraction_version", "preprocess_version")},
    "weights_sha256": "encoder.weights_sha256",
    **{f"{name}_images_sha256": f"splits.{name}.sha256" for name in ("train", "val", "test")},
    **{f"{name}_features_sha256": f"features.{name}.sha256" for name in ("train", "val", "test")},
    "error": "error.message",
}


def _extraction(meters):
    """Return the images of all subsets by the seconds that they took. The committed records have no energy."""
    known = meters and all(meter["images_per_second"] for meter in meters)
    seconds = sum(meter["images"] / meter["images_per_second"] for meter in meters) if known else 0
    images = sum(meter["images"] for meter in meters)
    return {
        "images_per_second": pytest.approx(images / seconds, rel=1e-12) if known else None,
        "cpu_joules_per_1000_images": None,
        "gpu_joules_per_1000_images": None,
    }


def _values(record):
    """Return the values of a row, from the plain JSON values of the record."""
    plain = record.to_dict()
    values = {
        column: reduce(lambda value, name: None if value is None else value.get(name), path.split("."), plain)
        for column, path in PATHS.items()
    }
    values |= {f"package_{name}": version for name, version in plain["environment"]["packages"].items()}
    results = [plain["result"], *plain["result"]["folds"], *plain["result"]["draws"]]
    scores = [one["calibration"]["before"] for one in results if one["calibration"] is not None]
    num_bins = [one["num_bins"] if one["bins"] is None else one["bins"]["shape"][1] for one in scores]
    rules, profile = plain["spec"]["protocol"], plain["spec"]["model"]["profile"]
    fitted = plain["spec"]["solver"] != NO_SOLVER
    return {
        **values,
        "mode": {(True, False): "jit", (False, True): "compiled"}.get((record.spec.jit, record.spec.compiled), "eager"),
        "solver": plain["spec"]["solver"] if fitted else None,
        "n_iter": plain["result"]["n_iter"] if fitted else None,
        "num_train": None if rules["method"] == ZERO_SHOT else plain["result"]["num_train"],
        "ece_bins": next(filter(None, num_bins), None),
        "gflops": None if profile is None else profile["flops"] / 1e9,
        **_extraction(list(plain["extraction"]["subsets"].values())),
        "partial": bool(plain["read"]["partial"] or plain["read"]["skipped"]),
        "status": status(record),
        "created": pd.Timestamp(plain["created"]),
    }


@pytest.fixture(scope="module")
def committed():
    return results_frame(RESULTS)


def test_the_frame_equals_the_committed_records_field_by_field(committed):
    assert len(committed) == len(list((RESULTS / "records").rglob("*.json"))) == len(set(committed["record"]))
    for row in committed.to_dict("records"):
        found = {name: None if pd.isna(value) else value for name, value in row.items()}
        expected = _values(read_record(RESULTS / found.pop("record")))
        assert {name for name, value in found.items() if value is not None} <= expected.keys()
        empty_is_missing = {name: None if value == "" else value for name, value in expected.items()}
        assert {name: found[name] for name in expected} == empty_is_missing


def test_columns_have_the_documented_types(committed):
    assert {name: str(committed[name].dtype) for name in COLUMNS} == COLUMNS
    further = committed.columns[len(COLUMNS) :]
    assert set(further) >= {"package_torch", "package_probe"}
    assert {str(committed[name].dtype) for name in further} == {"string"}


def test_every_column_of_a_record_with_all_parts_is_typed(tmp_path):
    """A count of 0 is a value, too, such as the number of test images that the clean score leaves out."""
    clean = CleanRecord(0.5, IntervalRecord(0.4, 0.6), 50, 0, 0, ())
    seconds = dict.fromkeys(("load", "extract", "text", "fit", "tests", "clean"), 1.0)
    records = [
        replace(
            classified_record("digits", "tiny", protocol=name), clean=clean, seconds=seconds, fit_joules={"cpu": 2.0}
        )
        for name in ("readme", "knn")
    ]
    for record in records:
        assert tables.row(record).keys() <= COLUMNS.keys()
        write_record(record, tmp_path)
    frame = results_frame(tmp_path)
    assert {name for name in frame.columns[len(COLUMNS) :] if not name.startswith("package_")} == set()
    assert {name: str(frame[name].dtype) for name in COLUMNS} == COLUMNS
    found = frame[["clean_score", "clean_low", "clean_high", "num_left_out", "num_differing", "clean_seconds"]]
    assert found.to_numpy().tolist() == [[0.5, 0.4, 0.6, 0, 0, 1.0]] * 2


def test_speed_and_energy_are_of_the_images_of_all_subsets(tmp_path):
    """100 images in 10 s with 30 J and 300 images in 10 s with 60 J are 20 images per second and 225 J per 1,000."""
    subsets = {
        "train": MeterRecord(100, images_per_second=10.0, joules_per_1000_images={"cpu": 300.0, "gpu": 1.0}),
        "test": MeterRecord(300, images_per_second=30.0, joules_per_1000_images={"cpu": 200.0}),
    }
    write_record(changed(make_record("digits", "tiny"), "extraction.subsets", subsets), tmp_path)
    (row,) = results_frame(tmp_path).to_dict("records")
    assert row["images_per_second"] == pytest.approx(20)
    assert row["cpu_joules_per_1000_images"] == pytest.approx(225)
    assert pd.isna(row["gpu_joules_per_1000_images"])


def test_categories_and_rows_are_in_the_order_of_the_catalogues(tmp_path):
    for dataset, model in (("mnist", "tiny"), ("digits", "ViT-B/32"), ("folder:/a/moths", "RN50"), ("digits", "mine")):
        write_record(make_record(dataset, model), tmp_path)
        write_record(make_record(dataset, model, protocol="few-shot-16"), tmp_path)
        write_record(make_record(dataset, model, protocol="few-shot-2"), tmp_path)
    frame = results_frame(tmp_path)
    datasets, models = list(frame["dataset"].cat.categories), list(frame["model"].cat.categories)
    assert datasets == [*(name for name in dataset_names() if name in datasets), "folder:/a/moths"]
    assert models == [*(name for name in model_names() if name in models), "mine"]
    assert list(frame["protocol"].cat.categories) == ["few-shot-2", "few-shot-16", "readme"]
    pd.testing.assert_frame_equal(frame, frame.sort_values(list(KEYS), ignore_index=True))


def test_a_failed_run_is_a_row_without_a_score(tmp_path):
    write_record(make_failure("no images"), tmp_path)
    (row,) = results_frame(tmp_path).to_dict("records")
    assert (row["status"], row["error"]) == ("failed", "no images")
    assert pd.isna(row["score"])
    assert pd.isna(row["converged"])


def test_the_calibration_of_a_record_is_in_its_row(tmp_path):
    record = classified_record("digits", "tiny")
    write_record(record, tmp_path)
    (row,) = results_frame(tmp_path).to_dict("records")
    assert row["nll"] == record.result.calibration.before.nll
    assert row["ece_after"] == record.result.calibration.after.ece
    assert row["temperature"] == record.result.calibration.temperature
    assert row["ece_bins"] == record.result.calibration.before.bins.shape[1]


def test_several_folds_have_one_digest_that_changes_with_each_of_them(tmp_path):
    splits = {f"test/{fold}": SplitRecord(f"{fold}" * 64, 50) for fold in (1, 2)}
    write_record(make_record(splits=splits), tmp_path)
    (found,) = results_frame(tmp_path)["test_images_sha256"]
    assert found == digest({name: split.sha256 for name, split in splits.items()})
    assert results_frame(tmp_path)["train_images_sha256"].isna().all()


def test_damaged_and_foreign_files_are_named_and_skipped(tmp_path, caplog):
    path = write_record(make_record(), tmp_path)
    (path.parent / "cut.json").write_text(path.read_text()[:-9])
    (path.parent / "foreign.json").write_text('{"model": "tiny", "accuracy": 0.9}')
    (path.parent / "later.json").write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with caplog.at_level(logging.WARNING):
        frame = results_frame(tmp_path)
    assert list(frame["record"]) == [path.relative_to(tmp_path).as_posix()]
    for name, reason in (("cut", "not valid JSON"), ("foreign", "no schema_version"), ("later", "update probe")):
        assert any(f"{name}.json" in text and reason in text for text in caplog.messages)


@pytest.mark.parametrize("kind", FRAME_FORMATS)
def test_a_folder_without_records_has_a_header_in_every_format(kind, tmp_path):
    frame = results_frame(tmp_path)
    assert len(frame) == 0
    assert {name: str(frame[name].dtype) for name in COLUMNS} == COLUMNS
    assert len(FRAME_FORMATS[kind](frame)) > 100


@pytest.fixture(scope="module", params=["committed", "unusual"])
def frame(request, tmp_path_factory):
    if request.param == "committed":
        return request.getfixturevalue("committed")
    folder = tmp_path_factory.mktemp("unusual")
    for record in (
        make_failure('a "quoted" message,\nin two lines', model="RN50"),
        make_record(model="NA", protocol="zero-shot", created="2026-01-02T03:04:05.678901+02:00"),
        changed(page_record("digits", "a_b & c", 20, protocol="clip-paper"), "result.interval.method", "wilson"),
        replace(make_record(model="old"), created="2026-01-02"),  # a time without a zone is in UTC
        changed(make_record(model="slow"), "seconds", {"fit": 0.1 + 0.2, "walk": 1e-17}),
    ):
        write_record(record, folder)
    return results_frame(folder)


def test_parquet_gives_back_the_same_frame(frame):
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(FRAME_FORMATS["parquet"](frame))), frame)


def test_csv_gives_back_the_same_frame(frame):
    types = {name: kind for name, kind in frame.dtypes.items() if name != "created"}
    text = io.StringIO(FRAME_FORMATS["csv"](frame.replace({"error": r"\n"}, {"error": r"\\n"}, regex=True)))
    found = pd.read_csv(text, dtype=types, parse_dates=["created"], keep_default_na=False, na_values=[""])
    found["created"] = found["created"].astype(frame["created"].dtype)
    found["error"] = found["error"].str.replace(r"\n", "\n")  # a line break is escaped, as in all CSV files
    pd.testing.assert_frame_equal(found, frame)


def test_tables_to_read_have_a_row_for_each_run_and_scores_in_percent(frame):
    lines = FRAME_FORMATS["md"](frame).splitlines()
    assert len(lines) == 2 + len(frame)
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert set(header) <= set(READABLE.values())
    first = dict(zip(header, (cell.strip() for cell in lines[2].strip("|").split("|")), strict=True))
    score = frame["score"][0]
    assert first["score, %"] == ("—" if pd.isna(score) else f"{100 * score:.2f}")
    rows = [line for line in FRAME_FORMATS["latex"](frame).splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(frame)
    assert {row.replace(r"\&", "").count("&") for row in rows} == {len(header) - 1}


def test_names_that_are_no_text_or_formulas_are_escaped_in_every_format(tmp_path):
    write_record(make_record(model="m\udcff"), tmp_path)
    write_record(make_record(model="=1+1"), tmp_path)
    frame = results_frame(tmp_path)
    found = {kind: write(frame) for kind, write in FRAME_FORMATS.items()}
    assert {row["model"] for row in csv.DictReader(io.StringIO(found["csv"]))} == {"m\\udcff", "'=1+1"}
    assert all("\udcff" not in text for text in found.values() if isinstance(text, str))


def test_the_command_prints_or_writes_all_runs(tmp_path, capsys):
    write_record(changed(page_record("digits", "tiny", 20), "result.interval.method", "wilson"), tmp_path / "results")
    folder = ["--results-dir", str(tmp_path / "results")]
    assert main(["tables", "--format", "csv", *folder]) == 0
    assert capsys.readouterr().out == FRAME_FORMATS["csv"](results_frame(tmp_path / "results"))
    assert main(["tables", "--format", "parquet", "--out", str(tmp_path / "all.parquet"), *folder]) == 0
    found = pd.read_parquet(tmp_path / "all.parquet")
    pd.testing.assert_frame_equal(found, probe.results_frame(tmp_path / "results"))
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"records"}  # no other file is written


def test_the_command_needs_records(tmp_path, capsys):
    (tmp_path / "records").mkdir()
    assert main(["tables", "--format", "csv", "--results-dir", str(tmp_path)]) == 1
    assert "run one first" in capsys.readouterr().err


def test_a_missing_folder_is_refused_and_an_empty_folder_has_no_rows(tmp_path):
    with pytest.raises(ResultsError, match=r"no records in .*nowhere, which is not a folder; name a results folder"):
        results_frame(tmp_path / "nowhere")
    assert len(results_frame(tmp_path)) == 0
