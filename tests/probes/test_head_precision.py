"""Saved heads are float32, unless this would change the outcome of a test image."""

import numpy as np
import pytest
from safetensors.numpy import load

from probe.features.arrays import Features
from probe.probes.fits import Weights
from probe.probes.head_files import load_head
from probe.probes.head_precision import round_weights
from probe.probes.heads import Head, HeadInfo
from probe.probes.protocols import get_protocol
from probe.probes.result import make_result

RULES = get_protocol("readme")
MEBIBYTE = 1 << 20
FITTED = {"C": 1.0, "num_train": 2, "solver": "fast"}


def _scored(weights, test, *, metric="accuracy"):
    """Return the result of a fit with these weights on test images."""
    logits = weights.logits(test.x)
    predictions = (logits > 0).astype(np.int64) if test.y.ndim == 2 else logits.argmax(axis=1)
    return make_result(metric, test.y, logits, **FITTED, predictions=predictions, heads=(weights,))


def _head(weights, names):
    info = HeadInfo("made", names, tuple(range(len(names))), False, None, "", None, "", "", RULES, "fast", 1.0)
    return Head(weights, info)


@pytest.mark.parametrize("gap", [1e-3, 1e-10])
@pytest.mark.parametrize("several", [False, True])
def test_weights_are_rounded_unless_a_prediction_would_change(tmp_path, gap, several):
    test = Features(np.array([[1, 1], [-1, 0]], np.float32), np.eye(2, dtype=np.int64) if several else np.array([1, 0]))
    # The first image has logits 0 and `gap`, which is 0 in float32 if it is small.
    weights = Weights(np.array([[1.0, -1.0], [1.0, -1.0 + gap]]), np.zeros(2))
    part = _scored(weights, test, metric="voc2007_11pt_map" if several else "accuracy")
    saved = round_weights(part, test, RULES)
    is_rounded = gap > 1e-6
    assert (saved is not weights) == is_rounded
    head = _head(saved, ("a", "b"))
    (tmp_path / "head").write_bytes(head.to_bytes())
    assert load(head.to_bytes())["weight"].dtype == (np.float32 if is_rounded else np.float64)
    read = load_head(tmp_path / "head")
    assert np.array_equal(read.weights.weight, saved.weight)
    logits = read.logits(test.x)
    assert np.array_equal((logits > 0) if several else logits.argmax(axis=1), part.predictions)


def test_weights_beyond_float32_are_not_rounded():
    test = Features(np.array([[1e-30], [-1e-30]], np.float32), np.array([1, 0]))
    weights = Weights(np.array([[0.0], [1e39]]), np.array([0.0, 0.0]))
    assert round_weights(_scored(weights, test), test, RULES) is weights
    assert load(_head(weights, ("a", "b")).to_bytes())["weight"].dtype == np.float64


def test_a_class_without_training_images_stays_unknown():
    test = Features(np.array([[1.0], [-1.0]], np.float32), np.array([1, 0]))
    weights = Weights(np.array([[0.0], [0.1], [0.0]]), np.array([0.0, 0.0, -np.inf]))
    saved = round_weights(_scored(weights, test), test, RULES)
    assert saved is not weights
    assert saved.bias.tolist() == [0, 0, -np.inf]


def test_a_head_for_imagenet_has_at_most_4_mib():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1000, 1024)).astype(np.float32).astype(np.float64)
    names = tuple(f"a class with the long name {i}" for i in range(1000))
    assert len(_head(Weights(weight, weight[:, 0]), names).to_bytes()) < 4 * MEBIBYTE
