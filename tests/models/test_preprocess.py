import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from probe.errors import FeaturesError
from probe.models.preprocess import INTERPOLATIONS, RESIZES, CustomPreprocess, Preprocess

# The transform that OpenAI's README and code describe, built from torchvision independently of the package.
REFERENCE = Compose(
    [
        Resize(32, interpolation=InterpolationMode.BICUBIC),
        CenterCrop(32),
        lambda image: image.convert("RGB"),
        ToTensor(),
        Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ]
)
MODES = ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "YCbCr", "HSV", "I", "F"]
SIZES = [(8, 8), (32, 32), (100, 37), (37, 100), (33, 201), (640, 480), (1, 1), (1, 90), (90, 1), (31, 33), (3000, 33)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_both_halves_equal_the_reference_bit_for_bit(mode, size):
    pixels = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    expected = REFERENCE(image)
    ours = Preprocess(32)
    in_halves = ours.normalize(torch.from_numpy(ours.to_pixels(image))[None])[0]
    assert torch.equal(in_halves, expected)
    assert torch.equal(ours.transform(image), expected)


def test_pixels_are_uint8_channels_first():
    pixels = Preprocess(24).to_pixels(Image.new("RGB", (50, 30), (1, 2, 3)))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 24, 24)
    assert pixels[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize_to", [0, 35, 48])
def test_pixels_are_torchvisions_for_all_settings(size, interpolation, resize, resize_to):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8))
    ours = Preprocess(31, interpolation=interpolation, resize=resize, resize_to=resize_to)
    between = (resize_to or 31,) * (2 if resize == "squash" else 1)
    theirs = Compose(
        [
            Resize(between if resize == "squash" else between[0], interpolation=InterpolationMode(interpolation)),
            CenterCrop(31),
            ToTensor(),
            Normalize(ours.mean, ours.std),
        ]
    )
    assert torch.equal(ours.normalize(torch.from_numpy(ours.to_pixels(image))[None])[0], theirs(image))
    assert torch.equal(ours.transform(image), theirs(image))


def test_a_function_can_preprocess():
    image = Image.new("L", (50, 30), 51)
    custom = CustomPreprocess(Compose([Resize((24, 40)), ToTensor()]), (24, 40), "Compose")
    pixels = custom.to_pixels(image)
    assert (pixels.dtype, pixels.shape) == (np.float32, (3, 24, 40))
    assert custom.normalize(torch.from_numpy(pixels)).unique().tolist() == [pytest.approx(0.2)]
    assert custom.describe() == {"resolution": 24, "width": 40, "function": "Compose"}


def test_a_function_that_returns_another_shape_is_refused():
    custom = CustomPreprocess(ToTensor(), (24, 24), "ToTensor()")
    with pytest.raises(FeaturesError, match=r"returned the shape \(3, 30, 50\) for an image of 50 x 30 pixels; return"):
        custom.to_pixels(Image.new("RGB", (50, 30)))
