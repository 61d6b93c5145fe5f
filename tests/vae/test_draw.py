"""DRAW: what its bound bounds, what it is with one step, and what it shows of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vae.quadrature import Nodes, binary_pictures

import mezzotint as mz
from mezzotint.core.batch import Batch, PictureRandom, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.systems import catalogue
from mezzotint.vae.draw import DRAW, DRAWConfig
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig, LogisticsConfig
from mezzotint.vae.model import Draws
from mezzotint.vae.networks import MLPConfig
from mezzotint.vae.objectives import ELBO, ImportanceWeighted
from mezzotint.vae.vae import VAE, VAEConfig

TINY = {"hidden": 6, "latent": 3, "glimpses": 3}


def loosened(model, by=0.3):
    """Weights so large that every part of the model matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


# All pictures of 2 x 2 black and white pixels ------------------------------------------------------------------------

NOISE = Nodes(2, 48)  # of z_1 and z_2


@pytest.fixture(params=[2, None], ids=["attention", "without"])
def tiny(request):
    config = DRAWConfig(2, glimpses=2, hidden=4, latent=1, read=request.param, write=request.param)
    return loosened(DRAW(config).double())


@torch.no_grad()
def exact(model):
    """p(x) of the 16 pictures, by quadrature over z_1, z_2 of the prior."""
    canvases = model.generate(len(NOISE), NOISE)
    likelihoods = [model.likelihood.log_prob(canvases, x.expand_as(canvases)).exp() for x in binary_pictures(2)]
    return torch.cat([NOISE.mean(one) for one in likelihoods])


def infer(model, x):
    return model.infer(Batch(x.expand(len(NOISE), -1, -1, -1)), (), NOISE)


@torch.no_grad()
def test_weights_of_the_posterior_average_to_the_likelihood(tiny, truth):
    """E_q[p(x, z) / q(z | x)] = p(x): encoder and generator speak of one model, whose p(x) sum to one."""
    found = []
    for x in binary_pictures(2):
        found.append(NOISE.mean(infer(tiny, x).log_weight.exp()))
    found = torch.cat(found)
    truth("draw", "E_q[w]", "p(x) by quadrature", (found / exact(tiny) - 1).abs().max(), 5e-8)
    truth("draw", "E_q[w], the sum over all pictures of 2 x 2", "one", abs(found.sum() - 1), 1e-11)


@torch.no_grad()
def test_the_bound_is_below_the_likelihood_and_its_two_forms_agree(tiny, truth):
    """E_q of the closed-form bound equals E_q[ln w], and both lie below ln p(x)."""
    log_p, forms = exact(tiny).log(), []
    for x in binary_pictures(2):
        inferred = infer(tiny, x)
        assert inferred.kl.shape == (len(NOISE), 2)  # one group for each step
        forms.append(torch.stack([NOISE.mean(inferred.elbo), NOISE.mean(inferred.log_weight)]))
    closed, drawn = torch.cat(forms, 1)
    truth("draw", "E_q[bound], KL in closed form", "E_q[ln w]", (closed - drawn).abs().max(), 1e-14)
    assert (closed < log_p - 1e-4).all()


# One step without attention is a VAE ---------------------------------------------------------------------------------


def lstm(cell, x, h, c):
    """The gates of Hochreiter and Schmidhuber 1997 with forgetting, in torch's order."""
    i, f, g, o = (cell.weight_ih @ x.T + cell.weight_hh @ h[:, None] + (cell.bias_ih + cell.bias_hh)[:, None]).chunk(4)
    return (o.sigmoid() * torch.tanh(f.sigmoid() * c[:, None] + i.sigmoid() * g.tanh())).T


class Encoder(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, images):
        draw, (h_enc, c_enc, h_dec, _) = self.draw, self.draw.states
        missing = images - torch.tanh(draw.canvas / 2)
        seen = torch.cat([images.flatten(1), missing.flatten(1), h_dec.expand(len(images), -1)], 1)
        return draw.posterior(lstm(draw.encoder, seen, h_enc, c_enc))


