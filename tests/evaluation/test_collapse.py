"""The diagnosis of collapse on codes whose divergence and spread are known beforehand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from evaluation.levels import IMAGES, Pictures
from torch import nn

from mezzotint.core.batch import PictureRandom, picture_seeds
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Latents, Losses, Model, abilities
from mezzotint.evaluation.collapse import diagnose
from mezzotint.evaluation.evaluate import evaluate
from mezzotint.evaluation.report import write_report


class Coded(Model):
    """q(z_d | x) = N(gain_d m(x) + offset_d, 1), m(x) the mean of the picture's pixels."""

    def __init__(self, gains, offsets=(0.0,), pixels=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.gains, self.offsets, self.pixels = torch.tensor(gains), torch.tensor(offsets), pixels
        self.shown = []

    def forward(self, batch, player="model"):
        return Losses(self.weight, {})

    def latents(self, images):
        self.shown.append(images)
        means = images.mean((1, 2, 3))[:, None] * self.gains + self.offsets
        return Latents(means, means**2 / 2)


SPREAD = float((torch.arange(256).double() / 127.5 - 1).var())  # of the mean of a picture


def test_spread_and_divergence_are_those_of_the_closed_form(truth):
    """Var(gain m) = gain^2 Var(m), and KL(N(a, 1) || N(0, 1)) = a^2 / 2."""
    gains = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)
    found = diagnose(Coded(gains.tolist()), [IMAGES])
    truth("collapse", "Var_x(E[z | x])", "closed form", (found.variance - gains**2 * SPREAD).abs().max(), 1e-6)
    kl = gains**2 / 2 * SPREAD * 255 / 256
    truth("collapse", "KL of each dimension, nats", "closed form", (found.kl - kl).abs().max(), 1e-6)


@pytest.mark.parametrize("size", [1, 7, 255])
def test_batches_change_nothing_however_far_from_zero_the_codes_are(truth, size):
    """A variance of 0.003 about 1000: sums of squares would have 1e6 times as much to lose."""
    model = Coded([1.0, 0.1], [0.0, 1000.0])
    whole, parts = diagnose(model, [IMAGES]), diagnose(model, IMAGES.split(size))
    for name in ("kl", "variance"):
        error = (getattr(whole, name) / getattr(parts, name) - 1).abs().max()
        truth("collapse", f"{name} in batches of {size}, relative", "in one", error, 4e-12)
    assert whole.pictures == parts.pictures == 256


def test_units_are_active_whose_mean_varies_by_more_than_a_hundredth():
    """Burda et al. 2016, section 5.2."""
    edge = math.sqrt(0.01 / SPREAD)
    found = diagnose(Coded([1.01 * edge, 0.99 * edge, -1.01 * edge, 0.0]), [IMAGES])
    assert found.active_units == 2


def test_a_map_is_as_active_as_its_most_active_place():
    """Its mean over places may say nothing of the picture: what says where something is sums to the same everywhere."""

    class Maps(Coded):
        def latents(self, images):
            means = super().latents(images).means  # of four numbers: two channels of two places
            return Latents(means, (means**2 / 2).unflatten(1, (2, 2)).sum(2), dimension=torch.tensor([0, 0, 1, 1]))

    found = diagnose(Maps([2.0, -2.0, 0.1, 0.0]), [IMAGES])
    torch.testing.assert_close(found.variance, torch.tensor([4.0, 0.01]).double() * SPREAD, rtol=1e-5, atol=0)
    assert (found.active_units, found.verdict) == (1, "in use: 1 of 2 dimensions depend on the picture")


@pytest.mark.parametrize(
    ("gains", "offsets", "verdict"),
    [
        ([0.0, 0.0], [0.0], "collapsed: the code of 2 dimensions"),
        ([0.0, 0.0], [3.0], "collapsed"),  # nats that are spent on nothing: the same code for every picture
        ([0.3, 0.0], [0.0], "collapsed"),  # one unit varies a little, and costs less than 0.1 nats
        ([3.0, 0.0, 0.0], [0.0], "partly collapsed: 1 of 3 dimensions depend"),
        ([3.0, 2.0, 0.0], [0.0], "in use: 2 of 3 dimensions depend"),
    ],
)
def test_the_verdict_says_it_in_words(gains, offsets, verdict):
    assert diagnose(Coded(gains, offsets), [IMAGES]).verdict.startswith(verdict)


