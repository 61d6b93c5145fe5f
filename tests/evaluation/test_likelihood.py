"""Bits per dimension against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec, picture_seeds
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Losses, Model
from mezzotint.evaluation.evaluate import evaluate
from mezzotint.evaluation.likelihood import mean_bits_per_dim

LEVELS = torch.arange(256, dtype=torch.float64)


class Discretised(nn.Module):
    """Independent pixels whose level has the mass that a distribution over [0, 256) gives to its cell."""

    def __init__(self, cdf) -> None:
        super().__init__()
        edges = torch.arange(257, dtype=torch.float64)
        mass = cdf(edges).diff()
        self.probability = mass / mass.sum()

    def log_prob(self, images):
        level = ((images.double() + 1) * 127.5).round().long()
        return self.probability.log()[level].flatten(1).sum(1)


def every_level_as_often_as_probable(probability: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One-pixel pictures of all levels, and the probability of each: the exact expectation needs no sampling."""
    return (LEVELS / 127.5 - 1).float().view(256, 1, 1, 1), probability


@pytest.mark.parametrize(
    ("name", "cdf"),
    [
        ("logistic", lambda x: torch.sigmoid((x - 100) / 9)),
        ("Gaussian", lambda x: torch.special.ndtr((x - 140) / 20)),
    ],
)
def test_discretised_pixels_cost_their_entropy(name, cdf, truth):
    """E[-log2 p] over the model's own pixels is its entropy, which is a finite sum."""
    model = Discretised(cdf)
    images, p = every_level_as_often_as_probable(model.probability)
    bits = torch.tensor([mean_bits_per_dim(model, [image[None]]).value for image in images], dtype=torch.float64)
    entropy = -(p * p.log2()).sum()
    truth("bits per dimension", f"discretised {name}", "entropy of 256 levels", abs((p * bits).sum() - entropy), 1e-14)


def test_uniform_pixels_cost_eight_bits(truth):
    model = Discretised(lambda x: x / 256)
    images = (torch.randint(0, 256, (10, 3, 4, 4)) / 127.5 - 1).split([3, 7])
    result = mean_bits_per_dim(model, images)
    assert (result.bound, result.pictures) == (False, 10)
    truth("bits per dimension", "uniform pixels", "8", abs(result.value - 8), 1e-14)


class Density(nn.Module):
    """The uniform density over [-1, 1]^D."""

    def log_prob(self, images):
        assert images.abs().max() < 1
        return torch.full((len(images),), -images[0].numel() * math.log(2.0))


def test_a_uniform_density_costs_eight_bits_and_is_a_bound(truth):
    images = torch.randint(0, 256, (10, 1, 4, 4)) / 127.5 - 1
    result = mean_bits_per_dim(Density(), [images], pixels="dequantised")
    assert result.bound
    truth("bits per dimension", "uniform density, dequantised", "8", abs(result.value - 8), 1e-8)


class Bound(nn.Module):
    def elbo(self, images):
        return torch.full((len(images),), -100.0)


def test_an_elbo_is_reported_as_a_bound():
    result = mean_bits_per_dim(Bound(), [torch.zeros(2, 1, 5, 5)])
    assert result.bound
    assert result.value == pytest.approx(100 / 25 / math.log(2), rel=1e-12)


def test_batches_do_not_change_it():
    """The noise of dequantisation belongs to the picture, not to the batch."""

    class Peaked(nn.Module):
        def log_prob(self, images):
            return -50 * images.double().square().flatten(1).sum(1)

    images = torch.rand(9, 1, 3, 3) * 2 - 1
    whole = mean_bits_per_dim(Peaked(), [images], pixels="dequantised").value
    assert mean_bits_per_dim(Peaked(), images.split(2), pixels="dequantised").value == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("pixels", ["levels", "dequantised", "binary"])
def test_a_model_is_shown_pictures_on_its_own_device(pixels):
    """Pixels are made in NumPy, which only knows the CPU's memory; the device here holds no memory at all."""
    seen = []

    class Elsewhere(nn.Module):
        def log_prob(self, images):
            seen.append((images.device.type, tuple(images.shape)))
            return torch.zeros(len(images))

    mean_bits_per_dim(Elsewhere(), [torch.zeros(2, 1, 5, 5)], pixels=pixels, device="meta")
    assert seen == [("meta", (2, 1, 5, 5))]


def test_a_likelihood_is_never_computed_in_bf16():
    class Linear(nn.Module):
        def log_prob(self, images):
            return images.flatten(1) @ torch.linspace(-1, 1, 25) - 25

    images = torch.rand(4, 1, 5, 5) * 2 - 1
    plain = mean_bits_per_dim(Linear(), [images]).value
    with torch.autocast("cpu", torch.bfloat16):
        assert mean_bits_per_dim(Linear(), [images]).value == plain


