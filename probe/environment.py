"""The environment of a result: versions of libraries, hardware, threads, and the state of the source tree."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated

from msgspec import Meta

DISTRIBUTION = "clip-linear-probe"  # the name of this package on PyPI

# Libraries whose versions can change a result, and what they are used for: all features, features of models or sources
# of some form, or all fits. Every record names their versions, and all workers of a grid need the driver's versions.
# The keys of the caches contain the versions of the libraries that the cached values depend on.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "scikit-learn": ("fits",),
    "scipy": ("fits",),
    "numpy": ("fits",),
    "torch": ("features", "fits"),
    "torchvision": ("features",),
    "pillow": ("features",),
    "open_clip_torch": ("open_clip",),
    "timm": ("open_clip", "timm"),
    "transformers": ("transformers",),
    "av": ("ucf101", "video"),
    "datasets": (),  # only returns the bytes of files, whose digests are in the keys of features
    "h5py": (),
}


@dataclass(frozen=True)
class EnvironmentRecord:
    """Versions, hardware and threads of the process that fitted the probe."""

    python: str | None = None
    platform: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)
    cpu: str | None = None
    cpu_count: int | None = None
    torch_threads: Annotated[int, Meta(ge=0, le=sys.maxsize)] | None = None
    blas_threads: Annotated[int, Meta(ge=0, le=sys.maxsize)] | None = None
    accelerator: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None


def describe(device: str) -> EnvironmentRecord:
    """Describe this machine and process; `device` is where the model ran, such as `cpu` or `cuda:0`."""
    import torch

    # A run that failed on a worker with a GPU is recorded by a driver that may have none.
    has_device = device.startswith("cuda") and torch.cuda.is_available()
    commit, is_dirty = _git_state()
    return EnvironmentRecord(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={"probe": package_version(DISTRIBUTION), **library_versions()},
        cpu=_cpu_name(),
        cpu_count=os.cpu_count(),
        torch_threads=torch_threads(),
        blas_threads=blas_threads(),
        accelerator=torch.cuda.get_device_name(device) if has_device else None,
        git_commit=commit,
        git_dirty=is_dirty,
    )


def torch_threads() -> int:
    """Return the number of threads that torch computes with."""
    import torch

    return torch.get_num_threads()


def blas_threads() -> int | None:
    """Return the number of threads that NumPy and SciPy compute fits with, or None if their BLAS is not known.

    A BLAS uses every hyperthread by default, but torch only every core. The result is at most the number of torch's
    threads, so that one number describes both, as for a Ray worker.
    """
    import scipy.linalg  # noqa: F401 - loads SciPy's own BLAS, which is not NumPy's
    from threadpoolctl import threadpool_info

    found = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return min(max(found), torch_threads()) if found else None


@contextmanager
def threads(n: int, *, blas: int = 0) -> Iterator[None]:
    """Limit the threads of torch and of the BLAS libraries inside the block, to at most one per processor.

    Args:
        n: threads of torch; 0 does not change them.
        blas: threads of BLAS; 0 does not change them.
    """
    import scipy.linalg  # noqa: F401 - a BLAS that is loaded later would not be limited
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
    """Return the number of GPUs that torch can compute with on this machine."""
    import torch

    return torch.cuda.device_count()


def gpu_uuid(device: str) -> str:
    """Return the identifier of a GPU, without the prefix `GPU-`.

    Raises:
        AttributeError: this version of torch does not know the identifiers of GPUs.
        RuntimeError: torch finds no such GPU.
    """
    import torch

    return str(torch.cuda.get_device_properties(torch.device(device)).uuid)


def library_versions(*uses: str) -> dict[str, str | None]:
    """Return the versions of the libraries that have one of these uses in `LIBRARIES`, or of all if no use is given."""
    names = [name for name, own in LIBRARIES.items() if not uses or not set(uses).isdisjoint(own)]
    return {name: package_version(name) for name in names}


def package_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # also this package itself, if it runs from a checkout
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux, where platform.processor() returns little or nothing
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the source tree, and True if it has changes; both are None outside of a checkout."""
    root = Path(__file__).parent.parent
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = _git(root, "status", "--porcelain", "--", "probe", "pyproject.toml") if commit else None
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
