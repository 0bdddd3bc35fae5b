import numpy as np
import pytest
import torch

from probe.probes.solvers import objective as module
from probe.probes.solvers.block_threads import BlockThreads
from probe.probes.solvers.objective import Logistic, Objective, Rows, Softmax
from probe.probes.solvers.optimality import measure_optimality

STRENGTHS = [0.01, 1.0, 1e4]


@pytest.fixture
def _small_blocks(monkeypatch):
    """Use blocks of 7 rows, which do not divide the arrays below evenly."""
    monkeypatch.setattr(module, "MIN_ROWS", 7)
    monkeypatch.setattr(module, "MAX_ROWS", 7)


def _features(dtype=np.float64, n=50, d=6):
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype) + 2


def _parts(x):
    return Rows([x[:11], x[11:12], x[12:]])


def _softmax(n=50, k=5):
    return Softmax(torch.from_numpy(np.random.default_rng(1).integers(0, k, n)), k)


def _logistic(n=50):
    """Return the loss of three probes, for the columns 2, 0 and 0 of four. A fifth of the labels do not count."""
    targets = np.random.default_rng(2).choice([1, 0, -1], p=[0.4, 0.4, 0.2], size=(n, 4))
    return Logistic(torch.from_numpy(targets), torch.tensor([2, 0, 0]))


def _weights(d=6, width=1):
    rng = np.random.default_rng(3)
    return [torch.from_numpy(rng.normal(size=(d + 1, width)) * size) for size in (0.1, 1.0, 30.0)]


def _by_autograd(x, loss, probe, weights, C):
    """Compute the value and the gradient with respect to the weights by torch's losses in float64."""
    x = torch.from_numpy(x).double()
    weights = weights.clone().requires_grad_()
    logits = x @ weights[:-1] + weights[-1]
    if isinstance(loss, Softmax):
        value, n = torch.nn.functional.cross_entropy(logits, loss.labels), len(x)
    else:
        target = loss.targets[:, loss.columns[probe]]
        counts, n = target != -1, int((target != -1).sum())
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits[counts, 0], target[counts].double())
    value = value + weights[:-1].square().sum() / (2 * C * n)
    value.backward()
    return value.item(), weights.grad


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("kind", ["softmax", "logistic"])
@pytest.mark.parametrize(("dtype", "exact", "tolerance"), [(np.float64, False, 1e-12), (np.float32, True, 1e-12)])
def test_value_and_gradient_equal_automatic_differentiation(kind, dtype, exact, tolerance):
    """Three probes with different C are evaluated together, on several arrays and blocks.

    Tolerance: rounding of sums of 50 terms.
    """
    x, loss = _features(dtype), _softmax() if kind == "softmax" else _logistic()
    weights = _weights(width=loss.width)
    objective = Objective(_parts(x), loss, STRENGTHS)
    found = objective.evaluate([objective.rows.unknowns_of(own) for own in weights], range(3), exact=exact)
    for probe, (value, gradient) in enumerate(found):
        expected, slope = _by_autograd(x, loss, probe, weights[probe], STRENGTHS[probe])
        assert value == pytest.approx(expected, rel=tolerance)
        torch.testing.assert_close(
            objective.rows.by_weights(gradient), slope, rtol=0, atol=tolerance * float(slope.abs().max())
        )


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_features_too_large_for_a_copy_give_the_same_values(kind, monkeypatch):
    """Such features are centred block by block in every pass. Tolerance: rounding of sums of 50 terms."""
    loss = _softmax() if kind == "softmax" else _logistic()
    unknowns = _weights(width=loss.width)
    with_copy = Objective(_parts(_features()), loss, STRENGTHS)
    expected = with_copy.evaluate(unknowns, range(3))
    monkeypatch.setattr(module, "COPY_BYTES", 0)
    without = Objective(_parts(_features()), loss, STRENGTHS)
    assert without.rows.whitened is None
    assert with_copy.rows.whitened is not None
    for (value, gradient), (other, slope) in zip(without.evaluate(unknowns, range(3)), expected, strict=True):
        assert value == pytest.approx(other, rel=1e-12)
        torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-12 * float(slope.abs().max()))
    for positions in (np.arange(50), np.array([0, 10, 11, 12, 49])):
        torch.testing.assert_close(without.rows.take(positions), with_copy.rows.take(positions), rtol=0, atol=1e-12)
    torch.testing.assert_close(without.rows.variance, with_copy.rows.variance, rtol=1e-12, atol=0)


def test_the_basis_takes_weights_to_unknowns_and_back():
    objective = Objective(_parts(_features()), _softmax(), [1.0])
    weights = _weights(width=5)[1]
    torch.testing.assert_close(
        objective.rows.weights_of(objective.rows.unknowns_of(weights)), weights, rtol=0, atol=1e-12
    )


