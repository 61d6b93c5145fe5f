"""Generators and discriminators of neurons and of strided convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError
from .layers import EqualLinear, pixel_norm

Norm = Literal["none", "batch"]
Conditioning = Literal["none", "concat", "auxiliary", "projection"]


class Body(nn.Module):
    """The part of a discriminator that looks: a picture becomes a vector of `width` features."""

    width: int

    def __init__(self, layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers, self.width = layers, width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width)."""
        features: Tensor = self.layers(x)
        return features.flatten(1)


class Maxout(nn.Module):
    """max_j (W_j x + b_j), j = 1 ... pieces, for each output. Goodfellow et al. 2013 (arXiv 1302.4389), section 2."""

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(inputs, outputs * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        sums: Tensor = self.linear(x)
        return sums.unflatten(1, (-1, self.pieces)).amax(2)


class Apart(nn.Module):
    """Two layers side by side, of which one sees all inputs but the last few, and the other one these.

    Source: Mirza and Osindero 2014 (arXiv 1411.1784), section 4.1.
    """

    def __init__(self, first: nn.Module, last: nn.Module, few: int) -> None:
        super().__init__()
        self.first, self.last, self.few = first, last, few

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs of both)."""
        return torch.cat([self.first(x[:, : -self.few]), self.last(x[:, -self.few :])], 1)


class Row(nn.Module):
    """A picture, and the class where maps beside it tell one, as one row: (B, C + K, H, W) -> (B, C H W + K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if not self.classes:
            return x.flatten(1)
        return torch.cat([x[:, : -self.classes].flatten(1), x[:, -self.classes :, 0, 0]], 1)


@dataclass(frozen=True)
class MLPConfig(Config):
    """Layers of neurons: ReLU in the generator; leaky ReLU or maxout, and dropout, in the discriminator."""

    widths: tuple[int, ...] = (256, 512)  # of the generator
    critic_widths: tuple[int, ...] = ()  # of the discriminator; empty: those of the generator in reverse order
    pieces: tuple[int, ...] = ()  # of the maxout in each of the discriminator's layers; empty: leaky ReLU
    slope: float = 0.2  # of the leaky ReLU below 0
    dropout: float = 0.0  # in the discriminator
    generator_dropout: float = 0.0
    apart: int = 0  # neurons more in the generator's first layer, which see the class alone, as the others do not
    critic_apart: int = 0  # and in the discriminator's; 0: the class stands beside the inputs of all neurons
    kind: Literal["mlp"] = "mlp"

    spectral: ClassVar[bool] = False
    std: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths + self.critic_widths) < 1:
            raise ConfigError("a network has at least one layer, each of at least 1 neuron; see widths, critic_widths")
        if self.pieces and (len(self.pieces) != len(self.critics) or min(self.pieces) < 1):
            raise ConfigError(f"the discriminator has {len(self.critics)} layers; pieces needs a number for each")
        for name in ("dropout", "generator_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is a probability below 1, not {getattr(self, name)}")
        if min(self.apart, self.critic_apart) < 0:
            raise ConfigError("apart and critic_apart are numbers of neurons, at least 0")

    @property
    def critics(self) -> tuple[int, ...]:
        """Neurons of each layer of the discriminator."""
        return self.critic_widths or self.widths[::-1]

    def generator(self, inputs: int, channels: int, image_size: int, classes: int = 0) -> nn.Module:
        """(B, inputs) -> (B, C, H, W) in [-1, 1]; the last `classes` inputs tell the class."""

        def layer(before: int, after: int, number: int) -> nn.Module:
            return nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(self.generator_dropout))

        layers, last = _layers(inputs, classes, self.widths, self.apart, layer)
        shape = nn.Unflatten(1, (channels, image_size, image_size))
        return nn.Sequential(*layers, nn.Linear(last, channels * image_size**2), shape, nn.Tanh())

    def discriminator(self, channels: int, image_size: int, classes: int = 0) -> Body:
        """(B, C, H, W) -> features; the last `classes` channels tell the class, alike in all pixels."""

        def layer(before: int, after: int, number: int) -> nn.Module:
            if self.pieces:
                return nn.Sequential(Maxout(before, after, self.pieces[number]), nn.Dropout(self.dropout))
            return nn.Sequential(nn.Linear(before, after), nn.LeakyReLU(self.slope), nn.Dropout(self.dropout))

        inputs = (channels - classes) * image_size**2 + classes
        layers, last = _layers(inputs, classes, self.critics, self.critic_apart, layer)
        return Body(nn.Sequential(Row(classes), *layers), last)


