"""Keys of the feature cache: everything that changes the bytes of the features of one subset."""

from __future__ import annotations

from probe.datasets.digests import DigestedDataset
from probe.environment import library_versions
from probe.features.encode import check_batch_size
from probe.features.session import LazyEncoder
from probe.features.store import EntrySpec
from probe.models.devices import hardware
from probe.models.preprocess import VERSION as PREPROCESS_VERSION
from probe.models.preprocess import libjpeg_version
from probe.specs import RunSpec, Source

EXTRACTION_VERSION = 1  # raised with every change of the suite that changes the bytes of features
NOT_READING = ("groups", "ignore")  # options of sources that choose images and do not change how one is read


def cache_entries(encoder: LazyEncoder, dataset: DigestedDataset) -> dict[str, EntrySpec]:
    """Return the cache entry of each subset that some split uses."""
    spec, source = encoder.spec, dataset.opened.source
    around = {
        "weights": encoder.weights,
        "mode": spec.mode,
        "precision": spec.precision,
        "device": spec.device.partition(":")[0],
        "hardware": hardware(spec.device),
        **_versions(spec, source),
    }
    keys = {}
    for subset, used in dataset.used.items():
        batch_size = min(check_batch_size(spec.batch_size), len(used.images))
        reading = {name: value for name, value in source.arguments(subset).items() if name not in NOT_READING}
        key = {
            **around,
            "batch_size": batch_size,
            "images": used.sha256,
            "content": used.fingerprint,
            "reading": {"form": source.form, **reading},
        }
        names = (spec.dataset.name, subset, spec.model.name, spec.mode, spec.precision)
        keys[subset] = EntrySpec(*names, key, len(used.images), batch_size)
    return keys


def _versions(spec: RunSpec, source: Source) -> dict[str, str | int | None]:
    media = str(dict(source.options).get("media", ""))
    return {
        "preprocess_version": PREPROCESS_VERSION,
        "extraction_version": EXTRACTION_VERSION,
        "libjpeg": libjpeg_version(),
        **library_versions("features", spec.model.form, source.form, media),
    }
