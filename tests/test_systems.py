"""Portability: the main job runs without what Windows, macOS or a container without a home folder lack.

A test cannot change the system. These tests remove modules and functions that other systems lack. The libraries are
imported before, because they ask for the system's name.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from probe.features import encode
from probe.features.encode import Meter
from probe.records.schema import MeterRecord
from probe.specs import slug, unique_slug

PACKAGE = Path(__file__).parent.parent / "probe"
# Modules of the standard library with "Availability: Unix", and names that Windows, macOS or both lack.
MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "spwd", "posix", "crypt")
NAMES = {
    "os": (
        *("fork", "forkpty", "sched_getaffinity", "getuid", "geteuid", "getgid", "getegid", "getgroups", "getpgid"),
        *("statvfs", "uname", "getloadavg", "sysconf", "killpg", "setsid", "mkfifo", "chown", "lchown", "fchown"),
        *("posix_fadvise", "posix_fallocate", "O_DIRECT", "sendfile", "pread", "pwrite", "wait3", "wait4", "nice"),
    ),
    "signal": ("SIGKILL", "SIGHUP", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "alarm", "setitimer"),
    "select": ("poll", "epoll", "kqueue"),
}
LIBRARIES = "datasets, matplotlib, numpy, scipy.linalg, sklearn.linear_model, torch.utils.data, torchvision, tqdm"
WITHOUT = {
    "posix": f"""
import os, select, signal, sys
import {LIBRARIES}
for module in {MODULES}:
    sys.modules[module] = None
for module, names in {NAMES}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
""",
    "home": """
import os, pwd
os.environ.pop("HOME", None)
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
""",
}
GUARDED = {("encode.py", "resource"), ("reading.py", "sched_getaffinity")}  # used only if they exist


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="removes modules that Windows does not have")
@pytest.mark.parametrize("lacking", WITHOUT)
def test_the_main_job_runs_without(lacking, tmp_path):
    arguments = ["run", "--dataset", "digits", "--model", "tiny", "--protocol", "readme", "--device", "cpu"]
    for name in ("cache", "data", "weights", "results"):
        arguments += [f"--{name}-dir", str(tmp_path / name)]
    script = f"{WITHOUT[lacking]}\nfrom probe.cli.main import main\nraise SystemExit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("*.readme.fp32.fast.json")
    record = json.loads(path.read_text())
    assert record["result"]["score"] > 0.98
    assert (record["extraction"]["subsets"]["all"]["peak_memory_mb"] is not None) == (lacking != "posix")
    assert not (tmp_path / "~").exists()


@pytest.fixture(scope="module")
def trees():
    """Return the syntax tree of each module of the package, by path."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def test_modules_use_only_what_every_system_has(trees):
    used = set()
    for path, tree in trees.items():
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names if alias.name in MODULES}
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.name for alias in node.names if alias.name in NAMES.get(node.module or "", ())}
                names |= {node.module} & set(MODULES)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names |= {node.attr} & set(NAMES.get(node.value.id, ()))
        used |= {(path.name, name) for name in names}
    assert used <= GUARDED


def test_text_is_read_and_written_in_a_named_encoding(trees):
    """Without a named encoding, Python uses the encoding of the system, which is seldom UTF-8 on Windows."""
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                options = {option.arg for option in node.keywords}
                is_text = node.func.attr in ("read_text", "write_text")
                assert not is_text or "encoding" in options, f"{path}:{node.lineno}"


def test_files_are_replaced_and_not_renamed(trees):
    """On Windows, `rename` fails where a file of the new name exists; `replace` does the same on every system."""
    used = set()
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "rename":
                used.add((path.name, ast.unparse(node.func.value)))
    renamed = {("chunks.py", "building")}  # moves a folder to a name that does not exist
    assert used <= renamed | {("checkpoints.py", "huggingface")}  # a function of this package


@pytest.mark.parametrize(
    "name", ["folder:C:\\data\\images", "D:\\models\\a b.pt", "folder:\\\\host\\share\\x", "aux", "com1.pt"]
)
def test_file_names_of_records_are_valid_on_every_system(name):
    for found in (slug(name), slug(name, is_path=True), unique_slug(name)):
        assert not set(found) & set('<>:"/\\|?*')
        assert found.partition(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}


def test_no_module_imports_a_posix_module_at_its_top(trees):
    found = set()
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                found |= {(path.name, name) for name in imported & set(MODULES)}
    assert not found


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_megabytes(platform, unit, monkeypatch):
    """Linux counts in KiB and macOS in bytes, see getrusage(2)."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(encode.sys, "platform", platform)
    found = Meter().describe().peak_memory_mb
    assert found == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, rel=0.05)


def test_peak_memory_is_missing_if_the_system_does_not_report_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert Meter().describe() == MeterRecord(images=0)
