"""PixelVAE: a code says what a picture is of, and a PixelCNN draws it pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..autoregressive.pixelcnn import PixelCNNConfig, one_channel, sample_pixels
from ..core.batch import PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import given_codes, refuse, refuse_labels
from .likelihoods import LogisticsConfig
from .model import Draws, check_controls
from .networks import ConvConfig, MLPConfig, begin
from .vae import VAEConfig, VectorModel


@dataclass(frozen=True)
class PairsConfig(Config):
    """Pairs of 3 x 3 convolutions, the second of each with stride two, and a pair more at the end, all with ReLU.

    The decoder is the same from behind. The published networks for MNIST (the authors' training script).
    """

    widths: tuple[int, int, int, int] = (32, 32, 64, 64)
    kind: Literal["pairs"] = "pairs"

    def __post_init__(self) -> None:
        if min(self.widths) < 1:
            raise ConfigError(f"widths must be at least 1, not {self.widths}")

    @staticmethod
    def _sizes(image_size: int) -> list[int]:
        """Of the map at each level, halved and rounded up: 28, 14, 7, 4."""
        sizes = [image_size]
        for _ in range(3):
            sizes.append((sizes[-1] + 1) // 2)
        return sizes

    def encoder(self, channels: int, image_size: int, outputs: int) -> nn.Module:
        """(B, C, H, W) -> (B, outputs)."""
        a, b, c, d = self.widths
        layers: list[nn.Module] = []
        for before, after, stride in (
            (channels, a, 1), (a, b, 2), (b, b, 1), (b, c, 2), (c, c, 1), (c, d, 2), (d, d, 1), (d, d, 1)
        ):  # fmt: skip
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
        last = nn.Linear(d * self._sizes(image_size)[-1] ** 2, outputs)
        return begin(nn.Sequential(*layers, nn.Flatten(), last), "relu")

    def decoder(self, latent: int, outputs: int, image_size: int) -> nn.Module:
        """(B, latent) -> (B, outputs, H, W)."""
        a, b, c, d = self.widths
        full, half, quarter, eighth = self._sizes(image_size)
        layers: list[nn.Module] = [
            nn.Linear(latent, d * eighth**2), nn.Unflatten(1, (d, eighth, eighth)), nn.ReLU(),
            nn.Conv2d(d, d, 3, 1, 1), nn.ReLU(), nn.Conv2d(d, d, 3, 1, 1), nn.ReLU(),
        ]  # fmt: skip
        for before, after, last, size in ((d, c, c, quarter), (c, b, b, half), (b, a, outputs, full)):
            layers += [
                nn.ConvTranspose2d(before, after, 3, 2, 1, 1), nn.ReLU(), nn.Conv2d(after, last, 3, 1, 1), nn.ReLU(),
                Crop(size),
            ]  # fmt: skip
        return begin(nn.Sequential(*layers), "relu")


class Crop(nn.Module):
    """The upper left corner of a map."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size, size)."""
        return x[:, :, : self.size, : self.size]


@dataclass(frozen=True)
class PixelVAEConfig(VAEConfig):
    """A VAE whose decoder ends in a PixelCNN.

    features  channels of the map that the code becomes; 0: no map, every layer of the PixelCNN is told the code itself
    pixelcnn  the fewer its layers, the less of a picture it sees beside the pixel that it draws, and the more is left
              to the code to say (`PixelVAE.reach`)

    Raises `ConfigError` for colour pictures whose likelihood does not chain the channels of a pixel.
    """

    network: ConvConfig | MLPConfig | PairsConfig = field(default_factory=ConvConfig)  # type: ignore[assignment]
    features: int = 16
    pixelcnn: PixelCNNConfig = field(default_factory=lambda: PixelCNNConfig(24, 2, 7, 3, 32))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features < 0:
            raise ConfigError(f"features must not be negative, but they are {self.features}")
        if not isinstance(self.likelihood, LogisticsConfig):
            one_channel(self.channels, self.likelihood.kind)


class PixelVAE(VectorModel):
    """The decoder's last part is autoregressive (survey, eq. 20-21):

        p(x | z) = prod_i p(x_i | x_1, ..., x_{i-1}, z),

    with the prior and the posterior of a VAE. The code is upsampled to a map of the picture's size, and every layer of
    a gated PixelCNN is told the map, or the code as it is. The PixelCNN alone could be all of p(x), and the code
    silent; but it sees only as far as its layers reach, and what it does not see of the picture it can only know of
    the code.

    Source: Gulrajani et al. 2016 (arXiv 1611.05013), of one level of latents.
    """

    config: PixelVAEConfig

    def __init__(self, config: PixelVAEConfig) -> None:
        super().__init__(config)
        c, outputs = config, self.likelihood.outputs
        if c.features:
            self.decoder = c.network.decoder(c.latent, c.features, c.image_size)  # z -> map
            self.pixelcnn = c.pixelcnn.build(c.channels, outputs, features=c.features)
        else:
            self.decoder = nn.Identity()
            self.pixelcnn = c.pixelcnn.build(c.channels, outputs, vector=c.latent)

    @property
    def reach(self) -> int:
        """How many rows up, and columns to each side, the PixelCNN sees."""
        c = self.config.pixelcnn
        return c.first_kernel // 2 + (c.layers - 1) * (c.kernel // 2)

    def numbers(self, images: Tensor, z: Tensor) -> Tensor:
        """What the p(x_i | x_<i, z) are made of, (B, outputs, H, W), all pixels at once.

        images  x, (B, C, H, W)
        z       (B, latent)
        """
        return cast("Tensor", self.pixelcnn(images, *self._told(z)))

    def generate(self, n: int, draws: Draws, temperature: float = 1.0) -> Tensor:
        """The numbers for the pixels of n pictures that are drawn for it, each of the pixels before it."""
        z = self.prior.draw(draws, temperature)
        return self.numbers(self.draw(z, draws.random), z)

    @torch.no_grad()
    def draw(self, z: Tensor, random: PictureRandom, cached: bool = True) -> Tensor:
        """x of p(x | z), pixel by pixel, (B, C, H, W) in [-1, 1].

        cached  see `sample_pixels`
        """
        size = (self.config.image_size, self.config.image_size)
        vector, features = self._told(z)
        return sample_pixels(
            self.pixelcnn, self.likelihood.draw, size, random, vector=vector, features=features, cached=cached
        )  # fmt: skip

    def _told(self, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The vector and the map that the PixelCNN is told: one of them."""
        told = self.decoder(z)
        return (None, told) if self.config.features else (told, None)

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

        Raises `ConfigError` for another kind of pixels, a temperature below 0, or labels, captions, a source or a
        mask, which say nothing to this model.
        """
        check_controls(pixels, temperature)
        refuse_labels(labels)
        refuse(captions=captions, source=source, mask=mask)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        z = self.prior.draw(self.draws(random), temperature)
        images = self.draw(z, random)
        return images if pixels == "drawn" else self.likelihood.mean(self.numbers(images, z))

    def decode(self, codes: Tensor, seeds: int | Sequence[int] | None = None) -> Tensor:
        """x of p(x | z), (B, C, H, W) in [-1, 1]: one of the many pictures that a code allows.

        seeds  of the pixels; None: the same for every code, so that two pictures differ by their codes alone

        Raises `ConfigError` for codes of another size.
        """
        given_codes(codes, self.config.latent)
        seeds = [0] * len(codes) if seeds is None else seeds
        return self.draw(codes, PictureRandom(picture_seeds(len(codes), seeds), codes.device))
