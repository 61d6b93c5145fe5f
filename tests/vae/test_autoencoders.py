"""Autoencoders beside principal axes, the Wiener filter, and chains whose transition matrix is written out."""

import math

import pytest
import torch
from torch import nn
from vae.quadrature import binary_pictures
from vae.two_processes import in_two_processes

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Samples, abilities
from mezzotint.vae.autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    DenoisingAutoencoder,
    DenoisingAutoencoderConfig,
    GaussianCorruption,
    GenerativeDAE,
    GenerativeDAEConfig,
    MaskingCorruption,
    OneLayerConfig,
    SaltAndPepper,
)
from mezzotint.vae.likelihoods import Bernoulli, BernoulliConfig, GaussianPixelsConfig, Likelihood
from mezzotint.vae.networks import ConvConfig, MLPConfig

MLP = MLPConfig((16,))
STATES = binary_pictures(2).float()  # every 2 x 2 binary picture


def batch(n=6, size=4, channels=1):
    return Batch(torch.rand(n, channels, size, size) * 2 - 1, seeds=list(range(n)))


class Linear(nn.Module):
    """z = W x + b of a flattened picture, and back to a picture of so many pixels."""

    def __init__(self, weight, bias, size=None):
        super().__init__()
        self.weight, self.bias, self.size = nn.Parameter(weight), nn.Parameter(bias), size

    def forward(self, x):
        answer = x.flatten(1) @ self.weight.T + self.bias
        return answer if self.size is None else answer.view(-1, 1, self.size, self.size)


# The autoencoder


def test_at_the_principal_axes_a_linear_autoencoder_is_at_rest_and_loses_the_other_variances(truth):
    """Baldi and Hornik 1989: |x - x_hat|^2 is the sum of the variances that the code leaves out."""
    x = (torch.randn(200, 9, dtype=torch.float64) @ torch.randn(9, 9, dtype=torch.float64)).view(200, 1, 3, 3)
    flat = x.flatten(1)
    mean = flat.mean(0)
    variances, axes = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(x))
    kept = axes[:, -4:]
    model = Autoencoder(AutoencoderConfig(3, latent=4, network=MLP)).double()
    model.encoder, model.decoder = Linear(kept.T, -kept.T @ mean), Linear(kept, mean, 3)
    losses = model(Batch(x))
    losses.total.backward()
    lost = variances[:-4].sum()
    truth("autoencoder", "error at the principal axes, relative", "discarded variances",
          abs(losses.total / lost - 1).detach(), 5e-15)  # fmt: skip
    truth("autoencoder", "gradient at the principal axes", "0",
          max(p.grad.abs().max() for p in model.parameters()) / lost, 1e-14)  # fmt: skip
    assert abs(losses.total - losses.parts["reconstruction"]) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", [ConvConfig(4, 2, 8), MLP, OneLayerConfig(), OneLayerConfig("tanh")])
def test_the_loss_is_the_squared_error_of_the_reconstruction(network, channels):
    model, pictures = Autoencoder(AutoencoderConfig(8, channels, 5, network)), batch(6, 8, channels)
    codes = model.encode(pictures.images)
    assert codes.shape == (6, 5)
    decoded = model.decoder(codes)
    assert torch.allclose(model(pictures).total, (pictures.images - decoded).square().sum() / 6)
    assert torch.equal(model.reconstruct(pictures.images), decoded.clamp(-1, 1))


def test_cross_entropy_of_binary_pixels_is_their_likelihood(truth):
    model = Autoencoder(AutoencoderConfig(4, network=MLP, error="cross-entropy"))
    numbers, x = 3 * torch.randn(50, 1, 4, 4), torch.randn(50, 1, 4, 4).sign()
    likelihood = Bernoulli(1)
    error = (model.error(numbers, x) + likelihood.log_prob(numbers, x)).abs().max()
    truth("autoencoder", "cross-entropy of binary pixels, nats", "-ln of the Bernoulli distribution", error, 1e-5)
    codes = torch.randn(2, 32)
    assert torch.allclose(model.decode(codes), likelihood.mean(model.decoder(codes)))


