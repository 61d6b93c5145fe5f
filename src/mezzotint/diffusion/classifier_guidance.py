"""Guidance by a classifier that was trained on noisy pictures (Dhariwal and Nichol 2021; survey, section 6.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.batch import Batch
from ..core.config import Config
from ..core.errors import ConfigError, DataError
from ..core.model import Losses, Model
from ..core.precision import at_least_float32
from ..nn.encoder import HalfUNet
from ..nn.unet import UNetConfig
from .model import by_quarter, choose, noisy
from .paths import PATHS, Path
from .predictions import Denoised, Denoiser, carried, rows, unit
from .times import TIMES

LogProb = Callable[[Tensor, Tensor, Tensor], Tensor]  # (labels, x, t) -> ln p(label | x_t), nats, (B,)


@dataclass(frozen=True)
class NoisyClassifierConfig(Config):
    """A classifier of noisy pictures. Names are those of `PATHS` and `TIMES`."""

    image_size: int
    channels: int
    classes: int
    network: UNetConfig = field(default_factory=UNetConfig)  # of which the way down is taken
    path: str = "linear"
    unit_input: bool = False  # the network sees x divided by its expected standard deviation
    times: str = "discrete"

    def __post_init__(self) -> None:
        for name in ("image_size", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.classes < 2:
            raise ConfigError(f"a classifier needs pictures of at least 2 classes, not of {self.classes}")
        choose("path", PATHS, self.path)
        choose("time sampler", TIMES, self.times)


class NoisyClassifier(Model):
    """p(label | x_t, t), trained by cross-entropy on pictures at every stage of noise.

    loss = E_{t, n} -ln p(label | alpha_t x + sigma_t n, t)

    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4; survey, eq. 90.
    Raises `ConfigError` if the network cannot halve pictures of `image_size` often enough.
    """

    config: NoisyClassifierConfig

    def __init__(self, config: NoisyClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.network = HalfUNet(config.network, config.channels, config.classes, config.image_size)
        self.path = PATHS[config.path]

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The cross-entropy in nats, mean over the batch; each picture's time and noise come from its own seed.

        `accuracy` is the share of labels that are the likeliest, and `accuracy/1` to `accuracy/4` are what the times of
        each quarter of [0, 1], from the picture to noise, add to it.

        Raises `DataError` if the batch has no labels.
        """
        if batch.labels is None:
            raise DataError("a classifier learns from labelled pictures, and these have no labels")
        x, random = batch.images, batch.random()
        t = TIMES[self.config.times](random, self.path)  # (B,)
        logits = self.logits(noisy(x, random.normal(*x.shape[1:]), self.path.at(t)), t)
        right = (logits.argmax(1) == batch.labels).float()
        parts = {"accuracy": right.mean(), **by_quarter(right, t, "accuracy")}
        return Losses(F.cross_entropy(logits, batch.labels), parts)

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network says of x_t, (B, classes) float32 or more; t () or (B,) a time of the path."""
        seen = unit(x, self.path.at(t)) if self.config.unit_input else x
        return at_least_float32(self.network(seen, self.path.network_time(t)))

    def log_prob_of(self, labels: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """ln p(label | x_t), nats, (B,), for labels (B,) and t () or (B,)."""
        return -F.cross_entropy(self.logits(x, t), labels, reduction="none")

    def classify(self, images: Tensor) -> Tensor:
        """Logits of pictures without noise, (B, classes): those at the path's start, the earliest time it learned."""
        return self.logits(images, torch.tensor(self.path.start, dtype=torch.float64, device="cpu"))


@dataclass(frozen=True)
class ClassifierGuided(Denoiser):
    """A denoiser that is pulled towards what a classifier takes for a given label. With s its strength:

        score    score + s grad_x ln p(label | x_t), which is noise - s sigma grad_x ln p(label | x_t): for solvers of
                 an ODE (algorithm 2)
        mean     the answer stands, and s grad_x ln p(label | x_t) goes along, in units of whose variance an ancestral
                 solver moves its mean (algorithm 1; survey, eq. 91)

    For s = 1 and an exact classifier the score is that of p(x_t | label), by Bayes' rule. A denoiser that holds clean
    pictures within [-1, 1] does so before it is guided, as in the paper. Where nothing of a picture is left, alpha = 0,
    there is nothing to classify, and the answer stands.

    log_prob    (labels, x, t) -> ln p(label | x_t), (B,), each picture's from that picture alone
    labels      (B,) int64
    strength    s, at least 0
    way         "score" or "mean"

    Raises `ConfigError` for a strength out of range.
    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4.
    """

    log_prob: LogProb = field(kw_only=True)
    labels: Tensor = field(kw_only=True)
    strength: float = field(kw_only=True)
    way: Literal["score", "mean"] = field(kw_only=True, default="score")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ConfigError(f"classifier guidance is a strength of 0 or more, not {self.strength}")

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        """Denoise x at the time t, a float64 number or one for each row."""
        denoised = super().__call__(x, t)
        if self.strength == 0 or not denoised.at.alpha.any():  # on the CPU: asking waits for no device
            return denoised
        pull = self.strength * gradient(self.log_prob, self.labels, x, t)
        if self.way == "mean":
            return replace(denoised, shift=pull)
        return replace(denoised, y=denoised.noise - rows(denoised.at.sigma, x) * pull, kind="noise")

    def on(self, path: Path) -> ClassifierGuided:
        """The same denoiser seen on another path, guided by gradients along the pictures of that path."""
        plain = Denoiser(self.network, self.path, self.kind, self.clip, self.learned_variance).on(path)
        return classifier_guided(
            plain,
            lambda labels, x, t: self.log_prob(labels, *carried(x, t, path, self.path)),
            self.labels,
            self.strength,
            self.way,
        )


def classifier_guided(
    denoiser: Denoiser, log_prob: LogProb, labels: Tensor, strength: float, way: Literal["score", "mean"] = "score"
) -> ClassifierGuided:
    """The denoiser pulled towards labels (B,); `log_prob` knows noisy pictures of its path. See `ClassifierGuided`."""
    d = denoiser
    return ClassifierGuided(
        d.network, d.path, d.kind, d.clip, d.learned_variance,
        log_prob=log_prob, labels=labels, strength=strength, way=way,
    )  # fmt: skip


def gradient(log_prob: LogProb, labels: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """grad_x ln p(label | x_t) of each picture, (B, C, H, W).

    Also inside `torch.no_grad` and `torch.inference_mode`, in which pictures are drawn.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()  # unlike an inference tensor, a copy made here may have one
        (answer,) = torch.autograd.grad(log_prob(labels.clone(), x, t.clone()).sum(), x)
    return answer
