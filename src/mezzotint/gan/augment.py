"""Augmentation of all that a discriminator sees, by which it cannot learn few pictures by heart.

Every transform is applied with probability p, to real and to generated pictures alike, and gradients pass through it.
As long as p stays below about 0.8, what the generator learns is not augmented itself: pictures that are often shown as
they are remain the easiest to match.

Source: Karras et al. 2020, "Training generative adversarial networks with limited data" (arXiv 2006.06676), section 2,
section 3 and appendix B; survey, section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import PictureRandom
from ..core.config import Config
from ..core.errors import ConfigError
from ..nn.resampling import fir, upsample
from .layers import mean_over_processes

Part = Literal["blit", "geometry", "colour", "filter", "noise", "cutout"]
PARTS: tuple[Part, ...] = get_args(Part)
BANDS = 4  # octaves of frequency that are amplified, the lowest first
POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # what share of a picture's power is expected in each
EDGE = 3  # pixels beyond the border in which the picture is as filtered, not folded
SMALLEST = 8  # pixels that the filters need
UNIFORM, NORMAL = 30, 12  # numbers that a picture's transforms draw, if all are in use


@dataclass(frozen=True)
class NoAugmentation(Config):
    """None."""

    kind: Literal["none"] = "none"

    def build(self, channels: int, image_size: int) -> Augmentation | None:
        """None."""
        return None


@dataclass(frozen=True)
class AugmentationConfig(Config):
    """The pipe. The defaults are what the paper settled on: blitting, geometry and colour, p adapted.

    Raises `ConfigError` for a part that does not exist, or numbers out of range.
    """

    parts: tuple[Part, ...] = ("blit", "geometry", "colour")
    p: float = 0.0  # at first; all along where nothing is adapted
    target: float | None = 0.6  # of r_t: see `Augmentation.adapt`; None: p stays
    pictures: int = 500_000  # real ones, in which p moves from 0 to 1
    every: int = 4  # p is adapted at each so many-th step
    most: float = 1.0  # p
    kind: Literal["pipe"] = "pipe"

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ConfigError(f"parts are at least one of {', '.join(PARTS)}, not {', '.join(self.parts) or 'none'}")
        if not 0 <= self.p <= self.most <= 1:
            raise ConfigError(f"p is a probability up to most, at most 1, not {self.p} of {self.most}")
        if self.target is not None and not -1 < self.target < 1:
            raise ConfigError(f"r_t lies between -1 and 1, so target must, not {self.target}")
        for name in ("pictures", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    def build(self, channels: int, image_size: int) -> Augmentation | None:
        """The pipe. Raises `ConfigError` for pictures that it cannot transform."""
        return Augmentation(self, channels, image_size)


AugmentConfig = NoAugmentation | AugmentationConfig


class Numbers:
    """The random numbers of each picture's transforms, drawn at once and handed out one after the other."""

    def __init__(self, random: PictureRandom) -> None:
        self._uniform = iter(random.uniform(UNIFORM).unbind(1))
        self._normal = iter(random.normal(NORMAL).unbind(1))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B,)."""
        return low + (high - low) * next(self._uniform)

    def integer(self, n: int) -> Tensor:
        """Of {0, ..., n - 1}, (B,) int64."""
        return (n * next(self._uniform)).long().clamp(max=n - 1)

    def normal(self, std: float = 1.0) -> Tensor:
        """(B,)."""
        return std * next(self._normal)

    def lognormal(self, std: float) -> Tensor:
        """2^g, g ~ N(0, std^2), (B,)."""
        return torch.exp2(self.normal(std))

    def happens(self, p: float) -> Tensor:
        """Whether a transform is applied, with probability p, (B,) bool."""
        return next(self._uniform) < p


class Augmentation(nn.Module):
    """The pipe, and p, which is adapted while it is used in training.

    config      which transforms, and how p is adapted
    channels    1, of which there is no hue and no saturation to change, or 3
    image_size  at least 8

    Raises `ConfigError` for other pictures.
    """

    p: Tensor
    signs: Tensor
    wavelet: Tensor
    bands: Tensor

    def __init__(self, config: AugmentationConfig, channels: int, image_size: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"grey and RGB pictures can be augmented, not those of {channels} channels")
        if image_size < SMALLEST:
            raise ConfigError(f"augmentation needs pictures of {SMALLEST} pixels or more, not {image_size}")
        self.config = config
        self.register_buffer("p", torch.tensor(float(config.p)))
        self.register_buffer("signs", torch.zeros(3))  # sum, pictures, steps since p was moved
        self.register_buffer("wavelet", torch.from_numpy(symlet(6) / math.sqrt(2)).float(), persistent=False)
        self.register_buffer("bands", torch.from_numpy(octaves(symlet(2), BANDS)).float(), persistent=False)
        self.seen: list[Tensor] = []  # signs of this step's scores

    def forward(self, x: Tensor, random: PictureRandom) -> Tensor:
        """(B, C, H, W) -> the same, each picture with its own transforms; x itself at p = 0."""
        p = float(self.p)
        if p == 0:
            return x
        with torch.autocast(x.device.type, enabled=False):  # places in a picture need more digits than bf16 has
            return self.transformed(x if x.dtype == torch.float64 else x.float(), random, p)

    def transformed(self, x: Tensor, random: PictureRandom, p: float) -> Tensor:
        """The same at a given p, above 0."""
        parts, numbers = self.config.parts, Numbers(random)
        if "blit" in parts:
            x = self.blitted(x, numbers, p)
        if "geometry" in parts:
            x = warped(x, self.geometry(numbers, p, x.shape[-1]), self.wavelet)
        if "colour" in parts:
            x = recoloured(x, self.colour(numbers, p))
        if "filter" in parts:
            x = filtered(x, self.amplification(numbers, p))
        if "noise" in parts:
            sigma = torch.where(numbers.happens(p), numbers.normal(0.1).abs(), 0.0)
            x = x + sigma[:, None, None, None] * random.normal(*x.shape[1:])
        if "cutout" in parts:
            x = x * self.hole(numbers, p, x.shape[-1])
        return x

    def blitted(self, x: Tensor, numbers: Numbers, p: float) -> Tensor:
        """Mirrored, turned by multiples of 90 degrees, moved by whole pixels, up to an eighth of the picture."""
        n = x.shape[-1]
        flip = (numbers.happens(p) & (numbers.integer(2) == 1)).long()
        turns = numbers.happens(p) * numbers.integer(4)
        moves = numbers.happens(p)
        across, down = ((moves * (numbers.uniform(-0.125, 0.125) * n).round()).long() for _ in range(2))
        return blit(x, flip, turns, across, down)

    def geometry(self, numbers: Numbers, p: float, size: int) -> Tensor:
        """G of each picture, (B, 3, 3): where a point of the picture goes, in pixels from its centre, x and then y.

        A rotation comes before the anisotropic scaling and another one after it, each with 1 - sqrt(1 - p), so that
        there is one with probability p.
        """
        rotates = 1 - math.sqrt(1 - p)
        one = torch.ones_like(numbers.uniform())
        s = torch.where(numbers.happens(p), numbers.lognormal(0.2), 1.0)
        G = scaling(s, s)
        G = rotation(torch.where(numbers.happens(rotates), numbers.uniform(-math.pi, math.pi), 0.0)) @ G
        s = torch.where(numbers.happens(p), numbers.lognormal(0.2), 1.0)
        G = scaling(s, one / s) @ G
        G = rotation(torch.where(numbers.happens(rotates), numbers.uniform(-math.pi, math.pi), 0.0)) @ G
        moves = numbers.happens(p)
        return translation(*(torch.where(moves, numbers.normal(0.125 * size), 0.0) for _ in range(2))) @ G

    def colour(self, numbers: Numbers, p: float) -> Tensor:
        """C of each picture, (B, 4, 4), by which (r, g, b, 1) is multiplied.

        Brightness, contrast, the luma turned round, hue, saturation; a grey picture, r = g = b, stays grey.
        """
        b = torch.where(numbers.happens(p), numbers.normal(0.2), 0.0)
        C = brightness(b)
        C = contrast(torch.where(numbers.happens(p), numbers.lognormal(0.5), 1.0)) @ C
        C = luma_flip((numbers.happens(p) & (numbers.integer(2) == 1)).float()) @ C
        C = hue(torch.where(numbers.happens(p), numbers.uniform(-math.pi, math.pi), 0.0)) @ C
        return saturation(torch.where(numbers.happens(p), numbers.lognormal(1.0), 1.0)) @ C

    def amplification(self, numbers: Numbers, p: float) -> Tensor:
        """The filter of each picture along an axis, (B, K): an octave louder, and all so that the power stays."""
        power = torch.tensor(POWER, device=self.bands.device)
        g = torch.ones(1, BANDS, device=self.bands.device)
        for band in range(BANDS):
            t = torch.where(numbers.happens(p), numbers.lognormal(1.0), 1.0)
            gains = torch.ones(len(t), BANDS, device=t.device)
            gains[:, band] = t
            g = g * gains / (gains.square() @ power).sqrt()[:, None]
        return g @ self.bands.to(g.dtype)

    def hole(self, numbers: Numbers, p: float, size: int) -> Tensor:
        """0 in a square of half the picture's size around a random point, 1 outside it, (B, 1, H, W)."""
        cuts = numbers.happens(p)
        middle = [numbers.uniform() * size for _ in range(2)]
        pixels = torch.arange(size, device=cuts.device) + 0.5
        inside = [(pixels - m[:, None]).abs() < size / 4 for m in middle]  # (B, size) each
        hole = cuts[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :]
        return (~hole).float()[:, None]

    def record(self, scores: Tensor) -> None:
        """Remember what was said of real pictures, (B,), until the step is done."""
        if self.training and self.config.target is not None:
            self.seen.append(scores.detach().sign())

    def adapt(self) -> None:
        """Every `every` steps, p rises if r_t = E[sign D(x)] is above its target and falls if it is below.

        By (real pictures since the last time) / `pictures`; p stays within 0 and `most`. Where D is overfitting it is
        sure of all training pictures, and r_t = 1. Scores must be 0 where D cannot tell: `GANConfig` sees to it. Called
        when a step is done; all processes move alike.
        """
        if not self.seen:
            return
        shown = sum(len(signs) for signs in self.seen)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shown *= torch.distributed.get_world_size()
        mean = mean_over_processes(self.seen)
        self.seen = []
        self.signs += torch.stack([mean * shown, mean.new_tensor(shown), mean.new_tensor(1)])
        if self.signs[2] >= self.config.every:
            target = self.config.target or 0.0
            step = (self.signs[0] / self.signs[1] - target).sign() * self.signs[1] / self.config.pictures
            self.p.copy_((self.p + step).clamp(0, self.config.most))
            self.signs.zero_()


