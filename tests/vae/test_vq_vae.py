"""The VQ-VAE: a loss whose terms are those of the paper, a bound that is one, and a prior over codes."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mezzotint as mz
from mezzotint.autoregressive.pixelcnn import PixelCNNConfig
from mezzotint.autoregressive.tokens import PixelCNNPriorConfig, TransformerPriorConfig
from mezzotint.autoregressive.transformer import TransformerConfig
from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.data import open_pictures
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig, LogisticsConfig
from mezzotint.vae.quantiser import CodebookConfig
from mezzotint.vae.vae import VAE, VAEConfig
from mezzotint.vae.vq_vae import VQVAE, VQVAEConfig, VQVAEPrior, VQVAEPriorConfig

CODES = CodebookConfig(codes=3, width=2)
PRIORS = {
    "pixelcnn": PixelCNNPriorConfig(PixelCNNConfig(4, 2, 3, 3, 4), 4),
    "transformer": TransformerPriorConfig(TransformerConfig(8, 1, 2, 2)),
}


def tiny(image_size: int = 4, channels: int = 1, likelihood=None, codebook: CodebookConfig = CODES) -> VQVAE:
    config = VQVAEConfig(image_size, channels, 6, 1, 1, codebook, likelihood or BernoulliConfig())
    return VQVAE(config)


def loosened(model, by: float = 0.5):
    """Weights so large that every part of the model matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model.eval()


def pictures(n: int, size: int = 4) -> torch.Tensor:
    """Black and white pixels, all of them different."""
    bits = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)))[:n]
    return bits.repeat(1, size * size // 8).view(n, 1, size, size)


def whole(kind: str = "pixelcnn", classes: int = 0, codec: VQVAE | None = None) -> VQVAEPrior:
    return loosened(VQVAEPrior(VQVAEPriorConfig(classes, PRIORS[kind]), codec or loosened(tiny())))


# The first stage -----------------------------------------------------------------------------------------------------


def test_a_compiled_codec_is_the_codec():
    eager = tiny(image_size=8).train()
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager")  # what can fail is the tracing; no C++ compiler is asked for
    for step in range(2):  # the first of which begins the codebook
        batch = Batch(pictures(8, 8), seeds=range(8))
        with torch.autocast("cpu", torch.bfloat16):
            losses = [codec(batch).total for codec in (eager, compiled)]
        assert losses[0] == losses[1]
        for codec, loss in zip((eager, compiled), losses):
            loss.backward()
            codec.after_step(step)
    assert eager.quantiser.updates == 2
    assert all(map(torch.equal, eager.state_dict().values(), compiled.state_dict().values()))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager.parameters(), compiled.parameters()))


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_the_loss_is_that_of_the_paper(update, truth):
    codec = loosened(tiny(codebook=CodebookConfig(3, 2, 0.25, update=update))).double()
    x = pictures(32).double()
    losses = codec(Batch(x, seeds=range(32)))
    z = codec.encoder(x)
    codes = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), codec.quantiser.codebook).argmin(1).view(32, 2, 2)
    q = codec.quantiser.codebook[codes].permute(0, 3, 1, 2)
    squares = (z - q).square().sum((1, 2, 3)).mean()
    reconstruction = -codec.likelihood.log_prob(codec.decoder(q), x).mean()
    expected = reconstruction + (1.25 if update == "gradient" else 0.25) * squares
    what = f"loss, codes by {update}"
    truth("vq-vae", what, "eq. 3 as it stands, nats", (losses.total - expected).detach().abs(), 3e-14)
    terms = losses.parts["reconstruction"] + losses.parts["commitment"] + losses.parts["codebook"]
    assert float(losses.total.detach()) == pytest.approx(float(terms))
    assert losses.parts["kl"] == pytest.approx(4 * math.log(3))


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_every_parameter_receives_a_gradient_and_codes_move(update):
    codec = loosened(tiny(codebook=CodebookConfig(3, 2, update=update))).train()
    before = codec.quantiser.codebook.detach().clone()
    losses = codec(Batch(pictures(64), seeds=range(64)))
    losses.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in codec.parameters())
    codec.after_step(0)
    assert not torch.equal(codec.quantiser.codebook, before)


