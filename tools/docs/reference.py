"""Pages and tables of the documentation that are made from the code and from `results/`."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from probe.cli import arguments
from probe.cli.main import main
from probe.datasets import description
from probe.datasets.catalog import DATASETS
from probe.leaderboard.tables import interval_text, markdown_table
from probe.models.catalog import MODELS
from probe.models.description import describe_model
from probe.probes.description import describe_protocol, images_a_class
from probe.probes.protocols import PROTOCOLS
from probe.records.record import read_records
from probe.records.schema import DoneRecord
from probe.specs import DEFAULT_SOLVER, NO_SOLVER

ROOT = Path(__file__).parents[2]
SPEED = ROOT / "results" / "speed"
JSON = (
    ("`run`", "array of records, in the order of the grid; with `--plan`, an object with the estimate"),
    ("`extract`", "array with an object for each run; `state` is `extracted`, `cached`, `failed`, or what is missing"),
    (
        "`fit`",
        "array with an object for each protocol: the fields of `result` in a record, the rules and the environment",
    ),
    ("`parity`", "object; `verdict` and `within_tolerance` are the conclusion"),
    ("`tables`, `leaderboard --out`", "array of the paths of the files"),
    (
        "`tables --check`",
        "object with arrays: paths of `differing` files and `orphans`, messages about `damaged` records",
    ),
    ("`tables --compare`", "array with an object for each score"),
    ("`leaderboard`", "object with the array `sections`"),
    ("`diff`", "object with `changes`, `test` and `verdict`"),
    ("`show`", "object with the facts, and `classes`, `confusions`, `calibration` and `tests`"),
    ("`reproduce`", "array with an object for each record that was run again"),
    ("`card`", "object with `model-index`"),
    ("`datasets`, `models`, `protocols`", "array of objects; with a NAME, the object"),
    ("`doctor`", "object"),
    ("`cache ls`, `cache gc`", "array with an object for each entry, or each removed entry"),
    ("`cache explain`", "array with an object for each entry that the runs need"),
    ("`cache verify`", "object with `checked` and `damaged`"),
)


def results_table() -> str:
    """Return the table of the README: one model and a control, the solver that converges, fp32 in eager mode."""
    rows = []
    for model, protocols in (
        ("tiny", ("clip-paper", "few-shot-16", "zero-shot")),
        ("random:tiny", ("clip-paper",)),
    ):
        for protocol in protocols:
            for dataset in ("digits", "fashion_mnist"):
                record = _find_record(dataset, model, protocol)
                result = record.result
                assert result.interval is not None
                ends = f"{100 * result.interval.low:.1f} to {100 * result.interval.high:.1f}"
                name = model if model == "tiny" else f"{model} (control)"
                rows.append((name, dataset, protocol, f"{100 * result.score:.1f}", ends))
    header = ("model", "dataset", "protocol", "accuracy, %", "95 % confidence interval")
    return markdown_table(header, rows)


def solvers_table() -> str:
    """Return the ends of the final fits of both solvers on the same features at the same C, from the records."""
    rows = []
    for dataset in ("digits", "fashion_mnist"):
        for model in ("tiny", "random:tiny"):
            for solver in ("fast", "sklearn"):
                result = _find_record(dataset, model, "readme", solver).result
                marked = f"{100 * result.score:.2f}{'' if result.converged else ' *'}"
                numbers = (f"{result.n_iter:,}", f"{result.objective:.6f}", f"{result.gradient_ratio:.0e}")
                rows.append((dataset, model, solver, marked, *numbers))
    return markdown_table(("dataset", "model", "solver", "score, %", "iterations", "objective", "gradient"), rows)


def _find_record(dataset: str, model: str, protocol: str, solver: str = DEFAULT_SOLVER) -> DoneRecord:
    keys = [(model, "eager", dataset, protocol, "fp32", one) for one in (solver, NO_SOLVER)]
    found = [record for record in read_records(ROOT / "results") if record.key in keys]
    assert len(found) == 1, (keys, len(found))
    assert isinstance(found[0], DoneRecord)
    return found[0]


def datasets_page() -> str:
    """Return the page of all datasets: a table, then each entry of the catalogue."""
    rows = [
        (
            f"[{spec.name}](#{_anchor(f'{spec.name}: {spec.title}')})",
            spec.title,
            f"{spec.num_classes:,}",
            description.sizes(spec),
            spec.metric,
            "yes" if spec.in_paper else "",
        )
        for spec in DATASETS
    ]
    table = markdown_table(("name", "title", "classes", "images", "metric", "in the paper"), rows)
    entries = description.page(DATASETS)
    return f"""{_header("Datasets")}