def test_codes_are_remembered_by_their_mean_and_covariance(truth):
    """Of all batches so far, each old one counting 0.99 of what it did a step before."""
    model = Autoencoder(AutoencoderConfig(4, latent=3, network=MLP)).double().train()
    codes, weights = [], []
    for step in range(5):
        pictures = Batch(torch.rand(20 + step, 1, 4, 4, dtype=torch.float64))
        for part in (pictures[0:7], pictures[7:]):  # as a step whose batch goes through in parts
            model(part)
        model.after_step(step)
        codes.append(model.encode(pictures.images))
        weights = [0.99 * w for w in weights] + [torch.ones(len(pictures), dtype=torch.float64)]
    z, w = torch.cat(codes), torch.cat(weights)
    mean = (w[:, None] * z).sum(0) / w.sum()
    covariance = ((z - mean).T * w) @ (z - mean) / w.sum()
    error = max((model.code_mean - mean).abs().max(), (model.code_covariance - covariance).abs().max())
    truth("autoencoder", "mean and covariance of the codes, batch by batch", "all at once", error, 2e-15)


def remembered(rows):
    """Weight, mean and covariance of the codes after three steps in which these pictures of a batch were seen."""
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(4, latent=3, network=MLP)).double().train()
    for step in range(3):
        model(Batch(torch.rand(6, 1, 4, 4, dtype=torch.float64))[rows])
        model.after_step(step)
    return torch.cat([model.code_weight[None], model.code_mean, model.code_covariance.flatten()])


def test_two_processes_remember_the_codes_of_both(truth):
    found = in_two_processes(lambda rank: remembered(slice(rank, None, 2)).tolist())
    assert found[0] == found[1]
    error = (torch.tensor(found[0], dtype=torch.float64) - remembered(slice(None))).abs().max()
    truth("autoencoder", "mean and covariance of the codes of two processes", "of one", error, 2e-15)


def test_codes_that_are_no_numbers_are_not_remembered():
    model = Autoencoder(AutoencoderConfig(4, network=MLP)).train()
    model(batch())
    model.after_step(0)
    before = {name: value.clone() for name, value in model.named_buffers()}
    images = batch().images
    images[0, 0, 0, 0] = math.nan
    model(Batch(images))
    model.after_step(1)
    assert before.keys() == {"code_mean", "code_covariance", "code_weight"}
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_random_codes_have_the_mean_and_covariance_of_codes(truth):
    model = Autoencoder(AutoencoderConfig(4, latent=3, network=MLP)).eval()
    root = torch.randn(3, 3)
    model.code_covariance.copy_(root @ root.T)
    model.code_mean.copy_(torch.tensor([5.0, 0.0, -1.0]))
    noise = PictureRandom(range(100)).normal(3)
    codes = model.random_codes(PictureRandom(range(100))) - model.code_mean
    mixing = torch.linalg.lstsq(noise, codes).solution  # codes are this times the noise
    error = (mixing.T @ mixing - model.code_covariance).abs().max()
    truth("autoencoder", "covariance of random codes", "that of the codes of pictures", error, 2e-5)
    assert torch.equal(model.random_codes(PictureRandom(range(100)), fitted=False), noise)


def test_codes_looked_at_in_evaluation_are_not_remembered():
    model = Autoencoder(AutoencoderConfig(4, network=MLP)).eval()
    model(batch())
    model.after_step(0)
    assert model.code_weight == 0
    assert torch.equal(model.sample(3), model.sample(3, codes="standard"))


def test_pictures_are_drawn_of_fitted_codes_where_codes_were_seen():
    model = Autoencoder(AutoencoderConfig(4, network=MLP)).train()
    model(batch())
    model.after_step(0)
    fitted = model.decode(model.random_codes(PictureRandom(range(3)), fitted=True))
    assert torch.allclose(model.sample(3), fitted, atol=1e-6)
    assert torch.allclose(model.sample(3, codes="fitted"), fitted, atol=1e-6)
    assert not torch.allclose(model.sample(3, codes="standard"), fitted, atol=1e-3)


