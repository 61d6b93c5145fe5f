"""The variational autoencoder, one Gaussian code for a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.model import Losses
from .gaussian import Gaussian
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .model import CodedModel, Draws, Latents, VariationalModel
from .networks import ConvConfig, NetworkConfig
from .objectives import ELBO, ImportanceWeighted, Inferred, ObjectiveConfig, weigh_again


@dataclass(frozen=True)
class VAEConfig(Config):
    """Pictures, code, networks, likelihood and objective, each independent of the others."""

    image_size: int
    channels: int = 1
    latent: int = 32  # dimensions of z
    network: NetworkConfig = field(default_factory=ConvConfig)
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        if self.latent < 1:
            raise ConfigError(f"a code has at least 1 dimension, not {self.latent}")


class VectorModel(VariationalModel):
    """p(x | z) N(z; 0, I), and q(z | x) = N(mu(x), diag(sigma(x)^2)), z a vector; survey, eq. 3-14."""

    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config = config
        self.encoder = config.network.encoder(config.channels, config.image_size, 2 * config.latent)
        self.decoder = config.network.decoder(config.latent, self.likelihood.outputs, config.image_size)

    def posterior(self, images: Tensor) -> Gaussian:
        """q(z | x), of (B, latent)."""
        return Gaussian.of(self.encoder(images))

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """Mean and log-deviation of q(z | x)."""
        return tuple(self.posterior(batch.images))

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One z each; the KL in closed form (survey, eq. 3)."""
        posterior = Gaussian(*seen)
        z = posterior.at(draws.normal(self.config.latent))
        return self._weighed(batch, z, posterior)

    def numbers(self, images: Tensor, z: Tensor) -> Tensor:
        """What p(x | z) is made of, (B, outputs, H, W): of z (B, latent), and not of the other pixels of x."""
        return cast("Tensor", self.decoder(z))

    def _weighed(self, batch: Batch, z: Tensor, posterior: Gaussian, at_z: Gaussian | None = None) -> Inferred:
        """What z says of the picture.

        at_z  the posterior whose density at z is taken; None: the same
        """
        log_likelihood = self.likelihood.log_prob(self.numbers(batch.images, z), batch.images)
        log_ratio = Gaussian.standard(z).log_prob(z) - (at_z or posterior).log_prob(z)
        return Inferred(log_likelihood, posterior.kl(), log_ratio)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of the objective; see `VariationalModel.forward`."""
        objective = self.objective
        if not (isinstance(objective, ImportanceWeighted) and objective.gradient == "doubly"):
            return super().forward(batch, player)
        many, seen, draws = self._repeated(batch, batch.random(), objective.samples)
        posterior = Gaussian(*seen)
        z = posterior.at(draws.normal(self.config.latent))
        inferred = self._weighed(many, z, posterior, posterior.detach())
        if z.requires_grad:
            weigh_again(z, inferred.log_weight.unflatten(0, (-1, objective.samples)))
        return objective.losses(inferred, self.steps)

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Decoder(z), z from N(0, temperature^2 I)."""
        return cast("Tensor", self.decoder(temperature * draws.normal(self.config.latent)))

    def latents(self, images: Tensor) -> Latents:
        """For the diagnosis of collapse."""
        posterior = self.posterior(images)
        return Latents(posterior.mean, posterior.kl())

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """E[z | x], (B, latent)."""
        return self.posterior(images).mean

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """E[x | z], (B, C, H, W) in [-1, 1]."""
        return self.likelihood.mean(self.decoder(codes))

    def reconstruct(self, images: Tensor) -> Tensor:
        """E[x | E[z | x]], (B, C, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))


class VAE(VectorModel, CodedModel):
    """Whose p(x | z) is of each pixel by itself, so that a picture is made of z alone.

    Source: Kingma and Welling 2013 (arXiv 1312.6114), section 3; Rezende et al. 2014 (arXiv 1401.4082).
    """

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """That of z."""
        return [(self.config.latent,)]
