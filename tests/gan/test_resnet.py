"""Residual GANs: bounded slopes, norms that are told the class, truncation, orthogonality, published sizes."""

from __future__ import annotations

import itertools
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
    GeneratorBlock,
    ResNetConfig,
    SelfAttention,
    orthogonality,
    truncated_normal,
)
from mezzotint.gan.systems import biggan_network, projection_network


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
    assert truncated_normal(torch.tensor([0.0, 1 - 2**-24]), 100.0).isfinite().all()  # of all that `uniform` draws


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


@pytest.mark.parametrize("first", [True, False])
def test_a_block_down_is_the_mean_of_both_ways(first, truth):
    """Miyato et al. 2018, figure 8, where the shortcut is taken before pooling."""
    block = DiscriminatorBlock(3, 5, down=True, first=first).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    h = block.conv2(torch.relu(block.conv1(x if first else torch.relu(x))))
    expected = torch.nn.functional.avg_pool2d(block.shortcut(x) + h, 2)
    truth(
        "projection-gan",
        "block on the way down",
        "shortcut, then mean",
        (block(x) - expected).abs().max().detach(),
        2e-15,
    )


def test_a_block_that_keeps_its_shape_adds_to_what_it_is_given():
    block, x = DiscriminatorBlock(3, 3, down=False), torch.randn(2, 3, 4, 4)
    assert block.shortcut is None
    assert torch.allclose(block(x), x + block.conv2(torch.relu(block.conv1(torch.relu(x)))))


def test_a_block_up_is_the_sum_of_both_ways(truth):
    """Miyato et al. 2018, figure 8, where the shortcut is taken of the larger map."""
    block = GeneratorBlock(3, 5, 2, "group").double()
    x, c = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    up = torch.nn.Upsample(scale_factor=2)
    h = block.conv2(torch.relu(block.norm2(block.conv1(up(torch.relu(block.norm1(x, c)))), c)))
    error = (block(x, c) - block.shortcut(up(x)) - h).abs().max().detach()
    truth("projection-gan", "block on the way up", "doubled, then shortcut", error, 2e-15)


def test_attention_begins_as_the_identity_and_is_its_formula(truth):
    layer, x = SelfAttention(16).double(), torch.randn(2, 16, 4, 4, dtype=torch.float64)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.gain.fill_(0.7)
        pool = torch.nn.MaxPool2d(2)
        q, k, v = layer.query(x), pool(layer.key(x)), pool(layer.value(x))
        mixed = torch.zeros(2, 8, 4, 4, dtype=torch.float64)
        for b, i, j in itertools.product(range(2), range(4), range(4)):
            places = list(itertools.product(range(2), range(2)))
            weights = torch.stack([q[b, :, i, j] @ k[b, :, m, n] for m, n in places]).softmax(0)
            mixed[b, :, i, j] = sum(weight * v[b, :, m, n] for weight, (m, n) in zip(weights, places))
        error = (layer(x) - x - 0.7 * layer.out(mixed)).abs().max()
    truth("biggan", "self-attention", "a sum over places", error, 1e-14)


def test_power_iteration_goes_on_in_training_and_rests_in_evaluation():
    model = mz.create("projection-gan", image_size=8, classes=2)
    part, x, labels = model.discriminator, torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    states = []
    for training in (True, False):
        part.train(training)
        before = {name: value.clone() for name, value in part.named_buffers()}
        part(x, labels)
        states.append(all(torch.equal(before[name], value) for name, value in part.named_buffers()))
    assert states == [False, True]
    part.eval()
    assert torch.equal(part(x, labels).score, part(x, labels).score)


def test_the_weights_of_biggan_are_normalised_but_not_the_embedding_of_the_class():
    model = mz.create("biggan", image_size=16, classes=3)
    plain = {name for name, p in model.generator.named_parameters() if p.dim() > 1 and not name.endswith("original")}
    assert plain == {"embedding.weight"}
    assert all(p.dim() < 2 or name.endswith("original") for name, p in model.discriminator.named_parameters())


def test_each_block_has_a_part_of_z_of_its_own():
    model = mz.create("biggan", image_size=16, classes=2).eval()
    generator, labels = model.generator, torch.tensor([1])
    z = torch.randn(1, model.config.latent)
    part = z.shape[1] // generator.parts
    assert generator.parts == len(generator.blocks) + 1 >= 2
    seen = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, x, y: seen.append((y, x[1])))
    other = z.clone()
    other[:, -part:] = torch.randn(1, part)  # of the last block
    for code in (z, other):
        generator(code, labels)
    n = len(generator.blocks)
    changed = [not torch.equal(seen[k][0], seen[n + k][0]) for k in range(n)]
    assert changed == [False] * (n - 1) + [True]
    assert torch.equal(seen[n - 1][1][:, -part:], z[:, -part:])  # beside the embedding that all blocks share
    assert torch.equal(seen[0][1][:, :-part], generator.embedding(labels))