def test_the_loss_of_a_batch_is_the_mean_over_its_parts():
    codec, batch = loosened(tiny()).train(), Batch(pictures(8), seeds=range(8))
    total = codec(batch).total
    assert torch.allclose(total, (codec(batch[0:4]).total + codec(batch[4:8]).total) / 2)


@pytest.mark.parametrize("likelihood", [BernoulliConfig(), GaussianPixelsConfig(), LogisticsConfig(2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_codes_are_what_a_picture_becomes(likelihood, channels):
    codec = loosened(tiny(8, channels, likelihood))
    x = pictures(4, 8).expand(-1, channels, -1, -1)
    codes = codec.encode(x)
    assert codes.shape == (4, 4, 4)
    assert codes.dtype == torch.int64
    assert torch.equal(codec.decode(codes), codec.reconstruct(x))
    assert codec.reconstruct(x).shape == x.shape
    assert codec.pixels == likelihood.build(channels).pixels


def test_a_codec_learns_to_reproduce_pictures_with_many_codes():
    """In a few steps it is nearer to pictures than their mean is."""
    codec = VQVAE(VQVAEConfig(8, 1, 16, 1, 1, CodebookConfig(32, 8))).train()
    clothes = open_pictures("fashion", image_size=8).batch(range(64))
    optimizer = torch.optim.Adam(codec.parameters(), 3e-3)
    for step in range(50):
        rows = slice(32 * (step % 2), 32 * (step % 2) + 32)
        batch = clothes[rows]
        batch.seeds = [64 * step + k for k in range(32)]
        losses = codec(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        codec.after_step(step)
    x = clothes.images
    error = (codec.eval().reconstruct(x) - x).square().mean() / (x - x.mean(0)).square().mean()
    assert error < 0.5
    assert losses.parts["perplexity"] > 8
    assert float(losses.parts["usage"]) > 0.5


# The bound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PRIORS)
def test_the_bound_is_below_the_likelihood(kind, truth):
    """ln p(x) = ln sum_c p(c) p(x | c), over all 81 maps of 3 codes at 2 x 2 positions."""
    model, x = whole(kind), pictures(200)
    maps = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    with torch.no_grad():
        log_prior, numbers = model.log_prior(maps).double(), model.codec.numbers(maps)
        each = torch.stack([model.codec.likelihood.log_prob(numbers, one.expand(81, -1, -1, -1)) for one in x])
        exact = torch.logsumexp(log_prior + each.double(), 1)  # (B,)
        uniform = torch.logsumexp(each.double() - math.log(81), 1)
    truth("vq-vae", f"sum of p(c) over all maps, {kind}", "1", (log_prior.exp().sum() - 1).abs(), 1e-7)
    bound = model.elbo(x)
    truth(
        "vq-vae",
        f"how far the bound is above ln p(x), {kind}",
        "a sum over all codes",
        (bound - exact).max().clamp_min(0),
        0.0,
    )
    truth(
        "vq-vae", "how far the first stage's bound is above ln p(x)", "a sum over all codes",
        (model.codec.elbo(x) - uniform).max().clamp_min(0), 0.0,
    )  # fmt: skip
    places = (maps[None] == model.encode(x)[:, None]).flatten(2).all(2).double().argmax(1)  # which of 81
    expected = (log_prior + each.double())[torch.arange(len(x)), places]
    truth("vq-vae", f"bound, {kind}", "the one term of that sum, nats", (bound - expected).abs().max(), 1e-5)


def test_without_labels_the_bound_is_that_of_all_classes_together(truth):
    model, x = whole(classes=4), pictures(20)
    each = torch.stack([model.elbo(x, labels=torch.full((20,), label)) for label in range(4)]).double()
    error = (model.elbo(x) - (torch.logsumexp(each, 0) - math.log(4))).abs().max()
    truth("vq-vae", "bound without labels", "the mean of p(x | y) over classes, nats", error, 5e-6)
    assert (each[0] - each[1]).abs().max() > 0.1  # the label matters
    with pytest.raises(ConfigError, match="labels"):
        model.elbo(x, labels=torch.full((20,), 4))


# The second stage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("kind", PRIORS)
def test_the_prior_learns_what_codes_cost(kind, classes):
    model, x = whole(kind, classes).train(), pictures(12)
    labels = torch.arange(12) % 4
    losses = model(Batch(x, labels, seeds=range(12)))
    told, total = labels if classes else None, float(losses.total.detach())
    assert total == pytest.approx(-float(model.log_prior(model.encode(x), told).mean()), rel=1e-5)
    assert losses.parts["bits_per_code"] == pytest.approx(total / (4 * math.log(2)), rel=1e-5)


def test_the_codec_is_held_as_it_was():
    codec = loosened(tiny()).train()
    model = VQVAEPrior(VQVAEPriorConfig(prior=PRIORS["pixelcnn"]), codec).train()
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    losses = model(Batch(pictures(8), seeds=range(8)))
    losses.total.backward()
    optimizer.step()
    model.after_step(0)
    assert not model.codec.training
    assert all(p.grad is None for p in model.codec.parameters())
    assert all(torch.equal(model.codec.state_dict()[name], tensor) for name, tensor in before.items())
    assert codec.training  # and so is the first stage itself
    assert all(p.requires_grad for p in codec.parameters())


@pytest.mark.parametrize("kind", PRIORS)
def test_the_fast_way_draws_what_the_slow_way_draws(kind, truth):
    model, labels = whole(kind, classes=4), torch.tensor([0, 1, 2, 3, 0, 1])
    fast, slow = (model.sample(6, labels=labels, seeds=3, cached=cached) for cached in (True, False))
    truth("vq-vae", f"samples, {kind} with a cache", "without", (fast - slow).abs().max(), 1e-6)
    cost = []
    for cached in ({}, {"cached": True}, {"cached": False}):
        with FlopCounterMode(display=False) as counter:
            model.sample(6, labels=labels, seeds=3, **cached)
        cost.append(counter.get_total_flops())
    assert cost[0] == cost[1] < cost[2]  # the fast way is the usual one
    assert torch.allclose(model.sample(1, labels=labels[2:3], seeds=5)[0], fast[2], atol=1e-6)
    assert model.sample(6, seeds=3).shape == fast.shape  # labels are drawn
    drawn = model.sample(6, labels=labels, seeds=3, pixels="drawn")
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}


def test_likelier_codes_are_drawn_where_asked():
    model = whole()
    alike = model.sample(4, seeds=0, temperature=0.0)
    assert torch.equal(alike[0], alike[3])
    assert torch.equal(alike, model.sample(4, seeds=0, top_k=1))
    assert torch.equal(alike, model.sample(4, seeds=0, top_p=1e-9))


def test_what_cannot_be_is_refused():
    model = whole()
    for message, controls in {
        "temperature": {"temperature": -1.0},
        "without labels": {"labels": torch.zeros(2)},
        "'mean' or 'drawn'": {"pixels": "grey"},
        "top_p": {"top_p": 0.0},
        "does not take source": {"source": pictures(2)},
    }.items():
        with pytest.raises(ConfigError, match=message):
            model.sample(2, **controls)
    with pytest.raises(ConfigError, match="cannot be halved"):
        VQVAEConfig(30)
    with pytest.raises(ConfigError, match="width"):
        VQVAEConfig(28, width=0)
    with pytest.raises(ConfigError, match="classes"):
        VQVAEPriorConfig(-1)
    with pytest.raises(ConfigError, match="codec"):
        VQVAEPrior(VQVAEPriorConfig(), VAE(VAEConfig(28)))


def test_the_published_networks_are_those_of_the_paper():
    """Section 4.1: two strided 4x4 convolutions and two residual blocks of 256 features, and the same back."""
    with torch.device("meta"):
        codec = mz.create("vq-vae", size="paper", stage="codec", image_size=32, channels=3)
    K, D, W = 512, 64, 256
    block = W * W * 9 + W + W * W + W
    encoder = (3 * 16 * W + W) + (W * 16 * W + W) + 2 * block + (W * D + D)
    decoder = (D * 9 * W + W) + 2 * block + (W * 16 * W + W) + (W * 16 * 3 + 3)
    assert sum(p.numel() for p in codec.parameters()) == encoder + decoder + K * D + 1  # and sigma
    assert codec.encode(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 8, 8)
    assert codec.config.codebook.beta == 0.25


@pytest.mark.parametrize("kind", PRIORS)
def test_a_prior_of_either_kind_can_be_asked_for(kind):
    model = mz.create("vq-vae", classes=3, prior__kind=kind)
    assert type(model.prior).__name__ == {"pixelcnn": "PixelCNNPrior", "transformer": "TransformerPrior"}[kind]
    assert model.config.classes == 3
