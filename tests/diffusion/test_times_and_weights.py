"""When a model is trained, and how much each time counts."""

import math

import pytest
import torch

from mezzotint.core.batch import PictureRandom
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.times import TIMES
from mezzotint.diffusion.weighting import min_snr, simple

N = 20_000
DISTRIBUTIONS = {
    "uniform": lambda t: t,
    "discrete": lambda t: (t * 1000 + 1e-9).floor() / 1000,
    "logit-normal": lambda t: 0.5 * (1 + torch.erf(torch.logit(t) / math.sqrt(2))),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_have_their_distribution(truth, name):
    t = TIMES[name](PictureRandom(range(N)))
    assert t.dtype == torch.float64
    points = torch.linspace(0.0005, 0.9995, 500, dtype=torch.float64)
    empirical = (t[None] <= points[:, None]).double().mean(1)
    distance = (empirical - DISTRIBUTIONS[name](points)).abs().max()
    # Kolmogorov and Smirnov: above 1.63 / sqrt(N) in one of a hundred cases; the seeds are fixed
    truth(f"times {name}", f"distribution of {N} times, largest distance", "closed form", distance, 1.63 / math.sqrt(N))


@pytest.mark.parametrize("name", TIMES)
def test_a_time_depends_on_its_own_seed_alone(name):
    assert torch.equal(TIMES[name](PictureRandom([3, 1, 4]))[1:], TIMES[name](PictureRandom([1, 4])))


def test_discrete_times_are_the_steps_of_the_chain():
    k = TIMES["discrete"](PictureRandom(range(N))) * 1000
    assert (k - k.round()).abs().max() < 1e-9
    assert k.round().min() == 1
    assert k.round().max() == 1000


def test_the_simple_weight_is_one():
    at = PATHS["linear"].at(torch.linspace(0.1, 1, 10))
    assert torch.equal(simple(at, "noise"), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("clean", lambda snr: snr.clamp(max=5)),
        ("noise", lambda snr: snr.clamp(max=5) / snr),
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
    ],
)
def test_min_snr_is_that_of_the_paper(truth, kind, formula):
    """Hang et al. 2023, section 3.4 and appendix, for variance-preserving paths."""
    at = PATHS["linear"].at(torch.linspace(0.001, 1, 1000))
    expected = formula((at.alpha / at.sigma) ** 2)
    error = (min_snr(at, kind) / expected - 1).abs().max()
    truth("weighting min-snr", f"{kind} prediction, relative", "closed form", error, 5e-15)
