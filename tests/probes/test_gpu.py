"""Fits on a GPU. `pytest -m gpu --device cpu` runs the same tests on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from make.colours import write_colours

import probe
from probe.features.arrays import Features
from probe.models.devices import resolve_execution
from probe.probes.fit import fit_probe
from probe.probes.protocols import get_protocol
from probe.probes.solvers import fast, objective
from probe.probes.solvers.objective import Objective, Rows

pytestmark = pytest.mark.gpu

PROTOCOL = replace(
    get_protocol("clip-paper"), feature_point="projected", grid=tuple(np.logspace(-3, 2, 9)), coarse_step=4
)


def made_up(k, n=1500, d=24):
    """Return features of k classes that overlap, in directions of decreasing scale, for train, val and test."""
    rng = np.random.default_rng(0)
    means, scales = rng.normal(size=(k, d)), (1 + np.arange(d)) ** -0.7
    splits = {}
    for name, size in (("train", n), ("val", n // 3), ("test", n // 3)):
        y = np.arange(size) % k
        splits[name] = Features(((0.7 * means[y] + rng.normal(size=(size, d))) * scales).astype(np.float32), y)
    return splits


@pytest.fixture
def made_rows(monkeypatch):
    """Return a list of the `Rows` that are made during the test."""
    made, init = [], Rows.__init__

    def note(self, *args, **options):
        init(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(Rows, "__init__", note)
    return made


@pytest.mark.parametrize("k", [2, 6, 40])
@pytest.mark.parametrize("patience", [1, fast.PATIENCE])
def test_the_probe_is_the_one_of_the_cpu(device, monkeypatch, k, patience):
    """C is equal, and the optimum is equal up to the tolerance of the solver, also with estimates of the Hessian."""
    monkeypatch.setattr(fast, "PATIENCE", patience)
    found, expected = (
        fit_probe(**made_up(k), protocol=PROTOCOL, solver="fast", device=where) for where in (device, "cpu")
    )
    assert found.converged
    assert found.gradient_ratio <= fast.TOL
    assert found.C == expected.C
    assert found.objective == pytest.approx(expected.objective, rel=1e-6)
    assert (np.asarray(found.predictions) == np.asarray(expected.predictions)).mean() >= 0.998  # one of 500 may differ


def test_features_are_copied_to_the_device_once_for_the_whole_sweep(device, made_rows):
    """The sweep and the final fit, which is on train and val, have one copy each."""
    result = fit_probe(**made_up(6), protocol=PROTOCOL, solver="fast", device=device)
    assert len(result.sweep) > 4
    copies = [rows for rows in made_rows if rows.tensors[0].shape[0] == 1500]
    assert [rows.sizes for rows in copies] == [[1500], [1500, 500]]
    assert {tensor.device.type for rows in copies for tensor in rows.tensors} == {torch.device(device).type}


def test_features_that_the_memory_of_the_device_does_not_hold_go_there_in_blocks(device, made_rows, monkeypatch):
    """The result is the same up to the tolerance of the solver."""
    whole = fit_probe(**made_up(6), protocol=PROTOCOL, solver="fast", device=device)
    made_rows.clear()
    for limit in ("CUDA_SHARE", "CUDA_COPY_SHARE", "COPY_BYTES"):
        monkeypatch.setattr(objective, limit, 0)
    for size in ("MIN_ROWS", "MAX_ROWS", "CUDA_ROWS"):
        monkeypatch.setattr(objective, size, 128)
    in_blocks = fit_probe(**made_up(6), protocol=PROTOCOL, solver="fast", device=device)
    for rows in made_rows:
        assert {tensor.device.type for tensor in rows.tensors} == {"cpu"}
        assert rows.whitened is None
        assert {len(block) for _, block in rows.blocks()} <= {128, 1500 % 128, 500 % 128}
    assert in_blocks.C == whole.C
    assert in_blocks.objective == pytest.approx(whole.objective, rel=1e-6)


def test_products_are_not_rounded_to_tf32(device, monkeypatch):
    """TF32 has the digits of fp16, so gradients would not become small. The solver does not change the setting."""
    seen, evaluate = [], Objective.evaluate

    def note(*args, **options):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()))
        return evaluate(*args, **options)

    monkeypatch.setattr(Objective, "evaluate", note)
    fit_probe(**made_up(6), protocol=PROTOCOL, solver="fast", device=device)
    assert set(seen) == {(False, "highest")}
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_estimator_fits_on_the_device(device):
    """Its attributes are arrays, and its predictions agree with a fit on the CPU."""
    train, test = made_up(6)["train"], made_up(6)["test"]
    found, expected = (
        probe.FastLogisticRegression(C=0.5, device=where).fit(train.x, train.y) for where in (device, "cpu")
    )
    assert isinstance(found.coef_, np.ndarray)
    assert found.objective_ == pytest.approx(expected.objective_, rel=1e-6)
    assert (found.predict(test.x) == expected.predict(test.x)).mean() >= 0.998


def test_a_run_fits_where_its_features_were_made(device, made_rows, tmp_path):
    """`--device auto` is the GPU if there is one. With a second protocol, the features come from the cache."""
    folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "offline": True}
    wanted = str(resolve_execution("auto").device)
    for protocol in ("readme", "clip-paper"):
        record = probe.run(write_colours(tmp_path), model="tiny", protocol=protocol, solver="fast", **folders)
        assert record.spec.device == wanted
        assert made_rows
        assert {str(rows.device) for rows in made_rows} == {wanted}
        made_rows.clear()


@pytest.mark.parametrize("protocol", ["knn", "knn-5"])
def test_nearest_neighbours_give_the_record_of_the_cpu(device, protocol):
    splits = made_up(10, n=6000)
    splits["train"].x[100:400] = splits["train"].x[0]  # more equal images than the device can decide among
    splits["test"].x[:50] = splits["train"].x[0]
    found, expected = (fit_probe(**splits, protocol=protocol, device=where) for where in (device, "cpu"))
    assert found.to_record() == expected.to_record()
    assert np.array_equal(found.predictions, expected.predictions)
