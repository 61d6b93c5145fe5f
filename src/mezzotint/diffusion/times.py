"""At which times a model is trained. Each picture's time comes from its own random numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.batch import PictureRandom

TimeSampler = Callable[[PictureRandom], Tensor]  # -> (B,) float64 in [0, 1]


def uniform(random: PictureRandom) -> Tensor:
    """Uniform on [0, 1) (Liu et al. 2022, eq. 1; survey, eq. 104)."""
    return random.uniform().double()


def discrete(random: PictureRandom, steps: int = 1000) -> Tensor:
    """Uniform on {1/T, 2/T, ..., 1} (Ho et al. 2020, algorithm 1; survey, Box 8)."""
    return (random.integers(0, steps).double() + 1) / steps


def logit_normal(random: PictureRandom) -> Tensor:
    """1 / (1 + exp(-z)), z standard normal: mostly the middle, the hardest part (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(random.normal().double())


TIMES: dict[str, TimeSampler] = {"uniform": uniform, "discrete": discrete, "logit-normal": logit_normal}
