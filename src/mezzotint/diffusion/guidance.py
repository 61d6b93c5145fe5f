"""Classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .predictions import rows


@dataclass(frozen=True)
class Guidance:
    """How a conditional model is pushed towards its condition while it samples.

    w         strength of the survey's eq. 92; 0: none
    interval  earliest and latest time t at which it is on (Kynkäänniemi et al. 2024, arXiv 2404.07724, section 3); a
              latest time of 1 is no bound: a solver that adds noise (churn) may ask beyond it
    rescale   phi of Lin et al. 2024, section 3.4: how much of the growth of the answer's spread is taken back

    Raises `ConfigError` for a number out of range.
    """

    w: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def on(self, t: Tensor) -> Tensor:
        """At which of the times t it is on, bool like t."""
        low, high = self.interval
        return (t >= low) & (t <= (high if high < 1 else math.inf))

    def __post_init__(self) -> None:
        if not (math.isfinite(self.w) and self.w >= 0):
            raise ConfigError(f"guidance is a strength of 0 or more, not {self.w}")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ConfigError(
                "the guidance interval is an earliest and a latest time within 0 and 1, not"
                f" {', '.join(map(str, self.interval))}"
            )
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"guidance_rescale is a share between 0 and 1, not {self.rescale}")


@dataclass(frozen=True)
class ClassifierFree:
    """A conditional network whose answer is pushed away from what it answers without a label.

        y = (1 + w) y(x, label) - w y(x, null)        (Ho and Salimans 2022, eq. 6; survey, eq. 92)

    With w = 0, and outside the interval, it is the conditional network, evaluated once. The equation is stated for
    noise; because every other prediction is affine in the noise at a given x, and the factors sum to one, it holds for
    each of them alike. With `rescale`, y is mixed with itself at the spread of the conditional answer (Lin et al. 2024,
    eq. 15-16):

        y <- phi y std(y(x, label)) / std(y) + (1 - phi) y,    std over one picture

    A learned variance, which is in the channels behind those of x, stays that of the conditional network.

    network    (x, t, labels) -> y
    labels     (B,) int64
    null       the label that stands for no label
    guidance   strength, interval, rescaling
    """

    network: Callable[[Tensor, Tensor, Tensor], Tensor]
    labels: Tensor
    null: int
    guidance: Guidance

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided answer, (B, C, H, W); both branches go through the network as one batch."""
        on = self.guidance.on(t)  # on the CPU, like t: asking for it waits for no device
        if self.guidance.w == 0 or not on.any():
            return self.network(x, t, self.labels)
        labels = torch.cat([self.labels, torch.full_like(self.labels, self.null)])
        both = t if t.dim() == 0 else torch.cat([t, t])
        # in the dtype of x: the difference of two answers in bf16 would be lost in rounding
        told, untold = self.network(torch.cat([x, x]), both, labels).to(x.dtype).chunk(2)
        conditional, unconditional = told[:, : x.shape[1]], untold[:, : x.shape[1]]
        w = rows(on.double() * self.guidance.w, x)
        y = (1 + w) * conditional - w * unconditional
        if self.guidance.rescale:
            least = torch.finfo(x.dtype).eps  # a new network answers 0 to everything
            spread = conditional.flatten(1).std(1) / y.flatten(1).std(1).clamp(min=least)  # (B,)
            y = y * (self.guidance.rescale * spread + 1 - self.guidance.rescale).view(-1, *[1] * (x.dim() - 1))
        return y if told.shape == x.shape else torch.cat([y, told[:, x.shape[1] :]], dim=1)
