"""Codecs in the format in which others publish them: `config.json` beside `diffusion_pytorch_model.safetensors`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.checkpoint import load_tensors
from ..core.errors import CheckpointError, ConfigError
from .codec import Codec, CodecConfig
from .published import WEIGHTS, attending, complete, multiples, read_config, refuse, translated

# The fields of diffusers' VQModel and AutoencoderKL (0.42.1) that may be absent from a config.json, and what they are
COMMON: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu",
    "sample_size": 32, "norm_num_groups": 32, "scaling_factor": 0.18215, "mid_block_add_attention": True,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "VQModel": COMMON | {
        "latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None, "norm_type": "group",
        "lookup_from_codebook": False, "force_upcast": False,
    },
    "AutoencoderKL": COMMON | {
        "latent_channels": 4, "shift_factor": None, "latents_mean": None, "latents_std": None, "force_upcast": True,
        "use_quant_conv": True, "use_post_quant_conv": True,
    },
}  # fmt: skip
ATTENTION = {
    "DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True,
    "UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True,
}  # fmt: skip
PARTS = {"before": "quant_conv", "after": "post_quant_conv"}
CODEBOOK = "quantize.embedding.weight"


def load_codec(directory: str | os.PathLike[str]) -> Codec:
    """The codec of a directory written by diffusers' `VQModel` or `AutoencoderKL` with `save_pretrained`.

    Numbers by which a diffusion model scales what it sees of the map between (`scaling_factor` and the like) are no
    part of it.

    Raises `ConfigError` for a field that has no counterpart here, `CheckpointError` for files that are missing or
    weights that do not fit the config exactly.
    """
    directory = Path(directory)
    codec = codec_from_config(read_config(directory))
    codec.load_state_dict(translated_codec(codec, load_tensors(directory / WEIGHTS)))
    return codec


def codec_from_config(values: Mapping[str, Any]) -> Codec:
    """A new codec of a `VQModel` or `AutoencoderKL` config. Raises `ConfigError` that names an unsupported field."""
    kind = values.get("_class_name")
    if kind not in DEFAULTS:
        raise ConfigError(f"config.json is of a {kind!r}, not of one of {', '.join(DEFAULTS)}")
    c = complete(values, DEFAULTS[kind], kind)
    refuse(c, act_fn=("silu", "swish"), out_channels=(c["in_channels"],))
    refuse(c, **({"norm_type": ("group",)} if kind == "VQModel" else {}))
    config = CodecConfig(
        channels=c["block_out_channels"][0],
        multipliers=multiples(c["block_out_channels"]),
        blocks=c["layers_per_block"],
        attention=attending(c, ATTENTION),
        middle_attention=c["mid_block_add_attention"],
        groups=c["norm_num_groups"],
    )
    return Codec(
        config,
        c["in_channels"],
        c["latent_channels"],
        moments=kind == "AutoencoderKL",
        codes=c.get("num_vq_embeddings", 0),
        width=c.get("vq_embed_dim"),
        before=c.get("use_quant_conv", True),
        after=c.get("use_post_quant_conv", True),
    )


def translated_codec(codec: Codec, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `codec` from one of VQModel or AutoencoderKL.

    Raises `CheckpointError` unless each of the two has exactly the tensors that the other needs, in the right shapes.
    """
    rest = dict(theirs)
    ours: dict[str, Tensor] = {}
    for part, network in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        mine = {name: rest.pop(name) for name in theirs if name.startswith(f"{part}.")}
        found = translated(network, {name.removeprefix(f"{part}."): tensor for name, tensor in mine.items()})
        ours |= {f"{part}.{name}": tensor for name, tensor in found.items()}
    for name, parameter in codec.state_dict().items():
        if name in ours:
            continue
        part, _, leaf = name.partition(".")
        source = f"{PARTS[part]}.{leaf}" if leaf else CODEBOOK
        if source not in rest:
            raise CheckpointError(f"the weights lack {source!r}, which config.json calls for")
        ours[name] = rest.pop(source)
        if ours[name].shape != parameter.shape:
            raise CheckpointError(f"{source!r} has the shape {tuple(ours[name].shape)}, not {tuple(parameter.shape)}")
    if rest:
        raise CheckpointError(f"the weights hold {min(rest)!r}, which config.json does not call for")
    return ours
