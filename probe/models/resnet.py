"""The modified ResNet, an image tower of CLIP, with the names and attributes of OpenAI's modules, see `towers.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the whole field uses for this module
from torch import Tensor, nn

from probe.specs import Architecture


class Bottleneck(nn.Module):
    """A ResNet bottleneck whose stride is an average pool, so that no convolution skips pixels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_channels != out_channels:
            shortcut = nn.Sequential()
            # The published state dicts use the names "-1", "0" and "1".
            shortcut.add_module("-1", nn.AvgPool2d(stride))
            shortcut.add_module("0", nn.Conv2d(in_channels, out_channels, 1, bias=False))
            shortcut.add_module("1", nn.BatchNorm2d(out_channels))
            self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (n, in_channels, h, w) -> (n, 4 * channels, h / stride, w / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(out + shortcut)


class AttentionPool(nn.Module):
    """Attention pooling of a feature map. The only query is the mean of the map; `c_proj` is the projection."""

    def __init__(self, side: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side * side + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def pre_projection(self, x: Tensor) -> Tensor:
        """Return the input of `c_proj`, (n, width), for a feature map (n, width, h, w)."""
        x = x.flatten(2).transpose(1, 2)  # (n, h * w, width)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding.to(x.dtype)
        q, k, v = (self._split(y) for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)))
        return F.scaled_dot_product_attention(q, k, v).flatten(1)  # (n, heads, 1, head_dim) -> (n, width)

    def forward(self, x: Tensor) -> Tensor:
        """Pool and project a feature map: (n, width, h, w) -> (n, embed_dim)."""
        return self.c_proj(self.pre_projection(x))

    def _split(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        split = x.view(n, tokens, self.num_heads, width // self.num_heads)
        return split.transpose(1, 2)  # (n, num_heads, tokens, head_dim)


class ModifiedResNet(nn.Module):
    """The ResNet image tower: three-convolution stem, anti-aliased strides, attention pooling."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, layers, heads = architecture.vision_width, architecture.vision_layers, architecture.vision_heads
        assert isinstance(layers, tuple)
        self.input_resolution = architecture.image_resolution
        self.output_dim = architecture.embed_dim
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _make_stage(width, width, layers[0], stride=1)
        self.layer2 = _make_stage(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = _make_stage(width * 8, width * 4, layers[2], stride=2)
        self.layer4 = _make_stage(width * 16, width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool(self.input_resolution // 32, width * 32, heads, self.output_dim)

    def pre_projection(self, x: Tensor) -> Tensor:
        """Return the input of the attention pool's last layer, (n, 32 * width), for (n, 3, r, r) normalised pixels."""
        return self.attnpool.pre_projection(self._feature_map(x))

    def project(self, pre_projection: Tensor) -> Tensor:
        """Project (n, 32 * width) to (n, embed_dim)."""
        return self.attnpool.c_proj(pre_projection)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features, (n, embed_dim), of (n, 3, r, r) normalised pixels of any float dtype."""
        return self.attnpool(self._feature_map(x.to(self.conv1.weight.dtype)))

    def _feature_map(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu3(self.bn3(self.conv3(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (n, 32 * width, r / 32, r / 32)


def _make_stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride)
    return nn.Sequential(first, *(Bottleneck(4 * channels, channels, stride=1) for _ in range(blocks - 1)))
