"""StyleGAN 2: weights of unit norm, two ways to modulate, path lengths beside the Jacobian, and the published sizes."""

from __future__ import annotations

import math

import pytest
import torch

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Samples
from mezzotint.gan.augment import AugmentationConfig
from mezzotint.gan.penalties import ZeroCentred
from mezzotint.gan.stylegan2 import (
    StyleGAN2,
    StyleGAN2Config,
    StyleGAN2Networks,
    Synthesis,
    mixed,
    modulated,
    modulated_grouped,
    modulated_weight,
    path_lengths,
)
from mezzotint.nn.resampling import normalised
from mezzotint.systems import find

TINY = StyleGAN2Networks(channel_base=64, channel_max=8, width=6, mapping_layers=2, group=0)


def config(**choices):
    return StyleGAN2Config(**{"image_size": 8, "channels": 1, "latent": 5, "network": TINY, **choices})


def model(**choices):
    """With noise that is seen, which begins at 0."""
    torch.manual_seed(2)
    made = StyleGAN2(config(**choices))
    for name, parameter in made.named_parameters():
        if name.endswith("strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return made


def batch(n=8, classes=0, channels=1):
    labels = torch.arange(n) % classes if classes else None
    images = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, labels, seeds=list(range(n)))


def inputs(k, dtype=torch.float64):
    x, weight = torch.randn(3, 4, 6, 6, dtype=dtype), torch.randn(5, 4, k, k, dtype=dtype)
    return x, weight, torch.randn(3, 4, dtype=dtype)


@pytest.mark.parametrize("k", [1, 3])
def test_demodulated_weights_have_unit_norm(k, truth):
    _, weight, s = inputs(k)
    norms = modulated_weight(weight, s).square().sum((2, 3, 4))
    truth("stylegan2", f"norm of demodulated weights, {k}x{k}", "1", (norms - 1).abs().max(), 5e-8)


def test_demodulation_keeps_the_variance(truth):
    """Whatever the style, of inputs that do not depend on each other (eq. 2 and 3)."""
    weight, s = torch.randn(16, 32, 3, 3), 10 * torch.randn(8, 32)
    y = modulated(torch.randn(8, 32, 40, 40), weight, s)[..., 1:-1, 1:-1]
    truth("stylegan2", "variance behind a demodulated convolution", "1", (y.var((0, 2, 3)) - 1).abs().max(), 0.08)


@pytest.mark.parametrize(("k", "resample"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("demodulate", [True, False])
def test_scaling_maps_is_modulating_weights(k, demodulate, resample, truth):
    x, weight, s = inputs(k)
    up = normalised((1, 3, 3, 1)).double() if resample else None
    a, b = modulated(x, weight, s, demodulate, up, 1.5), modulated_grouped(x, weight, s, demodulate, up, 1.5)
    assert torch.allclose(b, 1.5 * modulated_grouped(x, weight, s, demodulate, up))
    assert a.shape == b.shape == (3, 5, *((12, 12) if resample else (6, 6)))
    truth("stylegan2", f"modulation, {k}x{k}, up={resample}", "one grouped convolution", (a - b).abs().max(), 2e-14)


def test_both_ways_to_modulate_have_the_same_second_gradients(truth):
    x, weight, s = (t.requires_grad_() for t in inputs(3))
    up = normalised((1, 3, 3, 1)).double()
    direction = torch.randn(3, 5, 12, 12, dtype=torch.float64)

    def second(way):
        (g,) = torch.autograd.grad((way(x, weight, s, True, up).tanh() * direction).sum(), s, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, weight, s))

    error = max((a - b).abs().max() / b.abs().max() for a, b in zip(second(modulated), second(modulated_grouped)))
    truth("stylegan2", "second gradients of modulation", "one grouped convolution", error, 1e-14)


def test_generators_of_both_ways_draw_the_same():
    network = Synthesis(TINY, 1, 8).double()
    other = Synthesis(StyleGAN2Networks(**{**vars(TINY), "modulation": "grouped"}), 1, 8).double()
    other.load_state_dict(network.state_dict())
    w = torch.randn(3, 6, dtype=torch.float64)
    assert torch.allclose(network(w), other(w), atol=1e-12)


def test_path_lengths_are_those_of_the_jacobian(truth):
    """|J^T y| with J written out by autograd, for each picture and layer."""
    g = Synthesis(TINY, 1, 8).double()
    w = torch.randn(2, g.styles, 6, dtype=torch.float64, requires_grad=True)
    noise, y = torch.randn(2, g.noises, dtype=torch.float64), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    found = path_lengths(g(w, noise), w, y).detach()
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v, k=k: g(v, noise[k : k + 1]), w[k : k + 1].detach())
        slope = torch.einsum("bchwdls,bchw->ls", jacobian, y[k : k + 1])
        expected = slope.square().sum(1).mean().sqrt()
        truth("stylegan2", "path length", "|J^T y|, J by autograd", (found[k] - expected).abs() / expected, 1e-13)


