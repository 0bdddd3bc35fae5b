"""Heads: a head that is read back gives the score of its run, and refuses features and models that do not fit."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from make.images import write_image
from make.records import make_record
from PIL import Image
from safetensors.numpy import load_file, save_file

import probe
from probe.cli.main import main
from probe.datasets.images import ImageDataset
from probe.errors import DatasetError, FeaturesError, HeadError
from probe.features.arrays import Features
from probe.features.extraction import Session, extract, prepare
from probe.grid import plan
from probe.models.loading import load_encoder
from probe.probes.fit import fit_folds
from probe.probes.fits import Weights
from probe.probes.head_files import load_head
from probe.probes.heads import METADATA, SUFFIX, Head, HeadInfo, describe_heads
from probe.probes.prediction import Prediction, Predictions, count_unknown, load_encoder_of, share_right
from probe.progress import Progress
from probe.records.packing import unpack_outcomes
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import NO_SOLVER, Protocol
from probe.stats.outcomes import make_outcomes

MODES = (False, True)
DRAWS = Protocol("two-draws", "", "pre_projection", (0.1,), shots=4, num_seeds=2, refit=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder whose results have the heads of `tiny` on digits."""
    root = tmp_path_factory.mktemp("heads")
    settings = Settings(results_dir=root / "results", save_heads=True)
    records = list(run_grid(_specs(), settings))
    assert [record.error for record in records] == [None] * len(records)
    return root


def _specs(protocols=("readme", "zero-shot", DRAWS), jit_modes=MODES):
    return plan(["digits"], ["tiny"], protocols=protocols, jit_modes=jit_modes, device="cpu")


def _heads(folder, spec):
    solver = "" if spec.solver == NO_SOLVER else f".{spec.solver}"
    name = f"tiny.{spec.mode}.{spec.protocol.name}.fp32{solver}"
    return [load_head(path) for path in sorted((folder / "results/heads/digits").glob(f"{name}*{SUFFIX}"))]


@pytest.fixture(scope="module")
def head(folder):
    (head,) = _heads(folder, _specs()[0])
    return head


@pytest.mark.parametrize("spec", _specs(), ids=str)
def test_a_head_has_the_outcomes_of_its_record(folder, spec):
    session = Session(Settings())
    assert not prepare([spec], session, Progress(is_shown=False))
    test = extract(session.find_encoder(spec), session.open_dataset(spec.dataset), session).cut(["test"])[0]["test"]
    (record,) = run_grid([spec], Settings(results_dir=folder / "results"))
    expected = unpack_outcomes(record.result)
    heads = _heads(folder, spec)
    assert len(heads) == len(expected) == (2 if spec.protocol.shots else 1)
    for own, outcomes in zip(heads, expected, strict=True):
        found = make_outcomes("accuracy", test.y, own.logits(test.at(spec.protocol.feature_point)))
        assert np.array_equal(found.arrays["right"], outcomes.arrays["right"])
        assert own.info.class_names == tuple("0123456789")
        assert (own.info.mode, own.info.protocol) == (spec.mode, spec.protocol)


