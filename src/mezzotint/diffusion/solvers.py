"""From noise to a picture: pure functions of (denoiser, x, grid, noise).

denoiser  (x, t) -> `Denoised`, with its path
x         the state at grid[0], (B, C, H, W)
grid      decreasing times, float64 on the CPU; the last is that of the state that is returned
noise     a function that returns fresh standard normal numbers like x; only stochastic solvers call it
callback  called with a `Step` before x moves on
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from .paths import Coefficients
from .predictions import Denoised, Denoiser, rows

Noise = Callable[[], Tensor]


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


def euler(denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None) -> Tensor:
    """Euler's method for dx/dt = velocity: order 1 (survey, eq. 105, Box 10)."""
    for i, t, t_next in _steps(grid):
        d = denoiser(x, t)
        _tell(callback, i, grid, d)
        x = x + rows(t_next - t, x) * d.velocity
    return x


def heun(denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None) -> Tensor:
    """Heun's method for dx/dt = velocity: order 2, two evaluations per step.

    A step to sigma = 0, where the velocity of most paths does not exist, is Euler's (Karras et al. 2022, algorithm 1).
    """
    for i, t, t_next in _steps(grid):
        d = denoiser(x, t)
        _tell(callback, i, grid, d)
        v, dt = d.velocity, rows(t_next - t, x)
        x_next = x + dt * v
        if denoiser.path.at(t_next).sigma > 0:
            v_next = denoiser(x_next, t_next).velocity
            x_next = x + dt * (v + v_next) / 2
        x = x_next
    return x


def ddim(
    denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None, *, eta: float = 0.0
) -> Tensor:
    """Denoising diffusion implicit model (Song et al. 2020, eq. 12; survey, eq. 84-85), on any path and any grid.

        x_s = alpha_s c + sqrt(sigma_s^2 - eta^2 b) n + eta sqrt(b) z,    b = posterior variance of x_s

    eta  0: deterministic; 1: the ancestral sampler with its small variance
    """
    for i, t, s in _steps(grid):
        d = denoiser(x, t)
        _tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        variance = eta**2 * posterior(d.at, at_s).small_variance
        clean, n = d.clean, d.noise
        x = rows(at_s.alpha, x) * clean + rows((at_s.sigma**2 - variance).clamp(min=0).sqrt(), x) * n
        if eta and at_s.sigma > 0:
            x = x + rows(variance.sqrt(), x) * noise()
    return x


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    callback: Callback | None = None,
    *,
    variance: Literal["small", "large"] = "small",
) -> Tensor:
    """DDPM's reverse chain (Ho et al. 2020, eq. 7 and algorithm 2; survey, Box 8), on any path and any grid.

    variance  "small": that of the posterior q(x_s | x_t, c), right for data at one point; "large": that of the step
              q(x_t | x_s), right for standard normal data. No noise is added in a step to sigma = 0.
    """
    for i, t, s in _steps(grid):
        d = denoiser(x, t)
        _tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        q = posterior(d.at, at_s)
        x = rows(q.of_clean, x) * d.clean + rows(q.of_x, x) * x
        if at_s.sigma > 0:
            b = q.small_variance if variance == "small" else q.large_variance
            x = x + rows(b.sqrt(), x) * noise()
    return x


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


def _steps(grid: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    return ((i, grid[i], grid[i + 1]) for i in range(len(grid) - 1))


def _tell(callback: Callback | None, i: int, grid: Tensor, denoised: Denoised) -> None:
    if callback is not None:
        callback(Step(i, len(grid) - 1, float(grid[i]), denoised))


SOLVERS: dict[str, Solver] = {
    "ancestral": ancestral,
    "ancestral-large": partial(ancestral, variance="large"),
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
}