def test_what_an_autoencoder_refuses():
    model = Autoencoder(AutoencoderConfig(4, network=MLP))
    with pytest.raises(ConfigError, match="'fitted' or 'standard'"):
        model.sample(1, codes="random")
    with pytest.raises(ConfigError, match="without labels"):
        model.sample(1, labels=torch.zeros(1))
    with pytest.raises(ConfigError, match="does not take source"):
        model.sample(1, source=torch.zeros(1, 1, 4, 4))
    with pytest.raises(ConfigError, match="at least 1 dimension"):
        AutoencoderConfig(4, latent=0)


# Corruptions


def corrupted(corruption, x, n=4000):
    return corruption.corrupt(x.expand(n, *x.shape), PictureRandom(range(n)))


def test_masking_blackens_the_same_number_everywhere(truth):
    x = torch.rand(3, 4, 4)
    spoiled = corrupted(MaskingCorruption(0.25), x)
    black = spoiled == -1
    assert (black.flatten(1).sum(1) == 12).all()
    assert torch.equal(spoiled[~black], x.expand_as(spoiled)[~black])
    error = (black.float().mean(0) - 0.25).abs().max()
    truth("denoising autoencoder", "share of pictures in which a component is masked", "0.25", error, 0.02)


def test_salt_and_pepper_are_equally_likely(truth):
    x = torch.rand(1, 4, 4) * 0.5
    spoiled = corrupted(SaltAndPepper(0.4), x)
    shares = torch.stack([(spoiled == value).float().mean(0) for value in (-1, 1, x)])
    error = (shares - torch.tensor([0.2, 0.2, 0.6])[:, None, None, None]).abs().max()
    truth("denoising autoencoder", "shares of black, white and untouched components", "1/5, 1/5, 3/5", error, 0.04)


def test_gaussian_corruption_has_the_level_it_says(truth):
    spoiled = corrupted(GaussianCorruption(0.3), torch.full((1, 2, 2), 0.5))
    error = max(abs(spoiled.mean() - 0.5), abs(spoiled.std() - 0.3))
    truth("denoising autoencoder", "mean and deviation of Gaussian corruption", "x, level", error, 0.005)


@pytest.mark.parametrize("wrong", [
    lambda: MaskingCorruption(0.0), lambda: SaltAndPepper(1.5), lambda: GaussianCorruption(0.0),
])  # fmt: skip
def test_a_corruption_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="above 0"):
        wrong()


# The denoising autoencoder


def test_at_the_wiener_filter_the_error_is_the_least_there_is(truth):
    """Pixels N(m, s^2) seen with noise of deviation l: no denoiser errs by less than s^2 l^2 / (s^2 + l^2) a pixel."""
    m, s, level = 0.2, 0.5, 0.4
    keep = s**2 / (s**2 + level**2)
    model = DenoisingAutoencoder(
        DenoisingAutoencoderConfig(2, latent=4, network=MLP, corruption=GaussianCorruption(level))
    )
    model.encoder = Linear(keep * torch.eye(4), torch.full((4,), (1 - keep) * m))
    model.decoder = Linear(torch.eye(4), torch.zeros(4), 2)
    n = 8_000
    pictures = Batch(m + s * torch.randn(n, 1, 2, 2), seeds=range(n))
    least = 4 * keep * level**2
    at_best = model(pictures).total.item()
    truth("denoising autoencoder", "error of the Wiener filter, relative", "s^2 l^2 / (s^2 + l^2)",
          abs(at_best / least - 1), 0.03)  # fmt: skip
    for change in (0.9, 1.1):
        model.encoder.weight.data = change * keep * torch.eye(4)
        assert model(pictures).total > at_best


def test_a_denoising_autoencoder_sees_the_spoiled_picture_and_is_asked_for_the_clean_one():
    model, pictures = DenoisingAutoencoder(DenoisingAutoencoderConfig(4, network=MLP)), batch()
    spoiled = model.corrupt(pictures.images, list(pictures.seeds))
    expected = (model.decoder(model.encoder(spoiled)) - pictures.images).square().flatten(1).sum(1).mean()
    assert torch.allclose(model(pictures).total, expected)
    assert not isinstance(model, Samples)
    assert abilities(model) == ["encode and decode", "reconstruct"]


