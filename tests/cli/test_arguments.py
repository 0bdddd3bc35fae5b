"""The parser: what `--help` prints, and which options commands have."""

import argparse
import re

import pytest

from probe.cli import arguments
from probe.cli.main import COMMANDS, main


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


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_takes_json_and_verbose_and_describes_all_options(name, capsys):
    text = _help(capsys, *name.split())
    assert "--json" in text
    assert "-v, --verbose" in text
    for action in PARSERS[name]._actions:
        assert re.match(r"[A-Z].*(\.|\])$", action.help), action.help  # a sentence, with the default at its end


@pytest.mark.parametrize("name", PARSERS)
def test_an_option_has_the_same_type_in_every_command(name):
    known = {flag: options[flag] for options in arguments.OPTIONS.values() for flag in options}
    for action in PARSERS[name]._actions:
        settings = known.get(", ".join(action.option_strings))
        assert not action.option_strings or action.type == settings.get("type")


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("probe ")


def test_ray_workers_are_for_a_plan(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--dataset", "digits", "--ray-workers", "2"])
    assert "--ray-workers requires --plan" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--html", "--json"], ["--plots", "x", "--format", "csv"]])
def test_a_leaderboard_has_one_form(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["leaderboard", *options])
    assert "not allowed with" in capsys.readouterr().err


def test_a_seed_without_a_hold_out_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "features.npz", "--seed", "3"])
    assert end.value.code == 2
    assert "--seed requires --val-fraction; add --val-fraction 0.1" in capsys.readouterr().err
