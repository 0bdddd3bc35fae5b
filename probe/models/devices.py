"""Device, mode and precision with which a model runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from probe.errors import DeviceError, ProbeError, summarize
from probe.models.families import FAMILIES

logger = logging.getLogger(__name__)

# Default precisions of CLIP models. The reference uses fp16 weights on CUDA and fp32 on the CPU. fp16 has not been
# tested on MPS and XPU.
DEFAULT_PRECISION = {"cuda": "fp16", "cpu": "fp32", "mps": "fp32", "xpu": "fp32"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CLIP_FAMILIES = ("open_clip",)  # families whose models run in these precisions; other families run in fp32
JIT_DEVICES = ("cpu", "cuda")  # devices that the graphs of the published archives can be patched for


@dataclass(frozen=True)
class Execution:
    """Device, precision and mode of a loaded model.

    Args:
        device: an available device.
        precision: precision of the weights, a key of `DTYPES`.
        jit: True in JIT mode, which runs the TorchScript archive unchanged.
        compiled: True in compiled mode.
    """

    device: torch.device
    precision: str
    jit: bool
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that `convert_weights` casts."""
        return DTYPES[self.precision]

    @property
    def mode(self) -> str:
        """Mode of the model: `eager`, `jit` or `compiled`."""
        return "jit" if self.jit else "compiled" if self.compiled else "eager"


META = Execution(torch.device("meta"), "fp32", jit=False)  # of models that have sizes but no weights


def resolve_execution(
    device: str | torch.device = "auto",
    *,
    precision: str = "auto",
    jit: bool = False,
    compiled: bool = False,
    elsewhere: bool = False,
    form: str = "",
) -> Execution:
    """Return the `Execution` for a user's choices.

    Args:
        device: `auto` for CUDA if it is available, else the CPU; or a device that `torch.device` accepts.
        precision: `auto`, `fp32`, `fp16` or `bf16`.
        jit: True for JIT mode.
        compiled: True for compiled mode.
        elsewhere: True if the model runs on another machine. The device need not be available on this machine then.
        form: `ModelSpec.form` of the model, which decides its default precision; empty for a CLIP model.

    Raises:
        DeviceError: the device is unknown or not available, the precision is unknown, the device does not support JIT
            mode, or both `jit` and `compiled` are True.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as err:
        known = ", ".join(DEFAULT_PRECISION)
        raise DeviceError(
            f"unknown device {str(device)!r}; use one of auto, {known}, or a device with an index, such as cuda:1"
        ) from err
    kind = parsed.type
    if kind not in DEFAULT_PRECISION or not (elsewhere or _is_available(parsed)):
        raise DeviceError(f"device {str(device)!r} is not available on this machine; use --device auto or cpu")
    if jit and kind not in JIT_DEVICES:
        raise DeviceError(
            f"JIT mode does not run on {kind}; use --jit off, or --device with one of {', '.join(JIT_DEVICES)}"
        )
    if jit and compiled:
        raise DeviceError("a model cannot run in JIT mode and in compiled mode; use --compile with --jit off")
    if precision != "auto" and str(precision) not in DTYPES:
        raise DeviceError(f"unknown precision {precision!r}; use one of auto, {', '.join(DTYPES)}")
    chosen = default_precision(kind, form) if precision == "auto" else precision
    if kind == "cpu" and chosen == "bf16" and not elsewhere and not has_bf16():
        logger.warning(
            "this processor has no bf16 instructions, so bf16 is slower than fp32; use --precision fp32 for speed"
        )
    return Execution(torch.device("cpu") if kind == "cpu" else parsed, chosen, jit, compiled)


def default_precision(kind: str, form: str) -> str:
    """Return the precision of a model for which the user names none.

    CLIP models run in fp16 on CUDA, as in OpenAI's package. Models of other families run in fp32, as in their own
    libraries: some of them overflow in fp16.

    Args:
        kind: type of the device, such as `cuda`.
        form: `ModelSpec.form` of the model.

    >>> default_precision("cuda", "url"), default_precision("cuda", "timm")
    ('fp16', 'fp32')
    """
    return "fp32" if form in FAMILIES and form not in CLIP_FAMILIES else DEFAULT_PRECISION[kind]


def has_bf16() -> bool:
    """Return True if the processor has bf16 instructions, or if the system does not report the instructions."""
    cpuinfo = Path("/proc/cpuinfo")  # exists on Linux only; torch has no public function for this
    return not cpuinfo.is_file() or bool(
        re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text(encoding="utf-8"))
    )


@contextmanager
def naming_precision(name: str, execution: Execution) -> Iterator[None]:
    """Raise a DeviceError with the device and the precision if a model cannot compute in the block."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, ProbeError):
        raise
    except RuntimeError as err:
        alternative = "another model" if execution.precision == "fp32" else "--precision fp32"
        raise DeviceError(
            f"{name} cannot run in {execution.precision} on {execution.device} ({summarize(err)}); use {alternative}"
        ) from err


def hardware(device: str) -> str:
    """Return the hardware that determines the last bits of features: the GPU, or the CPU's instructions and threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads" if device == "cpu" else ""


def device_names() -> dict[str, str]:
    """Return the devices of this machine: the value for `--device`, and a description."""
    names = {"cpu": f"{torch.get_num_threads()} threads"}
    names |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    names |= {kind: kind.upper() for kind in ("mps", "xpu") if _is_available(torch.device(kind))}
    return names


def _is_available(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    backend = getattr(torch, device.type)
    return bool(backend.is_available()) and (device.index or 0) < backend.device_count()
