"""DRAW: a picture is painted in many steps, each of which looks at the picture and at what is still missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import given_codes
from ..core.model import Rectangles, Strip
from .filterbank import NUMBERS, Attention, covering, read, write
from .gaussian import Gaussian
from .likelihoods import BernoulliConfig, LikelihoodConfig
from .model import CodedModel, Draws, Latents, check_controls, refuse_doubly
from .objectives import ELBO, Inferred, ObjectiveConfig


@dataclass(frozen=True)
class DRAWConfig(Config):
    """Pictures, steps, networks, attention. The defaults are those of the paper for MNIST (table 3)."""

    image_size: int
    channels: int = 1
    glimpses: int = 64  # T: steps in which a picture is read and written
    hidden: int = 256  # neurons of each LSTM
    latent: int = 100  # dimensions of z_t
    read: int | None = 2  # N: N x N filters look at the picture; None: the encoder sees all of it, without attention
    write: int | None = 5  # N of the filters that write; None: the decoder writes all pixels, without attention
    likelihood: LikelihoodConfig = field(default_factory=BernoulliConfig)
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "glimpses", "hidden", "latent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("read", "write"):
            grid = getattr(self, name)
            if grid is not None and grid < 1:
                raise ConfigError(f"{name} is a number of filters, at least 1, or None for no attention, not {grid}")


class Reader(nn.Module):
    """What the encoder is shown, without attention: all pixels, as they are (Gregor et al. 2015, eq. 17)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.outputs = channels * size**2

    def forward(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Attention | None]:
        """(B, C, S, S) -> (B, C S S)."""
        return images.flatten(1), None


class AttentiveReader(nn.Module):
    """What the encoder is shown: N x N filters' answers, the decoder's last state saying where (eq. 21-27).

    All channels are read with the same filters (section 3.3 of the paper).
    """

    def __init__(self, channels: int, size: int, hidden: int, grid: int) -> None:
        super().__init__()
        self.grid, self.size, self.outputs = grid, size, channels * grid**2
        self.attention = nn.Linear(hidden, NUMBERS)
        self.attention.bias.data.copy_(covering(grid, size))

    def forward(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Attention | None]:
        """(B, C, S, S), and the state (B, hidden) -> (B, C N N)."""
        attention = Attention.of(self.attention(hidden), self.grid, self.size)
        return read(images, attention, self.grid).flatten(1), attention


class Writer(nn.Module):
    """What the decoder adds to the canvas, without attention: a linear layer's numbers for all pixels (eq. 18)."""

    def __init__(self, channels: int, size: int, hidden: int) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.pixels = nn.Linear(hidden, channels * size**2)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Attention | None]:
        """(B, hidden) -> (B, C, S, S)."""
        return self.pixels(hidden).unflatten(1, self.shape), None


class AttentiveWriter(nn.Module):
    """What the decoder adds to the canvas: a patch of N x N numbers for each channel, where it says (eq. 28-29)."""

    def __init__(self, channels: int, size: int, hidden: int, grid: int) -> None:
        super().__init__()
        self.grid, self.size, self.shape = grid, size, (channels, grid, grid)
        self.attention = nn.Linear(hidden, NUMBERS)
        self.attention.bias.data.copy_(covering(grid, size, write=True))
        self.patch = nn.Linear(hidden, channels * grid**2)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Attention | None]:
        """(B, hidden) -> (B, C, S, S)."""
        attention = Attention.of(self.attention(hidden), self.grid, self.size)
        return write(self.patch(hidden).unflatten(1, self.shape), attention, self.size), attention


class Step(NamedTuple):
    """Where the painting stands after a step."""

    canvas: Tensor  # c_t, (B, outputs, S, S)
    z: Tensor  # (B, latent)
    posterior: Gaussian | None  # q(z_t | h_enc_t), where a picture is seen
    read: Attention | None  # where there is attention
    write: Attention | None


