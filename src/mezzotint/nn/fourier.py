"""Convolution along time in Fourier space: what makes a network of pictures an operator on trajectories."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from .blocks import ResBlock
from .unet import Level, UNet


class FourierConvolution(nn.Module):
    """A convolution of K equidistant points of a period whose kernel has the M lowest frequencies alone.

        (kappa * u)(t) = int_0^1 kappa(t - s) u(s) ds,    kappa(t) = sum_{|m| < M} R_m e^{2 pi i m t},    R_{-m} = R_m^*

    R_m is a complex matrix of all channels with all. On K points it is multiplication in Fourier space, F^{-1}(R F u),
    which is exact for every u of frequencies up to K - M. It costs no more for longer kernels, and its weights do not
    depend on K. The imaginary part of R_0 does nothing, since u is real.

    in_channels, out_channels
    modes  M

    On K points there are (K + 1) / 2 frequencies at the most that are no other's alias: `forward` raises `ConfigError`
    for fewer points than 2 M - 1.
    Source: Li et al. 2021 (arXiv 2010.08895), eq. 4-5; Zheng et al. 2023 (arXiv 2211.13449), figure 1.
    """

    def __init__(self, in_channels: int, out_channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(modes, out_channels, in_channels, 2) / in_channels)  # Re R, Im R

    def forward(self, u: Tensor) -> Tensor:
        """(B, K, C_in, H, W) -> (B, K, C_out, H, W).

        In real numbers: three matrix products, twice as fast on a CPU as transforms of a few points and complex ones,
        and good under autocast.
        """
        B, K, C, H, W = u.shape
        M, out, _, _ = self.weight.shape
        forth, back = (wave.to(u.dtype) for wave in waves(K, M, self.weight))
        U = (forth @ u.reshape(B, K, -1)).view(B, M, 2 * C, H * W)  # Re F u above Im F u
        real, imaginary = self.weight.unbind(-1)
        R = torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)  # (M, 2 C_out, 2 C_in)
        V = (R @ U).view(B, 2 * M, -1)
        return (back @ V).view(B, K, out, H, W)

    def kernel(self, t: Tensor) -> Tensor:
        """kappa at times t, (N,) -> (N, C_out, C_in)."""
        m = torch.arange(self.modes, dtype=t.dtype, device=t.device)
        phase = 2 * math.pi * t[:, None] * m  # (N, M)
        twice = 1 + (m > 0).to(t.dtype)  # R_m and R_{-m}
        real, imaginary = self.weight.unbind(-1)
        cosines, sines = twice * phase.cos(), twice * phase.sin()
        return torch.einsum("nm,moi->noi", cosines, real) - torch.einsum("nm,moi->noi", sines, imaginary)


def waves(points: int, modes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The real matrices of the Fourier transform of `points` numbers, up to the frequency M - 1, and of its inverse.

    forth  (2 M, K): rows 2 m and 2 m + 1 give the real and the imaginary part of sum_k u_k e^{-2 pi i m k / K}
    back   (K, 2 M): from those to the K numbers, all higher frequencies being zero

    In the dtype and on the device of `like`, but never in less than float32.
    Raises `ConfigError` for fewer points than 2 M - 1.
    """
    if points < 2 * modes - 1:
        raise ConfigError(f"{modes} Fourier modes need {2 * modes - 1} points of time or more, not {points}")
    dtype = torch.promote_types(like.dtype, torch.float32)
    m = torch.arange(modes, dtype=dtype, device=like.device)
    phase = 2 * math.pi / points * torch.outer(m, torch.arange(points, dtype=dtype, device=like.device))  # (M, K)
    forth = torch.stack([phase.cos(), -phase.sin()], 1).view(2 * modes, points)
    share = (1 + (m > 0).to(dtype)).repeat_interleave(2) / points  # of the frequencies m and -m
    return forth, (share[:, None] * forth).T


class TemporalLayer(nn.Module):
    """u + LeakyReLU(kappa * u) along time, for feature maps whose K times are folded into the batch.

    channels  of the maps
    times     K
    modes     M of the `FourierConvolution`

    Source: Zheng et al. 2023, figure 1; the slope 0.01 of the nonlinearity: the authors' release.
    """

    def __init__(self, channels: int, times: int, modes: int) -> None:
        super().__init__()
        self.times = times
        self.convolution = FourierConvolution(channels, channels, modes)

    def forward(self, x: Tensor) -> Tensor:
        """(B * K, C, H, W) -> the same; each picture's times in a row."""
        return x + F.leaky_relu(self.convolution(x.unflatten(0, (-1, self.times))).flatten(0, 1))


class TrajectoryUNet(nn.Module):
    """A UNet made an operator: from one picture to its states at K times, in one evaluation.

    The UNet sees K copies of the picture, each told its own time, as K pictures of a batch, so its blocks share their
    weights over time; and behind each residual block and its attention (in the middle: behind the attention) follows a
    `TemporalLayer`, through which the states learn of each other.

    network  the UNet, whose blocks and weights become parts of this network
    times    K
    modes    M of the temporal layers, at most (K + 1) / 2

    Raises `ConfigError` for too many modes. Source: Zheng et al. 2023, section 4.2 and figure 1.
    """

    def __init__(self, network: UNet, times: int, modes: int) -> None:
        super().__init__()
        if not 1 <= modes <= (times + 1) // 2:
            raise ConfigError(f"{times} times have 1 to {(times + 1) // 2} Fourier modes, not {modes}; change modes")
        self.times = times
        self.network = network
        levels = [*network.down, *network.up] + ([network.middle] if network.middle is not None else [])
        for level in levels:
            _follow(cast("Level", level), times, modes)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The states of each picture.

        x       (B, C, H, W)
        t       (K,), as the UNet is told them, on any device
        labels  (B,) int64, if and only if the UNet has classes

        Returns (B, K, C, H, W).
        """
        K = self.times
        told = () if labels is None else (labels.repeat_interleave(K),)
        states: Tensor = self.network(x.repeat_interleave(K, 0), t.repeat(len(x)), *told)  # (B * K, C, H, W)
        return states.unflatten(0, (-1, K))


def _follow(level: Level, times: int, modes: int) -> None:
    """Put a temporal layer behind each attention of a level, or where there would be one."""
    for i, attention in enumerate(level.attentions):
        width = cast("ResBlock", level.blocks[i]).conv2.out_channels
        level.attentions[i] = nn.Sequential(attention, TemporalLayer(width, times, modes))
