"""Consistency models: one function takes every point of a trajectory to its end, learned from a teacher or without."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from .model import by_quarter, noisy, pseudo_huber
from .paths import EDM
from .predictions import DATA_STD, Denoiser, rows, unit
from .solvers import Callback, Noise
from .stepping import falling, tell
from .teacher import Teacher, agree, begin_with, newest
from .times import on_cpu

PATH = EDM()  # alpha = 1, sigma = 80 t: the trajectories of Karras et al. 2022, from 0.002 to 80


@dataclass(frozen=True)
class ConsistencyConfig(Config):
    """A consistency model. The defaults are those of improved consistency training."""

    image_size: int
    channels: int
    classes: int = 0  # how many; 0: unconditional, whatever labels the pictures have
    network: UNetConfig | NCSNppConfig | DiTConfig = field(default_factory=UNetConfig)
    total_steps: int = 400_000  # K: steps of training over which the grid grows; those of the whole run
    growth: Literal["none", "root", "doubling"] = "doubling"  # of the number of grid points N(k), see `points`
    s0: int = 10  # N(k) at the first step: s0, and s0 + 1 where it doubles
    s1: int = 1280  # N(K) - 1; not used where nothing grows
    rho: float = 7.0  # of the grid, see `noise_levels`
    times: Literal["uniform", "log-normal"] = "log-normal"  # how often each pair of neighbours is trained
    weighting: Literal["simple", "inverse-step"] = "inverse-step"  # 1, or 1 / (sigma_{n+1} - sigma_n)
    metric: Literal["squared", "pseudo-huber"] = "pseudo-huber"
    target_decay: float = 0.0  # mu_0 of the target's moving average, see `decay`; 0: the target is the network itself
    steps: int = 1  # of sampling
    clip: bool = True  # hold every picture of sampling within [-1, 1]

    def __post_init__(self) -> None:
        least = {"image_size": 1, "channels": 1, "classes": 0, "total_steps": 1, "s0": 2, "steps": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name} must be at least {smallest}, not {getattr(self, name)}")
        if self.growth != "none" and self.s1 < self.s0:
            raise ConfigError(f"the grid grows from s0 to s1, so s1 must be at least {self.s0}, not {self.s1}")
        if not self.rho > 0:
            raise ConfigError(f"rho must be above 0, not {self.rho}")
        if not 0 <= self.target_decay < 1:
            raise ConfigError(f"target_decay is the share of the target that survives a step, not {self.target_decay}")

    def points(self, step: int) -> int:
        """N(k), the number of points of the grid at training step k; from step K on it stays.

        none      s0
        root      ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1      (Song et al. 2023, appendix C)
        doubling  min(s0 2^floor(k / K'), s1) + 1, with K' = floor(K / (log2 floor(s1 / s0) + 1))
                                                                          (Song and Dhariwal 2024, section 3.4)
        """
        k, s0, s1 = min(step, self.total_steps), self.s0, self.s1
        if self.growth == "none":
            return s0
        if self.growth == "root":
            return math.ceil(math.sqrt(k / self.total_steps * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
        each = max(int(self.total_steps / (math.log2(s1 // s0) + 1)), 1)
        return min(s0 * 2 ** (k // each), s1) + 1

    def decay(self, step: int) -> float:
        """mu(k) = exp(s0 ln mu_0 / N(k)), which survives of the target (Song et al. 2023, appendix C); 0 for mu_0 = 0.

        Where nothing grows it is mu_0.
        """
        return self.target_decay ** (self.s0 / self.points(step))


class ConsistencyModel(Model):
    """A function that takes a noisy picture to the end of its trajectory, whatever its noise level.

        f(x, t) = c_skip(t) x + c_out(t) F(c_in(t) x, t),    f(x, epsilon) = x for any weights      (`boundary`)

    It is trained to say the same of two neighbours on a trajectory, with grid points sigma_1 < ... < sigma_N:

        lambda_n d(f(x_{n+1}, sigma_{n+1}), f^-(x_n, sigma_n)),    n of 1 ... N - 1

    where f^- has the weights of a moving average of those of f, or of f itself, and no gradient. Both see the same
    dropout. `ConsistencyDistillation` and `ConsistencyTraining` differ in how they find x_n.

    The trajectories are those of Karras et al. 2022, sigma from epsilon = 0.002 to 80, and F is told ln(sigma) / 4.
    The number of steps trained so far is kept with the weights.

    Source: Song et al. 2023 (arXiv 2303.01469); Song and Dhariwal 2024 (arXiv 2310.14189); survey, section 6.1.
    """

    config: ConsistencyConfig
    step: Tensor

    def __init__(self, config: ConsistencyConfig, embeddings: int) -> None:
        super().__init__()
        self.config, self.path = config, PATH
        self.network = config.network.build(config.channels, config.channels, embeddings, config.image_size)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # k
        self.target: nn.Module | None = None

    def keep_target(self) -> None:
        """Begin the moving average, if the config asks for one; called when the network has its first weights."""
        if self.config.target_decay:
            self.target = copy.deepcopy(self.network).requires_grad_(False)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The consistency loss; each picture's grid point and noise come from its own random numbers.

        `distance` is the mean of d before weighting, and `distance/1` to `distance/4` are what the quarters of the
        grid, from the picture to noise, add to it; `points` is N(k).
        """
        x, random = batch.images, batch.random()
        sigma = noise_levels(self.config.points(int(self.step)), self.path, self.config.rho)  # (N,)
        n = draw_intervals(random, sigma, self.config.times)  # (B,)
        z = random.normal(*x.shape[1:])  # (B, C, H, W)
        times = self.path.time_of(sigma)
        d = self.disagreement(x, z, times[n + 1], times[n], labels_of(batch, self.config.classes))
        weight = 1 / sigma.diff()[n] if self.config.weighting == "inverse-step" else torch.ones_like(sigma[n])
        share = (n + 1) / (len(sigma) - 1)
        parts = {
            "distance": d.detach().mean(),
            **by_quarter(d.detach(), share, "distance"),
            "points": d.new_tensor(len(sigma)),
        }
        return Losses((rows(weight, d) * d).mean(), parts)

    def disagreement(self, x: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """d(f(x_t, t), f^-(x_s, s)) of each picture, (B,), its gradient that of f alone.

        x, z    pictures and noise, (B, C, H, W)
        t, s    neighbouring times of the path, s < t, (B,)
        labels  (B,)
        """
        x_t = noisy(x, z, self.path.at(t))
        dropout = int(torch.randint(2**62, ()))
        torch.manual_seed(dropout)
        # before the pass without gradient, whose cast weights autocast of an older torch would use once more
        later = self.function(x_t, t, labels)
        with torch.no_grad():
            x_s = self.earlier(x_t, x, z, t, s, labels)
            torch.manual_seed(dropout)
            goal = self.function(x_s, s, labels, self.target)
        return METRICS[self.config.metric](later - goal)

    @abstractmethod
    def earlier(self, x_t: Tensor, x: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """x_s of the trajectory on which x_t = x + sigma_t z lies, (B, C, H, W)."""

    def function(self, x: Tensor, t: Tensor, labels: Tensor | None = None, network: nn.Module | None = None) -> Tensor:
        """f(x, t), the end of the trajectory of x.

        x, t, labels  (B, C, H, W), () or (B,) a time of the path, (B,)
        network       F; None: that which is trained
        """
        at = self.path.at(t)
        c_skip, c_out = boundary(at.sigma, self.path.sigma_min)
        told = () if labels is None else (labels,)
        y: Tensor = (network or self.network)(unit(x, at), self.path.network_time(t), *told)
        return rows(c_skip, x) * x + rows(c_out, x) * y.to(x.dtype)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The target follows: theta^- <- mu(k) theta^- + (1 - mu(k)) theta; then k grows by one."""
        if self.target is not None:
            own = [p.detach() for p in self.network.parameters()]
            torch._foreach_lerp_(list(self.target.parameters()), own, 1 - self.config.decay(int(self.step)))
        self.step += 1

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
        sigmas: Sequence[float] | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n pictures in [-1, 1], (n, C, H, W) float32; picture k depends on seed k (and label k) alone.

        labels    (n,); None: a conditional model draws each picture's label from its seed
        seeds     n integers, or the first of n consecutive ones
        steps     how often the function is asked; None: as in the config. The noise levels are the first of those of
                  a grid of one point more
        sigmas    the noise levels themselves, falling from 80, in place of `steps`
        callback  called with a `Step` at each step

        Raises `ConfigError` for noise levels or labels out of range, or a condition that the model does not take.
        """
        refuse(captions=captions, source=source, mask=mask)
        c = self.config
        times = self.sampling_times(steps, sigmas)
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        told = choose_labels(n, labels, c.classes, random)
        denoiser = Denoiser(lambda x, t: self.function(x, t, told), self.path, "clean", c.clip)
        with evaluating(self), torch.no_grad():
            noise = partial(random.normal, c.channels, c.image_size, c.image_size)
            first = noise()
            x = multistep(denoiser, rows(self.path.at(times[0]).sigma, first) * first, times, noise, callback)
        return x.clamp(-1, 1)

    def sampling_times(self, steps: int | None = None, sigmas: Sequence[float] | None = None) -> Tensor:
        """The times at which samples ask the function, and epsilon's, (N + 1,). Raises `ConfigError`."""
        least, most = self.path.sigma_min, self.path.sigma_max
        if sigmas is None:
            steps = self.config.steps if steps is None else steps
            if steps < 1:
                raise ConfigError(f"a sampler needs at least 1 step, not {steps}")
            return self.path.time_of(noise_levels(steps + 1, self.path, self.config.rho).flip(0))
        if steps is not None:
            raise ConfigError("give either steps or sigmas, not both")
        levels = torch.tensor([*sigmas, least], dtype=torch.float64, device="cpu")
        if not (len(levels) > 1 and levels[0] == most and (levels.diff() < 0).all()):
            raise ConfigError(f"sigmas are noise levels that fall from {most:g} and stay above {least:g}, not {sigmas}")
        return self.path.time_of(levels)


class ConsistencyTraining(ConsistencyModel):
    """A consistency model that learns from pictures alone.

    Both points belong to one picture and one noise, x_s = x + sigma_s z. On average over what x_t may have come from,
    that is Euler's step of the trajectory, for E[z | x_t] = -sigma_t grad ln p(x_t); so the gradient is that of
    distillation where neighbours are close and the target is f itself.

    Source: Song et al. 2023, section 5, theorem 2 and algorithm 3; Song and Dhariwal 2024, sections 3.2-3.5, for the
    defaults of the config.
    """

    def __init__(self, config: ConsistencyConfig) -> None:
        super().__init__(config, config.classes)
        self.keep_target()

    def earlier(self, x_t: Tensor, x: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """x + sigma_s z."""
        return noisy(x, z, self.path.at(s))


class ConsistencyDistillation(ConsistencyModel):
    """A consistency model that learns from a teacher.

    x_s is one step of Heun's method from x_t along the teacher's probability-flow ODE, guided as the teacher's config
    says, so that the guidance costs a sample nothing. The network begins with the teacher's weights.

    earlier_models  the earlier stages by name. The last is the teacher, a model on the path "edm" that predicts "edm"
                    of a unit input (Karras et al. 2022), whose network does the same as F

    Source: Song et al. 2023, section 4 and algorithm 2.
    Raises `ConfigError` without a teacher, or where it does not fit.
    """

    def __init__(self, config: ConsistencyConfig, **earlier_models: Model) -> None:
        super().__init__(config, config.classes + 1 if config.classes else 0)  # like its teacher, which hides labels
        self.teacher = Teacher(newest(earlier_models))
        agree(config, self.teacher.config, "image_size", "channels", "classes")
        told = self.teacher.config
        if (told.path, told.prediction, told.unit_input) != ("edm", "edm", True):
            raise ConfigError("the teacher of a consistency model has path=edm, prediction=edm and unit_input=true")
        begin_with(self.network, self.teacher)
        self.keep_target()

    def earlier(self, x_t: Tensor, x: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Heun's step of the teacher from t to s."""
        denoiser = replace(self.teacher.guided(labels), clip=False)  # the trajectory has no corner at -1 or 1
        v, dt = denoiser(x_t, t).velocity, rows(s - t, x_t)
        return x_t + dt * (v + denoiser(x_t + dt * v, s).velocity) / 2


def boundary(sigma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, which are 1 and 0 at sigma = epsilon, so that f(x, epsilon) = x; float64, of sigma's shape.

        c_skip = d^2 / ((sigma - epsilon)^2 + d^2),    c_out = d (sigma - epsilon) / sqrt(sigma^2 + d^2),    d = 0.5

    Source: Song et al. 2023, appendix C.
    """
    beyond = sigma - epsilon
    return DATA_STD**2 / (beyond**2 + DATA_STD**2), DATA_STD * beyond / torch.sqrt(sigma**2 + DATA_STD**2)


def noise_levels(points: int, path: EDM = PATH, rho: float = 7.0) -> Tensor:
    """Rising noise levels whose rho-th roots are in equal steps, with both ends of the path, (N,) float64.

        sigma_n = (epsilon^(1/rho) + (n - 1)/(N - 1) (sigma_max^(1/rho) - epsilon^(1/rho)))^rho,    n = 1 ... N

    Source: Song et al. 2023, section 4, after Karras et al. 2022, eq. 5.
    """
    roots = torch.tensor([path.sigma_min, path.sigma_max], dtype=torch.float64, device="cpu") ** (1 / rho)
    levels = torch.lerp(roots[0], roots[1], torch.linspace(0, 1, points, dtype=torch.float64, device="cpu")) ** rho
    levels[0], levels[-1] = path.sigma_min, path.sigma_max  # to the last bit
    return levels


def draw_intervals(random: PictureRandom, sigma: Tensor, times: Literal["uniform", "log-normal"]) -> Tensor:
    """For each row, one of the N - 1 intervals between noise levels, (B,) int64 on the CPU.

    uniform     all alike
    log-normal  as often as a log-normal sigma falls into it (`interval_shares`)
    """
    u = on_cpu(random).uniform().double()
    shares = interval_shares(sigma) if times == "log-normal" else torch.ones_like(sigma[1:])
    below = shares.cumsum(0) / shares.sum()
    return torch.searchsorted(below, u, right=True).clamp(max=len(shares) - 1)


def interval_shares(sigma: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """How much of a log-normal density lies between neighbouring noise levels, up to a common factor, (N - 1,).

        p_n  proportional to  erf((ln sigma_{n+1} - mean) / (sqrt(2) std)) - erf((ln sigma_n - mean) / (sqrt(2) std))

    Source: Song and Dhariwal 2024, section 3.5.
    """
    return torch.erf((torch.log(sigma) - mean) / (math.sqrt(2) * std)).diff()


def multistep(denoiser: Denoiser, x: Tensor, grid: Tensor, noise: Noise, callback: Callback | None = None) -> Tensor:
    """Multistep consistency sampling: to the end of the trajectory, back into the noise, and so on.

        x = f(x + sqrt(sigma_n^2 - epsilon^2) z, sigma_n)

    denoiser  its clean picture is f
    grid      falling times on the path `EDM`, the last that of epsilon

    The other arguments are those of every solver. One step uses no noise but that of x.

    Source: Song et al. 2023, algorithm 1.
    """
    epsilon = denoiser.path.at(grid[-1]).sigma
    for i, t, s in falling(grid):
        d = denoiser(x, t)
        tell(callback, i, grid, d)
        x = d.clean
        if i < len(grid) - 2:
            x = x + rows((denoiser.path.at(s).sigma ** 2 - epsilon**2).sqrt(), x) * noise()
    return x


METRICS: dict[str, Callable[[Tensor], Tensor]] = {  # of the difference, (B, C, H, W) -> (B,)
    "squared": lambda difference: difference.square().flatten(1).mean(1),
    "pseudo-huber": pseudo_huber,
}
