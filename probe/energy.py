"""Energy that this machine uses, from the counters of its processors and of a GPU.

- `cpu`: the counters of all processor packages that Linux publishes under `/sys/class/powercap` (RAPL). Most systems
  let only the administrator read them.
- `gpu`: the counter of NVIDIA's driver, if the package `nvidia-ml-py` is installed. GPUs have it since Volta (2017).

A counter that cannot be read is missing in the result, never zero. The counters include whatever else runs on the
processors and on the GPU.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from probe.environment import gpu_uuid

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"  # the name is the same on AMD's processors
INTERVAL_SECONDS = 20.0  # a counter of a processor starts again at zero after some minutes at full load
MICRO, MILLI = 1e-6, 1e-3


class EnergyMeter:
    """Context that measures the energy used inside its block.

    Args:
        device: device that computes, such as `cpu` or `cuda:1`.

    Attributes:
        joules: energy in joules, by `cpu` and `gpu`, after the block. Counters that cannot be read are missing.
    """

    def __init__(self, device: str) -> None:
        self.joules: dict[str, float] = {}
        self._device = device
        self._packages: dict[Path, int] = {}  # last value of the counter of each package, in microjoules
        self._gpu: int | None = None  # value of the counter of the GPU at the start, in millijoules
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> EnergyMeter:
        """Read the counters, and watch the counters that can wrap around."""
        self._gpu = _read_gpu(self._device)
        for folder in _package_folders():
            value = _read_number(folder / "energy_uj")
            if value is not None and _read_number(folder / "max_energy_range_uj") is not None:
                self._packages[folder] = value
        if self._packages:
            self.joules["cpu"] = 0.0
            self._thread = threading.Thread(target=self._watch, name="probe-energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the counters again."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._add()
        end = _read_gpu(self._device)
        if self._gpu is not None and end is not None:
            self.joules["gpu"] = (end - self._gpu) * MILLI

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self._add()

    def _add(self) -> None:
        """Add what the packages used since the last call. A package that cannot be read any more voids the sum."""
        for folder, before in self._packages.items():
            now, limit = _read_number(folder / "energy_uj"), _read_number(folder / "max_energy_range_uj")
            if now is None or limit is None:
                self.joules.pop("cpu", None)
                self._packages = {}
                return
            self.joules["cpu"] += (now - before if now >= before else now + limit - before) * MICRO
            self._packages[folder] = now


def _package_folders() -> list[Path]:
    """Return the folders of the packages. Parts of a package, such as `intel-rapl:0:1`, are left out."""
    return sorted(folder for folder in POWERCAP.glob(PACKAGES) if folder.name.count(":") == 1)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _read_gpu(device: str) -> int | None:
    """Return the energy that a GPU has used since its driver was loaded, in millijoules; None if it is not known."""
    if not device.startswith("cuda"):
        return None
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu_uuid(device)}")  # NVML has its own order
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except (pynvml.NVMLError, AttributeError, RuntimeError):  # an older GPU, driver or torch
        return None
