"""Bits per dimension of models that know a likelihood or a bound of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError, suggest
from ..core.likelihood import Pixels, bits_per_dim, discrete_log_prob
from ..core.model import HasELBO, HasLogProb
from ..data.loader import PIXELS, augmenting
from .features import to_levels
from .precision import full_precision


class BitsPerDim(NamedTuple):
    """How many bits a pixel costs, on average over pictures."""

    value: float
    bound: bool  # an upper bound (from an ELBO, or by dequantisation), not the exact value
    pictures: int
    error: float  # standard error of the value, from the spread between pictures
    pixels: Pixels  # what the likelihood is of
    controls: dict[str, Any]  # how the model computed it: the options of its method, given or not
    dims: int  # D = C * H * W, or what of it the likelihood is of (`Model.dims`)

    @property
    def nats(self) -> tuple[float, float]:
        """-ln p(x) of a picture, and its standard error."""
        unit = self.dims * math.log(2.0)
        return self.value * unit, self.error * unit


@torch.no_grad()
def mean_bits_per_dim(
    model: HasLogProb | HasELBO,
    batches: Iterable[Tensor],
    *,
    pixels: Pixels = "levels",
    seed: int = 0,
    device: torch.device | str = "cpu",
    controls: Mapping[str, Any] | None = None,
) -> BitsPerDim:
    """-log2 p(x) / D, the mean over pictures (B, C, H, W) in [-1, 1] that come in batches of any size.

    The likelihood is never computed under autocast: bf16 alone would cost more digits than models differ by.

    pixels  what the likelihood is of: "levels": the probability of the 8-bit picture; "dequantised": a density over
            [-1, 1], here at x + u with u uniform in a level's cell, which bounds the probability from below (Theis et
            al. 2016, arXiv 1511.01844, section 3.1); "binary": the probability of a picture with pixels in {-1, 1},
            drawn with its grey levels as chances. A model whose `log_prob` is a density is never asked about levels
    seed    of u, and, apart from that, of what the model draws itself: picture k has seed `seed + k`
    device  where the model is
    controls
            options of the model's `log_prob` or `elbo`, such as terms

    Raises `ConfigError` for no pictures, an option that the model's method does not have, or a probability above one.
    """
    device = torch.device(device)
    if pixels == "levels" and getattr(model, "density", False):
        pixels = "dequantised"
    method = measure_of(model)
    used = {**checked_options(method, controls or {}), **(controls or {})}
    seeded = "seeds" in inspect.signature(method).parameters
    values: list[Tensor] = []
    pictures, dims = 0, 1
    for images in batches:
        dims = getattr(model, "dims", None) or images[0].numel()
        seeds = list(range(seed + pictures, seed + pictures + len(images)))
        shown = as_shown(images, pixels, seeds, device)
        with full_precision(device):
            log_prob = method(shown, **{"seeds": seeds} if seeded else {}, **(controls or {})).cpu().double()
        if pixels == "dequantised":
            log_prob = discrete_log_prob(log_prob, dims)
        values.append(log_prob)
        pictures += len(images)
    if not pictures:
        raise ConfigError("bits per dimension need at least one picture")
    exact = isinstance(model, HasLogProb) and pixels != "dequantised"
    bits = bits_per_dim(torch.cat(values), dims)
    if bits.mean() < 0:
        raise ConfigError(
            f"these pictures would cost {bits.mean():.3g} bits a number, less than nothing, so their likelihood was"
            " computed too coarsely: ask for more steps or finer tolerances"
        )
    error = float(bits.std() / pictures**0.5) if pictures > 1 else float("nan")
    return BitsPerDim(float(bits.mean()), not exact, pictures, error, pixels, used, dims)


def as_shown(images: Tensor, pixels: Pixels, seeds: Sequence[int], device: torch.device) -> Tensor:
    """What a model is shown of pictures (B, C, H, W) in [-1, 1], on its device: see `mean_bits_per_dim`."""
    return PIXELS[pixels](to_levels(images.cpu()), augmenting(seeds)).to(device)


def measure_of(model: HasLogProb | HasELBO) -> Callable[..., Tensor]:
    """How the likelihood of a model is found: exactly where that is possible."""
    return model.log_prob if isinstance(model, HasLogProb) else model.elbo


def checked_options(
    method: Callable[..., Any],
    asked: Iterable[str],
    told: Container[str] = ("images", "labels", "seeds"),
    what: str = "the likelihood of this model",
) -> dict[str, Any]:
    """The options of a measure by name, with what they are where nothing is said.

    told  what it is told anyway, which is no option

    Raises `ConfigError` where one is asked for that it does not have.
    """
    options = {name: p.default for name, p in inspect.signature(method).parameters.items() if name not in told}
    for name in asked:
        if name not in options:
            raise ConfigError(f"{what} has no option {name!r}{suggest(name, options)}")
    return options
