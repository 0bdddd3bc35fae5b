import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

import probe
from probe.datasets.opening import open_dataset
from probe.errors import CheckpointError, DatasetError, UnknownNameError
from probe.probes.protocols import get_protocol
from probe.runner import Access, plan, run_grid


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The README's command: digits, tiny, both modes; and the paper's protocol too."""
    results_dir = tmp_path_factory.mktemp("results")
    specs = plan(["digits"], ["tiny"], protocols=["readme", "clip-paper"], jit_modes=[False, True], device="cpu")
    records = list(run_grid(specs, access=Access(results=results_dir, offline=True)))
    return results_dir, {(record.protocol, record.mode): record for record in records}


# The reference's transform, put together from torchvision here.
BY_HAND = Compose(
    [
        Resize(32, interpolation=InterpolationMode.BICUBIC),
        CenterCrop(32),
        ToTensor(),
        Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ]
)


@pytest.fixture(scope="module")
def by_hand():
    """Features of the digits at both points: torchvision's transform and the model, nothing of the suite between."""
    model, _ = probe.load_clip("tiny", "cpu")
    digits = load_digits()
    levels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    images = torch.stack([BY_HAND(Image.fromarray(image).convert("RGB")) for image in levels])
    with torch.no_grad():
        projected = torch.cat([model.encode_image(batch) for batch in images.split(100)]).numpy()
        model.visual.proj = torch.nn.Parameter(torch.eye(192))
        before = torch.cat([model.encode_image(batch) for batch in images.split(100)]).numpy()
    splits = open_dataset("digits")
    rows = {name: [int(key.split("/")[1]) for key in splits.split(name).ids] for name in ("train", "val", "test")}
    return {"projected": projected, "pre_projection": before}, digits.target, rows


def _score(x, y, fit_rows, test_rows, C):
    fitted = LogisticRegression(C=C, max_iter=1000, tol=1e-6).fit(x[fit_rows], y[fit_rows])
    return fitted.score(x[test_rows], y[test_rows])


@pytest.mark.parametrize("protocol", ["readme", "clip-paper"])
def test_scores_equal_the_same_work_written_out_by_hand(results, by_hand, protocol):
    record = results[1][protocol, "eager"]
    points, y, rows = by_hand
    x = points[record.spec["protocol"]["feature_point"]]
    assert record.result["score"] == _score(x, y, rows["train"] + rows["val"], rows["test"], record.result["C"])
    for point in record.result["sweep"][4:9]:
        assert point["score"] == _score(x, y, rows["train"], rows["val"], point["C"])


def test_both_modes_agree(results):
    _, records = results
    for protocol in ("readme", "clip-paper"):
        eager, jit = records[protocol, "eager"], records[protocol, "jit"]
        assert eager.parity is None
        assert max(jit.parity["max_abs_difference"].values()) < 1e-4
        assert jit.parity["predictions_flipped"] == 0
        assert eager.result["score"] == jit.result["score"]


def test_a_record_tells_how_its_number_was_made(results):
    _, records = results
    record = records["clip-paper", "jit"]
    assert record.spec["protocol"]["feature_point"] == "pre_projection"
    assert record.spec["device"] == "cpu"
    assert record.spec["precision"] == "fp32"
    assert {name: split["size"] for name, split in record.splits.items()} == {"train": 1079, "val": 359, "test": 359}
    assert len(record.encoder["weights_sha256"]) == 64
    assert {point["C"] for point in record.result["sweep"]} >= {1e-6, 1.0, 1e6}
    assert record.result["num_train"] == 1079 + 359
    assert set(record.seconds) == {"load", "extract", "fit"}
    assert record.environment["packages"]["torch"]


