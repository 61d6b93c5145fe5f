"""Convolution along time: what the integral says, what a Fourier transform says, and a UNet that is an operator."""

import copy
import math

import pytest
import torch

from mezzotint.core.errors import ConfigError
from mezzotint.nn.fourier import FourierConvolution, TemporalLayer, TrajectoryUNet
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)


def convolution(modes=3, inputs=3, outputs=5):
    return FourierConvolution(inputs, outputs, modes).double()


def signal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def grid(points):
    return torch.arange(points, dtype=torch.float64) / points


def waves_of(t, highest, inputs=3):
    """A signal of frequencies up to `highest` at times t, (1, N, inputs, 1, 1), the same whatever the times."""
    random = torch.Generator().manual_seed(1)
    u = torch.zeros(len(t), inputs, dtype=torch.float64)
    for m in range(highest + 1):
        size = torch.randn(2, inputs, generator=random, dtype=torch.float64)
        phase = 2 * math.pi * m * t[:, None]
        u = u + size[0] * phase.cos() + size[1] * phase.sin()
    return u[None, :, :, None, None]


# One layer


@pytest.mark.parametrize(("points", "modes"), [(1, 1), (4, 2), (5, 3), (8, 3), (16, 8)])
def test_it_is_the_sum_over_the_points_with_its_kernel(points, modes, truth):
    """(kappa * u)(t_k) = 1/K sum_j kappa(t_k - t_j) u(t_j)."""
    layer, u = convolution(modes), signal(2, points, 3, 2, 4)
    t = grid(points)
    kappa = layer.kernel((t[:, None] - t).flatten()).view(points, points, 5, 3)
    expected = torch.einsum("kjoi,bjihw->bkohw", kappa, u) / points
    truth("Fourier layer", f"{points} points, {modes} modes", "the sum with its kernel, float64",
          (layer(u) - expected).detach().abs().max(), 1e-15 * points)  # fmt: skip


def test_it_is_the_integral_for_signals_of_low_frequency(truth):
    """Eight points see frequencies up to 8 - 3 exactly; the integral is taken by the midpoint rule of 4000 points."""
    layer, t = convolution(), grid(8)
    s = grid(4000) + 0.5 / 4000
    kappa = layer.kernel((t[:, None] - s).flatten()).view(8, 4000, 5, 3)
    expected = torch.einsum("kjoi,ji->ko", kappa, waves_of(s, 5)[0, :, :, 0, 0]) / 4000
    error = (layer(waves_of(t, 5))[0, :, :, 0, 0] - expected).detach().abs().max()
    truth("Fourier layer", "signal of frequencies up to K - M", "the integral, float64", error, 2e-14)


@pytest.mark.parametrize("points", [5, 8, 9])
def test_it_is_multiplication_in_fourier_space(points, truth):
    layer, u = convolution(), signal(2, points, 3, 2, 2)
    coefficients = torch.fft.fft(u, dim=1)
    R = torch.zeros(points, 5, 3, dtype=torch.complex128)
    R[:3] = torch.view_as_complex(layer.weight.detach())
    R[-2:] = R[1:3].conj().flip(0)  # negative frequencies; R_0 is taken as real
    R[0] = R[0].real.to(R.dtype)
    expected = torch.fft.ifft(torch.einsum("moi,bmihw->bmohw", R, coefficients), dim=1)
    assert expected.imag.abs().max() < 1e-14
    truth("Fourier layer", f"{points} points", "F^-1(R F u) by complex transforms, float64",
          (layer(u) - expected.real).detach().abs().max(), 4e-15)  # fmt: skip


@pytest.mark.parametrize("shift", [1, 3, -2])
def test_a_shifted_signal_gives_the_shifted_answer(shift, truth):
    layer, u = convolution(), signal(2, 8, 3, 2, 2)
    error = (layer(u.roll(shift, 1)) - layer(u).roll(shift, 1)).detach().abs().max()
    truth("Fourier layer", f"signal shifted by {shift}", "the shifted answer, float64", error, 3e-15)


def test_the_answer_does_not_depend_on_how_many_points_see_the_signal(truth):
    layer = convolution()
    coarse, fine = layer(waves_of(grid(8), 5)), layer(waves_of(grid(32), 5))
    error = (coarse - fine[:, ::4]).detach().abs().max()
    truth("Fourier layer", "8 points", "every fourth of 32 points, float64", error, 5e-15)


def test_what_is_above_its_frequencies_it_does_not_see(truth):
    u = torch.cos(2 * math.pi * 3 * grid(8)).view(1, 8, 1, 1, 1).expand(1, 8, 3, 1, 1)
    truth("Fourier layer", "wave of the frequency M", "0, float64", convolution()(u).detach().abs().max(), 2e-15)
    slower = torch.cos(2 * math.pi * 2 * grid(8)).view(1, 8, 1, 1, 1).expand(1, 8, 3, 1, 1)
    assert convolution()(slower).abs().max() > 0.1


