"""Autoencoders before the variational one: plain, denoising, and denoising as a Markov chain that draws pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import given_codes, given_pictures, refuse, refuse_labels
from ..core.likelihood import Pixels
from ..core.model import Losses, Model
from .likelihoods import LikelihoodConfig, LogisticsConfig, check_pixels
from .networks import ConvConfig, MLPConfig, begin

REMEMBERED = 0.99  # of what was known of the codes, how much is left after a step


# Networks and corruptions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneLayerConfig(Config):
    """The networks of the first papers: the code is the only hidden layer.

    z = s(W x + b),    x_hat = W' z + b'
    """

    activation: Literal["sigmoid", "tanh"] = "sigmoid"  # s
    kind: Literal["one-layer"] = "one-layer"

    def encoder(self, channels: int, image_size: int, outputs: int) -> nn.Module:
        """(B, C, H, W) -> (B, outputs)."""
        squash = nn.Sigmoid() if self.activation == "sigmoid" else nn.Tanh()
        return begin(nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, outputs), squash), "tanh")

    def decoder(self, latent: int, outputs: int, image_size: int) -> nn.Module:
        """(B, latent) -> (B, outputs, H, W)."""
        shape = nn.Unflatten(1, (outputs, image_size, image_size))
        return begin(nn.Sequential(nn.Linear(latent, outputs * image_size**2), shape), "tanh")


CoderNetwork = ConvConfig | MLPConfig | OneLayerConfig


@dataclass(frozen=True)
class GaussianCorruption(Config):
    """x + level noise; the level is a standard deviation, of pixels in [-1, 1]. Vincent et al. 2010."""

    level: float = 0.5
    kind: Literal["gaussian"] = "gaussian"

    def __post_init__(self) -> None:
        if not self.level > 0:
            raise ConfigError(f"the standard deviation of a corruption must be above 0, not {self.level}")

    def corrupt(self, images: Tensor, random: PictureRandom) -> Tensor:
        """x~ of C(x~ | x), (B, C, H, W)."""
        return images + self.level * random.normal(*images.shape[1:])


@dataclass(frozen=True)
class MaskingCorruption(Config):
    """The same number of components of each picture, level of them all, are black. Vincent et al. 2008."""

    level: float = 0.25  # nu
    kind: Literal["masking"] = "masking"

    def __post_init__(self) -> None:
        _check_share(self.level)

    def corrupt(self, images: Tensor, random: PictureRandom) -> Tensor:
        """x~ of C(x~ | x), (B, C, H, W)."""
        masked = round(self.level * images[0].numel())
        chosen = random.uniform(images[0].numel()).argsort(1)[:, :masked]  # (B, nu D)
        return images.flatten(1).scatter(1, chosen, -1.0).view_as(images)


@dataclass(frozen=True)
class SaltAndPepper(Config):
    """Each component, with a chance of level, is black or white, equally likely. Vincent et al. 2010."""

    level: float = 0.4
    kind: Literal["salt-and-pepper"] = "salt-and-pepper"

    def __post_init__(self) -> None:
        _check_share(self.level)

    def corrupt(self, images: Tensor, random: PictureRandom) -> Tensor:
        """x~ of C(x~ | x), (B, C, H, W)."""
        u = random.uniform(*images.shape[1:])
        return images.masked_fill(u < self.level / 2, -1.0).masked_fill(u >= 1 - self.level / 2, 1.0)


CorruptionConfig = MaskingCorruption | GaussianCorruption | SaltAndPepper


def _check_share(level: float) -> None:
    if not 0 < level <= 1:
        raise ConfigError(f"the share of components that are corrupted is above 0 and at most 1, not {level}")


def _check_latent(latent: int) -> None:
    if latent < 1:
        raise ConfigError(f"a code has at least 1 dimension, not {latent}")


# The autoencoder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Pictures, code, networks, and what is minimised."""

    image_size: int
    channels: int = 1
    latent: int = 32  # d, dimensions of z
    network: CoderNetwork = field(default_factory=ConvConfig)
    error: Literal["squared", "cross-entropy"] = "squared"  # see `Coder.error`

    def __post_init__(self) -> None:
        _check_latent(self.latent)


