"""Weights published for diffusers' UNet2DModel load here, tensor for tensor, and give the same answers."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.core.errors import CheckpointError, ConfigError
from mezzotint.nn.ncsnpp import NCSNpp
from mezzotint.nn.published import load_unet, translated, unet_from_config
from mezzotint.nn.unet import UNet

TINY = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip

CONFIGS = {
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "attention_head_dim": None},
    "heads": {"attention_head_dim": 4},
    "class conditional": {"num_class_embeds": 11, "in_channels": 1, "out_channels": 1},
    "scale and shift, middle without norm": {"resnet_time_scale_shift": "scale_shift", "attention_head_dim": 8},
    "adm": {
        "norm_eps": 1e-6,
        "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (8, 16, 16),
        "attn_norm_num_groups": 8, "num_class_embeds": 5, "attention_head_dim": 8, "out_channels": 6,
    },
    "adm, heads of 64": {
        "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "block_out_channels": (64, 128),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "norm_num_groups": 32,
        "attn_norm_num_groups": 32, "num_class_embeds": 1000, "attention_head_dim": 64, "layers_per_block": 2,
    },
    "three levels, two blocks": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), "layers_per_block": 2,
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "block_out_channels": (8, 16, 24),
    },
    "no attention in the middle": {"add_attention": False, "center_input_sample": True, "time_embedding_dim": 20},
    "no middle": {"mid_block_type": None, "freq_shift": 1},
    "scaled middle": {"mid_block_scale_factor": 2**0.5},
}  # fmt: skip


# NCSN++: every width is a multiple of 32, because diffusers' attention has 32 groups
NARROW = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64), "layers_per_block": 1,
    "time_embedding_type": "fourier", "mid_block_scale_factor": math.sqrt(2), "norm_eps": 1e-6,
    "norm_num_groups": 32, "attention_head_dim": None,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}  # fmt: skip

SKIP_CONFIGS = {
    "ncsn++": {},
    "ncsn++, groups by width": {"norm_num_groups": None, "center_input_sample": True},
    "ncsn++, heads": {"attention_head_dim": 16, "attn_norm_num_groups": 32, "dropout": 0.1},
    "ncsn++, class conditional": {"num_class_embeds": 5, "time_embedding_dim": 48},
    "ncsn++, positional": {"time_embedding_type": "positional", "flip_sin_to_cos": False, "freq_shift": 1},
    "ncsn++, three levels": {
        "block_out_channels": (32, 32, 64), "layers_per_block": 2,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
}  # fmt: skip

EVERY = {**CONFIGS, **{name: {**NARROW, **fields} for name, fields in SKIP_CONFIGS.items()}}

# What three published config.json say, and how many numbers their weights hold: Ho et al.'s network for CIFAR-10
# (35.7 M, their appendix B), the consistency models' ADM for ImageNet 64, and NCSN++ for 256 pixels, counted by others.
ATTENTION = ["AttnDownBlock2D"] * 3
PUBLISHED = {
    "google/ddpm-cifar10-32": ({
        "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2, "norm_eps": 1e-6, "downsample_padding": 0,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1,
    }, 35_746_307),
    "openai/diffusers-cd_imagenet64_l2": ({
        "block_out_channels": [192, 384, 576, 768], "layers_per_block": 3, "attention_head_dim": 64,
        "down_block_types": ["ResnetDownsampleBlock2D", *ATTENTION], "num_class_embeds": 1000,
        "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"], "attn_norm_num_groups": 32,
        "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift",
    }, 295_899_267),
    "google/ncsnpp-celebahq-256": ({
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256], "layers_per_block": 2, "norm_eps": 1e-6,
        "down_block_types": ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
        "up_block_types": ["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4,
        "attention_head_dim": None, "norm_num_groups": None, "center_input_sample": True,
        "mid_block_scale_factor": 1.41421356237, "time_embedding_type": "fourier",
    }, 65_574_549),
}  # fmt: skip


@pytest.fixture
def published(diffusers, tmp_path):
    """A function that writes a UNet2DModel with random weights, returning it and its directory."""

    def write(**fields):
        theirs = diffusers.UNet2DModel(**{**TINY, **fields}).eval()
        for parameter in theirs.parameters():
            if parameter.requires_grad:  # the frequencies of Fourier features stay as they are drawn
                torch.nn.init.normal_(parameter, std=0.3)
        theirs.save_pretrained(tmp_path)
        return theirs, tmp_path

    return write


@pytest.mark.oracles
@pytest.mark.parametrize("name", EVERY)
def test_published_weights_load_and_agree(published, truth, name):
    theirs, directory = published(**EVERY[name])
    ours = load_unet(directory).eval()
    assert isinstance(ours, NCSNpp if name in SKIP_CONFIGS else UNet)
    t = torch.tensor([0.02, 1.3, 90.0]) if name in SKIP_CONFIGS else torch.tensor([0, 500, 999])
    labels = torch.tensor([0, 2, 4]) if ours.label else None
    system = "NCSN++" if name in SKIP_CONFIGS else "UNet"
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 3e-14)):
        theirs, ours, worst = theirs.to(dtype), ours.to(dtype), 0.0
        for size in (12, 16):
            x = torch.randn(3, ours.conv_in.in_channels, size, size, dtype=dtype)
            with torch.no_grad():
                expected = theirs(x, t.to(dtype), labels).sample
                differences = (ours(x, t.to(dtype), labels) - expected).abs().amax((1, 2, 3))
            errors = differences / expected.abs().amax((1, 2, 3))  # of each picture: sigmas differ by a factor of 4500
            worst = max(worst, errors.max().item())
        what = f"output, {name}, 12 and 16 px, {str(dtype)[6:]}, relative to its largest"
        truth(system, what, "diffusers 0.42.1 UNet2DModel", worst, tolerance)


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["ddpm", "class conditional", "adm", "scaled middle", *SKIP_CONFIGS])
def test_gradients_agree(published, truth, name):
    """Of a random projection of the answer, for the picture and for every weight."""
    theirs, directory = published(**EVERY[name])
    theirs, ours = theirs.double(), load_unet(directory).double().eval()
    x, y = (torch.randn(2, ours.conv_in.in_channels, 8, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y.data.copy_(x.data)
    t, labels = torch.tensor([3.0, 41.0], dtype=torch.float64), torch.tensor([0, 4]) if ours.label else None
    answers = theirs(x, t, labels).sample, ours(y, t, labels)
    weight = torch.randn_like(answers[0])
    for answer in answers:
        (answer * weight).sum().backward()
    gradients = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in theirs.named_parameters()}
    expected = translated(ours, gradients)  # laid out as ours are
    errors = [(y.grad - x.grad).norm() / x.grad.norm()]
    for key, parameter in ours.named_parameters():
        scale = expected[key].norm().clamp(min=1e-2 * x.grad.norm())  # that of a bias before a normalisation is zero
        errors.append((parameter.grad - expected[key]).norm() / scale)
    system = "NCSN++" if name in SKIP_CONFIGS else "UNet"
    truth(system, f"gradients, {name}, float64, relative", "diffusers 0.42.1 UNet2DModel", max(errors), 1e-13)


@pytest.mark.oracles
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_tensors_of_their_files(diffusers, name):
    """In full size, without numbers: each of their tensors has its place here, in the same shape."""
    values, count = PUBLISHED[name]
    with torch.device("meta"):
        theirs, ours = diffusers.UNet2DModel(**values), unet_from_config(values)
    assert translated(ours, theirs.state_dict()).keys() == ours.state_dict().keys()
    assert sum(tensor.numel() for tensor in ours.state_dict().values()) == count


@pytest.mark.oracles
def test_diffusers_counts_groups_otherwise_below_128_channels(published):
    """Song et al.: min(width // 4, 32) everywhere. diffusers 0.42.1: 32 in attention, min(in + skip // 4, 32) in the
    blocks up before attention, a misplaced bracket, and norm_num_groups in the middle and at the end. At 128 channels
    and more they agree; below, the same weights give another answer.
    """
    theirs, directory = published(**NARROW)
    ours = load_unet(directory).eval()
    up = theirs.up_blocks[0]
    assert [(b.norm1.num_channels, b.norm1.num_groups) for b in up.resnets] == [(64 + 64, 32), (64 + 32, 32)]
    assert up.attentions[0].group_norm.num_groups == 32
    as_in_the_paper = NCSNpp(replace(ours.config, groups=None, diffusers_groups=False), 3, 3).eval()
    as_in_the_paper.load_state_dict(ours.state_dict())
    assert [b.norm1.num_groups for b in as_in_the_paper.up[0].blocks] == [(64 + 64) // 4, (64 + 32) // 4]
    assert as_in_the_paper.up[0].attentions[-1].norm.num_groups == 64 // 4
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([1.0])
    with torch.no_grad():
        expected = theirs(x, t).sample
        assert (ours(x, t) - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (as_in_the_paper(x, t) - expected).abs().max() > 1e-2 * expected.abs().max()
    with torch.device("meta"):
        wide = unet_from_config(PUBLISHED["google/ncsnpp-celebahq-256"][0])
        paper = NCSNpp(replace(wide.config, diffusers_groups=False), 3, 3)
    groups = [[m.num_groups for m in n.modules() if isinstance(m, torch.nn.GroupNorm)] for n in (wide, paper)]
    assert groups[0] == groups[1]


@pytest.mark.oracles
def test_diffusers_pyramids_are_of_three_channels_whatever_the_picture_has(published):
    """skip_conv has 3 channels there, so that no other picture passes; here it has as many as the picture."""
    theirs, directory = published(**{**NARROW, "in_channels": 1, "out_channels": 1})
    with pytest.raises(RuntimeError, match="channels"):
        theirs(torch.zeros(1, 1, 16, 16), torch.tensor([1.0]))
    with pytest.raises(ConfigError, match="in_channels=1 is not supported; only 3"):
        load_unet(directory)
    ours = NCSNpp(unet_from_config(NARROW).config, 1, 1)
    assert ours(torch.zeros(1, 1, 16, 16), torch.tensor([1.0])).shape == (1, 1, 16, 16)


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["adm", "ncsn++"])
def test_every_number_of_the_file_is_used(published, name):
    theirs, directory = published(**EVERY[name])
    ours = load_unet(directory)
    assert sum(p.numel() for p in ours.state_dict().values()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["ddpm", "ncsn++"])
def test_old_attention_names_load(published, name):
    theirs, directory = published(**EVERY[name])
    file = directory / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, before in old.items():
        weights = {name.replace(f".{new}.", f".{before}."): tensor for name, tensor in weights.items()}
    assert any(".query." in name for name in weights)
    save_file(weights, file)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([10])
    torch.testing.assert_close(load_unet(directory).eval()(x, t), theirs(x, t).sample)


@pytest.mark.oracles
def test_missing_extra_and_misshapen_weights_are_refused(published):
    _, directory = published()
    file = directory / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for change, complaint in (
        ({"conv_in.weight": None}, "lack 'conv_in.weight'"),
        ({"surplus.weight": torch.ones(1)}, "hold 'surplus.weight'"),
        ({"conv_in.weight": torch.ones(8, 1, 3, 3)}, "shape"),
    ):
        save_file({name: w for name, w in {**weights, **change}.items() if w is not None}, file)
        with pytest.raises(CheckpointError, match=complaint):
            load_unet(directory)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_embedding_type", "fourier"),
        ("time_embedding_type", "learned"),
        ("norm_num_groups", None),
        ("class_embed_type", "timestep"),
        ("act_fn", "gelu"),
        ("down_block_types", ("SkipDownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", ("UpBlock2D", "UpBlock2D")),
        ("downsample_type", "fir"),
        ("block_out_channels", (8, 12)),
        ("no_such_field", 1),
    ],
)
def test_what_is_not_supported_is_named(field, value):
    config = {**TINY, "downsample_type": "conv", **{field: value}}
    if field == "downsample_type":
        config["down_block_types"] = ("AttnDownBlock2D", "AttnDownBlock2D")
        config["up_block_types"] = ("AttnUpBlock2D", "AttnUpBlock2D")
    with pytest.raises(ConfigError, match=field):
        unet_from_config(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_embedding_type", "learned"),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 1),
        ("add_attention", False),
        ("act_fn", "gelu"),
        ("resnet_time_scale_shift", "scale_shift"),
        ("attn_norm_num_groups", 16),
        ("in_channels", 6),
        ("out_channels", 1),
        ("up_block_types", ("AttnUpBlock2D", "SkipUpBlock2D")),
        ("up_block_types", ("SkipUpBlock2D", "SkipUpBlock2D")),
        ("block_out_channels", (32, 48)),
    ],
)
def test_what_is_not_supported_of_ncsnpp_is_named(field, value):
    with pytest.raises(ConfigError, match=field):
        unet_from_config({**NARROW, field: value})


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_unet(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()})
    )
    with pytest.raises(CheckpointError):
        load_unet(tmp_path)
