"""What the reproductions of the GAN chapter measure, on pictures of which the answer is known."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch

from mezzotint.evaluation.equivariance import shifted_by_sinc

SCRIPTS = Path(__file__).parents[1] / "reproductions"


@pytest.fixture
def script(monkeypatch):
    """A script by its name, whose folder is on the path as when it is run."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def waves(y, size=32):
    """A picture that is known everywhere, y pixels further down, (1, size, size)."""
    at = torch.arange(size, dtype=torch.float64)
    return (torch.sin(0.5 * (at - y))[:, None] * torch.cos(0.3 * at)[None]).float()[None]


def test_a_picture_that_moves_as_a_whole_does_not_stick_and_one_that_stays_does(script, truth):
    figure = script("figure_24")
    shifts = figure.up_and_down(12, 32)
    assert max(shifts) == 4
    assert sum(shifts) == pytest.approx(0, abs=1e-12)
    follows = torch.stack([waves(y) for y in shifts])
    truth("stylegan3-t", "share of the picture that sticks, of waves that move", "0",
          figure.sticking(follows, shifts).share, 3e-6)  # fmt: skip
    truth("stylegan3-t", "share of the details that sticks, of waves that move", "0",
          figure.sticking(follows, shifts, fine=True).share, 3e-6)  # fmt: skip
    stays = waves(0.0).expand(12, -1, -1, -1)
    assert figure.sticking(stays, shifts).share == figure.sticking(stays, shifts, fine=True).share == 1
    # a wave that moves half as far: it is moved too far back by the other half, so that both changes are alike
    late = torch.stack([waves(y / 2) for y in shifts])
    truth("stylegan3-t", "share that sticks, of waves that move half as far", "1/2",
          abs(figure.sticking(late, shifts).share - 0.5), 5e-5)  # fmt: skip


def test_details_are_what_a_blur_leaves_out(script):
    """Of a wave of f cycles per pixel, five binomial taps leave cos(pi f)^4 along its axis."""
    figure = script("figure_24")
    at = torch.arange(64, dtype=torch.float64)
    for f in (0.05, 0.25, 0.5):
        wave = torch.cos(2 * math.pi * f * at).expand(1, 1, 64, -1)
        inside = (..., slice(2, -2), slice(2, -2))
        expected = (1 - math.cos(math.pi * f) ** 4) * wave
        assert torch.allclose(figure.details(wave)[inside], expected[inside], atol=1e-12)


def test_what_sticks_is_a_horizontal_streak_of_the_strip(script):
    figure = script("figure_24")
    stays = torch.rand(3, 8, 6).expand(5, -1, -1, -1)
    strip = figure.strip(stays)
    assert strip.shape == (3, 8, 5)
    assert (strip == strip[..., :1]).all()
    moves = torch.stack([shifted_by_sinc(stays[:1], 0.0, float(t))[0][0] for t in range(5)])
    assert torch.allclose(figure.strip(moves)[0, 5:, 4], strip[0, 1:4, 0].double(), atol=1e-6)


def test_sticking_pictures_have_the_decibels_of_their_own_change(script):
    """A generator that ignores the motion: its EQ-T is low where neighbours differ, and unbounded where none do."""
    table = script("table_2")
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    low = table.of_sticking([noise] * 4)
    # two independent pixels of variance 1 differ by 2 in the mean square, and the peak is 2
    assert low["EQ-T"] == pytest.approx(10 * math.log10(4 / 2), abs=0.1)
    assert table.of_sticking([torch.ones(1, 3, 32, 32)])["EQ-T"] == math.inf


def test_growing_is_looked_at_when_each_size_has_been_there_as_long_as_it_was_faded_in(script):
    figure = script("figure_20")
    plan = figure.Plan(64 * 7 * 10)
    assert plan.steps == 10
    assert plan.ends == [640, 1920, 3200, 4480]
    assert figure.Plan(10).steps == 1


def test_a_picture_as_four_pixels_know_it_has_sixteen_colours(script):
    figure = script("figure_20")
    images = torch.rand(2, 1, 32, 32)
    seen = figure.enlarged(images, 4)
    assert seen.shape == images.shape
    assert torch.allclose(seen[..., :8, 8:16], images[..., :8, 8:16].mean((2, 3), keepdim=True).expand(-1, -1, 8, 8))
    assert torch.equal(figure.enlarged(images, 32), images)


class Layered:
    """Four styles: the first two are the class, the last two the brightness."""

    styles = 4

    def codes(self, seeds):
        return torch.stack([torch.rand(2, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def map(self, z, labels=None):
        return z

    def synthesise(self, w):
        """The upper pixel is white for class 1, the others are as bright as the style says."""
        kind = (w[:, 0, 0] > 0.5).float()
        image = w[:, -1, 1].view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
        image[:, :, 0, 0] = 2 * kind.view(-1, 1) - 1
        return image


def test_mixtures_take_the_class_from_coarse_and_the_brightness_from_fine_styles(script):
    figure = script("figure_22")
    found = figure.measured(Layered(), lambda images: (images[:, 0, 0, 0] > 0).long(), 60)
    coarse, fine = found["coarse"], found["middle"]  # of four styles there are two bands
    assert (coarse.named_a, coarse.named_b) == (0, 1)
    assert (fine.named_a, fine.named_b) == (1, 0)
    assert coarse.bright_a > 0.9 > abs(coarse.bright_b)
    assert fine.bright_b > 0.9 > abs(fine.bright_a)
    assert "The survey's order (coarse > middle) holds here" in figure.verdict(found)
    assert "that holds here" in figure.verdict(found)
    turned = {"coarse": fine, "middle": coarse}
    assert "does **not** hold" in figure.verdict(turned)


def test_verdicts_of_the_tables_say_where_the_order_does_not_hold(script):
    first, second = script("table_1"), script("table_2")
    score = {"projection": 5.0, "AC-GAN": 4.0, "concat": 3.0, "projection, longer": 6.0}
    named = {"projection": 0.5, "AC-GAN": 0.9, "concat": 0.4}
    held = first.verdict(score, named)
    assert "The survey's order (projection > AC-GAN > concat) holds here" in held
    assert "AC-GAN > projection > concat" in held
    assert held.count("**") == 0
    assert first.verdict({**score, "AC-GAN": 5.5, "projection, longer": 4.0}, named).count("**not**") == 2

    survey = {
        name: {"FD": float(row["FID"]), "EQ-T": float(row["EQ-T"]), "EQ-R": float(row["EQ-R"])}
        for name, row in second.SURVEY.items()
    }
    assert second.verdict(survey).count("holds here") == 3
    worse = {**survey, "StyleGAN3-R": survey["StyleGAN2"]}
    assert second.verdict(worse).count("does **not** hold") >= 2


def test_every_script_is_listed(script):
    listed = script("make").SCRIPTS
    found = {path.stem for path in SCRIPTS.glob("*.py")} - {"harness", "make"}
    assert found == set(listed)
