"""The ladder, and the way down that every hierarchy shares, against hierarchies whose likelihood has a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from vae.quadrature import binary_pictures, hermite, likelihood_of, together

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import abilities
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.ladder import LEAST_VARIANCE, LadderConfig, LadderVAE, gaussian_of, precision_weighted
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig
from mezzotint.vae.model import Draws
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import ELBO, ImportanceWeighted


def ladder(**choices) -> LadderVAE:
    given = {
        "image_size": 2, "latents": (3, 2), "hidden": (8, 6), "network": MLPConfig((8,), "tanh"), "activation": "tanh",
        "likelihood": BernoulliConfig(),
    }  # fmt: skip
    return LadderVAE(LadderConfig(**{**given, **choices})).double()


def binary(n: int = 5, size: int = 2) -> torch.Tensor:
    return (2.0 * (torch.rand(n, 1, size, size) < 0.5) - 1).double()


class Affine(nn.Module):
    """The answer of a prior's network: a mean that is linear in z, and a variance that is told."""

    def __init__(self, weight, bias, variance) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.raw = torch.log(torch.expm1(variance - LEAST_VARIANCE))  # of which softplus makes the variance

    def forward(self, z):
        mean = z @ self.weight.T + self.bias
        return torch.cat([mean, self.raw.expand_as(mean)], 1)


