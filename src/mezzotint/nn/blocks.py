"""Residual blocks and changes of resolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """x + conv(drop(silu(norm(conv(silu(norm(x))) + time)))), with a 1x1 convolution on x where the width changes.

    in_channels, out_channels
    groups        groups of both normalisations
    scale_shift   the time enters as norm(h) * (1 + scale) + shift instead of being added before the norm
    resample      "up" or "down": both branches change resolution by two, without weights (ADM's block)
    output_scale  the sum is divided by this number

    Source: Ho et al. 2020, appendix B; scale and shift, resampling: Dhariwal and Nichol 2021, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: Literal["up", "down"] | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample, self.output_scale = scale_shift, resample, output_scale
        self.time_width = out_channels * (2 if scale_shift else 1)  # how many numbers the time contributes
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = Pointwise(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C_in, H, W), time (B, time_width), None in networks that know none -> (B, C_out, H', W')."""
        h: Tensor = F.silu(self.norm1(x))
        if self.resample:
            x, h = resized(x, self.resample), resized(h, self.resample)
        h = self.conv1(h)
        if time is None:
            h = F.silu(self.norm2(h))
        elif self.scale_shift:
            scale, shift = time[:, :, None, None].chunk(2, dim=1)  # (B, C_out, 1, 1) each
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = F.silu(self.norm2(h + time[:, :, None, None]))
        h = self.shortcut(x) + self.conv2(self.dropout(h))
        return h / self.output_scale if self.output_scale != 1.0 else h


def resized(x: Tensor, direction: str) -> Tensor:
    """Twice (each pixel repeated) or half (2x2 means) the resolution."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if direction == "up" else F.avg_pool2d(x, 2)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution: one matrix product for each picture.

    Under autocast on a CPU it is computed as such, up to four times as fast there as oneDNN's 1x1 convolution in bf16,
    forwards and backwards together; elsewhere the convolution is as fast, and stands.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu")
        weight = self.weight.flatten(1).to(dtype).expand(len(x), -1, -1)  # (B, C_out, C_in)
        bias = self.bias.to(dtype)[:, None] if self.bias is not None else weight.new_zeros(())
        return torch.baddbmm(bias, weight, x.to(dtype).flatten(2)).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """A 3x3 convolution of stride two.

    padding  1: zeros on all sides; 0: zeros on the right and the bottom only, as in the original DDPM
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.pad = (0, 1, 0, 1) if padding == 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        y: Tensor = self.conv(F.pad(x, self.pad) if self.pad else x)
        return y


class Upsample(nn.Module):
    """Each pixel repeated in a 2x2 square, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        y: Tensor = self.conv(resized(x, "up"))
        return y
