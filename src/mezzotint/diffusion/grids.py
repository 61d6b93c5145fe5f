"""The times that a solver visits: N steps are N + 1 decreasing numbers, float64 on the CPU, the last of them 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .paths import Path
from .stepping import LOST
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


def quadratic(steps: int, path: Path) -> Tensor:
    """The training indices floor(c i^2) up to T - 1, mostly near the picture (Song et al. 2020, appendix D.2).

    Where those repeat, the i-th is at least i.
    """
    train_steps = steps_of(path)
    i = torch.arange(_checked(steps, train_steps), dtype=torch.float64, device="cpu")
    k = (i**2 * ((train_steps - 1) / max(steps - 1, 1) ** 2) + 1e-9).floor().maximum(i)
    return _from_indices(k if steps > 1 else k + train_steps - 1, train_steps)


def karras(steps: int, path: Path, rho: float = 7.0) -> Tensor:
    """Noise levels r = sigma / alpha whose rho-th roots are in equal steps, then 0 (Karras et al. 2022, eq. 5).

        r_i = (r_max^(1/rho) + i / (N - 1) (r_min^(1/rho) - r_max^(1/rho)))^rho,    i = 0 .. N - 1

    They run from that of t = 1 to that of the path's `start` (`levels`).
    """
    most, least = levels(path)
    i = torch.linspace(0, 1, _checked(steps), dtype=torch.float64, device="cpu")
    return _from_levels((most ** (1 / rho) + i * (least ** (1 / rho) - most ** (1 / rho))) ** rho, path)


def exponential(steps: int, path: Path) -> Tensor:
    """sigma / alpha in equal steps of their logarithm between the two `levels`, then 0 (Lu et al. 2022)."""
    most, least = levels(path)
    i = torch.linspace(0, 1, _checked(steps), dtype=torch.float64, device="cpu")
    return _from_levels(most * (least / most) ** i, path)


def levels(path: Path) -> tuple[Tensor, Tensor]:
    """The largest and the smallest noise level sigma / alpha between which the grids that count in them run.

    They are those of t = 1 and of the path's `start`. Where the picture is lost at t = 1 (`LOST`), or not hidden at all
    at the start, it is 80 or 0.002, as in Karras et al. 2022. The first time of a grid is 1 all the same.
    """
    most, least = (path.at(torch.tensor(t, dtype=torch.float64, device="cpu")).ratio for t in (1.0, path.start))
    most = most if most < LOST else most.new_tensor(80.0)
    return most, least if path.start > 0 and least > 0 else least.new_tensor(0.002)


def _from_levels(r: Tensor, path: Path) -> Tensor:
    times = path.time_of(r)
    return torch.cat([times.new_ones(1), times[1:], times.new_zeros(1)])


def _from_indices(k: Tensor, train_steps: int) -> Tensor:
    times = (k.double() + 1) / train_steps  # index k is the time (k + 1) / T, see `VariancePreserving`
    return torch.cat([times.flip(0), times.new_zeros(1)])


def _checked(steps: int, most: int | None = None) -> int:
    if steps < 1 or steps != int(steps):
        raise ConfigError(f"a sampler needs a whole number of steps, at least 1 step, not {steps}")
    if most is not None and steps > most:
        raise ConfigError(f"{steps} steps are more than the {most} that the model was trained with; use fewer")
    return steps


GRIDS: dict[str, Grid] = {
    "uniform": uniform,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "karras": karras,
    "exponential": exponential,
}
