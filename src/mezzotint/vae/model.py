"""What every model with latent variables does alike: its losses, its bounds, its pictures, its diagnosis."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..autoregressive.choosing import check_temperature
from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.codes import slerp
from ..core.errors import ConfigError
from ..core.labels import given_codes, given_pictures, refuse, refuse_labels
from ..core.likelihood import Pixels
from ..core.model import Latents as Latents
from ..core.model import Losses, Model
from .likelihoods import Likelihood, check_pixels
from .objectives import Constrained, ImportanceWeighted, Inferred, Lagrangian, ObjectiveConfig

CHUNK = 50  # draws of z that go through the decoder together where a bound takes many
PICTURES = 20  # of which draws go through together then


class Draws:
    """Random numbers for K draws of each picture: row b K + k is draw k of picture b.

    dtype  of the normal numbers, which are drawn in float32; None: that
    """

    def __init__(self, random: PictureRandom, times: int = 1, dtype: torch.dtype | None = None) -> None:
        self.random, self.times, self.dtype = random, times, dtype

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, (B K, *shape)."""
        return self.random.normal(self.times, *shape).flatten(0, 1).to(dtype=self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), (B K, *shape)."""
        return self.random.uniform(self.times, *shape).flatten(0, 1)


class Replayed(Draws):
    """The numbers that were drawn before, (B, D), in place of chance."""

    def __init__(self, numbers: Tensor) -> None:
        self.left = numbers

    def normal(self, *shape: int) -> Tensor:
        """The next of them."""
        size = math.prod(shape)
        now, self.left = self.left[:, :size], self.left[:, size:]
        return now.unflatten(1, shape)


class VariationalModel(Model):
    """A model p(x | z) p(z) with a posterior q(z | x) to go with it.

    A subclass says how a picture is seen by its encoder (`recognise`), what one draw of z says of it (`infer`), and how
    z from the prior becomes numbers for pixels (`generate`); losses, bounds and pictures follow.

    likelihood  p(x | z), as `config.likelihood` says
    objective   what is minimised, as `config.objective` says
    """

    config: Any
    steps: Tensor

    def __init__(self, likelihood: Likelihood, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.likelihood, self.objective = likelihood, objective
        self.lagrangian = Lagrangian(objective) if isinstance(objective, Constrained) else None
        self.pixels: Pixels | None = likelihood.pixels
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the encoder makes of each picture, however many z are drawn after: tensors with B rows."""

    @abstractmethod
    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """Draw z from the posterior, and weigh it; all have as many rows as `seen`."""

    @abstractmethod
    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """Numbers for the pixels of n pictures, of z from the prior: (n, outputs, H, W)."""

    def given(self, images: Tensor) -> Batch:
        """A batch of pictures that somebody brings, (B, C, H, W). Raises `ConfigError` for those of another kind."""
        given_pictures(images, *self.picture)
        return Batch(images)

    @property
    def picture(self) -> tuple[int, int]:
        """Channels and size of a picture."""
        return self.config.channels, self.config.image_size

    @property
    def explained(self) -> int:
        """Of how many numbers of a picture the likelihood is."""
        channels, size = self.picture
        return channels * size**2

    def draws(self, random: PictureRandom, times: int = 1) -> Draws:
        """So many draws of each picture, in the precision of the networks."""
        return Draws(random, times, next(self.parameters()).dtype)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of the objective. Logged: "reconstruction", "kl" and "negative_elbo", nats per picture."""
        many, seen, draws = self._repeated(batch, batch.random(), self.objective.samples)
        return self._losses(self.infer(many, seen, draws), batch)

    def _losses(self, inferred: Inferred, batch: Batch) -> Losses:
        """What the objective makes of what was inferred of these pictures."""
        if self.lagrangian is not None:
            return self.lagrangian.losses(inferred, self.explained)
        assert not isinstance(self.objective, Constrained)
        return self.objective.losses(inferred, self.steps)

    def after_step(self, step: int) -> None:
        """Count the steps, by which weights of the terms rise; a constraint looks at how well it was met."""
        self.steps += 1
        if self.lagrangian is not None:
            self.lagrangian.after_step()

    @torch.no_grad()
    def elbo(self, images: Tensor, *, seeds: int | Sequence[int] = 0, samples: int = 1) -> Tensor:
        """A lower bound of ln p(x), nats, (B,): an unbiased estimate of L_K of Burda et al. 2016 (survey, eq. 25).

        images   (B, C, H, W), pixels as the likelihood knows them
        seeds    of the draws: picture k has seed k
        samples  K. 1: the evidence lower bound with the KL in closed form wherever there is one; with thousands, an
                 estimate of ln p(x) that is too small on average by little. Memory does not grow with K, nor
                 then with B

        Raises `ConfigError` for a K that is no whole number of at least 1, or pictures of another kind.
        """
        if not isinstance(samples, Integral) or isinstance(samples, bool) or samples < 1:
            raise ConfigError(f"a bound takes 1, 2, 3, ... samples of z, not {samples}")
        seeds = picture_seeds(len(images), seeds)
        if samples > 1 and len(images) > PICTURES:
            starts = range(0, len(images), PICTURES)
            parts = [(images[k : k + PICTURES], seeds[k : k + PICTURES]) for k in starts]
            return torch.cat([self.elbo(part, seeds=its, samples=samples) for part, its in parts])
        batch, random = self.given(images), PictureRandom(seeds, images.device)
        if samples == 1:
            many, seen, draws = self._repeated(batch, random, 1)
            return self.infer(many, seen, draws).elbo
        total = images.new_full((len(images),), -torch.inf, dtype=torch.float64)
        for done in range(0, samples, CHUNK):
            many, seen, draws = self._repeated(batch, random, min(CHUNK, samples - done))
            log_weights = self.infer(many, seen, draws).log_weight.unflatten(0, (len(images), -1))
            total = torch.logaddexp(total, torch.logsumexp(log_weights.double(), 1))
        return total - math.log(samples)

    @torch.no_grad()
    def divergence(self, images: Tensor, seeds: int | Sequence[int] = 0) -> Tensor:
        """KL(q || p) as the bound has it, nats, (B,): of the draw of seed k for picture k where it is an estimate."""
        batch, random = self.given(images), PictureRandom(picture_seeds(len(images), seeds), images.device)
        return self.infer(batch, self.recognise(batch), self.draws(random)).kl.sum(1)

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
    ) -> Tensor:
        """n pictures in [-1, 1] of z from the prior.

        temperature  of the prior's standard deviations
        pixels       "mean": E[x | z], as most papers show; "drawn": x from p(x | z), the model's own pictures

        Raises `ConfigError` for another kind of pixels, a temperature below 0, or labels, captions, a source or a
        mask, which say nothing to this model.
        """
        check_controls(pixels, temperature)
        refuse(captions=captions, mask=mask)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        numbers = self._asked(n, self.draws(random), temperature, labels, source)
        return self.likelihood.mean(numbers) if pixels == "mean" else self.likelihood.draw(numbers, random)

    def _asked(
        self, n: int, draws: Draws, temperature: float, labels: Tensor | None, source: Tensor | None
    ) -> Tensor:  # fmt: skip
        """The numbers for the pixels of what `sample` was asked for, where labels or a source may say more of it.

        Raises `ConfigError` where such things say nothing to the model.
        """
        refuse_labels(labels)
        refuse(source=source)
        return self.generate(n, draws, temperature)

    def _repeated(self, batch: Batch, random: PictureRandom, times: int) -> tuple[Batch, tuple[Tensor, ...], Draws]:
        """The batch and what is seen in it, each row `times` times in a row."""
        seen = self.recognise(batch)
        if times > 1:
            many: dict[str, Any] = {
                name: value.repeat_interleave(times, 0)
                for name, value in vars(batch).items()
                if isinstance(value, Tensor)
            }
            batch, seen = Batch(**many), tuple(part.repeat_interleave(times, 0) for part in seen)
        return batch, seen, self.draws(random, times)


class CodedModel(VariationalModel):
    """A model whose pictures are each made of standard normal numbers, their code: all that `generate` draws.

    That is z where p(z) = N(0, I). Where z is drawn in parts given each other, it is the numbers of which each part is
    made beside what came before, so that a change far up changes all that follows; it is then not what `encode` finds
    and `decode` takes, which is z itself.
    """

    @property
    @abstractmethod
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """Of what `generate` draws, in its order."""

    def codes(self, seeds: Sequence[int]) -> Tensor:
        """The numbers of the pictures that `sample` draws of these seeds, (B, D)."""
        draws = self.draws(PictureRandom(seeds, self.device))
        return torch.cat([draws.normal(*shape).flatten(1) for shape in self.noise_shapes], 1)

    @torch.no_grad()
    def from_codes(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x | z] of the z that these numbers make, (B, C, H, W) in [-1, 1].

        Raises `ConfigError` for labels, of which this model knows nothing, or another number of numbers.
        """
        refuse_labels(labels)
        given_codes(codes, sum(math.prod(shape) for shape in self.noise_shapes))
        return self.likelihood.mean(self.generate(len(codes), Replayed(codes.to(next(self.parameters())))))

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Along an arc: see `core.codes`."""
        return slerp(first, last, shares)


def check_controls(pixels: str, temperature: float) -> None:
    """Raises `ConfigError` where `sample` is asked for another kind of pixels, or a temperature that is none."""
    check_pixels(pixels)
    check_temperature(temperature)


def refuse_doubly(objective: ObjectiveConfig, what: str) -> None:
    """Raises `ConfigError` where a model whose z are drawn one from the other is to have that gradient."""
    if isinstance(objective, ImportanceWeighted) and objective.gradient == "doubly":
        raise ConfigError(f"the doubly reparameterised gradient is not known to {what}; set objective.gradient")
