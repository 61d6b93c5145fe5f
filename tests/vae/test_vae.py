"""The plain VAE: its networks, its doors, its pictures, and both gradients of the tighter bound through them."""

import pytest
import torch
from torch import nn

import mezzotint as mz
from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import abilities
from mezzotint.systems import find
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig, LogisticsConfig
from mezzotint.vae.model import refuse_doubly
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import ELBO, Capacity, ImportanceWeighted
from mezzotint.vae.vae import VAE, VAEConfig

NETWORKS = {"mlp": MLPConfig((12, 10), "tanh"), "conv": ConvConfig(4, 2, 10)}
LIKELIHOODS = {"bernoulli": BernoulliConfig(), "gaussian": GaussianPixelsConfig(), "logistics": LogisticsConfig(2)}


def model(network="mlp", likelihood="bernoulli", objective=None, size=8, channels=1, latent=3):
    torch.manual_seed(0)
    made = VAE(
        VAEConfig(size, channels, latent, NETWORKS[network], LIKELIHOODS[likelihood], objective or ELBO())
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.encoder.parameters():
            parameter.mul_(1.5)  # posteriors that differ
    return made


def batch(n=6, size=8, channels=1):
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(n, channels, size, size, generator=generator).sign(), seeds=list(range(n)))


# Every network with every likelihood


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_and_likelihoods_are_independent(network, likelihood, channels):
    made, given = model(network, likelihood, channels=channels), batch(channels=channels)
    losses = made(given)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
    assert made.pixels == made.likelihood.pixels
    for images in (made.sample(3), made.sample(3, pixels="drawn"), made.reconstruct(given.images[:3])):
        assert images.shape == (3, channels, 8, 8)
        assert images.abs().max() <= 1
    assert made.encode(given.images).shape == (6, 3)


def test_the_loss_is_the_sum_of_its_logged_terms(truth):
    losses = model()(batch())
    parts = losses.parts
    error = abs(parts["reconstruction"] + parts["kl"] - losses.total).detach()
    truth("VAE", "reconstruction + kl, nats", "the loss", error, 1e-5)
    assert parts["negative_elbo"] == losses.total
    assert not any(value.requires_grad for value in parts.values())


def test_nats_are_summed_over_pixels_and_averaged_over_pictures(truth):
    """A decoder that answers 0 gives every binary picture of 64 pixels 64 ln 2 nats, however many there are."""
    made = model()
    with torch.no_grad():
        for parameter in made.decoder.parameters():
            parameter.zero_()
    for n in (1, 6):
        error = abs(made(batch(n)).parts["reconstruction"] - 64 * torch.log(torch.tensor(2.0)))
        truth("VAE", "reconstruction of 64 undecided pixels, nats", "64 ln 2", error, 1e-5)


def test_latents_are_what_the_loss_pays_for(truth):
    made, given = model(), batch()
    with torch.no_grad():
        found, losses = made.latents(given.images), made(given)
    assert found.means.shape == found.kl.shape == (6, 3)
    assert torch.equal(found.means, made.encode(given.images))
    truth("VAE", "kl of latents, nats", "kl of the loss", abs(found.kl.sum(1).mean() - losses.parts["kl"]), 1e-6)


def test_doors_lead_to_the_same_room():
    made, given = model("conv", "logistics"), batch()
    images = given.images
    assert torch.equal(made.reconstruct(images), made.decode(made.encode(images)))
    one_by_one = torch.stack([made(given[k : k + 1]).total for k in range(6)]).detach()
    assert torch.allclose(made.elbo(images, seeds=0), -one_by_one, rtol=1e-6)
    assert {"sample", "elbo", "encode and decode", "reconstruct", "latents"} <= set(abilities(VAE))


@pytest.mark.parametrize("samples", [1, 3, 70])
def test_the_bound_of_a_picture_does_not_depend_on_its_batch(truth, samples):
    made, images = model("conv"), batch().images
    together = made.elbo(images, seeds=5, samples=samples)
    alone = torch.cat([made.elbo(images[k : k + 1], seeds=5 + k, samples=samples) for k in range(6)])
    truth("VAE", f"bound of six pictures, K = {samples}, nats", "one by one, float32",
          (together - alone).abs().max(), 4e-5)  # fmt: skip


