import numpy as np
import pytest
import torch

from probe.environment import threads
from probe.probes import neighbours
from probe.probes.neighbours import MARGIN, STEPS_PER_UNIT, find_neighbours


def _by_hand(bank, x, k):
    """Return positions and similarities from a full sort of all similarities in float64."""
    bank, x = bank.astype(np.float64), x.astype(np.float64)
    lengths = [np.linalg.norm(array, axis=1, keepdims=True) for array in (x, bank)]
    x, bank = (array / np.where(length > 0, length, 1) for array, length in zip((x, bank), lengths, strict=True))
    similarities = np.rint((x @ bank.T) * STEPS_PER_UNIT) / STEPS_PER_UNIT
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarities, order, axis=1)


def _draw(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize(
    ("m", "n", "d", "k"), [(500, 40, 32, 1), (5003, 40, 32, 5), (3000, 30, 512, 200), (300, 20, 1, 5), (7, 3, 5, 7)]
)
def test_the_search_equals_a_full_sort(m, n, d, k):
    bank, x = _draw(0, m, d), _draw(1, n, d)
    found = find_neighbours([bank], x, k)
    positions, similarities = _by_hand(bank, x, k)
    assert np.array_equal(found.positions, positions)
    assert np.abs(found.similarities - similarities).max() <= 1 / STEPS_PER_UNIT  # sums in a different order


def test_of_equally_similar_images_the_earlier_ones_are_neighbours():
    """Many more images than `MARGIN` are equal, and some are multiples of others, so float32 cannot decide."""
    one, two = np.float32([3, 4, 1]), np.float32([1, -1, 2])
    bank = np.stack([two, *(one * np.float32(factor) for factor in range(1, 4 * MARGIN)), two])
    found = find_neighbours([bank], np.stack([one, two, 7 * two]), 5)
    assert found.positions.tolist() == [[1, 2, 3, 4, 5], [0, len(bank) - 1, 1, 2, 3], [0, len(bank) - 1, 1, 2, 3]]


def test_the_arrays_of_a_bank_are_in_their_order():
    first, second = _draw(0, 50, 8), _draw(1, 70, 8)
    second[:20] = first[:20]  # the copy in the first array counts
    found = find_neighbours([first, second], first, 1)
    assert found.positions[:, 0].tolist() == list(range(50))
    joined = find_neighbours([np.concatenate([first, second])], first, 30)
    split = find_neighbours([first, second], first, 30)
    assert np.array_equal(split.positions, joined.positions)
    assert np.array_equal(split.similarities, joined.similarities)


def test_features_closer_than_float32_can_tell_apart_are_in_order():
    """The similarities differ by about 1e-9, which can occur with a random model."""
    bank, x = 1 + 1e-4 * _draw(0, 400, 64), 1 + 1e-4 * _draw(1, 20, 64)
    positions, _ = _by_hand(bank, x, 10)
    assert np.array_equal(find_neighbours([bank], x, 10).positions, positions)


def test_images_without_features_have_similarity_0():
    bank = np.float32([[0, 0], [1, 0], [-1, 0]])
    found = find_neighbours([bank], np.float32([[2, 0], [0, 0]]), 3)
    assert found.positions.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert found.similarities.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_features_of_any_size_can_be_normalised():
    bank, x = _draw(0, 100, 16), _draw(1, 10, 16)
    small, large = (find_neighbours([bank * np.float32(size)], x, 10) for size in (1e-30, 1e30))
    assert np.array_equal(small.positions, large.positions)


def test_block_sizes_and_threads_do_not_change_the_bytes(monkeypatch):
    bank, x = _draw(0, 4000, 48), _draw(1, 100, 48)
    bank[1000:1100] = bank[3]
    expected = find_neighbours([bank], x, 30)
    for bank_bytes, product_bytes, rows in ((200_000, 2**26, 8192), (2**27, 200_000, 100), (60_000, 20_000, 7)):
        monkeypatch.setattr(neighbours, "BANK_BYTES", bank_bytes)
        monkeypatch.setattr(neighbours, "PRODUCT_BYTES", product_bytes)
        monkeypatch.setattr(neighbours, "ROWS", rows)
        monkeypatch.setattr(neighbours, "DECIDED", 100 * rows)
        for num_threads in (1, 2):
            with threads(num_threads, blas=num_threads):
                found = find_neighbours([bank], x, 30)
            assert np.array_equal(found.positions, expected.positions)
            assert found.similarities.tobytes() == expected.similarities.tobytes()


def test_a_lower_precision_of_products_is_not_used():
    """Users can permit TF32 or bfloat16 for all products, which would break the bound of the rounding error."""
    bank, x = _draw(0, 3000, 256), _draw(1, 30, 256)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = find_neighbours([bank], x, 50)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(found.positions, _by_hand(bank, x, 50)[0])
