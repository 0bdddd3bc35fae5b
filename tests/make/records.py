"""Records with invented numbers."""

from dataclasses import replace

import numpy as np

from probe.probes.calibration import calibrate
from probe.records.packing import pack, pack_classes
from probe.records.schema import (
    ConventionRecord,
    DoneRecord,
    EncoderRecord,
    EnvironmentRecord,
    ErrorRecord,
    FailedRecord,
    FurtherTestRecord,
    IntervalRecord,
    NeighboursRecord,
    ParityRecord,
    PromptsRecord,
    ResultRecord,
    SplitRecord,
    SweepRecord,
)
from probe.specs import (
    KNN,
    LOGISTIC,
    NO_SOLVER,
    ZERO_SHOT,
    DatasetSpec,
    ModelSpec,
    Profile,
    Protocol,
    RunSpec,
    Source,
    Subset,
)
from probe.stats.outcomes import make_outcomes
from probe.stats.per_class import count_classes

GRIDS = {"clip-paper": (0.1, 1.0, 10.0)}  # other protocols have one C
NEIGHBOURS = {"knn": (10, 20), "knn-5": (5,)}
PROMPTS = PromptsRecord(("a photo of a {}.",), "the example of OpenAI's README", "the files of the dataset", "cd" * 32)


def make_protocol(name):
    if name == "zero-shot":
        return Protocol(name, "", "projected", normalize=True, method=ZERO_SHOT)
    if name in NEIGHBOURS:
        return Protocol(name, "", "projected", normalize=True, method=KNN, neighbours=NEIGHBOURS[name])
    shots = int(name.split("-")[2]) if name.startswith("few-shot-") else 0
    return Protocol(name, "", "projected", GRIDS.get(name, (0.316,)), shots=shots)


def make_spec(dataset="digits", model="tiny", *, jit=False, protocol="readme"):
    rules = make_protocol(protocol)
    return RunSpec(
        DatasetSpec(dataset, "", (Subset("all"),), (Source("embedded", "sklearn.datasets.load_digits"),)),
        ModelSpec(model, "url", "https://example.org/model.pt"),
        rules,
        jit=jit,
        device="cpu",
        precision="fp32",
        batch_size=64,
        solver="sklearn" if rules.method == LOGISTIC else NO_SOLVER,
        prompts="ef" * 32 if rules.method == ZERO_SHOT else "",
    )


def make_result(score=0.5, *, converged=True, C=0.316, **changes):
    result = ResultRecord(
        score=score, C=C, n_iter=12, converged=converged, gradient_ratio=1e-5, num_train=100, num_test=50
    )
    return replace(result, **changes)


def make_result_without_fit(score, protocol):
    """Return the result of zero-shot or k-NN, with a choice of k if the protocol has several."""
    tried = NEIGHBOURS.get(protocol, ())
    sweep = tuple(NeighboursRecord(k, score) for k in tried) if len(tried) > 1 else ()
    num_train = 100 if tried else 0
    return ResultRecord(
        score=score,
        C=None,
        n_iter=0,
        converged=True,
        num_test=50,
        num_train=num_train,
        solver=NO_SOLVER,
        k=tried[-1] if tried else None,
        k_sweep=sweep,
    )