class Decoder(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, z):
        _, _, h_dec, c_dec = self.draw.states
        hidden = lstm(self.draw.decoder, z, h_dec, c_dec)
        return self.draw.canvas + self.draw.writer.pixels(hidden).reshape(-1, 1, 4, 4)


def test_one_step_without_attention_is_a_variational_autoencoder(truth):
    draw = loosened(DRAW(DRAWConfig(4, glimpses=1, hidden=6, latent=3, read=None, write=None)))
    vae = VAE(VAEConfig(4, 1, 3, MLPConfig((2,)), BernoulliConfig(), ELBO()))
    vae.encoder, vae.decoder = Encoder(draw), Decoder(draw)
    images = torch.randint(0, 2, (5, 1, 4, 4)) * 2.0 - 1
    error = (draw.elbo(images) - vae.elbo(images)).abs().max()
    truth("draw", "bound of one step without attention", "a VAE with the same weights", error, 3e-6)
    error = (draw.elbo(images, samples=70) - vae.elbo(images, samples=70)).abs().max()
    truth("draw", "70 draws of one step without attention", "a VAE with the same weights", error, 3e-6)
    assert torch.allclose(draw.sample(2), vae.sample(2), atol=1e-6)
    assert torch.allclose(draw.reconstruct(images), vae.reconstruct(images), atol=1e-6)


# The rest of the contract --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [3, None])
@pytest.mark.parametrize("write", [2, None])
def test_gradients_reach_every_parameter(read, write):
    model = DRAW(DRAWConfig(5, 3, **TINY, read=read, write=write, likelihood=LogisticsConfig(2)))
    model(Batch(torch.rand(4, 3, 5, 5) * 2 - 1, seeds=range(4))).total.backward()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]


