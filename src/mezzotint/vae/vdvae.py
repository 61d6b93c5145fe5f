"""Very deep VAEs: a ladder of residual blocks, each with a group of codes of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError
from ..nn.blocks import Pointwise
from .gaussian import Gaussian
from .groups import Choose, GroupedModel, enlarged, halved
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .objectives import ELBO, ObjectiveConfig

# The published ladders: CIFAR-10 and ImageNet at 32 and 64 pixels
CIFAR10 = "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3", "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"
IMAGENET32 = "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6", "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40"
IMAGENET64 = (
    "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
    "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
)


@dataclass(frozen=True)
class VDVAEConfig(Config):
    """Pictures, ladder, likelihood and objective.

    The ladder is written as the paper's authors write it, blocks in the order in which they are passed:

        encoder  "32x11"  eleven blocks at 32 x 32
                 "32d2"   one block at 32 x 32, then means of 2 x 2; a size that is odd is rounded up
        decoder  "1x1"    one block at 1 x 1
                 "4m1"    one block at 4 x 4, which begins with what is known at 1 x 1, each pixel repeated
    """

    image_size: int
    channels: int = 1
    encoder: str = CIFAR10[0]
    decoder: str = CIFAR10[1]
    width: int = 384  # channels of the residual streams
    widths: str = ""  # where they are others: "32:64,16:128" for sizes 32 and 16
    bottleneck: float = 0.25  # of the width, inside blocks
    latent: int = 16  # channels of each group of codes
    biases_up_to: int = 64  # largest size that has a picture of learned biases
    likelihood: LikelihoodConfig = field(default_factory=lambda: LogisticsConfig(10))
    objective: ObjectiveConfig = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        for name in ("width", "latent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        up, down = self._encoder_sizes(), self._decoder_sizes()
        if missing := sorted(down - set(up)):
            raise ConfigError(
                f"the decoder has blocks at size {missing[0]}, where the encoder {self.encoder!r} has nothing to say; "
                f"use {', '.join(map(str, dict.fromkeys(up)))}"
            )
        if up[-1] not in down:
            raise ConfigError(
                f"the encoder ends at size {up[-1]}, where the decoder {self.decoder!r} has no block; end it at"
                f" {min(down)}"
            )
        for size in down:
            if self.inner_at(size) < 1:
                raise ConfigError(f"a bottleneck of {self.bottleneck} leaves no channel of {self.width_at(size)}")

    def _encoder_sizes(self) -> list[int]:
        """Sizes at which the encoder knows something. Raises `ConfigError` where one block does not follow another."""
        sizes = [self.image_size]
        for size, rate in parse_blocks(self.encoder, "d"):
            if size != sizes[-1]:
                raise ConfigError(f"a block of the encoder {self.encoder!r} is at size {size}, but {sizes[-1]} is next")
            if rate is not None and rate < 2:
                raise ConfigError(f"what is pooled becomes smaller; {size}d{rate} does not")
            sizes.append(size if rate is None else halved(size, rate))
        return sizes

    def _decoder_sizes(self) -> set[int]:
        """Sizes at which the decoder has blocks. Raises `ConfigError` where one does not follow another."""
        blocks = parse_blocks(self.decoder, "m")
        if blocks[0][1] is not None:
            raise ConfigError(f"the first block of the decoder {self.decoder!r} begins with nothing")
        present = blocks[0][0]
        for size, coarser in blocks[1:]:
            if (coarser or size) != present or (coarser is not None and coarser >= size):
                raise ConfigError(f"a block of the decoder {self.decoder!r} is at size {size}, but {present} is before")
            present = size
        if present != self.image_size:
            raise ConfigError(f"the decoder {self.decoder!r} ends at size {present}; pictures have {self.image_size}")
        return {size for size, _ in blocks}

    def width_at(self, size: int) -> int:
        """Channels of the streams at this size."""
        return _widths(self.widths).get(size, self.width)

    def inner_at(self, size: int) -> int:
        """Channels inside the blocks at this size."""
        return int(self.bottleneck * self.width_at(size))


def parse_blocks(text: str, letter: str) -> list[tuple[int, int | None]]:
    """The blocks that a ladder's line names, in order: size, and the number behind `letter` ("d" or "m") or None.

    Raises `ConfigError` for what is not such a line; see `VDVAEConfig`.
    """
    blocks: list[tuple[int, int | None]] = []
    for part in text.split(","):
        match = re.fullmatch(rf"([1-9]\d*)(?:([x{letter}])([1-9]\d*))?", part.strip())
        if match is None:
            raise ConfigError(f"blocks are written as '8x2' or '8{letter}4', not {part!r}")
        size, number = int(match[1]), int(match[3] or 1)
        blocks += [(size, number)] if match[2] == letter else [(size, None)] * number
    return blocks


def fitted(text: str, size: int, image_size: int) -> str:
    """A ladder for pictures of `size` pixels (a power of two), for others: each level is half the one above it.

    A level that is not half (4 to 1) stays what it is. Raises `ConfigError` if the pictures are too small for it.
    """

    def level(old: int) -> int:
        return 1 if old == 1 else halved(image_size, size // old)

    def changed(match: re.Match[str]) -> str:
        old, letter, number = int(match[1]), match[2], int(match[3])
        if letter == "x":
            return f"{level(old)}x{number}"
        small, large = (number, old) if letter == "m" else (old // number, old)
        if level(small) >= level(large):
            raise ConfigError(f"pictures of {image_size} pixels cannot be halved as often as the ladder {text!r} is")
        return f"{level(old)}{letter}{level(small) if letter == 'm' else halved(level(large), level(small))}"

    return re.sub(r"(\d+)([xdm])(\d+)", changed, text)


def _widths(text: str) -> dict[int, int]:
    """Width by size. Raises `ConfigError`."""
    found: dict[int, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        if (match := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", part)) is None:
            raise ConfigError(f"widths are written as '32:64,16:128', not {part!r}")
        found[int(match[1])] = int(match[2])
    return found


class Bottleneck(nn.Module):
    """gelu before each of four convolutions, 1x1, 3x3, 3x3 and 1x1, the two in the middle narrower (section 3, fig. 3).

    size   of the maps: at 2 and 1 all four are 1x1
    scale  of the last convolution's first weights; 0: the answer begins as zero
    """

    def __init__(self, inputs: int, inner: int, outputs: int, size: int, scale: float = 1.0) -> None:
        super().__init__()
        middle = [conv(inner, inner, 3 if size > 2 else 1) for _ in range(2)]
        self.convs = nn.ModuleList([conv(inputs, inner, 1), *middle, conv(inner, outputs, 1, scale)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        for layer in self.convs:
            x = layer(F.gelu(x))
        return x


def conv(inputs: int, outputs: int, kernel: int, scale: float = 1.0) -> nn.Conv2d:
    """A convolution with torch's first weights, times `scale`, and biases that begin at zero."""
    same = Pointwise(inputs, outputs) if kernel == 1 else nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    with torch.no_grad():
        same.weight.mul_(scale)
    nn.init.zeros_(cast("Tensor", same.bias))
    return same


