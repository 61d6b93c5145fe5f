"""EQ-T and EQ-R: a picture that moves as a whole, one that sticks to a grid, and the reference's own operators."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from mezzotint.core.errors import ConfigError
from mezzotint.evaluation.equivariance import (
    as_if_turned,
    eq_r,
    eq_t,
    equivariance,
    shared_band,
    shifted,
    shifted_by_sinc,
    turned,
)
from mezzotint.nn.motion import rigid

SIZE = 32


def positions(n, motion):
    """M^{-1} p of all pixels p, (n, n, 2), in widths of the picture."""
    x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n
    p = torch.stack([x.expand(n, n), x[:, None].expand(n, n), torch.ones(n, n, dtype=torch.float64)], 2)
    return (p @ torch.linalg.inv(motion).t())[..., :2]


def waves(seed, fastest=3.0):
    """A picture known everywhere: waves of up to so many cycles per width; the function of a motion that draws it."""
    random = torch.Generator().manual_seed(seed)
    radius = fastest * torch.rand(8, generator=random, dtype=torch.float64)
    angle, phase = (2 * math.pi * torch.rand(8, generator=random, dtype=torch.float64) for _ in range(2))
    f = torch.stack([radius * angle.cos(), radius * angle.sin()])  # (2, 8)

    def draw(motion, n=SIZE):
        return torch.sin(2 * math.pi * positions(n, motion) @ f + phase).mean(2)[None, None]

    return draw


def strided(seed):
    """Faster ones in blocks of 8 x 8 pixels, which stick to the screen."""
    draw = waves(seed, 6.0)
    return lambda motion: draw(motion, SIZE // 8).repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_a_picture_that_moves_as_a_whole_scores_high_and_one_that_sticks_scores_low():
    whole, sticking = [waves(k) for k in range(6)], [strided(k) for k in range(6)]
    assert eq_t(whole) > 200  # whole pixels: nothing is lost but rounding
    assert eq_t(whole, fractional=True) > 60
    assert eq_r(whole) > 60
    assert eq_t(sticking) < 20
    assert eq_t(sticking, fractional=True) < 20
    assert eq_r(sticking) < 20


def test_white_noise_of_known_strength_has_the_decibels_of_the_formula(truth):
    """10 log10(2^2 / E d^2), where d is the difference of two noises of deviation s: E d^2 = 2 s^2."""

    def noisy(seed, s=0.1):
        random = torch.Generator().manual_seed(seed)
        return lambda motion: s * torch.randn(1, 3, 64, 64, generator=random, dtype=torch.float64)

    expected = 10 * math.log10(4 / (2 * 0.1**2))
    truth("equivariance", "EQ-T of white noise, decibels", "the formula",
          abs(eq_t([noisy(k) for k in range(8)]) - expected), 0.05)  # fmt: skip


def test_one_that_is_told_the_wrong_way_scores_low():
    draws = [waves(k) for k in range(4)]
    backwards = [lambda motion, draw=draw: draw(torch.linalg.inv(motion)) for draw in draws]
    assert eq_t(backwards) < 25
    assert eq_r(backwards) < 25


def test_pictures_are_turned_by_any_angle_of_the_whole_circle():
    """The means of e^{ik angle} over 200 turns are 0, k = 1, ..., 4; over a quarter of the circle the first is 0.9."""
    motions = []
    eq_r([lambda motion: motions.append(motion) or torch.zeros(1, 1, 12, 12)] * 200)
    angle = torch.stack([torch.atan2(M[1, 0], M[0, 0]) for M in motions[1::2]])  # each stands still first
    for k in range(1, 5):
        assert torch.polar(torch.ones(200).double(), k * angle).mean().abs() < 3 / math.sqrt(200)


def test_the_numbers_are_a_function_of_the_seed():
    draws = [waves(k, 12.0) for k in range(2)]
    assert eq_r(draws, 3) == eq_r(draws, 3) != eq_r(draws, 4)


@pytest.mark.parametrize("degrees", [10.0, 45.0, -75.0, 200.0])
def test_the_shared_band_is_the_integral_over_the_frequencies_that_both_squares_hold(degrees, truth):
    n = 400
    k = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    k = torch.stack([k.expand(n, n), k[:, None].expand(n, n)], 2).flatten(0, 1)
    shared = k[((k @ rigid(degrees)[:2, :2].t()).abs() < 0.5).all(1)]  # R k is in the square as well
    d = torch.tensor([[0.0, 0.0], [0.3, -0.2], [1.0, 0.0], [-1.4, 2.3]], dtype=torch.float64)
    expected = torch.cos(2 * math.pi * d @ shared.t()).sum(1) / n**2
    error = (shared_band(d, degrees) - expected).abs().max()
    what = f"the filter of a rotation by {degrees:g} degrees"
    truth("equivariance", what, "a sum over 160,000 frequencies", error, 2e-3 if degrees == 45 else 2e-4)


def test_without_a_rotation_the_shared_band_is_that_of_a_square(truth):
    d = torch.randn(50, 2, dtype=torch.float64)
    error = (shared_band(d, 90.0) - torch.sinc(d).prod(1)).abs().max()
    truth("equivariance", "the filter of a rotation by 90 degrees", "sinc(x) sinc(y)", error, 2e-15)


@pytest.mark.parametrize(("x", "y"), [(3, -2), (0, 5), (-4, 0)])
def test_moving_by_whole_pixels_moves_pixels(x, y):
    images = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    moved, known = shifted(images, x, y)
    for row, column in ((6, 6), (8, 9)):
        assert torch.equal(moved[:, :, row + y, column + x], images[:, :, row, column])
        assert known[row + y, column + x]
    assert known.sum() == (16 - abs(x)) * (16 - abs(y))
    by_sinc, also = shifted_by_sinc(images, x, y)
    assert torch.allclose(by_sinc[..., also], moved[..., also], atol=1e-12)
    assert not (also & ~known).any()


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_quarter_turns_move_pixels(quarter):
    """Clockwise, as it is seen."""
    images = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    y, known = turned(images, 90.0 * quarter)
    assert torch.allclose(y[..., known], torch.rot90(images, -quarter, (2, 3))[..., known], atol=1e-7)
    same, also = as_if_turned(images, 90.0 * quarter)
    assert torch.allclose(same[..., also], images[..., also], atol=1e-7)
    assert known.sum() >= 64
    assert also.sum() == 64


def test_a_frequency_that_an_upright_picture_cannot_hold_is_left_out():
    """(0.4, 0.4) cycles per pixel, turned by 45 degrees, would be 0.57 along an axis."""
    n = 32
    x = torch.arange(n, dtype=torch.float64)
    images = torch.cos(2 * math.pi * 0.4 * (x + x[:, None]))[None, None]
    y, known = turned(images, 45.0)
    assert images.square().mean() > 0.4
    assert y[..., known].square().mean() < 0.05
    slower = torch.cos(2 * math.pi * 0.2 * (x + x[:, None]))[None, None]
    y, known = turned(slower, 45.0)
    assert y[..., known].square().mean() > 0.4


class Moving:
    """Draws waves of each seed, and remembers of which classes it was asked for some."""

    def __init__(self, classes=0):
        self.config, self.asked = SimpleNamespace(classes=classes), {}

    def moved(self, n, motion=None, *, labels=None, seeds=0):
        assert n == len(seeds) == (len(seeds) if labels is None else len(labels))
        self.asked |= zip(seeds, [None] * n if labels is None else labels.tolist())
        return torch.cat([waves(seed)(motion) for seed in seeds])


def test_all_three_numbers_of_a_model_say_how_they_were_measured():
    model = Moving(classes=3)
    found = equivariance(model, 5, batch_size=2, seed=7)
    assert model.asked == {7: 0, 8: 1, 9: 2, 10: 0, 11: 1}
    assert [found[name].value > 60 for name in ("eq_t", "eq_t_frac", "eq_r")] == [True] * 3
    assert found["eq_r"].value == eq_r([lambda motion, k=k: torch.cat([waves(s)(motion) for s in k])
                                        for k in ((7, 8), (9, 10), (11,))], 7)  # fmt: skip
    same = {"n": 5, "moved alike": 2, "seed": 7, "peak": 2.0, "unit": "decibels", "classes": "k mod 3"}
    for name, number in found.items():
        assert number.name == name
        assert same.items() < number.protocol.items()
    assert len({number.protocol["motion"] for number in found.values()}) == 3
    plain = Moving()
    assert "classes" not in equivariance(plain, 1)["eq_t"].protocol
    assert plain.asked == {0: None}


def test_a_model_that_cannot_move_its_pictures_is_refused():
    with pytest.raises(ConfigError, match="cannot be told to move"):
        equivariance(object())
    for sizes in ({"n": 0}, {"n": 4, "batch_size": 0}):
        with pytest.raises(ConfigError, match="at least 1 at a time"):
            equivariance(Moving(), **sizes)
    with pytest.raises(ConfigError, match="no pixel"):
        eq_t([])
