"""Ways between codes, and sums and differences of them."""

from __future__ import annotations

import math

import pytest
import torch

import mezzotint as mz
from mezzotint import systems
from mezzotint.core.codes import arithmetic, arithmetic_sheet, interpolation, lerp, mean_code, pictures_of, slerp
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import HasCode, abilities

SHARES = torch.linspace(0, 1, 7, dtype=torch.float64)


class Linear:
    """Codes of N(0, I), and the pictures z A, which a test knows everything of."""

    def __init__(self, dims: int = 5) -> None:
        self.dims, self.matrix = dims, torch.randn(dims, 4)

    def codes(self, seeds):
        return torch.stack([torch.randn(self.dims, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def from_codes(self, codes, labels=None):
        return (codes @ self.matrix).view(-1, 1, 2, 2)

    def between(self, first, last, shares):
        return slerp(first, last, shares)


def angles(a, b):
    return torch.acos((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)))


def test_an_arc_keeps_the_length_and_turns_evenly(truth):
    a, b = torch.randn(2, 1, 6, dtype=torch.float64)
    b *= a.norm() / b.norm()
    way = slerp(a, b, SHARES)
    truth("dcgan", "slerp: length on the way", "that of both ends", (way.norm(dim=1) - a.norm()).abs().max(), 1e-14)
    turned = angles(a, way[1:]) - SHARES[1:] * angles(a, b)
    truth("dcgan", "slerp: angle after a share t", "t times the whole angle", turned.abs().max(), 1e-14)


def test_both_ways_begin_and_end_where_they_should():
    a, b = torch.randn(2, 3, 2, 4)
    for walk in (lerp, slerp):
        assert torch.allclose(walk(a, b, torch.zeros(3)), a, atol=1e-6)
        assert torch.allclose(walk(a, b, torch.ones(3)), b, atol=1e-6)


def test_the_middle_of_a_chord_is_too_short_for_a_gaussian_code(truth):
    """Of N(0, I) in D dimensions all but a few are near the sphere of radius sqrt(D)."""
    a, b, half = torch.randn(64, 10_000), torch.randn(64, 10_000), torch.full((64,), 0.5)
    typical = math.sqrt(10_000)
    arc, chord = (walk(a, b, half).norm(dim=1).mean() / typical for walk in (slerp, lerp))
    truth("dcgan", "slerp of Gaussian codes: length of the middle", "sqrt(D), relative", (arc - 1).abs(), 0.005)
    truth("dcgan", "lerp of Gaussian codes: length of the middle", "sqrt(D / 2), relative",
          (chord * math.sqrt(2) - 1).abs(), 0.005)  # fmt: skip


@pytest.mark.parametrize("b", [[2.0, 4.0], [-1.0, -2.0]])
def test_where_there_is_no_arc_the_chord_is_taken(b):
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([b])
    assert torch.allclose(slerp(a, b, SHARES), lerp(a, b, SHARES))


def test_a_small_angle_is_as_exact_as_a_large_one(truth):
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(1e-5), math.sin(1e-5)]], dtype=torch.float64)
    error = (slerp(a, b, SHARES)[:, 1] / 1e-5 - SHARES).abs().max()
    truth("dcgan", "slerp over an angle of 1e-5", "the share t of it", error, 1e-9)


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_the_ends_are_the_pictures_of_the_two_seeds(prior):
    model = mz.create("dcgan", image_size=16, latent=8, prior=prior).train()
    assert isinstance(model, HasCode)
    way = interpolation(model, 5, 9, 4)
    assert way.shape == (4, 1, 16, 16)
    assert torch.allclose(way[[0, -1]], model.sample(2, seeds=[5, 9]), atol=1e-5)
    ends = model.codes([5, 9])
    middle = model.between(ends[:1], ends[1:], torch.tensor([0.5]))
    if prior == "uniform":
        assert torch.allclose(middle, ends.mean(0, keepdim=True))
        assert middle.abs().max() <= 1
    else:
        assert middle.norm() > ends.mean(0).norm()


