"""Residual generators whose norms are told the class, and discriminators of bounded slope: from SNGAN to BigGAN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import choose_labels, refuse
from ..core.model import Losses
from ..nn.blocks import resized
from .model import GAN, GANConfig
from .networks import Body, spectrally_normalised


class ConditionalNorm(nn.Module):
    """norm(x) (1 + W_g c) + W_b c: gain and bias of every channel are those of a condition.

    width      channels of x
    condition  numbers of c; 0: gain and bias are learned as usual
    kind       "batch": over pictures and positions; "group": over the positions of a group of channels, so that no
               picture sees another

    Source: Dumoulin et al. 2017 and de Vries et al. 2017, as in Miyato and Koyama 2018, section 4; Brock et al. 2018,
    section 3, where c is the shared embedding of the class beside a part of z.
    """

    def __init__(self, width: int, condition: int, kind: Literal["batch", "group"]) -> None:
        super().__init__()
        affine = condition == 0
        self.norm: nn.Module = (
            nn.BatchNorm2d(width, affine=affine)
            if kind == "batch"
            else nn.GroupNorm(math.gcd(width, 8), width, affine=affine)
        )
        self.gain = nn.Linear(condition, width, bias=False) if condition else None
        self.bias = nn.Linear(condition, width, bias=False) if condition else None

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """(B, width, H, W), (B, condition) -> (B, width, H, W)."""
        h: Tensor = self.norm(x)
        if self.gain is None or self.bias is None:
            return h
        return h * (1 + self.gain(c))[:, :, None, None] + self.bias(c)[:, :, None, None]


class GeneratorBlock(nn.Module):
    """up(x W) + conv(relu(norm(conv(up(relu(norm(x))))))).

    The shortcut is taken before the resolution is doubled, which is the same for 1 x 1 weights, and less work.

    Source: Miyato et al. 2018 (arXiv 1802.05957), appendix B.4.
    """

    def __init__(self, before: int, after: int, condition: int, kind: Literal["batch", "group"]) -> None:
        super().__init__()
        self.norm1, self.conv1 = ConditionalNorm(before, condition, kind), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = ConditionalNorm(after, condition, kind), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """(B, before, H, W) -> (B, after, 2H, 2W)."""
        h = self.conv1(resized(F.relu(self.norm1(x, c)), "up"))
        h = self.conv2(F.relu(self.norm2(h, c)))
        return resized(self.shortcut(x), "up") + h


class DiscriminatorBlock(nn.Module):
    """down(x) W + down(conv(relu(conv(relu(x))))); no shortcut weights where the width and the size stay.

    The shortcut is taken after the resolution is halved, which is the same for 1 x 1 weights, and less work.

    first  the block sees the picture itself, and begins without relu

    Source: Miyato et al. 2018 (arXiv 1802.05957), appendix B.4.
    """

    def __init__(self, before: int, after: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if down or before != after else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H', W')."""
        h: Tensor = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.down:
            x, h = resized(x, "down"), resized(h, "down")
        return h + (x if self.shortcut is None else self.shortcut(x))


