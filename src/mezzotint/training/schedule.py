"""How long a run lasts, and how its learning rate and moving average follow from that. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.config import Config
from ..core.errors import ConfigError
from ..core.system import Recipe


@dataclass(frozen=True)
class Budget(Config):
    """What a run may spend: pictures seen or minutes of the loop, exactly one of the two."""

    pictures: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.pictures is None) == (self.minutes is None):
            raise ConfigError("give a budget either in pictures or in minutes")
        if (self.pictures or self.minutes or 0) <= 0:
            raise ConfigError(f"a budget must be above 0, not {self.pictures or self.minutes or 0}")

    def progress(self, pictures: int, seconds: float) -> float:
        """The share spent, 0 to 1."""
        spent = pictures / self.pictures if self.pictures is not None else seconds / (60 * (self.minutes or 1.0))
        return min(spent, 1.0)


def learning_rate(recipe: Recipe, pictures: int, progress: float) -> float:
    """The factor on every optimizer's rate: linear warm-up in pictures seen, decay by the share of the budget spent.

    constant 1, linear 1 - p, cosine (1 + cos(pi p)) / 2, each from 1 down to `final_lr`
    """
    warm = min(1.0, (pictures + recipe.batch_size) / recipe.warmup) if recipe.warmup else 1.0
    falling = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2}
    return warm * (recipe.final_lr + (1.0 - recipe.final_lr) * falling[recipe.decay])


def ema_decay(recipe: Recipe, pictures: int) -> float:
    """How much of the average survives one step: 0.5^(batch / half-life).

    The half-life is `ema_half_life` pictures, and early in the run `ema_ramp` times the pictures seen
    (Karras et al. 2024, "Analyzing and improving", keep the same two controls).
    """
    half_life = (
        min(float(recipe.ema_half_life), recipe.ema_ramp * pictures) if recipe.ema_ramp else recipe.ema_half_life
    )
    return 0.5 ** (recipe.batch_size / half_life) if half_life > 0 else 0.0
