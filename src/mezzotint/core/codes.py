"""Codes of pictures: what lies between two of them, and sums and differences of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import PictureRandom
from .errors import ConfigError
from .model import HasCode

BATCH = 64  # pictures that are made at once
PARALLEL = 1e-6  # sine of an angle below which a chord is as good as an arc


def lerp(first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
    """(1 - t) a + t b, the way for codes that are uniform in a cube, which is convex.

    first, last  a and b, (B, ...) or (1, ...)
    shares       t, (B,)
    """
    t = _beside(shares, first)
    return ((1 - t) * first.double() + t * last.double()).to(first.dtype)


def slerp(first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
    """sin((1 - t) W) / sin W a + sin(t W) / sin W b, W the angle between a and b; so codes of a Gaussian are walked.

    Nearly all of N(0, I) in D dimensions is near the sphere of radius sqrt(D), which a chord leaves: its middle is
    shorter by a factor of sqrt(2). Where a and b are parallel or opposite, there is no arc between them, and the chord
    is taken.

    first, last  a and b, (B, ...) or (1, ...)
    shares       t, (B,)

    Source: White 2016 (arXiv 1609.04468), section 2.1.
    """
    t = _beside(shares, first)
    a, b = first.double(), last.double()
    u, v = (x / x.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, *[1] * (x.dim() - 1)) for x in (a, b))
    difference, total = (x.flatten(1).norm(dim=1) for x in (u - v, u + v))
    angle = _beside(2 * torch.atan2(difference, total), first)  # exact for small angles too
    sine = angle.sin()
    straight = sine < PARALLEL
    sine = sine.masked_fill(straight, 1.0)
    ways = (((1 - t) * angle).sin() / sine, (t * angle).sin() / sine)
    from_a, from_b = torch.where(straight, 1 - t, ways[0]), torch.where(straight, t, ways[1])
    return (from_a * a + from_b * b).to(first.dtype)


def interpolation(model: HasCode, first: int, last: int, n: int = 8, label: int | None = None) -> Tensor:
    """n pictures (n, C, H, W) in [-1, 1] on the way from the picture of one seed to that of another, both included.

    label  the class of all of them; None: the model has none, or needs none

    Raises `ConfigError` for fewer than two pictures, or a model that must be told a class.
    """
    if n < 2:
        raise ConfigError(f"from one picture to another there are at least 2, not {n}")
    ends = model.codes([first, last])
    codes = model.between(ends[:1], ends[1:], torch.linspace(0, 1, n, dtype=torch.float64))
    return pictures_of(model, codes, label)


def arithmetic(model: HasCode, base: Sequence[int], plus: Sequence[int], minus: Sequence[int]) -> Tensor:
    """z_base + (z_plus - z_minus), each the mean over the codes of some seeds, (1, ...).

    Single codes carry much that is not meant; the mean over three carries less of it. Of three seeds each, the result
    has the variance of a code of the prior: 3 times one third.

    Source: Radford et al. 2015 (arXiv 1511.06434), section 6.3.2; survey, eq. 37.
    Raises `ConfigError` if one of the three is empty.
    """
    base_code, plus_code, minus_code = (mean_code(model, seeds) for seeds in (base, plus, minus))
    return base_code + (plus_code - minus_code)


def arithmetic_sheet(
    model: HasCode, base: Sequence[int], plus: Sequence[int], minus: Sequence[int], *, around: float = 0.25,
    label: int | None = None,
) -> Tensor:  # fmt: skip
    """Pictures (4, columns, C, H, W): base, plus and minus, each with its mean's at the end; and what comes of them.

    The last row begins with the result; those after it are of codes that differ from the result's in each number by
    up to `around`, uniformly. Where a row is short, there is white before its mean.

    Source: Radford et al. 2015 (arXiv 1511.06434), figures 7 and 8. Raises `ConfigError` for lists that are empty.
    """
    columns = max(map(len, (base, plus, minus))) + 1
    rows = []
    for seeds in (base, plus, minus):
        codes = torch.cat([model.codes(seeds), mean_code(model, seeds)]) if seeds else mean_code(model, seeds)
        images = pictures_of(model, codes, label)
        white = torch.ones(columns - len(images), *images.shape[1:])
        rows.append(torch.cat([images[:-1], white, images[-1:]]))
    result = arithmetic(model, base, plus, minus)
    noise = PictureRandom(range(columns - 1), result.device).uniform(*result.shape[1:])
    near = result + around * (2 * noise.to(result.dtype) - 1)
    rows.append(pictures_of(model, torch.cat([result, near]), label))
    return torch.stack(rows)


def mean_code(model: HasCode, seeds: Sequence[int]) -> Tensor:
    """The mean of the codes of these seeds, (1, ...). Raises `ConfigError` if there are none."""
    if not seeds:
        raise ConfigError("a mean of codes is one over at least 1 seed; name some")
    return model.codes(seeds).mean(0, keepdim=True)


def pictures_of(model: HasCode, codes: Tensor, label: int | None = None) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1] on the CPU, of codes of any number, all of one class where there are classes."""
    told = None if label is None else torch.full((len(codes),), label)
    parts = [
        model.from_codes(codes[k : k + BATCH], None if told is None else told[k : k + BATCH])
        for k in range(0, len(codes), BATCH)
    ]
    return torch.cat(parts).float().cpu()


def _beside(values: Tensor, codes: Tensor) -> Tensor:
    """One number for each code, in the shape of codes: (B,) -> (B, 1, ...)."""
    return values.to(codes.device, torch.float64).view(-1, *[1] * (codes.dim() - 1))