def test_the_penalty_on_path_lengths_has_the_gradient_that_differences_have(truth):
    """A double backward pass through the whole generator."""
    g = Synthesis(TINY, 1, 8).double()
    for parameter in g.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    w = torch.randn(2, g.styles, 6, dtype=torch.float64, requires_grad=True)
    noise, y = torch.randn(2, g.noises, dtype=torch.float64), torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def penalty(differentiable=True):
        return (path_lengths(g(w, noise), w, y, differentiable) - 0.5).square().mean()

    weight = g.layers[1].conv.weight
    (gradient,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn_like(weight)
    values = []
    for h in (1e-5, -1e-5):
        weight.data += h * direction
        values.append(penalty(False))
        weight.data -= h * direction
    expected = (values[0] - values[1]) / 2e-5
    error = (((gradient * direction).sum() - expected).abs() / expected.abs()).detach()
    truth("stylegan2", "gradient of the path-length penalty", "central differences", error, 1e-8)


def test_a_linear_generator_has_the_lengths_of_its_columns():
    """g(w) = A w: J^T y = A^T y, whatever w."""
    A, w = torch.randn(16, 6), torch.randn(3, 1, 6, requires_grad=True)
    y = torch.randn(3, 1, 4, 4)
    images = (w[:, 0] @ A.t()).view(3, 1, 4, 4)
    assert torch.allclose(path_lengths(images, w, y), (y.flatten(1) @ A).norm(dim=1), rtol=1e-5)


def test_the_mean_length_is_that_of_the_lengths_seen():
    made = model(path_every=1, path_decay=0.9)
    assert made(batch(), "generator").parts["path/penalty"] == 0  # there is no mean yet
    first = made.lengths[0].mean()
    made.after_step(0)
    assert made.path_length == pytest.approx(first.item(), rel=1e-5)  # not drawn towards 0
    losses = made(batch(), "generator")
    expected = 2.0 * (made.lengths[0] - made.path_length).square().mean()
    assert losses.parts["path/penalty"] == pytest.approx(expected.item(), rel=1e-4)
    second = made.lengths[0].mean()
    made.after_step(1)
    weighted = (0.9 * first + second) / 1.9
    assert made.path_length == pytest.approx(weighted.item(), rel=1e-5)


def test_the_mean_length_forgets_a_hundredth_in_each_step():
    """Of one length 1 and then n - 1 of 0 the weighted mean is a^(n-1) (1 - a) / (1 - a^n), with a = 0.99."""
    made, a = model(), 0.99
    for n in range(1, 41):
        made.lengths = [torch.full((2,), float(n == 1))]
        made.after_step(n)
        assert made.path_length == pytest.approx(a ** (n - 1) * (1 - a) / (1 - a**n), rel=1e-4)


@pytest.mark.parametrize("share", [2, 3])
def test_lengths_are_those_of_one_picture_in_so_many(share):
    """Each with the z, the class, the noise and the direction that it has where lengths of all pictures are taken."""
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    whole, some = (
        model(path_share=k, classes=3, conditioning="projection")
        .lengths_of_paths(labels, PictureRandom(range(7)))
        .detach()
        for k in (1, share)
    )
    assert torch.pdist(whole[:, None]).min() > 1e-4
    assert torch.allclose(some, whole[::share], atol=1e-5)


@pytest.mark.parametrize("size", [256, 1024])
def test_the_weight_of_path_lengths_is_the_published_one(size):
    """gamma = ln 2 / (r^2 (ln r - ln 2)), of lengths that are summed over layers, of directions N(0, I)."""
    c = find("stylegan2").stage("model").sizes["paper"](PictureSpec(size, 3))
    layers = 2 * len(c.network.sizes(size))
    published = math.log(2) / (size**2 * (math.log(size) - math.log(2)))
    assert c.path_weight / size**2 / layers == pytest.approx(published)
    with torch.device("meta"):
        assert StyleGAN2(c).styles == layers


def test_the_penalties_are_taken_now_and_then_and_so_much_heavier():
    made = model(penalty=ZeroCentred(gamma=4.0, every=2), path_every=2)
    made.after_step(0)
    assert made(batch(), "discriminator").parts["penalty"] == 0
    assert made(batch(), "generator").parts["path/penalty"] == 0
    assert not made.lengths
    made.after_step(1)
    always = model(penalty=ZeroCentred(gamma=4.0))
    always.load_state_dict(made.state_dict())
    lazily = made(batch(), "discriminator").parts["penalty"]
    assert lazily > 0
    assert lazily == pytest.approx(2 * always(batch(), "discriminator").parts["penalty"].item(), rel=1e-5)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_lazy_penalties_in_the_step_need_no_other_rates(player, truth):
    """The paper takes k steps and one more for the penalty, with c lr and beta^c, c = k / (k + 1); we take k, with lr.

    Of a constant gradient both move a weight equally far, and have forgotten equally much of the time before.
    """
    stage = find("stylegan2").stage("model")
    config = stage.sizes["paper"](PictureSpec(1024, 3))
    k = {"generator": config.path_every, "discriminator": config.penalty.every}[player]
    assert k == {"generator": 8, "discriminator": 16}[player]
    assert model().turns(0) == ["discriminator", "generator"]  # also where the penalties are taken

    def moved(steps, lr, beta):
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([weight], lr, (0.0, beta))
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            adam.step()
        return torch.cat([weight.detach(), adam.state[weight]["exp_avg_sq"]])

    ours, c = stage.recipes["paper"].optimizer(player), k / (k + 1)
    error = (moved(k, ours.lr, ours.betas[1]) - moved(k + 1, 0.002 * c, 0.99**c)).abs().max()
    what, against = f"{k} steps of Adam, a penalty in one", f"the paper's {k + 1} with corrected rates"
    truth("stylegan2", what, against, error, 2e-15)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_of_its_halves_with_all_penalties(player, classes):
    made = model(classes=classes, conditioning="projection" if classes else "none")
    made.path_seen += 1
    given = batch(8, classes)
    whole = made(given, player).total
    halves = [made(given[rows], player).total for rows in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(whole, sum(halves) / 2, rtol=1e-4)


def test_every_parameter_has_a_gradient_where_all_is_in_use():
    made = model(classes=3, conditioning="projection", network=StyleGAN2Networks(**{**vars(TINY), "group": 4}))
    for player, part in made.players().items():
        made(batch(8, 3), player).total.backward()
        assert all(p.grad is not None and p.grad.any() for p in part.parameters())


def test_all_state_is_kept_with_the_model():
    """What a resumed run goes on with: the mean of w, that of the lengths, p and the scores it goes by."""

    def step(made):
        torch.manual_seed(5)
        losses = [made(batch(), player).total for player in made.turns(0)]
        made.after_step(0)
        return losses

    choices = {"path_every": 2, "augmentation": AugmentationConfig(p=0.3, every=3, pictures=100)}
    made, other = model(**choices), model(**choices)
    for _ in range(2):
        step(made)
    other.load_state_dict(made.state_dict())
    for _ in range(2):
        assert step(made) == step(other)
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), other.buffers()))
    assert made.augment.p != 0.3
    assert made.path_seen == 2


