"""The fully visible sigmoid belief net: as many logistic regressions as there are pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..core.config import Config
from ..core.errors import ConfigError
from ..nn.masked import MaskedMLP
from .binary import MaskedBinaryModel


@dataclass(frozen=True)
class FVSBNConfig(Config):
    """The pictures; there is nothing else to choose."""

    image_size: int
    channels: int = 1

    def __post_init__(self) -> None:
        for name in ("image_size", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


class FVSBN(MaskedBinaryModel):
    """p(x_d = 1 | x_<d) = sigmoid(b_d + sum_{e < d} W_de x_e): the loss is convex.

    Source: Frey 1998; Neal 1992, whose sigmoid belief networks have hidden units besides; survey, eq. 65.
    """

    config: FVSBNConfig

    def __init__(self, config: FVSBNConfig) -> None:
        network = MaskedMLP(config.channels * config.image_size**2, (), direct=True)
        super().__init__(network, config.channels, config.image_size)
        self.config = config
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