def _layers(
    inputs: int, classes: int, widths: Sequence[int], apart: int, layer: Callable[[int, int, int], nn.Module]
) -> tuple[list[nn.Module], int]:  # fmt: skip
    """Layers of these widths, and how many numbers the last one gives.

    In the first, `apart` more neurons see the class, if there is one, and nothing else.
    layer  (inputs, outputs, its number) -> layer
    """
    apart = apart if classes else 0
    first = layer(inputs - classes if apart else inputs, widths[0], 0)
    if apart:
        first = Apart(first, layer(classes, apart, 0), classes)
    outputs = [widths[0] + apart, *widths[1:]]
    others = [layer(before, after, number) for number, (before, after) in enumerate(pairwise(outputs), 1)]
    return [first, *others], outputs[-1]


@dataclass(frozen=True)
class DCGANConfig(Config):
    """Strided convolutions of 4 x 4; from a map of 4 x 4 (or 7 x 7, or whatever halving ends at) to the picture.

    Batch normalisation stands in all layers but the generator's last and the discriminator's first, ReLU in the
    generator, leaky ReLU in the discriminator; weights begin as N(0, 0.02^2).
    Source: Radford et al. 2015 (arXiv 1511.06434), sections 3 and 4.
    """

    channels: int = 64  # next to the picture; doubled at each halving
    levels: int = 4  # halvings; the paper's 64 pixels become 4
    norm: Norm = "batch"  # in the generator
    critic_norm: Norm = "batch"  # in the discriminator
    spectral: bool = False  # the discriminator's weights are divided by their largest singular values (Miyato 2018)
    slope: float = 0.2
    std: float | None = 0.02  # of the first weights; None: as keeps the mean square from layer to layer, see `begun`
    kind: Literal["dcgan"] = "dcgan"

    def __post_init__(self) -> None:
        for name in ("channels", "levels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.std is not None and not self.std > 0:
            raise ConfigError(f"std is a deviation above 0, or none, not {self.std}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the picture down."""
        return tuple(self.channels * 2**level for level in range(self.levels))

    def coarsest(self, image_size: int) -> int:
        """The size of the smallest map. Raises `ConfigError` if the picture cannot be halved so often."""
        if image_size % (factor := 2**self.levels):
            raise ConfigError(
                f"pictures of {image_size} pixels cannot be halved {self.levels} times; use a multiple of {factor} or"
                " fewer levels"
            )
        return image_size // factor

    def generator(self, inputs: int, channels: int, image_size: int, classes: int = 0) -> nn.Module:
        """(B, inputs) -> (B, C, H, W) in [-1, 1]; inputs that tell the class are inputs as the others are."""
        size, widths = self.coarsest(image_size), self.widths[::-1]
        # a convolution from 1 x 1 to the coarsest map: the projection of z
        layers: list[nn.Module] = [
            nn.Unflatten(1, (inputs, 1, 1)),
            nn.ConvTranspose2d(inputs, widths[0], size, bias=self.norm == "none"),
            *self._normed(self.norm, widths[0]), nn.ReLU(),
        ]  # fmt: skip
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=self.norm == "none")]
            layers += [*self._normed(self.norm, after), nn.ReLU()]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False), nn.Tanh()]
        return begun(nn.Sequential(*layers), self.std)

    def discriminator(self, channels: int, image_size: int, classes: int = 0) -> Body:
        """(B, C, H, W) -> features; channels that tell the class are channels as the others are."""
        size = self.coarsest(image_size)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise((channels, *self.widths))):
            norm = "none" if level == 0 else self.critic_norm
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=norm == "none"), *self._normed(norm, after)]
            layers += [nn.LeakyReLU(self.slope)]
        network = begun(nn.Sequential(*layers), self.std, self.slope)
        if self.spectral:
            spectrally_normalised(network)
        return Body(network, self.widths[-1] * size**2)

    @staticmethod
    def _normed(norm: Norm, width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width)] if norm == "batch" else []


