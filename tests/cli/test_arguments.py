"""The parser: the text of `--help`, and the options of each command."""

import argparse
import re

import pytest

from probe.cli import arguments
from probe.cli.main import COMMANDS, main
from probe.models.devices import DTYPES
from probe.stats.metrics import METRICS
from probe.tracking.trackers import TRACKERS


def _commands(parser, prefix=""):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _commands(command, f"{prefix}{name} ")
                if command.get_default("command"):
                    yield f"{prefix}{name}", command


PARSERS = dict(_commands(arguments.parser()))


def _help(capsys, *command):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    return capsys.readouterr().out


def test_every_command_of_the_parser_runs_a_function():
    assert PARSERS.keys() == COMMANDS.keys()
    assert all(parser.get_default("command") == name for name, parser in PARSERS.items())


def test_help_lists_every_command_once_in_groups(capsys):
    text = _help(capsys)
    listed = re.findall(r"^  ([a-z]+) +[A-Z]", text, re.MULTILINE)
    assert sorted(listed) == sorted({name.split()[0] for name in PARSERS})
    titles = [line for line in text.splitlines() if line.endswith(":")]
    assert titles == [*(f"{title}:" for title in arguments.COMMANDS), "options:"]


def _shown_actions(name):
    """Return the actions of a command without those such as --no-offline, which `--help` does not list."""
    return [action for action in PARSERS[name]._actions if action.help != argparse.SUPPRESS]


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_takes_json_and_verbose_and_describes_all_options(name, capsys):
    text = _help(capsys, *name.split())
    assert "--json" in text
    assert "-v, --verbose" in text
    for action in _shown_actions(name):
        assert re.match(r"[A-Z].*(\.|\])$", action.help), action.help  # a sentence, with the default at its end


@pytest.mark.parametrize("name", PARSERS)
def test_an_option_has_the_same_type_in_every_command(name):
    known = {flag: options[flag] for options in arguments.OPTIONS.values() for flag in options}
    for action in _shown_actions(name):
        settings = known.get(", ".join(action.option_strings))
        assert not action.option_strings or action.type == settings.get("type")


def test_the_choices_are_those_of_the_library():
    """The parser repeats the choices, because `--help` must not import NumPy or torch."""
    assert list(arguments.METRICS) == list(METRICS)
    assert list(arguments.TRACKERS) == list(TRACKERS)
    choices = next(action.choices for action in PARSERS["run"]._actions if action.dest == "precision")
    assert set(choices) == {"auto", *DTYPES}


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("probe ")


@pytest.mark.parametrize("options", [["--html", "--json"], ["--plots", "x", "--format", "csv"]])
def test_a_leaderboard_has_one_form(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["leaderboard", *options])
    assert "not allowed with" in capsys.readouterr().err


RUN = ["run", "--dataset", "digits"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*RUN, "--ray-workers", "2"], "--ray-workers requires --plan"),
        ([*RUN, "--ray-address", "auto"], "--ray-address requires --executor ray"),
        ([*RUN, "--executor", "ray", "--device", "cuda:1"], "give --device cuda instead of --device cuda:1"),
        ([*RUN, "--compile", "--jit", "both"], "use --compile with --jit off"),
        (["extract", "--dataset", "digits", "--shard", "1/2", "--out", "a.npz"], "remove --shard"),
        (["extract", "--dataset", "digits", "--jit", "both", "--out", "a.npz"], "this command has 2 runs"),
        (["fit", "features.npz", "--seed", "3"], "--seed requires --val-fraction; add --val-fraction 0.1"),
        (["leaderboard", "--plots", "folder", "--out", "file"], "remove --out"),
        (["leaderboard", "--format", "parquet"], "name a file with --out"),
        (["leaderboard", "--html", "--protocol", "readme"], "name another file with --out"),
        (["datasets", "digits", "--page"], "remove --json and the name"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage_of_the_command(command, message, tmp_path, capsys):
    folder = ["--results-dir", str(tmp_path)] if command[0] == "leaderboard" else []
    with pytest.raises(SystemExit) as end:
        main([*command, *folder])
    assert end.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"probe {command[0]}: error: ")
    assert message in sentence


def test_a_wrong_choice_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*RUN, "--precision", "fp8"])
    assert "argument --precision: invalid choice: 'fp8'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["audit", "parity"])
def test_a_command_for_one_dataset_refuses_two(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([command, "--dataset", "digits", "--dataset", "cifar10"])
    assert "argument --dataset: this command takes one value, so give the option once" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["models", "module:"], ["models", "module:", "--json"]])
def test_a_family_without_names_has_an_empty_list(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == ("[]\n" if "--json" in words else "")
    assert ("give one of random:NAME" in printed.err) == ("--json" not in words)
