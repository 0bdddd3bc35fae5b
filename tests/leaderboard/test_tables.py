import csv
import io

from make.records import make_failure, make_record

from probe.leaderboard.tables import COLUMNS, markdown_table, records_to_csv, records_to_markdown, render_tables


def _rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_there_is_a_table_for_each_model_and_mode():
    records = [make_record(model="ViT-B/32"), make_record(), make_record(jit=True)]
    assert list(render_tables(records)) == [
        *("ViT-B-32.eager.csv", "ViT-B-32.eager.md", "tiny.eager.csv", "tiny.eager.md", "tiny.jit.csv", "tiny.jit.md")
    ]


def test_columns_are_fixed():
    assert records_to_csv([make_record()]).splitlines()[0] == ",".join(COLUMNS)
    assert records_to_csv([]).splitlines() == [",".join(COLUMNS)]


def test_failed_not_converged_and_zero_look_different():
    records = [make_failure(), make_record(converged=False), make_record(score=0.0), make_record(score=0.5)]
    states = [(row["status"], row["score"]) for row in _rows(records_to_csv(records))]
    assert states == [("failed", ""), ("not converged", "0.5"), ("ok", "0.0"), ("ok", "0.5")]
    scores = [line.split("|")[5].strip() for line in records_to_markdown(records).splitlines()[2:]]
    assert scores == ["failed", "50.00 *", "0.00", "50.00"]


def test_a_page_says_why_a_cell_failed_and_what_a_star_means():
    page = render_tables([make_failure("food101 is not there"), make_record("mnist", converged=False)])["tiny.eager.md"]
    assert "digits, readme failed: food101 is not there" in page
    assert "did not converge" in page


def test_columns_of_a_markdown_table_line_up():
    lines = markdown_table(("a", "long"), [("xyz", "1")]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_a_bar_in_a_name_does_not_end_a_cell():
    assert "| a\\|b |" in markdown_table(("name",), [("a|b",)])
