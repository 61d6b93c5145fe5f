"""Reflow: a flow learned from what another flow makes of noise, on straighter paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom
from ..core.errors import ConfigError
from ..core.model import Losses, Model
from .grids import GRIDS
from .model import DenoisingConfig, DenoisingModel, choose, choose_solver
from .pairs import PairPool, trajectory
from .paths import Path
from .solvers import DETERMINISTIC
from .teacher import Teacher, agree, begin_with, newest
from .times import TIMES, TimeSampler


def last(random: PictureRandom, path: Path) -> Tensor:
    """1, always (B,): what is learned is the one step from noise to picture."""
    return torch.ones(len(random), dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class ReflowConfig(DenoisingConfig):
    """A denoising model that learns from a teacher's pairs, and how these are made."""

    pairs: int = 2048  # of noise and the teacher's picture
    keep_pairs: bool = True  # False: a pair is solved whenever it is drawn, for more pairs than there is memory
    teacher_solver: str = "euler"
    teacher_grid: str = "uniform"
    teacher_steps: int = 8

    time_samplers: ClassVar[Mapping[str, TimeSampler]] = {**TIMES, "last": last}  # of `times`; "last": distillation

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("deterministic solver", DETERMINISTIC, self.teacher_solver)
        choose("grid", GRIDS, self.teacher_grid)
        if self.pairs < 1:
            raise ConfigError(f"pairs must be at least 1, not {self.pairs}")


class ReflowModel(DenoisingModel):
    """A flow that is trained on the pairs (Z_0, Z_1) of an earlier flow in place of independent noise and picture.

        min E |(Z_1 - Z_0) - v((1 - t) Z_0 + t Z_1, t)|^2        (the survey's eq. 104, its t our 1 - t)

    The pairs of a flow do not cross at any time as independent ones do, so the next flow goes nearly straight, in one
    or a few steps, with the same pictures at its end and at no greater transport cost. With the times "last", t is
    always that of noise, and what is learned is the step that reaches the teacher's picture at once: distillation.

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
        t = self.training_times(random)
        labels = self.training_labels(Batch(pairs.end, pairs.labels), random)
        return self.regression(pairs.end, pairs.noise, t, labels)

    def solve(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Where the teacher's flow takes noise (B, C, H, W) of labels (B,); (B, 1, C, H, W)."""
        c, teacher = self.config, self.teacher
        grid = GRIDS[c.teacher_grid](c.teacher_steps, teacher.path)
        return trajectory(choose_solver(c.teacher_solver), teacher.guided(labels), teacher.first(noise, grid), grid)
