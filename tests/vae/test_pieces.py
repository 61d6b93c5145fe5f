"""Posteriors, priors, objectives, likelihoods and networks go together, whichever is chosen: each a piece by itself."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from vae.quadrature import Given, binary_pictures, hermite, likelihood_of

import mezzotint as mz
from mezzotint.autoregressive.pixelcnn import PixelCNNConfig
from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.systems import find
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig, LogisticsConfig
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import ELBO, Capacity, Constrained, ImportanceWeighted
from mezzotint.vae.pixelvae import PixelVAE, PixelVAEConfig
from mezzotint.vae.posteriors import AuxiliaryPosterior, AuxiliaryPosteriorConfig, GaussianPosteriorConfig
from mezzotint.vae.priors import HierarchicalPriorConfig, StandardPriorConfig
from mezzotint.vae.vae import VAE, VAEConfig

POSTERIORS = [GaussianPosteriorConfig(), AuxiliaryPosteriorConfig(1, 6, (8,), "tanh")]
PRIORS = [StandardPriorConfig(), HierarchicalPriorConfig(1, 4, (8,), "tanh")]
OBJECTIVES = [ELBO(2.0, 10), Capacity(3.0, 5.0, 10), ImportanceWeighted(3), Constrained(wait=False)]
LIKELIHOODS = [BernoulliConfig(), GaussianPixelsConfig(), LogisticsConfig(2)]
BOTH = list(product(POSTERIORS, PRIORS))
# Every posterior, prior, objective and likelihood beside every other, in as few models as that takes
TOGETHER = [
    (posterior, prior, objective, LIKELIHOODS[(i + j + k) % 3])
    for (i, posterior), (j, prior), (k, objective) in product(*map(enumerate, (POSTERIORS, PRIORS, OBJECTIVES)))
]


def name(choice) -> str:
    return getattr(choice, "kind", str(choice))


def shaken(model, std: float = 0.5):
    """Large random weights, so that nothing depends on anything by little; in float64."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model.double()


def bounded(model):
    """Importance weights that vary little: a posterior about as wide as the prior, told its extremes by little."""
    inference = model.inference
    heads = {model.encoder[-1]: 0.5}
    if isinstance(inference, AuxiliaryPosterior):
        heads = {inference.of_context[-1]: 0.5, inference.of_z[-1]: 0.5, inference.back[-1]: 0.0}
    with torch.no_grad():
        for head, log_variance in heads.items():
            head.weight.mul_(torch.tensor([[0.4], [0.0]]))
            head.bias[1] = log_variance
    return model


@pytest.mark.parametrize(("posterior", "prior"), BOTH, ids=name)
def test_pictures_sum_to_one_and_bounds_tend_to_their_likelihood(truth, posterior, prior):
    """By quadrature over the noise of which the prior makes z, 2 x 2 black and white pictures."""
    torch.manual_seed(0)
    config = VAEConfig(2, 1, 1, MLPConfig((8,), "tanh"), BernoulliConfig(), posterior=posterior, prior=prior)
    model = bounded(shaken(VAE(config)))
    values, weights = hermite(80)
    shapes = len(model.noise_shapes)
    noise = torch.cartesian_prod(*[values] * shapes).view(-1, shapes).T[..., None]
    weight = weights if shapes == 1 else torch.outer(weights, weights).flatten()
    x = binary_pictures()
    with torch.no_grad():
        exact = likelihood_of(model, model.generate(len(weight), Given(*noise)), weight.log())
    what = f"{posterior.kind} posterior, {prior.kind} prior"
    truth("vae", f"sum of p(x), {what}", "1", (exact.exp().sum() - 1).abs(), 2e-15)
    single = model.elbo(x.repeat_interleave(2000, 0), seeds=0).unflatten(0, (16, 2000))
    assert (single.mean(1) < exact + 3 * single.std(1) / 2000**0.5).all()
    assert (single.mean(1) < exact - 0.01).any()
    error = (model.elbo(x, samples=5000) - exact).abs().max()
    truth("vae", f"bound of 5,000 samples, nats, {what}", "ln p(x) by quadrature", error, 0.08)


