"""Changing the resolution of feature maps through a finite impulse response (FIR) filter, without aliasing.

A filter is given by its taps f, (K,): the same ones along rows and columns, so that the filter of the plane is their
outer product. Filters of blocks whose brightness is to stay as it is have taps that sum to one: see `normalised`.

Source: Zhang 2019 (arXiv 1904.11486), section 3.2; Karras et al. 2020 (arXiv 1912.04958), appendix B, whose conventions
of padding these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import resized

BOX = (1.0, 1.0)  # repeats each pixel on the way up, takes 2x2 means on the way down
SMOOTH = (1.0, 3.0, 3.0, 1.0)  # of StyleGAN 2 and NCSN++; inside the picture, what bilinear interpolation does
DIRECT_TAPS = 4  # up to so many taps one pass with K x K of them beats two passes with K: fewer numbers are moved


def normalised(taps: Sequence[float]) -> Tensor:
    """Taps that sum to one, (K,) float32. Raises `ValueError` if they sum to zero, or there are none."""
    if not taps or not sum(taps):
        raise ValueError(f"a filter that keeps brightness needs taps whose sum is not zero, not {tuple(taps)}")
    f = torch.tensor(taps, dtype=torch.float64, device="cpu")
    return (f / f.sum()).float()


def fir(x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """A picture spread by zeros, padded with zeros, filtered and thinned out: along each axis

        y[i] = sum_k f[k] u[i down + K - 1 - k - before],    u[i up] = x[i], and 0 everywhere else

    for i = 0 .. (n up + before + after - K) // down, where n pixels are given.

    x        (B, C, H, W)
    taps     (K,), f; or those of a filter of the plane that is no outer product, (K, K)
    up       each pixel is followed by up - 1 zeros
    down     of the filtered pixels every so many-th is kept, beginning with the first
    padding  before, after: zeros added along both axes after spreading; negative ones cut off
    """
    if taps.dim() == 2:
        return _pass(x, taps, (up, up), (down, down), padding, padding)
    if len(taps) <= DIRECT_TAPS:
        return _pass(x, torch.outer(taps, taps), (up, up), (down, down), padding, padding)
    rows = _pass(x, taps[None, :], (1, up), (1, down), (0, 0), padding)
    return _pass(rows, taps[:, None], (up, 1), (down, 1), padding, (0, 0))


def fir_directly(x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """The same as `fir`, slowly, as it is written there: spread, pad, sum over the taps, thin out."""
    kernel, K = torch.outer(taps, taps) if taps.dim() == 1 else taps, len(taps)
    B, C, H, W = x.shape
    spread = x.new_zeros(B, C, H * up, W * up)
    spread[..., ::up, ::up] = x
    u = F.pad(spread, (*padding, *padding))
    rows, columns = u.shape[2] - K + 1, u.shape[3] - K + 1
    y = x.new_zeros(B, C, rows, columns)
    for k in range(K):
        for m in range(K):
            y = y + kernel[k, m] * u[..., K - 1 - k : K - 1 - k + rows, K - 1 - m : K - 1 - m + columns]
    return y[..., ::down, ::down]


def blur(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, H, W), filtered, at the same resolution; of an even number of taps the later half reaches further."""
    K = len(taps)
    return fir(x, taps, padding=(K // 2, (K - 1) // 2))


def upsample(x: Tensor, taps: Tensor, factor: int = 2) -> Tensor:
    """(B, C, H, W) -> (B, C, factor H, factor W); a gain of factor^2 makes up for the zeros between the pixels."""
    extra = len(taps) - factor
    return fir(x, factor * taps, up=factor, padding=((extra + 1) // 2 + factor - 1, extra // 2))


def downsample(x: Tensor, taps: Tensor, factor: int = 2) -> Tensor:
    """(B, C, H, W) -> (B, C, H / factor, W / factor), rounded down."""
    extra = len(taps) - factor
    return fir(x, taps, down=factor, padding=((extra + 1) // 2, extra // 2))


class Resample(nn.Module):
    """Twice or half the resolution, without weights.

    direction  "up" or "down"
    taps       of the filter, before they are normalised
    """

    taps: Tensor

    def __init__(self, direction: Literal["up", "down"], taps: Sequence[float] = BOX) -> None:
        super().__init__()
        self.direction, self.box = direction, tuple(taps) == BOX
        self.register_buffer("taps", normalised(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        if self.box:
            return resized(x, self.direction)
        return upsample(x, self.taps) if self.direction == "up" else downsample(x, self.taps)


class ResampleConv(nn.Module):
    """Twice or half the resolution and a 3x3 convolution, padded once for both.

    On the way down the filtered map is convolved at every second pixel only; on the way up the convolution comes first,
    at every second pixel of the spread map, because that is a quarter of the work and convolutions commute.

    in_channels, out_channels
    direction  "up" or "down"
    taps       of the filter, before they are normalised
    """

    taps: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, direction: Literal["up", "down"], taps: Sequence[float] = BOX
    ) -> None:
        super().__init__()
        self.direction = direction
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)
        self.register_buffer("taps", normalised(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W) or (B, C_out, H/2, W/2)."""
        if self.direction == "down":
            return convolve_down(x, self.conv.weight, self.taps, self.conv.bias)
        y = convolve_up(x, self.conv.weight, self.taps)
        return y if self.conv.bias is None else y + self.conv.bias[:, None, None]


def convolve_down(x: Tensor, weight: Tensor, taps: Tensor, bias: Tensor | None = None) -> Tensor:
    """Filtered, then convolved at every second pixel, padded once for both.

    x       (B, C_in, H, W)
    weight  (C_out, C_in, k, k), k odd
    taps    (K,), their sum 1
    bias    (C_out,)

    Gives (B, C_out, H/2, W/2).
    """
    if weight.shape[-1] == 1:  # what is not kept need not be filtered either
        return F.conv2d(downsample(x, taps), weight, bias)
    extra = len(taps) - 2 + weight.shape[-1] - 1  # of the filter and of the convolution
    return F.conv2d(fir(x, taps, padding=((extra + 1) // 2, extra // 2)), weight, bias, stride=2)


def convolve_up(x: Tensor, weight: Tensor, taps: Tensor, groups: int = 1) -> Tensor:
    """Spread by zeros, convolved at every second pixel of that, then filtered.

    x       (B, C_in, H, W)
    weight  (C_out, C_in / groups, k, k), k odd; C_out and C_in in so many groups that do not see each other
    taps    (K,), their sum 1

    Gives (B, C_out, 2H, 2W).
    """
    k = weight.shape[-1]
    w = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # (C_in, C_out / groups, k, k)
    spread = F.conv_transpose2d(x, w.flip(2, 3), stride=2, groups=groups)  # (B, C_out, 2H + k - 2, 2W + k - 2)
    extra = len(taps) - k - 1
    padding = ((extra + 1) // 2 + 1, extra // 2 + 1)
    return fir(spread, 2 * taps, padding=padding)


def _pass(
    x: Tensor,
    kernel: Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> Tensor:
    """`fir` with a filter of the plane, (K_h, K_w), and a padding of its own along each axis."""
    C = x.shape[1]
    kernel = kernel.to(x.dtype)
    if up == (1, 1):
        x, padding = _padded(x, rows, columns)
        return F.conv2d(x, kernel.flip(0, 1).expand(C, 1, -1, -1), stride=down, padding=padding, groups=C)
    # A transposed convolution spreads and filters at once, as if padded with K - 1 zeros before and K - up after.
    spare = [(pair[0] - K + 1, pair[1] - K + u) for pair, K, u in zip((rows, columns), kernel.shape, up)]
    crop = [-a if a == b <= 0 else 0 for a, b in spare]
    y = F.conv_transpose2d(x, kernel.expand(C, 1, -1, -1), stride=up, padding=crop, groups=C)
    left = [(a + c, b + c) for (a, b), c in zip(spare, crop)]
    if any(any(pair) for pair in left):
        y = F.pad(y, (*left[1], *left[0]))
    return y if down == (1, 1) else y[..., :: down[0], :: down[1]]


def _padded(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """x as it is and what a convolution must pad, where it can; else x padded, and nothing left to do."""
    if rows[0] == rows[1] >= 0 and columns[0] == columns[1] >= 0:
        return x, (rows[0], columns[0])
    return F.pad(x, (*columns, *rows)), (0, 0)
