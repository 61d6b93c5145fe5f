"""The ladder: what is seen from below corrects, at every level, what is expected from above."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError
from .gaussian import Gaussian
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .networks import ACTIVATIONS, Activation, ConvConfig, NetworkConfig, begin
from .objectives import ELBO, ObjectiveConfig
from .topdown import Level, TopDownModel

LEAST_VARIANCE = 1e-6


def precision_weighted(a: Gaussian, b: Gaussian) -> Gaussian:
    """The normalised product of two Gaussians over the same z.

        sigma^-2 = sigma_a^-2 + sigma_b^-2,    mu = (mu_a sigma_a^-2 + mu_b sigma_b^-2) sigma^2

    Source: Sonderby et al. 2016 (arXiv 1602.02282), eq. 17-19.
    """
    share = torch.sigmoid(2 * (b.log_std - a.log_std))  # sigma_a^-2 / (sigma_a^-2 + sigma_b^-2)
    return Gaussian(
        b.mean + share * (a.mean - b.mean), -0.5 * torch.logaddexp(-2 * a.log_std, -2 * b.log_std)
    )  # fmt: skip


def gaussian_of(numbers: Tensor) -> Gaussian:
    """From a network's answer: the mean, and a number of which softplus makes the variance."""
    mean, raw = numbers.chunk(2, 1)
    return Gaussian(mean, 0.5 * torch.log(F.softplus(raw) + LEAST_VARIANCE))


@dataclass(frozen=True)
class LadderConfig(Config):
    """Pictures, groups of latents from the one below the picture to the top, networks, likelihood and objective."""

    image_size: int
    channels: int = 1
    latents: tuple[int, ...] = (32, 16, 8)  # dimensions of z of each level, from the picture up
    hidden: tuple[int, ...] = (256, 128, 64)  # neurons of the two layers of each level, up and down
    network: NetworkConfig = field(default_factory=ConvConfig)  # between the picture and the lowest level
    activation: Activation = "silu"
    normalise: Literal["none", "layer"] = "none"  # layer: Ba et al. 2016, of each hidden layer between levels
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        if not self.latents or min(self.latents) < 1:
            raise ConfigError(f"a ladder has at least one level, each of at least 1 dimension, not {self.latents}")
        if len(self.hidden) != len(self.latents) or min(self.hidden) < 1:
            raise ConfigError(
                f"hidden has a number of neurons for each of the {len(self.latents)} levels, not {self.hidden}"
            )

    def layers(self, *widths: int) -> nn.Sequential:
        """Hidden layers of these widths, the first of which is that of the input."""
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            norm = nn.LayerNorm(after) if self.normalise == "layer" else nn.Identity()
            layers += [nn.Linear(before, after), norm, ACTIVATIONS[self.activation]()]
        return cast("nn.Sequential", begin(nn.Sequential(*layers), self.activation))


class LadderLevel(Level):
    """One level: p(z_l | z of the level above) of a network, and the product of that with what is seen from below.

    The state is the z of the level above.

    above  its dimensions; None at the top, where p(z) = N(0, I) and q is what is seen from below alone
    """

    def __init__(self, config: LadderConfig, latent: int, above: int | None, hidden: int) -> None:
        super().__init__()
        self.latent = latent
        self.prior: nn.Module | None = None
        if above is not None:
            self.prior = nn.Sequential(config.layers(above, hidden, hidden), head(hidden, 2 * latent))

    def look(self, state: Tensor) -> tuple[Gaussian, tuple[Tensor, ...]]:
        """N(mu_p, sigma_p^2), from the z above."""
        if self.prior is None:
            return Gaussian.standard(state.new_empty(len(state), self.latent)), ()
        return gaussian_of(self.prior(state)), ()

    def posterior(self, prior: Gaussian, rest: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> Gaussian:
        """The product of what is seen and the prior."""
        below = Gaussian(*seen)
        return below if self.prior is None else precision_weighted(below, prior)

    def onward(self, state: Tensor, rest: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """Z itself: the level below sees nothing else."""
        return z


class LadderVAE(TopDownModel):
    """Levels z_1 (below the picture) ... z_L, each a Gaussian given the one above, with a posterior of the same order.

        up    d_0 = x,  d_i = network(d_{i-1}),  mu^_i = linear(d_i),  sigma^_i^2 = softplus(linear(d_i))
        down  p(z_L) = N(0, I),  p(z_i | z_{i+1}) = N(mu_p, sigma_p^2) of a network of z_{i+1}
              q(z_L | x) = N(mu^_L, sigma^_L^2),  q(z_i | z_{i+1}, x) ~ N(mu^_i, sigma^_i^2) p(z_i | z_{i+1})

    What the picture says of a level and what the levels above expect of it are weighed by their precisions. The paper
    has batch normalisation in its hidden layers, by which the loss of one picture depends on the others; here the
    layers are not normalised, or each picture by itself (`normalise`).

    Source: Sonderby et al. 2016 (arXiv 1602.02282), section 2.1-2.3; survey, section 2.6.3, eq. 29-31.
    Raises `ConfigError` for an objective that asks for doubly reparameterised gradients.
    """

    config: LadderConfig

    def __init__(self, config: LadderConfig) -> None:
        likelihood = config.likelihood.build(config.channels)
        above = (*config.latents[1:], None)
        # the networks of p(z_i | z_{i+1}) have the width of level i + 1, as those of p(x | z_1) have that of level 1
        widths = (*config.hidden[1:], config.hidden[-1])
        levels: list[Level] = [
            LadderLevel(config, *one) for one in zip(config.latents, above, widths, strict=True)
        ]  # fmt: skip
        super().__init__(likelihood, config.objective, levels[::-1], [(latent,) for latent in config.latents[::-1]])
        self.config = config
        first = config.hidden[0]
        self.encoder = config.network.encoder(config.channels, config.image_size, first)
        self.decoder = config.network.decoder(first, likelihood.outputs, config.image_size)
        norm = nn.LayerNorm(first) if config.normalise == "layer" else nn.Identity()
        self.first = nn.Sequential(norm, ACTIVATIONS[config.activation]())
        self.up = nn.ModuleList(config.layers(below, width, width) for below, width in pairwise(config.hidden))
        self.heads = nn.ModuleList(
            head(width, 2 * latent) for width, latent in zip(config.hidden, config.latents, strict=True)
        )
        self.last = config.layers(config.latents[0], first)

    def bottom_up(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """Mu^ and ln sigma^ of each level, from the top."""
        d, found = self.first(self.encoder(images)), []
        for network, numbers in zip([nn.Identity(), *self.up], self.heads, strict=True):
            d = network(d)
            found.append(tuple(gaussian_of(numbers(d))))
        return found[::-1]

    def start(self, n: int) -> Tensor:
        """Nothing: (n, 0)."""
        return next(self.parameters()).new_empty(n, 0)

    def finish(self, state: Tensor) -> Tensor:
        """P(x | z_1)."""
        return cast("Tensor", self.decoder(self.last(state)))


def head(inputs: int, outputs: int) -> nn.Module:
    """A linear layer that begins with weights as in Glorot and Bengio 2010."""
    return begin(nn.Linear(inputs, outputs), "tanh")
