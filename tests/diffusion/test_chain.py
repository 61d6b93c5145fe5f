"""The discrete chain: every term of its bound against integration, its variances, and the losses that train them."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from gaussian import Gaussian
from mixture import Mixture, gauss_hermite
from other_device import OtherDevice
from scipy.integrate import quad
from torch.distributions import Normal, kl_divergence

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import HasELBO, HasLogProb
from mezzotint.diffusion.chain import HALF_CELL, Chain, ChainConfig, ChainModel, groups, level_log_prob
from mezzotint.diffusion.grids import GRIDS
from mezzotint.diffusion.model import noisy
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoised
from mezzotint.diffusion.solvers import ancestral, posterior
from mezzotint.nn.unet import UNetConfig

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
MIXTURE = Mixture(
    torch.tensor([[-0.6], [0.2], [0.7]]).double(), torch.tensor([0.1, 0.3, 0.05]).double(),
    torch.tensor([0.5, 0.3, 0.2]).double(),
)  # fmt: skip
LEARNED = {"variance": "learned", "objective": "hybrid"}


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def full(path="linear", variance="small", steps=1000):
    return Chain(PATHS[path], GRIDS["leading"](steps, PATHS[path]), variance)


def tiny(**choices):
    """A small model with large random weights, so that nothing in its answers is nearly zero."""
    model = ChainModel(ChainConfig(**{"image_size": 8, "channels": 1, "network": TINY, "steps": 4, **choices}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def pictures(n=6, channels=1, size=8):
    levels = torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(0))
    return levels.double() / 127.5 - 1


def batch(n=6, classes=0):
    return Batch(pictures(n), torch.arange(n) % classes if classes else None, seeds=list(range(n)))


# The decoder ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.007), (-0.999, 0.3), (3.0, 0.01), (0.0, 50.0), (0.502, 1e-4)])
def test_the_decoder_gives_all_levels_together_the_mass_one(truth, mean, std):
    """Ho et al. 2020, eq. 13: the cells of the 256 levels cover all numbers, those of black and white without end."""
    log_mass = level_log_prob(LEVELS, number(mean), number(std).log())
    error = abs(log_mass.exp().sum() - 1)
    truth("decoder", f"mass of 256 levels, mean {mean}, std {std}", "1", error, 1e-12)


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_the_mass_of_a_level_is_the_integral_over_its_cell(truth, level):
    mean, std = 0.9, 0.3
    low = -math.inf if level == 0 else float(LEVELS[level]) - HALF_CELL
    high = math.inf if level == 255 else float(LEVELS[level]) + HALF_CELL
    mass, _ = quad(lambda x: math.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi)), low, high,
                   epsabs=0, epsrel=1e-12)  # fmt: skip
    ours = level_log_prob(LEVELS[level], number(mean), number(std).log())
    truth("decoder", f"level {level}, relative", "integral over its cell", abs(ours.exp() / mass - 1), 1e-11)


def test_the_decoder_is_exact_far_out_in_float32(truth):
    """Where the mass itself is smaller than any float32 number, ln p keeps its digits, and its gradient three."""

    def both(dtype):
        mean = torch.full((256,), -0.2, dtype=dtype, requires_grad=True)
        values = level_log_prob(LEVELS.to(dtype), mean, torch.tensor(0.0073, dtype=dtype).log())
        return values.detach(), torch.autograd.grad(values.sum(), mean)[0]

    (value, slope), (exact, exact_slope) = both(torch.float32), both(torch.float64)
    assert exact.min() < -8000
    truth("decoder", "float32, relative", "float64", ((value - exact) / exact.abs().clamp(min=1)).abs().max(), 1e-5)
    scale = exact_slope.abs().clamp(min=100)
    truth("decoder", "gradient in float32, relative", "float64", ((slope - exact_slope) / scale).abs().max(), 5e-3)


# The terms of the bound -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("path", ["linear", "cosine", "zero-snr"])
def test_divergences_are_those_of_gaussians(truth, path, variance):
    """KL between q(x_s | x_t, x) and p(x_s | x_t), written with their means and deviations; with other variances of p
    than those of q, all three parts of it count."""
    chain, worst = full(path, variance), 0.0
    x, y, share = pictures(3), torch.randn(3, 1, 8, 8).double(), torch.rand(3, 1, 8, 8).double()
    for i in (0, 300, 700, 998):
        t, s = chain.times[i], chain.times[i + 1]
        x_t = noisy(x, torch.randn_like(x), chain.path.at(t))
        d = Denoised(x_t, 0.5 * y, "clean", chain.path.at(t), share if variance == "learned" else None)
        q = posterior(chain.path.at(t), chain.path.at(s))
        v = {"small": 0.0, "large": 1.0, "learned": share}[variance]
        std = (q.small_variance.log() * (1 - v) + q.large_variance.log() * v).mul(0.5).exp()
        means = [q.of_clean * c + q.of_x * x_t for c in (x, d.clean)]
        expected = kl_divergence(Normal(means[0], q.small_variance.sqrt()), Normal(means[1], std)).flatten(1).sum(1)
        ours = chain.term(d, x, torch.tensor(i))
        worst = max(worst, float(((ours - expected) / expected).abs().max()))
    tolerance = 1e-8 if path == "zero-snr" else 1e-10  # there the first divergence nearly vanishes, like alpha
    truth(f"chain, {path} path, {variance} variance", "divergences, relative", "torch.distributions", worst, tolerance)


def normal(x, mean, variance):
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def integrated(x, k, variance):
    """The k-th term for the one-pixel picture x, by integration over x_t and x_s, from the betas alone.

    q(x_s | x_t, x) is q(x_t | x_s) q(x_s | x) / q(x_t | x), by Bayes' rule; the chain's mean is Ho et al. 2020, eq. 7.
    """
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0).tolist()
    beta, bar, before = float(betas[k]), bars[k], bars[k - 1] if k else 1.0
    second = (1 - bars[0]) / (1 - bars[1]) * float(betas[1])
    small = (1 - before) / (1 - bar) * beta if k else second
    sigma = {"small": small, "large": beta if k else second}[variance]

    def clean(x_t):
        parts = [
            (float(w) * normal(x_t, bar**0.5 * float(m), bar * float(s) ** 2 + 1 - bar), float(m), float(s))
            for m, s, w in zip(MIXTURE.means, MIXTURE.stds, MIXTURE.shares)
        ]
        each = [w * (m + bar**0.5 * s**2 / (bar * s**2 + 1 - bar) * (x_t - bar**0.5 * m)) for w, m, s in parts]
        return sum(each) / sum(w for w, _, _ in parts)

    def inner(x_t):
        c = clean(x_t)
        if k == 0:
            low, high = x - HALF_CELL, x + HALF_CELL
            mass = quad(lambda y: normal(y, c, sigma), low, high, epsabs=0, epsrel=1e-10)[0]
            return -math.log(mass)
        of_x = (1 - beta) ** 0.5 * (1 - before) / (1 - bar)
        mean, mean_q = (before**0.5 * beta / (1 - bar) * c_ + of_x * x_t for c_ in (c, x))

        def integrand(x_s):
            q = (normal(x_t, (1 - beta) ** 0.5 * x_s, beta) * normal(x_s, before**0.5 * x, 1 - before)
                 / normal(x_t, bar**0.5 * x, 1 - bar))  # fmt: skip
            return q * (math.log(q) - math.log(normal(x_s, mean, sigma))) if q > 0 else 0.0

        width = 9 * small**0.5
        return quad(integrand, mean_q - width, mean_q + width, epsabs=1e-13, epsrel=1e-9)[0]

    middle, width = bar**0.5 * x, 8.5 * (1 - bar) ** 0.5
    return quad(lambda x_t: normal(x_t, middle, 1 - bar) * inner(x_t), middle - width, middle + width,
                epsabs=1e-12, epsrel=1e-8, limit=200)[0]  # fmt: skip


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("k", [0, 1, 30, 400, 999])
def test_terms_of_a_mixture_are_those_of_numerical_integration(truth, k, variance):
    chain, x = full(variance=variance), float(LEVELS[150])
    nodes, weights = gauss_hermite(120)
    t, pixel = chain.times[999 - k], torch.full((120, 1), x, dtype=torch.float64)
    x_t = noisy(pixel, nodes[:, None], chain.path.at(t))
    ours = weights @ chain.term(MIXTURE.denoiser(chain.path, "noise")(x_t, t), pixel, torch.tensor(999 - k))
    expected = integrated(x, k, variance)
    truth(f"chain, {variance} variance", f"term {k} of a mixture, relative", "two integrals (scipy)",
          abs(ours / expected - 1), 5e-9 if k == 999 else 1e-11)  # fmt: skip


def test_the_prior_term_is_a_divergence(truth):
    chain, x = full(), pictures(3)
    at = chain.path.at(chain.times[0])
    expected = kl_divergence(Normal(at.alpha * x, at.sigma), Normal(0 * x, at.sigma)).flatten(1).sum(1)
    error = (chain.prior(x) / expected - 1).abs().max()
    truth("chain", "prior term, relative", "torch.distributions", error, 3e-12)


def test_the_terms_without_their_weights_are_the_simple_loss(truth):
    """Ho et al. 2020, eq. 12 and 14: L_k = w_k |n - n^|^2, and of each step

    w_k = beta_k^2 / (2 sigma_k^2 (1 - beta_k) (1 - alpha_bar_k))."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    model, chain, one = tiny(), full(), batch()
    k = torch.tensor([1, 5, 50, 200, 700, 999])
    t, n = (k + 1).double() / 1000, torch.randn(6, 1, 8, 8).double()
    x_t = noisy(one.images, n, chain.path.at(t))
    d = Denoised(x_t, model.answer(x_t, t), "noise", chain.path.at(t))
    small = (1 - bars[k - 1]) / (1 - bars[k]) * betas[k]
    w = betas[k] ** 2 / (2 * small * (1 - betas[k]) * (1 - bars[k]))
    unweighted = chain.term(d, one.images, 999 - k) / w / 64
    simple = model.regression(one.images, n, t, None).total
    error = abs(unweighted.mean() / simple - 1).detach()
    truth("chain", "terms over their weights, mean, relative", "L_simple", error, 1e-10)


