"""Limits of memory and processors that Linux sets by control groups: for containers, jobs of Slurm, units of systemd.

A limit of a group holds for all groups below, so the limits of every group on the way up from that of this process
count. Both versions of the interface are read; on other systems there are no limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")  # lines NUMBER:CONTROLLERS:PATH; version 2 has one line, with no controllers
CACHED = ("inactive_file", "active_file")  # files that a group counts as its own, and gives up where it needs the room


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that a group may take, and those that are left of them."""

    total: int
    free: int


def memory_limits() -> Iterator[MemoryLimit]:
    """Yield the limits of memory on this process; version 1 writes 2^63 where there is none."""
    for folder in _folders("memory"):
        stat = dict(line.rsplit(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
        for names, prefix in (
            (("memory.max", "memory.high", "memory.current"), ""),
            (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
        ):
            *limits, taken = (_read(folder / name) for name in names)
            if prefix:
                limits.append(stat.get("hierarchical_memory_limit", ""))  # also of groups that a container does not see
            cached = sum(int(stat.get(f"{prefix}{name}", 0)) for name in CACHED)
            for limit in filter(str.isdecimal, limits):  # `max` where there is none
                left = int(limit) - int(taken or 0) + cached
                yield MemoryLimit(int(limit), max(0, min(left, int(limit))))


def processor_limits() -> Iterator[float]:
    """Yield the limits on how many processors this process may keep busy, such as 1.5."""
    for folder in _folders("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        quotas = ((quota, period), (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")))
        for allowed, each in quotas:  # microseconds in each period; `max` or -1 where there is no limit
            if allowed.isdecimal() and each.isdecimal():
                yield int(allowed) / int(each)


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of the groups of this process that can limit a resource, and of those above.

    A container does not see the groups above its own, and may see its own at the root under another name: the roots
    are always among the folders, and what is not there has no limits.
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
    """Return the text of a file, empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
