"""How straight the paths of a flow are, and what following them costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.batch import PictureRandom, picture_seeds
from ..core.model import evaluating
from .grids import uniform
from .likelihood import earliest
from .model import DenoisingModel
from .ode import Solution
from .predictions import Denoiser, rows
from .solvers import Step, euler, probability_flow


@torch.no_grad()
def straightness(
    model: DenoisingModel,
    n: int = 256,
    *,
    labels: Tensor | Sequence[int] | None = None,
    seeds: int | Sequence[int] = 0,
    steps: int = 100,
    guidance: float | None = None,
) -> Tensor:
    """How far the paths of n samples are from straight, (n,); zero where one step of Euler's method is exact.

        S(Z) = int_0^1 |(Z_1 - Z_0) - v(Z_t, t)|^2 dt,    its mean over samples: E[S(Z)]

    the sum over the picture's numbers, along `steps` equal steps of Euler's method. Path k depends on seed k alone.

    Source: Liu et al. 2022, section 3.2 and theorem 3.7.
    """
    random = PictureRandom(picture_seeds(n, seeds), model.device)
    wanted = model.sampling_labels(n, labels, random)
    grid = uniform(steps, model.path)
    c = model.config
    with evaluating(model):
        x = model.first(random.normal(c.channels, c.image_size, c.image_size), grid)
        return departure(model.denoiser(wanted, model.sampling_guidance(guidance)), x, grid)


def departure(denoiser: Denoiser, x: Tensor, grid: Tensor) -> Tensor:
    """The mean square by which the velocity on the way of each x (B, C, H, W) departs from its mean on the way, (B,).

    grid  falling times from 1 to 0 of Euler's steps
    """
    velocities: list[Tensor] = []

    def look(step: Step) -> None:
        velocities.append(step.denoised.velocity)

    euler(denoiser, x, grid, torch.Tensor, look)  # asks for no noise
    v = torch.stack(velocities)  # (N, B, C, H, W)
    h = rows(-grid.diff(), v)  # (N, 1, 1, 1, 1), summing to 1
    mean = (h * v).sum(0)
    return (h * (v - mean).square()).flatten(2).sum((0, 2))


@torch.no_grad()
def adaptive_samples(
    model: DenoisingModel,
    n: int = 64,
    *,
    labels: Tensor | Sequence[int] | None = None,
    seeds: int | Sequence[int] = 0,
    guidance: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Solution[Tensor]:
    """n samples by the adaptive solver, not held within [-1, 1], and how many evaluations each of them took.

    `evaluations` (n,) counts what each picture would have cost alone; with guidance each is two of the network. The way
    ends where the velocity still exists: at t = 0, at the path's start, or at 0.001 (`likelihood.earliest`).

    Source: survey, table XI (NFE); Lipman et al. 2022 (arXiv 2210.02747), section 6.
    """
    random = PictureRandom(picture_seeds(n, seeds), model.device)
    wanted = model.sampling_labels(n, labels, random)
    c, start = model.config, uniform(1, model.path)
    with evaluating(model):
        denoiser = model.denoiser(wanted, model.sampling_guidance(guidance))
        x = model.first(random.normal(c.channels, c.image_size, c.image_size), start)
        # what holds the clean picture within [-1, 1] tells no other velocity than that picture does
        end = earliest(replace(denoiser, kind="clean") if denoiser.clip else denoiser)
        return probability_flow(denoiser, x, start[0], end, rtol, atol)
