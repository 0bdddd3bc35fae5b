"""Clean scores: without test images that are also training images, by hand; resumption, tables, cached digests."""

import csv
import errno
import io
import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
from make.records import make_record
from make.twins import DIFFERING, LEAKED, write_twins

import probe
from probe.cli.main import main
from probe.datasets.opening import open_dataset
from probe.errors import ResultsError
from probe.features import file_entries, inventory, pixels
from probe.features.arrays import Features
from probe.features.pixels import PIXELS, find_digests, find_split_leaks, pixel_entry
from probe.grid import pending, plan
from probe.leaderboard.clean import clean_text, clean_to_markdown
from probe.leaderboard.derived import render_derived
from probe.leaderboard.exports import to_csv, to_json, to_parquet
from probe.leaderboard.sections import make_sections
from probe.leaderboard.tables import CLEAN_COLUMNS
from probe.leaderboard.texts import sections_to_markdown
from probe.probes.clean import score_clean
from probe.probes.fit import fit_folds
from probe.records.packing import unpack_left_out, unpack_outcomes
from probe.records.record import read_record, read_records
from probe.records.schema import CleanRecord, IntervalRecord
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import Protocol
from probe.stats.equal_images import Leaks, find_leaks, number_labels
from probe.stats.intervals import seeds_interval, wilson

RULES = Protocol("plain", "plain", "projected", (1.0,))
NEAREST = Protocol("near", "near", "projected", method="knn", neighbours=(3,), normalize=True)
DRAWS = replace(RULES, name="draws", shots=2, num_seeds=3, refit=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_twins(tmp_path_factory.mktemp("data"))


def run(dataset, folder, protocol=RULES, **options):
    folders = {"results_dir": folder / "results", "cache_dir": folder / "cache"}
    return probe.run(dataset, model="tiny", device="cpu", protocol=protocol, offline=True, **folders, **options)


def leaked_by_hand(dataset):
    """Return which test images are copies of training or validation images, from the list of planted copies."""
    ids = open_dataset(dataset).subsets["test"].ids
    return np.array([key in LEAKED for key in ids])


@pytest.mark.parametrize("rules", [RULES, NEAREST, DRAWS, "zero-shot"], ids=lambda rules: getattr(rules, "name", rules))
def test_the_clean_score_is_the_score_of_the_remaining_images(data, tmp_path, rules):
    plain = run(data, tmp_path, rules)
    record = run(data, tmp_path, rules, clean=True)
    clean, leaked = record.clean, leaked_by_hand(data)
    assert plain.clean is None
    assert (record.result.score, record.result.outcomes) == (plain.result.score, plain.result.outcomes)
    assert (clean.num_left_out, clean.num_differing) == (len(LEAKED), len(DIFFERING))
    assert clean.num_test == record.result.num_test - len(LEAKED) == 21
    (left_out,) = unpack_left_out(clean)
    np.testing.assert_array_equal(left_out, leaked)
    scores = [one.arrays["right"][~leaked].mean() for one in unpack_outcomes(record.result)]
    assert clean.score == pytest.approx(np.mean(scores), abs=1e-12)
    draws = seeds_interval(scores) if rules == DRAWS else None
    low, high = wilson(clean.score, 21) if draws is None else (draws.low, draws.high)
    assert (clean.interval.low, clean.interval.high) == pytest.approx((low, high))


def test_another_run_decodes_no_image(data, tmp_path, monkeypatch):
    first = run(data, tmp_path, clean=True)
    monkeypatch.setattr("probe.features.pixels.digest_images", pytest.fail)
    second = run(data, tmp_path, NEAREST, clean=True)
    assert second.clean.left_out == first.clean.left_out


def test_a_record_without_a_clean_score_is_made_again_and_keeps_it(data, tmp_path):
    folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "offline": True}
    settings = Settings(**folders)
    plain, clean = (plan([data], ["tiny"], protocols=[RULES], device="cpu", clean=clean) for clean in (False, True))
    list(run_grid(plain, settings))
    assert not pending(plain, settings).runs
    assert pending(clean, settings).runs == clean
    list(run_grid(clean, settings))
    assert not pending(clean, settings).runs
    assert not pending(plain, settings).runs  # a record with a clean score is complete
    assert pending(plain, settings, rerun=True).runs == clean  # no score is lost
    (record,) = run_grid(plain, settings, rerun=True)
    assert record.clean is not None


