"""Path lengths of generators whose pictures are known functions of the code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

import mezzotint as mz
from mezzotint.core.batch import PictureRandom
from mezzotint.core.codes import lerp, slerp
from mezzotint.core.config import Config
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Model
from mezzotint.evaluation.features import ModuleFeatures
from mezzotint.evaluation.path_length import perceptual_path_length

PIXELS = ModuleFeatures(torch.nn.Identity(), "pixels")
DIMS = 4


@dataclass(frozen=True)
class NoConfig(Config):
    pass


class Known(Model):
    """Codes of a known prior and a known generator g: codes (B, D) to pictures (B, 1, 2, 2)."""

    def __init__(self, draw, g, walk) -> None:
        super().__init__()
        self.config = NoConfig()
        self.where = torch.nn.Parameter(torch.zeros(()))
        self.draw, self.g, self.walk = draw, g, walk

    def forward(self, batch, player="model"):
        raise NotImplementedError

    def codes(self, seeds):
        return self.draw(PictureRandom(seeds))

    def from_codes(self, codes, labels=None):
        return self.g(codes).view(-1, 1, 2, 2)

    def between(self, first, last, shares):
        return self.walk(first, last, shares)


class Styled(Known):
    """Styles w = z^3, of which pictures are a linear function."""

    def map(self, z, labels=None):
        return z**3

    def synthesise(self, w):
        return self.from_codes(w)


def uniform(random):
    return 2 * random.uniform(DIMS) - 1


def circle(random):
    angle = 2 * math.pi * random.uniform()
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.fixture
def matrix():
    return torch.randn(DIMS, DIMS, generator=torch.Generator().manual_seed(0)) / 4


def ends(model, n):
    return model.codes(range(0, 2 * n, 2)).double(), model.codes(range(1, 2 * n, 2)).double()


def test_a_linear_generator_changes_by_the_same_everywhere(matrix, truth):
    """d/dt A f(t) = A (z_2 - z_1), whose square is 2 / 3 |A|_F^2 on average over a cube."""
    model = Known(uniform, lambda z: z @ matrix.T, lerp)
    first, last = ends(model, 400)
    exact = ((last - first) @ matrix.T.double()).square().sum(1).mean()
    for sampling, epsilon, tolerance in (("full", 1e-2, 3e-6), ("end", 1e-2, 3e-6), ("full", 1e-4, 1e-4)):
        found = perceptual_path_length(model, PIXELS, n=400, sampling=sampling, epsilon=epsilon)
        truth("path length", f"linear generator, lerp, {sampling}, step {epsilon:g}, relative", "|A (z_2 - z_1)|^2",
              abs(found.value / exact - 1), tolerance)  # fmt: skip
        expected = 2 / 3 * matrix.square().sum()
        assert abs(found.value - expected) < 4 * found.spread
        assert found.spread < 0.1 * expected


def test_on_an_arc_the_length_is_the_angle(truth):
    """Two directions of a plane are at an angle uniform on [0, pi], so the mean of its square is pi^2 / 3."""
    lift = torch.linalg.qr(torch.randn(4, 4))[0][:2]  # (2, 4), an isometry
    model = Known(circle, lambda z: z @ lift, slerp)
    found = perceptual_path_length(model, PIXELS, n=1000, epsilon=1e-3)
    first, last = ends(model, 1000)
    exact = torch.acos((first * last).sum(1).clamp(-1, 1)).square().mean()
    truth(
        "path length", "isometry of a circle, slerp, relative", "the squared angle", abs(found.value / exact - 1), 1e-5
    )
    truth("path length", "isometry of a circle, in standard errors", "pi^2 / 3",
          abs(found.value - math.pi**2 / 3) / found.spread, 3)  # fmt: skip


def test_full_and_end_differ_where_the_generator_bends(truth):
    """Of G(z) = z^2 on [-1, 1], by hand: 4 E z_1^2 (z_2 - z_1)^2 = 56 / 45 at the end, 8 / 15 over the whole way."""
    model = Known(uniform, lambda z: z.square(), lerp)
    for sampling, expected in (("end", 56 / 45), ("full", 8 / 15)):
        found = perceptual_path_length(model, PIXELS, n=1500, sampling=sampling, epsilon=1e-3, batch_size=500)
        error = abs(found.value / DIMS - expected) * DIMS / found.spread
        truth("path length", f"G(z) = z^2, {sampling}, in standard errors", "its closed form", error, 3)


def test_in_w_the_way_is_a_line_between_styles(matrix, truth):
    model = Styled(uniform, lambda w: w @ matrix.T, lerp)
    found = perceptual_path_length(model, PIXELS, n=200, space="w", epsilon=1e-2)
    first, last = ends(model, 200)
    exact = ((last**3 - first**3) @ matrix.T.double()).square().sum(1).mean()
    truth("path length", "linear synthesis, w, relative", "|A (w_2 - w_1)|^2", abs(found.value / exact - 1), 2e-6)
    assert found.protocol["space"] == "w"


def test_the_number_says_over_which_features_it_is_and_no_batch_changes_it():
    model = mz.create("cgan", image_size=8, classes=3, latent=4)
    found = perceptual_path_length(model, PIXELS, n=7, batch_size=3, epsilon=1e-2)
    assert found.name == "ppl_pixels"
    assert found.protocol["pairs"] == 7
    assert found.protocol["crop"] == "none"
    again = perceptual_path_length(model, PIXELS, n=7, batch_size=7, epsilon=1e-2)
    assert again.value == pytest.approx(found.value, rel=1e-3)
    one = perceptual_path_length(model, PIXELS, n=7, epsilon=1e-2, label=1)
    assert one.value != pytest.approx(found.value, rel=1e-3)


def test_what_makes_no_sense_is_refused(matrix):
    model = Known(uniform, lambda z: z, lerp)
    for options, words in (
        ({"n": 1}, "at least 2 pairs"),
        ({"epsilon": 0.0}, "step between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"space": "v"}, "z or w"),
        ({"sampling": "middle"}, "full or end"),
        ({"space": "w"}, "no styles"),
        ({"label": 0}, "knows 0 classes"),
    ):
        with pytest.raises(ConfigError, match=words):
            perceptual_path_length(model, PIXELS, **{"n": 4, **options})
    with pytest.raises(ConfigError, match="of no code"):
        perceptual_path_length(mz.create("classifier", image_size=8, classes=2), PIXELS)
