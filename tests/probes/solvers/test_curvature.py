import numpy as np
import pytest
import torch

from probe.probes.solvers import curvature
from probe.probes.solvers import objective as module
from probe.probes.solvers.objective import Logistic, Objective, Rows, Softmax


def _problem(kind, C=1.0, n=60, d=4, k=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * [0.1, 1, 3, 10] + 5
    labels = torch.from_numpy(rng.integers(0, k, n))
    if kind == "softmax":
        loss = Softmax(labels, k)
    else:
        loss = Logistic(
            torch.stack([labels - 1, labels == 2], dim=1), torch.tensor([0, 1])
        )  # images with -1 are ignored
    objective = Objective(Rows([x]), loss, [C] * (1 if kind == "softmax" else 2))
    return objective, torch.from_numpy(rng.normal(size=(d + 1, loss.width)) * 0.3)


def _hessian_of_loss(objective, unknowns):
    """Compute the Hessian by automatic differentiation, (width * (d + 1), width * (d + 1)), class after class."""
    x, loss = objective.rows.take(np.arange(len(objective.rows))), objective.loss

    def value(flat):
        own = flat.reshape(loss.width, -1).T
        logits = x @ own[:-1] + own[-1]
        if isinstance(loss, Softmax):
            return torch.nn.functional.cross_entropy(logits, loss.labels)
        counts = loss.targets[:, 0] != -1
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[counts, 0], loss.targets[counts, 0].double())

    return torch.autograd.functional.hessian(value, unknowns.T.reshape(-1))


def _whole(block, width):
    """Return a block as a matrix for the unknowns of all classes, with zeros for classes outside the block."""
    mix = torch.zeros(width, block.mix.shape[1])
    mix[block.classes] = block.mix
    size = len(block.matrix) // mix.shape[1]
    every = torch.kron(mix, torch.eye(size))
    return (every @ block.matrix @ every.T).double()


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_the_estimate_from_all_rows_is_the_hessian(kind):
    """All classes are in one group. Tolerance: float32 sums of 60 terms."""
    objective, unknowns = _problem(kind)
    (block,) = curvature.estimate_hessian(objective, 0, unknowns)
    assert block.classes.tolist() == list(range(objective.loss.width))
    expected = _hessian_of_loss(objective, unknowns)
    torch.testing.assert_close(_whole(block, objective.loss.width), expected, rtol=0, atol=1e-6)


