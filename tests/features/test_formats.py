"""Parquet files and folders of `.npy` files give the features of `.npz` files, or are refused in one sentence."""

import io
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from make.supplied import make_arrays, write_folder, write_parquet
from pyarrow import parquet

from probe.errors import FeaturesError
from probe.features.files import load

NAMES = np.array(["ant", "bee", "cat"])


@pytest.fixture
def arrays():
    return make_arrays()


def check(path, arrays, *, points=("x", "pre_projection")):
    """Check that a file holds the arrays, and return its content."""
    content = load(path)
    (fold,) = content.folds
    assert set(fold) == {name.partition("_")[0] for name in arrays}
    for split, features in fold.items():
        for point in ("x", "pre_projection"):
            own = getattr(features, point)
            if point in points:
                assert own.dtype == np.float32
                assert np.array_equal(own, arrays[f"{split}_{point}"])
            else:
                assert own is None
        assert features.y.dtype == np.int64
        assert np.array_equal(features.y, arrays[f"{split}_y"])
    return content


@pytest.mark.parametrize("kind", ["list", "fixed-size list", "large list", "columns"])
def test_a_parquet_file_has_the_features_of_its_columns(tmp_path, arrays, kind):
    path = write_parquet(tmp_path / "features.parquet", arrays, kind=kind, shuffled=True)
    points = ("x",) if kind == "columns" else ("x", "pre_projection")
    content = check(path, arrays, points=points)
    assert content.class_names == ()


