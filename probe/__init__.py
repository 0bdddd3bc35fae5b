"""Linear-probe evaluation of CLIP models.

>>> import probe
>>> probe.get_dataset("digits").num_classes
10

The public names are listed in `__init__.pyi`, which type checkers and editors read. Each is imported when it is first
used, so that `import probe` costs nothing.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

_IMPORT = re.compile(r"^from (\S+) import (\w+) as (\w+)$", re.MULTILINE)
_TEXT = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: home for home, name, _ in _IMPORT.findall(_TEXT)}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("probe.environment").package_version("clip-linear-probe")
    if name not in _HOMES:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
