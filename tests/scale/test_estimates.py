"""Estimates of the cost of a grid from the rates in records."""

import json
import os
from dataclasses import replace

import pytest
from make.records import changed, make_record
from make.transformers_zoo import save_zoo_model

from probe.cli.main import main
from probe.grid import plan
from probe.models import get_model
from probe.models.sizes import find_sizes
from probe.probes.neighbours import BANK_BYTES, PRODUCT_BYTES
from probe.records.record import write_record
from probe.records.schema import EnvironmentRecord, ExtractionRecord, MeterRecord
from probe.runner import run_grid as run_serially
from probe.scale.estimates import estimate_grid, fit_work, hardware_of, measure_rates
from probe.scale.needs import PROCESS_BYTES, Memory, feature_bytes, fit_shape, memory_of, num_scored
from probe.scale.units import plan_units
from probe.settings import Settings

HERE = EnvironmentRecord(cpu="a CPU", torch_threads=2)


def _record(model="random:ViT-B/32", *, rate=30.0, fit=10.0, dataset="fashion_mnist", protocol="readme", **changes):
    """Return a record that has rates and nothing else."""
    (spec,) = plan([dataset], [model], protocols=[protocol], device="cpu", solver="fast")
    subset = MeterRecord(70_000, 2, images_per_second=1.0, read_seconds=70.0, encoder_images_per_second=rate)
    fields = {"extraction": ExtractionRecord(subsets={"all": subset}), "seconds": {"fit": fit}, "environment": HERE}
    return make_record(spec=spec, **{**fields, **changes})


def _units(model, dataset="fashion_mnist", *, protocol="readme", **options):
    return plan_units(plan([dataset], [model], protocols=[protocol], device="cpu", solver="fast", **options))


def test_a_rate_belongs_to_the_architecture_and_not_to_the_weights():
    rates = measure_rates([_record(rate=30.0)], device="cpu")
    (shard, *_) = _units("ViT-B/32")
    # Encoding, plus reading at one millisecond for two models that share the reading.
    expected = shard.images * (1 / 30.0 + 2 * 70.0 / 70_000)
    assert rates.unit_seconds(shard, 2) == pytest.approx(expected)
    both = _units("ViT-B/32", jit_modes=(False, True))[0]  # both modes share the reading
    assert rates.unit_seconds(both, 2) == pytest.approx(both.images / 2 * (2 / 30.0 + 0.002))
    assert rates.unit_seconds(shard, 1) == pytest.approx(shard.images * (2 / 30.0 + 2 * 70.0 / 70_000))


def test_the_time_of_a_model_without_records_is_unknown():
    rates = measure_rates([_record(rate=30.0), _record("tiny", rate=900.0)], device="cpu")
    assert rates.unit_seconds(_units("ViT-L/14")[0], 2) is None
    cost = estimate_grid(_units("ViT-L/14") + _units("ViT-B/32"), rates, num_workers=2, num_threads=2)
    assert [one.extract_seconds is None for one in cost.models] == [True, False]
    assert cost.seconds is None


def test_the_rate_of_random_weights_is_that_of_the_model_of_the_same_name():
    rates = measure_rates([_record("random:timm:test_vit", rate=30.0)], device="cpu")
    assert rates.unit_seconds(_units("timm:test_vit")[0], 2) is not None
    assert rates.unit_seconds(_units("timm:test_resnet")[0], 2) is None


def test_sizes_of_models_of_open_clip_are_those_of_the_same_architecture():
    """ViT-B-32 of open_clip has the towers of OpenAI's ViT-B/32. Measured activations are within a factor of two."""
    known, measured = (find_sizes(get_model(name)) for name in ("ViT-B/32", "open_clip:ViT-B-32/openai"))
    assert measured == replace(known, activation_bytes=measured.activation_bytes)
    assert 0.5 < measured.activation_bytes / known.activation_bytes < 2
    own, theirs = (_units(name) for name in ("ViT-B/32", "open_clip:ViT-B-32/openai"))
    assert fit_shape(own[-1].specs[0]) == fit_shape(theirs[-1].specs[0])
    assert feature_bytes(own[-1].specs[0]) == feature_bytes(theirs[-1].specs[0])


ONLY_ON_A_GPU = """
import torch
from torch import nn
import probe


class OnGpu(nn.Module):
    def forward(self, images):
        if images.device.type != "cuda":
            raise RuntimeError("this kernel has no code for the CPU")
        return images.mean((2, 3))


def make():
    return probe.Encoder(OnGpu(), lambda image: torch.zeros(3, 8, 8), name="on-gpu")
"""


