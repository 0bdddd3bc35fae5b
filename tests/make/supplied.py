"""Features as another program would supply them, in each format."""

import numpy as np
import pyarrow
from pyarrow import parquet

SIZES = {"train": 60, "val": 30, "test": 30}


def make_arrays(*, num_classes=3, seed=0):
    """Return arrays by name: classes that a probe mostly tells apart, 4 features, and 3 before the projection."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, 4))
    arrays = {}
    for split, size in SIZES.items():
        y = np.arange(size) % num_classes
        x = (centres[y] + 0.7 * rng.normal(size=(size, 4))).astype(np.float32)
        arrays |= {f"{split}_x": x, f"{split}_y": y, f"{split}_pre_projection": x[:, :3].copy()}
    return arrays


def write_folder(folder, arrays, *, x="{split}", y="{split}_labels"):
    """Write arrays as `.npy` files, with these names for features and labels, and return the folder."""
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        split, _, kind = name.partition("_")
        stem = {"x": x, "y": y}.get(kind, "{split}_" + kind).format(split=split)
        np.save(folder / f"{stem}.npy", array)
    return folder


def write_parquet(path, arrays, *, kind="list", shuffled=False, dictionary=False):
    """Write arrays as the rows of a Parquet file, and return its path.

    Rows of different splits alternate if `shuffled`; rows of a split keep their order. Labels are a dictionary column
    if `dictionary`.
    """
    splits = [name for name in SIZES if f"{name}_x" in arrays]
    names = np.concatenate([[name] * len(arrays[f"{name}_y"]) for name in splits])

    def joined(part):
        return np.concatenate([arrays[f"{name}_{part}"] for name in splits])

    def column(array):
        if array.ndim == 1:
            return pyarrow.array(array)
        if kind == "fixed-size list":
            return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.ravel()), array.shape[1])
        inner = pyarrow.from_numpy_dtype(array.dtype)
        return pyarrow.array(
            array.tolist(), pyarrow.large_list(inner) if kind == "large list" else pyarrow.list_(inner)
        )

    parts = {name: joined(name) for name in ("x", "y", "pre_projection")}
    if shuffled:
        # Positions of the rows in the file: a random order of the splits, and the order of the rows within each.
        mixed = np.random.default_rng(0).permutation(names)
        sources = {name: iter(np.flatnonzero(names == name)) for name in splits}
        order = np.array([next(sources[name]) for name in mixed])
        names, parts = mixed, {name: array[order] for name, array in parts.items()}
    label = column(parts["y"])
    columns = {"split": pyarrow.array(names), "label": label.dictionary_encode() if dictionary else label}
    if kind == "columns":
        columns |= {f"f{i}": pyarrow.array(parts["x"][:, i]) for i in range(parts["x"].shape[1])}
    else:
        columns |= {"features": column(parts["x"]), "pre_projection": column(parts["pre_projection"])}
    parquet.write_table(pyarrow.table(columns), path)
    return path