@pytest.mark.parametrize("metric", ["voc2007_11pt_map", "roc_auc", "mean_per_class"])
def test_weights_of_a_result_give_its_outcomes(metric):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8)).astype(np.float32)
    if metric == "voc2007_11pt_map":
        y = (x[:, :4] + rng.standard_normal((300, 4)) > 0.5).astype(np.int64)
        y[::17, 1] = -1
    elif metric == "roc_auc":
        y = (x[:, 0] + rng.standard_normal(300) > 0).astype(np.int64)
    else:
        y = np.array([3, 7, 40])[np.argmax(x[:, :3] + rng.standard_normal((300, 3)), axis=1)]
    rules = replace(probe.get_protocol("readme"), normalize=metric == "roc_auc")
    train, test = (Features(x[rows], y[rows]) for rows in (slice(200), slice(200, None)))
    result = probe.fit_probe(train=train, test=test, metric=metric, protocol=rules)
    labels = result.label_values or tuple(range(len(result.heads[0].bias)))
    info = HeadInfo("made", (), labels, y.ndim == 2, None, "", None, "", "", rules, "fast", 1.0)
    head = Head(result.heads[0], info)
    y_true = np.searchsorted(labels, test.y) if result.label_values else test.y
    (outcomes,) = result.outcomes
    found = make_outcomes(metric, y_true, head.logits(test.x))
    assert all(np.array_equal(found.arrays[name], array) for name, array in outcomes.arrays.items())
    chances = head.probabilities(head.logits(test.x))
    if y.ndim == 2:
        assert np.allclose(chances, 1 / (1 + np.exp(-head.logits(test.x))))
    else:
        assert np.allclose(chances.sum(axis=1), 1)


@pytest.mark.parametrize("shots", [0, 1])
def test_heads_of_folds_have_their_own_labels(shots):
    rng = np.random.default_rng(0)
    rules = replace(DRAWS, shots=shots, num_seeds=2 if shots else 1)
    folds = []
    for labels in ((0, 1, 3), (0, 1, 2)):
        y = np.repeat(labels, 10)
        x = rng.standard_normal((30, 4)).astype(np.float32)
        folds.append({name: Features(x, y, x) for name in ("train", "test")})
    result = fit_folds(folds, protocol=rules)
    assert result.find_head_labels() == ((0, 1, 3),) * (2 if shots else 1) + ((0, 1, 2),) * (2 if shots else 1)


def test_a_torch_layer_gives_the_same_logits(head):
    x = np.random.default_rng(0).standard_normal((5, head.num_features)).astype(np.float32)
    assert isinstance(head.to_torch(), torch.nn.Linear)
    assert np.allclose(head.to_torch()(torch.from_numpy(x)).numpy(), head.logits(x), atol=1e-4)


def test_a_run_with_a_head_is_skipped_and_one_without_is_repeated(folder, caplog):
    caplog.set_level("INFO", logger="probe")
    (spec,) = _specs(["readme"], [False])
    settings = Settings(results_dir=folder / "results", save_heads=True)
    path = folder / "results/heads/digits" / f"tiny.eager.readme.fp32.fast{SUFFIX}"
    before = load_head(path)
    list(run_grid([spec], settings))
    assert "skipped 1 of 1 runs" in caplog.text
    path.unlink()
    list(run_grid([spec], replace(settings, save_heads=False)))
    assert not path.exists()
    list(run_grid([spec], settings))
    assert np.array_equal(load_head(path).weights.weight, before.weights.weight)
    # A head of an earlier record does not belong to this record.
    path.write_bytes(Head(before.weights, replace(before.info, created="2026-01-01T00:00:00+00:00")).to_bytes())
    list(run_grid([spec], settings))
    assert load_head(path).info.created != "2026-01-01T00:00:00+00:00"


def test_each_fold_has_its_own_labels_and_strength(tmp_path):
    rng = np.random.default_rng(0)

    def made(values, n):
        y = np.array(values)[np.arange(n) % len(values)]
        return Features((np.eye(4)[y] + rng.standard_normal((n, 4))).astype(np.float32), y)

    folds = [{name: made(labels, 60) for name in ("train", "val", "test")} for labels in ((0, 1, 3), (0, 2, 3))]
    rules = Protocol("search", "", "projected", (1e-3, 1.0), 1)
    result = fit_folds(folds, protocol=rules)
    record = make_record("digits", "tiny", protocol="search")
    heads = []
    for path, content in describe_heads(record, result, folds, ["a", "b", "c", "d"]).items():
        (tmp_path / path.name).write_bytes(content)
        heads.append(load_head(tmp_path / path.name))
    assert [head.info.labels for head in heads] == [(0, 1, 3), (0, 2, 3)]
    assert [head.info.class_names for head in heads] == [("a", "b", "d"), ("a", "c", "d")]
    assert [head.info.C for head in heads] == [fold.C for fold in result.folds]
    assert [head.info.part for head in heads] == [1, 2]


