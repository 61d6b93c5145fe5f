"""The UNet of the denoising models: DDPM's, and ADM's variations of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError
from .attention import Attention
from .blocks import Downsample, ResBlock, Upsample
from .embeddings import TimeEmbedding


@dataclass(frozen=True)
class UNetConfig(Config):
    """The architecture, independent of the pictures. The defaults are those of DDPM for CIFAR-10."""

    channels: int = 128  # width of the first level
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # width of each level, in units of `channels`
    blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention: tuple[bool, ...] = (False, True, False, False)  # per level: attention after each block
    head_dim: int | None = None  # width of an attention head; None: one head
    groups: int = 32  # of every group normalisation
    eps: float = 1e-5  # of every group normalisation
    dropout: float = 0.0
    time_norm: Literal["shift", "scale_shift"] = "shift"  # how the time enters a block
    resample: Literal["conv", "resnet"] = "conv"  # who changes the resolution: a convolution or a residual block
    down_padding: Literal[0, 1] = 1  # 0: the original DDPM's one-sided padding
    middle: bool = True  # the two blocks between the ways down and up
    middle_attention: bool = True
    middle_groups: int | None = None  # of the middle attention's norm; None: as `groups`; 0: no norm
    middle_scale: float = 1.0  # the middle's residual sums are divided by it
    time_dim: int | None = None  # width of the time embedding; None: 4 * channels
    cosine_first: bool = False  # order of the time's sinusoids
    freq_shift: float = 1.0  # in their frequencies
    center_input: bool = False  # the network sees 2x - 1
    patch: int = 1  # p: the first level sees squares of p x p pixels as the channels of one
    heads: int | None = None  # of every attention, however wide; None: as `head_dim` says
    kind: Literal["unet"] = "unet"

    def build(self, in_channels: int, out_channels: int, classes: int = 0, image_size: int | None = None) -> UNet:
        """A new network of this architecture; see `UNet`."""
        return UNet(self, in_channels, out_channels, classes, image_size)

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ConfigError("multipliers is empty; give one for each level")
        if len(self.attention) != len(self.multipliers):
            raise ConfigError(
                f"attention has {len(self.attention)} entries for {len(self.multipliers)} levels; give one for each"
            )
        for name, least in (
            ("channels", 1),
            ("blocks", 1),
            ("groups", 1),
            ("head_dim", 1),
            ("heads", 1),
            ("time_dim", 1),
            ("patch", 1),
        ):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        if min(self.multipliers) < 1:
            raise ConfigError(f"multipliers must be at least 1 each, not {', '.join(map(str, self.multipliers))}")
        if self.channels // 2 <= self.freq_shift:
            raise ConfigError(f"{self.channels} channels are too few for sinusoids with freq_shift={self.freq_shift:g}")
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(f"{self.groups} groups do not divide a level of {width} channels; change groups")
        if self.middle_groups and (self.middle_groups < 0 or self.widths[-1] % self.middle_groups):
            raise ConfigError(
                f"{self.middle_groups} groups do not divide the {self.widths[-1]} channels of the middle;"
                " change middle_groups"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, not {self.dropout}")
        for name in ("eps", "middle_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        attending = [width for width, yes in zip(self.widths, self.attention) if yes]
        attending += [self.widths[-1]] if self.middle and self.middle_attention else []
        for width in attending:
            if self.head_dim and width % self.head_dim:
                raise ConfigError(f"heads of {self.head_dim} do not divide {width} channels; change head_dim")
            if self.heads and width % self.heads:
                raise ConfigError(f"{self.heads} heads do not divide {width} channels; change heads")
        if self.heads and self.head_dim:
            raise ConfigError(f"heads={self.heads} and head_dim={self.head_dim} exclude each other; give one of them")

    def head_width(self, width: int) -> int | None:
        """The width of a head of the attention over `width` channels; None: one head."""
        return width // self.heads if self.heads else self.head_dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention or nothing, and the way to the next resolution."""

    def __init__(self, blocks: list[ResBlock], attentions: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each block with the attention behind it."""
        return zip(self.blocks, self.attentions)


class UNet(nn.Module):
    """Maps a noisy picture and a time to a picture: down through the levels, and up again with skip connections.

    config        the architecture
    in_channels   of the picture
    out_channels  of the answer
    classes       size of the class embedding, which is added to the time's; 0: none
    image_size    checked against the number of levels where given

    It works in whatever memory layout its weights and x have; choosing one is the trainer's business: channels-last on
    CUDA, contiguous on a CPU, where torch's group normalisation is up to 30 times slower backwards on channels-last
    bf16 tensors, which costs more than the convolutions gain.

    Raises `ConfigError` if pictures of `image_size` cannot be halved often enough.
    Source: Ho et al. 2020 (arXiv 2006.11239), appendix B; Dhariwal and Nichol 2021 (arXiv 2105.05233), section 3;
    survey, section 6.
    """

    def __init__(
        self, config: UNetConfig, in_channels: int, out_channels: int, classes: int = 0, image_size: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        halvings = len(config.widths) - 1
        if image_size is not None and image_size % (factor := config.patch * 2**halvings):
            patches = f" after patches of {config.patch}" if config.patch > 1 else ""
            raise ConfigError(
                f"pictures of {image_size} pixels cannot be halved {halvings} times{patches}; "
                f"use a multiple of {factor} or fewer levels"
            )
        time_dim = config.time_dim or 4 * config.channels
        self.time = TimeEmbedding(
            config.channels, time_dim, cosine_first=config.cosine_first, freq_shift=config.freq_shift
        )
        self.label = nn.Embedding(classes, time_dim) if classes else None
        self.conv_in = nn.Conv2d(in_channels * config.patch**2, config.channels, 3, padding=1)
        self.down, skips = self._way_down()
        self.middle = self._middle() if config.middle else None
        self.up = self._way_up(skips)
        self.norm_out = nn.GroupNorm(config.groups, config.channels, config.eps)
        self.conv_out = nn.Conv2d(config.channels, out_channels * config.patch**2, 3, padding=1)
        self.time_widths = [block.time_width for block in self.res_blocks()]
        # One matrix product for the time of all blocks, instead of a small one in each.
        self.time_projection = nn.Linear(time_dim, sum(self.time_widths))
        self._begin_as_identity()

    def _begin_as_identity(self) -> None:
        """The last layer of each residual branch, and of all, begins at zero (Ho et al. 2020, their released code)."""
        last: list[nn.Conv2d | nn.Linear] = [block.conv2 for block in self.res_blocks()]
        last += [module.out for module in self.modules() if isinstance(module, Attention)]
        for layer in [*last, self.conv_out]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast("Tensor", layer.bias))

    def res_blocks(self) -> list[ResBlock]:
        """In the order in which they are passed, which is the order of `time_projection`'s rows."""
        return [module for module in self.modules() if isinstance(module, ResBlock)]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's answer.

        x       (B, C, H, W)
        t       (B,) or (), in whatever unit the network was trained with, on any device
        labels  (B,) int64, if and only if the network has classes
        """
        times = self._times(t.reshape(-1), labels)  # one time for all is embedded once
        x = 2 * x - 1 if self.config.center_input else x
        h = self.conv_in(F.pixel_unshuffle(x, self.config.patch))  # (B, channels, H/p, W/p)
        skips = [h]
        for level in cast("Iterable[Level]", self.down):
            for block, attention in level.pairs():
                h = attention(block(h, next(times)))
                skips.append(h)
            if level.resample is not None:
                h = _resample(level.resample, h, times)
                skips.append(h)
        if self.middle is not None:
            first, second = self.middle.blocks
            h = second(self.middle.attentions[0](first(h, next(times))), next(times))
        for level in cast("Iterable[Level]", self.up):
            for block, attention in level.pairs():
                h = attention(block(torch.cat([h, skips.pop()], dim=1), next(times)))
            if level.resample is not None:
                h = _resample(level.resample, h, times)
        y: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(y, self.config.patch)

    def _times(self, t: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        if (labels is None) != (self.label is None):
            raise ValueError("labels are needed" if self.label is not None else "this network has no classes")
        embedding = self.time(t)  # (B, time_dim) or (1, time_dim)
        if self.label is not None:
            embedding = embedding + self.label(labels)
        return iter(self.time_projection(F.silu(embedding)).split(self.time_widths, dim=1))

    def _block(self, in_channels: int, out_channels: int, **options: Any) -> ResBlock:
        c = self.config
        return ResBlock(
            in_channels, out_channels, groups=c.groups, eps=c.eps, dropout=c.dropout,
            scale_shift=c.time_norm == "scale_shift", **options,
        )  # fmt: skip

    def _attention(self, level: int) -> nn.Module:
        c = self.config
        if not c.attention[level]:
            return nn.Identity()
        width = c.widths[level]
        return Attention(width, head_dim=c.head_width(width), groups=c.groups, eps=c.eps)

    def _way_down(self) -> tuple[nn.ModuleList, list[int]]:
        """The levels, and the width of each skip connection."""
        c, levels, skips = self.config, [], [self.config.channels]
        before = c.channels
        for i, width in enumerate(c.widths):
            blocks = [self._block(before if k == 0 else width, width) for k in range(c.blocks)]
            last = i == len(c.widths) - 1
            resample = None if last else self._change(width, "down")
            levels.append(Level(blocks, [self._attention(i) for _ in blocks], resample))
            skips += [width] * (c.blocks + (not last))
            before = width
        return nn.ModuleList(levels), skips

    def _middle(self) -> Level:
        c, width = self.config, self.config.widths[-1]
        blocks = [self._block(width, width, output_scale=c.middle_scale) for _ in range(2)]
        groups = c.groups if c.middle_groups is None else c.middle_groups
        attention: nn.Module = nn.Identity()
        if c.middle_attention:
            heads = c.head_width(width)
            attention = Attention(width, head_dim=heads, groups=groups, eps=c.eps, output_scale=c.middle_scale)
        return Level(blocks, [attention], None)

    def _way_up(self, skips: list[int]) -> nn.ModuleList:
        c, levels = self.config, []
        before = c.widths[-1]
        for i, width in reversed(list(enumerate(c.widths))):
            blocks = [self._block((before if k == 0 else width) + skips.pop(), width) for k in range(c.blocks + 1)]
            resample = None if i == 0 else self._change(width, "up")
            levels.append(Level(blocks, [self._attention(i) for _ in blocks], resample))
            before = width
        return nn.ModuleList(levels)

    def _change(self, width: int, direction: Literal["up", "down"]) -> nn.Module:
        if self.config.resample == "resnet":
            return self._block(width, width, resample=direction)
        return Upsample(width) if direction == "up" else Downsample(width, self.config.down_padding)


def _resample(module: nn.Module, h: Tensor, times: Iterator[Tensor]) -> Tensor:
    resampled: Tensor = module(h, next(times)) if isinstance(module, ResBlock) else module(h)
    return resampled
