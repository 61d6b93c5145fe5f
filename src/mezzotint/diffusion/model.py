"""One model for every denoising paper: a network, and one choice along each independent axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.codes import slerp
from ..core.config import Config
from ..core.errors import ConfigError, suggest
from ..core.labels import choose_labels, given_labels, given_pictures, labels_of, refuse
from ..core.model import Losses, Model, evaluating
from ..nn.dit import DiTConfig
from ..nn.ncsnpp import NCSNppConfig
from ..nn.unet import UNetConfig
from .grids import GRIDS, Grid
from .guidance import ClassifierFree, Guidance
from .paths import PATHS, Coefficients
from .predictions import Denoiser, rows, target, unit
from .solvers import SOLVERS, Callback, Solver, ddim
from .stepping import no_noise
from .times import TIMES, TimeSampler
from .weighting import WEIGHTINGS

Choice = TypeVar("Choice")
QUARTERS = 4  # of the times, in which the loss is logged


@dataclass(frozen=True)
class DenoisingConfig(Config):
    """A denoising model, choice by choice. Names are those of `PATHS`, `TIMES`, `WEIGHTINGS`, `SOLVERS` and `GRIDS`."""

    image_size: int
    channels: int
    classes: int = 0  # how many; 0: unconditional, whatever labels the pictures have
    network: UNetConfig | NCSNppConfig | DiTConfig = field(default_factory=UNetConfig)
    path: str = "linear"
    prediction: Literal["noise", "clean", "velocity", "v", "score", "edm"] = "noise"
    unit_input: bool = False  # the network sees x divided by its expected standard deviation (c_in of EDM)
    times: str = "discrete"
    weighting: str = "simple"
    metric: Literal["squared", "pseudo-huber"] = "squared"  # of the network's error
    label_dropout: float = 0.1  # how often training hides the label, so that guidance has an unconditional branch
    solver: str = "ancestral"
    grid: str = "leading"
    steps: int = 1000  # of the solver
    guidance: float = 0.0  # w of the survey's eq. 92; 0: none
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # earliest and latest time at which guidance is on
    guidance_rescale: float = 0.0  # phi of Lin et al. 2024
    clip: bool = True  # hold the expected clean picture within [-1, 1] while sampling

    time_samplers: ClassVar[Mapping[str, TimeSampler]] = TIMES  # by the names that `times` may have

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("channels", 1), ("classes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.label_dropout <= 1:
            raise ConfigError(f"label_dropout is a probability, not {self.label_dropout}")
        path = choose("path", PATHS, self.path)
        choose("time sampler", self.time_samplers, self.times)
        choose("weighting", WEIGHTINGS, self.weighting)
        choose("solver", SOLVERS, self.solver)
        choose("grid", GRIDS, self.grid)(self.steps, path)  # refuses a number of steps that it cannot make
        if self.solver == "ancestral-learned" and (variance := getattr(self, "variance", "fixed")) != "learned":
            raise ConfigError(f"the variance is {variance}; set solver to ancestral or ancestral-large")
        if self.prediction in ("noise", "score") and path.at(torch.ones((), device="cpu")).alpha == 0:
            raise ConfigError(
                f"the path {self.path} leaves nothing of the picture at t = 1, which the {self.prediction} cannot tell"
                " from there; set prediction to clean, v, velocity or edm"
            )
        if self.sampling_guidance.w and not (self.classes and self.label_dropout):
            raise ConfigError("guidance needs classes and some label_dropout; set guidance to 0")

    @property
    def sampling_guidance(self) -> Guidance:
        """How samples are guided where the caller does not say otherwise."""
        return Guidance(self.guidance, self.guidance_interval, self.guidance_rescale)


class DenoisingModel(Model):
    """Learns E[target | x_t, t, label] by least squares, and samples by solving back from noise.

    loss = E_{t, n} w_t |network(alpha_t x + sigma_t n, t, label) - target|^2, mean over the picture's numbers

    Source: survey, eq. 83 (noise), 104 (velocity), 92 (label dropout and guidance).
    A model of no classes does not look at the labels of a batch.
    Raises `ConfigError` if the network cannot halve pictures of `image_size` often enough.
    """

    config: DenoisingConfig
    learned_variance = False  # whether the network answers with a variance besides

    def __init__(self, config: DenoisingConfig) -> None:
        super().__init__()
        self.config = config
        embeddings = config.classes + 1 if config.classes else 0  # the last one stands for "no label"
        answers = config.channels * (2 if self.learned_variance else 1)
        self.network = config.network.build(config.channels, answers, embeddings, config.image_size)
        self.path = PATHS[config.path]

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The denoising loss; each picture's time, noise and label dropout come from its own random numbers.

        `mse` is the error before weighting, and `mse/1` to `mse/4` are what the times of each quarter of [0, 1], from
        the picture to noise, add to it.
        """
        x, random = batch.images, batch.random()
        t = self.training_times(random)  # (B,)
        labels = self.training_labels(batch, random)
        n = random.normal(*x.shape[1:])  # (B, C, H, W)
        return self.regression(x, n, t, labels)

    def regression(self, x: Tensor, n: Tensor, t: Tensor, labels: Tensor | None) -> Losses:
        """The loss of pictures x and noise n (B, C, H, W), however they came together, at times t (B,)."""
        at = self.path.at(t)
        y = self.answer(noisy(x, n, at), t, labels)
        error = self.distance(y.to(x.dtype) - target(self.config.prediction, x, n, at))  # (B,)
        weight = rows(WEIGHTINGS[self.config.weighting](at, self.config.prediction), error)
        return Losses((weight * error).mean(), {"mse": error.detach().mean(), **by_quarter(error.detach(), t)})

    def answer(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network says of x_t: (B, C, H, W), t () or (B,) a time of the path, labels (B,)."""
        seen = unit(x, self.path.at(t)) if self.config.unit_input else x
        y: Tensor = self.network(seen, self.path.network_time(t), *(() if labels is None else (labels,)))
        return y

    def distance(self, error: Tensor) -> Tensor:
        """Each picture's loss, (B,): the mean square, or the pseudo-Huber metric.

        sqrt(|e|^2 + c^2) - c,    c = 0.00054 D        (Lee et al. 2024, arXiv 2405.20320)
        """
        if self.config.metric == "squared":
            return error.square().flatten(1).mean(1)
        return pseudo_huber(error, power=1.0)

    def denoiser(self, labels: Tensor | None = None, guidance: Guidance = Guidance()) -> Denoiser:  # noqa: B008 (frozen)
        """What solvers see: this model with labels (B,), or unconditional without them, guided."""
        network: Any = self.answer
        if self.config.classes:
            null = self.config.classes
            if labels is None:
                network = lambda x, t: self.answer(x, t, torch.full((len(x),), null, device=x.device))  # noqa: E731
            else:
                network = ClassifierFree(self.answer, labels, null, guidance)
        return Denoiser(network, self.path, self.config.prediction, self.config.clip, self.learned_variance)

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
        eta: float | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32; picture k depends on seed k (and label k) alone.

        labels     (n,); None: a conditional model draws each picture's label from its seed
        seeds      n integers, or the first of n consecutive ones
        steps, solver, grid, guidance, guidance_interval, guidance_rescale
                   None: as in the config; a solver or a grid may also be a function of one's own
        eta        of the solver "ddim": 0 deterministic, 1 ancestral
        callback   called with a `Step` at each step

        Raises `ConfigError` for an unknown name, a label out of range, a condition that the model does not take, or a
        grid that does not begin with noise (one leading step).
        """
        refuse(captions=captions, source=source, mask=mask)
        strength = self.sampling_guidance(guidance, guidance_interval, guidance_rescale)
        solve = choose_solver(self.config.solver if solver is None else solver, eta)
        guided = partial(self.denoiser, guidance=strength)
        return self.solved(n, labels, seeds, solve, guided, steps, grid, callback)

    def solved(
        self,
        n: int,
        labels: Tensor | Sequence[int] | None,
        seeds: int | Sequence[int],
        solver: Solver,
        denoiser: Callable[[Tensor | None], Denoiser],
        steps: int | None = None,
        grid: str | Grid | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """What `sample` does once it knows who denoises: the solver's way from each picture's own noise.

        denoiser  called with the labels (n,) that the pictures get; None without classes
        """
        c = self.config
        times = choose("grid", GRIDS, c.grid if grid is None else grid)(c.steps if steps is None else steps, self.path)
        if times[0] < 0.5:
            raise ConfigError(
                f"these {len(times) - 1} steps begin at t = {float(times[0]):.3g}, where a picture is hardly noisy yet,"
                " and not with noise; use more steps, or the grid trailing"
            )
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        wanted = self.sampling_labels(n, labels, random)
        noise = partial(random.normal, c.channels, c.image_size, c.image_size)
        with evaluating(self), torch.no_grad():
            x = solver(denoiser(wanted), self.first(noise(), times), times.double().cpu(), noise, callback)
        return x.clamp(-1, 1)

    def first(self, n: Tensor, times: Tensor) -> Tensor:
        """The state at the first of `times`, whose picture is forgotten: sigma n."""
        return rows(self.path.at(times[0]).sigma, n) * n

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        *,
        labels: Tensor | Sequence[int] | None = None,
        steps: int = 100,
        solver: str | Solver = "ddim",
        grid: str | Grid = "karras",
    ) -> Tensor:
        """The noise at t = 1 from which a deterministic solver draws these pictures, in units of its deviation.

        images, labels   (B, C, H, W) in [-1, 1], (B,); without labels a conditional model goes its unconditional way

        The way is that of `sample`, unguided: if the config says so, the expected clean picture is held within [-1, 1].
        Raises `ConfigError` for an unknown name, a solver that needs noise, or labels that do not fit.
        Source: Song et al. 2020 (arXiv 2010.02502), eq. 13-14 and section 5.4. The round trip is exact only for many steps.
        """  # noqa: E501
        times = choose("grid", GRIDS, grid)(steps, self.path).double().cpu().flip(0)
        known = known_labels(self.config, labels, images)
        with evaluating(self):
            x = choose_solver(solver)(self.denoiser(known), images, times, no_noise)
        return x / rows(self.path.at(times[-1]).sigma, x)

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        *,
        labels: Tensor | Sequence[int] | None = None,
        steps: int = 100,
        solver: str | Solver = "ddim",
        grid: str | Grid = "karras",
    ) -> Tensor:
        """Pictures in [-1, 1] from the codes of `encode`; both should use the same steps, solver and grid.

        From `codes` it draws what `sample` draws from their seeds with this solver and grid and no guidance.
        """
        times = choose("grid", GRIDS, grid)(steps, self.path).double().cpu()
        known = known_labels(self.config, labels, codes)
        with evaluating(self):
            x = choose_solver(solver)(self.denoiser(known), self.first(codes, times), times, no_noise)
        return x.clamp(-1, 1)

    def codes(self, seeds: Sequence[int]) -> Tensor:
        """The noise from which `sample` begins for these seeds, in units of its deviation, (B, C, H, W)."""
        c, random = self.config, PictureRandom(seeds, self.device)
        self.sampling_labels(len(random), None, random)  # they are drawn before it
        return random.normal(c.channels, c.image_size, c.image_size)

    def from_codes(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """What `decode` makes of them: without chance, whatever `sample` does."""
        return self.decode(codes.to(self.device), labels=labels)

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Along an arc. Source: Song et al. 2020 (arXiv 2010.02502), section 5.3."""
        return slerp(first, last, shares)

    def unclipped(self, labels: Tensor | None = None) -> Denoiser:
        """The unguided denoiser, as a density needs it: without a corner where the clean picture leaves [-1, 1]."""
        made = self.denoiser(labels)
        return Denoiser(made.network, made.path, made.kind, learned_variance=made.learned_variance)

    def training_times(self, random: PictureRandom) -> Tensor:
        """At which times the loss of these pictures is taken, (B,) float64 on the CPU."""
        return self.config.time_samplers[self.config.times](random, self.path)

    def training_labels(self, batch: Batch, random: PictureRandom) -> Tensor | None:
        """The labels that the network is told, some of them hidden; None for a model without classes."""
        told = labels_of(batch, self.config.classes)
        if told is None:
            return None
        hidden = random.uniform() < self.config.label_dropout
        return torch.where(hidden, self.config.classes, told)

    def sampling_labels(self, n: int, labels: Tensor | Sequence[int] | None, random: PictureRandom) -> Tensor | None:
        """The labels of n pictures, on the model's device, drawn where none are given; None without classes."""
        return choose_labels(n, labels, self.config.classes, random)

    def sampling_guidance(
        self, w: float | None = None, interval: tuple[float, float] | None = None, rescale: float | None = None
    ) -> Guidance:
        """The guidance asked for, as in the config where nothing is said.

        Raises `ConfigError` if the model has no unconditional branch.
        """
        c = self.config
        asked = Guidance(
            c.guidance if w is None else w,
            c.guidance_interval if interval is None else interval,
            c.guidance_rescale if rescale is None else rescale,
        )
        if asked.w and not (c.classes and c.label_dropout):
            raise ConfigError("this model cannot be guided: it was trained without labels, or without hiding any")
        return asked


def told(config: DenoisingConfig, labels: Tensor | None) -> None:
    """Raises `ConfigError` where the labels of pictures are missing, and were never hidden while the model learned."""
    if config.classes and labels is None and not config.label_dropout:
        raise ConfigError("this model was always told labels, so it knows no pictures without them; give labels")


def known_labels(config: DenoisingConfig, labels: Tensor | Sequence[int] | None, x: Tensor) -> Tensor | None:
    """The labels of given pictures x, or None, on the device of x. Raises `ConfigError` where they or x do not fit."""
    given_pictures(x, config.channels, config.image_size)
    if labels is None:
        told(config, labels)
        return None
    return given_labels(len(x), labels, config.classes, x.device)


def noisy(x: Tensor, n: Tensor, at: Coefficients) -> Tensor:
    """alpha x + sigma n, (B, C, H, W)."""
    return rows(at.alpha, x) * x + rows(at.sigma, x) * n


def pseudo_huber(error: Tensor, power: float = 0.5) -> Tensor:
    """sqrt(|e|^2 + c^2) - c of each picture, (B,), with c = 0.00054 D^power.

    power  1/2 for consistency models (Song and Dhariwal 2024, section 3.3), 1 for rectified flows (the authors' code of
           Lee et al. 2024): there 1.66 for pictures of 32 x 32 in colour, and smaller errors count by their squares
    """
    flat = error.flatten(1)
    c = 0.00054 * flat.shape[1] ** power
    return (flat.square().sum(1) + c**2).sqrt() - c


def by_quarter(error: Tensor, t: Tensor, name: str = "mse") -> dict[str, Tensor]:
    """What the pictures whose time lies in each quarter of [0, 1] add to the mean of `error` (B,); they sum to it."""
    quarter = (t * QUARTERS).ceil().sub(1).clamp(0, QUARTERS - 1).long().to(error.device, non_blocking=True)
    return {f"{name}/{q + 1}": torch.where(quarter == q, error, 0.0).mean() for q in range(QUARTERS)}


def choose(what: str, known: Mapping[str, Choice], wanted: str | Choice) -> Choice:
    """The entry of this name, or what is no name. Raises `ConfigError` that names the nearest one."""
    if not isinstance(wanted, str):
        return wanted
    if wanted not in known:
        raise ConfigError(f"no {what} is called {wanted!r}{suggest(wanted, known)}")
    return known[wanted]


def choose_solver(wanted: str | Solver, eta: float | None = None) -> Solver:
    """The solver of this name; eta belongs to DDIM alone. Raises `ConfigError`."""
    if eta is None:
        return choose("solver", SOLVERS, wanted)
    if wanted != "ddim":
        raise ConfigError(f"eta belongs to the solver ddim, not to {wanted}; choose solver ddim, or leave eta away")
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta lies between 0 (deterministic) and 1 (ancestral), not {eta}")
    return partial(ddim, eta=eta)