# The bound as a whole -------------------------------------------------------------------------------------------------


def expected_terms(chain, data, x, nodes=3):
    """What every step adds for the one-pixel pictures x (B,), on average over the noise, (N, B).

    The terms of Gaussian data are squares of the noise, for which three nodes are exact; the decoder needs more."""
    z, w = gauss_hermite(nodes)
    pixels = x.repeat_interleave(nodes)[:, None]
    denoiser, terms = data.denoiser(chain.path, "clean"), []
    for i in range(chain.steps):
        x_t = noisy(pixels, z.repeat(len(x))[:, None], chain.path.at(chain.times[i]))
        terms.append(chain.term(denoiser(x_t, chain.times[i]), pixels, torch.tensor(i)).view(len(x), nodes) @ w)
    return torch.stack(terms)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("path", ["vp", "edm"])
def test_the_bound_tends_to_the_likelihood_with_many_steps(truth, path, variance):
    """For Gaussian data and from sigma / alpha = 5 to 0.1, the terms tend to what the two ends cost whatever lies
    between them, E KL(q(x_0.1 | x_5, x) || p(x_0.1 | x_5)), p that of the data: nothing is lost in between. Order 1."""
    data, name, path, x = (
        Gaussian(),
        f"chain, {variance} variance, {path} path",
        PATHS[path],
        torch.tensor([-0.8, 0.1, 0.9], dtype=torch.float64),
    )
    first, last = (path.at(path.time_of(torch.tensor(r, dtype=torch.float64))) for r in (5.0, 0.1))

    def joint(mean, variance):  # of the picture, brought to both ends: mean and covariance of (x_last, x_first)
        step = first.alpha / last.alpha
        low = last.alpha**2 * variance + last.sigma**2
        high = first.alpha**2 * variance + first.sigma**2
        return (torch.stack([last.alpha * mean, first.alpha * mean]),
                torch.stack([torch.stack([low, step * low]), torch.stack([step * low, high])]))  # fmt: skip

    zero, s2 = torch.zeros((), dtype=torch.float64), torch.tensor(data.std**2, dtype=torch.float64)
    exact = []
    for picture in x:
        (m_q, c_q), (m_p, c_p) = joint(picture, zero), joint(torch.tensor(data.mean, dtype=torch.float64), s2)
        q, p = (torch.distributions.MultivariateNormal(m, c) for m, c in ((m_q, c_q), (m_p, c_p)))
        ends = [Normal(m[1], c[1, 1].sqrt()) for m, c in ((m_q, c_q), (m_p, c_p))]
        exact.append(kl_divergence(q, p) - kl_divergence(*ends))  # the noisy end is the prior's term
    errors = []
    for steps in (128, 256):
        ratios = 5.0 * (0.1 / 5.0) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        chain = Chain(path, torch.cat([path.time_of(ratios), zero[None]]), variance)
        errors.append((expected_terms(chain, data, x)[:-1].sum(0) - torch.stack(exact)).abs().max())
    order = math.log2(errors[0] / errors[1])
    truth(name, "order of the bound, N = 128 to 256", "1", abs(order - 1), 0.03)
    truth(name, "bound of 256 steps, nats", "likelihood of the ends", errors[1], 0.1)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
