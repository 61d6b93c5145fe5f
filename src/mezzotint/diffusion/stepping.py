"""What all solvers share: how they are called, the grid's steps, and the two steps that reach an end of the path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .paths import Coefficients
from .predictions import Denoised, Denoiser, components, rows

Noise = Callable[[], Tensor]
LOST = 1000.0  # sigma / alpha from which a picture counts as lost in its noise


def no_noise() -> Tensor:
    """The noise of what must be a function of its beginning alone. Raises `ConfigError`."""
    raise ConfigError("this needs a deterministic solver, such as ddim, euler or heun")


class Step(NamedTuple):
    """Where a solver is."""

    number: int  # 0, 1, ..., total - 1
    total: int
    t: float
    denoised: Denoised  # holds x and the expected clean picture


Callback = Callable[[Step], None]


class Solver(Protocol):
    """All solvers are called alike."""

    def __call__(
        self, denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None
    ) -> Tensor:
        """The state at the end of the grid."""


def steps(grid: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, time and next time of each step."""
    return ((i, grid[i], grid[i + 1]) for i in range(len(grid) - 1))


def falling(grid: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The `steps` of a solver that goes from noise to picture only. Raises `ConfigError` for a grid that rises."""
    if not bool((grid.diff() < 0).all()):
        raise ConfigError("this solver goes from noise to a picture, on times that fall; to encode a picture, on times"
                          " that rise, use ddim, euler, heun, edm or rk45")  # fmt: skip
    return steps(grid)


def tell(callback: Callback | None, i: int, grid: Tensor, denoised: Denoised) -> None:
    """Call the callback, if there is one."""
    if callback is not None:
        callback(Step(i, len(grid) - 1, float(grid[i]), denoised))


def straight(d: Denoised, at_s: Coefficients) -> Tensor:
    """x_s = alpha_s c + sigma_s n, DDIM's step (Song et al. 2020, eq. 12), which is Euler's in sigma / alpha.

    It exists where sigma / alpha is infinite before it, and is the expected clean picture where sigma is 0 after it.
    """
    x = rows(at_s.alpha, d.x) * d.clean
    return x + rows(at_s.sigma, x) * d.noise if at_s.sigma > 0 else x


def lost(at: Coefficients) -> Tensor:
    """Whether nothing of the picture is left, alpha = 0, or as good as nothing (the end of the cosine schedule)."""
    return at.sigma >= LOST * at.alpha


def ask(denoiser: Denoiser, x: Tensor, t: Tensor) -> Denoised:
    """The denoiser at t; at x of the time t = 0 where sigma is 0, and a network may say nothing, it is asked later.

    Later is `path.start`, or 0.001 where that is 0 and the prediction does not tell the noise of a clean picture. The
    answer is then that x is the clean picture, and the noise what the network says.
    """
    at = denoiser.path.at(t)
    if at.sigma > 0:
        return denoiser(x, t)
    start = torch.as_tensor(denoiser.path.start, dtype=torch.float64, device="cpu")
    at_start = denoiser.path.at(start)
    of_noise = components(denoiser.kind, at_start)[1]
    if at_start.sigma == 0 and (denoiser.clip or of_noise == 0 or not of_noise.isfinite()):
        start = start.new_tensor(1e-3)
    d = denoiser(x, start)
    return Denoised(x, d.noise, "noise", at, d.share, d.shift)


def half_log_snr(at: Coefficients) -> Tensor:
    """lambda = ln(alpha / sigma), minus infinity at pure noise and infinity at the clean picture."""
    return torch.log(at.alpha) - torch.log(at.sigma)


class Posterior(NamedTuple):
    """q(x_s | x_t, c) for s < t: its mean is of_clean * c + of_x * x_t."""

    of_clean: Tensor
    of_x: Tensor
    small_variance: Tensor  # of q(x_s | x_t, c)
    large_variance: Tensor  # of q(x_t | x_s)


def posterior(at_t: Coefficients, at_s: Coefficients) -> Posterior:
    """The posterior of the earlier state (Ho et al. 2020, eq. 6-7; Kingma et al. 2021, appendix A, for any path).

    With alpha_ts = alpha_t / alpha_s and b = sigma_t^2 - alpha_ts^2 sigma_s^2, the variance of the step q(x_t | x_s):

        mean = (alpha_s b / sigma_t^2) c + (alpha_ts sigma_s^2 / sigma_t^2) x_t,    variance = b sigma_s^2 / sigma_t^2
    """
    alpha_ts = at_t.alpha / at_s.alpha
    b = at_t.sigma**2 - (alpha_ts * at_s.sigma) ** 2
    ratio = (at_s.sigma / at_t.sigma) ** 2
    return Posterior(at_s.alpha * b / at_t.sigma**2, alpha_ts * ratio, b * ratio, b)
