import logging
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from probe.datasets.images import ImageDataset, read_file
from probe.errors import DatasetError, FeaturesError
from probe.features.arrays import Features
from probe.features.passes import extract_features
from probe.features.reading import default_workers
from probe.models.devices import Execution, resolve_execution
from probe.models.encoder import ImageFeatures
from probe.models.loading import load_encoder
from probe.models.preprocess import CustomPreprocess, Preprocess


@dataclass
class FakeEncoder:
    """Encoder whose projected feature is the mean red of the image, in all dimensions."""

    embed_dim: int = 48
    pre_projection_dim: int = 64
    preprocess: Preprocess = field(default_factory=lambda: Preprocess(8))
    batches: list = field(default_factory=list)
    poison: float | None = None
    execution: Execution = field(default_factory=lambda: resolve_execution("cpu"))

    def encode(self, pixels, *, wait=True):  # noqa: ARG002 - as `ImageEncoder`
        self.batches.append(tuple(pixels.shape))
        red = pixels[:, 0].float().mean(dim=(1, 2))[:, None]
        if self.poison is not None:
            red[red == self.poison] = float("nan")
        return ImageFeatures(red.expand(-1, self.embed_dim), 2 * red.expand(-1, self.pre_projection_dim))


def images(n):
    """Return images and labels, as a dataset of torchvision without a transform gives them."""
    return [(Image.new("RGB", (10, 9), (i, 0, 0)), i % 3) for i in range(n)]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_rows_are_in_the_order_of_the_dataset(batch_size):
    features = extract_features(FakeEncoder(), images(10), batch_size=batch_size)
    assert features.x[:, 0].tolist() == list(range(10))
    assert features.pre_projection[:, 0].tolist() == [2 * i for i in range(10)]
    assert features.y.tolist() == [i % 3 for i in range(10)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_function_that_preprocesses_gives_the_same_features(workers):
    """The function returns normalised float pixels, and readers accept images that are not square."""
    encoder, settings = load_encoder("tiny", device="cpu"), Preprocess(32)
    expected = extract_features(encoder, images(10), batch_size=4)
    custom = replace(encoder, preprocess=CustomPreprocess(settings.transform, settings.shape, "CLIP"))
    found = extract_features(custom, images(10), batch_size=4, workers=workers)
    assert np.array_equal(found.x, expected.x)
    assert np.array_equal(found.pre_projection, expected.pre_projection)


def test_features_leave_as_contiguous_fp32():
    features = extract_features(FakeEncoder(), images(5))
    for array, width in ((features.x, 48), (features.pre_projection, 64)):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.shape == (5, width)
    assert features.y.dtype == np.int64


def test_every_batch_has_the_same_size():
    """A different batch size changes the last bits of features, so the last batch is padded."""
    encoder = FakeEncoder()
    extract_features(encoder, images(10), batch_size=4)
    assert encoder.batches == [(4, 3, 8, 8)] * 3


@pytest.mark.parametrize("model", ["tiny", "random:tiny"])
def test_an_image_in_the_last_batch_has_the_features_it_has_in_a_full_one(model):
    """The features have the same bits, because black images pad the last batch to the full size."""
    encoder = load_encoder(model, device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (96, 40, 40, 3), dtype=np.uint8)
    dataset = [(Image.fromarray(pixels), 0) for pixels in noise]
    full, short = (
        extract_features(encoder, dataset, batch_size=32),
        extract_features(encoder, dataset[:70], batch_size=32),
    )
    for point in ("projected", "pre_projection"):
        assert np.array_equal(full.at(point)[:70], short.at(point))


def test_every_batch_lies_in_memory_in_one_order():
    """All batches are in channels-last order, also the last one, which is padded."""
    orders = []

    class Observed(FakeEncoder):
        def encode(self, pixels, *, wait=True):
            orders.append(pixels.is_contiguous(memory_format=torch.channels_last))
            return super().encode(pixels, wait=wait)

    extract_features(Observed(), images(10), batch_size=4)
    assert orders == [True] * 3


def test_a_batch_is_never_larger_than_the_split():
    """A careless --batch-size must not fill the memory with black images."""
    encoder = FakeEncoder()
    extract_features(encoder, images(10), batch_size=100_000)
    assert encoder.batches == [(10, 3, 8, 8)]


def test_a_feature_that_is_not_finite_names_its_image():
    with pytest.raises(FeaturesError, match="the features of image 6 are not finite"):
        extract_features(FakeEncoder(poison=6.0), images(10), batch_size=4)


def test_a_batch_size_of_zero_is_an_error():
    with pytest.raises(FeaturesError, match="batch size is 0"):
        extract_features(FakeEncoder(), images(3), batch_size=0)


def test_features_without_a_point_say_so():
    features = Features(np.zeros((2, 3), np.float32), np.zeros(2, np.int64))
    assert features.at("projected") is features.x
    with pytest.raises(FeaturesError, match="no feature point 'pre_projection'"):
        features.at("pre_projection")


def test_the_digest_tells_features_apart():
    one, other = extract_features(FakeEncoder(), images(4)), extract_features(FakeEncoder(), images(4)[::-1])
    assert one.compute_sha256() == extract_features(FakeEncoder(), images(4)).compute_sha256()
    assert one.compute_sha256() != other.compute_sha256()


def test_progress_is_silent_without_a_terminal(capsys):
    extract_features(FakeEncoder(), images(4))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_torch_tensors_never_leave():
    assert not isinstance(extract_features(FakeEncoder(), images(2)).x, torch.Tensor)


@pytest.fixture
def on_disk(tmp_path):
    """Return a dataset of twelve image files whose red value is their position."""
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        Image.new("RGB", (10, 9), (i, 0, 0)).save(path)
    labels, names = np.arange(12) % 3, [path.name for path in paths]
    return ImageDataset("reds", labels, ["a", "b", "c"], partial(read_file, tmp_path, names), names)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch_size", [5, 12])
def test_worker_processes_change_nothing(on_disk, workers, batch_size):
    alone = extract_features(FakeEncoder(), on_disk, batch_size=batch_size, workers=0)
    together = extract_features(FakeEncoder(), on_disk, batch_size=batch_size, workers=workers)
    assert together.compute_sha256() == alone.compute_sha256()
    assert together.x[:, 0].tolist() == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_sentence_wherever_it_is_read(on_disk, tmp_path, workers):
    """The message is one line, without the traceback of a worker process."""
    (tmp_path / "7.png").write_bytes(b"no image")
    with pytest.raises(DatasetError) as caught:
        extract_features(FakeEncoder(), on_disk, batch_size=4, workers=workers)
    assert str(caught.value).startswith("reds: image 7 (7.png) cannot be read (cannot identify image file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_passed_over_up_to_a_number(on_disk, tmp_path, workers, caplog):
    for i in (0, 7):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        features = extract_features(FakeEncoder(), on_disk, batch_size=4, workers=workers, skip_corrupt=2)
    rest = [i for i in range(12) if i not in (0, 7)]
    assert features.x[:, 0].tolist() == rest
    assert features.y.tolist() == [i % 3 for i in rest]
    assert [position for position, _ in features.skipped] == [0, 7]
    assert "skipped reds: image 7 (7.png) cannot be read" in caplog.text
    assert "--skip-corrupt" not in caplog.text  # the option was given


def test_one_more_unreadable_image_than_allowed_stops(on_disk, tmp_path):
    for i in (0, 7):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="image 7"):
        extract_features(FakeEncoder(), on_disk, batch_size=4, skip_corrupt=1)


def test_a_whole_batch_of_unreadable_images_is_passed_over(on_disk, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    assert extract_features(FakeEncoder(), on_disk, batch_size=4, skip_corrupt=4).x[:, 0].tolist() == list(range(4, 12))


def test_no_image_at_all_is_an_error(on_disk, tmp_path):
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(FeaturesError, match="reds: no image could be read"):
        extract_features(FakeEncoder(), on_disk, skip_corrupt=100)


def test_rows_of_labels_stay_rows(on_disk):
    labels = np.array([[1, 0], [0, -1]] * 6)
    several = ImageDataset("several", labels, ["a", "b"], on_disk.read, on_disk.ids)
    assert np.array_equal(extract_features(FakeEncoder(), several, workers=1).y, labels)


def test_workers_are_for_gpus_unless_asked_for():
    """On a CPU, the model itself uses all cores."""
    assert default_workers("cpu") == 0
    assert 1 <= default_workers("cuda") <= 16
