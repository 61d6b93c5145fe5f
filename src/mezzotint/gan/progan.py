"""ProGAN: both networks begin with pictures of few pixels, and grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import choose_labels, refuse
from ..core.model import Losses, Watched
from ..nn.blocks import resized
from ..nn.resampling import BOX
from .augment import SMALLEST, NoAugmentation
from .layers import (
    EqualConv2d,
    Equalised,
    EqualLinear,
    MinibatchDeviation,
    Pyramid,
    pixel_norm,
    scaled_leaky_relu,
)
from .model import GAN, GANConfig
from .networks import EqualisedDiscriminator, Verdict
from .penalties import GradientPenalty, PenaltyConfig

GAIN = math.sqrt(2)  # of weights before leaky ReLU (He et al. 2015), which itself has none here


class Phase(NamedTuple):
    """How far both networks have grown."""

    level: int  # of the finest map; 0 is the coarsest
    alpha: float  # how much of it is faded in, from 0, as if it were not there, to 1


@dataclass(frozen=True)
class Growing(Config):
    """When maps are added: `stable_steps`, then, for each finer map, `fade_steps` and again `stable_steps`.

    Both 0: both networks are whole from the beginning, and have a picture at its full size only.
    Source: Karras et al. 2017 (arXiv 1710.10196), appendix A: 800,000 real pictures for each.
    """

    fade_steps: int = 50_000  # in which the newest map is faded in, alpha from 0 to 1 in a line
    stable_steps: int = 50_000  # in which all maps are there whole
    first: int = 0  # how many times finer than the coarsest map pictures are at first: 2^first

    def __post_init__(self) -> None:
        for name in ("fade_steps", "stable_steps", "first"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, but it is {getattr(self, name)}")

    def lowest(self, levels: int) -> int:
        """The level at which a network of so many begins."""
        return min(self.first, levels - 1) if self.fade_steps + self.stable_steps else levels - 1

    def phase(self, moves: int, levels: int) -> Phase:
        """Of a network of so many levels, after so many steps."""
        low, top = self.lowest(levels), levels - 1
        past = moves - self.stable_steps  # since the second level came
        if low == top or past < 0:
            return Phase(low, 1.0)
        rounds, within = divmod(past, self.fade_steps + self.stable_steps)
        if low + 1 + rounds > top:
            return Phase(top, 1.0)
        return Phase(low + 1 + rounds, within / self.fade_steps if within < self.fade_steps else 1.0)

    def milestones(self, levels: int) -> tuple[int, ...]:
        """Numbers of steps: 0, and when each level is faded in halfway. At one of them each weight is in use."""
        finer = range(levels - 1 - self.lowest(levels))
        each = self.fade_steps + self.stable_steps
        return (0, *(self.stable_steps + k * each + (self.fade_steps + 1) // 2 for k in finer))

    def ends(self, levels: int) -> tuple[int, ...]:
        """Numbers of steps after which the next level comes; of the last one, after which it has been there as long."""
        finer = range(levels - self.lowest(levels))
        return tuple(self.stable_steps + k * (self.fade_steps + self.stable_steps) for k in finer)


@dataclass(frozen=True)
class GrowingNetworks(Pyramid):
    """What ProGAN and StyleGAN share. The defaults are ProGAN's, table 2."""

    channel_base: int = 16384
    group: int = 4  # pictures whose deviation the discriminator sees; 0: it sees none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group == 1 or self.group < 0:
            raise ConfigError(f"group is a number of pictures, at least 2, or 0 for no deviation, not {self.group}")


@dataclass(frozen=True)
class ProGANNetworks(GrowingNetworks):
    """Table 2 of the paper."""

    fused: bool = False  # the discriminator halves maps before a leaky ReLU, not after it: a quarter of the work
    kind: Literal["progan"] = "progan"


