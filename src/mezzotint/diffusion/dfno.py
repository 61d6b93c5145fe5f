"""Diffusion by a Fourier neural operator: a whole trajectory, from noise to picture, in one evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import choose_labels, refuse
from ..core.model import Losses, Model, evaluating
from ..nn.fourier import TrajectoryUNet
from ..nn.unet import UNetConfig
from .grids import GRIDS
from .model import choose, choose_solver
from .pairs import PairPool, trajectory
from .paths import Coefficients
from .solvers import DETERMINISTIC
from .teacher import Teacher, agree, begin_with, newest


@dataclass(frozen=True)
class DFNOConfig(Config):
    """An operator from noise to trajectories. On which path these lie, its teacher says."""

    image_size: int
    channels: int
    classes: int = 0  # how many; 0: unconditional, whatever labels the pictures have
    network: UNetConfig = field(default_factory=UNetConfig)  # the teacher's, which gets layers along time
    times: int = 4  # K, states of a trajectory
    spacing: Literal["quadratic", "uniform"] = "quadratic"  # of their times, see `trajectory_times`
    modes: int = 2  # Fourier modes along time, at most (K + 1) / 2
    metric: Literal["absolute", "squared"] = "absolute"  # of the error of a state, in pixels
    largest_weight: float = 1e4  # of a state, see `state_weights`
    pairs: int = 2048  # of noise and the teacher's trajectory
    keep_pairs: bool = True  # False: a pair is solved whenever it is drawn, for more pairs than there is memory
    teacher_solver: str = "ddim"
    teacher_grid: str = "uniform"  # must pass the K times
    teacher_steps: int = 16

    def __post_init__(self) -> None:
        least = {"image_size": 1, "channels": 1, "classes": 0, "times": 1, "modes": 1, "pairs": 1, "largest_weight": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name} must be at least {smallest}, not {getattr(self, name)}")
        choose("deterministic solver", DETERMINISTIC, self.teacher_solver)
        choose("grid", GRIDS, self.teacher_grid)


class DFNOModel(Model):
    """A network that answers noise with the solution of the teacher's probability-flow ODE at K times, all at once.

        min E sum_k lambda(t_k) |G(x_1)_k - x(t_k)|_1 / K,    lambda = alpha / sigma, held within [1, `largest_weight`]

    x(t_k) are states that the teacher's solver passes on its way from the noise x_1, and x(t_K) = x(0) is the picture.
    G is the teacher's UNet with its weights, told each time t_k, with `TemporalLayer`s between its blocks.

    The authors' best model of CIFAR-10 compares states by LPIPS, a distance in the features of a trained network, which
    an offline library does not have; that of ImageNet by the L1 distance, which is ours. Their release holds lambda
    within 1 and 10^4, so that with four times of the cosine path the picture weighs a thousand times as much as the
    next state.

    Pictures of the batch are not looked at.

    earlier  the earlier stages by name. The last is the teacher; where its config guides it, so are its trajectories

    Source: Zheng et al. 2023 (arXiv 2211.13449); survey, section 6.1. The equations are written from the authors'
    release and the paper's figures.
    Raises `ConfigError` without a teacher, or where it does not fit.
    """

    config: DFNOConfig

    def __init__(self, config: DFNOConfig, **earlier: Model) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(newest(earlier))
        self.path = self.teacher.path
        agree(config, self.teacher.config, "image_size", "channels", "classes")
        if (most := self.path.at(torch.ones((), dtype=torch.float64, device="cpu")).sigma) > 1 + 1e-9:
            raise ConfigError(
                f"states of deviation {float(most):g} are no answer of a network; choose a teacher whose path ends at 1"
            )
        self.places = places(trajectory_times(config), GRIDS[config.teacher_grid](config.teacher_steps, self.path))
        embeddings = config.classes + 1 if config.classes else 0  # like its teacher, which may hide labels
        network = config.network.build(config.channels, config.channels, embeddings, config.image_size)
        begin_with(network, self.teacher)
        self.network = TrajectoryUNet(network, config.times, config.modes)
        shape = (config.channels, config.image_size, config.image_size)
        self.pool = PairPool(config.pairs, shape, config.classes, states=config.times, kept=config.keep_pairs)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of as many of the teacher's trajectories as the batch has pictures.

        `error` is the mean over the states before weighting, and `error/end` that of the picture.
        """
        c = self.config
        pairs = self.pool.draw(batch.random(), self.solve)
        error = self.trajectory(pairs.noise, pairs.labels) - pairs.states
        error = error.abs() if c.metric == "absolute" else error.square()
        error = error.flatten(2).mean(2)  # (B, K)
        weight = state_weights(self.path.at(trajectory_times(c)), c.largest_weight).to(error.dtype)
        total = (error * weight.to(error.device, non_blocking=True)).mean()
        return Losses(total, {"error": error.detach().mean(), "error/end": error[:, -1].detach().mean()})

    def trajectory(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The states at `trajectory_times` of noise z (B, C, H, W) and labels (B,), (B, K, C, H, W), in one evaluation.

        The last is the picture, not held in [-1, 1].
        """
        states: Tensor = self.network(z, self.path.network_time(trajectory_times(self.config)), labels)
        return states.to(z.dtype)

    def solve(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """The states of the teacher's solver at the K times, for noise (B, C, H, W) and labels (B,)."""
        c, teacher = self.config, self.teacher
        grid, solver = GRIDS[c.teacher_grid](c.teacher_steps, self.path), choose_solver(c.teacher_solver)
        return trajectory(solver, teacher.guided(labels), teacher.first(noise, grid), grid, self.places)

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
            x = self.trajectory(random.normal(c.channels, c.image_size, c.image_size), told)[:, -1]
        return x.clamp(-1, 1)


def trajectory_times(config: DFNOConfig) -> Tensor:
    """The times of the K states, falling to 0, (K,) float64.

    quadratic  ((K - k) / K)^2, k = 1 ... K: close where the picture is nearly done
    uniform    (K - k) / K
    """
    share = torch.arange(config.times - 1, -1, -1, dtype=torch.float64, device="cpu") / config.times
    return share**2 if config.spacing == "quadratic" else share


def state_weights(at: Coefficients, largest: float) -> Tensor:
    """alpha / sigma, held within 1 and `largest`, float64: how much the states at these times count in the loss."""
    return at.snr.sqrt().clamp(1, largest)  # infinite without noise


def places(times: Tensor, grid: Tensor) -> tuple[int, ...]:
    """Where falling times (K,) are in a solver's grid (N + 1,). Raises `ConfigError` if it passes one of them by."""
    apart = (grid[:, None] - times).abs()  # (N + 1, K)
    if (apart.amin(0) > 1e-9).any():
        raise ConfigError(
            f"the teacher's grid does not contain the times {', '.join(f'{t:g}' for t in times.tolist())};"
            f" with teacher_grid=uniform, make teacher_steps a multiple of {round(1 / times[-2].item())}"
        )
    return tuple(apart.argmin(0).tolist())
