"""Limits of control groups, in simulated file systems of Linux, Docker, Slurm and systemd."""

import pytest

from probe import cgroups
from probe.features import reading
from probe.models.memory import device_memory

GB = 1 << 30
NO_LIMIT = 9223372036854771712  # version 1's "no limit": 2^63, rounded down to pages
SLURM = "system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make `/proc/self/cgroup` and the files below `/sys/fs/cgroup`."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "self")

    def make(lines, files):
        if lines:
            (tmp_path / "self").write_text("".join(f"{line}\n" for line in lines))
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    return make


# The lines of /proc/self/cgroup, the files of the control groups, and the memory in GB that this process may use.
MEMORY = {
    "a container of version 2": (["0::/"], {"memory.max": 2 * GB}, 2),
    "a container of version 1": (["4:memory:/"], {"memory/memory.limit_in_bytes": 2 * GB}, 2),
    "a container of version 1 that sees its name outside": (
        ["11:memory:/docker/0123", "1:name=systemd:/docker/0123"],
        {"memory/memory.limit_in_bytes": 2 * GB},
        2,
    ),
    "a process whose groups are not known": ([], {"memory.max": 2 * GB}, 2),
    "the same, of version 1": ([], {"memory/memory.limit_in_bytes": 2 * GB}, 2),
    "a job of Slurm": ([f"0::/{SLURM}"], {"system.slice/slurmstepd.scope/job_7/memory.max": 2 * GB}, 2),
    "a job of Slurm of version 1": (
        ["4:memory:/slurm/uid_1000/job_7/step_0/task_0"],
        {
            "memory/slurm/uid_1000/job_7/memory.limit_in_bytes": 2 * GB,
            "memory/slurm/uid_1000/job_7/step_0/task_0/memory.limit_in_bytes": NO_LIMIT,
            "memory/memory.limit_in_bytes": NO_LIMIT,
        },
        2,
    ),
    "the smallest limit is above": (["0::/a/b"], {"a/memory.max": GB, "a/b/memory.max": 3 * GB}, 1),
    "the smallest limit is below": (["0::/a/b"], {"a/memory.max": 3 * GB, "a/b/memory.max": GB}, 1),
    "memory.high is the smaller": (["0::/a"], {"a/memory.max": 3 * GB, "a/memory.high": 2 * GB}, 2),
    "memory.high is the larger": (["0::/a"], {"a/memory.max": 2 * GB, "a/memory.high": "max"}, 2),
    "both versions": (
        ["4:memory:/a", "0::/b"],
        {"memory/a/memory.limit_in_bytes": 2 * GB, "unified/b/cgroup.procs": "1"},
        2,
    ),
    "version 2 next to version 1": (["1:name=systemd:/", "0::/b"], {"unified/b/memory.max": 2 * GB}, 2),
    "controllers mounted together": (["4:cpu,memory:/a"], {"cpu,memory/a/memory.limit_in_bytes": 2 * GB}, 2),
    "a limit of a group that is not visible": (
        ["4:memory:/"],
        {"memory/memory.limit_in_bytes": NO_LIMIT, "memory/memory.stat": f"hierarchical_memory_limit {2 * GB}"},
        2,
    ),
    "a group outside of the namespace": (["0::/../../other"], {"memory.max": 2 * GB}, 2),
    "a colon in the name": (["0::/a:b"], {"a:b/memory.max": 2 * GB}, 2),
    "another process's group": (["0::/a"], {"b/memory.max": GB, "a/memory.max": 2 * GB}, 2),
    "no limit": (["0::/a"], {"a/memory.max": "max", "a/memory.high": "max"}, None),
    "no limit of version 1": (["4:memory:/"], {"memory/memory.limit_in_bytes": NO_LIMIT}, None),
    "no control groups": ([], {}, None),
}


@pytest.mark.parametrize("case", MEMORY)
def test_the_smallest_memory_limit_of_the_group_and_its_ancestors_counts(case, tree, monkeypatch):
    lines, files, expected = MEMORY[case]
    tree(lines, files)
    found = device_memory("cpu")
    if expected is None:
        with monkeypatch.context() as without:
            without.setattr("probe.models.memory.memory_limits", lambda: iter(()))
            assert found.total == device_memory("cpu").total
    else:
        assert found.total == expected * GB
        assert found.free <= found.total


# The file cache of a group counts as used, but is released when the group needs memory.
FREE = {
    "version 2": (
        ["0::/a"],
        {"a/memory.max": 3 * GB, "a/memory.current": 2 * GB, "a/memory.stat": f"anon 5\ninactive_file {GB}\nfile 7"},
        2,
    ),
    "version 1": (
        ["4:memory:/a"],
        {
            "memory/a/memory.limit_in_bytes": 3 * GB,
            "memory/a/memory.usage_in_bytes": 2 * GB,
            "memory/a/memory.stat": f"inactive_file 1\nactive_file 1\ntotal_inactive_file {GB // 2}\n"
            f"total_active_file {GB // 2}",
        },
        2,
    ),
    "others of a job take the rest": (
        ["0::/job/me"],
        {
            "job/memory.max": 3 * GB,
            "job/memory.current": 2.5 * GB // 1,
            "job/me/memory.max": 2 * GB,
            "job/me/memory.current": GB,
        },
        0.5,
    ),
    "more is taken than there is": (["0::/a"], {"a/memory.high": GB, "a/memory.current": 2 * GB}, 0),
}


@pytest.mark.parametrize("case", FREE)
def test_free_memory_is_the_limit_minus_the_usage_of_the_group(case, tree, monkeypatch):
    lines, files, expected = FREE[case]
    tree(lines, {name: int(value) if isinstance(value, float) else value for name, value in files.items()})
    assert min(limit.free for limit in cgroups.memory_limits()) == expected * GB


PROCESSORS = {
    "version 2": (["0::/a"], {"a/cpu.max": "200000 100000"}, 2),
    "a part of a processor": (["0::/a"], {"a/cpu.max": "50000 100000"}, 1),
    "rounded up": (["0::/a"], {"a/cpu.max": "250000 100000"}, 3),
    "above": (["0::/a/b"], {"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 50000"}, 2),
    "version 1": (["2:cpu,cpuacct:/a"], {"cpu/a/cpu.cfs_quota_us": 300000, "cpu/a/cpu.cfs_period_us": 100000}, 3),
    "none of version 1": (["2:cpu:/"], {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 64),
    "none": (["0::/a"], {"a/cpu.max": "max 100000"}, 64),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_the_smallest_cpu_quota_of_the_group_and_its_ancestors_counts(case, tree, monkeypatch):
    lines, files, expected = PROCESSORS[case]
    tree(lines, files)
    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert reading.processors() == expected
