"""Exact likelihoods: the probability-flow ODE of a denoiser as a continuous normalising flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..core.batch import PictureRandom, picture_seeds
from ..core.errors import ConfigError
from ..core.model import evaluating
from .grids import GRIDS, Grid
from .model import DenoisingModel, choose, known_labels
from .ode import dopri5, rk4
from .paths import PATHS, Path
from .predictions import Denoiser, components, rows

Trace = Literal["hutchinson", "exact"]


class Likelihood(NamedTuple):
    """What following pictures to their noise tells."""

    log_prob: Tensor  # ln of the density over numbers in [-1, 1], nats per picture, (B,)
    end: Tensor  # where the pictures are at t = 1, (B, C, H, W)
    evaluations: Tensor  # of the network, for each picture: what it would have cost alone, (B,) int64 on the CPU


def likelihood(
    denoiser: Denoiser,
    x: Tensor,
    probe: Tensor | None = None,
    *,
    start: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    times: Tensor | None = None,
) -> Likelihood:
    """The density that the probability-flow ODE makes of noise, at x.

        dx/dt = v(x, t),    ln p(x) = ln N(x_1; 0, sigma_1^2) + int div v(x_t, t) dt    from `start` to 1

    x lies at `start`, where it has the noise sigma of that time: the density of the pictures themselves is smoothed by
    as much. For the same reason the noise at t = 1 is the solvers' N(0, sigma_1^2), which the data's own distribution
    there is only nearly: it is the density of what is drawn that is exact.

    probe    (B, C, H, W) of mean 0 and covariance 1, one for the whole way: the divergence is estimated by
             probe' (dv/dx) probe, at one pass back through the network; the log-density is then right on average. None:
             exactly, by a pass back for each number of x
    start    None: the path's, or 0.001 where that is 0 and the prediction tells no velocity there
    rtol, atol
             tolerances of the adaptive solver (`ode.dopri5`), for x and for the log-density per number of x
    times    rising from `start` to 1: fixed steps of Runge and Kutta's method of order 4 between them instead

    Source: Song et al. 2021 (arXiv 2011.13456), eq. 39 and appendix D.2; Chen et al. 2018 (arXiv 1806.07366), eq. 8;
    Grathwohl et al. 2019 (arXiv 1810.01367), section 3.1 (Hutchinson's estimator); survey, section 6.1 and 7.2.
    Raises what `ode.dopri5` raises.
    """
    dims = x[0].numel()

    def slope(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        velocity, divergence = velocity_and_divergence(denoiser, state[0], t, probe)
        return velocity, divergence / dims  # per number, so that one tolerance fits pictures of every size

    state: tuple[Tensor, ...] = (x, x.new_zeros(len(x)))
    if times is None:
        begin = earliest(denoiser) if start is None else start
        solution = dopri5(slope, state, begin, 1.0, rtol, atol)
        (end, gained), evaluations = solution.y, solution.evaluations
    else:
        end, gained = rk4(slope, state, times)
        evaluations = torch.full((len(x),), 4 * (len(times) - 1), device="cpu")
    sigma = denoiser.path.at(torch.ones((), device="cpu")).sigma
    z = end / rows(sigma, end)
    prior = -z.flatten(1).square().sum(1) / 2 - dims * (0.5 * math.log(2 * math.pi) + rows(sigma.log(), end))
    return Likelihood(prior + dims * gained, end, evaluations)


def velocity_and_divergence(
    denoiser: Denoiser, x: Tensor, t: Tensor, probe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """v(x, t) like x, and its divergence (B,): probe' (dv/dx) probe, or the exact trace without a probe.

    Each picture's velocity must depend on that picture alone.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = denoiser(x, t).velocity
        if probe is not None:
            (back,) = torch.autograd.grad(v, x, probe)
            return v.detach(), (back * probe).flatten(1).sum(1)
        divergence, flat = x.new_zeros(len(x)), v.flatten(1)
        for k in range(flat.shape[1]):
            (back,) = torch.autograd.grad(flat[:, k].sum(), x, retain_graph=True)
            divergence = divergence + back.flatten(1)[:, k]
    return v.detach(), divergence


def earliest(denoiser: Denoiser) -> float:
    """The path's start, or 0.001 where there is no noise then and the prediction does not tell the velocity."""
    start = denoiser.path.start
    at = denoiser.path.at(torch.tensor(start, dtype=torch.float64, device="cpu"))
    of_noise = components(denoiser.kind, at)[1]
    return start if at.sigma > 0 or (of_noise != 0 and of_noise.isfinite()) else 1e-3


def smooth(denoiser: Denoiser) -> tuple[Denoiser, float]:
    """The denoiser on a path without corners, and the time at which it begins there.

    The velocity of a path of steps jumps at each of them, at which an adaptive solver stumbles. The ODE is the same on
    every path but for time and scale, so there it is followed on "vp", from the noise of the first step: both keep
    alpha^2 + sigma^2 = 1, so that the pictures have the same scale.
    """
    start = earliest(denoiser)
    if not hasattr(denoiser.path, "steps"):
        return denoiser, start
    ratio = denoiser.path.at(torch.tensor(start, dtype=torch.float64, device="cpu")).ratio
    return denoiser.on(PATHS["vp"]), float(PATHS["vp"].time_of(ratio))


def rademacher(random: PictureRandom, *shape: int) -> Tensor:
    """-1 or 1, each as likely, (B, *shape) float32: the probe of least variance (Hutchinson 1990)."""
    return 2.0 * random.integers(0, 2, *shape) - 1


class FlowModel(DenoisingModel):
    """A denoising model whose probability-flow ODE is a continuous normalising flow: it knows its likelihood.

    The density is one over [-1, 1]; pictures of 256 levels have one only when they are dequantised, x + u, and the
    model should have learned from such pictures (`Recipe.pixels`).

    Source: see `likelihood`, and `smooth` for a path of steps.
    """

    density = True
    likelihood_n = 100

    def log_prob(
        self,
        images: Tensor,
        *,
        labels: Tensor | Sequence[int] | None = None,
        seeds: int | Sequence[int] = 0,
        trace: Trace = "hutchinson",
        rtol: float = 1e-4,
        atol: float = 1e-4,
        steps: int | None = None,
        grid: str | Grid | None = None,
    ) -> Tensor:
        """ln p(x), nats per picture, (B,); see `likelihood` of this model, which also tells the cost."""
        return self.likelihood(
            images, labels=labels, seeds=seeds, trace=trace, rtol=rtol, atol=atol, steps=steps, grid=grid
        ).log_prob

    @torch.no_grad()
    def likelihood(
        self,
        images: Tensor,
        *,
        labels: Tensor | Sequence[int] | None = None,
        seeds: int | Sequence[int] = 0,
        trace: Trace = "hutchinson",
        rtol: float = 1e-4,
        atol: float = 1e-4,
        steps: int | None = None,
        grid: str | Grid | None = None,
    ) -> Likelihood:
        """The log-density of pictures (B, C, H, W) under the unguided model.

        labels  (B,): ln p(x | label); None: a conditional model goes its unconditional way
        seeds   B integers, or the first of B consecutive ones: the probe of picture k comes from seed k alone
        trace   "hutchinson": with one Rademacher probe for each picture, right on average; "exact": for small pictures
        rtol, atol
                tolerances of the adaptive solver; at 1e-4 its error is far below that of a probe
        steps, grid
                so many fixed steps instead, of four evaluations each, at the times of a grid, "karras" if none is named

        Raises `ConfigError` for an unknown name, labels that do not fit or are missing where none were hidden, a grid
        without steps;
        `TrainingError` where the velocity is not finite.
        """
        known = known_labels(self.config, labels, images)
        if grid is not None and steps is None:
            raise ConfigError("a grid is for fixed steps; say how many with steps, or leave grid away")
        if trace not in ("hutchinson", "exact"):
            raise ConfigError(f"trace is hutchinson or exact, not {trace!r}")
        random = PictureRandom(picture_seeds(len(images), seeds), images.device)
        probe = rademacher(random, *images.shape[1:]).to(images.dtype) if trace == "hutchinson" else None
        with evaluating(self):
            denoiser, start = smooth(self.unclipped(known))
            times = None
            if steps is not None:
                times = _rising(steps, choose("grid", GRIDS, "karras" if grid is None else grid), denoiser.path, start)
            return likelihood(denoiser, images, probe, start=start, rtol=rtol, atol=atol, times=times)


def _rising(steps: int, grid: Grid, path: Path, start: float) -> Tensor:
    """So many steps through the times of a grid from `start` to 1, (steps + 1,)."""
    falling = grid(steps, path)
    if falling[-2] <= start * (1 + 1e-6):  # a grid that stops at `start` before it goes to 0
        falling = grid(steps + 1, path)[:-1]
    return torch.cat([falling[:-1], falling.new_full((1,), start)]).flip(0)
