"""Output that commands share: a table, the facts about one thing, or a JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from probe.errors import printable


def print_json(document: Any) -> None:
    """Print a JSON document in one line. Each command with --json prints one document: an object or an array."""
    print(json.dumps(document, sort_keys=True, allow_nan=False))


def print_rows(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table. A cell that is None is empty."""
    from probe.leaderboard import tables

    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    print(tables.markdown_table(header, texts), end="")


def print_facts(facts: Mapping[str, str]) -> None:
    """Print facts about one thing, one per line."""
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        print(f"{key:<{width}}{printable(value)}")
