"""The diffusion transformer: a vision transformer whose normalisations are told the time and the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError, suggest
from .attention import attend
from .embeddings import TimeEmbedding, sinusoids

TIME_WAVES = 256  # sinusoids by which the network is told the time


@dataclass(frozen=True)
class DiTConfig(Config):
    """The architecture, independent of the pictures. The defaults are those of DiT-S/2."""

    kind: Literal["dit"] = "dit"
    depth: int = 12  # blocks
    width: int = 384  # of a token
    heads: int = 6  # of the attention in each block
    patch: int = 2  # a token is a square of so many pixels
    mlp_ratio: int = 4  # width of the hidden layer in a block, in units of `width`
    eps: float = 1e-6  # of every normalisation but those before the hidden layers
    mlp_eps: float = 1e-6  # of the normalisations before the hidden layers
    freq_shift: float = 0.0  # in the frequencies of the time's sinusoids

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "patch", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % 4:
            raise ConfigError(f"width must be a multiple of 4, for sines and cosines of two axes, not {self.width}")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}; change heads")
        for name in ("eps", "mlp_eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.freq_shift < TIME_WAVES / 2:
            raise ConfigError(f"freq_shift must be from 0 to below {TIME_WAVES // 2}, not {self.freq_shift}")

    def build(self, in_channels: int, out_channels: int, classes: int, image_size: int) -> DiT:
        """A new network; `classes` counts the embeddings, 0 for none. Raises `ConfigError` as `DiT` does."""
        return DiT(self, in_channels, out_channels, classes, image_size)


SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
PATCHES = (2, 4, 8)
PRESETS = {
    f"{size}/{patch}": DiTConfig(depth=depth, width=width, heads=heads, patch=patch)
    for size, (depth, width, heads) in SIZES.items()
    for patch in PATCHES
}


def dit_config(name: str) -> DiTConfig:
    """The published network of this name: "S/8", ..., "XL/2" (Peebles and Xie 2022, table 1).

    Raises `ConfigError` for another name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no DiT is called {name!r}{suggest(name, PRESETS)}")
    return PRESETS[name]


class DiTBlock(nn.Module):
    """Attention and a hidden layer, each behind a normalisation whose scale and shift, and before a gate, that depend
    on the time and the class (adaLN-Zero):

        x + gate_1 * attention(norm(x) * (1 + scale_1) + shift_1),   then the same with the hidden layer

    The six vectors are handed to `forward`: the network computes them for all blocks at once.
    Source: Peebles and Xie 2022, section 3.2 and figure 3.
    """

    def __init__(self, width: int, heads: int, hidden: int, eps: float, mlp_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, mlp_eps, elementwise_affine=False)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        """x (B, N, D); shift, 1 + scale and gate of either half, each (B, 1, D) or (1, 1, D) -> (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = torch.addcmul(x, gate1, self._attention(torch.addcmul(shift1, self.norm1(x), scale1)))
        h = self.linear1(torch.addcmul(shift2, self.norm2(x), scale2))  # (B, N, hidden)
        return torch.addcmul(x, gate2, self.linear2(F.gelu(h, approximate="tanh")))

    def _attention(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        h: Tensor = self.out(attend(q, k, v).transpose(1, 2).reshape(B, N, D))
        return h


class DiT(nn.Module):
    """Maps a noisy picture and a time to a picture: cut into patches, through the blocks, and put together again.

    config        the architecture
    in_channels   of the picture
    out_channels  of the answer
    classes       size of the class embedding, which is added to the time's; 0: none. Whoever trains the network decides
                  what the embeddings stand for; "no class" is usually the last
    image_size    height and width of the pictures

    The last layer and all modulations begin at zero: a new network answers 0, and each of its blocks is the identity.

    Raises `ConfigError` if patches do not tile the pictures.
    Source: Peebles and Xie 2022 (arXiv 2212.09748), section 3; survey, section 6.3.
    """

    positions: Tensor

    def __init__(self, config: DiTConfig, in_channels: int, out_channels: int, classes: int, image_size: int) -> None:
        super().__init__()
        if image_size % config.patch:
            raise ConfigError(
                f"patches of {config.patch} pixels do not tile pictures of {image_size}; use --image-size"
                f" {max(image_size // config.patch, 1) * config.patch} or another network.patch"
            )
        self.config = config
        p, width = config.patch, config.width
        self.patch = nn.Linear(in_channels * p * p, width)  # a convolution of stride p, as one matrix product
        self.register_buffer("positions", grid_waves(image_size // p, width), persistent=False)
        self.time = TimeEmbedding(TIME_WAVES, width, cosine_first=True, freq_shift=config.freq_shift)
        self.label = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(
            DiTBlock(width, config.heads, config.mlp_ratio * width, config.eps, config.mlp_eps)
            for _ in range(config.depth)
        )
        # One matrix product for the modulations of all blocks and of the last layer, instead of a small one in each.
        self.modulation = nn.Linear(width, (6 * config.depth + 2) * width)
        self.norm = nn.LayerNorm(width, config.eps, elementwise_affine=False)
        self.last = nn.Linear(width, out_channels * p * p)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's answer, (B, out_channels, H, W).

        x       (B, C, H, W), of the size that the network was built for
        t       (B,) or (), in whatever unit the network was trained with, on any device
        labels  (B,) int64, if and only if the network has classes
        """
        if (labels is None) != (self.label is None):
            raise ValueError("labels are needed" if self.label is not None else "this network has no classes")
        B, C, H, W = x.shape
        p = self.config.patch
        rows, columns = H // p, W // p
        condition = self.time(t.reshape(-1))  # (B, D) or (1, D): one time for all is embedded once
        if self.label is not None:
            condition = condition + self.label(labels)
        *modulations, shift, scale = self._modulations(condition)
        h = x.view(B, C, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, C * p * p)
        h = self.patch(h) + self.positions  # (B, N, D), N = rows * columns
        for i, block in enumerate(self.blocks):
            h = block(h, modulations[6 * i : 6 * i + 6])
        h = self.last(torch.addcmul(shift, self.norm(h), scale))  # (B, N, p*p*C_out)
        h = h.view(B, rows, columns, p, p, -1).permute(0, 5, 1, 3, 2, 4)  # (B, C_out, rows, p, columns, p)
        return h.reshape(B, -1, H, W)

    def _modulations(self, condition: Tensor) -> Sequence[Tensor]:
        """Shift, 1 + scale and gate of each half of each block, then shift and 1 + scale of the last layer."""
        vectors = self.modulation(F.silu(condition))[:, None].chunk(6 * self.config.depth + 2, dim=2)  # (B, 1, D) each
        return [vector + 1 if k % 3 == 1 else vector for k, vector in enumerate(vectors)]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for told in (self.time.linear1, self.time.linear2, self.label):
            if told is not None:
                nn.init.normal_(told.weight, std=0.02)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)


def grid_waves(side: int, width: int) -> Tensor:
    """Where a patch is: sines and cosines of its column, then of its row, (side * side, width), row by row.

    omega_k = 10000^(-k / (width / 4)),  k = 0 .. width/4 - 1, for either axis. Source: Vaswani et al. 2017,
    section 3.5, on two axes as in the vision transformers that DiT follows (Peebles and Xie 2022, section 3.2).
    """
    place = torch.arange(side)
    waves = sinusoids(place, width // 2, freq_shift=0.0)  # (side, width / 2)
    columns = waves.expand(side, side, -1)
    rows = waves[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)
