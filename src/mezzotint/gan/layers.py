"""What the GANs from ProGAN to StyleGAN 3 are made of: equalised layers, normalisation, and the mapping network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import fold
from ..core.config import Config
from ..core.errors import ConfigError
from ..nn.resampling import SMOOTH, convolve_down, convolve_up, normalised

SLOPE = 0.2  # of leaky ReLU below 0, in all of these papers
EPSILON = 1e-8  # under roots


@dataclass(frozen=True)
class Pyramid(Config):
    """Maps from a coarse one to the picture's size, each twice as large as the one before it.

    One of n x n pixels has min(channel_base / n, channel_max) channels.
    """

    channel_base: int = 32768
    channel_max: int = 512
    coarsest: int = 4  # a picture is halved as often as this leaves its maps at least so large

    def __post_init__(self) -> None:
        for name in ("channel_base", "channel_max", "coarsest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    def sizes(self, image_size: int) -> tuple[int, ...]:
        """Pixels of the maps, from the coarsest to the picture's. Raises `ConfigError` if there is only one."""
        sizes = [image_size]
        while sizes[0] % 2 == 0 and sizes[0] // 2 >= self.coarsest:
            sizes.insert(0, sizes[0] // 2)
        if len(sizes) == 1:
            raise ConfigError(
                f"pictures of {image_size} pixels cannot be halved down to {self.coarsest} or more; use an even size or"
                " a smaller network.coarsest"
            )
        return tuple(sizes)

    def channels(self, size: int) -> int:
        """Of a map of size x size pixels."""
        return max(min(self.channel_base // size, self.channel_max), 1)


class Equalised(nn.Module):
    """A weight whose elements begin as N(0, 1) and which is scaled at run time, so that all learn at the same speed:

        W = gain m / sqrt(fan_in) W',    b = m b',    W' ~ N(0, 1 / m^2),    b' = bias / m

    because Adam moves every parameter by as much as its learning rate says, whatever the range of its gradient. At
    first the variance of what a layer puts out is gain^2 times the mean square of what goes in.

    weight         shape of the parameter; its first number is the number of outputs
    fan_in         number of inputs that an output sums over
    bias           its first value; None: there is none
    gain           sqrt(2) where a leaky ReLU follows which has no gain of its own (ProGAN), else 1
    lr_multiplier  m: how fast it learns beside the other layers

    Source: Karras et al. 2017 (arXiv 1710.10196), section 4.1; the multiplier: Karras et al. 2018 (arXiv 1812.04948),
    appendix C.
    """

    def __init__(
        self,
        weight: Sequence[int],
        fan_in: int,
        bias: float | None = 0.0,
        gain: float = 1.0,
        lr_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale, self.lr_multiplier = gain * lr_multiplier / math.sqrt(fan_in), lr_multiplier
        self.weight = nn.Parameter(torch.randn(*weight) / lr_multiplier)
        self.bias = None if bias is None else nn.Parameter(torch.full((weight[0],), bias / lr_multiplier))

    def scaled(self, gain: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """W and b, both times a gain."""
        m = gain * self.lr_multiplier
        bias = self.bias if self.bias is None or m == 1 else m * self.bias
        return gain * self.scale * self.weight, bias


class EqualLinear(Equalised):
    """A layer of neurons, equalised: see `Equalised`."""

    def __init__(
        self, inputs: int, outputs: int, bias: float | None = 0.0, gain: float = 1.0, lr_multiplier: float = 1.0
    ) -> None:
        super().__init__((outputs, inputs), inputs, bias, gain, lr_multiplier)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(..., inputs) -> (..., outputs), times a gain."""
        return F.linear(x, *self.scaled(gain))


class EqualConv2d(Equalised):
    """A convolution, equalised: see `Equalised`.

    kernel    its size
    padding   zeros on all sides; None: as many as keep the resolution where the kernel is odd. Not used by `resample`
    resample  "up" or "down": the resolution is doubled or halved as well, through an FIR filter
    taps      of that filter, before they are normalised
    """

    taps: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, *, bias: float | None = 0.0, gain: float = 1.0,
        lr_multiplier: float = 1.0, padding: int | None = None, resample: Literal["up", "down"] | None = None,
        taps: Sequence[float] = SMOOTH,
    ) -> None:  # fmt: skip
        super().__init__(
            (out_channels, in_channels, kernel, kernel), in_channels * kernel**2, bias, gain, lr_multiplier
        )
        self.padding, self.resample = kernel // 2 if padding is None else padding, resample
        self.register_buffer("taps", normalised(taps) if resample else None, persistent=False)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'), times a gain."""
        weight, bias = self.scaled(gain)
        if self.resample is None:
            return F.conv2d(x, weight, bias, padding=self.padding)
        if self.resample == "down":
            return convolve_down(x, weight, self.taps, bias)
        y = convolve_up(x, weight, self.taps)
        return y if bias is None else y + bias[:, None, None]


class ScaledLeakyReLU(nn.Module):
    """gain max(x, 0.2 x); a gain of sqrt(2) keeps the mean square, nearly (He et al. 2015)."""

    def __init__(self, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return scaled_leaky_relu(x, self.gain)


def scaled_leaky_relu(x: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    """gain max(x, 0.2 x), of any shape."""
    y = F.leaky_relu(x, SLOPE)
    return y if gain == 1 else y * gain


def activated(layer: nn.Module, x: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    """Leaky ReLU with a gain of what a layer makes of x: the gain is the layer's, which moves fewer numbers."""
    return F.leaky_relu(layer(x, gain), SLOPE)


def pixel_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean_c x_c^2 + 1e-8): each pixel's vector of channels (dimension 1) gets a mean square of 1.

    (B, C, ...) -> the same. Source: Karras et al. 2017, section 4.2.
    """
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON)


class PixelNorm(nn.Module):
    """`pixel_norm` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        return pixel_norm(x)


class MinibatchDeviation(nn.Module):
    """One more feature map, constant in each group of pictures: how different its pictures are.

        s = mean_{c, h, w} sqrt(var_{i of the group} x_ichw + 1e-8)

    It shows a discriminator that all generated pictures look alike. Group j of n consists of the pictures j, j + n,
    j + 2n, ...; if the batch has fewer pictures than a group, or some are left over, these are a group. So processes
    among which a batch is dealt out in turn have groups of the whole batch, if each has a multiple of `group`.

    group  pictures that see each other

    Source: Karras et al. 2017, section 3. Raises `ConfigError` for a group of fewer than two pictures.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        if group < 2:
            raise ConfigError(f"a deviation is that of at least 2 pictures, not {group}")
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + 1, H, W)."""
        B, _, H, W = x.shape
        n = B // self.group
        whole = n * self.group
        found = [_deviation(x[:whole].unflatten(0, (self.group, n))).repeat(self.group)] if n else []
        if whole < B:
            found.append(_deviation(x[whole:, None]).expand(B - whole))
        return torch.cat([x, torch.cat(found).view(B, 1, 1, 1).expand(B, 1, H, W)], 1)


def _deviation(groups: Tensor) -> Tensor:
    """(G, n, C, H, W), n groups of G pictures -> (n,)."""
    deviation: Tensor = (groups.var(0, correction=0) + EPSILON).sqrt().flatten(1).mean(1)
    return deviation


class MappingNetwork(nn.Module):
    """f of w = f(z, class), layers of neurons; and the mean of w, towards which pictures are truncated.

    z is scaled to a mean square of 1, and so is the embedding of the class, which stands beside it.

    latent         dimensions of z
    width          of w, and of all layers
    layers         how many
    classes        0: unconditional
    lr_multiplier  how fast it learns beside the other networks
    decay          share of the tracked mean that is left after a step: see `follow`

    Source: Karras et al. 2018 (arXiv 1812.04948), section 2 and appendix B and C; the embedding of the class: Karras et
    al. 2020 (arXiv 2006.06676), appendix.
    """

    average: Tensor

    def __init__(
        self, latent: int, width: int, layers: int = 8, *, classes: int = 0, lr_multiplier: float = 0.01,
        decay: float = 0.995,
    ) -> None:  # fmt: skip
        super().__init__()
        if layers < 1:
            raise ConfigError(f"a mapping network has at least 1 layer, not {layers}")
        self.latent, self.width, self.classes, self.decay = latent, width, classes, decay
        self.embedding = EqualLinear(classes, latent, gain=math.sqrt(classes)) if classes else None  # of a one-hot
        widths = [latent * (2 if classes else 1)] + [width] * layers
        self.layers = nn.ModuleList(
            EqualLinear(before, after, lr_multiplier=lr_multiplier) for before, after in pairwise(widths)
        )
        self.register_buffer("average", torch.zeros(width))  # of w

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, latent), (B,) -> w, (B, width)."""
        x = pixel_norm(z)
        if self.embedding is not None:
            one_hot = F.one_hot(cast("Tensor", labels), self.classes).to(x.dtype)
            x = torch.cat([x, pixel_norm(self.embedding(one_hot))], 1)
        for layer in self.layers:
            x = activated(layer, x)
        return x

    def truncate(self, w: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
        """w' = mean + psi (w - mean), of all styles or of the first few.

        w       (B, width), or (B, layers, width)
        psi     1: as they are; 0: the mean picture
        cutoff  of w of three dimensions: so many layers, the coarsest, are truncated; None: all

        Source: Karras et al. 2018, appendix B. Raises `ConfigError` for a cutoff below 0, or a psi that is not finite.
        """
        if not math.isfinite(psi):
            raise ConfigError(f"truncation is a finite number, 1 for none, not {psi}")
        if cutoff is not None and cutoff < 0:
            raise ConfigError(f"cutoff is a number of layers, from 0 on, not {cutoff}")
        if psi == 1:
            return w
        truncated = torch.lerp(self.average.to(w.dtype).expand_as(w), w, psi)
        if cutoff is None or w.dim() == 2:
            return truncated
        return torch.cat([truncated[:, :cutoff], w[:, cutoff:]], 1)

    @torch.no_grad()
    def follow(self, step: int, n: int = 64) -> None:
        """Move the tracked mean of w towards that of n fresh codes, which are a function of the step alone.

        Called after each step, of which the first is number 1. So all processes and a resumed run have the same mean,
        and no batch leaves a trace. It is not drawn towards 0, where it begins.
        """
        random = torch.Generator().manual_seed(fold(step, self.latent) & 0xFFFFFFFF)
        z = torch.randn(n, self.latent, generator=random)
        labels = torch.randint(self.classes, (n,), generator=random) if self.classes else None
        device = self.average.device
        w = self(z.to(device), None if labels is None else labels.to(device))
        self.average.lerp_(w.float().mean(0), (1 - self.decay) / (1 - self.decay ** max(step, 1)))


def noise_maps(noise: Tensor | Literal["const", "none"], constant: Tensor, sizes: Sequence[int]) -> list[Tensor | None]:
    """Noise of each layer of a generator, (B or 1, 1, n, n).

    noise     the numbers of all layers one after the other, (B, their number); "const": the constant ones; "none"
    constant  such numbers, (1, their number)
    sizes     n of each layer

    Raises `ConfigError` for another mode of noise.
    """
    if isinstance(noise, str):
        if noise == "none":
            return [None] * len(sizes)
        if noise != "const":
            raise ConfigError(f"noise is const, none, or the numbers themselves, not {noise!r}")
        noise = constant
    parts = noise.split([size**2 for size in sizes], 1)
    return [part.view(-1, 1, size, size) for part, size in zip(parts, sizes)]


def mixed(first: Tensor, second: Tensor, u: Tensor, p: float, styles: int) -> Tensor:
    """Style mixing: layers below l are of the first w and the others of the second, l uniform on {1, ..., styles - 1}.

    first, second  w, (B, width)
    u              uniform numbers, (B, 2): whether a picture is mixed, with probability p, and at which layer

    Gives (B, styles, width). Source: Karras et al. 2018 (arXiv 1812.04948), section 3.1; survey, Box 5.
    """
    l = torch.where(u[:, 0] < p, 1 + (u[:, 1] * (styles - 1)).long(), styles)  # noqa: E741
    of_first = torch.arange(styles, device=u.device) < l[:, None]  # (B, styles)
    return torch.where(of_first[:, :, None], first[:, None], second[:, None])


def mean_over_processes(values: Sequence[Tensor]) -> Tensor:
    """The mean of numbers, (N,) each, of which every process has as many; over all processes, ()."""
    total = torch.cat(list(values)).float().mean()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total /= torch.distributed.get_world_size()
    return total
