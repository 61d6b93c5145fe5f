"""StyleGAN 2 beside `stylegan2-torch`: the same weights draw and judge alike.

Its two operators are CUDA sources that it compiles when it is imported. Here plain loops over their definitions stand
in for them, so that it runs on any device; all else is its own.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mezzotint.gan.penalties import ZeroCentred
from mezzotint.gan.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Networks, path_lengths

pytestmark = pytest.mark.oracles
SIZE, WIDTH = 16, 6


def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
    """Spread by zeros, padded, convolved with the kernel, thinned out."""
    B, C, H, W = x.shape
    spread = x.new_zeros(B, C, H * up, W * up)
    spread[..., ::up, ::up] = x
    spread = F.pad(spread, (*pad, *pad))
    h, w = (n - k + 1 for n, k in zip(spread.shape[2:], kernel.shape))
    y, flipped = 0, kernel.flip(0, 1)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            y = y + flipped[i, j] * spread[..., i : i + h, j : j + w]
    return y[..., ::down, ::down]


def fused_leaky_relu(x, bias):
    return 2**0.5 * F.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), 0.2)


class FusedLeakyReLU(nn.Module):
    def __init__(self, channel, bias=True):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel))

    def forward(self, x):
        return fused_leaky_relu(x, self.bias)


@pytest.fixture(scope="module")
def theirs():
    """The package, with those operators."""
    pytest.importorskip("torch_conv_gradfix")
    filters, activation = types.ModuleType("upfirdn2d"), types.ModuleType("fused_act")
    filters.upfirdn2d = upfirdn2d
    activation.fused_leaky_relu, activation.FusedLeakyReLU = fused_leaky_relu, FusedLeakyReLU
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "stylegan2_torch.op.upfirdn2d", filters)
        patch.setitem(sys.modules, "stylegan2_torch.op.fused_act", activation)
        yield pytest.importorskip("stylegan2_torch")
    for name in [name for name in sys.modules if name.startswith("stylegan2_torch")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def pair(theirs):
    """Their networks with random parameters, and ours with the same ones."""
    torch.manual_seed(0)
    network = StyleGAN2Networks(channel_base=64, channel_max=8, width=WIDTH, mapping_layers=2)
    ours = StyleGAN2(StyleGAN2Config(SIZE, 1, latent=WIDTH, network=network)).double()
    channels = {size: network.channels(size) for size in (4, 8, 16)}
    g = theirs.Generator(SIZE, latent_dim=WIDTH, n_mlp=2, channels=channels).double()
    d = theirs.Discriminator(SIZE, channels=channels).double()
    for parameter in [*g.parameters(), *d.parameters()]:
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    ours.generator.load_state_dict(generator_weights(g, ours.generator.state_dict()))
    ours.discriminator.load_state_dict(discriminator_weights(d))
    return g, d, ours


def generator_weights(g, buffers):
    made = {name: buffers[name] for name in ("mapping.average", "synthesis.constant_noise")}
    for k, layer in enumerate(list(g.mapping)[1:]):
        made |= {f"mapping.layers.{k}.weight": layer.weight, f"mapping.layers.{k}.bias": layer.bias}
    made["synthesis.constant"] = g.input.input[0]
    layers = {2 * k: layer for k, layer in enumerate(g.convs)}
    layers |= {2 * k + 1: layer for k, layer in enumerate(g.up_convs)}
    for k, layer in layers.items():
        name = f"synthesis.layers.{k}."
        # its transposed convolution does not turn the kernel round, so that it convolves with the kernel turned
        made[name + "conv.weight"] = layer.weight[0].flip(2, 3) if k % 2 else layer.weight[0]
        made |= {name + "strength": layer.add_noise.weight[0], name + "conv.bias": layer.leaky_relu.bias}
        made |= {name + f"conv.affine.{key}": value for key, value in layer.affine.state_dict().items()}
    for k, layer in enumerate(g.to_rgbs):
        name = f"synthesis.to_picture.{k}."
        made |= {name + "weight": layer.weight[0], name + "bias": layer.bias.flatten()}
        made |= {name + f"affine.{key}": value for key, value in layer.affine.state_dict().items()}
    return made


def discriminator_weights(d):
    first, *blocks = d.blocks
    made = {"from_picture.weight": first[0].weight, "from_picture.bias": first[1].bias}
    for k, block in enumerate(blocks):
        made |= {f"blocks.{k}.first.weight": block.conv[0].weight, f"blocks.{k}.first.bias": block.conv[1].bias}
        made |= {f"blocks.{k}.second.weight": block.down_conv[1].weight}
        made |= {f"blocks.{k}.second.bias": block.down_conv[2].bias, f"blocks.{k}.skip.weight": block.skip[1].weight}
    made |= {"conv.weight": d.final_conv[0].weight, "conv.bias": d.final_conv[1].bias}
    made |= {"neurons.weight": d.final_relu.weight, "neurons.bias": d.final_relu.bias}
    return made | {"score.weight": d.final_linear.weight, "score.bias": d.final_linear.bias}


def test_generators_draw_the_same_pictures(pair, truth):
    g, _, ours = pair
    z, noise = torch.randn(3, WIDTH).double(), torch.randn(3, ours.generator.synthesis.noises).double()
    maps = [part.view(-1, 1, n, n) for part, n in zip(noise.split([16, 64, 64, 256, 256], 1), (4, 8, 8, 16, 16))]
    expected = g([z], noises=maps)
    error = (ours.synthesise(ours.map(z), noise) - expected).abs().max() / expected.abs().max()
    truth("stylegan2", "pictures", "stylegan2-torch, same weights", error.detach(), 5e-15)


def test_discriminators_judge_alike(pair, truth):
    """Eight pictures, of which four see each other."""
    _, d, ours = pair
    x = torch.randn(8, 1, SIZE, SIZE).double()
    error = (ours.discriminator(x).score - d(x)[:, 0]).abs().max() / d(x).abs().max()
    truth("stylegan2", "scores", "stylegan2-torch, same weights", error.detach(), 5e-15)


def test_penalties_are_the_same(pair, theirs, truth):
    g, d, ours = pair
    x = torch.randn(4, 1, SIZE, SIZE).double().requires_grad_()
    expected = theirs.d_reg_loss(d(x), x)
    nothing = torch.zeros(())
    found = ZeroCentred(gamma=2.0)(lambda x: ours.discriminator(x).score, x, x, nothing, nothing).mean()
    truth("stylegan2", "R1", "stylegan2-torch, same weights", ((found - expected).abs() / expected).detach(), 2e-15)

    maps = [torch.zeros(4, 1, n, n).double() for n in (4, 8, 8, 16, 16)]
    images, w = g([torch.randn(4, WIDTH).double()], return_latents=True, noises=maps)
    torch.manual_seed(3)
    _, _, expected = theirs.g_reg_loss(images, w, 0)
    torch.manual_seed(3)
    y = torch.randn_like(images) / SIZE
    w = w.detach().requires_grad_()
    found = path_lengths(ours.synthesise(w, "none"), w, y)
    error = ((found - expected).abs() / expected).max()  # of which 1e-12 under the root is nearly all
    truth("stylegan2", "path lengths", "stylegan2-torch, same weights", error.detach(), 2e-11)