def test_the_record_is_read_back_and_checked(data, tmp_path):
    record = run(data, tmp_path, clean=True)
    path = next((tmp_path / "results/records").rglob("*.json"))
    assert read_record(path) == record
    plain = json.loads(path.read_text())
    for changes, message in (
        ({"score": 0.5}, "clean: its score 0.5 lies outside|clean: its score is 0.5"),
        ({"num_left_out": 4}, "clean: num_left_out is 4"),
        ({"score": None}, "clean: it must have either a score with its interval, or a reason"),
        ({"left_out": [{**plain["clean"]["left_out"][0], "data": "!"}]}, "clean: the images that were left out cannot"),
    ):
        path.write_text(json.dumps({**plain, "clean": {**plain["clean"], **changes}}))
        with pytest.raises(ResultsError, match=message):
            read_record(path)


def test_skipped_images_do_not_count(tmp_path):
    """The rows of features move up when an image cannot be read; the leaked images stay the same."""
    root = tmp_path / "images"
    dataset = write_twins(root)
    (root / "test/blue/00.png").write_bytes(b"no image")
    (root / "train/red/00.png").write_bytes(b"no image")  # test/red/50.bmp is not a copy any more
    record = run(dataset, tmp_path, clean=True, skip_corrupt=2)
    (left_out,) = unpack_left_out(record.clean)
    ids = open_dataset(dataset, skip_corrupt=True).subsets["test"].ids
    readable = [key for key in ids if not key.endswith("blue/00.png")]
    names = {key for key, is_out in zip(readable, left_out, strict=True) if is_out}
    assert names == set(LEAKED) - {"test/red/50.bmp"}


