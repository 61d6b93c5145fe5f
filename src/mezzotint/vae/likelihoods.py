"""p(x | z): what the numbers that a decoder gives say about the pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import PictureRandom
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.likelihood import LEVELS, Pixels
from ..core.precision import at_least_float32
from .gaussian import LOG_2PI


class Likelihood(nn.Module, ABC):
    """A distribution of pictures, given the numbers that a decoder answers for each pixel."""

    pixels: ClassVar[Pixels]  # the pictures that it is a distribution of: see `data.loader.Loader`

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many numbers the decoder gives for a pixel of all channels."""

    @abstractmethod
    def log_prob(self, numbers: Tensor, images: Tensor) -> Tensor:
        """ln p(x | z), nats, summed over channels and pixels: (B,).

        numbers  (B, outputs, H, W)
        images   (B, C, H, W) in [-1, 1]
        """

    @abstractmethod
    def mean(self, numbers: Tensor) -> Tensor:
        """E[x | z], (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def draw(self, numbers: Tensor, random: PictureRandom) -> Tensor:
        """A picture from p(x | z), (B, C, H, W) in [-1, 1]."""


class Bernoulli(Likelihood):
    """Each pixel is white (x = 1) with probability sigmoid(a), else black (x = -1). One number a per channel.

    A grey level is no outcome of it: pictures must be binarised.
    """

    pixels = "binary"

    @property
    def outputs(self) -> int:
        """One logit for each channel."""
        return self.channels

    def log_prob(self, numbers: Tensor, images: Tensor) -> Tensor:
        """Sum of ln sigmoid(x a), (B,)."""
        return F.logsigmoid(images * numbers).flatten(1).sum(1)

    def mean(self, numbers: Tensor) -> Tensor:
        """2 sigmoid(a) - 1."""
        return torch.tanh(numbers / 2)

    def draw(self, numbers: Tensor, random: PictureRandom) -> Tensor:
        """-1 or 1."""
        u = _as_fine(random.uniform(*numbers.shape[1:]), numbers)
        return 2.0 * (u < torch.sigmoid(numbers)).to(u) - 1.0


class GaussianPixels(Likelihood):
    """N(x; mu, sigma^2), a density over dequantised pictures; survey, eq. 18-19.

    std    sigma where it is fixed; None: one sigma for all pixels, learned as "sigma-VAE" does (Rybkin et al. 2021,
           arXiv 2006.13202), which finds the balance of the two terms of the bound by itself
    least  smallest sigma that can be learned: half the width of a grey level
    """

    pixels = "dequantised"

    def __init__(self, channels: int, std: float | None = None, least: float = 1 / LEVELS) -> None:
        super().__init__(channels)
        if std is not None and not std > 0:
            raise ConfigError(f"the standard deviation of a pixel must be above 0, not {std}")
        self.fixed, self.least = std, least
        self.log_std = nn.Parameter(torch.tensor(math.log(0.5))) if std is None else None

    @property
    def outputs(self) -> int:
        """One mean for each channel."""
        return self.channels

    def std(self) -> Tensor | float:
        """Sigma, the same for all pixels."""
        return self.fixed if self.log_std is None else self.least + self.log_std.exp()  # type: ignore[return-value]

    def log_prob(self, numbers: Tensor, images: Tensor) -> Tensor:
        """Sum of -(x - mu)^2 / (2 sigma^2) - ln sigma - ln(2 pi) / 2, (B,)."""
        std = torch.as_tensor(self.std(), dtype=images.dtype, device=numbers.device)
        return -(0.5 * (((images - numbers) / std) ** 2 + LOG_2PI) + std.log()).flatten(1).sum(1)

    def mean(self, numbers: Tensor) -> Tensor:
        """Mu, within [-1, 1]."""
        return numbers.clamp(-1, 1)

    def draw(self, numbers: Tensor, random: PictureRandom) -> Tensor:
        """Mu + sigma noise, within [-1, 1]."""
        return (numbers + self.std() * random.normal(*numbers.shape[1:])).clamp(-1, 1)


class DiscretisedLogistics(Likelihood):
    """A mixture of K logistic distributions over the 256 grey levels, the channels of a pixel chained.

    A level owns the interval of half a level's width to both sides; the lowest and the highest also the tails:

        P(x) = sum_k pi_k [F((x + 1/255 - mu_k) / s_k) - F((x - 1/255 - mu_k) / s_k)],   F the logistic function

    In colour pictures mu of green is shifted by a multiple of red, and mu of blue by multiples of red and green; the
    mixture is chosen once for a pixel of all channels.
    Source: Salimans et al. 2017 (arXiv 1701.05517), section 2.1-2.2, eq. 2-3.

    mixtures  K
    """

    pixels = "levels"
    LEAST, MOST = -7.0, 20.0  # of ln s; far beyond, 1 / s would be 0, and so a level's chance

    def __init__(self, channels: int, mixtures: int = 5) -> None:
        super().__init__(channels)
        if mixtures < 1:
            raise ConfigError(f"a mixture has at least 1 component, not {mixtures}")
        if channels not in (1, 3):
            raise ConfigError(f"pixels have 1 channel or 3, not {channels}")
        self.mixtures = mixtures

    @property
    def outputs(self) -> int:
        """K weights; K means and K scales for each channel; K shifts for each pair of channels."""
        c = self.channels
        return self.mixtures * (1 + 2 * c + c * (c - 1) // 2)

    def _parts(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ln pi (B, K, H, W), mu and ln s (B, C, K, H, W), shifts (B, C (C - 1) / 2, K, H, W).

        Of numbers in half precision they are float32: rounded, 1 / s says half a nat too much of a picture.
        """
        k, c = self.mixtures, self.channels
        weights, means, scales, shifts = at_least_float32(numbers).split([k, c * k, c * k, k * (c * (c - 1) // 2)], 1)
        log_scales = scales.unflatten(1, (c, k)).clamp(self.LEAST, self.MOST)
        pairs = torch.tanh(shifts).unflatten(1, (-1, k)) if c > 1 else shifts
        return weights.log_softmax(1), means.unflatten(1, (c, k)), log_scales, pairs

    def _shifted(self, means: Tensor, shifts: Tensor, images: Tensor) -> Tensor:
        """The means of each channel, given the channels before it: (B, C, K, H, W)."""
        if self.channels == 1:
            return means
        red, green = images[:, 0, None], images[:, 1, None]  # (B, 1, H, W)
        return torch.stack(
            [means[:, 0], means[:, 1] + shifts[:, 0] * red, means[:, 2] + shifts[:, 1] * red + shifts[:, 2] * green], 1
        )

    def log_prob(self, numbers: Tensor, images: Tensor) -> Tensor:
        """Sum of ln P(x) over the pixels, (B,)."""
        log_weights, means, log_scales, shifts = self._parts(numbers)
        centred = images[:, :, None] - self._shifted(means, shifts, images)  # (B, C, K, H, W)
        inverse = torch.exp(-log_scales)
        half = 1 / (LEVELS - 1)
        upper, lower = (centred + half) * inverse, (centred - half) * inverse
        # ln(F(u) - F(l)) = ln F(u) + ln F(-l) + ln(1 - exp(l - u)): exact however far out in the tail
        between = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * half * inverse))
        x = images[:, :, None]
        log_probs = torch.where(x < -1 + half, F.logsigmoid(upper), between)
        log_probs = torch.where(x > 1 - half, F.logsigmoid(-lower), log_probs)
        return torch.logsumexp(log_weights + log_probs.sum(1), 1).flatten(1).sum(1)

    def mean(self, numbers: Tensor) -> Tensor:
        """E[x | z] but for the rounding to levels, within [-1, 1].

        Of a logistic whose tails are laid on the edges, -1 + the integral of 1 - F over [-1, 1], which is
        -1 + s [softplus((1 + mu) / s) - softplus((mu - 1) / s)]; component by component, as a channel is shifted by
        what the same component says of those before it (by its mean, which is exact but for what the edges bend).
        """
        log_weights, means, log_scales, shifts = self._parts(numbers)
        expected: list[Tensor] = []  # of each channel, (B, K, H, W)
        for channel, pairs in zip(range(self.channels), ((), (0,), (1, 2))):
            mean = means[:, channel]
            for pair, before in zip(pairs, expected):
                mean = mean + shifts[:, pair] * before
            s = log_scales[:, channel].exp()
            expected.append((s * (F.softplus((1 + mean) / s) - F.softplus((mean - 1) / s)) - 1).clamp(-1, 1))
        return (log_weights.exp()[:, None] * torch.stack(expected, 1)).sum(2).clamp(-1, 1)

    def draw(self, numbers: Tensor, random: PictureRandom) -> Tensor:
        """One of the 256 levels for each channel of each pixel."""
        log_weights, means, log_scales, shifts = self._parts(numbers)
        gumbel = -torch.log(-torch.log(random.uniform(*log_weights.shape[1:]).clamp(1e-7, 1 - 1e-7)))
        chosen = (log_weights + gumbel).argmax(1)[:, None, None]  # (B, 1, 1, H, W)
        u = _as_fine(random.uniform(self.channels, *numbers.shape[2:]).clamp(1e-7, 1 - 1e-7), numbers)  # (B, C, H, W)
        levels = torch.zeros_like(u)
        for channel in range(self.channels):
            shifted = self._shifted(means, shifts, levels)
            mean, log_scale = (
                v.gather(2, chosen.expand(-1, self.channels, -1, -1, -1))[:, channel, 0] for v in (shifted, log_scales)
            )
            x = mean + log_scale.exp() * torch.logit(u[:, channel])
            level = ((x.clamp(-1, 1) + 1) * (LEVELS - 1) / 2).round() * 2 / (LEVELS - 1) - 1
            levels = levels.index_copy(1, torch.tensor([channel], device=levels.device), level[:, None])
        return levels


def check_pixels(pixels: str) -> None:
    """Raises `ConfigError` where pictures are asked for in another way than as the mean of their pixels, or drawn."""
    if pixels not in ("mean", "drawn"):
        raise ConfigError(f"pixels are 'mean' or 'drawn', not {pixels!r}")


def _as_fine(noise: Tensor, numbers: Tensor) -> Tensor:
    """The noise in the precision of the numbers where that is the finer one."""
    return noise.to(torch.promote_types(noise.dtype, numbers.dtype))


@dataclass(frozen=True)
class BernoulliConfig(Config):
    """Black or white."""

    kind: Literal["bernoulli"] = "bernoulli"

    def build(self, channels: int) -> Likelihood:
        """For pictures of so many channels."""
        return Bernoulli(channels)


@dataclass(frozen=True)
class GaussianPixelsConfig(Config):
    """A density."""

    std: float | None = None  # None: learned
    kind: Literal["gaussian"] = "gaussian"

    def build(self, channels: int) -> Likelihood:
        """For pictures of so many channels."""
        return GaussianPixels(channels, self.std)


@dataclass(frozen=True)
class LogisticsConfig(Config):
    """Probabilities of the 256 levels."""

    mixtures: int = 5
    kind: Literal["logistics"] = "logistics"

    def build(self, channels: int) -> Likelihood:
        """For pictures of so many channels."""
        return DiscretisedLogistics(channels, self.mixtures)


LikelihoodConfig = BernoulliConfig | GaussianPixelsConfig | LogisticsConfig