def test_smaller_groups_are_blocks_of_the_hessian(monkeypatch):
    """Each block equals the rows and columns of the Hessian for its classes. Tolerance: float32 sums of 60 terms."""
    objective, unknowns = _problem("softmax", k=5)
    monkeypatch.setattr(curvature, "MAX_GROUP", 2)
    expected = _hessian_of_loss(objective, unknowns).unflatten(0, (5, 5)).unflatten(2, (5, 5))
    blocks = curvature.estimate_hessian(objective, 0, unknowns)
    assert sorted(len(block.classes) for block in blocks) == [1, 2, 2]
    for block in blocks:
        own = expected[block.classes][:, :, block.classes].flatten(2, 3).flatten(0, 1)
        torch.testing.assert_close(block.matrix.double(), own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
@pytest.mark.parametrize("C", [1e-2, 1.0])
def test_solving_inverts_the_hessian_with_its_penalty(kind, C):
    """Tolerance: the ridge of 1e-7 times a condition number below 1,000, and float32 factors."""
    objective, unknowns = _problem(kind, C)
    penalties = (objective.penalties[0] * objective.rows.basis.penalty)[:, None].expand_as(unknowns)
    hessian = _hessian_of_loss(objective, unknowns) + torch.diag(penalties.T.reshape(-1))
    wanted = torch.randn(unknowns.shape, dtype=torch.float64)
    if kind == "softmax":
        wanted -= wanted.mean(dim=1, keepdim=True)  # a shift that is common to all classes does not change the softmax
    gradient = (hessian @ wanted.T.reshape(-1)).reshape(unknowns.T.shape).T
    solved = curvature.at(objective, 0, unknowns).solve(gradient)
    torch.testing.assert_close(solved, wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_stacked_blocks_solve_as_single_blocks_do(monkeypatch, kind, group):
    """A GPU uses stacks. Five classes in pairs are two stacks. Tolerance: rounding of float32 times the condition."""
    objective, unknowns = _problem(kind, k=5)
    monkeypatch.setattr(curvature, "MAX_GROUP", group)
    penalty = (objective.penalties[0] * objective.rows.basis.penalty).float()
    stacks = curvature.stack(curvature.estimate_hessian(objective, 0, unknowns), penalty)
    gradient = torch.randn(unknowns.shape, dtype=torch.float64)
    expected = curvature.at(objective, 0, unknowns).solve(gradient)
    torch.testing.assert_close(stacks.solve(gradient), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_stacked_blocks_of_zeros_can_be_factored():
    """The ridge is 1, as for single blocks, because the intercept has no penalty."""
    blocks = [curvature.HessianBlock(torch.tensor([k]), torch.eye(1), torch.zeros(3, 3)) for k in range(2)]
    solved = curvature.stack(blocks, torch.tensor([1e-9, 1e-9, 0.0])).solve(torch.ones(3, 2).double())
    torch.testing.assert_close(solved, torch.ones(3, 2).double())


def test_stacked_blocks_that_are_almost_singular_get_a_larger_ridge():
    """The first block has a negative eigenvalue from rounding, far larger than the usual ridge; the second has none."""
    first = torch.tensor([[1.0, 1.0], [1.0, 1 - 1e-5]])
    blocks = [curvature.HessianBlock(torch.tensor([k]), torch.eye(1), m) for k, m in enumerate([first, torch.eye(2)])]
    solved = curvature.stack(blocks, torch.zeros(2)).solve(torch.ones(2, 2).double())
    assert solved.isfinite().all()
    torch.testing.assert_close(solved[:, 1], torch.ones(2).double(), rtol=0, atol=1e-6)


def test_the_hessian_at_zero_is_exact_for_two_classes():
    """All probabilities are one half, so no sample is needed. Tolerance: rounding."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, (60, 1)))
    objective = Objective(Rows([rng.normal(size=(60, 4)) + 5]), Logistic(labels, torch.tensor([0])), [1.0])
    hessian = _hessian_of_loss(objective, objective.zeros())
    hessian += objective.penalties[0] * torch.diag(objective.rows.basis.penalty)
    wanted = torch.randn(5, 1, dtype=torch.float64)
    solved = curvature.at_zero(objective, 0).solve(hessian @ wanted)
    torch.testing.assert_close(solved, wanted, rtol=0, atol=1e-10)


def test_groups_partition_the_classes_and_keep_confused_ones_together():
    """Images are ambiguous between classes 0 and 3, 1 and 5, or 2 and 4."""
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
    monkeypatch.setattr(curvature, "MAX_BLOCK", 10)  # unknowns: two classes with five each
    assert curvature.group_size(60, 4, 7) == 2
    blocks = curvature.estimate_hessian(objective, 0, weights)
    assert sorted(len(block.classes) for block in blocks) == [1, 2, 2, 2]
    assert all(len(block.matrix) == 5 * len(block.classes) for block in blocks)


@pytest.mark.parametrize("draws", ["SAMPLE", "CANDIDATES"])
def test_a_sample_of_rows_represents_all_rows(monkeypatch, draws):
    """1,000 of 16,000 rows are drawn. Tolerance: 15 %, five standard errors of a variance from 1,000 draws."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 16_000))
    objective = Objective(Rows([rng.normal(size=(16_000, 3))]), Softmax(labels, 3), [1.0])
    monkeypatch.setattr(curvature, "SAMPLE", 16_000)
    (whole,) = curvature.estimate_hessian(objective, 0, objective.zeros())
    monkeypatch.setattr(curvature if draws == "SAMPLE" else module, draws, 1000)
    del objective.rows.candidates  # a cached property
    (sampled,) = curvature.estimate_hessian(objective, 0, objective.zeros())
    assert not torch.equal(sampled.matrix, whole.matrix)
    torch.testing.assert_close(sampled.matrix, whole.matrix, rtol=0, atol=0.15 * float(whole.matrix.diagonal().max()))


def test_drawn_weights_are_unbiased_and_include_all_large_weights(monkeypatch):
    """The weights decrease by a factor of 1e40. Tolerance: five standard errors of 1,000 draws."""
    monkeypatch.setattr(curvature, "SAMPLE", 500)
    weights = torch.logspace(0, -40, 20_000).repeat(2, 1)
    drawn = curvature._draw(weights)
    threshold = float(weights.double().sum()) / 1000
    assert 100 < int((weights >= threshold).sum()) < 1000
    wanted = float((weights / threshold).clamp(max=1).sum())
    assert int((drawn > 0).sum()) == pytest.approx(wanted, abs=5 * np.sqrt(1000))
    torch.testing.assert_close(drawn[weights >= threshold], weights[weights >= threshold], rtol=0, atol=0)
    rest = weights < threshold
    error = 5 * threshold * np.sqrt(1000)
    assert float(drawn[rest].sum()) == pytest.approx(float(weights[rest].sum()), abs=error)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_a_hessian_of_zero_can_be_factored(kind):
    """All probabilities are 0 or 1 in float32, so the curvature is zero, and the intercept has no penalty."""
    objective, weights = _problem(kind, C=1e7)
    solved = curvature.at(objective, 0, weights * 1e6).solve(torch.ones_like(weights))
    assert solved.isfinite().all()


def test_a_sample_without_counted_images_gives_a_finite_estimate(monkeypatch):
    """All labels of a rare attribute can be outside the sample."""
    monkeypatch.setattr(module, "CANDIDATES", 1)
    rows = Rows([np.random.default_rng(0).normal(size=(40, 3))])
    (drawn,), _ = rows.candidates
    targets = torch.full((40, 1), -1)
    targets[(drawn + 1) % 40], targets[(drawn + 2) % 40] = 1, 0
    objective = Objective(rows, Logistic(targets, torch.tensor([0])), [1.0])
    solved = curvature.at(objective, 0, objective.zeros()).solve(torch.ones(4, 1).double())
    assert solved.isfinite().all()


def test_a_common_offset_does_not_change_the_estimate():
    """The offset is so large that float32 could not represent the features. Tolerance: a float64 ulp of 1e8."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(50, 3)), torch.from_numpy(rng.integers(0, 3, 50))
    weights = torch.from_numpy(rng.normal(size=(4, 3)))
    near, far = (Objective(Rows([x + offset]), Softmax(labels, 3), [1.0]) for offset in (0, 1e8))
    (expected,) = curvature.estimate_hessian(near, 0, weights)
    (block,) = curvature.estimate_hessian(far, 0, weights)
    torch.testing.assert_close(block.matrix, expected.matrix, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("d", "k"), [(4, 3), (4, 40), (30, 7), (1, 2)])
def test_no_estimate_is_larger_than_planned(d, k, monkeypatch):
    """The limits are so low that they take effect. Blocks of a single class may exceed them."""
    monkeypatch.setattr(curvature, "MAX_BLOCK", 60)
    monkeypatch.setattr(curvature, "MAX_NUMBERS", 5000)
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, k, 200))
    objective = Objective(Rows([rng.normal(size=(200, d))]), Softmax(labels, k), [1.0])
    blocks = curvature.estimate_hessian(objective, 0, objective.zeros())
    assert sum(block.matrix.numel() for block in blocks) <= curvature.max_numbers(d, k)
    assert max(len(block.matrix) for block in blocks) <= max(60, d + 1)


def test_near_points_share_an_estimate_and_its_inverse():
    objective, unknowns = _problem("softmax")
    estimates = curvature.Estimates()
    first = estimates.find(objective, 0, unknowns)
    step = torch.zeros_like(unknowns)
    step[0] = curvature.NEAR  # changes the logits of every class by about this much
    assert estimates.find(objective, 0, unknowns + 0.99 * step) is first
    assert estimates.find(objective, 0, unknowns + 1.01 * step) is not first
    assert estimates.find(objective, 0, unknowns) is first
    assert first.invert(objective, 0) is first.invert(objective, 0)


def test_an_estimate_that_did_not_suffice_is_replaced_by_a_nearer_one():
    objective, unknowns = _problem("softmax")
    estimates, step = curvature.Estimates(), torch.zeros_like(unknowns)
    step[0] = curvature.NEAR
    first = estimates.find(objective, 0, unknowns)
    second = estimates.find(objective, 0, unknowns + 1.1 * step)
    assert estimates.find(objective, 0, unknowns + 0.7 * step, used=first.unknowns) is second
    third = estimates.find(objective, 0, unknowns + 0.7 * step, used=second.unknowns)
    assert torch.equal(third.unknowns, unknowns + 0.7 * step)


def test_the_distance_of_two_points_is_that_of_their_logits():
    """The features are whitened, so the mean square of the logits is the square of the weights."""
    objective, unknowns = _problem("softmax", n=5000)
    other = unknowns * 0.5
    x = objective.rows.take(np.arange(len(objective.rows)))
    logits = x @ (unknowns - other)[:-1] + (unknowns - other)[-1]
    (block,) = curvature.estimate_hessian(objective, 0, unknowns)
    distance = curvature.Estimate(None, unknowns, [block]).distance(other)
    assert distance == pytest.approx(float(logits.square().mean().sqrt()), rel=1e-3)


def test_only_similar_penalties_share_an_inverse():
    objective, unknowns = _problem("softmax")
    estimate = curvature.Estimates().find(objective, 0, unknowns)
    inverses = []
    for C in (1.0, 1.9, 2.1, 0.51, 0.49):
        other = Objective(objective.rows, objective.loss, [C])
        inverses.append(estimate.invert(other, 0))
        gradient = torch.ones_like(unknowns)
        expected = curvature.invert(other, 0, estimate.blocks).solve(gradient)
        assert torch.equal(inverses[-1].solve(gradient), expected) == (C in (1.0, 2.1, 0.49))
    assert [inverse is inverses[0] for inverse in inverses] == [True, True, False, True, False]


def test_classes_of_multi_label_images_do_not_share_estimates():
    objective, unknowns = _problem("logistic")
    estimates = curvature.Estimates()
    assert estimates.find(objective, 0, unknowns) is not estimates.find(objective, 1, unknowns)


def test_old_estimates_are_forgotten(monkeypatch):
    objective, unknowns = _problem("softmax")
    monkeypatch.setattr(curvature, "ESTIMATES_BYTES", 2500)  # two estimates of (2 * 5)^2 numbers
    estimates = curvature.Estimates()
    found = [estimates.find(objective, 0, unknowns + 100 * i) for i in range(8)]
    assert estimates.find(objective, 0, found[-1].unknowns) is found[-1]
    assert estimates.find(objective, 0, found[0].unknowns) is not found[0]


@pytest.mark.parametrize("limit", [2500, 500])
def test_estimates_and_their_inverses_stay_below_the_limit(monkeypatch, limit):
    """An estimate has (2 * 5)^2 numbers. The last estimate and one inverse are stored even if they are larger."""
    objective, unknowns = _problem("softmax")
    monkeypatch.setattr(curvature, "ESTIMATES_BYTES", limit)
    estimates = curvature.Estimates()
    for i in range(12):
        other = Objective(objective.rows, objective.loss, [10.0**i])
        estimate = estimates.find(other, 0, unknowns + 100 * (i // 4))
        estimate.invert(other, 0)
        assert len(estimate.inverses) >= 1
        assert estimates.num_bytes <= max(limit, 800)
    assert estimates.find(objective, 0, unknowns + 200) is estimate


def test_inverses_are_forgotten_before_estimates(monkeypatch):
    objective, unknowns = _problem("softmax")
    monkeypatch.setattr(curvature, "ESTIMATES_BYTES", 1600)  # an estimate and an inverse have 400 bytes each
    estimates = curvature.Estimates()
    first = estimates.find(objective, 0, unknowns)
    first.invert(objective, 0)
    second = estimates.find(objective, 0, unknowns + 100)
    second.invert(objective, 0)
    third = estimates.find(objective, 0, unknowns + 200)
    assert not first.inverses
    assert estimates.find(objective, 0, unknowns + 100) is second
    assert estimates.find(objective, 0, unknowns + 200) is third
