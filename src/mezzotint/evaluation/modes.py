"""Points in a plane whose distribution is known: how many of its modes a generator finds, and how often it hits one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError

NEAR = 3.0  # standard deviations within which a sample is a good one


class Mixture(NamedTuple):
    """Equally likely Gaussians of one deviation in all directions."""

    centres: Tensor  # (K, D)
    std: float

    def at(self, which: Tensor, noise: Tensor) -> Tensor:
        """Samples (B, D) of the Gaussians `which`, (B,) int64, and standard normal noise (B, D)."""
        return self.centres[which] + self.std * noise

    @property
    def good(self) -> float:
        """Share of its own samples within 3 deviations of their centre: in a plane 1 - exp(-9/2), or 0.9889."""
        dims = self.centres.shape[1]
        return float(torch.special.gammainc(torch.tensor(dims / 2, dtype=torch.float64), torch.tensor(NEAR**2 / 2)))


def grid_of_gaussians(side: int = 5, spacing: float = 2.0, std: float = 0.05) -> Mixture:
    """side x side Gaussians in a plane, about 0. Source of the defaults: Srivastava et al. 2017 (arXiv 1705.07761)."""
    if side < 1:
        raise ConfigError(f"a grid has at least 1 Gaussian on a side, not {side}")
    line = spacing * (torch.arange(side) - (side - 1) / 2)
    return Mixture(torch.cartesian_prod(line, line).view(-1, 2), std)


def ring_of_gaussians(count: int = 8, radius: float = 1.0, std: float = 0.01) -> Mixture:
    """Gaussians on a circle about 0. Source of the defaults: as of `grid_of_gaussians`."""
    if count < 1:
        raise ConfigError(f"a ring has at least 1 Gaussian, not {count}")
    angles = 2 * math.pi * torch.arange(count) / count
    return Mixture(radius * torch.stack([angles.cos(), angles.sin()], 1), std)


class Modes(NamedTuple):
    """What samples say of a mixture."""

    covered: int  # modes with at least one good sample
    good: float  # share of samples within 3 deviations of a centre, in Euclidean distance
    divergence: float  # KL of the shares of good samples among modes from equal shares, nats; infinite without any


def modes_of(samples: Tensor, mixture: Mixture) -> Modes:
    """How many modes samples (B, D) cover, and how many of them are good.

    A sample is good if its nearest centre is within 3 deviations; a mode is covered if a good sample is nearest to it.
    With B samples, a mode that has a share p of them is found with probability 1 - (1 - p)^B: papers draw 2,500.

    Source: Srivastava et al. 2017 (arXiv 1705.07761), section 4.1; Lin et al. 2018 (arXiv 1712.04086), section 4.1.
    Raises `ConfigError` for samples of another number of dimensions, or none.
    """
    if samples.dim() != 2 or not len(samples) or samples.shape[1] != mixture.centres.shape[1]:
        raise ConfigError(f"samples are (B, {mixture.centres.shape[1]}), and these have the shape {samples.shape}")
    distance, nearest = torch.cdist(samples.double(), mixture.centres.to(samples.device).double()).min(1)
    good = distance <= NEAR * mixture.std
    counts = torch.bincount(nearest[good], minlength=len(mixture.centres)).double()
    shares = counts / counts.sum()
    divergence = float((torch.special.xlogy(shares, shares)).sum() + math.log(len(counts))) if good.any() else math.inf
    return Modes(int((counts > 0).sum()), float(good.double().mean()), divergence)
