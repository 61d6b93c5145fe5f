"""StyleGAN 2: styles that scale weights, not maps, and a generator whose pictures change evenly with w."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.errors import ConfigError
from ..core.labels import choose_labels
from ..core.model import Losses
from ..nn.resampling import SMOOTH, convolve_up, normalised, upsample
from .layers import (
    EPSILON,
    SLOPE,
    EqualConv2d,
    Equalised,
    EqualLinear,
    MappingNetwork,
    MinibatchDeviation,
    Pyramid,
    activated,
    mean_over_processes,
    mixed,
    noise_maps,
)
from .model import GANConfig
from .networks import EqualisedDiscriminator, Verdict
from .penalties import PenaltyConfig, ZeroCentred
from .styled import NoisyStyledGAN
from .waves import Waves


@dataclass(frozen=True)
class StyleGAN2Networks(Pyramid):
    """Config F of the paper."""

    width: int = 512  # of w
    mapping_layers: int = 8
    mapping_lr: float = 0.01  # how fast the mapping network learns beside the others
    noise_lr: float = 1.0  # and how fast the strengths of the noise
    group: int = 4  # pictures whose deviation the discriminator sees; 0: it sees none
    start: Literal["constant", "waves"] = "constant"  # waves can be moved: config B of Karras et al. 2021
    modulation: Literal["scaled", "grouped"] = "scaled"  # how it is computed: see `modulated` and `modulated_grouped`
    kind: Literal["stylegan2"] = "stylegan2"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "mapping_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("mapping_lr", "noise_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.group == 1 or self.group < 0:
            raise ConfigError(f"group is a number of pictures, at least 2, or 0 for no deviation, not {self.group}")


@dataclass(frozen=True)
class StyleGAN2Config(GANConfig):
    """StyleGAN 2. The defaults are those of config F for faces of 1024 pixels."""

    latent: int = 512
    network: StyleGAN2Networks = field(default_factory=StyleGAN2Networks)  # type: ignore[assignment]
    penalty: PenaltyConfig = field(default_factory=lambda: ZeroCentred(gamma=10.0, every=16))
    mixing: float = 0.9  # share of training pictures made of two w, one for the coarse layers, one for the fine ones
    path_weight: float = 2.0  # of path-length regularisation; 0: none
    path_every: int = 8  # it is taken at each so many-th step, so many times as heavy
    path_share: int = 2  # on one of so many pictures of the batch
    path_decay: float = 0.99  # what is left of the mean length when another one is seen

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mixing", "path_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        if self.path_weight < 0:
            raise ConfigError(f"path_weight must not be negative, but it is {self.path_weight}")
        for name in ("path_every", "path_share"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


def modulated_grouped(
    x: Tensor, weight: Tensor, s: Tensor, demodulate: bool = True, up: Tensor | None = None, gain: float = 1.0
) -> Tensor:
    """A convolution whose weights are each picture's own, as the paper writes it: one convolution of B groups.

        w'_oik = s_i w_oik,    w''_oik = w'_oik / sqrt(sum_{i, k} w'_oik^2 + 1e-8)

    x           (B, C_in, H, W)
    weight      w, (C_out, C_in, k, k)
    s           (B, C_in)
    demodulate  w'' if true, w' otherwise
    up          taps of a filter by which the resolution is doubled as well, (K,)
    gain        by which what comes out is multiplied

    Source: Karras et al. 2020 (arXiv 1912.04958), eq. 1 and 3, and appendix B.
    """
    w = gain * modulated_weight(weight, s, demodulate).flatten(0, 1)  # (B C_out, C_in, k, k)
    B, padding = len(x), weight.shape[-1] // 2
    together = x.reshape(1, -1, *x.shape[2:])  # (1, B C_in, H, W)
    y = F.conv2d(together, w, padding=padding, groups=B) if up is None else convolve_up(together, w, up, B)
    return y.view(B, -1, *y.shape[2:])


def modulated_weight(weight: Tensor, s: Tensor, demodulate: bool = True) -> Tensor:
    """w'' or w' of each picture, (B, C_out, C_in, k, k): see `modulated_grouped`."""
    w = weight * s[:, None, :, None, None]
    return w * torch.rsqrt(w.square().sum((2, 3, 4), keepdim=True) + EPSILON) if demodulate else w


def modulated(
    x: Tensor, weight: Tensor, s: Tensor, demodulate: bool = True, up: Tensor | None = None, gain: float = 1.0
) -> Tensor:
    """The same as `modulated_grouped`, with one set of weights for all pictures, because a convolution is linear:

        conv(x, w'')_o = d_o conv(s x, w)_o,    d_o = 1 / sqrt(sum_i s_i^2 sum_k w_oik^2 + 1e-8)

    A 1x1 convolution stays one matrix for each picture, which moves fewer numbers.
    """
    if weight.shape[-1] == 1 and up is None:
        y = torch.bmm(gain * modulated_weight(weight, s, demodulate).flatten(2), x.flatten(2))
        return y.unflatten(2, x.shape[2:])
    x = x * (s if demodulate else gain * s)[:, :, None, None]
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2) if up is None else convolve_up(x, weight, up)
    if not demodulate:
        return y
    d = gain * torch.rsqrt(s.square() @ weight.square().sum((2, 3)).t() + EPSILON)  # (B, C_out)
    return y * d[:, :, None, None]


