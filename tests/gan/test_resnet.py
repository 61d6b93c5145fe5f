"""Residual GANs: bounded slopes, norms that are told the class, truncation, orthogonality, published sizes."""

from __future__ import annotations

import math

import pytest
import torch

import mezzotint as mz
from mezzotint.core.batch import PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.gan.networks import spectrally_normalised
from mezzotint.gan.resnet import (
    ConditionalNorm,
    DiscriminatorBlock,
    ResNetConfig,
    SelfAttention,
    orthogonality,
    truncated_normal,
)


def test_the_largest_singular_value_of_a_normalised_weight_is_one(truth):
    layer = spectrally_normalised(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(6, 5))).double()
    with torch.no_grad():
        for _ in range(300):  # one power iteration each
            layer[0](torch.zeros(1, 3, 4, 4, dtype=torch.float64))
            layer[1](torch.zeros(1, 6, dtype=torch.float64))
        layer.eval()
        largest = [torch.linalg.svdvals(part.weight.flatten(1))[0] for part in layer]
    truth(
        "projection-gan", "largest singular value of a normalised weight", "1", max(abs(s - 1) for s in largest), 1e-9
    )


def test_truncated_codes_have_the_moments_of_the_truncated_normal(truth):
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for t in (0.5, 1.0, 2.0):
        z = truncated_normal(u, t)
        assert z.abs().max() <= t
        density = math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
        variance = 1 - 2 * t * density / math.erf(t / math.sqrt(2))
        truth("biggan", f"variance of codes truncated at {t:g}", "closed form", abs(z.var() - variance), 2e-5)
        assert abs(z.mean()) < 1e-9


def test_orthogonal_rows_cost_nothing_whatever_their_length(truth):
    layer = torch.nn.Linear(6, 4, bias=False).double()
    torch.nn.init.orthogonal_(layer.weight)
    with torch.no_grad():
        layer.weight *= torch.tensor([[1.0], [2.0], [0.5], [3.0]])
        truth("biggan", "orthogonal regularisation of orthogonal rows", "0", orthogonality(layer), 1e-24)
        layer.weight.copy_(torch.eye(4, 6))
        layer.weight[1, 0] = 0.5  # rows 0 and 1 have the inner product 1/2, twice in the matrix
        truth("biggan", "orthogonal regularisation", "by hand", abs(orthogonality(layer) - 0.5), 1e-15)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_a_norm_that_is_told_a_condition_scales_and_shifts_by_it(kind):
    norm = ConditionalNorm(8, 3, kind).train()
    x, c = torch.randn(4, 8, 5, 5), torch.randn(4, 3)
    plain = norm.norm(x)
    expected = plain * (1 + c @ norm.gain.weight.T)[:, :, None, None] + (c @ norm.bias.weight.T)[:, :, None, None]
    assert torch.allclose(norm(x, c), expected, atol=1e-6)
    whole, alone = norm(x, c), norm(x[:1], c[:1])
    assert torch.allclose(whole[:1], alone, atol=1e-5) == (kind == "group")


def test_the_first_block_pools_before_its_shortcut_as_if_after():
    block = DiscriminatorBlock(3, 5, down=True, first=True).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    h = block.conv2(torch.relu(block.conv1(x)))
    expected = torch.nn.functional.avg_pool2d(block.shortcut(x) + h, 2)
    assert torch.allclose(block(x), expected, atol=1e-12)


def test_attention_begins_as_the_identity():
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(SelfAttention(16)(x), x)


def test_truncated_pictures_are_those_of_truncated_codes():
    model = mz.create("biggan", classes=4).eval()
    labels = torch.tensor([0, 3])
    random = PictureRandom([5, 6])
    random.integers(0, 4)  # a label, which is drawn even where one is given
    codes = truncated_normal(random.uniform(model.config.latent), 0.5)
    with torch.no_grad():
        expected = model.generator(codes, labels)
    assert torch.equal(model.sample(2, labels=labels, seeds=5, truncation=0.5), expected)
    with pytest.raises(ConfigError, match="above 0"):
        model.sample(1, labels=labels[:1], truncation=0.0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="halved"):
        mz.create("projection-gan", image_size=27, classes=2)
    with pytest.raises(ConfigError, match="shared evenly"):
        mz.create("biggan", classes=2, latent=7)
    with pytest.raises(ConfigError, match="blocks cannot halve"):
        ResNetConfig(critic_downs=9)


def test_biggan_for_128_pixels_has_the_published_size(truth):
    """As the authors' release in PyTorch counts them: 70.4 M and 88.0 M."""
    with torch.device("meta"):
        model = mz.create("biggan", size="paper", image_size=128, channels=3, classes=1000)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.players().items()}
    for name, published in (("generator", 70_433_988), ("discriminator", 87_982_370)):
        truth("biggan", f"parameters of the {name}, 128 pixels", f"{published:,}", abs(counts[name] - published), 0)