def test_the_bound_is_below_the_likelihood_of_the_chain(truth, steps, variance):
    """For Gaussian data the chain is linear, and its exact probability of each grey level is a Gaussian's."""
    data, chain, levels = Gaussian(), full("linear", variance, steps), LEVELS[::3]  # black and white among them
    mean, spread = torch.zeros(1, dtype=torch.float64), chain.path.at(chain.times[0]).sigma ** 2
    for i in range(steps):
        at = chain.path.at(chain.times[i])
        q = posterior(at, chain.path.at(chain.times[i + 1]))
        gain = at.alpha * data.std**2 / (at.alpha**2 * data.std**2 + at.sigma**2)
        offset = q.of_clean * (data.mean - gain * at.alpha * data.mean)
        slope = q.of_clean * gain + q.of_x
        d = Denoised(mean[:, None], mean[:, None], "clean", at)
        sigma = chain.tables.small[i] * chain.log_variance_gain(d, torch.tensor(i)).exp()
        mean, spread = slope * mean + offset, slope**2 * spread + sigma.squeeze()
    exact = level_log_prob(levels, mean, spread.sqrt().log())
    bound = -expected_terms(chain, data, levels, 30).sum(0) - chain.prior(levels[:, None])
    gap, middle = exact - bound, (levels - data.mean).abs().argmin()
    assert gap.min() > 0
    if steps == 1000:
        name = f"chain, {variance} variance"
        truth(name, "bound of the mean level, 1000 steps, nats", "exact ln p", gap[middle], 1.0)


