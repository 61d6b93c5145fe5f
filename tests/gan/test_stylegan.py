"""StyleGAN: the style's mean and deviation, layers that do not know each other's style, and the published size."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Samples
from mezzotint.evaluation.features import ModuleFeatures
from mezzotint.evaluation.path_length import perceptual_path_length
from mezzotint.gan.layers import MappingNetwork, mixed
from mezzotint.gan.losses import LOSSES
from mezzotint.gan.progan import Growing, Phase, ProGAN, ProGANConfig, ProGANNetworks
from mezzotint.gan.stylegan import (
    StyledLayer,
    StyleGAN,
    StyleGANConfig,
    StyleGANNetworks,
    adain,
    bands,
    exchanged,
    style_mixing,
)
from mezzotint.gan.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Networks
from mezzotint.gan.stylegan3 import StyleGAN3, StyleGAN3Config, StyleGAN3Networks
from mezzotint.systems import find

TINY = StyleGANNetworks(channel_base=64, channel_max=8, width=6, mapping_layers=2, group=0)
WHOLE = Growing(0, 0)


def config(**choices):
    same = {"image_size": 16, "channels": 1, "latent": 5, "network": TINY, "growing": WHOLE}
    return StyleGANConfig(**{**same, **choices})


def model(**choices):
    """With noise that is seen, which begins at 0."""
    torch.manual_seed(2)
    made = StyleGAN(config(**choices))
    for name, parameter in made.named_parameters():
        if name.endswith("strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return made


def batch(n=8):
    images = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, seeds=list(range(n)))


def test_adain_gives_each_map_the_mean_and_deviation_of_its_style(truth):
    x = 5 * torch.randn(3, 4, 8, 8, dtype=torch.float64) + 2
    scale, bias = torch.randn(2, 3, 4, dtype=torch.float64)
    y = adain(x, scale, bias)
    truth("stylegan", "mean behind AdaIN", "y_b", (y.mean((2, 3)) - bias).abs().max(), 1e-15)
    error = (y.std((2, 3), correction=0) - scale.abs()).abs().max()
    truth("stylegan", "deviation behind AdaIN", "|y_s|", error, 1e-9)  # what the 1e-8 under the root does
    truth("stylegan", "AdaIN of a map scaled and moved", "of the map", (adain(3 * x - 7, scale, bias) - y).abs().max(),
          2e-9)  # fmt: skip


def test_a_layer_leaves_of_its_input_what_the_style_allows():
    """Mean and deviation behind a layer are those of A(w) alone, whatever came in; at w = 0 they are 0 and 1."""
    layer, w = StyledLayer(4, 3, 6, up=True).double(), torch.randn(2, 6, dtype=torch.float64)
    x, noise = torch.randn(2, 4, 5, 5).double(), torch.randn(2, 1, 10, 10).double()
    y = layer(x, w, noise)
    assert y.shape == (2, 3, 10, 10)
    scale, bias = layer.affine(w).chunk(2, 1)
    assert torch.allclose(y.mean((2, 3)), bias)
    assert torch.allclose(y.std((2, 3), correction=0), (1 + scale).abs(), atol=1e-6)
    assert torch.allclose(layer(x, 0 * w, noise).std((2, 3), correction=0), torch.ones(2, 3).double(), atol=1e-6)


def test_a_strength_of_noise_is_that_of_one_map():
    layer, x, w = StyledLayer(None, 3, 6, up=False), torch.randn(2, 3, 5, 5), torch.randn(2, 6)
    noise, without = torch.randn(2, 1, 5, 5), None
    assert torch.equal(layer(x, w, noise), layer(x, w, without))  # strengths begin at 0
    layer.strength.data[1] = 0.5
    changed = (layer(x, w, noise) - layer(x, w, without)).abs().amax((0, 2, 3))
    assert changed[1] > 0.1
    assert changed[0] == changed[2] == 0


def test_a_layer_knows_the_style_of_its_own_w_only():
    """By autograd: of w_1 the layers before the cut, of w_2 those from there on (survey, Box 5)."""
    first, second = torch.randn(1, 6, requires_grad=True), torch.randn(1, 6, requires_grad=True)
    ws = mixed(first, second, torch.tensor([[0.0, 0.5]]), 1.0, 6)
    of_first, of_second = [], []
    for layer in range(6):
        a, b = torch.autograd.grad(ws[:, layer].sum(), (first, second), retain_graph=True)
        of_first.append(bool(a.any()))
        of_second.append(bool(b.any()))
    assert of_first == [True] * 3 + [False] * 3
    assert of_second == [False] * 3 + [True] * 3


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_picture_of_a_map_knows_no_style_of_finer_ones(level):
    """And every style up to its own, through the whole generator."""
    g = model(growing=Growing(4, 3)).generator.synthesis
    w = torch.randn(1, g.styles, 6, requires_grad=True)
    direction = torch.randn(1, 1, 4 * 2**level, 4 * 2**level)
    (g(w, "const", Phase(level, 1.0)) * direction).sum().backward()
    used = w.grad[0].abs().sum(1) > 0
    assert used.tolist() == [True] * (2 * level + 2) + [False] * (4 - 2 * level)


def test_mixed_pictures_have_the_styles_of_b_in_the_layers_named():
    """None: the picture of A; all: that of B."""
    made = model()
    z_a, z_b = torch.randn(2, 5), torch.randn(2, 5)
    w_a, w_b = made.map(z_a), made.map(z_b)
    coarse = exchanged(w_a, w_b, [5], 6)
    assert torch.equal(coarse[:, :5], w_a[:, None].expand(-1, 5, -1))
    assert torch.equal(coarse[:, 5], w_b)
    assert torch.allclose(made.mix(z_a, z_b, [5]), made.synthesise(coarse))
    assert torch.allclose(made.mix(z_a, z_b, []), made.synthesise(w_a), atol=1e-5)
    assert torch.allclose(made.mix(z_a, z_b, range(6)), made.synthesise(w_b), atol=1e-5)
    with pytest.raises(ConfigError, match="0 to 5"):
        made.mix(z_a, z_b, [6])


def styled2(**choices):
    torch.manual_seed(3)
    network = StyleGAN2Networks(channel_base=64, channel_max=8, width=6, mapping_layers=2, group=0)
    return StyleGAN2(StyleGAN2Config(image_size=16, channels=1, latent=5, network=network, **choices))


@pytest.mark.parametrize("make", [model, styled2])
def test_a_grid_of_mixed_styles_has_its_sources_at_the_border(make):
    made = make()
    grid = style_mixing(made, [1, 2, 3], [7, 8], range(2))
    assert grid.shape == (3, 4, 1, 16, 16)
    assert (grid[0, 0] == 1).all()
    a, b = made.codes([1, 2, 3]), made.codes([7, 8])
    assert torch.allclose(grid[0, 1:], made.synthesise(made.map(a)).clamp(-1, 1), atol=1e-5)
    assert torch.allclose(grid[1:, 0], made.synthesise(made.map(b)).clamp(-1, 1), atol=1e-5)
    of_b = style_mixing(made, [1, 2, 3], [7, 8], range(made.styles))
    assert torch.allclose(of_b[1:, 1:], grid[1:, :1].expand(-1, 3, -1, -1, -1), atol=1e-5)
    w = exchanged(made.map(a[2:]), made.map(b[:1]), range(2), made.styles)
    assert torch.allclose(grid[1, 3], made.synthesise(w)[0].clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize("make", [model, styled2])
def test_a_grid_may_be_of_one_class_and_truncated(make):
    made = make(classes=3, conditioning="projection")
    for step in range(3):
        made.generator.mapping.follow(step)
    grid = style_mixing(made, [1, 2], [7], [0], label=2, truncation=0.5)
    w = made.generator.mapping.truncate(made.map(made.codes([1, 2]), torch.tensor([2, 2])), 0.5)
    assert torch.allclose(grid[0, 1:], made.synthesise(w).clamp(-1, 1), atol=1e-5)
    assert not torch.allclose(grid, style_mixing(made, [1, 2], [7], [0], label=1, truncation=0.5), atol=1e-3)
    with pytest.raises(ConfigError, match="0 to 2"):
        style_mixing(made, [1, 2], [7], [0], label=3)
    with pytest.raises(ConfigError, match="give the label"):
        style_mixing(made, [1, 2], [7], [0])
    with pytest.raises(ConfigError, match="at least one seed"):
        style_mixing(made, [], [7], [0], label=2)


def growing():
    return ProGAN(ProGANConfig(16, latent=5, network=ProGANNetworks(64, 8)))


@pytest.mark.parametrize("make", [model, styled2, growing])
def test_on_the_way_from_one_code_to_another_directions_turn_evenly(make):
    """However long they are: z is scaled first, and the angle after a share t of the way is t times the whole one."""
    made = make()
    a, b = torch.randn(2, 1, 5)
    shares = torch.linspace(0, 1, 5)
    way = made.between(9 * a, b, shares)
    assert torch.allclose(way, made.between(a, b, shares), atol=1e-5)
    unit = way / way.norm(dim=1, keepdim=True)
    angles = torch.acos((unit @ unit[0]).clamp(-1, 1))
    assert torch.allclose(angles, shares * angles[-1], atol=2e-3)


def test_the_bands_of_styles_are_the_papers():
    assert bands(18) == {"coarse": range(4), "middle": range(4, 8), "fine": range(8, 18)}
    assert bands(6) == {"coarse": range(2), "middle": range(2, 4), "fine": range(4, 6)}
    assert bands(4) == {"coarse": range(2), "middle": range(2, 4)}


def test_truncation_ends_at_one_picture(truth):
    made = model()
    for step in range(5):
        made.after_step(step)
    images = made.sample(3, truncation=0.0, noise="const")
    mean = made.synthesise(made.generator.mapping.average[None]).clamp(-1, 1)
    truth("stylegan", "pictures at psi = 0", "the mean picture", (images - mean).abs().max(), 5e-6)
    assert mean.std() > 0.05
    coarse = made.sample(3, truncation=0.0, cutoff=2, noise="const")
    assert not torch.allclose(coarse[0], coarse[1], atol=1e-2)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="finite"):
            made.sample(1, truncation=wrong)


def test_pictures_are_a_function_of_z_and_the_noise():
    made = model()
    w, noise = made.map(torch.randn(2, 5)), made.noise(PictureRandom([3, 4]))
    assert torch.equal(made.synthesise(w, noise), made.synthesise(w, noise))
    assert torch.allclose(made.synthesise(w, noise)[1:], made.synthesise(w[1:], noise[1:]), atol=1e-5)
    assert not torch.allclose(made.synthesise(w, "none"), made.synthesise(w, "const"), atol=1e-3)
    assert not torch.allclose(made.synthesise(w, noise), made.synthesise(w, "const"), atol=1e-3)
    for mode in ("const", "none"):  # z is drawn before the noise
        w = made.map(made.codes([7, 8]))
        assert torch.allclose(made.sample(2, seeds=7, noise=mode), made.synthesise(w, mode).clamp(-1, 1), atol=1e-6)
    with pytest.raises(ConfigError, match="noise is const"):
        made.synthesise(w, "white")


def test_a_generator_does_not_notice_a_new_map(truth):
    g = model(growing=Growing(4, 3)).generator.synthesis.double()
    w = torch.randn(2, 6, dtype=torch.float64)
    before, whole = g(w, "none", Phase(1, 1.0)), g(w, "none", Phase(2, 1.0))
    before = before.repeat_interleave(2, 2).repeat_interleave(2, 3)
    error = (g(w, "none", Phase(2, 0.0)) - before).abs().max()
    truth("stylegan", "generator, alpha 0", "smaller generator, enlarged", error, 0)
    error = (g(w, "none", Phase(2, 0.25)) - (0.75 * before + 0.25 * whole)).abs().max()
    truth("stylegan", "generator, alpha 0.25", "mean of both by hand", error, 1e-15)


def test_it_grows_from_its_second_size_on():
    made = model(growing=Growing(4, 3, first=1))
    assert made.resolution == 8
    assert made.sample(2).shape == (2, 1, 16, 16)
    for player in ("generator", "discriminator"):
        made.zero_grad()
        for moves in made.milestones:
            made.grow(moves)
            made(batch(), player).total.backward()
        assert all(p.grad is not None and p.grad.any() for p in made.players()[player].parameters())


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(player):
    made, given = model(), batch()
    whole = made(given, player).total
    halves = [made(given[rows], player).total for rows in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(whole, sum(halves) / 2, rtol=1e-4)


def test_the_discriminator_filters_before_it_halves():
    """A checkerboard, the finest pattern there is, lies below its first halving only in mirror images at the border."""
    made = model()
    block = made.discriminator.blocks[-1]
    with torch.no_grad():
        torch.nn.init.zeros_(block.first.bias)
        block.first.weight.zero_()
        block.first.weight[:, :, 1, 1] = torch.eye(len(block.first.weight)) / block.first.scale
    tiles = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16))
    x = 1 + 0.5 * tiles.expand(1, len(block.first.weight), 16, 16)
    flat = torch.ones_like(x)
    y, expected = block(x)[..., 2:-2, 2:-2], block(flat)[..., 2:-2, 2:-2]
    assert torch.allclose(y, expected, atol=1e-5)
    assert F.avg_pool2d(x, 2).std() < 1e-6 < x.std()


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_their_size(size, channels):
    made = model(image_size=size, channels=channels)
    assert made.sample(2).shape == (2, channels, size, size)
    assert isinstance(made, Samples)


def test_the_published_number_of_parameters(truth):
    """Section 2: 26.2 million in the generator, of 18 layers, at 1024 pixels; the discriminator is ProGAN's."""
    system = find("stylegan")
    with torch.device("meta"):
        made = StyleGAN(system.stage("model").sizes["paper"](PictureSpec(1024, 3)))
    for player, published in (("generator", 26.2), ("discriminator", 23.1)):
        count = sum(p.numel() for p in made.players()[player].parameters())
        truth("stylegan", f"parameters of the {player}, millions", str(published), abs(count / 1e6 - published), 0.05)
    assert made.styles == 18
    assert made.config.sizes[made.config.lowest] == 8


