"""Codes in groups, drawn one after the other from the coarsest to the finest: what all hierarchies do alike."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.errors import ConfigError
from ..core.labels import given_codes, refuse, refuse_labels
from .gaussian import Drawn, Gaussian
from .likelihoods import Likelihood
from .model import CodedModel, Draws, Latents, check_controls, refuse_doubly
from .objectives import Inferred, ObjectiveConfig


class Posterior(Protocol):
    """q(z_l | z_<l, x): a Gaussian, or what begins as one."""

    def draw(self, noise: Tensor, prior: Gaussian) -> Drawn:
        """z_l of standard normal noise, beside p(z_l | z_<l)."""


class Choose(Protocol):
    """Which z_l to go on with."""

    def __call__(self, group: int, prior: Gaussian, posterior: Posterior | None) -> Tensor:
        """z_l, of the prior's shape, given p(z_l | z_<l) and, where a picture is seen, q(z_l | z_<l, x)."""


class GroupedModel(CodedModel):
    """p(z) = prod_l p(z_l | z_<l) and q(z | x) = prod_l q(z_l | z_<l, x), each prior a vector or map of Gaussians.

    Both go down the same network, so that the bound is

        E_q[ln p(x | z)] - sum_l E_q[KL(q(z_l | z_<l, x) || p(z_l | z_<l))]      (survey, eq. 29-31)

    with each KL in closed form where the posterior is Gaussian, too. The survey counts its groups from the top, as is
    done here. A subclass says how one goes down (`descend`), given which z is taken in each group.

    shapes      of the groups from the first that is drawn to the last, (channels, height, width) or (dimensions,)
    by_channel  a column of `Inferred.kl` is a channel (or dimension) of a group, and no whole group
    """

    shapes: list[tuple[int, ...]]
    by_channel = False

    def __init__(self, likelihood: Likelihood, objective: ObjectiveConfig) -> None:
        super().__init__(likelihood, objective)
        refuse_doubly(objective, "a model whose codes are drawn in groups")

    @abstractmethod
    def descend(self, rows: int, seen: tuple[Tensor, ...] | None, choose: Choose) -> Tensor:
        """Numbers for the pixels of so many pictures, (rows, outputs, H, W); `seen` None: nothing but priors."""

    @property
    def groups(self) -> int:
        """L."""
        return len(self.shapes)

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One z each; the KL of each group given the groups above it as they were drawn."""
        numbers, drawn = self._follow(seen, draws.normal(self._width))
        kl = [_places(group.kl).sum(2) for group in drawn]
        columns = kl if self.by_channel else [one.sum(1, keepdim=True) for one in kl]
        log_ratio = torch.stack([group.log_ratio for group in drawn]).sum(0)
        return Inferred(self.likelihood.log_prob(numbers, batch.images), torch.cat(columns, 1), log_ratio)

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """That of all groups in one."""
        return [(self._width,)]

    def generate(self, n: int, draws: Draws, temperature: float = 1.0, layers: int | None = None) -> Tensor:
        """Numbers for the pixels, (n, outputs, H, W).

        temperature  of the standard deviations of every prior
        layers       so many groups are drawn, from the first; the others are at the mean of their prior given those
                     above. None: all are drawn
        """
        noise = self._split(draws.normal(self._width))
        drawn = self.groups if layers is None else layers

        def choose(group: int, prior: Gaussian, posterior: Posterior | None) -> Tensor:
            return prior.at(noise[group], temperature) if group < drawn else prior.mean

        return self.descend(n, None, choose)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        temperature: float = 1.0,
        pixels: str = "mean",
        layers: int | None = None,
    ) -> Tensor:
        """n pictures in [-1, 1] of z from the prior.

        temperature  of the prior's standard deviations
        pixels       "mean": E[x | z], as most papers show; "drawn": x from p(x | z), the model's own pictures
        layers       how many groups of z are drawn, 0 to all; those below are at the mean of their prior, given the
                     groups above. The same seed with more layers is the same picture with finer chance. None: all

        Raises `ConfigError` for another kind of pixels, a temperature below 0, or more layers than there are.
        """
        if layers is not None and not 0 <= layers <= self.groups:
            raise ConfigError(f"this model draws z in {self.groups} groups; layers is one of 0 ... {self.groups}")
        check_controls(pixels, temperature)
        refuse_labels(labels)
        refuse(captions=captions, source=source, mask=mask)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        numbers = self.generate(n, self.draws(random), temperature, layers)
        return self.likelihood.mean(numbers) if pixels == "mean" else self.likelihood.draw(numbers, random)

    @torch.no_grad()
    def latents(self, images: Tensor, *, seeds: int | Sequence[int] = 0) -> Latents:
        """For the diagnosis of collapse: a dimension is a channel of a group, (B, sum of channels).

        means  of each number of a group given those of the groups above it, (B, sum of sizes)
        kl     given one draw of the groups above (picture k with seed k), right on average, summed over positions
        """
        seen = self.recognise(self.given(images))
        random = PictureRandom(picture_seeds(len(images), seeds), images.device)
        _, drawn = self._follow(seen, self.draws(random).normal(self._width))
        kl = torch.cat([_places(group.kl).sum(2) for group in drawn], 1)
        places = torch.cat([torch.full(shape[:1], math.prod(shape[1:])) for shape in self.shapes])
        dimension = torch.arange(len(places)).repeat_interleave(places).to(kl.device)
        return Latents(self._means(seen), kl, dimension=dimension)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Each group without noise, its posterior's mean given those of the groups above: (B, sum of sizes).

        Where the posterior is a flow, it is what the flow makes of the mean that it begins with.
        """
        return self._means(self.recognise(self.given(images)))

    def _means(self, seen: tuple[Tensor, ...]) -> Tensor:
        """Each group without noise, (B, sum of sizes)."""
        still = next(self.parameters()).new_zeros(len(seen[0]), self._width)
        return torch.cat([group.z.flatten(1) for group in self._follow(seen, still)[1]], 1)

    def _follow(self, seen: tuple[Tensor, ...], noise: Tensor) -> tuple[Tensor, list[Drawn]]:
        """Down by the posteriors of what was seen: the numbers for the pixels, and each group.

        noise  standard normal, (B, sum of sizes)
        """
        parts, drawn = self._split(noise), list[Drawn]()

        def choose(group: int, prior: Gaussian, posterior: Posterior | None) -> Tensor:
            assert posterior is not None
            drawn.append(posterior.draw(parts[group], prior))
            return drawn[-1].z

        return self.descend(len(noise), seen, choose), drawn

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """E[x | z], (B, C, H, W) in [-1, 1]. Raises `ConfigError` for another number of dimensions."""
        given_codes(codes, self._width)
        z = self._split(codes)
        return self.likelihood.mean(self.descend(len(codes), None, lambda group, prior, posterior: z[group]))

    def reconstruct(self, images: Tensor) -> Tensor:
        """E[x | posterior means], (B, C, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))

    @property
    def _width(self) -> int:
        """Numbers in all groups."""
        return sum(math.prod(shape) for shape in self.shapes)

    def _split(self, flat: Tensor) -> list[Tensor]:
        """The groups of (B, sum of sizes)."""
        parts = flat.split([math.prod(shape) for shape in self.shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)]


def _places(values: Tensor) -> Tensor:
    """Of maps the positions of each channel, (B, C, H W); a number of a vector has one, (B, D, 1)."""
    return values.flatten(2) if values.dim() > 2 else values[..., None]


def halved(size: int, rate: int = 2) -> int:
    """A size after pooling; what does not fill a window is a window of its own."""
    return -(-size // rate)


def enlarged(x: Tensor, size: int) -> Tensor:
    """Each pixel repeated in a square, and what is beyond `size` cut away: (B, C, size, size); undoes `halved`."""
    rate = halved(size, x.shape[-1])
    x = x.repeat_interleave(rate, 2).repeat_interleave(rate, 3) if rate > 1 else x
    return x[:, :, :size, :size]
