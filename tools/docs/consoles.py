"""Run the commands and the Python code that the documentation shows, and put what they print into it.

A page is one session in an empty folder. Its blocks are run in order:

- ```` ```console ````: lines that begin with `$ ` are commands, and the others are what they print on standard output;
- ```` ```python title="FILE" ````: the code is written to FILE;
- ```` ```python ````: the code is run; a `text` block that follows is what it prints;
- ```` ```toml title="FILE" ````, and other languages with a title: the text is written to FILE.

Other blocks, such as ```` ```bash ````, are not run: they need a network, a GPU or a cluster.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from warm_python import WarmPython

HOME = "/home/me"  # shown in place of the folder of a session
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r'^(?P<indent> *)```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)
DIGEST = re.compile(r"\b[0-9a-f]{8,}\b")  # of caches and paths, which differ between machines
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


class CommandError(Exception):
    """A command of a page that fails."""


def pages() -> list[str]:
    """Return the pages with something to run, relative to the root of the repository."""
    names = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
    return [name for name in names if any(map(_is_run, BLOCK.finditer((ROOT / name).read_text(encoding="utf-8"))))]


def _is_run(block: re.Match[str]) -> bool:
    return block["language"] == "console" or (block["language"] == "python" and block["title"] is None)


def run_page(text: str, folder: Path) -> str:
    """Run a page's blocks in a folder, and return the page with what they print now.

    Raises:
        CommandError: a command fails.
    """
    blocks = list(BLOCK.finditer(text))
    parts, end = [], 0
    for i, block in enumerate(blocks):
        parts.append(text[end : block.start("text")])
        before = blocks[i - 1] if i else None
        parts.append(_run_block(block, before, folder))
        end = block.end("text")
    return "".join([*parts, text[end:]])


def _run_block(block: re.Match[str], before: re.Match[str] | None, folder: Path) -> str:
    text = block["text"]
    if block["language"] == "console":
        return _run_console(text, folder)
    if block["title"] is not None:
        (folder / block["title"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / block["title"]).write_text(text, encoding="utf-8")
        return text
    if block["language"] == "python":
        (folder / "block.out").write_text(_run(["python", "-c", text], folder), encoding="utf-8")
    if block["language"] == "text" and before is not None and before["language"] == "python" and not before["title"]:
        return (folder / "block.out").read_text(encoding="utf-8")
    return text


def _run_console(text: str, folder: Path) -> str:
    # A line that ends in `\` continues in the next one.
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return "".join(f"$ {command}\n{_run(['bash', '-o', 'pipefail', '-c', command], folder)}" for command in commands)


def _run(command: list[str], folder: Path) -> str:
    bin_folder = folder / ".bin"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PROBE_", "PYTEST_"))},
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder.parent / ".home"),  # pages share the cache of features
        "HF_HUB_OFFLINE": "1",
        "SCIPY_ARRAY_API": "1",  # as `python -m probe` sets it before it imports SciPy
        "COLUMNS": "120",
    }
    if not bin_folder.exists():
        bin_folder.mkdir()
        _start_python(frozenset(environment.items())).write_program(bin_folder / "python")
        (bin_folder / "probe").write_text('#!/bin/sh\nexec python -m probe "$@"\n', encoding="utf-8")
        (bin_folder / "probe").chmod(0o755)
    environment["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{command[-1]}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    lines = done.stdout.replace(str(folder.resolve()), HOME).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in _align(lines))


@cache
def _start_python(environment: frozenset[tuple[str, str]]) -> WarmPython:
    python = WarmPython(dict(environment))
    atexit.register(python.stop)
    return python


def _align(lines: list[str]) -> Iterator[str]:
    """Yield lines with the columns of their tables aligned again, because a path in them was replaced."""
    for is_table, group in groupby(lines, key=lambda line: line.startswith("|") and line.endswith("|")):
        if not is_table:
            yield from group
            continue
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in group]
        widths = [
            max(map(len, (cell for cell in column if set(cell) != {"-"})), default=1)
            for column in zip(*rows, strict=False)
        ]
        for row in rows:
            cells = [
                "-" * width if set(cell) == {"-"} and row is rows[1] else cell.ljust(width)
                for cell, width in zip(row, widths, strict=False)
            ]
            yield "| " + " | ".join(cells) + " |"


def differences(shown: str, now: str) -> list[str]:
    """Compare a page with what its commands print now; return the lines that differ by more than rounding.

    Scores may move by one image of a few hundred, and counts of iterations by a quarter, between processors. A row with
    the mark ~ may have other numbers: its C was chosen among fits that stopped early, whose scores depend on rounding.
    """
    old, new = shown.splitlines(), now.splitlines()
    found = [f"- {a}\n+ {b}" for a, b in zip(old, new, strict=False) if not _is_alike(a, b)]
    return found if len(old) == len(new) else [*found, f"{len(old)} lines, now {len(new)}"]


def _is_alike(a: str, b: str) -> bool:
    if a == b:
        return True
    if _skeleton(a) != _skeleton(b):
        return False
    if a.startswith("|") and " ~ " in a:
        return True
    return all(map(_is_near, NUMBER.findall(DIGEST.sub("", a)), NUMBER.findall(DIGEST.sub("", b))))


def _skeleton(line: str) -> str:
    """Return a line without its numbers, its digests and the widths of its columns."""
    return re.sub(r"[\s-]+", " ", NUMBER.sub("0", DIGEST.sub("", line)))


def _is_near(a: str, b: str) -> bool:
    x, y = (float(text.replace(",", "")) for text in (a, b))
    if "e-" in a or "e-" in b:  # rounding errors are about as large on every processor, and the same on none
        return x == y or 1 / 3 < (x or 1e-12) / (y or 1e-12) < 3
    if "." not in a:
        return abs(x - y) <= 0.25 * max(x, y, 4)
    return abs(x - y) <= (0.6 if max(x, y) > 1 else 0.01)  # percent, or a fraction: a few images of some hundred


def make_folder(name: str, parent: Path) -> Path:
    """Return an empty folder for the session of a page."""
    folder = parent / name.replace("/", "-").removesuffix(".md")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (parent / ".home").mkdir(exist_ok=True)
    return folder
