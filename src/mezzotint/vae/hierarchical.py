"""A posterior that is richer than a Gaussian: a mixture without end, weighed by a guess of how each z was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError
from .gaussian import Gaussian
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .model import CodedModel, Draws, Latents, refuse_doubly
from .networks import Activation, ConvConfig, NetworkConfig, begin, mlp
from .objectives import ELBO, Inferred, ObjectiveConfig


@dataclass(frozen=True)
class HierarchicalConfig(Config):
    """Pictures, code, the latent variable of its posterior, networks, likelihood and objective."""

    image_size: int
    channels: int = 1
    latent: int = 32  # dimensions of z
    context: int = 32  # dimensions of lambda
    network: NetworkConfig = field(default_factory=ConvConfig)  # between picture and codes
    features: int = 128  # numbers that the encoder makes of a picture
    widths: tuple[int, ...] = (128,)  # of the networks between lambda and z
    activation: Activation = "silu"  # of those
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        for name in ("latent", "context", "features"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"a network has at least one layer, each of at least 1 neuron, not {self.widths}")
        refuse_doubly(self.objective, "a posterior whose z is drawn given another variable")


class HierarchicalVariationalModel(CodedModel):
    """p(x | z) N(z; 0, I), with q(z | x) = E[q(z | lambda)], lambda from q(lambda | x): all three Gaussian.

    Dimensions of z that are independent given lambda depend on each other without it. The density of q(z | x) is an
    integral; an auxiliary r(lambda | z, x) of where z came from makes a bound of it:

        hierarchical ELBO = E[ln p(x, z) + ln r(lambda | z, x) - ln q(z | lambda) - ln q(lambda | x)] <= ELBO <= ln p(x)

    The first is an equality where r is the posterior of lambda. One draw says

        KL = KL(q(z | lambda) || p(z)) + ln q(lambda | x) - ln r(lambda | z, x),

    the first term in closed form and the second sampled; it has one column, for the second is negative wherever lambda
    and z know of each other. The weights of importance samples, p(x, z) r / (q q), are right on average too.

    The paper treats one set of observations and latent variables of any kind; this is its model for continuous z, with
    the variational parameters of each picture given by an encoder.

    Source: Ranganath, Tran, Blei 2016 (arXiv 1511.02386), sections 2-3; survey, section 2.6.3.
    """

    config: HierarchicalConfig

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config = c = config
        self.encoder = c.network.encoder(c.channels, c.image_size, c.features)
        self.decoder = c.network.decoder(c.latent, self.likelihood.outputs, c.image_size)
        self.of_context = begin(nn.Sequential(nn.SiLU(), nn.Linear(c.features, 2 * c.context)), "silu")  # q(lambda | x)
        self.of_z = self._network(c.context, 2 * c.latent)  # q(z | lambda)
        self.back = self._network(c.latent + c.features, 2 * c.context)  # r(lambda | z, x)

    def _network(self, inputs: int, outputs: int) -> nn.Module:
        c = self.config
        return begin(nn.Sequential(mlp(inputs, c.widths, c.activation), nn.Linear(c.widths[-1], outputs)), c.activation)

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the encoder sees, and mean and log-deviation of q(lambda | x)."""
        features = self.encoder(batch.images)
        return features, *Gaussian.of(self.of_context(features))

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One lambda each, and one z of it."""
        features, about = seen[0], Gaussian(*seen[1:])
        context = about.at(draws.normal(self.config.context))
        posterior = Gaussian.of(self.of_z(context))
        z = posterior.at(draws.normal(self.config.latent))
        guess = Gaussian.of(self.back(torch.cat([z, features], 1)))
        correction = about.log_prob(context) - guess.log_prob(context)  # (B,)
        kl = posterior.kl().sum(1) + correction
        log_ratio = Gaussian.standard(z).log_prob(z) - posterior.log_prob(z) - correction
        return Inferred(self.likelihood.log_prob(self.decoder(z), batch.images), kl[:, None], log_ratio)

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """That of z: lambda is the posterior's alone."""
        return [(self.config.latent,)]

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Decoder(z), z from N(0, temperature^2 I)."""
        return cast("Tensor", self.decoder(temperature * draws.normal(self.config.latent)))

    def _middle(self, images: Tensor) -> Gaussian:
        """q(z | lambda) at the mean of q(lambda | x)."""
        return Gaussian.of(self.of_z(self.recognise(Batch(images))[1]))

    @torch.no_grad()
    def latents(self, images: Tensor, *, seeds: int | Sequence[int] = 0) -> Latents:
        """For the diagnosis of collapse.

        means  of z where lambda is the mean of q(lambda | x), (B, latent)
        kl     KL(q(z | lambda) || p(z)) at that lambda, in closed form: it leaves out how lambda is spread, (B, latent)
        total  the KL of the bound, of one lambda (picture k with seed k), (B,)
        """
        posterior = self._middle(images)
        return Latents(posterior.mean, posterior.kl(), self.divergence(images, seeds))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The mean of q(z | lambda) at the mean of q(lambda | x), (B, latent)."""
        return self._middle(images).mean

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """E[x | z], (B, C, H, W) in [-1, 1]."""
        return self.likelihood.mean(self.decoder(codes))

    def reconstruct(self, images: Tensor) -> Tensor:
        """What is decoded of what is encoded, (B, C, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))
