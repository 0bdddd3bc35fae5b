"""Perceptual hashes, and pairs of hashes within a distance against all pairs."""

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dct

from probe.stats.near_hashes import MAX_DISTANCE, SIDE, count_bits, find_near_hashes, hash_images


def some_hashes(rng, n=400):
    """Return different hashes, among them many that are close to one another."""
    far = rng.integers(0, 2**64, n, dtype=np.uint64)
    close = far[: n // 2].copy()
    for bits in rng.integers(0, 64, (5, n // 2), dtype=np.uint64):
        far, close = np.concatenate([far, close]), close ^ (np.uint64(1) << bits)
    return np.unique(np.concatenate([far, close, np.array([0, 1, 3, 2**64 - 1], np.uint64)]))


@pytest.mark.parametrize("distance", [0, 1, 2, 4, 7, MAX_DISTANCE])
def test_all_pairs_within_the_distance_are_found_once(distance):
    hashes = some_hashes(np.random.default_rng(distance))
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).astype(int)
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    a, b = np.nonzero(np.triu(distances <= distance, 1))
    expected = sorted(zip(a.tolist(), b.tolist(), distances[a, b].tolist(), strict=True))
    found = [
        (min(one, other), max(one, other), space)
        for block in find_near_hashes(hashes, distance)
        for one, other, space in zip(*(column.tolist() for column in block), strict=True)
    ]
    assert sorted(found) == expected
    assert len(expected) > 400 or distance < 2


def test_bits_are_counted():
    values = np.append(np.random.default_rng(0).integers(0, 2**64, 100, dtype=np.uint64), np.uint64([0, 2**64 - 1]))
    assert count_bits(values).tolist() == [int(value).bit_count() for value in values]


def test_the_hash_is_the_signs_of_64_frequencies_around_their_median():
    grey = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)
    for image, found in zip(grey, hash_images(grey).tolist(), strict=True):
        frequencies = dct(dct(image.astype(float), axis=0), axis=1)[1:9, 1:9].ravel()
        bits = "".join("01"[int(value > np.median(frequencies))] for value in frequencies)
        assert found == int(bits, 2)


def test_small_changes_move_few_bits_and_other_images_many():
    rng = np.random.default_rng(1)
    scene = Image.fromarray(rng.integers(0, 256, (6, 6)).astype(np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
    noisy = Image.fromarray((np.asarray(scene) + rng.integers(-8, 9, (90, 120))).clip(0, 255).astype(np.uint8))
    other = Image.fromarray(rng.integers(0, 256, (6, 6)).astype(np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
    images = (scene, noisy, scene.resize((60, 45)), other)
    first, *hashes = hash_images(np.stack([np.asarray(image.resize((SIDE, SIDE))) for image in images]))
    noise, half, unlike = count_bits(np.array(hashes) ^ first).tolist()
    assert max(noise, half) <= 6 < 16 < unlike


def test_blank_images_have_one_hash():
    grey = np.stack([np.full((SIDE, SIDE), value, np.uint8) for value in (0, 77, 255)])
    assert hash_images(grey).tolist() == [0, 0, 0]
