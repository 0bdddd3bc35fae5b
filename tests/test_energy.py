"""Energy counters: the files that Linux publishes, and the counter of a GPU."""

import importlib.util
import json
import re

import pytest
import torch

from probe import energy
from probe.cli.main import main
from probe.energy import EnergyMeter


def _write(folder, microjoules, limit=1_000_000):
    folder.mkdir(exist_ok=True)
    for name, value in (("energy_uj", microjoules), ("max_energy_range_uj", limit)):
        (folder / "new").write_text(f"{value}\n")
        (folder / "new").rename(folder / name)  # another thread reads the files


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Write the counters of two packages as Linux does; one package has a part, which its counter includes."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    folders = [tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1"]
    for folder in [*folders, tmp_path / "intel-rapl:0:0"]:
        _write(folder, 400_000)
    return folders


def test_packages_are_added_up_and_counters_may_wrap_around(packages):
    with EnergyMeter("cpu") as meter:
        _write(packages[0], 900_000)  # 0.5 J
        _write(packages[1], 100_000)  # 0.7 J, around the limit of 1 J
    assert meter.joules == {"cpu": pytest.approx(1.2)}


def test_a_counter_that_wraps_around_twice_is_read_in_between(packages, monkeypatch):
    monkeypatch.setattr(energy, "INTERVAL_SECONDS", 0.0)  # reads all the time
    with EnergyMeter("cpu") as meter:
        for value in (300_000, 200_000, 100_000):  # 0.9 J each time
            before = meter.joules["cpu"]
            _write(packages[0], value)
            while meter.joules["cpu"] == before:
                pass
    assert meter.joules["cpu"] > 2


@pytest.mark.parametrize("missing", ["energy_uj", "max_energy_range_uj"])
def test_energy_that_cannot_be_read_is_missing_and_not_zero(packages, missing):
    with EnergyMeter("cpu") as meter:
        (packages[1] / missing).unlink()
    assert meter.joules == {}
    for folder in packages:
        (folder / missing).unlink(missing_ok=True)
    with EnergyMeter("cpu") as meter:
        pass
    assert meter.joules == {}


def test_a_machine_without_counters_has_no_energy(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "missing")
    with EnergyMeter("cuda:0" if not torch.cuda.is_available() else "cpu") as meter:
        pass
    assert meter.joules == {}


def test_a_record_has_the_energy_of_extraction_and_fit(packages, tmp_path, capsys):
    arguments = ["run", "--dataset", "digits", "--model", "random:tiny", "--protocol", "knn-5", "--device", "cpu"]
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    assert main([*arguments, *folders, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["fit_joules"] == {"cpu": 0.0}
    assert record["extraction"]["subsets"]["all"]["joules_per_1000_images"] == {"cpu": 0.0}
    (path,) = (tmp_path / "results").glob("records/*/*.json")
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"energy for 1,000 images of all +0.0 J \(cpu\)", shown)
    assert re.search(r"energy of the fit +0.0 J \(cpu\)", shown)


def test_the_energy_of_a_pass_for_several_models_is_not_that_of_one(packages, tmp_path, capsys):
    arguments = ["run", "--dataset", "digits", "--model", "random:tiny", "--model", "tiny", "--protocol", "knn-5"]
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    assert main([*arguments, "--device", "cpu", *folders, "--json"]) == 0
    for record in json.loads(capsys.readouterr().out):
        subset = record["extraction"]["subsets"]["all"]
        assert subset["models"] == 2
        assert not subset.get("joules_per_1000_images")
        assert record["fit_joules"] == {"cpu": 0.0}


@pytest.mark.gpu
def test_a_gpu_uses_energy_if_its_counter_can_be_read(device):
    has_counter = device.startswith("cuda") and importlib.util.find_spec("pynvml") is not None
    with EnergyMeter(device) as meter:
        x = torch.rand(1024, 1024, device=device)
        for _ in range(20):
            x = (x @ x).clamp(0, 1)
        x.sum().item()  # waits for the GPU
    assert (meter.joules.get("gpu", 0) > 0) == has_counter
