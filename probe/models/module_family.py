"""Modules of the user, as a family of encoders. `own.py` and `own_files.py` find the modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.errors import CheckpointError, ProbeError, summarize
from probe.models import own_files
from probe.models.devices import Execution, resolve_execution
from probe.models.encoder import ImageEncoder, check_rows, dtypes_of, measure_widths, no_projection
from probe.models.families import Family
from probe.models.own import OwnEncoder, copy_to, digest_state, find_registered
from probe.models.sizes import ModelSizes, measure_encoder
from probe.specs import ModelSpec


class ModuleFamily(Family):
    """Family of the modules that the user makes, in Python or in a file."""

    def find_spec(self, source: str) -> ModelSpec:
        """Return the specification of `FILE.py:FUNCTION`. The function runs."""
        return own_files.read_spec(source)

    def is_here(self, spec: ModelSpec) -> bool:  # noqa: ARG002 - an argument of every family
        """Return True: nothing is downloaded."""
        return True

    def identify_weights(self, spec: ModelSpec, *, offline: bool) -> str:  # noqa: ARG002 - an argument of every family
        """Return a digest of the weights, the code and the preprocessing, as far as they are known."""
        return find_own(spec).identity

    def load_tower(
        self,
        spec: ModelSpec,
        execution: Execution,
        *,
        offline: bool,  # noqa: ARG002 - an argument of every family
    ) -> ImageEncoder:
        """Return a copy of the module as an encoder. Its features have no projection."""
        own = find_own(spec)
        module = copy_to(own.encoder, execution.device, execution.dtype)
        if digest_state(spec.name, own.encoder.module) != own.weights:
            raise CheckpointError(f"the weights of {spec.name} changed after the run was planned; start the run again")
        before, state = _Checked(spec.name, module), own.encoder.module.state_dict().values()
        with _naming_failures(spec.name, (2, 3, *own.preprocess.shape)):
            width, _ = measure_widths(spec.name, before, no_projection, shape=own.preprocess.shape, execution=execution)
        return ImageEncoder(
            spec.name,
            execution,
            own.preprocess,
            embed_dim=width,
            pre_projection_dim=width,
            weights_sha256=own.weights,
            checkpoint_dtypes=dtypes_of(value for value in state if isinstance(value, Tensor)),  # not extra states
            weights_dtypes=dtypes_of(module.parameters()),
            license=own.encoder.license,
            pre_projection=before,
            project=no_projection,
            identity=own.identity,
        )

    def describe_weights(self, spec: ModelSpec, *, is_here: bool) -> dict[str, Any]:  # noqa: ARG002 - an argument of every family
        """Return the digest of the weights, sizes and cost."""
        return {"sha256": find_own(spec).weights, **self.measure_sizes(spec).describe()}

    def measure_sizes(self, spec: ModelSpec) -> ModelSizes:
        """Return the sizes and the cost of a module, which encodes an image on the CPU."""
        encoder = self.load_tower(spec, resolve_execution("cpu", precision="fp32"), offline=True)
        with _naming_failures(spec.name, (1, 3, *encoder.preprocess.shape)):
            return measure_encoder(encoder, find_own(spec).encoder.module)


@contextmanager
def _naming_failures(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Raise a CheckpointError that names the model for an exception of the user's code in the block."""
    try:
        yield
    except (ProbeError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as err:  # whatever the user's code raises
        raise CheckpointError(
            f"{name}: the module raised {type(err).__name__} for images {shape} ({summarize(err)})"
        ) from err


def find_own(spec: ModelSpec) -> OwnEncoder:
    """Return the encoder of a specification.

    Raises:
        CheckpointError: the encoder differs from the encoder of the run, or cannot be loaded.
    """
    return own_files.find_loaded(spec) if own_files.is_file(spec) else find_registered(spec)


class _Checked:
    """A module whose result is checked at every batch."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module

    def __call__(self, images: Tensor) -> Tensor:
        # Images are read with channels last. Modules of users get the memory format of torchvision's transforms, which
        # `view` needs.
        return check_rows(self.name, self.module(images.contiguous()), len(images))
