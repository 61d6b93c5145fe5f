"""At which times a model is trained. Each picture's time comes from its own random numbers.

Times are float64 and stay on the CPU, like everything that is computed of them: not every device has float64, and a
few numbers per picture are not worth one. See `predictions.rows` for where they meet the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from ..core.batch import PictureRandom
from .paths import Path

TimeSampler = Callable[[PictureRandom, Path], Tensor]  # -> (B,) float64, on the CPU


def uniform(random: PictureRandom, path: Path) -> Tensor:
    """Uniform from the path's start to 1 (Song et al. 2021, eq. 7; Liu et al. 2022, eq. 1; survey, eq. 104).

    Never an end itself, where some weights and targets do not exist.
    """
    return path.start + (1 - path.start) * inside(on_cpu(random).uniform())


def discrete(random: PictureRandom, path: Path) -> Tensor:
    """Uniform on {1/T, 2/T, ..., 1} (Ho et al. 2020, algorithm 1; survey, Box 8); T = 1000 on a continuous path."""
    steps = steps_of(path)
    return (on_cpu(random).integers(0, steps).double() + 1) / steps


def logit_normal(random: PictureRandom, path: Path) -> Tensor:
    """1 / (1 + exp(-z)), z standard normal: mostly the middle, the hardest part (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(on_cpu(random).normal().double())


def log_normal(random: PictureRandom, path: Path, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """When sigma / alpha is exp(mean + std z), z standard normal (Karras et al. 2022, table 1).

    The path's start where it never is so small, 1 where a path of steps is never so noisy.
    """
    t = path.time_of(torch.exp(mean + std * on_cpu(random).normal().double()))
    return torch.where(t > 0, t, path.start)


def u_shaped(random: PictureRandom, path: Path, a: float = 4.0) -> Tensor:
    """The density exp(a t) + exp(a (1 - t)), normalised: both ends (Lee et al. 2024, section 4.1, a = 4)."""
    u, side = inside(on_cpu(random).uniform(2)).unbind(1)
    t = torch.log1p(u * math.expm1(a)) / a  # the density a exp(a t) / (exp(a) - 1)
    return torch.where(side < 0.5, t, 1 - t)


def inside(u: Tensor) -> Tensor:
    """Uniform numbers, float32 multiples of 2^-24 in [0, 1), as float64 in the middle of their cells: within (0, 1)."""
    return u.double() + 2**-25


def steps_of(path: Path) -> int:
    """T of a path that is defined by steps; 1000 of any other."""
    return getattr(path, "steps", 1000)


def on_cpu(random: PictureRandom) -> PictureRandom:
    """The same generators, whose numbers stay where they are drawn."""
    staying = copy(random)
    staying.device = torch.device("cpu")
    return staying


TIMES: dict[str, TimeSampler] = {
    "uniform": uniform,
    "discrete": discrete,
    "logit-normal": logit_normal,
    "log-normal": log_normal,
    "u-shaped": u_shaped,
}
