"""Where a model runs and in which dtype: device x JIT mode x precision, in one table."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from probe.errors import DeviceError

logger = logging.getLogger(__name__)

# The reference keeps fp16 weights on CUDA and casts to fp32 on the CPU. MPS and XPU follow the CPU, as nobody has
# checked fp16 there.
DEFAULT_PRECISION = {"cuda": "fp16", "cpu": "fp32", "mps": "fp32", "xpu": "fp32"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
JIT_DEVICES = ("cpu", "cuda")  # what the graphs of the published archives can be patched to


@dataclass(frozen=True)
class Execution:
    """A device that is there, the precision of the weights on it, and whether an archive runs as it is, or compiled."""

    device: torch.device
    precision: str
    jit: bool
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that `convert_weights` casts."""
        return DTYPES[self.precision]


def resolve_execution(
    device: str | torch.device = "auto",
    *,
    precision: str = "auto",
    jit: bool = False,
    compiled: bool = False,
    elsewhere: bool = False,
) -> Execution:
    """Turn what a user may say into an `Execution`.

    Args:
        device: `auto` is CUDA where there is one, else the CPU; otherwise anything `torch.device` takes.
        precision: `auto`, `fp32`, `fp16` or `bf16`.
        jit: whether an archive is to run as it is.
        compiled: whether torch is to compile the rebuilt model.
        elsewhere: that it is for another machine, so that the device need not be on this one.

    Raises:
        DeviceError: no such device here, an unknown precision, a device without JIT mode, or an archive that is to run
            as it is and compiled.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as err:
        known = ", ".join(DEFAULT_PRECISION)
        raise DeviceError(f"unknown device {str(device)!r}; use one of auto, {known}, or one with an index") from err
    kind = found.type
    if kind not in DEFAULT_PRECISION or not (elsewhere or _is_available(found)):
        raise DeviceError(f"device {str(device)!r} is not on this machine; use --device auto or cpu")
    if jit and kind not in JIT_DEVICES:
        raise DeviceError(f"JIT mode does not run on {kind}; use --jit off, or one of {', '.join(JIT_DEVICES)}")
    if jit and compiled:
        raise DeviceError("an archive that runs as it is cannot be compiled; use --compile with --jit off")
    if precision != "auto" and str(precision) not in DTYPES:
        raise DeviceError(f"unknown precision {precision!r}; use one of auto, {', '.join(DTYPES)}")
    chosen = DEFAULT_PRECISION[kind] if precision == "auto" else precision
    if kind == "cpu" and chosen == "bf16" and not elsewhere and not has_bf16():
        logger.warning("this processor has no instructions for bf16, which is slower on it than fp32")
    return Execution(torch.device("cpu") if kind == "cpu" else found, chosen, jit, compiled)


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16, by AVX512-BF16, AMX or the like; True where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux's; torch has no public function for it
    return not cpuinfo.is_file() or bool(
        re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text(encoding="utf-8"))
    )


def hardware(device: str) -> str:
    """What, of a device of one type, changes the last bits of features: the GPU; of a CPU instructions and threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads" if device == "cpu" else ""


def device_names() -> dict[str, str]:
    """The devices of this machine as `--device` takes them, and what they are called."""
    found = {"cpu": f"{torch.get_num_threads()} threads"}
    found |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    found |= {kind: kind.upper() for kind in ("mps", "xpu") if _is_available(torch.device(kind))}
    return found


def _is_available(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    backend = getattr(torch, device.type)
    return bool(backend.is_available()) and (device.index or 0) < backend.device_count()
