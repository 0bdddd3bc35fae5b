from dataclasses import replace

import numpy as np
import pytest
import torch
from make import own_layouts
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

import probe
from probe import runner
from probe.datasets import get_dataset
from probe.datasets.opening import open_dataset
from probe.errors import CheckpointError, DatasetError, UnknownNameError
from probe.features.extraction import extract_grid
from probe.grid import plan
from probe.leaderboard.tables import footnotes, records_to_markdown, row
from probe.probes.protocols import get_protocol
from probe.records.record import read_records, record_path, write_record
from probe.records.schema import ReadRecord
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import Protocol, Subset


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the README's command, `tiny` on digits in both modes, also under the protocol `clip-paper`."""
    results_dir = tmp_path_factory.mktemp("results")
    specs = plan(["digits"], ["tiny"], protocols=["readme", "clip-paper"], jit_modes=[False, True], device="cpu")
    records = list(run_grid(specs, settings=Settings(results_dir=results_dir, offline=True)))
    return results_dir, {(record.protocol, record.mode): record for record in records}


# The transform of the reference implementation, written with torchvision.
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
    """Compute the features of the digits at both points with torchvision's transform and the model alone."""
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


@pytest.fixture(scope="module")
def extracted():
    """Extract the features of the digits in both modes, as a run does."""
    images = open_dataset("digits").subsets["all"]
    encoders = {"jit" if jit else "eager": probe.load_encoder("tiny", jit=jit, device="cpu") for jit in (False, True)}
    return {mode: probe.extract_features(encoder, images) for mode, encoder in encoders.items()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("point", ["projected", "pre_projection"])
def test_features_equal_the_same_work_written_out_by_hand(extracted, by_hand, point, mode):
    """Tolerance: rounding, because an encoder uses a different order of sums and a different batch size."""
    np.testing.assert_allclose(extracted[mode].at(point), by_hand[0][point], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("protocol", ["readme", "clip-paper"])
def test_scores_equal_the_same_work_written_out_by_hand(results, extracted, by_hand, protocol, mode):
    record = results[1][protocol, mode]
    _, y, rows = by_hand
    x = extracted[mode].at(record.spec.protocol.feature_point)
    assert record.result.score == _score(x, y, rows["train"] + rows["val"], rows["test"], record.result.C)
    for point in record.result.sweep[4:9]:
        assert point.score == _score(x, y, rows["train"], rows["val"], point.C)


@pytest.mark.slow
def test_both_modes_agree(results):
    _, records = results
    for protocol in ("readme", "clip-paper"):
        eager, jit = records[protocol, "eager"], records[protocol, "jit"]
        assert eager.parity is None
        assert max(jit.parity.max_abs_difference.values()) < 1e-5
        # Each mode has its own probe. lbfgs stops when the gradient is below `tol`, not at the optimum. So rounding
        # errors of the features can change the prediction of the one digit that is on the border of two classes.
        assert jit.parity.predictions_flipped <= 1
        assert round(359 * abs(eager.result.score - jit.result.score)) <= 1


@pytest.mark.slow
def test_a_record_documents_how_its_score_was_computed(results):
    _, records = results
    record = records["clip-paper", "jit"]
    assert record.spec.protocol.feature_point == "pre_projection"
    assert record.spec.device == "cpu"
    assert record.spec.precision == "fp32"
    assert {name: split.size for name, split in record.splits.items()} == {"train": 1079, "val": 359, "test": 359}
    assert len(record.encoder.weights_sha256) == 64
    assert {point.C for point in record.result.sweep} >= {1e-6, 1.0, 1e6}
    assert record.result.num_train == 1079 + 359
    assert set(record.seconds) == {"load", "extract", "fit"}
    assert record.environment.packages["torch"]


@pytest.mark.slow
def test_records_and_tables_are_written(results):
    results_dir, records = results
    on_disk = probe.read_records(results_dir)
    assert sorted(on_disk, key=lambda r: r.key) == sorted(records.values(), key=lambda r: r.key)
    names = {path.name for path in (results_dir / "tables").iterdir()}
    assert names == {"tiny.eager.csv", "tiny.eager.md", "tiny.jit.csv", "tiny.jit.md"}


@pytest.mark.slow
def test_a_failed_run_is_recorded_and_does_not_stop_the_others(image_folder, tmp_path):
    root = image_folder({"red": 6, "green": 6, "blue": 6})
    (root / "red" / "000.png").write_bytes(b"not an image")
    specs = plan([f"folder:{root}", "digits"], ["tiny"], protocols=["readme"], device="cpu")
    broken, fine = run_grid(specs, settings=Settings(results_dir=tmp_path / "results"))
    assert broken.status == "failed"
    assert "(red/000.png) cannot be read" in broken.error.message
    assert fine.status == "done"
    assert {record.status for record in probe.read_records(tmp_path / "results")} == {"done", "failed"}


def test_a_folder_of_images_runs(image_folder, tmp_path):
    root = image_folder({"red": 12, "green": 12, "blue": 12})
    record = probe.run(
        f"folder:{root}", model="tiny", protocol="readme", device="cpu", results_dir=tmp_path / "results"
    )
    assert record.result.score == 1.0  # colours are easy to separate
    assert (record.result.num_train, record.result.num_test) == (30, 6)
    assert record.read.class_names == ("blue", "green", "red")


def test_run_raises_the_error_and_writes_a_record(image_folder, tmp_path):
    root = image_folder({"red": 6, "green": 1})
    with pytest.raises(DatasetError, match="class 'green'"):
        probe.run(f"folder:{root}", model="tiny", device="cpu", results_dir=tmp_path / "results")
    (record,) = probe.read_records(tmp_path / "results")
    assert record.error.type == "DatasetError"


def test_a_state_dict_has_no_jit_run(tmp_path):
    """A table of JIT results must not contain results of a rebuilt model."""
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


def test_a_grid_has_every_run_once():
    specs = plan(["digits", "mnist", "digits"], ["tiny", "random:tiny"], jit_modes=[False, True], device="cpu")
    assert len({str(spec) for spec in specs}) == len(specs) == 8


@pytest.mark.slow
def test_a_users_dataset_spec_runs(tmp_path):
    """A different `val_fraction` gives a different split."""
    row = replace(probe.get_dataset("digits"), name="digits_half", val_fraction=0.4)
    record = probe.run(row, model="tiny", protocol="readme", device="cpu", results_dir=tmp_path)
    assert record.splits["val"].size == pytest.approx(719, abs=3)
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
    """Its records would overwrite the records of the catalogue's entry."""
    with pytest.raises(UnknownNameError, match="rename yours"):
        plan(**{"datasets": ["digits"], "models": ["tiny"], "device": "cpu", **changed})


def run_folder(root, results_dir, *, jit_modes=(False,), **settings):
    specs = plan([f"folder:{root}"], ["tiny"], protocols=["readme"], jit_modes=jit_modes, device="cpu")
    return list(run_grid(specs, settings=Settings(results_dir=results_dir, offline=True, **settings)))


@pytest.fixture
def damaged(image_folder):
    """Make a folder of 24 images, of which one training image and one test image cannot be read."""
    root = image_folder({"train/red": 10, "train/green": 6, "test/red": 5, "test/green": 3})
    for name in ("train/red/004.png", "test/green/001.png"):
        (root / name).write_bytes(b"no image")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_in_the_record_and_in_no_split(damaged, tmp_path, workers):
    (record,) = run_folder(damaged, tmp_path / "results", skip_corrupt=2, workers=workers)
    assert record.error is None
    assert [(s.subset, s.id) for s in record.read.skipped] == [
        ("train", "train/red/004.png"),
        ("test", "test/green/001.png"),
    ]
    assert {name: split.size for name, split in record.splits.items()} == {"train": 13, "val": 2, "test": 7}
    assert (record.result.num_train, record.result.num_test) == (15, 7)


def test_rows_stay_with_their_labels_when_images_are_skipped(damaged):
    """The folder without the two images gives the same test split. Tolerance: rounding from different batch sizes."""

    def extract(skip_corrupt=0):
        (spec,) = plan([f"folder:{damaged}"], ["tiny"], protocols=["readme"], device="cpu")
        settings = Settings(offline=True, skip_corrupt=skip_corrupt)
        ((_, outcome),) = extract_grid([spec], settings)
        return outcome

    skipped = extract(skip_corrupt=2)
    for image in skipped.read.skipped:
        (damaged / image.id).unlink()
    without = extract()
    assert skipped.splits["test"] == without.splits["test"]
    assert np.array_equal(skipped.cut()[0]["test"].y, without.cut()[0]["test"].y)
    assert np.allclose(skipped.cut()[0]["test"].x, without.cut()[0]["test"].x, atol=1e-4)


def test_more_unreadable_images_than_allowed_fail_the_run(damaged, tmp_path):
    (record,) = run_folder(damaged, tmp_path / "results", skip_corrupt=1)
    assert record.status == "failed"
    assert "(test/green/001.png) cannot be read" in record.error.message


def test_a_partial_result_is_marked_and_never_replaces_a_complete_one(damaged, tmp_path):
    results_dir = tmp_path / "results"
    (partial,) = run_folder(damaged, results_dir, skip_corrupt=2)
    assert record_path(partial, results_dir).name == "tiny.eager.readme.fp32.fast.partial.json"
    assert " +" in records_to_markdown([partial])
    assert row(partial)["status"] in ("partial", "not converged, partial")
    assert "+ images are missing or could not be read" in "".join(footnotes([partial]))
    whole = replace(partial, read=ReadRecord())
    write_record(whole, results_dir)
    assert [path.name for path in results_dir.rglob("*.json")] == ["tiny.eager.readme.fp32.fast.json"]
    write_record(partial, results_dir)
    assert [record.is_partial for record in read_records(results_dir)] == [False]


def test_skipping_is_the_same_in_both_modes(damaged, tmp_path):
    eager, jit = run_folder(damaged, tmp_path / "results", jit_modes=[False, True], skip_corrupt=2)
    assert eager.read == jit.read
    assert jit.parity.predictions_flipped == 0


def test_a_dataset_with_missing_images_runs_on_request(image_folder, tmp_path):
    root = image_folder({"train/red": 6, "train/green": 6, "test/red": 3, "test/green": 3})
    spec = replace(get_dataset(f"folder:{root}"), name="colours", subsets=(Subset("train", 12), Subset("test", 9)))
    specs = [replace(run, dataset=spec) for run in plan(["digits"], ["tiny"], protocols=["readme"], device="cpu")]
    (failed,) = run_grid(specs, settings=Settings(results_dir=tmp_path / "results", offline=True))
    assert "expected 9 images, found 6" in failed.error.message
    (record,) = run_grid(specs, settings=Settings(results_dir=tmp_path / "results", offline=True, allow_partial=True))
    assert record.read.partial == {"test": (6, 9)}
    assert record.is_partial


@pytest.mark.slow
def test_images_with_several_labels_are_scored(tmp_path):
    """VOC 2007, in its layout on disk, has one probe per class and average precision as its metric."""
    own_layouts.voc2007(tmp_path)
    spec = get_dataset("voc2007")
    spec = replace(spec, subsets=tuple(replace(p, size=6) for p in spec.subsets))
    specs = plan(["digits"], ["tiny"], protocols=["readme"], jit_modes=[False, True], device="cpu")
    specs = [replace(run, dataset=spec) for run in specs]
    eager, jit = run_grid(specs, settings=Settings(data_dir=tmp_path, results_dir=tmp_path / "results", offline=True))
    assert eager.error is None
    assert eager.result.metric == "voc2007_11pt_map"
    assert 0 < eager.result.score <= 1
    assert jit.result.score == eager.result.score
    assert jit.parity.predictions_flipped == 0


@pytest.mark.slow
def test_a_result_that_is_not_finite_fails_only_its_own_run(tmp_path, monkeypatch):
    """JSON has no NaN, so the record of such a result could not be written."""
    real = runner.fit_folds

    def overflow(folds, **arguments):
        result = real(folds, **arguments)
        return replace(result, objective=float("nan")) if arguments["protocol"].name == "readme" else result

    monkeypatch.setattr(runner, "fit_folds", overflow)
    once = Protocol("once", "one value", "projected", (0.01,), 1, 100, 1e-4, "this test")
    specs = plan(["digits"], ["tiny"], protocols=["readme", once], device="cpu")
    broken, fine = run_grid(specs, settings=Settings(results_dir=tmp_path, offline=True))
    assert "score, objective or gradient is not finite" in broken.error.message
    assert fine.status == "done"