def test_a_conditional_model_walks_within_a_class():
    model = mz.create("cgan", image_size=16, classes=3)
    way = interpolation(model, 0, 1, 3, label=2)
    assert torch.allclose(way[[0, -1]], model.sample(2, seeds=[0, 1], labels=[2, 2]), atol=1e-5)
    with pytest.raises(ConfigError, match="give labels"):
        interpolation(model, 0, 1, 3)
    with pytest.raises(ConfigError, match="numbers from 0 to 2"):
        interpolation(model, 0, 1, 3, label=3)


def test_a_vae_and_a_denoiser_walk_too():
    vae = mz.create("vae", image_size=16, latent=4)
    assert torch.allclose(interpolation(vae, 2, 3, 2), vae.sample(2, seeds=2), atol=1e-5)
    tiny = {"network__channels": 8, "network__groups": 4, "network__blocks": 1, "network__head_dim": 8}
    flow = mz.create("rectified-flow", image_size=8, classes=2, **tiny)
    assert isinstance(flow, HasCode)
    expected = flow.sample(1, labels=[1], seeds=4, solver="ddim", steps=100, grid="uniform", guidance=0.0)
    assert torch.allclose(flow.from_codes(flow.codes([4]), torch.tensor([1])), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["classifier", "progressive-distillation", "rectified-transport"])
def test_what_has_no_code_does_not_say_it_has(name):
    system = systems.find(name)
    assert "interpolate" not in abilities(system.stages[-1].model)


def test_a_linear_generator_adds_and_subtracts_pictures():
    model = Linear()
    mean = [pictures_of(model, model.codes(seeds)).mean(0) for seeds in ([1, 2, 3], [4, 5, 6], [7, 8])]
    found = model.from_codes(arithmetic(model, [1, 2, 3], [4, 5, 6], [7, 8]))[0]
    assert torch.allclose(found, mean[0] + mean[1] - mean[2], atol=1e-5)


def test_what_is_added_and_taken_away_leaves_the_base():
    model = Linear()
    assert torch.equal(arithmetic(model, [1, 2], [3, 4], [3, 4]), mean_code(model, [1, 2]))


def test_three_means_of_three_make_a_code_of_the_prior(truth):
    """3 means of 3 have the variance 3 x 1/3; of single codes it is 3, as no code of the prior has it."""
    model = Linear(dims=20_000)
    of_three = arithmetic(model, [1, 2, 3], [4, 5, 6], [7, 8, 9]).var()
    of_one = arithmetic(model, [1], [4], [7]).var()
    truth("dcgan", "arithmetic of three means of three codes: variance", "1", (of_three - 1).abs(), 0.03)
    truth("dcgan", "arithmetic of three codes: variance", "3", (of_one - 3).abs(), 0.09)


def test_a_sheet_shows_what_was_asked_and_what_came_of_it():
    model = Linear()
    sheet = arithmetic_sheet(model, [1, 2, 3], [4], [7, 8], around=0.5)
    assert sheet.shape == (4, 4, 1, 2, 2)
    assert torch.allclose(sheet[0, :3], model.from_codes(model.codes([1, 2, 3])))
    assert torch.allclose(sheet[1, 3], sheet[1, 0])  # the mean of one
    assert (sheet[1, 1:3] == 1).all()
    result = arithmetic(model, [1, 2, 3], [4], [7, 8])
    assert torch.allclose(sheet[3, :1], model.from_codes(result))
    off = (sheet[3, 1:] - sheet[3, :1]).abs()
    assert (off <= 0.5 * model.matrix.abs().sum(0).view(2, 2) + 1e-5).all()
    assert off.flatten(1).amax(1).min() > 0


def test_what_makes_no_sense_is_refused():
    model = Linear()
    for wrong, words in (
        (lambda: interpolation(model, 0, 1, 1), "at least 2"),
        (lambda: arithmetic(model, [], [1], [2]), "at least 1 seed"),
        (lambda: arithmetic_sheet(model, [1], [1], []), "at least 1 seed"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong()
