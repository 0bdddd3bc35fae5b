"""A worker without Ray: the chunks that it needs, lacks, returns and receives."""

import contextlib
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make.entries import PROVENANCE
from make.images import write_image

from probe.datasets import get_dataset
from probe.decoder import decode
from probe.errors import ExecutorError, FeaturesError
from probe.features.arrays import Features
from probe.features.chunks import Work
from probe.features.sidecars import Provenance
from probe.features.store import FITS, EntrySpec
from probe.grid import plan
from probe.models.memory import DeviceMemory
from probe.records.prediction_files import predictions_path
from probe.records.record import head_path, record_path
from probe.records.schema import ErrorRecord
from probe.scale import worker as worker_module
from probe.scale.needs import Memory, memory_of
from probe.scale.units import plan_units
from probe.scale.worker import DriverEnvironment, NotRunnable, Worker, is_expected, refuse_too_large, versions
from probe.settings import Settings

GB = 1_000_000_000
NEED = Memory(GB, 0)
COLOURS = ("red", "green")


@pytest.fixture(scope="module")
def two_chunks(tmp_path_factory):
    """Return the name of a dataset of 300 images in one subset, which are two chunks of at most 256 images."""
    folder = tmp_path_factory.mktemp("two_chunks")
    for i in range(300):
        write_image(folder / ("red", "green")[i % 2] / f"{i}.png", ((200, 30, 30), (30, 200, 30))[i % 2])
    return f"folder:{folder}"


def _units(dataset, model="tiny", *, protocols=("readme",), **options):
    return plan_units(plan([dataset], [model], protocols=protocols, device="cpu", solver="fast", **options))


def _worker(tmp_path, name, **settings):
    return Worker(Settings(cache_dir=tmp_path / name, **settings), 1, 1, DriverEnvironment.here())


def test_chunks_go_from_one_store_to_another_and_are_whole_there(tmp_path, two_chunks):
    shard, fits = _units(two_chunks)
    maker, other = _worker(tmp_path, "maker"), _worker(tmp_path, "other")
    ((cell, every, lacking),) = maker.find_missing(shard, NEED).entries
    assert lacking == list(every) == list(range(cell.num_chunks))
    ((_, files),) = maker.do(shard, NEED, [(cell, every)]).chunks
    assert other.find_missing(fits, NEED).entries == [(cell, every, list(every))]
    other.take_in(cell, files)
    assert other.find_missing(fits, NEED).entries == [(cell, every, [])]
    (record,) = other.do(fits, NEED).records
    assert record.extraction.from_cache  # assembled from chunks, without the model
    entries = [cell.folder(tmp_path / name) for name in ("maker", "other")]
    for name in ("projected.npy", "pre_projection.npy", "labels.npy", "entry.json"):
        assert entries[0].joinpath(name).read_bytes() == entries[1].joinpath(name).read_bytes()
    # A complete entry gives the chunks that it was assembled from.
    assert list(Work(tmp_path / "other", cell).files(range(cell.num_chunks))) == list(files)


def test_fits_stay_cached_until_the_driver_has_written_the_records(tmp_path, two_chunks):
    shard, fits = _units(two_chunks)
    worker = _worker(tmp_path, "cache")
    worker.do(shard, NEED)
    worker.do(fits, NEED)
    assert list((tmp_path / "cache" / FITS).iterdir())
    worker.clear_fits()
    assert not list((tmp_path / "cache" / FITS).iterdir())


def test_heads_and_predictions_are_those_of_the_record_at_their_position(tmp_path, two_chunks):
    """The driver writes the files of a run only with its record."""
    *shards, fits = _units(two_chunks, jit_modes=[False, True])
    worker = _worker(tmp_path, "cache", save_heads=True, predictions_dir=tmp_path / "predictions")
    for shard in shards:
        worker.do(shard, NEED)
    result = worker.do(fits, NEED)
    assert [record.mode for record in result.records] == ["eager", "jit"]
    for i, record in enumerate(result.records):
        assert list(result.heads[i]) == [head_path(record, Path())]
        assert list(result.predictions[i]) == [predictions_path(record_path(record, Path()), Path())]


