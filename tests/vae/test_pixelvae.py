"""PixelVAE beside every picture of a tiny grid: sums, integrals over the code, causality, what is left to the code."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from vae.quadrature import binary_pictures

from mezzotint.autoregressive.pixelcnn import PixelCNNConfig
from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import abilities
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig, LogisticsConfig
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import ELBO, ImportanceWeighted
from mezzotint.vae.pixelvae import PairsConfig, PixelVAE, PixelVAEConfig

STATES = binary_pictures(2).float()  # every 2 x 2 binary picture
TINY = PixelCNNConfig(4, 2, 3, 3, 4)


def pixelvae(size=2, latent=1, **choices):
    """A model with large random weights, so that nothing depends on anything by little."""
    choices = {"network": MLPConfig((8,)), "likelihood": BernoulliConfig(), "features": 3, "pixelcnn": TINY, **choices}
    model = PixelVAE(PixelVAEConfig(size, latent=latent, **choices))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def quadrature(model, points=400):
    """ln p(x) of all 16 pictures, (16,), summed over a fine grid of codes of one dimension, and ln p(x | z) there."""
    z = torch.linspace(-7, 7, points, dtype=torch.float64)[:, None]
    with torch.no_grad():
        given = torch.stack([
            model.likelihood.log_prob(model.numbers(x.expand(points, 1, 2, 2), z), x.expand(points, 1, 2, 2))
            for x in STATES.double()
        ])  # fmt: skip
    weight = -0.5 * z[:, 0] ** 2 + math.log(14 / (points - 1)) - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(given + weight, 1), given


@pytest.mark.parametrize("features", [3, 0])
def test_every_code_has_a_distribution_of_pictures(truth, features):
    """p(x | z) sums to one over all pictures, whatever z, and so does p(x)."""
    marginal, given = quadrature(pixelvae(features=features).double())
    told = f"2 x 2 binary pictures, the code told {'as a map' if features else 'as it is'}"
    truth("pixelvae", f"sum of p(x | z) over {told}", "1", (given.exp().sum(0) - 1).abs().max(), 2e-15)
    truth("pixelvae", f"sum of p(x) over {told}", "1", abs(marginal.exp().sum() - 1), 1e-11)
    assert given.std(1).min() > 0.01  # and it is another one for another code


def test_the_bound_is_below_the_likelihood_and_tends_to_it(truth):
    model = pixelvae().double()
    exact = quadrature(model)[0]
    many = 200
    bound = model.elbo(STATES.double().repeat(many, 1, 1, 1)).view(many, 16).mean(0)
    assert (bound < exact + 0.01).all()
    assert (exact - bound).max() > 0.05
    error = (model.elbo(STATES.double(), samples=2000) - exact).abs().max()
    truth("pixelvae", "ln p(x) of 2000 samples of the code, nats", "quadrature", error, 0.1)


def test_pictures_are_drawn_as_often_as_they_are_likely(truth):
    model, n = pixelvae(), 3000
    marginal, _ = quadrature(model.double())
    drawn = model.float().sample(n)
    found = torch.bincount(((drawn.flatten(1) > 0) * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16) / n
    truth("pixelvae", "frequencies of 3000 samples", "p(x) by quadrature", (found - marginal.exp()).abs().max(), 0.03)


def test_a_pixel_sees_the_pixels_before_it_as_far_as_the_layers_reach_and_the_code(truth):
    model = pixelvae(9, 2).double()
    assert model.reach == 2
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    z = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    numbers = model.numbers(x, z)
    leaks = 0.0
    for row, column in ((4, 4), (0, 0), (8, 8), (2, 7)):
        by_x, by_z = torch.autograd.grad(numbers[0, 0, row, column], (x, z), retain_graph=True)
        rows, columns = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
        near = ((rows - row).abs() <= 2) & ((columns - column).abs() <= 2)
        before = (rows < row) | ((rows == row) & (columns < column))
        leaks += by_x[0, 0][~(near & before)].abs().sum()
        assert (by_x[0, 0][near & before] != 0).all()
        assert (by_z != 0).all()
    truth("pixelvae", "gradient by pixels that come later or lie beyond reach", "0", leaks, 0.0)


@pytest.mark.parametrize(("likelihood", "channels"), [
    (BernoulliConfig(), 1), (LogisticsConfig(2), 1), (LogisticsConfig(2), 3), (GaussianPixelsConfig(), 1),
])  # fmt: skip
def test_the_cache_changes_nothing(truth, likelihood, channels):
    model = pixelvae(6, 3, channels=channels, likelihood=likelihood).eval()
    z = torch.randn(3, 3)
    quick, slow = (model.draw(z, PictureRandom(range(3)), cached) for cached in (True, False))
    assert quick.shape == (3, channels, 6, 6)
    truth("pixelvae", "picture drawn with the cache", "without", (quick - slow).abs().max(), 1e-6)
    cost = []
    for cached in ((), (True,), (False,)):
        with FlopCounterMode(display=False) as counter:
            model.draw(z, PictureRandom(range(3)), *cached)
        cost.append(counter.get_total_flops())
    assert cost[0] == cost[1] < cost[2] / 2  # the fast way is the usual one


def test_samples_show_the_picture_or_what_was_expected_of_each_pixel():
    model = pixelvae(6, 3).eval()
    drawn, expected = model.sample(4, seeds=2), model.sample(4, seeds=2, pixels="mean")
    assert (drawn.abs() == 1).all()
    z = PictureRandom(range(2, 6)).normal(3)
    assert torch.equal(expected, torch.tanh(model.numbers(drawn, z) / 2))
    assert torch.equal(model.sample(1, seeds=4), drawn[2:3])
    random = PictureRandom(range(2, 6))
    random.normal(3)  # the code, of which nothing is left at temperature 0
    assert torch.equal(model.sample(4, seeds=2, temperature=0.0), model.draw(torch.zeros(4, 3), random))
    codes = torch.randn(2, 3)
    assert not torch.equal(model.decode(codes, seeds=0), model.decode(codes, seeds=9))  # one code, many pictures
    assert torch.equal(model.decode(codes)[1:], model.decode(codes[1:]))  # but the same one wherever it stands
    assert len(model.decode(torch.randn(30, 3)).unique(dim=0)) > 1
    assert model.reconstruct(drawn).shape == drawn.shape


@pytest.mark.parametrize(("objective", "features"), [
    (ELBO(warmup_steps=5), 3), (ELBO(free_bits=0.1), 0),
    (ImportanceWeighted(3), 3), (ImportanceWeighted(3, "doubly"), 3),
])  # fmt: skip
def test_every_objective_reaches_every_parameter(objective, features):
    model = pixelvae(4, 3, channels=3, likelihood=LogisticsConfig(2), objective=objective, features=features)
    losses = model(Batch(torch.rand(4, 3, 4, 4) * 2 - 1, seeds=range(4)))
    losses.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert {"reconstruction", "kl", "negative_elbo"} <= losses.parts.keys()


def test_convolutions_serve_as_well():
    model = pixelvae(8, 3, network=ConvConfig(4, 2, 8))
    images = torch.rand(2, 1, 8, 8).sign()
    found = model.latents(images)
    assert found.means.shape == found.kl.shape == (2, 3)
    assert {"sample", "elbo", "encode and decode", "reconstruct", "latents"} <= set(abilities(model))


def far_apart(n):
    """Two rows of noise, and above and below them rows of one colour, the same one; no neighbour knows both."""
    images = torch.rand(n, 1, 4, 4).sub(0.5).sign()
    images[:, :, ::3] = torch.rand(n, 1, 1, 1).sub(0.5).sign()
    return images


def test_what_the_pixelcnn_cannot_see_is_left_to_the_code():
    """9 bits are in such a picture. Who sees only the neighbours of a pixel pays for the colour twice: 10 bits."""
    objective = ELBO(warmup_steps=60)
    model = PixelVAE(
        PixelVAEConfig(
            4, 1, 1, MLPConfig((16,)), BernoulliConfig(), objective, features=4, pixelcnn=PixelCNNConfig(8, 1, 3, 3, 8)
        )
    )
    assert model.reach == 1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(100):
        optimizer.zero_grad()
        model(Batch(far_apart(64))).total.backward()
        optimizer.step()
        model.after_step(step)
    test = far_apart(500)
    bits = -model.elbo(test).mean() / math.log(2)
    assert 9 < bits < 9.5
    assert model.latents(test).kl.sum(1).mean() > 0.5  # nats


def test_what_a_pixelvae_refuses():
    for message, wrong in {
        "independently of each other": lambda: PixelVAEConfig(8, 3, likelihood=BernoulliConfig()),
        "features must not be": lambda: PixelVAEConfig(8, features=-1),
        "'mean' or 'drawn'": lambda: pixelvae().sample(1, pixels="best"),
        "temperature": lambda: pixelvae().sample(1, temperature=-1.0),
        "without labels": lambda: pixelvae().sample(1, labels=torch.zeros(1)),
        "does not take source": lambda: pixelvae().sample(1, source=STATES[:1]),
    }.items():
        with pytest.raises(ConfigError, match=message):
            wrong()


@pytest.mark.parametrize("size", [28, 32])
def test_the_published_networks_meet_at_every_size(size):
    """Maps of 28, 14, 7 and 4 rows, and back; or no map, and the code told to every layer."""
    pairs = PairsConfig((2, 3, 4, 5))
    code = pairs.encoder(1, size, 6)(torch.randn(2, 1, size, size))
    assert code.shape == (2, 6)
    assert pairs.decoder(6, 7, size)(code).shape == (2, 7, size, size)
    small = {"network": MLPConfig((4,)), "likelihood": BernoulliConfig(), "pixelcnn": TINY}
    told = PixelVAE(PixelVAEConfig(4, latent=2, features=0, **small))
    assert not list(told.decoder.parameters())
    drawn = told.sample(2)
    assert told.numbers(drawn, torch.zeros(2, 2)).shape == drawn.shape == (2, 1, 4, 4)
