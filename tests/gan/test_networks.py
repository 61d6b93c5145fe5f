"""Neurons and strided convolutions: how they begin, what they see of a class, and their published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mezzotint as mz
from mezzotint.core.errors import ConfigError
from mezzotint.gan.networks import Apart, DCGANConfig, Discriminator, Maxout, MLPConfig, Row

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def counts(model: mz.Model) -> list[int]:
    return [sum(p.numel() for p in part.parameters()) for part in model.players().values()]


def test_the_first_weights_are_those_of_the_paper(truth):
    """Radford et al. 2015, section 4: a normal distribution with deviation 0.02, of all weights."""
    model = mz.create("dcgan", size="paper", image_size=16, classes=0)
    for name, part in model.players().items():
        weights = [m.weight for m in part.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
        for number, weight in enumerate(weights):
            error = abs(weight.std().detach() / 0.02 - 1)
            truth("dcgan", f"deviation of the first weights of the {name}, layer {number}", "0.02", error, 0.03)
            assert abs(weight.mean()) < 0.02 * 4 / weight.numel() ** 0.5


def test_without_a_deviation_every_layer_begins_with_the_mean_square_of_what_comes_in(truth):
    """He et al. 2015, eq. 10 and 15; away from the border, where a kernel sees less."""
    config = DCGANConfig(channels=32, levels=3, norm="none", critic_norm="none", std=None)
    generator, body = config.generator(100, 1, 64), config.discriminator(1, 64)
    found = {"generator": [], "discriminator": []}
    for name, network in (("generator", generator), ("discriminator", body)):
        for layer in network.modules():
            if isinstance(layer, CONVOLUTIONS):
                inside = lambda y: y[..., 1:-1, 1:-1].square().mean().item()  # noqa: E731
                layer.register_forward_hook(lambda _, x, y, at=name, inside=inside: found[at].append(inside(y)))
    with torch.no_grad():
        generator(torch.randn(64, 100))
        body(torch.randn(64, 1, 64, 64))
    for name, squares in found.items():
        error = max(abs(square - 1) for square in squares[: 3 if name == "generator" else None])
        truth("gan", f"mean square before each ReLU of the {name}, convolutions", "1, as of what comes in", error, 0.25)


def test_from_four_pixels_and_1024_channels_to_the_picture():
    """Radford et al. 2015, figure 1; the discriminator's first layer and the generator's last are not normalised."""
    with torch.device("meta"):
        model = mz.create("dcgan", size="paper", image_size=64, channels=3)
    layers = [m for m in model.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in layers] == [1024, 512, 256, 128, 3]
    assert layers[0].kernel_size == (4, 4)
    kinds = [type(m) for m in model.discriminator.body.layers]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, *[nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 3]
    assert [type(m) for m in model.generator.network][-3:] == [nn.ReLU, nn.ConvTranspose2d, nn.Tanh]


@pytest.mark.parametrize(("size", "coarsest", "small"), [(28, 7, 7), (32, 4, 8), (36, 9, 9), (48, 6, 6), (64, 4, 8)])
def test_pictures_of_other_sizes_are_halved_as_far_as_it_goes(size, coarsest, small):
    for name, expected in (("paper", coarsest), ("small", small)):
        with torch.device("meta"):
            config = mz.create("dcgan", size=name, image_size=size).config
        assert config.network.coarsest(size) == expected


def test_maxout_is_the_largest_of_its_pieces(truth):
    layer, x = Maxout(5, 3, 4).double(), torch.randn(7, 5, dtype=torch.float64)
    pieces = (x @ layer.linear.weight.T + layer.linear.bias).view(7, 3, 4)
    expected = torch.tensor([[max(pieces[b, o].tolist()) for o in range(3)] for b in range(7)], dtype=x.dtype)
    truth("gan", "maxout", "the largest of its sums", (layer(x) - expected).abs().max().detach(), 1e-15)


def test_a_row_has_each_pixel_and_the_class_once():
    x, one_hot = torch.randn(2, 3, 4, 4), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    maps = one_hot[:, :, None, None].expand(-1, -1, 4, 4)
    assert torch.equal(Row(2)(torch.cat([x, maps], 1)), torch.cat([x.flatten(1), one_hot], 1))
    assert torch.equal(Row(0)(x), x.flatten(1))


def test_neurons_apart_see_nothing_but_the_class():
    layer = Apart(nn.Linear(4, 6), nn.Linear(2, 3), 2)
    x = torch.randn(1, 6)
    slope = torch.autograd.functional.jacobian(layer, x)[0, :, 0]  # (9, 6)
    seen = slope != 0
    assert torch.equal(seen, torch.block_diag(torch.ones(6, 4), torch.ones(3, 2)).bool())


def test_networks_of_neurons_have_their_published_sizes(truth):
    """Layers as the papers, or the authors' configuration, list them; each has a weight for an input, and a bias."""
    layer = lambda before, after, pieces=1: pieces * after * (before + 1)  # noqa: E731
    first = mz.create("gan", size="paper", image_size=28, classes=0)
    expected = (
        layer(100, 1200) + layer(1200, 1200) + layer(1200, 784),
        layer(784, 240, 5) + layer(240, 240, 5) + layer(240, 1),
    )
    for player, found, published in zip(first.players(), counts(first), expected):
        truth("gan", f"parameters of the {player}", f"{published:,}, by its layers", abs(found - published), 0)
    told = mz.create("cgan", size="paper", image_size=28, classes=10)
    expected = (
        layer(100, 200) + layer(10, 1000) + layer(1200, 1200) + layer(1200, 784),
        layer(784, 240, 5) + layer(10, 50, 5) + layer(290, 240, 4) + layer(240, 1),
    )
    for player, found, published in zip(told.players(), counts(told), expected):
        truth("cgan", f"parameters of the {player}", f"{published:,}, by its layers", abs(found - published), 0)


