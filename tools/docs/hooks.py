"""Hooks of mkdocs: what differs between the pages on a code forge and on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
MATH = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Append the changelog to its page, and replace what the site does not have: links out of docs/, and LaTeX."""
    if page.file.src_uri == "changelog.md":
        markdown += (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("<!-- releases -->")[2]
    markdown = MATH.sub(lambda found: convert(found[1].strip(), display="block"), markdown)
    return OUTSIDE.sub(_as_path, markdown)


def _as_path(found: re.Match[str]) -> str:
    text, path = found[1].strip("`"), found[2].rstrip("/")
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"a page links to {path}, which does not exist")
    return f"`{path}`" if text.rstrip("/") == path else f"{text} (`{path}`)"
