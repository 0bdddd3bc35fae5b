"""Families of encoders that are not read from a CLIP checkpoint. Each family is a class in a module of its own.

The name of a model of a family starts with the family's form and a colon, such as `open_clip:ViT-B-32/openai`. The
modules of the families import heavy libraries, so a module is imported when the first model of its family is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from probe.errors import ExtraMissingError, UnknownNameError

if TYPE_CHECKING:
    from types import ModuleType

    from probe.models.devices import Execution
    from probe.models.encoder import ImageEncoder
    from probe.models.sizes import ModelSizes
    from probe.specs import ModelSpec

FAMILIES = {  # by form: module and class
    "open_clip": ("probe.models.open_clip_family", "OpenClipFamily"),
    "timm": ("probe.models.timm_family", "TimmFamily"),
    "transformers": ("probe.models.transformers_family", "TransformersFamily"),
    "module": ("probe.models.module_family", "ModuleFamily"),
}


class Family(ABC):
    """Family of encoders that one library, or the user's code, builds."""

    @abstractmethod
    def find_spec(self, source: str) -> ModelSpec:
        """Return the specification of a model; `source` is its name without the form and the colon.

        Raises:
            UnknownNameError, CheckpointError, ExtraMissingError: the message says what to do.
        """

    def find_random_spec(self, source: str) -> ModelSpec:
        """Return the specification of a model with random weights, without the seed; `source` as in `find_spec`.

        Raises:
            UnknownNameError: the family has no models with random weights, or no such model.
        """
        raise UnknownNameError(f"no random weights for {source!r}; give random:NAME with a name of the catalogue")

    def list_names(self) -> Mapping[str, bool]:
        """Return the names of all models with published weights that the library lists; True if the weights are here.

        Raises:
            ExtraMissingError: the library is not installed; the message names the extra.
        """
        return {}

    def measure_sizes(self, spec: ModelSpec) -> ModelSizes | None:  # noqa: ARG002 - families use it
        """Return the sizes and the cost of a model without reading weights; None if they are not known.

        Raises:
            CheckpointError, ExtraMissingError: the message says what to do.
        """
        return None

    @abstractmethod
    def is_here(self, spec: ModelSpec) -> bool:
        """Return True if the model needs no download."""

    @abstractmethod
    def identify_weights(self, spec: ModelSpec, *, offline: bool) -> str:
        """Return a digest of all that determines the features of a model, for the keys of cached features.

        Raises:
            CheckpointError, DownloadError, ChecksumError: the message says what to do.
        """

    @abstractmethod
    def load_tower(self, spec: ModelSpec, execution: Execution, *, offline: bool) -> ImageEncoder:
        """Load the image tower of a model in eager mode.

        Raises:
            CheckpointError, DownloadError, DeviceError, ExtraMissingError: the message says what to do.
        """

    @abstractmethod
    def describe_weights(self, spec: ModelSpec, *, is_here: bool) -> dict[str, Any]:
        """Return the known facts about a model, with keys as in `description.model_facts`; nothing is downloaded.

        Raises:
            CheckpointError, ExtraMissingError: the message says what to do.
        """


def find_family(form: str) -> Family | None:
    """Return the family with a form, or None if the form is one of CLIP checkpoints."""
    if form not in FAMILIES:
        return None
    module, name = FAMILIES[form]
    family: Family = getattr(import_module(module), name)()
    return family


def import_library(name: str, *, requirement: str, extra: str) -> ModuleType:
    """Return the library of a family.

    Args:
        name: name of its module.
        requirement: requirement to install with pip.
        extra: extra of this package that installs the library.

    Raises:
        ExtraMissingError: the library is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as err:
        if err.name != name:  # a dependency of the library is missing
            raise
        raise ExtraMissingError(
            f"{name} is not installed; install it with pip install {requirement}, or the extra {extra}"
        ) from err
