"""Contents of a record for an experiment tracker. They are the same for all trackers, and need no tracker's library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeGuard

from probe.leaderboard.frames import parse_time, record_values
from probe.records.record import record_path
from probe.records.schema import DoneRecord, RunRecord
from probe.specs import Protocol, digest, slug

UNUSED = ("name", *Protocol.DESCRIPTIVE)  # fields of a protocol


@dataclass(frozen=True)
class TrackedRun:
    """Contents of a record for a tracker.

    Args:
        id: 16 hex digits, from the path of the record and the time of its run. A repeated run has a different id.
        name: path of the record below the folder `records`, without its ending.
        config: texts, versions and rules of the run.
        metrics: numbers of the run. Scores are fractions.
        tags: dataset, model, mode and protocol.
        has_failed: True if the run has no score.
        started: time of the start of the run, in seconds since 1970.
        ended: time of its end.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    has_failed: bool
    started: float
    ended: float


def describe_run(record: RunRecord) -> TrackedRun:
    """Return the contents of a record for a tracker.

    Columns of `results_frame` keep their names. Numbers are metrics, and texts, claims and versions are in the
    configuration. The configuration also has all fields of the protocol, as `protocol_FIELD`. A further test set has
    metrics such as `imagenet-v2/score`, and `imagenet-v2/own_classes/score` among the classes that it shows.
    """
    path = record_path(record, Path()).as_posix()
    values = {name: value for name, value in record_values(record, path).items() if value not in (None, "")}
    metrics = {name: value for name, value in values.items() if _is_metric(value, name)}
    config = {name: value for name, value in values.items() if name not in metrics}
    config |= {"batch_size": record.spec.batch_size, "schema_version": record.schema_version}
    rules = asdict(record.spec.protocol)
    config |= {f"protocol_{name}": value for name, value in rules.items() if name not in UNUSED}
    ended = parse_time(record.created)
    return TrackedRun(
        id=digest([path, record.created])[:16],
        name=path.removeprefix("records/").removesuffix(".json"),
        config={name: list(value) if isinstance(value, tuple) else value for name, value in config.items()},
        metrics=metrics | _metrics_of_tests(record),
        tags={name: getattr(record, name) for name in ("dataset", "model", "mode", "protocol")},
        has_failed=record.error is not None,
        started=(ended - timedelta(seconds=sum(record.seconds.values()))).timestamp(),
        ended=ended.timestamp(),
    )


def _is_metric(value: object, name: str) -> TypeGuard[float]:
    """Return True for a measured number. A version is not measured."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not name.endswith("_version")


def _metrics_of_tests(record: RunRecord) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for test in record.tests if isinstance(record, DoneRecord) else ():
        for ending, found in (("", test.all_classes), ("/own_classes", test.own_classes)):
            if found is not None:
                place = f"{slug(test.name, is_path=':' in test.name)}{ending}"
                values = {"score": found.score, "low": found.interval.low, "high": found.interval.high}
                metrics |= {f"{place}/{name}": value for name, value in values.items()}
    return metrics
