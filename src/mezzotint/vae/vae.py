"""The variational autoencoder of one code for a picture: encoder, posterior, prior, decoder, likelihood, objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import given_codes
from ..core.model import Losses
from .gaussian import Gaussian
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .model import CodedModel, Draws, Latents, VariationalModel, refuse_doubly
from .networks import ConvConfig, NetworkConfig
from .objectives import ELBO, ImportanceWeighted, Inferred, ObjectiveConfig, weigh_again
from .posteriors import Coded, GaussianPosteriorConfig, PosteriorConfig
from .priors import PriorConfig, StandardPriorConfig


@dataclass(frozen=True)
class VAEConfig(Config):
    """Pictures, code, networks, likelihood, objective, posterior and prior, each independent of the others.

    Raises `ConfigError` for a code of no dimension, and for the doubly reparameterised gradient where the posterior or
    the prior has a latent variable of its own.
    """

    image_size: int
    channels: int = 1
    latent: int = 32  # dimensions of z
    network: NetworkConfig = field(default_factory=ConvConfig)
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    objective: ObjectiveConfig = field(default_factory=ELBO)
    posterior: PosteriorConfig = field(default_factory=GaussianPosteriorConfig)
    prior: PriorConfig = field(default_factory=StandardPriorConfig)

    def __post_init__(self) -> None:
        if self.latent < 1:
            raise ConfigError(f"a code has at least 1 dimension, not {self.latent}: set latent")
        if not self.posterior.closed:
            refuse_doubly(self.objective, "a posterior whose z is drawn given another variable")
        if not self.prior.closed:
            refuse_doubly(self.objective, "a prior whose density is itself an estimate")


class VectorModel(VariationalModel):
    """p(x | z) p(z) and q(z | x), z a vector; survey, eq. 3-14.

    inference  what makes q(z | x), as `config.posterior` says; `posterior` is the distribution itself
    prior      p(z), as `config.prior` says
    """

    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config = c = config
        self.encoder = c.network.encoder(c.channels, c.image_size, c.posterior.outputs(c.latent))
        self.decoder = c.network.decoder(c.latent, self.likelihood.outputs, c.image_size)
        self.inference, self.prior = c.posterior.build(c.latent), c.prior.build(c.latent)

    def posterior(self, images: Tensor) -> Gaussian:
        """q(z | x), of (B, latent); where z is drawn given another variable, what it is at the mean of that."""
        return self.inference.middle(self.recognise(self.given(images)))

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the posterior makes of what the encoder finds."""
        return self.inference.see(self.encoder(batch.images))

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One z each; the KL in closed form where there is one (survey, eq. 3)."""
        return self._weighed(batch, self.inference.draw(seen, draws), draws)

    def numbers(self, images: Tensor, z: Tensor) -> Tensor:
        """What p(x | z) is made of, (B, outputs, H, W): of z (B, latent), and not of the other pixels of x."""
        return cast("Tensor", self.decoder(z))

    def _weighed(self, batch: Batch, coded: Coded, draws: Draws, at_z: Gaussian | None = None) -> Inferred:
        """What z says of the picture.

        at_z  the posterior whose density at z is taken; None: that of which z was drawn
        """
        z, given, correction = coded
        held = self.lagrangian is not None and self.lagrangian.waits
        log_likelihood = self.likelihood.log_prob(self.numbers(batch.images, z), batch.images)
        kl, log_prior = self.prior.weigh(given, z, draws, held)
        log_ratio = log_prior - (at_z or given).log_prob(z)
        if correction is not None:
            kl, log_ratio = (kl.sum(1) + correction)[:, None], log_ratio - correction
        return Inferred(log_likelihood, kl, log_ratio)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of the objective; see `VariationalModel.forward`."""
        objective = self.objective
        if not (isinstance(objective, ImportanceWeighted) and objective.gradient == "doubly"):
            return super().forward(batch, player)
        many, seen, draws = self._repeated(batch, batch.random(), objective.samples)
        coded = self.inference.draw(seen, draws)
        inferred = self._weighed(many, coded, draws, coded.given.detach())
        if coded.z.requires_grad:
            weigh_again(coded.z, inferred.log_weight.unflatten(0, (-1, objective.samples)))
        return objective.losses(inferred, self.steps)

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Decoder(z), z from the prior."""
        return cast("Tensor", self.decoder(self.prior.draw(draws, temperature)))

    @torch.no_grad()
    def latents(self, images: Tensor, *, seeds: int | Sequence[int] = 0) -> Latents:
        """For the diagnosis of collapse.

        means  E[z | x], or that of `posterior`, (B, latent)
        kl     of each dimension: KL(posterior || p(z)) in closed form, or beyond what the prior expects of z where all
               that decides on z is as it seems from the mean, (B, latent)
        total  the KL of the bound, of one draw (picture k with seed k), (B,); None where `kl` sums to it
        """
        posterior = self.posterior(images)
        given = posterior.kl(self.prior.around(posterior.mean))
        closed = self.config.posterior.closed and self.config.prior.closed
        return Latents(posterior.mean, given, None if closed else self.divergence(images, seeds))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The mean of `posterior`, (B, latent)."""
        return self.posterior(images).mean

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """E[x | z], (B, C, H, W) in [-1, 1]. Raises `ConfigError` for codes of another size."""
        given_codes(codes, self.config.latent)
        return self.likelihood.mean(self.decoder(codes))

    def reconstruct(self, images: Tensor) -> Tensor:
        """What is decoded of what is encoded, (B, C, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))


class VAE(VectorModel, CodedModel):
    """Whose p(x | z) is of each pixel by itself, so that a picture is made of z alone.

    Source: Kingma and Welling 2013 (arXiv 1312.6114), section 3; Rezende et al. 2014 (arXiv 1401.4082).
    """

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """What the prior makes z of."""
        return self.prior.noise_shapes
