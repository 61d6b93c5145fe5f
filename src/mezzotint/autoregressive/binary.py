"""What exact models of black and white pictures do alike, each pixel told by those before it through masked layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.batch import Batch, PictureRandom, picture_seeds
from ..core.labels import refuse, refuse_labels
from ..core.likelihood import bits_per_dim
from ..core.model import Losses, Model
from ..nn.masked import MaskedMLP
from .choosing import check_temperature


class MaskedBinaryModel(Model):
    """p(x) = prod_d p(x_d | x_<d), x_d = 1 with probability sigmoid(a_d), else -1; survey, eq. 65.

    a = network(x), masked so that a_d depends on the inputs before d in an order alone. Where there are several sets
    of masks the model is their mixture, each of them a distribution of its own: p(x) = mean over m of p_m(x). One of
    them is trained at each step, in turn (Germain et al. 2015, section 4.2-4.3).

    network   one number for each of D = H W C values, which are in raster order, the channels of a pixel side by side
    channels  C
    size      H = W
    """

    pixels = "binary"
    steps: Tensor

    def __init__(self, network: MaskedMLP, channels: int, size: int) -> None:
        super().__init__()
        self.network, self.channels, self.size = network, channels, size
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _values(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return images.permute(0, 2, 3, 1).flatten(1)

    def _images(self, values: Tensor) -> Tensor:
        """(B, D) -> (B, C, H, W)."""
        return values.unflatten(1, (self.size, self.size, self.channels)).permute(0, 3, 1, 2).contiguous()

    def log_prob_of(self, images: Tensor, number: int) -> Tensor:
        """ln p_m(x), nats, (B,), m the set of masks of this number."""
        x = self._values(images)
        return F.logsigmoid(x * self.network(x, number=number)[:, :, 0]).sum(1)

    @torch.no_grad()
    def log_prob(self, images: Tensor) -> Tensor:
        """ln p(x) = ln mean_m p_m(x), nats, (B,): images (B, C, H, W) in {-1, 1}."""
        each = torch.stack([self.log_prob_of(images, number) for number in range(self.network.masks)])
        return torch.logsumexp(each, 0) - math.log(self.network.masks)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """-ln p_m(x), nats, the mean over pictures, of the masks whose turn it is."""
        number = int(self.steps) % self.network.masks if self.network.masks > 1 else 0
        log_prob = self.log_prob_of(batch.images, number).mean()
        dims = batch.images[0].numel()
        parts = {"negative_log_prob": -log_prob, "bits_per_dim": bits_per_dim(log_prob, dims)}
        return Losses(-log_prob, {name: value.detach() for name, value in parts.items()})

    def after_step(self, step: int) -> None:
        """Count the steps, by which the sets of masks take turns."""
        self.steps += 1

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        captions: list[str] | None = None,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        temperature: float = 1.0,
        cached: bool = True,
    ) -> Tensor:
        """n pictures, pixels in {-1, 1}, drawn pixel by pixel; each from one of the sets of masks, chosen by chance.

        temperature  logits are divided by it; 0: each pixel is the likelier of the two
        cached       False: the network goes over the whole picture for each pixel, to compare with

        Raises `ConfigError` for a temperature below 0, or labels, captions, a source or a mask, which say nothing to
        this model.
        """
        refuse_labels(labels)
        refuse(captions=captions, source=source, mask=mask)
        check_temperature(temperature)
        dims = self.network.inputs
        random = PictureRandom(picture_seeds(n, seeds), self.device)
        numbers, u = random.integers(0, self.network.masks), random.uniform(dims)  # (n,), (n, D)
        u = u.clamp_min(1e-9).to(next(self.parameters()))
        threshold = torch.logit(u) * temperature  # u < sigmoid(a / temperature) where a exceeds this
        values = torch.zeros_like(threshold)
        for number in sorted(set(numbers.tolist())):
            rows = (numbers == number).nonzero()[:, 0]
            values[rows] = self._draw(number, threshold[rows], cached)
        return self._images(values).float()

    def _draw(self, number: int, threshold: Tensor, cached: bool) -> Tensor:
        """A value for each threshold (B, D): 1 where the logit exceeds it, else -1."""
        x, cache, value = torch.zeros_like(threshold), self.network.begin(len(threshold), number=number), None
        for place in self.network.places(number).tolist():
            numbers = self.network.step(cache, value) if cached else self.network(x, number=number)[:, place]
            value = x[:, place] = 2.0 * (numbers[:, 0] > threshold[:, place]) - 1.0
        return x
