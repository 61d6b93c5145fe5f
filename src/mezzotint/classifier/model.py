"""A wide residual network that names the class of a picture, and describes the picture by a vector on the way.

Zagoruyko and Komodakis, "Wide Residual Networks" (2016), arXiv 1605.07146. Batch normalisation, as published, makes
the loss of a picture depend on which others share its process; the other choice here normalises weights, not
activations: Brock, De and Smith, "Characterizing signal propagation to close the performance gap in unnormalized
ResNets" (2021), arXiv 2101.08692.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError, DataError
from ..core.model import Losses, Model


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """WRN-depth-width of the paper, or the same shape with other than batch normalisation."""

    channels: int  # of the pictures
    classes: int
    depth: int = 10  # convolutions on the main path and the last layer: 6 n + 4, n blocks in each of three groups
    width: int = 1  # k: the groups have 16 k, 32 k and 64 k channels
    norm: Literal["batch", "weight"] = "weight"  # of activations over the batch, as published, or of the weights
    stride: int = 1  # of the first convolution; 2: all else works at half the size
    max_shift: int = 2  # pixels by which training pictures are moved at random, each way

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ConfigError(f"depth must be 10, 16, 22, 28, ... (6 n + 4), not {self.depth}")
        if self.stride < 1:
            raise ConfigError(f"the stride of the first convolution must be at least 1, not {self.stride}")
        if self.classes < 2:
            raise ConfigError(f"a classifier needs pictures of at least 2 classes, not of {self.classes}")


def plain_conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias; outputs keep the variance of gradients behind a ReLU (He et al. 2015)."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class BatchNormBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), with a 1x1 convolution on x where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = plain_conv(c_in, c_out, 3, stride)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv2 = plain_conv(c_out, c_out, 3)
        same = c_in == c_out and stride == 1
        self.shortcut = None if same else plain_conv(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        h = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        h = self.conv1(h)
        return skip + self.conv2(F.relu(self.norm2(h)))


ALPHA = 0.2  # first scale of a branch: a block adds ALPHA^2 to a variance of 1
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # relu(z) times this has variance 1 for z standard normal


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose weights are g (w - mean w) / (std w sqrt(fan-in)) for each output channel, with g learned.

    Brock, De and Smith 2021, eq. 1: for inputs of variance 1, outputs have mean 0 and variance 1 over random weights.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, padding=kernel // 2)
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.gain = nn.Parameter(torch.ones(c_out, 1, 1, 1))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        fan_in = self.weight[0].numel()
        weight = self.gain * (self.weight - mean) * (variance * fan_in).clamp_min(1e-4).rsqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class NormFreeBlock(nn.Module):
    """x + alpha conv(relu(conv(relu(x / beta)))), with a 1x1 convolution on relu(x / beta) where the shape changes.

    beta   the standard deviation of x at first, known in advance
    alpha  learned
    """

    def __init__(self, c_in: int, c_out: int, stride: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.alpha = nn.Parameter(torch.tensor(ALPHA))
        self.conv1 = StandardisedConv2d(c_in, c_out, 3, stride)
        self.conv2 = StandardisedConv2d(c_out, c_out, 3)
        same = c_in == c_out and stride == 1
        self.shortcut = None if same else StandardisedConv2d(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        h = F.relu(x) * (RELU_GAIN / self.beta)
        skip = x if self.shortcut is None else self.shortcut(h)
        h = F.relu(self.conv1(h)) * RELU_GAIN
        return skip + self.alpha * self.conv2(h)


class Classifier(Model):
    """p(class | picture), trained by cross-entropy."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config: ClassifierConfig = config
        by_batch = config.norm == "batch"
        conv = plain_conv if by_batch else StandardisedConv2d
        self.stem: nn.Module = conv(config.channels, 16, 3, config.stride)
        layers: list[nn.Module] = []
        c_in, variance = 16, 1.0
        for group in range(3):
            c_out = 16 * 2**group * config.width
            for block in range((config.depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                if by_batch:
                    layers.append(BatchNormBlock(c_in, c_out, stride))
                else:
                    layers.append(NormFreeBlock(c_in, c_out, stride, beta=variance**0.5))
                    variance = (1.0 if layers[-1].shortcut else variance) + ALPHA**2
                c_in = c_out
        self.blocks = nn.Sequential(*layers)
        self.norm: nn.Module = nn.BatchNorm2d(c_in) if by_batch else nn.Identity()
        self.head = nn.Linear(c_in, config.classes)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees: (B, C, H, W) in [-1, 1] to (B, 64 k)."""
        h = self.stem(images)  # (B, 16, H', W'), H' = H / stride
        h = self.blocks(h)  # (B, 64 k, H'/4, W'/4)
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