@dataclass(frozen=True)
class GrowingConfig(GANConfig):
    """A `GANConfig` of networks that grow."""

    latent: int = 512
    network: GrowingNetworks = field(default_factory=GrowingNetworks)  # type: ignore[assignment]
    growing: Growing = field(default_factory=Growing)

    def __post_init__(self) -> None:
        super().__post_init__()
        first = self.sizes[self.growing.lowest(len(self.sizes))]
        if first < SMALLEST and not isinstance(self.augmentation, NoAugmentation):
            raise ConfigError(
                f"pictures of {first} pixels, with which growing begins, cannot be augmented; set network.coarsest to"
                f" {SMALLEST} or more, or growing.first"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels of the maps, the coarsest first."""
        return self.network.sizes(self.image_size)

    @property
    def levels(self) -> int:
        """How many maps there are."""
        return len(self.sizes)

    @property
    def lowest(self) -> int:
        """The level of the first pictures."""
        return self.growing.lowest(self.levels)

    @property
    def grown(self) -> Phase:
        """The last phase."""
        return Phase(self.levels - 1, 1.0)


@dataclass(frozen=True)
class ProGANConfig(GrowingConfig):
    """ProGAN. The defaults are those for faces of 1024 pixels."""

    network: ProGANNetworks = field(default_factory=ProGANNetworks)  # type: ignore[assignment]
    loss: Literal["saturating", "non-saturating", "wasserstein", "hinge", "least-squares", "relativistic"] = (
        "wasserstein"
    )
    penalty: PenaltyConfig = field(default_factory=GradientPenalty)
    drift: float = 1e-3


class FirstMap(Equalised):
    """The coarsest map of z: a convolution of n x n of a map of one pixel, padded by n - 1, and so a matrix product."""

    def __init__(self, inputs: int, channels: int, size: int) -> None:
        super().__init__((channels, inputs, size, size), inputs * size**2, gain=GAIN)

    def forward(self, z: Tensor) -> Tensor:
        """(B, inputs) -> (B, channels, size, size)."""
        weight, bias = self.scaled()
        return torch.einsum("bl,clij->bcij", z, weight) + cast("Tensor", bias)[:, None, None]


class Doubling(nn.Module):
    """Twice the resolution, each pixel repeated; two convolutions, leaky ReLU and pixel norm after each."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = EqualConv2d(in_channels, out_channels, gain=GAIN, resample="up", taps=BOX)
        self.second = EqualConv2d(out_channels, out_channels, gain=GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W)."""
        for conv in (self.first, self.second):
            x = pixel_norm(scaled_leaky_relu(conv(x), 1))
        return x


class ProGenerator(nn.Module):
    """z, scaled to a mean square of 1, and a class where there is one, beside it; maps, and a picture of the finest.

    A picture can be made of a map of each size. While a map is faded in, what it makes is mixed with what the map
    before it makes, twice as large:  (1 - alpha) up(picture_{k-1}) + alpha picture_k.

    Source: Karras et al. 2017 (arXiv 1710.10196), figure 2 and table 2.
    """

    def __init__(self, config: ProGANConfig) -> None:
        super().__init__()
        n, K, sizes = config.network, config.classes, config.sizes
        widths = [n.channels(size) for size in sizes]
        self.classes, self.lowest, self.grown = K, config.lowest, config.grown
        self.embedding = EqualLinear(K, config.latent, bias=None, gain=math.sqrt(K)) if K else None  # of a one-hot
        self.first = FirstMap(config.latent * (2 if K else 1), widths[0], sizes[0])
        self.second = EqualConv2d(widths[0], widths[0], gain=GAIN)
        self.blocks = nn.ModuleList(Doubling(before, after) for before, after in pairwise(widths))
        self.to_picture = nn.ModuleList(EqualConv2d(width, config.channels, 1) for width in widths[self.lowest :])

    def forward(self, z: Tensor, labels: Tensor | None = None, phase: Phase | None = None) -> Tensor:
        """(B, latent), (B,) -> (B, C, n, n), n the size of the phase's map; None: the last phase."""
        level, alpha = phase or self.grown
        x = pixel_norm(z)
        if self.embedding is not None:
            one_hot = F.one_hot(cast("Tensor", labels), self.classes).to(x.dtype)
            x = torch.cat([x, pixel_norm(self.embedding(one_hot))], 1)
        for layer in (self.first, self.second):
            x = pixel_norm(scaled_leaky_relu(layer(x), 1))
        before = x
        for block in self.blocks[:level]:
            before, x = x, block(x)
        y = self.picture(level, x)
        return y if alpha == 1 else torch.lerp(resized(self.picture(level - 1, before), "up"), y, alpha)

    def picture(self, level: int, x: Tensor) -> Tensor:
        """Of the map of a level, (B, C, n, n)."""
        y: Tensor = self.to_picture[level - self.lowest](x)
        return y


class Halving(nn.Module):
    """Two convolutions, leaky ReLU after each, and half the resolution through a filter of given taps.

    fused  the filter stands before the second convolution, which is taken at every second pixel
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float], fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.first = EqualConv2d(in_channels, in_channels, gain=GAIN)
        self.second = EqualConv2d(in_channels, out_channels, gain=GAIN, resample="down" if fused else None, taps=taps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2)."""
        for conv in (self.first, self.second):
            x = scaled_leaky_relu(conv(x), 1)
        return x if self.fused else resized(x, "down")


class GrowingDiscriminator(EqualisedDiscriminator):
    """The generator's mirror image: the picture becomes a map of its size, which is halved down to the coarsest one.

    While a map is faded in, what is made of it is mixed with what the next one makes of the picture at half its size.
    Then the deviation of the minibatch, one more convolution, and neurons.

    taps   of the filter on the way down where `fused`, which else is the mean of 2 x 2 pixels
    fused  see `Halving`

    Source: Karras et al. 2017 (arXiv 1710.10196), figure 2 and table 2.
    """

    def __init__(self, config: GrowingConfig, taps: Sequence[float], fused: bool) -> None:
        super().__init__(config.channels, config.classes, config.conditioning)
        n, sizes = config.network, config.sizes
        widths = [n.channels(size) for size in sizes]
        last = widths[0]
        self.lowest, self.grown = config.lowest, config.grown
        self.from_picture = nn.ModuleList(
            EqualConv2d(self.channels, width, 1, gain=GAIN) for width in widths[self.lowest :]
        )
        self.blocks = nn.ModuleList(Halving(fine, coarse, taps, fused) for coarse, fine in pairwise(widths))
        self.deviation = MinibatchDeviation(n.group) if n.group else None
        self.conv = EqualConv2d(last + (1 if n.group else 0), last, gain=GAIN)
        self.neurons = EqualLinear(last * sizes[0] ** 2, last, gain=GAIN)
        self.build_head(last, config.anchored)

    def forward(self, x: Tensor, labels: Tensor | None = None, phase: Phase | None = None) -> Verdict:
        """Of pictures (B, C, n, n), n the size of the phase's map, and labels (B,); None: the last phase."""
        level, alpha = phase or self.grown
        x = self.seen(x, labels)
        h = self.features(level, x)
        if level:
            h = self.blocks[level - 1](h)
            if alpha < 1:
                h = torch.lerp(self.features(level - 1, resized(x, "down")), h, alpha)
            for k in reversed(range(level - 1)):
                h = self.blocks[k](h)
        if self.deviation is not None:
            h = self.deviation(h)
        h = scaled_leaky_relu(self.conv(h), 1)
        return self.verdict(scaled_leaky_relu(self.neurons(h.flatten(1)), 1), labels)

    def features(self, level: int, x: Tensor) -> Tensor:
        """A picture of a level as a map, (B, C_level, n, n)."""
        return scaled_leaky_relu(self.from_picture[level - self.lowest](x), 1)


class GrowingGAN(GAN):
    """A GAN whose networks grow, by the number of steps made (the buffer `moves`): so a resumed run is where it was.

    Both players see pictures of the present resolution: real ones are reduced to it by means of pixels, and, while a
    map is faded in, mixed with themselves at half of it, alpha x + (1 - alpha) up(down(x)), as generated ones are.
    What is drawn has the full size at any phase, pixels repeated.

    Source: Karras et al. 2017 (arXiv 1710.10196), section 2 and appendix A; survey, section 3.3 and figure 20.
    """

    config: GrowingConfig

    @property
    def phase(self) -> Phase:
        """Where the networks are."""
        return self.config.growing.phase(int(self.moves), self.config.levels)

    @property
    def resolution(self) -> int:
        """Pixels of the pictures at the present phase."""
        return self.config.sizes[self.phase.level]

    @property
    def milestones(self) -> tuple[int, ...]:
        """Numbers for `grow`: at one of them each weight is in use."""
        return self.config.growing.milestones(self.config.levels)

    def grow(self, moves: int | None = None) -> None:
        """Go to the phase after so many steps; None: to the last one."""
        self.moves.fill_(self.config.growing.ends(self.config.levels)[-1] if moves is None else moves)

    def seen(self, images: Tensor) -> Tensor:
        """Real pictures (B, C, H, W) as the players see them at the present phase, (B, C, n, n)."""
        level, alpha = self.phase
        x = reduced(images, self.config.sizes[level])
        return x if alpha == 1 else torch.lerp(resized(resized(x, "down"), "up"), x, alpha)

    def enlarged(self, images: Tensor) -> Tensor:
        """Pictures (B, C, n, n) at full size, (B, C, H, W), their pixels repeated."""
        factor = self.config.image_size // images.shape[-1]
        return images if factor == 1 else images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    def forward(self, batch: Batch, player: str = "generator") -> Losses:
        """See `GAN.forward`, at the present phase."""
        return super().forward(replace(batch, images=self.seen(batch.images)), player)

    def fakes(self, labels: Tensor | None, random: PictureRandom) -> Tensor:
        """Pictures of one batch of training, (B, C, n, n)."""
        images: Tensor = self.generator(self.draw(random), labels, self.phase)
        return images

    def picture(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Pictures of z at full size, (B, C, H, W)."""
        return self.enlarged(self.generator(z, labels, self.phase))

    def verdict(self, x: Tensor, labels: Tensor | None) -> Verdict:
        """Of pictures of the present resolution, or of larger ones, which are reduced to it."""
        verdict: Verdict = self.discriminator(reduced(x, self.resolution), labels, self.phase)
        return verdict

    def watch(self, images: Tensor, labels: Tensor | None = None) -> Watched:
        """See `GAN.watch`; real pictures as the players see them."""
        return super().watch(self.enlarged(self.seen(images)), labels)


def reduced(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size), by means of pixels."""
    factor = images.shape[-1] // size
    return images if factor == 1 else F.avg_pool2d(images, factor)


class ProGAN(GrowingGAN):
    """A Wasserstein GAN that grows, with equalised weights, pixel norm and the deviation of the minibatch.

    Its critic's scores of real pictures are kept from drifting away from 0 by 0.001 E[D(x)^2], and it moves once for
    each step of the generator. Source: Karras et al. 2017 (arXiv 1710.10196), sections 2 to 4 and appendix A; survey,
    section 3.3 and figure 20.
    """

    config: ProGANConfig

    def build_generator(self) -> nn.Module:
        """See `ProGenerator`."""
        return ProGenerator(self.config)

    def build_discriminator(self) -> nn.Module:
        """See `GrowingDiscriminator`."""
        return GrowingDiscriminator(self.config, BOX, self.config.network.fused)

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """See `GAN.between`, of z scaled as the generator scales it, so that directions turn evenly."""
        return super().between(pixel_norm(first), pixel_norm(last), shares)

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
        resolution: int | None = None,
    ) -> Tensor:
        """See `GAN.sample`.

        resolution  None: that of the present phase; less: what the map of so many pixels makes, as figure 20 shows.
                    Once it has been faded out, this does not learn any more, while the maps before it do

        Raises `ConfigError` for one that has no pictures, or none yet.
        """
        refuse(captions=captions, source=source, mask=mask)
        if resolution is None:
            return super().sample(n, labels=labels, seeds=seeds)
        c = self.config
        known = c.sizes[c.lowest : self.phase.level + 1]
        if resolution not in known:
            raise ConfigError(f"now there are pictures of {', '.join(map(str, known))} pixels, not of {resolution}")
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        wanted = choose_labels(n, labels, c.classes, random)
        images = self.generator(self.draw(random), wanted, Phase(c.sizes.index(resolution), 1.0))
        return self.enlarged(images).float().clamp(-1, 1)
