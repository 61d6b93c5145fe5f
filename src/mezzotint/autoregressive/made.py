"""The masked autoencoder for distribution estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch.nn import functional as F

from ..core.config import Config
from ..core.errors import ConfigError
from ..nn.masked import MaskedMLP
from .binary import MaskedBinaryModel


@dataclass(frozen=True)
class MADEConfig(Config):
    """An autoencoder whose connections are masked."""

    image_size: int
    channels: int = 1
    widths: tuple[int, ...] = (500,)  # of the hidden layers
    direct: bool = False  # whether inputs are connected with outputs, too
    masks: int = 1  # sets of masks, that take turns: what hidden units may see is drawn anew for each of them
    orders: Literal["raster", "random"] = "raster"  # of the pixels; random: another one for each set of masks
    seed: int = 0  # of the masks

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "masks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"there is at least one hidden layer, of at least 1 unit, not {self.widths}; see fvsbn")


class MADE(MaskedBinaryModel):
    """p(x_d = 1 | x_<d) = sigmoid(a_d(x)), all a_d by one masked network with hidden layers of half-linear units.

    Masks of several orders make an ensemble, whose p is the mean of theirs: ln p(x) is logsumexp_m ln p_m(x) - ln M.
    Probabilities or logits of single pixels must not be averaged over orders: what is the past of a pixel in one order
    is its future in another, and numbers so made are of no distribution.
    Source: Germain et al. 2015 (arXiv 1502.03509), sections 3 and 4; survey, eq. 65.
    """

    config: MADEConfig

    def __init__(self, config: MADEConfig) -> None:
        network = MaskedMLP(
            config.channels * config.image_size**2, config.widths, activation=F.relu, direct=config.direct,
            masks=config.masks, orders="random" if config.orders == "random" else "given", seed=config.seed,
        )  # fmt: skip
        super().__init__(network, config.channels, config.image_size)
        self.config = config
