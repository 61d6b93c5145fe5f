"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassifierFree:
    """A conditional network whose answer is pushed away from what it answers without a label.

        y = (1 + w) y(x, label) - w y(x, null)        (Ho and Salimans 2022, eq. 6; survey, eq. 92)

    With w = 0 it is the conditional network, evaluated once. The equation is stated for noise; because every other
    prediction is affine in the noise at a given x, and the factors sum to one, it holds for each of them alike.

    network  (x, network time, labels) -> y
    labels   (B,) int64
    null     the label that stands for no label
    w        strength, at least 0
    """

    network: Callable[[Tensor, Tensor, Tensor], Tensor]
    labels: Tensor
    null: int
    w: float

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided answer, (B, C, H, W); both branches go through the network as one batch."""
        if self.w == 0:
            return self.network(x, t, self.labels)
        labels = torch.cat([self.labels, torch.full_like(self.labels, self.null)])
        conditional, unconditional = self.network(torch.cat([x, x]), t, labels).chunk(2)
        return (1 + self.w) * conditional - self.w * unconditional
