"""StyleGAN 3: the published layers, waves that move exactly, quarter turns of the whole generator, mean squares."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Samples
from mezzotint.evaluation.equivariance import Moves, eq_r, eq_t, equivariance
from mezzotint.gan.augment import AugmentationConfig
from mezzotint.gan.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Networks
from mezzotint.gan.stylegan3 import AliasFreeSynthesis, FourierInput, StyleGAN3, StyleGAN3Config, StyleGAN3Networks
from mezzotint.gan.waves import Waves
from mezzotint.nn.motion import rigid
from mezzotint.systems import find

TINY = StyleGAN3Networks(
    channel_base=64, channel_max=6, layers=3, critical=1, first_cutoff=1.0, first_stopband=2.0, margin=2, filter_size=4,
    width=6, critic_base=64, critic_max=8, group=0,
)  # fmt: skip
ROUND = {"kernel": 1, "radial": True}
T, R = StyleGAN3Networks(), StyleGAN3Networks(65536, 1024, kernel=1, radial=True)


def network(**choices):
    return StyleGAN3Networks(**{**vars(TINY), **choices})


def config(**choices):
    return StyleGAN3Config(**{"image_size": 8, "channels": 1, "latent": 5, "network": TINY, **choices})


def model(**choices):
    torch.manual_seed(2)
    return StyleGAN3(config(**choices))


def batch(n=8, classes=0):
    labels = torch.arange(n) % classes if classes else None
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, labels, seeds=list(range(n)))


def numbers(part):
    return sum(p.numel() for p in part.parameters())


def paper(name, size):
    return find(name).stage("model").sizes["paper"](PictureSpec(size, 3))


@pytest.mark.parametrize(
    ("name", "size", "millions"), [("stylegan3-t", 1024, 22.3), ("stylegan3-t", 256, 23.3), ("stylegan3-r", 256, 15.8)]
)
def test_the_published_numbers_of_parameters(name, size, millions, truth):
    """Karras et al. 2021, text of section 4, and figure 5, G-CNN comparison, at 256 pixels with half of the channels.

    At 1024 pixels config R has 15.1 million by figure 16, and not the 15.8 million of the text, which are those of 256.
    """
    with torch.device("meta"):
        made = StyleGAN3(paper(name, size))
    error = abs(numbers(made.generator) / 1e6 - millions)
    truth(name, f"millions of parameters of the generator, {size} pixels", "the published number", error, 0.05)
    assert made.styles == 16
    if size == 1024:
        assert numbers(made.discriminator) == 29_012_513  # of StyleGAN 2


def test_each_layer_of_config_r_has_four_ninths_of_the_weights_of_config_t():
    """Section 3.2: twice the channels, and one weight in place of nine, "56% fewer trainable parameters"."""
    with torch.device("meta"):
        t, r = (AliasFreeSynthesis(network, 3, 1024, 1) for network in (T, R))
    for ours, theirs in zip(t.layers, r.layers):
        assert theirs.weight.numel() / ours.weight.numel() == pytest.approx(4 / 9, rel=0.02)  # channels are rounded


@pytest.mark.parametrize(("size", "t", "r"), [(1024, 32.8, 32.8), (512, 8.2, 16.4), (256, 1.0, 1.0)])
def test_the_weight_of_r1_is_the_published_one(size, t, r):
    """Figure 16 and the authors' commands, of FFHQ and AFHQv2."""
    assert paper("stylegan3-t", size).penalty.gamma == pytest.approx(t, abs=0.05)
    assert paper("stylegan3-r", size).penalty.gamma == pytest.approx(r, abs=0.05)


def test_config_r_has_the_layers_that_the_authors_program_prints(truth):
    """At 128 pixels, parameters of the layers without A, and of A, as in a log that a user made public."""
    with torch.device("meta"):
        made = AliasFreeSynthesis(R, 3, 128, 20_000)
    printed = [1_049_600] * 10 + [934_800, 623_579, 350_208, 262_656, 1539]
    of_styles = [525_312] * 11 + [467_856, 350_379, 262_656, 262_656]
    layers = [*made.layers, made.picture]
    error = abs(numbers(made.input.mix) - 1_048_576) + abs(numbers(made.input.affine) - 2052)
    for layer, parameters, style in zip(layers, printed, of_styles, strict=True):
        error += abs(numbers(layer) - numbers(layer.affine) - parameters) + abs(numbers(layer.affine) - style)
    truth("stylegan3-r", "parameters of all layers at 128 pixels", "the authors' program", error, 0)
    assert [b.size for b in made.bands] == [36] * 3 + [52] * 3 + [84] * 3 + [148] * 4 + [128] * 2