def make_record(dataset="digits", model="tiny", *, jit=False, protocol="readme", score=0.5, converged=True, **changes):
    """Return a record in the form of the runner's, with invented numbers."""
    spec = make_spec(dataset, model, jit=jit, protocol=protocol)
    result = make_result(score, converged=converged, C=GRIDS.get(protocol, (0.316,))[-1])
    if spec.solver == NO_SOLVER:
        result = make_result_without_fit(score, protocol)
    record = DoneRecord(
        spec=spec,
        created="2026-01-01T00:00:00+00:00",
        encoder=EncoderRecord(weights_sha256="ab" * 32),
        splits={},
        features={},
        result=result,
        seconds={},
        environment=EnvironmentRecord(),
        prompts=PROMPTS if spec.protocol.method == ZERO_SHOT else None,
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


NUM_TEST = 400


def scored_record(model, num_wrong, *, dataset="digits", **changes):
    """Return a record that is wrong on the first `num_wrong` of 400 test images."""
    y = np.zeros(NUM_TEST, np.int64)
    scores = np.where((np.arange(NUM_TEST) < num_wrong)[:, None], [0.0, 1.0], [1.0, 0.0])
    record = make_record(dataset, model, score=1 - num_wrong / NUM_TEST, **changes)
    outcomes = (pack(make_outcomes("accuracy", y, scores)),)
    return replace(record, result=replace(record.result, num_test=NUM_TEST, outcomes=outcomes))


def precision_record(model, seed, **changes):
    """Return a record of 400 test images that is scored by average precision, with random scores of four classes."""
    rng = np.random.default_rng(0)  # all records have the same labels
    y = (rng.random((NUM_TEST, 4)) < 0.2).astype(np.int64)
    scores = y + np.random.default_rng(seed).standard_normal(y.shape)
    outcomes = make_outcomes("voc2007_11pt_map", y, scores)
    record = make_record("voc2007", model, score=outcomes.score(), **changes)
    record = changed(record, "spec.dataset.metric", outcomes.metric)
    return replace(record, result=replace(record.result, num_test=NUM_TEST, outcomes=(pack(outcomes),)))


def page_record(dataset, model, num_wrong, *, protocol="readme", **changes):
    """Return a record of 400 test images with all that the page draws: interval, cost, machine and a sweep over C."""
    record = scored_record(model, num_wrong, dataset=dataset, protocol=protocol, **changes)
    score = record.result.score
    record = changed(record, "result.interval", IntervalRecord(score - 0.02, score + 0.01))
    record = changed(record, "spec.model.profile", Profile(0, 0, flops=1_000_000_000 * (1 + len(model))))
    record = changed(record, "environment.packages", {"torch": "2.15.0"})
    if protocol == "clip-paper":
        points = ((0.1, 0.5), (1.0, 0.9), (10.0, 0.8))
        sweep = tuple(SweepRecord(C, value, n_iter=12, converged=C < 10, ended_early=C == 10) for C, value in points)
        record = changed(changed(record, "result.sweep", sweep), "result.C", 1.0)
    return record


def classified_record(dataset, model, *, names=("cat", "dog", "bird"), seed=0, **changes):
    """Return a record of 400 test images with outcomes, counts of classes, and calibration with a temperature."""
    rng = np.random.default_rng(seed)
    y = rng.integers(len(names), size=2 * NUM_TEST)
    logits = 2 * rng.standard_normal((2 * NUM_TEST, len(names)))
    logits[np.arange(2 * NUM_TEST), y] += 3
    calibration = calibrate(y[:NUM_TEST], logits[:NUM_TEST], val_y=y[NUM_TEST:], val_logits=logits[NUM_TEST:])
    y, logits = y[:NUM_TEST], logits[:NUM_TEST]
    outcomes = make_outcomes("accuracy", y, logits)
    record = make_record(dataset, model, score=outcomes.score(), **changes)
    classes = (pack_classes(count_classes(y, logits.argmax(axis=1), len(names))),)
    record = changed(record, "read.class_names", names)
    result = replace(
        record.result, num_test=NUM_TEST, outcomes=(pack(outcomes),), classes=classes, calibration=calibration
    )
    return replace(record, result=result)


FURTHER_TESTS = (
    FurtherTestRecord(
        "cifar10.1",
        all_classes=ConventionRecord(0.4, IntervalRecord(0.3, 0.5)),
        own_classes=ConventionRecord(0.6, IntervalRecord(0.5, 0.7)),
    ),
    FurtherTestRecord("broken", ErrorRecord("DatasetError", "no images")),
)


def make_further_test(name, score):
    """Return the scores on a further test set of 100 images, among all classes."""
    interval = IntervalRecord(score - 0.1, score + 0.1, "wilson")
    split = SplitRecord("0" * 64, 100)
    return FurtherTestRecord(
        name, split=split, metric="accuracy", num_classes=10, all_classes=ConventionRecord(score, interval)
    )


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
