"""Does a model use its code? The diagnosis of posterior collapse."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.likelihood import Pixels
from ..core.model import HasLatents
from .likelihood import as_shown
from .precision import full_precision

ACTIVE = 0.01  # Var_x(E[z | x]) above which a dimension is active (Burda et al. 2016, section 5.2)
SILENT = 0.1  # nats in all dimensions together below which a code says nothing worth the name


class Collapse(NamedTuple):
    """What the dimensions of a code say of pictures.

    A posterior that is the prior for every picture costs no nats and has the same mean for all: it has collapsed. The
    nats are also the most that picture and code can share: I(x; z) = E_x KL(q(z | x) || p(z)) - KL(q(z) || p(z)).
    Where the prior or the posterior has variables of its own, they are more than the sum over the dimensions of z, or
    less, for these are then given those variables.
    """

    kl: Tensor  # E_x KL(q(z_d | x) || p(z_d)) of each dimension, nats, (D,)
    variance: Tensor  # Var_x(E[z_d | x]) of each dimension, (D,); of a map's channel, where on the map it is largest
    nats: float  # E_x KL(q(z | x) || p(z)) as the model's bound counts it, with all that is drawn besides z
    pictures: int

    @property
    def active_units(self) -> int:
        """Dimensions whose mean depends on the picture: Var_x(E[z_d | x]) > 0.01."""
        return int((self.variance > ACTIVE).sum())

    @property
    def verdict(self) -> str:
        """In words."""
        active, dims = self.active_units, len(self.kl)
        if not active or self.nats < SILENT:
            return f"collapsed: the code of {dims} dimensions says nothing of the picture"
        partly = "partly collapsed" if 2 * active < dims else "in use"
        return f"{partly}: {active} of {dims} dimensions depend on the picture"


@torch.no_grad()
def diagnose(
    model: HasLatents,
    batches: Iterable[Tensor],
    *,
    pixels: Pixels = "levels",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Collapse:
    """Nats and spread of each dimension of the code over pictures (B, C, H, W) in [-1, 1] in batches of any size.

    Both are gathered in float64, deviations from the running mean (Chan, Golub and LeVeque 1979), so that neither the
    number of pictures nor the size of batches matters.

    pixels  what the model is shown of grey levels, as in `mean_bits_per_dim`
    seed    of what is drawn for that, and of the groups of a hierarchy: picture k has seed `seed + k`
    device  where the model is

    Raises `ConfigError` for fewer than two pictures, of which no variance can be said.
    """
    device, count, dimension = torch.device(device), 0, None
    seeded = "seeds" in inspect.signature(model.latents).parameters
    kl = mean = scatter = bound = torch.zeros((), dtype=torch.float64)
    for images in batches:
        seeds = list(range(seed + count, seed + count + len(images)))
        shown = as_shown(images, pixels, seeds, device)
        with full_precision(device):
            found = model.latents(shown, **{"seeds": seeds} if seeded else {})
        dimension = found.dimension
        means, nats = (part.flatten(1).cpu().double() for part in (found.means, found.kl))  # (B, D)
        total = count + len(means)
        share, step = len(means) / total, means.mean(0) - mean
        scatter = scatter + (means - means.mean(0)).square().sum(0) + step.square() * count * share
        mean, kl = mean + step * share, kl + (nats.mean(0) - kl) * share
        whole = nats.sum(1) if found.total is None else found.total.cpu().double()  # (B,)
        bound = bound + (whole.mean() - bound) * share
        count = total
    if count < 2:
        raise ConfigError(f"a diagnosis of collapse needs at least 2 pictures, not {count}")
    variance = scatter / (count - 1)
    if dimension is not None:
        variance = torch.zeros_like(kl).scatter_reduce(0, dimension.cpu(), variance, "amax")
    return Collapse(kl, variance, float(bound), count)
