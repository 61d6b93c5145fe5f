"""NCSN++ and DDPM++: published sizes, each change that the paper makes to DDPM's UNet, and what the config refuses."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from mezzotint.core.errors import ConfigError
from mezzotint.core.precision import autocast
from mezzotint.diffusion.networks import small_ddpmpp, small_ncsnpp
from mezzotint.nn.attention import Attention
from mezzotint.nn.embeddings import FourierTimeEmbedding, RandomFourier
from mezzotint.nn.flops import multiply_adds
from mezzotint.nn.ncsnpp import (
    BigGANBlock,
    NCSNpp,
    NCSNppConfig,
    ddpmpp_config,
    ncsnpp_256_config,
    ncsnpp_config,
)
from mezzotint.nn.resampling import SMOOTH, downsample, normalised, upsample

TINY = NCSNppConfig(8, (1, 2), blocks=1, attention=(False, True), dropout=0.0)

# Song et al. give no counts. These are of the checkpoints that they released, as measured by others, with the 128 fixed
# frequencies of the time: NCSN++ cont., also deep, and for 256 pixels. DDPM++ was counted by those who trained it: for
# rectified flow, whose code has the same network (61804419), and for EDM, with its multipliers.
PUBLISHED = {
    "DDPM++": (ddpmpp_config(), 61_804_419),
    "DDPM++ of EDM": (ddpmpp_config(multipliers=(2, 2, 2)), 55_732_739),
    "NCSN++ cont.": (ncsnpp_config(), 62_758_915),
    "NCSN++ cont. (deep)": (ncsnpp_config(deep=True), 107_587_075),
    "NCSN++ cont. for 256 pixels": (ncsnpp_256_config(), 65_574_549),
}


def randomised(network, std=0.3):
    """Weights off the zeros with which branches begin."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return network


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    config, count = PUBLISHED[name]
    with torch.device("meta"):
        network = config.build(3, 3)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == count


def test_deep_means_twice_the_blocks():
    """44 residual blocks and 6 attentions (4 down, 1 in the middle, 1 up; counted by others too) become 76 and 10."""
    for deep, counts in ((False, (44, 6)), (True, (76, 10))):
        with torch.device("meta"):
            network = ncsnpp_config(deep=deep).build(3, 3)
        attentions = [module for module in network.modules() if isinstance(module, Attention)]
        assert (len(network.res_blocks()), len(attentions)) == counts


def test_attention_stands_at_16_pixels():
    assert ncsnpp_config(32).attention == (False, True, False, False)
    assert ddpmpp_config(64).attention == (False, False, True, False)
    assert ncsnpp_256_config().attention == (False, False, False, False, True, False, False)


