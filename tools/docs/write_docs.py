"""Write all generated parts of the documentation: `python tools/docs/write_docs.py`.

Reference pages, tables between `<!-- NAME -->` and `<!-- end -->`, the plot of a sweep, and what the commands on
README.md and the pages of docs/ print. `--no-commands` leaves out the commands, which take minutes. `screenshot.py`
takes the picture of the leaderboard, which needs a browser.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import consoles  # noqa: E402 - needs the path above
import reference  # noqa: E402

SWEEP = "sweep.digits.clip-paper-pre_projection-fast-eager-fp32.svg"


def fill_parts(text: str) -> str:
    """Return a page with its generated parts made again."""

    def replace(found: re.Match[str]) -> str:
        return f"{found['start']}\n{reference.PARTS[found['name']]().strip()}\n\n{found['end']}"

    names = "|".join(map(re.escape, reference.PARTS))
    pattern = rf"(?P<start><!-- (?P<name>{names}) -->\n).*?(?P<end><!-- end -->)"
    return re.sub(pattern, replace, text, flags=re.DOTALL)


def pages_with_parts() -> list[Path]:
    """Return the pages that may have generated parts."""
    written = {ROOT / name for name in reference.PAGES}
    return [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path not in written)]


def write_figures() -> None:
    """Write the plot of a sweep over C, from the committed records."""
    from probe.leaderboard.plots import write_plots
    from probe.records.record import read_records

    keys = {"dataset": "digits", "protocol": "clip-paper", "solver": "fast", "mode": "eager", "precision": "fp32"}
    records = read_records(ROOT / "results")
    records = [record for record in records if all(getattr(record, name) == key for name, key in keys.items())]
    with tempfile.TemporaryDirectory() as folder:
        paths = {path.name: path for path in write_plots(records, Path(folder))}
        (ROOT / "docs" / "img" / "sweep.svg").write_bytes(paths[SWEEP].read_bytes())


def main() -> int:
    """Write everything; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-commands", action="store_true", help="leave what commands print as it is")
    parser.add_argument("page", nargs="*", help="run the commands of these pages only, such as docs/tutorial.md")
    args = parser.parse_args()
    for name, make in reference.PAGES.items():
        (ROOT / name).write_text(make(), encoding="utf-8")
    for path in pages_with_parts():
        path.write_text(fill_parts(path.read_text(encoding="utf-8")), encoding="utf-8")
    write_figures()
    if args.no_commands:
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as parent:
        for name in args.page or consoles.pages():
            print(name, file=sys.stderr)
            try:
                text = consoles.run_page((ROOT / name).read_text("utf-8"), consoles.make_folder(name, Path(parent)))
            except consoles.CommandError as err:
                failed = True
                print(err, file=sys.stderr)
            else:
                (ROOT / name).write_text(text, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