@pytest.mark.parametrize("likelihood", [BernoulliConfig(), GaussianPixelsConfig(), LogisticsConfig(2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_likelihood_of_grey_and_of_colour(likelihood, channels):
    model = DRAW(DRAWConfig(6, channels, **TINY, read=2, write=3, likelihood=likelihood))
    images = torch.randint(0, 2, (3, channels, 6, 6)) * 2.0 - 1
    assert model.elbo(images, samples=3).shape == (3,)
    assert model.sample(2, pixels="drawn").shape == (2, channels, 6, 6)
    assert model.reconstruct(images).shape == images.shape


def test_each_step_has_a_share_of_the_divergence(truth):
    """The groups of `Inferred.kl`, of which free bits count each, are what `latents` sums over dimensions."""
    model = loosened(DRAW(DRAWConfig(5, **TINY, read=2, write=2)))
    images = torch.randint(0, 2, (4, 1, 5, 5)) * 2.0 - 1

    with torch.no_grad():
        found = model.latents(images, seeds=3)
        inferred = model.infer(Batch(images), (), Draws(PictureRandom(range(3, 7))))
    assert found.means.shape == found.kl.shape == (4, 9)
    error = (found.kl.unflatten(1, (3, 3)).sum(2) - inferred.kl).abs().max()
    truth("draw", "KL of each dimension", "KL of each step, summed", error, 1e-6)
    assert torch.equal(model.encode(images).flatten(1), found.means)


def test_a_strip_ends_in_the_sample_and_says_where_it_was_painted():
    model = loosened(DRAW(DRAWConfig(6, **TINY, read=2, write=3)))
    strip = model.strip(4, seeds=7)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="temperature"):
            model.strip(1, temperature=wrong)
    assert strip.pictures.shape == (3, 4, 1, 6, 6)
    assert torch.equal(strip.pictures[-1], model.sample(4, seeds=7))
    assert torch.allclose(strip.pictures[:, 2:3], model.strip(1, seeds=9).pictures, atol=1e-6)
    assert strip.writes.centre.shape == (3, 4, 2)
    assert strip.writes.extent.shape == strip.writes.std.shape == (3, 4)
    assert strip.reads is None  # nothing is read where there is no picture
    mean = model.decode(torch.zeros(4, 3, 3))
    for cold in (model.strip(4, seeds=7, temperature=0.0).pictures[-1], model.sample(4, seeds=7, temperature=0.0)):
        assert torch.equal(cold, mean)
    assert torch.allclose(model.double().strip(4, seeds=7).pictures, strip.pictures.double(), atol=1e-6)


def test_a_trace_ends_in_the_reconstruction_and_says_where_it_looked():
    model = loosened(DRAW(DRAWConfig(6, **TINY, read=2, write=3)))
    images = torch.randint(0, 2, (4, 1, 6, 6)) * 2.0 - 1
    trace = model.trace(images)
    assert torch.allclose(trace.pictures[-1], model.reconstruct(images), atol=1e-6)
    assert trace.reads.centre.shape == trace.writes.centre.shape == (3, 4, 2)
    without = DRAW(DRAWConfig(6, **TINY, read=None, write=None)).trace(images)
    assert without.reads is None
    assert without.writes is None


def test_what_is_written_lies_in_the_rectangle():
    """A stroke's centre of mass is where the rectangle says: the picture is drawn where the red square is."""
    model = DRAW(DRAWConfig(40, glimpses=1, hidden=4, latent=2, read=2, write=3))
    with torch.no_grad():
        model.writer.attention.weight.zero_()
        model.writer.attention.bias.copy_(torch.tensor([-0.4, 0.3, 0.0, -2.0, 0.0]))
        model.writer.patch.weight.zero_()
        model.writer.patch.bias.fill_(1.0)
        (step,) = model.paint(torch.zeros(1, 1, 2))
    mass = step.canvas[0, 0] / step.canvas.sum()
    places = torch.arange(40) + 0.5
    found = torch.stack([(mass.sum(0) * places).sum(), (mass.sum(1) * places).sum()])  # x, y
    assert torch.allclose(found, model.strip(1).writes.centre[0, 0], atol=1e-3)


def test_importance_weighting_trains_and_its_other_gradient_is_refused():
    config = DRAWConfig(4, **TINY, read=2, write=2, objective=ImportanceWeighted(3))
    losses = DRAW(config)(Batch(torch.ones(2, 1, 4, 4), seeds=[0, 1]))
    assert "negative_bound" in losses.parts
    with pytest.raises(ConfigError, match="doubly"):
        DRAW(DRAWConfig(4, **TINY, objective=ImportanceWeighted(3, "doubly")))


@pytest.mark.parametrize("wrong", [{"glimpses": 0}, {"latent": 0}, {"read": 0}, {"write": -1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DRAWConfig(28, **wrong)


def test_attention_is_left_out_by_a_setting():
    config = DRAWConfig(28).updated({"read": "null", "write": "None"})
    assert config.read is None
    assert config.write is None


def test_the_published_sizes_on_mnist():
    """Table 3 of the paper: 64 glimpses, LSTMs of 256, z of 100, reads 2 x 2, writes 5 x 5; it has no counts."""
    stage = catalogue()["draw"].stages[0]
    config = stage.sizes["paper"](PictureSpec(28))
    assert (config.glimpses, config.hidden, config.latent, config.read, config.write) == (64, 256, 100, 2, 5)
    with torch.device("meta"):
        model = DRAW(config)
    encoder = 4 * 256 * (2 * 4 + 256 + 256) + 8 * 256
    decoder = 4 * 256 * (100 + 256) + 8 * 256
    others = 257 * 200 + 2 * 257 * 5 + 257 * 25 + 784 + 4 * 256
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder + others
    small = mz.create("draw", image_size=28)
    assert small.config.read is not None
    assert small.config.write is not None