def test_the_learned_variance_that_the_bound_wants_is_the_true_one(truth):
    """Of Gaussian data: Var[x_s | x_t] = small + of_clean^2 Var[c | x_t]; there the bound's slope in v is 0."""
    data, chain, worst = Gaussian(), full("cosine", "learned"), 0.0
    z, w = gauss_hermite(3)
    points = data.mean + data.std * z.repeat_interleave(3)[:, None]  # all pictures, with all noises
    for i in (10, 500, 900, 998):
        at = chain.path.at(chain.times[i])
        q = posterior(at, chain.path.at(chain.times[i + 1]))
        unexplained = data.std**2 * at.sigma**2 / (at.alpha**2 * data.std**2 + at.sigma**2)
        true = q.small_variance + q.of_clean**2 * unexplained
        v = (torch.log(true / q.small_variance) / torch.log(q.large_variance / q.small_variance)).requires_grad_()
        x_t = noisy(points, z.repeat(3)[:, None], at)
        d = Denoised(x_t, data.clean(x_t, at), "clean", at, v.expand(9, 1))
        bound = torch.outer(w, w).flatten() @ chain.term(d, points, torch.tensor(i))
        (slope,) = torch.autograd.grad(bound, v)
        worst = max(worst, abs(float(slope)))
    truth("chain, learned variance", "slope of the bound at the true variance", "0", worst, 1e-12)


# The model ------------------------------------------------------------------------------------------------------------

