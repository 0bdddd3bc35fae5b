from dataclasses import replace

import pytest
from make.records import changed, make_record, scored_record

from probe.leaderboard.modes import modes_to_markdown, pair_modes
from probe.records.schema import ParityRecord, SplitRecord

PARITY = ParityRecord({"projected": 3e-7, "pre_projection": 2e-6}, 1, p_value=0.5)


def test_modes_stand_side_by_side():
    table = modes_to_markdown([make_record(score=0.5), make_record(jit=True, score=0.48, parity=PARITY)])
    cells = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    assert cells == ["digits", "tiny", "readme by sklearn", "50.00", "48.00", "2e-06", "1", "0.5"]


def test_without_a_pair_there_is_no_comparison():
    assert modes_to_markdown([make_record()]) == ""
    assert modes_to_markdown([make_record(protocol="clip-paper"), make_record(jit=True, parity=PARITY)]) == ""


def test_runs_that_were_not_side_by_side_are_tested_by_their_outcomes():
    """Flips are unknown without the predictions. 6 images on which only one run is right give McNemar's p = 2 / 2^6."""
    (pair,) = pair_modes([scored_record("a", 20), scored_record("a", 26, jit=True)])
    assert (pair.flipped, pair.largest) == (None, None)
    assert pair.p_value == pytest.approx(2**-5)
    assert abs(pair.difference + 6 / 400) < 1e-12
    other = scored_record("a", 26, jit=True, splits={"test": SplitRecord("other", 400)})
    assert pair_modes([scored_record("a", 20), other]) == []  # scores on different images do not compare modes


def test_a_comparison_with_an_eager_run_that_is_gone_does_not_count():
    """The eager run was repeated alone, so the flips and p in the record of the JIT run belong to an old score."""
    eager, jit = scored_record("a", 20), scored_record("a", 60, jit=True, parity=replace(PARITY, eager_score=0.85))
    (pair,) = pair_modes([eager, jit])
    assert (pair.flipped, pair.largest) == (None, None)
    assert pair.p_value is not None
    assert pair.p_value < 1e-6


@pytest.mark.parametrize(("name", "value"), [("templates", ("a drawing of a {}.",)), ("class_names_sha256", "ef" * 32)])
def test_modes_with_different_prompts_are_not_compared(name, value):
    eager, jit = (scored_record("a", 20, protocol="zero-shot", jit=jit) for jit in (False, True))
    assert len(pair_modes([eager, jit])) == 1
    assert pair_modes([eager, changed(jit, f"prompts.{name}", value)]) == []
