"""Every command handles 200 hostile names without a traceback or an overwritten file, and its output can be parsed."""

import csv
import io
import json
import logging
import random
import re
import shutil
import sys
import xml.etree.ElementTree as ET  # parses only files that we wrote
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import yaml
from make.records import changed, make_failure, page_record
from PIL import Image

from probe import load_clip, load_encoder, open_split, specs
from probe.cli.main import main
from probe.errors import MAX_MESSAGE, DatasetError, printable
from probe.leaderboard.labels import short_names
from probe.leaderboard.tables import csv_value, markdown_text
from probe.progress import Progress
from probe.records.record import locate_records, read_records, write_record
from probe.records.schema import SweepRecord

TINY = Path(specs.__file__).parent / "tiny" / "tiny.pt"
CHUNKS = [
    *("$", "a$_$b", "$x^2$", "%", "_", "__", "&", "#", "\\", "\\\\", "{", "}", "{}", "^", "~", "|", "\\|", "a\\b\\"),
    *("\n", "\r\n", "\t", "\v", "\f", "\x00", "\x07", "\x1b[31m", "\x1b]0;title\x07", "\x7f", "\x85", "\x9b2J"),
    *("\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\u2029", "\u200d", "\ufeff", "\ufffe", "\uffff", "\xa0"),
    *("lat\udce9n", "\ud800", "caf\xe9", "cafe\u0301", "模型", "модель", "שלום", "مرحبا", "\U0001f600", "\U0001d54f"),
    *('"', "'", "`", "''", "<script>alert(1)</script>", "</script>", "<!--", "-->", "]]>", "&amp;", "<b>", "<"),
    *("=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0", ",", ";", "a,b", '"a","b"', "'=1"),
    *("CON", "nul", "aux.txt", "COM1", ".", "..", "...", ".hidden", "-rf", "--help", "-", " ", "  ", " a", "a "),
    *("../../escape", "/etc/passwd", "C:\\x", "a/b", "a//b", "a--b", "a:b", "a*?[b]", "[x]", "*", "**b**", "[x](y)"),
    *("%s", "%(message)s", "{0}", "{name!r}", "${HOME}", "$(id)", "`id`", "__proto__", "constructor", "None", "nan"),
    *("mean", "model", "rank", "dataset:mean", "a_low", "eager", "m.eager.p", "fits", "x" * 300, "é" * 200, "1e5"),
]


def hostile_names(num=200):
    """Return the fragments, then pairs of fragments with a letter between them. The order is the same in every run."""
    rng = random.Random(0)
    names = dict.fromkeys(CHUNKS)
    while len(names) < num:
        names[f"{rng.choice(CHUNKS)}{rng.choice('aB7')}{rng.choice(CHUNKS)}"] = None
    return list(names)[:num]


NAMES = hostile_names()
SAFE = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*")


def _check_printed(captured, code):
    """Check that messages are short and that printed text does not control the terminal."""
    out, err = captured
    assert SAFE.fullmatch(out), ascii(out)
    assert SAFE.fullmatch(err), ascii(err)
    assert "Traceback" not in err
    for line in err.splitlines():
        assert len(line) <= MAX_MESSAGE + len("probe leaderboard: error: "), line
    assert code == 0 or err


def _call(capsys, *arguments):
    try:
        code = main(list(arguments))
    except SystemExit as end:  # raised by argparse
        code = end.code
    captured = capsys.readouterr()
    _check_printed(captured, code)
    return code, captured.out