OBJECTIVES = [
    {}, {"variance": "large"}, {"objective": "vlb"}, LEARNED, {"objective": "vlb", "variance": "learned"},
    {"path": "zero-snr", "prediction": "v", "objective": "vlb"}, {"times": "loss-second-moment", **LEARNED},
]  # fmt: skip


@pytest.mark.parametrize("choices", OBJECTIVES)
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth, choices, classes):
    model, whole = tiny(classes=classes, **choices), batch(6, classes)
    both, halves = model(whole), [model(whole[:3]), model(whole[3:])]
    numbers = [(both.total, [half.total for half in halves])]
    numbers += [(both.parts[name], [half.parts[name] for half in halves]) for name in both.parts]
    error = max(float(abs(one - sum(two) / 2).detach() / max(float(one.detach()), 1e-9)) for one, two in numbers)
    truth("chain model", "loss and parts of a batch, relative", "mean over its halves", error, 3e-15)


@pytest.mark.parametrize("choices", OBJECTIVES)
def test_every_parameter_learns(choices):
    model = tiny(**choices)
    model(batch()).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


class Answer(torch.nn.Module):
    """A network whose answer is itself a parameter."""

    def __init__(self, shape):
        super().__init__()
        self.y = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))

    def forward(self, x, t):
        return self.y


def slopes(**choices):
    """How the loss changes with what the network says of mean and variance, (B, 2, 8, 8); all times but the first."""
    model = tiny(**choices)
    model.network = Answer((6, model.config.channels * (2 if model.learned_variance else 1), 8, 8))
    t, n = torch.tensor([2, 10, 100, 500, 900, 1000]).double() / 1000, torch.randn(6, 1, 8, 8).double()
    torch.manual_seed(1)
    model.regression(pictures(), n, t, None).total.backward()
    return model.network.y.grad


def test_the_mean_is_a_constant_in_the_bound_of_the_hybrid_loss(truth):
    """Nichol and Dhariwal 2021, section 3.1: its mean learns from L_simple alone, its variance from the bound alone."""
    torch.manual_seed(3)
    hybrid = slopes(**LEARNED)
    torch.manual_seed(3)
    heavy = slopes(**LEARNED, vlb_weight=1000.0)
    torch.manual_seed(3)
    bound = slopes(objective="vlb", variance="learned")
    mean, variance = hybrid.chunk(2, 1)
    assert mean.abs().min() > 0
    assert variance.abs().min() > 0
    assert torch.equal(mean, heavy.chunk(2, 1)[0])
    assert not torch.equal(mean, bound.chunk(2, 1)[0])
    error = (variance / (0.001 * bound.chunk(2, 1)[1]) - 1).abs().max()
    truth("hybrid loss", "slope in the variance, relative", "0.001 of that of the bound", error, 1e-9)
    error = (heavy.chunk(2, 1)[1] / (1e6 * variance) - 1).abs().max()
    truth("hybrid loss", "slope in the variance, relative", "proportional to lambda", error, 1e-9)


def test_the_hybrid_loss_is_the_sum_of_both(truth):
    """Survey, eq. 88, with lambda = 0.001 and the bound in bits per dimension."""
    model, one = tiny(**LEARNED), batch()
    losses = model(one)
    error = abs(losses.total / (losses.parts["mse"] + 0.001 * losses.parts["vlb"]) - 1).detach()
    truth("hybrid loss", "total, relative", "L_simple + 0.001 L_vlb", error, 1e-12)


class Cheap(torch.nn.Module):
    """Some smooth function of the picture and the time index."""

    def __init__(self, answers):
        super().__init__()
        self.mix = torch.nn.Parameter(torch.tensor([0.9, 0.4], dtype=torch.float64)[:answers])

    def forward(self, x, t):
        return torch.tanh(x * self.mix.view(-1, 1, 1) + (t.view(-1, 1, 1, 1) / 1000 - 0.3) ** 2)


