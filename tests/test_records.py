import json
from dataclasses import replace
from pathlib import Path

import pytest

from probe.errors import ResultsError
from probe.records import (
    FAILED,
    SCHEMA_VERSION,
    RunRecord,
    check_writable,
    read_records,
    record_path,
    write_record,
    write_text,
)


def make_record(dataset="digits", model="tiny", *, jit=False, protocol="readme", score=0.5, converged=True, **changes):
    """A record as the runner writes it, with made-up numbers."""
    record = RunRecord(
        status="done",
        spec={
            "dataset": {"name": dataset, "form": "embedded", "metric": "accuracy"},
            "model": {"name": model, "form": "url"},
            "protocol": {"name": protocol, "feature_point": "projected"},
            "jit": jit,
            "precision": "fp32",
        },
        created="2026-01-01T00:00:00+00:00",
        encoder={"weights_sha256": "ab" * 32},
        splits={},
        features={},
        result={
            "score": score,
            "C": 0.316,
            "n_iter": 12,
            "converged": converged,
            "gradient_ratio": 1e-5,
            "num_train": 100,
            "num_test": 50,
        },
        parity=None,
        seconds={},
        environment={},
    )
    return replace(record, **changes)


def make_failure(message="no images", **arguments):
    return make_record(**arguments, status=FAILED, result=None, error={"type": "DatasetError", "message": message})


def test_a_record_comes_back_as_it_was(tmp_path):
    record = make_record()
    path = write_record(record, tmp_path)
    assert path.relative_to(tmp_path).as_posix() == "records/digits/tiny.eager.readme.fp32.json"
    assert read_records(tmp_path) == [record]


def test_keys_are_sorted_so_that_a_rerun_is_a_readable_diff(tmp_path):
    fields = json.loads(write_record(make_record(), tmp_path).read_text())
    assert list(fields) == sorted(fields)
    assert fields["schema_version"] == SCHEMA_VERSION


def test_cells_do_not_share_a_file():
    cells = [make_record(), make_record(jit=True), make_record(protocol="clip-paper"), make_record("mnist")]
    cells += [make_record(model="ViT-B/32"), make_record(model="random:ViT-B/32"), make_failure()]
    assert len({record_path(cell, Path("results")) for cell in cells}) == len(cells)


def test_a_failure_does_not_take_the_place_of_a_result(tmp_path):
    done = make_record()
    write_record(done, tmp_path)
    write_record(make_failure(), tmp_path)
    assert read_records(tmp_path) == [done]


def test_a_result_removes_the_failure(tmp_path):
    failed = write_record(make_failure(), tmp_path)
    assert [record.status for record in read_records(tmp_path)] == [FAILED]
    write_record(make_record(), tmp_path)
    assert not failed.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": "x"}'])
def test_a_damaged_record_is_named_and_left_alone(tmp_path, caplog, text):
    good = make_record()
    write_record(good, tmp_path)
    bad = tmp_path / "records" / "digits" / "bad.json"
    bad.write_text(text)
    assert read_records(tmp_path) == [good]
    assert "bad.json is damaged" in caplog.text
    assert bad.read_text() == text


@pytest.mark.parametrize(
    "changes",
    [{"result": None}, {"result": {"score": 0.5}}, {"spec": {"jit": False}}, {"status": FAILED, "result": None}],
)
def test_a_record_without_what_tables_need_is_damaged(tmp_path, caplog, changes):
    path = write_record(make_record(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert read_records(tmp_path) == []
    assert "is damaged" in caplog.text


def test_of_two_records_of_a_cell_the_newest_counts_and_both_are_named(tmp_path, caplog):
    """As when a folder of records was copied into another."""
    old = write_record(make_record(score=0.4), tmp_path)
    old.rename(old.with_name("a-copy.json"))
    newer = make_record(score=0.6, created="2026-02-01T00:00:00+00:00")
    write_record(newer, tmp_path)
    assert read_records(tmp_path) == [newer]
    assert "tiny.eager.readme.fp32.json and " in caplog.text
    assert "a-copy.json are of one cell" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": None}, "no schema version"),
        ({"colour": 1}, "no record has colour"),
        ({"splits": []}, "splits is no object"),
        ({"status": "fine"}, "status 'fine'"),
    ],
)
def test_a_record_that_somebody_changed_is_named_with_what_is_wrong(tmp_path, caplog, changes, said):
    path = write_record(make_record(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert read_records(tmp_path) == []
    assert said in caplog.text


def test_a_score_that_is_no_fraction_is_damage(tmp_path, caplog):
    write_record(make_record(score=98.9), tmp_path)
    assert read_records(tmp_path) == []
    assert "is no fraction" in caplog.text


def test_a_record_from_the_future_is_named_and_left_alone(tmp_path, caplog):
    path = write_record(make_record(schema_version=SCHEMA_VERSION + 1), tmp_path)
    before = path.read_bytes()
    assert read_records(tmp_path) == []
    assert "newer" in caplog.text
    assert path.read_bytes() == before


def test_a_results_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ResultsError, match="cannot write"):
        check_writable(tmp_path / "results")
    with pytest.raises(ResultsError, match="cannot write"):
        write_record(make_record(), tmp_path / "results")


def test_no_temporary_file_stays(tmp_path):
    write_record(make_record(), tmp_path)
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.eager.readme.fp32.json"]


@pytest.mark.parametrize("change", [{"score": None}, {"C": "x"}])
def test_a_value_of_the_wrong_type_is_damage(tmp_path, caplog, change):
    """One bad record must not keep the tables of all others from being written."""
    path = write_record(make_record(), tmp_path)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "result": {**fields["result"], **change}}))
    assert read_records(tmp_path) == []
    assert "is damaged" in caplog.text


def test_a_name_that_is_no_text_can_be_written(tmp_path):
    """File names are bytes; Python shows the odd ones as surrogates, which UTF-8 refuses."""
    write_text(tmp_path / "page.md", "folder:/x/\udcff")
    assert (tmp_path / "page.md").read_text() == "folder:/x/\\udcff"


def test_a_protocol_of_ones_own_cannot_leave_its_folder(tmp_path):
    path = record_path(make_record(protocol="../../escape"), tmp_path)
    assert path.parent == tmp_path / "records" / "digits"