@pytest.mark.parametrize("pixels", ["mean", "drawn"])
def test_a_picture_depends_on_its_seed_alone(pixels):
    made = model("conv", "gaussian")
    together = made.sample(4, seeds=7, pixels=pixels)
    alone = torch.cat([made.sample(1, seeds=7 + k, pixels=pixels) for k in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_without_temperature_there_is_one_picture():
    made = model("conv", "gaussian")
    with torch.no_grad():
        for parameter in made.decoder.parameters():  # which of z = 0 would answer 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    cold = made.sample(3, temperature=0.0)
    assert torch.allclose(cold[0], cold[2], atol=1e-6)
    assert torch.allclose(cold[:1], made.decode(torch.zeros(1, 3)), atol=1e-6)
    assert cold.abs().mean() > 0.05
    assert not torch.allclose(made.sample(3)[0], made.sample(3)[2], atol=1e-2)


# Objectives through the model


def test_the_warm_up_counts_steps_and_is_kept_in_a_checkpoint(tmp_path):
    made, given = model(objective=ELBO(warmup_steps=4)), batch()
    weights = []
    for step in range(5):
        with torch.no_grad():
            losses = made(given)
        weights.append(float((losses.total - losses.parts["reconstruction"]) / losses.parts["kl"]))
        made.after_step(step)
    assert weights == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0], abs=1e-5)
    assert made.state_dict()["steps"] == 5


@pytest.mark.parametrize("gradient", ["reparameterised", "doubly"])
def test_the_loss_of_importance_weighting_is_the_bound(truth, gradient):
    made, given = model(objective=ImportanceWeighted(5, gradient)), batch()
    with torch.no_grad():
        losses = made(given)
    error = abs(losses.total + made.elbo(given.images, samples=5).mean())
    truth("IWAE", f"loss with the {gradient} gradient, nats", "bound at the same draws", error, 2e-5)


def grads(made, module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def test_the_decoders_gradient_is_the_same_in_both(truth):
    found = []
    for gradient in ("reparameterised", "doubly"):
        made = model(objective=ImportanceWeighted(5, gradient)).double()
        made(Batch(batch().images.double(), seeds=range(6))).total.backward()
        found.append(grads(made, made.decoder))
    error = (found[0] - found[1]).abs().max() / found[0].abs().max()
    truth("IWAE", "decoder's doubly reparameterised gradient, relative", "that of the bound", error, 1e-14)


def test_the_encoders_doubly_reparameterised_gradient_is_that_of_the_paper(truth):
    """Tucker et al. 2019, eq. 8: sum_k (w_k / sum w)^2 (d ln w_k / d z_k) (d z_k / d phi), path by path."""
    made = model(objective=ImportanceWeighted(5, "doubly")).double()
    images = batch().images.double()
    made(Batch(images, seeds=range(6))).total.backward()
    found = grads(made, made.encoder)

    made.zero_grad()
    many, seen, draws = made._repeated(Batch(images), Batch(images, seeds=range(6)).random(), 5)
    posterior = Gaussian(*seen)
    z = posterior.at(draws.normal(3))
    leaf = z.detach().requires_grad_()
    log_weight = (
        made.likelihood.log_prob(made.decoder(leaf), many.images)
        + Gaussian.standard(leaf).log_prob(leaf)
        - posterior.detach().log_prob(leaf)
    )
    (by_z,) = torch.autograd.grad(log_weight.sum(), leaf)
    shares = log_weight.detach().view(6, 5).softmax(1).flatten()
    z.backward(-(shares**2)[:, None] * by_z / 6)
    error = (found - grads(made, made.encoder)).abs().max() / found.abs().max()
    truth("IWAE", "encoder's doubly reparameterised gradient, relative", "eq. 8 path by path", error, 1e-14)


def test_a_model_of_dependent_codes_refuses_the_doubly_reparameterised_gradient():
    refuse_doubly(ImportanceWeighted(5), "a ladder")
    refuse_doubly(ELBO(), "a ladder")
    with pytest.raises(ConfigError, match="not known to a ladder"):
        refuse_doubly(ImportanceWeighted(5, "doubly"), "a ladder")


# Learning


def test_the_learned_deviation_falls_to_the_error_of_what_is_decoded(truth):
    """The stationary point of the loss in sigma: sigma^2 is the mean squared error (Rybkin et al. 2021, eq. 5)."""
    made, given = model("mlp", "gaussian"), batch(64)
    given.images = 0.3 * given.images
    for _ in range(15):  # Newton's method: the second derivative by ln sigma is 2 D there
        (gradient,) = torch.autograd.grad(made(given).total, made.likelihood.log_std)
        with torch.no_grad():
            made.likelihood.log_std.sub_(gradient / (2 * 64))
    with torch.no_grad():
        z = made.posterior(given.images).at(given.random().normal(3))
        error = (made.decoder(z) - given.images).square().mean().sqrt()
    truth("VAE", "learned sigma after 15 steps, relative", "root mean squared error",
          abs(made.likelihood.std() / error - 1).detach(), 1e-6)  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_two_kinds_of_pictures_are_told_apart_after_a_moment(network):
    """White and black ones: without a code they cost 64 ln 2 = 44 nats, with one little more than its ln 2."""
    made = model(network)
    images = torch.ones(32, 1, 8, 8) * torch.tensor([1.0, -1.0]).repeat(16).view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-2)
    for step in range(80):
        optimizer.zero_grad()
        made(Batch(images, seeds=range(100 * step, 100 * step + 32))).total.backward()
        optimizer.step()
    assert -made.elbo(images).mean() < 6
    assert made.latents(images).kl.sum(1).mean() > 0.5
    assert torch.equal(made.reconstruct(images).sign(), images)


