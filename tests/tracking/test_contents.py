"""Contents of records for experiment trackers."""

from dataclasses import replace

from make.records import FURTHER_TESTS, classified_record, make_failure, make_record, page_record

from probe.leaderboard.frames import results_frame
from probe.records.record import write_record
from probe.tracking.contents import describe_run


def test_every_value_of_a_record_in_the_data_frame_is_in_its_contents(tmp_path):
    record = classified_record("digits", "tiny", seconds={"fit": 2.0}, fit_joules={"cpu": 3.5})
    write_record(record, tmp_path)
    run = describe_run(record)
    (row,) = results_frame(tmp_path).to_dict("records")
    known = {name: value for name, value in row.items() if value == value and value is not None}  # NaN differs
    known = {name: value for name, value in known.items() if str(value) != "<NA>"}
    contents = {**run.config, **run.metrics}
    assert known.keys() <= contents.keys()
    for name in known.keys() - {"created"}:
        assert contents[name] == known[name], name
    assert {"score", "nll", "ece_low", "fit_seconds", "fit_cpu_joules", "C"} <= run.metrics.keys()
    assert not run.metrics.keys() & run.config.keys()


def test_the_configuration_has_the_rules_and_versions():
    config = describe_run(page_record("digits", "tiny", 20, protocol="clip-paper")).config
    assert config["protocol"] == "clip-paper"
    assert config["protocol_grid"] == [0.1, 1.0, 10.0]
    assert config["package_torch"] == "2.15.0"
    assert (config["device"], config["batch_size"], config["probe_version"]) == ("cpu", 64, 1)


def test_further_test_sets_are_metrics():
    metrics = describe_run(make_record(tests=FURTHER_TESTS)).metrics
    assert {name: value for name, value in metrics.items() if "/" in name} == {
        "cifar10.1/score": 0.4,
        "cifar10.1/low": 0.3,
        "cifar10.1/high": 0.5,
        "cifar10.1/own_classes/score": 0.6,
        "cifar10.1/own_classes/low": 0.5,
        "cifar10.1/own_classes/high": 0.7,
    }


def test_a_failed_run_has_its_error_and_no_score():
    run = describe_run(make_failure("no images"))
    assert run.has_failed
    assert run.config["error"] == "no images"
    assert "score" not in run.metrics


def test_the_id_changes_with_the_run_and_its_time():
    record = make_record()
    again = replace(record, created="2026-01-01T00:00:01+00:00")
    runs = [describe_run(one) for one in (record, again, make_record(jit=True))]
    assert len({run.id for run in runs}) == 3
    assert runs[0].name == runs[1].name == "digits/tiny.eager.readme.fp32"
    assert describe_run(make_record()).id == runs[0].id


def test_a_run_starts_before_its_end():
    run = describe_run(make_record(seconds={"load": 1.0, "fit": 2.5}))
    assert run.ended - run.started == 3.5
    assert run.ended == 1767225600  # 2026-01-01T00:00:00 in UTC
