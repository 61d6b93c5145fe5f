"""ProGAN: phases by hand, networks that do not notice when a map is added, and the published sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import mezzotint as mz
from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.checkpoint import latest, load_tensors
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Samples
from mezzotint.core.system import Optimizer, Recipe
from mezzotint.data import open_pictures
from mezzotint.gan.augment import AugmentationConfig
from mezzotint.gan.layers import scaled_leaky_relu
from mezzotint.gan.penalties import GradientPenalty, NoPenalty
from mezzotint.gan.progan import (
    Doubling,
    FirstMap,
    Growing,
    Halving,
    Phase,
    ProGAN,
    ProGANConfig,
    ProGANNetworks,
)
from mezzotint.nn.resampling import BOX
from mezzotint.systems import find
from mezzotint.training.schedule import Budget
from mezzotint.training.trainer import Trainer

TINY = ProGANNetworks(channel_base=64, channel_max=8, group=0)


def config(**choices):
    same = {"image_size": 16, "channels": 1, "latent": 5, "network": TINY, "growing": Growing(4, 3)}
    return ProGANConfig(**{**same, **choices})


def model(**choices):
    torch.manual_seed(2)
    return ProGAN(config(**choices))


def batch(n=8, classes=0, channels=1):
    labels = torch.arange(n) % classes if classes else None
    images = torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, labels, seeds=list(range(n)))


def repeated(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_phases_are_those_counted_by_hand():
    """Three levels, 3 stable steps and 4 of fading in."""
    expected = [(0, 1)] * 3
    expected += [(1, 0), (1, 0.25), (1, 0.5), (1, 0.75)] + [(1, 1)] * 3
    expected += [(2, 0), (2, 0.25), (2, 0.5), (2, 0.75)] + [(2, 1)] * 20
    growing = Growing(fade_steps=4, stable_steps=3)
    assert [growing.phase(moves, 3) for moves in range(len(expected))] == expected
    assert growing.milestones(3) == (0, 5, 12)
    assert growing.ends(3) == (3, 10, 17)


def test_growing_may_begin_later_or_not_at_all():
    assert [Growing(4, 3, first=1).phase(moves, 3) for moves in (0, 2, 3, 5, 7)] == [
        (1, 1.0), (1, 1.0), (2, 0.0), (2, 0.5), (2, 1.0),
    ]  # fmt: skip
    assert Growing(0, 0).phase(0, 3) == Growing(4, 3, first=9).phase(0, 3) == (2, 1.0)
    assert [Growing(0, 2).phase(moves, 3) for moves in (1, 2, 4)] == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_steps_lead_from_phase_to_phase_and_a_resumed_run_is_where_it_was():
    made = model()
    found = []
    for step in range(18):
        found.append(made.phase)
        made.after_step(step)
    assert found == [made.config.growing.phase(moves, 3) for moves in range(18)]
    made.grow(12)
    again = model()
    again.load_state_dict(made.state_dict())
    assert again.phase == (2, 0.5)
    assert torch.equal(again.sample(2), made.sample(2))
    made.grow()
    assert made.phase == (2, 1.0)


def test_a_run_resumed_while_it_grows_ends_as_one_that_was_never_interrupted(tmp_path):
    """Two stable steps at 4 pixels, two of fading in, of which the first one was made, then two at 8 pixels."""
    pictures = open_pictures("fashion", image_size=8)

    def trainer(directory):
        torch.manual_seed(0)
        made = mz.create("progan", image_size=8, growing__fade_steps=2, growing__stable_steps=2)
        recipe = Recipe(batch_size=8, optimizers={"model": Optimizer(lr=1e-2, betas=(0.0, 0.99))})
        return Trainer(made, pictures, tmp_path / directory, recipe, Budget(pictures=96), precision="fp32")

    trainer("whole").run()
    first = trainer("parts")
    after, steps = first.model.after_step, []

    def stop_in_the_middle(step):
        steps.append(step)
        first.asked_to_stop = len(steps) == 3
        after(step)

    first.model.after_step = stop_in_the_middle
    assert first.run().interrupted
    assert first.model.phase == (1, 0.5)
    second = trainer("parts")
    second.resume()
    assert second.model.phase == second.average.model.phase == (1, 0.5)
    second.run()
    assert second.model.phase == (1, 1.0)
    for file in ("model", "ema", "state"):
        one, other = (load_tensors(latest(tmp_path / run) / f"{file}.safetensors") for run in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file


@pytest.mark.parametrize("level", [1, 2])
def test_a_generator_does_not_notice_a_new_map(level, truth):
    """alpha = 0: the smaller network, its pixels repeated; in between, the line to the larger one."""
    g, z = model().generator.double().requires_grad_(False), torch.randn(3, 5, dtype=torch.float64)
    before = repeated(g(z, phase=Phase(level - 1, 1.0)))
    error = (g(z, phase=Phase(level, 0.0)) - before).abs().max()
    truth("progan", "generator, alpha 0", "smaller generator, enlarged", error, 0)
    whole = g(z, phase=Phase(level, 1.0))
    assert not torch.allclose(whole, before, atol=0.1)
    error = (g(z, phase=Phase(level, 0.3)) - (0.7 * before + 0.3 * whole)).abs().max()
    truth("progan", "generator, alpha 0.3", "mean of both by hand", error, 1e-15)
    torch.nn.init.zeros_(g.to_picture[level - 1].weight)  # of a picture that has been faded out
    assert torch.equal(g(z, phase=Phase(level, 1.0)), whole)


@pytest.mark.parametrize("level", [1, 2])
def test_a_discriminator_does_not_notice_a_new_map(level, truth):
    """alpha = 0: the smaller network, of the picture reduced."""
    d, size = model().discriminator.double(), 4 * 2**level
    x = torch.randn(3, 1, size, size, dtype=torch.float64)
    before = d(F.avg_pool2d(x, 2), phase=Phase(level - 1, 1.0)).score
    error = (d(x, phase=Phase(level, 0.0)).score - before).abs().max()
    truth("progan", "discriminator, alpha 0", "smaller discriminator, picture reduced", error, 0)
    whole = d(x, phase=Phase(level, 1.0)).score
    torch.nn.init.zeros_(d.from_picture[level - 1].weight)
    assert torch.equal(d(x, phase=Phase(level, 1.0)).score, whole)
    assert not torch.allclose(whole, before, atol=1e-2)


def test_the_scores_of_training_do_not_jump_when_a_map_comes(truth):
    """The last step before it and the first one with it, of the same batch: real and generated pictures."""
    made = model(penalty=NoPenalty())
    made.grow(9)
    before = made(batch(), "discriminator").parts, made(batch(), "generator").total
    made.grow(10)
    after = made(batch(), "discriminator").parts, made(batch(), "generator").total
    assert made.phase == (2, 0.0)
    error = max((before[0][key] - after[0][key]).abs() for key in ("score/real", "score/fake"))
    truth("progan", "scores when a map is added", "scores just before", error, 1e-7)
    assert torch.allclose(before[1], after[1], atol=1e-6)


def test_real_pictures_are_seen_as_generated_ones_are():
    made, x = model(), batch().images
    assert torch.allclose(made.seen(x), F.avg_pool2d(x, 4))
    made.grow(10)
    assert torch.allclose(made.seen(x), repeated(F.avg_pool2d(x, 2)))
    made.grow(11)
    assert torch.allclose(made.seen(x), 0.75 * repeated(F.avg_pool2d(x, 2)) + 0.25 * x)
    made.grow()
    assert torch.equal(made.seen(x), x)


def test_pictures_have_their_full_size_at_any_phase():
    made = model()
    for moves, size in ((0, 4), (5, 8), (12, 16)):
        made.grow(moves)
        images = made.sample(2, seeds=3)
        assert images.shape == (2, 1, 16, 16)
        small = F.avg_pool2d(images, 16 // size)
        assert torch.allclose(made.enlarged(small), images, atol=1e-6)
        assert made.resolution == size
    assert isinstance(made, Samples)


def test_figure_20_shows_what_each_map_makes():
    made = model()
    made.grow()
    for level, size in enumerate((4, 8, 16)):
        images = made.sample(2, seeds=3, resolution=size)
        z = made.codes([3, 4])
        expected = made.generator(z, phase=Phase(level, 1.0)).clamp(-1, 1)
        assert torch.allclose(F.avg_pool2d(images, 16 // size), expected, atol=1e-6)
    assert torch.equal(made.sample(2, resolution=16), made.sample(2))
    made.grow(5)
    with pytest.raises(ConfigError, match="of 4, 8 pixels, not of 16"):
        made.sample(2, resolution=16)


@pytest.mark.parametrize("growing", [Growing(4, 3), Growing(1, 1), Growing(0, 2), Growing(0, 0), Growing(4, 3, 1)])
def test_each_weight_is_in_use_at_a_milestone(growing):
    made = model(growing=growing, penalty=NoPenalty())
    for player, part in made.players().items():
        made.zero_grad()
        for moves in made.milestones:
            made.grow(moves)
            made(batch(), player).total.backward()
        assert all(p.grad is not None and p.grad.any() for p in part.parameters())


def test_the_critic_is_kept_from_drifting(truth):
    """D(G(z)) - D(x) + epsilon D(x)^2 + penalty."""
    made = model(drift=0.5, penalty=GradientPenalty())
    losses = made(batch(), "discriminator")
    real = made.verdict(made.seen(batch().images), None).score
    p = losses.parts
    expected = p["score/fake"] - p["score/real"] + 0.5 * real.square().mean() + p["penalty"]
    truth("progan", "loss of the critic", "its terms by hand", (losses.total - expected).abs(), 1e-6)
    assert p["penalty"] > 0
    assert made.discriminator.score.bias is not None  # it has something to learn
    assert model(drift=0.0).discriminator.score.bias is None


def test_the_slope_is_by_the_pixels_of_the_present_resolution():
    """A critic that adds up all pixels has a slope of n, the root of their number."""
    made = model(penalty=GradientPenalty(weight=1.0))
    for moves, n in ((0, 4), (9, 8)):
        made.grow(moves)
        made.slope_of = lambda x, labels, random: x.sum((1, 2, 3))
        penalty = made(batch(), "discriminator").parts["penalty"]
        assert penalty == pytest.approx((n - 1) ** 2, rel=1e-4)


def test_the_first_map_is_a_convolution_of_a_single_pixel(truth):
    layer, z = FirstMap(6, 3, 4).double(), torch.randn(2, 6, dtype=torch.float64)
    weight, bias = layer.scaled()
    expected = F.conv2d(z[:, :, None, None], weight.flip(2, 3), bias, padding=3)
    truth("progan", "first map", "convolution of a padded pixel", (layer(z) - expected).abs().max(), 1e-15)


def test_doubling_is_repeating_pixels_and_then_a_convolution(truth):
    """Up to the border."""
    block, x = Doubling(4, 3).double(), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = F.conv2d(repeated(x), *block.first.scaled(), padding=1)
    truth("progan", "convolution on the way up", "repeat, convolve", (block.first(x) - expected).abs().max(), 1e-14)
    assert torch.allclose(block(x).square().mean(1), torch.ones(2, 12, 12).double(), atol=1e-5)


def test_the_fused_halving_takes_means_before_leaky_relu(truth):
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    fused, whole = Halving(4, 3, BOX, True).double(), Halving(4, 3, BOX, False).double()
    whole.load_state_dict(fused.state_dict(), strict=False)
    h = F.conv2d(scaled_leaky_relu(whole.first(x), 1), *whole.second.scaled(), padding=1)
    expected = scaled_leaky_relu(F.avg_pool2d(h, 2), 1)
    truth("progan", "fused halving", "convolve, then means", (fused(x) - expected).abs().max(), 2e-15)
    assert torch.allclose(whole(x), F.avg_pool2d(scaled_leaky_relu(h, 1), 2), atol=1e-12)


def test_a_minibatch_whose_pictures_see_each_other():
    seeing = ProGANNetworks(**{**vars(TINY), "group": 4})
    assert model(network=seeing).batch_statistics
    assert not model().batch_statistics


def test_both_players_are_told_the_class():
    made = model(classes=3, conditioning="projection")
    made.grow()
    images = made.sample(3, labels=[0, 1, 2], seeds=[5, 5, 5])
    assert (images[0] - images[1]).abs().max() > 0.05
    x = batch().images[:1].expand(3, -1, -1, -1)
    scores = made.discriminator(x, torch.arange(3)).score
    assert (scores[0] - scores[1]).abs() > 1e-3
    for player in ("generator", "discriminator"):
        assert torch.isfinite(made(batch(6, 3), player).total)


def test_the_watch_looks_at_what_the_players_see():
    made = model()
    found = made.watch(batch().images)
    seen = made.enlarged(made.seen(batch().images))
    assert found.numbers == made.watch(seen).numbers
    assert 0 <= found.numbers["right"] <= 1


@pytest.mark.parametrize(("size", "sizes"), [(28, (7, 14, 28)), (32, (4, 8, 16, 32))])
def test_the_coarsest_map_has_four_pixels_or_seven(size, sizes):
    made = ProGAN(config(image_size=size, channels=3))
    assert made.config.sizes == sizes
    assert made.sample(1).shape == (1, 3, size, size)


def test_the_published_numbers_of_parameters(truth):
    """Table 2: 23.1 million each at 1024 pixels; and its layers, added up, with the outputs and inputs of all sizes."""
    system = find("progan")
    with torch.device("meta"):
        made = ProGAN(system.stage("model").sizes["paper"](PictureSpec(1024, 3)))
    widths = [512, 512, 512, 512, 256, 128, 64, 32, 16]

    def conv(before, after, k=3):
        return before * after * k**2 + after

    pairs = list(pairwise(widths))
    generator = conv(512, 512, 4) + conv(512, 512) + sum(conv(a, b) + conv(b, b) for a, b in pairs)
    generator += sum(conv(w, 3, 1) for w in widths)
    critic = sum(conv(3, w, 1) for w in widths) + sum(conv(b, b) + conv(b, a) for a, b in pairs)
    critic += conv(513, 512) + conv(512, 512, 4) + conv(512, 1, 1)
    for player, by_hand in (("generator", generator), ("discriminator", critic)):
        count = sum(p.numel() for p in made.players()[player].parameters())
        truth("progan", f"parameters of the {player}", "layers of table 2 added up", abs(count - by_hand), 0)
        truth("progan", f"parameters of the {player}, millions", "23.1", abs(count / 1e6 - 23.1), 0.05)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="cannot be halved"):
        ProGAN(config(image_size=9))
    with pytest.raises(ConfigError, match="cannot be augmented"):
        config(augmentation=AugmentationConfig(target=None))
    assert config(augmentation=AugmentationConfig(target=None), growing=Growing(4, 3, first=1)).lowest == 1
    with pytest.raises(ConfigError, match="fade_steps"):
        Growing(fade_steps=-1)
    with pytest.raises(ConfigError, match="group"):
        ProGANNetworks(group=1)
