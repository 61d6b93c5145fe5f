"""Solvers of the reverse diffusion as a random process: the discrete chain, the SDE, predictor and corrector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .predictions import Denoised, Denoiser, rows
from .stepping import Callback, Noise, Posterior, falling, lost, posterior, straight, tell


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    callback: Callback | None = None,
    *,
    variance: Literal["small", "large", "learned"] = "small",
) -> Tensor:
    """DDPM's reverse chain (Ho et al. 2020, eq. 7 and algorithm 2; survey, Box 8), on any path and any grid.

    Where the denoiser has a `shift` g (a classifier's gradient) the mean moves by variance * g (Dhariwal and Nichol
    2021, algorithm 1; survey, eq. 91). No noise is added in a step to sigma = 0.

    variance  "small": that of the posterior q(x_s | x_t, c), right for data at one point; "large": that of the step
              q(x_t | x_s), right for standard normal data; "learned": between them, where the network says
    """
    before = None
    for i, t, s in falling(grid):
        d = denoiser(x, t)
        tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        q = posterior(d.at, at_s)
        b = (
            _learned(d, q, before)
            if variance == "learned"
            else rows(q.small_variance if variance == "small" else q.large_variance, x)
        )
        x = rows(q.of_clean, x) * d.clean + rows(q.of_x, x) * x
        if d.shift is not None:
            x = x + b * d.shift
        if at_s.sigma > 0:
            x = x + b.sqrt() * noise()
        before = q
    return x


def _learned(d: Denoised, q: Posterior, before: Posterior | None) -> Tensor:
    """exp(v log large + (1 - v) log small), (B, C, H, W) (Nichol and Dhariwal 2021, eq. 15; survey, eq. 87).

    The small variance of a step to sigma = 0 is 0; there it is that of the step before, as in the paper, and of a first
    and only step the large one.
    """
    if d.share is None:
        raise ConfigError("this model has not learned its variance; use the solver ancestral or ancestral-large")
    small = q.small_variance
    if small == 0:
        small = q.large_variance if before is None else before.small_variance
    return rows(small, d.x) * rows(q.large_variance / small, d.x) ** d.share


def euler_maruyama(
    denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None
) -> Tensor:
    """Euler and Maruyama's method for the reverse-time SDE (Song et al. 2021, eq. 6), on any path.

        dx = (f x - g^2 score) dt + g dw,    f = alpha' / alpha,    g^2 = d(sigma^2)/dt - 2 f sigma^2

    Its moments are of order 1. It needs steps shorter than 1 / |f|, and than 1 / g^2 where
    sigma is 1. A step from pure noise (`lost`) or to sigma = 0 is DDIM's.
    """
    for i, t, s in falling(grid):
        d = denoiser(x, t)
        tell(callback, i, grid, d)
        at, at_s = d.at, denoiser.path.at(s)
        if lost(at) or at_s.sigma == 0:
            x = straight(d, at_s)
            continue
        f = at.d_alpha / at.alpha
        g2 = 2 * at.sigma * at.d_sigma - 2 * f * at.sigma**2
        x = rows(1 + (s - t) * f, x) * x - rows((s - t) * g2, x) * d.score + rows(((t - s) * g2).sqrt(), x) * noise()
    return x


def predictor_corrector(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    callback: Callback | None = None,
    *,
    predictor: Literal["reverse-diffusion", "ancestral"] = "reverse-diffusion",
    corrections: int = 1,
    r: float = 0.16,
) -> Tensor:
    """Each step to a new time is followed by steps of Langevin's dynamics at that time (Song et al. 2021, algorithm 1).

    With a = alpha_t / alpha_s and b the variance of the step q(x_t | x_s), the predictors are, for any path,

        reverse-diffusion    x_s = (2 - a) x_t + b score + sqrt(b) z        (eq. 46; VP: algorithm 3, VE: algorithm 2)
        ancestral            that of `ancestral` with the small variance    (appendix F)

    and the corrector is `langevin` with the scale a^2, their alpha_i. A step to sigma = 0 gives the expected clean
    picture, one from pure noise (`lost`) is DDIM's, and neither is corrected.

    corrections  M, how many after each step
    r            signal-to-noise ratio of the corrector
    """
    for i, t, s in falling(grid):
        d = denoiser(x, t)
        tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        q, a = posterior(d.at, at_s), d.at.alpha / at_s.alpha
        if lost(d.at) or at_s.sigma == 0:
            x = straight(d, at_s)
            continue
        if predictor == "ancestral":
            x = rows(q.of_clean, x) * d.clean + rows(q.of_x, x) * x + rows(q.small_variance.sqrt(), x) * noise()
        else:
            b = q.large_variance
            x = rows(2 - a, x) * x + rows(b, x) * d.score + rows(b.sqrt(), x) * noise()
        for _ in range(corrections):
            x = langevin(x, denoiser(x, s).score, noise(), r, float(a) ** 2)
    return x


def langevin(x: Tensor, score: Tensor, z: Tensor, r: float, scale: float = 1.0) -> Tensor:
    """One step of Langevin's dynamics, which leaves the density of the score nearly as it is.

        x + e score + sqrt(2 e) z,    e = 2 scale (r |z| / |score|)^2        (Song et al. 2021, algorithms 4 and 5)

    The norms are those of each picture, (B, ...), where the paper's code takes the mean over the batch.
    """
    ratio = r * _length(z) / _length(score)
    e = 2 * scale * ratio**2
    return x + e * score + (2 * e).sqrt() * z


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)
