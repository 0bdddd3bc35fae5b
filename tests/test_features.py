from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from probe.errors import FeaturesError
from probe.features import Features, extract
from probe.models.encoder import ImageFeatures
from probe.preprocess import Preprocess


@dataclass
class FakeEncoder:
    """Its projected feature is the mean red of the image, in all places."""

    embed_dim: int = 48
    pre_projection_dim: int = 64
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(8))
    batches: list = field(default_factory=list)
    poison: float | None = None

    def encode(self, pixels):
        self.batches.append(tuple(pixels.shape))
        red = pixels[:, 0].float().mean(dim=(1, 2))[:, None]
        if self.poison is not None:
            red[red == self.poison] = float("nan")
        return ImageFeatures(red.expand(-1, self.embed_dim), 2 * red.expand(-1, self.pre_projection_dim))


def images(n):
    """What torchvision's datasets without a transform look like."""
    return [(Image.new("RGB", (10, 9), (i, 0, 0)), i % 3) for i in range(n)]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_rows_are_in_the_order_of_the_dataset(batch_size):
    features = extract(FakeEncoder(), images(10), batch_size=batch_size)
    assert features.x[:, 0].tolist() == list(range(10))
    assert features.pre_projection[:, 0].tolist() == [2 * i for i in range(10)]
    assert features.y.tolist() == [i % 3 for i in range(10)]


def test_features_leave_as_contiguous_fp32():
    features = extract(FakeEncoder(), images(5))
    for array, width in ((features.x, 48), (features.pre_projection, 64)):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.shape == (5, width)
    assert features.y.dtype == np.int64


def test_every_batch_has_the_same_size():
    """Another batch size changes the last bits of features, so the last batch is filled up."""
    encoder = FakeEncoder()
    extract(encoder, images(10), batch_size=4)
    assert encoder.batches == [(4, 3, 8, 8)] * 3


def test_a_batch_is_never_larger_than_the_split():
    """A careless --batch-size must not fill the memory with black images."""
    encoder = FakeEncoder()
    extract(encoder, images(10), batch_size=100_000)
    assert encoder.batches == [(10, 3, 8, 8)]


def test_a_feature_that_is_not_finite_names_its_image():
    with pytest.raises(FeaturesError, match="the features of image 6 are not finite"):
        extract(FakeEncoder(poison=6.0), images(10), batch_size=4)


def test_a_batch_size_of_zero_is_an_error():
    with pytest.raises(FeaturesError, match="batch size is 0"):
        extract(FakeEncoder(), images(3), batch_size=0)


def test_features_without_a_point_say_so():
    features = Features(np.zeros((2, 3), np.float32), np.zeros(2, np.int64))
    assert features.at("projected") is features.x
    with pytest.raises(FeaturesError, match="no feature point 'pre_projection'"):
        features.at("pre_projection")


def test_the_digest_tells_features_apart():
    one, other = extract(FakeEncoder(), images(4)), extract(FakeEncoder(), images(4)[::-1])
    assert one.sha256 == extract(FakeEncoder(), images(4)).sha256
    assert one.sha256 != other.sha256


def test_progress_is_silent_without_a_terminal(capsys):
    extract(FakeEncoder(), images(4))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_torch_tensors_never_leave():
    assert not isinstance(extract(FakeEncoder(), images(2)).x, torch.Tensor)
