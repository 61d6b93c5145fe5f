"""What is made of the two terms of the bound, beside the formulas; the gradients of the tighter bound by quadrature."""

import math

import numpy as np
import pytest
import torch

from mezzotint.core.errors import ConfigError
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.objectives import ELBO, Capacity, ImportanceWeighted, Inferred, importance_bound, weigh_again


def inferred(rows=6, groups=3):
    return Inferred(
        -10 * torch.rand(rows).double(), 3 * torch.rand(rows, groups).double(), torch.randn(rows).double()
    )  # fmt: skip


def after(steps):
    return torch.tensor(steps)


# Weights of the two terms


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_beta_weighs_the_divergence(truth, beta):
    """Survey, eq. 12 and 16, the mean over pictures. The terms are logged weighed by nothing, and beside them what
    stands in place of the KL, where it is not the KL."""
    found = ELBO(beta).losses(one := inferred(), after(0))
    expected = (-one.log_likelihood + beta * one.kl.sum(1)).mean()
    truth("beta-VAE", "loss, nats", "eq. 16", abs(found.total - expected), 1e-15)
    seen = {name: float(value) for name, value in found.parts.items()}
    assert seen == pytest.approx(
        {
            "reconstruction": float(-one.log_likelihood.mean()),
            "kl": float(one.kl.sum(1).mean()),
            "negative_elbo": float((one.kl.sum(1) - one.log_likelihood).mean()),
            **({} if beta == 1 else {"penalty": float(beta * one.kl.sum(1).mean())}),
        },
        rel=1e-12,
    )


@pytest.mark.parametrize(("steps", "weight"), [(0, 0.025), (1, 0.05), (38, 0.975), (39, 1.0), (40, 1.0), (10**6, 1.0)])
def test_warm_up_is_a_line_from_nothing_to_beta(truth, steps, weight):
    one = inferred()
    found = ELBO(2.0, warmup_steps=40).losses(one, after(steps)).total
    expected = (-one.log_likelihood + 2 * weight * one.kl.sum(1)).mean()
    truth("warm-up of the divergence", f"loss after {steps} of 40 steps, nats", "formula", abs(found - expected), 5e-7)


def test_free_bits_are_free_in_each_group_of_each_picture(truth):
    """Sum over groups of max(lambda, KL): a group below lambda has no gradient, one above its whole."""
    one = inferred()
    kl = one.kl.clone().requires_grad_()
    found = ELBO(free_bits=1.2).losses(one._replace(kl=kl), after(0)).total
    expected = (-one.log_likelihood + torch.where(one.kl > 1.2, one.kl, 1.2).sum(1)).mean()
    truth("free bits", "loss, nats", "sum of max(lambda, KL)", abs(found - expected).detach(), 1e-15)
    found.backward()
    assert torch.equal(kl.grad > 0, one.kl > 1.2)
    assert 0 < (one.kl > 1.2).sum() < one.kl.numel()


@pytest.mark.parametrize("objective", [ELBO(2.0), ELBO(1.0, 40), ELBO(free_bits=1.2), Capacity(30.0, 20.0, 1000)])
def test_the_log_says_what_the_loss_is_made_of(truth, objective):
    found = objective.losses(inferred(), after(20))
    error = (found.parts["reconstruction"] + found.parts["penalty"]) / found.total - 1
    truth("objectives", "reconstruction and penalty, relative", "loss", abs(error), 1e-15)
    assert found.parts["penalty"] != found.parts["kl"]


