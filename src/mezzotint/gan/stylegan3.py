"""StyleGAN 3: every layer is a signal on the plane, of which its pixels are only samples, so that no detail sticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import refuse
from ..nn.motion import rigid
from ..nn.resampling import blur
from .filters import FilteredLeakyReLU, Resampling, lowpass, radial_lowpass
from .layers import EqualConv2d, Equalised, EqualLinear, MappingNetwork
from .model import GANConfig
from .networks import Verdict
from .penalties import PenaltyConfig, ZeroCentred
from .styled import StyledGAN
from .stylegan2 import StyleDiscriminator, StyleGAN2Config, StyleGAN2Networks, modulated
from .waves import Waves

OUTPUT_SCALE = 0.25  # of the generator's picture, whose layers begin with a mean square of 1


class Band(NamedTuple):
    """What frequencies the maps of a layer hold, in cycles per width of the picture, and how they are sampled."""

    cutoff: float  # f_c
    stopband: float  # f_t, from which on there is to be nothing
    rate: int  # s, pixels per width of the picture
    half_width: float  # f_h of the transition band of filters
    size: int  # pixels of a map, with its margins
    channels: int


@dataclass(frozen=True)
class StyleGAN3Networks(Config):
    """Config T of the paper; config R has kernel=1, radial=True, and twice channel_base and channel_max.

    A map with cutoff f_c has min(channel_base / (2 f_c), channel_max) channels.
    """

    channel_base: int = 32768
    channel_max: int = 512
    layers: int = 14  # N, besides the one that makes the picture
    critical: int = 2  # of them, the last, sample as sparsely as their cutoff allows
    first_cutoff: float = 2.0  # f_c of the input, cycles per width of the picture
    first_stopband: float = 2.0**2.1  # f_t of the input
    last_stopband: float = 2.0**0.3  # f_t / f_c of the layers that sample critically
    margin: int = 10  # pixels of all maps but the last on each side of the picture
    kernel: int = 3  # of the convolutions; 1: they know no direction
    radial: bool = False  # whether filters are alike in all directions, but where sampling is critical
    filter_size: int = 6  # taps of a filter for each pixel of the coarser map
    oversampling: int = 2  # how much finer the grid is on which the nonlinearity works
    width: int = 512  # of w
    mapping_layers: int = 2
    mapping_lr: float = 0.01  # how fast the mapping network learns beside the others
    critic_base: int = 32768  # channels of the discriminator, as StyleGAN 2 has them
    critic_max: int = 512
    coarsest: int = 4  # pixels of the discriminator's smallest map
    group: int = 4  # pictures whose deviation the discriminator sees; 0: it sees none
    kind: Literal["stylegan3"] = "stylegan3"

    def __post_init__(self) -> None:
        least = {
            "channel_base": 1, "channel_max": 1, "critical": 1, "margin": 0, "filter_size": 1, "oversampling": 2,
            "width": 1, "mapping_layers": 1,
        }  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name} must be at least {smallest}, not {getattr(self, name)}")
        if not self.mapping_lr > 0:
            raise ConfigError(f"mapping_lr must be above 0, not {self.mapping_lr}")
        if self.layers <= self.critical:
            raise ConfigError(f"of {self.layers} layers {self.critical} sample critically; it must be fewer")
        if self.kernel not in (1, 3):
            raise ConfigError(f"kernel is 1 or 3, not {self.kernel}")
        if self.filter_size % 2 or self.oversampling % 2:
            raise ConfigError(
                "filter_size and oversampling must be even, so that all maps have the same centre, not"
                f" {self.filter_size} and {self.oversampling}"
            )
        if not 0 < self.first_cutoff < self.first_stopband or not self.last_stopband > 1:
            raise ConfigError("cutoffs must be above 0 and stopbands above cutoffs; raise first_ or last_stopband")

    def bands(self, image_size: int, channels: int) -> tuple[Band, ...]:
        """Of the layers 0 to N, of which the last is the picture's; the input has the band of layer 0.

            f_c[i] = f_c0 (f_cN / f_c0)^e,    f_t[i] = f_t0 (f_tN / f_t0)^e,    e = min(i / (N - N_crit), 1)
            s[i] = s_N / 2^k, as small as is not below 2 f_t[i],    f_h[i] = max(s[i] / 2, f_t[i]) - f_c[i]

        with f_cN = s_N / 2 and f_tN = 2^0.3 f_cN; the last two layers have no margin.

        Source: Karras et al. 2021 (arXiv 2106.12423), section 3.2, "Flexible layer specifications", and eq. 35 and 36.
        Raises `ConfigError` for pictures that are too small for the first cutoff.
        """
        last_cutoff, free = image_size / 2, self.layers - self.critical
        last = last_cutoff * self.last_stopband
        if not (self.first_cutoff < last_cutoff and self.first_stopband < last):
            raise ConfigError(
                f"pictures of {image_size} pixels hold up to {last_cutoff:g} cycles; use larger ones, or lower"
                " network.first_cutoff and network.first_stopband"
            )
        found = []
        for i in range(self.layers + 1):
            e = min(i / free, 1.0)
            cutoff = self.first_cutoff * (last_cutoff / self.first_cutoff) ** e
            stopband = self.first_stopband * (last / self.first_stopband) ** e
            rate = image_size
            while rate % 2 == 0 and rate // 2 >= 2 * stopband:
                rate //= 2
            size = image_size if i >= self.layers - 1 else rate + 2 * self.margin
            width = (
                channels if i == self.layers else max(round(min(self.channel_base / 2 / cutoff, self.channel_max)), 1)
            )
            found.append(Band(cutoff, stopband, rate, max(rate / 2, stopband) - cutoff, size, width))
        return tuple(found)

    def critic(self) -> StyleGAN2Networks:
        """The discriminator's."""
        return StyleGAN2Networks(self.critic_base, self.critic_max, self.coarsest, group=self.group)


