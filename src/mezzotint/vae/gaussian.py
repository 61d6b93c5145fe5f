"""The diagonal Gaussian: what most posteriors and many priors are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.precision import at_least_float32

LOG_2PI = math.log(2 * math.pi)


class Drawn(NamedTuple):
    """z of a posterior q, beside a prior p."""

    z: Tensor  # (B, ...)
    kl: Tensor  # KL(q || p) of each dimension, in closed form or at this z, nats, of z's shape
    log_ratio: Tensor  # ln p(z) - ln q(z), nats, (B,)


class Gaussian(NamedTuple):
    """N(mean, diag(std^2)) over tensors (B, ...), each row a distribution of its own."""

    mean: Tensor
    log_std: Tensor  # of the same shape

    @classmethod
    def of(cls, numbers: Tensor) -> Gaussian:
        """From a network's answer (B, 2 D, ...), whose halves are mean and log-variance."""
        mean, log_variance = numbers.chunk(2, 1)
        return cls(mean, log_variance / 2)

    @classmethod
    def standard(cls, like: Tensor) -> Gaussian:
        """N(0, I) over tensors of this shape."""
        zeros = torch.zeros_like(like)
        return cls(zeros, zeros)

    def at(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """z = mean + temperature std noise (survey, eq. 13), of the noise's shape."""
        return self.mean + temperature * self.log_std.exp() * noise

    def draw(self, noise: Tensor, prior: Gaussian) -> Drawn:
        """z of standard normal noise, and what it and this distribution are beside a prior; the KL in closed form."""
        z = self.at(noise)
        return Drawn(z, self.kl(prior), prior.log_prob(z) - self.log_prob(z))

    @property
    def wide(self) -> Gaussian:
        """The same in float32 at least."""
        return Gaussian(*map(at_least_float32, self))

    def log_prob(self, z: Tensor) -> Tensor:
        """ln N(z), nats, summed over all but the first dimension: (B,)."""
        return self.log_density(z).flatten(1).sum(1)

    def log_density(self, z: Tensor) -> Tensor:
        """That of each dimension, nats, of z's shape."""
        mean, log_std = self.wide
        return -(0.5 * (((z - mean) * torch.exp(-log_std)) ** 2 + LOG_2PI) + log_std)

    def entropy(self) -> Tensor:
        """-E[ln N], nats, summed over all but the first dimension: (B,)."""
        return (self.wide.log_std + 0.5 * (LOG_2PI + 1)).flatten(1).sum(1)

    def kl(self, other: Gaussian | None = None) -> Tensor:
        """KL(self || other) of each dimension, nats, of the mean's shape; against N(0, I) where no other is given.

        ln(s' / s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2     (survey, eq. 3)
        """
        mean, log_std = self.wide
        if other is None:
            return 0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std
        other = other.wide
        ratio = log_std - other.log_std
        return 0.5 * (torch.exp(2 * ratio) + ((mean - other.mean) * torch.exp(-other.log_std)) ** 2 - 1) - ratio

    def repeat(self, times: int) -> Gaussian:
        """Each row so many times, one after the other: (B times, ...)."""
        return Gaussian(*(value.repeat_interleave(times, 0) for value in self))

    def detach(self) -> Gaussian:
        """The same without gradients."""
        return Gaussian(*(value.detach() for value in self))