def begun(network: nn.Module, std: float | None, slope: float = 0.0) -> nn.Module:
    """The network with its first weights: N(0, std^2); biases are 0, and gains of batch normalisation N(1, 0.02^2).

    std    None: the variance is 1 / n in the first layer and 2 / ((1 + slope^2) n) in the others, n the inputs that an
           output sums over, so that what comes in and what stands before each (leaky) ReLU have the same mean square
    slope  of the ReLU below 0

    Source: Radford et al. 2015, section 4; without std He et al. 2015 (arXiv 1502.01852), eq. 10 and 15.
    """
    weighted = 0
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            gain = 2 / (1 + slope**2) if weighted else 1.0
            nn.init.normal_(module.weight, std=math.sqrt(gain / summed(module)) if std is None else std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            weighted += 1
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return network


def summed(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> int:
    """How many inputs an output sums over, away from the border."""
    if isinstance(layer, nn.ConvTranspose2d):  # without padding: the projection, whose input is a map of one pixel
        places = [k // s for k, s in zip(layer.kernel_size, layer.stride)]
        return layer.in_channels * (math.prod(places) if any(layer.padding) else 1)
    return layer.weight[0].numel()


def spectrally_normalised(network: nn.Module) -> nn.Module:
    """The network, each of its weights divided by its largest singular value, found by one power iteration a step.

    In evaluation mode the vectors of the iteration stay as they are.
    Source: Miyato et al. 2018 (arXiv 1802.05957), section 2.1 and algorithm 1.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            nn.utils.parametrizations.spectral_norm(module)
    return network


class Verdict:
    """What a discriminator says of pictures."""

    def __init__(self, score: Tensor, features: Tensor, classes: Tensor | None) -> None:
        self.score, self.features, self.classes = score, features, classes  # (B,), (B, F), (B, K) logits or None


class Judge(nn.Module):
    """What looks at pictures, beside which stands their class where it is told so (`conditioning` "concat")."""

    def __init__(self, channels: int, classes: int, conditioning: Conditioning) -> None:
        super().__init__()
        self.classes, self.conditioning = classes, conditioning
        self.channels = channels + (classes if conditioning == "concat" else 0)  # that it looks at

    def seen(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, C, H, W), (B,) -> (B, channels, H, W)."""
        return beside(x, labels, self.classes) if self.conditioning == "concat" else x


class Discriminator(Judge):
    """A body that looks, and a head that says how real a picture is, given its class or naming it.

    concat      the class is a map of one-hot channels beside the picture (Mirza and Osindero 2014; survey, eq. 42)
    auxiliary   a second answer, the class (Odena et al. 2016; survey, eq. 44-45)
    projection  <v_y, phi(x)> is added to the score (Miyato and Koyama 2018; survey, eq. 46)

    spectral  the weights of the head are spectrally normalised, as those of the body
    bias      of the score
    std       of the first weights of the head; None: as torch has them
    """

    def __init__(
        self, build: Callable[[int], Body], channels: int, classes: int, conditioning: Conditioning,
        spectral: bool = False, bias: bool = True, std: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(channels, classes, conditioning)
        self.body = build(self.channels)
        self.score = nn.Linear(self.body.width, 1, bias)
        self.naming = nn.Linear(self.body.width, classes) if conditioning == "auxiliary" else None
        self.embedding = nn.Embedding(classes, self.body.width) if conditioning == "projection" else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=std or self.body.width**-0.5)
        for head in (self.score, self.naming, self.embedding):
            if head is not None and std is not None:
                begun(head, std)
            if head is not None and spectral:
                spectrally_normalised(head)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Verdict:
        """Of pictures (B, C, H, W) and, if it is conditional, their labels (B,)."""
        features = self.body(self.seen(x, labels))
        score = self.score(features).squeeze(1)
        if self.embedding is not None:
            score = score + (self.embedding(labels) * features).sum(1)
        return Verdict(score, features, None if self.naming is None else self.naming(features))


class EqualisedDiscriminator(Judge):
    """What discriminators whose layers learn at equal rates have in common: the head, with the ways of `Discriminator`.

    In the projection <v_y, phi(x)> / sqrt(width), v_y has a mean square of 1.

    Source: survey, eq. 42 to 46.
    """

    def build_head(self, width: int, bias: bool) -> None:
        """Of features of this width; bias: of the score."""
        K, how = self.classes, self.conditioning
        self.score = EqualLinear(width, 1, bias=0.0 if bias else None)
        self.embedding = EqualLinear(K, width, None, gain=math.sqrt(K)) if how == "projection" else None  # of a one-hot
        self.naming = EqualLinear(width, K) if how == "auxiliary" else None

    def verdict(self, features: Tensor, labels: Tensor | None) -> Verdict:
        """Of features, (B, width)."""
        score = self.score(features).squeeze(1)
        if self.embedding is not None:
            v = pixel_norm(self.embedding(F.one_hot(cast("Tensor", labels), self.classes).to(features.dtype)))
            score = score + (v * features).sum(1) / math.sqrt(features.shape[1])
        return Verdict(score, features, None if self.naming is None else self.naming(features))


def beside(x: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """(B, C, H, W), (B,) -> (B, C + K, H, W): the class as a map of one-hot channels."""
    one_hot = F.one_hot(cast("Tensor", labels), classes).to(x.dtype)
    return torch.cat([x, one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)


class Generator(nn.Module):
    """z, beside which stands the one-hot class where there is one, becomes a picture."""

    def __init__(self, build: Callable[[int], nn.Module], latent: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.network = build(latent + classes)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, latent), (B,) -> (B, C, H, W) in [-1, 1]."""
        if self.classes:
            z = torch.cat([z, F.one_hot(cast("Tensor", labels), self.classes).to(z.dtype)], 1)
        images: Tensor = self.network(z)
        return images


NetworkConfig = DCGANConfig | MLPConfig
