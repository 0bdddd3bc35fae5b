"""Extraction as a whole gives the same bytes, whatever happens to the processes that extract."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make.clips import SMALL_VIT, random_clip
from make.images import write_image
from make.kills import KILLED, run_command

import probe
from probe import environment
from probe.cli import arguments
from probe.cli.main import main
from probe.datasets import images as image_module
from probe.errors import CacheError, DatasetError, FeaturesError, IncompleteError
from probe.features import extraction, groups, jobs, store
from probe.features.arrays import Extraction
from probe.features.extraction import Session, extract_grid, find_entries
from probe.features.inventory import survey
from probe.grid import plan
from probe.models.encoder import ImageEncoder
from probe.models.openai import save_archive
from probe.progress import Progress
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import Subset

ROOT = Path(__file__).parents[2]
BATCH = 16  # 1,797 digits make 8 chunks of 256


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Write two checkpoints that encode an image in less time than `tiny` does, and return their paths."""
    paths = [tmp_path_factory.mktemp("small") / f"{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(paths):
        save_archive(random_clip(SMALL_VIT, seed), path)
    return [str(path) for path in paths]


def digits(*models, jit_modes=(False,), batch_size=BATCH):
    return plan(["digits"], models, protocols=["readme"], jit_modes=jit_modes, device="cpu", batch_size=batch_size)


def extract(specs, cache, **settings):
    found = dict(extract_grid(specs, Settings(cache_dir=cache, offline=True, **settings)))
    return [found[spec] for spec in specs]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small):
    """Return the digest of the features of an uninterrupted run."""
    (outcome,) = extract(digits(small[0]), tmp_path_factory.mktemp("undisturbed"))
    assert not outcome.extraction.from_cache
    return outcome.features["all"].compute_sha256()


def command(cache, model):
    """Return the command that extracts features."""
    line = ["extract", "--dataset", "digits", "--model", model, "--device", "cpu", "--batch-size", str(BATCH)]
    return [*line, "--cache-dir", str(cache), "--offline"]


def num_made(cache):
    return len(list(Path(cache).glob("digits/*.pieces/*.npz")))


@pytest.mark.slow
def test_features_are_extracted_once(tmp_path, undisturbed, small):
    first, again = (extract(digits(small[0]), tmp_path)[0] for _ in range(2))
    assert [outcome.extraction.from_cache for outcome in (first, again)] == [False, True]
    assert first.features["all"].compute_sha256() == again.features["all"].compute_sha256() == undisturbed
    assert first.splits == again.splits
    assert first.encoder == again.encoder


@pytest.fixture
def pets(tmp_path):
    """Write 12 training and 6 test images; return the folder, and its runs of `zero-shot` and `readme`."""
    folder = tmp_path / "pets"
    for split, n in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            for i in range(n):
                write_image(folder / split / name / f"{i}.png", (90 + 20 * i, 120, 60))
    return folder, plan([f"folder:{folder}"], ["tiny"], protocols=["zero-shot", "readme"], device="cpu")


def test_a_zero_shot_run_encodes_only_the_images_of_the_test_split(tmp_path, pets):
    _, (zero_shot, probed) = pets
    (alone,) = extract([zero_shot], tmp_path / "alone")
    assert {subset: len(features) for subset, features in alone.features.items()} == {"test": 6}
    assert list(alone.splits) == ["test"]
    both = extract([zero_shot, probed], tmp_path / "both")
    assert {subset: len(features) for subset, features in both[0].features.items()} == {"test": 6}
    assert {subset: len(features) for subset, features in both[1].features.items()} == {"train": 12, "test": 6}
    assert both[0].splits == alone.splits
    assert set(both[0].extraction.subsets) == {"test"}
    assert both[0].extraction.subsets["test"] == both[1].extraction.subsets["test"]  # the images were encoded once
    (again,) = extract([probed], tmp_path / "alone")  # the entry of the test split serves other protocols
    assert again.features["test"].compute_sha256() == alone.features["test"].compute_sha256()
    assert again.splits == both[1].splits


