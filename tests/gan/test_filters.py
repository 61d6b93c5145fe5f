"""Low-pass filters beside scipy's and their responses; the filtered nonlinearity beside its sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mezzotint.core.errors import ConfigError
from mezzotint.gan.filters import (
    FilteredLeakyReLU,
    Resampling,
    filtered_leaky_relu,
    filtered_leaky_relu_directly,
    lowpass,
    radial_lowpass,
)
from mezzotint.nn.resampling import fir, fir_directly


def response(taps, frequency, rate):
    """Of a filter along one axis, or of one of the plane at frequencies (x, y), cycles per unit of length."""
    t = (torch.arange(len(taps), dtype=torch.float64) - (len(taps) - 1) / 2) / rate
    if taps.dim() == 1:
        return (taps * torch.cos(2 * math.pi * frequency * t)).sum()
    return (taps * torch.cos(2 * math.pi * (frequency[0] * t + frequency[1] * t[:, None]))).sum()


def resampling(radial=False, n=5, size=5, up=2, down=2, each=2):
    design = radial_lowpass if radial else lowpass
    return Resampling(up, down, lowpass(each * up, 0.4, 0.3, up), design(each * down, 0.4, 0.3, down), n, size)


@pytest.mark.parametrize(("taps", "half_width"), [(12, 4.0), (12, 0.5), (24, 10.0)], ids=["", "wide", "steep"])
def test_filters_are_those_of_kaiser(taps, half_width, truth):
    signal = pytest.importorskip("scipy.signal")
    expected = torch.from_numpy(signal.firwin(taps, 5.0, width=2 * half_width, fs=64.0))
    error = (lowpass(taps, 5.0, half_width, 64.0) - expected).abs().max()
    truth("stylegan3", f"low-pass filter, {taps} taps, half width {half_width:g}", "scipy's firwin", error, 1e-16)


def test_what_a_filter_stops_and_what_it_lets_through():
    """48 taps for a band of 16 +- 8 cycles at a rate of 128: A = 2.285 47 2 pi 16 / 128 + 7.95 = 92 decibels."""
    f = lowpass(48, 16.0, 8.0, 128.0)
    stopped = max(abs(response(f, frequency, 128.0)) for frequency in range(24, 64))
    passed = max(abs(response(f, frequency, 128.0) - 1) for frequency in range(9))
    assert -20 * math.log10(stopped) > 92
    assert -20 * math.log10(passed) > 85


def test_a_radial_filter_is_alike_in_all_directions():
    f, square = radial_lowpass(24, 8.0, 6.0, 64.0), lowpass(24, 8.0, 6.0, 64.0)
    worst, of_square = 0.0, 0.0
    for frequency in (4.0, 8.0, 11.0):
        diagonal = (frequency / math.sqrt(2), frequency / math.sqrt(2))
        worst = max(worst, abs(response(f, (frequency, 0.0), 64.0) - response(f, diagonal, 64.0)))
        outer = torch.outer(square, square)
        of_square = max(of_square, abs(response(outer, (frequency, 0.0), 64.0) - response(outer, diagonal, 64.0)))
    assert worst < 0.03 < 0.2 < of_square


def test_a_radial_filter_has_its_cutoff_in_all_directions(truth):
    """48 taps, 16 +- 8 of 128: about half of a wave at the cutoff comes through, nearly nothing beyond the band."""
    f = radial_lowpass(48, 16.0, 8.0, 128.0)
    directions = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (0, 20, 45)]

    def at(frequency):
        return torch.stack([response(f, (frequency * x, frequency * y), 128.0) for x, y in directions])

    truth("stylegan3", "radial filter at its cutoff", "one half", (at(16.0) - 0.5).abs().max(), 0.05)
    truth("stylegan3", "radial filter within its band", "1", (at(8.0) - 1).abs().max(), 2e-3)
    truth("stylegan3", "radial filter beyond its band", "0", max(at(k).abs().max() for k in range(25, 64)), 2e-4)


def test_filters_keep_brightness():
    assert lowpass(12, 3.0, 2.0, 16.0).sum() == pytest.approx(1)
    assert radial_lowpass(12, 3.0, 2.0, 16.0).sum() == pytest.approx(1)


@pytest.mark.parametrize("padding", [(3, 4), (2, -1)])
def test_a_filter_of_the_plane_is_its_sum_written_out(padding, truth):
    x, taps = torch.randn(1, 2, 6, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    error = fir(x, taps, up=2, down=3, padding=padding) - fir_directly(x, taps, up=2, down=3, padding=padding)
    truth("FIR", f"filter of the plane, padded by {padding}", "the sum written out", error.abs().max(), 1e-14)


@pytest.mark.parametrize("radial", [False, True], ids=["separable", "radial"])
def test_the_filtered_nonlinearity_and_its_gradients_are_the_sums_written_out(radial, truth):
    worst = 0.0
    for n, size, up, down in ((5, 6, 2, 2), (4, 7, 4, 2), (8, 5, 2, 4)):
        to = resampling(radial, n, size, up, down)
        x = torch.randn(2, 2, n, n, dtype=torch.float64, requires_grad=True)
        values = []
        direction, other = torch.randn(2, 2, size, size, dtype=torch.float64), torch.randn_like(x)
        for operator in (filtered_leaky_relu, filtered_leaky_relu_directly):
            y = operator(x, to)
            (g,) = torch.autograd.grad((y.square() * direction).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad((g * other).sum(), x)
            values.append((y, g, second))
        assert values[0][0].shape == (2, 2, size, size)
        worst = max(worst, *(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*values)))
    what = f"filtered leaky ReLU, {'radial' if radial else 'separable'}, with two gradients, relative, float64"
    truth("stylegan3", what, "the sums written out", worst, 5e-15)


@pytest.mark.parametrize("radial", [False, True], ids=["separable", "radial"])
def test_gradients_of_gradients_are_right(radial):
    to = resampling(radial, 3, 3)
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: filtered_leaky_relu(x, to), x)
    assert torch.autograd.gradgradcheck(lambda x: filtered_leaky_relu(x, to).square(), x)


def test_the_layer_is_the_function():
    to, x = resampling(n=5, size=6), torch.randn(2, 3, 5, 5)
    layer = FilteredLeakyReLU(to, slope=0.1, gain=3.0)
    assert torch.allclose(layer(x), filtered_leaky_relu(x, to, 0.1, 3.0), atol=1e-5)
    bent = filtered_leaky_relu(x, to, 0.1, 1.0)
    assert torch.allclose(layer(x), 3 * bent, atol=1e-5)  # the gain is a factor
    assert not layer.state_dict()


@pytest.mark.parametrize(("rate", "finer", "tolerance"), [(16, 16, 1e-6), (16, 32, 5e-6), (32, 16, 2e-8)])
def test_a_slow_wave_comes_out_as_it_went_in(rate, finer, tolerance, truth):
    """Without the nonlinearity: at its new pixels it has the values that it has there, so that its centre stays."""
    n, size, between = 2 * rate, finer + 4, 2 * max(rate, finer)
    up, down = (lowpass(6 * between // r, 5.0, 5.0, between) for r in (rate, finer))
    to = Resampling(between // rate, between // finer, up, down, n, size)

    def wave(n, rate):
        x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / rate
        return torch.sin(2 * math.pi * (0.9 * x + 0.4 * x[:, None]) + 0.3)[None, None]

    strength = math.prod(response(f, frequency, between) for f in (up, down) for frequency in (0.9, 0.4))
    assert 0.9 < strength < 1.02
    y = filtered_leaky_relu(wave(n, rate), to, slope=1.0, gain=1.0)
    error = (y - strength * wave(size, finer)).abs().max()
    what = f"a wave resampled from rate {rate} to {finer}"
    truth("stylegan3", what, "the wave as its filters leave it", error, tolerance)


def test_the_nonlinearity_makes_no_aliases(truth):
    """Of a bent wave of 5 cycles the filter leaves the mean and 5 cycles. Among 16 pixels 10 cycles pass for 6."""
    rate, n = 16, 48
    x = torch.arange(n, dtype=torch.float64) / rate
    wave = torch.sin(2 * math.pi * 5 * x + 0.2).expand(1, 1, n, n)
    to = Resampling(4, 4, lowpass(96, 6.0, 1.0, 64), lowpass(96, 6.0, 1.0, 64), n, n)

    def aliases(bent):
        """Share of the variance that is of other frequencies than that of the wave, over ten periods."""
        y, t = bent[0, 0, n // 2, 8:40], x[8:40]
        y = y - y.mean()
        of_wave = 2 * (y * torch.exp(-2j * math.pi * 5 * t)).mean().abs().square()
        return (1 - of_wave / y.square().mean()).clamp_min(0)

    assert aliases(F.leaky_relu(wave, 0.2)) > 0.05
    share = aliases(filtered_leaky_relu(wave, to))
    truth("stylegan3", "share of aliases in a bent wave", "none", share, 1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="low-pass"):
        lowpass(12, 9.0, 1.0, 16.0)
    with pytest.raises(ConfigError, match="same centre"):
        _ = resampling(n=5, size=5, up=1, down=2, each=2)._replace(taps_down=torch.ones(3)).padding
