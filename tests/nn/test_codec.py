"""Weights published for diffusers' VQModel and AutoencoderKL load here, tensor for tensor, with the same answers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.core.errors import CheckpointError, ConfigError
from mezzotint.nn.codec import Codec, CodecConfig
from mezzotint.nn.published import WEIGHTS
from mezzotint.nn.published_codec import codec_from_config, load_codec
from mezzotint.vae.quantiser import CodebookConfig, VectorQuantiser, nearest

TINY = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip

CONFIGS = {
    "AutoencoderKL": {
        "plain": {},
        "grey, three levels, two blocks": {
            "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16, 16), "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        },
        "without 1x1 convolutions or attention": {
            "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False,
        },
    },
    "VQModel": {
        "plain": {"num_vq_embeddings": 9},
        "attention, narrow codes": {
            "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), "num_vq_embeddings": 9,
            "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), "vq_embed_dim": 2,
        },
    },
}  # fmt: skip


@pytest.fixture
def published(diffusers, tmp_path):
    """A directory as diffusers writes it, and the model that it is of, with weights that all matter."""

    def write(kind, **fields):
        theirs = getattr(diffusers, kind)(**{**TINY, **fields}).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        theirs.save_pretrained(tmp_path)
        return tmp_path, theirs

    return write


# Beside diffusers ----------------------------------------------------------------------------------------------------


@pytest.mark.oracles
@pytest.mark.parametrize("name", CONFIGS["AutoencoderKL"])
def test_published_codecs_with_moments_give_the_same_answers(published, name, truth):
    directory, theirs = published("AutoencoderKL", **CONFIGS["AutoencoderKL"][name])
    ours = load_codec(directory).eval()
    x = torch.randn(2, theirs.config.in_channels, 16, 24)
    with torch.no_grad():
        moments, posterior = ours.encode(x), theirs.encode(x).latent_dist
        z = posterior.mean
        errors = {
            "means and log-variances": (moments - posterior.parameters).abs().max() / posterior.parameters.abs().max(),
            "pictures": (ours.decode(z) - theirs.decode(z).sample).abs().max() / theirs.decode(z).sample.abs().max(),
        }
    for what, error in errors.items():
        truth(
            "codec",
            f"{what}, {name}, relative",
            "diffusers 0.42.1 AutoencoderKL",
            error,
            3e-6 if what == "pictures" else 1.5e-6,
        )


@pytest.mark.oracles
@pytest.mark.parametrize("name", CONFIGS["VQModel"])
def test_published_codecs_with_a_codebook_give_the_same_answers(published, name, truth):
    directory, theirs = published("VQModel", **CONFIGS["VQModel"][name])
    ours = load_codec(directory).eval()
    x = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        z, expected = ours.encode(x), theirs.encode(x).latents
        codes = nearest(z.permute(0, 2, 3, 1).flatten(0, 2), ours.codebook)
        quantised = ours.codebook[codes].unflatten(0, (2, 8, 12)).permute(0, 3, 1, 2)
        pictures = theirs(x).sample
        errors = {
            "vectors": (z - expected).abs().max() / expected.abs().max(),
            "pictures": (ours.decode(quantised) - pictures).abs().max() / pictures.abs().max(),
        }
        assert torch.equal(codes, theirs.quantize(expected)[2][2])
    assert len(codes.unique()) > 1
    for what, error in errors.items():
        truth(
            "codec",
            f"{what}, {name}, relative",
            "diffusers 0.42.1 VQModel",
            error,
            5e-6 if what == "pictures" else 2e-6,
        )


@pytest.mark.oracles
def test_gradients_are_those_of_diffusers(published, truth):
    directory, theirs = published("AutoencoderKL")
    ours, theirs, x = load_codec(directory).double(), theirs.double(), torch.randn(2, 3, 16, 16).double()
    for model in (ours, theirs):
        moments = model.encode(x) if model is ours else model.encode(x).latent_dist.parameters
        z = moments.chunk(2, 1)[0]
        (model.decode(z) if model is ours else model.decode(z).sample).square().sum().backward()
    pairs = [(ours.encoder.conv_in, theirs.encoder.conv_in), (ours.decoder.conv_in, theirs.decoder.conv_in)]
    error = max((a.weight.grad - b.weight.grad).abs().max() / b.weight.grad.abs().max() for a, b in pairs)
    truth("codec", "gradients, float64, relative", "diffusers 0.42.1 AutoencoderKL", error, 3e-14)


PUBLISHED = {  # fields of their config.json
    "stable diffusion 1": ("AutoencoderKL", {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }),
    "vq-f4": ("VQModel", {
        "block_out_channels": (128, 256, 512), "layers_per_block": 2, "num_vq_embeddings": 8192,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    }),
}  # fmt: skip


@pytest.mark.oracles
@pytest.mark.parametrize("name", PUBLISHED)
def test_large_codecs_have_as_many_parameters_as_those_of_diffusers(diffusers, name):
    kind, fields = PUBLISHED[name]
    with torch.device("meta"):
        ours, theirs = codec_from_config({"_class_name": kind, **fields}), getattr(diffusers, kind)(**fields)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert name != "stable diffusion 1" or counts[0] == 83_653_863


@pytest.mark.oracles
def test_diffusers_weighs_the_wrong_term_by_beta(diffusers, truth):
    """VQModel's quantiser has |sg[z_q] - z_e|^2 + beta |z_q - sg[z_e]|^2, where eq. 3 of van den Oord et al. 2017 has
    beta with the first: the term that moves the encoder. `legacy=False`, which VQModel does not set, is eq. 3.
    """
    from diffusers.models.autoencoders.vae import VectorQuantizer

    used = diffusers.VQModel(**{**TINY, "num_vq_embeddings": 9}).quantize
    assert used.legacy is True
    beta, z = 0.25, torch.randn(2, 3, 4, 4).double()
    ours = VectorQuantiser(
        CodebookConfig(9, 3, beta, positions="mean", update="gradient", kmeans=0, revive_below=0)
    ).double()
    gradients = {}
    for legacy in (True, False):
        theirs = VectorQuantizer(9, 3, beta=beta, legacy=legacy).double()
        with torch.no_grad():
            theirs.embedding.weight.copy_(ours.codebook)
        x = z.clone().requires_grad_()
        theirs(x)[1].backward()
        gradients[legacy] = (x.grad, theirs.embedding.weight.grad)
    x = z.clone().requires_grad_()
    quantised = ours(x, torch.rand(2, 4, 4))
    ((quantised.commitment + quantised.codebook).mean() / 3).backward()  # they average over D as well
    error = max(float((a - b).abs().max()) for a, b in zip((x.grad, ours.codebook.grad), gradients[False]))
    truth("vq-vae", "gradients of both terms", "diffusers 0.42.1 VectorQuantizer, legacy=False", error, 1e-15)
    encoder, codes = gradients[True]
    assert torch.allclose(encoder, x.grad / beta)  # the encoder's commitment, with 1 in place of beta
    assert torch.allclose(codes, ours.codebook.grad * beta)  # and the codes follow beta times as fast


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        ("VQModel", {"norm_type": "spatial"}, "norm_type"),
        ("VQModel", {"act_fn": "relu"}, "act_fn"),
        ("AutoencoderKL", {"out_channels": 1}, "out_channels"),
        ("AutoencoderKL", {"down_block_types": ("AttnDownEncoderBlock2D",) * 2}, "up_block_types"),
        ("AutoencoderKL", {"down_block_types": ("DownBlock2D",) * 2}, "down_block_types"),
        ("AutoencoderKL", {"num_vq_embeddings": 3}, "num_vq_embeddings"),
        ("UNet2DModel", {}, "UNet2DModel"),
    ],
)
def test_configs_without_a_counterpart_are_refused(kind, fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        codec_from_config({"_class_name": kind, **TINY, **fields})


@pytest.mark.oracles
def test_missing_extra_and_misshapen_weights_are_refused(published):
    directory, _ = published("VQModel", num_vq_embeddings=9)
    good = load_file(directory / WEIGHTS)
    for change, complaint in (
        ({"quant_conv.weight": None}, "lack 'quant_conv.weight'"),
        ({"encoder.conv_in.bias": None}, "lack 'conv_in.bias'"),
        ({"extra": torch.zeros(1)}, "hold 'extra'"),
        ({"quantize.embedding.weight": torch.zeros(8, 3)}, "shape"),
    ):
        weights = {name: tensor for name, tensor in {**good, **change}.items() if tensor is not None}
        save_file(weights, directory / WEIGHTS)
        with pytest.raises(CheckpointError, match=complaint):
            load_codec(directory)


def test_a_directory_without_a_codec_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel", **TINY}))
    with pytest.raises(CheckpointError):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no fields"):
        load_codec(tmp_path)


# By itself -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (16, 8)])
def test_a_code_is_f_times_smaller_than_its_picture(size):
    config = CodecConfig(4, (1, 2, 2), 1, (False, True, False), groups=2)
    codec = Codec(config, 1, 3, codes=5, width=2)
    assert config.factor == 4
    z = codec.encode(torch.randn(2, 1, *size))
    assert z.shape == (2, 2, size[0] // 4, size[1] // 4)
    assert codec.decode(z).shape == (2, 1, *size)
    assert Codec(config, 3, 3, moments=True).encode(torch.randn(1, 3, 8, 8)).shape == (1, 6, 2, 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"multipliers": ()}, "multipliers"),
        ({"attention": (True,)}, "attention"),
        ({"channels": 20}, "groups"),
        ({"multipliers": (1, 0, 1, 1)}, "multipliers"),
        ({"dropout": 1.0}, "dropout"),
        ({"blocks": 0}, "blocks"),
    ],
)
def test_architectures_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        CodecConfig(**changes)


def test_what_does_not_fit_together_is_refused():
    config = CodecConfig(4, (1, 1), 1, (False, False), groups=2)
    with pytest.raises(ConfigError, match="1x1"):
        Codec(config, 1, 3, width=2, before=False)
    with pytest.raises(ConfigError, match="multiples"):
        Codec(config, 1, 3).encode(torch.zeros(1, 1, 7, 8))