def test_rows_of_a_parquet_file_keep_their_order_over_batches(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr("probe.features.formats.ROWS", 7)
    check(write_parquet(tmp_path / "features.pq", arrays, shuffled=True), arrays)


def test_pandas_writes_a_file_that_can_be_read(tmp_path, arrays):
    pandas = pytest.importorskip("pandas")
    rows = [
        pandas.DataFrame({"split": name, "label": arrays[f"{name}_y"], "features": list(arrays[f"{name}_x"])})
        for name in ("train", "val", "test")
    ]
    frame = pandas.concat(rows)
    frame.to_parquet(tmp_path / "features.parquet")  # with the index, which repeats
    check(tmp_path / "features.parquet", arrays, points=("x",))
    frame["split"] = frame["split"].replace("val", "validation").astype("category")
    frame.to_parquet(tmp_path / "features.parquet")
    check(tmp_path / "features.parquet", arrays, points=("x",))


SPELLINGS = {
    "short": {"x": "{split}", "y": "{split}_labels"},
    "long": {"x": "{split}_features", "y": "{split}_targets"},
    "as in .npz files": {"x": "{split}_x", "y": "{split}_y"},
    "as in CLIP_benchmark": {"x": "features_{split}", "y": "targets_{split}"},
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_folder_has_the_features_of_its_files_memory_mapped(tmp_path, arrays, kind):
    content = check(write_folder(tmp_path, arrays, **SPELLINGS[kind]), arrays)
    assert isinstance(content.folds[0]["train"].x.base, np.memmap)
    (tmp_path / "notes.txt").write_text("other files are ignored")
    check(tmp_path, arrays)


def test_validation_is_optional(tmp_path, arrays):
    without = {name: array for name, array in arrays.items() if not name.startswith("val")}
    check(write_folder(tmp_path, without), without)
    check(write_parquet(tmp_path / "features.parquet", without), without)


@pytest.mark.parametrize("dtype", ["str", "bytes", "dictionary"])
def test_labels_of_text_become_positions_among_the_sorted_names(tmp_path, arrays, dtype):
    """A class that only one split has counts in all of them."""
    arrays["train_y"][arrays["train_y"] == 0] = 1
    texts = {name: NAMES[array] if name.endswith("_y") else array for name, array in arrays.items()}
    if dtype == "bytes":
        texts = {name: array.astype("S3") if name.endswith("_y") else array for name, array in texts.items()}
    if dtype == "dictionary":
        path = write_parquet(tmp_path / "features.parquet", texts, dictionary=True)
    else:
        path = write_folder(tmp_path, texts)
    assert check(path, arrays).class_names == ("ant", "bee", "cat")


def test_several_labels_of_an_image_are_lists(tmp_path, arrays):
    several = {name: np.stack([a, 1 - a], axis=1) % 2 if name.endswith("_y") else a for name, a in arrays.items()}
    check(write_parquet(tmp_path / "features.parquet", several), several)


def changed(**columns):
    """Return a function that replaces columns of a table; None removes a column."""

    def change(table):
        for name, value in columns.items():
            if name in table.column_names:
                table = table.drop_columns([name])
            if value is not None:
                table = table.append_column(name, [value(table.num_rows)])
        return table

    return change


BAD_TABLES = {
    "no split": (changed(split=None), "has no column split, only label, features, pre_projection; give the columns"),
    "no label": (changed(label=None), "has no column label, only"),
    "another split": (
        changed(split=lambda n: pyarrow.array(["dev"] * n)),
        "the column split has 'dev'; give each row train, val or test",
    ),
    "no test": (
        changed(split=lambda n: pyarrow.array(["train"] * n)),
        "has no rows of the split test; give each row train, val or test in the column split",
    ),
    "no train": (changed(split=lambda n: pyarrow.array(["test"] * n)), "has no rows of the split train"),
    "an empty label": (
        changed(label=lambda n: pyarrow.array([None] + [1] * (n - 1))),
        "the column label has empty cells; remove their rows, or fill them",
    ),
    "an empty list": (
        changed(features=lambda n: pyarrow.array([None] + [[1.0]] * (n - 1))),
        "the column features has empty cells",
    ),
    "different lengths": (
        changed(features=lambda n: pyarrow.array([[1.0, 2.0]] + [[1.0]] * (n - 1))),
        "the lists of the column features have different lengths, 1, 2; extract all rows with the same model",
    ),
    "NaN": (
        changed(features=lambda n: pyarrow.array([[float("nan")]] + [[1.0]] * (n - 1))),
        "the features in row 0 of train_x are not finite in float32",
    ),
    "a null in a list": (changed(features=lambda n: pyarrow.array([[None]] + [[1.0]] * (n - 1))), "are not finite"),
    "integers": (changed(features=lambda n: pyarrow.array([[1]] * n)), r"train_x has int64 \(60, 1\)"),
    "numbers in place of lists": (
        changed(features=lambda n: pyarrow.array([1.0] * n)),
        r"train has arrays of \(60,\)|train_x has float64 \(60,\); give floating-point features \(n, d\)",
    ),
    "labels of halves": (
        changed(label=lambda n: pyarrow.array([0.5] * n)),
        "the label in row 0 of train_y is 0.5; give integers >= 0",
    ),
    "no features": (changed(features=None, pre_projection=None), "has no features; give a column features of lists"),
    "an id in place of features": (
        changed(features=None, pre_projection=None, id=lambda n: pyarrow.array(range(n))),
        "the column id has int64; without a column features, all columns but split and label must be floating-point",
    ),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_parquet_file_is_one_sentence(tmp_path, arrays, kind):
    change, message = BAD_TABLES[kind]
    path = write_parquet(tmp_path / "bad.parquet", arrays)
    parquet.write_table(change(parquet.read_table(path)), path)
    with pytest.raises(FeaturesError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no table", b"PAR1 cut PAR1"])
def test_a_file_that_is_not_parquet_is_one_sentence(tmp_path, content):
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(FeaturesError, match=r"is not a Parquet file of features \("):
        load(tmp_path / "bad.parquet")
    with pytest.raises(FeaturesError, match="no file at"):
        load(tmp_path / "nowhere.parquet")


def _archive():
    file = io.BytesIO()
    np.savez(file, x=np.zeros((60, 4)))
    return file.getvalue()


BAD_FOLDERS = {
    "empty": (lambda folder: [f.unlink() for f in folder.iterdir()], "has no train_x.npy, train_y.npy, test_x.npy"),
    "no test": (lambda folder: (folder / "test.npy").unlink(), "has no test_x.npy; name the files train.npy"),
    "no labels": (lambda folder: (folder / "train_labels.npy").unlink(), "has no train_y.npy"),
    "two of a name": (
        lambda folder: np.save(folder / "train_x.npy", np.zeros((60, 4))),
        "has both train.npy and train_x.npy; remove one of them",
    ),
    "no array": (lambda folder: (folder / "val.npy").write_bytes(b"text"), "val.npy is not an array of numbers or"),
    "an archive": (
        lambda folder: (folder / "train.npy").write_bytes(_archive()),
        "train.npy is an .npz file; save its array with numpy.save, or rename it to .npz",
    ),
    "objects": (
        lambda folder: np.save(folder / "val_labels.npy", np.array([{}], dtype=object), allow_pickle=True),
        "val_labels.npy is not an array of numbers or texts .it has arrays of Python objects",
    ),
    "a cube": (lambda folder: np.save(folder / "val.npy", np.zeros((30, 2, 2))), r"val_x has float64 \(30, 2, 2\)"),
    "a scalar": (lambda folder: np.save(folder / "val.npy", np.array(1.0)), "val has arrays of"),
    "a row less": (lambda folder: np.save(folder / "val.npy", np.zeros((29, 4))), r"val has arrays of \(29, 4\)"),
    "texts in another encoding": (
        lambda folder: [
            np.save(folder / f"{name}_labels.npy", np.full(n, "caf\u00e9".encode("latin1")))
            for name, n in (("train", 60), ("val", 30), ("test", 30))
        ],
        "test_y has texts that are not UTF-8; save the names as texts",
    ),
    "texts in rows": (
        lambda folder: [
            np.save(folder / f"{name}_labels.npy", np.full((n, 1), "a"))
            for name, n in (("train", 60), ("val", 30), ("test", 30))
        ],
        r"test_y has texts of shape \(30, 1\); give one name for each row",
    ),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_one_sentence(tmp_path, arrays, kind):
    change, message = BAD_FOLDERS[kind]
    change(write_folder(tmp_path, arrays))
    with pytest.raises(FeaturesError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_a_folder_is_not_run(tmp_path, arrays):
    """NumPy would run the code of a pickled array."""
    flag = tmp_path / "flag"

    class Harmful:
        def __reduce__(self):
            return Path.touch, (flag,)

    folder = write_folder(tmp_path, arrays)
    np.save(folder / "train.npy", np.array([Harmful()], dtype=object), allow_pickle=True)
    with pytest.raises(FeaturesError, match="Python objects"):
        load(folder)
    assert not flag.exists()
