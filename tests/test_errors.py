import inspect
import json

import numpy as np
import pytest
from make.records import make_record

from probe import errors, grid, names, runner
from probe.cli.main import main
from probe.datasets import subsets
from probe.datasets.sources import cards as repository_cards
from probe.datasets.sources import columns
from probe.features import files
from probe.features.extraction import Session
from probe.leaderboard import cards
from probe.records.record import read_record


def test_every_error_is_a_probe_error_and_is_documented():
    """`except ProbeError` catches all errors, and the tree in the docstring is complete."""
    for name, value in vars(errors).items():
        if inspect.isclass(value):
            assert issubclass(value, errors.ProbeError)
            assert name in errors.__doc__


def test_messages_are_not_quoted():
    """`KeyError` shows the repr of its message, which users must not see."""
    assert str(errors.UnknownNameError("unknown dataset")) == "unknown dataset"


def test_no_message_is_longer_than_a_paragraph():
    """A name of a hundred thousand characters must not hide what to do."""
    message = str(errors.DatasetError(f"unknown dataset {'x' * 100_000!r}; give another name"))
    assert len(message) <= errors.MAX_MESSAGE
    assert message.startswith("unknown dataset 'xxx")
    assert message.endswith("xxx'; give another name")


@pytest.mark.parametrize("gap", ["/", " ", "\n", "x"])
@pytest.mark.parametrize("length", [10, 240, 400, 1000, 100_000])
def test_neither_the_name_of_a_file_nor_what_to_do_is_cut(gap, length):
    path = "/data/" + ("folder" + gap) * (length // 7) + "/train.tar"
    message = str(errors.DatasetError(f"{path} is damaged ({'y' * length}); get the file again"))
    assert len(message) <= errors.MAX_MESSAGE
    assert message.startswith("/data/folder")
    assert message.endswith("); get the file again")
    if gap != " ":  # with spaces, the path consists of many words
        assert "/train.tar is damaged (y" in message


def test_messages_do_not_control_the_terminal():
    message = str(errors.DatasetError("no folder at /data/\x1b[31m\n\u202e\udce9\x00; check it"))
    assert message == r"no folder at /data/\x1b[31m\n\u202e\udce9\x00; check it"


def test_letters_of_all_scripts_are_printable():
    text = "café cafe\u0301 模型 модель שלום \u0645\u06cc\u200c\u062e\u0648 \U0001f469\u200d\U0001f4bb $ \\ ' \""
    assert errors.printable(text) == text


def test_messages_of_other_libraries_are_cut():
    assert errors.summarize(RuntimeError("two\nlines")) == "two lines"
    assert errors.summarize(RuntimeError()) == "RuntimeError"
    assert len(errors.summarize(RuntimeError("x" * 10_000))) == errors.MAX_REASON
    assert len(errors.sentence("RuntimeError", "x\n" * 10_000)) <= errors.MAX_MESSAGE


def test_a_record_holds_no_more_than_a_paragraph_of_an_error(monkeypatch):
    specs = grid.plan(["digits"], ["tiny"], protocols=["readme"], device="cpu")

    def fail(*_, **__):
        raise RuntimeError("in C++\n" * 10_000)

    monkeypatch.setattr(runner, "run_one", fail)
    (run,) = runner.run_all(specs, Session())
    assert len(run.record.error.message) <= errors.MAX_MESSAGE


@pytest.mark.parametrize(
    "arguments",
    [
        ["x" * 10_000],
        ["run", "--dataset", "digits", "--jit", "x" * 10_000],
        ["run", "--dataset", "digits", "--threads", "9" * 10_000],
        ["run", "--dataset", "digits", *["y" * 50] * 1000],
        ["extract", "--dataset", "digits", "--shard", "\n" * 1000],
        ["fit", "a.npz", f"--{'x' * 10_000}"],
    ],
)
def test_messages_of_wrong_usage_are_short(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    message = capsys.readouterr().err.splitlines()[-1]
    assert len(message) <= errors.MAX_MESSAGE + len("probe extract: error: ")


MANY = [f"name-{i:05}-{'x' * 30}" for i in range(5000)]


@pytest.mark.parametrize(
    "error",
    [
        lambda _: names.unknown_name("model", "zzz", MANY),
        lambda _: names.unknown_name("model", "z\n" * 50_000, MANY, forms="folder:PATH"),
        lambda _: cards.model_index([make_record(model=name) for name in MANY[:500]]),
        lambda path: _read({"schema_version": 3, **dict.fromkeys(MANY)}, path),
        lambda path: files.load(_save(path)),
        lambda _: repository_cards._no_config("hub", "zzz", dict.fromkeys(MANY)),
        lambda _: subsets.choose_subsets("hf:x", {}, {}, names=MANY),
        lambda _: columns._choose_column("set", dict.fromkeys(MANY), "", (), (), "image"),
    ],
)
def test_lists_in_messages_are_cut_with_a_count(error, tmp_path):
    try:
        message = str(error(tmp_path))
    except errors.ProbeError as err:
        message = str(err)
    assert len(message) <= errors.MAX_MESSAGE
    assert " more" in message


def _read(fields, path):
    (path / "a.json").write_text(json.dumps(fields))
    return read_record(path / "a.json")


def _save(path):
    np.savez(path / "a.npz", **dict.fromkeys(MANY[:200], np.zeros(1)))
    return path / "a.npz"


def test_lists_are_cut_with_a_count():
    assert errors.listed("abc", most=3) == "a, b, c"
    assert errors.listed("abcde", most=3) == "a, b, c and 2 more"
    assert len(errors.listed(["x" * 1000] * 1000)) <= errors.MAX_MESSAGE + 100
