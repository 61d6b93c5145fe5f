"""Is a codebook used? The diagnosis of what collapse is where codes are discrete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.likelihood import Pixels
from .likelihood import as_shown
from .precision import full_precision


@runtime_checkable
class Quantises(Protocol):
    """Says a picture in codes of a book."""

    def encode(self, images: Tensor) -> Tensor:
        """Numbers of codes, (B, ...) int64."""

    def codebook(self) -> Tensor:
        """What the codes stand for, (K, D)."""


class Usage(NamedTuple):
    """How often each code is chosen."""

    shares: Tensor  # of all choices, (K,) float64
    pictures: int

    @property
    def used(self) -> float:
        """Share of the codes that were chosen at all."""
        return float((self.shares > 0).double().mean())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the choices, -sum_k p_k ln p_k: so many codes, chosen equally often, say as much."""
        return float(torch.special.entr(self.shares).sum().exp())


@torch.no_grad()
def usage(
    model: Quantises,
    batches: Iterable[Tensor],
    *,
    pixels: Pixels = "levels",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Usage:
    """Over pictures (B, C, H, W) in [-1, 1], in batches of any size.

    pixels  what the model is shown of grey levels, as in `mean_bits_per_dim`
    seed    of that: picture k has seed `seed + k`
    device  where the model is

    Raises `ConfigError` without pictures.
    """
    device, count = torch.device(device), 0
    book = len(model.codebook())
    chosen = torch.zeros(book, dtype=torch.int64)
    for images in batches:
        shown = as_shown(images, pixels, list(range(seed + count, seed + count + len(images))), device)
        with full_precision(device):
            codes = model.encode(shown)
        chosen += torch.bincount(codes.flatten().cpu(), minlength=book)
        count += len(images)
    if not count:
        raise ConfigError("the use of a codebook is judged on at least 1 picture, not 0")
    return Usage(chosen.double() / chosen.sum(), count)
