"""The learned hierarchical prior: its density never overestimated, exact where it can be; and beta, which finds one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from vae.quadrature import Given, binary_pictures, hermite, likelihood_of
from vae.two_processes import in_two_processes

from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import ELBO, Constrained, ImportanceWeighted, multiplier
from mezzotint.vae.priors import HierarchicalPriorConfig
from mezzotint.vae.vae import VAE, VAEConfig

PRIOR = HierarchicalPriorConfig(1, 4, (8,), "tanh")


def small(**choices) -> VAE:
    given = {
        "image_size": 2, "latent": 1, "network": MLPConfig((8,), "tanh"), "likelihood": BernoulliConfig(),
        "prior": PRIOR,
    }  # fmt: skip
    return VAE(VAEConfig(**{**given, **choices})).double()


def curved() -> VAE:
    """A prior that is far from Gaussian."""
    model = small()
    with torch.no_grad():
        for part in (model.prior.generate, model.decoder):
            for parameter in part.parameters():
                parameter.mul_(2.0)
        model.prior.generate[-1].bias[1] = -1.0
    return model


def log_density(model: VAE, z: torch.Tensor) -> torch.Tensor:
    """ln p(z) = ln E[p(z | zeta)] by quadrature over a 1-D zeta, (B,)."""
    values, weights = hermite(100)
    of_z = Gaussian.of(model.prior.generate(values[:, None]))
    rows = [weights.log() + of_z.log_prob(one.expand(100, 1)) for one in z]
    return torch.logsumexp(torch.stack(rows), 1)


class Answer(nn.Module):
    """A mean that is linear in the input, and a variance."""

    def __init__(self, gain, shift, variance):
        super().__init__()
        self.gain, self.shift, self.raw = gain, shift, torch.tensor(variance, dtype=torch.float64).log()

    def forward(self, inputs):
        mean = self.gain * inputs + self.shift
        return torch.cat([mean, self.raw.expand_as(mean)], 1)


def linear(a=1.3, b=0.4, s2=0.5) -> tuple[VAE, torch.distributions.Normal]:
    """p(z | zeta) = N(a zeta + b, s^2), zeta inferred by its exact posterior; and p(z) = N(b, a^2 + s^2)."""
    model = small()
    model.prior.generate = Answer(a, b, s2)
    model.prior.infer = Answer(a / (a**2 + s2), -a * b / (a**2 + s2), s2 / (a**2 + s2))
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (b, (a**2 + s2) ** 0.5))
    return model, torch.distributions.Normal(mean, std)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("hold", [True, False])
def test_an_error_that_is_no_number_is_not_remembered(bad, hold):
    """The step of such a batch is skipped, and the weight of the KL goes on from where it was."""
    constraint = Constrained(most=0.5, begin=0.2, least=0.1, wait=hold)
    model = small(objective=constraint, likelihood=GaussianPixelsConfig()).train()
    images = binary_pictures()[:4]
    for step in range(3):
        model(Batch(images, seeds=range(4)))
        model.after_step(step)
    before = model.lagrangian.beta.clone(), model.lagrangian.average.clone()
    poisoned = images.clone()
    poisoned[0, 0, 0, 0] = bad
    model(Batch(poisoned, seeds=range(4)))
    model.after_step(3)
    assert torch.equal(model.lagrangian.beta, before[0])
    assert torch.equal(model.lagrangian.average, before[1])


def test_the_networks_of_the_prior_have_the_activation_that_was_asked_for():
    kinds = {"tanh": nn.Tanh, "relu": nn.ReLU}
    for name, kind in kinds.items():
        found = {
            type(module) for module in small(prior=HierarchicalPriorConfig(1, 4, (8,), name)).prior.modules()
        } & set(kinds.values())
        assert found == {kind}


def test_the_density_is_exact_where_zeta_is_inferred_exactly(truth):
    """With the posterior of zeta, every draw says ln N(z; b, a^2 + s^2)."""
    model, marginal = linear()
    z = torch.randn(50, 1).double()
    error = (model.prior.log_prob(z, torch.randn(50, 3, 1).double()) - marginal.log_prob(z)[:, 0]).abs().max()
    truth("vhp-vae", "ln p(z), exact q(zeta | z), nats", "the marginal Gaussian", error, 1e-14)


@torch.no_grad()
def test_the_nats_of_the_code_are_those_beyond_the_whole_prior(truth):
    """KL(q(z | x) || N(b, a^2 + s^2)), not beyond p(z | zeta) at a zeta that knows of the picture too."""
    model, marginal = linear(b=-2.0)
    x = binary_pictures()[3:4]
    q = model.posterior(x)
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(q.mean, q.log_std.exp()), marginal).sum()
    found = model.latents(x.expand(4000, -1, -1, -1))
    standard_error = found.total.std() / 4000**0.5
    assert found.kl.sum(1).mean() < exact - 1
    error = (found.total.mean() - exact).abs() / standard_error
    truth("vhp-vae", "nats of the code, in standard errors", "KL from the marginal Gaussian", error, 3)


def test_the_density_is_bounded_from_below_and_the_bound_rises_with_draws(truth):
    model, z = curved(), torch.linspace(-2, 2, 5).double()[:, None]
    with torch.no_grad():
        exact = log_density(model, z)
        values, weights = hermite(100)
        one = model.prior.log_prob(z.repeat_interleave(100, 0), values.repeat(5)[:, None, None]).view(5, 100)
        single = (weights * one).sum(1)  # E over the one draw of zeta, exactly
        sixteen = (
            model.prior.log_prob(z.repeat_interleave(4000, 0), torch.randn(20_000, 16, 1).double()).view(5, -1).mean(1)
        )
        many = model.prior.log_prob(z, torch.randn(5, 40_000, 1).double())
    assert (single < sixteen).all()
    assert (sixteen < exact).all()
    truth("vhp-vae", "ln p(z) of 40,000 draws of zeta, nats", "quadrature", (many - exact).abs().max(), 0.03)


def test_bounds_are_below_the_likelihood_which_sums_to_one(truth):
    """ln p(x) by quadrature over the noise of both zeta and z, through what draws samples."""
    model, x = curved(), binary_pictures()
    values, weights = hermite(60)
    e, f = torch.cartesian_prod(values, values).T[..., None]
    with torch.no_grad():
        exact = likelihood_of(model, model.generate(3600, Given(e, f)), torch.outer(weights, weights).flatten().log())
        model.encoder[-1].bias[1] = 1.0  # a posterior about as wide as the prior, so that few samples say much
    truth("vhp-vae", "sum of p(x) over all 2 x 2 pictures", "1", (exact.exp().sum() - 1).abs(), 2e-15)
    single = model.elbo(x.repeat_interleave(500, 0)).unflatten(0, (16, 500)).mean(1)
    assert (single < exact - 0.01).all()
    truth(
        "vhp-vae",
        "bound of 5,000 samples, nats",
        "ln p(x) by quadrature",
        (model.elbo(x, samples=5000) - exact).abs().max(),
        0.1,
    )


def test_the_divergence_is_that_of_the_drawn_z_on_average(truth):
    """-H(q) - ln p(z) against ln q(z | x) - ln p(z): the same mean, summed over the quadrature of z's noise."""
    model = curved()
    values, weights = hermite(40)
    many = Batch(binary_pictures()[3:4].expand(40, -1, -1, -1))
    zeta = torch.randn(1, 4, 1).double().expand(40, -1, -1)
    inferred = model.infer(many, model.recognise(many), Given(values[:, None], zeta))
    gap = (weights * (inferred.kl[:, 0] + inferred.log_ratio)).sum()
    truth("vhp-vae", "E[KL column], nats", "E[ln q(z | x) - ln p(z)]", gap.abs().detach(), 1e-15)


