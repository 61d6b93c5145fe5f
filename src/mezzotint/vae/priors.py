"""What p(z) may be, where z is a vector: fixed, or learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError
from .gaussian import Gaussian
from .model import Draws
from .networks import Activation, answering, check_widths
from .objectives import importance_bound


class Prior(nn.Module, ABC):
    """p(z), z a vector."""

    @property
    @abstractmethod
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """Of what `draw` draws, in its order."""

    @abstractmethod
    def weigh(self, given: Gaussian, z: Tensor, draws: Draws, held: bool = False) -> tuple[Tensor, Tensor]:
        """KL(given || p) of each dimension or in one column, nats, (B, G); and ln p(z), nats, (B,).

        given  Gaussians of which z was drawn
        z      (B, latent)
        held   what is learned of the prior is not to learn from this
        """

    @abstractmethod
    def draw(self, draws: Draws, temperature: float = 1.0) -> Tensor:
        """One z for each row of the draws, (B, latent), with a temperature of all standard deviations."""

    @abstractmethod
    def around(self, z: Tensor) -> Gaussian:
        """What the prior expects of z where all that decides on z is as it seems from this z, (B, latent)."""


@dataclass(frozen=True)
class StandardPriorConfig(Config):
    """N(0, I)."""

    kind: Literal["standard"] = "standard"
    closed: ClassVar[bool] = True  # whether its density is known

    def build(self, latent: int) -> StandardPrior:
        """For z of so many dimensions."""
        return StandardPrior(latent)


class StandardPrior(Prior):
    """p(z) = N(0, I), beside which the KL of a Gaussian has a closed form: survey, eq. 3."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """That of z."""
        return [(self.latent,)]

    def weigh(self, given: Gaussian, z: Tensor, draws: Draws, held: bool = False) -> tuple[Tensor, Tensor]:
        """The KL of each dimension, in closed form."""
        return given.kl(), Gaussian.standard(z).log_prob(z)

    def draw(self, draws: Draws, temperature: float = 1.0) -> Tensor:
        """N(0, temperature^2 I)."""
        return temperature * draws.normal(self.latent)

    def around(self, z: Tensor) -> Gaussian:
        """Itself."""
        return Gaussian.standard(z)


@dataclass(frozen=True)
class HierarchicalPriorConfig(Config):
    """A prior that is learned, with a latent variable of its own; see `HierarchicalPrior`."""

    context: int = 8  # dimensions of zeta, of which the prior makes z
    draws: int = 16  # K: of zeta, for one z
    widths: tuple[int, ...] = (128, 128)  # of the networks between z and zeta
    activation: Activation = "relu"  # of those
    kind: Literal["hierarchical"] = "hierarchical"
    closed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("context", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_widths(self.widths, "the prior's networks have")

    def build(self, latent: int) -> HierarchicalPrior:
        """For z of so many dimensions."""
        return HierarchicalPrior(self, latent)


class HierarchicalPrior(Prior):
    """p(z) = E[p(z | zeta)], zeta from N(0, I), p(z | zeta) Gaussian.

    Its density is an integral; in its place stands a bound of K draws from a third Gaussian q(zeta | z):

        ln p(z) >= E[ln (1/K) sum_k p(z | zeta_k) p(zeta_k) / q(zeta_k | z)]

    so that the KL is never underestimated, and the bound of ln p(x) remains one (with importance samples too, for the
    sum itself is right on average). KL = -H(given) - ln p(z), the entropy in closed form; it has one column.

    Source: Klushyn et al. 2019 (arXiv 1905.04982), section 2.1; survey, section 2.6.3.
    """

    def __init__(self, config: HierarchicalPriorConfig, latent: int) -> None:
        super().__init__()
        c, self.config, self.latent = config, config, latent
        self.generate = answering(c.context, c.widths, 2 * latent, c.activation)  # p(z | zeta)
        self.infer = answering(latent, c.widths, 2 * c.context, c.activation)  # q(zeta | z)

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """Those of zeta, and of z beside it."""
        return [(self.config.context,), (self.latent,)]

    def log_prob(self, z: Tensor, noise: Tensor, held: bool = False) -> Tensor:
        """ln (1/K) sum_k p(z | zeta_k) p(zeta_k) / q(zeta_k | z), nats, (B,): on average at most ln p(z).

        z      (B, latent)
        noise  of the K draws of zeta, (B, K, context)
        held   no gradient reaches the prior's networks, but z
        """
        b, k = noise.shape[:2]
        about = Gaussian.of(_answer(self.infer, z, held)).repeat(k)
        zeta = about.at(noise.flatten(0, 1))
        of_z = Gaussian.of(_answer(self.generate, zeta, held))
        log_weights = (
            of_z.log_prob(z.repeat_interleave(k, 0)) + Gaussian.standard(zeta).log_prob(zeta) - about.log_prob(zeta)
        )
        return importance_bound(log_weights.view(b, k))

    def weigh(self, given: Gaussian, z: Tensor, draws: Draws, held: bool = False) -> tuple[Tensor, Tensor]:
        """By K draws of zeta; the KL in one column."""
        log_prob = self.log_prob(z, draws.normal(self.config.draws, self.config.context), held)
        return (-given.entropy() - log_prob)[:, None], log_prob

    def draw(self, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Zeta from N(0, t^2 I), z from p(z | zeta) at the same temperature t."""
        zeta = temperature * draws.normal(self.config.context)
        return Gaussian.of(self.generate(zeta)).at(draws.normal(self.latent), temperature)

    def around(self, z: Tensor) -> Gaussian:
        """The Gaussian p(z | zeta) at the mean of q(zeta | z)."""
        return Gaussian.of(self.generate(Gaussian.of(self.infer(z)).mean))


def _answer(network: nn.Module, inputs: Tensor, held: bool) -> Tensor:
    if not held:
        return cast("Tensor", network(inputs))
    # zero times a weight, so that each has a gradient, as distributed training wants it
    still = {key: weight.detach() + 0 * weight for key, weight in network.named_parameters()}
    return cast("Tensor", torch.func.functional_call(network, still, (inputs,)))


PriorConfig = StandardPriorConfig | HierarchicalPriorConfig