def test_records_and_tables_are_written(results):
    results_dir, records = results
    on_disk = probe.read_records(results_dir)
    assert sorted(on_disk, key=lambda r: r.key) == sorted(
        (probe.RunRecord(**json.loads(json.dumps(asdict(record)))) for record in records.values()), key=lambda r: r.key
    )
    names = {path.name for path in (results_dir / "tables").iterdir()}
    assert names == {"tiny.eager.csv", "tiny.eager.md", "tiny.jit.csv", "tiny.jit.md"}


def test_a_failed_cell_is_recorded_and_does_not_stop_the_others(image_folder, tmp_path):
    root = image_folder({"red": 6, "green": 6, "blue": 6})
    (root / "red" / "000.png").write_bytes(b"not an image")
    specs = plan([f"folder:{root}", "digits"], ["tiny"], protocols=["readme"], device="cpu")
    broken, fine = run_grid(specs, access=Access(results=tmp_path / "results"))
    assert broken.status == "failed"
    assert "(red/000.png) cannot be read" in broken.error["message"]
    assert fine.status == "done"
    assert {record.status for record in probe.read_records(tmp_path / "results")} == {"done", "failed"}


def test_a_folder_of_images_runs(image_folder, tmp_path):
    root = image_folder({"red": 12, "green": 12, "blue": 12})
    record = probe.run(
        f"folder:{root}", model="tiny", protocol="readme", device="cpu", results_dir=tmp_path / "results"
    )
    assert record.result["score"] == 1.0  # colours are easy
    assert (record.result["num_train"], record.result["num_test"]) == (30, 6)


def test_run_raises_what_broke_and_keeps_the_record(image_folder, tmp_path):
    root = image_folder({"red": 6, "green": 1})
    with pytest.raises(DatasetError, match="class 'green'"):
        probe.run(f"folder:{root}", model="tiny", device="cpu", results_dir=tmp_path / "results")
    (record,) = probe.read_records(tmp_path / "results")
    assert record.error["type"] == "DatasetError"


def test_a_state_dict_has_no_jit_cell(tmp_path):
    """A table of JIT results must not hold what ran as a rebuilt model."""
    model, _ = probe.load_clip("tiny", "cpu")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="no JIT mode"):
        probe.run(
            "digits", model=str(tmp_path / "weights.pt"), jit=True, device="cpu", results_dir=tmp_path / "results"
        )


def test_names_are_looked_up_before_anything_runs():
    with pytest.raises(UnknownNameError, match="'digits'"):
        plan(["mnist", "digit"], ["tiny"])
    with pytest.raises(UnknownNameError, match="'tiny'"):
        plan(["digits"], ["tinny"])
    with pytest.raises(UnknownNameError, match="'readme'"):
        plan(["digits"], ["tiny"], protocols=["reedme"])


def test_a_grid_has_every_cell_once():
    specs = plan(["digits", "mnist", "digits"], ["tiny", "random:tiny"], jit_modes=[False, True], device="cpu")
    assert len({str(spec) for spec in specs}) == len(specs) == 8


def test_a_row_of_ones_own_runs(tmp_path):
    """Rows are data: another share for validation is another split."""
    row = replace(probe.get_dataset("digits"), name="digits_half", val_fraction=0.4)
    record = probe.run(row, model="tiny", protocol="readme", device="cpu", results_dir=tmp_path)
    assert record.splits["val"]["size"] == pytest.approx(719, abs=3)
    assert record.dataset == "digits_half"


@pytest.mark.parametrize(
    "changed",
    [
        {"datasets": [replace(probe.get_dataset("digits"), val_fraction=0.4)]},
        {"models": [replace(probe.get_model("tiny"), source="other.pt")]},
        {"protocols": [replace(get_protocol("readme"), grid=(1e-9,))]},
    ],
)
def test_a_row_of_ones_own_may_not_take_a_name_of_the_catalogue(changed):
    """Its records would overwrite those that the name stands for."""
    with pytest.raises(UnknownNameError, match="give yours its own name"):
        plan(**{"datasets": ["digits"], "models": ["tiny"], "device": "cpu", **changed})