@pytest.fixture(scope="module")
def records():
    """Make records with every name as a model, a dataset and a protocol. Sections have twenty names, then one."""
    n, found = len(NAMES), []
    for k, name in enumerate(NAMES):
        found.append(page_record(NAMES[-k - 1], name, 20 + k % 40, protocol=NAMES[k // 20]))
        found.append(
            page_record(f"folder:/data/{name}", f"open_clip:A/{name}/a.pt", 20 + k % 40, protocol=NAMES[(k + 50) % n])
        )
    for k in (0, 200):  # the plots show the sweeps of these records
        sweep = tuple(SweepRecord(C, score, n_iter=12, converged=True) for C, score in ((0.1, 0.5), (0.316, 0.9)))
        found[k] = changed(found[k], "result.sweep", sweep)
    spec = replace(found[4].spec, precision="fp16")
    found.append(make_failure("\x1b[31m" + "<script> | $x$ \n" * 1000, spec=spec))
    return found


@pytest.fixture(scope="module")
def results(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for record in records:
        write_record(record, folder)
    return folder


@pytest.mark.slow
def test_no_record_overwrites_another(records, results):
    files = [path for path in results.rglob("*") if path.is_file() and path.parent.parent.name == "records"]
    assert len({str(path).lower() for path in files}) == len(records)
    assert sorted(record.key for record in read_records(results)) == sorted(record.key for record in records)


@pytest.mark.slow
def test_tables_can_be_parsed(records, results, capsys):
    assert _call(capsys, "tables", "--results-dir", str(results))[0] == 0
    assert _call(capsys, "tables", "--check", "--results-dir", str(results))[0] == 0
    models = {record.model for record in records}
    assert len({path.name.lower() for path in (results / "tables").iterdir()}) == 2 * len(models)
    for path in (results / "tables").iterdir():
        text = path.read_text(encoding="utf-8")
        assert SAFE.fullmatch(text)
        if path.suffix == ".csv":
            rows = list(csv.reader(io.StringIO(text), strict=True))
            assert {len(row) for row in rows} == {len(rows[0])}
        else:
            _check_markdown(text)


def _check_markdown(text):
    """Check that all lines of a table have the same number of cells, and that no name is read as HTML."""
    assert "<script" not in text
    assert "<!--" not in text
    width = None
    for line in text.splitlines():
        if line.startswith("| "):
            cells = re.sub(r"\\[\\|]", "", line).count("|")
            assert cells == (width or cells), line
            width = cells
        else:
            width = None


def _leaderboard(capsys, results, *arguments):
    code, out = _call(capsys, "leaderboard", "--results-dir", str(results), *arguments)
    assert code == 0
    return out


@pytest.mark.slow
def test_the_leaderboard_can_be_parsed(records, results, tmp_path, capsys):
    models, datasets = {r.model for r in records}, {r.dataset for r in records}
    _check_markdown(_leaderboard(capsys, results))

    rows = list(csv.DictReader(io.StringIO(_leaderboard(capsys, results, "--format", "csv")), strict=True))
    assert {row["model"] for row in rows} == {csv_value(name) for name in models}
    assert {row["protocol"] for row in rows} == {csv_value(r.protocol) for r in records}
    assert len(rows[0]) == 12 + 5 * len(datasets)
    assert not [value for row in rows for value in row.values() if value.startswith(("=", "+", "@"))]

    found = json.loads(_leaderboard(capsys, results, "--format", "json"))["sections"]
    assert {line["model"] for section in found for line in section["models"]} == models
    assert {name for section in found for name in section["datasets"]} == datasets

    _leaderboard(capsys, results, "--format", "parquet", "--out", str(tmp_path / "t.parquet"))
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.num_columns == 12 + 5 * len(datasets)
    assert set(table["model"].to_pylist()) == {name.encode("utf-8", "backslashreplace").decode() for name in models}

    text = _leaderboard(capsys, results, "--format=latex")
    token = r"\\[&%$#_{}]|\\text[a-z]+\{\}|-\{\}|\\,\$\\pm\$\\,|[^\\&%$#_{}~^|<>\n]"
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == len(found) + sum(len(section["models"]) for section in found)
    for row in rows:
        assert re.fullmatch(rf"(\{{\}}|(?![\[*]))({token})*( & ({token})*)* \\\\", row), row


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.texts, self.data = set(), set(), {}, ""
        self.stack = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.stack.append((tag, dict(attributes)))
        if tag == "tr" and "data-model" in self.stack[-1][1]:
            self.rows.add(self.stack[-1][1]["data-model"])

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self.stack and self.stack[-1][0] == "script":
            self.texts.setdefault(self.stack[-1][1].get("id", "code"), "")
            self.texts[self.stack[-1][1].get("id", "code")] += data


@pytest.mark.slow
def test_the_page_can_be_parsed(records, results, tmp_path, capsys):
    folder = tmp_path / "a#b?c%20 d"
    _leaderboard(capsys, results, "--html", "--out", str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert SAFE.fullmatch(text)
    page = _Page(text)
    assert page.rows == {printable(record.model) for record in records}
    assert set(page.texts) == {"data", "code"}
    assert len(re.findall(r"<script", text)) == 2
    data = json.loads(page.texts["data"])
    assert len(data["records"]) == len(records)
    assert {one["file"] for one in data["records"]} == {
        path.relative_to(results).as_posix() for path, _ in locate_records(results)
    }
    write_record(records[0], folder)
    _leaderboard(capsys, folder, "--html", "--out", str(tmp_path / "page.html"))
    data = json.loads(_Page((tmp_path / "page.html").read_text(encoding="utf-8")).texts["data"])
    assert data["folder"] == "a%23b%3Fc%2520%20d/"


@pytest.mark.slow
def test_plots_show_the_names(records, tmp_path, capsys):
    """Plots show names as text, not as formulas, and no plot overwrites another."""
    for start in (0, 100):
        part = [record for record in records[2 * start : 2 * start + 40 : 2] if record.result]
        for record in part:
            write_record(record, tmp_path / f"r{start}")
        shown = _leaderboard(capsys, tmp_path / f"r{start}", "--plots", str(tmp_path / f"p{start}")).splitlines()
        assert len({path.lower() for path in shown}) == len(shown) == 4
        texts = []
        for path in map(Path, shown):
            if path.suffix == ".svg":
                texts += [text for node in ET.parse(path).iter() for text in [node.text] if text]
            else:
                with Image.open(path) as image:
                    image.verify()
        short = {printable(record.model).strip() for record in part if len(record.model) <= 20}
        assert short <= {text.strip() for text in texts}


@pytest.mark.slow
def test_records_in_cards_differences_and_reproductions(records, results, tmp_path, capsys):
    paths = {record.key: path for path, record in locate_records(results)}
    for k, record in enumerate(records[::2]):
        path = str(paths[record.key])
        if record.result:
            code, out = _call(capsys, "card", path)
            assert code == 0
            (found,) = yaml.safe_load(out)["model-index"]
            assert str(found["name"]) == short_names([record.model])[record.model]
            assert len(found["results"]) == 1
        assert _call(capsys, "diff", path, str(paths[records[0].key]))[0] == 0
        if k % 10 == 0:
            assert _call(capsys, "reproduce", path, "--offline")[0] == 1


def _go_nowhere(folder, monkeypatch):
    """Work in an empty folder. The folders ~ and ../.. are almost empty, too."""
    (folder / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(folder / "a" / "b" / "c")
    monkeypatch.setenv("HOME", str(folder / "a" / "b" / "c"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["", "folder:", "hf:", "wds:", "torchvision:", "x/", "~"])
def test_unknown_datasets_are_refused(form, tmp_path, capsys, monkeypatch):
    _go_nowhere(tmp_path, monkeypatch)
    for name in NAMES:
        _call(capsys, "datasets", "--data-dir", "d", "--", form + name)
    for name in NAMES[::8]:
        for command in ("run", "extract", "cache explain"):
            more = ["--results-dir", "r"] if command == "run" else []
            code, _ = _call(
                capsys, *command.split(), f"--dataset={form}{name}", "--model=tiny", "--offline", "--data-dir=d", *more
            )
            assert code in (1, 2)
        assert _call(capsys, "parity", f"--dataset={form}{name}", "--offline", "--data-dir=d")[0] in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["", "random:", "hf:", "open_clip:", "open_clip:ViT-B-32/", "x/", "~"])
def test_unknown_models_are_refused(form, tmp_path, capsys, monkeypatch):
    _go_nowhere(tmp_path, monkeypatch)
    for name in NAMES:
        _call(capsys, "models", "--weights-dir", "w", "--", form + name)
    for name in NAMES[::8]:
        for command in ("run", "extract", "cache explain", "run --plan"):
            more = ["--results-dir", "r"] if command == "run" else []
            arguments = [*command.split(), "--dataset=digits", f"--model={form}{name}", "--offline", *more]
            assert _call(capsys, *arguments)[0] in (1, 2)


@pytest.mark.slow
def test_unknown_protocols_files_and_options_are_refused(tmp_path, capsys, monkeypatch):
    _go_nowhere(tmp_path, monkeypatch)
    for name in NAMES[::2]:
        _call(capsys, "protocols", "--", name)
        _call(capsys, "protocols", "--", f"{name}.toml")
        for command in ("fit", "card", "diff", "reproduce"):
            _call(capsys, command, "--", *[name] * (2 if command == "diff" else 1))
        for command in ("leaderboard", "tables", "doctor" if name == "a,b" else "tables", "cache ls", "cache verify"):
            option = "--cache-dir" if "cache" in command else "--results-dir"
            _call(capsys, *command.split(), f"{option}=there/is/no/{name}")
        _call(capsys, "run", "--dataset=digits", f"--jit={name * 50}")
        _call(capsys, "run", "--dataset=digits", f"--threads={name}")
        _call(capsys, name)


END_TO_END = ["a$_$b", "lat\udce9n \n|<b>", "\x1b[31m%s{0}#?&=\\", "-rf 模型 \U0001f600\u202e", "=1+1,\"'"]


@pytest.mark.slow
@pytest.mark.parametrize("name", END_TO_END, ids=ascii)
def test_a_complete_run_with_hostile_names(name, tmp_path, capsys, monkeypatch):
    """A folder of images, a checkpoint and a protocol have a hostile name and are in a folder of the same name."""
    place = tmp_path / name
    for c, colour in (("x", 0), ("y", 200)):
        (place / c).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (colour + i, 0, 0)).save(place / c / f"{name}{i}.png")
    (tmp_path / "m" / name).mkdir(parents=True)
    shutil.copy(TINY, tmp_path / "m" / name / f"{name}.pt")
    (tmp_path / "m" / f"{name}.toml").write_text('name = "own"\ngrid = [0.1, 1.0]\n')
    for folder in ("DATA", "WEIGHTS", "CACHE", "RESULTS"):
        monkeypatch.setenv(f"PROBE_{folder}_DIR", str(tmp_path / folder / name))
    dataset, model = f"--dataset=folder:{place}", f"--model={tmp_path / 'm' / name / name}.pt"
    protocol = f"--protocol={tmp_path / 'm' / name}.toml"
    grid = (dataset, model, "--device=cpu")

    assert _call(capsys, "run", *grid, protocol)[0] == 0
    assert _call(capsys, "run", *grid, protocol, "--plan")[0] == 0
    assert _call(capsys, "run", *grid, protocol, "--json")[0] == 0
    out = tmp_path / "m" / f"{name}.npz"
    assert _call(capsys, "extract", *grid, "--jit=on", f"--out={out}")[0] == 0
    assert _call(capsys, "fit", protocol, "--device=cpu", "--", str(out))[0] == 0
    assert _call(capsys, "fit", protocol, "--device=cpu", "--json", "--", str(out))[0] == 0
    assert _call(capsys, "parity", *grid)[0] == 0
    assert _call(capsys, "datasets", f"folder:{place}")[0] == 0
    assert _call(capsys, "models", model.removeprefix("--model="))[0] == 0
    assert _call(capsys, "protocols", protocol.removeprefix("--protocol="))[0] == 0
    assert _call(capsys, "cache", "ls")[0] == 0
    assert _call(capsys, "cache", "explain", *grid)[0] == 0
    assert _call(capsys, "cache", "verify")[0] == 0
    assert _call(capsys, "tables")[0] == 0
    assert _call(capsys, "tables", "--check")[0] == 0
    for options in ([], ["--html"], ["--plots", str(tmp_path / "plots" / name)], ["--format=csv"], ["--format=latex"]):
        assert _call(capsys, "leaderboard", *options)[0] == 0
    assert _call(capsys, "leaderboard", "--format=parquet", f"--out={tmp_path / name}.parquet")[0] == 0
    ((path, _),) = locate_records(tmp_path / "RESULTS" / name)
    assert _call(capsys, "card", str(path))[0] == 0
    assert _call(capsys, "diff", str(path), str(path))[0] == 0
    assert _call(capsys, "reproduce", str(path))[0] == 0
    assert _call(capsys, "cache", "gc", "--max-size=0MB")[0] == 0


def _write_classes(folder):
    for part in ("train", "test"):
        for c in "xy":
            (folder / part / c).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / part / c / f"{i}.png")
    return folder


def test_a_path_that_is_a_pattern_is_not_read_as_one(tmp_path):
    """For the folder a*b, the library datasets would also read all folders that match this pattern."""
    _write_classes(tmp_path / "a-b")
    for name in ("a*b", "a?b", "a[-]b", "lat\udce9n", "a\nb"):
        path = _write_classes(tmp_path / name)
        assert len(open_split(f"folder:{path}", "test")) == 6
        if "?" not in name:  # a `?` begins the options of a dataset
            with pytest.raises(DatasetError, match=r"in its name, .*; rename it"):
                open_split(f"hf:{path}", "test")
    assert len(open_split(f"hf:{tmp_path / 'a-b'}", "test")) == 6


@pytest.mark.parametrize("name", ["lat\udce9n", "a$_$b\n"])
def test_weights_in_a_folder_with_an_undecodable_name_are_read(name, tmp_path):
    """The readers of TorchScript and safetensors accept only paths that are valid text."""
    (tmp_path / name).mkdir()
    archive, weights = tmp_path / name / "a.pt", tmp_path / name / "a.safetensors"
    shutil.copy(TINY, archive)
    weights.write_bytes(
        safetensors.torch.save({k: v.contiguous() for k, v in load_clip("tiny")[0].state_dict().items()})
    )
    image = Image.new("RGB", (32, 32), (200, 100, 0))
    features = [
        encoder.encode(torch.from_numpy(encoder.preprocess.to_pixels(image))[None]).projected
        for encoder in (load_encoder(str(archive)), load_encoder(str(archive), jit=True), load_encoder(str(weights)))
    ]
    assert all(torch.allclose(other, features[0], atol=1e-5) for other in features)


def test_the_progress_bar_shows_a_name_in_one_line(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress()
    bar.name("a\n\x1b[31m\udce9")
    bar.close()
    assert r"a\n\x1b[31m\udce9: " in sys.stderr.getvalue()


def test_a_log_message_is_short_and_printable(capsys, tmp_path, monkeypatch):
    """The command line installs its own log handler if there is none."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    main(["cache", "ls", "--cache-dir", str(tmp_path)])
    logging.getLogger("probe.x").warning("%s is damaged; remove it", "/data/" + "\x1b[31m" * 1000 + "/file.json")
    err = capsys.readouterr().err
    assert len(err) <= MAX_MESSAGE + 1
    assert SAFE.fullmatch(err)
    assert err.endswith("/file.json is damaged; remove it\n")


def test_html_is_escaped_in_markdown():
    assert markdown_text("<script>\\<b>") == "&lt;script>\\&lt;b>"
