"""Files of features: ours have the right content, and those from elsewhere are fitted or refused in one sentence."""

import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import probe
from probe.cli.main import main
from probe.errors import FeaturesError
from probe.features.arrays import Features
from probe.features.files import load, save


@pytest.fixture
def arrays():
    """Return raw pixels of the digits, in place of features from another program."""
    x, y = load_digits(return_X_y=True)
    cuts = {"train": slice(0, 900), "val": slice(900, 1200), "test": slice(1200, None)}
    return {f"{name}_{kind}": array[cut] for name, cut in cuts.items() for kind, array in (("x", x), ("y", y))}


def saved(path, arrays):
    np.savez(path, **arrays)
    return str(path)


def test_the_probe_of_anybodys_features_is_scikit_learns(tmp_path, arrays, capsys):
    path = saved(tmp_path / "features.npz", arrays)
    assert main(["fit", path, "--protocol", "readme", "--solver", "sklearn", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    x = np.concatenate([arrays["train_x"], arrays["val_x"]]).astype(np.float32)
    fitted = LogisticRegression(C=0.316, max_iter=1000, tol=1e-6).fit(
        x, np.concatenate([arrays["train_y"], arrays["val_y"]])
    )
    assert found["score"] == fitted.score(arrays["test_x"].astype(np.float32), arrays["test_y"])
    assert (found["num_train"], found["num_test"]) == (1200, 597)


def test_a_protocol_before_the_projection_takes_the_only_point_of_a_file(tmp_path, arrays, capsys):
    path = saved(tmp_path / "features.npz", {name: array[:60] for name, array in arrays.items()})
    assert main(["fit", path]) == 0
    assert "| clip-paper | accuracy |" in capsys.readouterr().out


@pytest.mark.slow
def test_what_extract_writes_is_what_a_run_fits(tmp_path, capsys):
    path = tmp_path / "features.npz"
    common = ["--dataset", "digits", "--model", "tiny", "--device", "cpu"]
    assert main(["extract", *common, "--out", str(path)]) == 0
    capsys.readouterr()
    assert main(["fit", str(path), "--protocol", "readme", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    record = probe.run("digits", model="tiny", protocol="readme", device="cpu", results_dir=tmp_path / "results")
    assert found["score"] == record.result.score
    assert found["about"]["encoder"]["weights_sha256"] == record.encoder.weights_sha256
    with np.load(path, allow_pickle=False) as file:
        assert file["train_x"].shape == (1079, 256)
        assert file["test_pre_projection"].shape == (359, 192)
        assert file["train_x"].dtype == np.float32


def test_rows_of_arrays_on_disk_are_those_of_arrays_in_memory(tmp_path):
    """There are more rows than are written at a time, each split has some of them, and images have several labels."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9000, 3)).astype(np.float32), rng.integers(-1, 2, (9000, 2))
    on_disk = {}
    for name, array in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", array)
        on_disk[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    rows = {
        "train": ("all", np.arange(0, 9000, 3)),
        "val": ("all", np.arange(1, 9000, 300)),
        "test": ("all", np.array([8998])),
    }
    save(tmp_path / "disk.npz", {"all": Features(on_disk["x"], on_disk["y"], on_disk["x"])}, [rows], {"metric": "m"})
    found = load(tmp_path / "disk.npz")
    assert found.about == {"metric": "m"}
    for split, (_, positions) in rows.items():
        assert np.array_equal(found.folds[0][split].x, x[positions])
        assert np.array_equal(found.folds[0][split].pre_projection, x[positions])
        assert np.array_equal(found.folds[0][split].y, y[positions])


def test_several_folds_are_kept_apart(tmp_path, arrays):
    features = {"all": Features(arrays["train_x"].astype(np.float32), arrays["train_y"])}
    folds = [
        {"train": ("all", np.arange(k, 600)), "val": ("all", np.arange(600, 700)), "test": ("all", np.arange(700, 900))}
        for k in range(2)
    ]
    save(tmp_path / "folds.npz", features, folds, {})
    assert [len(fold["train"]) for fold in load(tmp_path / "folds.npz").folds] == [600, 599]
    assert main(["fit", str(tmp_path / "folds.npz"), "--protocol", "readme"]) == 0


BAD = {
    "no test": (lambda a: {n: v for n, v in a.items() if "test" not in n}, "has no test_x"),
    "no labels": (lambda a: {n: v for n, v in a.items() if n != "train_y"}, "has no train_y"),
    "other names": (lambda a: {"X": a["train_x"], "labels": a["train_y"]}, "has no train_x.*it has X, labels"),
    "not finite": (lambda a: a | {"train_x": np.where(a["train_x"] == 16, np.nan, a["train_x"])}, "row 1 of train_x"),
    "integers": (lambda a: a | {"test_x": a["test_x"].astype(int)}, r"test_x has int64 \(597, 64\)"),
    "flat": (lambda a: a | {"train_x": a["train_x"].ravel()}, r"train has arrays of \(57600,\), \(900,\)"),
    "one label too few": (lambda a: a | {"train_y": a["train_y"][1:]}, r"train has arrays of \(900, 64\), \(899,\)"),
    "labels of text": (
        lambda a: a | {"train_y": a["train_y"].astype(str)},
        "val_y has numbers, but train_y has texts; give all labels as one of them",
    ),
    "empty texts": (
        lambda a: {n: np.where(v == 3, "", v.astype(str)) if n.endswith("_y") else v for n, v in a.items()},
        "the label in row 3 of train_y is an empty text; name its class",
    ),
    "one class": (lambda a: a | {"train_y": 0 * a["train_y"], "val_y": 0 * a["val_y"]}, "at least two classes"),
    "another width": (lambda a: a | {"test_x": a["test_x"][:, 1:]}, "different numbers of features"),
    "a number for labels": (lambda a: a | {"train_y": np.array(3)}, "train has arrays of"),
    "no columns": (lambda a: a | {"train_x": a["train_x"][:, :0]}, r"train_x has float64 \(900, 0\)"),
    "labels of halves": (
        lambda a: a | {"test_y": a["test_y"] / 2},
        r"the label in row 0 of test_y is 3.5; give integers",
    ),
    "labels of NaN": (lambda a: a | {"val_y": a["val_y"] * np.nan}, "the label in row 0 of val_y is nan"),
    "negative labels": (lambda a: a | {"train_y": a["train_y"] - 5}, "train has the label -5 in row"),
    "too large for float32": (lambda a: a | {"train_x": a["train_x"] + 1e300}, "not finite in float32"),
    "folds and none": (lambda a: a | {"fold1_train_x": a["train_x"]}, "either one set of splits, or folds"),
    "objects": (
        lambda a: a | {"train_x": np.array([{}, 1], dtype=object)},
        "not a file of features .it has arrays of Python objects",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_features_are_one_sentence(tmp_path, arrays, capsys, kind):
    change, message = BAD[kind]
    path = saved(tmp_path / "bad.npz", change(arrays))
    assert main(["fit", path, "--protocol", "readme"]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.err)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_of_another_kind_is_one_sentence(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(FeaturesError, match=r"is not a file of features \("):
        load(tmp_path / "bad.npz")
    with pytest.raises(FeaturesError, match="no file at"):
        load(tmp_path / "nowhere.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(FeaturesError, match="is not a zip file"):
        load(tmp_path / "single.npy")


def test_a_member_that_is_no_array_is_one_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as file:
        file.writestr("train_x", b"text")
    with pytest.raises(FeaturesError, match="members that are not arrays"):
        load(tmp_path / "bad.npz")


def test_an_array_called_about_in_anybodys_file_says_nothing(tmp_path, arrays):
    for about in ("my features", '["a"]', "5"):
        assert load(Path(saved(tmp_path / "features.npz", arrays | {"about": np.array(about)}))).about == {}


def test_a_search_needs_validation_features(tmp_path, arrays, capsys):
    path = saved(tmp_path / "no_val.npz", {name: array for name, array in arrays.items() if "val" not in name})
    assert main(["fit", path]) == 1
    assert (
        "chooses C on a validation split, but there is none; give val (val_x and val_y in a file)"
        in capsys.readouterr().err
    )


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeaturesError, match=r"cannot write .*features\.npz"):
        save(tmp_path / "file" / "features.npz", {}, [], {})


def test_labels_with_gaps_are_numbered_and_the_output_says_how(tmp_path, arrays, capsys):
    """The scores equal those for labels without gaps."""
    ids = np.sort(np.random.default_rng(0).choice(10**9, 10, replace=False))
    gaps = {name: ids[array] if name.endswith("_y") else array for name, array in arrays.items()}
    found = []
    for name, content in (("gaps", gaps), ("none", arrays)):
        path = saved(tmp_path / f"{name}.npz", content)
        assert (
            main(["fit", path, "--protocol", "readme", "--solver", "fast", "--metric", "mean_per_class", "--json"]) == 0
        )
        found += json.loads(capsys.readouterr().out)
    assert found[0]["score"] == found[1]["score"] > 0.9
    assert found[0]["label_values"] == ids.tolist()
    assert found[1]["label_values"] == []
    splits = load(Path(tmp_path / "gaps.npz")).folds[0]
    result = probe.fit_probe(**splits, protocol="readme", solver="fast")
    assert np.mean(result.predictions == gaps["test_y"]) == result.score


@pytest.mark.parametrize("dtype", ["float64", "float16", ">i8", "uint8", "int16", "uint64"])
def test_whole_numbers_of_any_type_are_labels(tmp_path, arrays, dtype):
    path = saved(tmp_path / "a.npz", {n: a.astype(dtype) if n.endswith("_y") else a for n, a in arrays.items()})
    for split, features in load(Path(path)).folds[0].items():
        assert features.y.dtype == np.int64
        assert np.array_equal(features.y, arrays[f"{split}_y"])


def test_a_metric_that_is_not_defined_on_the_split_is_said_before_the_fit(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 8)).astype(np.float32), rng.integers(0, 2, 80)
    one = {"train_x": x, "train_y": y, "val_x": x, "val_y": y, "test_x": x[:20], "test_y": 0 * y[:20]}
    several = {name: np.stack([a, 1 - a], axis=1) if name.endswith("_y") else a for name, a in one.items()}
    none = several | {"test_y": 0 * several["test_y"]}
    of_val = one | {"val_y": 1 + 0 * y, "test_y": y[:20]}
    for content, metric, said in (
        (one, "roc_auc", "not defined on the test split: all of its 20 images have the label 0"),
        (of_val, "roc_auc", "not defined on the val split: all of its 80 images have the label 1"),
        (none, "voc2007_11pt_map", "not defined on the test split: none of its images shows a class"),
    ):
        assert main(["fit", saved(tmp_path / "a.npz", content), "--metric", metric]) == 1
        assert said in capsys.readouterr().err
    assert main(["fit", saved(tmp_path / "a.npz", of_val), "--metric", "roc_auc", "--protocol", "readme"]) == 0


def test_a_class_without_positive_test_images_does_not_count_and_is_named(caplog):
    """The score equals scikit-learn's mean average precision over the classes with a positive image."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (300, 3))
    x = (rng.normal(size=(300, 5)) + y @ rng.normal(size=(3, 5))).astype(np.float32)
    without = np.where([True, False, True], y[200:], 0)
    scores = [
        probe.fit_probe(
            train=Features(x[:200], y[:200, classes]),
            test=Features(x[200:], labels[:, classes]),
            metric="voc2007_11pt_map",
            protocol="readme",
        ).score
        for classes, labels in (([0, 1, 2], without), ([0, 2], y[200:]))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-12)
    assert "1 classes have no positive image in the test split and do not count in the mean: 1" in caplog.text


LABELS = {
    "int64": lambda y, rng: y,
    "int8": lambda y, rng: y.astype(np.int8),
    "uint64": lambda y, rng: y.astype(np.uint64),
    "too large for int64": lambda y, rng: y.astype(np.uint64) + 2**63,
    "big-endian": lambda y, rng: y.astype(">i4"),
    "floats": lambda y, rng: y.astype(np.float32),
    "halves": lambda y, rng: y / 2,
    "NaN": lambda y, rng: np.where(rng.random(y.shape) < 0.1, np.nan, y),
    "bool": lambda y, rng: y > 0,
    "text": lambda y, rng: y.astype(str),
    "objects": lambda y, rng: y.astype(object),
    "gaps": lambda y, rng: y * 300_000 + 7,
    "negative": lambda y, rng: y - 1,
    "one class": lambda y, rng: 0 * y,
    "a class less": lambda y, rng: np.where(y == 1, 0, y),
    "too few": lambda y, rng: y[:-1],
    "none": lambda y, rng: y[:0],
    "a scalar": lambda y, rng: y.sum(),
    "a column": lambda y, rng: y[:, None],
    "three axes": lambda y, rng: y[:, None, None],
    "complex": lambda y, rng: y + 1j,
    "dates": lambda y, rng: y.astype("datetime64[s]"),
}
FEATURES = {
    "float64": lambda x, rng: x,
    "float16": lambda x, rng: x.astype(np.float16),
    "long double": lambda x, rng: x.astype(np.longdouble),
    "big-endian": lambda x, rng: x.astype(">f4"),
    "Fortran order": lambda x, rng: np.asfortranarray(x),
    "integers": lambda x, rng: x.astype(int),
    "objects": lambda x, rng: x.astype(object),
    "text": lambda x, rng: x.astype(str),
    "complex": lambda x, rng: x + 0j,
    "NaN": lambda x, rng: np.where(rng.random(x.shape) < 0.01, np.nan, x),
    "huge": lambda x, rng: x * 1e30,
    "too large": lambda x, rng: x.astype(float) * 1e300,
    "tiny": lambda x, rng: x * 1e-30,
    "zeros": lambda x, rng: 0 * x,
    "no rows": lambda x, rng: x[:0],
    "no columns": lambda x, rng: x[:, :0],
    "one column": lambda x, rng: x[:, :1],
    "a vector": lambda x, rng: x[:, 0],
    "three axes": lambda x, rng: x[:, :, None],
    "a row less": lambda x, rng: x[1:],
}


def _random_file(seed):
    """Change one or two arrays of a file, and draw the protocol, metric and solver."""
    rng = np.random.default_rng(seed)
    is_multi_label = rng.random() < 0.25
    arrays = {}
    for split, n in (("train", 40), ("val", 24), ("test", 24)):
        y = rng.integers(0, 3, n)
        x = rng.normal(size=(n, 5)) + y[:, None]
        if is_multi_label:
            y = np.where(rng.random((n, 3)) < 0.1, -1, np.stack([y > 0, y == 1, y == 2], axis=1))
        arrays[f"{split}_y"], arrays[f"{split}_x"] = y, x.astype(np.float32)
    for _ in range(rng.integers(1, 3)):
        kinds = LABELS if rng.random() < 0.6 else FEATURES
        change = kinds[list(kinds)[rng.integers(len(kinds))]]
        splits = ("train", "val", "test") if rng.random() < 0.3 else (rng.choice(["train", "val", "test"]),)
        for split in splits:
            name = f"{split}_{'y' if kinds is LABELS else 'x'}"
            try:
                arrays[name] = change(arrays[name], rng)
            except (TypeError, ValueError, IndexError, np.exceptions.AxisError):  # an earlier change prevents this one
                continue
    metrics = ["voc2007_11pt_map"] if is_multi_label else ["accuracy", "mean_per_class", "roc_auc", "top5"]
    # Few shots are several draws, each with a search, and take ten times as long as the others.
    protocol = rng.choice(["readme", "clip-paper", "few-shot-1", "few-shot-2-held-out"], p=[0.4, 0.4, 0.1, 0.1])
    options = ["--protocol", protocol, "--metric", rng.choice(metrics), "--solver", rng.choice(["fast", "sklearn"])]
    return arrays, [str(option) for option in options]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_any_file_of_features_is_fitted_or_refused_in_one_sentence(tmp_path, capsys, block):
    """Changed shapes, types, classes, splits and labels give a score or a message, and never a traceback."""
    for seed in range(30 * block, 30 * block + 30):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns about the changes made here
            arrays, options = _random_file(seed)
            path = saved(tmp_path / f"{seed}.npz", arrays)
        code = main(["fit", path, "--json", "--cache-dir", str(tmp_path / "cache"), *options])
        found = capsys.readouterr()
        if code == 0:
            assert 0 <= json.loads(found.out)[0]["score"] <= 1
        else:
            said = [line for line in found.err.splitlines() if line.startswith("probe: ")]
            assert (code, found.out, len(said)) == (1, "", 1), (seed, options)
            assert len(said[0]) <= 510
            assert said[0].endswith(found.err.strip()[-20:])
