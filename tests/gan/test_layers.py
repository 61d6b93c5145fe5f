"""The layers of ProGAN and its children: variances, groups of pictures, and the mean of w, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mezzotint.core.errors import ConfigError
from mezzotint.gan.layers import (
    EqualConv2d,
    EqualLinear,
    MappingNetwork,
    MinibatchDeviation,
    activated,
    pixel_norm,
    scaled_leaky_relu,
)
from mezzotint.nn.resampling import convolve_down, convolve_up, fir, normalised, upsample


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
def test_what_an_equalised_layer_puts_out_has_unit_variance(lr_multiplier, truth):
    layer = EqualLinear(300, 400, lr_multiplier=lr_multiplier)
    with torch.no_grad():
        error = (layer(torch.randn(400, 300)).var() - 1).abs()
    truth("progan", "variance behind an equalised layer", "1", error, 0.02)
    convolution = EqualConv2d(30, 64, lr_multiplier=lr_multiplier)
    with torch.no_grad():
        error = (convolution(torch.randn(40, 30, 8, 8))[..., 1:-1, 1:-1].var() - 1).abs()
    truth("progan", "variance behind an equalised convolution", "1", error, 0.02)


def test_the_multiplier_slows_a_layer_down_but_leaves_it_as_it_begins():
    """After a step of the same size for every parameter, as Adam takes it, the output has moved by m."""
    x, moved = torch.randn(5, 20), {}
    for m in (1.0, 0.1):
        torch.manual_seed(1)
        layer = EqualLinear(20, 3, bias=0.7, lr_multiplier=m)
        before = layer(x)
        layer.weight.data += 1e-2
        layer.bias.data += 1e-2
        moved[m] = (before, layer(x) - before)
    assert torch.allclose(moved[0.1][0], moved[1.0][0], atol=1e-5)
    assert torch.allclose(moved[0.1][1], 0.1 * moved[1.0][1], atol=1e-5)


def test_a_layer_that_resamples_is_the_filter_and_the_convolution_one_after_the_other(truth):
    """Away from the border, where the two pad differently, and with groups apart from each other."""
    taps, x = normalised((1, 3, 3, 1)).double(), torch.randn(2, 4, 8, 8).double()
    weight = torch.randn(6, 4, 3, 3).double()
    spread = F.pad(upsample(x, taps), (1, 1, 1, 1))
    error = (convolve_up(x, weight, taps) - F.conv2d(spread, weight))[..., 2:-2, 2:-2].abs().max()
    truth("stylegan2", "convolution on the way up", "filter, then convolution", error, 5e-14)
    full = fir(x, taps, padding=(1, 1))  # filtered, at full resolution
    thinned = F.conv2d(full, weight, padding=1)[..., ::2, ::2]
    error = (convolve_down(x, weight, taps) - thinned)[..., 1:-1, 1:-1].abs().max()
    truth("stylegan2", "convolution on the way down", "filter, then convolution", error, 5e-14)
    point = weight[..., 1:2, 1:2]
    error = (convolve_down(x, point, taps) - F.conv2d(full, point)[..., ::2, ::2]).abs().max()
    truth("stylegan2", "1x1 convolution on the way down", "filter, then convolution", error, 2e-14)
    halves = [convolve_up(x[:, 2 * k : 2 * k + 2], weight[3 * k : 3 * k + 3, :2], taps) for k in (0, 1)]
    assert torch.allclose(convolve_up(x, weight[:, :2], taps, groups=2), torch.cat(halves, 1), atol=1e-12)


def test_pixel_norm_gives_every_pixel_a_mean_square_of_one(truth):
    y = pixel_norm(7 * torch.randn(3, 16, 5, 5))
    truth("progan", "mean square over channels", "1", (y.square().mean(1) - 1).abs().max(), 1e-6)


def test_leaky_relu_with_its_gain_keeps_the_mean_square():
    y = scaled_leaky_relu(torch.randn(200_000))
    assert abs(y.square().mean() - (1 + 0.2**2)) < 0.02  # 2 (1 + 0.04) / 2


def test_a_gain_before_leaky_relu_is_one_behind_it():
    for layer, x in (
        (EqualConv2d(3, 4, bias=0.3), torch.randn(2, 3, 5, 5)),
        (EqualLinear(3, 4, 0.3), torch.randn(2, 3)),
    ):
        assert torch.allclose(activated(layer, x), scaled_leaky_relu(layer(x)), atol=1e-6)


def test_minibatch_deviation_by_hand():
    """Two groups of two, 0 and 2, 1 and 3; two channels of one pixel."""
    x = torch.tensor([[0.0, 0.0], [5.0, 1.0], [2.0, 6.0], [5.0, 3.0]])[:, :, None, None]
    found = MinibatchDeviation(2)(x)
    assert torch.equal(found[:, :2], x)
    # group of 0 and 2: deviations 1 and 3, mean 2; of 1 and 3: 0 and 1, mean 1/2
    assert torch.allclose(found[:, 2].flatten(), torch.tensor([2.0, 0.5, 2.0, 0.5]), atol=1e-3)


def test_pictures_that_are_left_over_are_a_group():
    x = torch.tensor([0.0, 4.0, 1.0, 7.0, 1.0]).view(5, 1, 1, 1)
    found = MinibatchDeviation(3)(x)[:, 1].flatten()
    first = torch.tensor([0.0, 4.0, 1.0]).std(correction=0)
    assert torch.allclose(found, torch.stack([first] * 3 + [torch.tensor(3.0)] * 2), atol=1e-3)
    assert MinibatchDeviation(4)(x[:1])[0, 1].item() == pytest.approx(1e-4)  # alone: only what stands under the root


def test_processes_see_the_groups_of_the_whole_batch():
    """As the loader deals a batch out: process r of w has the pictures r, r + w, ..."""
    x = torch.randn(16, 2, 3, 3)
    layer = MinibatchDeviation(4)
    whole = layer(x)
    assert torch.allclose(layer(x[0::2]), whole[0::2], atol=1e-6)
    assert torch.allclose(layer(x[1::2]), whole[1::2], atol=1e-6)


def test_minibatch_deviation_of_alike_pictures_is_smooth():
    x = torch.zeros(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(MinibatchDeviation()(x)[:, 1].sum(), x, create_graph=True)
    first.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_the_mapping_does_not_know_the_length_of_z():
    mapping = MappingNetwork(8, 12, 2)
    z = torch.randn(5, 8)
    assert torch.allclose(mapping(z), mapping(3 * z), atol=1e-5)
    assert mapping(z).shape == (5, 12)


def test_the_mapping_knows_the_class():
    mapping = MappingNetwork(8, 12, 2, classes=3)
    z = torch.randn(1, 8).expand(3, 8)
    w = mapping(z, torch.arange(3))
    assert min((w[0] - w[1]).norm(), (w[1] - w[2]).norm(), (w[0] - w[2]).norm()) > 0.5


def test_the_tracked_mean_is_the_mean(truth):
    """After many steps: to the error of so many codes, of which a mean of decay d remembers 64 (1 + d) / (1 - d)."""
    mapping = MappingNetwork(8, 12, 2, decay=0.9)
    for step in range(100):
        mapping.follow(step)
    with torch.no_grad():
        w = mapping(torch.randn(20_000, 8))
    error = (mapping.average - w.mean(0)).abs().max() / w.std()
    truth("stylegan", "tracked mean of w, in deviations", "mean of 20,000 codes", error, 4 / math.sqrt(64 * 19))


def test_the_tracked_mean_is_the_weighted_mean_of_what_was_seen(truth):
    """From the first step on, of which 64 codes are all there is; not drawn towards 0, where it begins."""
    mapping, alone = MappingNetwork(8, 12, 2, decay=0.5), []
    for step in (1, 2, 3):
        single = MappingNetwork(8, 12, 2, decay=0.0)
        single.load_state_dict(mapping.state_dict())
        single.follow(step)
        alone.append(single.average)
        mapping.follow(step)
    expected = (alone[0] + 2 * alone[1] + 4 * alone[2]) / 7
    error = (mapping.average - expected).abs().max() / expected.abs().max()
    truth("stylegan", "tracked mean of w after three steps, relative", "the weighted mean", error, 1e-6)


def test_the_tracked_mean_is_a_function_of_the_step():
    mapping = MappingNetwork(8, 12, 2, classes=3)
    torch.manual_seed(3)
    mapping.follow(7)
    first = mapping.average.clone()
    mapping.average.zero_()
    torch.manual_seed(4)
    mapping.follow(7)
    assert torch.equal(mapping.average, first)
    mapping.average.zero_()
    mapping.follow(8)
    assert not torch.allclose(mapping.average, first)


def test_truncation_lies_on_the_line_to_the_mean():
    mapping = MappingNetwork(8, 12, 2)
    mapping.follow(0)
    w = torch.randn(4, 5, 12)
    assert mapping.truncate(w, 1.0) is w
    assert torch.equal(mapping.truncate(w, 0.0), mapping.average.expand(4, 5, 12))
    half = mapping.truncate(w, 0.5, cutoff=2)
    assert torch.allclose(half[:, :2], (w[:, :2] + mapping.average) / 2, atol=1e-6)
    assert torch.equal(half[:, 2:], w[:, 2:])


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        MinibatchDeviation(1)
    with pytest.raises(ConfigError, match="at least 1"):
        MappingNetwork(8, 8, 0)
