"""Zero-shot scores by hand, and whole zero-shot runs, also of models and prompts that cannot be used."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from make.text_towers import write_zoo_folder
from sklearn.metrics import precision_recall_curve, roc_auc_score

import probe
from probe import runner
from probe.datasets import get_dataset
from probe.errors import CheckpointError, PromptsError, ProtocolError
from probe.features.arrays import Features
from probe.features.text import Classifier
from probe.grid import plan
from probe.models.loading import load_clip
from probe.probes.zero_shot import largest_logit_difference, score_zero_shot, zero_shot_logits
from probe.records.record import read_records
from probe.records.schema import DoneRecord, FailedRecord
from probe.runner import run_grid
from probe.settings import Settings
from probe.specs import NO_SOLVER

DIGITS = tuple("0123456789")


def _classifier(weights, *, scale=100.0, bias=0.0):
    return Classifier(np.asarray(weights, dtype=np.float32), scale, bias, None, 0.0)


def _features(x, y):
    return Features(np.asarray(x, dtype=np.float32), np.asarray(y), None)


@pytest.fixture
def random():
    """Return random features of 40 images, and a classifier of 3 classes."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 8))
    classifier = _classifier(weights / np.linalg.norm(weights, axis=1, keepdims=True))
    return rng.standard_normal((40, 8)).astype(np.float32), classifier


def test_a_logit_is_the_scaled_cosine_plus_the_bias():
    """The length of an image feature does not count, and an image without direction has the bias alone."""
    logits = zero_shot_logits(np.float32([[3, 0], [0, 5], [1, 1], [0, 0]]), _classifier([[1, 0], [0, 1]], bias=-2.0))
    root = 100 * 0.5**0.5
    np.testing.assert_allclose(logits, [[98, -2], [-2, 98], [root - 2, root - 2], [-2, -2]], atol=1e-6)


def test_the_accuracy_is_that_of_the_nearest_text(random):
    x, classifier = random
    y = np.arange(40) % 3
    result = score_zero_shot([{"test": _features(x, y)}], classifier)
    nearest = (x / np.linalg.norm(x, axis=1, keepdims=True) @ classifier.weights.T).argmax(axis=1)
    assert result.score == (nearest == y).mean()
    assert np.array_equal(result.predictions, nearest)
    assert result.interval.low < result.score < result.interval.high
    assert (result.C, result.num_train, result.solver, len(result.outcomes[0])) == (None, 0, NO_SOLVER, 40)


def test_two_prompts_rank_images_by_the_difference_of_their_logits(random):
    x, classifier = random
    y = np.arange(40) % 2
    two = replace(classifier, weights=classifier.weights[:2])
    logits = zero_shot_logits(x, two)
    result = score_zero_shot([{"test": _features(x, y)}], two, metric="roc_auc")
    assert result.score == pytest.approx(roc_auc_score(y, logits[:, 1] - logits[:, 0]), abs=1e-12)


def test_several_labels_are_ranked_class_by_class(random):
    x, classifier = random
    y = np.random.default_rng(1).integers(0, 2, (40, 3))
    result = score_zero_shot([{"test": _features(x, y)}], classifier, metric="voc2007_11pt_map")
    logits = zero_shot_logits(x, classifier)
    best = []  # precision at each recall from 0 to 1, the best at that recall or more
    for label in range(3):
        precision, recall, _ = precision_recall_curve(y[:, label], logits[:, label])
        best += [precision[:-1][recall[:-1] >= step / 10 - 1e-9].max() for step in range(11)]
    assert result.score == pytest.approx(np.mean(best), abs=1e-12)


def test_folds_are_averaged(random):
    x, classifier = random
    y = np.arange(40) % 3
    halves = [{"test": _features(x[rows], y[rows])} for rows in (slice(20), slice(20, None))]
    whole = score_zero_shot([{"test": _features(x, y)}], classifier)
    result = score_zero_shot(halves, classifier)
    assert result.score == pytest.approx(whole.score, abs=1e-12)
    assert len(result.folds) == 2


def test_a_metric_that_does_not_suit_the_labels_is_named(random):
    x, classifier = random
    with pytest.raises(ProtocolError, match="roc_auc"):
        score_zero_shot([{"test": _features(x, np.arange(40) % 3)}], classifier, metric="roc_auc")


def _run(dataset, tmp_path, **kwargs):
    return probe.run(dataset, protocol="zero-shot", device="cpu", results_dir=tmp_path / "results", **kwargs)


@pytest.fixture
def colours(image_folder):
    return f"folder:{image_folder({'red': 6, 'green': 6, 'blue': 6})}"


def test_a_folder_of_images_runs_and_is_skipped_the_second_time(colours, tmp_path, monkeypatch):
    """The names of the classes are the names of their folders. The record names the prompts."""
    record = _run(colours, tmp_path, model="tiny")
    assert record.prompts.templates == ("a photo of a {}.",)
    assert record.prompts.class_names_from == "the files of the dataset"
    assert record.prompts.logit_scale == pytest.approx(load_clip("tiny", "cpu")[0].logit_scale.exp().item())
    assert (record.result.C, record.result.k, record.result.num_train) == (None, None, 0)
    assert record.seconds["text"] > 0
    monkeypatch.setattr(runner, "run_one", None)  # would raise if it were called
    assert _run(colours, tmp_path, model="tiny") == record
    assert read_records(tmp_path / "results") == [record]


def test_other_prompts_are_another_run(colours, tmp_path):
    spec = replace(get_dataset(colours), templates=("a {}",))
    first, second = _run(colours, tmp_path, model="tiny"), _run(spec, tmp_path, model="tiny")
    assert first.prompts.templates != second.prompts.templates
    assert read_records(tmp_path / "results") == [second]


