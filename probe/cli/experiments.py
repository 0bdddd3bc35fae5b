"""Experiment files: TOML files with options of `run`.

dataset = ["cifar10", "food101"]
model = ["ViT-B/32", "RN50"]
jit = "both"
protocol = ["clip-paper"]
offline = true

A key is the name of an option without its dashes, and a value means what it means on the command line, so paths are
relative to the current folder. Options on the command line override the file, for example with --no-offline. `run`
writes the file that repeats a command below the results folder.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe import paths
from probe.cli.arguments import UsageError, find_options
from probe.errors import printable
from probe.names import unknown_name
from probe.specs import DEFAULT_SOLVER, digest, slug

FOLDER = "experiments"  # below the results folder
# Options of one command rather than of an experiment, which no file may have.
OF_THE_COMMAND = ("plan", "rerun", "ray-workers", "json", "verbose", "help")
# Options that decide what runs, with a value for each option that has no default in the parser.
DECISIVE = {"dataset": [], "model": ["ViT-B/32"], "jit": "off", "protocol": ["clip-paper"], "solver": DEFAULT_SOLVER}


def add_experiment(
    parser: argparse.ArgumentParser, argv: Sequence[str], args: argparse.Namespace
) -> argparse.Namespace:
    """Return the options of a `run` command, with the options of its experiment file added.

    Args:
        parser: parser of the command line.
        argv: words of the command, of which the first is `run`.
        args: options in `argv`. They override the file: a repeatable option replaces the list of the file.

    Raises:
        UsageError: the file cannot be read, or a key or value is not valid; the message names the file and the key.
    """
    path = paths.expand_home(args.experiment)
    words = []
    for name, values in read_experiment(path).items():
        if find_options("run")[name].get("action") != "append" or getattr(args, _attribute(name)) is None:
            words += [f"--{name}" if value is True else f"--{name}={value}" for value in values]
    return parser.parse_args([argv[0], *words, *argv[1:]])


def read_experiment(path: Path) -> dict[str, list[Any]]:
    """Return the options in an experiment file: the name of each without dashes, and its values.

    Raises:
        UsageError: see `add_experiment`.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise UsageError(f"{path} does not exist; give the path of an experiment file, or use --dataset") from err
    except OSError as err:
        raise UsageError(f"{path} cannot be read ({err.strerror}); give the path of an experiment file") from err
    except ValueError as err:  # invalid TOML or UTF-8
        raise UsageError(f'{path} is not valid TOML ({err}); write lines such as dataset = ["digits"]') from err
    known = find_options("run")
    names = [name for name in known if name not in OF_THE_COMMAND]
    options = {}
    for name, value in table.items():
        if name in OF_THE_COMMAND and name in known:
            raise UsageError(f"{path}: {name} belongs on the command line; remove it from the file")
        if name not in names:
            raise UsageError(f"{path}: {unknown_name('key', name, names)}")
        options[name] = _check_values(value, name, known[name], path)
    return options


def _check_values(value: object, name: str, option: Mapping[str, Any], path: Path) -> list[Any]:
    """Return the values of an option as the command line takes them, after checking them."""
    if option.get("action") == "store_true":
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {name}: expected true or false, got {value!r}")
        return [True] if value else []
    is_repeatable = option.get("action") == "append"
    values = value if is_repeatable and isinstance(value, list) else [value]
    if not values:
        raise UsageError(f"{path}: {name}: the list is empty; give a value, or remove the key")
    kinds = str | int | float if option.get("type") is not None else str
    for one in values:
        if not isinstance(one, kinds) or isinstance(one, bool):
            expected = "a number" if option.get("type") is not None else "a text"
            more = ", or a list of texts" if is_repeatable else ""
            raise UsageError(f"{path}: {name}: expected {expected}{more}, got {one!r}")
        if one not in option.get("choices", [one]):
            raise UsageError(f"{path}: {name}: {unknown_name('value', str(one), list(option['choices']))}")
        try:
            option.get("type", str)(str(one))
        except argparse.ArgumentTypeError as err:
            raise UsageError(f"{path}: {name}: {err}") from err
    return values


def write_experiment(args: argparse.Namespace, results_dir: Path) -> Path:
    """Write the file that repeats a `run` command below the results folder, and return its path.

    The name of the file contains a digest of its options, so a repeated command writes the same file.

    Raises:
        ResultsError: the folder cannot be written to.
    """
    from probe.records.record import write_text

    options = given_options(args)
    text = "".join(f"{name} = {_to_toml(value)}\n" for name, value in options.items())
    name = ".".join([slug(options["dataset"][0]), slug(options["model"][0]), digest(options)[:8], "toml"])
    path = results_dir / FOLDER / name
    write_text(path, f"# Repeat these runs: python -m probe run {printable(path.as_posix())}\n{text}")
    return path


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a `run` command as an experiment file has them.

    Options with their default value are left out, except for those that decide what runs: their defaults may change.
    """
    options = {}
    for name, option in find_options("run").items():
        value = getattr(args, _attribute(name), None)
        default = option.get("default", False if option.get("action") == "store_true" else None)
        if name in DECISIVE and value is None:
            value = DECISIVE[name]
        if name not in OF_THE_COMMAND and (name in DECISIVE or value != default):
            options[name] = value
    return options


def _attribute(name: str) -> str:
    return name.replace("-", "_")


def _to_toml(value: Any) -> str:
    """Return a text, number, boolean or list of texts in TOML, whose texts have the escapes of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
