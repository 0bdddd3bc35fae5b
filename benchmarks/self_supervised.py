"""Make self-supervised features of Fashion-MNIST, 512 per image, for the benchmarks of the solvers.

A small convolutional network learns without labels to match two views of an image (SimCLR, Chen et al. 2020, arXiv
2002.05709). Its features resemble the features of real models: correlated, of very different scales, none of them
constant. The same seed and number of threads give the same bytes on one machine.

    python benchmarks/self_supervised.py --data-dir DIR --out features.npz
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

STEPS, BATCH, TEMPERATURE = 150, 512, 0.2
VAL = 6000  # the last training images are the validation split


def network() -> nn.Sequential:
    """Network from images (n, 1, 28, 28) to features (n, 512)."""
    layers: list[nn.Module] = []
    for before, after, size, stride in ((1, 64, 5, 2), (64, 128, 3, 2), (128, 256, 3, 2), (256, 512, 1, 1)):
        layers += [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random view of each image: cropped to at least half the side, flipped or not, brighter or darker."""
    n = len(images)
    side = 0.5 + 0.5 * torch.rand(n, generator=generator)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - side)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * mirror, side, shift
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    light = 0.6 + 0.8 * torch.rand(n, 1, 1, 1, generator=generator)
    return nn.functional.grid_sample(images, grid, align_corners=False) * light


def train(images: Tensor) -> nn.Sequential:
    """Return a network that is trained on images (n, 1, 28, 28) in [0, 1]."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = network()
    head = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 128))
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / STEPS)) / 2)
    target = torch.arange(2 * BATCH).roll(BATCH)  # for each view, the other view of its image
    for _ in range(STEPS):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        z = nn.functional.normalize(head(model(torch.cat([view(batch, generator), view(batch, generator)]))))
        similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        optimizer.zero_grad()
        nn.functional.cross_entropy(similarity, target).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def features(data_dir: Path) -> dict[str, Any]:
    """Return `train_x` float32 (54000, 512), `train_y` int64, and the same for `val` and `test`."""
    splits = {}
    for name, is_train in (("train", True), ("test", False)):
        split = FashionMNIST(data_dir, train=is_train)
        splits[name] = (split.data[:, None] / 255, split.targets.numpy())
    model = train(splits["train"][0][:-VAL])
    arrays = {}
    for name, (images, labels) in splits.items():
        with torch.inference_mode():
            arrays[f"{name}_x"] = torch.cat([model(batch) for batch in images.split(1000)]).numpy()
        arrays[f"{name}_y"] = labels
    for name in ("x", "y"):
        arrays[f"val_{name}"] = arrays[f"train_{name}"][-VAL:]
        arrays[f"train_{name}"] = arrays[f"train_{name}"][:-VAL]
    return arrays


def main() -> None:
    """Train the network, and write the features to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="folder that contains FashionMNIST/raw, in torchvision's layout"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    np.savez(args.out, **features(args.data_dir))


if __name__ == "__main__":
    main()
