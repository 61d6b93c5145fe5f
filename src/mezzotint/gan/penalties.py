"""What holds a discriminator's slope: clipping, and penalties on its gradient by the pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError

Critic = Callable[[Tensor], Tensor]  # pictures (B, ...) -> scores (B,)


def squared_slope(critic: Critic, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B,) at x and |grad_x D(x)|^2, (B,), which itself has a gradient by the critic's parameters."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        scores = critic(x)
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=torch.is_grad_enabled())
    return scores, gradient.square().flatten(1).sum(1)


@dataclass(frozen=True)
class NoPenalty(Config):
    """None."""

    kind: Literal["none"] = "none"
    every: ClassVar[int] = 1

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, progress: Tensor) -> Tensor | None:
        """None: there is nothing to add."""
        return None


@dataclass(frozen=True)
class Clipping(Config):
    """Every weight of the discriminator is held in [-bound, bound] each time that it has moved.

    Source: Arjovsky et al. 2017 (arXiv 1701.07875), algorithm 1. Raises `ConfigError` for a bound that is not above 0.
    """

    bound: float = 0.01
    kind: Literal["clipping"] = "clipping"
    every: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ConfigError(f"weights are held below a bound above 0, not {self.bound}")

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, progress: Tensor) -> Tensor | None:
        """None: what holds the slope is `clip`."""
        return None

    @torch.no_grad()
    def clip(self, discriminator: nn.Module) -> None:
        """Hold all weights within the bound."""
        for parameter in discriminator.parameters():
            parameter.clamp_(-self.bound, self.bound)


@dataclass(frozen=True)
class GradientPenalty(Config):
    """weight (|grad D(x^)| - 1)^2 at x^ = e x + (1 - e) G(z), e uniform on [0, 1].

    one_sided  only slopes above 1 are punished

    Source: Gulrajani et al. 2017 (arXiv 1704.00028), eq. 3; survey, Box 4.
    """

    weight: float = 10.0
    one_sided: bool = False
    every: int = 1  # it is taken in one of so many steps of both players, so many times as heavy
    kind: Literal["gradient"] = "gradient"

    def __post_init__(self) -> None:
        _check(self.weight, self.every)

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, progress: Tensor) -> Tensor:
        """The penalty of each picture, (B,).

        real, fake  (B, ...)
        mix         e, (B,)
        progress    share of the training that is done, ()
        """
        e = mix.view(-1, *[1] * (real.dim() - 1))
        slope = (squared_slope(critic, e * real + (1 - e) * fake)[1] + 1e-12).sqrt()
        excess = (slope - 1).clamp_min(0) if self.one_sided else slope - 1
        return self.weight * excess**2


@dataclass(frozen=True)
class ZeroCentred(Config):
    """gamma / 2 |grad D|^2 at real pictures (R1), at generated ones (R2), or at both.

    Source: Mescheder et al. 2018 (arXiv 1801.04406), eq. 9-10; survey, eq. 40-41. Lazily, at each `every`-th step and
    so many times as heavy: Karras et al. 2020 (arXiv 1912.04958), appendix B.
    """

    gamma: float = 10.0
    at: Literal["real", "fake", "both"] = "real"
    every: int = 1
    kind: Literal["zero-centred"] = "zero-centred"

    def __post_init__(self) -> None:
        _check(self.gamma, self.every)

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, progress: Tensor) -> Tensor:
        """See `GradientPenalty.__call__`."""
        total = torch.zeros(len(real), device=real.device)
        if self.at != "fake":
            total = total + squared_slope(critic, real)[1]
        if self.at != "real":
            total = total + squared_slope(critic, fake)[1]
        return self.gamma / 2 * total


@dataclass(frozen=True)
class Roth(Config):
    """gamma / 2 [(1 - D(x))^2 |grad phi(x)|^2 + D(G(z))^2 |grad phi(G(z))|^2], D = sigmoid(phi).

    What training with noise of variance gamma on all pictures amounts to, to first order.

    final  gamma falls to this share of itself over the training, geometrically

    Behind batch normalisation, which the authors' networks have, the slope is that of the sum of the batch's scores.

    Source: Roth et al. 2017 (arXiv 1705.09367), eq. 21 and algorithm 1; survey, reference [34].
    """

    gamma: float = 2.0
    final: float = 0.01
    every: int = 1
    kind: Literal["roth"] = "roth"

    def __post_init__(self) -> None:
        _check(self.gamma, self.every)
        if not 0 < self.final <= 1:
            raise ConfigError(f"gamma falls to a share of itself above 0 and up to 1, not {self.final}")

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, progress: Tensor) -> Tensor:
        """See `GradientPenalty.__call__`."""
        gamma = self.gamma * self.final**progress
        score, slope = squared_slope(critic, real)
        fake_score, fake_slope = squared_slope(critic, fake)
        return gamma / 2 * (torch.sigmoid(-score) ** 2 * slope + torch.sigmoid(fake_score) ** 2 * fake_slope)


PenaltyConfig = NoPenalty | Clipping | GradientPenalty | ZeroCentred | Roth


def _check(weight: float, every: int) -> None:
    if weight < 0:
        raise ConfigError(f"the weight of a penalty must not be negative, but it is {weight}")
    if every < 1:
        raise ConfigError(f"a penalty is taken at every step or every so many-th, not every {every}")