# The chain


class Joint(Likelihood):
    """Any distribution over the 16 binary pictures of 2 x 2: log-probabilities in the order of `STATES`."""

    pixels = "binary"

    @property
    def outputs(self):
        return 16

    def log_prob(self, numbers, images):
        return numbers.log_softmax(1).gather(1, index_of(images)[:, None])[:, 0]

    def draw(self, numbers, random):
        gumbel = -torch.log(-torch.log(random.uniform(16).clamp(1e-7, 1 - 1e-7)))
        return STATES[(numbers + gumbel).argmax(1)]

    def mean(self, numbers):
        return torch.einsum("bs,schw->bchw", numbers.softmax(1).float(), STATES)


def index_of(images):
    return ((images.flatten(1) > 0) * torch.tensor([8, 4, 2, 1])).sum(1)


def log_corruption(level):
    """ln C(x~ | x) of salt and pepper, row x and column x~: half of what is replaced turns a binary pixel."""
    turned = (STATES.flatten(1)[:, None] != STATES.flatten(1)).sum(2).double()
    return turned * math.log(level / 2) + (4 - turned) * math.log(1 - level / 2)


def log_posterior(data, level):
    """ln P(x | x~) by Bayes' rule, row x~ and column x."""
    return (log_corruption(level).T + data.log()).log_softmax(1)


class Table(nn.Module):
    """A decoder that looks its answer up."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, corrupted):
        return self.rows[index_of(corrupted)]


def chain_of(rows, likelihood, level=0.4, **choices):
    """A model whose network is a table with a row for every corrupted picture."""
    config = GenerativeDAEConfig(
        2, network=MLP, likelihood=BernoulliConfig(), corruption=SaltAndPepper(level), **choices
    )
    model = GenerativeDAE(config)
    model.encoder, model.decoder, model.likelihood = nn.Identity(), Table(rows), likelihood
    return model


def joint(data, level=0.4, **choices):
    """The chain with the exact P(X | X~) of this data."""
    return chain_of(log_posterior(data, level), Joint(1), level, **choices)


def transitions(model):
    """P(X_t | X_{t-1}) between all pictures, in float64, of the model's own P(X | X~)."""
    with torch.no_grad():
        numbers = model.numbers(STATES).repeat_interleave(16, 0)
        denoise = model.likelihood.log_prob(numbers, STATES.repeat(16, 1, 1, 1)).double().exp().view(16, 16)
    return log_corruption(model.config.corruption.level).exp() @ denoise


def stationary(matrix):
    """The distribution that the chain has after very many steps, wherever it began."""
    power = torch.linalg.matrix_power(matrix, 2**12)
    assert (power - power[0]).abs().max() < 1e-9  # it forgets
    return power[0]


def some_data():
    return torch.softmax(1.5 * torch.randn(16, dtype=torch.float64), 0)


def test_the_chain_of_the_exact_conditional_has_the_distribution_of_the_data(truth):
    """Theorem 1 of Bengio et al. 2013: the transition matrix leaves the data where it is, and nothing else."""
    for level in (0.1, 0.4, 1.0):
        data = some_data()
        matrix = transitions(joint(data, level))
        assert (matrix.sum(1) - 1).abs().max() < 1e-12
        error = (stationary(matrix) - data).abs().max()
        truth(
            "generative-dae",
            f"stationary distribution, corruption {level}",
            "data on 2 x 2 binary pictures",
            error,
            1e-12,
        )
        balance = data[:, None] * matrix
        assert (balance - balance.T).abs().max() < 1e-12  # and it is reversible