These datasets have a name. `python -m probe datasets NAME` shows one entry and says whether its files are here.
`--dataset all` runs all of them, `--dataset paper` the 27 of table 9 of the CLIP paper, with its metrics and splits.
Other datasets are named by a path or a repository; see [Your own data](your-data.md).

Column *images*: the sizes of the subsets as the makers of the dataset ship them. Validation images are held out of the
training images where there is no validation subset. Each entry below says how.

{table}
{entries[entries.index("## ") :].rstrip()}
"""


def models_page() -> str:
    """Return the page of all models: a table, then each entry of the catalogue."""
    lines = [line for line in _printed("models", "--weights-dir", "/nowhere").splitlines() if line.startswith("|")]
    entries = []
    for spec in MODELS:
        facts = describe_model(spec.name, weights_dir="/nowhere")
        entries.append(f"### `{spec.name}`\n")
        texts = {key: _quoted(value) for key, value in facts.items() if key != "name"}
        entries += [f"- {key}: {value}" for key, value in texts.items()]
        entries.append("")
    table = "\n".join(_without_last_column(lines))
    return f"""{_header("Models")}
These models have a name. `python -m probe models NAME` shows one entry and says whether its weights are here.
Other models are named by a prefix or a path; see [Your own model](your-model.md).

*projected* is the width of the features that `encode_image` returns, *before projection* the width of those before the
projection. GFLOPs are of the image encoder, for one image; a multiplication and an addition count as two operations.

{table}

`tiny` was trained by this project so that the suite can be run and tested offline. [Your own model](your-model.md#tiny)
says how. Do not use `tiny` for anything else.

## Entries

{chr(10).join(entries).rstrip()}
"""


def _without_last_column(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a table without its last column: where the weights are differs between machines."""
    for line in lines:
        yield line.rstrip(" |").rpartition("|")[0].rstrip() + " |"


def protocols_table() -> str:
    """Return the table of all protocols."""
    lines = [line for line in _printed("protocols").splitlines() if line.startswith("|")]
    return "\n".join(lines)


def all_protocols_table() -> str:
    """Return the scores of `tiny` on digits under all protocols, from the records, the best first."""
    found = [
        record
        for record in read_records(ROOT / "results")
        if isinstance(record, DoneRecord)
        and (record.model, record.mode, record.dataset, record.precision) == ("tiny", "eager", "digits", "fp32")
        and record.solver in (DEFAULT_SOLVER, NO_SOLVER)
    ]
    rows = [
        (
            f"`{record.protocol}`",
            images_a_class(record.spec.protocol),
            f"{100 * record.result.score:.2f}{'' if record.result.converged else ' *'}",
            interval_text(record.result.interval),
            f"{len(record.result.draws)} draws" if record.result.draws else "test images",
        )
        for record in sorted(found, key=lambda record: (-record.result.score, record.protocol))
    ]
    header = ("protocol", "images of each class", "score, %", "95 % confidence interval", "interval over")
    return markdown_table(header, rows)


def protocol_sources() -> str:
    """Return a list of the sources of the protocols; few-shot protocols that differ only in shots share one."""
    by_source: dict[str, list[str]] = {}
    for protocol in PROTOCOLS:
        by_source.setdefault(describe_protocol(protocol.name)["source"], []).append(f"`{protocol.name}`")
    return "\n".join(f"- {', '.join(names)}: {source}." for source, names in by_source.items())


def speed(name: str) -> str:
    """Return a page of `results/speed/` with its headings one level down, without its title."""
    text = (SPEED / f"{name}.md").read_text(encoding="utf-8").strip()
    text = re.sub(r"\A# .*\n+", "", text)
    return re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE)


