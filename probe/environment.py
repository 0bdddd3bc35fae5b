"""What a result was made with: versions, hardware, threads, the state of the source."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTION = "clip-linear-probe"  # the name of this package on PyPI

# Libraries whose versions can change a result, and what they are used for: all features, features of models or sources
# of some form, all fits. Records name every one of them, and all workers of a grid need the versions of the driver.
# Another version of a library is another key in the cache of what it is used for.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "scikit-learn": ("fits",),
    "scipy": ("fits",),
    "numpy": ("fits",),
    "torch": ("features", "fits"),
    "torchvision": ("features",),
    "pillow": ("features",),
    "open_clip_torch": ("open_clip",),
    "timm": ("open_clip",),
    "av": ("ucf101", "video"),
    "datasets": (),  # hands over the bytes of files, of which features have a digest
    "h5py": (),
}


def describe(device: str) -> dict[str, Any]:
    """Describe this machine and process; `device` is where the model ran, such as `cpu` or `cuda:0`."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {"probe": package_version(DISTRIBUTION), **library_versions()},
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch_threads(),
        "blas_threads": blas_threads(),
        # The record of a cell that another machine failed to run has none of this one's.
        "accelerator": torch.cuda.get_device_name(device)
        if device.startswith("cuda") and torch.cuda.is_available()
        else None,
        **_git_state(),
    }


def torch_threads() -> int:
    """How many torch computes with."""
    import torch

    return torch.get_num_threads()


def blas_threads() -> int | None:
    """How many NumPy and SciPy multiply with in fits, at most as many as torch; None where no BLAS of theirs is known.

    By itself a BLAS takes every hyperthread, and torch every core. One number for both is one for a worker of Ray.
    """
    import scipy.linalg  # noqa: F401 - loads SciPy's own BLAS, beside NumPy's
    from threadpoolctl import threadpool_info

    found = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return min(max(found), torch_threads()) if found else None


@contextmanager
def threads(n: int, *, blas: int = 0) -> Iterator[None]:
    """Have torch, and BLAS libraries, compute with so many threads for a while.

    Args:
        n: of torch; 0 leaves it be, and so with BLAS. At most one a processor is used.
        blas: of BLAS.
    """
    import scipy.linalg  # noqa: F401 - a BLAS that is loaded later on would not be limited
    import torch
    from threadpoolctl import threadpool_limits

    before, most = torch.get_num_threads(), os.cpu_count() or 1
    torch.set_num_threads(min(n, most) or before)
    try:
        with threadpool_limits(min(blas, most) or None, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def num_gpus() -> int:
    """How many GPUs torch can compute with here."""
    import torch

    return torch.cuda.device_count()


def library_versions(*uses: str) -> dict[str, str | None]:
    """Return the versions of the libraries with one of these uses in `LIBRARIES`; without a use, of all of them."""
    names = [name for name, own in LIBRARIES.items() if not uses or not set(uses).isdisjoint(own)]
    return {name: package_version(name) for name in names}


def package_version(package: str) -> str | None:
    """The version of an installed package; None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # this one runs from a checkout that is not installed
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux's, where platform.processor() says little
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git_state() -> dict[str, Any]:
    """Commit of the source tree this package runs from, and whether it differs; None where it is no checkout."""
    root = Path(__file__).parent.parent
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = _git(root, "status", "--porcelain", "--", "probe", "pyproject.toml") if commit else None
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
