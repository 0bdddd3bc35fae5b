from test_records import make_record

from probe.derived import find_stale, write_derived
from probe.records import write_record

SHARED = {"leaderboard.csv", "leaderboard.md", "leaderboard.html", "jit_against_eager.csv", "jit_against_eager.md"}


def test_tables_that_differ_from_the_records_are_found(tmp_path):
    write_record(make_record(), tmp_path)
    assert {path.name for path in find_stale(tmp_path)} == {"tiny.eager.csv", "tiny.eager.md", *SHARED}
    write_derived(tmp_path)
    assert find_stale(tmp_path) == []
    write_record(make_record(score=0.6), tmp_path)
    (tmp_path / "tables" / "gone.eager.csv").write_text("")
    changed = {"tiny.eager.csv", "tiny.eager.md", "leaderboard.csv", "leaderboard.md", "leaderboard.html"}
    assert {path.name for path in find_stale(tmp_path)} == {*changed, "gone.eager.csv"}
    write_derived(tmp_path)
    assert [path.name for path in find_stale(tmp_path)] == ["gone.eager.csv"]  # perhaps the user's; never removed
