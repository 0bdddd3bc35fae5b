"""Memory and processor limits that Linux sets by control groups, as for containers, Slurm jobs and systemd units.

The limit of a group also holds for all groups below it. So the limits of this process's group and of every group above
it count. Both versions of the interface are read. On other systems the functions find no limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")  # lines NUMBER:CONTROLLERS:PATH; version 2 has one line, with no controllers
CACHED = ("inactive_file", "active_file")  # file cache: counts as used, but is released when needed


@dataclass(frozen=True)
class MemoryLimit:
    """Memory limit of a group, and how much of it is not yet used, in bytes."""

    total: int
    free: int


def memory_limits() -> Iterator[MemoryLimit]:
    """Yield the memory limits of this process. Version 1 writes 2^63 for "no limit"."""
    for folder in _folders("memory"):
        stat = dict(line.rsplit(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
        for names, prefix in (
            (("memory.max", "memory.high", "memory.current"), ""),
            (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
        ):
            *limits, taken = (_read(folder / name) for name in names)
            if prefix:
                limits.append(stat.get("hierarchical_memory_limit", ""))  # includes groups that a container cannot see
            cached = sum(int(stat.get(f"{prefix}{name}", 0)) for name in CACHED)
            for limit in filter(str.isdecimal, limits):  # `max` means no limit
                left = int(limit) - int(taken or 0) + cached
                yield MemoryLimit(int(limit), max(0, min(left, int(limit))))


def processor_limits() -> Iterator[float]:
    """Yield the limits on the number of processors that this process may use, such as 1.5."""
    for folder in _folders("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        quotas = ((quota, period), (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")))
        for allowed, each in quotas:  # microseconds per period; `max` or -1 means no limit
            if allowed.isdecimal() and each.isdecimal():
                yield int(allowed) / int(each)


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, and of the groups above them, that can limit a resource.

    A container does not see the groups above its own, and may see its own group at the root under a different name. So
    the roots are always among the folders. A folder that does not exist sets no limits.
    """
    for line in [*_read(GROUPS).splitlines(), "0::/", f"1:{controller}:/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        groups = [] if ".." in group.parts else [group, *group.parents]
        for top in (ROOT / controllers, ROOT / controller) if controllers else (ROOT, ROOT / "unified"):
            yield from (top / each for each in groups)


def _read(path: Path) -> str:
    """Return the text of a file, or "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