class TopDownBlock(nn.Module):
    """One group of codes (figure 3; survey, fig. 11): prior and posterior, and what becomes of the stream x.

        m, s, h = prior(x),   z ~ N(m, s)  or  N(posterior(x, what the encoder knows)),   x <- x + h + W z
        x <- x + residual(x)

    W and the last weights of the residual begin 1 / sqrt(N) as large as they were, and the prior's last at zero, so
    that neither the stream nor the KL grows with N.

    blocks  N, how many there are in the decoder
    """

    def __init__(self, config: VDVAEConfig, size: int, blocks: int) -> None:
        super().__init__()
        width, inner, latent = config.width_at(size), config.inner_at(size), config.latent
        self.prior_net = Bottleneck(width, inner, 2 * latent + width, size, scale=0.0)
        self.posterior_net = Bottleneck(2 * width, inner, 2 * latent, size)
        self.project = conv(latent, width, 1, blocks**-0.5)
        self.residual = Bottleneck(width, inner, width, size, blocks**-0.5)
        self.latent = latent

    def prior(self, x: Tensor) -> tuple[Gaussian, Tensor]:
        """p(z | x) and h."""
        mean, log_std, features = self.prior_net(x).tensor_split([self.latent, 2 * self.latent], 1)
        return Gaussian(mean, log_std), features

    def posterior(self, x: Tensor, seen: Tensor) -> Gaussian:
        """q(z | x, picture)."""
        return Gaussian(*self.posterior_net(torch.cat([x, seen], 1)).chunk(2, 1))

    def forward(self, x: Tensor, features: Tensor, z: Tensor) -> Tensor:
        """The stream after z."""
        x = x + features + self.project(z)
        return cast("Tensor", x + self.residual(x))