def test_bands_grow_geometrically_and_the_last_are_critical():
    bands = T.bands(1024, 3)
    cutoffs = [b.cutoff for b in bands]
    assert cutoffs[0] == 2
    assert cutoffs[12:] == pytest.approx([512] * 3)  # N_crit = 2, and the picture
    assert {round(math.log(b / a), 9) for a, b in pairwise(cutoffs[:13])} == {round(math.log(256) / 12, 9)}
    for b in bands[:-3]:
        assert b.rate / 2 >= b.stopband or b.rate == 1024  # nothing is above half the rate, where there is room
        assert b.rate == 1024 or b.rate / 4 < b.stopband  # and no more room than that
    assert bands[12].half_width == pytest.approx(512 * (2**0.3 - 1))


@pytest.mark.parametrize("size", [28, 36, 31])
def test_sizes_that_are_no_power_of_two_have_rates_as_well(size):
    bands = StyleGAN3Networks(layers=5).bands(size, 1)
    assert all(size % b.rate == 0 for b in bands)
    assert bands[-1].size == bands[-2].size == size


@pytest.mark.parametrize("choices", [T, R])
def test_a_nonlinearity_works_on_a_grid_twice_as_fine_as_the_finer_map(choices):
    """Section 3.2: m = 2; filters have n = 6 taps for each pixel of the coarser grid."""
    with torch.device("meta"):
        made = AliasFreeSynthesis(choices, 3, 1024, 1)
    for layer, (before, after) in zip(made.layers, pairwise((made.bands[0], *made.bands))):
        to = layer.activation.resampling
        assert to.up * before.rate == to.down * after.rate == 2 * max(before.rate, after.rate)
        assert (len(to.taps_up), len(to.taps_down)) == (6 * to.up, 6 * to.down)


