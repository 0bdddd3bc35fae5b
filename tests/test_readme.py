"""The README's generated parts are this code's and these results'. `python tests/test_readme.py` rewrites them."""

import contextlib
import io
import re
import subprocess
from pathlib import Path

import pytest

from probe.cli.main import main
from probe.leaderboard.tables import markdown_table, percent, records_to_markdown
from probe.records.record import read_records

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def _printed(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0
    return out.getvalue()


def _results():
    """Of the two protocols that the page explains first; the leaderboard has the others."""
    scores = {}
    for record in read_records(ROOT / "results"):
        if record.protocol in ("clip-paper", "readme"):
            key = (record.dataset, record.protocol, record.solver, record.model, record.precision)
            scores.setdefault(key, {})[record.mode] = percent(record)
    header = ("dataset", "protocol", "solver", "model", "precision", "eager, %", "jit, %")
    rows = [(*key, *(found.get(mode, "") for mode in ("eager", "jit"))) for key, found in sorted(scores.items())]
    return markdown_table(header, rows)


def _run():
    records = [
        r
        for r in read_records(ROOT / "results")
        if r.key == ("tiny", "eager", "digits", "clip-paper", "fp32", "sklearn")
    ]
    return f"```text\n{records_to_markdown(records)}```\n"


PARTS = {
    "results": _results,
    "run": _run,
    "datasets": lambda: _printed("datasets"),
    "models": lambda: _printed("models", "--weights-dir", "/nowhere"),
    "parity": lambda: f"```text\n{_printed('parity', '--device', 'cpu')}```\n",
    "tiny": lambda: (ROOT / "results" / "tiny_against_controls.md").read_text(),
}


ERRORS = re.compile(r"\d(?:\.\d+)?e-\d\d *")  # as `2e-06`, with what fills the column


def _part(name):
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)


def _results_changed():
    """Whether `results/` has runs of the user's own, which the README does not speak of."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "results"]
    return (ROOT / ".git").exists() and bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# Both modes of `tiny` extract all digits for "parity".
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "parity" else ()) for name in PARTS]
)
def test_generated_parts_are_up_to_date(name):
    if name in ("results", "run") and _results_changed():
        pytest.skip("results/ differs from what is committed")
    there, now = _part(name).search(README.read_text()).group().strip(), PARTS[name]().strip()
    # Rounding errors are about as large on every processor, and the same on none.
    assert ERRORS.sub("", there) == ERRORS.sub("", now)
    for one, other in zip(ERRORS.findall(there), ERRORS.findall(now), strict=True):
        assert 1 / 3 < float(one) / float(other) < 3


def test_every_option_the_readme_names_exists():
    """A renamed option must not live on in the documentation."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(["run", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", out.getvalue()))
    used = {
        o for line in README.read_text().splitlines() if "probe run" in line for o in re.findall(r"--[a-z-]+", line)
    }
    assert used <= known


if __name__ == "__main__":
    (ROOT / "results" / "datasets.md").write_text(_printed("datasets", "--page"))
    text = README.read_text()
    for part, generate in PARTS.items():
        text = _part(part).sub(lambda _, generate=generate: f"\n{generate().strip()}\n\n", text, count=1)
    README.write_text(text)