def test_dropout_is_of_training_alone():
    config = MLPConfig((16, 16), dropout=0.5, generator_dropout=0.5)
    pairs = ((config.generator(4, 1, 4), torch.randn(3, 4)), (config.discriminator(1, 4), torch.randn(3, 1, 4, 4)))
    for network, x in pairs:
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_one_layer_is_enough():
    config = MLPConfig((6,), apart=2, critic_apart=3)
    assert config.generator(4 + 2, 1, 4, 2)(torch.randn(3, 6)).shape == (3, 1, 4, 4)
    assert config.discriminator(1 + 2, 4, 2)(torch.randn(3, 3, 4, 4)).shape == (3, 9)


def test_a_spectrally_normalised_discriminator_is_so_in_body_and_head(truth):
    config = DCGANConfig(channels=4, levels=2, norm="none", critic_norm="none", spectral=True)
    for conditioning in ("auxiliary", "projection"):
        network = Discriminator(lambda channels: config.discriminator(channels, 8), 1, 3, conditioning, True)
        x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
        with torch.no_grad():
            for _ in range(200):  # one power iteration each
                network(x, labels)
            network.eval()
            kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
            weights = [m.weight.flatten(1) for m in network.modules() if isinstance(m, kinds)]
            error = max(abs(torch.linalg.svdvals(weight)[0] - 1) for weight in weights)
        assert len(weights) == 4
        what = f"largest singular value of all weights, {conditioning}"
        truth("projection-gan", what, "1", error, 1e-5)


def test_what_cannot_be_built_is_refused():
    for wrong, message in (
        (lambda: MLPConfig(()), "at least one layer"),
        (lambda: MLPConfig((4,), pieces=(2, 2)), "1 layers"),
        (lambda: MLPConfig((4,), dropout=1.0), "dropout"),
        (lambda: MLPConfig((4,), generator_dropout=-0.1), "generator_dropout"),
        (lambda: MLPConfig((4,), apart=-1), "apart"),
        (lambda: DCGANConfig(levels=0), "levels"),
        (lambda: DCGANConfig(std=0.0), "std"),
        (lambda: mz.create("dcgan", image_size=27), "cannot be halved 1 times"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong()
