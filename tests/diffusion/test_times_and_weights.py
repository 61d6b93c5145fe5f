"""When a model is trained, and how much each time counts."""

import itertools
import math
from functools import cache, partial

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Normal, kl_divergence

from mezzotint.core.batch import PictureRandom
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import DATA_STD, PREDICTIONS, convert, target
from mezzotint.diffusion.stepping import posterior
from mezzotint.diffusion.times import TIMES, inside, log_normal, u_shaped
from mezzotint.diffusion.weighting import WEIGHTINGS, min_snr, p2, soft_min_snr

N = 20_000
levels = torch.linspace(0.0005, 0.9995, 200, dtype=torch.float64)
LOST = ("zero-snr", "straight", "ot")  # paths with alpha = 0 at t = 1, from where the noise does not tell the picture


def number(t):
    return torch.tensor(t, dtype=torch.float64)


class Quantiles:
    """Random numbers that are as even as N numbers can be, so that a distribution is known to about 1 / N."""

    device = torch.device("cpu")

    def uniform(self, *shape):
        pairs = bool(shape)  # whose second numbers choose one of two sides
        n = N // 2 if pairs else N
        even = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return torch.cartesian_prod(even, number([0.25, 0.75])) if pairs else even

    def normal(self):
        return torch.special.ndtri(self.uniform())

    def integers(self, low, high):
        return (low + (high - low) * self.uniform()).long()


def logit_normal_density(t, mean=0.0, std=1.0):
    """Esser et al. 2024, eq. 19."""
    return math.exp(-((math.log(t / (1 - t)) - mean) ** 2) / (2 * std**2)) / (
        std * math.sqrt(2 * math.pi) * t * (1 - t)
    )


def u_density(t, a=4.0):
    """Lee et al. 2024, section 4.1, over its integral."""
    return (math.exp(a * t) + math.exp(a * (1 - t))) / (2 * math.expm1(a) / a)


@cache
def integral(density):
    """The distribution function of a density at the levels, by quadrature."""
    edges = [0.0, *levels.tolist()]
    pieces = [quad(density, a, b, epsabs=1e-12, epsrel=1e-10)[0] for a, b in itertools.pairwise(edges)]
    return number(pieces).cumsum(0)


def below(t):
    """The share of times at or below each level."""
    return torch.searchsorted(t.sort().values, levels, right=True) / len(t)


def distribution(name, path):
    """What `below` should be."""
    if name == "uniform":
        return ((levels - path.start) / (1 - path.start)).clamp(min=0)
    if name == "discrete":
        return (levels * 1000 + 1e-9).floor() / 1000
    if name == "log-normal":
        return torch.special.ndtr((path.at(levels).ratio.log() + 1.2) / 1.2)
    return integral(logit_normal_density if name == "logit-normal" else u_density)


@pytest.mark.parametrize("path", ["linear", "vp", "edm", "straight"])
@pytest.mark.parametrize("name", TIMES)
def test_times_have_their_distribution(truth, name, path):
    """Of numbers that fill [0, 1] evenly, the times fill their density evenly."""
    t = TIMES[name](Quantiles(), PATHS[path])
    error = (below(t) - distribution(name, PATHS[path])).abs().max()
    truth(f"times {name}, {path}", "distribution", "its density by quadrature", error, 1.01 / N)


@pytest.mark.parametrize("name", TIMES)
def test_drawn_times_have_their_distribution(truth, name):
    n, path = 5_000, PATHS["vp"]
    t = TIMES[name](PictureRandom(range(n)), path)
    assert t.dtype == torch.float64
    assert t.shape == (n,)
    distance = (below(t) - distribution(name, path)).abs().max()
    # Kolmogorov and Smirnov: above 1.63 / sqrt(n) in one of a hundred cases; the seeds are fixed
    truth(f"times {name}", f"distribution of {n} times, largest distance", "closed form", distance, 1.63 / math.sqrt(n))


def test_the_u_is_the_density_of_its_two_halves(truth):
    """Each half is the exponential density of its inverse distribution function; their mean is the paper's."""
    u = number([[0.1, 0.2], [0.1, 0.8], [0.75, 0.0], [0.75, 0.6]])

    class Given(Quantiles):
        def uniform(self, *shape):
            return u

    t = u_shaped(Given(), PATHS["straight"])
    rising = torch.where(u[:, 1] < 0.5, t, 1 - t)
    error = (torch.expm1(4 * rising) / math.expm1(4) - u[:, 0]).abs().max()
    truth("times u-shaped", "distribution function of a half at its quantile", "the level", error, 6e-8)  # of `inside`
    assert torch.allclose(t[0], 1 - t[1], atol=1e-15)


@pytest.mark.parametrize("name", TIMES)
def test_a_time_depends_on_its_own_seed_alone(name):
    for path in (PATHS["linear"], PATHS["straight"]):
        together, apart = (TIMES[name](PictureRandom(seeds), path) for seeds in ([3, 1, 4], [1, 4]))
        assert torch.equal(together[1:], apart)


