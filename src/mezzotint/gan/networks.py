"""Generators and discriminators of neurons and of strided convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError

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


@dataclass(frozen=True)
class MLPConfig(Config):
    """Layers of neurons. Goodfellow et al. 2014 had ReLU in the generator, maxout and dropout in the discriminator."""

    widths: tuple[int, ...] = (256, 512)  # of the generator; of the discriminator in reverse order
    slope: float = 0.2  # of the discriminator's leaky ReLU below 0
    dropout: float = 0.0  # in the discriminator
    kind: Literal["mlp"] = "mlp"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"a network has at least one layer, each of at least 1 neuron, not {self.widths}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, not {self.dropout}")

    def generator(self, inputs: int, channels: int, image_size: int) -> nn.Module:
        """(B, inputs) -> (B, C, H, W) in [-1, 1]."""
        layers: list[nn.Module] = []
        for before, after in pairwise((inputs, *self.widths)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        shape = nn.Unflatten(1, (channels, image_size, image_size))
        return nn.Sequential(*layers, nn.Linear(self.widths[-1], channels * image_size**2), shape, nn.Tanh())

    def discriminator(self, channels: int, image_size: int) -> Body:
        """(B, C, H, W) -> features."""
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((channels * image_size**2, *self.widths[::-1])):
            layers += [nn.Linear(before, after), nn.LeakyReLU(self.slope)]
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        return Body(nn.Sequential(*layers), self.widths[0])


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
    std: float | None = 0.02  # of the first weights; None: as large as keeps the variance (He et al. 2015)
    kind: Literal["dcgan"] = "dcgan"

    def __post_init__(self) -> None:
        for name in ("channels", "levels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

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

    def generator(self, inputs: int, channels: int, image_size: int) -> nn.Module:
        """(B, inputs) -> (B, C, H, W) in [-1, 1]."""
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
        return self._begun(nn.Sequential(*layers))

    def discriminator(self, channels: int, image_size: int) -> Body:
        """(B, C, H, W) -> features."""
        size = self.coarsest(image_size)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise((channels, *self.widths))):
            norm = "none" if level == 0 else self.critic_norm
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=norm == "none"), *self._normed(norm, after)]
            layers += [nn.LeakyReLU(self.slope)]
        network = self._begun(nn.Sequential(*layers))
        if self.spectral:
            spectrally_normalised(network)
        return Body(network, self.widths[-1] * size**2)

    @staticmethod
    def _normed(norm: Norm, width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width)] if norm == "batch" else []

    def _begun(self, network: nn.Module) -> nn.Module:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                if self.std is None:
                    nn.init.xavier_uniform_(module.weight, nn.init.calculate_gain("relu"))
                else:
                    nn.init.normal_(module.weight, std=self.std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
        return network


def spectrally_normalised(network: nn.Module) -> nn.Module:
    """The network, each of its weights divided by its largest singular value, found by one power iteration a step.

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


class Discriminator(nn.Module):
    """A body that looks, and a head that says how real a picture is, given its class or naming it.

    concat      the class is a map of one-hot channels beside the picture (Mirza and Osindero 2014; survey, eq. 42)
    auxiliary   a second answer, the class (Odena et al. 2016; survey, eq. 44-45)
    projection  <v_y, phi(x)> is added to the score (Miyato and Koyama 2018; survey, eq. 46)
    """

    def __init__(
        self, build: Callable[[int], Body], channels: int, classes: int, conditioning: Conditioning,
        spectral: bool = False, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.conditioning = classes, conditioning
        self.body = build(channels + (classes if conditioning == "concat" else 0))
        self.score = nn.Linear(self.body.width, 1, bias)
        self.naming = nn.Linear(self.body.width, classes) if conditioning == "auxiliary" else None
        self.embedding = nn.Embedding(classes, self.body.width) if conditioning == "projection" else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=self.body.width**-0.5)
        if spectral:
            for head in (self.score, self.naming, self.embedding):
                if head is not None:
                    spectrally_normalised(head)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Verdict:
        """Of pictures (B, C, H, W) and, if it is conditional, their labels (B,)."""
        if self.conditioning == "concat":
            one_hot = F.one_hot(cast("Tensor", labels), self.classes).to(x.dtype)
            x = torch.cat([x, one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
        features = self.body(x)
        score = self.score(features).squeeze(1)
        if self.embedding is not None:
            score = score + (self.embedding(labels) * features).sum(1)
        return Verdict(score, features, None if self.naming is None else self.naming(features))


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
