"""Does a picture move as a whole when its generator is told to move it? EQ-T and EQ-R.

A generator is here a function of a motion M alone, whatever it draws: generator(M) -> (B, C, H, W) in [-1, 1], not
clipped, of which what was at p is at M p (`nn.motion.rigid`). Of an equivariant one, drawing and moving commute:
g(M) = M g(1). The measure is how far this fails, as a peak signal-to-noise ratio in decibels,

    EQ = 10 log10(I^2 / E[(g(M) - M g(1))^2]),    I = 2,

the mean over pictures, motions, channels, and those pixels of which both sides are known.

    eq_t       translations along both axes, uniform up to 1/8 of the width, rounded to whole pixels
    eq_t_frac  the same, not rounded; g(1) is moved by a sinc in a Lanczos window
    eq_r       rotations about the centre by a uniform angle. A turned picture holds other frequencies than an upright
               one: those of a square that is turned. Therefore both sides keep only those that both squares hold: g(1)
               as it is turned, g(M) as it stands, through the same ideal filter in the same window

Source: Karras et al. 2021 (arXiv 2106.12423), section 2.2 (eq. 3) and appendix E. The window of rotations is radial
here, and the ideal filter the exact Fourier transform of the octagon which the two squares share.

A generator that cannot be told to move has no such number. The StyleGAN 2 of the paper's tables (survey, table II) is
one whose constant is replaced by Fourier features, which can be moved, its "config B"; here it is trained with
network.start=waves, and measured with the constant noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..nn.motion import rigid
from .results import Number

LOBES = 3  # a of the Lanczos windows: pixels on each side
REACH = 1 / 8  # of the width: the largest translation
PEAK = 2.0  # I, from -1 to 1
MOTIONS = {  # of each number: what moves, and how the picture that stands still is moved beside it
    "eq_t": ("whole pixels along both axes, up to 1/8 of the width", "by its pixels"),
    "eq_t_frac": ("along both axes, up to 1/8 of the width", f"by a sinc in a Lanczos window of {LOBES} lobes"),
    "eq_r": ("turned by any angle", f"by the ideal filter of the turn in a radial Lanczos window of {LOBES} lobes"),
}

Generator = Callable[[Tensor], Tensor]  # M, (3, 3) float64 -> pictures (B, C, H, W)
Pair = tuple[Tensor, Tensor, Tensor]  # both sides (B, C, H, W), and where they are known, (H, W)


@runtime_checkable
class Moves(Protocol):
    """Draws pictures that are moved by any matrix, not clipped."""

    def moved(
        self, n: int, motion: Tensor | None = None, *, labels: Tensor | None = None, seeds: int | Sequence[int] = 0
    ) -> Tensor:
        """n pictures; picture k depends on seed k and the motion alone."""


def eq_t(generators: Iterable[Generator], seed: int = 0, fractional: bool = False) -> float:
    """EQ-T, or EQ-T_frac, in decibels, of generators of which each is moved once, by a translation of its own."""

    def pair(generator: Generator, u: Tensor) -> Pair:
        still = generator(rigid())
        H, W = still.shape[2:]
        x, y = (REACH * (2 * u[:2] - 1) * torch.tensor([W, H])).tolist()  # in pixels
        if not fractional:
            x, y = round(x), round(y)
        moved = generator(rigid(0.0, (x / W, y / H)))
        shift = shifted_by_sinc if fractional else shifted
        expected, known = shift(still, x, y)
        return moved, expected, known

    return _decibels(generators, pair, seed)


def eq_r(generators: Iterable[Generator], seed: int = 0) -> float:
    """EQ-R in decibels, of generators of which each is turned once, by an angle of its own."""

    def pair(generator: Generator, u: Tensor) -> Pair:
        degrees = 360 * float(u[2])
        expected, known = turned(generator(rigid()), degrees)
        found, also_known = as_if_turned(generator(rigid(degrees)), degrees)
        return found, expected, known & also_known

    return _decibels(generators, pair, seed)


def equivariance(model: Moves, n: int = 1000, *, batch_size: int = 4, seed: int = 0) -> dict[str, Number]:
    """All three numbers of a model's n pictures, of which so many together are moved alike; papers take 50,000.

    Picture k has the seed `seed` + k, and, of a model that knows classes, class k mod their number.
    Raises `ConfigError` for a model that cannot move its pictures, or less than one of them.
    """
    if not isinstance(model, Moves):
        raise ConfigError(
            f"{type(model).__name__} cannot be told to move its pictures, so that it has no equivariance; stylegan3-t"
            " and stylegan3-r can"
        )
    if n < 1 or batch_size < 1:
        raise ConfigError(f"equivariance is measured on pictures, at least 1 at a time, not {n} and {batch_size}")
    classes: int = getattr(getattr(model, "config", None), "classes", 0)

    def generators() -> Iterator[Generator]:
        for first in range(0, n, batch_size):
            rows = range(first, min(first + batch_size, n))
            labels = torch.tensor([k % classes for k in rows]) if classes else None
            yield lambda motion, rows=rows, labels=labels: model.moved(  # type: ignore[misc]
                len(rows), motion, labels=labels, seeds=[seed + k for k in rows]
            )

    values = {
        "eq_t": eq_t(generators(), seed),
        "eq_t_frac": eq_t(generators(), seed, fractional=True),
        "eq_r": eq_r(generators(), seed),
    }
    same = {"n": n, "moved alike": min(batch_size, n), "seed": seed, "peak": PEAK, "unit": "decibels"}
    same |= {"classes": f"k mod {classes}"} if classes else {}
    meaning = "peak signal-to-noise ratio between a picture drawn moved and the picture moved"
    return {
        name: Number(name, value, "higher", meaning, {**same, **dict(zip(("motion", "reference"), MOTIONS[name]))})
        for name, value in values.items()
    }


@torch.no_grad()
def _decibels(generators: Iterable[Generator], pair: Callable[[Generator, Tensor], Pair], seed: int) -> float:
    """10 log10(I^2 / mean squared difference) over all generators, each with its uniform numbers (3,)."""
    random = torch.Generator().manual_seed(seed)
    error, count = 0.0, 0
    for generator in generators:
        a, b, known = pair(generator, torch.rand(3, generator=random, dtype=torch.float64))
        difference = (a.double() - b.double())[..., known]
        error, count = error + float(difference.square().sum()), count + difference.numel()
    if not count:
        raise ConfigError("there is no pixel to compare: equivariance needs pictures, and larger ones than its filters")
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 * count / error)


def shifted(images: Tensor, x: int, y: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, H, W) moved by whole pixels to the right and down, and which pixels are known, (H, W)."""
    H, W = images.shape[2:]
    known = torch.zeros(H, W, dtype=torch.bool, device=images.device)
    known[max(y, 0) : max(H + y, 0), max(x, 0) : max(W + x, 0)] = True
    return images.roll((y, x), (2, 3)) * known, known