@pytest.mark.parametrize("choices", [{"variance": "small"}, {"variance": "large"}, {"variance": "learned"}])
def test_the_vlb_loss_is_the_bound_in_bits_per_dimension(truth, choices):
    """Summed over every time, it is what `elbo` sums, for the same noise."""
    model = tiny(objective="vlb", clip=False, **choices)
    model.network = Cheap(2 if model.learned_variance else 1)
    x, n = pictures(1), torch.randn(1, 1, 8, 8).double()
    t = torch.arange(1, 1001).double() / 1000
    with torch.no_grad():
        loss = torch.stack([model.regression(x.expand(50, -1, -1, -1), n.expand(50, -1, -1, -1), part, None).total
                            for part in t.split(50)]).mean()  # fmt: skip
        chain, nats = model.chain, model.chain.prior(x)
        denoiser = model.denoiser()
        for i in range(0, 1000):
            x_t = noisy(x, n, chain.path.at(chain.times[i]))
            nats = nats + chain.term(denoiser(x_t, chain.times[i]), x, torch.tensor(i))
    truth("vlb loss", f"mean over all times, {choices['variance']} variance, relative", "sum of the terms in bits/dim",
          abs(loss / (nats[0] / (64 * math.log(2))) - 1), 1e-10)  # fmt: skip


class Pixel(torch.nn.Module):
    """The perfect network for one-pixel pictures of a mixture."""

    def forward(self, x, network_time):
        path = PATHS["linear"]
        return MIXTURE.answer("noise", x.flatten(1), path.at((network_time + 1) / path.steps)).view_as(x)


def pixel_model(**choices):
    config = ChainConfig(image_size=1, channels=1, network=UNetConfig(8, (1,), 1, (False,), groups=4), clip=False)
    model = ChainModel(replace(config, **choices))
    model.network = Pixel()
    model.device_of = torch.nn.Parameter(torch.zeros(()))
    return model


@pytest.mark.parametrize(("terms", "n", "spread"), [(5, 1000, 0.5), (50, 200, 0.3)])
def test_a_few_terms_are_right_on_average(truth, terms, n, spread):
    """Against every term, each integrated over the noise: in units of the standard error, so a normal number."""
    model = pixel_model()
    nodes, weights = gauss_hermite(60)
    pixel, chain = LEVELS[150].expand(60, 1), model.chain
    denoiser = MIXTURE.denoiser(chain.path, "noise")
    exact = chain.prior(pixel[:1])[0]
    for i in range(1000):
        x_t = noisy(pixel, nodes[:, None], chain.path.at(chain.times[i]))
        exact = exact + weights @ chain.term(denoiser(x_t, chain.times[i]), pixel, torch.tensor(i))
    drawn = -model.elbo(LEVELS[150].expand(n, 1, 1, 1), terms=terms)
    standard = drawn.std() / n**0.5
    truth("bound", f"{terms} terms of 1000, {n} draws, nats", "0", standard, spread)
    away = abs(drawn.mean() - exact) / standard
    truth("bound", f"{terms} terms of 1000, mean of {n} draws, in standard errors", "all terms, integrated", away, 3)


@pytest.mark.parametrize(
    ("steps", "terms"), [(1, "all"), (1, 2), (2, 2), (3, 2), (7, 5), (1000, "all"), (1000, 100), (50, 100)]
)
def test_groups_cover_every_step_once(steps, terms):
    made = groups(steps, terms)
    assert [i for low, high in made for i in range(low, high)] == list(range(steps))
    assert all(high > low for low, high in made)
    assert made[-1] == (steps - 1, steps)
    assert len(made) == (steps if terms == "all" else min(terms, steps))


@pytest.mark.parametrize("terms", [4, "all"])
def test_the_bound_of_a_picture_depends_on_its_seed_alone(truth, terms):
    model, x = tiny(classes=3, **LEARNED), pictures(5)
    labels = torch.arange(5) % 3
    whole = model.elbo(x, labels=labels, seeds=7, terms=terms, steps=10)
    alone = torch.cat([model.elbo(x[k : k + 1], labels=labels[k : k + 1], seeds=[7 + k], terms=terms, steps=10)
                       for k in range(5)])  # fmt: skip
    error = (whole / alone - 1).abs().max()
    truth("bound", f"five pictures together, terms {terms}, relative", "one by one", error, 3e-15)
    assert not torch.allclose(whole, model.elbo(x, labels=labels, seeds=8, terms=terms, steps=10))


