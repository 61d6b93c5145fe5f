"""Nouveau VAE: posteriors relative to priors, spectral norms, exact bounds of a tiny model, cells of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from vae.quadrature import Nodes, binary_pictures

import mezzotint as mz
from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.groups import enlarged
from mezzotint.vae.likelihoods import BernoulliConfig
from mezzotint.vae.model import Draws
from mezzotint.vae.nvae import (
    MOST,
    NVAE,
    DecoderCell,
    EncoderCell,
    NVAEConfig,
    SpectralNorms,
    SqueezeExcitation,
    bounded,
    relative,
)
from mezzotint.vae.objectives import ELBO


def model(size: int = 4, noise: float = 0.0, **options) -> NVAE:
    """A small one of binary pictures, its weights moved by noise."""
    options = {
        "width": 4, "halvings": 1, "stem_cells": 1, "groups": (2, 1), "cells": 1, "latent": 1, "expansion": 2,
        "kernel": 3, "norm": "none", "likelihood": BernoulliConfig(), **options,
    }  # fmt: skip
    made = NVAE(NVAEConfig(size, **options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return made


def test_the_divergence_of_a_relative_posterior_is_the_closed_form_of_the_paper(truth):
    mean, log_std, shift, log_scale = torch.randn(4, 64, 3, dtype=torch.float64)
    prior = Gaussian(mean, log_std)
    posterior = relative(prior, shift, log_scale)
    scale = bounded(log_scale).exp()
    closed = (shift**2 / log_std.exp() ** 2 + scale**2 - (scale**2).log() - 1) / 2
    q, p = Normal(mean + shift, log_std.exp() * scale), Normal(mean, log_std.exp())
    error = (posterior.kl(prior) - closed).abs().max()
    truth("nvae", "KL of two Gaussians", "that of relative mean and scale", error, 2e-13)
    truth(
        "nvae",
        "KL of relative mean and scale",
        "torch.distributions",
        (closed - kl_divergence(q, p)).abs().max(),
        1e-13,
    )


def test_a_posterior_moves_with_its_prior_and_its_scale_is_bounded():
    shift, log_scale = torch.randn(2, 8), torch.tensor([1e4, -1e4]).repeat(4).expand(2, 8)
    one, two = (relative(Gaussian(m * torch.ones(2, 8), torch.zeros(2, 8)), shift, log_scale) for m in (0.0, 3.0))
    assert torch.allclose(two.mean - one.mean, torch.tensor(3.0))
    assert one.log_std.abs().max() <= MOST


def test_power_iteration_finds_the_largest_singular_value(truth):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 8, 5, groups=8)
    ).double()  # fmt: skip
    estimates = SpectralNorms(network, begin=0).double()
    estimates.follow(200)
    exact = [
        torch.linalg.svdvals(layer.weight.flatten(1))[0] for layer in network.modules() if hasattr(layer, "weight")
    ]
    error = abs(estimates().detach() / torch.stack(exact).detach().sum() - 1)
    truth("nvae", "sum of spectral norms by power iteration", "torch.linalg.svdvals", error, 2e-15)
    assert sorted(len(norms) for norms in estimates.norms()) == [1, 1, 2]  # of weights of one shape together


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_the_largest_scale_of_each_normalisation_is_held_small(norm):
    made = model(norm=norm)
    scales = [p for name, p in made.named_parameters() if p.dim() == 1 and "weight" in name]
    assert bool(scales) == (norm != "none")
    with torch.no_grad():
        for scale in scales:
            scale.copy_(torch.randn_like(scale))
        expected = sum((float(scale.abs().max()) for scale in scales), 0.0)
    assert torch.allclose(made.largest_scales(), torch.tensor(expected))
    batch = Batch(binary_pictures(2).float()[:4].repeat(1, 1, 2, 2), seeds=range(4))
    assert torch.allclose(made(batch).parts["spectral"], made.norms() + expected)


def test_the_cells_below_all_groups_are_as_wide_as_they_are_told():
    cells = [cell for cell in model(last_expansion=5, stem_cells=2).end if isinstance(cell, DecoderCell)]
    assert [cell.branch[1].out_channels for cell in cells] == [5 * 4, 5 * 4]


def test_its_gradient_is_the_outer_product_of_the_singular_vectors(truth):
    layer = nn.Conv2d(2, 4, 3).double()
    estimates = SpectralNorms(layer, begin=300).double()
    estimates.follow(300)
    estimates().backward()
    u, _, v = torch.linalg.svd(layer.weight.flatten(1).detach(), full_matrices=False)
    error = (layer.weight.grad.flatten(1) - u[:, :1] @ v[:1]).abs().max()
    truth("nvae", "gradient of a spectral norm", "u v^T of the decomposition", error, 2e-15)


def test_the_penalty_is_a_part_of_the_loss_and_follows_the_weights_between_steps():
    made = model(spectral=0.5)
    batch = Batch(binary_pictures(2).float()[:4].repeat(1, 1, 2, 2), seeds=range(4))
    losses = made(batch)
    assert torch.allclose(losses.total, losses.parts["negative_elbo"] + 0.5 * losses.parts["spectral"], rtol=1e-5)
    assert made(batch).total == losses.total  # nothing moves within a step
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    made.after_step(0)
    assert torch.allclose(made(batch).parts["spectral"], 2 * losses.parts["spectral"], rtol=1e-2)
    without = model(spectral=0.0)
    assert "spectral" not in without(batch).parts
    assert not [name for name, _ in without.named_buffers() if name.startswith("norms")]


def test_training_on_the_penalty_alone_brings_the_true_norms_down():
    layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    estimates = SpectralNorms(layers)

    def exact() -> float:
        return sum(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item() for layer in layers)

    before = exact()
    for _ in range(10):
        layers.zero_grad()
        estimates().backward()
        with torch.no_grad():
            for layer in layers:
                layer.weight -= 0.1 * layer.weight.grad
        estimates.follow()
    assert exact() < 0.7 * before


def test_the_probabilities_of_all_pictures_sum_to_one_and_the_bound_lies_below(truth):
    made = model(2, 0.1, groups=(2,)).double()  # two groups of one number each, at 1 x 1
    pictures = binary_pictures(2)
    nodes = Nodes(2, 20, len(pictures))
    rows = pictures.repeat_interleave(len(nodes), 0)
    with torch.no_grad():
        numbers = made.generate(len(nodes), Nodes(2, 20))
        log_probs = torch.stack([made.likelihood.log_prob(numbers, x[None]) for x in pictures])  # (16, nodes)
        seen = tuple(part.repeat_interleave(len(nodes), 0) for part in made.recognise(Batch(pictures)))
        inferred = made.infer(Batch(rows), seen, nodes)
    p = log_probs.exp() @ nodes.weights
    weighted = nodes.mean(inferred.log_weight.exp())  # E_q[p(x, z) / q(z | x)] = p(x)
    truth("nvae", "sum over 2x2 pictures of E_q[p(x, z) / q(z | x)]", "1", abs(weighted.sum() - 1), 3e-6)
    truth("nvae", "E_q[p(x, z) / q(z | x)]", "quadrature over the prior", (weighted / p - 1).abs().max(), 5e-5)
    bound, sampled = nodes.mean(inferred.elbo), nodes.mean(inferred.log_weight)
    truth("nvae", "KL of groups in closed form", "E_q[ln q - ln p]", (bound - sampled).abs().max(), 1e-14)
    assert (bound < p.log()).all()
    many = made.float().elbo(pictures[:4].float(), samples=1000)
    truth("nvae", "ln p(x) by 1,000 weighted samples", "quadrature", (many - p[:4].log()).abs().max(), 0.03)


def test_with_the_prior_as_posterior_inference_is_generation():
    made = model(8, 0.1, latent=2)
    for group in made.latent_groups:
        nn.init.zeros_(group.posterior_net.weight)
        nn.init.zeros_(group.posterior_net.bias)
    images = torch.randn(5, 1, 8, 8).sign()
    with torch.no_grad():
        inferred = made.infer(Batch(images), made.recognise(Batch(images)), Draws(PictureRandom(range(5))))
        numbers = made.generate(5, Draws(PictureRandom(range(5))))
    assert torch.allclose(inferred.log_likelihood, made.likelihood.log_prob(numbers, images), atol=1e-4)
    assert torch.equal(inferred.kl, torch.zeros(5, 3))
    assert inferred.log_ratio.abs().max() < 1e-4


def test_balance_takes_from_groups_that_carry_little_and_ends_with_the_warm_up():
    made = model(8, groups=(2, 1), balance=True, objective=ELBO(warmup_steps=10))
    assert [shape[1] for shape in made.shapes] == [2, 2, 4]
    inferred = made.infer(
        Batch(torch.ones(2, 1, 8, 8)), made.recognise(Batch(torch.ones(2, 1, 8, 8))), Draws(PictureRandom([0, 1]))
    )
    inferred = inferred._replace(kl=torch.tensor([[1.0, 3.0, 40.0], [0.0, 0.0, 5.0]]) - 0.01)
    s = torch.tensor([4 / 2, 4 / 2, 16 / 1])
    gamma = torch.tensor([1.0, 3.0, 40.0]) / s
    assert torch.allclose(made.balance(inferred).kl[0], inferred.kl[0] * gamma / gamma.mean())
    made.steps += 9
    assert torch.equal(made.balance(inferred).kl, inferred.kl)


def test_what_bends_in_a_cell_is_swish():
    """x sigmoid(x), twice in each cell of figure 3."""
    config = model(8).config
    for cell in (EncoderCell(config, 4, 4), DecoderCell(config, 4, 4)):
        kinds = [type(layer) for layer in cell.branch if not list(layer.parameters())]
        assert kinds.count(torch.nn.SiLU) == 2
        assert set(kinds) <= {torch.nn.SiLU, torch.nn.Identity}


def test_the_bound_is_logged_as_it_is_whatever_is_balanced():
    images = torch.randn(4, 1, 8, 8).sign()
    torch.manual_seed(1)
    balanced = model(8, 0.1, balance=True, objective=ELBO(warmup_steps=10))(Batch(images, seeds=range(4)))
    torch.manual_seed(1)
    plain = model(8, 0.1)(Batch(images, seeds=range(4)))
    assert plain.parts.keys() == {"reconstruction", "kl", "negative_elbo", "spectral"}
    assert balanced.parts.keys() == plain.parts.keys() | {"penalty"}
    assert torch.equal(balanced.parts["negative_elbo"], plain.parts["negative_elbo"])
    assert balanced.total < plain.total


@pytest.mark.parametrize("norm", ["group", "none"])
def test_the_loss_of_a_batch_is_the_mean_over_its_halves(norm):
    made = model(8, norm=norm, width=8, balance=True, objective=ELBO(warmup_steps=10)).train()
    batch = Batch(torch.randn(4, 1, 8, 8).sign(), seeds=range(4))
    halves = [made(batch[rows]).total for rows in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(made(batch).total, sum(halves) / 2, rtol=1e-5)


def test_of_batch_normalisation_only_training_knows():
    """As published: a picture's loss depends on those beside it while training, its bound and its samples do not."""
    made = model(8, norm="batch", width=8)
    assert made.batch_statistics
    assert not model(8).batch_statistics
    batch = Batch(torch.randn(4, 1, 8, 8).sign(), seeds=range(4))
    halves = [made(batch[rows]).total for rows in (slice(0, 2), slice(2, 4))]
    assert not torch.allclose(made(batch).total, sum(halves) / 2, rtol=1e-5)
    made.eval()
    assert torch.allclose(made.elbo(batch.images)[1:2], made.elbo(batch.images[1:2], seeds=1), rtol=1e-5)
    assert torch.allclose(made.sample(3)[1], made.sample(1, seeds=1)[0], atol=1e-5)
    assert torch.equal(made.sample(3), made.sample(3))


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
def test_every_parameter_has_a_gradient(norm):
    made = model(8, 0.02, norm=norm, width=8, stem_cells=2, cells=2)
    made(Batch(torch.randn(4, 1, 8, 8).sign(), seeds=range(4))).total.backward()
    assert not [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]


