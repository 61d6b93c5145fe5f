"""What q(z | x) may be, where z is a vector: made of what the encoder finds in a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError
from .gaussian import Gaussian
from .model import Draws
from .networks import Activation, answering, begin, check_widths


class Coded(NamedTuple):
    """One z of each picture, and the Gaussian that it was drawn from."""

    z: Tensor  # (B, latent)
    given: Gaussian  # over z
    correction: Tensor | None = None  # what ln q(z) has beside ln given(z), nats, (B,); None: nothing


class Posterior(nn.Module, ABC):
    """q(z | x), z a vector."""

    @abstractmethod
    def see(self, found: Tensor) -> tuple[Tensor, ...]:
        """All that follows of the encoder's answer, (B, its config's `outputs`), however many z are drawn after."""

    @abstractmethod
    def draw(self, seen: tuple[Tensor, ...], draws: Draws) -> Coded:
        """One z each."""

    @abstractmethod
    def middle(self, seen: tuple[Tensor, ...]) -> Gaussian:
        """The Gaussian whose mean is the code of a picture."""


@dataclass(frozen=True)
class GaussianPosteriorConfig(Config):
    """N(mu(x), diag(sigma(x)^2)); see `GaussianPosterior`."""

    kind: Literal["gaussian"] = "gaussian"
    closed: ClassVar[bool] = True  # whether its density is known

    def outputs(self, latent: int) -> int:
        """How many numbers the encoder makes of a picture: mean and log-variance."""
        return 2 * latent

    def build(self, latent: int) -> GaussianPosterior:
        """For z of so many dimensions."""
        return GaussianPosterior(latent)


class GaussianPosterior(Posterior):
    """q(z | x) = N(mu(x), diag(sigma(x)^2)), both the encoder's answer; survey, eq. 13.

    Source: Kingma and Welling 2013 (arXiv 1312.6114), section 3.
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def see(self, found: Tensor) -> tuple[Tensor, ...]:
        """Mean and log-deviation."""
        return tuple(Gaussian.of(found))

    def draw(self, seen: tuple[Tensor, ...], draws: Draws) -> Coded:
        """Mean and deviation times noise."""
        given = Gaussian(*seen)
        return Coded(given.at(draws.normal(self.latent)), given)

    def middle(self, seen: tuple[Tensor, ...]) -> Gaussian:
        """Itself."""
        return Gaussian(*seen)


@dataclass(frozen=True)
class AuxiliaryPosteriorConfig(Config):
    """A mixture without end; see `AuxiliaryPosterior`."""

    context: int = 32  # dimensions of lambda
    features: int = 128  # numbers that the encoder makes of a picture
    widths: tuple[int, ...] = (128,)  # of the networks between lambda and z
    activation: Activation = "silu"  # of those
    kind: Literal["auxiliary"] = "auxiliary"
    closed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("context", "features"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_widths(self.widths, "the posterior's networks have")

    def outputs(self, latent: int) -> int:
        """How many numbers the encoder makes of a picture."""
        return self.features

    def build(self, latent: int) -> AuxiliaryPosterior:
        """For z of so many dimensions."""
        return AuxiliaryPosterior(self, latent)


class AuxiliaryPosterior(Posterior):
    """q(z | x) = E[q(z | lambda)], lambda from q(lambda | x): both Gaussian.

    Dimensions of z that are independent given lambda depend on each other without it. The density of q(z | x) is an
    integral; an auxiliary Gaussian r(lambda | z, x) of where z came from makes a bound of it:

        hierarchical ELBO = E[ln p(x, z) + ln r(lambda | z, x) - ln q(z | lambda) - ln q(lambda | x)] <= ELBO <= ln p(x)

    The first is an equality where r is the posterior of lambda. One draw says

        KL = KL(q(z | lambda) || p(z)) + ln q(lambda | x) - ln r(lambda | z, x),

    the first term as the prior has it and the second sampled; it has one column, for the second is negative wherever
    lambda and z know of each other. The weights of importance samples, p(x, z) r / (q q), are right on average too.

    Source: Ranganath, Tran, Blei 2016 (arXiv 1511.02386), sections 2-3; survey, section 2.6.3.
    """

    def __init__(self, config: AuxiliaryPosteriorConfig, latent: int) -> None:
        super().__init__()
        c, self.config, self.latent = config, config, latent
        self.of_context = begin(nn.Sequential(nn.SiLU(), nn.Linear(c.features, 2 * c.context)), "silu")  # q(lambda | x)
        self.of_z = answering(c.context, c.widths, 2 * latent, c.activation)  # q(z | lambda)
        self.back = answering(latent + c.features, c.widths, 2 * c.context, c.activation)  # r(lambda | z, x)

    def see(self, found: Tensor) -> tuple[Tensor, ...]:
        """The features, and mean and log-deviation of q(lambda | x)."""
        return found, *Gaussian.of(self.of_context(found))

    def draw(self, seen: tuple[Tensor, ...], draws: Draws) -> Coded:
        """One lambda each, and one z of it."""
        features, about = seen[0], Gaussian(*seen[1:])
        context = about.at(draws.normal(self.config.context))
        given = Gaussian.of(self.of_z(context))
        z = given.at(draws.normal(self.latent))
        guess = Gaussian.of(self.back(torch.cat([z, features], 1)))
        return Coded(z, given, about.log_prob(context) - guess.log_prob(context))

    def middle(self, seen: tuple[Tensor, ...]) -> Gaussian:
        """q(z | lambda) at the mean of q(lambda | x)."""
        return Gaussian.of(self.of_z(seen[1]))


PosteriorConfig = GaussianPosteriorConfig | AuxiliaryPosteriorConfig
