"""The way down: groups of latents, each drawn given those above it, in the same way from prior and posterior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.errors import ConfigError
from .gaussian import Gaussian
from .likelihoods import Likelihood
from .model import Draws, Latents, VariationalModel
from .objectives import Inferred, ObjectiveConfig


class Drawn(NamedTuple):
    """One group z_l, drawn given the groups above it."""

    z: Tensor  # (B, ...)
    kl: Tensor  # KL(q(z_l | z_<l, x) || p(z_l | z_<l)) of each dimension, in closed form or sampled, nats, of z's shape
    log_ratio: Tensor  # ln p(z_l | z_<l) - ln q(z_l | z_<l, x) at z_l, nats, (B,)

    @classmethod
    def between(cls, posterior: Gaussian, prior: Gaussian, noise: Tensor, temperature: float = 1.0) -> Drawn:
        """From a Gaussian posterior; the KL in closed form."""
        z = posterior.at(noise, temperature)
        return cls(z, posterior.kl(prior), prior.log_prob(z) - posterior.log_prob(z))


class Level(nn.Module, ABC):
    """One group of latents: p(z_l | z_<l), q(z_l | z_<l, x), and what the groups below are told of it.

    What is above comes as one tensor, the state. A level looks at it, draws z_l, and makes the state that goes on; only
    where z_l comes from differs between inference and generation.
    """

    @abstractmethod
    def look(self, state: Tensor) -> tuple[Gaussian, tuple[Tensor, ...]]:
        """p(z_l | z_<l), and whatever else the level needs of what is above."""

    @abstractmethod
    def infer(
        self, prior: Gaussian, rest: tuple[Tensor, ...], seen: tuple[Tensor, ...], noise: Tensor, temperature: float
    ) -> Drawn:
        """Draw z_l from q(z_l | z_<l, x).

        prior, rest  the answer of `look`
        seen         what the bottom-up pass found in the picture for this level
        noise        standard normal, of z_l's shape
        temperature  of the noise
        """

    @abstractmethod
    def onward(self, state: Tensor, rest: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """The state of the level below."""

    def forward(
        self, state: Tensor, draws: Draws, seen: tuple[Tensor, ...] | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, Drawn]:
        """The state of the level below, and z_l: of the posterior where a picture was seen, else of the prior."""
        prior, rest = self.look(state)
        noise = draws.normal(*prior.mean.shape[1:]).to(prior.mean.dtype)
        if seen is None:
            drawn = Drawn.between(prior, prior, noise, temperature)
        else:
            drawn = self.infer(prior, rest, seen, noise, temperature)
        return self.onward(state, rest, drawn.z), drawn


class TopDownModel(VariationalModel):
    """A hierarchy p(x | z) p(z_1) p(z_2 | z_1) ... p(z_L | z_<L), whose posterior draws in the same order.

        q(z | x) = q(z_1 | x) q(z_2 | z_1, x) ... q(z_L | z_<L, x)          (survey, eq. 29-30)
        ELBO = E_q[ln p(x | z) - sum_l KL(q(z_l | z_<l, x) || p(z_l | z_<l))]          (survey, eq. 31)

    `Inferred.kl` has a column for each dimension of a group of vectors, and for each channel of a group of maps, summed
    over the map: the groups that free bits are given to. The survey counts its groups from the top, as is done here.

    levels  from the top
    """

    levels: nn.ModuleList

    def __init__(self, likelihood: Likelihood, objective: ObjectiveConfig, levels: list[Level]) -> None:
        super().__init__(likelihood, objective)
        self.levels = nn.ModuleList(levels)

    @abstractmethod
    def bottom_up(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """What is seen in pictures for each level, from the top; as many tensors for one level as for another."""

    @abstractmethod
    def start(self, n: int) -> Tensor:
        """The state above the top level, n rows."""

    @abstractmethod
    def finish(self, state: Tensor) -> Tensor:
        """Numbers for the pixels, of the state below the lowest level: (B, outputs, H, W)."""

    def descend(
        self, n: int, draws: Draws, seen: tuple[Tensor, ...] = (), temperature: float = 1.0
    ) -> tuple[Tensor, list[Drawn]]:
        """Numbers for the pixels of n pictures, and each group: of the prior, or of the posterior of what was seen."""
        state, drawn = self.start(n), []
        each = len(seen) // len(self.levels)
        for k, level in enumerate(self._levels()):
            state, group = level(state, draws, seen[k * each : (k + 1) * each] or None, temperature)
            drawn.append(group)
        return self.finish(state), drawn

    def _levels(self) -> Iterator[Level]:
        return (cast("Level", level) for level in self.levels)

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """The bottom-up pass."""
        return tuple(part for parts in self.bottom_up(batch.images) for part in parts)

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One z each, group after group."""
        numbers, drawn = self.descend(len(batch), draws, seen)
        kl = torch.cat([group.kl.flatten(2).sum(2) if group.kl.dim() > 2 else group.kl for group in drawn], 1)
        log_ratio = torch.stack([group.log_ratio for group in drawn]).sum(0)
        return Inferred(self.likelihood.log_prob(numbers, batch.images), kl, log_ratio)

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The way down, every group from its prior at this temperature."""
        return self.descend(n, draws, (), temperature)[0]

    @torch.no_grad()
    def latents(self, images: Tensor, *, seeds: int | Sequence[int] = 0) -> Latents:
        """Every dimension of every group, from the top.

        means  of each group given the means of those above it: z where no noise is added, (B, D)
        kl     given one draw of the groups above (picture k with seed k), which is right on average, (B, D)
        """
        drawn = self.descend(len(images), _draws(images, seeds), self.recognise(Batch(images)))[1]
        return Latents(self.encode(images), torch.cat([group.kl.flatten(1) for group in drawn], 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The means of all groups from the top, each given the means above it, (B, D)."""
        still = self.descend(len(images), _draws(images), self.recognise(Batch(images)), temperature=0.0)[1]
        return torch.cat([group.z.flatten(1) for group in still], 1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """E[x | z] of all groups from the top, (B, D) -> (B, C, H, W) in [-1, 1].

        Raises `ConfigError` for another number of dimensions.
        """
        state, left = self.start(len(codes)), codes
        for level in self._levels():
            prior, rest = level.look(state)
            size = prior.mean[0].numel()
            if left.shape[1] < size:
                break
            z, left = left[:, :size].reshape(prior.mean.shape), left[:, size:]
            state = level.onward(state, rest, z)
        else:
            if not left.shape[1]:
                return self.likelihood.mean(self.finish(state))
        raise ConfigError(f"the groups of this hierarchy do not have {codes.shape[1]} dimensions together")

    def reconstruct(self, images: Tensor) -> Tensor:
        """What is decoded of what is encoded, (B, C, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))


def _draws(images: Tensor, seeds: int | Sequence[int] = 0) -> Draws:
    return Draws(PictureRandom(picture_seeds(len(images), seeds), images.device))