def test_with_independent_pixels_theorem_1_holds_for_the_networks_own_likelihood(truth):
    """P(X | X~) of a Bernoulli decoder is exact where the pixels of the data are independent."""
    chances, level = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64), 0.4
    data = torch.where(STATES.flatten(1) > 0, chances, 1 - chances).prod(1)
    logits = torch.logit(chances) + STATES.flatten(1).double() * math.log((1 - level / 2) / (level / 2))
    model = chain_of(logits.view(16, 1, 2, 2), Bernoulli(1), level)
    error = (stationary(transitions(model)) - data).abs().max()
    truth(
        "generative-dae", "stationary distribution of a Bernoulli decoder", "data of independent pixels", error, 1e-12
    )


def test_what_independent_pixels_cost_falls_with_the_corruption():
    """The exact chance of each pixel, as the best decoder has it, but no more: the chain draws nearly the data."""
    data, missed = some_data(), []
    for level in (0.4, 0.1, 0.025):
        white = log_posterior(data, level).exp() @ (STATES.flatten(1).double() > 0).double()
        chain = transitions(chain_of(torch.logit(white).view(16, 1, 2, 2), Bernoulli(1), level))
        missed.append(0.5 * (stationary(chain) - data).abs().sum().item())
    assert missed[0] > 2 * missed[1] > 4 * missed[2] > 0


def test_sampling_walks_this_chain(truth):
    """Frequencies of 3000 chains after 1 step from one picture and after 12 from noise."""
    data, n = some_data(), 3000
    model = joint(data)
    for steps, source, expected in (
        (1, STATES[5].expand(n, -1, -1, -1), transitions(model)[5]),
        (12, None, data),
    ):
        drawn = model.sample(n, source=source, steps=steps, pixels="drawn")
        found = torch.bincount(index_of(drawn), minlength=16) / n
        truth("generative-dae", f"frequencies of 3000 chains after {steps} steps", "transition matrix",
              (found - expected).abs().max(), 0.035)  # fmt: skip


def test_chains_begin_at_noise_of_the_kind_that_pixels_are():
    """Black or white with equal chances, or uniform on [-1, 1]: what is left of it after the first corruption."""
    level, n = 0.4, 500

    def first(likelihood):
        config = GenerativeDAEConfig(
            4, network=MLP, likelihood=likelihood, corruption=SaltAndPepper(level), latent=2
        )  # fmt: skip
        return GenerativeDAE(config).trace(n, steps=1).corrupted

    binary, grey = first(BernoulliConfig()), first(GaussianPixelsConfig())
    assert set(binary.unique().tolist()) == {-1.0, 1.0}
    assert abs(binary.mean()) < 5 / binary.numel() ** 0.5
    left = grey[grey.abs() < 1]
    assert len(left) / grey.numel() == pytest.approx(1 - level, abs=0.03)
    assert left.mean() == pytest.approx(0, abs=0.04)
    assert left.square().mean() == pytest.approx(1 / 3, abs=0.02)


def test_a_trace_shows_the_way_to_the_samples():
    model = joint(some_data(), steps=7)
    trace = model.trace(5, seeds=3, every=3)
    assert trace.images.shape == trace.corrupted.shape == (5, 3, 1, 2, 2)  # after 1, 4 and 7 steps
    assert torch.equal(trace.images[:, -1], model.sample(5, seeds=3))
    assert torch.equal(trace.images[:, 1], model.sample(5, seeds=3, steps=4))
    assert torch.equal(model.likelihood.mean(model.numbers(trace.corrupted[:, 0])), trace.images[:, 0])
    longer = model.trace(2, seeds=[5, 3], steps=2)
    assert torch.equal(longer.images[1], model.trace(1, seeds=3, steps=2).images[0])
    whole = model.trace(5, seeds=3)
    assert whole.images.shape[1] == 7
    assert torch.equal(model.reconstruct(whole.corrupted[:, 4]), whole.images[:, 4])


# Walkback