def young(**choices):
    """At 8 of 16 pixels, where 4 of 6 styles are in use."""
    return model(growing=Growing(4, 3, first=1), **choices)


def styled3(**choices):
    torch.manual_seed(3)
    network = StyleGAN3Networks(64, 8, layers=4, margin=2, width=6, critic_base=64, critic_max=8, group=0)
    return StyleGAN3(StyleGAN3Config(image_size=16, channels=1, latent=5, network=network, **choices))


def told(made, monkeypatch, seeds, labels=None):
    """What the synthesis of a batch of training is told: w of each layer, and the noise."""
    heard = []
    monkeypatch.setattr(made.generator.synthesis, "forward", lambda w, noise, *_: heard.append((w, noise)))
    with torch.no_grad():
        made.fakes(labels, PictureRandom(seeds))
    return heard[0]


@pytest.mark.parametrize(("make", "used"), [(model, 6), (young, 4), (styled2, 6)])
def test_a_share_of_training_pictures_has_two_styles_cut_anywhere_in_use(make, used, monkeypatch):
    """Of the first w are all layers in use with probability 1 - p, and 1, ..., used - 1 of them alike often."""
    n, p = 600, 0.4
    w = told(make(mixing=p), monkeypatch, range(n))[0][:, :used]
    of_first, of_last = ((w == w[:, end, None]).all(2) for end in (0, -1))
    assert (of_first | of_last).all()
    assert (of_first[:, :-1] >= of_first[:, 1:]).all()  # the first w is that of the coarse layers
    share = torch.bincount(of_first.sum(1), minlength=used + 1) / n
    expected = torch.tensor([0.0] + [p / (used - 1)] * (used - 1) + [1 - p])
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize("make", [model, styled2])
def test_both_styles_of_a_training_picture_are_of_its_class(make, monkeypatch):
    """A mapping that is deaf to z has one w for each class: that of the label, at all layers, mixed or not."""
    made = make(classes=3, conditioning="projection", mixing=1.0)
    made.generator.mapping.layers[0].weight.data[:, :5] = 0
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    w, _ = told(made, monkeypatch, range(7), labels)
    of_class = made.map(torch.randn(3, 5), torch.arange(3)).detach()
    assert torch.pdist(of_class).min() > 0.1
    assert torch.allclose(w, of_class[labels][:, None].expand_as(w), atol=1e-6)