OPTIONS = {
    "as it is": {},
    "fourier": {"embedding": "fourier"},
    "sigma": {"embedding": "fourier", "scale_by_sigma": True},
    "fir": {"taps": SMOOTH},
    "no rescaling": {"skip_rescale": False},
    "input skip": {"progressive_input": "input_skip", "taps": SMOOTH},
    "input residual": {"progressive_input": "residual"},
    "output skip": {"progressive_output": "output_skip"},
    "output residual": {"progressive_output": "residual", "taps": SMOOTH},
    "both residual": {"progressive_input": "residual", "progressive_output": "residual"},
    "both skip": {"progressive_input": "input_skip", "progressive_output": "output_skip"},
    "patch": {"patch": 2},
    "patch, pyramids": {"patch": 2, "progressive_input": "residual", "progressive_output": "output_skip"},
    "one level": {"multipliers": (1,), "attention": (True,), "progressive_output": "output_skip"},
    "three levels": {
        "multipliers": (1, 1, 2), "attention": (False, True, False), "progressive_input": "residual",
        "progressive_output": "residual",
    },
    "heads": {"head_dim": 4},
    "dropout": {"dropout": 0.5},
    "wide first level": {"multipliers": (2, 2)},
    "centred": {"center_input": True, "time_dim": 12, "cosine_first": True, "freq_shift": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_runs_and_a_gradient_reaches_every_parameter(name):
    network = randomised(replace(TINY, **OPTIONS[name]).build(2, 3, classes=3, image_size=16), std=0.1)
    x, t, labels = torch.randn(6, 2, 16, 16), torch.rand(6) * 100 + 0.1, torch.tensor([0, 1, 2, 0, 1, 2])
    y = network(x, t, labels)
    assert y.shape == (6, 3, 16, 16)
    (y - x.mean(1, keepdim=True)).square().sum().backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


def test_a_new_network_answers_nothing():
    for name in ("as it is", "output skip", "both residual", "sigma"):
        network = replace(TINY, **OPTIONS[name]).build(1, 1)
        assert not network(torch.randn(2, 1, 8, 8), torch.tensor([3.0, 7.0])).any()


def test_a_new_block_is_its_shortcut(truth):
    """As every branch ends in zeros; a block that resamples is a filter and a 1x1 convolution."""
    network = replace(TINY, taps=SMOOTH).build(1, 1).double()
    x, time = torch.randn(2, 8, 6, 6, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    change, f = network.down[0].resample, normalised(SMOOTH).double()
    expected = change.shortcut(downsample(x, f)) / math.sqrt(2)
    error = max((change(x, time) - expected).abs().max(), (network.down[0].blocks[0](x, time) - x / 2**0.5).abs().max())
    truth("NCSN++", "a new block, float64", "its shortcut over sqrt(2)", error.detach(), 1e-15)


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_block_is_its_formula(truth, resample):
    block = randomised(BigGANBlock(8, 12, resample=resample, taps=SMOOTH, groups=4)).double()
    x, time = torch.randn(2, 8, 6, 6, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    f = normalised(SMOOTH).double()
    change = {None: lambda h: h, "up": lambda h: upsample(h, f), "down": lambda h: downsample(h, f)}[resample]

    def norm(h, layer, groups):
        grouped = h.reshape(2, groups, -1)
        mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, keepdim=True, unbiased=False)
        h = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(h.shape)
        return h * layer.weight[:, None, None] + layer.bias[:, None, None]

    def conv(h, layer):
        return F.conv2d(h, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    h = norm(x, block.norm1, 4)
    h = conv(change(h * h.sigmoid()), block.conv1) + time[:, :, None, None]
    h = norm(h, block.norm2, 3)  # min(12 // 4, 32) groups
    h = conv(h * h.sigmoid(), block.conv2)
    expected = (conv(change(x), block.shortcut) + h) / 2**0.5
    error = ((block(x, time) - expected).abs().max() / expected.abs().max()).detach()
    truth("NCSN++", f"BigGAN block, resample {resample}, float64, relative", "its formula", error, 2e-15)


def test_rescaled_sums_keep_the_variance(truth):
    """Of N blocks with branches of variance one: the variance stays, and without rescaling it grows from 1 to 1 + N."""
    N, x = 8, torch.randn(4, 64, 16, 16)
    for skip_rescale, expected in ((True, 1.0), (False, 1.0 + N)):
        network = randomised(replace(TINY, channels=64, blocks=N, skip_rescale=skip_rescale).build(1, 1))
        h = x
        for block in network.down[0].blocks:
            block.conv2.register_forward_hook(lambda module, args, y: F.batch_norm(y, None, None, training=True))
            with torch.no_grad():
                h = block(h, torch.zeros(1, 64))
        what = f"variance after {N} blocks, sums {'' if skip_rescale else 'not '}rescaled, relative"
        truth("NCSN++", what, f"{expected:g}", abs(h.var().item() / expected - 1), 0.04)


def test_random_frequencies_are_saved_and_not_trained(tmp_path):
    config = replace(TINY, embedding="fourier")
    first, second = randomised(config.build(1, 1)), config.build(1, 1)
    assert "time.waves.weight" not in dict(first.named_parameters())
    assert not torch.equal(first.time.waves.weight, second.time.waves.weight)
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    second.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, -2.0])
    assert torch.equal(first(x, t), second(x, t))


def test_random_frequencies_have_the_scale_that_is_asked_for(truth):
    draws = FourierTimeEmbedding(20_000, 4, scale=16.0).waves.weight
    truth("NCSN++", "spread of 20,000 random frequencies, relative", "16", abs(draws.std().item() / 16 - 1), 0.015)
    truth("NCSN++", "mean of 20,000 random frequencies, in units of 16", "0", abs(draws.mean().item() / 16), 0.02)


def test_random_waves_are_their_formula(truth):
    waves, t, worst = RandomFourier(16).double(), torch.tensor([-3.7, 0.0, 4.6], dtype=torch.float64), 0.0
    for row, time in zip(waves(t).tolist(), t.tolist()):
        for k, w in enumerate(waves.weight.tolist()):
            pair = math.sin(2 * math.pi * w * time), math.cos(2 * math.pi * w * time)
            worst = max(worst, abs(row[k] - pair[0]), abs(row[k + 16] - pair[1]))
    truth("NCSN++", "random Fourier features, float64", "math.sin and math.cos", worst, 1e-12)


def test_the_score_of_a_noise_level_is_the_answer_over_sigma(truth):
    """s(x, sigma) = f(x, ln sigma) / sigma with the same weights."""
    config = replace(TINY, embedding="fourier")
    f = randomised(config.build(1, 1)).double()
    s = replace(config, scale_by_sigma=True).build(1, 1).double()
    s.load_state_dict(f.state_dict())
    x, sigma = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0.02, 1.0, 90.0], dtype=torch.float64)
    expected = f(x, sigma.log()) / sigma[:, None, None, None]
    error = ((s(x, sigma) - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3))).max().detach()
    truth("NCSN++", "scaled by sigma, float64, relative", "f(x, ln sigma) / sigma", error, 1e-15)


