"""Output of --json: one document of each command, with typed values."""

import json
from types import SimpleNamespace

import pytest

from probe.cli.main import COMMANDS, main

RUNS = ["--dataset", "digits", "--model", "tiny", "--device", "cpu"]
FIT = ["--protocol", "readme", "--solver", "fast"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a record, features and a cache, and return their paths."""
    folder = tmp_path_factory.mktemp("json")
    cache, results = ["--cache-dir", str(folder / "cache")], ["--results-dir", str(folder / "results")]
    predictions = ["--predictions", str(folder / "results" / "predictions")]
    assert main(["run", *RUNS, *FIT, *cache, *results, *predictions, "--save-heads"]) == 0
    assert main(["extract", *RUNS, *cache, "--out", str(folder / "features.npz")]) == 0
    (record,) = (folder / "results" / "records" / "digits").iterdir()
    (head,) = (folder / "results" / "heads" / "digits").iterdir()
    return SimpleNamespace(
        folder=folder,
        cache=cache,
        results=results,
        record=str(record),
        head=str(head),
        features=str(folder / "features.npz"),
    )


def _document(capsys, *command):
    """Run a command, and return its exit code and its one document."""
    capsys.readouterr()
    code = main([*command, "--json"])
    return code, json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


# Options of each command, and the keys of its JSON object or of each object in its JSON array.
COMMAND_LINES = {
    "run": (lambda made: [*RUNS, *FIT, *made.cache, *made.results], ["result", "spec"]),
    "extract": (lambda made: [*RUNS, *made.cache], ["images", "state"]),
    "fit": (lambda made: [made.features, *FIT, *made.cache], ["score", "protocol"]),
    "predict": (lambda made: [made.head, "--dataset", "digits", "--device", "cpu"], {"head", "predictions", "skipped"}),
    "parity": (lambda made: ["--device", "cpu", *made.cache], {"verdict"}),
    "show": (lambda made: [made.record], {"classes", "confusions", "calibration"}),
    "tables": (lambda made: made.results, []),
    "leaderboard": (lambda made: made.results, {"sections"}),
    "diff": (lambda made: [made.record, made.record], {"changes", "verdict"}),
    "errors": (lambda made: [made.record], ["image", "label", "prediction", "probability"]),
    "reproduce": (lambda made: [made.record, *made.cache], ["verdict", "record"]),
    "card": (lambda made: [made.record], {"model-index"}),
    "datasets": (lambda made: [], ["name", "num_classes"]),
    "models": (lambda made: [], ["name", "parameters"]),
    "protocols": (lambda made: [], ["name", "grid"]),
    "audit": (lambda made: ["--dataset", "digits", *made.cache], {"equal", "candidates", "balance", "unreadable"}),
    "doctor": (lambda made: made.results, {"datasets", "models"}),
    "cache ls": (lambda made: made.cache, ["path", "size"]),
    "cache explain": (lambda made: [*RUNS, *made.cache], ["entry", "state"]),
    "cache verify": (lambda made: made.cache, {"checked", "damaged"}),
    "cache gc": (lambda made: made.cache, []),
}


def test_every_command_is_below():
    # `log` needs the libraries of trackers, see tests/tracking/test_trackers.py.
    assert COMMAND_LINES.keys() | {"log"} == COMMANDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_command_prints_one_document(name, made, capsys):
    options, keys = COMMAND_LINES[name]
    code, document = _document(capsys, *name.split(), *options(made))
    assert code == 0
    assert isinstance(document, dict if isinstance(keys, set) else list)
    for found in [document] if isinstance(keys, set) else document:
        assert set(keys) <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["run", *RUNS, "--plan"], dict),
        (["tables", "--check"], dict),
        (["leaderboard", "--out"], list),
        (["cache", "ls"], list),
        (["cache", "gc"], list),
        (["cache", "verify"], dict),
    ],
)
def test_an_option_or_an_empty_cache_does_not_change_that(options, kind, made, tmp_path, capsys):
    options = [*options, str(tmp_path / "board.json")] if options[-1] == "--out" else options
    folder = ["--cache-dir", str(tmp_path / "empty")] if options[0] == "cache" else made.results
    code, document = _document(capsys, *options, *folder)
    assert code == 0
    assert isinstance(document, kind)


def test_values_have_their_types(capsys):
    _, dataset = _document(capsys, "datasets", "digits")
    assert (dataset["num_classes"], dataset["subsets"], dataset["in_paper"]) == (10, {"all": 1797}, False)
    _, model = _document(capsys, "models", "tiny")
    assert (model["resolution"], model["modes"], model["is_here"]) == (32, ["eager", "jit"], True)
    assert model["parameters"] == 3_303_553
    _, protocol = _document(capsys, "protocols", "readme")
    assert protocol["grid"] == [0.316]
    _, group = _document(capsys, "protocols", "few-shot")
    assert [row["shots"] for row in group] == [1, 2, 4, 8, 16]