@pytest.mark.parametrize(("steps", "capacity"), [(0, 0.0), (250, 5.0), (1000, 20.0), (9999, 20.0)])
def test_capacity_rises_in_a_line_and_holds_the_divergence_there(truth, steps, capacity):
    """Survey, eq. 17, with C_t from 0 to 20 in 1000 steps."""
    one = inferred()
    found = Capacity(gamma=30.0, most=20.0, steps=1000).losses(one, after(steps))
    expected = (-one.log_likelihood + 30 * (one.kl.sum(1) - capacity).abs()).mean()
    truth("capacity-VAE", f"loss after {steps} steps, relative", "eq. 17", abs(found.total / expected - 1), 1e-15)
    assert float(found.parts["capacity"]) == pytest.approx(capacity)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(4.0, 10, 0.1), Capacity(), ImportanceWeighted(2)])
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_halves(objective):
    one = inferred(8)
    halves = [
        objective.losses(Inferred(*(part[rows] for part in one)), after(3)) for rows in (slice(0, 4), slice(4, 8))
    ]
    whole = objective.losses(one, after(3))
    assert float(whole.total) == pytest.approx(float(halves[0].total + halves[1].total) / 2, rel=1e-12)
    for name, value in whole.parts.items():
        assert float(value) == pytest.approx(float(halves[0].parts[name] + halves[1].parts[name]) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ELBO(beta=-1.0), "beta must not be negative"),
        (lambda: ELBO(beta=math.nan), "beta must not be negative or infinite"),
        (lambda: ELBO(warmup_steps=-1), "warmup_steps"),
        (lambda: ELBO(free_bits=-0.1), "free_bits"),
        (lambda: Capacity(gamma=-1.0), "gamma"),
        (lambda: Capacity(most=-1.0), "most"),
        (lambda: ImportanceWeighted(0), "at least 1 sample"),
    ],
)
def test_objectives_that_cannot_be_are_refused(make, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make()


# The tighter bound


def test_the_bound_is_the_logarithm_of_the_mean_weight(truth):
    """Survey, eq. 25; K = 4 draws of each of 3 pictures, one after the other."""
    one = inferred(12)
    found = ImportanceWeighted(4).losses(one, after(0))
    weights = (one.log_likelihood + one.log_ratio).exp().view(3, 4)
    expected = -weights.mean(1).log().mean()
    truth("IWAE", "loss, nats", "eq. 25", abs(found.total - expected), 2e-15)
    assert found.parts["negative_bound"] == found.total
    assert found.parts["kl"] == one.kl.sum(1).mean()


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_the_bound_does_not_overflow(truth, size):
    """In float32, where e^89 is infinite."""
    ratios = torch.randn(100, 50)
    for sign in (-1, 1):
        found = importance_bound(sign * size + ratios)
        expected = importance_bound((sign * size + ratios).double())
        error = ((found - expected) / expected).abs().max()
        truth("IWAE", f"bound of weights near e^{sign * size:g} in float32, relative", "in float64", error, 1e-7)


def test_the_gradient_of_the_bound_is_that_of_each_draw_times_its_share(truth):
    """d L / d ln w_k = w_k / sum w (Burda et al. 2016, eq. 14)."""
    log_weights = torch.randn(5, 7).double().requires_grad_()
    importance_bound(log_weights).sum().backward()
    error = (log_weights.grad - log_weights.detach().softmax(1)).abs().max()
    truth("IWAE", "gradient of the bound by ln w", "normalised weights", error, 1e-15)


def test_a_bound_of_one_draw_is_its_weight():
    log_weights = torch.randn(5, 1)
    assert torch.equal(importance_bound(log_weights), log_weights[:, 0])


# Its two gradients, for p(x | z) = N(w z + b, s^2) with one z and one x, and q(z | x) = N(m, e^(2 l))

W, B, S, X, M, L = 1.5, 0.2, 0.7, 1.1, 0.4, -0.6


def gradients(gradient, noise, m=M, log_std=L):
    """d loss / d (m, l) at each row of noise (N, K) in place of what would be drawn: (N, 2)."""
    rows, draws = noise.shape
    numbers = [torch.full((rows, 1), value, dtype=torch.float64, requires_grad=True) for value in (m, log_std)]
    posterior = Gaussian(*numbers).repeat(draws)
    z = posterior.at(noise.reshape(-1, 1))
    log_likelihood = -0.5 * ((X - W * z - B) / S) ** 2 - math.log(S) - 0.5 * math.log(2 * math.pi)
    at_z = posterior.detach() if gradient == "doubly" else posterior
    ratio = Gaussian.standard(z).log_prob(z) - at_z.log_prob(z)
    found = Inferred(log_likelihood[:, 0], posterior.kl(), ratio)
    if gradient == "doubly":
        weigh_again(z, found.log_weight.unflatten(0, (-1, draws)))
    losses = ImportanceWeighted(draws, gradient).losses(found, torch.tensor(0))
    (losses.total * rows).backward()
    return torch.cat([n.grad for n in numbers], 1)


def nodes(draws, points=48):
    """Noise (points^K, K) and the mass of each row, by which sums are means over independent normal noise."""
    x, w = np.polynomial.hermite_e.hermegauss(points)
    grids = torch.meshgrid(*[torch.tensor(x)] * draws, indexing="ij")
    masses = torch.meshgrid(*[torch.tensor(w / w.sum())] * draws, indexing="ij")
    return torch.stack([g.flatten() for g in grids], 1), torch.stack([m.flatten() for m in masses], 1).prod(1)


def moments(gradient, draws):
    noise, mass = nodes(draws)
    found = gradients(gradient, noise)
    mean = (mass[:, None] * found).sum(0)
    return mean, (mass[:, None] * (found - mean) ** 2).sum(0)


@pytest.mark.parametrize("draws", [1, 2])
def test_both_gradients_have_the_same_mean(truth, draws):
    """Tucker et al. 2019, eq. 8; means over noise by Gauss-Hermite sums."""
    once, twice = moments("reparameterised", draws)[0], moments("doubly", draws)[0]
    error = ((once - twice) / once).abs().max()
    truth(
        "IWAE", f"mean of the doubly reparameterised gradient, K = {draws}, relative", "that of the bound", error, 1e-9
    )


@pytest.mark.parametrize("gradient", ["reparameterised", "doubly"])
def test_of_one_draw_their_mean_is_the_gradient_of_the_evidence_bound(truth, gradient):
    """-ELBO = ((x - w m - b)^2 + w^2 e^2l) / (2 s^2) + (m^2 + e^2l) / 2 - l + constant, in closed form."""
    variance = math.exp(2 * L)
    by_m = -W * (X - W * M - B) / S**2 + M
    by_l = (W**2 / S**2 + 1) * variance - 1
    error = (moments(gradient, 1)[0] - torch.tensor([by_m, by_l], dtype=torch.float64)).abs().max()
    truth("IWAE", f"mean of the {gradient} gradient, K = 1", "closed form of the ELBO's", error, 4e-15)


def test_the_doubly_reparameterised_gradient_varies_less():
    """Here by a factor of 3 and more, for the mean of q."""
    for draws in (1, 2):
        once, twice = moments("reparameterised", draws)[1], moments("doubly", draws)[1]
        assert (twice < once).all()


def test_at_the_true_posterior_it_does_not_vary_at_all(truth):
    """ln w is then ln p(x) whatever is drawn, so no path through z changes it."""
    variance = 1 / (1 + W**2 / S**2)
    mean, log_std = variance * W * (X - B) / S**2, math.log(variance) / 2
    noise = torch.randn(200, 5).double()
    error = gradients("doubly", noise, mean, log_std).abs().max()
    truth("IWAE", "doubly reparameterised gradient at the true posterior", "0", error, 1e-15)
    assert gradients("reparameterised", noise, mean, log_std).std(0).min() > 0.1


def test_the_value_is_the_bound_whichever_gradient_it_has(truth):
    one = inferred(12)
    once, twice = (ImportanceWeighted(4, g).losses(one, after(0)).total for g in ("reparameterised", "doubly"))
    truth("IWAE", "loss with the doubly reparameterised gradient, nats", "the bound", abs(once - twice), 2e-15)
