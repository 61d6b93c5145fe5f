"""Hierarchical variational models: bounds below each other, equal where the auxiliary distribution is exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from vae.quadrature import Given, binary_pictures, hermite, likelihood_of

from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.likelihoods import BernoulliConfig
from mezzotint.vae.model import Draws
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import ImportanceWeighted
from mezzotint.vae.posteriors import AuxiliaryPosteriorConfig
from mezzotint.vae.vae import VAE, VAEConfig


def small(latent: int = 1, context: int = 1, **choices) -> VAE:
    given = {
        "image_size": 2, "latent": latent, "network": MLPConfig((8,), "tanh"), "likelihood": BernoulliConfig(),
        "posterior": AuxiliaryPosteriorConfig(context, 6, (8,), "tanh"),
    }  # fmt: skip
    return VAE(VAEConfig(**{**given, **choices})).double()


def wide() -> VAE:
    """Pictures that differ, and a posterior wider than the prior with a narrower r, so that weights are bounded."""
    model = small()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2.0)
        for network, log_variance in (
            (model.inference.of_context, 0.5),
            (model.inference.of_z, 0.5),
            (model.inference.back, 0.0),
        ):
            network[-1].weight.mul_(torch.tensor([[0.4], [0.0]]))
            network[-1].bias[1] = log_variance
    return model


class Answer(nn.Module):
    """Mean and log-variance as a function of the input."""

    def __init__(self, mean, log_variance) -> None:
        super().__init__()
        self.mean, self.log_variance = mean, log_variance

    def forward(self, inputs):
        mean = self.mean(inputs)
        return torch.cat([mean, self.log_variance.expand_as(mean)], 1)


def linear(exact: bool = True) -> tuple[VAE, torch.Tensor, torch.Tensor, torch.Tensor]:
    """lambda ~ N(a(x), s^2), z = B lambda + c + t noise; r the exact posterior of lambda, or one that looks away.

    Returns also B (2,), c (2,) and t^2 (2,).
    """
    model = small(latent=2)
    b, c, t2 = (torch.tensor(v, dtype=torch.float64) for v in ((1.5, -0.8), (0.2, 0.1), (0.5, 0.3)))
    s2 = torch.tensor(0.7, dtype=torch.float64)
    mean = nn.Linear(6, 1).double()
    model.inference.of_context = Answer(mean, s2.log())
    model.inference.of_z = Answer(lambda context: context * b + c, t2.log())
    precision = 1 / s2 + (b**2 / t2).sum()

    def back(inputs):
        z, features = inputs[:, :2], inputs[:, 2:]
        return (mean(features)[:, 0] / s2 + ((z - c) * b / t2).sum(1))[:, None] / precision

    model.inference.back = (
        Answer(back, -precision.log()) if exact else Answer(lambda inputs: mean(inputs[:, 2:]), s2.log())
    )
    return model, b, c, t2


def test_with_the_exact_auxiliary_distribution_every_draw_knows_the_density_of_its_z(truth):
    """r(lambda | z, x) / (q(z | lambda) q(lambda | x)) is then 1 / q(z | x), a Gaussian whose dimensions depend."""
    model, b, c, t2 = linear()
    x = (2.0 * (torch.rand(6, 1, 2, 2) < 0.5) - 1).double()
    seen = model.recognise(Batch(x))
    e, f = torch.randn(6, 1).double(), torch.randn(6, 2).double()
    inferred = model.infer(Batch(x), seen, Given(e, f))
    context = Gaussian(*seen[1:]).at(e)
    z = context * b + c + t2.sqrt() * f
    covariance = 0.7 * torch.outer(b, b) + torch.diag(t2)
    density = torch.stack([
        MultivariateNormal(mean * b + c, covariance).log_prob(one) for mean, one in zip(seen[1], z, strict=True)
    ])  # fmt: skip
    expected = Gaussian.standard(z).log_prob(z) - density
    truth(
        "hierarchical-variational-model", "ln p(z) - ln q(z | x), r exact, nats", "the marginal Gaussian",
        (inferred.log_ratio - expected).abs().max().detach(), 2e-14,
    )  # fmt: skip


@torch.no_grad()
def test_with_the_exact_auxiliary_distribution_the_nats_of_the_code_are_those_of_the_whole_posterior(truth):
    """KL(q(z | x) || p(z)) with its dependent dimensions, and not that of q(z | lambda) at one lambda."""
    model, b, c, t2 = linear()
    x = (2.0 * (torch.rand(1, 1, 2, 2) < 0.5) - 1).double()
    posterior = MultivariateNormal(model.recognise(Batch(x))[1][0] * b + c, 0.7 * torch.outer(b, b) + torch.diag(t2))
    standard = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    exact = torch.distributions.kl_divergence(posterior, standard)
    found = model.latents(x.expand(4000, -1, -1, -1))
    assert abs(found.kl.sum(1).mean() - exact) > 0.1
    error = (found.total.mean() - exact).abs() / (found.total.std() / 4000**0.5)
    truth("hierarchical-variational-model", "nats of the code, in standard errors", "KL of the marginal Gaussian",
          error, 3)  # fmt: skip


def averages(model, x, points: int = 60):
    """Hierarchical ELBO, ELBO and E[w] of each picture, sums over the points of a quadrature; 1-D lambda and z."""
    values, weights = hermite(points)
    e, f = torch.cartesian_prod(values, values).T[..., None]
    weight, found = torch.outer(weights, weights).flatten(), []
    for one in x:
        many = Batch(one.expand(points**2, -1, -1, -1))
        seen = model.recognise(many)
        inferred = model.infer(many, seen, Given(e, f))
        about = Gaussian(*(part[:1] for part in seen[1:]))
        z = Gaussian.of(model.inference.of_z(Gaussian(*seen[1:]).at(e))).at(f)
        component = Gaussian.of(
            model.inference.of_z(about.mean + about.log_std.exp() * values[:, None])
        )  # q(z | lambda_k)
        log_q = -0.5 * ((z - component.mean.T) / component.log_std.exp().T) ** 2 - component.log_std.T
        log_q = torch.logsumexp(weights.log() + log_q - 0.5 * torch.log(torch.tensor(2 * torch.pi)).double(), 1)
        elbo = inferred.log_likelihood + Gaussian.standard(z).log_prob(z) - log_q
        found.append([
            (weight * inferred.elbo).sum(), (weight * inferred.log_weight).sum(), (weight * elbo).sum(),
            (weight * inferred.log_weight.exp()).sum(),
        ])  # fmt: skip
    return torch.tensor(found).T


def exact_likelihood(model):
    values, weights = hermite(100)
    return likelihood_of(model, model.generate(100, Given(values[:, None])), weights.log())


def test_the_bounds_are_in_order_and_importance_weights_average_to_the_likelihood(truth):
    """By quadrature: hierarchical ELBO <= ELBO <= ln p(x), for networks as they begin, and E[w] = p(x)."""
    model, x = wide(), binary_pictures()
    with torch.no_grad():
        hierarchical, by_weight, elbo, weight = averages(model, x)
        exact = exact_likelihood(model)
    name = "hierarchical-variational-model"
    truth(name, "sum of p(x) over all 2 x 2 pictures", "1", (exact.exp().sum() - 1).abs(), 1e-13)
    truth(name, "E[ln p(x | z) - KL], nats", "E[ln w]", (hierarchical - by_weight).abs().max(), 1e-12)
    truth(name, "E[w], relative", "p(x) by quadrature", (weight / exact.exp() - 1).abs().max(), 5e-5)
    assert (hierarchical < elbo - 0.01).all()
    assert (elbo < exact - 0.001).all()


def test_the_hierarchical_bound_is_the_bound_where_the_auxiliary_distribution_is_exact(truth):
    tight = {}
    for exact in (True, False):
        model, *_ = linear(exact)
        x = (2.0 * (torch.rand(1, 1, 2, 2) < 0.5) - 1).double().expand(4000, -1, -1, -1)
        batch = Batch(x, seeds=range(4000))
        tight[exact] = model.infer(batch, model.recognise(batch), Draws(batch.random())).elbo.mean()
    assert tight[False] < tight[True] - 0.3  # half the logarithm of how much z says of lambda


def test_many_samples_find_the_likelihood(truth):
    model, x = wide(), binary_pictures()
    with torch.no_grad():
        exact = exact_likelihood(model)
    found = model.elbo(x, samples=10_000)
    truth(
        "hierarchical-variational-model", "bound of 10,000 samples, nats", "ln p(x) by quadrature",
        (found - exact).abs().max(), 0.05,
    )  # fmt: skip


def test_the_loss_of_a_batch_is_the_mean_over_its_halves(truth):
    model, x = small(latent=3, context=2), binary_pictures()[:6]
    whole = Batch(x, seeds=range(6))
    total = model(whole).total
    halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
    error = ((total - halves) / total).abs().detach()
    truth("hierarchical-variational-model", "loss of a batch, relative", "mean over its halves", error, 1e-15)
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_pictures_in_colour_are_encoded_decoded_and_diagnosed():
    config = VAEConfig(8, 3, 4, ConvConfig(4, 2, 16), posterior=AuxiliaryPosteriorConfig(3, 12))
    model, x = VAE(config), torch.rand(2, 3, 8, 8)
    assert model.sample(2).shape == (2, 3, 8, 8)
    assert torch.equal(model.reconstruct(x), model.decode(model.latents(x).means))
    assert model.latents(x).kl.shape == (2, 4)
    assert VAEConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"context": 0}, "context"),
        ({"features": 0}, "features"),
        ({"widths": ()}, "the posterior's networks have at least one layer"),
    ],
)
def test_posteriors_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        AuxiliaryPosteriorConfig(**choices)


def test_a_posterior_of_two_draws_has_no_doubly_reparameterised_gradient():
    with pytest.raises(ConfigError, match="doubly"):
        small(objective=ImportanceWeighted(3, "doubly"))