def shifted_by_sinc(images: Tensor, x: float, y: float, a: int = LOBES) -> tuple[Tensor, Tensor]:
    """The same by any part of a pixel: along each axis sum_j f(i - t - j) u[j] / sum_j f(i - t - j).

    f(d) = sinc(d) sinc(d / a) for |d| < a, else 0; a pixel is known if all of these j are in the picture.
    """
    (rows, known_rows), (columns, known_columns) = (
        _shift(n, t, a, images.device) for n, t in zip(images.shape[2:], (y, x))
    )
    return (rows @ images.double() @ columns.t()), known_rows[:, None] & known_columns


def _shift(n: int, t: float, a: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrix of `shifted_by_sinc` along one axis, (n, n), and which of its rows are known, (n,)."""
    i = torch.arange(n, dtype=torch.float64, device=device)
    source = i - t
    d = source[:, None] - i
    f = torch.where(d.abs() < a, torch.sinc(d) * torch.sinc(d / a), 0.0)
    total = f.sum(1, keepdim=True)
    known = (source.ceil() - a >= -1e-9) & (source.floor() + a <= n - 1 + 1e-9)
    return torch.where(total.abs() > 0.5, f / total, 0.0), known


def turned(images: Tensor, degrees: float, a: int = LOBES) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, H, W) turned about their centre, without the frequencies that an upright picture cannot hold.

        y(p) = sum_j h(R^{-1} p - j) x_j / sum_j h(R^{-1} p - j),    h = `shared_band` in a radial Lanczos window

    Gives them and which pixels are known, (H, W).
    """
    H, W = images.shape[2:]
    p = torch.stack(torch.meshgrid(_centred(W), _centred(H), indexing="xy"), -1)  # (H, W, 2), x and y
    q = p @ rigid(degrees)[:2, :2]  # R^{-1} p = R^T p
    q = q + torch.tensor([(W - 1) / 2, (H - 1) / 2], dtype=torch.float64)  # in indices
    near = torch.arange(1 - a, a + 1, dtype=torch.float64)
    offsets = torch.stack(torch.meshgrid(near, near, indexing="xy"), -1).flatten(0, 1)  # (4 a^2, 2)
    # a position that is a pixel's but for rounding is to be that pixel's
    j = (q + 1e-9).floor()[:, :, None] + offsets  # (H, W, 4 a^2, 2)
    h = _windowed(q[:, :, None] - j, degrees, a)
    column, row = j.long().unbind(-1)
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    weights = (h * inside).to(images.device)
    index = (row.clamp(0, H - 1) * W + column.clamp(0, W - 1)).to(images.device)
    total = weights.sum(2)
    y = torch.zeros(*images.shape[:2], H, W, dtype=torch.float64, device=images.device)
    flat = images.double().flatten(2)
    for k in range(index.shape[2]):
        y = y + flat[:, :, index[:, :, k]] * weights[:, :, k]
    known = (inside | (h == 0)).all(2).to(images.device)
    return y / torch.where(known, total, 1.0), known


def as_if_turned(images: Tensor, degrees: float, a: int = LOBES) -> tuple[Tensor, Tensor]:
    """Pictures that hold something turned, left as they are but for the frequencies that `turned` leaves out.

        y(p) = sum_j h(R^{-1} (p - j)) x_j / sum_j h(R^{-1} j)

    Gives them and which pixels are known, (H, W).
    """
    H, W = images.shape[2:]
    d = torch.arange(1 - a, a, dtype=torch.float64)
    offsets = torch.stack(torch.meshgrid(d, d, indexing="xy"), -1)  # p - j, (2 a - 1, 2 a - 1, 2)
    h = _windowed(offsets @ rigid(degrees)[:2, :2], degrees, a)
    kernel = (h / h.sum()).flip(0, 1).to(images.device)
    y = F.conv2d(images.double().flatten(0, 1)[:, None], kernel[None, None], padding=a - 1)
    known = torch.zeros(H, W, dtype=torch.bool, device=images.device)
    known[a - 1 : H - a + 1, a - 1 : W - a + 1] = True
    return y.view(*images.shape), known


def shared_band(d: Tensor, degrees: float) -> Tensor:
    """The Fourier transform of the octagon that a square of side 1 shares with itself turned back by so much.

        h(d) = int_P exp(2 pi i k . d) dk
             = sum_e (d . n_e) / (2 pi i |d|^2) l_e exp(2 pi i d . m_e) sinc(d . (b_e - a_e))

    over the edges e of P from a_e to b_e, of length l_e, with middle m_e and outward normal n_e, by the divergence
    theorem; h(0) is the area of P. P is that of frequencies of a picture that is still upright, in cycles per pixel.

    d  positions, (..., 2) float64
    """
    corners = _octagon(degrees)
    ahead = corners.roll(-1, 0)
    edge, middle = ahead - corners, (ahead + corners) / 2
    across = torch.stack([edge[:, 1], -edge[:, 0]], 1)  # l_e n_e, of corners in the order of growing angles
    square = d.square().sum(-1)
    near = square < 1e-12
    phase = 2 * math.pi * (d @ middle.t())
    # P is its own mirror image in the origin, so that the real part is all: Re(e^{i phase} / i) = sin(phase)
    total = ((d @ across.t()) * phase.sin() * torch.sinc(d @ edge.t())).sum(-1)
    area = (corners[:, 0] * ahead[:, 1] - corners[:, 1] * ahead[:, 0]).sum() / 2
    return torch.where(near, area, total / (2 * math.pi * square.clamp_min(1e-12)))


def _octagon(degrees: float) -> Tensor:
    """The corners of what the square |x|, |y| <= 1/2 and the same turned by -degrees share, in order, (8 or 4, 2)."""
    angle = math.radians(degrees % 90)
    if min(angle, math.pi / 2 - angle) < 1e-9:
        corners = [(0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)]
    else:
        # The side x = 1/2 meets the sides of the turned square, whose normals are at -angle and pi/2 - angle.
        c, s = math.cos(angle), math.sin(angle)
        ends = [
            (0.5 - 0.5 * s) / c,
            (0.5 * c - 0.5) / s,
        ]  # y where sin(a) x + cos(a) y = 1/2, cos(a) x - sin(a) y = 1/2
        quarter = [(0.5, min(ends)), (0.5, max(ends))]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(-y, x) for x, y in quarter]
    return torch.tensor(corners, dtype=torch.float64)


def _windowed(d: Tensor, degrees: float, a: int) -> Tensor:
    """h in a radial Lanczos window, at positions (..., 2)."""
    r = d.norm(dim=-1)
    return shared_band(d, degrees) * torch.where(r < a, torch.sinc(r / a), 0.0)


def _centred(n: int) -> Tensor:
    """Positions of pixels from the centre."""
    return torch.arange(n, dtype=torch.float64) - (n - 1) / 2