def test_a_training_image_that_cannot_be_read_does_not_concern_a_zero_shot_run(tmp_path, pets):
    folder, specs = pets
    (folder / "train" / "cat" / "3.png").write_bytes(b"no image")
    scored, failed = extract(specs, tmp_path / "strict")
    assert list(scored.splits) == ["test"]
    assert isinstance(failed, DatasetError)
    assert "train/cat/3.png" in str(failed)
    skipping = extract(specs, tmp_path / "skipping", skip_corrupt=1)
    assert [[image.id for image in one.read.skipped] for one in skipping] == [[], ["train/cat/3.png"]]
    assert skipping[0].features["test"].compute_sha256() == scored.features["test"].compute_sha256()


def test_each_run_counts_the_skipped_images_of_its_own_splits(tmp_path, pets):
    folder, specs = pets
    (folder / "train" / "cat" / "3.png").write_bytes(b"no image")
    (folder / "test" / "dog" / "1.png").write_bytes(b"no image")
    skipping, failed = extract(specs, tmp_path / "cache", skip_corrupt=1)
    assert [image.id for image in skipping.read.skipped] == ["test/dog/1.png"]
    assert isinstance(failed, DatasetError)


def test_the_time_of_encoding_texts_is_not_part_of_the_time_of_loading(tmp_path, pets, monkeypatch):
    """The clock of this test advances only while texts are encoded, so the time of loading must be zero."""
    _, specs = pets
    seconds = [0.0]

    def encode_texts(_):
        seconds[0] += 1000.0
        return True

    for module in (extraction, jobs, groups):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    session = Session(Settings(cache_dir=tmp_path / "cache", offline=True))
    assert not extraction.prepare(specs, session, Progress(is_shown=False), is_ready=encode_texts)
    assert [one.seconds["load"] for one in session.extracted.values()] == [0.0, 0.0]


def test_only_images_that_a_run_needs_are_expected(pets):
    _, (zero_shot, probed) = pets
    subsets = (Subset("train", 12), Subset("test", 6))
    zero_shot, probed = (replace(one, dataset=replace(one.dataset, subsets=subsets)) for one in (zero_shot, probed))
    assert [extraction.num_images(specs) for specs in ([zero_shot], [probed], [zero_shot, probed])] == [6, 18, 18]
    undivided = replace(zero_shot, dataset=replace(zero_shot.dataset, subsets=(Subset("all", 18),)))
    assert extraction.num_images([undivided]) == 18


@pytest.mark.slow
def test_cached_features_equal_extracted_features(undisturbed, small):
    encoder = probe.load_encoder(small[0], device="cpu")
    images = probe.datasets.opening.open_dataset("digits").subsets["all"]
    assert probe.extract_features(encoder, images, batch_size=BATCH).compute_sha256() == undisturbed


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bytes(tmp_path, undisturbed, small):
    """Each attempt is killed at a random moment, on average later than the one before, until an attempt completes."""
    line, output, cache = command(tmp_path / "cache", small[0]), tmp_path / "output", tmp_path / "cache"
    rng, kills, before = random.Random(0), 0, 0
    while (code := run_command(line, output, watched=cache, moment=rng.randint(1, 20 + 20 * kills))) == KILLED:
        kills += 1
        assert num_made(cache) >= before  # nothing that was finished is lost
        before = num_made(cache)
    assert code == 0, output.read_text()
    assert kills >= 2
    (outcome,) = extract(digits(small[0]), cache)
    assert outcome.extraction.from_cache
    assert outcome.features["all"].compute_sha256() == undisturbed


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path, undisturbed, small):
    line = [sys.executable, "-m", "probe", *command(tmp_path, small[0])]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(line, cwd=ROOT, **pipe) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (kept,) = survey(tmp_path)
    assert kept.state == "complete"
    assert extract(digits(small[0]), tmp_path)[0].features["all"].compute_sha256() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 4])
def test_shards_joined_are_the_whole(tmp_path, undisturbed, n, small):
    """The last shard completes the features. The other shards give an `IncompleteError`."""
    order = list(range(1, n + 1))
    random.Random(n).shuffle(order)
    outcomes = [extract(digits(small[0]), tmp_path, shard=(i, n))[0] for i in order]
    assert all(isinstance(outcome, IncompleteError) for outcome in outcomes[:-1])
    assert isinstance(outcomes[-1], Extraction)
    assert outcomes[-1].features["all"].compute_sha256() == undisturbed


