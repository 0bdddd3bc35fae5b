"""Memory of a device, and the batch size that fits into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from probe.cgroups import memory_limits
from probe.specs import Architecture

BATCH_SIZES = {"cuda": 256}  # if the memory is sufficient; not yet compared with other sizes on a GPU
DEFAULT_BATCH_SIZE = 64
SHARE = 4  # activations may take 1 / SHARE of the memory of a device
BYTES = 4  # of an fp32 number
PLENTY = 1 << 40  # bytes; assumed if the system does not report its memory


@dataclass(frozen=True)
class DeviceMemory:
    """Total and free memory, in bytes; a very large number if the system does not report its memory."""

    total: int
    free: int


def device_memory(device: str) -> DeviceMemory:
    """Return the memory of a GPU or of the machine, at most the memory limit of the container or job."""
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(torch.device(device))
        return DeviceMemory(total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="utf-8").splitlines() if meminfo.is_file() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    limits = list(memory_limits())
    return DeviceMemory(
        min([sizes.get("MemTotal", PLENTY), *(limit.total for limit in limits)]),
        min([sizes.get("MemAvailable", PLENTY), *(limit.free for limit in limits)]),
    )


def find_batch_size(device: str, architecture: Architecture | None) -> int:
    """Return the default batch size: the device's usual size, halved until the activations fit into its memory.

    The batch size depends on the total memory, not on the free memory, so that all runs on a device use the same size:
    the batch size changes the last bits of features. The usual size is returned if the architecture is not known, or if
    the GPU belongs to another machine.
    """
    kind = torch.device(device).type
    batch_size = BATCH_SIZES.get(kind, DEFAULT_BATCH_SIZE)
    if architecture is None or (kind == "cuda" and not torch.cuda.is_available()):
        return batch_size
    available = device_memory(device).total // SHARE
    while batch_size > 1 and batch_size * activation_bytes(architecture) > available:
        batch_size //= 2
    return batch_size


def activation_bytes(architecture: Architecture) -> int:
    """Return an upper bound of the bytes that one image needs while it is encoded in fp32, from the largest layers.

    - ViT: a block stores its input, the queries, keys and values, the attention weights, and the input and output of
      its activation at four times the width.
    - ResNet: the stem stores three maps with half the side. The first stage stores five maps with a quarter of the side
      and four times the width.

    `tests/models/test_memory.py` checks that real encoding takes less.
    """
    side, width = architecture.image_resolution, architecture.vision_width
    image = 3 * side * side * 3
    if architecture.vision_patch_size is not None:
        tokens = (side // architecture.vision_patch_size) ** 2 + 1
        heads = architecture.vision_heads
        return BYTES * (image + 16 * tokens * width + heads * tokens * tokens)
    return BYTES * (image + max(3 * (side // 2) ** 2 * width, 5 * (side // 4) ** 2 * 4 * width))