def test_of_fewer_layers_only_those_are_drawn():
    made = model(8, 0.1)
    assert torch.equal(made.sample(2, layers=0)[0], made.sample(2, layers=0)[1])
    assert not torch.equal(made.sample(2, layers=1)[0], made.sample(2, layers=1)[1])
    assert torch.equal(made.sample(2, layers=3), made.sample(2))


def test_repeating_pixels_after_a_1x1_convolution_is_repeating_them_before():
    config = NVAEConfig(8, norm="none", squeeze=False)
    cell = DecoderCell(config, 8, 4, size=8)
    x = torch.randn(2, 8, 4, 4)
    before = DecoderCell(config, 8, 4, size=8)
    before.load_state_dict(cell.state_dict())
    before.size, before.branch[4].size = None, 8
    assert torch.allclose(cell(x), before(enlarged(x, 8)), atol=1e-6)


@pytest.mark.parametrize(("channels", "neurons"), [(128, 8), (16, 4)])
def test_channels_are_weighed_by_what_the_means_of_all_decide(truth, channels, neurons):
    """Hu et al. 2018, eq. 2-4: sigma(W_2 f(W_1 m + b_1) + b_2), of C / 16 neurons, here 4 at least, f the swish."""
    made, x = SqueezeExcitation(channels).double(), torch.randn(3, channels, 4, 5).double()
    w_1, b_1, w_2, b_2 = made.parameters()
    assert w_1.shape == w_2.T.shape == (neurons, channels)
    h = torch.einsum("nc,bcij->bn", w_1, x) / 20 + b_1
    gate = 1 / (1 + torch.exp(-(h / (1 + torch.exp(-h))) @ w_2.T - b_2))
    error = (made(x) - torch.einsum("bc,bcij->bcij", gate, x)).abs().max().detach()
    truth("nvae", f"squeeze and excitation of {channels} channels", "its equations", error, 1e-15)