class SelfAttention(nn.Module):
    """x + g W_o softmax(q^T k) v over all positions, keys and values at half the resolution; g begins at 0.

    Source: Zhang et al. 2018 (arXiv 1805.08318), section 3, with the pooling of Brock et al. 2018.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(width // 8, 1)
        self.query, self.key = nn.Conv2d(width, inner, 1, bias=False), nn.Conv2d(width, inner, 1, bias=False)
        self.value = nn.Conv2d(width, max(width // 2, 1), 1, bias=False)
        self.out = nn.Conv2d(max(width // 2, 1), width, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q = self.query(x).flatten(2)  # (B, C/8, N)
        k = F.max_pool2d(self.key(x), 2).flatten(2)  # (B, C/8, N/4)
        v = F.max_pool2d(self.value(x), 2).flatten(2)  # (B, C/2, N/4)
        weights = (q.transpose(1, 2) @ k).softmax(-1)  # (B, N, N/4)
        mixed = (v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])  # (B, C/2, H, W)
        return x + self.gain * cast("Tensor", self.out(mixed))


class SumPooled(nn.Module):
    """sum over all positions of relu(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return F.relu(x).sum((2, 3))


@dataclass(frozen=True)
class ResNetConfig(Config):
    """Both networks, from a map of the coarsest resolution to the picture and back.

    The coarsest map is as large as halving the picture once for each block of the generator makes it.
    """

    widths: tuple[int, ...] = (256, 256, 256, 256)  # of the generator: the coarsest map, then after each block
    critic_widths: tuple[int, ...] = (128, 128, 128, 128)  # after each block of the discriminator
    critic_downs: int = 2  # so many of its blocks, the first ones, halve the resolution
    norm: Literal["batch", "group"] = "batch"
    spectral_generator: bool = False  # Zhang et al. 2018: the generator's weights are normalised too
    shared: int = 0  # width of the embedding of the class that all blocks share; 0: each has one of its own
    hierarchical: bool = False  # each block gets a part of z of its own (Brock et al. 2018)
    attention: int = 0  # the generator attends behind the block of this resolution; 0: nowhere
    critic_attention: int = 0  # and the discriminator behind the block that halves to this one
    kind: Literal["resnet"] = "resnet"

    spectral: ClassVar[bool] = True  # the discriminator's weights are normalised, always
    std: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or not self.critic_widths or min(self.widths + self.critic_widths) < 1:
            raise ConfigError("widths needs a coarsest map and at least one block, critic_widths at least one block")
        if not 0 <= self.critic_downs <= len(self.critic_widths):
            raise ConfigError(f"{self.critic_downs} of {len(self.critic_widths)} blocks cannot halve the resolution")

    def coarsest(self, image_size: int) -> int:
        """Size of the smallest map of the generator. Raises `ConfigError` if pictures cannot be halved so often."""
        halvings = max(len(self.widths) - 1, self.critic_downs)
        if image_size % (factor := 2**halvings):
            raise ConfigError(
                f"pictures of {image_size} pixels cannot be halved {halvings} times; use a multiple of {factor} or"
                " fewer blocks"
            )
        return image_size // 2 ** (len(self.widths) - 1)

    def discriminator(self, channels: int, image_size: int, classes: int = 0) -> Body:
        """(B, C, H, W) -> features; channels that tell the class are channels as the others are."""
        self.coarsest(image_size)
        layers: list[nn.Module] = []
        size, sizes = image_size, []
        for number, (before, after) in enumerate(pairwise((channels, *self.critic_widths))):
            down = number < self.critic_downs
            layers.append(DiscriminatorBlock(before, after, down, first=number == 0))
            if down:
                size //= 2
                sizes.append(size)
                if size == self.critic_attention:
                    layers.append(SelfAttention(after))
        _reached("critic_attention", self.critic_attention, sizes)
        network = _begun(nn.Sequential(*layers, SumPooled()))
        return Body(spectrally_normalised(network), self.critic_widths[-1])


class ResNetGenerator(nn.Module):
    """z becomes the coarsest map, and each block doubles its resolution; the class, and parts of z, enter by the norms.

    Source: Miyato and Koyama 2018 (arXiv 1802.05637), appendix A; Brock et al. 2018 (arXiv 1809.11096), appendix B.
    """

    def __init__(self, config: ResNetConfig, latent: int, classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.classes, self.size = classes, config.coarsest(image_size)
        blocks = len(config.widths) - 1
        self.parts = blocks + 1 if config.hierarchical else 1
        if latent % self.parts:
            raise ConfigError(f"z of {latent} dimensions cannot be shared evenly by {self.parts} parts; change latent")
        part = latent // self.parts
        self.embedding = nn.Embedding(classes, config.shared) if classes and config.shared else None
        told = config.shared if self.embedding is not None else classes
        condition = told + (part if config.hierarchical else 0)
        self.first = nn.Linear(part, config.widths[0] * self.size**2)
        self.blocks, self.attentions = nn.ModuleList(), nn.ModuleList()
        size = self.size
        for before, after in pairwise(config.widths):
            size *= 2
            self.blocks.append(GeneratorBlock(before, after, condition, config.norm))
            self.attentions.append(SelfAttention(after) if size == config.attention else nn.Identity())
        _reached("attention", config.attention, [self.size * 2**k for k in range(1, blocks + 1)])
        self.norm = ConditionalNorm(config.widths[-1], 0, config.norm)
        self.last = nn.Conv2d(config.widths[-1], channels, 3, padding=1)
        _begun(self)
        if config.spectral_generator:  # but not the embedding: a class has a length of its own
            for name, layer in self.named_children():
                if name != "embedding":
                    spectrally_normalised(layer)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, latent), (B,) -> (B, C, H, W) in [-1, 1]."""
        first, *rest = z.chunk(self.parts, 1)
        told: Tensor | None = None
        if self.classes:
            label = cast("Tensor", labels)
            told = F.one_hot(label, self.classes).to(z.dtype) if self.embedding is None else self.embedding(label)
        h = self.first(first).unflatten(1, (-1, self.size, self.size))
        for number, (block, attention) in enumerate(zip(self.blocks, self.attentions)):
            given = [c for c in (told, rest[number] if rest else None) if c is not None]
            h = attention(block(h, torch.cat(given, 1) if given else None))
        return torch.tanh(self.last(F.relu(self.norm(h, None))))


@dataclass(frozen=True)
class ResNetGANConfig(GANConfig):
    """A `GANConfig` of residual networks."""

    network: ResNetConfig = field(default_factory=ResNetConfig)  # type: ignore[assignment]
    orthogonal: float = 0.0  # beta of the orthogonal regularisation of the generator

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orthogonal < 0:
            raise ConfigError(f"the weight of a regulariser must not be negative, but it is {self.orthogonal}")


class ResNetGAN(GAN):
    """Residual networks, conditional normalisation, spectral normalisation, projection; with BigGAN's additions.

    `sample` takes `truncation`: z from the normal distribution cut off at this distance from 0, in each dimension.

    Source: Miyato et al. 2018 (arXiv 1802.05957); Miyato and Koyama 2018 (arXiv 1802.05637), survey, eq. 46; Brock,
    Donahue and Simonyan 2018 (arXiv 1809.11096), sections 3 and 3.1.
    """

    config: ResNetGANConfig

    def build_generator(self) -> nn.Module:
        """See `ResNetGenerator`."""
        c = self.config
        return ResNetGenerator(c.network, c.latent, c.classes, c.channels, c.image_size)

    def generators(self, batch: Batch, labels: Tensor | None, random: PictureRandom) -> Losses:
        """See `GAN.generators`; with the orthogonal regularisation, which knows no picture."""
        total, parts = super().generators(batch, labels, random)
        if self.config.orthogonal:
            penalty = self.config.orthogonal * orthogonality(self.generator)
            total, parts = total + penalty, {**parts, "orthogonal": penalty.detach()}
        return Losses(total, parts)

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
        truncation: float | None = None,
    ) -> Tensor:
        """See `GAN.sample`.

        truncation  t: the numbers of z are normal, but within [-t, t]; smaller: better pictures, fewer kinds of them

        Raises `ConfigError` for a threshold that is not above 0, or a prior that is not normal.
        """
        refuse(captions=captions, source=source, mask=mask)
        if truncation is None:
            return super().sample(n, labels=labels, seeds=seeds)
        if not truncation > 0 or self.config.prior != "normal":
            raise ConfigError(f"a normal z is truncated at a threshold above 0, not at {truncation}")
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        wanted = choose_labels(n, labels, self.config.classes, random)
        return self.from_codes(truncated_normal(random.uniform(self.config.latent), truncation), wanted)


def truncated_normal(u: Tensor, threshold: float) -> Tensor:
    """Standard normal within [-t, t], by the inverse of its distribution function, of u uniform on [0, 1).

    The same distribution as drawing again whatever lies outside (Brock et al. 2018, section 3.1).
    """
    inside = math.erf(threshold / math.sqrt(2))
    above = u.double().clamp_min(2**-25)  # of a threshold so large that nothing is cut off, 0 would give -infinity
    return math.sqrt(2) * torch.erfinv((2 * above - 1) * inside).to(u.dtype)


def orthogonality(network: nn.Module) -> Tensor:
    """sum over all weights of |W W^T o (1 - I)|_F^2, W a row for each output, ().

    Different outputs look at different things; their lengths are free. W is a weight as it acts, divided by its largest
    singular value where it is spectrally normalised. Embeddings are left out.
    Source: Brock et al. 2018, eq. 3 (there W^T W with a column for each output).
    """
    sums = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            rows = module.weight.flatten(1)
            products = rows @ rows.T
            sums.append((products - torch.diag(products.diagonal())).square().sum())
    return torch.stack(sums).sum()


def _reached(name: str, size: int, sizes: list[int]) -> None:
    """Raises `ConfigError` for attention at a size that no block gives."""
    if size and size not in sizes:
        raise ConfigError(f"{name}={size} is the size of no block; choose of {sizes}, or 0 for none")


def _begun(network: nn.Module) -> nn.Module:
    """Orthogonal weights (Saxe et al. 2014; Brock et al. 2018, appendix B), biases of 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    return network