def test_drawing_a_time_moves_the_pictures_generators_on():
    random = PictureRandom([1, 2])
    assert not torch.equal(TIMES["uniform"](random, PATHS["vp"]), TIMES["uniform"](random, PATHS["vp"]))
    assert random.device == torch.device("cpu")


def test_discrete_times_are_the_steps_of_the_chain():
    for path in ("linear", "zero-snr", "vp"):
        k = TIMES["discrete"](Quantiles(), PATHS[path]) * 1000
        assert (k - k.round()).abs().max() < 1e-9
        assert torch.equal(k.round().long().bincount()[1:], torch.full((1000,), N // 1000))


def test_uniform_times_are_never_an_end():
    """The smallest and the largest float32 number that torch draws."""
    least, most = inside(torch.tensor([0.0, 1 - 2**-24]))
    assert 0 < least < most < 1
    assert least == 1 - most


@pytest.mark.parametrize("path", PATHS)
def test_log_normal_times_have_a_noise(path):
    """However small, also where the path never has so little (VE) or so much."""

    class Extreme(Quantiles):
        def normal(self):
            return torch.tensor([-5.0, 0.0, 5.0])

    t = log_normal(Extreme(), PATHS[path])
    at = PATHS[path].at(t)
    assert (at.sigma > 0).all()
    assert (t.diff() > 0).all()
    assert abs(float(at.ratio[1].log()) + 1.2) < 1e-12
    if path == "edm":  # as in the paper: nothing is cut, however far beyond the noise of sampling
        assert (at.ratio.log() - number([-7.2, -1.2, 4.8])).abs().max() < 1e-12


# Weights --------------------------------------------------------------------------------------------------------------


def agrees(truth, name, path, kind, formula, against, tolerance=1e-14):
    at = PATHS[path].at(torch.linspace(0.002, 0.998, 300))
    expected = formula(at)
    error = (WEIGHTINGS[name](at, kind) / expected - 1).abs().max()
    truth(f"weighting {name}", f"{kind} prediction, {path} path, relative", against, error, tolerance)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_simple_weight_is_one(kind):
    at = PATHS["linear"].at(torch.linspace(0.1, 1, 10))
    assert torch.equal(WEIGHTINGS["simple"](at, kind), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "path", "kind", "formula", "source"),
    [
        ("min-snr", "linear", "clean", lambda at: at.snr.clamp(max=5), "Hang et al. 2023, section 3.4"),
        ("min-snr", "linear", "noise", lambda at: at.snr.clamp(max=5) / at.snr, "Hang et al. 2023, section 3.4"),
        ("min-snr", "linear", "v", lambda at: at.snr.clamp(max=5) / (at.snr + 1), "Hang et al. 2023, appendix"),
        ("soft-min-snr", "edm", "clean", lambda at: 1 / (at.sigma**2 + 1 / 4), "Crowson et al. 2024, section 3.5"),
        ("soft-min-snr", "vp", "noise", lambda at: 4 / (at.snr + 4), "Crowson et al. 2024, section 3.5"),
        ("p2", "linear", "noise", lambda at: 1 / (1 + at.snr), "Choi et al. 2022, eq. 8"),
        ("truncated-snr", "cosine", "clean", lambda at: at.snr.clamp(min=1), "Salimans and Ho 2022, section 4"),
        ("truncated-snr", "cosine", "noise", lambda at: (1 / at.snr).clamp(min=1), "Salimans and Ho 2022, section 4"),
        ("truncated-snr", "cosine", "v", lambda at: at.snr.clamp(min=1) / (at.snr + 1), "section 4, for v"),
        ("edm", "edm", "clean", lambda at: (at.sigma**2 + DATA_STD**2) / (at.sigma * DATA_STD) ** 2,
         "lambda of Karras et al. 2022, table 1"),
        ("edm", "edm", "edm", lambda at: torch.ones_like(at.sigma), "1 on F (Karras et al. 2022, eq. 8)"),
        ("edm", "vp", "edm", lambda at: torch.ones_like(at.sigma), "1 on F"),
        ("noise", "vp", "score", lambda at: at.sigma**2, "lambda of Song et al. 2021, section 3.3"),
        ("noise", "ve", "score", lambda at: at.sigma**2, "lambda of Song et al. 2021, section 3.3"),
        ("noise", "straight", "noise", lambda at: torch.ones_like(at.sigma), "1 on the noise"),
        ("vlb", "vp", "score", lambda at: (0.1 + 19.9 * torch.linspace(0.002, 0.998, 300)) / 2,
         "g(t)^2 / 2, the likelihood weight of Song et al. 2021b, for the VP SDE"),
        ("logit-normal", "straight", "velocity",
         lambda at: number([logit_normal_density(s) for s in at.sigma.tolist()]), "Esser et al. 2024, eq. 19"),
    ],
)  # fmt: skip
def test_weights_are_those_of_their_papers(truth, name, path, kind, formula, source):
    tolerance = 1e-6 if (name, path) == ("vlb", "vp") else 3e-15  # the times of that formula are float32
    agrees(truth, name, path, kind, formula, source, tolerance)


def test_numbers_of_the_weights_can_be_chosen():
    at = PATHS["linear"].at(torch.linspace(0.002, 0.998, 50))
    torch.testing.assert_close(min_snr(at, "clean", gamma=3.0), at.snr.clamp(max=3))
    torch.testing.assert_close(soft_min_snr(at, "clean", gamma=3.0), 1 / (1 / at.snr + 1 / 3))
    torch.testing.assert_close(p2(at, "noise", k=2.0, gamma=0.5), (2 + at.snr) ** -0.5)


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "simple"])
def test_a_weight_does_not_depend_on_what_is_predicted(truth, name):
    """An answer and its target, both told as any prediction, have the same weighted error."""
    t, worst = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64), 0.0
    for path in PATHS.values():
        at = path.at(t)
        clean, noise, answer = torch.randn(3, 4, 5, dtype=torch.float64)
        x = at.alpha[:, None] * clean + at.sigma[:, None] * noise
        losses = []
        for kind in PREDICTIONS:
            error = convert(answer, x, at, "clean", kind) - target(kind, clean, noise, at)
            losses.append(WEIGHTINGS[name](at, kind) * error.square().sum(1))
        stacked = torch.stack(losses)
        worst = max(worst, float((stacked / stacked[0] - 1).abs().max()))
    what = "weighted error of any prediction on any path, relative"
    truth(f"weighting {name}", what, "that of the clean picture", worst, 1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_at_every_time_that_is_drawn(name, path):
    """Also at the ends of the samplers: 1/T and 1 of discrete times, the first and the last of float32 for uniform."""
    u = inside(torch.tensor([0.0, 1 - 2**-24]))
    start = PATHS[path].start
    ends = torch.cat([start + (1 - start) * u, number([0.001, 1.0])])
    at = PATHS[path].at(ends)
    for kind in PREDICTIONS:
        if path in LOST and kind in ("noise", "score"):
            continue  # which a config refuses
        weight = WEIGHTINGS[name](at, kind)
        assert weight.isfinite().all()
        assert (weight >= 0).all()


@pytest.mark.parametrize("path", ["vp", "straight", "edm", "cosine"])
def test_the_vlb_weight_makes_the_loss_the_bound_of_a_long_chain(truth, path):
    """The KL terms of a chain in N steps between t = 0.05 and 0.95 (Ho et al. 2020, eq. 5), for normal data and a
    denoiser that is wrong, tend to the weighted error under the integral as N grows, to first order in 1/N."""
    path, mean, std = PATHS[path], 0.3, 0.5
    nodes, mass = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(4))  # exact for quadratics
    clean, noise, weight = (mean + std * nodes)[:, None], nodes[None], mass[:, None] * mass[None] / mass.sum() ** 2

    def answer(at):
        """The mean clean picture of such a noisy one, and a mistake."""
        x = at.alpha * clean + at.sigma * noise
        gain = at.alpha * std**2 / (at.alpha**2 * std**2 + at.sigma**2)
        return x, mean + gain * (x - at.alpha * mean) + 0.1 * x / (at.alpha + at.sigma)

    def chain(steps):
        times = torch.linspace(0.05, 0.95, steps + 1, dtype=torch.float64)[:, None, None]
        at = path.at(times[1:])
        x, guess = answer(at)
        q = posterior(at, path.at(times[:-1]))
        true, ours = (Normal(q.of_clean * c + q.of_x * x, q.small_variance.sqrt()) for c in (clean, guess))
        return float((weight * kl_divergence(true, ours)).sum())

    points, masses = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(4))
    cells = torch.arange(50, 950, dtype=torch.float64)[:, None]  # in which even a path of steps is smooth
    t = ((cells + (points + 1) / 2) / 1000).view(-1, 1, 1)
    at = path.at(t)
    errors = (weight * (answer(at)[1] - clean) ** 2).sum((1, 2))
    loss = float((WEIGHTINGS["vlb"](at, "clean").flatten() * errors * masses.repeat(900)).sum() / 2000)

    few, many = (chain(n) / loss - 1 for n in (4500, 9000))
    truth("weighting vlb", "KL terms of a chain, extrapolated, relative", "the weighted loss by quadrature",
          abs(2 * many - few), 2e-6)  # fmt: skip
    assert abs(few / many - 2) < 0.01


def test_the_logit_normal_weight_stands_for_logit_normal_times(truth):
    """On the straight path: the mean over uniform times of a weighted error is that over logit-normal ones."""
    path = PATHS["straight"]
    drawn = TIMES["logit-normal"](Quantiles(), path)
    evenly = TIMES["uniform"](Quantiles(), path)

    def error(t):
        return torch.sin(7 * t) + t**2

    weighted = (WEIGHTINGS["logit-normal"](path.at(evenly), "velocity") * error(evenly)).mean()
    truth("weighting logit-normal", "mean of an error over uniform times", "mean over logit-normal times",
          (weighted - error(drawn).mean()).abs(), 1e-7)  # fmt: skip
    other = partial(WEIGHTINGS["logit-normal"], path.at(number(0.3)), mean=1.0, std=0.5)("velocity")
    assert abs(float(other) - logit_normal_density(0.3, 1.0, 0.5)) < 1e-14
