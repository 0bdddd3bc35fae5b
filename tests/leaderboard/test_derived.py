from collections import Counter

import pytest
from make.records import RECORDS, make_record, precision_record, scored_record

from probe.cli.main import main
from probe.leaderboard import few_shot, ranking, sections, tables
from probe.leaderboard.derived import Stale, find_stale, write_derived
from probe.records import record as records_module
from probe.records.record import write_record
from probe.stats import deviations

SHARED = {"leaderboard.csv", "leaderboard.md", "leaderboard.html", "jit_against_eager.csv", "jit_against_eager.md"}


def test_tables_that_differ_from_the_records_are_found(tmp_path):
    write_record(make_record(), tmp_path)
    tables = {"tiny.eager.csv", "tiny.eager.md"}
    assert {path.name for path in find_stale(tmp_path).differing} == {*tables, *SHARED}
    write_derived(tmp_path)
    assert find_stale(tmp_path) == Stale([], [], [])
    write_record(make_record(score=0.6), tmp_path)
    gone = tmp_path / "tables" / "gone.eager.csv"
    gone.write_text("")
    changed = {*tables, "leaderboard.csv", "leaderboard.md", "leaderboard.html"}
    assert {path.name for path in find_stale(tmp_path).differing} == changed
    write_derived(tmp_path)
    assert find_stale(tmp_path) == Stale([], [gone], [])  # never removed, because it may belong to the user


def test_names_that_are_no_text_and_files_that_are_none_do_not_stop_the_check(tmp_path):
    write_record(make_record(model="m\udcff"), tmp_path)
    write_derived(tmp_path)
    assert find_stale(tmp_path) == Stale([], [], [])
    (tmp_path / "leaderboard.md").write_bytes(b"\xff")
    assert [path.name for path in find_stale(tmp_path).differing] == ["leaderboard.md"]


def test_the_work_of_a_record_is_done_once(tmp_path, monkeypatch):
    """A thousand records take seconds, so no step may be repeated for each column, section or pair of models."""
    models = ("a", "b", "c", "d")
    for i, model in enumerate(models):
        write_record(precision_record(model, i), tmp_path)
        for dataset in ("digits", "mnist"):
            write_record(scored_record(model, 40 + i, dataset=dataset), tmp_path)
    for cached in (sections._digest_rules, few_shot._digest_rules):
        cached.cache_clear()
    counted = {
        **{(records_module, "decode_record"): 12, (tables, "row"): 12},
        (deviations, "bootstrap"): 4,  # one for each record that is scored by average precision
        (ranking, "mcnemar_of_pairs"): 2,  # one for each dataset that is scored by accuracy
        **{(sections, "identity_fields"): 1, (few_shot, "identity_fields"): 1},  # one for each protocol
    }
    calls = Counter()
    for module, name in counted:
        _count_calls(monkeypatch, module, name, calls)
    write_derived(tmp_path)
    assert calls == counted


def _count_calls(monkeypatch, module, name, calls):
    original = getattr(module, name)

    def count_and_call(*args, **options):
        calls[module, name] += 1
        return original(*args, **options)

    monkeypatch.setattr(module, name, count_and_call)


def test_no_records_leave_no_empty_leaderboard(tmp_path):
    """A command that was interrupted before its first record leaves such a folder."""
    assert write_derived(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_leaderboard_is_printed_or_written(tmp_path, capsys):
    for record in RECORDS:
        write_record(record, tmp_path)
    folder = ["--results-dir", str(tmp_path)]
    assert main(["leaderboard", *folder]) == 0
    assert "## readme, projected features, sklearn, jit, fp32" in capsys.readouterr().out
    assert main(["leaderboard", *folder, "--protocol", "clip-paper"]) == 0
    assert "readme" not in capsys.readouterr().out
    assert main(["leaderboard", *folder, "--format", "latex", "--out", str(tmp_path / "board.tex")]) == 0
    assert (tmp_path / "board.tex").read_text().count("\\begin{tabular}") == 3
    assert main(["leaderboard", *folder, "--protocol", "nothing"]) == 1
    assert "nothing" in capsys.readouterr().err
    assert main(["leaderboard", "--results-dir", str(tmp_path / "nowhere")]) == 1
    assert "no records in" in capsys.readouterr().err


def test_a_page_of_some_records_does_not_take_the_place_of_that_of_all(tmp_path, capsys):
    for record in RECORDS:
        write_record(record, tmp_path / "results")
    folder = ["--results-dir", str(tmp_path / "results")]
    assert main(["leaderboard", *folder, "--html", "--protocol", "readme", "--out", str(tmp_path / "page.html")]) == 0
    assert '"folder":"results/"' in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "results" / "leaderboard.html").exists()


@pytest.mark.parametrize(
    "both",
    [
        ["leaderboard", "--html", "--format", "latex"],
        ["leaderboard", "--html", "--plots", "x"],
        ["tables", "--check", "--compare", "clip-paper"],
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(both):
    with pytest.raises(SystemExit) as stopped:
        main(both)
    assert stopped.value.code == 2
