"""The blocks of the networks, each against its formula."""

import math

import pytest
import torch
from torch.nn import functional as F

from mezzotint.core.errors import ConfigError
from mezzotint.core.precision import autocast
from mezzotint.nn.attention import Attention, attend, attend_plainly
from mezzotint.nn.blocks import Downsample, Pointwise, ResBlock, Upsample
from mezzotint.nn.embeddings import sinusoids
from mezzotint.nn.unet import UNet, UNetConfig


@pytest.mark.parametrize("tokens", [1, 49, 256, 1100])
def test_plain_attention_is_the_fused_kernel(truth, tokens):
    q, k, v = torch.randn(3, 2, 2, tokens, 16, dtype=torch.float64)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    error = max((attend(q, k, v) - fused).abs().max(), (attend_plainly(q, k, v) - fused).abs().max())
    truth("attention", f"{tokens} tokens, float64", "torch's fused kernel", error, 5e-15)


def test_the_gradient_of_plain_attention_is_the_fused_kernels(truth):
    q, k, v = (torch.randn(2, 2, 30, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    up = torch.randn(2, 2, 30, 8, dtype=torch.float64)
    ours = torch.autograd.grad(attend_plainly(q, k, v), (q, k, v), up)
    fused = torch.autograd.grad(torch.nn.functional.scaled_dot_product_attention(q, k, v), (q, k, v), up)
    error = max((a - b).abs().max() for a, b in zip(ours, fused))
    truth("attention", "gradient, float64", "torch's fused kernel", error, 5e-15)


def test_attention_does_not_know_where_a_pixel_is():
    attention, x = Attention(8, head_dim=4, groups=4).double(), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    order = torch.randperm(16)
    shuffled = attention(x.flatten(2)[:, :, order].view_as(x))
    torch.testing.assert_close(shuffled, attention(x).flatten(2)[:, :, order].view_as(x))


@pytest.mark.parametrize(("cosine_first", "freq_shift"), [(False, 1.0), (True, 0.0)])
def test_sinusoids_are_their_formula(truth, cosine_first, freq_shift):
    t, dim = torch.tensor([0.0, 1.0, 37.5, 999.0]), 16
    waves = sinusoids(t, dim, cosine_first=cosine_first, freq_shift=freq_shift)
    worst = 0.0
    for row, time in enumerate(t.tolist()):
        for k in range(8):
            phase = time * 10_000 ** (-k / (8 - freq_shift))
            pair = (math.cos(phase), math.sin(phase)) if cosine_first else (math.sin(phase), math.cos(phase))
            worst = max(worst, abs(float(waves[row, k]) - pair[0]), abs(float(waves[row, k + 8]) - pair[1]))
    truth("sinusoids", f"cosine_first={cosine_first}, float32", "math.sin and math.cos", worst, 1e-4)


def test_an_odd_number_of_sinusoids_is_padded():
    waves = sinusoids(torch.tensor([3.0]), 7)
    assert waves.shape == (1, 7)
    assert waves[0, -1] == 0


@pytest.mark.parametrize("resample", [None, "up", "down"])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_a_block_changes_width_and_resolution(resample, scale_shift):
    block = ResBlock(8, 12, groups=4, resample=resample, scale_shift=scale_shift)
    side = {None: 6, "up": 12, "down": 3}[resample]
    assert block(torch.randn(2, 8, 6, 6), torch.randn(2, block.time_width)).shape == (2, 12, side, side)


def test_changes_of_resolution():
    x = torch.randn(1, 4, 6, 6)
    assert Upsample(4)(x).shape == (1, 4, 12, 12)
    assert Downsample(4)(x).shape == Downsample(4, padding=0)(x).shape == (1, 4, 3, 3)


def leave_zero(network):
    """Off the zeros at which the last layers begin."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("resample", ["conv", "resnet"])
@pytest.mark.parametrize("time_norm", ["shift", "scale_shift"])
@pytest.mark.parametrize("patch", [1, 2])
def test_gradient_reaches_every_parameter(resample, time_norm, patch):
    config = UNetConfig(8, (1, 2), 1, (False, True), groups=4, resample=resample, time_norm=time_norm, patch=patch)
    unet = leave_zero(UNet(config, 1, 1, classes=3))
    x, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    (unet(x, torch.rand(6) * 1000, labels) - x).square().sum().backward()
    silent = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent


def test_a_new_network_answers_nothing_and_learns_in_two_steps():
    """Its last layer begins at zero, and so does that of each residual branch; then gradients go further in."""
    unet = UNet(UNetConfig(8, (1, 2), 1, (False, True), groups=4), 1, 1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])
    assert not unet(x, t).any()
    for _ in range(3):
        unet.zero_grad()
        (unet(x, t) - x).square().mean().backward()
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter -= 0.1 * parameter.grad
    assert all(p.grad.abs().max() > 0 for p in unet.parameters())


# Patches --------------------------------------------------------------------------------------------------------------


def patched(patch, classes=0, channels=2):
    return UNet(UNetConfig(8, (1, 2), 1, (False, True), groups=4, patch=patch), channels, channels, classes)


@pytest.mark.parametrize("patch", [2, 3])
def test_patches_are_pixels_of_more_channels(truth, patch):
    """The network over p x p squares is the network over pictures whose pixels are the squares, channel by channel."""
    unet = leave_zero(patched(patch)).double()
    plain = UNet(UNetConfig(8, (1, 2), 1, (False, True), groups=4), 2 * patch**2, 2 * patch**2).double()
    plain.load_state_dict(unet.state_dict())
    x, t = torch.randn(3, 2, 4 * patch, 6 * patch, dtype=torch.float64), torch.tensor([1.0, 400.0, 999.0])
    squares = x.view(3, 2, 4, patch, 6, patch).permute(0, 1, 3, 5, 2, 4).reshape(3, -1, 4, 6)  # (B, C p p, H/p, W/p)
    y = plain(squares, t).view(3, 2, patch, patch, 4, 6).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    truth("UNet", f"patches of {patch}, float64", "the network over squares as channels",
          (unet(x, t) - y).detach().abs().max(), 1e-15)  # fmt: skip
    assert unet(x, t).shape == x.shape


def test_patches_of_one_are_pixels():
    with_default = UNet(UNetConfig(8, (1, 2), 1, (False, True), groups=4), 2, 2)
    unet = leave_zero(patched(1))
    with_default.load_state_dict(unet.state_dict())
    x, t = torch.randn(1, 2, 8, 8), torch.tensor(5.0)
    assert torch.equal(unet(x, t), with_default(x, t))


def test_a_patch_is_seen_by_a_quarter_of_the_first_level():
    sizes = {}
    for patch in (1, 2):
        unet = patched(patch)
        unet.conv_in.register_forward_hook(lambda module, given, out, patch=patch: sizes.update({patch: out.shape}))
        unet(torch.zeros(1, 2, 8, 8), torch.tensor(0.0))
    assert sizes == {1: (1, 8, 8, 8), 2: (1, 8, 4, 4)}


@pytest.mark.parametrize(("size", "works"), [(8, True), (16, True), (6, False), (10, False), (7, False)])
def test_patches_and_halvings_must_divide_the_picture(size, works):
    config = UNetConfig(8, (1, 2), 1, (False, True), groups=4, patch=4)
    if works:
        UNet(config, 1, 1, image_size=size)
        return
    with pytest.raises(ConfigError, match="halved 1 times after patches of 4; use a multiple of 8 or fewer levels"):
        UNet(config, 1, 1, image_size=size)


def test_a_network_without_classes_takes_no_labels():
    config = UNetConfig(8, (1,), 1, (False,), groups=4)
    with pytest.raises(ValueError, match="no classes"):
        UNet(config, 1, 1)(torch.zeros(1, 1, 4, 4), torch.zeros(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="labels"):
        UNet(config, 1, 1, classes=2)(torch.zeros(1, 1, 4, 4), torch.zeros(1))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"groups": 5}, "groups"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"groups": -4}, "groups must be at least 1"),
        ({"attention": (True,)}, "levels"),
        ({"head_dim": 5}, "head_dim"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"channels": 2, "groups": 1}, "too few"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"multipliers": (), "attention": ()}, "multipliers"),
        ({"time_dim": 0}, "time_dim"),
        ({"middle_groups": 5}, "middle_groups"),
        ({"middle_groups": -1}, "middle_groups"),
        ({"middle_scale": 0.0}, "middle_scale"),
        ({"dropout": 1.0}, "dropout"),
        ({"eps": 0.0}, "eps"),
        ({"patch": 0}, "patch must be at least 1"),
        ({"heads": 3}, "heads do not divide 16 channels"),
        ({"heads": 2, "head_dim": 4}, "exclude each other"),
    ],
)
def test_architectures_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        UNetConfig(**{**{"channels": 8, "multipliers": (1, 2), "attention": (False, True), "groups": 4}, **changes})


def test_one_time_for_all_is_that_time_for_each(truth):
    unet = leave_zero(UNet(UNetConfig(8, (1, 2), 1, (False, True), groups=4), 1, 1, classes=3)).double()
    x, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    one = unet(x, torch.tensor(321.5), labels)
    error = (one - unet(x, torch.full((3,), 321.5), labels)).detach().abs().max()
    truth("UNet", "one time for the whole batch, float64", "the same time for each picture", error, 1e-15)


def test_pictures_that_cannot_be_halved_are_refused():
    with pytest.raises(ConfigError, match="multiple of 2"):
        UNet(UNetConfig(8, (1, 2), 1, (False, True), groups=4), 1, 1, image_size=7)


def test_low_precision_stays_near(truth):
    """bf16 keeps 8 bits: the answers of the whole network differ by about one part in a hundred."""
    unet = leave_zero(UNet(UNetConfig(16, (1, 2), 1, (False, True), groups=4), 1, 1))
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4) * 1000
    with torch.no_grad():
        expected = unet(x, t)
        with autocast("bf16", torch.device("cpu")):
            error = (unet(x, t).float() - expected).abs().max() / expected.abs().max()
    truth("UNet", "bf16, relative to the largest output", "float32", error, 5e-2)


def test_a_pointwise_convolution_is_one_under_autocast_too(truth):
    """The matrix product of the fast path against the convolution, both in bf16: outputs and all gradients."""
    layer = Pointwise(12, 5)
    x = torch.randn(3, 12, 4, 6, requires_grad=True)
    results = []
    for call in (layer, lambda x: F.conv2d(x, layer.weight, layer.bias)):
        with torch.autocast("cpu", torch.bfloat16):
            y = call(x)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), (x, layer.weight, layer.bias))])
    assert results[0][0].dtype == torch.bfloat16
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(*results))
    truth("nn", "1x1 convolution as a matrix product, bf16, with gradients", "torch's convolution, bf16", error, 1e-2)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))
