"""The times that a solver visits: N steps are N + 1 decreasing numbers, float64 on the CPU, the last of them 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .paths import Path
from .times import steps_of

Grid = Callable[[int, Path], Tensor]  # N and the path -> (N + 1,) float64


def uniform(steps: int, path: Path) -> Tensor:
    """1, 1 - 1/N, ..., 0 (survey, Box 10)."""
    return torch.linspace(1, 0, _checked(steps) + 1, dtype=torch.float64, device="cpu")


def leading(steps: int, path: Path) -> Tensor:
    """The training indices 0, r, 2r, ... with r = floor(T / N), backwards (Song et al. 2020, appendix D.2)."""
    train_steps = steps_of(path)
    r = train_steps // _checked(steps, train_steps)
    return _from_indices(torch.arange(steps, device="cpu") * r, train_steps)


def trailing(steps: int, path: Path) -> Tensor:
    """The training indices T - 1, T - 1 - T/N, ..., rounded: pure noise comes first (Lin et al. 2024, table 2)."""
    train_steps = steps_of(path)
    i = torch.arange(_checked(steps, train_steps), dtype=torch.float64, device="cpu")
    k = train_steps - i * train_steps / steps
    return _from_indices(k.round().long().flip(0) - 1, train_steps)


def linspace(steps: int, path: Path) -> Tensor:
    """N of the training indices 0 ... T - 1 in equal steps, with both ends (Nichol and Dhariwal 2021, section 4)."""
    train_steps = steps_of(path)
    k = torch.linspace(0, train_steps - 1, _checked(steps, train_steps), dtype=torch.float64, device="cpu")
    return _from_indices(k.round().long(), train_steps)


def _from_indices(k: Tensor, train_steps: int) -> Tensor:
    times = (k.double() + 1) / train_steps  # index k is the time (k + 1) / T, see `VariancePreserving`
    return torch.cat([times.flip(0), times.new_zeros(1)])


def _checked(steps: int, most: int | None = None) -> int:
    if steps < 1:
        raise ConfigError(f"a sampler needs at least 1 step, not {steps}")
    if most is not None and steps > most:
        raise ConfigError(f"{steps} steps are more than the {most} that the model was trained with; use fewer")
    return steps


GRIDS: dict[str, Grid] = {"uniform": uniform, "leading": leading, "trailing": trailing, "linspace": linspace}
