"""The half of a UNet that goes down: from a noisy picture and a time to a few numbers, such as logits of classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend
from .blocks import ResBlock
from .unet import Level, UNet, UNetConfig


class AttentionPool(nn.Module):
    """What a feature map says as a whole: one query, made of its mean, attends to the mean and to every position.

    channels   width of the map
    positions  how many it has; each learns an embedding of its own
    outputs    how many numbers come out
    head_dim   width of one head; None: one head of full width

    Raises `ValueError` if the heads do not divide the width.
    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4; Dhariwal and Nichol 2021, section 4.
    """

    def __init__(self, channels: int, positions: int, outputs: int, head_dim: int | None = None) -> None:
        super().__init__()
        self.head_dim = head_dim or channels
        if channels % self.head_dim:
            raise ValueError(f"heads of width {self.head_dim} do not divide {channels} channels")
        self.places = nn.Parameter(torch.randn(positions + 1, channels) * channels**-0.5)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs)."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.places  # (B, 1 + N, C)
        q = self.query(tokens[:, :1]).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, 1, d)
        both = self.key_value(tokens).unflatten(2, (2, -1, self.head_dim))  # (B, 1 + N, 2, heads, d)
        k, v = both.permute(2, 0, 3, 1, 4)  # (B, heads, 1 + N, d) each
        y: Tensor = self.out(attend(q, k, v).flatten(1))
        return y


class HalfUNet(nn.Module):
    """Maps a noisy picture and a time to a few numbers: down through the levels of a UNet, through its middle, and
    pooled by attention over the coarsest level.

    config       the architecture of the UNet whose way down this is
    in_channels  of the picture
    outputs      how many numbers come out
    image_size   height and width of the pictures

    Raises `ConfigError` if pictures of `image_size` cannot be halved often enough.
    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4 and appendix I; survey, section 6.2.
    """

    def __init__(self, config: UNetConfig, in_channels: int, outputs: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        whole = UNet(config, in_channels, in_channels, image_size=image_size)
        self.time, self.conv_in, self.down, self.middle = whole.time, whole.conv_in, whole.down, whole.middle
        self.time_widths = [module.time_width for module in self.modules() if isinstance(module, ResBlock)]
        self.time_projection = nn.Linear(self.time.linear2.out_features, sum(self.time_widths))
        width, coarsest = config.widths[-1], image_size // config.patch // 2 ** (len(config.widths) - 1)
        self.norm = nn.GroupNorm(config.groups, width, config.eps)
        self.pool = AttentionPool(width, coarsest**2, outputs, config.head_width(width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The answer, (B, outputs).

        x  (B, C, H, W), of the size that the network was built for
        t  (B,) or (), in whatever unit the network was trained with, on any device
        """
        times = iter(self.time_projection(F.silu(self.time(t.reshape(-1)))).split(self.time_widths, dim=1))
        x = 2 * x - 1 if self.config.center_input else x
        h = self.conv_in(F.pixel_unshuffle(x, self.config.patch))  # (B, channels, H/p, W/p)
        for level in cast("Iterable[Level]", self.down):
            for block, attention in level.pairs():
                h = attention(block(h, next(times)))
            if isinstance(level.resample, ResBlock):
                h = level.resample(h, next(times))
            elif level.resample is not None:
                h = level.resample(h)
        if self.middle is not None:
            first, second = self.middle.blocks
            h = second(self.middle.attentions[0](first(h, next(times))), next(times))
        y: Tensor = self.pool(F.silu(self.norm(h)))
        return y