@dataclass(frozen=True)
class StyleGAN3Config(GANConfig):
    """StyleGAN 3. The defaults are those of config T for faces of 1024 pixels."""

    latent: int = 512
    network: StyleGAN3Networks = field(default_factory=StyleGAN3Networks)  # type: ignore[assignment]
    penalty: PenaltyConfig = field(default_factory=lambda: ZeroCentred(gamma=32.8, every=16))
    magnitude_half_life: int = 20_000  # pictures after which half of the mean squares of maps is forgotten
    blur: float = 0.0  # deviation in pixels of the blur through which the discriminator sees all pictures, at first
    blur_steps: int = 0  # in which it falls to 0, in a line

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.magnitude_half_life < 1:
            raise ConfigError(f"magnitude_half_life must be at least 1 picture, not {self.magnitude_half_life}")
        if self.blur < 0 or self.blur_steps < 0 or (self.blur > 0) != (self.blur_steps > 0):
            raise ConfigError(
                f"blur={self.blur} pixels fall to 0 in blur_steps={self.blur_steps}: set both above 0, or both to 0"
            )
        self.network.bands(self.image_size, self.channels)


class FourierInput(Waves):
    """Waves which a rotation and a translation that w chooses move, mixed by weights.

        x(p) = W waves(R_w^{-1} (M^{-1} p - t_w))

    So the picture is turned by R_w and shifted by t_w, both learned, and then moved by M, which the user may choose. At
    first R_w is 1 and t_w is 0 for all w.

    Source: Karras et al. 2021 (arXiv 2106.12423), section 3.2, "Transformed Fourier features".
    """

    def __init__(self, channels: int, width: int, size: int, rate: float, cutoff: float) -> None:
        super().__init__(channels, size, rate, cutoff)
        self.affine = EqualLinear(width, 4)  # (r_c, r_s, t_x, t_y), up to a factor
        with torch.no_grad():
            self.affine.weight.zero_()
            cast("Tensor", self.affine.bias).copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.mix = EqualConv2d(channels, channels, 1, bias=None)

    def forward(self, w: Tensor, motion: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B, width) -> (B, C, size, size).

        motion  M, (3, 3) or (B, 3, 3); None: as it is
        """
        a = self.affine(w)
        c, s, x, y = (a / a[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(c), torch.ones_like(c)
        back = torch.stack([c, s, -c * x - s * y, -s, c, s * x - c * y, zero, zero, one], 1).view(-1, 3, 3)
        mixed: Tensor = self.mix(self.waves(back if motion is None else back @ torch.linalg.inv(motion.double()).to(a)))
        return mixed


class FilteredLayer(Equalised):
    """A modulated convolution, the bias, and a leaky ReLU between two filters.

    The map is padded with zeros as widely as the kernel reaches, so that what is cut off is cut off by `size` alone.

    before, after  bands of the maps that go in and come out
    """

    def __init__(self, before: Band, after: Band, network: StyleGAN3Networks, radial: bool) -> None:
        k = network.kernel
        super().__init__((after.channels, before.channels, k, k), before.channels * k**2)
        self.affine = EqualLinear(network.width, before.channels, bias=1.0)
        rate = network.oversampling * max(before.rate, after.rate)
        up, down, each = rate // before.rate, rate // after.rate, network.filter_size
        design = radial_lowpass if radial else lowpass
        self.activation = FilteredLeakyReLU(
            Resampling(
                up, down, lowpass(each * up, before.cutoff, before.half_width, rate),
                design(each * down, after.cutoff, after.half_width, rate), before.size + k - 1, after.size,
            )
        )  # fmt: skip

    def forward(self, x: Tensor, w: Tensor, gain: Tensor) -> Tensor:
        """(B, C_in, n, n), (B, width), and 1 / the root of the mean square of x, () -> (B, C_out, size, size)."""
        extra = self.weight.shape[-1] // 2
        y = modulated(F.pad(x, [extra] * 4) if extra else x, self.scaled()[0], self.affine(w))
        biased: Tensor = self.activation(torch.addcmul(cast("Tensor", self.bias)[:, None, None], y, gain))
        return biased


class PictureLayer(Equalised):
    """A modulated 1x1 convolution without demodulation, and the bias. Its maps have no margins any more."""

    def __init__(self, before: Band, after: Band, width: int) -> None:
        super().__init__((after.channels, before.channels, 1, 1), before.channels)
        self.affine = EqualLinear(width, before.channels, bias=1.0)

    def forward(self, x: Tensor, w: Tensor, gain: Tensor) -> Tensor:
        """(B, C_in, n, n), (B, width), () -> (B, C, n, n)."""
        y = modulated(x, self.scaled()[0], self.affine(w), demodulate=False)
        return torch.addcmul(cast("Tensor", self.bias)[:, None, None], y, gain)


class AliasFreeSynthesis(nn.Module):
    """The picture of w: waves, and layers that commute with moving the plane. No noise, and one path.

    What goes into each layer is divided by the root of its mean square over all pictures, a moving average that is
    kept with the weights, in place of a mean square of each picture that is guessed. It is not drawn towards 1, where
    it begins. Style 0 of w is the input's, and style l + 1 that of layer l.

    Source: Karras et al. 2021 (arXiv 2106.12423), section 3.
    """

    magnitudes: Tensor
    pictures: Tensor

    def __init__(self, network: StyleGAN3Networks, channels: int, image_size: int, half_life: int) -> None:
        super().__init__()
        self.bands, self.half_life = network.bands(image_size, channels), half_life
        first, free = self.bands[0], network.layers - network.critical
        self.input = FourierInput(first.channels, network.width, first.size, first.rate, first.cutoff)
        pairs = list(pairwise((first, *self.bands)))
        self.layers = nn.ModuleList(
            FilteredLayer(before, after, network, network.radial and i < free)
            for i, (before, after) in enumerate(pairs[:-1])
        )
        self.picture = PictureLayer(*pairs[-1], network.width)
        self.styles = len(self.bands) + 1  # vectors w that it is made of
        self.register_buffer("magnitudes", torch.ones(len(self.bands)))  # mean squares of what goes into the layers
        self.register_buffer("pictures", torch.zeros((), dtype=torch.int64))  # of which these are
        self.seen: list[tuple[Tensor, int]] = []  # mean squares, (layers,), and numbers of pictures, of this step

    def forward(self, w: Tensor, motion: Tensor | None = None) -> Tensor:
        """(B, width) or (B, styles, width) -> (B, C, H, W).

        motion  how the picture is moved, (3, 3) or (B, 3, 3): see `nn.motion.rigid`
        """
        if w.dim() == 2:
            w = w[:, None].expand(-1, self.styles, -1)
        gains = self.magnitudes.clamp_min(1e-8).rsqrt()
        seen: list[Tensor] = []
        x = self.input(w[:, 0], motion)
        for l, layer in enumerate((*self.layers, self.picture)):  # noqa: E741
            if self.training and torch.is_grad_enabled():
                seen.append(torch.linalg.vector_norm(x.detach()) / math.sqrt(x.numel()))
            x = layer(x, w[:, l + 1], gains[l])
        if seen:
            self.seen.append((torch.stack(seen).float().square(), len(x)))
        return OUTPUT_SCALE * x

    @torch.no_grad()
    def follow(self) -> None:
        """Move the mean squares towards those that were seen since the last time."""
        if not self.seen:
            return
        squares = torch.stack([square for square, _ in self.seen]).mean(0)
        pictures = sum(n for _, n in self.seen)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world = torch.distributed.get_world_size()
            torch.distributed.all_reduce(squares)
            squares, pictures = squares / world, pictures * world
        self.pictures += pictures
        kept = 0.5 ** (pictures / self.half_life)
        self.magnitudes.lerp_(
            squares.to(self.magnitudes), (1 - kept) / (1 - 0.5 ** (int(self.pictures) / self.half_life))
        )
        self.seen = []


class AliasFreeGenerator(nn.Module):
    """z becomes w, and w a picture."""

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        n = config.network
        self.mapping = MappingNetwork(
            config.latent, n.width, n.mapping_layers, classes=config.classes, lr_multiplier=n.mapping_lr,
            decay=0.998,
        )  # fmt: skip
        self.synthesis = AliasFreeSynthesis(n, config.channels, config.image_size, config.magnitude_half_life)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, latent), (B,) -> (B, C, H, W)."""
        images: Tensor = self.synthesis(self.mapping(z, labels))
        return images


