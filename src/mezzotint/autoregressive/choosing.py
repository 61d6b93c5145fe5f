"""Which token comes next: drawn from its distribution, or from the likeliest part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import PictureRandom
from ..core.config import Config
from ..core.errors import ConfigError


def check_temperature(temperature: float) -> None:
    """Raises `ConfigError` for a temperature below 0, or one that is no finite number."""
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"a temperature is a number of 0 or more, not {temperature}")


@dataclass(frozen=True)
class Choice(Config):
    """How the next token is drawn.

    temperature  logits are divided by it; 0: the likeliest token
    top_k        only the k likeliest tokens; 0: all
    top_p        only the fewest tokens, the likeliest first, that have this probability together (Holtzman et al. 2020,
                 arXiv 1904.09751, section 3.1); 1: all

    Raises `ConfigError` for a temperature or k below 0, or p outside of (0, 1].
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not 0 <= self.top_k < math.inf:
            raise ConfigError(f"top_k is a number of tokens, or 0 for all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is a probability above 0, not {self.top_p}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from, float64: (B, V) of logits (B, V)."""
        logits = logits.double()
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).double()
        p = (logits / self.temperature).softmax(1)
        if self.top_k or self.top_p < 1:
            sorted_p, tokens = p.sort(dim=1, descending=True, stable=True)
            kept = sorted_p.cumsum(1) - sorted_p < self.top_p  # as long as those before have less than that together
            if self.top_k:
                kept[:, self.top_k :] = False
            p = torch.zeros_like(p).scatter(1, tokens, sorted_p * kept)
        return p / p.sum(1, keepdim=True)

    def draw(self, logits: Tensor, random: PictureRandom) -> Tensor:
        """A token for each row, (B,) of logits (B, V), by one uniform number each: the first whose F(token) exceeds it.

        A token of probability zero is never drawn.
        """
        cumulative = self.probabilities(logits).cumsum(1)
        u = random.uniform(1).double() * cumulative[:, -1:]
        return torch.searchsorted(cumulative, u, right=True)[:, 0].clamp_max(logits.shape[1] - 1)