class ModulatedConv2d(Equalised):
    """A convolution that a style scales, s = A(w); A's bias begins at 1. Its own bias is left to the caller."""

    taps: Tensor | None

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, width: int, *, up: bool = False,
        demodulate: bool = True, grouped: bool = False,
    ) -> None:  # fmt: skip
        super().__init__((out_channels, in_channels, kernel, kernel), in_channels * kernel**2)
        self.affine = EqualLinear(width, in_channels, bias=1.0)
        self.demodulate, self.apply_modulated = demodulate, modulated_grouped if grouped else modulated
        self.register_buffer("taps", normalised(SMOOTH) if up else None, persistent=False)

    def forward(self, x: Tensor, w: Tensor, gain: float = 1.0) -> Tensor:
        """(B, C_in, H, W), (B, width) -> (B, C_out, H', W') times a gain, without the bias."""
        return self.apply_modulated(x, self.scaled()[0], self.affine(w), self.demodulate, self.taps, gain)


class StyledLayer(nn.Module):
    """A modulated convolution, noise of a learned strength, the bias, and leaky ReLU of gain sqrt(2)."""

    def __init__(
        self, in_channels: int, out_channels: int, width: int, up: bool, grouped: bool, noise_lr: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, width, up=up, grouped=grouped)
        self.strength = nn.Parameter(torch.zeros(()))  # of the noise, in units of noise_lr
        self.noise_lr = noise_lr

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, C_in, H, W), (B, width), (B or 1, 1, H', W') -> (B, C_out, H', W')."""
        added = cast("Tensor", self.conv.bias)[:, None, None]
        if noise is not None:
            added = added + self.noise_lr * self.strength * noise
        gain = math.sqrt(2)  # before the leaky ReLU or behind it is the same, and here it costs nothing
        return F.leaky_relu(self.conv(x, w, gain) + gain * added, SLOPE)


class Synthesis(nn.Module):
    """The picture of w: a learned constant, convolutions that w scales, and a part of the picture at each size.

    Layer 0 works on the constant, or on waves, layers 2k - 1 and 2k on maps of size k; a picture is made of each size
    and added to that of the size below it, twice as large ("skip generator"). Style l of w is that of layer l; the
    picture of size k shares the style of the next layer, 2k + 1.

    Source: Karras et al. 2020 (arXiv 1912.04958), figures 2 and 7.
    """

    taps: Tensor
    constant_noise: Tensor

    def __init__(self, network: StyleGAN2Networks, channels: int, image_size: int) -> None:
        super().__init__()
        sizes = network.sizes(image_size)
        widths, grouped = [network.channels(size) for size in sizes], network.modulation == "grouped"
        waves = network.start == "waves"
        self.constant = None if waves else nn.Parameter(torch.randn(widths[0], sizes[0], sizes[0]))
        self.waves = Waves(widths[0], sizes[0], sizes[0], sizes[0] / 2) if waves else None

        def layer(before: int, after: int, up: bool = False) -> StyledLayer:
            return StyledLayer(before, after, network.width, up, grouped, network.noise_lr)

        layers = [layer(widths[0], widths[0])]
        for before, after in pairwise(widths):
            layers += [layer(before, after, up=True), layer(after, after)]
        self.layers = nn.ModuleList(layers)
        self.to_picture = nn.ModuleList(
            ModulatedConv2d(width, channels, 1, network.width, demodulate=False, grouped=grouped) for width in widths
        )
        self.styles = 2 * len(sizes)  # vectors w that it is made of
        self.noise_sizes = [sizes[0]] + [size for size in sizes[1:] for _ in range(2)]  # of each layer
        self.noises = sum(size**2 for size in self.noise_sizes)  # numbers of noise in a picture
        self.register_buffer("taps", normalised(SMOOTH), persistent=False)
        self.register_buffer("constant_noise", torch.randn(1, self.noises))

    def forward(
        self, w: Tensor, noise: Tensor | Literal["const", "none"] = "const", motion: Tensor | None = None
    ) -> Tensor:
        """(B, width) or (B, styles, width) -> (B, C, H, W).

        noise   (B, noises), the maps of all layers one after the other; "const": always the same; "none"
        motion  of what the first layer works on, (3, 3) or (B, 3, 3): see `nn.motion.rigid`

        Raises `ConfigError` for another mode of noise, and if a constant is to be moved.
        """
        if w.dim() == 2:
            w = w[:, None].expand(-1, self.styles, -1)
        maps = noise_maps(noise, self.constant_noise, self.noise_sizes)
        x = self.layers[0](self.beginning(len(w), motion), w[:, 0], maps[0])
        y = self.picture(0, x, w)
        for k in range(1, len(self.to_picture)):
            x = self.layers[2 * k - 1](x, w[:, 2 * k - 1], maps[2 * k - 1])
            x = self.layers[2 * k](x, w[:, 2 * k], maps[2 * k])
            y = upsample(y, self.taps) + self.picture(k, x, w)
        return y

    def beginning(self, n: int, motion: Tensor | None = None) -> Tensor:
        """What the first layer works on, (n, C, h, h). Raises `ConfigError` if a constant is to be moved."""
        if self.waves is not None:
            begun: Tensor = self.waves(n, motion)
            return begun
        if motion is not None:
            raise ConfigError(
                "what is drawn from a learned constant cannot be moved, for it is known at its pixels alone; a model"
                " trained with network.start=waves can"
            )
        return cast("Tensor", self.constant).expand(n, -1, -1, -1)

    def picture(self, k: int, x: Tensor, w: Tensor) -> Tensor:
        """What the map of size k says of the picture, (B, C, H, W)."""
        layer = cast("ModulatedConv2d", self.to_picture[k])
        y: Tensor = layer(x, w[:, 2 * k + 1])
        return y + cast("Tensor", layer.bias)[:, None, None]


class StyleGenerator(nn.Module):
    """z becomes w, and w a picture."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        n = config.network
        self.mapping = MappingNetwork(
            config.latent, n.width, n.mapping_layers, classes=config.classes, lr_multiplier=n.mapping_lr
        )
        self.synthesis = Synthesis(n, config.channels, config.image_size)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, latent), (B,) -> (B, C, H, W), with the constant noise."""
        images: Tensor = self.synthesis(self.mapping(z, labels))
        return images


class ResidualBlock(nn.Module):
    """Two convolutions, the second at half the resolution, and a 1x1 convolution beside them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = EqualConv2d(in_channels, in_channels)
        self.second = EqualConv2d(in_channels, out_channels, resample="down")
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=None, resample="down")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2); the sum is divided by sqrt(2), which keeps its variance."""
        share: Tensor = self.skip(x, math.sqrt(0.5))
        return share + activated(self.second, activated(self.first, x), 1.0)


class StyleDiscriminator(EqualisedDiscriminator):
    """Residual blocks down to the coarsest map, the deviation of the minibatch, one more convolution, and neurons.

    Source: Karras et al. 2020 (arXiv 1912.04958), figure 7 and table 2.
    """

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__(config.channels, config.classes, config.conditioning)
        n = config.network
        sizes = n.sizes(config.image_size)[::-1]
        widths = [n.channels(size) for size in sizes]
        self.from_picture = EqualConv2d(self.channels, widths[0], 1)
        self.blocks = nn.ModuleList(ResidualBlock(before, after) for before, after in pairwise(widths))
        last = widths[-1]
        self.deviation = MinibatchDeviation(n.group) if n.group else None
        self.conv = EqualConv2d(last + (1 if n.group else 0), last)
        self.neurons = EqualLinear(last * sizes[-1] ** 2, last)
        self.build_head(last, config.anchored)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Verdict:
        """Of pictures (B, C, H, W) and, if it is conditional, their labels (B,)."""
        x = activated(self.from_picture, self.seen(x, labels))
        for block in self.blocks:
            x = block(x)
        if self.deviation is not None:
            x = self.deviation(x)
        return self.verdict(activated(self.neurons, activated(self.conv, x).flatten(1)), labels)


class StyleGAN2(NoisyStyledGAN):
    """A GAN whose generator maps z to w, and scales the weights of its convolutions by w.

    Its generator is regularised besides: equally long steps of w are to change the picture by equally much,

        (|J^T y| - a)^2,    J = dg(w) / dw,    y ~ N(0, I / (H W)),

    a the moving average of these lengths |J^T y|, in which the w of each layer counts as its own and their squares are
    averaged over layers, as the paper's authors have it. The average of the few lengths seen so far is not drawn
    towards 0, where it begins, so that it can be used after its first step, in which nothing is asked yet.

    Pictures are made with fresh noise in training, and of two w with probability `mixing`. The mean of w is kept with
    the weights, for truncation. Logged of the generator besides: "path/penalty", "path/length" (the average).

    Source: Karras et al. 2020 (arXiv 1912.04958), section 3.2, eq. 4, and appendix B; survey, section 3.3.
    """

    config: StyleGAN2Config
    generator: StyleGenerator
    path_length: Tensor
    path_seen: Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__(config)
        self.register_buffer("path_length", torch.zeros(()))
        self.register_buffer("path_seen", torch.zeros((), dtype=torch.int64))  # how often it was moved
        self.lengths: list[Tensor] = []  # of the present step

    def build_generator(self) -> nn.Module:
        """z -> w -> picture."""
        return StyleGenerator(self.config)

    def build_discriminator(self) -> nn.Module:
        """Residual blocks."""
        return StyleDiscriminator(self.config)

    def synthesise(
        self, w: Tensor, noise: Tensor | Literal["const", "none"] = "const", transform: Tensor | None = None
    ) -> Tensor:
        """Pictures (B, C, H, W), not clipped, of w, (B, width), or (B, styles, width) with a w for each layer.

        noise      (B, numbers of noise) as `noise` draws them; "const": those that the model was born with; "none"
        transform  of a model that begins with waves: how these are moved, (3, 3) or (B, 3, 3)
        """
        images: Tensor = self.generator.synthesis(w, noise, transform)
        return images

    @torch.no_grad()
    def moved(
        self,
        n: int,
        motion: Tensor | None = None,
        *,
        labels: Tensor | Sequence[int] | None = None,
        seeds: int | Sequence[int] = 0,
    ) -> Tensor:
        """n pictures, not clipped, with the constant noise, of waves that are moved: what equivariance is measured on.

        Raises `ConfigError` for a model that begins with a constant, if something is to be moved.
        """
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        wanted = choose_labels(n, labels, self.config.classes, random)
        w = self.map(self.draw(random), wanted)
        return self.synthesise(w, transform=None if motion is None else motion.to(self.device)).float()

    def fakes(self, labels: Tensor | None, random: PictureRandom) -> Tensor:
        """Pictures of a batch of training: some of two w, all with fresh noise."""
        z, p = self.draw(random), self.config.mixing
        if p == 0:
            return self.synthesise(self.map(z, labels), self.noise(random))
        both = self.map(torch.cat([z, self.draw(random)]), None if labels is None else labels.repeat(2))
        first, second = both.chunk(2)
        ws = mixed(first, second, random.uniform(2), p, self.styles)
        return self.synthesise(ws, self.noise(random))

    def generators(self, batch: Batch, labels: Tensor | None, random: PictureRandom) -> Losses:
        """What the generator minimises: the adversarial loss, and every `path_every` steps the lengths' penalty."""
        losses, c = super().generators(batch, labels, random), self.config
        if not c.path_weight:
            return losses
        penalty = torch.zeros((), device=batch.images.device)
        if int(self.moves) % c.path_every == 0:
            lengths = self.lengths_of_paths(labels, random)
            if self.training:
                self.lengths.append(lengths.detach())
            if self.path_seen:
                penalty = c.path_weight * c.path_every * (lengths - self.path_length).square().mean()
        parts = {"path/penalty": penalty.detach(), "path/length": self.path_length.clone()}
        return Losses(losses.total + penalty, {**losses.parts, **parts})

    def lengths_of_paths(self, labels: Tensor | None, random: PictureRandom) -> Tensor:
        """|J^T y| of one of `path_share` pictures of a batch, (B / path_share,), with a gradient by the generator."""
        c, some = self.config, slice(None, None, self.config.path_share)
        z, noise = self.draw(random)[some], self.noise(random)[some]
        y = random.normal(c.channels, c.image_size, c.image_size)[some] / c.image_size
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            w = self.map(z, None if labels is None else labels[some])[:, None].expand(-1, self.styles, -1)
            w = w if w.requires_grad else w.detach().requires_grad_()
            return path_lengths(self.synthesise(w, noise), w, y, differentiable)

    def after_step(self, step: int) -> None:
        """Move the mean of w, and that of the lengths."""
        super().after_step(step)
        if self.lengths:
            self.path_seen += 1
            decay = self.config.path_decay
            share = (1 - decay) / (1 - decay ** int(self.path_seen)) if decay < 1 else 1 / int(self.path_seen)
            self.path_length.lerp_(mean_over_processes(self.lengths), share)
            self.lengths = []


def path_lengths(images: Tensor, w: Tensor, y: Tensor, differentiable: bool = True) -> Tensor:
    """sqrt(mean_l |d<g(w), y> / dw_l|^2), (B,), of pictures (B, C, H, W) made of w, (B, styles, width).

    y  random directions, of the pictures' shape
    """
    (slope,) = torch.autograd.grad((images * y).sum(), w, create_graph=differentiable)
    return (slope.square().sum(2).mean(1) + 1e-12).sqrt()
