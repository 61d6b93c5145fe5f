"""Networks in the format in which others publish them: `config.json` beside `diffusion_pytorch_model.safetensors`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checkpoint import load_tensors
from ..core.errors import CheckpointError, ConfigError
from .attention import Attention
from .blocks import ResBlock
from .ncsnpp import BigGANBlock, NCSNpp, NCSNppConfig
from .resampling import SMOOTH
from .unet import UNet, UNetConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"

# The fields of diffusers' UNet2DModel (0.42.1) that may be absent from a config.json, and what they then are.
DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "num_train_timesteps": None,
}  # fmt: skip

# What each block type says: has it attention, and who changes the resolution (None: the model's *_type field says).
BLOCK_TYPES = {
    "DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, "resnet"),
    "UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "resnet"),
}  # fmt: skip

# NCSN++'s, which all have two pyramids, FIR filters and residual sums divided by the square root of two.
SKIP_BLOCK_TYPES = {
    "SkipDownBlock2D": False, "AttnSkipDownBlock2D": True, "SkipUpBlock2D": False, "AttnSkipUpBlock2D": True,
}  # fmt: skip


def load_unet(directory: str | os.PathLike[str]) -> UNet | NCSNpp:
    """The network of a directory written by diffusers' `UNet2DModel.save_pretrained`.

    With the block types of NCSN++ it is an `NCSNpp`: its time is the noise level sigma, and its answer the score of
    the VE path.

    Raises `ConfigError` for a field that has no counterpart here, `CheckpointError` for files that are missing or
    weights that do not fit the config exactly.
    """
    directory = Path(directory)
    unet = unet_from_config(read_config(directory))
    unet.load_state_dict(translated(unet, load_tensors(directory / WEIGHTS)))
    return unet


def unet_from_config(values: Mapping[str, Any]) -> UNet | NCSNpp:
    """A new network of a `UNet2DModel` config. Raises `ConfigError` that names an unsupported field."""
    c = complete(values, DEFAULTS, "UNet2DModel")
    skips = any(kind in SKIP_BLOCK_TYPES for kind in (*c["down_block_types"], *c["up_block_types"]))
    return _ncsnpp(c) if skips else _unet(c)


def _ncsnpp(c: Mapping[str, Any]) -> NCSNpp:
    attention = attending(c, SKIP_BLOCK_TYPES)
    refuse(
        c,
        time_embedding_type=("fourier", "positional"),
        mid_block_type=("UNetMidBlock2D",),
        act_fn=("silu", "swish"),
        class_embed_type=(None,),
        resnet_time_scale_shift=("default",),
        attn_norm_num_groups=(None, c["norm_num_groups"]),
        add_attention=(True,),
        in_channels=(3,),  # their pyramids are of three channels, whatever the picture has
        out_channels=(3,),
    )
    if not math.isclose(c["mid_block_scale_factor"], math.sqrt(2), rel_tol=1e-6):
        raise ConfigError(f"mid_block_scale_factor={c['mid_block_scale_factor']} is not supported; only sqrt(2)")
    fourier = c["time_embedding_type"] == "fourier"
    config = NCSNppConfig(
        channels=c["block_out_channels"][0],
        multipliers=multiples(c["block_out_channels"]),
        blocks=c["layers_per_block"],
        attention=attention,
        head_dim=c["attention_head_dim"],
        eps=c["norm_eps"],
        dropout=c["dropout"],
        taps=SMOOTH,
        progressive_input="input_skip",
        progressive_output="output_skip",
        embedding="fourier" if fourier else "positional",
        cosine_first=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        time_dim=c["time_embedding_dim"],
        scale_by_sigma=fourier,
        center_input=c["center_input_sample"],
        groups=c["norm_num_groups"],
        diffusers_groups=True,
    )
    return NCSNpp(config, c["in_channels"], c["out_channels"], classes=c["num_class_embeds"] or 0)


def _unet(c: Mapping[str, Any]) -> UNet:
    refuse(
        c,
        time_embedding_type=("positional",),
        mid_block_type=("UNetMidBlock2D", None),
        act_fn=("silu", "swish"),
        class_embed_type=(None,),
        resnet_time_scale_shift=("default", "scale_shift"),
        downsample_padding=(0, 1),
    )
    if c["norm_num_groups"] is None:
        raise ConfigError("norm_num_groups=None is not supported without the block types of NCSN++; give a number")
    shifted = c["resnet_time_scale_shift"] == "default"
    config = UNetConfig(
        channels=c["block_out_channels"][0],
        multipliers=multiples(c["block_out_channels"]),
        blocks=c["layers_per_block"],
        attention=attending(c, {kind: has for kind, (has, _) in BLOCK_TYPES.items()}),
        head_dim=c["attention_head_dim"],
        groups=c["norm_num_groups"],
        eps=c["norm_eps"],
        dropout=c["dropout"],
        time_norm="shift" if shifted else "scale_shift",
        resample=_resample(c),
        down_padding=c["downsample_padding"],
        middle=c["mid_block_type"] is not None,
        middle_attention=c["add_attention"],
        # UNet2DModel normalises before the middle's attention only if told how, or if time enters by addition
        middle_groups=c["attn_norm_num_groups"] or (c["norm_num_groups"] if shifted else 0),
        middle_scale=c["mid_block_scale_factor"],
        time_dim=c["time_embedding_dim"],
        cosine_first=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        center_input=c["center_input_sample"],
    )
    return UNet(config, c["in_channels"], c["out_channels"], classes=c["num_class_embeds"] or 0)


def read_config(directory: Path) -> dict[str, Any]:
    """What its config.json says. Raises `CheckpointError` where there is none, or it is no JSON object."""
    file = directory / "config.json"
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} cannot be read (it holds no fields, but a {type(values).__name__})")
    return values


def complete(values: Mapping[str, Any], defaults: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of a config.json, and those that may be absent. Raises `ConfigError` for one that this kind lacks."""
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    for key in given:
        if key not in defaults:
            raise ConfigError(f"config.json has a field {key!r} that is no field of a {kind}")
    return {**defaults, **given}


