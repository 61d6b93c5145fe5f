"""A prior that is learned, with a latent variable of its own; training first explains pictures, then simplifies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.model import Losses
from .gaussian import LOG_2PI, Gaussian
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .model import CodedModel, Draws, Latents, refuse_doubly
from .networks import Activation, ConvConfig, NetworkConfig, begin, mlp
from .objectives import ELBO, Inferred, ObjectiveConfig, elbo_losses, importance_bound


@dataclass(frozen=True)
class ConstraintConfig(Config):
    """The KL is minimised while the picture must be explained this well; see `multiplier`.

    Raises `ConfigError` for what cannot be.
    """

    most: float = 2.4  # kappa^2: -ln p(x | z) at most, on average, nats per channel of a pixel
    begin: float = 0.1  # beta at the first step
    least: float = 0.01  # of beta, above 0: a constraint that cannot be met is not to leave codes without a prior
    rate: float = 1.0  # nu
    slope: float = 3.0  # tau
    memory: float = 0.99  # alpha: share of the moving average of -ln p(x | z) that survives a step
    hold_prior: bool = True  # the prior's networks wait until the constraint is met for the first time

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.begin:
            raise ConfigError(
                f"beta begins at {self.begin} and stays above {self.least}, which must be above 0 and not more"
            )
        if not 0 <= self.memory < 1:
            raise ConfigError(f"memory is the share of an average that survives a step, not {self.memory}")
        if self.rate < 0 or self.slope < 0:
            raise ConfigError(f"rate and slope must not be negative, but they are {self.rate} and {self.slope}")


def multiplier(beta: Tensor, excess: Tensor, rate: float, slope: float) -> Tensor:
    """Beta of the next step: falls where the constraint is broken, and comes to 1 where it is met.

        beta <- beta exp(nu f(beta, e) e),    f = -1 for e > 0, else tanh(tau (beta - 1))

    beta    the weight of the KL, ()
    excess  e: by how much the moving average of the constrained term is above what is allowed, ()

    At beta = 1 the Lagrangian is the evidence lower bound, and no other beta stays while the constraint is met.
    Source: Klushyn et al. 2019 (arXiv 1905.04982), section 2.2 and algorithm 1.
    """
    f = torch.where(excess > 0, -torch.ones_like(beta), torch.tanh(slope * (beta - 1)))
    return beta * torch.exp(rate * f * excess)


@dataclass(frozen=True)
class VHPConfig(Config):
    """Pictures, both codes, networks, likelihood, and how they are trained."""

    image_size: int
    channels: int = 1
    latent: int = 32  # dimensions of z
    context: int = 8  # dimensions of zeta, of which the prior makes z
    draws: int = 16  # K: of zeta, for one z
    network: NetworkConfig = field(default_factory=ConvConfig)  # between picture and z
    widths: tuple[int, ...] = (128, 128)  # of the networks between z and zeta
    activation: Activation = "relu"  # of those
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    constraint: ConstraintConfig | None = field(default_factory=ConstraintConfig)  # None: the objective alone
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        for name in ("latent", "context", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(
                f"the prior's networks have at least one layer, each of at least 1 neuron, not {self.widths}"
            )
        refuse_doubly(self.objective, "a prior whose density is itself an estimate")
        if self.constraint is not None and self.objective != ELBO():
            raise ConfigError(
                "a constraint decides how much the KL weighs, so the objective beside it is the plain bound; set"
                " constraint=null or leave the objective alone"
            )


class VHPVAE(CodedModel):
    """p(x | z) of a code z whose prior is p(z) = E[p(z | zeta)], zeta from N(0, I), both Gaussian; q(z | x) Gaussian.

    The density of the prior is an integral; in its place stands a bound of K draws from a third Gaussian q(zeta | z):

        ln p(z) >= E[ln (1/K) sum_k p(z | zeta_k) p(zeta_k) / q(zeta_k | z)]

    so that the KL is never underestimated, and the bound of ln p(x) remains one (with importance samples too, for the
    sum itself is right on average). KL = -H(q(z | x)) - ln p(z), the entropy in closed form; it has one column.

    With a constraint the loss is the Lagrangian -ln p(x | z) + beta KL, whose beta follows `multiplier`; it is logged,
    with the moving average that it follows. Without, it is that of the objective.

    Source: Klushyn et al. 2019 (arXiv 1905.04982), sections 2.1-2.2; survey, section 2.6.3.
    """

    config: VHPConfig
    beta: Tensor
    average: Tensor
    met: Tensor

    def __init__(self, config: VHPConfig) -> None:
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config = c = config
        self.encoder = c.network.encoder(c.channels, c.image_size, 2 * c.latent)
        self.decoder = c.network.decoder(c.latent, self.likelihood.outputs, c.image_size)
        self.prior = nn.ModuleDict({
            "generate": self._network(c.context, c.latent),  # p(z | zeta)
            "infer": self._network(c.latent, c.context),  # q(zeta | z)
        })  # fmt: skip
        self.register_buffer("beta", torch.tensor(c.constraint.begin if c.constraint else 1.0))
        self.register_buffer("average", torch.tensor(torch.nan))  # of -ln p(x | z) per dimension
        self.register_buffer("met", torch.tensor(c.constraint is None or not c.constraint.hold_prior))
        self._sums: Tensor | None = None  # of this step's pictures: -ln p(x | z), and how many

    def _network(self, inputs: int, outputs: int) -> nn.Module:
        c = self.config
        hidden = mlp(inputs, c.widths, c.activation)
        return begin(nn.Sequential(hidden, nn.Linear(c.widths[-1], 2 * outputs)), c.activation)

    def posterior(self, images: Tensor) -> Gaussian:
        """q(z | x), of (B, latent)."""
        return Gaussian.of(self.encoder(images))

    def log_prior(self, z: Tensor, noise: Tensor, held: bool = False) -> Tensor:
        """ln (1/K) sum_k p(z | zeta_k) p(zeta_k) / q(zeta_k | z), nats, (B,): on average at most ln p(z).

        z      (B, latent)
        noise  of the K draws of zeta, (B, K, context)
        held   no gradient reaches the prior's networks, but z
        """
        b, k = noise.shape[:2]
        about = Gaussian.of(self._answer("infer", z, held)).repeat(k)
        zeta = about.at(noise.flatten(0, 1))
        of_z = Gaussian.of(self._answer("generate", zeta, held))
        log_weights = (
            of_z.log_prob(z.repeat_interleave(k, 0)) + Gaussian.standard(zeta).log_prob(zeta) - about.log_prob(zeta)
        )
        return importance_bound(log_weights.view(b, k))

    def _answer(self, name: str, inputs: Tensor, held: bool) -> Tensor:
        network = self.prior[name]
        if not held:
            return cast("Tensor", network(inputs))
        # zero times a weight, so that each has a gradient, as distributed training wants it
        still = {key: weight.detach() + 0 * weight for key, weight in network.named_parameters()}
        return cast("Tensor", torch.func.functional_call(network, still, (inputs,)))

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """Mean and log-deviation of q(z | x)."""
        return tuple(self.posterior(batch.images))

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One z each, and K zeta to weigh it by."""
        posterior = Gaussian(*seen)
        z = posterior.at(draws.normal(self.config.latent))
        noise = draws.normal(self.config.draws, self.config.context)
        log_prior = self.log_prior(z, noise, self.training and not bool(self.met))
        entropy = (posterior.log_std + 0.5 * (LOG_2PI + 1)).sum(1)
        log_likelihood = self.likelihood.log_prob(self.decoder(z), batch.images)
        return Inferred(log_likelihood, (-entropy - log_prior)[:, None], log_prior - posterior.log_prob(z))

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The Lagrangian; see `VariationalModel.forward` for what is logged besides."""
        constraint = self.config.constraint
        if constraint is None:
            return super().forward(batch, player)
        many, seen, draws = self._repeated(batch, batch.random(), 1)
        inferred = self.infer(many, seen, draws)
        if self.training:
            error = -inferred.log_likelihood.detach() / math.prod(batch.images.shape[1:])
            now = torch.stack([error.sum(), error.new_tensor(float(len(error)))])
            self._sums = now if self._sums is None else self._sums + now
        beta = self.beta.to(inferred.kl.dtype)
        total, parts = elbo_losses(inferred, beta * inferred.kl.sum(1))
        return Losses(total, {**parts, "beta": beta.clone()})

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Beta follows the moving average of -ln p(x | z), that of the pictures of all processes."""
        super().after_step(step)
        constraint = self.config.constraint
        if self._sums is None or constraint is None:
            return
        sums, self._sums = self._sums, None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        now = sums[0] / sums[1]
        if not bool(now.isfinite()):  # of a batch whose step was skipped
            return
        kept = now if bool(self.average.isnan()) else self.average
        self.average.copy_(constraint.memory * kept + (1 - constraint.memory) * now)
        excess = self.average - constraint.most
        self.met |= excess < 0
        if bool(self.met):
            self.beta.copy_(
                multiplier(self.beta, excess, constraint.rate, constraint.slope).clamp_min(constraint.least)
            )

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """Those of zeta, and of z beside it."""
        return [(self.config.context,), (self.config.latent,)]

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Zeta from N(0, t^2 I), z from p(z | zeta) at the same temperature t, and the decoder's numbers."""
        zeta = temperature * draws.normal(self.config.context)
        of_z = Gaussian.of(self.prior["generate"](zeta))
        return cast("Tensor", self.decoder(of_z.at(draws.normal(self.config.latent), temperature)))

    @torch.no_grad()
    def latents(self, images: Tensor, *, seeds: int | Sequence[int] = 0) -> Latents:
        """For the diagnosis of collapse: zeta decides for all of z together, so that their KL is shared out.

        means  E[z | x], (B, latent)
        kl     KL(q(z | x) || p(z | zeta)) of each dimension, zeta the mean of q(zeta | E[z | x]): what a dimension says
               of the picture beyond zeta, in closed form, (B, latent)
        total  the KL of the bound, to which zeta adds what it says, of one z and K zeta (picture k with seed k), (B,)
        """
        posterior = self.posterior(images)
        zeta = Gaussian.of(self.prior["infer"](posterior.mean)).mean
        given = posterior.kl(Gaussian.of(self.prior["generate"](zeta)))
        return Latents(posterior.mean, given, self.divergence(images, seeds))

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
