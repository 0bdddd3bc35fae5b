import json
from dataclasses import replace
from pathlib import Path

import pytest
from make.records import changed, make_failure, make_record

import probe
from probe.errors import ResultsError
from probe.leaderboard import modes, sections, tables, texts
from probe.leaderboard.derived import write_derived
from probe.leaderboard.page import render_page
from probe.records.record import (
    check_writable,
    locate_records,
    read_record,
    read_records,
    record_path,
    write_record,
    write_text,
)
from probe.records.schema import FAILED, SCHEMA_VERSION


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a record that a run has written, of the newest schema, in the types of JSON."""
    folder = tmp_path_factory.mktemp("made")
    record = probe.run("digits", model="tiny", protocol="clip-paper", solver="fast", device="cpu", results_dir=folder)
    return json.loads(record_path(record, folder).read_text())


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


def test_records_of_names_that_differ_in_what_no_file_name_holds_do_not_overwrite_each_other(tmp_path):
    models = [f"open_clip:ViT-S-32-alt/{folder}/epoch_1.pt" for folder in ("модель", "数据", "a-b", "a/b")]
    models += ["ViT-B/32", "ViT-B-32", "vit-b-32", "m.eager", "m"]
    datasets, protocols = ["a b", "a-b", "A-B", "CON"], ["p", "P", "eager.p"]
    cells = [make_record(d, m, protocol=p) for d in datasets for m in models for p in protocols]
    for cell in cells:
        write_record(cell, tmp_path)
    files = [path for path in (tmp_path / "records").rglob("*") if path.is_file()]
    assert len({str(path).lower() for path in files}) == len(cells)
    assert sorted(read_records(tmp_path), key=lambda r: r.key) == sorted(cells, key=lambda r: r.key)
    write_derived(tmp_path)
    assert len({path.name.lower() for path in (tmp_path / "tables").iterdir()}) == 2 * len(models)


def test_published_records_keep_their_file_names():
    results = Path(__file__).parents[2] / "results"
    found = locate_records(results)
    assert [record_path(record, results) for _, record in found] == [path for path, _ in found]


def test_a_record_of_another_cell_is_never_overwritten(tmp_path):
    """A user put the other record there, or the file system does not distinguish the two names."""
    path = record_path(make_record(model="b"), tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(write_record(make_record(model="a"), tmp_path).read_bytes())
    before = path.read_bytes()
    with pytest.raises(
        ResultsError, match=r"holds the record of a, eager, .* the record of b, eager, .* would overwrite it"
    ):
        write_record(make_record(model="b"), tmp_path)
    assert path.read_bytes() == before
    path.write_text("damaged")
    write_record(make_record(model="b"), tmp_path)
    assert read_record(path).model == "b"


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
    """This occurs if a folder of records was copied into another one."""
    old = write_record(make_record(score=0.4), tmp_path)
    old.rename(old.with_name("a-copy.json"))
    newer = make_record(score=0.6, created="2026-02-01T00:00:00+00:00")
    write_record(newer, tmp_path)
    assert read_records(tmp_path) == [newer]
    assert "a-copy.json: " in caplog.text
    assert "tiny.eager.readme.fp32.json is a newer record of the same run" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": None}, "no schema_version"),
        ({"colour": 1}, "unknown fields (colour)"),
        ({"splits": []}, "splits: expected object, got array"),
        ({"splits": {"test": {}}}, "splits[...].sha256 is missing"),
        ({"status": "fine"}, "status is 'fine'"),
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
    assert "result.score: expected float <= 1.0" in caplog.text


def _changed(fields, path, value):
    """Return a copy with a new value at a path of keys and positions."""
    if not path:
        return value
    if isinstance(fields, list):
        return [_changed(part, path[1:], value) if i == path[0] else part for i, part in enumerate(fields)]
    return {name: _changed(part, path[1:], value) if name == path[0] else part for name, part in fields.items()}


def _paths(value, path=()):
    parts = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else []
    for name, part in parts:
        yield (*path, name)
        yield from _paths(part, (*path, name))


@pytest.mark.slow
def test_whatever_is_changed_in_a_record_is_found_or_does_no_harm(made, tmp_path):
    """A bad file must not prevent the tables of the other records."""
    path, tried = tmp_path / "changed.json", 0
    for place in _paths(made):
        for value in (None, "x", [], {}, -1, True, [1], {"x": 1}):
            path.write_text(json.dumps(_changed(made, place, value)))
            try:
                record = read_record(path)
            except ResultsError:
                continue
            tried += 1
            texts.sections_to_markdown(sections.make_sections([record]))
            tables.render_tables([record])
            modes.rows(modes.pair_modes([record, changed(record, "spec.jit", not record.spec.jit)]))
            render_page([record], sections.make_sections([record]))
    assert tried > 200  # names, texts and numbers that nothing checks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": 0.5}, "outside its confidence interval"),
        ({"score": 0.5, "interval": None}, "the score of its outcomes"),
        ({"num_test": 10}, "359 test images"),
        ({"C": 0.5}, "not in the grid of its protocol"),
        ({"gradient_ratio": float("nan")}, "NaN is not a JSON number"),
        ({"gradient_ratio": 10**400}, "is damaged"),
        ({"outcomes": [{"metric": "accuracy"}]}, "result.outcomes[0].n is missing"),
        ({"outcomes": [{"metric": "accuracy", "n": 1, "arrays": {}}]}, "outcomes of test images are damaged"),
    ],
)
def test_a_record_that_contradicts_itself_is_passed_over(made, tmp_path, caplog, change, said):
    path = tmp_path / "records" / "digits" / "tiny.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**made, "result": {**made["result"], **change}}))
    assert read_records(tmp_path) == []
    assert said in caplog.text


@pytest.mark.parametrize(
    ("changes", "value", "is_right"),
    [
        ({"mean_loss": True}, 0.5, False),
        ({"mean_loss": True}, 100.0 / 50, True),
        ({"mean_loss": True}, 100.0, False),
        ({"bisections": 8}, 0.5, True),
        ({"bisections": 8}, 1e-5, False),
        ({"bisections": 8}, 1e5, False),
    ],
)
def test_c_is_a_value_that_the_protocol_can_try(changes, value, is_right, tmp_path):
    """The grid can have penalties of the mean loss, which give C by division, and bisections try values in between."""
    record = make_record()
    rules = replace(record.spec.protocol, grid=(1e-2, 1.0, 100.0), coarse_step=1, **changes)
    record = changed(changed(record, "spec.protocol", rules), "result.num_train", 50)
    write_record(changed(record, "result.C", value), tmp_path)
    assert len(read_records(tmp_path)) == is_right


@pytest.mark.parametrize(
    ("protocol", "path", "value", "said"),
    [
        ("knn", "result.k", 7, "its k, 7, is not among the neighbours of its protocol"),
        ("zero-shot", "prompts", None, "prompts is missing"),
    ],
)
def test_a_record_without_a_fit_that_contradicts_itself_is_skipped(protocol, path, value, said, tmp_path, caplog):
    record = make_record(protocol=protocol)
    write_record(changed(record, path, value), tmp_path)
    assert read_records(tmp_path) == []
    assert said in caplog.text


def test_folds_of_nearest_neighbours_can_have_different_k(tmp_path):
    record = make_record(protocol="knn")
    folds = tuple(replace(record.result, k=k) for k in (10, 20))
    record = replace(record, result=replace(record.result, k=None, folds=folds))
    write_record(record, tmp_path)
    assert read_records(tmp_path) == [record]


def test_names_that_make_no_file_name_get_one(tmp_path):
    names = ["模型", "тест", "x" * 300, "..."]
    paths = {record_path(make_record(model=name), tmp_path).name for name in names}
    assert len(paths) == 4
    assert all(0 < path.index(".eager") <= 110 for path in paths)


def test_a_record_from_the_future_is_named_and_left_alone(tmp_path, caplog):
    path = write_record(make_record(schema_version=SCHEMA_VERSION + 1), tmp_path)
    before = path.read_bytes()
    assert read_records(tmp_path) == []
    assert "newer" in caplog.text
    assert path.read_bytes() == before


def test_a_results_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ResultsError, match=r"cannot write to the results folder .*results \("):
        check_writable(tmp_path / "results")
    with pytest.raises(ResultsError, match="cannot write"):
        write_record(make_record(), tmp_path / "results")


def test_no_temporary_file_stays(tmp_path):
    write_record(make_record(), tmp_path)
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.eager.readme.fp32.json"]


@pytest.mark.parametrize("change", [{"score": None}, {"C": "x"}])
def test_a_value_of_the_wrong_type_is_damage(tmp_path, caplog, change):
    """A bad record must not prevent the tables of the other records."""
    path = write_record(make_record(), tmp_path)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "result": {**fields["result"], **change}}))
    assert read_records(tmp_path) == []
    assert "is damaged" in caplog.text


def test_a_name_that_is_no_text_can_be_written(tmp_path):
    """File names are bytes. Python represents undecodable bytes as surrogates, which UTF-8 cannot encode."""
    write_text(tmp_path / "page.md", "folder:/x/\udcff")
    assert (tmp_path / "page.md").read_text() == "folder:/x/\\udcff"


def test_a_protocol_of_ones_own_cannot_leave_its_folder(tmp_path):
    path = record_path(make_record(protocol="../../escape"), tmp_path)
    assert path.parent == tmp_path / "records" / "digits"
