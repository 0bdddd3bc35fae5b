"""Records with made-up numbers."""

from dataclasses import replace

import numpy as np

from probe.records.record import FAILED, RunRecord
from probe.stats.outcomes import make_outcomes


def make_record(dataset="digits", model="tiny", *, jit=False, protocol="readme", score=0.5, converged=True, **changes):
    """A record as the runner writes it, with made-up numbers."""
    record = RunRecord(
        status="done",
        spec={
            "dataset": {"name": dataset, "form": "embedded", "metric": "accuracy"},
            "model": {"name": model, "form": "url"},
            "protocol": {"name": protocol, "feature_point": "projected"},
            "jit": jit,
            "precision": "fp32",
        },
        created="2026-01-01T00:00:00+00:00",
        encoder={"weights_sha256": "ab" * 32},
        splits={},
        features={},
        result={
            "score": score,
            "C": 0.316,
            "n_iter": 12,
            "converged": converged,
            "gradient_ratio": 1e-5,
            "num_train": 100,
            "num_test": 50,
        },
        parity=None,
        seconds={},
        environment={},
    )
    return replace(record, **changes)


def make_failure(message="no images", **arguments):
    return make_record(**arguments, status=FAILED, result=None, error={"type": "DatasetError", "message": message})


NUM_TEST = 400


def scored_record(model, num_wrong, *, dataset="digits", **changes):
    """A record that is wrong on the first so many of 400 test images."""
    y = np.zeros(NUM_TEST, np.int64)
    scores = np.where((np.arange(NUM_TEST) < num_wrong)[:, None], [0.0, 1.0], [1.0, 0.0])
    record = make_record(dataset, model, score=1 - num_wrong / NUM_TEST, **changes)
    record.result.update(num_test=NUM_TEST, outcomes=[make_outcomes("accuracy", y, scores).pack()], same_images=True)
    return record


def page_record(dataset, model, num_wrong, *, protocol="readme", **changes):
    """Of 400 test images, with all that the page draws: an interval, cost, machine, and a sweep of the paper's."""
    record = scored_record(model, num_wrong, dataset=dataset, protocol=protocol, **changes)
    score = record.result["score"]
    record.result["interval"] = {"low": score - 0.02, "high": score + 0.01}
    record.spec["model"]["profile"] = {"flops": 1e9 * (1 + len(model))}
    record.environment["packages"] = {"torch": "2.15.0"}
    if protocol == "clip-paper":
        record.result["C"] = 1.0
        record.result["sweep"] = [{"C": C, "score": value} for C, value in ((0.1, 0.5), (1.0, 0.9), (10.0, 0.8))]
    return record


PARITY = {"max_abs_difference": {"projected": 3e-7}, "predictions_flipped": 1, "p_value": 0.5}


RECORDS = [
    page_record("cifar10", "ViT-B/32", 40, protocol="clip-paper"),  # of which the paper says 95.1
    page_record("cifar10", "ViT-B/32", 40),
    page_record("digits", "ViT-B/32", 40),
    make_failure(dataset="digits", model="RN50"),
    page_record("digits", "tiny", 20),
    make_record("cifar10", "tiny", converged=False),
    page_record("digits", "tiny", 21, jit=True, parity=PARITY),
]
