"""The Inception-v3 of the Fréchet Inception Distance: TensorFlow's 2015-12-05 graph, not the network of the paper.

Szegedy et al. 2016 (arXiv 1512.00567) as TensorFlow released it: 1008 logits, average pools that leave the padding out
of the mean, and a max pool in the last block. Parameters have the names of the published conversion
`pt_inception-2015-12-05-6726825d.pth`, so its state dict loads as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel: TypeAlias = "int | tuple[int, int]"
Path: TypeAlias = "list[tuple[int, Kernel]]"  # convolutions in a row: (channels, kernel)


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else 0
        self.conv = nn.Conv2d(c_in, c_out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Paths of convolutions side by side, their channels joined.

    paths  by name; a path of several convolutions numbers them: branch5x5_1, branch5x5_2
    forks  by the path that they end: two convolutions of its result, called a and b, also joined
    pool   channels of the path that starts with a 3x3 pool, or None: the pool alone, and everything ends with stride 2
    """

    def __init__(
        self,
        c_in: int,
        paths: Mapping[str, Path],
        pool: int | None,
        forks: Mapping[str, Path] | None = None,
        max_pool: bool = False,
    ) -> None:
        super().__init__()
        self.stride = 2 if pool is None else 1
        self.max_pool = max_pool or pool is None
        self.paths: list[list[list[str]]] = []  # each path as steps, each step as the names of its convolutions
        for path, sizes in paths.items():
            fork = (forks or {}).get(path, [])
            numbered = len(sizes) > 1 or fork
            steps = [[f"{path}_{i}" if numbered else path] for i in range(1, len(sizes) + 1)]
            channels = c_in
            for [name], (c_out, kernel) in zip(steps, sizes):
                last = self.stride == 2 and name == steps[-1][0]
                self.add_module(name, Conv(channels, c_out, kernel, 2 if last else 1, padded=not last))
                channels = c_out
            if fork:
                steps.append([f"{path}_{len(sizes) + 1}{letter}" for letter in "ab"])
                for name, (c_out, kernel) in zip(steps[-1], fork):
                    self.add_module(name, Conv(channels, c_out, kernel))
            self.paths.append(steps)
        self.branch_pool = None if pool is None else Conv(c_in, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W')."""
        joined = []
        for steps in self.paths:
            h = x
            for names in steps:
                h = torch.cat([self.get_submodule(name)(h) for name in names], 1)
            joined.append(h)
        return torch.cat([*joined, self._pool(x)], 1)

    def _pool(self, x: Tensor) -> Tensor:
        padding = 1 if self.stride == 1 else 0
        if self.max_pool:
            h = F.max_pool2d(x, 3, self.stride, padding)
        else:
            h = F.avg_pool2d(x, 3, self.stride, padding, count_include_pad=False)
        return h if self.branch_pool is None else self.branch_pool(h)


def block_a(c_in: int, pool: int) -> Mixed:
    """35 x 35: factorised 5x5."""
    paths: dict[str, Path] = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    }
    return Mixed(c_in, paths, pool)


def block_b(c_in: int) -> Mixed:
    """35 x 35 to 17 x 17."""
    return Mixed(c_in, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}, None)


def block_c(c_in: int, c: int) -> Mixed:
    """17 x 17: 7x7 as 1x7 and 7x1."""
    wide: Kernel = (1, 7)
    tall: Kernel = (7, 1)
    paths: dict[str, Path] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, wide), (192, tall)],
        "branch7x7dbl": [(c, 1), (c, tall), (c, wide), (c, tall), (192, wide)],
    }
    return Mixed(c_in, paths, 192)


def block_d(c_in: int) -> Mixed:
    """17 x 17 to 8 x 8."""
    paths: dict[str, Path] = {
        "branch3x3": [(192, 1), (320, 3)],
        "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)],
    }
    return Mixed(c_in, paths, None)


def block_e(c_in: int, max_pool: bool) -> Mixed:
    """8 x 8: 3x3 as 1x3 beside 3x1."""
    paths: dict[str, Path] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1)],
        "branch3x3dbl": [(448, 1), (384, 3)],
    }
    fork: Path = [(384, (1, 3)), (384, (3, 1))]
    return Mixed(c_in, paths, 192, {"branch3x3": fork, "branch3x3dbl": fork}, max_pool)


class InceptionV3(nn.Module):
    """Pictures (B, 3, 299, 299) as (level - 128) / 128 to pooled features (B, 2048) and logits (B, 1008)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        self.Mixed_5b = block_a(192, pool=32)
        self.Mixed_5c = block_a(256, pool=64)
        self.Mixed_5d = block_a(288, pool=64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, 128)
        self.Mixed_6c = block_c(768, 160)
        self.Mixed_6d = block_c(768, 160)
        self.Mixed_6e = block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280, max_pool=False)
        self.Mixed_7c = block_e(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 2048), and the logits without their bias (B, 1008), which is what the Inception Score reads."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, 2)  # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, 2)  # (B, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (B, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        features = x.mean((2, 3))  # (B, 2048)
        return features, features @ self.fc.weight.T
