"""NCSN++ and DDPM++: the networks of score-based generative modelling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError
from .attention import Attention
from .blocks import Pointwise
from .embeddings import FourierTimeEmbedding, TimeEmbedding
from .resampling import BOX, SMOOTH, Resample, ResampleConv


@dataclass(frozen=True)
class NCSNppConfig(Config):
    """The architecture, independent of the pictures. The defaults are those of DDPM++ for CIFAR-10.

    All normalisations have min(width // 4, 32) groups. diffusers' `UNet2DModel` has others, which differ only at widths
    below 128; `diffusers_groups` and `groups` make them so, for weights that were trained with them.
    """

    channels: int = 128  # width of the first convolution, and number of waves or pairs of them that tell the time
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # width of each level, in units of `channels`
    blocks: int = 4  # residual blocks per level on the way down; one more on the way up
    attention: tuple[bool, ...] = (False, True, False, False)  # per level: after each block down, after the last one up
    head_dim: int | None = None  # width of an attention head; None: one head
    eps: float = 1e-6  # of every group normalisation
    dropout: float = 0.1
    taps: tuple[float, ...] = BOX  # of the filter that changes the resolution; 1, 3, 3, 1: without aliasing
    skip_rescale: bool = True  # every residual sum is divided by the square root of two
    progressive_input: Literal["none", "input_skip", "residual"] = "none"
    progressive_output: Literal["none", "output_skip", "residual"] = "none"
    embedding: Literal["positional", "fourier"] = "positional"  # of the time
    fourier_scale: float = 16.0  # standard deviation of the random frequencies
    cosine_first: bool = False  # order of the positional embedding's sinusoids
    freq_shift: float = 1.0  # in their frequencies
    time_dim: int | None = None  # width of the time embedding; None: 4 * channels
    scale_by_sigma: bool = False  # the time is a noise level: its logarithm is embedded, and the answer divided by it
    center_input: bool = False  # the network sees 2x - 1
    patch: int = 1  # squares of so many pixels across become the channels of one
    groups: int | None = None  # in the middle and at the end; None: as everywhere
    diffusers_groups: bool = False  # 32 in attention, min(in + skip // 4, 32) in the blocks up before attention
    kind: Literal["ncsnpp"] = "ncsnpp"

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ConfigError("multipliers is empty; give one for each level")
        if len(self.attention) != len(self.multipliers):
            raise ConfigError(
                f"attention has {len(self.attention)} entries for {len(self.multipliers)} levels; give one for each"
            )
        for name in ("channels", "blocks", "head_dim", "time_dim", "patch", "groups"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if min(self.multipliers) < 1:
            raise ConfigError(f"multipliers must be at least 1 each, not {', '.join(map(str, self.multipliers))}")
        if self.embedding == "positional" and self.channels // 2 <= self.freq_shift:
            raise ConfigError(f"{self.channels} channels are too few for sinusoids with freq_shift={self.freq_shift:g}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, not {self.dropout}")
        for name in ("eps", "fourier_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.taps or not sum(self.taps):
            raise ConfigError(f"taps must sum to something, not {list(self.taps)}; NCSN++ has 1, 3, 3, 1")
        for groups, width in self._normalisations():
            if groups < 1 or width % groups:
                raise ConfigError(
                    f"{groups} groups do not divide {width} channels, the width of a level or of one with its skip "
                    "connection; use widths that are multiples of 4 with sums up to 128, or of 32, and such groups"
                )
        for width, attends in zip(self.widths, (*self.attention[:-1], True)):  # the middle attends
            if attends and self.head_dim and width % self.head_dim:
                raise ConfigError(f"heads of {self.head_dim} do not divide {width} channels; change head_dim")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    def ways_up(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """From the coarsest level: its number, and of each block the width that comes from below and of the skip."""
        skips = [self.channels]
        for level, width in enumerate(self.widths):
            skips += [width] * (self.blocks + (level < len(self.widths) - 1))
        before, ways = self.widths[-1], []
        for level in reversed(range(len(self.widths))):
            pairs = []
            for _ in range(self.blocks + 1):
                pairs.append((before, skips.pop()))
                before = self.widths[level]
            ways.append((level, pairs))
        return ways

    def groups_up(self, level: int, before: int, skip: int) -> int:
        """Groups of the first normalisation of a block on the way up."""
        if self.diffusers_groups and self.attention[level]:
            return min(before + skip // 4, 32)
        return groups_of(before + skip)

    def groups_attending(self, width: int) -> int:
        """Groups of the normalisation before a level's attention."""
        return 32 if self.diffusers_groups else groups_of(width)

    def groups_outside(self, width: int) -> int:
        """Groups of the normalisations in the middle and at the end."""
        return self.groups or groups_of(width)

    def _normalisations(self) -> Iterator[tuple[int, int]]:
        """Groups and width of every one."""
        for width in (self.channels, *self.widths):
            yield groups_of(width), width
        for level, pairs in self.ways_up():
            yield from ((self.groups_up(level, *pair), sum(pair)) for pair in pairs)
        yield from ((self.groups_attending(w), w) for w, attends in zip(self.widths, self.attention) if attends)
        yield from ((self.groups_outside(width), width) for width in (self.widths[0], self.widths[-1]))

    def build(self, in_channels: int, out_channels: int, classes: int = 0, image_size: int | None = None) -> NCSNpp:
        """A new network of this architecture; see `NCSNpp`."""
        return NCSNpp(self, in_channels, out_channels, classes, image_size)


def groups_of(width: int) -> int:
    """min(width // 4, 32), the groups of a normalisation (Song et al. 2021, the authors' code)."""
    return min(width // 4, 32)


class BigGANBlock(nn.Module):
    """(shortcut(x) + conv(drop(silu(norm(conv(silu(norm(x))) + time))))) / output_scale, both branches resampled.

    in_channels, out_channels
    groups        of the first normalisation; None: min(in_channels // 4, 32)
    groups_out    of the second; None: min(out_channels // 4, 32)
    resample      "up" or "down": x and silu(norm(x)) change resolution by two, and the shortcut has a 1x1 convolution
    taps          of the filter that does so
    output_scale  square root of two: a sum of two independent branches of unit variance has unit variance

    Source: Brock et al. 2019 (arXiv 1809.11096), figure 15; Song et al. 2021 (arXiv 2011.13456), appendix H.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int | None = None,
        groups_out: int | None = None,
        eps: float = 1e-6,
        dropout: float = 0.0,
        resample: Literal["up", "down"] | None = None,
        taps: tuple[float, ...] = BOX,
        output_scale: float = math.sqrt(2.0),
    ) -> None:
        super().__init__()
        self.time_width, self.output_scale = out_channels, output_scale
        self.norm1 = nn.GroupNorm(groups or groups_of(in_channels), in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups_out or groups_of(out_channels), out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.resample = Resample(resample, taps) if resample else nn.Identity()
        changes = resample is not None or in_channels != out_channels
        self.shortcut = Pointwise(in_channels, out_channels) if changes else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C_in, H, W), time (B, C_out) or (1, C_out) -> (B, C_out, H', W')."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = F.silu(self.norm2(h + time[:, :, None, None]))
        y: Tensor = self.shortcut(self.resample(x)) + self.conv2(self.dropout(h))
        return y / self.output_scale if self.output_scale != 1.0 else y


class InputSkip(nn.Module):
    """A smaller copy of the picture joins each level: p <- down(p), h <- h + W p."""

    def __init__(self, in_channels: int, out_channels: int, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.resample = Resample("down", taps)
        self.conv = Pointwise(in_channels, out_channels)

    def forward(self, pyramid: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """p (B, C, 2H, 2W), h (B, C_out, H, W) -> the new p, (B, C, H, W), and the new h."""
        pyramid = self.resample(pyramid)
        return pyramid, h + self.conv(pyramid)


class PyramidResidual(nn.Module):
    """A second way, of one convolution per level, is summed with the first: p <- h <- (conv(p) + h) / scale."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        direction: Literal["up", "down"],
        taps: tuple[float, ...],
        output_scale: float,
    ) -> None:
        super().__init__()
        self.conv = ResampleConv(in_channels, out_channels, direction, taps)
        self.output_scale = output_scale

    def forward(self, pyramid: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """p (B, C, 2H, 2W) on the way down or (B, C, H/2, W/2) up, h (B, C_out, H, W) -> the sum, twice."""
        both = (self.conv(pyramid) + h) / self.output_scale
        return both, both


class Head(nn.Module):
    """conv(silu(norm(h))), to which the same of the coarser levels is added, enlarged: p <- up(p) + head(h)."""

    def __init__(self, width: int, out_channels: int, eps: float, taps: tuple[float, ...]) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups_of(width), width, eps)
        self.conv = nn.Conv2d(width, out_channels, 3, padding=1)
        self.resample = Resample("up", taps)

    def forward(self, pyramid: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
        """p (B, C, H/2, W/2), or None at the coarsest level, h (B, C_in, H, W) -> the new p, (B, C, H, W), and h."""
        own: Tensor = self.conv(F.silu(self.norm(h)))
        return own if pyramid is None else self.resample(pyramid) + own, h


class Level(nn.Module):
    """One resolution: blocks, each followed by attention or nothing, the way to the next, and the pyramid's step."""

    def __init__(
        self,
        blocks: list[BigGANBlock],
        attentions: list[nn.Module],
        resample: BigGANBlock | None = None,
        pyramid: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample
        self.pyramid = pyramid

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each block with what follows it."""
        return zip(self.blocks, self.attentions)


class NCSNpp(nn.Module):
    """Maps a noisy picture and a time to a picture: DDPM's UNet with five changes.

    1. Resolution changes through a FIR filter.               `taps`
    2. Residual sums are divided by the square root of two.   `skip_rescale`
    3. Blocks are BigGAN's, and change the resolution too.    `BigGANBlock`
    4. There are four blocks per level, or eight.             `blocks`
    5. The picture enters, or leaves, level by level.         `progressive_input`, `progressive_output`

    NCSN++ (for VE) has them all, with a residual input pyramid and none for the output, and is told the time by random
    Fourier features; DDPM++ (for VP and sub-VP) has 2 to 4, and a positional embedding.

    config        the architecture
    in_channels   of the picture
    out_channels  of the answer
    classes       size of the class embedding, which is added to the time's; 0: none
    image_size    checked against the number of levels where given

    The paper's score of the VE path is the answer divided by sigma, `scale_by_sigma`, for a network that is told sigma
    itself; without it, the same network told ln sigma predicts the noise, up to its sign.

    Raises `ConfigError` if pictures of `image_size` cannot be cut into patches and halved often enough.
    Source: Song et al. 2021 (arXiv 2011.13456), appendix H; where it says nothing (groups, initial weights), the code
    that it refers to.
    """

    def __init__(
        self,
        config: NCSNppConfig,
        in_channels: int,
        out_channels: int,
        classes: int = 0,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config = c = config
        halvings = len(c.widths) - 1
        if image_size is not None and image_size % (factor := c.patch * 2**halvings):
            raise ConfigError(
                f"pictures of {image_size} pixels cannot be cut into patches of {c.patch} and halved {halvings} times; "
                f"use a multiple of {factor}, smaller patches or fewer levels"
            )
        self.scale = math.sqrt(2.0) if c.skip_rescale else 1.0
        time_dim = c.time_dim or 4 * c.channels
        self.time: nn.Module
        if c.embedding == "fourier":
            self.time = FourierTimeEmbedding(c.channels, time_dim, c.fourier_scale)
        else:
            self.time = TimeEmbedding(c.channels, time_dim, cosine_first=c.cosine_first, freq_shift=c.freq_shift)
        self.label = nn.Embedding(classes, time_dim) if classes else None
        drawn, seen = out_channels * c.patch**2, in_channels * c.patch**2
        self.conv_in = nn.Conv2d(seen, c.channels, 3, padding=1)
        self.down = self._way_down(seen)
        self.middle = self._middle()
        self.up = self._way_up(drawn)
        self.norm_out = nn.GroupNorm(c.groups_outside(c.widths[0]), c.widths[0], c.eps)
        self.conv_out = nn.Conv2d(c.widths[0], drawn, 3, padding=1)
        self.enlarge_out = Resample("up", c.taps) if c.progressive_output == "output_skip" else None
        self.time_widths = [block.time_width for block in self.res_blocks()]
        # One matrix product for the time of all blocks, instead of a small one in each.
        self.time_projection = nn.Linear(time_dim, sum(self.time_widths))
        self._initialise()

    def res_blocks(self) -> list[BigGANBlock]:
        """In the order in which they are passed, which is the order of `time_projection`'s rows."""
        return [module for module in self.modules() if isinstance(module, BigGANBlock)]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's answer.

        x       (B, C, H, W)
        t       (B,) or (), in whatever unit the network was trained with, on any device; sigma > 0 for `scale_by_sigma`
        labels  (B,) int64, if and only if the network has classes
        """
        c = self.config
        t = t.reshape(-1)  # one time for all is embedded once
        times = self._times(t.log() if c.scale_by_sigma else t, labels)
        pyramid = F.pixel_unshuffle(2 * x - 1 if c.center_input else x, c.patch)
        h = self.conv_in(pyramid)
        skips = [h]
        for level in cast("Iterable[Level]", self.down):
            for block, attention in level.pairs():
                h = attention(block(h, next(times)))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, next(times))
                if level.pyramid is not None:
                    pyramid, h = level.pyramid(pyramid, h)
                skips.append(h)
        first, second = self.middle.blocks
        h = second(self.middle.attentions[0](first(h, next(times))), next(times))
        drawn = None
        for level in cast("Iterable[Level]", self.up):
            for block, attention in level.pairs():
                h = attention(block(torch.cat([h, skips.pop()], dim=1), next(times)))
            if level.pyramid is not None:
                drawn, h = level.pyramid(drawn, h)
            if level.resample is not None:
                h = level.resample(h, next(times))
        y: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        if self.enlarge_out is not None and drawn is not None:
            y = y + self.enlarge_out(drawn)
        y = F.pixel_shuffle(y, c.patch)
        return y / t.to(x.device, x.dtype, non_blocking=True)[:, None, None, None] if c.scale_by_sigma else y

    def _times(self, t: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        if (labels is None) != (self.label is None):
            raise ValueError("labels are needed" if self.label is not None else "this network has no classes")
        embedding = self.time(t)  # (B, time_dim) or (1, time_dim)
        if self.label is not None:
            embedding = embedding + self.label(labels)
        return iter(self.time_projection(F.silu(embedding)).split(self.time_widths, dim=1))

    def _block(self, in_channels: int, out_channels: int, **options: Any) -> BigGANBlock:
        c = self.config
        return BigGANBlock(
            in_channels, out_channels, eps=c.eps, dropout=c.dropout, taps=c.taps, output_scale=self.scale, **options
        )

    def _attention(self, level: int) -> nn.Module:
        c, width = self.config, self.config.widths[level]
        if not c.attention[level]:
            return nn.Identity()
        groups = c.groups_attending(width)
        return Attention(width, head_dim=c.head_dim, groups=groups, eps=c.eps, output_scale=self.scale)

    def _way_down(self, seen: int) -> nn.ModuleList:
        c, levels = self.config, []
        before, carried = c.channels, seen
        for i, width in enumerate(c.widths):
            blocks = [self._block(before if k == 0 else width, width) for k in range(c.blocks)]
            before, resample = width, None
            pyramid: nn.Module | None = None
            if i < len(c.widths) - 1:
                resample = self._block(width, width, resample="down")
                if c.progressive_input == "input_skip":
                    pyramid = InputSkip(seen, width, c.taps)
                elif c.progressive_input == "residual":
                    pyramid = PyramidResidual(carried, width, "down", c.taps, self.scale)
                    carried = width
            levels.append(Level(blocks, [self._attention(i) for _ in blocks], resample, pyramid))
        return nn.ModuleList(levels)

    def _middle(self) -> Level:
        c, width = self.config, self.config.widths[-1]
        groups = c.groups_outside(width)
        blocks = [self._block(width, width, groups=groups, groups_out=groups) for _ in range(2)]
        attention = Attention(width, head_dim=c.head_dim, groups=groups, eps=c.eps, output_scale=self.scale)
        return Level(blocks, [attention])

    def _way_up(self, drawn: int) -> nn.ModuleList:
        c, levels = self.config, []
        coarsest = len(c.widths) - 1
        for i, pairs in c.ways_up():
            width = c.widths[i]
            blocks = [self._block(b + s, width, groups=c.groups_up(i, b, s)) for b, s in pairs]
            attentions = [*(nn.Identity() for _ in blocks[1:]), self._attention(i)]
            pyramid: nn.Module | None = None
            if c.progressive_output == "output_skip" and i > 0:
                pyramid = Head(width, drawn, c.eps, c.taps)
            elif c.progressive_output == "residual" and i == coarsest:
                pyramid = Head(width, width, c.eps, c.taps)
            elif c.progressive_output == "residual":
                pyramid = PyramidResidual(c.widths[i + 1], width, "up", c.taps, self.scale)
            resample = self._block(width, width, resample="up") if i > 0 else None
            levels.append(Level(blocks, attentions, resample, pyramid))
        return nn.ModuleList(levels)

    def _initialise(self) -> None:
        """Glorot's uniform weights, no biases, and zeros where a branch ends: each block begins as its shortcut."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast("Tensor", module.bias))
        for rows in self.time_projection.weight.detach().split(self.time_widths):  # a layer each, in the paper
            nn.init.xavier_uniform_(rows)
        last: list[nn.Conv2d | nn.Linear] = [self.conv_out]
        for module in self.modules():
            if isinstance(module, BigGANBlock):
                last.append(module.conv2)
            elif isinstance(module, Attention):
                for rows in module.qkv.weight.detach().chunk(3):
                    nn.init.xavier_uniform_(rows, gain=math.sqrt(0.1))
                last.append(module.out)
            elif isinstance(module, Head) and self.config.progressive_output == "output_skip":
                last.append(module.conv)
        for module in last:
            nn.init.zeros_(module.weight)


def ddpmpp_config(
    image_size: int = 32, *, deep: bool = False, channels: int = 128, multipliers: tuple[int, ...] = (1, 2, 2, 2)
) -> NCSNppConfig:
    """DDPM++, and with eight blocks per level DDPM++ (deep): attention at 16 x 16, dropout 0.1.

    61,804,419 and 106,632,579 parameters for CIFAR-10. With the multipliers (2, 2, 2) it is the network that EDM
    trains there.

    image_size  of CIFAR-10, for which the architecture was found
    deep        twice the blocks

    Source: Song et al. 2021 (arXiv 2011.13456), appendix H.2; Karras et al. 2022 (arXiv 2206.00364), appendix F.
    """
    attention = _at_16(image_size, len(multipliers))
    return NCSNppConfig(channels, multipliers, blocks=8 if deep else 4, attention=attention)


def ncsnpp_config(
    image_size: int = 32, *, deep: bool = False, channels: int = 128, multipliers: tuple[int, ...] = (1, 2, 2, 2)
) -> NCSNppConfig:
    """NCSN++ cont., and with eight blocks per level NCSN++ cont. (deep): attention at 16 x 16, dropout 0.1.

    62,758,787 and 107,586,947 parameters for CIFAR-10, besides the 128 fixed frequencies.

    image_size  of CIFAR-10, for which the architecture was found
    deep        twice the blocks

    Source: Song et al. 2021 (arXiv 2011.13456), appendix H.2.
    """
    return replace(
        ddpmpp_config(image_size, deep=deep, channels=channels, multipliers=multipliers),
        taps=SMOOTH, progressive_input="residual", embedding="fourier",
    )  # fmt: skip


def ncsnpp_256_config() -> NCSNppConfig:
    """NCSN++ for pictures of 256 x 256, 65,574,421 parameters besides the 128 frequencies: seven levels, two pyramids.

    Source: Song et al. 2021 (arXiv 2011.13456), appendix H.3, and the code that it refers to.
    """
    return NCSNppConfig(
        channels=128, multipliers=(1, 1, 2, 2, 2, 2, 2), blocks=2, attention=_at_16(256, 7), dropout=0.0,
        taps=SMOOTH, progressive_input="input_skip", progressive_output="output_skip", embedding="fourier",
    )  # fmt: skip


def _at_16(image_size: int, levels: int) -> tuple[bool, ...]:
    return tuple(image_size == 16 * 2**level for level in range(levels))
