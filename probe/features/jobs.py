"""Jobs of extraction: the cache entries that a dataset needs under one encoder, and those that exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from probe.features.store import Entry, EntrySpec
from probe.models.encoder import ImageEncoder
from probe.specs import DatasetSpec, ModelSpec, RunSpec

EncoderKey = tuple[ModelSpec, bool, str, str, bool]
FeaturesKey = tuple[DatasetSpec, EncoderKey, int]


def encoder_key(spec: RunSpec) -> EncoderKey:
    """Return the fields of a run that decide which encoder it loads."""
    return (spec.model, spec.jit, spec.device, spec.precision, spec.compiled)


def features_key(spec: RunSpec) -> FeaturesKey:
    """Return the fields of a run that decide which features it uses: all but the protocol and the solver."""
    return (spec.dataset, encoder_key(spec), spec.batch_size)


@dataclass(eq=False)
class LazyEncoder:
    """Encoder of a run, loaded when the first image is encoded: cached features need only the digest of its weights.

    Args:
        spec: the run; its protocol only decides which splits are needed.
        weights: digest of the weights, see `models.loading.identify`.
        load_encoder: return the loaded encoder of a run.
        loaded: the encoder while it is in use.
    """

    spec: RunSpec
    weights: str
    load_encoder: Callable[[RunSpec], ImageEncoder] = field(repr=False)
    loaded: ImageEncoder | None = None

    def load(self) -> ImageEncoder:
        """Return the loaded encoder.

        Raises:
            CheckpointError, DownloadError, DeviceError, ExtraMissingError: the encoder cannot be loaded.
        """
        if self.loaded is None:
            self.loaded = self.load_encoder(self.spec)
        return self.loaded


@dataclass(eq=False)
class Job:
    """Cache entries that a dataset needs under one encoder, and those that exist.

    Args:
        key: the fields of a run that decide which features it uses.
        encoder: the encoder, loaded if `missing` is not empty.
        wanted: specification of the cache entry of each subset.
        entries: the entries that exist.
        from_cache: True if all entries existed before.
        seconds: wall time so far.
    """

    key: FeaturesKey
    encoder: LazyEncoder
    wanted: Mapping[str, EntrySpec]
    entries: dict[str, Entry] = field(default_factory=dict)
    from_cache: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: {"load": 0.0, "extract": 0.0})

    @property
    def spec(self) -> RunSpec:
        """The run of the encoder; its protocol only decides which splits are needed."""
        return self.encoder.spec

    @property
    def missing(self) -> list[str]:
        """Subsets that have no entry yet."""
        return [subset for subset in self.wanted if subset not in self.entries]
