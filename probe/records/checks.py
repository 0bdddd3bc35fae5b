"""Whether a record has what tables, leaderboard and page read of it, each of the right type.

A record is a file that anybody can edit; one that is found out on reading cannot keep the others from being shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from probe.errors import ResultsError

NUMBER, TEXT, MAPPING, LIST, NOTHING = (int, float), (str,), (dict,), (list,), (type(None),)
# By path in the record; `*` is every part of a mapping or list. What is not there is not looked at.
TYPES: dict[str, tuple[type, ...]] = {
    "status": TEXT,
    "created": TEXT,
    "spec": MAPPING,
    "spec.dataset": MAPPING,
    "spec.dataset.name": TEXT,
    "spec.dataset.metric": TEXT,
    "spec.dataset.title": TEXT,
    "spec.model": MAPPING,
    "spec.model.name": TEXT,
    "spec.model.form": TEXT,
    "spec.model.profile": (*MAPPING, *NOTHING),
    "spec.model.profile.flops": NUMBER,
    "spec.protocol": MAPPING,
    "spec.protocol.name": TEXT,
    "spec.protocol.feature_point": TEXT,
    "spec.protocol.grid": LIST,
    "spec.protocol.grid.*": NUMBER,
    "spec.jit": (bool,),
    "spec.precision": TEXT,
    "spec.solver": TEXT,
    "encoder": MAPPING,
    "encoder.weights_sha256": (*TEXT, *NOTHING),
    "splits": MAPPING,
    "splits.*": MAPPING,
    "splits.*.sha256": TEXT,
    "features": MAPPING,
    "features.*": MAPPING,
    "features.*.sha256": TEXT,
    "features.*.sample": MAPPING,
    "features.*.sample.*": LIST,
    "features.*.sample.*.*": NUMBER,
    "seconds": MAPPING,
    "seconds.*": NUMBER,
    "environment": MAPPING,
    "environment.packages": (*MAPPING, *NOTHING),
    "environment.torch_threads": (int, *NOTHING),
    "environment.blas_threads": (int, *NOTHING),
    "read": MAPPING,
    "read.partial": MAPPING,
    "read.skipped": LIST,
    "read.source": (*MAPPING, *NOTHING),
    "extraction": MAPPING,
    "extraction.parts": MAPPING,
    "extraction.parts.*": MAPPING,
    "extraction.parts.*.images": NUMBER,
    "extraction.parts.*.images_per_second": NUMBER,
    "error": (*MAPPING, *NOTHING),
    "error.message": TEXT,
    "error.type": TEXT,
    "parity": (*MAPPING, *NOTHING),
    "parity.max_abs_difference": MAPPING,
    "parity.max_abs_difference.*": NUMBER,
    "parity.predictions_flipped": NUMBER,
    "parity.p_value": (*NUMBER, *NOTHING),
    "result": (*MAPPING, *NOTHING),
    "result.score": NUMBER,
    "result.C": (*NUMBER, *NOTHING),
    "result.n_iter": NUMBER,
    "result.converged": (bool,),
    "result.choice_converged": (bool,),
    "result.label_values": LIST,
    "result.suboptimality": NUMBER,
    "result.same_images": (bool,),
    "result.num_train": NUMBER,
    "result.num_test": NUMBER,
    "result.gradient_ratio": (*NUMBER, *NOTHING),
    "result.interval": (*MAPPING, *NOTHING),
    "result.interval.low": NUMBER,
    "result.interval.high": NUMBER,
    "result.interval.method": TEXT,
    "result.outcomes": LIST,
    "result.outcomes.*": MAPPING,
    "result.sweep": LIST,
    "result.sweep.*": MAPPING,
    "result.sweep.*.C": NUMBER,
    "result.sweep.*.score": NUMBER,
    "result.draws": LIST,
    "result.draws.*": MAPPING,
    "result.draws.*.score": NUMBER,
    "result.folds": LIST,
    "result.folds.*": MAPPING,
    "result.folds.*.draws": LIST,
    "result.folds.*.draws.*": MAPPING,
    "result.folds.*.draws.*.score": NUMBER,
}
REQUIRED = {
    "": ("status", "created", "spec", "encoder", "splits", "features", "seconds", "environment"),
    "spec": ("dataset", "model", "protocol", "jit", "precision"),
    "spec.dataset": ("name", "metric"),
    "spec.model": ("name", "form"),
    "spec.protocol": ("name", "feature_point"),
    "splits.*": ("sha256",),
    "features.*": ("sha256",),
    "extraction.parts.*": ("images",),
    "parity": ("max_abs_difference", "predictions_flipped"),
    "error": ("type", "message"),
    "result": ("score", "C", "n_iter", "converged", "num_test"),
    "result.interval": ("low", "high"),
    "result.sweep.*": ("C", "score"),
    "result.draws.*": ("score",),
}
SLACK = 1e-9  # by which a mean of folds can differ when it is computed again
FRACTIONS = ("result.score", "result.interval.low", "result.interval.high")


def find_fault(fields: Mapping[str, Any]) -> str:
    """What is wrong with the fields of a record, in words; empty where nothing is."""
    fault = _walk(fields, "", "")
    if fault:
        return fault
    has_result, has_error = fields.get("result") is not None, fields.get("error") is not None
    if fields["schema_version"] < 1 or not _is_time(fields["created"]):
        return f"its schema is {fields['schema_version']}, its time {fields['created']!r}"
    if fields["status"] not in ("done", "failed"):
        return f"its status is {fields['status']!r}, not done or failed"
    if has_result != (fields["status"] == "done") or has_error == has_result:
        return "a record that is done has a result, one that failed an error, and neither has both"
    if has_result:
        result = fields["result"]
        if result["C"] is None and not (result.get("folds") or result.get("draws")):
            return "result.C is missing"
        if result["num_test"] < 1:
            return f"result.num_test is {result['num_test']}"
        around, grid = result.get("interval"), fields["spec"]["protocol"].get("grid")
        if around and not around["low"] - SLACK <= result["score"] <= around["high"] + SLACK:
            return f"its score {result['score']} lies outside of its interval"
        if grid and result["C"] is not None and not any(math.isclose(result["C"], C, rel_tol=SLACK) for C in grid):
            return f"its C, {result['C']}, is none that its protocol tries"
    return ""


def find_contradiction(result: Mapping[str, Any] | None, metric: str) -> str:
    """Whether a score is not that of the outcomes of test images beside it, in words; empty where all is well."""
    packed = (result or {}).get("outcomes")
    if result is None or not packed:
        return ""
    from probe.stats.outcomes import unpack  # NumPy, which a record without outcomes does without

    try:
        outcomes = [unpack(one) for one in packed]
        score = sum(one.score() for one in outcomes) / len(outcomes)
    except (ResultsError, ValueError, IndexError) as err:
        return f"its outcomes: {err}"
    if {one.metric for one in outcomes} != {metric}:
        return f"its outcomes are of {outcomes[0].metric}, its dataset is of {metric}"
    if len(outcomes[0]) != result["num_test"]:
        return f"it has outcomes of {len(outcomes[0])} test images, and says {result['num_test']}"
    draws_in_folds = any(fold.get("draws") for fold in result.get("folds") or ())  # of which it keeps the first alone
    if not draws_in_folds and abs(score - result["score"]) > SLACK:
        return f"its score is {result['score']:.6g}, that of its outcomes {score:.6g}"
    return ""


def _walk(value: Any, path: str, pattern: str) -> str:
    """The first fault below a place; `pattern` is its path with `*` for parts of open mappings and lists."""
    types = TYPES.get(pattern)
    if types is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
        return f"{path} is {_short(value)}"
    if pattern in FRACTIONS and not 0 <= value <= 1:
        return f"{path} is {value}, no fraction"
    if isinstance(value, Mapping):
        missing = [name for name in REQUIRED.get(pattern, ()) if name not in value]
        if missing:
            return f"{path}.{missing[0]} is missing".removeprefix(".")
        parts = value.items()
    elif isinstance(value, list) and f"{pattern}.*" in TYPES:
        parts = {str(i): part for i, part in enumerate(value)}.items()
    else:
        return ""
    for name, part in parts:
        inner = f"{pattern}.{name}".removeprefix(".")
        fault = _walk(part, f"{path}.{name}".removeprefix("."), inner if inner in TYPES else f"{pattern}.*")
        if fault:
            return fault
    return ""


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
