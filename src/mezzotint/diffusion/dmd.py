"""Distribution matching distillation: one step of a generator, led by the difference of two scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import choose_labels, labels_of, refuse
from ..core.model import Losses, Model, evaluating
from ..nn.dit import DiTConfig
from ..nn.ncsnpp import NCSNppConfig
from ..nn.unet import UNetConfig
from .grids import GRIDS, levels
from .model import DenoisingModel, choose, choose_solver, noisy
from .pairs import PairPool, trajectory
from .paths import Path
from .predictions import Denoiser, rows
from .solvers import DETERMINISTIC
from .teacher import Teacher, agree, begin_with, newest
from .times import on_cpu

LEAST = 1e-5  # mean error of a picture of [-1, 1] below which eq. 8 does not stretch the gradient any further


@dataclass(frozen=True)
class DMDConfig(Config):
    """A one-step student. What path it lives on, and what its networks predict, its teacher says."""

    image_size: int
    channels: int
    classes: int = 0  # how many; 0: unconditional, whatever labels the pictures have
    network: UNetConfig | NCSNppConfig | DiTConfig = field(default_factory=UNetConfig)  # the teacher's
    regression: float = 0.25  # lambda_reg, the weight of the pairs; 0: none are made
    metric: Literal["squared", "pseudo-huber"] = "squared"  # of the regression, in pixels
    levels: Literal["karras", "uniform"] = "karras"  # which noise levels are drawn with equal chance, see `time_at`
    interval: tuple[float, float] = (0.02, 0.98)  # T_min and T_max: which of them the generator is judged at
    pairs: int = 2048  # of noise and the teacher's picture
    keep_pairs: bool = True  # False: a pair is solved whenever it is drawn, for more pairs than there is memory
    teacher_solver: str = "heun"
    teacher_grid: str = "karras"
    teacher_steps: int = 18

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("channels", 1), ("classes", 0), ("regression", 0), ("pairs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ConfigError(f"interval is two numbers between 0 and 1, the smaller first, not {low}, {high}")
        choose("deterministic solver", DETERMINISTIC, self.teacher_solver)
        choose("grid", GRIDS, self.teacher_grid)


class DMDModel(Model):
    """A generator of one step whose pictures, with noise, are to have the distribution of the teacher's.

        x = G(z) = the clean picture that the teacher's network, trained on, sees in sigma_1 z
        grad KL(p_fake || p_real) = E w_t alpha_t (s_fake(x_t, t) - s_real(x_t, t)) dG/dtheta        (eq. 7)

    with x_t = alpha_t x + sigma_t n. s_real is the score of the frozen teacher, s_fake that of a denoiser which is
    trained, in turns with the generator, on what the generator draws. Both begin with the teacher's weights. Besides,
    the generator learns the pairs (z, y) of noise and what the teacher's solver makes of it, lest it forget a mode:

        loss of "generator" = KL + lambda_reg E d(G(z), y)        (eq. 9)
        loss of "fake"      = that of the teacher, on pictures of the generator        (eq. 6)

    The paper's d is LPIPS, a distance in the features of a trained network, which an offline library does not have.
    Here it is a distance in pixels: the mean square, with which the authors report an FID of 2.78 in place of 2.66 on
    CIFAR-10 (appendix I), or the pseudo-Huber metric.

    Pictures of the batch are not looked at; their labels are drawn for.

    earlier  the earlier stages by name. The last is the teacher; where its config guides it, so are its score and its
             pairs (section 3.4), and sampling costs one evaluation all the same

    Source: Yin et al. 2023 (arXiv 2311.18828), algorithm 1 and section 3; survey, section 6.1.
    Raises `ConfigError` without a teacher, or where it does not fit.
    """

    config: DMDConfig

    def __init__(self, config: DMDConfig, **earlier: Model) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(newest(earlier))
        told, self.path = self.teacher.config, self.teacher.path
        agree(config, told, "image_size", "channels", "classes")
        own = replace(told, network=config.network, label_dropout=0.0, guidance=0.0, clip=False)
        self.generator, self.fake = DenoisingModel(replace(own, metric=config.metric)), DenoisingModel(own)
        for player in (self.generator, self.fake):
            begin_with(player.network, self.teacher)
        shape = (config.channels, config.image_size, config.image_size)
        self.pool = PairPool(config.pairs, shape, config.classes, kept=config.keep_pairs and config.regression > 0)

    def players(self) -> dict[str, nn.Module]:
        """The generator, and the denoiser that knows its pictures."""
        return {"generator": self.generator, "fake": self.fake}

    def turns(self, step: int) -> Sequence[str]:
        """Each once."""
        return ["generator", "fake"]

    def forward(self, batch: Batch, player: str = "generator") -> Losses:
        """The loss of a player on as many of the generator's pictures as the batch has.

        `matching` is the surrogate of the divergence, whose value is half the mean square of its gradient, and
        `regression` the distance from the pairs; for the fake score see `DenoisingModel.forward`.
        """
        c, random = self.config, batch.random()
        labels = labels_of(batch, c.classes)
        shape = batch.images.shape[1:]
        z, n = random.normal(*shape), random.normal(*shape)
        u = on_cpu(random).uniform().double()  # (B,)
        if player == "fake":
            with torch.no_grad():
                x = self.generate(z, labels)
            return self.fake.regression(x, n, time_at(u, self.path, c.levels), labels)
        low, high = c.interval
        t = time_at(low + (high - low) * u, self.path, c.levels)
        if not c.regression:
            matching = self.matching(self.generate(z, labels), n, t, labels).mean()
            return Losses(matching, {"matching": matching.detach()})
        pairs = self.pool.draw(random, self.solve)
        both = None if labels is None or pairs.labels is None else torch.cat([labels, pairs.labels])
        x, answer = self.generate(torch.cat([z, pairs.noise]), both).chunk(2)
        matching = self.matching(x, n, t, labels).mean()
        missed = self.generator.distance(answer - pairs.end).mean()
        parts = {"matching": matching.detach(), "regression": missed.detach()}
        return Losses(matching + c.regression * missed, parts)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(z): pictures (B, C, H, W) of standard normal z and labels (B,), in one evaluation; not held in [-1, 1]."""
        t = torch.ones((), dtype=torch.float64, device="cpu")
        return self.generator.unclipped(labels)(rows(self.path.at(t).sigma, z) * z, t).clean

    def matching(self, x: Tensor, n: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The surrogate of the divergence for the generator's pictures x, (B,); see `matching_gradient`, `surrogate`.

        n       noise, (B, C, H, W)
        t       times of the path, (B,)
        labels  (B,)
        """
        real = replace(self.teacher.guided(labels), clip=False)  # a density has no corner at -1 or 1
        return surrogate(x, matching_gradient(x, n, t, real, self.fake.unclipped(labels)))

    def solve(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """What the teacher draws of noise (B, C, H, W) and labels (B,); (B, 1, C, H, W)."""
        c, teacher = self.config, self.teacher
        grid = GRIDS[c.teacher_grid](c.teacher_steps, teacher.path)
        return trajectory(choose_solver(c.teacher_solver), teacher.guided(labels), teacher.first(noise, grid), grid)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | Sequence[int] | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32, in one evaluation; picture k depends on seed and label k alone.

        labels  (n,); None: a conditional model draws each picture's label from its seed
        seeds   n integers, or the first of n consecutive ones

        Raises `ConfigError` for a label out of range, or a condition that the model does not take.
        """
        refuse(captions=captions, source=source, mask=mask)
        c = self.config
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        told = choose_labels(n, labels, c.classes, random)
        with evaluating(self), torch.no_grad():
            x = self.generate(random.normal(c.channels, c.image_size, c.image_size), told)
        return x.clamp(-1, 1)


@torch.no_grad()
def matching_gradient(x: Tensor, n: Tensor, t: Tensor, real: Denoiser, fake: Denoiser) -> Tensor:
    """In which direction each of the generator's pictures x raises the divergence, (B, C, H, W).

        w_t alpha_t (s_fake(x_t, t) - s_real(x_t, t)),    w_t = sigma_t^2 / alpha_t * CS / |c_real(x_t, t) - x|_1

    where c is the clean picture, s = -(x_t - alpha_t c) / sigma_t^2 the score, and CS counts the picture's numbers.
    So it is alpha_t (c_fake - c_real) / mean |c_real - x|, of about the same size at every noise level. (The paper's
    algorithm 2 has no alpha_t, which its equations have; on the path "edm" it is 1.) Each picture's own w_t depends on
    where it is, so what is followed is the gradient of a divergence on average over x_t with a weight of that x_t.

    x, n        pictures and noise, (B, C, H, W)
    t           times of the path, (B,)
    real, fake  denoisers on one path

    Source: Yin et al. 2023, eq. 4, 5, 7 and 8.
    """
    at = real.path.at(t)
    x_t = noisy(x, n, at)
    clean = real(x_t, t).clean
    size = (clean - x).abs().flatten(1).mean(1).clamp(min=LEAST).view(-1, *[1] * (x.dim() - 1))
    return rows(at.alpha, x) * (fake(x_t, t).clean - clean) / size


def surrogate(x: Tensor, gradient: Tensor) -> Tensor:
    """A loss of each picture, (B,), whose gradient by x is `gradient`, divided by how many numbers a picture has.

    mean |x - stopgrad(x - gradient)|^2 / 2        (Yin et al. 2023, algorithm 2)
    """
    return (x - (x - gradient).detach()).square().flatten(1).mean(1) / 2


def time_at(u: Tensor, path: Path, law: Literal["karras", "uniform"], rho: float = 7.0) -> Tensor:
    """The time at the share u of the noise levels, float64 of u's shape, u from 0 (the least noise) to 1.

    karras   the rho-th root of sigma / alpha grows evenly, as in Karras et al. 2022, eq. 5: the paper's, in 1000 bins
    uniform  the time itself does, from the path's start to 1
    """
    if law == "uniform":
        return path.start + (1 - path.start) * u
    most, least = levels(path)
    return path.time_of((least ** (1 / rho) + u * (most ** (1 / rho) - least ** (1 / rho))) ** rho)