@pytest.mark.parametrize("make", [model, styled2])
@pytest.mark.parametrize("p", [0.0, 0.9])
def test_noise_in_training_is_white_and_new_for_each_picture_and_batch(make, p, monkeypatch):
    """Second moments of the noise of 12 pictures in two batches, up to 5 deviations: 1 of each, 0 of any two."""
    made = make(mixing=p)
    noise = torch.cat([told(made, monkeypatch, seeds)[1] for seeds in (range(6), range(6, 12))])
    n = noise.shape[1]
    assert n > 500
    assert (noise @ noise.t() / n - torch.eye(12)).abs().max() < 5 * math.sqrt(2 / n)
    assert abs(noise.mean()) < 5 / math.sqrt(12 * n)


@pytest.mark.parametrize("make", [model, styled2])
def test_a_path_in_w_is_that_of_the_class_named(make, monkeypatch):
    """Of w = (1 + y) z and pictures linear in w, it is (1 + y)^2 times as long as that of class 0."""
    made, pixels = make(classes=3, conditioning="projection"), ModuleFeatures(torch.nn.Identity(), "pixels")
    monkeypatch.setattr(made, "map", lambda z, labels: (1 + labels[:, None]) * z)
    monkeypatch.setattr(made, "synthesise", lambda w: 0.05 * w[:, None, None])
    lengths = [perceptual_path_length(made, pixels, n=4, space="w", epsilon=1e-2, label=y).value for y in range(3)]
    assert lengths == pytest.approx([lengths[0], 4 * lengths[0], 9 * lengths[0]], rel=1e-3)
    assert lengths[0] > 0


