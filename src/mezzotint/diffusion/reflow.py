"""Reflow: a flow learned from what another flow makes of noise, on straighter paths; and how straight they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.errors import ConfigError
from ..core.model import Losses, Model
from .grids import GRIDS, uniform
from .model import DenoisingConfig, DenoisingModel, choose, choose_solver, evaluating
from .pairs import PairPool, trajectory
from .predictions import Denoiser, rows
from .solvers import SOLVERS, Step, euler
from .teacher import Teacher, agree, begin_with, newest
from .times import TIMES


@dataclass(frozen=True)
class ReflowConfig(DenoisingConfig):
    """A denoising model that learns from a teacher's pairs, and how these are made."""

    pairs: int = 2048  # of noise and the teacher's picture
    keep_pairs: bool = True  # False: a pair is solved whenever it is drawn, for more pairs than there is memory
    one_step: bool = False  # learn the step from t = 1 alone: distillation
    teacher_solver: str = "euler"
    teacher_grid: str = "uniform"
    teacher_steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("solver", SOLVERS, self.teacher_solver)
        choose("grid", GRIDS, self.teacher_grid)
        if self.pairs < 1:
            raise ConfigError(f"pairs must be at least 1, not {self.pairs}")


class ReflowModel(DenoisingModel):
    """A flow that is trained on the pairs (Z_0, Z_1) of an earlier flow in place of independent noise and picture.

        min E |(Z_1 - Z_0) - v((1 - t) Z_0 + t Z_1, t)|^2        (the survey's eq. 104, its t our 1 - t)

    The pairs of a flow do not cross at any time as independent ones do, so the next flow goes nearly straight, in one
    or a few steps, with the same pictures at its end and at no greater transport cost. With `one_step`, t is always
    that of noise, and what is learned is the step that reaches the teacher's picture at once: distillation.

    earlier  the earlier stages by name. The last is the teacher, whose pairs are guided as its config says; the
             student begins with its weights

    Source: Liu et al. 2022 (arXiv 2209.03003), algorithm 1, sections 2.1-2.2 and theorem 3.7; survey, section 7.1.
    Raises `ConfigError` without a teacher, or where it does not fit.
    """

    config: ReflowConfig

    def __init__(self, config: ReflowConfig, **earlier: Model) -> None:
        super().__init__(config)
        self.teacher = Teacher(newest(earlier))
        agree(config, self.teacher.config, "image_size", "channels", "classes", "path", "prediction", "unit_input")
        begin_with(self.network, self.teacher)
        shape = (config.channels, config.image_size, config.image_size)
        self.pool = PairPool(config.pairs, shape, config.classes, kept=config.keep_pairs)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of as many pairs as the batch has pictures, which themselves are not looked at."""
        random = batch.random()
        pairs = self.pool.draw(random, self.solve)
        t = torch.ones(len(batch)).double() if self.config.one_step else TIMES[self.config.times](random, self.path)
        labels = self.training_labels(Batch(pairs.end, pairs.labels), random)
        return self.regression(pairs.end, pairs.noise, t, labels)

    def solve(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Where the teacher's flow takes noise (B, C, H, W) of labels (B,); (B, 1, C, H, W)."""
        c, teacher = self.config, self.teacher
        grid = GRIDS[c.teacher_grid](c.teacher_steps, teacher.path)
        return trajectory(choose_solver(c.teacher_solver), teacher.guided(labels), teacher.first(noise, grid), grid)


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
