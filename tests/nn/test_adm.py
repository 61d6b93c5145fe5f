"""The networks of Dhariwal and Nichol 2021: sizes as published, and the half UNet with its pooling."""

import pytest
import torch
from torch.nn import functional as F

from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.adm import adm_unet, noisy_classifier_config
from mezzotint.nn.attention import Attention
from mezzotint.nn.blocks import ResBlock
from mezzotint.nn.encoder import AttentionPool, HalfUNet
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(
    8, (1, 2), 1, (False, True), head_dim=8, groups=4, time_norm="scale_shift", resample="resnet",
    cosine_first=True, freq_shift=0.0,
)  # fmt: skip


def millions(network):
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize(("size", "published"), [(64, 296), (128, 422), (256, 554)])
def test_published_networks_have_their_number_of_parameters(truth, size, published):
    """With learned variance (6 output channels) and 1000 classes; no null class, the paper has another guidance."""
    with torch.device("meta"):
        network = adm_unet(size).build(3, 6, 1000, size)
    error = abs(millions(network) - published)
    truth(f"ADM, {size} px", "parameters, millions", "Dhariwal and Nichol 2021, appendix I", error, 0.5)


@pytest.mark.parametrize(("size", "published"), [(64, 65), (128, 43), (256, 54)])
def test_published_classifiers_have_their_number_of_parameters(truth, size, published):
    config = noisy_classifier_config(size, 3, 1000, "paper")
    with torch.device("meta"):
        network = HalfUNet(config.network, 3, 1000, size)
    error = abs(millions(network) - published)
    truth(f"noisy classifier, {size} px", "parameters, millions", "Dhariwal and Nichol 2021, appendix I", error, 0.5)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_adm_attends_at_32_16_and_8_pixels_and_changes_resolution_by_residual_blocks(size):
    with torch.device("meta"):
        network = adm_unet(size).build(3, 6, 1000, size)
    for i, level in enumerate(network.down):
        attends = all(isinstance(attention, Attention) for attention in level.attentions)
        assert attends == (size // 2**i in (32, 16, 8))
        assert level.resample is None or level.resample.resample == "down"
    assert all(block.scale_shift for block in network.modules() if isinstance(block, ResBlock))
    heads = {module.head_dim for module in network.modules() if isinstance(module, Attention)}
    assert heads == ({64} if size != 128 else {512 // 4, 768 // 4, 1024 // 4})


def test_heads_are_as_many_at_every_width():
    config = UNetConfig(8, (1, 2), 1, (True, True), heads=4, groups=4)
    widths = {m.qkv.in_features: m.head_dim for m in config.build(1, 1).modules() if isinstance(m, Attention)}
    assert widths == {8: 2, 16: 4}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 3}, "3 heads do not divide"),
        ({"heads": 0}, "heads must be"),
        ({"heads": 2, "head_dim": 4}, "exclude"),
    ],
)
def test_heads_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        UNetConfig(8, (1, 2), 1, (True, True), groups=4, **changes)


def test_the_half_unet_goes_down_as_the_unet_does(truth):
    """With the weights of a UNet, what reaches the pooling is what the UNet turns around."""
    unet, half = TINY.build(2, 2, 0, 8).double(), HalfUNet(TINY, 2, 5, 8).double()
    rows = half.time_projection.out_features
    state = {name: tensor for name, tensor in unet.state_dict().items() if name in half.state_dict()}
    state["time_projection.weight"] = unet.time_projection.weight[:rows]
    state["time_projection.bias"] = unet.time_projection.bias[:rows]
    kept = [name for name in half.state_dict() if name not in state]
    assert {name.split(".")[0] for name in kept} == {"norm", "pool"}
    half.load_state_dict(state, strict=False)
    turned, pooled = [], []
    unet.middle.blocks[1].register_forward_hook(lambda module, inputs, output: turned.append(output))
    half.norm.register_forward_hook(lambda module, inputs, output: pooled.append(inputs[0]))
    x, t = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0.0, 300.0, 999.0])
    unet(x, t)
    assert half(x, t).shape == (3, 5)
    error = (turned[0] - pooled[0]).abs().max().item()
    truth("half UNet", "the coarsest features, float64", "the UNet whose half it is", error, 1e-15)


def test_pooling_is_its_formula(truth):
    """One query, the mean's, against the mean and every position, head by head."""
    pool = AttentionPool(8, 4, 3, head_dim=4).double()
    x = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    tokens = torch.stack([x.mean((2, 3))[0], *x[0].flatten(1).T]) + pool.places  # (5, 8)
    q, (k, v) = pool.query(tokens[0]), pool.key_value(tokens).chunk(2, dim=1)
    heads = []
    for columns in (slice(0, 4), slice(4, 8)):
        weights = (k[:, columns] @ q[columns] / 2).softmax(0)
        heads.append(weights @ v[:, columns])
    expected = F.linear(torch.cat(heads), pool.out.weight, pool.out.bias)
    truth("attention pooling", "output, float64", "its formula", (pool(x)[0] - expected).abs().max().item(), 2e-15)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("resample", ["conv", "resnet"])
def test_gradient_reaches_every_parameter(patch, middle, resample):
    config = TINY.updated({"patch": patch, "middle": middle, "resample": resample})
    half = HalfUNet(config, 1, 3, 8)
    with torch.no_grad():
        for parameter in half.parameters():  # off the zeros at which residual branches begin
            parameter.add_(0.02 * torch.randn_like(parameter))
    half(torch.randn(4, 1, 8, 8), torch.rand(4) * 1000).square().sum().backward()
    still = [name for name, p in half.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_one_time_for_all_is_that_time_for_each(truth):
    half = HalfUNet(TINY, 1, 3, 8).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    error = (half(x, torch.tensor(321.5)) - half(x, torch.full((3,), 321.5))).abs().max().item()
    truth("half UNet", "one time for the whole batch, float64", "the same time for each picture", error, 1e-15)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="multiple of 2"):
        HalfUNet(TINY, 1, 3, 7)
    with pytest.raises(ValueError, match="heads"):
        AttentionPool(8, 4, 3, head_dim=5)