def test_patches_are_channels():
    config = replace(TINY, patch=2, progressive_input="input_skip", progressive_output="output_skip")
    whole = randomised(config.build(1, 2))
    inner = replace(config, patch=1).build(4, 8)
    inner.load_state_dict(whole.state_dict())
    x, t = torch.randn(2, 1, 8, 12), torch.tensor([1.0, 2.0])
    assert torch.equal(whole(x, t), F.pixel_shuffle(inner(F.pixel_unshuffle(x, 2), t), 2))


def test_centred_input_is_twice_the_picture_less_one():
    network = randomised(replace(TINY, center_input=True, progressive_input="input_skip").build(1, 1))
    plain = replace(network.config, center_input=False).build(1, 1)
    plain.load_state_dict(network.state_dict())
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([1.0, 2.0])
    assert torch.equal(network(x, t), plain(2 * x - 1, t))


def test_an_output_pyramid_is_the_sum_of_what_its_levels_draw(truth):
    """y = head_0 + up(head_1 + up(head_2)), with heads read off a network whose other heads are silent."""
    config = replace(TINY, multipliers=(1, 1, 1), attention=(False,) * 3, progressive_output="output_skip", taps=SMOOTH)
    network = randomised(config.build(1, 1)).double()
    x, t, drawn = torch.randn(1, 1, 16, 16, dtype=torch.float64), torch.tensor([3.0]), {}
    heads = {2: network.up[0].pyramid.conv, 1: network.up[1].pyramid.conv, 0: network.conv_out}
    for level, head in heads.items():
        head.register_forward_hook(lambda module, args, y, level=level: drawn.update({level: y}))
    y, f = network(x, t), normalised(SMOOTH).double()
    assert [drawn[level].shape[-1] for level in (0, 1, 2)] == [16, 8, 4]
    expected = drawn[0] + upsample(drawn[1] + upsample(drawn[2], f), f)
    truth("NCSN++", "output pyramid, float64", "the sum of its levels", (y - expected).abs().max().detach(), 1e-13)


def test_one_time_for_all_is_that_time_for_each(truth):
    network = randomised(replace(TINY, scale_by_sigma=True).build(1, 1, classes=3)).double()
    x, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    each = network(x, torch.full((3,), 2.5), labels)
    error = ((network(x, torch.tensor(2.5), labels) - each).abs().max() / each.abs().max()).detach()
    truth("NCSN++", "one time for the whole batch, float64", "the same time for each picture", error, 1e-14)


def test_low_precision_stays_near(truth):
    """bf16 keeps 8 bits: the answers of the whole network differ by about one part in a hundred."""
    config = replace(TINY, channels=16, embedding="fourier", taps=SMOOTH, progressive_input="residual")
    network, x, t = randomised(config.build(1, 1), std=0.1), torch.randn(4, 1, 8, 8), torch.randn(4)
    with torch.no_grad():
        expected = network(x, t)
        with autocast("bf16", torch.device("cpu")):
            error = (network(x, t).float() - expected).abs().max() / expected.abs().max()
    truth("NCSN++", "bf16, relative to the largest output", "float32", error, 3e-2)