def gpu_speeds() -> str:
    """Return the pages `gpu-*.md` of `results/speed/`, headings two levels down, or a sentence if there are none."""
    texts = [path.read_text(encoding="utf-8").strip() for path in sorted(SPEED.glob("gpu-*.md"))]
    return re.sub(r"^(#+) ", r"##\1 ", "\n\n".join(texts), flags=re.MULTILINE) or "No GPU has been measured yet."


def command_page() -> str:
    """Return the reference of the command line, from the parser."""
    found = list(commands())
    sections = [section for name, command, text in found for section in _command(name, command, text)]
    table = markdown_table(
        ("command", "what it does"),
        [(f"[{name}](#{_anchor(f'probe {name}')})", text) for name, _, text in found],
    )
    return f"""{_header("Command line")}
`python -m probe` and `probe` are the same. Results go to standard output; progress and messages go to standard error.

| exit code | meaning |
| --------- | ------- |
| 0 | done |
| 1 | an error, in one sentence, or a run or a further test set without a score |
| 2 | wrong usage, an unknown name, prompts that cannot be used, or missing files of a dataset or checkpoint |
| 130 | interrupted |

Square brackets at the end of a description hold the default.

{table}
## JSON

With `--json`, a command prints one JSON document. Scores are fractions. Values that are not known are null.

{markdown_table(("command", "document"), JSON)}
{chr(10).join(sections).rstrip()}
"""


def commands() -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield the name, the parser and the description of every command, in the order of `--help`."""
    return _commands(arguments.parser())


def _commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                if any(isinstance(inner, argparse._SubParsersAction) for inner in command._actions):
                    yield from _commands(command, f"{prefix}{name} ")
                else:
                    yield f"{prefix}{name}", command, _expand(texts.get(name, ""), command)


def _command(name: str, command: argparse.ArgumentParser, text: str) -> Iterator[str]:
    yield f"## `probe {name}`\n"
    yield _sentence(command.description or text) + "\n"
    places = " ".join(_place(action) for action in command._actions if not action.option_strings)
    yield f"```text\nprobe {name} [OPTION ...] {places}".rstrip() + "\n```\n"
    for group in command._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        rows = [
            (_flags(action), _expand(action.help, command))
            for action in actions
            if action.help is not argparse.SUPPRESS
        ]
        if rows:
            title = {"positional arguments": "argument", "options": "option"}.get(group.title or "", group.title or "")
            yield markdown_table((title, "meaning"), rows)


def _place(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "+": f"{name} ...", "*": f"[{name} ...]"}.get(str(action.nargs), name)


def _flags(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest.upper()}`"
    value = ""
    if action.nargs != 0:
        value = str(action.metavar or (",".join(action.choices) if action.choices else action.dest.upper()))
        value = f" [{value}]" if action.nargs == "?" else f" {value}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _expand(text: str | None, command: argparse.ArgumentParser) -> str:
    return (text or "").replace("%%", "%").replace("%(prog)s", command.prog)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":")) else ".")


def _printed(*command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(command) == 0
    return out.getvalue()


def _header(title: str) -> str:
    return f"# {title}\n\n<!-- Made by tools/docs/write_docs.py. Do not edit. -->\n"


def _quoted(text: str) -> str:
    """Return a text with addresses as links and digests as code."""
    text = re.sub(r"https?://\S+", lambda found: f"<{found.group()}>", text)
    return re.sub(r"\A[0-9a-f]{64}\Z", lambda found: f"`{found.group()}`", text)


def _anchor(title: str) -> str:
    """Return the anchor of a heading, as Python-Markdown and code forges make it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


PAGES: dict[str, Callable[[], str]] = {
    "docs/datasets.md": datasets_page,
    "docs/models.md": models_page,
    "docs/cli.md": command_page,
}
PARTS: dict[str, Callable[[], str]] = {
    "results": results_table,
    "solvers": solvers_table,
    "protocols": protocols_table,
    "protocol sources": protocol_sources,
    "all protocols": all_protocols_table,
    "speed/gpu": gpu_speeds,
    **{f"speed/{path.stem}": lambda name=path.stem: speed(name) for path in sorted(SPEED.glob("*.md"))},
}