@pytest.mark.parametrize("make", [model, styled2, styled3])
def test_the_mapping_learns_a_hundredth_as_fast(make, truth):
    """A step of Adam is h of each parameter: of weights in use it is 0.01 h / sqrt(fan_in), and of biases 0.01 h."""
    layers, h = make().generator.mapping.layers.double(), 1e-3
    inputs = [torch.eye(layer.weight.shape[1], dtype=torch.float64) for layer in layers]

    def in_use():
        return [(layer(x) - layer(0 * x), layer(0 * x)) for layer, x in zip(layers, inputs)]

    before = in_use()
    for parameter in layers.parameters():
        parameter.grad = -torch.ones_like(parameter)
    torch.optim.Adam(layers.parameters(), h).step()
    for (W, b), (W_before, b_before), x in zip(in_use(), before, inputs, strict=True):
        moved = torch.cat([(W - W_before) * math.sqrt(len(x)), b - b_before]) / h
        truth("stylegan", "how fast the mapping network learns", "0.01", (moved - 0.01).abs().max().detach(), 1e-9)


@pytest.mark.parametrize("m", [0.01, 1.0])
@pytest.mark.parametrize("classes", [0, 64])
def test_the_mapping_nearly_keeps_the_mean_square_of_z(m, classes):
    """sqrt(2) max(x, 0.2 x) of x ~ N(0, 1) has a mean square of 1 + 0.2^2, which each layer multiplies by.

    However long z is, and the embedding of the class.
    """
    mapping = MappingNetwork(512, 512, 4, classes=classes, lr_multiplier=m)
    if classes:
        mapping.embedding.weight.data *= 9
    w = mapping(5 * torch.randn(64, 512), torch.arange(64)).detach()
    assert w.square().mean() == pytest.approx(1.04**4, rel=0.1)


