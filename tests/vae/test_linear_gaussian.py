"""The VAE whose every quantity is known: p(x | z) = N(W z + b, s^2 I), z = N(0, I), and q(z | x) linear too.

The networks of a `VAE` are exchanged for linear layers; everything else is its own. Means over what it draws are
Gauss-Hermite sums, of rows of noise put in place of its random numbers, so that no test has a sampling error.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import mezzotint.vae.model
from mezzotint.core.batch import Batch
from mezzotint.vae.likelihoods import GaussianPixelsConfig
from mezzotint.vae.networks import MLPConfig
from mezzotint.vae.objectives import ELBO, ImportanceWeighted
from mezzotint.vae.vae import VAE, VAEConfig

S, SIZE = 0.6, 2
PIXELS = SIZE**2


class Given:
    """In place of a picture's random numbers: draws are handed out in order from (B, K, latent)."""

    def __init__(self, noise):
        self.noise, self.used = noise, 0

    def normal(self, times, *shape):
        self.used += times
        return self.noise[:, self.used - times : self.used].reshape(len(self.noise), times, *shape)


@pytest.fixture
def given(monkeypatch):
    """`given(noise)`: what the next bound draws."""

    def put(noise):
        monkeypatch.setattr(mezzotint.vae.model, "PICTURES", len(noise))
        monkeypatch.setattr(mezzotint.vae.model, "PictureRandom", lambda seeds, device: Given(noise[list(seeds)]))

    return put


def nodes(dims, points=32):
    """(points^dims, dims) noise, and the mass of each row."""
    x, w = np.polynomial.hermite_e.hermegauss(points)
    grids = [g.flatten() for g in torch.meshgrid(*[torch.tensor(x)] * dims, indexing="ij")]
    masses = [m.flatten() for m in torch.meshgrid(*[torch.tensor(w / w.sum())] * dims, indexing="ij")]
    return torch.stack(grids, 1), torch.stack(masses, 1).prod(1)


def linear(latent=1, exact=False, objective=None, widen=1.0):
    """A model with random W and b, and a random linear q, or (its W having orthogonal columns) the true posterior.

    widen  factor on the deviation of the true posterior
    """
    generator = torch.Generator().manual_seed(7)
    config = VAEConfig(
        SIZE, 1, latent, MLPConfig((4,)), GaussianPixelsConfig(S), objective or ELBO()
    )  # fmt: skip
    model = VAE(config)
    w = torch.linalg.qr(torch.randn(PIXELS, latent, generator=generator, dtype=torch.float64))[0]
    w = w * torch.linspace(1.5, 0.7, latent).double()
    b = torch.randn(PIXELS, generator=generator, dtype=torch.float64) * 0.3
    variance = 1 / (1 + w.square().sum(0) / S**2)  # of the posterior
    if exact:
        a, c, log_variance = variance[:, None] * w.T / S**2, -variance * (w.T @ b) / S**2, variance.log()
        log_variance = log_variance + 2 * math.log(widen)
    else:
        a = torch.randn(latent, PIXELS, generator=generator, dtype=torch.float64) * 0.3
        c = torch.randn(latent, generator=generator, dtype=torch.float64) * 0.3
        log_variance = torch.full((latent,), -0.8, dtype=torch.float64)
    encoder, decoder = nn.Linear(PIXELS, 2 * latent), nn.Linear(latent, PIXELS)
    model.encoder = nn.Sequential(nn.Flatten(), encoder)
    model.decoder = nn.Sequential(decoder, nn.Unflatten(1, (1, SIZE, SIZE)))
    model.double()
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([a, torch.zeros_like(a)]))
        encoder.bias.copy_(torch.cat([c, log_variance]))
        decoder.weight.copy_(w)
        decoder.bias.copy_(b)
    return model