def test_all_terms_are_what_the_chain_says(truth):
    """The sum, written out, for a shorter chain, with the noise of each picture's seed; and clipped as samples are."""
    for clip in (False, True):
        model, x = tiny(clip=clip, **LEARNED), pictures(3)
        chain = model.strided(10)
        random, nats, denoiser = PictureRandom([0, 1, 2]), chain.prior(x), model.denoiser()
        for i in range(10):
            x_t = noisy(x, random.normal(1, 8, 8), chain.path.at(chain.times[i]))
            with torch.no_grad():
                nats = nats + chain.term(denoiser(x_t, chain.times[i]), x, torch.tensor(i))
        error = (model.elbo(x, terms="all", steps=10) / -nats - 1).abs().max()
        truth("bound", f"10 steps, clip {clip}, relative", "sum of its terms", error, 1e-12)


def test_a_bound_without_labels_is_that_of_the_unconditional_branch():
    model, x = tiny(classes=3), pictures(3)
    hidden, told = model.elbo(x, steps=5), model.elbo(x, labels=[2, 2, 2], steps=5)
    assert not torch.equal(hidden, told)
    with torch.no_grad():
        model.network.label.weight[3] = model.network.label.weight[2]  # "no label" now means class 2
    assert torch.equal(model.elbo(x, steps=5), told)
    with pytest.raises(ConfigError, match="always told labels"):
        tiny(classes=3, label_dropout=0.0).elbo(x)
    tiny(classes=3, label_dropout=0.0).elbo(x, labels=[2, 2, 2], steps=3)


def test_what_does_not_fit_the_pictures_is_refused():
    model, x = tiny(classes=3), pictures(2)
    for labels, words in (([0, 7], "from 0 to 2"), ([1], "2 labels"), ([3, 3], "from 0 to 2")):
        with pytest.raises(ConfigError, match=words):
            model.elbo(x, labels=labels, steps=3)
    with pytest.raises(ConfigError, match="without labels"):
        tiny().elbo(x, labels=[0, 1], steps=3)
    with pytest.raises(ConfigError, match="how many steps"):
        model.elbo(x, grid="uniform")


def test_a_chain_knows_a_bound_and_no_likelihood():
    assert isinstance(tiny(), HasELBO)
    assert not isinstance(tiny(), HasLogProb)
    with pytest.raises(ConfigError, match="at least 2 terms"):
        tiny().elbo(pictures(1), terms=1)


@pytest.mark.parametrize("grid", ["linspace", "leading", "trailing"])
def test_shorter_chains_end_at_the_picture(grid):
    bound = tiny(**LEARNED).elbo(pictures(2), steps=7, grid=grid)
    assert bound.shape == (2,)
    assert bound.isfinite().all()
    assert bound.max() < 0


def test_the_sampler_of_a_learned_variance_uses_that_of_the_bound(truth):
    """With noise and without it, one step of the sampler differs by the standard deviation that the chain has."""
    model, times = tiny(**LEARNED, clip=False), GRIDS["linspace"](3, PATHS["linear"])
    x, z = torch.randn(2, 1, 8, 8).double(), torch.randn(2, 1, 8, 8).double()
    chain = Chain(model.path, times, "learned")
    with torch.no_grad():
        d = model.denoiser()(x, times[0])
        first = torch.tensor([times[0], times[1]])
        step = partial(ancestral, model.denoiser(), x, first, variance="learned")
        with_noise, without = step(noise=lambda: z), step(noise=lambda: 0 * z)
    i = torch.tensor(0)
    variance = chain.tables.small[0] * chain.log_variance_gain(d, i).exp()
    error = ((with_noise - without) / z / variance.sqrt() - 1).abs().max()
    truth("solver ancestral-learned", "standard deviation of a step, relative", "that of the bound", error, 5e-11)


