"""Bits per dimension of models that know a likelihood or a bound of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..core.batch import PictureRandom
from ..core.errors import ConfigError
from ..core.likelihood import bits_per_dim, discrete_log_prob
from ..core.model import HasELBO, HasLogProb
from ..data.loader import PIXELS
from .features import to_levels
from .precision import full_precision

Pixels = Literal["levels", "dequantised", "binary"]


class BitsPerDim(NamedTuple):
    """How many bits a pixel costs, on average over pictures."""

    value: float
    bound: bool  # an upper bound (from an ELBO, or by dequantisation), not the exact value
    pictures: int


@torch.no_grad()
def mean_bits_per_dim(
    model: HasLogProb | HasELBO,
    batches: Iterable[Tensor],
    *,
    pixels: Pixels = "levels",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> BitsPerDim:
    """-log2 p(x) / D, the mean over pictures (B, C, H, W) in [-1, 1] that come in batches of any size.

    The likelihood is never computed under autocast: bf16 alone would cost more digits than models differ by.

    pixels  what the likelihood is of: "levels": the probability of the 8-bit picture; "dequantised": a density over
            [-1, 1], here at x + u with u uniform in a level's cell, which bounds the probability from below (Theis et
            al. 2016, arXiv 1511.01844, section 3.1); "binary": the probability of a picture with pixels in {-1, 1},
            drawn with its grey levels as chances
    seed    of u: picture k has seed `seed + k`
    device  where the model is
    """
    device = torch.device(device)
    total, pictures, dims = 0.0, 0, 1
    for images in batches:
        dims = images[0].numel()
        seeds = range(seed + pictures, seed + pictures + len(images))
        shown = PIXELS[pixels](to_levels(images.cpu()), PictureRandom(list(seeds))).to(device)
        with full_precision(device):
            log_prob = model.log_prob(shown) if isinstance(model, HasLogProb) else model.elbo(shown)
        log_prob = log_prob.double()
        if pixels == "dequantised":
            log_prob = discrete_log_prob(log_prob, dims)
        total += log_prob.sum().item()
        pictures += len(images)
    if not pictures:
        raise ConfigError("bits per dimension need at least one picture")
    exact = isinstance(model, HasLogProb) and pixels != "dequantised"
    return BitsPerDim(bits_per_dim(total / pictures, dims), not exact, pictures)