@pytest.mark.slow
def test_shards_of_several_folders_join_when_they_are_copied_together(tmp_path, undisturbed, small):
    for i in (1, 2):
        extract(digits(small[0]), tmp_path / str(i), shard=(i, 2))
    (one,), (other,) = (list((tmp_path / str(i)).glob("digits/*.pieces")) for i in (1, 2))
    for path in other.glob("*.npz"):
        path.rename(one / path.name)
    (outcome,) = extract(digits(small[0]), tmp_path / "1")
    assert outcome.features["all"].compute_sha256() == undisturbed


@pytest.mark.slow
def test_one_reading_feeds_all_models_and_modes(tmp_path, monkeypatch, undisturbed, small):
    """Each model and mode has the same features as in a run of its own."""
    read = Counter()
    original = image_module.ImageDataset.__getitem__

    def counted(self, i):
        read[i] += 1
        return original(self, i)

    specs = digits(*small, jit_modes=(False, True))
    alone = [extract([spec], tmp_path / str(i))[0].features["all"].compute_sha256() for i, spec in enumerate(specs)]
    monkeypatch.setattr(image_module.ImageDataset, "__getitem__", counted)
    together = extract(specs, tmp_path / "together")
    assert [outcome.features["all"].compute_sha256() for outcome in together] == alone
    assert alone[0] == undisturbed
    assert set(read.values()) - {1} <= {2}  # the first and the last are read once more on opening
    assert sum(count > 1 for count in read.values()) <= 2
    assert together[0].extraction.subsets["all"].models == 4


@pytest.mark.slow
def test_an_encoder_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, small):
    """If one encoder gives NaN, its error names the image, and the other encoder completes its features."""
    original = ImageEncoder.encode

    def encode(self, pixels, *, wait=True):
        found = original(self, pixels, wait=wait)
        if self.name != small[1]:
            return found
        projected = found.projected.clone()
        projected[3] = float("nan")
        return replace(found, projected=projected)

    monkeypatch.setattr(ImageEncoder, "encode", encode)
    good, bad = extract(digits(*small), tmp_path)
    assert isinstance(good, Extraction)
    assert isinstance(bad, FeaturesError)
    assert "digits/all: the features of image 3 (all/3) are not finite" in str(bad)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for split, n in (("train", 12), ("test", 4)):
        for name, colour in (("red", (200, 30, 30)), ("green", (30, 200, 30))):
            for i in range(n):
                write_image(root / split / name / f"{i:02}.png", colour)
    return root


@pytest.mark.slow
def test_a_shard_has_its_share_of_every_subset(tmp_path, folder):
    """Two shards together give all training and test images."""
    specs = plan([f"folder:{folder}"], ["tiny"], protocols=["readme"], device="cpu", batch_size=300)
    for i in (1, 2):
        (outcome,) = extract(specs, tmp_path / "cache", shard=(i, 2))
    assert isinstance(outcome, Extraction)
    whole = extract(specs, tmp_path / "whole")[0]
    for subset, features in whole.features.items():
        assert outcome.features[subset].compute_sha256() == features.compute_sha256()


def of_folder(folder, cache, **settings):
    specs = plan([f"folder:{folder}"], ["tiny"], protocols=["readme"], device="cpu")
    return extract(specs, cache, **settings)[0]


def test_a_replaced_image_is_read_again(tmp_path, folder):
    cache = tmp_path / "cache"
    before = of_folder(folder, cache)
    assert of_folder(folder, cache).extraction.from_cache
    write_image(folder / "train" / "red" / "03.png", (0, 0, 255))
    after = of_folder(folder, cache)
    assert not after.extraction.from_cache
    assert after.features["train"].compute_sha256() != before.features["train"].compute_sha256()


def test_images_that_were_skipped_are_not_forgiven_later(tmp_path, folder):
    cache = tmp_path / "cache"
    (folder / "train" / "red" / "03.png").write_bytes(b"no image")
    skipped = of_folder(folder, cache, skip_corrupt=1)
    assert [image.id for image in skipped.read.skipped] == ["train/red/03.png"]
    strict = of_folder(folder, cache)
    assert isinstance(strict, DatasetError)
    assert "train/red/03.png" in str(strict)