# The constraint


def test_beta_falls_while_the_constraint_is_broken_and_comes_to_one_where_it_is_met(truth):

    def at(beta, excess):
        beta, excess = (torch.tensor(v, dtype=torch.float64) for v in (beta, excess))
        return float(multiplier(beta, excess, 0.5, 3.0))

    truth("vhp-vae", "beta, constraint broken", "beta exp(-nu e)", abs(at(0.7, 0.2) - 0.7 * math.exp(-0.1)), 1e-15)
    error = abs(at(0.7, -0.2) - 0.7 * math.exp(0.5 * math.tanh(-0.9) * -0.2))
    truth("vhp-vae", "beta, constraint met", "beta exp(nu tanh(tau (beta - 1)) e)", error, 1e-15)
    assert at(1.0, -0.3) == 1.0
    for beta in (0.05, 6.0):
        for _ in range(300):
            beta = at(beta, -0.3)
        assert abs(beta - 1) < 1e-6


def test_beta_follows_the_average_over_all_parts_of_a_step(truth):
    """Two parts of a batch before one step are one batch; the average is that of nats per pixel."""
    constraint = Constrained(most=0.2, begin=0.5, memory=0.9, wait=False)
    model, x = small(objective=constraint).train(), binary_pictures()
    whole = Batch(x, seeds=range(16))
    other = copy.deepcopy(model)
    first = model(whole)
    error = (first.total - first.parts["reconstruction"] - 0.5 * first.parts["kl"]).abs().detach()
    truth("vhp-vae", "Lagrangian", "-ln p(x | z) + beta KL, its parts", error, 4e-15)
    model.after_step(0)
    other(whole[:4]), other(whole[4:])
    other.after_step(0)
    nats = first.parts["reconstruction"] / 4
    truth("vhp-vae", "moving average after one step", "nats per pixel", (model.lagrangian.average - nats).abs(), 1e-15)
    truth(
        "vhp-vae",
        "beta after parts of a batch",
        "of the batch",
        (model.lagrangian.beta - other.lagrangian.beta).abs(),
        1e-15,
    )
    expected = multiplier(torch.tensor(0.5).double(), nats - 0.2, 1.0, 3.0)
    truth("vhp-vae", "beta after one step", "its formula", (model.lagrangian.beta - expected).abs(), 1e-15)
    assert model.lagrangian.beta < 0.5
    second = model(whole[:8]).parts["reconstruction"] / 4
    model.after_step(1)
    error = (model.lagrangian.average - 0.9 * nats - 0.1 * second).abs()
    truth("vhp-vae", "moving average after two steps", "0.9 of the old and 0.1 of the new", error, 1e-15)
    assert model.steps == 2