@pytest.mark.parametrize("size", [128, 1024])
def test_filters_of_config_r_are_round_but_where_sampling_is_critical(size):
    """Section 3.2: those on the way down, in all but the last two layers, whose cutoff is half of their rate."""
    with torch.device("meta"):
        t, r = (AliasFreeSynthesis(network, 3, size, 1) for network in (T, R))
    ways = [layer.activation.resampling for layer in r.layers]
    assert [to.taps_down.dim() for to in ways] == [2] * 12 + [1] * 2
    assert [to.taps_down.dim() == 1 for to in ways] == [b.cutoff == pytest.approx(b.rate / 2) for b in r.bands[:-1]]
    assert all(to.taps_up.dim() == 1 for to in ways)
    assert all(layer.activation.resampling.taps_down.dim() == 1 for layer in t.layers)


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, ROUND])
def test_where_a_map_is_flat_a_layer_is_leaky_relu(kind):
    """Filters leave constants alone: in the middle b becomes sqrt(2) max(b, 0.2 b)."""
    made = AliasFreeSynthesis(network(layers=4, margin=8, filter_size=6, **kind), 1, 32, 1)
    for layer, before in zip(made.layers, (made.bands[0], *made.bands)):
        x = torch.zeros(1, before.channels, before.size, before.size)
        for b, expected in ((1.0, math.sqrt(2)), (-1.0, -0.2 * math.sqrt(2))):
            layer.bias.fill_(b)
            y = layer(x, torch.zeros(1, 6), torch.tensor(1.0))
            middle = y[..., y.shape[-1] // 2 - 1 :, y.shape[-1] // 2 - 1 :][..., :2, :2]
            assert torch.allclose(middle, torch.tensor(expected), rtol=0.02)


@torch.no_grad()
def test_how_large_a_style_is_matters_to_the_last_layer_alone():
    """A(w) twice as large: so is the picture if it is that of the layer that makes it; others are demodulated."""
    made = AliasFreeSynthesis(TINY, 1, 8, 1).double()
    w = torch.randn(2, 6, dtype=torch.float64)
    for layers, factor in ((made.layers, 1), ([made.picture], 2)):
        before = made(w)
        for layer in layers:
            for parameter in layer.affine.parameters():
                parameter *= 2
        assert torch.allclose(made(w), factor * before, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_pictures_are_a_quarter_of_what_the_last_layer_says():
    """Of one whose weights are 0 and whose biases are 1; so pictures begin with a deviation of about 1/4."""
    made = AliasFreeSynthesis(TINY, 3, 8, 1)
    made.picture.weight.zero_()
    made.picture.bias.fill_(1.0)
    assert torch.equal(made(torch.randn(2, 6)), torch.full((2, 3, 8, 8), 0.25))


@torch.no_grad()
def test_each_layer_divides_by_the_root_of_its_mean_square():
    """Without biases layers are homogeneous: where one keeps a mean square of 4, not 1, pictures are half as large."""
    made = AliasFreeSynthesis(TINY, 1, 8, 1).double()
    w = torch.randn(2, 6, dtype=torch.float64)
    for kept in made.magnitudes:
        before = made(w)
        kept.fill_(4.0)
        assert torch.allclose(made(w), before / 2, rtol=1e-6)


def test_in_the_end_what_goes_into_each_layer_has_a_mean_square_of_one():
    made, w, squares = AliasFreeSynthesis(TINY, 1, 8, 1), torch.randn(8, 6), []
    for _ in range(12):  # of 8 pictures, which leave 1/256 of what was kept
        made(w)
        made.follow()
    for layer in (*made.layers, made.picture):
        layer.register_forward_pre_hook(lambda _, given: squares.append((given[0] * given[2]).square().mean().item()))
    made(w)
    assert squares == pytest.approx([1.0] * len(made.bands), rel=1e-4)


def test_pictures_that_are_only_looked_at_move_no_mean_square():
    made = model()
    made.sample(2)
    made.eval()
    made.synthesise(torch.randn(2, 6, requires_grad=True)).sum().backward()
    made.after_step(0)
    assert (made.generator.synthesis.magnitudes == 1).all()
    assert made.generator.synthesis.pictures == 0


def fourier(channels=5):
    torch.manual_seed(3)
    return FourierInput(channels, 4, 12, 8, 2.0).double().requires_grad_(False)


def test_waves_move_by_whole_pixels_and_quarter_turns(truth):
    made, w = fourier(), torch.randn(2, 4, dtype=torch.float64)
    still = made(w)
    moved = made(w, rigid(0.0, (3 / 8, -1 / 8)))  # 8 pixels are one width
    error = (moved[..., :-1, 3:] - still[..., 1:, :-3]).abs().max()
    truth("stylegan3", "waves moved by pixels", "pixels moved", error, 1e-15)
    error = (made(w, rigid(90.0)) - torch.rot90(still, -1, (2, 3))).abs().max()  # clockwise
    truth("stylegan3", "waves turned by 90 degrees", "pixels turned", error, 1e-15)


def test_a_motion_that_w_chooses_is_that_which_the_user_chooses(truth):
    made, w = fourier(), torch.zeros(1, 4, dtype=torch.float64)
    expected = made(w, rigid(30.0, (0.2, -0.1)))
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    made.affine.bias.data.copy_(5 * torch.tensor([c, s, 0.2, -0.1]))  # up to a factor
    truth("stylegan3", "the motion of A(w)", "the same motion given", (made(w) - expected).abs().max(), 5e-7)
    # what the user asks for comes last: the turned and shifted picture is turned and shifted
    twice = made(w, rigid(30.0, (0.2, -0.1)))
    made.affine.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    both = made(w, rigid(30.0, (0.2, -0.1)) @ rigid(30.0, (0.2, -0.1)))
    assert torch.allclose(twice, both, atol=1e-6)


def test_frequencies_are_spread_evenly_over_a_disc(truth):
    """Of |f|^2 / f_c^2, uniform on [0, 1], the mean is 1/2 and the mean square 1/3; of cos^2 of the angle 1/2."""
    made = Waves(20_000, 4, 4.0, 2.0)
    share = made.frequencies.square().sum(1) / 4
    along = made.frequencies[:, 0].square() / made.frequencies.square().sum(1)
    assert share.max() <= 1
    error = max(abs(share.mean() - 1 / 2), abs(share.square().mean() - 1 / 3), abs(along.mean() - 1 / 2))
    truth("stylegan3", "moments of frequencies", "those of a disc", error, 0.006)  # of 20,000: 0.0025 each
    assert abs(made(1).square().mean() - 0.5) < 0.01  # so have waves at any phase


def test_waves_that_the_pixels_cannot_hold_are_left_out():
    made, w = fourier(), torch.zeros(1, 4, dtype=torch.float64)
    smaller = torch.diag(torch.tensor([0.02, 0.02, 1.0]))
    made.frequencies.fill_(1.0)
    assert made(w, smaller).abs().max() == 0
    assert made(w, torch.diag(torch.tensor([0.9, 0.9, 1.0]))).std() > 0.1


def test_config_r_turns_with_its_input_by_quarters(truth):
    """The whole generator: no direction is distinguished, neither by a weight nor by a filter nor at a border."""
    torch.manual_seed(4)
    made = AliasFreeSynthesis(network(**ROUND), 2, 8, 100).double().requires_grad_(False)
    w = torch.randn(2, 6, dtype=torch.float64)
    still = made(w)
    error = (made(w, rigid(90.0)) - torch.rot90(still, -1, (2, 3))).abs().max() / still.std()
    truth("stylegan3-r", "a quarter turn of the input", "a quarter turn of the picture", error, 2e-14)
    other = AliasFreeSynthesis(network(), 2, 8, 100).double()
    still = other(w)
    assert (other(w, rigid(90.0)) - torch.rot90(still, -1, (2, 3))).abs().max() > 0.1 * still.std()  # T does not


def generators(count, **choices):
    """Untrained, for 32 pixels, with the mean squares that they have in the end, and pictures of deviation 1/2."""
    torch.manual_seed(5)
    wide = {"channel_max": 8, "channel_base": 512, "layers": 4, "critical": 2, "margin": 10, "filter_size": 6}
    made = AliasFreeSynthesis(network(**{**wide, **choices}), 1, 32, 1)
    for _ in range(6):
        with torch.enable_grad():
            images = made(torch.randn(4, 6)).detach()
        made.follow()
    made.eval()
    return [lambda motion, w=w: made(w, motion) / (2 * images.std()) for w in torch.randn(count, 1, 6)]


@torch.no_grad()
def test_an_untrained_generator_is_equivariant_as_its_kind_says():
    t, r = generators(4), generators(4, **ROUND)
    assert eq_t(t) > 40
    assert eq_r(t) < 25
    assert eq_t(r) > 40
    assert eq_r(r) > 35


@torch.no_grad()
def test_margins_keep_borders_from_being_seen():
    """Translations bring what is outside into the picture; without margins there is nothing but zeros."""
    assert eq_t(generators(2, margin=0)) < eq_t(generators(2)) - 10


def test_all_three_numbers_of_a_model():
    made = model(network=network(**ROUND))
    assert isinstance(made, Moves)
    found = equivariance(made, 4, batch_size=2)
    assert set(found) == {"eq_t", "eq_t_frac", "eq_r"}
    assert all(math.isfinite(number.value) for number in found.values())


def test_a_stylegan_2_that_begins_with_waves_can_be_moved_and_sticks():
    """Config B of Karras et al. 2021; waves alone do not make the layers behind them equivariant."""
    torch.manual_seed(6)
    start = StyleGAN2Networks(channel_base=256, channel_max=16, width=6, mapping_layers=2, group=0, start="waves")
    made = StyleGAN2(StyleGAN2Config(32, latent=5, network=start, path_weight=0))
    still = made.moved(2)
    assert torch.equal(made.moved(2, rigid()), still)
    found = equivariance(made, 4)
    scale = 20 * math.log10(2 * still.std())  # as if of deviation 1/2
    assert 0 < found["eq_t"].value + scale < 30
    assert 0 < found["eq_r"].value + scale < 25
    with pytest.raises(ConfigError, match="learned constant"):
        StyleGAN2(StyleGAN2Config(32, latent=5, network=TINY.critic())).moved(1, rigid())


def test_mean_squares_are_those_of_the_maps_that_were_seen(truth):
    made = model(magnitude_half_life=8)
    made(batch(), "generator")
    first, n = made.generator.synthesis.seen[0]
    made(batch(), "discriminator")
    assert len(made.generator.synthesis.seen) == 1  # its pictures are not looked at
    made.after_step(0)
    assert n == 8
    assert torch.allclose(made.generator.synthesis.magnitudes, first)  # not drawn towards 1
    made(batch(), "generator")
    second = made.generator.synthesis.seen[0][0]
    made.after_step(1)
    expected = (0.5 * first + second) / 1.5  # half of what was seen 8 pictures ago is forgotten
    error = (made.generator.synthesis.magnitudes - expected).abs().max()
    truth("stylegan3", "moving average of mean squares", "the weighted mean", error, 5e-7)


def test_the_input_has_the_mean_square_that_is_kept():
    made = model().eval()
    x = made.generator.synthesis.input(made.map(torch.randn(3, 5)))
    made.train()
    made(batch(), "generator")
    assert made.generator.synthesis.seen[0][0][0] == pytest.approx(x.square().mean().item(), rel=0.3)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(player, classes):
    made = model(classes=classes, conditioning="projection" if classes else "none", blur=0.8, blur_steps=10)
    given = batch(8, classes)
    whole = made(given, player).total
    halves = [made(given[rows], player).total for rows in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(whole, sum(halves) / 2, rtol=1e-4)


def test_pictures_are_blurred_and_then_augmented():
    """Appendix F.2. A picture that is moved by whole pixels, its mirror image coming in, is blurred before that."""
    pipe = AugmentationConfig(("blit",), p=1.0, target=None)
    made, x = model(blur=1.0, blur_steps=10, augmentation=pipe), batch().images
    expected = made.discriminator(made.augment(made.blurred(x), PictureRandom(range(8)))).score
    other = made.discriminator(made.blurred(made.augment(x, PictureRandom(range(8))))).score
    for score in (made.judge(x, None, PictureRandom(range(8))).score, made.slope_of(x, None, PictureRandom(range(8)))):
        assert torch.allclose(score, expected, atol=1e-6)
        assert not torch.allclose(score, other, atol=1e-4)


def test_the_discriminator_may_see_the_minibatch():
    made = model(network=network(group=4))
    assert made.batch_statistics
    assert not model().batch_statistics
    assert torch.isfinite(made(batch(), "discriminator").total)


def test_the_blur_fades():
    made, x = model(blur=2.0, blur_steps=4), torch.zeros(1, 1, 25, 25)
    x[..., 12, 12] = 1
    t = torch.arange(25.0) - 12
    for deviation in (2.0, 1.5, 1.0, 0.5):
        y = made.blurred(x)
        assert y.sum() == pytest.approx(1, abs=1e-4)
        variance = (y[0, 0].sum(0) * t.square()).sum()
        assert variance == pytest.approx(deviation**2, rel=0.2)  # up to three deviations
        made.after_step(0)
    assert torch.equal(made.blurred(x), x)


def test_samples_move_when_they_are_told_to():
    made = model(network=network(**ROUND))
    still = made.sample(2, seeds=3)
    for turned in (made.sample(2, seeds=3, rotate=90.0), made.sample(2, seeds=3, transform=rigid(90.0))):
        assert torch.allclose(turned, torch.rot90(still, -1, (2, 3)), atol=1e-4)
    assert not torch.allclose(made.sample(2, seeds=3, translate=(0.25, 0.0)), still, atol=1e-2)
    each = torch.stack([rigid(), rigid(90.0)])
    assert torch.allclose(made.sample(2, seeds=3, transform=each)[:1], still[:1], atol=1e-5)


def test_truncation_ends_at_the_mean_picture():
    made = model()
    for step in range(5):
        made.generator.mapping.follow(step)
    images = made.sample(3, truncation=0.0)
    mean = made.synthesise(made.generator.mapping.average[None]).clamp(-1, 1)
    assert torch.allclose(images, mean.expand_as(images), atol=1e-5)


def test_every_style_is_seen_in_the_picture():
    made = model()
    torch.nn.init.normal_(made.generator.synthesis.input.affine.weight)
    w = torch.randn(1, made.styles, 6, requires_grad=True)
    made.synthesise(w).square().sum().backward()
    assert (w.grad.abs().sum(2) > 0).all()


@pytest.mark.parametrize("size", [16, 28, 32])
@pytest.mark.parametrize("name", ["stylegan3-t", "stylegan3-r"])
def test_pictures_have_their_size(size, name):
    made = StyleGAN3(find(name).stage("model").sizes["small"](PictureSpec(size, 3)))
    images = made.sample(2)
    assert images.shape == (2, 3, size, size)
    assert 0.05 < images.std() < 1
    assert made.discriminator(images).score.shape == (2,)
    assert isinstance(made, Samples)


def test_what_cannot_be_is_refused():
    for choices, match in (
        ({"layers": 1}, "sample critically"), ({"kernel": 2}, "kernel"), ({"filter_size": 5}, "even"),
        ({"last_stopband": 1.0}, "stopband"), ({"margin": -1}, "margin"),
        ({"mapping_lr": 0.0}, "mapping_lr"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            network(**choices)
    with pytest.raises(ConfigError, match="larger ones"):
        config(image_size=2)
    with pytest.raises(ConfigError, match="blur"):
        config(blur=1.0)
    for transform, match in ((torch.eye(2), "3 x 3"), (torch.diag(torch.tensor([1.0, 0.0, 1.0])), "flat")):
        with pytest.raises(ConfigError, match=match):
            model().sample(1, transform=transform)
