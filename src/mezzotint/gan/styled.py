"""What generators with styles do alike: z becomes w, w a picture, and w may be drawn towards its mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.batch import PictureRandom, picture_seeds
from ..core.labels import choose_labels, refuse
from .layers import pixel_norm
from .model import GAN

NoiseMode = Literal["random", "const", "none"]


class StyledGAN(GAN):
    """A GAN whose generator is a mapping network and a synthesis network, with a style for each layer."""

    generator: Any  # with `mapping`, a `MappingNetwork`, and `synthesis`
    synthesise: Any  # pictures, not clipped, of w; a method of each subclass

    @property
    def styles(self) -> int:
        """How many vectors w a picture is made of."""
        styles: int = self.generator.synthesis.styles
        return styles

    def map(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """w, (B, width), of z, (B, latent), and labels, (B,)."""
        w: Tensor = self.generator.mapping(z, labels)
        return w

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """See `GAN.between`, of z scaled as the mapping scales it, so that directions turn evenly."""
        return super().between(pixel_norm(first), pixel_norm(last), shares)

    def after_step(self, step: int) -> None:
        """Move the mean of w."""
        super().after_step(step)
        self.generator.mapping.follow(int(self.moves))

    def drawn_styles(
        self,
        n: int,
        labels: Tensor | Sequence[int] | None,
        random: PictureRandom,
        truncation: float = 1.0,
        cutoff: int | None = None,
    ) -> Tensor:
        """w of each layer, (n, styles, width), of n pictures; see `MappingNetwork.truncate`."""
        wanted = choose_labels(n, labels, self.config.classes, random)
        w = self.map(self.draw(random), wanted)[:, None].expand(-1, self.styles, -1)
        return self.generator.mapping.truncate(w, truncation, cutoff)  # type: ignore[no-any-return]


class NoisyStyledGAN(StyledGAN):
    """Whose layers see noise besides: StyleGAN and StyleGAN 2."""

    def noise(self, random: PictureRandom) -> Tensor:
        """Fresh noise for all layers, (B, numbers of noise)."""
        return random.normal(self.generator.synthesis.noises)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | Sequence[int] | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        truncation: float = 1.0,
        cutoff: int | None = None,
        noise: NoiseMode = "random",
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32; picture k depends on seed k (and label k) alone.

        truncation  psi: 1 for all variety, less for better pictures that differ less, 0 for the mean one
        cutoff      so many layers, the coarsest, are truncated; None: all
        noise       "random": of each picture's seed; "const": always the same; "none"

        Raises `ConfigError` for a label out of range or another mode of noise.
        """
        refuse(captions=captions, source=source, mask=mask)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        ws = self.drawn_styles(n, labels, random, truncation, cutoff)
        images: Tensor = self.synthesise(ws, self.noise(random) if noise == "random" else noise)
        return images.float().clamp(-1, 1)
