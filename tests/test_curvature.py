import numpy as np
import pytest
import torch

from probe.probes import curvature
from probe.probes.objective import Logistic, Objective, Rows, Softmax


def _problem(kind, C=1.0, n=60, d=4, k=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * [0.1, 1, 3, 10] + 5
    labels = torch.from_numpy(rng.integers(0, k, n))
    if kind == "softmax":
        loss = Softmax(labels, k)
    else:
        loss = Logistic(torch.stack([labels - 1, labels == 2], dim=1), torch.tensor([0, 1]))  # -1 is not counted
    objective = Objective(Rows([x]), loss, [C] * (1 if kind == "softmax" else 2))
    return objective, torch.from_numpy(rng.normal(size=(d + 1, loss.width)) * 0.3)


def _hessian_of_loss(objective, weights):
    """By automatic differentiation, of the unknowns class by class: (width * (d + 1), width * (d + 1))."""
    x, loss = objective.rows.parts[0], objective.loss

    def value(flat):
        own = flat.reshape(loss.width, -1).T
        logits = (x - x.mean(dim=0)) @ own[:-1] + own[-1]
        if isinstance(loss, Softmax):
            return torch.nn.functional.cross_entropy(logits, loss.labels)
        counts = loss.targets[:, 0] != -1
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[counts, 0], loss.targets[counts, 0].double())

    return torch.autograd.functional.hessian(value, weights.T.reshape(-1))


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_the_estimate_from_all_rows_is_the_hessian(kind):
    """Of a single group, times the scales. Tolerance: float32 sums of 60 terms."""
    objective, weights = _problem(kind)
    found = curvature.estimate(objective, 0, weights)
    ((classes, hessian),) = found.blocks
    assert classes.tolist() == list(range(objective.loss.width))
    scale = found.scale.repeat(objective.loss.width)
    expected = _hessian_of_loss(objective, weights) / (scale[:, None] * scale)
    torch.testing.assert_close(hessian.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
@pytest.mark.parametrize("C", [1e-2, 1.0])
def test_solving_inverts_the_hessian_with_its_penalty(kind, C):
    """Tolerance: the ridge of 1e-6 times a condition number below 100, and float32 factors."""
    objective, weights = _problem(kind, C)
    penalties = torch.full_like(weights, objective.penalties[0])
    penalties[-1] = 0
    hessian = _hessian_of_loss(objective, weights) + torch.diag(penalties.T.reshape(-1))
    wanted = torch.randn(weights.shape, dtype=torch.float64)
    wanted[-1] -= wanted[-1].mean()  # a common intercept changes no softmax, so that no gradient tells it
    if kind == "logistic":
        wanted[-1] = 1.0
    gradient = (hessian @ wanted.T.reshape(-1)).reshape(weights.T.shape).T
    solved = curvature.estimate(objective, 0, weights).with_penalty(objective.penalties[0]).solve(gradient)
    if kind == "softmax":
        solved[-1] -= solved[-1].mean()
    torch.testing.assert_close(solved, wanted, rtol=0, atol=1e-2)


def test_the_hessian_at_zero_is_exact_for_two_classes():
    """Probabilities of a half need no sample. Tolerance: the ridge."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, (60, 1)))
    objective = Objective(Rows([rng.normal(size=(60, 4)) + 5]), Logistic(labels, torch.tensor([0])), [1.0])
    hessian = _hessian_of_loss(objective, objective.zeros())
    hessian[:-1, :-1] += objective.penalties[0] * torch.eye(4)
    wanted = torch.randn(5, 1, dtype=torch.float64)
    solved = curvature.at_zero(objective, 0).solve(hessian @ wanted)
    torch.testing.assert_close(solved, wanted, rtol=0, atol=1e-4)


def test_groups_partition_the_classes_and_keep_confused_ones_together():
    """Classes 0 and 3, 1 and 5, 2 and 4 share their images' probability."""
    pairs = [(0, 3), (1, 5), (2, 4)]
    probabilities = torch.full((30, 6), 0.01)
    for row in range(30):
        probabilities[row, list(pairs[row % 3])] = 0.48
    for size in (1, 2, 4, 6):
        groups = [group.tolist() for group in curvature._groups(probabilities, size)]
        assert sorted(label for group in groups for label in group) == list(range(6))
        assert all(len(group) <= size for group in groups)
        if size == 2:
            assert sorted(map(tuple, groups)) == pairs


def test_groups_are_as_large_as_their_cost_allows(monkeypatch):
    objective, weights = _problem("softmax", k=7)
    monkeypatch.setattr(curvature, "MAX_BLOCK", 10)  # unknowns: two classes of five
    assert curvature.group_size(objective) == 2
    found = curvature.estimate(objective, 0, weights)
    assert sorted(len(classes) for classes, _ in found.blocks) == [1, 2, 2, 2]
    assert all(len(hessian) == 5 * len(classes) for classes, hessian in found.blocks)


def test_a_sample_of_rows_stands_for_all(monkeypatch):
    """A sixteenth of 16,000 rows: within 15 %, five standard errors of a variance from 1,000 draws."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 16_000))
    objective = Objective(Rows([rng.normal(size=(16_000, 3))]), Softmax(labels, 3), [1.0])
    ((_, whole),) = curvature.estimate(objective, 0, objective.zeros()).blocks
    monkeypatch.setattr(curvature, "SAMPLE", 1000)
    ((_, sampled),) = curvature.estimate(objective, 0, objective.zeros()).blocks
    torch.testing.assert_close(sampled, whole, rtol=0, atol=0.15 * float(whole.diagonal().max()))


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_probabilities_of_zero_and_one_leave_something_to_factor(kind):
    """Far from the boundaries float32 knows no curvature at all, and the intercept has no penalty either."""
    objective, weights = _problem(kind)
    solved = curvature.estimate(objective, 0, weights * 1e6).with_penalty(1e-9).solve(torch.ones_like(weights))
    assert solved.isfinite().all()


def test_a_sample_in_which_no_image_counts_is_no_obstacle(monkeypatch):
    """Labels of a rare attribute may all be outside the sample."""
    targets = torch.full((40, 1), -1)
    targets[:2] = torch.tensor([[1], [0]])
    monkeypatch.setattr(curvature, "SAMPLE", 1)
    rows = Rows([np.random.default_rng(0).normal(size=(40, 3))])
    objective = Objective(rows, Logistic(targets, torch.tensor([0])), [1.0])
    solved = curvature.estimate(objective, 0, objective.zeros()).with_penalty(0.5).solve(torch.ones(4, 1).double())
    assert solved.isfinite().all()


def test_a_common_offset_leaves_the_estimate_as_it_is():
    """Of float64 features with an offset that float32 would drown them in. Tolerance: what float64 keeps of 1e8."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(50, 3)), torch.from_numpy(rng.integers(0, 3, 50))
    weights = torch.from_numpy(rng.normal(size=(4, 3)))
    near, far = (Objective(Rows([x + offset]), Softmax(labels, 3), [1.0]) for offset in (0, 1e8))
    ((_, expected),) = curvature.estimate(near, 0, weights).blocks
    ((_, found),) = curvature.estimate(far, 0, weights).blocks
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