def _beta_after_two_steps(part: slice) -> list[float]:
    torch.manual_seed(3)
    model = small(objective=Constrained(most=0.2, begin=0.5, memory=0.9, wait=False)).train()
    for step in range(2):
        model(Batch(binary_pictures()[part], seeds=range(16)[part]))
        model.after_step(step)
    return [float(model.lagrangian.beta), float(model.lagrangian.average)]


def test_two_processes_come_to_the_beta_of_one(truth):
    halves = in_two_processes(lambda rank: _beta_after_two_steps(slice(rank, None, 2)))
    assert halves[0] == halves[1]
    whole = _beta_after_two_steps(slice(None))
    error = max(abs(a - b) for a, b in zip(halves[0], whole, strict=True))
    truth("vhp-vae", "beta and average in two processes", "in one", error, 1e-15)


def test_the_prior_waits_until_the_constraint_is_met_but_codes_feel_it():
    model, whole = small(objective=Constrained(most=0.0)).train(), Batch(binary_pictures(), seeds=range(16))
    model(whole).total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.prior.parameters())
    held = [p.grad.clone() for p in model.encoder.parameters()]
    begun = model.lagrangian.beta.clone()
    model.after_step(0)
    assert not model.lagrangian.met
    assert model.lagrangian.beta == begun
    model.lagrangian.met.fill_(True)
    model.zero_grad()
    model(whole).total.backward()
    assert all(p.grad.any() for p in model.prior.parameters())
    assert all(torch.allclose(p.grad, g) for p, g in zip(model.encoder.parameters(), held, strict=True))
    met = small(objective=Constrained(most=100.0)).train()
    met(whole)
    met.after_step(0)
    assert met.lagrangian.met
    assert met.lagrangian.beta > 0.1


def test_a_constraint_that_cannot_be_met_leaves_some_weight_on_the_prior():
    model = small(objective=Constrained(most=-5.0, begin=0.5, least=0.3, wait=False)).train()
    model(Batch(binary_pictures()))
    model.after_step(0)
    assert float(model.lagrangian.beta) == pytest.approx(0.3)


def test_looking_at_held_out_pictures_moves_nothing():
    model = small(objective=Constrained()).eval()
    model(Batch(binary_pictures()))
    model.elbo(binary_pictures())
    before = model.lagrangian.beta.clone()
    model.after_step(0)
    assert model.lagrangian.average.isnan()
    assert model.lagrangian.beta == before


def test_without_a_constraint_every_objective_will_do(truth):
    x = Batch(binary_pictures()[:6], seeds=range(6))
    for objective in (ELBO(beta=2.0, free_bits=0.5), ImportanceWeighted(3)):
        model = small(objective=objective)
        total = model(x).total
        error = ((total - (model(x[:3]).total + model(x[3:]).total) / 2) / total).abs().detach()
        truth("vhp-vae", "loss of a batch, relative", "mean over its halves", error, 1e-15)


def test_pictures_in_colour_are_encoded_decoded_and_diagnosed():
    config = VAEConfig(8, 3, 4, ConvConfig(4, 2, 16), prior=HierarchicalPriorConfig(2, 3, (8,)))
    model, x = VAE(config), torch.rand(2, 3, 8, 8)
    assert model.sample(2).shape == (2, 3, 8, 8)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x)))
    found = model.latents(x)
    assert found.means.shape == found.kl.shape == (2, 4)
    assert VAEConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"draws": 0}, "draws"),
        ({"context": 0}, "context"),
        ({"widths": ()}, "the prior's networks have at least one layer"),
    ],
)
def test_priors_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        HierarchicalPriorConfig(**choices)


def test_a_density_that_is_an_estimate_has_no_doubly_reparameterised_gradient():
    with pytest.raises(ConfigError, match="doubly"):
        small(objective=ImportanceWeighted(3, "doubly"))


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [({"least": 0.0}, "above 0"), ({"begin": 0.001}, "above 0"), ({"memory": 1.0}, "memory"), ({"rate": -1.0}, "rate")],
)
def test_constraints_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Constrained(**choices)
