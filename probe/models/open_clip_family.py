"""Models of open_clip, as a family of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probe.errors import DownloadError
from probe.fetch import file_sha256
from probe.models import OPEN_CLIP, open_clip, open_clip_names, open_clip_towers, open_clip_weights
from probe.models.devices import META, Execution
from probe.models.encoder import ImageEncoder
from probe.models.families import Family
from probe.models.profile import profile_model
from probe.models.sizes import ModelSizes, measure_encoder
from probe.specs import ModelSpec


class OpenClipFamily(Family):
    """Family of the models that open_clip builds."""

    def find_spec(self, source: str) -> ModelSpec:
        """Return the specification of `ARCH/TAG`, `ARCH/PATH`, `local-dir:PATH` or `hf-hub:ORG/NAME`."""
        source = str(open_clip_names.parse(source))
        return ModelSpec(f"open_clip:{source}", form="open_clip", source=source)

    def list_names(self) -> Mapping[str, bool]:
        """Return the names of all models with a tag; True if the weights are here."""
        is_here = open_clip_weights.is_zoo_model_here
        return {name: is_here(name.removeprefix(OPEN_CLIP)) for name in open_clip_names.names()}

    def is_here(self, spec: ModelSpec) -> bool:
        """Return True if the model needs no download."""
        return open_clip_weights.is_zoo_model_here(spec.source)

    def identify_weights(self, spec: ModelSpec, *, offline: bool) -> str:
        """Return a digest of the weights and the settings."""
        return open_clip_weights.identify_zoo_weights(spec.source, offline=offline)

    def load_tower(self, spec: ModelSpec, execution: Execution, *, offline: bool) -> ImageEncoder:
        """Load the image tower."""
        loaded = open_clip.load_model(spec.source, execution, offline=offline)
        return open_clip_towers.zoo_encoder(spec.name, loaded, execution)

    def describe_weights(self, spec: ModelSpec, *, is_here: bool) -> dict[str, Any]:
        """Return sizes and cost, and digest and licence of weights on this machine."""
        facts: dict[str, Any] = {}
        if is_here:
            path, facts["license"] = open_clip_weights.fetch_zoo_weights(
                open_clip_names.parse(spec.source), offline=True
            )
            facts["sha256"] = file_sha256(path)
        sizes = self.measure_sizes(spec)
        return facts if sizes is None else facts | sizes.describe()

    def measure_sizes(self, spec: ModelSpec) -> ModelSizes | None:
        """Return the sizes; None if the configuration of a text tower of Hugging Face is not on this machine."""
        try:
            loaded = open_clip.sketch(spec.source)
        except DownloadError:
            return None
        profile = profile_model(loaded.model, loaded.preprocess.shape)  # before the tower is split
        encoder = open_clip_towers.zoo_encoder(spec.name, loaded, META)
        return measure_encoder(encoder, loaded.model, profile)
