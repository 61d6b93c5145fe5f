"""The same networks, pictures and noise in pythae 0.1.2, in float64; where it is wrong, what it computes instead."""

import math

import pytest
import torch
from torch import nn

import mezzotint.vae.model
from mezzotint.core.batch import Batch
from mezzotint.vae.autoencoders import Autoencoder, AutoencoderConfig
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig
from mezzotint.vae.networks import MLPConfig
from mezzotint.vae.objectives import ELBO, Capacity, ImportanceWeighted
from mezzotint.vae.quantiser import CodebookConfig
from mezzotint.vae.vae import VAE, VAEConfig
from mezzotint.vae.vq_vae import VQVAE, VQVAEConfig

pytestmark = pytest.mark.oracles
pythae = pytest.importorskip("pythae.models")
ModelOutput = pytest.importorskip("pythae.models.base.base_utils").ModelOutput
BaseDecoder, BaseEncoder = pythae.nn.BaseDecoder, pythae.nn.BaseEncoder

SIZE, LATENT, B = 6, 3, 8


class Encoder(BaseEncoder):
    """Our encoder as pythae calls it, whose binary pixels are 0 and 1."""

    def __init__(self, ours, binary):
        super().__init__()
        self.network, self.binary = ours.encoder, binary

    def forward(self, x):
        mean, log_variance = self.network(2 * x - 1 if self.binary else x).chunk(2, 1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """Our decoder, whose logits pythae wants as chances."""

    def __init__(self, ours, binary):
        super().__init__()
        self.network, self.binary = ours.decoder, binary

    def forward(self, z):
        numbers = self.network(z)
        return ModelOutput(reconstruction=numbers.sigmoid() if self.binary else numbers)


def ours(objective=None, binary=True):
    likelihood = BernoulliConfig() if binary else GaussianPixelsConfig(1.0)
    model = VAE(VAEConfig(SIZE, 1, LATENT, MLPConfig((10, 9), "tanh"), likelihood, objective or ELBO())).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return model


def theirs(name, model, binary=True, **settings):
    """pythae's model around the networks of ours."""
    loss = "bce" if binary else "mse"
    config = getattr(pythae, f"{name}Config")(
        input_dim=(1, SIZE, SIZE), latent_dim=LATENT, reconstruction_loss=loss, **settings
    )
    return getattr(pythae, name)(config, encoder=Encoder(model, binary), decoder=Decoder(model, binary))


def pictures(binary=True):
    images = torch.randn(B, 1, SIZE, SIZE).double()
    return images.sign() if binary else images


class Noise:
    """In place of pictures' random numbers: (B, K, latent)."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, *shape):
        return self.noise.view(len(self.noise), *shape)


def compared(model, peer, images, draws=1, binary=True, noise=None, **rest):
    """Losses and gradients of both with the same noise: ((loss, gradient), (loss, gradient), their output)."""
    noise = torch.randn(B, draws, LATENT).double() if noise is None else noise
    batch = Batch(images)
    batch.random = lambda: Noise(noise)
    peer._sample_gauss = lambda mean, std: (mean + std * noise.view_as(mean), None)

    mine = model(batch).total
    mine = mine.detach(), gradient(model, mine)
    output = peer({"data": (images + 1) / 2 if binary else images}, **rest)
    return mine, (output.loss.detach(), gradient(model, output.loss)), output


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative(mine, other):
    return ((mine - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize(
    ("system", "name", "objective", "settings"),
    [
        ("VAE", "VAE", ELBO(), {}),
        ("beta-VAE", "BetaVAE", ELBO(beta=4.0), {"beta": 4.0}),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_loss_and_gradient_are_those_of_pythae(truth, system, name, objective, settings, binary):
    """Its Gaussian pixels have sigma 1, and lack the constant D ln(2 pi) / 2."""
    model = ours(objective, binary)
    mine, other, output = compared(model, theirs(name, model, binary, **settings), pictures(binary), binary=binary)
    constant = 0.0 if binary else SIZE**2 / 2 * math.log(2 * math.pi)
    kind = "Bernoulli" if binary else "Gaussian"
    truth(system, f"loss with {kind} pixels, relative", f"pythae 0.1.2 {name}",
          relative(mine[0] - constant, other[0]), 1e-15)  # fmt: skip
    truth(system, f"gradient with {kind} pixels, relative", f"pythae 0.1.2 {name}", relative(mine[1], other[1]), 1e-15)
    its = output.recon_loss + settings.get("beta", 1.0) * output.reg_loss
    assert float(its.detach()) == pytest.approx(float(other[0]))


class Coder(BaseEncoder):
    """An encoder that answers a code, or a map of them, and nothing else."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return ModelOutput(embedding=self.network(x))


def test_an_autoencoder_is_that_of_pythae(truth):
    model = Autoencoder(AutoencoderConfig(SIZE, latent=LATENT, network=MLPConfig((10, 9), "tanh"))).double()
    config = pythae.AEConfig(input_dim=(1, SIZE, SIZE), latent_dim=LATENT)
    peer = pythae.AE(config, encoder=Coder(model.encoder), decoder=Decoder(model, binary=False))
    images = pictures(binary=False)
    mine, other = model(Batch(images)).total, peer({"data": images}).loss
    error = relative(mine.detach(), other.detach()) + relative(gradient(model, mine), gradient(model, other))
    truth("autoencoder", "loss and gradient, relative", "pythae 0.1.2 AE", error, 2e-15)


def test_a_whole_vq_vae_is_that_of_pythae(truth):
    """Its pixels have sigma^2 = 1/2 without a constant, and its codebook's terms are means over the D numbers, too."""
    D = 3
    codebook = CodebookConfig(7, D, positions="mean", update="gradient", kmeans=0, revive_below=0)
    pixels = GaussianPixelsConfig(math.sqrt(0.5))
    model = VQVAE(VQVAEConfig(8, width=6, levels=1, blocks=1, codebook=codebook, likelihood=pixels)).eval()
    config = pythae.VQVAEConfig(
        input_dim=(1, 8, 8), latent_dim=D, num_embeddings=7, commitment_loss_factor=codebook.beta * D,
        quantization_loss_factor=float(D), use_ema=False,
    )  # fmt: skip
    peer = pythae.VQVAE(config, encoder=Coder(model.encoder), decoder=Decoder(model, binary=False))
    peer.quantizer.embeddings.weight = model.quantiser.codebook
    images = torch.randn(B, 1, 8, 8)
    with torch.no_grad():
        codes = model.encode(images)
    assert len(codes.unique()) > 3
    mine, output = model(Batch(images)).total, peer({"data": images})
    assert torch.equal(codes, output.quantized_indices[:, 0])
    constant = 64 / 2 * math.log(math.pi)
    error = relative(mine.detach() - constant, output.loss.detach())
    error += relative(gradient(model, mine), gradient(model, output.loss))
    truth("vq-vae", "loss and gradient of the first stage, relative", "pythae 0.1.2 VQVAE", error, 1e-6)


@pytest.mark.parametrize("steps", [0, 3, 10])
def test_a_rising_capacity_is_that_of_pythae(truth, steps):
    """Whose C rises with epochs, after e of w as e / (w + 1); ours with steps."""
    model = ours(Capacity(gamma=7.0, most=5.0, steps=10))
    model.steps.fill_(steps)
    peer = theirs("DisentangledBetaVAE", model, beta=7.0, C=5.0, warmup_epoch=9)
    mine, other, _ = compared(model, peer, pictures(), epoch=steps)
    error = max(relative(a, b) for a, b in zip(mine, other))
    truth("capacity-VAE", "loss and gradient, relative", "pythae 0.1.2 DisentangledBetaVAE", error, 1e-15)


@pytest.mark.parametrize("draws", [1, 5])
@pytest.mark.parametrize("binary", [True, False])
def test_the_gradient_of_importance_weighting_is_that_of_pythae(truth, draws, binary):
    model = ours(ImportanceWeighted(draws), binary)
    peer = theirs("IWAE", model, binary, number_samples=draws)
    mine, other, _ = compared(model, peer, pictures(binary), draws, binary)
    truth("IWAE", f"gradient, K = {draws}, relative", "pythae 0.1.2 IWAE", relative(mine[1], other[1]), 1e-14)


def test_the_loss_that_pythae_returns_for_importance_weighting_is_not_the_bound(truth):
    """It is -sum_k v_k ln w_k, v_k = w_k / sum w, which has the bound's gradient, but not its value.

    As ln w_k = ln (1/K) sum w + ln(K v_k), it is too low by KL(v || uniform), however good the model.
    """
    draws, images = 5, pictures()
    model, noise = ours(ImportanceWeighted(draws)), torch.randn(B, draws, LATENT).double()
    peer = theirs("IWAE", model, number_samples=draws)
    (mine, _), (returned, _), _ = compared(model, peer, images, draws, noise=noise)
    with torch.no_grad():
        many, seen, made = model._repeated(Batch(images), Noise(noise), draws)
        log_weights = model.infer(many, seen, made).log_weight.view(B, draws)
    shares = log_weights.softmax(1)
    excess = (shares * (draws * shares).log()).sum(1).mean()
    truth("IWAE", "pythae's loss, nats", "ours less KL(v || uniform)", abs(returned - mine + excess), 1e-14)
    assert excess > 0.1


def linear():
    """p(x | z) = N(W z + b, I) and its true posterior, so that every weight is p(x).

    Our model, pythae's, pictures, and ln p of each.
    """
    model = ours(binary=False)
    w = torch.linalg.qr(torch.randn(SIZE**2, LATENT).double())[0] * torch.tensor([1.0, 0.7, 0.4])
    b = 0.3 * torch.randn(SIZE**2).double()
    variance = 1 / (1 + w.square().sum(0))
    encoder, decoder = nn.Linear(SIZE**2, 2 * LATENT), nn.Linear(LATENT, SIZE**2)
    model.encoder = nn.Sequential(nn.Flatten(), encoder)
    model.decoder = nn.Sequential(decoder, nn.Unflatten(1, (1, SIZE, SIZE)))
    model.double()
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([variance[:, None] * w.T, torch.zeros(LATENT, SIZE**2)]))
        encoder.bias.copy_(torch.cat([-variance * (w.T @ b), variance.log()]))
        decoder.weight.copy_(w)
        decoder.bias.copy_(b)
    images = pictures(binary=False)
    normal = torch.distributions.MultivariateNormal(b, w @ w.T + torch.eye(SIZE**2).double())
    return model, theirs("VAE", model, binary=False), images, normal.log_prob(images.flatten(1))