def folded(i: Tensor, n: int) -> Tensor:
    """Positions mirrored at the centres of the first and of the last of n pixels, so that they lie in [0, n - 1]."""
    return (n - 1) - ((i % (2 * (n - 1))) - (n - 1)).abs()


def blit(x: Tensor, flip: Tensor, turns: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Pictures mirrored, then turned, then moved, without any arithmetic on their pixels.

    x             (B, C, n, n)
    flip          1 where left and right change places, (B,)
    turns         quarter turns against the clock, (B,)
    across, down  pixels to the right and downwards; what comes in is the picture's mirror image, (B,)
    """
    n = x.shape[-1]
    pixels = torch.arange(n, device=x.device)
    row = folded(pixels - down[:, None], n)[:, :, None].expand(-1, n, n)  # (B, n, n), where a pixel comes from
    column = folded(pixels - across[:, None], n)[:, None, :].expand(-1, n, n)
    k = turns[:, None, None]
    row, column = (
        torch.where(k == 0, row, torch.where(k == 1, column, torch.where(k == 2, n - 1 - row, n - 1 - column))),
        torch.where(k == 0, column, torch.where(k == 1, n - 1 - row, torch.where(k == 2, n - 1 - column, row))),
    )
    column = torch.where(flip[:, None, None] == 1, n - 1 - column, column)
    where = (row * n + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, where).view_as(x)


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def scaling(sx: Tensor, sy: Tensor) -> Tensor:
    """(B,) each -> (B, 3, 3)."""
    o, i = torch.zeros_like(sx), torch.ones_like(sx)
    return _matrix([[sx, o, o], [o, sy, o], [o, o, i]])


def rotation(angle: Tensor) -> Tensor:
    """(B,), radians -> (B, 3, 3); with y downwards, positive angles turn with the clock."""
    o, i = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    return _matrix([[c, -s, o], [s, c, o], [o, o, i]])


def translation(tx: Tensor, ty: Tensor) -> Tensor:
    """(B,) each, pixels -> (B, 3, 3)."""
    o, i = torch.zeros_like(tx), torch.ones_like(tx)
    return _matrix([[i, o, tx], [o, i, ty], [o, o, i]])


def warped(x: Tensor, G: Tensor, wavelet: Tensor) -> Tensor:
    """Pictures after geometric transforms, the plane around them filled with their mirror images.

    Twice as many pixels by an orthogonal filter, interpolated linearly there, and thinned out by the same filter turned
    round: exact where nothing moves, and what is reduced is filtered first.

    x        (B, C, n, n)
    G        where points go, in pixels from the centre, x and then y, (B, 3, 3)
    wavelet  low-pass filter of an orthogonal wavelet with a sum of 1, 12 taps
    """
    n = x.shape[-1]
    K, margin = len(wavelet), EDGE + len(wavelet) // 3
    fine = upsample(F.pad(x, (margin,) * 4, mode="reflect"), wavelet)
    size = fine.shape[-1]
    reach = K // 2 - 1  # fine pixels beyond the border that the last filter needs
    # of the filter's centre of mass, about 5: fine pixel i lies at (i + reach - c) / 2 - margin
    c = float(wavelet.double() @ torch.arange(K, dtype=torch.float64, device=x.device))
    at = (torch.arange(2 * n + 2 * reach, device=x.device, dtype=x.dtype) - c - n + 1) / 2  # from the picture's centre
    M = len(at)
    points = torch.stack([at.expand(M, M), at[:, None].expand(M, M), torch.ones(M, M, device=x.device, dtype=x.dtype)])
    source = (torch.linalg.inv(G.to(x.dtype))[:, :2] @ points.flatten(1)).unflatten(2, (M, M))  # (B, 2, M, M)
    position = source + (n - 1) / 2  # x and y in pixels
    inside = (position >= -EDGE) & (position <= n - 1 + EDGE)
    position = torch.where(inside, position, folded(position, n))
    seen = _looked_up(fine, (2 * (position + margin) + c - reach).clamp(0, size - 1))
    return fir(seen, wavelet.flip(0), down=2)


def _looked_up(x: Tensor, position: Tensor) -> Tensor:
    """x, (B, C, n, n), interpolated linearly at (B, 2, M, M), column and row; it has all gradients by x."""
    n, M = x.shape[-1], position.shape[-1]
    first = position.floor().clamp(max=n - 2)
    e = (position - first).flatten(2)  # (B, 2, M M)
    column, row = first.long().flatten(2).unbind(1)
    flat, y = x.flatten(2), torch.zeros((), dtype=x.dtype, device=x.device)
    for i, j in product((0, 1), (0, 1)):
        weight = (e[:, 1] if i else 1 - e[:, 1]) * (e[:, 0] if j else 1 - e[:, 0])
        where = ((row + i) * n + column + j)[:, None].expand(-1, x.shape[1], -1)
        y = y + weight[:, None].to(x.dtype) * flat.gather(2, where)
    return y.unflatten(2, (M, M))


def _identity(like: Tensor) -> Tensor:
    return torch.eye(4, device=like.device, dtype=like.dtype)


def _luma(like: Tensor) -> Tensor:
    """v v^T, v = (1, 1, 1, 0) / sqrt(3), the axis of grey, (4, 4)."""
    v = torch.tensor([1.0, 1.0, 1.0, 0.0], device=like.device, dtype=like.dtype) / math.sqrt(3)
    return torch.outer(v, v)


def brightness(b: Tensor) -> Tensor:
    """(B,) -> (B, 4, 4): b is added to r, g and b."""
    last = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], device=b.device, dtype=b.dtype)
    return _identity(b) + b[:, None, None] * last


def contrast(c: Tensor) -> Tensor:
    """(B,) -> (B, 4, 4): r, g and b times c."""
    one = torch.ones_like(c)
    return torch.diag_embed(torch.stack([c, c, c, one], 1))


def luma_flip(i: Tensor) -> Tensor:
    """I - 2 i v v^T, (B,) of 0 and 1 -> (B, 4, 4): dark and bright change places, colours stay."""
    return _identity(i) - 2 * i[:, None, None] * _luma(i)


def hue(angle: Tensor) -> Tensor:
    """(B,), radians -> (B, 4, 4): a rotation about the axis of grey (Rodrigues)."""
    cross = torch.zeros(4, 4, device=angle.device, dtype=angle.dtype)
    cross[:3, :3] = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]).to(cross) / math.sqrt(3)
    a = angle[:, None, None]
    return _identity(angle) + a.sin() * cross + (1 - a.cos()) * (cross @ cross)


def saturation(s: Tensor) -> Tensor:
    """v v^T + s (I - v v^T), (B,) -> (B, 4, 4): colours s times as far from grey."""
    v = _luma(s)
    colours = torch.diag(torch.tensor([1.0, 1, 1, 0], device=s.device, dtype=s.dtype)) - v
    last = _identity(s) - v - colours  # what is no colour: the constant 1
    return v + last + s[:, None, None] * colours


def recoloured(x: Tensor, C: Tensor) -> Tensor:
    """Pictures (B, 1 or 3, H, W) whose colours are multiplied by C, (B, 4, 4)."""
    C = C.to(x.dtype)
    if x.shape[1] == 1:  # r = g = b, all of which become the same
        gain, offset = C[:, :3, :3].sum((1, 2)) / 3, C[:, :3, 3].mean(1)
        return x * gain[:, None, None, None] + offset[:, None, None, None]
    return torch.baddbmm(C[:, :3, 3:], C[:, :3, :3], x.flatten(2)).view_as(x)


def filtered(x: Tensor, taps: Tensor) -> Tensor:
    """Pictures, (B, C, H, W), each filtered by its own symmetric taps, (B, K), along both axes, mirrored outside."""
    B, C, H, W = x.shape
    K = taps.shape[1]
    reach = K // 2
    rows, columns = (folded(torch.arange(-reach, n + reach, device=x.device), n) for n in (H, W))
    x = x[:, :, rows][:, :, :, columns].reshape(1, B * C, H + 2 * reach, W + 2 * reach)
    f = taps.to(x.dtype).repeat_interleave(C, 0)  # (B C, K)
    y = F.conv2d(F.conv2d(x, f[:, None, None, :], groups=B * C), f[:, None, :, None], groups=B * C)
    return y.view(B, C, H, W)


def symlet(moments: int) -> np.ndarray:
    """The low-pass filter of the symlet with so many vanishing moments, the most nearly symmetric one of Daubechies.

        |H(w)|^2 = 2 cos^{2N}(w / 2) P(sin^2(w / 2)),    P(y) = sum_{k < N} C(N - 1 + k, k) y^k

    Of each root z of P, whose other form is 1 / z, one belongs to H; of all choices this is the one whose phase is the
    nearest to a straight line. 2N taps with a sum of sqrt(2), float64; sum_k h_k h_{k + 2m} = 1 for m = 0, else 0.

    Source: Daubechies 1992, "Ten lectures on wavelets", sections 6.1 and 8.1.1.
    """
    N = moments
    roots = np.roots([math.comb(N - 1 + k, k) for k in range(N)][::-1]) if N > 1 else np.array([])
    groups: list[list[complex]] = []  # of y: real ones alone, complex ones with their conjugates
    for y in roots:
        if abs(y.imag) < 1e-9:
            groups.append([complex(y.real)])
        elif y.imag > 0:
            groups.append([complex(y), complex(y).conjugate()])
    w = np.linspace(0.01, 0.9 * math.pi, 200)
    best: tuple[float, np.ndarray] | None = None
    for choice in product((False, True), repeat=max(len(groups) - 1, 0)):
        h = np.poly([-1.0] * N).astype(complex)
        for group, outside in zip(groups, (False, *choice)):
            for y in group:
                # y = (2 - z - 1/z) / 4
                z = np.roots([1, 4 * y - 2, 1])
                h = np.convolve(h, [1, -(max(z, key=abs) if outside else min(z, key=abs))])
        h = h.real / h.real.sum() * math.sqrt(2)
        response = np.exp(-1j * np.outer(w, np.arange(2 * N))) @ h
        phase = np.unwrap(np.angle(response))
        bend = float(np.abs(phase - w * (w @ phase) / (w @ w)).max())
        if best is None or bend < best[0]:
            best = (bend, h)
    return best[1] if best is not None else np.array([])


def octaves(h: np.ndarray, bands: int) -> np.ndarray:
    """Symmetric filters of so many octaves, the lowest first, whose sum changes nothing, (bands, K), K odd.

    With L(z) = H(z) H(1/z) / 2 and 1 - L the two halves of the spectrum, the highest band is 1 - L(z), the next one
    L(z) (1 - L(z^2)), and so on; what is left is the lowest.

    Source: Karras et al. 2020 (arXiv 2006.06676), appendix B.
    """
    low = np.convolve(h, h[::-1]) / 2  # L, centred
    left, found = np.ones(1), []
    for level in range(bands - 1):
        dilated = np.zeros((len(low) - 1) * 2**level + 1)
        dilated[:: 2**level] = low
        high = -dilated
        high[len(high) // 2] += 1
        found.append(np.convolve(left, high))
        left = np.convolve(left, dilated)
    found.append(left)
    K = len(left)
    return np.stack([np.pad(f, (K - len(f)) // 2) for f in found[::-1]])