def test_labels_are_for_networks_with_classes():
    x, t = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="no classes"):
        TINY.build(1, 1)(x, t, torch.tensor([0]))
    with pytest.raises(ValueError, match="labels"):
        TINY.build(1, 1, classes=2)(x, t)


def test_the_device_of_the_weights_is_that_of_the_answer():
    """Times stay in float64 on the CPU, and no number is read back."""
    from diffusion.other_device import OtherDevice

    for embedding in ("positional", "fourier"):
        network = replace(TINY, embedding=embedding, scale_by_sigma=True, taps=SMOOTH).build(1, 1).to("meta")
        x = torch.zeros(2, 1, 8, 8, device="meta")
        with OtherDevice():
            assert network(x, torch.tensor([1.0, 2.0], dtype=torch.float64)).is_meta


def test_a_config_survives_json():
    for config in (ncsnpp_256_config(), small_ncsnpp(28)):
        assert NCSNppConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ddpmpp_config().updated({"taps": "1,3,3,1"}).taps == SMOOTH


@pytest.mark.parametrize("small", [small_ddpmpp, small_ncsnpp])
def test_small_networks_are_small(small):
    network = small(28).build(1, 1, classes=11, image_size=28)
    count = sum(p.numel() for p in network.parameters())
    work = multiply_adds(network, torch.zeros(1, 1, 28, 28), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert 1.0e6 < count < 1.5e6
    assert work < 110e6


@pytest.mark.parametrize(("size", "levels", "patch"), [(7, 1, 1), (12, 2, 1), (28, 2, 2), (32, 2, 2), (64, 3, 2)])
def test_small_networks_fit_the_picture(size, levels, patch):
    config = small_ncsnpp(size)
    assert (len(config.multipliers), config.patch) == (levels, patch)
    network = config.build(1, 1, image_size=size).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, size, size), torch.zeros(1)).shape == (1, 1, size, size)


def test_pictures_that_no_small_network_fits_are_refused():
    with pytest.raises(ConfigError, match="--image-size 48"):
        small_ncsnpp(50)


def test_pictures_that_cannot_be_halved_are_refused():
    with pytest.raises(ConfigError, match="multiple of 8"):
        ddpmpp_config(28).build(1, 1, image_size=28)
    with pytest.raises(ConfigError, match=r"patches of 4.*multiple of 8"):
        replace(TINY, patch=4).build(1, 1, image_size=28)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"multipliers": (), "attention": ()}, "multipliers is empty"),
        ({"multipliers": (1, 0)}, "multipliers must be at least 1"),
        ({"attention": (True,)}, "1 entries for 2 levels"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"channels": 2}, "too few for sinusoids"),
        ({"channels": 2, "embedding": "fourier"}, "0 groups do not divide 2 channels"),
        ({"channels": 36, "multipliers": (1, 3)}, "32 groups do not divide 216 channels.*multiples of 4"),
        ({"channels": 10}, "groups do not divide"),
        ({"groups": 3}, "3 groups do not divide"),
        ({"diffusers_groups": True}, "20 groups do not divide 32 channels"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
        ({"head_dim": 5}, "heads of 5 do not divide 16 channels"),
        ({"time_dim": 0}, "time_dim must be at least 1"),
        ({"patch": 0}, "patch must be at least 1"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"fourier_scale": -1.0}, "fourier_scale must be above 0"),
        ({"taps": ()}, "taps must sum to something"),
        ({"taps": (1.0, -1.0)}, "taps must sum to something.*1, 3, 3, 1"),
    ],
)
def test_architectures_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        replace(TINY, **changes)


def test_a_setting_that_is_misspelt_is_refused():
    with pytest.raises(ConfigError, match="progressive_input"):
        NCSNppConfig.from_dict({"progressive_inputs": "none"})
    with pytest.raises(ConfigError, match="progressive_output"):
        NCSNppConfig.from_dict({"progressive_output": "input_skip"})


def test_the_network_is_what_its_config_builds():
    assert isinstance(TINY.build(1, 1), NCSNpp)
    assert TINY.kind == "ncsnpp"