def test_without_walkback_the_loss_is_that_of_one_corruption():
    model = joint(some_data(), walkback=0.0)
    pictures = Batch(STATES, seeds=list(range(16)))
    spoiled = model.config.corruption.corrupt(STATES, pictures.random())
    expected = -model.likelihood.log_prob(model.numbers(spoiled), STATES).mean()
    losses = model(pictures)
    assert torch.allclose(losses.total, expected)
    assert losses.parts["walk"] == 1
    assert torch.equal(losses.parts["reconstruction"], losses.total.detach())


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
def test_walks_are_as_long_as_a_geometric_distribution_says(truth, p):
    n = 3000
    pictures = Batch(STATES[torch.arange(n) % 16], seeds=range(n))
    walk = joint(some_data(), walkback=p, longest=1000)(pictures).parts["walk"]
    truth("generative-dae", f"mean length of walks, p = {p}, relative", "1 / (1 - p)", abs(walk * (1 - p) - 1), 0.04)


def test_a_walk_follows_the_chain_and_its_loss_asks_for_the_picture_where_it_began():
    """Pictures of a model that believes in white alone: after one step the walk is at white, and misses black."""
    rows = torch.full((16, 1, 2, 2), 3.0)
    model = chain_of(rows, Bernoulli(1), walkback=1.0, longest=5)
    seen = []
    model.encoder.register_forward_hook(lambda module, given, answer: seen.append(given[0]))
    black = STATES[:1].expand(2000, -1, -1, -1)
    losses = model(Batch(black, seeds=range(2000)))
    assert losses.parts["walk"] == 5
    assert torch.allclose(losses.total, torch.tensor(5 * 4 * math.log1p(math.exp(3.0))))  # -ln P(black), 5 times
    turned = [(x > 0).float().mean().item() for x in seen]
    white = torch.sigmoid(torch.tensor(3.0)).item()
    assert turned[0] == pytest.approx(0.2, abs=0.02)
    assert turned[1:] == pytest.approx([white * 0.8 + (1 - white) * 0.2] * 4, abs=0.02)


def test_a_batch_walks_as_its_pictures_do_alone():
    model = GenerativeDAE(GenerativeDAEConfig(4, network=MLP, walkback=0.8))
    pictures = batch(8)
    alone = torch.stack([model(pictures[k : k + 1]).total for k in range(8)])
    assert torch.allclose(model(pictures).total, alone.mean(), rtol=1e-5)


def test_a_chain_that_was_learned_has_the_distribution_of_its_data(truth):
    """P(X | X~) of a table whose rows are learned with walkback, from pictures of the data."""
    data = some_data()
    model = chain_of(torch.zeros(16, 16, dtype=torch.float64), Joint(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 60)
        pictures = STATES[torch.multinomial(data, 100, replacement=True)]
        optimizer.zero_grad()
        model(Batch(pictures, seeds=range(100 * step, 100 * (step + 1)))).total.backward()
        optimizer.step()
    distance = 0.5 * (stationary(transitions(model)) - data).abs().sum()
    truth("generative-dae", "total variation of a learned chain", "its data", distance, 0.06)


@pytest.mark.parametrize("likelihood", [BernoulliConfig(), GaussianPixelsConfig()])
def test_chains_of_colour_pictures(likelihood):
    model = GenerativeDAE(GenerativeDAEConfig(8, 3, 8, ConvConfig(4, 2, 8), likelihood, steps=3))
    drawn = model.sample(2, pixels="drawn")
    assert drawn.shape == (2, 3, 8, 8)
    assert drawn.abs().max() <= 1


def test_what_a_generative_dae_refuses():
    model = joint(some_data())
    for message, wrong in {
        "'mean' or 'drawn'": lambda: model.sample(1, pixels="best"),
        "at least 1 step": lambda: model.sample(1, steps=0),
        "without labels": lambda: model.sample(1, labels=torch.zeros(1)),
        "2 chains begin at 2": lambda: model.sample(2, source=STATES[:3]),
        r"not \(2, 1, 4, 4\)": lambda: model.trace(2, source=torch.zeros(2, 1, 4, 4)),
        "from 0 to 1": lambda: GenerativeDAEConfig(4, walkback=1.5),
        "longest must be": lambda: GenerativeDAEConfig(4, longest=0),
        "at least 1 dimension": lambda: GenerativeDAEConfig(4, latent=0),
    }.items():
        with pytest.raises(ConfigError, match=message):
            wrong()
