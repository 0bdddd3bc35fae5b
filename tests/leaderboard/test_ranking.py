from dataclasses import replace

from make.records import NUM_TEST, changed, make_record, scored_record

from probe.leaderboard.ranking import dataset_ranks
from probe.leaderboard.tables import records_to_markdown
from probe.records.schema import SplitRecord


def test_models_that_chance_may_have_put_apart_share_a_rank():
    """The models have 20, 22 and 60 errors, each with all errors of the one before. Two more errors can be chance."""
    records = [scored_record("a", 20), scored_record("b", 22), scored_record("c", 60)]
    assert [dataset_ranks(records)[record.key] for record in records] == ["1 =", "1 =", "3"]
    lines = records_to_markdown(records).splitlines()
    assert "rank" in lines[0]
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["1 =", "1 =", "3"]


def test_only_the_same_test_images_are_ranked():
    other = scored_record("b", 60, splits={"test": SplitRecord("other", NUM_TEST)})
    assert dataset_ranks([scored_record("a", 20), other]) == {}


def test_records_without_outcomes_have_no_rank():
    assert dataset_ranks([make_record("digits", "a"), make_record("digits", "b")]) == {}
    assert "rank" not in records_to_markdown([scored_record("a", 20)]).splitlines()[0]


def test_a_record_whose_outcomes_are_damaged_has_no_rank_and_is_named(caplog):
    """The other records keep their ranks."""
    good = scored_record("c", 60)
    (outcomes,) = good.result.outcomes
    right = replace(outcomes.arrays["right"], data="not base64")
    bad = changed(good, "result.outcomes", (replace(outcomes, arrays={"right": right}),))
    records = [scored_record("a", 20), scored_record("b", 22), bad]
    assert dataset_ranks(records) == {records[0].key: "1 =", records[1].key: "1 ="}
    assert "c / eager" in caplog.text
    assert "damaged" in caplog.text
    assert dataset_ranks([records[0], bad]) == {}
