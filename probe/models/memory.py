"""How much memory a device has, and so how many images at a time a model may be given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from probe.cgroups import memory_limits
from probe.specs import Architecture

BATCH_SIZES = {"cuda": 256}  # where memory allows; not yet measured against others, for want of a GPU
DEFAULT_BATCH_SIZE = 64
SHARE = 4  # the part of a device's memory that activations may take
BYTES = 4
PLENTY = 1 << 40


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of memory, in all and free; of a system that does not say, as if there were plenty."""

    total: int
    free: int


def device_memory(device: str) -> DeviceMemory:
    """Return the memory of a GPU or of the machine; the limit of a container or job counts as the machine's memory."""
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
    """The batch size where none is asked for: the usual one, halved until a part of the device's memory holds it.

    It depends on the size of the memory, not on what is free at the moment, so that it is the same at every run: the
    batch size changes the last bits of features. An unknown architecture is taken to fit, and so is a GPU of another
    machine, of which this one knows nothing.
    """
    kind = torch.device(device).type
    batch_size = BATCH_SIZES.get(kind, DEFAULT_BATCH_SIZE)
    if architecture is None or (kind == "cuda" and not torch.cuda.is_available()):
        return batch_size
    room = device_memory(device).total // SHARE
    while batch_size > 1 and batch_size * activation_bytes(architecture) > room:
        batch_size //= 2
    return batch_size


def activation_bytes(architecture: Architecture) -> int:
    """What one image takes at most while it is encoded in fp32, by the sizes of the largest layers.

    Of a ViT a block holds its input, queries, keys, values, and the two sides of its activation at four times the
    width; of a ResNet the first stage holds four maps of a quarter of the side and four times the width, and the stem
    three of half the side. Above what `tests/test_memory.py` measures.
    """
    side, width = architecture.image_resolution, architecture.vision_width
    image = 3 * side * side * 3
    if architecture.vision_patch_size is not None:
        tokens = (side // architecture.vision_patch_size) ** 2 + 1
        heads = architecture.vision_heads
        return BYTES * (image + 16 * tokens * width + heads * tokens * tokens)
    return BYTES * (image + max(3 * (side // 2) ** 2 * width, 5 * (side // 4) ** 2 * 4 * width))