def test_an_image_that_can_be_read_again_is(tmp_path, folder):
    """A change of permissions changes neither size nor time of a file, so skipped images are always tried again."""
    cache, path = tmp_path / "cache", folder / "train" / "red" / "03.png"
    content, times = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(times, times))
    of_folder(folder, cache, skip_corrupt=1)
    path.write_bytes(content)
    os.utime(path, ns=(times, times))
    again = of_folder(folder, cache)
    assert len(again.features["train"]) == 24


def test_a_model_behind_another_may_skip_what_that_has_skipped(tmp_path, folder):
    """An image that several models of a run skip counts once."""
    cache = tmp_path / "cache"
    (folder / "train" / "red" / "03.png").write_bytes(b"no image")
    specs = plan([f"folder:{folder}"], ["tiny", "random:tiny"], protocols=["readme"], device="cpu")
    extract(specs[:1], cache, skip_corrupt=1)
    assert all(isinstance(outcome, Extraction) for outcome in extract(specs, cache, skip_corrupt=1))


def test_how_a_source_is_read_is_part_of_the_key(folder):
    """Rows with the same name that read different columns, or different subsets of a file, have the same ids."""
    (spec,) = plan([f"folder:{folder}"], ["tiny"], protocols=["readme"], device="cpu")
    source = spec.dataset.sources[0]
    other = replace(source, options=(("image", "right"),))
    keys = [
        find_entries(replace(spec, dataset=replace(spec.dataset, sources=(one,))), Session())["train"].key
        for one in (source, other)
    ]
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"reading"}


# For each field of the key, a change to the run that changes this field alone.
CHANGES = {
    "weights": lambda spec: replace(spec, model=probe.get_model("random:tiny")),
    "mode": lambda spec: replace(spec, jit=True),
    "precision": lambda spec: replace(spec, precision="bf16"),
    "batch_size": lambda spec: replace(spec, batch_size=BATCH * 2),
}


@pytest.mark.parametrize("field", CHANGES)
def test_what_a_user_changes_changes_its_field_of_the_key(field):
    (spec,) = digits("tiny")
    settings = Settings(offline=True)
    before, after = (find_entries(s, Session(settings))["all"].key for s in (spec, CHANGES[field](spec)))
    assert {name for name in before if before[name] != after[name]} == {field}


def test_everything_around_changes_its_field_of_the_key(monkeypatch, folder):
    (spec,) = plan([f"folder:{folder}"], ["tiny"], protocols=["readme"], device="cpu")
    settings = Settings(offline=True)
    before = find_entries(spec, Session(settings))["test"].key
    monkeypatch.setattr(environment, "package_version", lambda name: f"another {name}")
    monkeypatch.setattr(store, "libjpeg_version", lambda: "another")
    monkeypatch.setattr(store, "hardware", lambda device: f"another {device}")
    monkeypatch.setattr(store, "PREPROCESS_VERSION", 99)
    monkeypatch.setattr(store, "EXTRACTION_VERSION", 99)
    (folder / "test" / "red" / "00.png").rename(folder / "test" / "red" / "0.png")
    after = find_entries(spec, Session(settings))["test"].key
    changed = {name for name in before if before[name] != after[name]}
    around = {"hardware", "images", "content", "preprocess_version", "extraction_version", "libjpeg"}
    assert changed == around | {"torch", "torchvision", "pillow"}
    assert set(before) - changed == {"weights", "mode", "precision", "device", "batch_size", "reading"}


