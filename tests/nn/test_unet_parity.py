"""Weights published for diffusers' UNet2DModel load here, tensor for tensor, and give the same answers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.core.errors import CheckpointError, ConfigError
from mezzotint.nn.published import load_unet, unet_from_config

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
    "three levels, two blocks": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), "layers_per_block": 2,
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "block_out_channels": (8, 16, 24),
    },
    "no attention in the middle": {"add_attention": False, "center_input_sample": True, "time_embedding_dim": 20},
    "no middle": {"mid_block_type": None, "freq_shift": 1},
    "scaled middle": {"mid_block_scale_factor": 2**0.5},
}  # fmt: skip


@pytest.fixture
def published(diffusers, tmp_path):
    """A function that writes a UNet2DModel with random weights, returning it and its directory."""

    def write(**fields):
        theirs = diffusers.UNet2DModel(**{**TINY, **fields}).eval()
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        theirs.save_pretrained(tmp_path)
        return theirs, tmp_path

    return write


@pytest.mark.oracles
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [12, 16])
def test_published_weights_load_and_agree(published, truth, name, size):
    theirs, directory = published(**CONFIGS[name])
    ours = load_unet(directory).eval()
    x, t = torch.randn(3, ours.conv_in.in_channels, size, size), torch.tensor([0, 500, 999])
    labels = torch.tensor([0, 2, 4]) if ours.label else None
    with torch.no_grad():
        expected = theirs(x, t, labels).sample
        error = (ours(x, t, labels) - expected).abs().max() / expected.abs().max()
    truth("UNet", f"output, {name}, {size} px, relative to its largest", "diffusers 0.42.1 UNet2DModel", error, 1e-5)


@pytest.mark.oracles
def test_every_number_of_the_file_is_used(published):
    theirs, directory = published(**CONFIGS["adm"])
    ours = load_unet(directory)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.oracles
def test_old_attention_names_load(published):
    theirs, directory = published()
    file = directory / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, before in old.items():
        weights = {name.replace(f".{new}.", f".{before}."): tensor for name, tensor in weights.items()}
    assert any(".query." in name for name in weights)
    save_file(weights, file)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([10])
    torch.testing.assert_close(load_unet(directory)(x, t), theirs(x, t).sample)


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


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_unet(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()})
    )
    with pytest.raises(CheckpointError):
        load_unet(tmp_path)