def test_enough_modes_are_any_solution_of_a_linear_equation(truth):
    """x(t_k) = c_k x(0) for any c: the kernel that passes through them, fed x(0) as an impulse."""
    c, x = signal(5), signal(2, 1, 3, 3)
    layer = convolution(modes=3, inputs=1, outputs=1)
    with torch.no_grad():
        layer.weight[:, 0, 0] = torch.view_as_real(torch.fft.rfft(c))
    impulse = torch.cat([x[:, None], torch.zeros(2, 4, 1, 3, 3, dtype=torch.float64)], 1)
    error = (layer(impulse) - c.view(1, 5, 1, 1, 1) * x[:, None]).detach().abs().max()
    truth("Fourier layer", "solution operator of a linear equation at 5 times, 3 modes", "c_k x, float64", error, 2e-15)


def test_gradients_are_right():
    layer, u = convolution(2, 1, 2), signal(1, 3, 1, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, w: torch.func.functional_call(layer, {"weight": w}, u), (u, layer.weight))


def test_reduced_precision_changes_little(truth):
    layer, u = FourierConvolution(16, 16, 2), torch.randn(2, 4, 16, 3, 3)
    exact = layer(u)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = layer(u)
    truth("Fourier layer", "bfloat16, relative", "float32", ((reduced - exact).norm() / exact.norm()).detach(), 1e-2)


def test_too_few_points_are_refused():
    with pytest.raises(ConfigError, match="3 Fourier modes need 5 points of time or more, not 4"):
        convolution()(signal(1, 4, 3, 1, 1))


# The operator


def shaken(network):
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


def silent(operator):
    """The operator with its temporal layers at zero."""
    for module in operator.modules():
        if isinstance(module, FourierConvolution):
            torch.nn.init.zeros_(module.weight)
    return operator


def test_without_its_temporal_layers_it_is_the_unet_at_each_time(truth):
    unet = shaken(TINY.build(2, 2, 3))
    operator = silent(TrajectoryUNet(copy.deepcopy(unet), 4, 2).double())
    x, t, labels = signal(3, 2, 4, 4), grid(4) * 100, torch.tensor([0, 2, 1])
    one_by_one = torch.stack([unet(x, now, labels) for now in t], 1)
    truth("trajectory UNet", "no temporal weights", "the UNet at each time, float64",
          (operator(x, t, labels) - one_by_one).detach().abs().max(), 3e-15)  # fmt: skip


def test_states_learn_of_each_other_but_not_of_other_pictures():
    operator = shaken(TrajectoryUNet(TINY.build(2, 2), 4, 2))
    x, t = signal(3, 2, 4, 4), grid(4) * 100
    states = operator(x, t)
    assert states.shape == (3, 4, 2, 4, 4)
    later = t.clone()
    later[3] += 10
    assert all((operator(x, later)[:, k] - states[:, k]).abs().max() > 1e-6 for k in range(4))
    assert torch.allclose(operator(x[1:2], t)[0], states[1], atol=1e-12)


def test_a_temporal_layer_follows_every_block_of_the_ways_and_the_middle():
    operator = TrajectoryUNet(TINY.build(1, 1), 4, 2)
    layers = [module for module in operator.modules() if isinstance(module, TemporalLayer)]
    assert len(layers) == 2 * 1 + 1 + 2 * 2  # down, middle, up
    assert [layer.convolution.weight.shape[1] for layer in layers] == [8, 16, 16, 16, 16, 8, 8]


def test_it_is_trained_in_every_weight():
    operator = shaken(TrajectoryUNet(TINY.build(1, 1, 3), 4, 2))
    operator(signal(2, 1, 4, 4), grid(4) * 100, torch.tensor([0, 1])).square().mean().backward()
    assert not [name for name, p in operator.named_parameters() if p.grad is None or not p.grad.any()]


def test_more_modes_than_times_can_tell_apart_are_refused():
    with pytest.raises(ConfigError, match="4 times have 1 to 2 Fourier modes, not 3"):
        TrajectoryUNet(TINY.build(1, 1), 4, 3)


@pytest.mark.parametrize(
    ("unet", "image_size", "classes", "millions"),
    [
        (UNetConfig(256, (1, 1, 1), 3, (False, True, True), time_norm="scale_shift", resample="resnet"), 32, 0, 65.8),
        (
            UNetConfig(192, (1, 2, 3, 4), 3, (False, True, True, True), 64, time_norm="scale_shift", resample="resnet"),
            64, 1000, 329.2,
        ),
    ],
)  # fmt: skip
def test_published_sizes(unet, image_size, classes, millions, truth):
    """Zheng et al. 2023, CIFAR-10 and ImageNet-64: 2 modes at 4 times."""
    with torch.device("meta"):
        operator = TrajectoryUNet(unet.build(3, 3, classes, image_size), 4, 2)
    count = sum(parameter.numel() for parameter in operator.parameters()) / 1e6
    truth("DFNO", f"{image_size} pixels: millions of parameters", f"published {millions}", abs(count - millions), 0.05)
