"""Changes of resolution through FIR filters, against their sums written out."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from mezzotint.nn.resampling import BOX, SMOOTH, Resample, ResampleConv, blur, downsample, fir, normalised, upsample

ASYMMETRIC = (1.0, 2.0, 4.0)  # a filter that is not its own mirror image
LONG = (1.0, -2.0, 3.0, 5.0, 4.0, 0.5)  # takes two passes


def double(taps):
    return torch.tensor(taps, dtype=torch.float64)


def directly(x, f, up=1, down=1, padding=(0, 0)):
    """The sum in the docstring of `fir`, number by number."""
    before, after = padding
    K = len(f)
    rows, columns = ((n * up + before + after - K) // down + 1 for n in x.shape[2:])
    y = x.new_zeros(*x.shape[:2], rows, columns)
    for i, j, k, m in itertools.product(range(rows), range(columns), range(K), range(K)):
        a, b = i * down + K - 1 - k - before, j * down + K - 1 - m - before
        if a % up == 0 and b % up == 0 and 0 <= a // up < x.shape[2] and 0 <= b // up < x.shape[3]:
            y[:, :, i, j] = y[:, :, i, j] + f[k] * f[m] * x[:, :, a // up, b // up]
    return y


@pytest.mark.parametrize("taps", [SMOOTH, ASYMMETRIC, LONG], ids=["1331", "asymmetric", "six taps"])
def test_a_filter_and_its_gradient_are_the_sum_written_out(truth, taps):
    f, worst = double(taps), 0.0
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    for (up, down), padding in itertools.product([(1, 1), (1, 2), (2, 1), (3, 2)], [(0, 0), (2, 2), (1, 3), (3, -1)]):
        ours, expected = fir(x, f, up=up, down=down, padding=padding), directly(x, f, up, down, padding)
        assert ours.shape == expected.shape
        weight = torch.randn_like(expected)
        gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, expected)]
        errors = (ours - expected).detach().abs().max(), (gradients[0] - gradients[1]).abs().max()
        worst = max(worst, max(errors).item() / sum(abs(t) for t in taps) ** 2)
    what = f"taps {', '.join(f'{t:g}' for t in taps)}, up to 3 and down to 2, padded, with gradients, float64"
    truth("FIR", what, "the sum written out", worst, 2e-15)


@pytest.mark.parametrize("taps", [SMOOTH, LONG], ids=["one pass", "two passes"])
def test_gradients_of_gradients_are_right(taps):
    f = double(taps)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: upsample(x, f).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: downsample(x, f).square(), x)


@pytest.mark.parametrize("taps", [SMOOTH, (1.0, 2.0, 1.0), LONG], ids=len)
@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_is_the_adjoint_of_reducing_times_the_pixels_gained(truth, taps, factor):
    """<up(x), y> = factor^2 <x, down(y)> for a filter that is its own mirror image, where no border is between them."""
    f = normalised((*taps, *taps[::-1])).double()  # an even number of taps, symmetric
    extra = len(f) - factor
    x = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    x[:, :, 5:7, 5:7] = torch.randn(2, 2, dtype=torch.float64)
    y = torch.randn(1, 1, 12 * factor, 12 * factor, dtype=torch.float64)
    down = fir(y, f, down=factor, padding=(extra // 2, (extra + 1) // 2))
    error = (upsample(x, f, factor) * y).sum() - factor**2 * (x * down).sum()
    truth("FIR", f"enlarging by {factor}, {len(f)} taps", "the adjoint of reducing", error.abs(), 4e-15)


@pytest.mark.parametrize("taps", [BOX, SMOOTH, (1.0, 4.0, 6.0, 4.0, 1.0), (1.0, 5.0, 10.0, 10.0, 5.0, 1.0)], ids=len)
def test_brightness_stays_as_it_is_inside_the_picture(taps):
    f, grey = normalised(taps).double(), torch.full((1, 1, 16, 16), 0.3, dtype=torch.float64)
    for changed in (blur(grey, f), upsample(grey, f), downsample(grey, f)):
        inside = changed[:, :, 4:-4, 4:-4] if len(changed[0, 0]) > 8 else changed[:, :, 3:-3, 3:-3]
        assert torch.allclose(inside, grey[:, :, :1, :1], rtol=0, atol=1e-7)  # the taps are float32


def test_two_taps_repeat_and_average():
    f, x = normalised(BOX), torch.randn(2, 3, 6, 4)
    torch.testing.assert_close(upsample(x, f), F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(downsample(x, f), F.avg_pool2d(x, 2))


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("taps", [BOX, SMOOTH])
def test_the_module_is_the_function(direction, taps):
    x = torch.randn(2, 3, 6, 4)
    function = upsample if direction == "up" else downsample
    torch.testing.assert_close(Resample(direction, taps)(x), function(x, normalised(taps)))
    assert not Resample(direction, taps).state_dict()


def test_one_three_three_one_enlarges_bilinearly_inside(truth):
    x = torch.randn(1, 2, 7, 5, dtype=torch.float64)
    expected = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    error = (upsample(x, normalised(SMOOTH).double()) - expected)[:, :, 1:-1, 1:-1].abs().max()
    truth("FIR", "1, 3, 3, 1 enlarging, inside", "torch's bilinear interpolation, float64", error, 1e-15)


def test_reducing_through_the_filter_does_not_alias(truth):
    """Of a wave of angular frequency w, sum_k f[k] cos(w (k - 3/2)) per axis is left: for one that cannot be held at
    half the resolution, w > pi / 2, less than half of what the mean of two pixels leaves."""
    f, w = normalised(SMOOTH).double(), 0.9 * torch.pi
    wave = torch.cos(w * torch.arange(64, dtype=torch.float64)).expand(1, 1, 64, 64)
    response = sum(f[k] * torch.cos(torch.tensor(w * (k - 1.5), dtype=torch.float64)) for k in range(4))
    left = downsample(wave, f)[0, 0, 8, 2:-2]
    expected = response * torch.cos(w * (2 * torch.arange(32, dtype=torch.float64) + 0.5))[2:-2]
    truth("FIR", "1, 3, 3, 1 reducing a wave", "its frequency response", (left - expected).abs().max(), 1e-14)
    assert response.abs() < 0.5 * abs(torch.cos(torch.tensor(w / 2)))


@pytest.mark.parametrize("direction", ["up", "down"])
def test_filter_and_convolution_in_one_are_the_two_padded_once(truth, direction):
    x, worst = torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True), 0.0
    for taps in (BOX, SMOOTH, ASYMMETRIC, LONG):
        layer = ResampleConv(2, 3, direction, taps).double()
        f, conv, extra = layer.taps, layer.conv, len(taps) - 2
        # padded as by `upsample` and `downsample`, and by one pixel more for the convolution
        if direction == "down":
            filtered = directly(x, f, padding=((extra + 1) // 2 + 1, extra // 2 + 1))
            expected = F.conv2d(filtered, conv.weight, conv.bias, stride=2)
            assert expected.shape[2:] == (3, 2)
        else:
            filtered = directly(x, 2 * f, up=2, padding=((extra + 1) // 2 + 2, extra // 2 + 1))
            expected = F.conv2d(filtered, conv.weight, conv.bias)
            assert expected.shape[2:] == (12, 8)
        ours, weight = layer(x), torch.randn_like(expected)
        tensors = (x, conv.weight, conv.bias)
        gradients = [torch.autograd.grad((y * weight).sum(), tensors) for y in (ours, expected)]
        pairs = zip((ours, *gradients[0]), (expected, *gradients[1]))
        worst = max(worst, *((a - b).detach().abs().max().item() for a, b in pairs))
    what = f"filter and convolution in one, {direction}, with gradients, float64"
    truth("FIR", what, "one after the other, written out", worst, 3e-14)


def test_a_filter_without_brightness_is_refused():
    for taps in ((), (1.0, -1.0)):
        with pytest.raises(ValueError, match="sum"):
            normalised(taps)
