"""A wide residual network that names the class of a picture, and describes the picture by a vector on the way.

Zagoruyko and Komodakis, "Wide Residual Networks" (2016), arXiv 1605.07146.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError, DataError
from ..core.model import Losses, Model


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """WRN-depth-width of the paper."""

    channels: int  # of the pictures
    classes: int
    depth: int = 10  # convolutions on the main path and the last layer: 6 n + 4, n blocks in each of three groups
    width: int = 1  # k: the groups have 16 k, 32 k and 64 k channels
    max_shift: int = 2  # pixels by which training pictures are moved at random, each way

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ConfigError(f"depth must be 10, 16, 22, 28, ... (6 n + 4), not {self.depth}")
        if self.classes < 2:
            raise ConfigError(f"a classifier needs pictures of at least 2 classes, not of {self.classes}")


class ResBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), with a 1x1 convolution on x where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        same = c_in == c_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        h = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        h = self.conv1(h)
        return skip + self.conv2(F.relu(self.norm2(h)))


class Classifier(Model):
    """p(class | picture), trained by cross-entropy."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config: ClassifierConfig = config
        blocks = (config.depth - 4) // 6
        widths = [16 * config.width, 32 * config.width, 64 * config.width]
        self.stem = nn.Conv2d(config.channels, 16, 3, padding=1, bias=False)
        layers, c_in = [], 16
        for group, c_out in enumerate(widths):
            for block in range(blocks):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(ResBlock(c_in, c_out, stride))
                c_in = c_out
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(c_in)
        self.head = nn.Linear(c_in, config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees: (B, C, H, W) in [-1, 1] to (B, 64 k)."""
        h = self.stem(images)  # (B, 16, H, W)
        h = self.blocks(h)  # (B, 64 k, H/4, W/4)
        return F.relu(self.norm(h)).mean((2, 3))  # (B, 64 k)

    def classify(self, images: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        return self.head(self.features(images))

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """-ln p(label | picture), in nats, mean over the batch; in training the pictures are shifted at random.

        Raises `DataError` if the batch has no labels.
        """
        if batch.labels is None:
            raise DataError("a classifier learns from labelled pictures, and these have no labels")
        images = batch.images
        if self.training:
            most = self.config.max_shift
            images = shifted(images, batch.random().integers(-most, most + 1, 2))
        logits = self.classify(images).float()
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        return Losses(F.cross_entropy(logits, batch.labels), {"accuracy": accuracy})


def shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Copies of pictures (B, C, H, W), picture k moved by `shifts[k]` = (rows, columns); edges are repeated."""
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - shifts[:, 0, None]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=images.device) - shifts[:, 1, None]).clamp(0, width - 1)  # (B, W)
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return moved.permute(0, 3, 1, 2)
