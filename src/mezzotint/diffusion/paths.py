"""Paths from picture to noise: x_t = alpha_t x + sigma_t n, with n standard normal.

Time runs from the picture at t = 0 to noise at t = 1, in every path. (Liu et al. and the survey's equations 103-112 run
rectified flow the other way: their t is our 1 - t, and their velocity X_1 - X_0 is minus ours.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.errors import ConfigError


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

    @property
    def ratio(self) -> Tensor:
        """Noise over signal, sigma / alpha: the sigma of Karras et al."""
        return self.sigma / self.alpha


class Path(Protocol):
    """What solvers and losses know of a path."""

    @property
    def start(self) -> float:
        """The earliest time at which a network is trained; before it the picture is as good as clean."""

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives at times in [0, 1]."""

    def network_time(self, t: Tensor) -> Tensor:
        """The number by which a network is told the time, float64."""

    def time_of(self, ratio: Tensor) -> Tensor:
        """When sigma / alpha is `ratio`, float64: the inverse of that function of t; 0 where it never was so small."""


@dataclass(frozen=True)
class Straight:
    """The straight line to noise that keeps sigma_min of itself around the picture.

        alpha = 1 - t,    sigma = sigma_min + (1 - sigma_min) t

    Its velocity, (1 - sigma_min) n - c, is constant. With sigma_min = 0 it is the path of rectified flow, whose picture
    is exact at t = 0; with a small one it is the optimal-transport path of flow matching, whose density at t = 0 is a
    narrow Gaussian around each picture. The network is told 1000 t.

    Source: Liu et al. 2022 (arXiv 2209.03003), eq. 1; survey, eq. 103; Lipman et al. 2022 (arXiv 2210.02747), eq. 20;
    survey, eq. 111.
    """

    sigma_min: float = 0.0

    @property
    def start(self) -> float:
        """0."""
        return 0.0

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""
        t = t.double()
        one = torch.ones_like(t)
        grown = 1 - self.sigma_min
        return Coefficients(alpha=1 - t, sigma=self.sigma_min + grown * t, d_alpha=-one, d_sigma=grown * one)

    def network_time(self, t: Tensor) -> Tensor:
        """1000 t."""
        return 1000 * t.double()

    def time_of(self, ratio: Tensor) -> Tensor:
        """(r - sigma_min) / (r + 1 - sigma_min), and 1 where the ratio is infinite."""
        r = ratio.double()
        return torch.where(r.isinf(), 1.0, (r - self.sigma_min) / (r + 1 - self.sigma_min)).clamp(min=0)


def linear_betas(T: int) -> Tensor:
    """beta from 1e-4 to 0.02 in equal steps (Ho et al. 2020, section 4), (T,) float64.

    Those ends are for T = 1000; for another T they are multiplied by 1000 / T, so that x_1 is about as noisy.
    """
    return torch.linspace(1e-4, 0.02, T, dtype=torch.float64, device="cpu") * (1000 / T)