def pictures(n, seed=1):
    return torch.randn(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(model):
    """W, b."""
    return model.decoder[0].weight.detach(), model.decoder[0].bias.detach()


def log_evidence(model, x):
    """ln N(x; b, W W^T + s^2 I)."""
    w, b = parts(model)
    return MultivariateNormal(b, w @ w.T + S**2 * torch.eye(PIXELS).double()).log_prob(x.flatten(1))


@torch.no_grad()
def evidence_bound(model, x):
    """-(|x - W m - b|^2 + tr(W V W^T)) / (2 s^2) - D ln(2 pi s^2) / 2 - KL(N(m, V) || N(0, I))."""
    w, b = parts(model)
    q = model.posterior(x)
    variance = (2 * q.log_std).exp()
    error = (x.flatten(1) - q.mean @ w.T - b).square().sum(1) + variance @ w.square().sum(0)
    kl = 0.5 * (q.mean**2 + variance - 1 - variance.log()).sum(1)
    return -error / (2 * S**2) - PIXELS / 2 * math.log(2 * math.pi * S**2) - kl


def bound(model, x, draws, given, points=32):
    """L_K of one picture x, by quadrature over all noise of all its draws; and the variance of its estimate."""
    latent = model.config.latent
    noise, mass = nodes(draws * latent, points)
    given(noise.view(-1, draws, latent))
    found = model.elbo(x.expand(len(noise), -1, -1, -1), samples=draws)
    mean = (mass * found).sum()
    return mean, (mass * (found - mean) ** 2).sum()


# The evidence lower bound


@pytest.mark.parametrize("latent", [1, 2])
def test_the_bound_of_one_draw_is_the_closed_form_on_average(truth, given, latent):
    model = linear(latent)
    for x in pictures(3):
        found, _ = bound(model, x, 1, given)
        expected = evidence_bound(model, x[None])[0]
        truth("linear-Gaussian VAE", "ELBO, nats", "closed form", abs(found - expected), 5e-15)


@pytest.mark.parametrize(("objective", "draws"), [(ELBO(), 1), (ImportanceWeighted(4), 4)])
def test_the_loss_is_minus_the_bound_at_the_same_draws(truth, given, objective, draws):
    model, x = linear(2, objective=objective), pictures(5)
    noise = torch.randn(5, draws, 2).double()
    given(noise)
    batch = Batch(x)
    batch.random = lambda: Given(noise)
    error = abs(model(batch).total.detach() + model.elbo(x, samples=draws).mean())
    truth("linear-Gaussian VAE", f"loss, K = {draws}, nats", "minus its bound", error, 2e-15)


# log p(x)


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("draws", [2, 60])
def test_with_the_true_posterior_every_draw_says_what_the_picture_costs(truth, latent, draws):
    """ln w = ln p(x) whatever z is drawn, so that the bound is no bound but the number itself."""
    model, x = linear(latent, exact=True), pictures(4)
    error = (model.elbo(x, samples=draws) - log_evidence(model, x)).abs().max()
    truth("linear-Gaussian VAE", "importance bound with the true posterior, nats", "ln p(x)", error, 5e-15)


def test_the_bound_rises_with_the_number_of_draws_and_stays_below(truth, given):
    """L_1 < L_2 < L_3 < ln p(x), each a Gauss-Hermite sum over all its draws; L_1 is the ELBO in closed form."""
    model = linear()
    for x in pictures(2):
        bounds = [bound(model, x, draws, given, 24)[0] for draws in (1, 2, 3)] + [log_evidence(model, x[None])[0]]
        steps = [float(b - a) for a, b in itertools.pairwise(bounds)]
        assert min(steps) > 0.05
        assert steps[0] > steps[1]


def test_what_is_missing_is_the_variance_of_a_weight_over_twice_their_number(truth, given):
    """ln p(x) - L_K = Var(w / p(x)) / 2K + O(1 / K^2), for a posterior that is a fiftieth too wide."""
    model, x = linear(exact=True, widen=1.02), pictures(1)[0]
    evidence = log_evidence(model, x[None])[0]
    noise, mass = nodes(1)
    with torch.no_grad():
        many = Batch(x.expand(len(noise), -1, -1, -1))
        log_weights = model.infer(
            many, model.recognise(many), mezzotint.vae.model.Draws(Given(noise[:, None]))
        ).log_weight
    ratio = (log_weights - evidence).exp()
    variance = (mass * (ratio - 1) ** 2).sum()
    truth("linear-Gaussian VAE", "mean of w / p(x)", "1", abs((mass * ratio).sum() - 1), 1e-15)
    for draws in (2, 3):
        missing = (evidence - bound(model, x, draws, given, 24)[0]) * 2 * draws / variance
        truth("linear-Gaussian VAE", f"ln p(x) - L_{draws}, as a share", "Var(w / p(x)) / 2K", abs(missing - 1), 0.03)


def test_with_many_draws_the_bound_is_the_evidence(truth):
    """5,000 of the model's own draws."""
    model, x = linear(2), pictures(6)
    error = (model.elbo(x, samples=5000) - log_evidence(model, x)).abs().max()
    truth("linear-Gaussian VAE", "importance bound of 5,000 draws, nats", "ln p(x)", error, 0.1)


# Streaming


def test_how_many_draws_go_together_changes_nothing(truth, given, monkeypatch):
    model, x, noise = linear(2), pictures(3), torch.randn(3, 120, 2).double()
    found = {}
    for chunk in (1, 7, 50, 1000):
        monkeypatch.setattr(mezzotint.vae.model, "CHUNK", chunk)
        given(noise)
        found[chunk] = model.elbo(x, samples=120)
    for chunk in (1, 7, 50):
        error = (found[chunk] - found[1000]).abs().max()
        truth("linear-Gaussian VAE", f"bound of 120 draws, {chunk} at a time, nats", "all at once", error, 4e-15)


def test_no_more_rows_are_decoded_at_once_however_many_pictures_and_draws(monkeypatch):
    model, rows = linear(2), []
    monkeypatch.setattr(mezzotint.vae.model, "PICTURES", 4)
    model.decoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    x = pictures(10)
    whole = model.elbo(x, samples=120, seeds=3)
    assert rows == [4 * 50, 4 * 50, 4 * 20] * 2 + [2 * 50, 2 * 50, 2 * 20]
    rows.clear()
    alone = torch.cat([model.elbo(x[k : k + 1], samples=120, seeds=3 + k) for k in range(10)])
    assert max(rows) == 50
    assert torch.allclose(whole, alone, atol=1e-12)