@pytest.mark.parametrize("make", [model, styled2, styled3])
def test_a_class_adds_to_the_score_what_lies_in_its_direction(make):
    """<v_y, phi> / sqrt(width) is <u_y, phi>, where u_y is v_y, of mean square 1, at length 1."""
    judge, labels = make(classes=3, conditioning="projection").discriminator, torch.tensor([2, 0, 1, 1])
    with torch.no_grad():
        found = judge(torch.randn(4, 1, 16, 16), labels)
        alone = judge.score(found.features)[:, 0]
        u = F.normalize(judge.embedding.weight, dim=0).t()[labels]
        added = (u * found.features).sum(1)
    assert added.abs().min() > 1e-3
    assert torch.allclose(found.score - alone, added, atol=1e-5)


@pytest.mark.parametrize("make", [model, styled2, styled3])
@pytest.mark.parametrize("loss", LOSSES)
def test_scores_have_a_bias_where_the_loss_sees_how_large_they_are(make, loss):
    """The loss sees it if it changes when all scores, of real and generated pictures, grow by 1."""
    real, fake = 2 * torch.randn(2, 32)
    before, after = (LOSSES[loss].discriminator(real + c, fake + c) for c in (0, 1))
    seen = not torch.allclose(before, after, atol=1e-4)
    assert (make(loss=loss).discriminator.score.bias is not None) == seen


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="mixing"):
        config(mixing=1.5)
    with pytest.raises(ConfigError, match="mapping_lr"):
        StyleGANNetworks(mapping_lr=0.0)