def scaled_linear_betas(T: int) -> Tensor:
    """beta whose square root grows in equal steps, from 0.00085 to 0.012 (Rombach et al. 2022, appendix), (T,)."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64, device="cpu")
    return roots**2 * (1000 / T)


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

    @property
    def start(self) -> float:
        """1 / T."""
        return 1 / self.steps

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""
        t = t.double()
        table = self.log_alpha_bars
        position, k = _step_of(t, self.steps)
        increment = table[k + 1] - table[k]
        log_alpha_bar = table[k] + (position - k) * increment
        slope = increment * self.steps
        alpha = torch.exp(log_alpha_bar / 2)
        sigma = torch.sqrt(0.0 - torch.expm1(log_alpha_bar))  # and not -0 at t = 0
        return Coefficients(alpha, sigma, d_alpha=slope * alpha / 2, d_sigma=-slope * alpha**2 / (2 * sigma))

    def network_time(self, t: Tensor) -> Tensor:
        """T t - 1."""
        return self.steps * t.double() - 1

    def time_of(self, ratio: Tensor) -> Tensor:
        """From ln alpha_bar = -ln(1 + r^2), linear within each step; at most 1."""
        return _inverse(-self.log_alpha_bars, torch.log1p(ratio.double() ** 2))

    @cached_property
    def log_alpha_bars(self) -> Tensor:
        """ln alpha_bar at t = 0, 1/T, ..., 1, (T + 1,)."""
        increments = torch.log1p(-self.betas(self.steps))
        if not increments.isfinite().all():
            raise ConfigError(f"a diffusion in {self.steps} steps has a variance of 1 or more; take more steps")
        return torch.cat([increments.new_zeros(1), increments.cumsum(0)])


@dataclass(frozen=True)
class ZeroTerminalSNR:
    """A discrete diffusion whose alpha is shifted and stretched until nothing of the picture is left at t = 1.

        alpha'_k = (alpha_k - alpha_{T-1}) alpha_0 / (alpha_0 - alpha_{T-1}),    sigma'^2 = 1 - alpha'^2

    In between alpha' is linear in t, because ln alpha_bar has no end. Only what does not divide by alpha may be
    predicted: the clean picture, v or the velocity, not the noise.

    base  what is stretched

    Source: Lin et al. 2024 (arXiv 2305.08891), algorithm 1.
    """

    base: VariancePreserving = field(default_factory=VariancePreserving)

    @property
    def steps(self) -> int:
        """T."""
        return self.base.steps

    @property
    def start(self) -> float:
        """1 / T."""
        return self.base.start

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""
        position, k = _step_of(t.double(), self.steps)
        rise = self.alphas[k + 1] - self.alphas[k]
        alpha = self.alphas[k] + (position - k) * rise
        sigma = torch.sqrt(1 - alpha**2)
        slope = rise * self.steps
        return Coefficients(alpha, sigma, d_alpha=slope, d_sigma=-alpha * slope / sigma)

    def network_time(self, t: Tensor) -> Tensor:
        """T t - 1."""
        return self.base.network_time(t)

    def time_of(self, ratio: Tensor) -> Tensor:
        """From alpha = 1 / sqrt(1 + r^2), linear within each step."""
        return _inverse(-self.alphas, -1 / torch.sqrt(1 + ratio.double() ** 2))

    @cached_property
    def alphas(self) -> Tensor:
        """alpha' at t = 0, 1/T, ..., 1, (T + 1,)."""
        alphas = torch.exp(self.base.log_alpha_bars[1:] / 2)
        stretched = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        return torch.cat([torch.ones_like(alphas[:1]), stretched])