def test_whitened_features_are_uncorrelated_and_have_unit_variance():
    """A constant feature and the difference of two equal features have no variance, and whitening does not change that.

    Tolerance: rounding errors of 1e-16, divided by the smallest standard deviation of 1e-8.
    """
    x = _features()
    x[:, 3], x[:, 5] = 0.1, x[:, 4]
    rows = _parts(x)
    inside = rows.take(np.arange(50)).numpy()
    covariance = np.cov(inside.T, bias=True)
    np.testing.assert_allclose(np.diag(covariance), rows.variance[:-1], rtol=1e-12, atol=1e-7)
    np.testing.assert_allclose(np.sort(rows.variance[:-1]), [0, 0, 1, 1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-7)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_products_in_float32_differ_by_its_rounding_only(kind):
    """Tolerance: a few float32 ulps of the largest logit, 1e-7 x 30 x 6 features."""
    x, loss = _features(np.float32), _softmax() if kind == "softmax" else _logistic()
    objective, unknowns = Objective(_parts(x), loss, STRENGTHS), _weights(width=loss.width)
    rough, exact = (objective.evaluate(unknowns, range(3), exact=exact) for exact in (False, True))
    for (value, gradient), (expected, slope) in zip(rough, exact, strict=True):
        assert value == pytest.approx(expected, rel=2e-5)
        torch.testing.assert_close(gradient, slope, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_probes_evaluated_together_equal_probes_evaluated_alone(kind):
    """This holds for any order, and if a probe occurs twice. Tolerance: a different order of sums, about 1e-16."""
    loss = _softmax() if kind == "softmax" else _logistic()
    objective, weights = Objective(_parts(_features()), loss, STRENGTHS), _weights(width=loss.width)
    for probes in ([0, 1, 2], [2, 0, 1], [1, 1, 0], [2, 1]):
        together = objective.evaluate([weights[probe] for probe in probes], probes)
        for probe, (value, gradient) in zip(probes, together, strict=True):
            ((expected, slope),) = objective.evaluate([weights[probe]], [probe])
            assert value == pytest.approx(expected, rel=1e-13)
            torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-13 * float(slope.abs().max()))


def test_a_very_small_logistic_loss_is_not_rounded_to_zero():
    """At logits of 30 the loss is exp(-30). torch's `softplus` would give zero, or 30 x 1e-16."""
    x = np.array([[30.0], [-30.0]])
    loss = Logistic(torch.tensor([[1], [0]]), torch.tensor([0]))
    objective = Objective(Rows([x]), loss, [1e30])
    ((value, _),) = objective.evaluate([objective.rows.unknowns_of(torch.tensor([[1.0], [0.0]]).double())], [0])
    assert value == pytest.approx(np.exp(-30), rel=1e-12)


def test_a_probe_that_no_image_counts_for_is_refused():
    targets = torch.tensor([[1, -1], [0, -1]])
    with pytest.raises(ValueError, match="no image counts for probe 1; remove this probe"):
        Objective(Rows([np.eye(2)]), Logistic(targets, torch.tensor([0, 1])), [1.0, 1.0])


@pytest.mark.usefixtures("_small_blocks")
def test_mean_and_covariance_are_computed_over_all_arrays():
    """They equal NumPy's. Tolerance: rounding of sums of 50 terms."""
    x = _features()
    x[:, 3] = 0.1  # constant
    rows = _parts(x)
    np.testing.assert_allclose(rows.mean, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(rows.covariance, np.cov(x.T, bias=True), atol=1e-13)


def test_rows_are_taken_across_arrays():
    """The rows are whitened by the covariance of all rows."""
    x = _features()
    positions = np.array([0, 10, 11, 12, 49])
    rows = _parts(x)
    expected = (x[positions] - x.mean(axis=0)) @ rows.basis.matrix[:-1, :-1].numpy()
    np.testing.assert_allclose(rows.take(positions), expected, atol=1e-12)


def test_features_whose_squares_overflow_are_refused():
    """Such features would make every preconditioner infinite."""
    with pytest.raises(ValueError, match=r"the squares of the features overflow torch\.float32; scale"):
        _ = Rows([_features(np.float32) * np.float32(1e25)]).covariance


def test_the_number_of_threads_changes_values_by_rounding_only():
    rng = np.random.default_rng(0)
    n = 9 * module.MAX_ROWS + 5
    x, y = rng.normal(size=(n, 6)).astype(np.float32), torch.arange(n) % 3
    rows = Rows([x])
    objective = Objective(rows, Softmax(y, 3), [1.0])
    point = objective.zeros() + torch.from_numpy(rng.normal(size=(7, 3)))
    assert rows.whitened is not None
    found, before = [], torch.get_num_threads()
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            rows.whitened.threads = BlockThreads()
            found.append(objective.evaluate([point], [0])[0])
            assert torch.get_num_threads() == num
    finally:
        torch.set_num_threads(before)
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-14)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-12, atol=1e-15)


def test_each_block_has_one_thread_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        blocks = [(i, torch.zeros(1)) for i in range(12)]
        (numbers,) = BlockThreads().sum(lambda i, _: [torch.eye(12)[i] * torch.get_num_threads()], blocks)
    finally:
        torch.set_num_threads(before)
    assert numbers.tolist() == [1.0] * 12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_features_are_not_changed(dtype):
    """Blocks of float64 features are views of the array and not copies."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(dtype)
    before = x.copy()
    objective = Objective(Rows([x]), Softmax(torch.arange(40) % 3, 3), [1.0])
    weights = torch.from_numpy(rng.normal(size=(6, 3)))
    objective.evaluate([weights], [0])
    objective.evaluate([weights], [0], exact=True)
    measure_optimality(objective, 0, weights, num_iter=9)
    assert np.array_equal(x, before)
