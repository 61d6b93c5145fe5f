"""What each dimension of a code does to a picture, and what lies between two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.model import Encodes, HasLatents, Model

TOGETHER = 50  # pictures whose posterior is found at once
VALUES = (-3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0)  # deviations of N(0, I)


@torch.no_grad()
def traverse(
    model: Model,
    picture: Tensor,
    *,
    dimensions: int = 10,
    values: Sequence[float] = VALUES,
    reference: Tensor | None = None,
) -> Tensor:
    """Pictures (R, V, C, H, W) of codes that are the picture's but for one dimension, which takes each of the values.

    Row r is the dimension with the r-th largest KL, so that the rows fall from what matters most to what has collapsed.
    Source: Higgins et al. 2017, figure 2-4, and Burgess et al. 2018 (arXiv 1804.03599), figure 3; survey, section 2.3.

    picture     (1, C, H, W) or (C, H, W), pixels as the model's likelihood knows them
    dimensions  R, or as many as the code has
    values      V of them, which are deviations of the prior where that is N(0, I)
    reference   (N, C, H, W) pictures over which the KL is averaged; None: of the picture alone

    Raises `ConfigError` if the model has no code of one mean for each dimension, or for more than one picture.
    """
    picture = _one(picture)
    code = _encode(model, picture)
    kl = _nats(model, picture)
    if len(kl) != code.numel():
        raise ConfigError(
            f"a code of {code.numel()} numbers in {len(kl)} maps cannot be traversed number by number; walk"
            " from picture to picture with mezzotint.vae.traversal.interpolate, or from seed to seed with the command"
            " interpolate"
        )
    if reference is not None:
        parts = [(len(part), _nats(model, part)) for part in reference.split(TOGETHER)]
        kl = torch.stack([count * nats for count, nats in parts]).sum(0) / len(reference)
    chosen = kl.argsort(descending=True)[: min(dimensions, len(kl))]  # (R,)
    codes = code.flatten().repeat(len(chosen), len(values), 1)  # (R, V, D)
    for row, dimension in enumerate(chosen):
        codes[row, :, dimension] = torch.as_tensor(values, dtype=code.dtype, device=code.device)
    pictures = cast("Encodes", model).decode(codes.view(-1, *code.shape[1:]))
    return pictures.unflatten(0, (len(chosen), len(values)))


@torch.no_grad()
def interpolate(model: Model, first: Tensor, last: Tensor, steps: int = 9) -> Tensor:
    """Pictures (steps, C, H, W) of the codes on the line from one picture's to another's, both ends included.

    first, last  (1, C, H, W) or (C, H, W), pixels as the model's likelihood knows them

    Raises `ConfigError` if the model has no code, for more than one picture at an end, or for fewer than two steps.
    """
    if steps < 2:
        raise ConfigError(f"between two pictures there are at least 2 steps, not {steps}")
    if not isinstance(model, Encodes):
        raise ConfigError(f"{type(model).__name__} has no code to walk through: it must encode and decode")
    start, end = (model.encode(_one(picture).to(model.device)) for picture in (first, last))
    shares = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).view(-1, *[1] * (start.dim() - 1))
    return model.decode(start + shares * (end - start))


def _nats(model: Model, pictures: Tensor) -> Tensor:
    """KL of each dimension, (D,), the mean over pictures."""
    return cast("HasLatents", model).latents(pictures.to(model.device)).kl.flatten(1).float().mean(0)


def _one(picture: Tensor) -> Tensor:
    picture = picture if picture.dim() == 4 else picture[None]
    if picture.dim() != 4 or len(picture) != 1:
        raise ConfigError(f"one picture is asked for, and its shape is {tuple(picture.shape)}")
    return picture


def _encode(model: Model, picture: Tensor) -> Tensor:
    if not (isinstance(model, Encodes) and isinstance(model, HasLatents)):
        raise ConfigError(
            f"{type(model).__name__} has no code to walk through: it must encode, decode and have latents"
        )
    return model.encode(picture.to(model.device))
