"""Encoders and decoders of the plain models: layers of neurons, or convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, cast

from torch import Tensor, nn

from ..core.config import Config
from ..core.errors import ConfigError

Activation = Literal["tanh", "relu", "softplus", "silu", "leaky"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU,
    "leaky": partial(nn.LeakyReLU, 0.1),
}  # fmt: skip


def begin(network: nn.Module, activation: Activation) -> nn.Module:
    """The network with weights uniform as in Glorot and Bengio 2010, sqrt(2) times as large for half-linear units."""
    gain = nn.init.calculate_gain("relu") if activation in ("relu", "silu", "leaky") else 1.0
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(module.weight, gain)
            nn.init.zeros_(cast("Tensor", module.bias))
    return network


def mlp(inputs: int, widths: tuple[int, ...], activation: Activation) -> nn.Sequential:
    """Linear layers, each followed by the activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def answering(inputs: int, widths: tuple[int, ...], outputs: int, activation: Activation) -> nn.Module:
    """Hidden layers and a linear one: (B, inputs) -> (B, outputs)."""
    return begin(nn.Sequential(mlp(inputs, widths, activation), nn.Linear(widths[-1], outputs)), activation)


def check_widths(widths: tuple[int, ...], whose: str) -> None:
    """Raises `ConfigError` where there is no layer, or one without neurons; `whose`: "an encoder has"."""
    if not widths or min(widths) < 1:
        raise ConfigError(f"{whose} at least one layer, each of at least 1 neuron, not {widths}")


class Unit(nn.Module):
    """Pictures in [-1, 1] as most papers show them to neurons, in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """(x + 1) / 2."""
        return (x + 1) / 2


@dataclass(frozen=True)
class MLPConfig(Config):
    """Hidden layers, those of the decoder in reverse order."""

    widths: tuple[int, ...] = (500, 500)  # of the encoder
    activation: Activation = "relu"
    # Pictures in [-1, 1] are seen in [0, 1], where black is nothing. As -1 it is a large number that most pixels of a
    # digit have in common, from which tanh units learn so slowly that they first give up the code
    unit: bool = False
    kind: Literal["mlp"] = "mlp"

    def __post_init__(self) -> None:
        check_widths(self.widths, "an encoder has")

    def encoder(self, channels: int, image_size: int, outputs: int) -> nn.Module:
        """(B, C, H, W) -> (B, outputs)."""
        hidden = mlp(channels * image_size**2, self.widths, self.activation)
        last = nn.Linear(self.widths[-1], outputs)
        return begin(nn.Sequential(*self.seen(), hidden, last), self.activation)

    def seen(self) -> list[nn.Module]:
        """What comes before the first layer."""
        return [Unit(), nn.Flatten()] if self.unit else [nn.Flatten()]

    def decoder(self, latent: int, outputs: int, image_size: int) -> nn.Module:
        """(B, latent) -> (B, outputs, H, W)."""
        hidden = mlp(latent, self.widths[::-1], self.activation)
        last = nn.Linear(self.widths[0], outputs * image_size**2)
        shape = nn.Unflatten(1, (outputs, image_size, image_size))
        return begin(nn.Sequential(hidden, last, shape), self.activation)


@dataclass(frozen=True)
class ConvConfig(Config):
    """Convolutions of stride two, each level wider than the one before, and a layer of neurons."""

    channels: int = 32  # of the first level
    levels: int = 2  # how often the size is halved
    hidden: int = 256  # neurons between map and code
    activation: Activation = "silu"
    kind: Literal["conv"] = "conv"

    def __post_init__(self) -> None:
        for name in ("channels", "levels", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    def _map(self, image_size: int) -> tuple[int, int]:
        """Channels and size of the coarsest level."""
        if image_size % (factor := 2**self.levels):
            raise ConfigError(
                f"pictures of {image_size} pixels cannot be halved {self.levels} times; use a multiple of {factor} or"
                " fewer levels"
            )
        return self.channels * 2 ** (self.levels - 1), image_size // factor

    def encoder(self, channels: int, image_size: int, outputs: int) -> nn.Module:
        """(B, C, H, W) -> (B, outputs). Raises `ConfigError` if the size cannot be halved so often."""
        width, size = self._map(image_size)
        widths = (channels, *(self.channels * 2**level for level in range(self.levels)))
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), ACTIVATIONS[self.activation]()]
        neurons = mlp(width * size**2, (self.hidden,), self.activation)
        network = nn.Sequential(*layers, nn.Flatten(), neurons, nn.Linear(self.hidden, outputs))
        return begin(network, self.activation)

    def decoder(self, latent: int, outputs: int, image_size: int) -> nn.Module:
        """(B, latent) -> (B, outputs, H, W). Raises `ConfigError` if the size cannot be halved so often."""
        width, size = self._map(image_size)
        neurons = mlp(latent, (self.hidden, width * size**2), self.activation)
        layers: list[nn.Module] = [neurons, nn.Unflatten(1, (width, size, size))]
        widths = (*(self.channels * 2**level for level in reversed(range(self.levels))), self.channels)
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), ACTIVATIONS[self.activation]()]
        return begin(nn.Sequential(*layers, nn.Conv2d(self.channels, outputs, 3, padding=1)), self.activation)


NetworkConfig = MLPConfig | ConvConfig
