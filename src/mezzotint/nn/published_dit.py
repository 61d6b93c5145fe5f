"""DiTs in the format in which others publish them: `config.json` beside `diffusion_pytorch_model.safetensors`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.checkpoint import load_tensors
from ..core.errors import CheckpointError, ConfigError
from .dit import DiT, DiTConfig
from .published import WEIGHTS, complete, read_config

# The fields of diffusers' DiTTransformer2DModel (0.42.1) that may be absent from a config.json, and what they then are.
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
    "dropout": 0.0, "norm_num_groups": 32, "attention_bias": True, "sample_size": 32, "patch_size": 2,
    "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "upcast_attention": False,
    "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": 1e-5,
}  # fmt: skip

# DiTs of before diffusers 0.29 are Transformer2DModels, whose config.json says also what they do without.
OLDER: dict[str, Any] = {
    "cross_attention_dim": None, "num_vector_embeds": None, "use_linear_projection": False,
    "only_cross_attention": False, "double_self_attention": False, "attention_type": "default",
    "caption_channels": None, "interpolation_scale": None, "use_additional_conditions": None,
}  # fmt: skip

SUPPORTED: dict[str, Any] = {
    "dropout": 0.0, "attention_bias": True, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero",
    "upcast_attention": False, "norm_elementwise_affine": False,
}  # fmt: skip

EMBEDDERS = "norm1.emb."  # of the time and the class, in every block of theirs


def load_dit(directory: str | os.PathLike[str], *, freq_shift: float = 0.0) -> DiT:
    """The DiT of a directory written by diffusers' `DiTTransformer2DModel.save_pretrained`.

    freq_shift  0: the frequencies of the paper's networks, 10000^(-k/128), with which the published weights were
                trained; 1: those of diffusers 0.42.1, 10000^(-k/127), for weights that were trained there

    Raises `ConfigError` for a field that has no counterpart here, `CheckpointError` for files that are missing or
    weights that do not fit the config exactly.
    """
    directory = Path(directory)
    dit = dit_from_config(read_config(directory), freq_shift=freq_shift)
    dit.load_state_dict(translated(dit, load_tensors(directory / WEIGHTS)))
    return dit


def dit_from_config(values: Mapping[str, Any], *, freq_shift: float = 0.0) -> DiT:
    """A new DiT of a `DiTTransformer2DModel` config. Raises `ConfigError` that names an unsupported field."""
    c = complete(values, DEFAULTS | OLDER, "DiTTransformer2DModel")
    for key, supported in {**OLDER, **SUPPORTED}.items():
        if c[key] != supported:
            raise ConfigError(f"{key}={c[key]!r} is not supported; only {supported!r}")
    if c["num_embeds_ada_norm"] is None:
        raise ConfigError("num_embeds_ada_norm is missing: a DiT knows how many classes there are")
    config = DiTConfig(
        depth=c["num_layers"],
        width=c["num_attention_heads"] * c["attention_head_dim"],
        heads=c["num_attention_heads"],
        patch=c["patch_size"],
        mlp_eps=c["norm_eps"],  # their other normalisations have 1e-6, whatever the config says
        freq_shift=freq_shift,
    )
    outputs = c["in_channels"] if c["out_channels"] is None else c["out_channels"]
    return config.build(c["in_channels"], outputs, c["num_embeds_ada_norm"] + 1, c["sample_size"])


def translated(dit: DiT, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `dit` from one of DiTTransformer2DModel.

    Theirs holds the embedders of time and class once for every block; a DiT has one.

    Raises `CheckpointError` unless these are all the same, and each of the two state dicts has exactly the tensors that
    the other needs, in the right shapes.
    """
    theirs = _with_one_embedder(theirs, dit.config.depth)
    used, ours = set(), {}
    for name, parameter in dit.state_dict().items():
        module, _, leaf = name.rpartition(".")
        sources = [f"{source}.{leaf}" for source in _sources(dit, module)]
        if missing := [source for source in sources if source not in theirs]:
            raise CheckpointError(f"the weights lack {missing[0]!r}, which config.json calls for")
        used.update(sources)
        stacked = torch.cat([theirs[source] for source in sources])
        # a convolution whose stride is its size is a matrix product: its kernel is flattened
        ours[name] = stacked.flatten(1) if name == "patch.weight" else stacked
        if ours[name].shape != parameter.shape:
            raise CheckpointError(f"{sources[0]!r} has the shape {tuple(stacked.shape)}, not that of {name}")
    if extra := sorted(set(theirs) - used):
        raise CheckpointError(f"the weights hold {extra[0]!r}, which config.json does not call for")
    return ours


def _with_one_embedder(theirs: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    first = f"transformer_blocks.0.{EMBEDDERS}"
    kept = dict(theirs)
    for name in [name for name in theirs if name.startswith(first)]:
        for i in range(1, depth):
            copy = f"transformer_blocks.{i}.{EMBEDDERS}{name.removeprefix(first)}"
            if copy not in kept:
                raise CheckpointError(f"the weights lack {copy!r}, which config.json calls for")
            if not torch.equal(kept.pop(copy), theirs[name]):
                raise CheckpointError(
                    f"{copy!r} is not {name!r}: a DiT has one embedding of time and class, and this is a network with"
                    " one for every block, which is not supported"
                )
    return kept


def _sources(dit: DiT, module: str) -> list[str]:
    """The modules of theirs whose rows a module of ours stacks."""
    first = "transformer_blocks.0.norm1.emb"
    blocks = [f"transformer_blocks.{i}" for i in range(dit.config.depth)]
    names = {
        "patch": ["pos_embed.proj"],
        "time.linear1": [f"{first}.timestep_embedder.linear_1"],
        "time.linear2": [f"{first}.timestep_embedder.linear_2"],
        "label": [f"{first}.class_embedder.embedding_table"],
        "modulation": [*(f"{block}.norm1.linear" for block in blocks), "proj_out_1"],
        "last": ["proj_out_2"],
    }
    if module in names:
        return names[module]
    _, i, part = module.split(".")
    parts = {
        "qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"], "out": ["attn1.to_out.0"],
        "linear1": ["ff.net.0.proj"], "linear2": ["ff.net.2"],
    }  # fmt: skip
    return [f"{blocks[int(i)]}.{source}" for source in parts[part]]