@pytest.mark.parametrize("choices", [{"objective": "vlb", "variance": "large"}, LEARNED])
def test_losses_and_bounds_stay_on_their_device(choices):
    """Without float64 there, and without waiting for it."""
    model = tiny(classes=3, **choices).float().to("meta")
    images, labels = torch.empty(3, 1, 8, 8, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    with OtherDevice():
        model(Batch(images, labels, seeds=[1, 2, 3])).total.backward()
        assert model.elbo(images, labels=[0, 1, 2], terms=2, steps=3).is_meta
        assert model.elbo(images, terms="all", steps=2).is_meta
    assert all(p.grad.is_meta for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("choices", "solver"),
    [({}, "ancestral"), ({}, "ancestral-large"), (LEARNED, "ancestral-learned"), (LEARNED, "ddim")],
)
def test_samples_are_pictures(choices, solver):
    drawn = tiny(solver=solver, **choices).float().sample(2, steps=3)
    assert drawn.shape == (2, 1, 8, 8)
    assert drawn.abs().max() <= 1


@pytest.mark.parametrize(
    ("choices", "message"),
    [({"path": "vp"}, "path vp"), ({"variance": "learned"}, "simple objective"), ({"objective": "hybrid"}, "hybrid"),
     ({"objective": "vlb", "times": "logit-normal"}, "discrete"),
     ({"objective": "vlb", "weighting": "min-snr"}, "weights"), ({"solver": "ancestral-learned"}, "ancestral-large"),
     ({**LEARNED, "vlb_weight": 0.0}, "vlb_weight"), ({"times": "loss-second-momen"}, "loss-second-moment")],
)  # fmt: skip
def test_choices_that_do_not_fit_are_refused(choices, message):
    with pytest.raises(ConfigError, match=message):
        ChainConfig(8, 1, **choices)


def test_a_config_comes_back():
    config = ChainConfig(8, 1, network=TINY, times="loss-second-moment", **LEARNED)
    assert ChainConfig.from_dict(config.to_dict()) == config


# diffusers ------------------------------------------------------------------------------------------------------------


def their_variance(kind, k, predicted=None):
    diffusers = pytest.importorskip("diffusers")
    made = diffusers.DDPMScheduler(variance_type=kind)
    made.alphas_cumprod = PATHS["linear"].at(torch.arange(1, 1001).double() / 1000).alpha ** 2  # theirs is float32
    return made._get_variance(k, predicted)


@pytest.mark.oracles
def test_learned_variances_are_those_of_diffusers(truth):
    chain, raw, worst = full("linear", "learned"), torch.randn(3, 1, 2, 2).double(), 0.0
    for k in (1, 2, 50, 999):
        d = Denoised(raw, raw, "noise", chain.path.at(chain.times[999 - k]), (raw + 1) / 2)
        ours = chain.tables.small[999 - k].log() + chain.log_variance_gain(d, torch.tensor(999 - k))
        worst = max(worst, float((ours - their_variance("learned_range", k, raw)).abs().max()))
    truth("chain, learned variance", "ln Sigma, all but the last step", "diffusers 0.42.1 learned_range", worst, 1e-11)


@pytest.mark.oracles
def test_small_variances_are_those_of_diffusers(truth):
    """Its fixed_small_log is not a logarithm but the standard deviation."""
    chain = full()
    pairs = [(chain.tables.small[999 - k], their_variance("fixed_small_log", k) ** 2) for k in (1, 2, 50, 999)]
    worst = max(abs(float(ours / theirs) - 1) for ours, theirs in pairs)
    truth("chain, small variance", "all but the last step, relative", "diffusers 0.42.1 fixed_small_log", worst, 1e-12)


@pytest.mark.oracles
def test_the_decoder_of_diffusers_has_no_variance(truth):
    """diffusers only samples: its small variance of the last step is clamped at 1e-20. Both papers' bits per dimension
    are computed with beta~_2 there, as ours are: sigma_1^2 beta_2 / sigma_2^2."""
    at = PATHS["linear"].at(torch.tensor([1, 2]).double() / 1000)
    beta_2 = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[1]
    published = at.sigma[0] ** 2 * beta_2 / at.sigma[1] ** 2
    truth("chain", "variance of the decoder, relative", "beta~_2", abs(full().tables.small[-1] / published - 1), 1e-11)
    assert their_variance("fixed_small", 0) == 1e-20
