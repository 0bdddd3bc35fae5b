"""Things that the runs of one process share: a dataset, digests of weights, encoders, extracted features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from probe.datasets.digests import DigestedDataset, compute_digests
from probe.datasets.opening import open_dataset
from probe.errors import CheckpointError
from probe.models.encoder import ImageEncoder
from probe.models.loading import identify, load_encoder
from probe.settings import DEFAULT_SETTINGS, Settings
from probe.specs import DatasetSpec, ModelSpec, RunSpec

if TYPE_CHECKING:
    from probe.features.extraction import Extraction

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
    """The encoder of a run, loaded when the first image is encoded: cached features need only its weights' digest.

    Args:
        spec: the run; its protocol and solver do not matter.
        weights: digest of the weights, see `models.loading.identify`.
        session: loads it.
        loaded: the encoder while it is in use.
    """

    spec: RunSpec
    weights: str
    session: Session = field(repr=False)
    loaded: ImageEncoder | None = None

    def load(self) -> ImageEncoder:
        """Return the loaded encoder.

        Raises:
            CheckpointError, DownloadError, DeviceError, ExtraMissingError: it cannot be loaded.
        """
        if self.loaded is None:
            self.loaded = self.session.load_encoder(self.spec)
        return self.loaded


@dataclass
class Session:
    """Datasets and encoders that one process opens once for many runs.

    Args:
        settings: folders and policies.
        keeps_encoders: keep the encoders of the model loaded last, for a process that is given one task after another.
        dataset: the dataset opened last.
        weights: digests of weights, by model.
        encoders: the encoders kept, see `keeps_encoders`.
        extracted: features that `extraction.prepare` extracted or found in the cache.
    """

    settings: Settings = DEFAULT_SETTINGS
    keeps_encoders: bool = False
    dataset: DigestedDataset | None = None
    weights: dict[ModelSpec, str] = field(default_factory=dict)
    encoders: dict[EncoderKey, ImageEncoder] = field(default_factory=dict)
    extracted: dict[FeaturesKey, Extraction] = field(default_factory=dict)

    def open_dataset(self, spec: DatasetSpec) -> DigestedDataset:
        """Open a dataset and hash its ids and labels, unless it is the one that is open.

        Raises:
            DatasetError, ExtraMissingError: as `datasets.opening.open_dataset`.
        """
        if self.dataset is None or self.dataset.opened.spec != spec:
            self.dataset = None
            opened = open_dataset(
                spec,
                data_dir=self.settings.data_dir,
                offline=self.settings.offline,
                allow_partial=self.settings.allow_partial,
                skip_corrupt=self.settings.skip_corrupt > 0,
            )
            self.dataset = compute_digests(opened)
        return self.dataset

    def find_encoder(self, spec: RunSpec) -> LazyEncoder:
        """Identify the encoder of a run by its weights, which are fetched if they are not here; nothing is loaded.

        Raises:
            CheckpointError, DownloadError, ChecksumError: the weights cannot be had.
        """
        if spec.model not in self.weights:
            settings = self.settings
            self.weights[spec.model] = identify(spec.model, weights_dir=settings.weights_dir, offline=settings.offline)
        return LazyEncoder(spec, self.weights[spec.model], self)

    def load_encoder(self, spec: RunSpec) -> ImageEncoder:
        """Load the encoder of a run, or return the one in memory."""
        key = encoder_key(spec)
        if key in self.encoders:
            return self.encoders[key]
        for other in [other for other in self.encoders if other[0] != spec.model]:
            del self.encoders[other]  # the next encoder needs its memory
        encoder = self._load(spec)
        if self.keeps_encoders:
            self.encoders[key] = encoder
        return encoder

    def _load(self, spec: RunSpec) -> ImageEncoder:
        with warnings.catch_warnings():
            # The run fails below, with the same words: no rebuilt model stands in a JIT table.
            warnings.filterwarnings("ignore", message=".* is not a TorchScript archive", category=UserWarning)
            encoder = load_encoder(
                spec.model,
                jit=spec.jit,
                device=spec.device,
                precision=spec.precision,
                weights_dir=self.settings.weights_dir,
                offline=self.settings.offline,
                compiled=spec.compiled,
            )
        if encoder.execution.jit != spec.jit:
            raise CheckpointError(f"{spec.model.name} is no TorchScript archive and has no JIT mode; use --jit off")
        return encoder
