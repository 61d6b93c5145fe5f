"""Rectified flow between two sets of pictures: image to image, without pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.errors import ConfigError, DataError
from ..core.labels import refuse
from ..core.model import Losses, Model, evaluating
from .grids import GRIDS, Grid
from .model import Callback, DenoisingConfig, DenoisingModel, choose, choose_solver
from .solvers import SOLVERS, Solver
from .stepping import no_noise
from .teacher import Teacher, agree, begin_with, newest


@dataclass(frozen=True)
class TransportConfig(DenoisingConfig):
    """A flow from the pictures of one set to those of another."""

    path: str = "straight"
    prediction: str = "velocity"  # type: ignore[assignment]  # no other
    clip: bool = False
    teacher_solver: str = "euler"  # how an earlier flow is followed from a source picture, where there is one
    teacher_grid: str = "uniform"
    teacher_steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("solver", SOLVERS, self.teacher_solver)
        choose("grid", GRIDS, self.teacher_grid)
        if self.path != "straight" or self.prediction != "velocity" or self.unit_input or self.clip:
            raise ConfigError("a transport between two sets knows no noise; set path to straight, prediction to"
                              " velocity, unit_input and clip to false")  # fmt: skip


class TransportModel(DenoisingModel):
    """Rectified flow whose other end is a picture of a second set, in place of noise.

        min E |(X_1 - X_0) - v((1 - t) X_0 + t X_1, t)|^2,    X_0 a source, X_1 a picture, independent
                                                               (the survey's eq. 103-104, its t our 1 - t)

    The flow carries the one set into the other, each source to a picture that costs no more to be reached than a random
    one. After an earlier flow it is reflow: X_1 is then where that flow takes the source, which is solved anew for each
    batch, and the picture of the batch is not looked at.

    earlier  the earlier stages by name, if any; the last is the teacher, with whose weights this one begins

    Source: Liu et al. 2022 (arXiv 2209.03003), eq. 1 and the experiments on image-to-image translation; survey, section
    7.1 and figure 69.
    """

    config: TransportConfig
    codes = None  # type: ignore[assignment]  # no seed is a picture of the first set

    def __init__(self, config: TransportConfig, **earlier: Model) -> None:
        super().__init__(config)
        self.teacher = Teacher(newest(earlier)) if earlier else None
        if self.teacher is not None:
            agree(config, self.teacher.config, "image_size", "channels", "classes", "path", "prediction")
            begin_with(self.network, self.teacher)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss between the pictures of a batch and their sources; see `DenoisingModel.forward`.

        Raises `DataError` where the batch has no sources.
        """
        if batch.source is None:
            raise DataError("this model begins from pictures of a second set, and there is none; name it with --source")
        random = batch.random()
        t = self.training_times(random)
        labels = self.training_labels(batch, random)
        x = batch.images if self.teacher is None else self.solve(batch.source, batch.labels)
        return self.regression(x, batch.source, t, labels)

    @torch.no_grad()
    def solve(self, source: Tensor, labels: Tensor | None) -> Tensor:
        """Where the teacher's flow takes these sources, (B, C, H, W); never in reduced precision."""
        if self.teacher is None:
            raise ConfigError("this model is the first flow of its system, and has no teacher")
        c = self.config
        denoiser = self.teacher.guided(labels if c.classes else None)
        times = GRIDS[c.teacher_grid](c.teacher_steps, self.path)
        with torch.autocast(source.device.type, enabled=False):  # as for the pairs of `PairPool`
            return choose_solver(c.teacher_solver)(denoiser, source, times, no_noise)

    @torch.no_grad()
    def sample(  # type: ignore[override]  # there is no noise for eta, and what is guided is guided throughout
        self,
        n: int,
        *,
        labels: Tensor | Sequence[int] | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | Grid | None = None,
        guidance: float | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """The pictures to which the flow takes n sources, (n, C, H, W) float32 in [-1, 1]; see `DenoisingModel.sample`.

        source   (n, C, H, W) in [-1, 1]; picture k depends on source k, and on its label where there are classes
        seeds    of the labels that are drawn where none are given
        solver   a deterministic one

        Raises `ConfigError` without n sources.
        """
        refuse(captions=captions, mask=mask)
        c = self.config
        shape = (n, c.channels, c.image_size, c.image_size)
        if source is None or source.shape != shape:
            got = "none" if source is None else f"the shape {tuple(source.shape)}"
            raise ConfigError(f"this model begins from pictures: it needs a source of the shape {shape}, got {got}")
        chosen = choose_solver(c.solver if solver is None else solver)
        times = choose("grid", GRIDS, c.grid if grid is None else grid)(c.steps if steps is None else steps, self.path)
        wanted = self.sampling_labels(n, labels, PictureRandom(picture_seeds(n, seeds), self.device))
        with evaluating(self):
            denoiser = self.denoiser(wanted, self.sampling_guidance(guidance))
            x = chosen(denoiser, source.to(self.device), times.double().cpu(), no_noise, callback)
        return x.float().clamp(-1, 1)
