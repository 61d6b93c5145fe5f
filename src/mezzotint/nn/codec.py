"""The convolutional codec of VQGAN and latent diffusion: a UNet's way down, and its way up, with nothing between them.

`nn.published_codec` loads weights that others have published.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError
from .attention import Attention
from .blocks import Downsample, ResBlock, Upsample
from .unet import Level

EPS = 1e-6  # of every group normalisation


@dataclass(frozen=True)
class CodecConfig(Config):
    """The architecture, independent of the pictures. The defaults are those of latent diffusion's f = 8.

    Raises `ConfigError` for what cannot be.
    """

    channels: int = 128  # width of the finest level
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # width of each level, in units of `channels`
    blocks: int = 2  # residual blocks per level of the encoder; one more in the decoder
    attention: tuple[bool, ...] = (False, False, False, False)  # per level: attention after each block
    middle_attention: bool = True  # between the two blocks at the coarsest level
    groups: int = 32  # of every group normalisation
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ConfigError("multipliers is empty; give one for each level")
        if len(self.attention) != len(self.multipliers):
            raise ConfigError(
                f"attention has {len(self.attention)} entries for {len(self.multipliers)} levels; give one for each"
            )
        for name in ("channels", "blocks", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.multipliers) < 1:
            raise ConfigError(f"multipliers must be at least 1 each, not {', '.join(map(str, self.multipliers))}")
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(f"{self.groups} groups do not divide a level of {width} channels; change groups")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, not {self.dropout}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def factor(self) -> int:
        """f: a picture is so many times as high and as wide as its code."""
        return int(2 ** (len(self.multipliers) - 1))

    def encoder(self, channels: int, outputs: int) -> Encoder:
        """A new encoder, (B, channels, H, W) -> (B, outputs, H/f, W/f)."""
        return Encoder(self, channels, outputs)

    def decoder(self, inputs: int, channels: int) -> Decoder:
        """A new decoder, (B, inputs, h, w) -> (B, channels, f h, f w)."""
        return Decoder(self, inputs, channels)

    def level(self, i: int, before: int, blocks: int, resample: nn.Module | None) -> Level:
        """So many residual blocks of level i, the first of which sees `before` channels."""
        width = self.widths[i]
        layers = [self._block(width if k else before, width) for k in range(blocks)]
        return Level(layers, [self._attention(width, self.attention[i]) for _ in layers], resample)

    def middle(self) -> Level:
        """Two residual blocks of the coarsest level, and attention."""
        width = self.widths[-1]
        attention = self._attention(width, self.middle_attention)
        return Level([self._block(width, width) for _ in range(2)], [attention], None)

    def _block(self, before: int, width: int) -> ResBlock:
        return ResBlock(before, width, groups=self.groups, eps=EPS, dropout=self.dropout)

    def _attention(self, width: int, has: bool) -> nn.Module:
        return Attention(width, groups=self.groups, eps=EPS) if has else nn.Identity()


class Encoder(nn.Module):
    """From a picture down through the levels: a map of numbers, f times smaller.

    config
    channels  of the picture
    outputs   of the map: of a codebook's vectors, or twice the latent channels for means and log-variances

    The strided convolutions see zeros to the right and below only. Source: Esser et al. 2021 (arXiv 2012.09841);
    Rombach et al. 2022 (arXiv 2112.10752).
    """

    def __init__(self, config: CodecConfig, channels: int, outputs: int) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down = nn.ModuleList(
            config.level(
                i, widths[max(i - 1, 0)], config.blocks, Downsample(width, padding=0) if i < last else None
            )
            for i, width in enumerate(widths)
        )  # fmt: skip
        self.middle = config.middle()
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, outputs, H/f, W/f).

        Raises `ConfigError` for a height or width that f does not divide.
        """
        if x.shape[2] % (f := self.config.factor) or x.shape[3] % f:
            raise ConfigError(f"pictures of {x.shape[2]} x {x.shape[3]} pixels cannot be made {f} times smaller; use "
                              "multiples of it")  # fmt: skip
        h = self.conv_in(x)
        for level in cast("Iterable[Level]", self.down):
            h = through(level, h)
        h = through_middle(self.middle, h)
        return cast("Tensor", self.conv_out(F.silu(self.norm_out(h))))


class Decoder(nn.Module):
    """From a map of numbers up through the levels: a picture, f times larger.

    config
    inputs    channels of the map
    channels  of the picture, or what a likelihood wants for each pixel

    Source: as `Encoder`.
    """

    def __init__(self, config: CodecConfig, inputs: int, channels: int) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        self.conv_in = nn.Conv2d(inputs, widths[-1], 3, padding=1)
        self.middle = config.middle()
        self.up = nn.ModuleList(
            config.level(
                i, widths[min(i + 1, len(widths) - 1)], config.blocks + 1, Upsample(widths[i]) if i else None
            )
            for i in reversed(range(len(widths)))
        )  # fmt: skip
        self.norm_out = nn.GroupNorm(config.groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, channels, f h, f w)."""
        h = through_middle(self.middle, self.conv_in(z))
        for level in cast("Iterable[Level]", self.up):
            h = through(level, h)
        return cast("Tensor", self.conv_out(F.silu(self.norm_out(h))))


def through(level: Level, h: Tensor) -> Tensor:
    """The blocks of a level, which know no time, and the way to the next one."""
    for block, attention in level.pairs():
        h = attention(block(h))
    return h if level.resample is None else cast("Tensor", level.resample(h))


def through_middle(middle: Level, h: Tensor) -> Tensor:
    """Block, attention, block."""
    first, second = middle.blocks
    return cast("Tensor", second(middle.attentions[0](first(h))))


class Codec(nn.Module):
    """Encoder and decoder, with what stands between them in published models.

    config
    channels  of the picture
    latent    channels of the map that the decoder is given
    moments   whether the encoder answers means and log-variances, 2 latent channels in all ("AutoencoderKL")
    codes     how many vectors a codebook has, which a quantiser may take ("VQModel"); 0: there is none
    width     channels of the map between: of a codebook's vectors; None: `latent`
    before    whether a 1x1 convolution follows the encoder; what it answers is the map between
    after     whether a 1x1 convolution leads from there to the decoder

    Raises `ConfigError` for what does not fit together.
    """

    codebook: Tensor | None

    def __init__(
        self,
        config: CodecConfig,
        channels: int,
        latent: int,
        *,
        moments: bool = False,
        codes: int = 0,
        width: int | None = None,
        before: bool = True,
        after: bool = True,
    ) -> None:
        super().__init__()
        width = width or latent
        if width != latent and not (before and after):
            raise ConfigError(f"without its 1x1 convolutions a codec of {latent} channels has no map of {width}")
        double = 2 if moments else 1
        self.config, self.moments = config, moments
        self.encoder = config.encoder(channels, double * latent)
        self.before = nn.Conv2d(double * latent, double * width, 1) if before else nn.Identity()
        self.codebook = nn.Parameter(torch.randn(codes, width) * width**-0.5) if codes else None  # (K, width)
        self.after = nn.Conv2d(width, latent, 1) if after else nn.Identity()
        self.decoder = config.decoder(latent, channels)

    def encode(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, width, H/f, W/f); with moments, twice as many: means, then log-variances."""
        return cast("Tensor", self.before(self.encoder(images)))

    def decode(self, z: Tensor) -> Tensor:
        """(B, width, h, w), quantised where there is a codebook -> (B, channels, f h, f w)."""
        return cast("Tensor", self.decoder(self.after(z)))
