"""Linear-probe evaluation of CLIP models.

>>> import probe
>>> probe.get_dataset("digits").num_classes
10

The names below are imported when they are first used, so that `import probe` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.comparison import parity
    from probe.datasets import dataset_names, get_dataset
    from probe.datasets.opening import open_split
    from probe.errors import ProbeError
    from probe.features.encode import Features
    from probe.features.encode import extract as extract_features
    from probe.models import get_model, model_names
    from probe.models.loading import load_clip, load_encoder
    from probe.models.vocabulary import tokenize
    from probe.probes.fit import fit_probe
    from probe.probes.result import ProbeResult
    from probe.records.diff import diff
    from probe.records.record import read_records
    from probe.records.schema import RunRecord
    from probe.reproduction import reproduce
    from probe.runner import run
    from probe.specs import DatasetSpec, ModelSpec, Protocol, RunSpec

__all__ = [
    "DatasetSpec",
    "Features",
    "ModelSpec",
    "ProbeError",
    "ProbeResult",
    "Protocol",
    "RunRecord",
    "RunSpec",
    "dataset_names",
    "diff",
    "extract_features",
    "fit_probe",
    "get_dataset",
    "get_model",
    "load_clip",
    "load_encoder",
    "model_names",
    "open_split",
    "parity",
    "read_records",
    "reproduce",
    "run",
    "tokenize",
]

_HOMES = {
    "DatasetSpec": "probe.specs",
    "Features": "probe.features.encode",
    "ModelSpec": "probe.specs",
    "ProbeError": "probe.errors",
    "ProbeResult": "probe.probes.result",
    "Protocol": "probe.specs",
    "RunRecord": "probe.records.schema",
    "RunSpec": "probe.specs",
    "dataset_names": "probe.datasets",
    "diff": "probe.records.diff",
    "extract_features": "probe.features.encode:extract",
    "fit_probe": "probe.probes.fit",
    "get_dataset": "probe.datasets",
    "get_model": "probe.models",
    "load_clip": "probe.models.loading",
    "load_encoder": "probe.models.loading",
    "model_names": "probe.models",
    "open_split": "probe.datasets.opening",
    "parity": "probe.comparison",
    "read_records": "probe.records.record",
    "reproduce": "probe.reproduction",
    "run": "probe.runner",
    "tokenize": "probe.models.vocabulary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
