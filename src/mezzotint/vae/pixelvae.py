"""PixelVAE: a code says what a picture is of, and a PixelCNN draws it pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..autoregressive.pixelcnn import PixelCNNConfig, one_channel, sample_pixels
from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.errors import ConfigError
from .gaussian import Gaussian
from .likelihoods import LogisticsConfig
from .model import Draws
from .objectives import Inferred
from .vae import VAE, VAEConfig


@dataclass(frozen=True)
class PixelVAEConfig(VAEConfig):
    """A VAE whose decoder ends in a PixelCNN.

    pixelcnn  the fewer its layers, the less of a picture it sees beside the pixel that it draws, and the more is left
              to the code to say (`PixelVAE.reach`)

    Raises `ConfigError` for colour pictures whose likelihood does not chain the channels of a pixel.
    """

    features: int = 16  # channels of the map that the code becomes
    pixelcnn: PixelCNNConfig = field(default_factory=lambda: PixelCNNConfig(24, 3, 5, 3, 32))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features < 1:
            raise ConfigError(f"features must be at least 1, not {self.features}")
        if not isinstance(self.likelihood, LogisticsConfig):
            one_channel(self.channels, self.likelihood.kind)


class PixelVAE(VAE):
    """The decoder's last part is autoregressive (survey, eq. 20-21):

        p(x | z) = prod_i p(x_i | x_1, ..., x_{i-1}, z),    z of N(0, I),

    with the posterior of a VAE. The code is upsampled to a map of the picture's size, which every layer of a gated
    PixelCNN is told. The PixelCNN alone could be all of p(x), and the code silent; but it sees only so far as its
    layers reach, and what it does not see of the picture it can only know of the code.

    Source: Gulrajani et al. 2016 (arXiv 1611.05013), of one level of latents.
    """

    config: PixelVAEConfig

    def __init__(self, config: PixelVAEConfig) -> None:
        super().__init__(config)
        self.decoder = config.network.decoder(config.latent, config.features, config.image_size)  # z -> map
        self.pixelcnn = config.pixelcnn.build(config.channels, self.likelihood.outputs, features=config.features)

    @property
    def reach(self) -> int:
        """How many rows up, and columns to each side, the PixelCNN sees."""
        c = self.config.pixelcnn
        return c.first_kernel // 2 + (c.layers - 1) * (c.kernel // 2)

    def numbers(self, images: Tensor, z: Tensor) -> Tensor:
        """What the p(x_i | x_<i, z) are made of, (B, outputs, H, W).

        images  (B, C, H, W)
        z       (B, latent)
        """
        return cast("Tensor", self.pixelcnn(images, features=self.decoder(z)))

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The numbers for the pixels of n pictures that are drawn for it, each of the pixels before it."""
        z = temperature * draws.normal(self.config.latent)
        return self.numbers(self.draw(z, draws.random), z)

    @torch.no_grad()
    def draw(self, z: Tensor, random: PictureRandom, cached: bool = True) -> Tensor:
        """x of p(x | z), pixel by pixel, (B, C, H, W) in [-1, 1].

        cached  see `sample_pixels`
        """
        size = (self.config.image_size, self.config.image_size)
        return sample_pixels(
            self.pixelcnn, self.likelihood.draw, size, random, features=self.decoder(z), cached=cached
        )  # fmt: skip

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
        pixels: str = "drawn",
    ) -> Tensor:
        """n pictures in [-1, 1] of z from the prior.

        temperature  of the prior's standard deviations
        pixels       "drawn": x from p(x | z); "mean": of the same picture, E[x_i | x_<i, z] of each pixel, as the paper
                     shows binary ones

        Raises `ConfigError` for another kind of pixels or a temperature below 0.
        """
        if pixels not in ("mean", "drawn"):
            raise ConfigError(f"pixels are 'mean' or 'drawn', not {pixels!r}")
        if temperature < 0:
            raise ConfigError(f"a temperature is 0 or more, not {temperature}")
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        z = temperature * Draws(random).normal(self.config.latent)
        images = self.draw(z, random)
        return images if pixels == "drawn" else self.likelihood.mean(self.numbers(images, z))

    def decode(self, codes: Tensor, seeds: int | Sequence[int] = 0) -> Tensor:
        """x of p(x | z), (B, C, H, W) in [-1, 1]: one of the many pictures that a code allows."""
        return self.draw(codes, PictureRandom(picture_seeds(len(codes), seeds), codes.device))

    def _weighed(self, batch: Batch, z: Tensor, posterior: Gaussian, at_z: Gaussian | None = None) -> Inferred:
        """See `VAE`; the PixelCNN sees the picture itself, all pixels at once."""
        log_likelihood = self.likelihood.log_prob(self.numbers(batch.images, z), batch.images)
        log_ratio = Gaussian.standard(z).log_prob(z) - (at_z or posterior).log_prob(z)
        return Inferred(log_likelihood, posterior.kl(), log_ratio)
