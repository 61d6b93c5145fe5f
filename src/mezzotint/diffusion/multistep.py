"""Solvers that remember: each step uses what the denoiser said at earlier ones, and costs one evaluation.

Those of the DPM family integrate the clean picture exactly against the linear part of the probability-flow ODE. With
lambda = ln(alpha / sigma) as time (Lu et al. 2022, arXiv 2211.01095, proposition 4.1):

    x_s = sigma_s / sigma_t x_t + alpha_s int_{lambda_t}^{lambda_s} exp(lambda - lambda_s) c(lambda) d lambda

They differ in the polynomial that stands for c. The first steps, which have little to remember, are of lower order; at
the noisy end of a path, where the clean picture hardly moves, this is hardly seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .paths import Coefficients
from .predictions import Denoiser, rows
from .stepping import Callback, Noise, falling, half_log_snr, lost, straight, tell


def dpm_2m(
    denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None, *, eta: float = 0.0
) -> Tensor:
    """DPM-Solver++(2M), and its SDE form (Lu et al. 2022, algorithm 2 and section 5): order 2.

        x_s = sigma_s / sigma_t exp(-eta h) x_t + alpha_s (1 - exp(-(1 + eta) h)) D + sigma_s sqrt(1 - exp(-2 eta h)) z
        D   = c + h / (2 h_last) (c - c_last),    h = lambda_s - lambda_t

    A step to sigma = 0 has D = c. With noise, the variance of what is drawn is of order 2 too.

    eta  0: the ODE; 1: the SDE
    """
    last = None
    for i, t, s in falling(grid):
        d = denoiser(x, t)
        tell(callback, i, grid, d)
        at_s = denoiser.path.at(s)
        h, D = half_log_snr(at_s) - half_log_snr(d.at), d.clean
        if last is not None and h.isfinite():
            h_last, clean_last = last  # where h_last is infinite the last picture counts nothing
            D = D + rows(h / (2 * h_last), x) * (D - clean_last)
        last = h, d.clean
        decay = at_s.sigma / d.at.sigma * (torch.exp(-eta * h) if eta else 1)
        x = rows(decay, x) * x + rows(-at_s.alpha * torch.expm1(-(1 + eta) * h), x) * D
        if eta and at_s.sigma > 0:
            x = x + rows(at_s.sigma * (-torch.expm1(-2 * eta * h)).sqrt(), x) * noise()
    return x


def dpm_3m(denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(3M): c is the parabola through its last three values, integrated exactly: order 3.

    Source: Lu et al. 2022 (arXiv 2211.01095), section 4. The authors' code, and what was made after it, halves the
    parabola's curvature and is of order 2.
    """
    return _predict_and_correct(denoiser, x, grid, callback, order=3, correct=False, final="one")


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    callback: Callback | None = None,
    *,
    order: Literal[1, 2, 3] = 2,
) -> Tensor:
    """The unified predictor-corrector UniPC-p with B(h) = exp(h) - 1 (Zhao et al. 2023, arXiv 2302.04867).

    When the denoiser has answered at a new time, its answer is first used to make the step there again, and then for
    the next one. At the end of a grid that reaches sigma = 0 the order falls to 2 and 1, as in the authors' code.

    order  p, that of the predictor; the corrector has one more
    """
    return _predict_and_correct(denoiser, x, grid, callback, order=order, correct=True, final="falling")


