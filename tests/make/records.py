"""Records with invented numbers."""

from dataclasses import replace

import numpy as np

from probe.decoder import decode
from probe.records.schema import (
    DoneRecord,
    EncoderRecord,
    EnvironmentRecord,
    ErrorRecord,
    FailedRecord,
    IntervalRecord,
    PackedOutcomes,
    ParityRecord,
    ResultRecord,
    SweepRecord,
)
from probe.specs import DatasetSpec, ModelSpec, Profile, Protocol, RunSpec, Source, Subset
from probe.stats.outcomes import make_outcomes

GRIDS = {"clip-paper": (0.1, 1.0, 10.0)}  # other protocols have one C


def make_spec(dataset="digits", model="tiny", *, jit=False, protocol="readme"):
    grid = GRIDS.get(protocol, (0.316,))
    return RunSpec(
        DatasetSpec(dataset, "", (Subset("all"),), (Source("embedded", "sklearn.datasets.load_digits"),)),
        ModelSpec(model, "url", "https://example.org/model.pt"),
        Protocol(protocol, "", "projected", grid, coarse_step=1, max_iter=1000, tol=1e-6, source=""),
        jit=jit,
        device="cpu",
        precision="fp32",
        batch_size=64,
        solver="sklearn",
    )


def make_result(score=0.5, *, converged=True, C=0.316, **changes):
    result = ResultRecord(
        score=score, C=C, n_iter=12, converged=converged, gradient_ratio=1e-5, num_train=100, num_test=50
    )
    return replace(result, **changes)


def make_record(dataset="digits", model="tiny", *, jit=False, protocol="readme", score=0.5, converged=True, **changes):
    """Return a record in the form of the runner's, with invented numbers."""
    record = DoneRecord(
        spec=make_spec(dataset, model, jit=jit, protocol=protocol),
        created="2026-01-01T00:00:00+00:00",
        encoder=EncoderRecord(weights_sha256="ab" * 32),
        splits={},
        features={},
        result=make_result(score, converged=converged, C=GRIDS.get(protocol, (0.316,))[-1]),
        seconds={},
        environment=EnvironmentRecord(),
    )
    return replace(record, **changes)


def make_failure(message="no images", **arguments):
    record = make_record(**arguments)
    names = ("spec", "created", "encoder", "splits", "features", "seconds", "environment")
    error = ErrorRecord("DatasetError", message)
    return FailedRecord(**{name: getattr(record, name) for name in names}, error=error)


def changed(value, path, new):
    """Return a copy of a record with a new value of one field, given by its path, such as `result.score`."""
    name, _, rest = path.partition(".")
    return replace(value, **{name: changed(getattr(value, name), rest, new) if rest else new})


def packed(outcomes):
    """Return outcomes of test images in the form of a record."""
    return decode(outcomes.pack(), PackedOutcomes)


NUM_TEST = 400


def scored_record(model, num_wrong, *, dataset="digits", **changes):
    """Return a record that is wrong on the first `num_wrong` of 400 test images."""
    y = np.zeros(NUM_TEST, np.int64)
    scores = np.where((np.arange(NUM_TEST) < num_wrong)[:, None], [0.0, 1.0], [1.0, 0.0])
    record = make_record(dataset, model, score=1 - num_wrong / NUM_TEST, **changes)
    outcomes = (packed(make_outcomes("accuracy", y, scores)),)
    return replace(record, result=replace(record.result, num_test=NUM_TEST, outcomes=outcomes))


def page_record(dataset, model, num_wrong, *, protocol="readme", **changes):
    """Return a record of 400 test images with all that the page draws: interval, cost, machine and a sweep over C."""
    record = scored_record(model, num_wrong, dataset=dataset, protocol=protocol, **changes)
    score = record.result.score
    record = changed(record, "result.interval", IntervalRecord(score - 0.02, score + 0.01))
    record = changed(record, "spec.model.profile", Profile(0, 0, flops=1_000_000_000 * (1 + len(model))))
    record = changed(record, "environment.packages", {"torch": "2.15.0"})
    if protocol == "clip-paper":
        points = ((0.1, 0.5), (1.0, 0.9), (10.0, 0.8))
        sweep = tuple(SweepRecord(C, value, n_iter=12, converged=True) for C, value in points)
        record = changed(changed(record, "result.sweep", sweep), "result.C", 1.0)
    return record


PARITY = ParityRecord({"projected": 3e-7}, 1, p_value=0.5)


RECORDS = [
    page_record("cifar10", "ViT-B/32", 40, protocol="clip-paper"),  # the paper has 95.1
    page_record("cifar10", "ViT-B/32", 40),
    page_record("digits", "ViT-B/32", 40),
    make_failure(dataset="digits", model="RN50"),
    page_record("digits", "tiny", 20),
    make_record("cifar10", "tiny", converged=False),
    page_record("digits", "tiny", 21, jit=True, parity=PARITY),
]