def test_models_without_known_sizes_do_not_end_a_plan(tmp_path, capsys, monkeypatch, caplog):
    """The module runs on a GPU only. The settings of the other model are wrong, which a run would record."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpu.py").write_text(ONLY_ON_A_GPU)
    save_zoo_model("dinov2", tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "config.json").read_text())
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    models = ["module:gpu.py:make", f"transformers:{tmp_path / 'wrong'}", "tiny"]
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    arguments = ["run", "--dataset", "digits", *(f"--model={model}" for model in models), "--device", "cpu", *folders]
    assert main([*arguments, "--plan", "--json"]) == 0
    found = {one["model"]: one for one in json.loads(capsys.readouterr().out)["models"]}
    models[0] = "on-gpu"
    assert list(found) == models
    assert [found[model]["disk"] is None for model in models] == [True, True, False]
    assert [found[model]["memory"]["host"] > 0 for model in models] == [False, False, True]
    for model in models[:2]:
        assert caplog.text.count(f"the sizes of {model} are not known: ") == 1


def test_workers_share_the_work_but_for_the_longest_unit():
    rates = measure_rates([_record(rate=30.0, fit=100.0)], device="cpu")
    units = _units("ViT-B/32")
    one, many = (estimate_grid(units, rates, num_workers=n, num_threads=2).seconds for n in (1, 4))
    durations = [rates.unit_seconds(unit, 2) for unit in units]
    assert one == pytest.approx(sum(durations))
    assert many == pytest.approx(sum(durations) / 4 + 3 / 4 * max(durations))


def test_the_time_of_a_fit_is_proportional_to_its_size():
    rates = measure_rates([_record(fit=10.0)], device="cpu")
    fits = _units("ViT-B/32", "cifar100")[-1]
    assert fit_shape(fits.specs[0]) == (50_000, 512, 100)
    assert rates.unit_seconds(fits, 2) == pytest.approx(10.0 * (50_000 * 100) / (60_000 * 10))


def test_rates_come_from_records_of_the_given_hardware():
    other = EnvironmentRecord(cpu="another", torch_threads=4)
    records = [_record(rate=30.0), _record(rate=99.0, environment=other), _record(rate=99.0, environment=other)]
    assert hardware_of(HERE) == "a CPU, 2 threads"
    assert measure_rates(records, device="cpu", hardware="a CPU, 2 threads").hardware == "a CPU, 2 threads"
    assert measure_rates(records, device="cpu", hardware="unknown").hardware == "another, 4 threads"
    assert not measure_rates(records, device="cuda").hardware


def test_rates_of_several_models_together_are_not_used():
    """In earlier records, one pass over the images fed several models."""
    subset = replace(_record().extraction.subsets["all"], encoder_images_per_second=None)
    record = changed(_record(), "extraction.subsets", {"all": subset})
    assert not measure_rates([record], device="cpu").encoding
    alone = replace(subset, models=1, encode_seconds=7_000.0)
    record = changed(_record(), "extraction.subsets", {"all": alone})
    assert list(measure_rates([record], device="cpu").encoding.values()) == [pytest.approx(1 / 10.0)]


def test_without_rates_only_memory_and_disk_are_known():
    cost = estimate_grid(_units("ViT-B/32"), measure_rates([], device="cpu"), num_workers=8, num_threads=2)
    assert cost.seconds is None
    (one,) = cost.models
    assert one.extract_seconds is None
    assert one.disk == feature_bytes(_units("ViT-B/32")[-1].specs[0])
    assert one.disk == 70_000 * (4 * (512 + 768) + 8)
    assert feature_bytes(_units("ViT-B/32", protocol="zero-shot")[-1].specs[0]) == 10_000 * (4 * (512 + 768) + 8)


def test_memory_grows_with_the_model_the_batch_and_the_features():
    small, large = (memory_of(_units(name)[0]) for name in ("ViT-B/32", "ViT-L/14"))
    assert large.host - small.host > 4 * (get_model("ViT-L/14").profile.parameters - 160_000_000)
    (batch,) = {memory_of(_units("ViT-L/14", batch_size=256)[0]).host}
    assert batch > large.host
    fits_of_imagenet = _units("ViT-B/32", "imagenet")[-1]
    fits = memory_of(fits_of_imagenet)
    assert fits.host > feature_bytes(fits_of_imagenet.specs[0])
    unit = _units("ViT-L/14")[0]
    assert memory_of(_on_gpu(unit)).gpu > 4 * get_model("ViT-L/14").profile.parameters
    unknown = replace(get_model("ViT-L/14"), architecture=None)
    unit = replace(unit, specs=tuple(replace(spec, model=unknown) for spec in unit.specs))
    assert memory_of(unit) == Memory(0, 0)


def _on_gpu(unit):
    return replace(unit, specs=tuple(replace(spec, device="cuda") for spec in unit.specs))


def test_zero_shot_needs_the_weights_and_the_scores_and_no_training_images():
    unit, weights = (
        _units("ViT-B/32", "imagenet", protocol="zero-shot")[-1],
        4 * get_model("ViT-B/32").profile.parameters,
    )
    scores = 8 * 50_000 * 1_000
    assert weights + scores < memory_of(unit).host - PROCESS_BYTES < 2 * (weights + scores) + 1
    assert memory_of(_on_gpu(unit)).gpu == weights


def test_neighbours_need_blocks_and_the_scores_and_no_copy_of_the_training_images():
    few, many = (_units("ViT-B/32", "imagenet", protocol=name)[-1] for name in ("knn-5", "knn"))
    scores, training = 8 * 50_000 * 1_000, 4 * 1_281_167 * 512
    assert BANK_BYTES + PRODUCT_BYTES + scores < memory_of(few).host - PROCESS_BYTES < training
    assert memory_of(many).host - memory_of(few).host > 2 * 8 * 50_000 * (200 - 5)
    assert BANK_BYTES + PRODUCT_BYTES < memory_of(_on_gpu(few)).gpu < training


def test_neighbours_score_the_validation_split_only_to_choose_k():
    few, many = (plan(["imagenet"], ["tiny"], protocols=[name], device="cpu")[0] for name in ("knn-5", "knn"))
    # With half of the training images, the validation split is larger than the test split.
    half = [replace(spec, dataset=replace(spec.dataset, val_fraction=0.5)) for spec in (few, many)]
    assert [num_scored(spec) for spec in (few, many, *half)] == [50_000, 50_000, 50_000, round(1_281_167 / 2)]


def test_rates_of_one_method_are_not_those_of_another():
    knn = _record(protocol="knn-5", fit=60.0)
    rates = measure_rates([knn, _record(protocol="zero-shot", fit=2.0)], device="cpu")
    fits = [_units("ViT-B/32", protocol=name)[-1] for name in ("knn-5", "zero-shot")]
    assert [rates.unit_seconds(unit, 2) for unit in fits] == [pytest.approx(60.0), pytest.approx(2.0)]
    only_knn = measure_rates([knn], device="cpu")
    assert [only_knn.unit_seconds(unit, 2) for unit in fits] == [pytest.approx(60.0), None]
    assert estimate_grid(fits, only_knn, num_workers=1, num_threads=2).stretch == pytest.approx(1.0)


def test_the_work_of_zero_shot_grows_with_the_images_of_the_test_split_alone():
    (spec,) = plan(["fashion_mnist"], ["tiny"], protocols=["zero-shot"], device="cpu")
    train, test = spec.dataset.subsets
    more_training, more_tests = (
        replace(spec, dataset=replace(spec.dataset, subsets=subsets))
        for subsets in ((replace(train, size=2 * train.size), test), (train, replace(test, size=2 * test.size)))
    )
    assert fit_work(more_training) == fit_work(spec)
    assert fit_work(more_tests) == 2 * fit_work(spec)


def test_a_protocol_costs_as_many_fits_as_it_makes():
    readme, paper = (plan(["digits"], ["tiny"], protocols=[name], device="cpu")[0] for name in ("readme", "clip-paper"))
    assert fit_work(paper) > 10 * fit_work(readme)


@pytest.mark.slow
def test_a_plan_has_the_time_that_the_grid_takes(tmp_path, capsys):
    """A plan of a run that has a record takes the seconds of that record."""
    settings = Settings(results_dir=tmp_path / "results", cache_dir=os.environ["PROBE_CACHE_DIR"])
    specs = plan(["digits"], ["tiny"], protocols=["readme"], device="cpu", solver="fast")
    (record,) = run_serially(specs, settings=settings)
    # Seconds that do not depend on what else this machine does: 1 ms to read an image, 2 ms to encode it.
    subsets = {
        name: replace(subset, models=1, read_seconds=subset.images / 1000, encoder_images_per_second=500.0)
        for name, subset in record.extraction.subsets.items()
    }
    record = changed(changed(record, "extraction.subsets", subsets), "seconds", {"fit": 4.0})
    write_record(record, settings.results_dir)
    options = ["--model", "tiny", "--protocol", "readme", "--device", "cpu", "--solver", "fast"]
    options += ["--results-dir", str(tmp_path / "results"), "--threads", str(record.environment.torch_threads)]
    assert main(["run", "--dataset", "digits", *options, "--plan", "--json", "--rerun"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["units"] == 2
    assert planned["seconds"] == pytest.approx(0.003 * 1_797 + 4.0)
    assert main(["run", "--dataset", "digits", *options, "--plan", "--executor", "ray"]) == 0
    assert "runs: 1, of which 1 are done" in capsys.readouterr().out
    assert main(["run", "--dataset", "imagenet", *options, "--plan", "--ray-workers", "8", "--device", "cuda"]) == 0
    said = capsys.readouterr().out
    assert "each with one GPU" in said
    assert "run a small dataset on it first" in said
