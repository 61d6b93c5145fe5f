"""From noise to a picture: pure functions of (denoiser, x, grid, noise).

denoiser  (x, t) -> `Denoised`, with its path
x         the state at grid[0], (B, C, H, W)
grid      times, float64 on the CPU; the last is that of the state that is returned
noise     a function that returns fresh standard normal numbers like x; only stochastic solvers call it
callback  called with a `Step` before x moves on

They work on every path. Wherever a grid ends at sigma = 0, its last step gives the expected clean picture (only `lms`
extrapolates, as published), because the velocity of most paths does not exist there. Where a path begins with
alpha = 0, or next to it (`stepping.lost`), the first step of those that count in sigma / alpha, or divide by alpha, is
DDIM's; what they remember of earlier steps begins after it.
The deterministic one-step solvers here also take rising times, which turn a picture into its noise.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from . import multistep
from .ode import Solution, dopri5
from .predictions import Denoiser, rows
from .stepping import Callback, Noise, Posterior, Solver, Step, ask, falling, lost, posterior, steps, straight, tell
from .stochastic import ancestral, euler_maruyama, predictor_corrector

__all__ = (
    "SOLVERS", "Callback", "Noise", "Posterior", "Solver", "Step", "ancestral", "ddim", "edm", "euler",
    "euler_maruyama", "heun", "posterior", "predictor_corrector", "probability_flow", "rk45",
)  # fmt: skip


def euler(denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None) -> Tensor:
    """Euler's method for dx/dt = velocity: order 1 (survey, eq. 105, Box 10).

    A step from or to sigma = 0 is DDIM's, which is Euler's wherever alpha and sigma are linear in t.
    """
    for i, t, s in steps(grid):
        d = ask(denoiser, x, t)
        tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        x = x + rows(s - t, x) * d.velocity if d.at.sigma > 0 and at_s.sigma > 0 else straight(d, at_s)
    return x


def heun(denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None) -> Tensor:
    """Heun's method for dx/dt = velocity: order 2, two evaluations per step, one in a step from or to sigma = 0."""
    for i, t, s in steps(grid):
        d = ask(denoiser, x, t)
        tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        if d.at.sigma > 0 and at_s.sigma > 0:
            v, dt = d.velocity, rows(s - t, x)
            x = x + dt * (v + denoiser(x + dt * v, s).velocity) / 2
        else:
            x = straight(d, at_s)
    return x


def ddim(
    denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None, *, eta: float = 0.0
) -> Tensor:
    """Denoising diffusion implicit model (Song et al. 2020, eq. 12; survey, eq. 84-85), on any path and any grid.

        x_s = alpha_s c + sqrt(sigma_s^2 - eta^2 b) n + eta sqrt(b) z,    b = posterior variance of x_s

    On rising times it is the inversion that encodes a picture (Song et al. 2020, section 4.3).

    eta  0: deterministic; 1: the ancestral sampler with its small variance
    """
    for i, t, s in falling(grid) if eta else steps(grid):
        d = ask(denoiser, x, t)
        tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        if eta and at_s.sigma > 0:
            variance = eta**2 * posterior(d.at, at_s).small_variance
            x = rows(at_s.alpha, x) * d.clean + rows((at_s.sigma**2 - variance).clamp(min=0).sqrt(), x) * d.noise
            x = x + rows(variance.sqrt(), x) * noise()
        else:
            x = straight(d, at_s)
    return x