def test_chunks_that_the_driver_has_are_not_sent_to_it(tmp_path, two_chunks):
    shard, _ = _units(two_chunks)
    worker = _worker(tmp_path, "one")
    ((cell, every, _),) = worker.find_missing(shard, NEED).entries
    half = range(cell.num_chunks // 2, cell.num_chunks)
    ((_, files),) = worker.do(shard, NEED, [(cell, half)]).chunks
    assert {name for name, _ in files} == {f"{chunk:06}.npz" for chunk in half} | {"making.json"}
    assert len(half) < len(every)
    assert not worker.do(shard, NEED).chunks


def test_what_one_process_would_log_is_given_to_the_driver(tmp_path, two_chunks):
    before = logging.getLogger("probe").level
    shard, fits = _units(two_chunks)
    worker = Worker(Settings(cache_dir=tmp_path / "one"), 1, 1, replace(DriverEnvironment.here(), level=logging.DEBUG))
    assert (logging.DEBUG, f"{two_chunks} / tiny / eager / readme") in [
        (log.levelno, log.getMessage()) for log in worker.do(fits, NEED).logs
    ]
    entry = next((tmp_path / "one").rglob("entry.json")).parent
    (entry / "projected.npy").write_bytes(b"damaged")
    quiet = Worker(Settings(cache_dir=tmp_path / "one"), 1, 1, replace(DriverEnvironment.here(), level=logging.WARNING))
    (log,) = pickle.loads(pickle.dumps(quiet.do(shard, NEED).logs))
    assert log.levelno == logging.WARNING
    assert "are damaged" in log.getMessage()
    assert logging.getLogger("probe").level == before


def test_what_nobody_foresaw_is_not_taken_for_done(tmp_path, monkeypatch):
    shard, _ = _units("digits")
    for error in (FeaturesError("not finite"), ValueError("a bug")):
        monkeypatch.setattr(worker_module, "prepare", lambda specs, *_, error=error, **__: {specs[0]: error})
        with pytest.raises(ValueError, match="a bug") if type(error) is ValueError else contextlib.nullcontext():
            _worker(tmp_path, "one").do(shard, NEED)
    assert is_expected(None)
    assert is_expected(ErrorRecord("DatasetMissingError", ""))
    assert not is_expected(ErrorRecord("ValueError", ""))
    assert not is_expected(ErrorRecord("AcceleratorError", ""))


def test_a_shard_whose_chunks_are_there_is_not_made_again(tmp_path, two_chunks):
    (shard, _) = _units(two_chunks)
    worker = _worker(tmp_path, "one")
    worker.do(shard, NEED)
    again = _worker(tmp_path, "one")
    again.do(shard, NEED)
    assert again.num_images() == 0
    assert not again.session.encoders  # the model was not loaded


@pytest.fixture
def colours(image_folder):
    """Return the name of a dataset with 8 images for training and 6 for testing."""
    folder = image_folder({f"{split}/{name}": n for split, n in (("train", 4), ("test", 3)) for name in COLOURS})
    return f"folder:{folder}"


def test_a_zero_shot_grid_needs_only_the_images_of_the_test_split(tmp_path, colours):
    shard, fits = _units(colours, protocols=["zero-shot"])
    worker = _worker(tmp_path, "one")
    for unit in (shard, fits):
        assert [entry.subset for entry, *_ in worker.find_missing(unit, NEED).entries] == ["test"]
    worker.do(shard, NEED)
    assert worker.num_images() == 6
    (record,) = worker.do(fits, NEED).records
    assert (record.error, record.extraction.from_cache) == (None, True)


def test_the_shards_of_a_mixed_grid_have_the_images_of_all_its_runs(tmp_path, colours):
    shard, *fits = _units(colours, protocols=["zero-shot", "readme"])
    worker = _worker(tmp_path, "one")
    worker.do(shard, NEED)
    assert worker.num_images() == 14
    needed = [{entry.subset for entry, *_ in worker.find_missing(unit, NEED).entries} for unit in fits]
    assert needed == [{"test"}, {"train", "test"}]
    records = [record for unit in fits for record in worker.do(unit, NEED).records]
    assert [set(record.extraction.subsets) for record in records] == needed
    assert all(record.extraction.from_cache for record in records)


def test_no_image_is_encoded_for_prompts_that_cannot_be_used(tmp_path, colours):
    spec = replace(get_dataset(colours), class_names=("red", "Red"))
    shard, fits = _units(spec, protocols=["zero-shot"])
    worker = _worker(tmp_path, "one")
    worker.do(shard, NEED)
    assert worker.num_images() == 0
    (record,) = worker.do(fits, NEED).records
    assert "have the same name (case" in record.error.message


def test_missing_files_are_reported_before_a_unit_starts(tmp_path):
    (shard, *_) = _units("mnist")
    lacking = _worker(tmp_path, "one", data_dir=tmp_path, offline=True).do(shard, NEED)
    assert isinstance(lacking, NotRunnable)
    assert lacking.type == "DatasetMissingError"
    assert not lacking.is_memory


def test_the_error_for_too_little_memory_has_the_numbers(tmp_path, monkeypatch):
    (shard, *_) = _units("digits", "random:ViT-L/14")
    monkeypatch.setattr(worker_module, "device_memory", lambda device: DeviceMemory(4 * GB, 2 * GB))
    with pytest.raises(ExecutorError, match=r"about [4-9]\.\d GB of memory, but only 2\.0 GB are free"):
        refuse_too_large(shard, memory_of(shard))
    worker = _worker(tmp_path, "one")
    lacking = worker.do(shard, memory_of(shard))
    assert (lacking.type, lacking.is_memory) == ("ExecutorError", True)
    assert not worker.session.encoders


def test_a_worker_has_the_environment_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_DATA_DIR", "mine")
    monkeypatch.delenv("PROBE_CACHE_DIR", raising=False)
    before = DriverEnvironment.here()
    monkeypatch.chdir(tmp_path)
    DriverEnvironment(before.folder, {"PROBE_DATA_DIR": "theirs", "PROBE_CACHE_DIR": "theirs"}).apply()
    after = DriverEnvironment.here()
    assert after.folder == before.folder
    own, theirs = (str(Path(before.folder) / name) for name in ("mine", "theirs"))
    assert after.variables == {"PROBE_DATA_DIR": own, "PROBE_CACHE_DIR": theirs}  # a variable of the node has priority
    monkeypatch.delenv("PROBE_CACHE_DIR")
    DriverEnvironment("/no/such/folder", {}).apply()


def test_versions_change_with_the_source():
    assert versions()["source of probe"] == versions()["source of probe"]
    assert {"python", "torch", "scikit-learn"} <= versions().keys()


def test_chunks_are_cut_from_an_entry_with_skipped_images(tmp_path):
    rng = np.random.default_rng(0)
    cell = EntrySpec("d", "all", "m", "eager", "fp32", {"a": 1}, num_images=600, batch_size=64)
    work = Work(tmp_path / "one", cell)
    work.start()
    for chunk, positions in enumerate((range(256), range(256, 512), range(512, 600))):
        skipped = [position for position in positions if position in (3, 256, 511, 599)]
        n = len(positions) - len(skipped)
        x = rng.normal(size=(n, 4)).astype(np.float32)
        features = Features(x, np.arange(n), x + 1, tuple((position, "unreadable") for position in skipped))
        assert work.claim(chunk)
        work.write(chunk, features)
    before = dict(work.files(range(3)))
    assert work.finish(PROVENANCE)
    after = dict(work.files(range(3)))
    assert decode(json.loads(after.pop("making.json")), Provenance) == PROVENANCE
    assert after == before
