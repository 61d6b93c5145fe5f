"""One model for every denoising paper: a network, and one choice along each independent axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.config import Config
from ..core.errors import ConfigError, DataError, suggest
from ..core.model import Losses, Model
from ..nn.unet import UNet, UNetConfig
from .grids import GRIDS, Grid
from .guidance import ClassifierFree
from .paths import PATHS
from .predictions import Denoiser, rows, target
from .solvers import SOLVERS, Callback, Solver
from .times import TIMES
from .weighting import WEIGHTINGS

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class DenoisingConfig(Config):
    """A denoising model, choice by choice."""

    image_size: int
    channels: int
    classes: int = 0  # how many; 0: unconditional, whatever labels the pictures have
    network: UNetConfig = field(default_factory=UNetConfig)
    path: Literal["linear", "cosine", "straight"] = "linear"
    prediction: Literal["noise", "clean", "velocity", "v"] = "noise"
    times: Literal["uniform", "discrete", "logit-normal"] = "discrete"
    weighting: Literal["simple", "min-snr"] = "simple"
    label_dropout: float = 0.1  # how often training hides the label, so that guidance has an unconditional branch
    solver: Literal["ancestral", "ancestral-large", "ddim", "euler", "heun"] = "ancestral"
    grid: Literal["uniform", "leading", "trailing", "linspace"] = "leading"
    steps: int = 1000  # of the solver
    guidance: float = 0.0  # w of the survey's eq. 92; 0: none
    clip: bool = True  # hold the expected clean picture within [-1, 1] while sampling

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("channels", 1), ("classes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.label_dropout <= 1:
            raise ConfigError(f"label_dropout is a probability, not {self.label_dropout}")
        _choose("grid", GRIDS, self.grid)(self.steps)  # refuses a number of steps that it cannot make
        _check_strength(self.guidance)
        if self.guidance and not (self.classes and self.label_dropout):
            raise ConfigError("guidance needs classes and some label_dropout; set guidance to 0")


class DenoisingModel(Model):
    """Learns E[target | x_t, t, label] by least squares, and samples by solving back from noise.

    loss = E_{t, n} w_t |network(alpha_t x + sigma_t n, t, label) - target|^2, mean over the picture's numbers

    Source: survey, eq. 83 (noise), 104 (velocity), 92 (label dropout and guidance).
    A model of no classes does not look at the labels of a batch.
    Raises `ConfigError` if the network cannot halve pictures of `image_size` often enough.
    """

    config: DenoisingConfig

    def __init__(self, config: DenoisingConfig) -> None:
        super().__init__()
        self.config = config
        embeddings = config.classes + 1 if config.classes else 0  # the last one stands for "no label"
        self.network = UNet(config.network, config.channels, config.channels, embeddings, config.image_size)
        self.path = PATHS[config.path]

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The denoising loss; each picture's time, noise and label dropout come from its own random numbers."""
        x, random = batch.images, batch.random()
        t = TIMES[self.config.times](random)  # (B,)
        labels = self._training_labels(batch, random)
        n = random.normal(*x.shape[1:])  # (B, C, H, W)
        at, kind = self.path.at(t), self.config.prediction
        x_t = rows(at.alpha, x) * x + rows(at.sigma, x) * n
        y = self.network(x_t, self.path.network_time(t), *labels)
        error = (y.to(x.dtype) - target(kind, x, n, at)).square().flatten(1).mean(1)  # (B,)
        weight = rows(WEIGHTINGS[self.config.weighting](at, kind), error)
        return Losses((weight * error).mean(), {"mse": error.detach().mean()})

    def denoiser(self, labels: Tensor | None = None, guidance: float = 0.0) -> Denoiser:
        """What solvers see: this model with labels (B,), or unconditional without them, guided with strength w."""
        network: Any = self.network
        if self.config.classes:
            null = self.config.classes
            if labels is None:
                network = lambda x, t: self.network(x, t, x.new_full((len(x),), null, dtype=torch.long))  # noqa: E731
            else:
                network = ClassifierFree(self.network, labels, null, guidance)
        return Denoiser(network, self.path, self.config.prediction, self.config.clip)

    def sample(
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
        """n pictures in [-1, 1], (n, C, H, W) float32; picture k depends on seed k (and label k) alone.

        labels     (n,); None: a conditional model draws each picture's label from its seed
        seeds      n integers, or the first of n consecutive ones
        steps, solver, grid, guidance
                   None: as in the config; a solver or a grid may also be a function of one's own
        callback   called with a `Step` at each step

        Raises `ConfigError` for an unknown name, a label out of range, or a condition that the model does not take.
        """
        for name, given in (("captions", captions), ("source", source), ("mask", mask)):
            if given is not None:
                raise ConfigError(f"this model does not take {name}; leave {name} away")
        c = self.config
        solve = _choose("solver", SOLVERS, c.solver if solver is None else solver)
        times = _choose("grid", GRIDS, c.grid if grid is None else grid)(c.steps if steps is None else steps)
        w = self._guidance(guidance)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        wanted = self._sampling_labels(n, labels, random)
        shape = (c.channels, c.image_size, c.image_size)
        with _evaluating(self), torch.inference_mode():
            x = random.normal(*shape)
            x = solve(self.denoiser(wanted, w), x, times.double().cpu(), lambda: random.normal(*shape), callback)
        return x.clamp(-1, 1)

    def _training_labels(self, batch: Batch, random: PictureRandom) -> tuple[Tensor, ...]:
        if not self.config.classes:
            return ()
        if batch.labels is None:
            raise DataError("this model learns from labels, and these pictures have none")
        hidden = random.uniform() < self.config.label_dropout
        return (torch.where(hidden, self.config.classes, batch.labels),)

    def _sampling_labels(self, n: int, labels: Tensor | Sequence[int] | None, random: PictureRandom) -> Tensor | None:
        classes = self.config.classes
        if not classes:
            if labels is not None:
                raise ConfigError("this model was trained without labels; leave labels away")
            return None
        drawn = random.integers(0, classes)  # also where labels are given, so that the noise is the same
        if labels is None:
            return drawn
        given = torch.as_tensor(labels, dtype=torch.long, device="cpu")  # to look at them without waiting
        if given.shape != (n,):
            raise ConfigError(f"{n} pictures need {n} labels, got the shape {tuple(given.shape)}")
        if n and not 0 <= int(given.min()) <= int(given.max()) < classes:
            raise ConfigError(f"labels are numbers from 0 to {classes - 1}, got {sorted(set(given.tolist()))}")
        return given.to(self.device)

    def _guidance(self, guidance: float | None) -> float:
        if guidance is None:
            return self.config.guidance
        _check_strength(guidance)
        if guidance and not (self.config.classes and self.config.label_dropout):
            raise ConfigError("this model cannot be guided: it was trained without labels, or without hiding any")
        return guidance


def _choose(what: str, known: Mapping[str, Choice], wanted: str | Choice) -> Choice:
    if not isinstance(wanted, str):
        return wanted
    if wanted not in known:
        raise ConfigError(f"no {what} is called {wanted!r}{suggest(wanted, known)}")
    return known[wanted]


def _check_strength(guidance: float) -> None:
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ConfigError(f"guidance is a strength of 0 or more, not {guidance}")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout inside the block, and as before behind it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