class StyleGAN3(StyledGAN):
    """A GAN whose pictures move with what moves them: translations (T), and rotations as well (R).

    Its discriminator is that of StyleGAN 2. There is no noise, no mixing of styles and no penalty on path lengths.
    Early in training the discriminator may see all pictures through a blur, which config R needs: it would look at
    fine details alone, by which the generator, whose 1x1 convolutions make them last, is no match for it.

    Source: Karras et al. 2021 (arXiv 2106.12423); survey, section 3.3, table II and figure 24.
    """

    config: StyleGAN3Config
    generator: AliasFreeGenerator

    def build_generator(self) -> nn.Module:
        """z -> w -> picture."""
        return AliasFreeGenerator(self.config)

    def build_discriminator(self) -> nn.Module:
        """Residual blocks, as of StyleGAN 2."""
        c = self.config
        return StyleDiscriminator(
            StyleGAN2Config(
                c.image_size,
                c.channels,
                c.classes,
                network=c.network.critic(),
                conditioning=c.conditioning,
                loss=c.loss,
                drift=c.drift,
            )
        )

    def synthesise(self, w: Tensor, transform: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W), not clipped, of w, (B, width), or (B, styles, width) with a w for each layer.

        transform  how they are moved, (3, 3) or (B, 3, 3), what was at p to M p: see `nn.motion.rigid`
        """
        images: Tensor = self.generator.synthesis(w, transform)
        return images

    def judge(self, x: Tensor, labels: Tensor | None, random: PictureRandom) -> Verdict:
        """What the discriminator says of pictures, seen through a blur early in training."""
        return super().judge(self.blurred(x), labels, random)

    def slope_of(self, x: Tensor, labels: Tensor | None, random: PictureRandom) -> Tensor:
        """The score whose slope is punished, (B,)."""
        return super().slope_of(self.blurred(x), labels, random)

    def blurred(self, x: Tensor) -> Tensor:
        """Pictures through a Gaussian filter of the present width, out to three deviations."""
        c = self.config
        deviation = c.blur * max(1 - int(self.moves) / c.blur_steps, 0.0) if c.blur else 0.0
        reach = math.floor(3 * deviation)
        if reach == 0:
            return x
        t = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
        taps = torch.exp(-t.square() / (2 * deviation**2))
        return blur(x, taps / taps.sum())

    def after_step(self, step: int) -> None:
        """Move the mean of w, and the mean squares of the maps."""
        super().after_step(step)
        self.generator.synthesis.follow()

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
        rotate: float = 0.0,
        translate: tuple[float, float] = (0.0, 0.0),
        transform: Tensor | None = None,
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32; picture k depends on seed k (and label k) alone.

        truncation  psi: 1 for all variety, less for better pictures that differ less, 0 for the mean one
        cutoff      so many styles, the first, are truncated; None: all
        rotate      degrees, clockwise
        translate   to the right and down, in widths of the picture, after the rotation
        transform   any other affine motion after both, (3, 3) or (n, 3, 3), as `nn.motion.rigid` makes them

        Raises `ConfigError` for a label out of range or a motion that cannot be undone.
        """
        refuse(captions=captions, source=source, mask=mask)
        return self.moved(
            n, _motion(rotate, translate, transform), labels=labels, seeds=seeds, truncation=truncation, cutoff=cutoff
        ).clamp(-1, 1)

    @torch.no_grad()
    def moved(
        self,
        n: int,
        motion: Tensor | None = None,
        *,
        labels: Tensor | Sequence[int] | None = None,
        seeds: int | Sequence[int] = 0,
        truncation: float = 1.0,
        cutoff: int | None = None,
    ) -> Tensor:
        """The same, moved by any matrix, and not held within [-1, 1], which would make new frequencies."""
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        ws = self.drawn_styles(n, labels, random, truncation, cutoff)
        return self.synthesise(ws, None if motion is None else motion.to(self.device)).float()


def _motion(rotate: float, translate: tuple[float, float], transform: Tensor | None) -> Tensor | None:
    """All motions in one, or None if nothing moves. Raises `ConfigError` for a matrix of another shape or kind."""
    if transform is None and rotate == 0 and tuple(translate) == (0.0, 0.0):
        return None
    M = rigid(rotate, translate)
    if transform is None:
        return M
    given = torch.as_tensor(transform, dtype=torch.float64).cpu()
    if given.dim() not in (2, 3) or given.shape[-2:] != (3, 3) or not (given[..., 2, :] == M[2]).all():
        raise ConfigError("transform is a matrix of 3 x 3 whose last row is 0, 0, 1, or one for each picture")
    if not (torch.linalg.det(given).abs() > 1e-9).all():
        raise ConfigError("transform makes pictures flat; use a matrix that can be inverted")
    return given @ M