class Linear:
    """z_2 ~ N(0, I), z_1 = A z_2 + b + noise, x = C z_1 + d + noise, A diagonal, columns of C orthogonal."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        self.a = torch.tensor([0.7, -1.2], dtype=torch.float64)
        self.b = torch.tensor([0.1, 0.4], dtype=torch.float64)
        self.s = torch.tensor([0.3, 0.9], dtype=torch.float64)  # variance of z_1 given z_2
        basis = torch.linalg.qr(torch.randn(4, 2, generator=draw, dtype=torch.float64))[0]
        self.c = basis * torch.tensor([0.8, 0.5], dtype=torch.float64)
        self.d = 0.1 * torch.randn(4, generator=draw, dtype=torch.float64)
        self.std = 1.0

    def log_prob(self, x):
        mean = self.c @ self.b + self.d
        of_z = torch.diag(self.a**2 + self.s)
        return MultivariateNormal(mean, self.c @ of_z @ self.c.T + self.std**2 * torch.eye(4).double()).log_prob(x)

    def message(self, x):
        """What x says of z_1 alone: mean and variance, each dimension by itself."""
        square = (self.c**2).sum(0)
        return (x - self.d) @ self.c / square, (self.std**2 / square).expand(len(x), 2)

    def top(self, x):
        """p(z_2 | x)."""
        mean, variance = self.message(x)
        precision = 1 + self.a**2 / (self.s + variance)
        return self.a * (mean - self.b) / (self.s + variance) / precision, 1 / precision

    def model(self, blur: float = 0.0) -> LadderVAE:
        """The ladder that is this, with its exact posterior; blur: farther from it."""
        model = ladder(latents=(2, 2), likelihood=GaussianPixelsConfig(std=self.std))
        model.levels[1].prior = Affine(torch.diag(self.a), self.b, self.s)
        model.last, model.decoder = nn.Identity(), nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2))).double()
        with torch.no_grad():
            model.decoder[0].weight.copy_(self.c)
            model.decoder[0].bias.copy_(self.d)

        def bottom_up(images):
            found = (self.top(images.flatten(1)), self.message(images.flatten(1)))
            return [(mean + blur, variance.log() / 2 + blur) for mean, variance in found]

        model.bottom_up = bottom_up
        return model


def test_precision_weighting_is_the_product_of_two_gaussians(truth):
    a, b = (Gaussian(torch.randn(1, 6).double(), torch.randn(1, 6).double()) for _ in range(2))
    product = precision_weighted(a, b)
    z = torch.linspace(-4, 4, 9).double()[:, None]
    log_product = sum(Normal(one.mean, one.log_std.exp()).log_prob(z) for one in (a, b))
    left = log_product - Normal(product.mean, product.log_std.exp()).log_prob(z)  # the same constant at every z
    truth("ladder-vae", "precision weighting", "product of densities, nats", (left - left[0]).abs().max(), 1e-12)


def test_precision_weighting_keeps_its_head_where_one_of_them_is_sharp():
    sharp, wide = Gaussian(torch.ones(1, 1), torch.full((1, 1), -60.0)), Gaussian(*torch.zeros(2, 1, 1))
    assert precision_weighted(sharp, wide).mean == precision_weighted(wide, sharp).mean == 1
    assert precision_weighted(sharp, wide).log_std == -60


def test_with_the_exact_messages_from_below_every_draw_has_the_exact_likelihood(truth):
    """q(z_1 | z_2, x) as a product is then the true posterior, so p(x, z) / q(z | x) = p(x) whatever z was drawn."""
    exact, x = Linear(), torch.randn(7, 1, 2, 2).double()
    model = exact.model()
    batch = Batch(x, seeds=range(7))
    inferred = model.infer(batch, model.recognise(batch), Draws(batch.random()))
    error = (inferred.log_weight - exact.log_prob(x.flatten(1))).abs().max().detach()
    truth("ladder-vae", "ln w of a linear hierarchy, nats", "ln p(x) in closed form", error, 5e-14)


def test_the_bound_of_a_worse_posterior_is_below_and_rises_with_samples(truth):
    exact, x = Linear(), torch.randn(3, 1, 2, 2).double()
    model, many = exact.model(blur=0.3), 4000
    expected = exact.log_prob(x.flatten(1))
    repeated = x.repeat_interleave(many, 0)
    single = model.elbo(repeated).unflatten(0, (3, many)).mean(1)
    bounds = [single, *(model.elbo(x, samples=k) for k in (20_000,))]
    assert (single < expected - 0.05).all()
    truth(
        "ladder-vae",
        "bound of 20,000 samples, nats",
        "ln p(x) in closed form",
        (bounds[1] - expected).abs().max(),
        0.03,
    )
    few = model.elbo(repeated[: 3 * many], samples=5).unflatten(0, (3, many)).mean(1)
    assert (single < few).all()
    assert (few < expected + 0.01).all()


def test_divergences_are_those_of_equation_31(truth):
    """KL(q(z_L | x) || p(z_L)) and KL(q(z_l | z_<l, x) || p(z_l | z_<l)) by torch.distributions, at the z drawn."""
    model, x = ladder(latents=(3, 2, 2), hidden=(8, 6, 5)), binary()
    noise = [torch.randn(5, d).double() for d in (2, 2, 3)]
    seen = model.recognise(Batch(x))
    inferred = model.infer(Batch(x), seen, together(noise))
    z, expected, log_ratio = None, [], 0.0
    for level, e, mean, log_std in zip(model.levels, noise, seen[::2], seen[1::2], strict=True):
        q = p = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        if z is None:
            q = Normal(mean, log_std.exp())
        else:
            p = Normal(*(v if k == 0 else v.exp() for k, v in enumerate(gaussian_of(level.prior(z)))))
            precision = log_std.exp() ** -2 + p.stddev**-2
            q = Normal((mean * log_std.exp() ** -2 + p.mean * p.stddev**-2) / precision, precision**-0.5)
        z = q.mean + q.stddev * e
        expected.append(kl_divergence(q, p))
        log_ratio = log_ratio + (p.log_prob(z) - q.log_prob(z)).sum(1)
    error = (inferred.kl - torch.cat(expected, 1)).abs().max()
    truth("ladder-vae", "KL of each dimension, nats", "torch.distributions", error.detach(), 1e-13)
    error = (inferred.log_ratio - log_ratio).abs().max()
    truth("ladder-vae", "ln p(z) - ln q(z | x), nats", "torch.distributions", error.detach(), 1e-13)


def test_probabilities_of_all_binary_pictures_sum_to_one_and_bounds_are_below_them(truth):
    """p(x) by Gauss-Hermite quadrature over both 1-D groups, through the way down that draws samples."""
    model = ladder(latents=(1, 1), hidden=(8, 6))
    with torch.no_grad():
        for part in (model.levels, model.last, model.decoder):  # away from a p(x) that is the same for all
            for parameter in part.parameters():
                parameter.mul_(2.0)
        for numbers in model.heads:
            numbers.bias[1] = 3.0  # a posterior about as wide as the prior, so that few samples say much
    values, weights = hermite(60)
    top, low = torch.cartesian_prod(values, values).T[..., None]
    every = binary_pictures()
    with torch.no_grad():
        numbers = model.generate(3600, together([top, low]))
        exact = likelihood_of(model, numbers, torch.outer(weights, weights).flatten().log())
    truth("ladder-vae", "sum of p(x) over all 2 x 2 pictures", "1", (exact.exp().sum() - 1).abs(), 1e-13)
    found = model.elbo(every, samples=20_000)
    error = (found - exact).abs().max()
    truth("ladder-vae", "bound of 20,000 samples, nats", "ln p(x) by quadrature", error, 0.05)
    single = model.elbo(every.repeat_interleave(500, 0)).unflatten(0, (16, 500)).mean(1)
    assert (single < exact + 0.02).all()
    assert single.mean() < exact.mean() - 0.01


def test_generation_is_inference_whose_posterior_is_the_prior(truth):
    """Where the picture says nothing, both draw the same z from the same noise, and their divergence is zero."""
    model, n = ladder(latents=(3, 2, 2), hidden=(8, 6, 5)), 6
    noise = [torch.randn(n, d).double() for d in (2, 2, 3)]
    blind = (torch.zeros(n, 2).double(), torch.zeros(n, 2).double())
    silent = tuple(v for d in (2, 3) for v in (torch.zeros(n, d).double(), torch.full((n, d), 40.0).double()))
    numbers = model.descend(n, (*blind, *silent), lambda k, prior, posterior: posterior.draw(noise[k], prior).z)
    prior = model.generate(n, together(noise))
    inferred = model.infer(Batch(binary(n)), (*blind, *silent), together(noise))
    error = max((numbers - prior).abs().max(), inferred.kl.abs().max()).detach()
    truth("ladder-vae", "numbers of the posterior that is the prior", "numbers of the prior", error, 1e-12)


def test_latents_are_of_every_dimension_and_reconstructions_of_their_means():
    model, x = ladder(latents=(3, 2), hidden=(8, 6)), binary()
    found = model.latents(x)
    assert found.means.shape == found.kl.shape == (5, 5)
    seen = model.recognise(Batch(x))
    means = []

    def choose(group, prior, posterior):
        means.append(posterior.mean)
        return posterior.mean

    numbers = model.descend(5, seen, choose)
    assert torch.equal(found.means, torch.cat(means, 1))
    assert torch.equal(found.means[:, :2], seen[0])
    assert torch.equal(model.reconstruct(x), torch.tanh(numbers / 2))
    assert torch.equal(model.decode(model.encode(x)), model.reconstruct(x))
    for dims in (2, 4, 6):
        with pytest.raises(ConfigError, match=rf"\(B, 5\), not \(1, {dims}\)"):
            model.decode(torch.zeros(1, dims).double())
    assert torch.equal(found.kl, model.infer(Batch(x), seen, Draws(PictureRandom(range(5)))).kl)
    alone = model.latents(x[3:], seeds=3).kl  # of its seed, not of its place in a batch
    assert torch.allclose(alone, found.kl[3:], rtol=1e-12)


@pytest.mark.parametrize("objective", [ELBO(free_bits=0.1, warmup_steps=10), ImportanceWeighted(3)])
@pytest.mark.parametrize("normalise", ["none", "layer"])
def test_the_loss_of_a_batch_is_the_mean_over_its_halves(truth, objective, normalise):
    model, x = ladder(objective=objective, normalise=normalise), binary(6)
    whole = Batch(x, seeds=range(6))
    total = model(whole).total
    halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
    truth(
        "ladder-vae",
        "loss of a batch, relative",
        "mean over its halves",
        ((total - halves) / total).abs().detach(),
        1e-15,
    )
    assert model(whole).parts.keys() >= {"reconstruction", "kl", "negative_elbo"}


def test_of_fewer_levels_only_those_are_drawn():
    model = ladder(latents=(3, 2), hidden=(8, 6))
    none = model.sample(3, layers=0)
    assert torch.equal(none[0], none[1])
    assert torch.equal(model.sample(3, layers=2), model.sample(3))
    top = Draws(PictureRandom(range(3))).normal(5)[:, :2]
    z = [top.double(), gaussian_of(model.levels[1].prior(top.double())).mean]
    expected = model.descend(3, None, lambda k, prior, posterior: z[k])
    assert torch.allclose(model.sample(3, layers=1), torch.tanh(expected / 2), atol=1e-6)
    assert not torch.allclose(model.sample(3, layers=1), model.sample(3), atol=1e-3)
    assert torch.equal(model.sample(3, layers=2, temperature=0.0), none)
    assert not torch.equal(model.sample(3, layers=1, temperature=0.5), model.sample(3, layers=1))
    assert set(model.sample(3, layers=1, pixels="drawn").unique().tolist()) <= {-1.0, 1.0}
    with pytest.raises(ConfigError, match="2 groups"):
        model.sample(1, layers=3)


def test_layers_between_levels_are_normalised_and_activated_as_asked():
    def count(model, kind):
        return sum(isinstance(module, kind) for module in model.modules())

    plain, normal = ladder(), ladder(normalise="layer", activation="leaky")
    assert (count(plain, nn.LayerNorm), count(plain, nn.LeakyReLU)) == (0, 0)
    assert count(normal, nn.LeakyReLU) == count(normal, nn.LayerNorm) > 4
    x = binary()
    bent = nn.ModuleList([normal.first, normal.last, normal.up, normal.levels])
    assert not torch.allclose(normal.reconstruct(x), plain.reconstruct(x))
    assert count(bent, nn.Tanh) == 0


@pytest.mark.parametrize("normalise", ["none", "layer"])
@pytest.mark.parametrize(
    ("activation", "bend"),
    [("tanh", torch.tanh), ("leaky", lambda x: torch.maximum(x, 0.1 * x)), ("softplus", lambda x: x.exp().log1p())],
)
def test_between_levels_every_layer_is_linear_then_normalised_then_bent(activation, bend, normalise):
    """On the way from the picture up, from each level down to the next, and from the lowest to the picture."""

    def hidden(x):
        if normalise == "layer":  # each picture by itself, scales and shifts as they begin
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return bend(x)

    def through(network, x):
        for layer in network.modules():
            x = hidden(layer(x)) if isinstance(layer, nn.Linear) else x
        return x

    model, x = ladder(activation=activation, normalise=normalise), binary()
    top, low = (torch.randn(5, d).double() for d in (2, 3))
    d_1 = hidden(model.encoder(x))
    d_2 = through(model.up[0], d_1)
    expected = [*gaussian_of(model.heads[1](d_2)), *gaussian_of(model.heads[0](d_1))]
    network, head = model.levels[1].prior
    expected += [*gaussian_of(head(through(network, top))), model.decoder(through(model.last, low))]
    found = [*model.recognise(Batch(x)), *model.levels[1].look(top)[0], model.finish(low)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_colour_pictures_and_convolutions():
    config = LadderConfig(8, 3, (4, 2), (16, 8), ConvConfig(4, 2, 16))
    model = LadderVAE(config)
    assert model.sample(3).shape == (3, 3, 8, 8)
    assert LadderConfig.from_dict(config.to_dict()) == config
    assert {"sample", "elbo", "encode and decode", "reconstruct"} <= set(abilities(LadderVAE))


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"latents": ()}, "at least one level"),
        ({"hidden": (8,)}, "each of the 2 levels"),
        ({"objective": ImportanceWeighted(3, "doubly")}, "doubly"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ladder(**choices)