def test_the_record_of_jit_mode_has_the_largest_difference_of_a_logit(colours, tmp_path):
    """fp32 on the CPU: the modes differ by rounding, at most 1e-4 of logits of up to 40."""
    specs = plan([colours], ["tiny"], protocols=["zero-shot"], jit_modes=[False, True], device="cpu")
    eager, jit = run_grid(specs, settings=Settings(results_dir=tmp_path / "results"))
    assert eager.parity is None
    assert 0 <= jit.parity.max_abs_difference["logits"] < 1e-4
    assert set(jit.parity.max_abs_difference) == {"projected", "pre_projection", "logits"}
    assert read_records(tmp_path / "results") == [eager, jit]


def test_the_largest_difference_of_a_logit_is_over_all_folds_and_blocks(random, monkeypatch):
    x, classifier = random
    y = np.arange(40) % 3
    nearby = replace(classifier, weights=classifier.weights * np.float32(1.01))
    runs = [[{"test": _features(x[rows], y[rows])} for rows in (slice(10), slice(10, 40))] for _ in range(2)]
    expected = np.abs(zero_shot_logits(x, classifier) - zero_shot_logits(x, nearby)).max()
    monkeypatch.setattr("probe.probes.zero_shot.ROWS", 7)
    assert largest_logit_difference(runs, (classifier, nearby)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_digits_are_read_by_tiny_in_both_modes(tmp_path):
    """Chance is 10 %, and the interval is far above it. Both modes predict the same class for every image."""
    named = replace(get_dataset("digits"), name="named-digits", class_names=DIGITS)
    eager, jit = (_run(named, tmp_path, model="tiny", jit=mode) for mode in (False, True))
    assert eager.result.interval.low > 0.5
    assert jit.result.score == eager.result.score
    assert jit.result.outcomes == eager.result.outcomes
    assert (eager.mode, jit.mode) == ("eager", "jit")
    assert _run(named, tmp_path, model="tiny") == eager


@pytest.mark.slow
@torch.inference_mode()
def test_the_logits_of_both_modes_are_near(tmp_path):
    """fp32 on the CPU: the modes differ by rounding, at most 1e-4 of logits of up to 40."""
    found = []
    for jit in (False, True):
        model, transform = load_clip("tiny", "cpu", jit=jit)
        images = torch.stack([transform(image) for image, _ in _pictures(get_dataset("digits"), 200)])
        texts = probe.tokenize([f"a photo of a {name}." for name in DIGITS], model="tiny")
        found.append(model(images, texts)[0])
    assert (found[0] - found[1]).abs().max() < 1e-4
    assert torch.equal(found[0].argmax(dim=1), found[1].argmax(dim=1))


def _pictures(spec, n):
    images = probe.open_split(spec.name, "test")
    return [images[i] for i in range(n)]


def _grid(dataset, models, tmp_path):
    specs = plan([dataset], models, protocols=["zero-shot"], device="cpu")
    return {r.spec.model.name: r for r in run_grid(specs, settings=Settings(results_dir=tmp_path / "results"))}


def test_a_model_without_a_vocabulary_fails_alone(colours, archive, tmp_path):
    """The archive has 100 tokens, and no file lists them. Its run fails, and the other model gets its score."""
    (failed, done) = _grid(colours, [archive, "tiny"], tmp_path).values()
    assert isinstance(done, DoneRecord)
    assert isinstance(failed, FailedRecord)
    assert failed.error.type == CheckpointError.__name__
    assert "has 100 token embeddings and no vocabulary next to its weights; zero-shot needs" in failed.error.message


def test_a_name_that_is_too_long_fails_for_the_model_with_the_short_context(image_folder, tmp_path):
    root = image_folder({"red": 6, "green": 6, "blue": 6})
    shutil.move(root / "red", root / ("red " * 30).strip())
    failed, done = _grid(f"folder:{root}", ["tiny", write_zoo_folder(tmp_path / "clip", "clip")], tmp_path).values()
    assert failed.error.type == "TextError"
    assert "is longer than the 32 tokens that tiny can read; give a shorter name" in failed.error.message
    assert isinstance(done, DoneRecord)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"class_names": ("red", "green")}, "class names; give one name for each class"),
        ({"class_names": ("red", " ", "blue")}, "class 1 has no name; give a name for each class"),
        ({"class_names": ("red", "gre\nen", "blue")}, "has a line break; write it on one line"),
        ({"class_names": ("red", "green", "Red")}, "the classes 0 ('red') and 2 ('Red') have the same name"),
        ({"templates": ("a photo",)}, "the template 'a photo' has 0 places for the class name; write {} once"),
    ],
)
def test_prompts_that_cannot_be_used_are_one_sentence(colours, tmp_path, prompts, message):
    with pytest.raises(PromptsError) as caught:
        _run(replace(get_dataset(colours), **prompts), tmp_path, model="tiny")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_classes_with_one_name_are_permitted_on_request(colours, tmp_path):
    spec = replace(get_dataset(colours), class_names=("red", "green", "Red"))
    record = _run(spec, tmp_path, model="tiny", allow_duplicate_names=True)
    assert record.prompts.duplicates == ("red",)


def test_files_that_number_their_classes_are_one_sentence(image_folder, tmp_path):
    root = image_folder({"0": 6, "1": 6})
    with pytest.raises(PromptsError, match=r"class_names"):
        _run(f"folder:{root}", tmp_path, model="tiny")