@pytest.mark.parametrize(("posterior", "prior"), BOTH, ids=name)
def test_the_kl_column_is_on_average_the_logarithm_of_the_ratio(truth, posterior, prior):
    """E[kl] = E[ln q(z | x) - ln p(z)], one estimate beside the other over 20,000 draws."""
    model = shaken(
        VAE(VAEConfig(2, 1, 3, MLPConfig((8,), "tanh"), BernoulliConfig(), posterior=posterior, prior=prior))
    )
    batch = Batch(binary_pictures()[3:4].expand(20_000, -1, -1, -1), seeds=range(20_000))
    with torch.no_grad():
        found = model.infer(batch, model.recognise(batch), model.draws(batch.random()))
    gap = found.kl.sum(1) + found.log_ratio
    error = gap.mean().abs() / (gap.std() / len(gap) ** 0.5)
    what = f"{posterior.kind} posterior, {prior.kind} prior"
    truth("vae", f"E[KL] - E[ln q - ln p], standard errors, {what}", "0", error, 4)


@pytest.mark.parametrize(("posterior", "prior", "objective", "likelihood"), TOGETHER, ids=name)
@pytest.mark.parametrize("kind", [VAE, PixelVAE])
def test_any_of_them_is_trained_drawn_from_and_looked_at(posterior, prior, objective, likelihood, kind):
    pieces = {"likelihood": likelihood, "objective": objective, "posterior": posterior, "prior": prior}
    network = ConvConfig(4, 2, 8) if prior.kind == "standard" else MLPConfig((8,))
    config = (
        VAEConfig(8, 1, 3, network, **pieces)
        if kind is VAE
        else PixelVAEConfig(8, 1, 3, network, **pieces, features=2, pixelcnn=PixelCNNConfig(4, 2, 3, 3, 4))
    )
    assert type(config).from_dict(config.to_dict()) == config
    torch.manual_seed(0)
    model = shaken(kind(config), 0.2)
    images = (2.0 * (torch.rand(4, 1, 8, 8) < 0.5) - 1).double()
    whole = Batch(images, seeds=range(4))
    total = model(whole).total
    halves = (model(whole[:2]).total + model(whole[2:]).total) / 2
    assert ((total - halves) / total).abs() < 1e-14
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if kind is VAE:
        assert all(p.grad.any() for part in (model.inference, model.prior) for p in part.parameters())
    model.eval()
    assert model.sample(2, seeds=3).shape == (2, 1, 8, 8)
    assert torch.allclose(model.sample(2, seeds=3)[1:], model.sample(1, seeds=4), atol=1e-9)
    found = model.latents(images)
    assert found.means.shape == found.kl.shape == (4, 3)
    assert (found.total is None) == (posterior.kind == "gaussian" and prior.kind == "standard")


SYSTEMS = ["vae", "cvae", "draw", "pixelvae", "ladder-vae", "iaf-vae", "nvae", "vdvae"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_model_may_have_a_constraint(system):
    """Broken, it makes the KL weigh less; met, it lets the weight come to one."""
    spec = PictureSpec(16, 1)
    weights = {}
    for most in (-100.0, 100.0):
        changes = {
            "objective.kind": "constrained", "objective.most": str(most), "objective.begin": "0.5",
            "objective.wait": "false", "objective.rate": "0.01", "objective.memory": "0",
        }  # fmt: skip
        stage = find(system).stages[0]
        model = stage.model(stage.sizes["small"](spec).updated(changes)).train()
        losses = model(Batch(torch.rand(2, 1, 16, 16) * 2 - 1, seeds=range(2)))
        assert losses.parts["beta"] == 0.5
        assert torch.allclose(losses.parts["penalty"], 0.5 * losses.parts["kl"], rtol=1e-4)
        model.after_step(0)
        weights[most] = float(model.lagrangian.beta)
    assert weights[-100.0] < 0.5 < weights[100.0]


@pytest.mark.parametrize("system", [*SYSTEMS, "vhp-vae", "hierarchical-variational-model", "vq-vae", "autoencoder"])
def test_pictures_of_another_kind_are_refused_by_name(system):
    stage = find(system).stages[0]
    model = stage.model(stage.sizes["small"](PictureSpec(16, 1))).eval()
    wrong = [torch.zeros(2, 1, 12, 12), torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16, dtype=torch.uint8)]
    for ability in ("elbo", "encode", "reconstruct", "latents"):
        for images in wrong:
            if hasattr(model, ability):
                with pytest.raises(ConfigError, match=r"of the shape \(B, 1, 16, 16\)"):
                    getattr(model, ability)(images)