def test_the_command_prints_clean_scores_and_show_and_tables_have_them(data, tmp_path, capsys):
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    options = ["--dataset", data, "--model", "tiny", "--device", "cpu", "--protocol", "readme", "--offline"]
    assert main(["run", *options, *folders, "--clean"]) == 0
    out = capsys.readouterr().out
    assert "## Clean scores" in out
    (record,) = read_records(tmp_path / "results")
    assert f"| 21     | 5        | 2                      | {100 * record.clean.score:.2f} " in out
    path = next((tmp_path / "results/records").rglob("*.json"))
    assert main(["show", str(path)]) == 0
    assert f"clean score               {clean_text(record.clean)}" in capsys.readouterr().out
    assert main(["show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["clean"]
    assert (shown["score"], shown["num_left_out"]) == (record.clean.score, 5)
    files = render_derived([record, make_record(model="other", protocol="readme")])
    (table,) = [text for name, text in files.items() if name.startswith("tables/tiny") and name.endswith(".csv")]
    (row,) = csv.DictReader(io.StringIO(table))
    assert float(row["clean_score"]) == record.clean.score
    assert (row["num_left_out"], row["num_differing"]) == ("5", "2")
    (other,) = [text for name, text in files.items() if name.startswith("tables/other") and name.endswith(".csv")]
    assert "clean_score" not in other
    assert clean_text(record.clean) in files["leaderboard.html"]


def test_the_leaderboard_has_clean_scores_of_datasets_that_have_them():
    interval = IntervalRecord(0.4, 0.6, "wilson")
    clean = CleanRecord(score=0.5, interval=interval, num_test=40, num_left_out=10, num_differing=2, left_out=())
    records = [make_record("digits"), make_record("cifar10"), make_record("digits", "other", clean=clean)]
    sections = make_sections(records)
    by_model = {row["model"]: row for row in csv.DictReader(io.StringIO(to_csv(sections)))}
    names = [f"digits_{name}" for name in CLEAN_COLUMNS]
    assert [by_model["other"][name] for name in names] == ["0.5", "0.4", "0.6", "10", "2"]
    assert [by_model["tiny"][name] for name in names] == [""] * 5
    without = make_sections([replace(record, clean=None) for record in records])
    (header, *_) = csv.reader(io.StringIO(to_csv(without)))
    assert [name for name in by_model["tiny"] if name not in names] == header
    frame = pandas.read_parquet(io.BytesIO(to_parquet(sections)))
    assert list(frame.digits_clean_score.dropna()) == [0.5]
    cells = {line["model"]: line["cells"] for line in json.loads(to_json(sections))["sections"][0]["models"]}
    assert cells["other"]["digits"]["clean_score"] == 0.5
    assert "clean_score" not in cells["tiny"]["digits"]
    assert clean_to_markdown(records) in sections_to_markdown(sections)
    assert "Clean scores" not in sections_to_markdown(without)


def test_records_that_differ_only_in_having_a_clean_score_do_not_differ(data, tmp_path):
    plain = run(data, tmp_path / "a")
    clean = run(data, tmp_path / "b", clean=True)
    assert not [change for change in probe.diff(plain, clean).changes if change.stage != "environment"]
    other = replace(clean, clean=replace(clean.clean, num_differing=3))
    assert [change.field for change in probe.diff(clean, other).changes] == ["clean.num_differing"]


def features(rng, n, k=2):
    y = np.arange(n) % k
    return Features((rng.normal(size=(n, 6)) + y[:, None]).astype(np.float32), y.astype(np.int64))


def some_leaks(rng, n):
    leaked = rng.random(n) < 0.3
    return Leaks(leaked, leaked & (rng.random(n) < 0.5))


@pytest.mark.parametrize("rules", [RULES, DRAWS], ids=["fit", "draws"])
@pytest.mark.parametrize("same_images", [True, False])
def test_folds_are_averaged_as_the_score_is(rules, same_images):
    rng = np.random.default_rng(0)
    test = features(rng, 40)
    folds = [
        {"train": features(rng, 30), "val": features(rng, 20), "test": test if same_images else features(rng, 36 + k)}
        for k in range(3)
    ]
    result = fit_folds(folds, metric="accuracy", protocol=rules, solver="fast", device="cpu")
    leaks = [some_leaks(rng, len(fold["test"])) for fold in folds]
    clean = score_clean(result, leaks)
    union = np.any([one.leaked for one in leaks], axis=0) if same_images else None
    kept = [~(one.leaked if union is None else union) for one in leaks]
    scores = np.array(
        [
            [draw.outcomes[0].arrays["right"][own].mean() for draw in fold.draws or (fold,)]
            for fold, own in zip(result.folds, kept, strict=True)
        ]
    )
    assert clean.score == pytest.approx(scores.mean())
    if rules == DRAWS:
        expected = seeds_interval(scores.mean(axis=0).tolist())
        assert (clean.interval.low, clean.interval.high) == pytest.approx((expected.low, expected.high))
    assert clean.num_test == (kept[0].sum() if same_images else sum(own.sum() for own in kept))
    assert clean.num_left_out == (union.sum() if same_images else sum(one.leaked.sum() for one in leaks))


def test_nothing_left_out_gives_the_score_and_everything_gives_a_reason():
    rng = np.random.default_rng(0)
    fold = {"train": features(rng, 30), "val": features(rng, 20), "test": features(rng, 25)}
    result = fit_folds([fold], metric="accuracy", protocol=RULES, solver="fast", device="cpu")
    none, everything = np.zeros(25, bool), np.ones(25, bool)
    clean = score_clean(result, [Leaks(none, none)])
    assert (clean.score, clean.num_left_out, clean.reason) == (result.score, 0, "")
    assert (clean.interval.low, clean.interval.high) == (result.interval.low, result.interval.high)
    clean = score_clean(result, [Leaks(everything, none)])
    assert (clean.score, clean.interval, clean.num_test, clean.reason) == (None, None, 0, "no test image remains")
    record = make_record(clean=clean)
    assert clean_text(clean).startswith("none, because no test image remains; 25 test images left out")
    assert clean_to_markdown([record]).endswith(
        f"\n{record.dataset} has no clean score, because no test image remains.\n"
    )
    assert "| 0      | 25       | 0                      | —" in clean_to_markdown([record])


def test_a_metric_that_is_not_defined_on_the_rest_gives_a_reason():
    rng = np.random.default_rng(0)
    fold = {"train": features(rng, 30), "val": features(rng, 20), "test": features(rng, 24)}
    result = fit_folds([fold], metric="roc_auc", protocol=RULES, solver="fast", device="cpu")
    leaked = fold["test"].y == 1
    clean = score_clean(result, [Leaks(leaked, leaked)])
    assert clean.score is None
    assert clean.reason == "ROC AUC needs images of both classes, but there is only one class"
    some = np.arange(24) < 5
    expected = probe.stats.metrics.get_metric("roc_auc")
    clean = score_clean(result, [Leaks(some, some)])
    ranks = result.outcomes[0].arrays["ranks"][~some]
    assert clean.score == pytest.approx(expected((fold["test"].y == 1)[~some], np.stack([ranks, -ranks], axis=1)))


def test_leaks_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    contents, labels = rng.integers(0, 30, 80), rng.integers(0, 3, 80)
    order = rng.permutation(80)
    fit, test = np.sort(order[:50]), np.sort(order[50:])
    found = find_leaks(contents, labels, fit=fit, test=test)
    for i, leaked, differing in zip(test, found.leaked, found.differing, strict=True):
        equal = [j for j in fit if contents[j] == contents[i]]
        assert leaked == bool(equal)
        assert differing == any(labels[j] != labels[i] for j in equal)


def test_labels_of_several_classes_are_equal_if_their_rows_are():
    rows = np.array([[1, 0, -1], [1, 0, 0], [1, 0, -1], [0, 1, 0]])
    a, b, c, d = number_labels(rows)
    assert a == c
    assert len({a, b, d}) == 3


def test_the_key_of_digests_has_what_changes_them_and_nothing_of_an_encoder(data, tmp_path):
    dataset = open_dataset(data)
    key = pixel_entry(dataset, "train").key
    assert not key.keys() & {"weights", "mode", "precision", "device", "batch_size", "torch"}
    assert {"images", "content", "reading", "libjpeg", "pillow", "pixels_version"} <= key.keys()
    assert pixel_entry(dataset, "test").key != key


def test_replaced_images_are_decoded_again(tmp_path):
    root = tmp_path / "images"
    dataset = write_twins(root)
    before = find_split_leaks(open_dataset(dataset), tmp_path / "cache")
    (root / "train/red/00.png").write_bytes((root / "train/red/11.png").read_bytes())
    after = find_split_leaks(open_dataset(dataset), tmp_path / "cache")
    assert before[0].leaked.sum() == len(LEAKED)
    assert after[0].leaked.sum() == len(LEAKED) - 1
    assert len(list((tmp_path / "cache").glob(f"*/*{PIXELS}"))) == 4  # three subsets, one of which was decoded twice


def test_a_damaged_entry_is_named_and_computed_again(data, tmp_path, caplog):
    dataset = open_dataset(data)
    first = find_digests(dataset, ["train"], tmp_path)
    (file,) = tmp_path.glob(f"*/*{PIXELS}")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert list(inventory.verify(tmp_path)[1]) == [file]
    again = find_digests(dataset, ["train"], tmp_path)
    np.testing.assert_array_equal(again["train"].sha256, first["train"].sha256)
    assert f"the digests of pixels in {file} are damaged" in caplog.text
    assert file.read_bytes() == whole
    (cached,) = inventory.survey(tmp_path)
    assert (cached.state, cached.label["subset"]) == ("complete", "pixels of train")


def test_a_full_disk_is_a_warning(data, tmp_path, caplog, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_entries, "write_atomically", fail)
    monkeypatch.setattr(pixels, "lock", fail)
    found = find_digests(open_dataset(data), ["test"], tmp_path)
    assert len(found["test"]) == 26
    assert "cannot cache digests of pixels in" in caplog.text
