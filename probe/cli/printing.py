"""Output that commands share: a table, the facts about one thing, or either as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from probe.errors import printable


def print_rows(header: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool) -> None:
    """Print a Markdown table, or each row as a line of JSON. A cell that is None is empty in the table."""
    from probe.leaderboard import tables

    if as_json:
        for row in rows:
            print(json.dumps(dict(zip(header, row, strict=True))))
    else:
        texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
        print(tables.markdown_table(header, texts), end="")


def print_facts(facts: Mapping[str, str], *, as_json: bool) -> None:
    """Print facts about one thing, one per line, or all as a line of JSON."""
    if as_json:
        print(json.dumps(dict(facts)))
        return
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        print(f"{key:<{width}}{printable(value)}")
