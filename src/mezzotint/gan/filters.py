"""Low-pass filters made to measure, and a nonlinearity that adds no frequencies which its pixels cannot hold.

Source: Karras et al. 2021 (arXiv 2106.12423), sections 2 and 3.2, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..nn.resampling import fir, fir_directly


def kaiser_window(taps: int, half_width: float, rate: float) -> Tensor:
    """Kaiser's window of as much attenuation A as so many taps allow for the transition band, (taps,) float64.

        A = 2.285 (taps - 1) 2 pi (2 f_h / s) + 7.95                           decibels
        beta = 0.1102 (A - 8.7)                              where A > 50
               0.5842 (A - 21)^0.4 + 0.07886 (A - 21)        where 21 <= A <= 50
               0                                             where A < 21

    half_width  f_h, half of the width of the transition band, in cycles per unit of length
    rate        s, taps per unit of length

    Source: Kaiser 1974; Karras et al. 2021, appendix C.
    """
    A = 2.285 * (taps - 1) * 2 * math.pi * 2 * half_width / rate + 7.95
    beta = 0.1102 * (A - 8.7) if A > 50 else 0.5842 * max(A - 21, 0.0) ** 0.4 + 0.07886 * max(A - 21, 0.0)
    return torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64, device="cpu")


def lowpass(taps: int, cutoff: float, half_width: float, rate: float) -> Tensor:
    """A windowed sinc whose sum is one, (taps,) float64: f[k] ~ sinc(2 f_c t) w_K(t), t = (k - (taps - 1) / 2) / s.

    cutoff      f_c, above which frequencies are kept out, in cycles per unit of length
    half_width  of the transition band
    rate        s, taps per unit of length

    Source: Karras et al. 2021, appendix C. Raises `ConfigError` for a cutoff that so many taps cannot hold.
    """
    _check(taps, cutoff, half_width, rate)
    f = torch.sinc(2 * cutoff * _positions(taps) / rate) * kaiser_window(taps, half_width, rate)
    return f / f.sum()


def radial_lowpass(taps: int, cutoff: float, half_width: float, rate: float) -> Tensor:
    """The same for the plane, alike in all directions, (taps, taps) float64: jinc(2 f_c r) w_K(x) w_K(y).

    jinc(x) = 2 J_1(pi x) / (pi x) is the Fourier transform of a disc as the sinc is that of an interval.

    Source: Karras et al. 2021, section 3.2 and appendix C.
    """
    _check(taps, cutoff, half_width, rate)
    t = _positions(taps) / rate
    a = 2 * math.pi * cutoff * torch.hypot(t[:, None], t)  # pi times the argument of jinc
    jinc = torch.where(a == 0, 1.0, 2 * torch.special.bessel_j1(a) / a.clamp_min(1e-300))
    f = jinc * torch.outer(*[kaiser_window(taps, half_width, rate)] * 2)
    return f / f.sum()


def _positions(taps: int) -> Tensor:
    return torch.arange(taps, dtype=torch.float64, device="cpu") - (taps - 1) / 2


def _check(taps: int, cutoff: float, half_width: float, rate: float) -> None:
    if taps < 1 or not 0 < cutoff <= rate / 2 or half_width < 0:
        raise ConfigError(
            f"a low-pass filter has at least 1 tap, a cutoff above 0 and up to half its rate, and a transition band"
            f" that is not negative; not {taps}, {cutoff:g} of {rate:g}, and {half_width:g}"
        )


class Resampling(NamedTuple):
    """On the way to the nonlinearity and back: a map of `n` pixels becomes one of `size`, with the same centre.

    up, down  factors
    taps_up   filter on the way up, (K,)
    taps_down filter on the way down, (K,) or (K, K)
    n, size   pixels of the maps
    """

    up: int
    down: int
    taps_up: Tensor
    taps_down: Tensor
    n: int
    size: int

    @property
    def middle(self) -> int:
        """Pixels of the map between, as many as are needed."""
        return (self.size - 1) * self.down + len(self.taps_down)

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros before and after the map that is spread, so that the centre stays where it is."""
        # The centre of `size` pixels lies (size - 1) / 2 down + (K_down - 1) / 2 in the map between, that of n pixels
        # (n - 1) / 2 up in the spread map, and index i of the map between is i - before + (K_up - 1) / 2 in the latter.
        twice = (self.size - 1) * self.down + len(self.taps_down) + len(self.taps_up) - 2 - (self.n - 1) * self.up
        if twice % 2:
            raise ConfigError(
                f"maps of {self.n} and {self.size} pixels, {self.up} times up and {self.down} times down with"
                f" {len(self.taps_up)} and {len(self.taps_down)} taps, cannot have the same centre"
            )
        return twice // 2, self.middle + len(self.taps_up) - 1 - self.n * self.up - twice // 2


def filtered_leaky_relu(x: Tensor, to: Resampling, slope: float = 0.2, gain: float = math.sqrt(2)) -> Tensor:
    """Enlarged, bent and reduced, through a low-pass filter each time: (B, C, n, n) -> (B, C, size, size).

        y = down(gain max(v, slope v)),    v = up(x)

    The nonlinearity makes frequencies that the pixels of x could not hold; on the finer grid there is room for most of
    them, and the second filter keeps them out of y. All around x there are zeros.

    Source: Karras et al. 2021, section 3.2, "Filtered nonlinearities".
    """
    return _between(fir, x, to, slope, gain)


def filtered_leaky_relu_directly(x: Tensor, to: Resampling, slope: float = 0.2, gain: float = math.sqrt(2)) -> Tensor:
    """The same, each filter a sum over its taps written out."""
    return _between(fir_directly, x, to, slope, gain)


def _between(filtered: Callable[..., Tensor], x: Tensor, to: Resampling, slope: float, gain: float) -> Tensor:
    up, down = to.taps_up.to(x.dtype) * to.up, to.taps_down.to(x.dtype)
    down = down * (gain if down.dim() == 2 else math.sqrt(gain))  # once for each axis
    v = filtered(x, up, up=to.up, padding=to.padding)
    return filtered(F.leaky_relu(v, slope), down, down=to.down)


class FilteredLeakyReLU(nn.Module):
    """`filtered_leaky_relu` as a layer."""

    taps_up: Tensor
    taps_down: Tensor

    def __init__(self, to: Resampling, slope: float = 0.2, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.resampling, self.slope, self.gain = to, slope, gain
        self.register_buffer("taps_up", to.taps_up.float(), persistent=False)
        self.register_buffer("taps_down", to.taps_down.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n, n) -> (B, C, size, size)."""
        # Filters take each channel by itself, which processors do fast only where channels lie beside each other.
        x = x.contiguous(memory_format=torch.channels_last)
        to = self.resampling._replace(taps_up=self.taps_up, taps_down=self.taps_down)
        return filtered_leaky_relu(x, to, self.slope, self.gain)