@pytest.mark.parametrize("kind", [EncoderCell, DecoderCell])
def test_the_answer_of_a_cell_is_squeezed_where_it_is_asked_for(kind):
    """With gates that are half open, a cell says half of what it says without them; with closed ones, nothing."""
    free = kind(NVAEConfig(8, squeeze=False), 8, 16)
    gated = kind(NVAEConfig(8), 8, 16)
    gated.load_state_dict(free.state_dict(), strict=False)
    assert {name.rpartition(".")[0] for name in gated.state_dict().keys() - free.state_dict().keys()} == {
        f"branch.{len(gated.branch) - 1}.{layer}" for layer in ("squeeze", "excite")
    }
    gate, x = gated.branch[-1].excite, torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.zero_()
        past = free.shortcut(x)
        assert torch.allclose(gated(x) - past, (free(x) - past) / 2, atol=1e-6)
        assert (free(x) - past).abs().mean() > 1e-3
        gate.bias.fill_(-200.0)
        assert torch.equal(gated(x), past)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_cell_of_the_decoder_sees_as_far_as_its_depthwise_kernel(kernel):
    """Nothing else in it sees more than one pixel, and each of the 6 C wide channels has a kernel of its own."""
    cell = DecoderCell(NVAEConfig(16, kernel=kernel, norm="none", squeeze=False), 4, 4)
    x, r = torch.randn(1, 4, 11, 11, requires_grad=True), kernel // 2
    cell(x)[0, :, 5, 5].sum().backward()
    within = torch.zeros(11, 11, dtype=torch.bool)
    within[5 - r : 6 + r, 5 - r : 6 + r] = True
    assert torch.equal(x.grad[0].any(0), within)
    wide = 6 * 4
    assert sum(p.numel() for p in cell.parameters()) == wide * (4 + 1) + wide * (kernel**2 + 1) + 4 * (wide + 1)