class DRAW(CodedModel):
    """A recurrent variational autoencoder that paints on a canvas; survey, section 2.6.1, eq. 26.

        x_hat_t = x - E[x | c_{t-1}]                                what is missing
        r_t     = read(x, x_hat_t, h_dec_{t-1})
        h_enc_t = LSTM(h_enc_{t-1}, [r_t, h_dec_{t-1}])
        z_t     ~ q(z_t | h_enc_t) = N(mu(h_enc_t), sigma(h_enc_t)^2), or the prior N(0, I) where it generates
        h_dec_t = LSTM(h_dec_{t-1}, z_t)
        c_t     = c_{t-1} + write(h_dec_t)
        p(x | z_1 ... z_T) = p(x | c_T)

    The bound is ln p(x | c_T) - sum_t KL(q(z_t | h_enc_t) || N(0, I)), one group of KL for each step. The canvas c_0
    and the states at t = 0 are learned. For the likelihood of the paper, Bernoulli, E[x | c] is sigmoid(c), here scaled
    to [-1, 1] as pictures are; for any other likelihood the canvas has as many channels as it needs numbers.

    Source: Gregor et al. 2015 (arXiv 1502.04623), eq. 1-29.
    """

    config: DRAWConfig

    def __init__(self, config: DRAWConfig) -> None:
        """Raises `ConfigError` for the doubly reparameterised gradient: each z_t depends on those before it."""
        refuse_doubly(config.objective, "DRAW")
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config = config
        size, hidden, outputs = config.image_size, config.hidden, self.likelihood.outputs
        shown = 2 * config.channels  # x and x_hat
        self.reader: Reader | AttentiveReader = (
            Reader(shown, size) if config.read is None else AttentiveReader(shown, size, hidden, config.read)
        )
        self.encoder = nn.LSTMCell(self.reader.outputs + hidden, hidden)
        self.posterior = nn.Linear(hidden, 2 * config.latent)
        self.decoder = nn.LSTMCell(config.latent, hidden)
        self.writer: Writer | AttentiveWriter = (
            Writer(outputs, size, hidden)
            if config.write is None
            else AttentiveWriter(outputs, size, hidden, config.write)
        )
        self.canvas = nn.Parameter(torch.zeros(outputs, size, size))  # c_0
        self.states = nn.Parameter(torch.zeros(4, hidden))  # the encoder's h and cell at t = 0, then the decoder's

    def paint(self, noise: Tensor, images: Tensor | None = None) -> Iterator[Step]:
        """Each of the T steps in turn.

        noise   (B, T, latent): z of the prior; where there are pictures, z_t = mu_t + sigma_t noise_t
        images  (B, C, S, S), which the encoder sees; None: there is no encoder, as in generation
        """
        rows = len(noise)
        h_enc, c_enc, h_dec, c_dec = (state.expand(rows, -1) for state in self.states)
        canvas = self.canvas.expand(rows, -1, -1, -1)
        for epsilon in noise.unbind(1):
            posterior, looked, z = None, None, epsilon
            if images is not None:
                missing = images - self.likelihood.mean(canvas)
                glimpse, looked = self.reader(torch.cat([images, missing], 1), h_dec)
                h_enc, c_enc = self.encoder(torch.cat([glimpse, h_dec], 1), (h_enc, c_enc))
                posterior = Gaussian.of(self.posterior(h_enc))
                z = posterior.at(epsilon)
            h_dec, c_dec = self.decoder(z, (h_dec, c_dec))
            stroke, wrote = self.writer(h_dec)
            canvas = canvas + stroke
            yield Step(canvas, z, posterior, looked, wrote)

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """Nothing: what the encoder makes of a picture depends on the z drawn before."""
        return ()

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """One z_1 ... z_T each; the KL of a step in closed form, given the steps before."""
        steps = list(self.paint(draws.normal(self.config.glimpses, self.config.latent), batch.images))
        kl, log_ratio = [], torch.zeros_like(batch.images[:, 0, 0, 0])
        for step in steps:
            posterior = cast("Gaussian", step.posterior)
            kl.append(posterior.kl().sum(1))
            log_ratio = log_ratio + Gaussian.standard(step.z).log_prob(step.z) - posterior.log_prob(step.z)
        return Inferred(self.likelihood.log_prob(steps[-1].canvas, batch.images), torch.stack(kl, 1), log_ratio)

    @property
    def noise_shapes(self) -> list[tuple[int, ...]]:
        """That of z_1 ... z_T."""
        return [(self.config.glimpses, self.config.latent)]

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """c_T, the z_t from N(0, temperature^2 I)."""
        return self._last(temperature * draws.normal(self.config.glimpses, self.config.latent))

    @torch.no_grad()
    def latents(self, images: Tensor, *, seeds: int | Sequence[int] = 0) -> Latents:
        """Of all steps, one after the other, T latent dimensions.

        means  of each step where each z_t before is its mean
        kl     given one draw of the steps before (picture k with seed k), right on average
        """
        images = self.given(images).images
        draws = self.draws(PictureRandom(picture_seeds(len(images), seeds), images.device))
        noise = draws.normal(self.config.glimpses, self.config.latent)
        kl = [cast("Gaussian", step.posterior).kl() for step in self.paint(noise, images)]
        return Latents(self.encode(images).flatten(1), torch.cat(kl, 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The means of q(z_t | h_enc_t), each z_t before being its mean: (B, T, latent)."""
        images = self.given(images).images
        return torch.stack([step.z for step in self.paint(self._at_means(images), images)], 1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """E[x | c_T] of z (B, T, latent): (B, C, S, S) in [-1, 1]. Raises `ConfigError` for codes of another size."""
        given_codes(codes, self.config.glimpses, self.config.latent)
        return self.likelihood.mean(self._last(codes))

    def reconstruct(self, images: Tensor) -> Tensor:
        """E[x | c_T], each z_t being the mean of its posterior: (B, C, S, S) in [-1, 1]."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def strip(self, n: int, seeds: int | Sequence[int] = 0, temperature: float = 1.0) -> Strip:
        """E[x | c_t] of n pictures of the prior (survey, figure 7); the last are those of `sample`.

        Raises `ConfigError` for a temperature below 0.
        """
        check_controls("mean", temperature)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        noise = temperature * self.draws(random).normal(self.config.glimpses, self.config.latent)
        return self._strip(list(self.paint(noise)))

    @torch.no_grad()
    def trace(self, images: Tensor) -> Strip:
        """The same for pictures (n, C, S, S) that are reconstructed: where the model looks, too.

        Raises `ConfigError` for pictures of another kind.
        """
        images = self.given(images).images
        return self._strip(list(self.paint(self._at_means(images), images)))

    def _strip(self, steps: list[Step]) -> Strip:
        pictures = torch.stack([self.likelihood.mean(step.canvas) for step in steps])
        writes = _rectangles([step.write for step in steps], self.config.write)
        return Strip(pictures, writes, _rectangles([step.read for step in steps], self.config.read))

    def _last(self, z: Tensor) -> Tensor:
        """c_T."""
        canvas: Tensor = self.canvas
        for step in self.paint(z):
            canvas = step.canvas
        return canvas

    def _at_means(self, images: Tensor) -> Tensor:
        """Noise with which each z_t is its mean."""
        return images.new_zeros(len(images), self.config.glimpses, self.config.latent)


def _rectangles(attentions: list[Attention | None], grid: int | None) -> Rectangles | None:
    """Those of all steps, (T, n, ...); None where there are none."""
    found = [attention.rectangles(grid) for attention in attentions if attention is not None and grid is not None]
    return Rectangles(*(torch.stack(values) for values in zip(*found, strict=True))) if found else None