def test_settings_beside_weights_are_part_of_what_identifies_a_model(tmp_path):
    """A folder in Hugging Face's form is a different model if its config.json has a different activation."""
    from probe.models.loading import identify

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text('{"hidden_act": "gelu"}')
    before = identify(probe.get_model(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_act": "quick_gelu"}')
    assert identify(probe.get_model(tmp_path)) != before


def test_a_checkpoint_is_identified_by_its_digest(tmp_path):
    from probe.fetch import file_sha256
    from probe.models.loading import identify

    path = tmp_path / "model.pt"
    save_archive(random_clip(SMALL_VIT), path)
    assert identify(probe.get_model(path)) == file_sha256(path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a file system is mounted by root alone")
def test_a_full_disk_loses_nothing(tmp_path, undisturbed, small):
    """Some of the chunks fill a file system of 1 MB. When it is larger, the run extracts only the other chunks."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (outcome,) = extract(digits(small[0]), disk)
        assert isinstance(outcome, CacheError)
        assert "no space left in" in str(outcome)
        made = num_made(disk)
        assert 0 < made < 8
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, capture_output=True)
        (outcome,) = extract(digits(small[0]), disk)
        assert outcome.features["all"].compute_sha256() == undisturbed
        assert outcome.extraction.subsets["all"].images == 1797 - 256 * made
    finally:
        del outcome  # its arrays are files on this disk
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_the_record_says_how_fast_and_from_where(tmp_path, small):
    specs = digits(small[0])
    settings = Settings(results_dir=tmp_path / "r", cache_dir=tmp_path / "c", offline=True)
    first, again = (next(run_grid(specs, settings, rerun=True)) for _ in range(2))
    assert (first.extraction.from_cache, again.extraction.from_cache) == (False, True)
    numbers = first.extraction.subsets["all"]
    assert (numbers.images, numbers.models) == (1797, 1)
    assert min(numbers.images_per_second, numbers.read_seconds, numbers.encode_seconds, numbers.keep_seconds) > 0
    assert numbers.peak_memory_mb > 100
    assert 0 <= numbers.device_idle <= 1
    assert again.features == first.features
    assert again.result == first.result


@pytest.mark.slow
def test_the_commands_tell_what_is_kept(tmp_path, capsys):
    common = ["--dataset", "digits", "--model", "tiny", "--device", "cpu", "--cache-dir", str(tmp_path)]
    assert main(["cache", "explain", *common]) == 1
    assert "not cached, and no other entry of this subset exists" in capsys.readouterr().out
    assert main(["extract", *common, "--out", str(tmp_path / "features.npz")]) == 0
    assert "extracted" in capsys.readouterr().out
    assert main(["extract", *common]) == 0
    assert "| cached" in capsys.readouterr().out
    assert main(["cache", "explain", *common]) == 0
    assert "digits/all / tiny / eager: cached in" in capsys.readouterr().out
    assert main(["cache", "explain", *common, "--batch-size", "32"]) == 1
    assert "batch_size: 64 there, 32 wanted" in capsys.readouterr().out
    assert main(["cache", "ls", "--cache-dir", str(tmp_path), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["state"] == "complete"
    assert main(["cache", "verify", "--cache-dir", str(tmp_path)]) == 0
    np.save(next(tmp_path.glob("digits/*/labels.npy")), np.zeros(3))
    assert main(["cache", "verify", "--cache-dir", str(tmp_path)]) == 1
    assert "the digest of labels.npy differs" in capsys.readouterr().out
    assert main(["cache", "gc", "--cache-dir", str(tmp_path), "--max-size", "1 KB"]) == 0
    assert survey(tmp_path) == []


def test_explaining_says_why_the_contents_of_files_differ(tmp_path, folder, capsys, monkeypatch):
    common = ["--dataset", f"folder:{folder}", "--model", "tiny", "--device", "cpu", "--cache-dir", str(tmp_path / "c")]
    with monkeypatch.context() as earlier:
        earlier.setattr("probe.datasets.images.of_files", lambda folder, names: 64 * "0")
        assert main(["extract", *common]) == 0
    assert main(["cache", "explain", *common]) == 1
    assert "wanted (an earlier version compared only sizes and dates of files, not their" in capsys.readouterr().out
    assert main(["extract", *common]) == 0
    assert main(["cache", "explain", *common]) == 0
    path = folder / "test" / "red" / "00.png"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # in the checksum of the last chunk, which Pillow does not compare
    path.write_bytes(content)
    os.utime(path, ns=times)
    capsys.readouterr()
    assert main(["cache", "explain", *common]) == 1
    assert "wanted (sizes, dates or contents of files changed)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5), ("1KB", 1000), ("10gb", 10**10), ("1.5 MB", 1_500_000), ("2GiB", 2 << 30), ("3M", 3 * 10**6)],
)
def test_sizes_are_as_people_write_them(text, expected):
    assert arguments._size(text) == expected


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_is_a_number_of_a_count(text, capsys):
    with pytest.raises(SystemExit):
        main(["extract", "--dataset", "digits", f"--shard={text}"])
    assert "expected a shard such as 1/4, the first of four" in capsys.readouterr().err