def test_styles_of_the_coarse_layers_are_of_the_first_w():
    first, second = torch.zeros(4, 2), torch.ones(4, 2)
    u = torch.tensor([[0.95, 0.0], [0.1, 0.0], [0.1, 0.5], [0.1, 0.999]])
    found = mixed(first, second, u, 0.9, 5)[:, :, 0]
    expected = [[0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert torch.equal(found, torch.tensor(expected).float())


def test_pictures_are_a_function_of_z_and_the_noise():
    made = model()
    w, noise = made.map(torch.randn(2, 5)), made.noise(PictureRandom([3, 4]))
    assert torch.equal(made.synthesise(w, noise), made.synthesise(w, noise))
    assert torch.allclose(made.synthesise(w, noise)[1:], made.synthesise(w[1:], noise[1:]), atol=1e-5)
    assert torch.equal(made.synthesise(w), made.synthesise(w, "const"))
    assert not torch.allclose(made.synthesise(w, "none"), made.synthesise(w, "const"), atol=1e-3)
    assert not torch.allclose(made.synthesise(w, noise), made.synthesise(w, "const"), atol=1e-3)
    with pytest.raises(ConfigError, match="noise is const"):
        made.synthesise(w, "white")


def test_samples_with_another_noise_have_the_same_w():
    """z is drawn before the noise, so that pictures of a seed differ in the details only."""
    made = model()
    for mode in ("const", "none"):
        w = made.map(torch.cat([PictureRandom([seed]).normal(5) for seed in (7, 8)]))
        assert torch.allclose(made.sample(2, seeds=7, noise=mode), made.synthesise(w, mode).clamp(-1, 1), atol=1e-6)


def test_truncation_ends_at_the_mean_picture():
    made = model()
    for step in range(5):
        made.generator.mapping.follow(step)
    images = made.sample(3, truncation=0.0, noise="const")
    mean = made.synthesise(made.generator.mapping.average[None]).clamp(-1, 1)
    assert torch.allclose(images, mean.expand_as(images), atol=1e-5)
    coarse = made.sample(3, truncation=0.0, cutoff=2, noise="const")
    assert not torch.allclose(coarse[0], coarse[1], atol=1e-2)


def test_strengths_of_noise_learn_as_fast_as_is_said():
    """The same picture, of a strength s / noise_lr, whose gradient is noise_lr times as large."""
    fast = Synthesis(TINY, 1, 8).double()
    slow = Synthesis(StyleGAN2Networks(**{**vars(TINY), "noise_lr": 0.1}), 1, 8).double()
    slow.load_state_dict(fast.state_dict())
    w, noise = torch.randn(2, 6).double(), torch.randn(2, fast.noises).double()
    for synthesis, strength in ((fast, 0.3), (slow, 3.0)):
        for layer in synthesis.layers:
            torch.nn.init.constant_(layer.strength, strength)
    assert torch.allclose(fast(w, noise), slow(w, noise))
    gradients = [torch.autograd.grad(s(w, noise).square().sum(), s.layers[0].strength)[0] for s in (fast, slow)]
    assert torch.allclose(0.1 * gradients[0], gradients[1])


@torch.no_grad()
def test_how_large_a_style_is_matters_to_pictures_alone():
    """A(w) twice as large: so is the picture if these are the layers that make it, and maps are demodulated."""
    g = Synthesis(TINY, 1, 8).double()
    w = torch.randn(2, 6, dtype=torch.float64)
    before = g(w)
    for layers, factor in (([layer.conv for layer in g.layers], 1), (g.to_picture, 2)):
        for layer in layers:
            for parameter in layer.affine.parameters():
                parameter *= 2
        assert torch.allclose(g(w), factor * before, rtol=1e-5, atol=1e-7)


def test_every_style_is_seen_in_the_picture():
    made = model()
    w = torch.randn(1, made.styles, 6, requires_grad=True)
    made.synthesise(w, "none").square().sum().backward()
    assert (w.grad.abs().sum(2) > 0).all()


def test_the_last_style_does_not_change_what_comes_before_it():
    """Coarse to fine: the style of a fine layer leaves the picture of a coarser size as it is."""
    g = Synthesis(TINY, 1, 8)
    with torch.no_grad():
        w = torch.randn(1, g.styles, 6)
        other = torch.cat([w[:, :-1], torch.randn(1, 1, 6)], 1)
        for weight in (g.to_picture[-1].weight, g.to_picture[-1].bias):
            weight.zero_()
        assert torch.allclose(g(w), g(other), atol=1e-6)


def test_a_discriminator_that_sees_the_minibatch_says_so():
    assert not model().batch_statistics
    assert model(network=StyleGAN2Networks(**{**vars(TINY), "group": 4})).batch_statistics


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_their_size(size, channels):
    made = StyleGAN2(config(image_size=size, channels=channels, path_weight=0))
    assert made.sample(2).shape == (2, channels, size, size)
    assert made.discriminator(torch.randn(2, channels, size, size)).score.shape == (2,)
    assert isinstance(made, Samples)


@pytest.mark.parametrize(
    ("size", "base", "group", "gamma"), [(256, 2**14, 8, 1), (512, 2**15, 8, 0.5), (1024, 2**15, 4, 2)]
)
def test_adaptive_augmentation_goes_with_its_published_settings(size, base, group, gamma):
    """As the authors' program has them for these resolutions."""
    config = find("stylegan2-ada").stage("model").sizes["paper"](PictureSpec(size, 3))
    assert (config.network.channel_base, config.network.group, config.penalty.gamma) == (base, group, gamma)
    assert config.augmentation == AugmentationConfig(("blit", "geometry", "colour"), 0.0, 0.6, 500_000, 4)


def test_the_published_numbers_of_parameters(truth):
    """Config F at 1024 pixels, as the authors' program prints them: 30,370,060 and 29,012,513."""
    system = find("stylegan2")
    with torch.device("meta"):
        made = StyleGAN2(system.stage("model").sizes["paper"](PictureSpec(1024, 3)))
    for player, published in (("generator", 30_370_060), ("discriminator", 29_012_513)):
        count = sum(p.numel() for p in made.players()[player].parameters())
        truth("stylegan2", f"parameters of the {player}", "the published number", abs(count - published), 0)
    assert made.styles == 18


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="cannot be halved"):
        StyleGAN2(config(image_size=9))
    with pytest.raises(ConfigError, match="mixing"):
        config(mixing=1.5)
    with pytest.raises(ConfigError, match="group"):
        StyleGAN2Networks(group=1)
    with pytest.raises(ConfigError, match="noise_lr"):
        StyleGAN2Networks(noise_lr=0.0)
    assert math.isclose(config().mixing, 0.9)