def test_what_pythae_calls_the_negative_log_likelihood_has_the_other_sign(truth):
    """`get_nll` returns the mean of +ln p(x), here known exactly; as does our bound, which says that it is ln p(x)."""
    model, peer, images, evidence = linear()
    with torch.no_grad():
        returned = peer.get_nll(images, n_samples=100)
    truth("pythae 0.1.2", "get_nll, nats", "+ln p(x), closed form", abs(returned - evidence.mean()), 1e-13)
    error = (model.elbo(images, samples=100) - evidence).abs().max()
    truth("VAE", "importance bound at the true posterior, nats", "ln p(x), closed form", error, 3e-14)


@pytest.mark.parametrize(("asked", "decoded"), [(1, 100), (70, 100), (150, 100), (250, 200)])
def test_pythae_decodes_another_number_of_samples_than_it_is_asked_for(asked, decoded):
    """A whole batch of 100 for one sample, and no remainder; ours as many as are asked for."""
    model, peer, images, _ = linear()
    rows = []
    model.decoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    with torch.no_grad():
        peer.get_nll(images[:1], n_samples=asked)
    assert sum(rows) == decoded
    rows.clear()
    model.elbo(images[:1], samples=asked)
    assert sum(rows) == asked


def test_pythae_reports_the_bound_of_a_hundred_samples_for_that_of_one(truth, monkeypatch):
    """Where q is four times too wide, which costs the ELBO KL(q || true posterior), the two lie nats apart.

    The ELBO is quadratic in the noise, so its mean is that over the 2 d points +-sqrt(d) e_i.
    """
    model, peer, images, evidence = linear()
    with torch.no_grad():
        model.encoder[1].bias[LATENT:] += 2 * math.log(4)
        returned = peer.get_nll(images, n_samples=1)
    expected = evidence - LATENT * 0.5 * (16 - 1 - math.log(16))
    points = math.sqrt(LATENT) * torch.cat([torch.eye(LATENT), -torch.eye(LATENT)]).double()
    found = []
    for point in points:
        monkeypatch.setattr(mezzotint.vae.model, "PictureRandom", lambda *_, point=point: Noise(point.repeat(B, 1, 1)))
        found.append(model.elbo(images))
    error = (torch.stack(found).mean(0) - expected).abs().max()
    truth("VAE", "mean of the ELBO, nats", "ln p(x) - KL(q || p(z | x))", error, 1e-12)
    assert returned > expected.mean() + 10
