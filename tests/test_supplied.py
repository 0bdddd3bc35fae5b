"""Probes on supplied features: their records equal the records of a run, but are marked as supplied."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from make.supplied import make_arrays, write_folder, write_parquet

import probe
from probe.cli.main import main
from probe.errors import FeaturesError, HeadError
from probe.features.arrays import Features
from probe.leaderboard.derived import find_stale, write_derived
from probe.leaderboard.details import describe_record
from probe.leaderboard.sections import make_sections
from probe.probes.prediction import load_encoder_of
from probe.records.checks import find_fault
from probe.records.record import read_record, read_records, record_path
from probe.reproduction import reproduce_all
from probe.supplied import open_features

ABOUT = {"dataset": "insects", "model": "ViT-B/32"}


@pytest.fixture
def arrays():
    return make_arrays()


@pytest.fixture
def folder(tmp_path, arrays):
    return write_folder(tmp_path / "features", arrays)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PROBE_RESULTS_DIR", str(tmp_path / "results"))


def write_toml(path, **values):
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return str(path)


def splits_of(arrays):
    return {
        split: Features(arrays[f"{split}_x"], arrays[f"{split}_y"].astype(np.int64))
        for split in ("train", "val", "test")
    }


def test_a_record_has_the_result_of_the_probe_and_what_the_user_says(tmp_path, arrays, folder):
    about = write_toml(tmp_path / "about.toml", **ABOUT, precision="fp16", license="MIT", notes="made by hand")
    record = probe.fit_features(folder, about=about, protocol="readme", device="cpu")
    result = probe.fit_probe(
        **{
            split: replace(features, pre_projection=arrays[f"{split}_pre_projection"])
            for split, features in splits_of(arrays).items()
        },
        protocol="readme",
    ).to_record()
    assert replace(record.result, probe_version=1) == result
    assert (record.dataset, record.model, record.mode, record.precision) == (
        *("insects", "supplied:ViT-B/32"),
        *("supplied", "fp16"),
    )
    origin = record.extraction.supplied
    assert (origin.file, origin.about.license, origin.about.notes) == ("features", "MIT", "made by hand")
    splits = open_features(folder).compute_digests()[0]
    assert {name: one.sha256 for name, one in record.features.items()} == splits
    assert {name: split.size for name, split in record.splits.items()} == {"train": 60, "val": 30, "test": 30}
    (read,) = read_records(tmp_path / "results")
    assert read == record
    assert find_fault(read) == ""


def test_a_record_of_other_features_is_replaced_with_a_warning(arrays, tmp_path, caplog):
    """A repeated fit on the same features replaces its record without a warning."""
    for _ in range(2):
        probe.fit_features(splits_of(arrays), about=ABOUT, protocol="readme", device="cpu")
        assert not caplog.messages
    others = {**arrays, "train_x": arrays["train_x"] + 1}
    record = probe.fit_features(splits_of(others), about=ABOUT, protocol="readme", device="cpu")
    (message,) = caplog.messages
    assert message.startswith(f"{record_path(record, tmp_path / 'results')} was the record of other features")
    assert message.endswith("state another `model` or `dataset` to keep both")


PROTOCOLS = ["readme", "clip-paper", "knn-5", pytest.param("few-shot-2", marks=pytest.mark.slow)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_formats_give_the_same_result(tmp_path, arrays, folder, protocol):
    np.savez(tmp_path / "features.npz", **arrays)
    paths = [folder, tmp_path / "features.npz", write_parquet(tmp_path / "features.parquet", arrays)]
    found = [probe.fit_features(path, about=ABOUT, protocol=protocol, device="cpu") for path in paths]
    assert found[0].result == found[1].result == found[2].result
    assert found[0].features == found[1].features == found[2].features
    assert found[0].splits == found[1].splits == found[2].splits


def test_arrays_in_memory_are_supplied_too(arrays):
    record = probe.fit_features(splits_of(arrays), about=ABOUT, protocol="readme", device="cpu")
    assert record.extraction.supplied.file == ""
    assert describe_record(record)["features"] == "supplied"
    with pytest.raises(FeaturesError, match="there are no test features; give features of train and test"):
        probe.fit_features({"train": splits_of(arrays)["train"]}, about=ABOUT)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x.astype(np.float64), y.astype(np.int32)),
        lambda x, y: (x.tolist(), y.tolist()),
        lambda x, y: (np.asfortranarray(x), y.astype(float)),
        lambda x, y: (x, np.array(["a", "b", "c"])[y]),
    ],
    ids=["float64", "lists", "columns", "texts"],
)
def test_arrays_in_memory_are_converted_as_those_of_files(arrays, change):
    plain = probe.fit_features(splits_of(arrays), about=ABOUT, protocol="readme", device="cpu")
    splits = {name: Features(*change(one.x, one.y)) for name, one in splits_of(arrays).items()}
    found = probe.fit_features(splits, about=ABOUT, protocol="readme", device="cpu")
    assert (found.result, found.features, found.splits) == (plain.result, plain.features, plain.splits)


BAD_ARRAYS = {
    "a list": ([1.0], "the input: train is a list; give probe.Features"),
    "no rows": (Features(np.zeros(3), np.zeros(3)), r"the input: train_x has float64 \(3,\); give floating-point"),
    "integers": (Features(np.zeros((3, 2), int), np.zeros(3)), r"train_x has int64 \(3, 2\)"),
    "NaN": (Features(np.full((3, 2), np.nan), np.zeros(3)), "row 0 of train_x are not finite"),
    "halves": (Features(np.zeros((3, 2)), np.full(3, 0.5)), "the label in row 0 of train_y is 0.5; give integers"),
    "different lengths": (Features([[1.0], [1.0, 2.0]], [0, 1]), "the input: train has no arrays"),
    "a row less": (Features(np.zeros((2, 2)), np.zeros(3)), r"train has arrays of \(2, 2\), \(3,\)"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_in_memory_are_one_sentence(arrays, kind):
    train, message = BAD_ARRAYS[kind]
    with pytest.raises(FeaturesError, match=message):
        probe.fit_features({**splits_of(arrays), "train": train}, about=ABOUT, device="cpu")
    with pytest.raises(FeaturesError, match="the input has features of 'dev'; name the splits train, val, test"):
        probe.fit_features({**splits_of(arrays), "dev": splits_of(arrays)["val"]}, about=ABOUT, device="cpu")


def test_names_of_classes_are_recorded(tmp_path, arrays):
    names = np.array(["ant", "bee", "cat"])
    texts = {name: names[array] if name.endswith("_y") else array for name, array in arrays.items()}
    record = probe.fit_features(write_folder(tmp_path / "texts", texts), about=ABOUT, protocol="readme", device="cpu")
    assert record.read.class_names == ("ant", "bee", "cat")
    assert record.spec.dataset.num_classes == 3
    with pytest.raises(FeaturesError, match="the labels of the features are texts; remove class_names"):
        probe.fit_features(tmp_path / "texts", about={**ABOUT, "class_names": list(names)})
    stated = probe.fit_features(
        splits_of(arrays), about={**ABOUT, "class_names": ["x", "y", "z"]}, protocol="readme", device="cpu"
    )
    assert stated.read.class_names == ("x", "y", "z")
    with pytest.raises(FeaturesError, match="class_names has 2 names, but the features have the label 2"):
        probe.fit_features(splits_of(arrays), about={**ABOUT, "class_names": ["x", "y"]})


def test_features_of_one_point_are_recorded_at_the_stated_point(arrays):
    splits = splits_of(arrays)
    plain = probe.fit_features(splits, about=ABOUT, device="cpu")
    stated = probe.fit_features(splits, about={**ABOUT, "feature_point": "pre_projection"}, device="cpu")
    assert plain.spec.protocol.feature_point == "projected"
    assert stated.spec.protocol.feature_point == "pre_projection"
    assert (stated.encoder.embed_dim, stated.encoder.pre_projection_dim) == (None, 4)
    assert stated.features["test"].sample == {"pre_projection": plain.features["test"].sample["projected"]}
    assert stated.result == plain.result


def test_held_out_validation_is_recorded(arrays):
    splits = {name: features for name, features in splits_of(arrays).items() if name != "val"}
    record = probe.fit_features(splits, about=ABOUT, val_fraction=0.2, seed=3, device="cpu")
    assert {name: split.size for name, split in record.splits.items()} == {"train": 48, "val": 12, "test": 30}
    assert (record.extraction.supplied.val_fraction, record.extraction.supplied.seed) == (0.2, 3)


def test_folds_and_several_labels_are_recorded(tmp_path, arrays):
    folds = {f"fold{k}_{name}": array for k in (1, 2) for name, array in arrays.items()}
    np.savez(tmp_path / "folds.npz", **folds)
    record = probe.fit_features(tmp_path / "folds.npz", about=ABOUT, protocol="readme", device="cpu")
    assert list(record.splits) == [f"{name}/{k}" for k in (1, 2) for name in ("train", "val", "test")]
    assert (record.spec.dataset.num_folds, len(record.result.folds)) == (2, 2)
    several = {name: np.eye(3, dtype=int)[a] if name.endswith("_y") else a for name, a in arrays.items()}
    about = {**ABOUT, "metric": "voc2007_11pt_map"}
    record = probe.fit_features(
        write_folder(tmp_path / "several", several), about=about, protocol="readme", device="cpu"
    )
    assert (record.spec.dataset.num_classes, record.result.metric) == (3, "voc2007_11pt_map")
    assert find_fault(record) == ""
    assert {find_fault(one) for one in read_records(tmp_path / "results")} == {""}


def test_a_dataset_of_the_catalogue_has_its_metric_but_not_its_class_names(arrays):
    record = probe.fit_features(
        splits_of(arrays), about={"dataset": "oxford_pets", "model": "m"}, protocol="readme", device="cpu"
    )
    assert record.spec.dataset.metric == "mean_per_class"
    from probe.leaderboard.details import class_rows

    assert [row.name for row in class_rows(record)] == ["0", "1", "2"]


@pytest.fixture
def both(tmp_path):
    """Return the record of a run, the record of its features supplied under the same names, and the results folder."""
    results = tmp_path / "results"
    own = probe.run("digits", model="tiny", protocol="readme", device="cpu", results_dir=results)
    common = ["--dataset", "digits", "--model", "tiny", "--device", "cpu", "--out", str(tmp_path / "features.npz")]
    assert main(["extract", *common]) == 0
    assert main(["fit", str(tmp_path / "features.npz"), "--protocol", "readme", "--device", "cpu", "--record"]) == 0
    (supplied,) = [record for record in read_records(results) if record.mode == "supplied"]
    return own, supplied, results


@pytest.mark.slow
def test_supplied_features_of_the_suite_score_as_its_own_run_and_stand_apart(both):
    own, supplied, results = both
    assert supplied.result.outcomes == own.result.outcomes
    assert (supplied.result.score, supplied.result.C) == (own.result.score, own.result.C)
    assert supplied.features == own.features
    assert supplied.splits == own.splits  # the file has the digests of ids and labels
    assert supplied.precision == "fp32"
    sections = make_sections(read_records(results))
    assert [[line.model for line in section.lines] for section in sections] == [["tiny"], ["supplied:tiny"]]
    assert not any(line.rank for section in sections for line in section.lines)
    stale = find_stale(results)
    assert [*stale.differing, *stale.orphans, *stale.damaged] == []
    names = {path.name for path in (results / "tables").iterdir()}
    assert {"tiny.eager.csv", "supplied-tiny-2e0836da.supplied.csv"} <= names
    page = (results / "leaderboard.html").read_text()
    assert "unknown; the features were supplied in a file" in page
    assert "- `supplied`: The features came from a file" in (results / "leaderboard.md").read_text()
    record_path(supplied, results).unlink()
    assert [path.name for path in find_stale(results).orphans] == [
        "supplied-tiny-2e0836da.supplied.csv",
        "supplied-tiny-2e0836da.supplied.md",
    ]
    write_derived(results)
    assert "`supplied`" not in (results / "leaderboard.md").read_text()
    verdict = probe.diff(own, supplied).verdict
    assert verdict.startswith("the scores and the outcome of every test image are the same")


def test_the_overview_is_of_encoders_that_the_suite_ran(arrays, tmp_path):
    from make.records import make_record

    records = [
        probe.fit_features(splits_of(arrays), about={"dataset": name, "model": "m"}, protocol="readme", device="cpu")
        for name in ("a", "b")
    ]
    own = make_record()
    assert make_sections([*records, own])[0].mode == own.mode
    assert make_sections(records)[0].mode == "supplied"


@pytest.mark.parametrize("change", ["name", "form", "origin"])
def test_a_record_that_hides_its_origin_is_damaged(arrays, change):
    record = probe.fit_features(splits_of(arrays), about=ABOUT, protocol="readme", device="cpu")
    model = record.spec.model
    hidden = {
        "name": replace(record, spec=replace(record.spec, model=replace(model, name="ViT-B/32"))),
        "form": replace(record, spec=replace(record.spec, model=replace(model, form="url"))),
        "origin": replace(record, extraction=replace(record.extraction, supplied=None)),
    }
    assert "disagree about the origin of the features" in find_fault(hidden[change])


def test_a_record_is_reproduced_from_the_same_features_in_another_format(tmp_path, arrays, folder, capsys):
    record = probe.fit_features(folder, about=ABOUT, device="cpu", solver="sklearn")
    path = str(record_path(record, tmp_path / "results"))
    assert main(["reproduce", path]) == 1
    assert "its features were supplied in features; give them again with --features" in capsys.readouterr().err
    table = write_parquet(tmp_path / "again.parquet", arrays)
    assert main(["reproduce", path, "--features", str(table)]) == 0
    assert "verdict: identical" in capsys.readouterr().out
    other = write_folder(tmp_path / "other", make_arrays(seed=1))
    found = probe.reproduce(record, features=other, results_dir=tmp_path / "new")
    assert (found.verdict, found.first_moved) == ("changed", "features")
    assert len(read_records(tmp_path / "new")) == 1
    gone = probe.reproduce(record, features=tmp_path / "gone.npz")
    assert (gone.verdict, "no file at" in gone.reason) == ("not run", True)


def test_features_of_another_record_are_not_compared(tmp_path, arrays, folder):
    """One file of --features serves records of several datasets and models: each is run on its own features only."""
    moths = {"dataset": "moths", "model": "m"}
    rotated = {name: np.roll(array, 1) if name.endswith("_y") else array for name, array in arrays.items()}
    write_folder(tmp_path / "moths", rotated)
    write_folder(tmp_path / "another", make_arrays(seed=1))
    own = probe.fit_features(folder, about=ABOUT, protocol="readme", device="cpu")
    others = [
        probe.fit_features(tmp_path / "moths", about=moths, protocol="readme", device="cpu"),
        probe.fit_features(tmp_path / "another", about={**ABOUT, "model": "RN50"}, protocol="readme", device="cpu"),
    ]
    found = probe.reproduce(others[0], features=folder, results_dir=tmp_path / "new")
    assert (found.verdict, found.again) == ("not run", None)
    assert "are not of the images of moths in the record, because their splits or labels differ" in found.reason
    assert not (tmp_path / "new" / "records").exists()
    found = list(reproduce_all([own, *others], features=folder))
    assert [one.verdict for one in found] == ["identical", "not run", "not run"]
    assert "give this record alone with its own features" in found[2].reason
    assert probe.reproduce(others[1], features=folder).verdict == "changed"


def test_a_head_has_the_names_that_the_labels_of_features_are(tmp_path):
    rng = np.random.default_rng(0)
    names = np.array(["wasp", "ant", "bee"])
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.arange(30) % 3
        arrays |= {f"{split}_x": np.eye(3, 8)[labels] + rng.normal(size=(30, 8)) / 9, f"{split}_y": names[labels]}
    np.savez(tmp_path / "texts.npz", **arrays)
    saved = str(tmp_path / "head.safetensors")
    assert main(["fit", str(tmp_path / "texts.npz"), "--save-head", saved, "--protocol", "readme"]) == 0
    assert probe.load_head(saved).info.class_names == ("ant", "bee", "wasp")


def test_a_head_has_the_statements_of_the_user(tmp_path, folder, capsys):
    names = ["ant", "bee", "cat"]
    about = write_toml(tmp_path / "about.toml", **ABOUT, class_names=names, weights_sha256="0" * 64)
    saved = str(tmp_path / "head.safetensors")
    common = ["fit", str(folder), "--about", about, "--save-head", saved, "--protocol", "readme", "--device", "cpu"]
    for options in ([], ["--record"]):
        assert main([*common, *options]) == 0
        info = probe.load_head(saved).info
        assert (info.dataset, info.class_names, info.weights) == ("insects", tuple(names), "0" * 64)
        assert info.model.name == "supplied:ViT-B/32"
    assert len(read_records(tmp_path / "results")) == 1
    with pytest.raises(HeadError, match="features of supplied:ViT-B/32, which the suite cannot run; pass features"):
        load_encoder_of(probe.load_head(saved))


BAD = {
    "no dataset": ({"model": "m"}, "dataset is missing; give dataset and model in the file of --about"),
    "no model": ({"dataset": "d"}, "model is missing"),
    "an empty name": ({**ABOUT, "model": " "}, "model is an empty text; give dataset and model"),
    "another key": ({**ABOUT, "licence": "MIT"}, "unknown key 'licence'; did you mean 'license'"),
    "a number": ({**ABOUT, "notes": 3}, "notes: expected a text, got an integer"),
    "a name in a list": ({**ABOUT, "class_names": ["a", 1]}, r"class_names\[1\]: expected a text, got an integer"),
    "another point": ({**ABOUT, "feature_point": "cls"}, "feature_point: invalid enum value 'cls'"),
    "another metric": ({**ABOUT, "metric": "acuracy"}, "unknown metric 'acuracy'; did you mean 'accuracy'"),
    "no digest": ({**ABOUT, "weights_sha256": "abc"}, "weights_sha256 is 'abc'; give the 64 hexadecimal digits"),
    "one name twice": ({**ABOUT, "class_names": ["a", "a", "b"]}, "class_names has an empty or repeated name"),
    "a point of two": ({**ABOUT, "feature_point": "projected"}, "the features have both feature points; remove"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_statements_are_one_sentence(tmp_path, folder, capsys, kind):
    values, message = BAD[kind]
    about = write_toml(tmp_path / "about.toml", **values)
    assert main(["fit", str(folder), "--about", about, "--record", "--protocol", "readme"]) in (1, 2)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.err)
    assert read_records(tmp_path / "results") == []


def test_a_record_needs_statements(tmp_path, folder, capsys):
    assert main(["fit", str(folder), "--record", "--protocol", "readme"]) == 1
    assert "does not name its dataset and model; describe the features in a TOML file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["fit", str(folder), "--about", "about.toml"])
    assert (
        "--about describes the features in a record or head; add --record or --save-head FILE"
        in capsys.readouterr().err
    )
    for content, message in ((None, "cannot read"), ("dataset =", "is not valid TOML")):
        if content is not None:
            (tmp_path / "about.toml").write_text(content)
        assert main(["fit", str(folder), "--record", "--about", str(tmp_path / "about.toml")]) == 1
        assert message in capsys.readouterr().err


def test_the_command_prints_what_a_run_prints(tmp_path, folder, capsys):
    about = write_toml(tmp_path / "about.toml", **ABOUT)
    common = ["fit", str(folder), "--about", about, "--record", "--protocol", "readme", "--protocol", "knn-5"]
    assert main([*common, "--json", "--metric", "mean_per_class"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["spec"]["protocol"]["name"] for record in records] == ["readme", "knn-5"]
    assert {record["result"]["metric"] for record in records} == {"mean_per_class"}
    assert [record["spec"]["solver"] for record in records] == ["fast", "none"]
    assert main(common) == 0
    assert (
        "supplied: the features came from a file, and the user stated the names of model and dataset"
        in capsys.readouterr().out
    )
    (path,) = (tmp_path / "results" / "records" / "insects").glob("*.readme.*")
    assert read_record(path).spec.dataset.metric == "accuracy"


def test_reading_records_of_supplied_features_logs_nothing(tmp_path, arrays, caplog):
    with caplog.at_level(logging.WARNING):
        probe.fit_features(splits_of(arrays), about=ABOUT, protocol="readme", device="cpu")
        read_records(tmp_path / "results")
    assert caplog.text == ""