def refuse(c: Mapping[str, Any], **supported: tuple[Any, ...]) -> None:
    """Raises `ConfigError` for a field of a config.json whose value is none of those supported."""
    for key, values in supported.items():
        if c[key] not in values:
            raise ConfigError(f"{key}={c[key]!r} is not supported; only {', '.join(map(repr, values))}")


def translated(network: nn.Module, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a UNet, or of an encoder or decoder of a codec, from that of its counterpart in diffusers.

    Raises `CheckpointError` unless each of the two has exactly the tensors that the other needs, in the right shapes.
    """
    theirs = {_modern(name): tensor for name, tensor in theirs.items()}
    used, ours = set(), {}
    parents = dict(_modules(network))
    for name, parameter in network.state_dict().items():
        module, _, leaf = name.rpartition(".")
        sources = [f"{source}.{leaf}" for source in parents[module]]
        if missing := [source for source in sources if source not in theirs]:
            raise CheckpointError(f"the weights lack {missing[0]!r}, which config.json calls for")
        ours[name] = torch.cat([theirs[source] for source in sources])
        used.update(sources)
        if ours[name].shape != parameter.shape:
            raise CheckpointError(
                f"{sources[0]!r} has the shape {tuple(ours[name].shape)}, not {tuple(parameter.shape)}"
            )
    if extra := sorted(set(theirs) - used):
        raise CheckpointError(f"the weights hold {extra[0]!r}, which config.json does not call for")
    return ours


def multiples(widths: list[int]) -> tuple[int, ...]:
    """Each width in units of the first. Raises `ConfigError` where one is no multiple of it."""
    if any(width % widths[0] for width in widths):
        raise ConfigError(f"block_out_channels={widths} is not supported: each must be a multiple of the first")
    return tuple(width // widths[0] for width in widths)


def attending(c: Mapping[str, Any], block_types: Mapping[str, bool]) -> tuple[bool, ...]:
    """Which levels attend. `block_types` says it of each kind of block that may be in one network.

    Raises `ConfigError` for another kind, and where the way up differs from the way down.
    """
    ways = {}
    for field in ("down_block_types", "up_block_types"):
        if unknown := [kind for kind in c[field] if kind not in block_types]:
            raise ConfigError(f"{field}: {unknown[0]!r} is not supported; only {', '.join(block_types)}")
        ways[field] = tuple(block_types[kind] for kind in c[field])
    if ways["down_block_types"] != ways["up_block_types"][::-1]:
        raise ConfigError("up_block_types is not supported unless it has attention where down_block_types has it")
    return ways["down_block_types"]


def _resample(c: Mapping[str, Any]) -> Any:
    """The one way in which all levels change their resolution; the last block of each way changes none."""
    kinds = {BLOCK_TYPES[kind][1] or c["downsample_type"] for kind in c["down_block_types"][:-1]}
    kinds |= {BLOCK_TYPES[kind][1] or c["upsample_type"] for kind in c["up_block_types"][:-1]}
    if len(kinds) > 1 or not kinds <= {"conv", "resnet"}:
        raise ConfigError(
            f"down_block_types, up_block_types, downsample_type and upsample_type are not supported together: {kinds}"
        )
    return kinds.pop() if kinds else "conv"


def _modern(name: str) -> str:
    """Names of attention layers before diffusers 0.15."""
    old = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    for before, after in old.items():
        name = name.replace(before, after) if ".attentions." in name else name
    return name


def _modules(network: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Each module of ours that holds tensors, with those of theirs whose rows it stacks."""
    yield "conv_in", ["conv_in"]
    yield "conv_out", ["conv_out"]
    yield "norm_out", ["conv_norm_out"]
    yield "label", ["class_embedding"]
    yield "time.waves", ["time_proj"]
    yield "time.linear1", ["time_embedding.linear_1"]
    yield "time.linear2", ["time_embedding.linear_2"]
    projections = []
    for name, module in network.named_modules():
        there = _path(name, isinstance(network, NCSNpp))
        if isinstance(module, (ResBlock, BigGANBlock)):
            projections.append(f"{there}.time_emb_proj")
            for part in ("norm1", "conv1", "norm2", "conv2"):
                yield f"{name}.{part}", [f"{there}.{part}"]
            yield f"{name}.shortcut", [f"{there}.conv_shortcut"]
        elif isinstance(module, Attention):
            yield f"{name}.norm", [f"{there}.group_norm"]
            yield f"{name}.qkv", [f"{there}.to_{part}" for part in "qkv"]
            yield f"{name}.out", [f"{there}.to_out.0"]
        elif name.endswith("resample.conv"):
            yield name, [there]
        elif name.endswith(("pyramid.conv", "pyramid.norm")):
            yield name, [there.replace("pyramid.", "skip_")]
    yield "time_projection", projections


def _path(name: str, skips: bool) -> str:
    """`down.0.blocks.1` -> `down_blocks.0.resnets.1`."""
    way = name.split(".")[0]
    change = f"resnet_{way}" if skips else "downsamplers.0" if way == "down" else "upsamplers.0"
    names = {"down": "down_blocks", "up": "up_blocks", "middle": "mid_block", "blocks": "resnets", "resample": change}
    there = ".".join(names.get(part, part) for part in name.split("."))
    if skips and way == "up" and ".attentions." in there:  # their one attention of a level stands behind all its blocks
        return f"{there.rpartition('.')[0]}.0"
    return there
