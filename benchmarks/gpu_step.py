"""A step of `gpu.py`: its options, and the file for its figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probe.features.encode import peak_memory


@dataclass(frozen=True)
class Step:
    """Options of a step, and the file for its figures."""

    device: str
    quick: bool
    file: Path

    def add(self, table: str, **row: Any) -> None:
        """Write a row of a table."""
        self._write({"table": table, "row": row})

    def note(self, text: str) -> None:
        """Write a sentence below the tables."""
        self._write({"note": text})

    def _write(self, line: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=float) + "\n")
        print(line, flush=True)

    @property
    def is_cuda(self) -> bool:
        """Return True if the device is a GPU."""
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Wait until the device has done all work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def memory(self) -> dict[str, float]:
        """Return the peak memory in GB of the device and of this process, and reset the peak of the device."""
        found = {"host memory, GB": (peak_memory() or 0.0) / 1e3}
        if self.is_cuda:
            found = {"device memory, GB": torch.cuda.max_memory_allocated(self.device) / 1e9, **found}
            torch.cuda.reset_peak_memory_stats(self.device)
        return found