def _predict_and_correct(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    callback: Callback | None,
    *,
    order: int,
    correct: bool,
    final: Literal["one", "falling"],
) -> Tensor:
    """Multistep integration of the clean picture with at most `order` of its values, one more in the corrector.

    Two values extrapolate as in `dpm_2m`, to the middle of the step; a first corrector has the mean of both ends (the
    choice rho = 1/2 of Zhao et al. 2023). From three values on the polynomial is integrated exactly.

    final  what a step to sigma = 0 does: it is of order "one", or the orders before it are "falling" to 1
    """
    path, to_zero = denoiser.path, denoiser.path.at(grid[-1]).sigma == 0
    known: list[tuple[Tensor, Tensor]] = []  # (lambda, clean picture), the newest first
    walked: tuple[Coefficients, Tensor, list[tuple[Tensor, Tensor]]] | None = None  # what the last step was made of
    for i, t, s in falling(grid):
        d = denoiser(x, t)
        tell(callback, i, grid, d)
        here = half_log_snr(d.at)
        if correct and walked is not None:
            x = _step(*walked, d.at, (here, d.clean))
        if not here.isfinite():
            x, walked = straight(d, path.at(s)), None
            continue
        known = [(here, d.clean), *known][:order]
        left = len(grid) - 1 - i if to_zero and (final == "falling" or i == len(grid) - 2) else order
        walked = d.at, x, known[:left]
        x = _step(*walked, path.at(s))
    return x


def _step(
    at: Coefficients,
    x: Tensor,
    known: Sequence[tuple[Tensor, Tensor]],
    at_s: Coefficients,
    end: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """x from `at` to `at_s` with the clean pictures that are known, and that at the end of the step if it is given."""
    h = half_log_snr(at_s) - known[0][0]
    whole = -torch.expm1(-h)  # int_0^h exp(u - h) du
    if len(known) == 1:
        weights = [whole] if end is None else [whole / 2, whole / 2]
    elif len(known) == 2 and end is None:
        half = whole * h / (2 * (known[0][0] - known[1][0]))
        weights = [whole + half, -half]
    else:
        nodes = torch.stack([place - known[0][0] for place, _ in [*known, *([end] if end else [])]])
        weights = list(_interpolated(nodes / h, _moments(h, len(nodes))))
    pictures = [picture for _, picture in [*known, *([end] if end else [])]]
    integral = sum(rows(at_s.alpha * w, x) * picture for w, picture in zip(weights, pictures))
    return rows(at_s.sigma / at.sigma, x) * x + integral


def _moments(h: Tensor, n: int) -> Tensor:
    """int_0^h exp(u - h) (u / h)^k du for k = 0 .. n - 1, by parts."""
    moments = [-torch.expm1(-h)]
    for k in range(1, n):
        moments.append(1 - k / h * moments[-1])
    return torch.stack(moments)


def _interpolated(nodes: Tensor, moments: Tensor) -> Tensor:
    """The weights w with sum_j w_j nodes_j^k = moments_k: those that integrate the polynomial through the nodes."""
    powers = torch.arange(len(nodes), device=nodes.device)[:, None]
    return torch.linalg.solve(nodes[None] ** powers, moments)


def lms(
    denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None, *, order: int = 4
) -> Tensor:
    """Adams and Bashforth's linear multistep method for d(x / alpha) / dr = n, with r = sigma / alpha, on any grid.

    The noise is the polynomial through its last `order` values, integrated exactly; also in a step to sigma = 0.
    A step from pure noise (`lost`) is DDIM's and is forgotten.

    Source: Karras et al. 2022, eq. 4 for the ODE; the method is that of Crowson's k-diffusion, `sample_lms`.
    """
    known: list[tuple[Tensor, Tensor]] = []  # (r, noise), the newest first
    for i, t, s in falling(grid):
        d = denoiser(x, t)
        tell(callback, i, grid, d)
        r, at_s = d.at.ratio, denoiser.path.at(s)
        x = straight(d, at_s)
        if lost(d.at):
            continue
        known = [(r, d.noise), *known][:order]
        width = at_s.ratio - r
        nodes = torch.stack([(place - r) / width for place, _ in known])
        weights = _interpolated(nodes, 1 / torch.arange(1, len(nodes) + 1, dtype=torch.float64, device="cpu"))
        for w, (_, n) in zip(weights[1:], known[1:]):  # the weights sum to 1
            x = x + rows(at_s.alpha * width * w, x) * (n - d.noise)
    return x