def test_what_a_hierarchy_draws_does_not_depend_on_batches(truth):
    class Drawn(Coded):
        def latents(self, images, *, seeds=0):
            noise = PictureRandom(picture_seeds(len(images), seeds)).normal(1)
            return Latents(noise, noise**2)

    whole, parts = diagnose(Drawn([1.0]), [IMAGES], seed=4), diagnose(Drawn([1.0]), IMAGES.split(100), seed=4)
    truth("collapse", "KL of a code that is drawn, in batches of 100", "in one", abs(whole.nats - parts.nats), 1e-12)
    assert whole.variance > 0.5  # each picture draws its own


def test_nats_are_those_of_the_bound_where_it_counts_more_than_the_dimensions():
    class Richer(Coded):
        def latents(self, images):
            return super().latents(images)._replace(total=torch.arange(float(len(images))))

    found = diagnose(Richer([0.0]), IMAGES.split(100))  # 0 ... 99 twice, and 0 ... 55
    assert found.nats == pytest.approx((2 * 4950 + 1540) / 256, rel=1e-12)
    assert found.kl.sum() == 0


def test_a_diagnosis_of_one_picture_is_refused():
    with pytest.raises(ConfigError, match="at least 2 pictures, not 1"):
        diagnose(Coded([1.0]), [IMAGES[:1]])
    with pytest.raises(ConfigError, match="not 0"):
        diagnose(Coded([1.0]), [])


def test_what_has_latents_is_diagnosed_when_it_is_judged():
    model = Coded([3.0, 0.0])
    assert abilities(Coded) == ["latents"]
    judged = evaluate(model, Pictures(), n=100, batch_size=30)
    assert judged["active_units"].value == 1
    assert judged["kl"].value == pytest.approx(4.5 * SPREAD, rel=0.05)
    assert judged["kl"].protocol["verdict"] == "in use: 1 of 2 dimensions depend on the picture"
    assert judged["active_units"].protocol["dimensions"] == 2
    assert judged["kl"].protocol["n"] == 100
    assert judged["kl"].by_dimension == (judged["kl"].value, 0.0)
    assert judged["active_units"].by_dimension[0] > judged["active_units"].by_dimension[1] == 0.0
    assert [len(images) for images in model.shown] == [30, 30, 30, 10]


def test_the_report_shows_each_dimension_the_largest_first(tmp_path):
    folder = write_report(evaluate(Coded([0.0, 3.0]), Pictures(), n=100), tmp_path)
    numbers = {number["name"]: number for number in json.loads((folder / "report.json").read_text())["numbers"]}
    first, last = numbers["kl"]["by_dimension"]
    assert first == 0 < last
    page = (folder / "report.html").read_text()
    assert "KL of each dimension, nats" in page
    assert 'points="0.0,0.0 320.0,120.0"' in page  # falls
    assert "2 dimensions" in page


def test_codes_are_of_the_pixels_that_the_likelihood_is_of():
    model = Coded([1.0], pixels="binary")
    judged = evaluate(model, Pictures(), n=20)
    assert model.shown[0].unique().tolist() == [-1, 1]
    assert judged["kl"].protocol["pixels"] == "binary"


class Bounded(Model):
    """A bound of 7 nats for every picture."""

    forward = Coded.forward

    def __init__(self, pixels):
        super().__init__()
        self.weight, self.pixels = nn.Parameter(torch.zeros(())), pixels

    def elbo(self, images, *, seeds=0, samples=1):
        return torch.full((len(images),), -7.0, dtype=torch.float64)


def test_binary_pixels_are_reported_in_nats(truth):
    judged = evaluate(Bounded("binary"), Pictures(), n=50, likelihood={"samples": 5000})
    truth("evaluation", "nats of a bound of 7 nats", "7", abs(judged["nats"].value - 7), 1e-14)
    assert judged["nats"].protocol["samples"] == 5000
    assert judged["nats"].protocol["value"] == "upper bound"
    assert judged["nats"].protocol["standard error"] == "0"
    levels = {number.name for number in evaluate(Bounded("levels"), Pictures(), n=50).numbers}
    assert levels == {"bits_per_dim"}
