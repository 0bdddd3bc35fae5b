"""Promises of README.md: it is short, its tables show the results, and its commands print what it shows."""

import re
from pathlib import Path

import write_docs

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 8192


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_generated_parts_are_up_to_date():
    """`python tools/docs/write_docs.py --no-commands` writes these parts."""
    text = README.read_text(encoding="utf-8")
    assert write_docs.fill_parts(text) == text


def test_the_table_of_results_has_at_most_eight_rows_and_one_control():
    rows = [
        line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "% " not in line
    ]
    table = [row for row in rows if "digits" in row or "fashion" in row]
    assert 1 <= len(table) - 1 <= 8  # the other row is what the command prints
    assert len({row.split("|")[1].strip() for row in table if "random:" in row}) == 1


def test_the_python_example_has_at_most_twelve_lines():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert sum(bool(line) for line in code.splitlines()) <= 12
