import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from make.clips import SMALL_RESNET, SMALL_VIT, random_clip
from sklearn.metrics.pairwise import cosine_similarity

import probe
from probe.cli.main import main
from probe.comparison import ModeDifference, difference, find_reasons
from probe.errors import CheckpointError, DeviceError, ProtocolError
from probe.models.openai import save_archive
from probe.stats.paired import PairedTest


def test_zero_shot_is_compared_by_runs_instead():
    with pytest.raises(ProtocolError, match="compare its modes with `probe run --jit both`"):
        probe.parity("tiny", protocol="zero-shot")


def test_differences_equal_numpys_and_scikit_learns():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20, 8)).astype(np.float32)
    b = a + rng.normal(scale=0.1, size=a.shape).astype(np.float32)
    found = difference(a, b)
    apart = np.abs(a.astype(np.float64) - b)
    assert (found.max_abs, found.mean_abs) == (apart.max(), apart.mean())
    assert found.min_cosine == pytest.approx(np.diag(cosine_similarity(a, b)).min(), abs=1e-6)


def test_equal_features_have_a_cosine_of_one():
    """This includes zeros, which have no direction. Zeros and other features are not parallel."""
    a = np.array([[0.1, 0.7, 0.3], [0, 0, 0]], np.float32)
    assert difference(a, a).min_cosine == 1
    assert difference(a, a[::-1]).min_cosine == 0


@pytest.mark.slow
def test_tiny_differs_by_rounding_alone_in_both_modes():
    """The encoder uses a memory layout for its device, which changes rounding errors.

    Without the encoder, the features of both modes are identical, see `test_openai.py`.
    """
    found = probe.parity("tiny", device="cpu")
    assert found.verdict == "within tolerance"
    assert max(d.max_abs for d in found.features.values()) < 1e-5
    assert min(d.min_cosine for d in found.features.values()) > 1 - 1e-9
    assert max(found.softmax) == 0
    assert (found.predictions_flipped, found.num_images, found.num_test) == (0, 1797, 359)
    assert set(found.features) == {"projected", "pre_projection"}


@pytest.mark.slow
def test_an_archive_whose_code_does_not_match_its_weights_is_detected(tmp_path, capsys):
    """The archive was traced with GELU, and the eager model is rebuilt with QuickGELU.

    The features differ, even if a small logit scale makes the softmax agree. The command exists for such archives.
    """
    model = random_clip(replace(SMALL_VIT, activation="gelu"))
    for logit_scale, softmax_agrees in ((0.0, True), (math.log(300), False)):
        model.logit_scale.data.fill_(logit_scale)
        path = tmp_path / f"{softmax_agrees}.pt"
        save_archive(model, path)
        found = probe.parity(path, device="cpu")
        assert found.features["projected"].max_abs > 1e-3
        assert found.features["projected"].min_cosine < 1
        assert found.verdict == "outside tolerance"
        assert any("softmax" in reason for reason in found.reasons) != softmax_agrees
        assert any(reason.startswith("projected features of an image have a cosine") for reason in found.reasons)
        assert main(["parity", "--model", str(path), "--device", "cpu"]) == 1
        assert capsys.readouterr().out.endswith("verdict: outside tolerance\n")


@pytest.mark.slow
def test_flipped_predictions_are_outside_tolerance_even_if_the_softmax_agrees(tmp_path):
    """Features of a random narrow ResNet in bfloat16 differ slightly, but classes differ by even less."""
    save_archive(random_clip(replace(SMALL_RESNET, vision_width=16)), tmp_path / "narrow.pt")
    found = probe.parity(tmp_path / "narrow.pt", device="cpu", precision="bf16")
    assert max(found.softmax) < 1e-3
    assert found.predictions_flipped > 0.05 * found.num_test
    assert found.verdict == "outside tolerance"
    assert any("predictions flip, more than 1%" in reason for reason in found.reasons)


SAME = PairedTest(0.0, 1.0, "mcnemar", 0, 0)
AGREEING = {
    "softmax_agrees": True,
    "features": {"projected": ModeDifference(1e-6, 1e-7, 1.0)},
    "precision": "fp32",
    "flips": (1, 50),
    "test": SAME,
    "converged": True,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"flips": (2, 200), "converged": False}, []),
        ({"softmax_agrees": False}, ["the softmax of the logits differs"]),
        (
            {"features": {"projected": ModeDifference(1.0, 0.1, 0.999)}},
            ["projected features of an image have a cosine"],
        ),
        ({"features": {"projected": ModeDifference(1.0, 0.1, 0.999)}, "precision": "bf16"}, []),
        ({"flips": (43, 359)}, ["43 of 359 predictions flip"]),
        ({"flips": (43, 359), "converged": False}, ["43 of 359 predictions flip", "the fit of the probe did not"]),
        ({"test": replace(SAME, p_value=0.01)}, ["the scores differ significantly, p = 0.01 by mcnemar"]),
    ],
    ids=str,
)
def test_each_disagreement_is_a_reason(change, said):
    reasons = find_reasons(**AGREEING | change)
    assert len(reasons) == len(said)
    for reason, start in zip(reasons, said, strict=True):
        assert reason.startswith(start)


@pytest.mark.slow
def test_cached_features_are_not_extracted_again(monkeypatch):
    cache = os.environ["PROBE_CACHE_DIR"]
    options = ["parity", "--device", "cpu", "--cache-dir", cache]
    assert main(options) == 0
    assert list(Path(cache, "digits").iterdir())
    monkeypatch.setattr("probe.features.passes.Pass", None)  # what extracts
    assert main(options) == 0


def test_a_model_without_jit_mode_is_refused(tmp_path):
    torch.save(random_clip(SMALL_VIT).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="has no JIT mode; give an archive or random:NAME"):
        probe.parity(tmp_path / "weights.pt", device="cpu")
    with pytest.raises(CheckpointError, match="has no JIT mode"):
        probe.parity("open_clip:ViT-B-32/openai", device="cpu")
    with pytest.raises(DeviceError, match="not available on this machine"):
        probe.parity("tiny", device="cuda:77")


@pytest.mark.slow
def test_the_command_prints_a_verdict(capsys):
    assert main(["parity", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "flipped predictions: 0 of 359 (readme)" in out
    assert out.endswith("verdict: within tolerance\n")


@pytest.mark.slow
def test_json_contains_the_whole_comparison(capsys):
    assert main(["parity", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["within_tolerance"]) == ("within tolerance", True)
    assert set(found["features"]["projected"]) == {"max_abs", "mean_abs", "min_cosine"}
    assert 0 < found["features"]["projected"]["max_abs"] < 1e-5
