"""How a network is told the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoids(
    t: Tensor, dim: int, *, cosine_first: bool = False, freq_shift: float = 1.0, max_period: float = 1e4
) -> Tensor:
    """Sines and cosines of t at geometrically spaced frequencies, (B,) -> (B, dim) float32.

    omega_k = max_period^(-k / (dim/2 - freq_shift)),  k = 0 .. dim/2 - 1

    The two orders and divisors in use differ: the original DDPM has sines first and freq_shift 1; ADM and its
    descendants cosines first and freq_shift 0. An odd `dim` is padded with one zero.
    Source: Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    omega = torch.exp(-math.log(max_period) * k / (half - freq_shift))
    phase = t.float()[:, None] * omega  # (B, dim // 2)
    pair = (phase.cos(), phase.sin()) if cosine_first else (phase.sin(), phase.cos())
    return nn.functional.pad(torch.cat(pair, dim=1), (0, dim % 2))  # (B, dim)


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids of t: (B,) -> (B, out_dim).

    dim           number of sinusoids
    out_dim       width of the embedding
    cosine_first  see `sinusoids`
    freq_shift    see `sinusoids`
    """

    def __init__(self, dim: int, out_dim: int, *, cosine_first: bool = False, freq_shift: float = 1.0) -> None:
        super().__init__()
        self.dim, self.cosine_first, self.freq_shift = dim, cosine_first, freq_shift
        self.linear1 = nn.Linear(dim, out_dim)
        self.linear2 = nn.Linear(out_dim, out_dim)

    def forward(self, t: Tensor) -> Tensor:
        """The embedding of each time, on the device of the weights wherever t is."""
        weight = self.linear1.weight
        t = t.float().to(weight.device, non_blocking=True)  # times are kept in float64 on the CPU
        waves = sinusoids(t, self.dim, cosine_first=self.cosine_first, freq_shift=self.freq_shift)
        embedding: Tensor = self.linear2(nn.functional.silu(self.linear1(waves.to(weight.dtype))))
        return embedding


class RandomFourier(nn.Module):
    """Sines and cosines at random frequencies, drawn once and saved with the weights: (B,) -> (B, 2 dim).

        (sin 2 pi w t, cos 2 pi w t),    w ~ N(0, scale^2)

    dim    number of frequencies
    scale  their standard deviation

    Source: Tancik et al. 2020 (arXiv 2006.10739), section 5; Song et al. 2021 (arXiv 2011.13456), appendix H.2.
    """

    weight: Tensor

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("weight", scale * torch.randn(dim))

    def forward(self, t: Tensor) -> Tensor:
        """The waves of each time, sines first, float32 or more: phases are of thousands, too many for fewer digits."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        phase = t.to(weight, non_blocking=True)[:, None] * weight * (2 * math.pi)  # (B, dim)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class FourierTimeEmbedding(nn.Module):
    """Two linear layers over waves of t at random frequencies: (B,) -> (B, out_dim).

    dim      number of frequencies
    out_dim  width of the embedding
    scale    see `RandomFourier`
    """

    def __init__(self, dim: int, out_dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.waves = RandomFourier(dim, scale)
        self.linear1 = nn.Linear(2 * dim, out_dim)
        self.linear2 = nn.Linear(out_dim, out_dim)

    def forward(self, t: Tensor) -> Tensor:
        """The embedding of each time, on the device of the weights wherever t is."""
        waves = self.waves(t).to(self.linear1.weight.dtype)
        embedding: Tensor = self.linear2(nn.functional.silu(self.linear1(waves)))
        return embedding