def _step_of(t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """T t, and the k for which it lies in (k, k + 1]."""
    position = t * steps
    return position, (position - 1e-9).ceil().long().sub(1).clamp(0, steps - 1)


def _inverse(rising: Tensor, value: Tensor) -> Tensor:
    """The t at which a function, known at 0, 1/T, ..., 1 and linear in between, takes a value; held within [0, 1]."""
    value = value.clamp(rising[0], rising[-1])
    k = torch.searchsorted(rising, value, right=True).sub(1).clamp(0, len(rising) - 2)
    share = (value - rising[k]) / (rising[k + 1] - rising[k])
    return (k + share) / (len(rising) - 1)


@dataclass(frozen=True)
class ContinuousVP:
    """The variance-preserving SDE, dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, with beta rising
    from beta_min to beta_max in a straight line.

        ln alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2,    sigma = sqrt(1 - alpha^2)

    sub  the sub-VP process, sigma = 1 - alpha^2

    The sub-VP variance is below the other at every time, and both start from 0 and end near 1. d_sigma is infinite at
    t = 0 (not for sub-VP). The network is told 999 t.

    Source: Song et al. 2021 (arXiv 2011.13456), eq. 11 and appendices B and C (VP), eq. 12 (sub-VP).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    sub: bool = False

    @property
    def start(self) -> float:
        """1e-5, where the paper's training begins."""
        return 1e-5

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""
        t = t.double()
        rise = self.beta_max - self.beta_min
        log_alpha = -rise * t**2 / 4 - self.beta_min * t / 2
        alpha, variance = torch.exp(log_alpha), 0.0 - torch.expm1(2 * log_alpha)
        d_alpha = -(self.beta_min + rise * t) / 2 * alpha
        if self.sub:
            return Coefficients(alpha, variance, d_alpha, d_sigma=-2 * alpha * d_alpha)
        sigma = torch.sqrt(variance)
        return Coefficients(alpha, sigma, d_alpha, d_sigma=-alpha * d_alpha / sigma)

    def network_time(self, t: Tensor) -> Tensor:
        """999 t."""
        return 999 * t.double()

    def time_of(self, ratio: Tensor) -> Tensor:
        """The root of the quadratic equation for -2 ln alpha = ln(1 + r^2), sub-VP: 2 arsinh(r / 2); may be above 1."""
        r = ratio.double()
        decay = 2 * torch.asinh(r / 2) if self.sub else torch.log1p(r**2)
        first, second = self.beta_min / decay, 2 * (self.beta_max - self.beta_min) / decay
        return 2 / (first + torch.sqrt(first**2 + second))  # exact for small ratios, infinite for infinite ones


@dataclass(frozen=True)
class VarianceExploding:
    """The variance-exploding SDE: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t for t > 0, and 0 at t = 0.

    The paper's values, 0.01 and 50, are for pictures in [0, 1]; ours are in [-1, 1], so both are doubled. The network
    is told ln sigma.

    Source: Song et al. 2021 (arXiv 2011.13456), eq. 9 and appendix C.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    @property
    def start(self) -> float:
        """1e-5, where the paper's training begins."""
        return 1e-5

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives; at t = 0, those of the clean picture."""
        t = t.double()
        sigma = torch.where(t > 0, self.sigma_min * (self.sigma_max / self.sigma_min) ** t, 0.0)
        one = torch.ones_like(t)
        return Coefficients(one, sigma, 0 * one, sigma * math.log(self.sigma_max / self.sigma_min))

    def network_time(self, t: Tensor) -> Tensor:
        """ln sigma."""
        return math.log(self.sigma_min) + t.double() * math.log(self.sigma_max / self.sigma_min)

    def time_of(self, ratio: Tensor) -> Tensor:
        """ln(r / sigma_min) / ln(sigma_max / sigma_min)."""
        return (torch.log(ratio.double() / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)).clamp(min=0)


@dataclass(frozen=True)
class EDM:
    """Noise that grows evenly, with nothing taken from the picture: alpha = 1, sigma = sigma_max t.

    Times are noise levels in another unit, so that a step of a solver in t is one in sigma. The network is told
    ln(sigma) / 4. Training may go beyond t = 1, the largest noise of sampling.

    Source: Karras et al. 2022 (arXiv 2206.00364), table 1 (sigma(t) = t, s(t) = 1; c_noise).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def start(self) -> float:
        """sigma_min / sigma_max."""
        return self.sigma_min / self.sigma_max

    def at(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""
        t = t.double()
        one = torch.ones_like(t)
        return Coefficients(one, self.sigma_max * t, 0 * one, self.sigma_max * one)

    def network_time(self, t: Tensor) -> Tensor:
        """ln(sigma) / 4."""
        return torch.log(self.sigma_max * t.double()) / 4

    def time_of(self, ratio: Tensor) -> Tensor:
        """r / sigma_max."""
        return ratio.double() / self.sigma_max


PATHS: dict[str, Path] = {
    "linear": VariancePreserving(),
    "scaled-linear": VariancePreserving(betas=scaled_linear_betas),
    "cosine": VariancePreserving(betas=cosine_betas),
    "cosine-4000": VariancePreserving(steps=4000, betas=cosine_betas),
    "zero-snr": ZeroTerminalSNR(),
    "vp": ContinuousVP(),
    "subvp": ContinuousVP(sub=True),
    "ve": VarianceExploding(),
    "edm": EDM(),
    "straight": Straight(),
    "ot": Straight(sigma_min=1e-4),
}