# Published networks


@pytest.mark.parametrize("name", ["vae", "iwae"])
def test_the_published_network_of_one_stochastic_layer(name):
    """Burda et al. 2016, section 5 and appendix: 784-200-200-50 and back, tanh, Bernoulli pixels."""
    with torch.device("meta"):
        made = VAE(find(name).stages[0].sizes["paper"](PictureSpec(28)))
    shapes = [tuple(m.weight.shape) for m in made.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(200, 784), (200, 200), (100, 200), (200, 50), (200, 200), (784, 200)]
    assert sum(isinstance(m, nn.Tanh) for m in made.modules()) == 4
    assert made.pixels == "binary"
    assert made.objective == (ELBO() if name == "vae" else ImportanceWeighted(50))


@pytest.mark.parametrize("name", ["vae", "beta-vae", "capacity-vae", "iwae"])
@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("data", [PictureSpec(28), PictureSpec(32, 3)])
def test_sizes_fit_pictures_of_28_and_32_pixels(name, size, data):
    config = find(name).stages[0].sizes[size](data)
    with torch.device("meta"):
        made = VAE(config)
        numbers = made.decoder(torch.zeros(2, config.latent))
    assert numbers.shape == (2, made.likelihood.outputs, data.image_size, data.image_size)
    assert VAEConfig.from_dict(config.to_dict()) == config


# What is refused


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: VAEConfig(28, latent=0), "at least 1 dimension, not 0"),
        (lambda: MLPConfig(()), "at least one layer"),
        (lambda: MLPConfig((10, 0)), "at least 1 neuron"),
        (lambda: ConvConfig(levels=0), "levels must be at least 1"),
        (lambda: VAE(VAEConfig(28, network=ConvConfig(levels=3))), "28 pixels cannot be halved 3 times"),
        (lambda: model().sample(2, pixels="exact"), "'mean' or 'drawn'"),
        (lambda: model().sample(2, temperature=-1.0), "0 or more, not -1"),
        (lambda: model().sample(2, temperature=float("nan")), "0 or more, not nan"),
        (lambda: model().sample(2, labels=torch.tensor([0, 1])), "trained without labels"),
        (lambda: model().sample(2, source=batch(2).images), "does not take source"),
        (lambda: model().elbo(batch().images, samples=0), "1, 2, 3, ... samples of z, not 0"),
    ],
)
def test_impossible_wishes_are_refused(make, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make()


@pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_none_is_refused_in_the_same_words_whatever_is_drawn(temperature):
    """Codes, binary pixels one after another, tokens."""
    for draw in (
        lambda: model().sample(2, temperature=temperature),
        lambda: mz.create("made", image_size=8).sample(2, temperature=temperature),
        lambda: mz.create("vq-vae", image_size=8).sample(2, temperature=temperature),
    ):
        with pytest.raises(ConfigError, match=f"^a temperature is a number of 0 or more, not {temperature}$"):
            draw()


@pytest.mark.parametrize("objective", [ELBO(4.0, 10, 0.5), Capacity(), ImportanceWeighted(5, "doubly")])
@pytest.mark.parametrize("likelihood", LIKELIHOODS.values())
@pytest.mark.parametrize("network", NETWORKS.values())
def test_a_config_survives_json(objective, likelihood, network):
    config = VAEConfig(8, 1, 3, network, likelihood, objective)
    assert VAEConfig.from_dict(config.to_dict()) == config
