"""Features as files: ours hold what they say, and anybody's are probed or refused in one sentence."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import probe
from probe.cli import main
from probe.errors import FeaturesError
from probe.features import Features
from probe.files import load, save


@pytest.fixture
def arrays():
    """Raw pixels of the digits, as anybody may have features."""
    x, y = load_digits(return_X_y=True)
    cuts = {"train": slice(0, 900), "val": slice(900, 1200), "test": slice(1200, None)}
    return {f"{name}_{kind}": array[cut] for name, cut in cuts.items() for kind, array in (("x", x), ("y", y))}


def saved(path, arrays):
    np.savez(path, **arrays)
    return str(path)


def test_the_probe_of_anybodys_features_is_scikit_learns(tmp_path, arrays, capsys):
    path = saved(tmp_path / "features.npz", arrays)
    assert main(["fit", path, "--protocol", "readme", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    x = np.concatenate([arrays["train_x"], arrays["val_x"]]).astype(np.float32)
    fitted = LogisticRegression(C=0.316, max_iter=1000, tol=1e-6).fit(
        x, np.concatenate([arrays["train_y"], arrays["val_y"]])
    )
    assert found["score"] == fitted.score(arrays["test_x"].astype(np.float32), arrays["test_y"])
    assert (found["num_train"], found["num_test"]) == (1200, 597)


def test_a_protocol_before_the_projection_takes_the_only_point_of_a_file(tmp_path, arrays, capsys):
    path = saved(tmp_path / "features.npz", {name: array[:200] for name, array in arrays.items()})
    assert main(["fit", path]) == 0
    assert "| clip-paper | accuracy |" in capsys.readouterr().out


def test_what_extract_writes_is_what_a_run_fits(tmp_path, capsys):
    path = tmp_path / "features.npz"
    common = ["--dataset", "digits", "--model", "tiny", "--device", "cpu"]
    assert main(["extract", *common, "--out", str(path)]) == 0
    capsys.readouterr()
    assert main(["fit", str(path), "--protocol", "readme", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    record = probe.run("digits", model="tiny", protocol="readme", device="cpu", results_dir=tmp_path / "results")
    assert found["score"] == record.result["score"]
    assert found["about"]["encoder"]["weights_sha256"] == record.encoder["weights_sha256"]
    with np.load(path, allow_pickle=False) as file:
        assert file["train_x"].shape == (1079, 256)
        assert file["test_pre_projection"].shape == (359, 192)
        assert file["train_x"].dtype == np.float32


def test_rows_of_arrays_on_disk_are_those_of_arrays_in_memory(tmp_path):
    """More rows than are written at a time, some of them, of several labels."""
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
    "labels of text": (lambda a: a | {"train_y": a["train_y"].astype(str)}, "train has labels"),
    "one class": (lambda a: a | {"train_y": 0 * a["train_y"], "val_y": 0 * a["val_y"]}, "at least two classes"),
    "another width": (lambda a: a | {"test_x": a["test_x"][:, 1:]}, "different widths"),
    "a number for labels": (lambda a: a | {"train_y": np.array(3)}, "train has arrays of"),
    "no columns": (lambda a: a | {"train_x": a["train_x"][:, :0]}, r"train_x has float64 \(900, 0\)"),
    "labels that are no indices": (lambda a: a | {"train_y": a["train_y"] * 10**9}, "give class indices from 0 on"),
    "too large for float32": (lambda a: a | {"train_x": a["train_x"] + 1e300}, "not finite in float32"),
    "folds and none": (lambda a: a | {"fold1_train_x": a["train_x"]}, "either one set of splits, or folds"),
    "objects": (
        lambda a: a | {"train_x": np.array([{}, 1], dtype=object)},
        "no file of features .it has arrays of Python objects",
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
    with pytest.raises(FeaturesError, match=r"is no file of features \("):
        load(tmp_path / "bad.npz")
    with pytest.raises(FeaturesError, match="no file at"):
        load(tmp_path / "nowhere.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(FeaturesError, match="is not a zip file"):
        load(tmp_path / "single.npy")


def test_a_member_that_is_no_array_is_one_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as file:
        file.writestr("train_x", b"text")
    with pytest.raises(FeaturesError, match="members that are no arrays"):
        load(tmp_path / "bad.npz")


def test_an_array_called_about_in_anybodys_file_says_nothing(tmp_path, arrays):
    for about in ("my features", '["a"]', "5"):
        assert load(Path(saved(tmp_path / "features.npz", arrays | {"about": np.array(about)}))).about == {}


def test_a_search_needs_validation_features(tmp_path, arrays, capsys):
    path = saved(tmp_path / "no_val.npz", {name: array for name, array in arrays.items() if "val" not in name})
    assert main(["fit", path]) == 1
    assert "chooses C on a validation split; give val, which in a file is val_x and val_y" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeaturesError, match=r"cannot write .*features\.npz"):
        save(tmp_path / "file" / "features.npz", {}, [], {})
