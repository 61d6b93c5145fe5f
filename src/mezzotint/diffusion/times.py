"""At which times a model is trained. Each picture's time comes from its own random numbers.

Times are float64 and stay on the CPU, like everything that is computed of them: not every device has float64, and a
few numbers per picture are not worth one. See `predictions.rows` for where they meet the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from ..core.batch import PictureRandom

TimeSampler = Callable[[PictureRandom], Tensor]  # -> (B,) float64 in [0, 1], on the CPU


def uniform(random: PictureRandom) -> Tensor:
    """Uniform on [0, 1) (Liu et al. 2022, eq. 1; survey, eq. 104)."""
    return on_cpu(random).uniform().double()


def discrete(random: PictureRandom, steps: int = 1000) -> Tensor:
    """Uniform on {1/T, 2/T, ..., 1} (Ho et al. 2020, algorithm 1; survey, Box 8)."""
    return (on_cpu(random).integers(0, steps).double() + 1) / steps


def logit_normal(random: PictureRandom) -> Tensor:
    """1 / (1 + exp(-z)), z standard normal: mostly the middle, the hardest part (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(on_cpu(random).normal().double())


def on_cpu(random: PictureRandom) -> PictureRandom:
    """The same generators, whose numbers stay where they are drawn."""
    staying = copy(random)
    staying.device = torch.device("cpu")
    return staying


TIMES: dict[str, TimeSampler] = {"uniform": uniform, "discrete": discrete, "logit-normal": logit_normal}