def test_cells_halve_and_double_sizes_that_are_odd():
    config = NVAEConfig(28)
    assert EncoderCell(config, 8, 16, halve=True)(torch.randn(1, 8, 7, 7)).shape == (1, 16, 4, 4)
    assert DecoderCell(config, 16, 8, size=7)(torch.randn(1, 16, 4, 4)).shape == (1, 8, 7, 7)
    made = model(28, halvings=2)
    assert made.config.sizes() == [28, 14, 7, 4]
    assert made.shapes == [(1, 4, 4), (1, 4, 4), (1, 7, 7)]
    assert made.sample(1).shape == (1, 1, 28, 28)


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"kernel": 4}, "odd"),
        ({"groups": ()}, "at least 1 group"),
        ({"groups": (1, 0)}, "at least 1 group"),
        ({"spectral": -1.0}, "negative"),
        ({"image_size": 2, "groups": (1, 1, 1)}, "cannot be halved 3 times"),
        ({"balance": True}, "warmup_steps"),
        ({"balance": True, "objective": ELBO(warmup_steps=5, free_bits=0.1)}, "free bits"),
        ({"width": 0}, "width must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, cause):
    with pytest.raises(ConfigError, match=cause):
        NVAEConfig(**{"image_size": 8, **settings})


def test_small_draws_different_pictures():
    images = mz.create("nvae").sample(2)
    assert images.shape == (2, 1, 28, 28)
    assert (images[0] - images[1]).abs().max() > 0.02