def edm(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    callback: Callback | None = None,
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = float("inf"),
    S_noise: float = 1.0,
) -> Tensor:
    """Heun's method in sigma / alpha after some new noise (Karras et al. 2022, algorithms 1 and 2), on any path.

    With r = sigma / alpha, gamma = min(S_churn / N, sqrt(2) - 1) where S_min <= r <= S_max and 0 elsewhere:

        r^ = r + gamma r,    x^ / alpha^ = x / alpha + sqrt(r^^2 - r^2) S_noise z
        x_s / alpha_s = x^ / alpha^ + (r_s - r^) (n(x^, r^) + n(x', r_s)) / 2,    x' that of Euler's step

    Of order 2 without churn, two evaluations per step. A step from or to pure noise (`lost`) or sigma = 0 is
    DDIM's. The noisier r^ may lie beyond t = 1 where the path allows it; elsewhere x is made as noisy as it can be.
    """
    gamma_most = min(S_churn / (len(grid) - 1), 2**0.5 - 1)
    for i, t, s in falling(grid) if S_churn else steps(grid):
        at, at_s = denoiser.path.at(t), denoiser.path.at(s)
        if gamma_most > 0 and S_min <= at.ratio <= S_max and not lost(at):
            t = denoiser.path.time_of((1 + gamma_most) * at.ratio)
            at_hat = denoiser.path.at(t)
            added = (at_hat.ratio**2 - at.ratio**2).clamp(min=0).sqrt() * at_hat.alpha * S_noise
            x = rows(at_hat.alpha / at.alpha, x) * x + rows(added, x) * noise()
        d = ask(denoiser, x, t)
        tell(callback, i, grid, d)
        x = straight(d, at_s)
        if d.at.sigma > 0 and at_s.sigma > 0 and not lost(d.at) and not lost(at_s):
            x = x + rows((at_s.sigma - at_s.alpha * d.at.ratio) / 2, x) * (denoiser(x, s).noise - d.noise)
    return x


def rk45(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    callback: Callback | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Dormand and Prince's adaptive method for dx/dt = velocity, from the first to the last time of the grid.

    How many steps lie between is up to the tolerances, for each picture by itself (see `ode.dopri5`), so that the
    callback sees the first of them alone. Where the grid begins or ends at sigma = 0, DDIM makes the step from or to
    `path.start`, or 0.001 where that is 0, because the velocity of most paths has no limit there (Song et al. 2021,
    appendix C).

    Raises what `ode.dopri5` raises.
    """
    t, s = grid[0], grid[-1]
    at, at_s = denoiser.path.at(t), denoiser.path.at(s)
    early = t.new_tensor(denoiser.path.start or 1e-3)
    if callback is not None:
        callback(Step(0, 1, float(t), ask(denoiser, x, t)))
    if at.sigma == 0:
        x, t = straight(ask(denoiser, x, t), denoiser.path.at(early)), early
    if at_s.sigma > 0:
        return probability_flow(denoiser, x, t, s, rtol, atol).y
    x = probability_flow(denoiser, x, t, early.minimum(t), rtol, atol).y
    return straight(denoiser(x, early.minimum(t)), at_s)


def probability_flow(
    denoiser: Denoiser, x: Tensor, t: float | Tensor, s: float | Tensor, rtol: float = 1e-5, atol: float = 1e-5
) -> Solution[Tensor]:
    """The state at s of the probability-flow ODE that is x at t, and what it cost each picture (`ode.dopri5`).

    The velocity must exist at both times.
    """
    return dopri5(lambda time, y: denoiser(y, time).velocity, x, t, s, rtol, atol)


SOLVERS: dict[str, Solver] = {
    "ancestral": ancestral,
    "ancestral-large": partial(ancestral, variance="large"),
    "ancestral-learned": partial(ancestral, variance="learned"),
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "edm": edm,
    # Karras et al. 2022, table 5: what they found best for ImageNet at 64 x 64
    "edm-stochastic": partial(edm, S_churn=40, S_min=0.05, S_max=50, S_noise=1.003),
    "euler-maruyama": euler_maruyama,
    "predictor-corrector": predictor_corrector,
    "dpm++2m": multistep.dpm_2m,
    "dpm++2m-sde": partial(multistep.dpm_2m, eta=1.0),
    "dpm++3m": multistep.dpm_3m,
    "unipc": multistep.unipc,
    "lms": multistep.lms,
    "rk45": rk45,
}

STOCHASTIC = (
    "ancestral", "ancestral-large", "ancestral-learned", "edm-stochastic", "euler-maruyama", "predictor-corrector",
    "dpm++2m-sde",
)  # fmt: skip
DETERMINISTIC: dict[str, Solver] = {name: solver for name, solver in SOLVERS.items() if name not in STOCHASTIC}
