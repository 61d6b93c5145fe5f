"""Paths from picture to noise: x_t = alpha_t x + sigma_t n, with n standard normal.

Time runs from the picture at t = 0 to noise at t = 1, in every path. (Liu et al. and the survey's equations 103-112 run
rectified flow the other way: their t is our 1 - t, and their velocity X_1 - X_0 is minus ours.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """A path at some time: float64, of the time's shape, on the CPU like it."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor  # d alpha / dt
    d_sigma: Tensor  # d sigma / dt

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio, alpha^2 / sigma^2."""
        return (self.alpha / self.sigma) ** 2


class Path(Protocol):
    """What solvers and losses know of a path."""

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives at times in [0, 1]."""

    def network_time(self, t: Tensor) -> Tensor:
        """The number by which a network is told the time, float64."""


@dataclass(frozen=True)
class Straight:
    """The straight line: alpha = 1 - t, sigma = t. Its velocity, n - x, is constant.

    The network is told 1000 t. Source: Liu et al. 2022 (arXiv 2209.03003), eq. 1; survey, eq. 103.
    """

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""
        t = t.double()
        one = torch.ones_like(t)
        return Coefficients(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)

    def network_time(self, t: Tensor) -> Tensor:
        """1000 t."""
        return 1000 * t.double()


def linear_betas(T: int) -> Tensor:
    """beta from 1e-4 to 0.02 in equal steps (Ho et al. 2020, section 4), (T,) float64.

    Those ends are for T = 1000; for another T they are multiplied by 1000 / T, so that x_1 is about as noisy.
    """
    return torch.linspace(1e-4, 0.02, T, dtype=torch.float64, device="cpu") * (1000 / T)


def cosine_betas(T: int, s: float = 0.008) -> Tensor:
    """beta of alpha_bar = cos^2((t + s) / (1 + s) pi/2), at most 0.999 (Nichol and Dhariwal 2021, eq. 17), (T,)."""
    t = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
    alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


@dataclass(frozen=True)
class VariancePreserving:
    """Diffusion in T steps of variance beta_k, alpha^2 + sigma^2 = 1, continued to all t in [0, 1].

    At t = (k + 1) / T the path takes the T values of the discrete process, and at t = 0 it is the picture itself:

        alpha_t^2 = alpha_bar_k = prod_{j <= k} (1 - beta_j),    k = 0 .. T-1

    In between ln alpha_bar is linear: the variance-preserving diffusion (Song et al. 2021, eq. 11) whose rate
    beta(t) = -T ln(1 - beta_k) is constant within each step. At the T times themselves the derivative is that from
    the left. d_sigma is infinite at t = 0. The network is told T t - 1, which is the index k.

    steps  T
    betas  (T) -> the T variances, float64

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4; survey, eq. 82.
    """

    steps: int = 1000
    betas: Callable[[int], Tensor] = linear_betas

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""
        t = t.double()
        table = self.log_alpha_bars
        position = t * self.steps
        k = (position - 1e-9).ceil().long().sub(1).clamp(0, self.steps - 1)  # position in (k, k + 1]
        increment = table[k + 1] - table[k]
        log_alpha_bar = table[k] + (position - k) * increment
        slope = increment * self.steps
        alpha = torch.exp(log_alpha_bar / 2)
        sigma = torch.sqrt(-torch.expm1(log_alpha_bar))
        return Coefficients(alpha, sigma, d_alpha=slope * alpha / 2, d_sigma=-slope * alpha**2 / (2 * sigma))

    def network_time(self, t: Tensor) -> Tensor:
        """T t - 1."""
        return self.steps * t.double() - 1

    @cached_property
    def log_alpha_bars(self) -> Tensor:
        """ln alpha_bar at t = 0, 1/T, ..., 1, (T + 1,)."""
        increments = torch.log1p(-self.betas(self.steps))
        return torch.cat([increments.new_zeros(1), increments.cumsum(0)])


PATHS: dict[str, Path] = {
    "linear": VariancePreserving(),
    "cosine": VariancePreserving(betas=cosine_betas),
    "straight": Straight(),
}
