"""Extraction on a GPU. `pytest -m gpu --device cpu` runs the same tests on the CPU."""

import numpy as np
import pytest
from make.clips import SMALL_VIT, random_clip
from make.images import write_image
from make.kills import KILLED, run_command

import probe
from probe.features.extraction import extract_grid
from probe.grid import plan
from probe.models.openai import save_archive
from probe.settings import Settings

pytestmark = pytest.mark.gpu

BATCH = 16  # so that a chunk has 256 images
MOMENT = 20  # number of the file event at which the first command is killed: some of the four chunks are written


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return the name of a dataset of 800 images in two classes."""
    root = tmp_path_factory.mktemp("images")
    for name, colour in (("red", (200, 30, 30)), ("green", (30, 200, 30))):
        for i in range(400):
            write_image(root / name / f"{i:03}.png", colour)
    return f"folder:{root}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    save_archive(random_clip(SMALL_VIT), path)
    return str(path)


def extract(images, checkpoint, device, cache):
    (spec,) = plan([images], [checkpoint], protocols=["readme"], device=device, batch_size=BATCH)
    ((_, outcome),) = extract_grid([spec], Settings(cache_dir=cache, offline=True))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def test_a_killed_extraction_is_resumed_with_the_same_bytes(images, checkpoint, device, tmp_path):
    """A second command extracts only the chunks that the killed command had not written."""
    cache, output = tmp_path / "cache", tmp_path / "output"
    line = ["extract", "--dataset", images, "--model", checkpoint, "--device", device, "--batch-size", str(BATCH)]
    line += ["--cache-dir", str(cache), "--offline"]
    assert run_command(line, output, watched=cache, moment=MOMENT) == KILLED, output.read_text()
    written = {path.name: path.stat().st_mtime_ns for path in cache.rglob("*.pieces/*.npz")}
    assert 0 < len(written) < 4
    resumed = extract(images, checkpoint, device, cache)
    assert sum(subset.images or 0 for subset in resumed.extraction.subsets.values()) == 800 - 256 * len(written)
    undisturbed = extract(images, checkpoint, device, tmp_path / "another")
    assert resumed.features["all"].compute_sha256() == undisturbed.features["all"].compute_sha256()


def test_the_extraction_is_measured(images, checkpoint, device, tmp_path):
    """Features are fp32 arrays, and the device was busy for a part of the time."""
    found = extract(images, checkpoint, device, tmp_path)
    assert found.features["all"].x.dtype == np.float32
    (measured,) = found.extraction.subsets.values()
    assert measured.images == 800
    assert 0 <= measured.device_idle < 1
    assert measured.encoder_images_per_second > 0


def test_the_record_names_the_device(images, checkpoint, device, tmp_path):
    record = probe.run(
        images, model=checkpoint, protocol="readme", device=device, batch_size=BATCH, solver="fast", offline=True,
        results_dir=tmp_path / "results", cache_dir=tmp_path / "cache",
    )  # fmt: skip
    assert record.spec.device == device
    assert (record.environment.accelerator is not None) == device.startswith("cuda")