def test_a_probability_above_one_is_no_result():
    """As the density is found where a solver of few fixed steps is lost."""

    class Lost(nn.Module):
        def log_prob(self, images):
            return torch.full((len(images),), 3e3)

    with pytest.raises(ConfigError, match=r"-173 bits a number, less than nothing.*ask for more steps"):
        mean_bits_per_dim(Lost(), [torch.zeros(2, 1, 5, 5)])


def test_a_density_is_never_asked_about_levels(truth):
    """Whatever pixels a model learned from: the density at a grey level is not the level's probability."""
    model = Density()
    model.density = True
    result = mean_bits_per_dim(model, [torch.randint(0, 256, (10, 1, 4, 4)) / 127.5 - 1], pixels="levels")
    assert (result.bound, result.pixels) == (True, "dequantised")
    truth("bits per dimension", "uniform density of a model of levels", "8", abs(result.value - 8), 1e-8)


class Estimate(Model):
    """A bound that is found by chance, with options."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.shown = 0

    def forward(self, batch, player="model"):
        return Losses(self.weight, {})

    def elbo(self, images, *, labels=None, seeds=0, terms=7, steps=None):
        self.shown += len(images)
        return -100.0 - PictureRandom(picture_seeds(len(images), seeds)).normal().abs()


@pytest.mark.parametrize("pixels", ["dequantised", "binary"])
def test_pixels_are_drawn_apart_from_what_the_model_draws(pixels):
    """With the same numbers for both, a bound would be of pictures that know the noise."""

    class Looking(Estimate):
        def elbo(self, images, *, seeds=0):
            u = PictureRandom(picture_seeds(len(images), seeds)).uniform(*images.shape[1:])
            self.alike = float(torch.corrcoef(torch.stack([images.flatten(), u.flatten()]))[0, 1])
            return images.new_zeros(len(images))

    model, grey = Looking(), torch.full((10, 1, 40, 40), 1 / 255)
    mean_bits_per_dim(model, [grey], pixels=pixels)
    assert abs(model.alike) < 0.03  # of 16,000 pairs; four deviations


def test_an_estimate_of_a_picture_does_not_depend_on_its_batch(truth):
    images = torch.zeros(9, 1, 3, 3)
    whole, parts = (
        mean_bits_per_dim(Estimate(), [images], seed=3),
        mean_bits_per_dim(Estimate(), images.split(2), seed=3),
    )
    truth("bits per dimension", "nine estimates, in one batch", "in five", abs(whole.value - parts.value), 1e-12)


def test_the_standard_error_is_that_of_the_mean(truth):
    """-log2 p / D of two pictures whose likelihoods are x and y has the standard error |x - y| / (2 D ln 2)."""

    class Two(nn.Module):
        def log_prob(self, images):
            return torch.tensor([-3.0, -8.0])

    error = mean_bits_per_dim(Two(), [torch.zeros(2, 1, 5, 5)]).error
    truth(
        "bits per dimension", "standard error of two pictures", "|x - y| / 2", abs(error - 2.5 / 25 / math.log(2)), 1e-9
    )


def test_options_are_recorded_and_misspelt_ones_refused():
    images = torch.zeros(2, 1, 3, 3)
    assert mean_bits_per_dim(Estimate(), [images]).controls == {"terms": 7, "steps": None}
    assert mean_bits_per_dim(Estimate(), [images], controls={"terms": 9}).controls == {"terms": 9, "steps": None}
    for wrong in ("term", "seeds"):
        with pytest.raises(ConfigError, match=f"no option '{wrong}'"):
            mean_bits_per_dim(Estimate(), [images], controls={wrong: 3})


class Grey:
    """Pictures of one grey level."""

    name, split, labels = "grey", "test", None
    spec = PictureSpec(3)

    def __len__(self):
        return 250

    def batch(self, indices):
        return Batch(torch.zeros(len(list(indices)), 1, 3, 3))


@pytest.mark.parametrize(
    ("affordable", "asked", "measured"),
    [(None, None, 200), (100, None, 100), (1000, None, 200), (100, 230, 230), (100, 999, 250)],
)
def test_a_slow_likelihood_is_measured_on_fewer_pictures(affordable, asked, measured):
    """n of them, at most those that the model can afford, or what the caller says; at most all that there are."""
    model = Estimate()
    model.likelihood_n = affordable
    number = evaluate(model, Grey(), n=200, likelihood_n=asked, likelihood={"terms": 5})["bits_per_dim"]
    assert model.shown == number.protocol["n"] == measured
    assert number.protocol["terms"] == 5
    assert "steps" not in number.protocol
    assert number.protocol["value"] == "upper bound"


def test_a_likelihood_can_be_left_out():
    model = Estimate()
    with pytest.raises(ConfigError, match="nothing to judge"):
        evaluate(model, Grey(), likelihood_n=0)
    assert not model.shown
    with pytest.raises(ConfigError, match="0 pictures or more"):
        evaluate(model, Grey(), likelihood_n=-1)


def test_no_pictures_no_number():
    with pytest.raises(ConfigError, match="at least one picture"):
        mean_bits_per_dim(Bound(), [])
