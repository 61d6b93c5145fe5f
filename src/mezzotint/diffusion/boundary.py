"""A rectified flow whose velocity is right at both ends, whatever its network says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.errors import ConfigError
from ..core.labels import labels_of
from ..core.model import Losses
from .model import DenoisingConfig, DenoisingModel
from .predictions import rows


@dataclass(frozen=True)
class BoundaryConfig(DenoisingConfig):
    """A rectified flow whose velocity keeps its boundary conditions."""

    path: str = "straight"
    prediction: str = "velocity"  # type: ignore[assignment]  # no other
    sharpness: float = 16.0  # k of the masks s^k and (1 - s)^k

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path != "straight" or self.prediction != "velocity" or self.unit_input:
            raise ConfigError("boundary conditions are those of the velocity on the straight path; set path to"
                              " straight, prediction to velocity, and unit_input to false")  # fmt: skip
        if not self.sharpness > 1:
            raise ConfigError(f"sharpness must be above 1, not {self.sharpness}")


class BoundaryModel(DenoisingModel):
    """Rectified flow with its boundary conditions built in.

        v(x, s) = g(s) (C - x) + f(s) x + h(s) m(x, s),    C = E[X_1]        (survey, eq. 106)

    s = 1 - t runs from noise to the picture, m is the network. With f(0) = h(0) = 0 = g(1) = h(1) and g(0) = 1 = f(1),

        v(x, 0) = C - x,    v(x, 1) = x

    for any weights, as it must be: from noise all lines lead to the mean picture, and at a picture the noise behind it
    has the mean 0. The survey leaves f, g and h open but for these ends; here they are masks,

        f(s) = s^k,    g(s) = (1 - s)^k,    h(s) = 1 - f(s) - g(s),    k = `sharpness`

    where k = 1 would leave nothing to the network, and a large k leaves it alone but for the ends. C is the mean of
    the pictures trained on so far; with classes it is that of the class, and of all pictures where no label is told.

    Source: Hu et al. 2025 (arXiv 2506.15864); survey, section 7.1.
    """

    config: BoundaryConfig
    mean: Tensor
    seen: Tensor

    def __init__(self, config: BoundaryConfig) -> None:
        super().__init__(config)
        shape = (config.channels, config.image_size, config.image_size)
        self.register_buffer("mean", torch.zeros(config.classes + 1, *shape))  # of each class; the last is of all
        self.register_buffer("seen", torch.zeros(config.classes + 1, dtype=torch.int64))  # pictures behind each mean
        self._sums: tuple[Tensor, Tensor] | None = None  # of this step's pictures, and how many

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """The loss of `DenoisingModel`; C is that of the steps before, so that no picture's loss depends on another."""
        if self.training:
            self._look_at(batch)
        return super().forward(batch, player)

    def answer(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """-v, since our times run from picture to noise; (B, C, H, W)."""
        s = 1 - t.double()
        f, g = s**self.config.sharpness, (1 - s) ** self.config.sharpness
        C = (self.mean[-1] if labels is None else self.mean[labels]).to(x.dtype)
        m = super().answer(x, t, labels)
        return rows(g, x) * (x - C) - rows(f, x) * x + rows(1 - f - g, x) * m.to(x.dtype)

    def after_step(self, step: int) -> None:
        """Move each mean towards the pictures of this step, those of all processes."""
        if self._sums is None:
            return
        (total, count), self._sums = self._sums, None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(count)
        self.seen += count
        wide = (-1, 1, 1, 1)
        self.mean += (total - count.view(wide) * self.mean) / self.seen.clamp(min=1).view(wide)

    @torch.no_grad()
    def _look_at(self, batch: Batch) -> None:
        x = batch.images.to(self.mean.dtype)
        total, count = self._sums or (torch.zeros_like(self.mean), torch.zeros_like(self.seen))
        labels = labels_of(batch, self.config.classes)
        if labels is not None:
            total = total.index_add(0, labels, x)
            count = count.index_add(0, labels, torch.ones_like(labels))
        total[-1] += x.sum(0)
        count[-1] += len(x)
        self._sums = total, count
