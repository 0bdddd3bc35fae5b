"""Memory of a device, and the batch size that fits into it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def measure_activations(run: Callable[[Tensor], object], images: Tensor) -> int:
    """Return the largest number of bytes that the results of a function's operations take at one time.

    The images count, too. Attention counts as separate matrix products, which store the attention weights, although
    fused kernels do not store them. Buffers inside an operation do not count. On torch's device `meta`, no memory is
    used.
    """
    counter = _LiveBytes()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run(images)
    return counter.peak + images.nbytes


class _LiveBytes(TorchDispatchMode):
    """Counter of the bytes of the storages that operations have made and that still exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count its results. Views and results in place have a storage that is known."""
        given = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given | self._known:
                    self._known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return results

    def _free(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes
