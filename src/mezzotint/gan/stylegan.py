"""StyleGAN: a constant becomes a picture, and w = f(z) sets the style of each of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.batch import PictureRandom
from ..core.errors import ConfigError
from ..core.labels import given_labels
from ..nn.blocks import resized
from ..nn.resampling import SMOOTH
from .layers import EPSILON, EqualConv2d, EqualLinear, MappingNetwork, mixed, noise_maps, scaled_leaky_relu
from .penalties import PenaltyConfig, ZeroCentred
from .progan import GAIN, Growing, GrowingConfig, GrowingDiscriminator, GrowingGAN, GrowingNetworks, Phase
from .styled import NoisyStyledGAN


@dataclass(frozen=True)
class StyleGANNetworks(GrowingNetworks):
    """Those of ProGAN, with styles."""

    width: int = 512  # of w
    mapping_layers: int = 8
    mapping_lr: float = 0.01  # how fast the mapping network learns beside the others
    kind: Literal["stylegan"] = "stylegan"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "mapping_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.mapping_lr > 0:
            raise ConfigError(f"mapping_lr must be above 0, not {self.mapping_lr}")


@dataclass(frozen=True)
class StyleGANConfig(GrowingConfig):
    """StyleGAN. The defaults are those of its config F for faces of 1024 pixels."""

    network: StyleGANNetworks = field(default_factory=StyleGANNetworks)  # type: ignore[assignment]
    growing: Growing = field(default_factory=lambda: Growing(first=1))
    penalty: PenaltyConfig = field(default_factory=lambda: ZeroCentred(gamma=10.0))
    mixing: float = 0.9  # share of training pictures made of two w, one for the coarse layers, one for the fine ones

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mixing <= 1:
            raise ConfigError(f"mixing is a share from 0 to 1, not {self.mixing}")


def adain(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Adaptive instance normalisation: each map gets the mean and the deviation that the style says,

        AdaIN(x_i, y) = y_{s,i} (x_i - mean(x_i)) / sqrt(var(x_i) + 1e-8) + y_{b,i}.

    x      (B, C, H, W)
    scale  y_s, (B, C)
    bias   y_b, (B, C)

    Source: Karras et al. 2018 (arXiv 1812.04948), eq. 1; Huang and Belongie 2017.
    """
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    gain = scale[:, :, None, None] * torch.rsqrt(variance + EPSILON)
    return torch.addcmul(bias[:, :, None, None] - gain * mean, x, gain)


class StyledLayer(nn.Module):
    """A convolution (none on the constant), noise of a learned strength for each map, leaky ReLU, and AdaIN.

    The style (y_s, y_b) = A(w), where the bias of y_s begins at 1.
    """

    def __init__(self, in_channels: int | None, out_channels: int, width: int, up: bool) -> None:
        super().__init__()
        self.conv = (
            EqualConv2d(in_channels, out_channels, gain=GAIN, resample="up" if up else None)
            if in_channels is not None
            else None
        )
        self.strength = nn.Parameter(torch.zeros(out_channels, 1, 1))  # of the noise
        self.affine = EqualLinear(width, 2 * out_channels)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, C_in, H, W), (B, width), (B or 1, 1, H', W') -> (B, C_out, H', W')."""
        if self.conv is not None:
            x = self.conv(x)
        if noise is not None:
            x = torch.addcmul(x, noise, self.strength)
        scale, bias = self.affine(w).chunk(2, 1)
        return adain(scaled_leaky_relu(x, 1), 1 + scale, bias)


class Synthesis(nn.Module):
    """The picture of w: a learned constant, and two layers for each size, the first of which doubles the resolution.

    Layers 2k and 2k + 1 work on maps of size k, layer 0 on the constant itself; style l is that of layer l. The way up
    is bilinear: see `nn.resampling.SMOOTH`. A picture can be made of a map of each size, without a style; the finest
    map is faded in as in ProGAN. The constant begins as N(0, 1), as in StyleGAN 2: of a constant of ones, which the
    paper begins with, instance normalisation leaves nothing.

    Source: Karras et al. 2018 (arXiv 1812.04948), section 2, figure 1 and appendix C.
    """

    constant_noise: Tensor

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        n, sizes = config.network, config.sizes
        widths = [n.channels(size) for size in sizes]
        self.lowest, self.grown = config.lowest, config.grown
        self.constant = nn.Parameter(torch.randn(widths[0], sizes[0], sizes[0]))
        layers = [StyledLayer(None, widths[0], n.width, False), StyledLayer(widths[0], widths[0], n.width, False)]
        for before, after in pairwise(widths):
            layers += [StyledLayer(before, after, n.width, True), StyledLayer(after, after, n.width, False)]
        self.layers = nn.ModuleList(layers)
        self.to_picture = nn.ModuleList(EqualConv2d(width, config.channels, 1) for width in widths[self.lowest :])
        self.styles = 2 * len(sizes)  # vectors w that it is made of
        self.noise_sizes = [size for size in sizes for _ in range(2)]  # of each layer
        self.noises = sum(size**2 for size in self.noise_sizes)  # numbers of noise in a picture
        self.register_buffer("constant_noise", torch.randn(1, self.noises))

    def forward(
        self, w: Tensor, noise: Tensor | Literal["const", "none"] = "const", phase: Phase | None = None
    ) -> Tensor:
        """(B, width) or (B, styles, width) -> (B, C, n, n), n the size of the phase's map; None: the last phase.

        noise  (B, noises), the maps of all layers one after the other; "const": always the same; "none"

        Raises `ConfigError` for another mode of noise.
        """
        level, alpha = phase or self.grown
        if w.dim() == 2:
            w = w[:, None].expand(-1, self.styles, -1)
        maps = noise_maps(noise, self.constant_noise, self.noise_sizes)
        x = before = self.constant.expand(len(w), -1, -1, -1)
        for k in range(level + 1):
            before = x
            for l in (2 * k, 2 * k + 1):  # noqa: E741
                x = self.layers[l](x, w[:, l], maps[l])
        y = self.picture(level, x)
        return y if alpha == 1 else torch.lerp(resized(self.picture(level - 1, before), "up"), y, alpha)

    def picture(self, level: int, x: Tensor) -> Tensor:
        """Of the map of a level, (B, C, n, n)."""
        y: Tensor = self.to_picture[level - self.lowest](x)
        return y


class StyleGenerator(nn.Module):
    """z becomes w, and w a picture."""

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        n = config.network
        self.mapping = MappingNetwork(
            config.latent, n.width, n.mapping_layers, classes=config.classes, lr_multiplier=n.mapping_lr
        )
        self.synthesis = Synthesis(config)

    def forward(self, z: Tensor, labels: Tensor | None = None, phase: Phase | None = None) -> Tensor:
        """(B, latent), (B,) -> (B, C, n, n), with the constant noise."""
        images: Tensor = self.synthesis(self.mapping(z, labels), "const", phase)
        return images


class StyleGAN(NoisyStyledGAN, GrowingGAN):
    """A GAN whose generator maps z to w, and sets mean and deviation of its maps by w.

    Pictures are made with fresh noise in training, and of two w with probability `mixing`, cut at a layer that is in
    use. The mean of w is kept with the weights, for truncation. The discriminator is ProGAN's, with bilinear filters.

    Source: Karras et al. 2018 (arXiv 1812.04948), config F of table 1; survey, section 3.3, Box 5, figures 21 and 22.
    """

    config: StyleGANConfig
    generator: StyleGenerator

    def build_generator(self) -> nn.Module:
        """z -> w -> picture."""
        return StyleGenerator(self.config)

    def build_discriminator(self) -> nn.Module:
        """See `GrowingDiscriminator`."""
        return GrowingDiscriminator(self.config, SMOOTH, True)

    def synthesise(self, w: Tensor, noise: Tensor | Literal["const", "none"] = "const") -> Tensor:
        """Pictures (B, C, H, W), not clipped, of w, (B, width), or (B, styles, width) with a w for each layer.

        noise  (B, numbers of noise) as `noise` draws them; "const": those that the model was born with; "none"
        """
        return self.enlarged(self.generator.synthesis(w, noise, self.phase))

    def fakes(self, labels: Tensor | None, random: PictureRandom) -> Tensor:
        """Pictures of a batch of training, (B, C, n, n): some of two w, all with fresh noise."""
        z, p, phase = self.draw(random), self.config.mixing, self.phase
        used = 2 * (phase.level + 1)
        if p == 0:
            ws = self.map(z, labels)[:, None].expand(-1, used, -1)
        else:
            both = self.map(torch.cat([z, self.draw(random)]), None if labels is None else labels.repeat(2))
            first, second = both.chunk(2)
            ws = mixed(first, second, random.uniform(2), p, used)
        images: Tensor = self.generator.synthesis(ws, self.noise(random), phase)
        return images

    def mix(
        self,
        z_a: Tensor,
        z_b: Tensor,
        layers: Sequence[int],
        labels: Tensor | None = None,
        noise: Tensor | Literal["const", "none"] = "const",
    ) -> Tensor:
        """Pictures (B, C, H, W), not clipped, whose styles in these layers are those of z_b, the others of z_a.

        z_a, z_b  (B, latent)
        """
        return self.synthesise(exchanged(self.map(z_a, labels), self.map(z_b, labels), layers, self.styles), noise)


def exchanged(w_a: Tensor, w_b: Tensor, layers: Sequence[int], styles: int) -> Tensor:
    """w of each layer, (B, styles, width): in these layers that of B, in the others that of A, (B, width) each.

    Raises `ConfigError` for a layer that does not exist.
    """
    if any(not 0 <= layer < styles for layer in layers):
        raise ConfigError(f"layers are numbered from 0 to {styles - 1}, not {list(layers)}")
    of_b = torch.zeros(styles, dtype=torch.bool, device=w_a.device)
    of_b[list(layers)] = True
    return torch.where(of_b[:, None], w_b[:, None], w_a[:, None])


def bands(styles: int) -> dict[str, range]:
    """The layers of coarse, middle and fine styles: of 18, as in the paper, 0-3 (4 and 8 pixels), 4-7, and 8-17."""
    cut = 2 * max(1, round(styles / 9))
    parts = {"coarse": range(cut), "middle": range(cut, 2 * cut), "fine": range(2 * cut, styles)}
    return {name: range(part.start, min(part.stop, styles)) for name, part in parts.items() if part.start < styles}


class Mixes(Protocol):
    """A generator with a style for each layer: StyleGAN and StyleGAN 2."""

    generator: Any

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""

    @property
    def styles(self) -> int:
        """How many vectors w a picture is made of."""

    def codes(self, seeds: Sequence[int]) -> Tensor:
        """z, (B, latent)."""

    def map(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """w, (B, width)."""

    def synthesise(self, w: Tensor) -> Tensor:
        """Pictures, always with the same noise."""


@torch.no_grad()
def style_mixing(
    model: Mixes,
    columns: Sequence[int],
    rows: Sequence[int],
    layers: Sequence[int],
    *,
    truncation: float = 1.0,
    label: int | None = None,
) -> Tensor:
    """Pictures of A in the first row and of B in the first column; where they meet, A with the styles of B in `layers`.

    columns, rows  seeds of A and of B
    layers         see `bands`
    truncation     psi
    label          the class of all pictures, where the model knows classes

    Gives (rows + 1, columns + 1, C, H, W) in [-1, 1], white in the corner.
    Source: Karras et al. 2018 (arXiv 1812.04948), figure 3; survey, figure 22.
    Raises `ConfigError` without seeds, and for a label that the model does not know, or none where it knows some.
    """
    if not (columns and rows):
        raise ConfigError("styles are mixed of at least one seed for the columns and one for the rows; name some")
    mapping, seeds = model.generator.mapping, [*columns, *rows]
    if label is None and mapping.classes:
        raise ConfigError("this model draws each picture of a class; give the label of one")
    told = None if label is None else given_labels(len(seeds), [label] * len(seeds), mapping.classes, model.device)
    w = mapping.truncate(model.map(model.codes(seeds), told), truncation)
    a, b = w.split([len(columns), len(rows)])
    pairs = exchanged(a.repeat(len(rows), 1), b.repeat_interleave(len(columns), 0), layers, model.styles)
    alone = w[:, None].expand(-1, model.styles, -1)
    images = model.synthesise(torch.cat([alone, pairs])).float().clamp(-1, 1)
    top, left, inside = images.split([len(a), len(b), len(pairs)])
    first = torch.cat([torch.ones_like(top[:1]), top])[None]  # (1, columns + 1, C, H, W)
    others = torch.cat([left[:, None], inside.unflatten(0, (len(b), len(a)))], 1)
    return torch.cat([first, others])