class VDVAE(GroupedModel):
    """A very deep VAE: as many groups of codes as the decoder has blocks.

    The encoder's blocks leave, at each size, what they know of the picture; the decoder's begin at the coarsest size
    with learned biases, and at each finer one with biases and what the coarser one ended with, each pixel repeated.
    Networks answer mean and ln sigma of a group.

    Gradients that are far from the usual norm are skipped by the trainer, whose measure follows the run; the paper's
    fixed threshold may lie below every gradient of a run, which then learns nothing for ever.

    Source: Child 2021 (arXiv 2011.10650), section 3; survey, section 2.6.3, fig. 11.
    """

    config: VDVAEConfig

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config = config
        self.up, self.down = parse_blocks(config.encoder, "d"), parse_blocks(config.decoder, "m")
        size, scale = config.image_size, len(self.up) ** -0.5
        self.stem = conv(config.channels, config.width_at(size), 3)
        self.encoder = nn.ModuleList(
            Bottleneck(config.width_at(at), config.inner_at(at), config.width_at(at), at, scale) for at, _ in self.up
        )
        self.decoder = nn.ModuleList(TopDownBlock(config, at, len(self.down)) for at, _ in self.down)
        self.sizes = sorted({at for at, _ in self.down})
        self.biases = nn.ParameterDict({
            str(at): nn.Parameter(torch.zeros(1, config.width_at(at), at, at))
            for at in self.sizes if at <= config.biases_up_to
        })  # fmt: skip
        self.gain = nn.Parameter(torch.ones(1, config.width_at(size), 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width_at(size), 1, 1))
        self.head = conv(config.width_at(size), self.likelihood.outputs, 1)
        self.shapes = [(config.latent, at, at) for at, _ in self.down]

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the encoder leaves at each size of the decoder, from the coarsest: (B, width, size, size)."""
        x = self.stem(batch.images)
        left = {x.shape[-1]: x}
        for block, (_, rate) in zip(self.encoder, self.up):
            x = x + block(x)
            if rate is not None:
                x = F.avg_pool2d(x, rate, ceil_mode=True)
                x = _as_wide(x, self.config.width_at(x.shape[-1]))
            left[x.shape[-1]] = x
        return tuple(left[at] for at in self.sizes)

    def descend(self, rows: int, seen: tuple[Tensor, ...] | None, choose: Choose) -> Tensor:
        """See `GroupedModel.descend`."""
        x = self._begin(self.sizes[0], rows)
        for group, (layer, (at, coarser)) in enumerate(zip(self.decoder, self.down)):
            block = cast("TopDownBlock", layer)
            if coarser is not None:
                x = self._begin(at, rows) + enlarged(_as_wide(x, self.config.width_at(at)), at)
            prior, features = block.prior(x)
            posterior = block.posterior(x, seen[self.sizes.index(at)]) if seen is not None else None
            x = block(x, features, choose(group, prior, posterior))
        return cast("Tensor", self.head(x * self.gain + self.bias))

    def _begin(self, size: int, rows: int) -> Tensor:
        """The learned biases of a size, (rows, width, size, size)."""
        if str(size) in self.biases:
            return self.biases[str(size)].expand(rows, -1, -1, -1)
        return self.gain.new_zeros(rows, self.config.width_at(size), size, size)


def _as_wide(x: Tensor, width: int) -> Tensor:
    """The first channels, or channels of zeros behind those that there are: (B, width, H, W)."""
    return x[:, :width] if x.shape[1] >= width else F.pad(x, (0, 0, 0, 0, 0, width - x.shape[1]))
