"""How much of what was spoiled does a denoiser find again?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.likelihood import Pixels
from .likelihood import as_shown
from .precision import full_precision


@runtime_checkable
class Restores(Protocol):
    """Spoils pictures as its training does, and undoes it."""

    def corrupt(self, images: Tensor, seeds: int | Sequence[int] = 0) -> Tensor:
        """x~ of C(x~ | x), of the same shape; picture k depends on seed k alone."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Pictures in [-1, 1], of the same shape."""


class Restoration(NamedTuple):
    """Squared errors of a number in [-1, 1], a channel of a pixel: means over all of them and over pictures."""

    restored: float  # E |x - reconstruct(x~)|^2 / D
    corrupted: float  # E |x - x~|^2 / D
    errors: tuple[float, float]  # standard errors of both, from the spread between pictures
    pictures: int


@torch.no_grad()
def restoration(
    model: Restores,
    batches: Iterable[Tensor],
    *,
    pixels: Pixels = "levels",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Restoration:
    """How far pictures (B, C, H, W) in [-1, 1], in batches of any size, are from their restored copies.

    One corrupted copy of each is looked at, as the model is shown it: noise that leaves [-1, 1] is not cut off.

    pixels  what the model is shown of grey levels, as in `mean_bits_per_dim`
    seed    of that and of the corruption: picture k has seed `seed + k`
    device  where the model is

    Source: Vincent et al. 2008, whose squared error this is.
    Raises `ConfigError` for fewer than two pictures.
    """
    device, count = torch.device(device), 0
    found: list[Tensor] = []
    for images in batches:
        seeds = list(range(seed + count, seed + count + len(images)))
        shown = as_shown(images, pixels, seeds, device)
        with full_precision(device):
            spoiled = model.corrupt(shown, seeds)
            copies = torch.stack([model.reconstruct(spoiled), spoiled])
        found.append((copies - shown).double().square().flatten(2).mean(2).cpu())
        count += len(images)
    if count < 2:
        raise ConfigError(f"a restoration is judged on at least 2 pictures, not {count}")
    errors = torch.cat(found, 1)  # (2, N)
    (restored, corrupted), (first, second) = errors.mean(1).tolist(), (errors.std(1) / count**0.5).tolist()
    return Restoration(restored, corrupted, (first, second), count)