class Coder(Model):
    """z = f(x), x_hat = g(z); survey, eq. 1."""

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.network.encoder(config.channels, config.image_size, config.latent)
        self.decoder = config.network.decoder(config.latent, config.channels, config.image_size)

    def error(self, numbers: Tensor, images: Tensor) -> Tensor:
        """How far the decoder's answer is from the picture, summed over channels and pixels, (B,).

        squared        |x - x_hat|^2 of pixels in [-1, 1]; the answer is x_hat (survey, eq. 2)
        cross-entropy  -sum y ln y_hat + (1 - y) ln(1 - y_hat) of pixels y = (x + 1) / 2 in [0, 1], nats; the answer is
                       logit(y_hat) (Vincent et al. 2008)

        numbers  (B, C, H, W)
        images   (B, C, H, W) in [-1, 1]
        """
        if self.config.error == "squared":
            return (images - numbers).square().flatten(1).sum(1)
        errors = F.binary_cross_entropy_with_logits(numbers, (images + 1) / 2, reduction="none")
        return errors.flatten(1).sum(1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """f(x), (B, latent). Raises `ConfigError` for pictures of another kind."""
        given_pictures(images, self.config.channels, self.config.image_size)
        codes: Tensor = self.encoder(images)
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """g(z), (B, C, H, W) in [-1, 1]. Raises `ConfigError` for codes of another size."""
        given_codes(codes, self.config.latent)
        numbers: Tensor = self.decoder(codes)
        return numbers.clamp(-1, 1) if self.config.error == "squared" else torch.tanh(numbers / 2)

    def reconstruct(self, images: Tensor) -> Tensor:
        """g(f(x)), (B, C, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))


class Autoencoder(Coder):
    """min E |x - g(f(x))|^2; survey, eq. 1-2.

    Nothing says where codes lie, so that a random one need not be the code of any picture. To sample all the same, the
    mean and the covariance of the codes are gathered while it learns, and kept with the weights: the Gaussian nearest
    to them is the best that can be done for random codes without asking anything of training. It knows nothing of the
    holes between codes.

    Source: Rumelhart, Hinton and Williams 1986 (Nature 323).
    """

    code_mean: Tensor
    code_covariance: Tensor
    code_weight: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.register_buffer("code_mean", torch.zeros(config.latent))
        self.register_buffer("code_covariance", torch.eye(config.latent))
        self.register_buffer("code_weight", torch.zeros(()))  # pictures behind both, old ones counted less
        self._sums: tuple[Tensor, ...] | None = None  # of this step's codes: how many, sum z, sum z z^T

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The mean error of a picture."""
        codes = self.encoder(batch.images)
        if self.training:
            self._look_at(codes.detach())
        error = self.error(self.decoder(codes), batch.images).mean()
        return Losses(error, {"reconstruction": error.detach()})

    def after_step(self, step: int) -> None:
        """Move mean and covariance towards those of this step's codes, those of all processes.

        By codes that are no numbers, they stay.
        """
        if self._sums is None:
            return
        sums, self._sums = self._sums, None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for value in sums:
                torch.distributed.all_reduce(value)
        count, total, squares = sums
        if not squares.isfinite().all():
            return
        covariance = squares / count - torch.outer(total, total) / count**2  # as exact as the sums are
        count, mean, covariance = (
            value.to(self.code_mean.dtype).to(self.code_mean.device) for value in (count, total / count, covariance)
        )
        weight = REMEMBERED * self.code_weight + count
        rate, away = count / weight, mean - self.code_mean
        self.code_covariance += rate * (covariance - self.code_covariance)
        self.code_covariance += rate * (1 - rate) * torch.outer(away, away)
        self.code_mean += rate * away
        self.code_weight.copy_(weight)

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
        codes: str = "fitted",
    ) -> Tensor:
        """n pictures in [-1, 1] of random codes.

        codes  "fitted": from the Gaussian with the mean and covariance of the codes of training pictures; "standard":
               from N(0, I), which knows nothing of them

        Raises `ConfigError` for other codes, or labels, captions, a source or a mask, which say nothing to it.
        """
        refuse_labels(labels)
        refuse(captions=captions, source=source, mask=mask)
        if codes not in ("fitted", "standard"):
            raise ConfigError(f"codes are 'fitted' or 'standard', not {codes!r}")
        return self.decode(self.random_codes(PictureRandom(picture_seeds(n, seeds), self.device), codes == "fitted"))

    def random_codes(self, random: PictureRandom, fitted: bool = True) -> Tensor:
        """One code for each row of `random`, (B, latent)."""
        noise = random.normal(self.config.latent).to(self.code_mean)
        if not fitted:
            return noise
        variances, axes = torch.linalg.eigh(self.code_covariance)
        root = axes * variances.clamp_min(0).sqrt() @ axes.T  # the symmetric one, the same on every machine
        return self.code_mean + noise @ root

    def _look_at(self, codes: Tensor) -> None:
        z = codes.double().cpu() if codes.device.type == "mps" else codes.double()
        found = (z.new_tensor(float(len(z))), z.sum(0), z.T @ z)
        self._sums = found if self._sums is None else tuple(a + b for a, b in zip(self._sums, found))