def test_predict_as_a_user_would(folder, tmp_path, capsys):
    images = probe.open_split("digits", "test")
    for i in range(6):
        images[i][0].save(tmp_path / f"{i}.png")
    (tmp_path / "6.png").write_bytes(b"not an image")
    head = str(folder / "results/heads/digits" / f"tiny.eager.readme.fp32.fast{SUFFIX}")
    assert main(["predict", head, str(tmp_path), "--device", "cpu"]) == 1  # one image could not be read
    out = capsys.readouterr()
    rows = [line.split("|")[1:-1] for line in out.out.splitlines()[2:]]
    labels = [str(images[i][1]) for i in range(6)]
    assert sum(row[1].strip() == label for row, label in zip(rows, labels, strict=True)) >= 5
    assert "6.png" in out.err
    assert "cannot be read" in out.err
    assert main(["predict", head, "--dataset", "digits", "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = document["predictions"]
    (record,) = run_grid(_specs(["readme"], [False]), Settings(results_dir=folder / "results"))
    right = np.mean([one["label"] == images[i][1] for i, one in enumerate(found)])
    assert right == pytest.approx(record.result.score, abs=0.01)  # encoded in batches of a different size
    assert document["share_right"] == pytest.approx(right)
    assert main(["predict", head, "--dataset", "digits", "--device", "cpu", "--out", str(tmp_path / "all.csv")]) == 0
    assert capsys.readouterr().out == f"{100 * right:.2f} % of {len(found)} images are right\n"
    table = tmp_path / "table.csv"
    assert main(["predict", head, str(tmp_path / "0.png"), "--device", "cpu", "--out", str(table)]) == 0
    assert table.read_text().splitlines()[0].startswith("image,label,name_1,probability_1")


def test_predict_in_python(head, tmp_path):
    test = probe.open_split("digits", "test")
    of_dataset = head.predict(test, device="cpu")
    assert [one.image for one in of_dataset.images] == list(test.ids)
    pictures = [test[i][0] for i in range(3)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    first, paths = str(tmp_path / "0.png"), [tmp_path / f"{i}.png" for i in range(3)]
    expected = [one.label for one in of_dataset.images[:3]]
    for images, n in ((first, 1), (paths, 3), (tmp_path, 3), (pictures, 3), (pictures[0], 1), ([pictures[0]] * 2, 2)):
        found = head.predict(images, device="cpu")
        assert [one.label for one in found.images] == (expected[:n] if n != 2 else expected[:1] * 2)
        assert np.allclose(found.logits[0], of_dataset.logits[0], atol=1e-3)  # in a batch of a different size
    tiny = load_encoder("tiny", device="cpu")
    assert head.predict(first, encoder=tiny).images[0].label == expected[0]
    with pytest.raises(HeadError, match="random:tiny has weights"):
        head.predict(first, encoder=load_encoder("random:tiny", device="cpu"))
    for images, message in (
        ([], "no images"),
        ("none.png", r"^none\.png does not exist; name files"),
        (["none.png", "no.png"], r"^none\.png, no\.png do not exist; name files"),
        ([first, pictures[0]], "of one kind"),
        (np.zeros((2, 8, 8, 3)), "expected paths or Pillow's images, got ndarray; make images of arrays with"),
        ([pictures[0], np.zeros((8, 8, 3))], "got ndarray"),
        (torch.zeros(()), "got Tensor"),
        (None, "got NoneType"),
        (b"image", "got bytes"),
    ):
        with pytest.raises(DatasetError, match=message):
            head.predict(images, device="cpu")
    (tmp_path / "bad.png").write_bytes(b"damaged")
    assert [path for path, _ in head.predict(tmp_path, device="cpu").skipped] == [str(tmp_path / "bad.png")]
    with pytest.raises(FeaturesError, match=r"no image could be read .*bad\.png"):
        head.predict(tmp_path / "bad.png", device="cpu")
    found = head.predict([*paths[:1], "none.png", *paths[1:]], device="cpu")
    assert [one.label for one in found.images] == expected
    ((image, why),) = found.skipped
    assert image == "none.png"
    assert "image 1 (none.png) does not exist" in why


@pytest.mark.parametrize("classes", [("red", "green"), tuple("0123456789")])
def test_only_the_same_classes_have_a_share(head, image_folder, classes):
    root = image_folder({f"{split}/{name}": 2 for split in ("train", "test") for name in classes})
    images = probe.open_split(f"folder:{root}", "test")
    share = share_right(head, images, head.predict(images, device="cpu"))
    assert (share is not None) == (len(classes) == 10)


@pytest.mark.parametrize(
    ("names", "labels", "has_names", "share", "unknown"),
    [
        ("acd", (0, 1, 2), True, 1.0, 0),
        ("abcd", (0, 1, 2), True, None, 0),  # the folder `b` was added, which moves the labels of `c` and `d`
        ("acdz", (0, 1, 2), True, 0.75, 1),
        ("abcd", (0, 2, 3), True, 0.75, 1),  # no image showed the class `b` when the head was fitted
        ("ac", (0, 1, 2), True, None, 0),
        ("acdz", (0, 1, 2), False, 0.75, 1),
    ],
)
def test_an_added_class_has_no_wrong_share(names, labels, has_names, share, unknown):
    """All images are predicted right, except one of a class that the head does not know."""
    rules = probe.get_protocol("readme")
    class_names = tuple("acd") if has_names else ()
    info = HeadInfo("mine", class_names, labels, False, None, "", None, "", "", rules, "fast", 1.0)
    head = Head(Weights(np.zeros((3, 2)), np.zeros(3)), info)
    ids = [f"{name}.png" for name in names]
    images = ImageDataset("mine/test", np.arange(len(ids)), tuple(names), read=None, ids=ids)
    found = Predictions(
        tuple(Prediction(one, label if label in labels else labels[0], "", 1.0, ()) for label, one in enumerate(ids)),
        np.zeros((len(ids), 3)),
    )
    assert share_right(head, images, found) == share
    if share is not None:
        assert count_unknown(head, images, found) == unknown
    assert (share_right(head, replace(images, name="other/test"), found) is None) == (share is None or not has_names)


def test_predict_tells_of_unknown_classes_and_skips_damaged_images(image_folder, tmp_path, capsys):
    """A class is added at the end, then the first image is damaged, then a class is added at the start."""
    root = image_folder({f"{split}/{name}": 8 for split in ("train", "test") for name in ("blue", "green", "red")})
    results = tmp_path / "results"
    run = probe.run(
        f"folder:{root}", model="tiny", protocol=DRAWS, device="cpu", results_dir=results, save_heads=True, offline=True
    )
    assert run.error is None
    (path, *_) = sorted((results / "heads").rglob(f"*{SUFFIX}"))
    table = tmp_path / "table.csv"
    command = ["predict", str(path), "--dataset", f"folder:{root}", "--device", "cpu"]
    assert main([*command, "--out", str(table)]) == 0
    header, *rows = table.read_text().splitlines()
    assert header == "image,label,name_1,probability_1,name_2,probability_2,name_3,probability_3"
    assert len(rows) == 24
    assert all(row.count(",") == header.count(",") for row in rows)
    capsys.readouterr()
    for split, i in (("train", 0), ("train", 1), ("test", 0)):
        write_image(root / split / "violet" / f"{i}.png", (90, 0, 90))
    assert main(command) == 0
    assert "images of classes that the head does not know, which count as wrong: 1\n" in capsys.readouterr().err
    next(file for file in sorted((root / "test/blue").iterdir())).write_bytes(b"damaged")
    assert main([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (len(document["predictions"]), len(document["skipped"]), document["num_unknown"]) == (24, 1, 1)
    assert document["mismatch"] == ""
    for split, i in (("train", 0), ("train", 1), ("test", 0)):
        write_image(root / split / "amber" / f"{i}.png", (200, 150, 0))
    assert main(command) == 1
    out = capsys.readouterr()
    assert "images are right" not in out.out
    assert "| prediction |" in out.out
    assert f"not shown: the label 0 is 'blue' in the head, but 'amber' in folder:{root}\n" in out.err
    assert main([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["share_right"] is None
    assert document["mismatch"].startswith("the label 0 is 'blue'")


def test_weights_that_have_moved_are_named(head, tmp_path):
    moved = replace(head.info, model=replace(head.info.model, name="mine", form="file", source=str(tmp_path / "m.pt")))
    with pytest.raises(HeadError, match=r"m\.pt, which is not there; give the place of these weights with --model"):
        Head(head.weights, moved).predict(Image.new("RGB", (8, 8)), device="cpu")
    assert Head(head.weights, moved).predict(Image.new("RGB", (8, 8)), model="tiny", device="cpu").images


def test_a_head_of_a_file_of_features(folder, tmp_path, capsys):
    features, saved = str(tmp_path / "tiny.npz"), str(tmp_path / "head.safetensors")
    cpu = ["--device", "cpu"]
    assert main(["extract", "--dataset", "digits", "--model", "tiny", "--out", features, *cpu]) == 0
    assert main(["fit", features, "--protocol", "readme", "--save-head", saved, *cpu]) == 0
    (of_run,), of_file = _heads(folder, _specs(["readme"], [False])[0]), load_head(saved)
    assert np.array_equal(of_file.weights.weight, of_run.weights.weight)
    assert (of_file.info.model, of_file.info.weights) == (of_run.info.model, of_run.info.weights)
    assert load_encoder_of(of_file, device="cpu").name == "tiny"
    with pytest.raises(SystemExit):
        main(["fit", features, "--protocol", "few-shot", "--save-head", saved, *cpu])
    assert "--save-head writes one head" in capsys.readouterr().err
    assert main(["fit", features, "--protocol", "few-shot-1", "--save-head", saved, *cpu]) == 1
    assert "has 5 heads" in capsys.readouterr().err
    assert main(["fit", features, "--protocol", "knn-5", "--save-head", saved, *cpu]) == 1
    assert "has no weights" in capsys.readouterr().err


def test_another_encoder_is_refused(head):
    with pytest.raises(HeadError, match=r"fitted on features of tiny .* but random:tiny has weights"):
        load_encoder_of(head, model="random:tiny", device="cpu")
    tiny = load_encoder("tiny", device="cpu")
    different = "with another preprocessing: resizing shortest; tiny has resizing squash; use the encoder of the head"
    with pytest.raises(HeadError, match=different):
        head.check_encoder(replace(tiny, preprocess=replace(tiny.preprocess, resize="squash")), head.info.weights)
    for name, other in (("mode", {"jit": True}), ("mode", {"compiled": True}), ("precision", {"precision": "bf16"})):
        execution = replace(tiny.execution, **other)
        shown = f"in eager mode and fp32, but tiny is in {execution.mode} mode and {execution.precision}"
        with pytest.raises(HeadError, match=shown):
            head.check_encoder(replace(tiny, execution=execution), head.info.weights)
        unknown = Head(head.weights, replace(head.info, **{name: ""}))
        unknown.check_encoder(replace(tiny, execution=execution), head.info.weights)
    with pytest.raises(HeadError, match="eager mode and fp32, but tiny is in eager mode and bf16"):
        head.predict(Image.new("RGB", (8, 8)), encoder=load_encoder("tiny", device="cpu", precision="bf16"))
    with pytest.raises(HeadError, match=r"the head takes \d+ features"):
        head.check_encoder(replace(tiny, embed_dim=3), head.info.weights)
    with pytest.raises(HeadError, match="the features have the shape"):
        head.logits(np.zeros((2, 3), np.float32))
    with pytest.raises(HeadError, match="does not name its encoder"):
        load_encoder_of(Head(head.weights, replace(head.info, model=None)))


def _damage(kind, path):
    """Write a damaged file."""
    whole = path.read_bytes()
    tensors = load_file(path)
    size = int.from_bytes(whole[:8], "little")
    info = json.loads(json.loads(whole[8 : 8 + size])["__metadata__"][METADATA])
    if kind == "truncated":
        path.write_bytes(whole[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": 1}))
    elif kind == "without a head":
        save_file(tensors, path)
    else:
        if kind == "newer":
            info["version"] = 99
        elif kind == "other classes":
            info["labels"] = [0, 1]
        elif kind == "no protocol":
            del info["protocol"]
        elif kind == "no classes":
            info["labels"], info["class_names"] = [], []
            tensors = {"weight": np.zeros((0, 3)), "bias": np.zeros(0)}
        elif kind == "unsorted labels":
            info["labels"] = info["labels"][::-1]
        elif kind == "infinite bias":
            tensors["bias"][0] = np.inf
        elif kind == "unknown mode":
            info["mode"] = "banana"
        elif kind == "unknown feature point":
            info["protocol"]["feature_point"] = "foo"
        elif kind == "not finite":
            tensors["weight"][0, 0] = np.nan
        else:
            del tensors["bias"]
        save_file(tensors, path, metadata={METADATA: json.dumps(info)})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "is damaged or not a safetensors file"),
        ("empty", "is damaged or not a safetensors file"),
        ("pickle", "is damaged or not a safetensors file"),
        ("without a head", "without a head"),
        ("newer", "version 99, newer than 1; update probe"),
        ("other classes", "do not fit 2 classes"),
        ("no protocol", "protocol is missing"),
        ("not finite", "a weight is not finite"),
        ("infinite bias", "a weight is not finite"),
        ("no classes", "are not two or more ascending integers"),
        ("unsorted labels", "are not two or more ascending integers"),
        ("unknown mode", "mode 'banana'"),
        ("unknown feature point", "unknown feature_point 'foo'"),
        ("no bias", "bias"),
    ],
)
def test_a_damaged_head_is_refused(head, tmp_path, kind, message):
    path = tmp_path / "head.safetensors"
    path.write_bytes(head.to_bytes())
    _damage(kind, path)
    with pytest.raises(HeadError, match=message):
        load_head(path)
    assert main(["predict", str(path), "x.png"]) == 1


def test_a_missing_file_is_named(head, tmp_path, capsys):
    assert main(["predict", str(tmp_path / "none"), "x.png"]) == 2
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "head.safetensors").write_bytes(head.to_bytes())
    assert main(["predict", str(tmp_path / "head.safetensors"), str(tmp_path / "none.png")]) == 2
    assert "none.png does not exist" in capsys.readouterr().err
    Image.new("L", (8, 8)).save(tmp_path / "here.png")
    paths = [str(tmp_path / name) for name in ("none.png", "here.png", "n" * 300)]
    assert main(["predict", str(tmp_path / "head.safetensors"), *paths, "--device", "cpu"]) == 1
    out = capsys.readouterr()
    assert f"no prediction for {paths[0]}, which does not exist\n" in out.err
    assert "which cannot be read\n" in out.err  # the name is too long
    assert len(out.out.splitlines()) == 3
    assert main(["predict", str(tmp_path), "x.png"]) == 1  # a folder is there, but is not a head
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "none")])
    assert "name images or folders" in capsys.readouterr().err