def test_the_generator_alone_pays_for_weights_that_do_the_same():
    batch = mz.Batch(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), seeds=[1, 2])
    model = mz.create("biggan", image_size=8, classes=2, orthogonal=0.5).eval()
    losses = model(batch, "generator")
    assert torch.allclose(losses.parts["orthogonal"], 0.5 * orthogonality(model.generator))
    assert "orthogonal" not in model(batch, "discriminator").parts


def test_a_bias_of_the_score_is_kept_where_it_learns():
    for choices, kept in (({}, True), ({"loss": "wasserstein"}, False), ({"loss": "wasserstein", "drift": 0.1}, True)):
        model = mz.create("projection-gan", image_size=8, classes=2, **choices)
        assert (model.discriminator.score.bias is not None) == kept


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
    with pytest.raises(ConfigError, match="does not take mask"):
        model.sample(1, mask=torch.ones(1, 1, 28, 28), truncation=0.5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="halved"):
        mz.create("projection-gan", image_size=27, classes=2)
    with pytest.raises(ConfigError, match="shared evenly"):
        mz.create("biggan", classes=2, latent=7)
    with pytest.raises(ConfigError, match="blocks cannot halve"):
        ResNetConfig(critic_downs=9)
    for wrong in ({"network__attention": 5}, {"network__critic_attention": 28}):
        with pytest.raises(ConfigError, match=r"is the size of no block; choose of \["):
            mz.create("biggan", classes=2, **wrong)


def test_both_networks_attend_behind_the_block_of_the_size_that_is_named():
    model = mz.create("biggan", classes=2, network__attention=14, network__critic_attention=7)
    seen = {}
    for name, player in model.players().items():
        for module in player.modules():
            if isinstance(module, SelfAttention):
                module.register_forward_hook(
                    lambda module, given, out, name=name: seen.setdefault(name, []).append(tuple(out.shape[2:]))
                )
    model.discriminator(model.sample(2, labels=[0, 1]), torch.tensor([0, 1]))
    assert seen == {"generator": [(14, 14)], "discriminator": [(7, 7)]}


@pytest.mark.parametrize(
    ("size", "latent", "blocks"), [(32, 80, 3), (64, 100, 4), (128, 120, 5), (256, 140, 6), (512, 160, 7)]
)
def test_a_part_of_z_of_20_numbers_for_each_block_and_the_coarsest_map_of_4_pixels(size, latent, blocks):
    """Brock et al. 2018, appendix B: z of 120, 140 and 160 numbers for 128, 256 and 512 pixels."""
    network = biggan_network(size)
    assert 20 * len(network.widths) == latent
    assert network.coarsest(size) == 4
    assert len(network.widths) - 1 == network.critic_downs == len(network.critic_widths) - 1 == blocks
    assert network.widths[0] == 16 * 96
    assert size < 64 or network.critic_widths[-1] == 16 * 96
    attends = {128: (64, 64), 256: (128, 64), 512: (64, 64)}.get(size, (0, 0))
    assert (network.attention, network.critic_attention) == attends


def test_the_projection_gan_has_published_networks_for_32_and_128_pixels():
    """Miyato et al. 2018, tables 4 and 5."""
    assert projection_network(32) == ResNetConfig((256,) * 4, (128,) * 4, critic_downs=2)
    large = projection_network(128)
    assert large.widths == (1024, 1024, 512, 256, 128, 64)
    assert large.critic_widths == (64, 128, 256, 512, 1024, 1024)
    assert (large.coarsest(128), large.critic_downs) == (4, 5)


def test_biggan_for_128_pixels_has_the_published_size(truth):
    """As the authors' release in PyTorch counts them: 70.4 M and 88.0 M."""
    with torch.device("meta"):
        model = mz.create("biggan", size="paper", image_size=128, channels=3, classes=1000)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.players().items()}
    for name, published in (("generator", 70_433_988), ("discriminator", 87_982_370)):
        truth("biggan", f"parameters of the {name}, 128 pixels", f"{published:,}", abs(counts[name] - published), 0)