# The denoising autoencoder --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenoisingAutoencoderConfig(AutoencoderConfig):
    """An autoencoder, and how its pictures are spoiled."""

    corruption: CorruptionConfig = field(default_factory=MaskingCorruption)


class DenoisingAutoencoder(Coder):
    """The picture is to be found again from a spoiled copy: min E L(x, g(f(x~))), x~ of C(x~ | x).

    So that the code is one of what pictures have in common, and not the pixels once more. It draws no pictures.
    Source: Vincent et al. 2008; survey, section 2.
    """

    config: DenoisingAutoencoderConfig

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The mean error of a picture, of which only a corrupted copy was seen."""
        corrupted = self.config.corruption.corrupt(batch.images, batch.random())
        error = self.error(self.decoder(self.encoder(corrupted)), batch.images).mean()
        return Losses(error, {"reconstruction": error.detach()})

    def corrupt(self, images: Tensor, seeds: int | Sequence[int] = 0) -> Tensor:
        """What training would show of these pictures, for `reconstruct` to undo: (B, C, H, W)."""
        return self.config.corruption.corrupt(images, PictureRandom(picture_seeds(len(images), seeds), images.device))


# The denoising autoencoder as a sampler -------------------------------------------------------------------------------


@dataclass(frozen=True)
class GenerativeDAEConfig(Config):
    """Pictures, code, networks, P(X | X~), C(X~ | X), walkback, and how long the chain goes on.

    walkback  p, the chance that a walk away from the picture goes on; 0: no walkback, only the first corruption
    longest   states of a walk at the most, so that with p = 1 every walk has as many
    steps     of the chain that draws
    """

    image_size: int
    channels: int = 1
    latent: int = 128
    network: CoderNetwork = field(default_factory=ConvConfig)
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    corruption: CorruptionConfig = field(default_factory=SaltAndPepper)
    walkback: float = 0.5
    longest: int = 20
    steps: int = 50

    def __post_init__(self) -> None:
        _check_latent(self.latent)
        if not 0 <= self.walkback <= 1:
            raise ConfigError(f"walkback is the chance that a walk goes on, from 0 to 1, not {self.walkback}")
        for name in ("longest", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


class State(NamedTuple):
    """One step of the chain."""

    corrupted: Tensor  # X~ of C(X~ | X) with X of the step before, (B, C, H, W)
    numbers: Tensor  # what the decoder says of P(X | X~), (B, outputs, H, W)
    images: Tensor  # X of it, (B, C, H, W)


class Trace(NamedTuple):
    """The chains of n pictures, S states of each."""

    corrupted: Tensor  # X~, (n, S, C, H, W)
    images: Tensor  # E[X | X~], (n, S, C, H, W) in [-1, 1]


class GenerativeDAE(Model):
    """A denoising autoencoder with a conditional distribution P(X | X~), of which a Markov chain draws pictures:

        X~_t of C(X~ | X_{t-1}),    X_t of P(X | X~_t)

    Where P(X | X~) is that of the data, their distribution is the chain's own, and the chain forgets where it began
    (Bengio et al. 2013, arXiv 1305.6663, theorem 1). P here has independent pixels, given X~; the data's has them only
    as far as the corruption is small.

    Trained on one step from each picture, P knows nothing of places to which the chain goes by its own mistakes. With
    walkback each picture is corrupted and denoised as the chain would do it, for a random number of steps, and is to be
    found again from every X~ on the way (the walkback algorithm).

    Source: Bengio et al. 2013; survey, section 2.
    """

    config: GenerativeDAEConfig

    def __init__(self, config: GenerativeDAEConfig) -> None:
        super().__init__()
        self.config = config
        self.likelihood = config.likelihood.build(config.channels)
        self.pixels: Pixels | None = self.likelihood.pixels
        self.encoder = config.network.encoder(config.channels, config.image_size, config.latent)
        self.decoder = config.network.decoder(config.latent, self.likelihood.outputs, config.image_size)

    def numbers(self, corrupted: Tensor) -> Tensor:
        """What P(X | X~) is made of, (B, outputs, H, W)."""
        answer: Tensor = self.decoder(self.encoder(corrupted))
        return answer

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """-ln P(X | X~), nats, summed over the walk of a picture, its mean over pictures.

        Logged: "reconstruction", that of the walks' first states alone, and "walk", how many states a walk had.
        """
        x, random = batch.images, batch.random()
        walking, current = torch.arange(len(x), device=x.device), x  # rows whose walk goes on, and where it is
        misses: list[Tensor] = []
        while True:
            numbers = self.numbers(self.config.corruption.corrupt(current, random))
            misses.append(-self.likelihood.log_prob(numbers, x[walking]))
            on = (random.uniform() < self.config.walkback).nonzero().flatten()
            if not len(on) or len(misses) == self.config.longest:
                break
            walking, random = walking[on], _rows(random, on.tolist())
            with torch.no_grad():  # X* is an example, through which nothing is learned
                current = self.likelihood.draw(numbers[on], random)
        states = sum(len(part) for part in misses)
        total = torch.cat(misses).sum() / len(x)
        parts = {"reconstruction": misses[0].detach().mean(), "walk": total.new_tensor(states / len(x))}
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def chain(self, images: Tensor, random: PictureRandom) -> Iterator[State]:
        """Every state of the chains that begin at these pictures, without end."""
        while True:
            corrupted = self.config.corruption.corrupt(images, random)
            numbers = self.numbers(corrupted)
            images = self.likelihood.draw(numbers, random)
            yield State(corrupted, numbers, images)

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
        steps: int | None = None,
        pixels: str = "mean",
    ) -> Tensor:
        """n pictures in [-1, 1], the last states of n chains.

        source  where the chains begin, (n, C, H, W); None: at noise
        steps   of the chain; None: as many as the config says
        pixels  "mean": E[X | X~] of the last step, as the paper shows; "drawn": X from P(X | X~), the chain's own state

        Raises `ConfigError` for another kind of pixels, no steps, a source of another shape, or labels.
        """
        refuse_labels(labels)
        refuse(captions=captions, mask=mask)
        check_pixels(pixels)
        state = self._walk(n, source, seeds, steps)[-1]
        return self.likelihood.mean(state.numbers) if pixels == "mean" else state.images

    @torch.no_grad()
    def trace(
        self,
        n: int,
        *,
        source: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        steps: int | None = None,
        every: int = 1,
    ) -> Trace:
        """The way of the same n chains as those of `sample`.

        every  steps between two states that are kept; the last is always one of them

        Raises `ConfigError` for no steps, or a source of another shape.
        """
        states = self._walk(n, source, seeds, steps, every)
        return Trace(
            torch.stack([state.corrupted for state in states], 1),
            torch.stack([self.likelihood.mean(state.numbers) for state in states], 1),
        )

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """E[X | X~] of a corrupted picture, (B, C, H, W) in [-1, 1]."""
        return self.likelihood.mean(self.numbers(images))

    def _walk(
        self, n: int, source: Tensor | None, seeds: int | Sequence[int], steps: int | None, every: int | None = None
    ) -> list[State]:
        """Every so many states of a chain up to the last one; only that where nothing is said."""
        steps = self.config.steps if steps is None else steps
        every = steps if every is None else every
        if steps < 1 or every < 1:
            raise ConfigError(f"a chain has at least 1 step, not {min(steps, every)}")
        c = self.config
        shape = (c.channels, c.image_size, c.image_size)
        if source is not None and source.shape != (n, *shape):
            raise ConfigError(f"{n} chains begin at {n} pictures, {(n, *shape)}, not {tuple(source.shape)}")
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        if source is None:
            begin = (2 * random.uniform(*shape) - 1).to(next(self.parameters()))
            begin = begin.sign() if self.pixels == "binary" else begin
        else:
            begin = source.to(self.device)
        kept: list[State] = []
        for number, state in enumerate(islice(self.chain(begin, random), steps), 1):
            if (steps - number) % every == 0:
                kept.append(state)
        return kept


def _rows(random: PictureRandom, rows: Sequence[int]) -> PictureRandom:
    """The random numbers of some pictures of a batch, which go on where they are."""
    some = PictureRandom((), random.device)
    some.generators = [random.generators[row] for row in rows]
    return some