def test_a_constraint_is_of_what_the_likelihood_explains(truth):
    """A CVAE that is shown two quadrants of 8 x 8 explains 32 numbers: nats are divided by these."""
    condition = {"condition.observed": "2", "objective.kind": "constrained"}
    stage = find("cvae").stages[0]
    model = stage.model(stage.sizes["small"](PictureSpec(8, 1)).updated(condition)).train()
    losses = model(Batch(torch.rand(3, 1, 8, 8) * 2 - 1, seeds=range(3)))
    model.after_step(0)
    expected = losses.parts["reconstruction"] / 32
    truth("cvae", "average of the constrained term, relative", "nats per hidden number",
          (model.lagrangian.average / expected - 1).abs(), 3e-7)  # fmt: skip


SEMI = ["semi-supervised-m2", "semi-supervised-m1", "semi-supervised-vae"]


@pytest.mark.parametrize("system", SEMI)
def test_classes_are_not_asked_of_pictures_of_another_kind(system):
    model = mz.create(system, image_size=16, classes=("a", "b", "c"))
    for ability in ("elbo", "classify", "analogies", "reconstruct", "latents"):
        if hasattr(model, ability):
            with pytest.raises(ConfigError, match=r"of the shape \(B, 1, 16, 16\)"):
                getattr(model, ability)(torch.zeros(2, 1, 12, 12))


@pytest.mark.parametrize(
    "system",
    [*(name for name in SYSTEMS if name != "cvae"), "vhp-vae", "hierarchical-variational-model", "autoencoder"],
)
def test_codes_of_another_kind_are_refused_by_name(system):
    model = mz.create(system, image_size=16)
    code = model.encode(torch.zeros(1, 1, 16, 16))
    for wrong in (code[..., :-1], code[0], code.long()):
        with pytest.raises(ConfigError, match="takes codes as numbers of the shape"):
            model.decode(wrong)


def test_codes_of_a_codebook_are_whole_numbers_of_it():
    stage = find("vq-vae").stages[0]
    model = stage.model(stage.sizes["small"](PictureSpec(16, 1)))
    code = model.encode(torch.zeros(1, 1, 16, 16))
    for wrong in (code[:, 1:], code.float(), code > 0):
        with pytest.raises(ConfigError, match="takes codes as whole numbers of the shape"):
            model.decode(wrong)
    for wrong in (code - 600, code + 100_000):
        with pytest.raises(ConfigError, match="codes are numbers from 0 to"):
            model.decode(wrong)


@pytest.mark.parametrize("system", [*SYSTEMS, "vhp-vae", "hierarchical-variational-model"])
def test_nats_are_summed_in_single_precision_where_networks_are_in_half(system):
    """With networks in bfloat16, whose numbers are three digits, all of a bound is float32."""
    stage = find(system).stages[0]
    model = stage.model(stage.sizes["small"](PictureSpec(16, 1))).train()
    batch = Batch(torch.rand(2, 1, 16, 16) * 2 - 1, seeds=range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = model.infer(batch, model.recognise(batch), model.draws(batch.random()))
    assert {part.dtype for part in found} == {torch.float32}


@pytest.mark.parametrize("samples", [0, -3, 2.5, True])
def test_a_bound_takes_whole_draws(samples):
    model, x = mz.create("vae", image_size=16), torch.zeros(1, 1, 16, 16)
    with pytest.raises(ConfigError, match=r"1, 2, 3, ... samples"):
        model.elbo(x, samples=samples)
    assert torch.equal(model.elbo(x, samples=np.int64(3)), model.elbo(x, samples=3))


def beginnings() -> list[tuple[str, str]]:
    """Systems whose published size fits into a test of a second."""
    found = []
    for system in ("vae", "iwae", "beta-vae", "capacity-vae", "pixelvae", "cvae", "semi-supervised-m1", "vq-vae",
                   "semi-supervised-m2", "hierarchical-variational-model", "ladder-vae", "vhp-vae", "draw",
                   "autoencoder", "denoising-autoencoder", "generative-dae"):  # fmt: skip
        for size in find(system).stages[0].sizes:
            found.append((system, size))
    return found


@pytest.mark.parametrize(("system", "size"), beginnings())
def test_training_begins_with_a_loss_that_can_be_learned_from(system, size):
    """On pictures that are nearly all black, as digits are: less than ten times the nats of pixels by chance."""
    stage = find(system).stages[0]
    model = stage.model(stage.sizes[size](PictureSpec(28, 1, tuple("0123456789")))).train()
    images = torch.full((4, 1, 28, 28), -1.0)
    images[..., 6:22, 12:16] = 1.0
    losses = model(Batch(images, labels=torch.arange(4), seeds=range(4)))
    losses.total.backward()
    assert losses.total < 10 * 784 * torch.log(torch.tensor(256.0))
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
