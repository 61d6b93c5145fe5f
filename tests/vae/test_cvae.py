"""The conditional VAE: its bound beside integrals over z, what it sees and keeps, and who asks it for pictures."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from vae.quadrature import Given, binary_pictures, hermite

import mezzotint as mz
from mezzotint.cli import _begin
from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import abilities
from mezzotint.data import open_pictures, spread_over
from mezzotint.evaluation.evaluate import Sampling, evaluate
from mezzotint.evaluation.features import ModuleFeatures
from mezzotint.evaluation.likelihood import mean_bits_per_dim
from mezzotint.training.run import RunSettings, train
from mezzotint.training.schedule import Budget
from mezzotint.vae.cvae import CVAE, CVAEConfig, Grey, Quadrants, Silhouette
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig, LogisticsConfig
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import Capacity, ImportanceWeighted

TINY = MLPConfig((6,), "softplus")
CONDITIONS = {
    "one quadrant": (Quadrants(1), LogisticsConfig(2), 1),
    "half": (Quadrants(2), GaussianPixelsConfig(), 3),
    "three quadrants": (Quadrants(3), BernoulliConfig(), 1),
    "grey": (Grey(), LogisticsConfig(2), 3),
    "silhouette": (Silhouette(block=3), BernoulliConfig(), 3),
}


def tiny(observed=1, std=0.3):
    """Of black and white pictures of 2 x 2 pixels, in float64, with large random weights."""
    torch.manual_seed(1)
    model = CVAE(CVAEConfig(2, 1, 1, Quadrants(observed), TINY, BernoulliConfig()))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.double()


def made(name="one quadrant", size=8, network=None, **choices):
    condition, likelihood, channels = CONDITIONS[name]
    torch.manual_seed(0)
    network = network or ConvConfig(4, 2, 10)
    return CVAE(CVAEConfig(size, channels, 3, condition, network, likelihood, **choices))


def pictures(n=6, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def over_noise(model, x):
    """ELBO and ln E[w] of each picture, over the noise of z by Gauss-Hermite quadrature."""
    values, weights = hermite()
    n = len(values)
    seen = tuple(part.repeat_interleave(n, 0) for part in model.recognise(Batch(x)))
    inferred = model.infer(Batch(x.repeat_interleave(n, 0)), seen, Given(values.repeat(len(x))[:, None]))
    elbo = inferred.elbo.unflatten(0, (len(x), n)) @ weights
    return elbo, torch.logsumexp(inferred.log_weight.unflatten(0, (len(x), n)) + weights.log(), 1)


# The bound


@torch.no_grad()
@pytest.mark.parametrize("observed", [1, 2, 3])
def test_the_bound_lies_below_the_conditional_likelihood_by_the_error_of_the_posterior(truth, observed):
    """ln p(y | x) = bound + KL(q(z | x, y) || p(z | x, y)), by sums over a fine grid of z, for all 16 pictures."""
    model, x = tiny(observed), binary_pictures()
    elbo, log_mean = over_noise(model, x)
    z = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    seen = model.recognise(Batch(x))
    prior, posterior = (
        torch.distributions.Normal(mean, log_std.exp()).log_prob(z) for mean, log_std in (seen[2:4], seen[:2])
    )
    hidden = model.config.condition.hidden(2).flatten()
    log_joint = []
    for k, picture in enumerate(x):
        shown = model.config.condition.seen(picture[None]).expand(len(z), -1, -1, -1)
        logits = model.generation(z[:, None], seen[4][k].expand(len(z), -1), shown).flatten(1)
        chances = torch.distributions.Bernoulli(logits=logits).log_prob((picture.flatten() + 1) / 2)
        log_joint.append(prior[k] + chances[:, hidden].sum(1))
    log_joint, step = torch.stack(log_joint), z[1] - z[0]
    log_prob = torch.logsumexp(log_joint, 1) + step.log()
    gap = (posterior.exp() * (posterior - log_joint + log_prob[:, None])).sum(1) * step
    assert gap.min() > 1e-3
    quadrants = f"{observed} quadrant(s) seen"
    error = (log_prob - elbo - gap).abs().max()
    truth("cvae", f"ln p(y | x) - bound, {quadrants}", "KL to the posterior of z", error, 1e-12)
    error = (log_mean - log_prob).abs().max()
    truth("cvae", f"ln of the mean weight, {quadrants}", "ln p(y | x) by quadrature", error, 2e-10)


@torch.no_grad()
@pytest.mark.parametrize("observed", [1, 2, 3])
def test_completions_sum_to_one_whatever_is_seen(truth, observed):
    """The likelihood is of the unseen pixels alone: for each of the 2^S pictures of S seen pixels, and over all 2^U
    completions of it."""
    model, x = tiny(observed), binary_pictures()
    chances = over_noise(model, x)[1].exp()
    hidden = model.config.condition.hidden(2).flatten()
    assert int(hidden.sum()) == 4 - observed == model.dims
    sums = {}
    for picture, chance in zip(x, chances, strict=True):
        key = tuple(picture.flatten()[~hidden].tolist())
        sums[key] = sums.get(key, 0.0) + chance
    assert len(sums) == 2**observed
    error = max(abs(total - 1) for total in sums.values())
    truth("cvae", f"sum of p(y | x) over y, {observed} quadrant(s) seen", "1", error, 1e-10)


@torch.no_grad()
def test_many_samples_come_to_the_conditional_likelihood(truth):
    model, x = tiny(std=0.1), binary_pictures()[5:7]
    exact = over_noise(model, x)[1]
    estimate = model.elbo(x.repeat_interleave(4, 0), samples=500).view(2, 4).mean(1)
    truth("cvae", "conditional log-likelihood, 4 x 500 samples", "by quadrature", (estimate - exact).abs().max(), 0.02)
    single = model.elbo(x.repeat_interleave(2000, 0)).view(2, 2000)
    bound, error = single.mean(1), single.std(1) / 2000**0.5
    assert ((bound - over_noise(model, x)[0]).abs() < 4 * error).all()


def test_the_hybrid_loss_mixes_the_bound_with_predictions_from_the_prior(truth):
    given = Batch(pictures(), seeds=list(range(6)))
    plain = made()
    mixed = CVAE(CVAEConfig(**{**vars(plain.config), "hybrid": 0.3}))
    mixed.load_state_dict(plain.state_dict())
    random = given.random()
    noise = [random.normal(1, 3).flatten(0, 1) for _ in range(2)]
    seen = plain.recognise(given)
    bound = plain.infer(given, seen, Given(noise[0])).elbo.mean()
    z = Gaussian(*seen[2:4]).at(noise[1])
    numbers = plain.generation(z, seen[4], plain.config.condition.seen(given.images))
    hidden = plain.config.condition.hidden(8)
    predicted = plain.likelihood.log_prob(
        numbers[..., hidden][:, :, None], given.images[..., hidden][:, :, None]
    ).mean()
    error = abs(mixed(given).total + 0.3 * bound + 0.7 * predicted) / abs(predicted)
    truth("cvae", "hybrid loss", "alpha (-bound) + (1 - alpha) E[-ln p(y | x, z ~ prior)]", error.detach(), 2e-7)
    assert abs(plain(given).total + bound) < 1e-3
    assert mixed(given).parts.keys() - plain(given).parts.keys() == {"prediction"}


# What it sees


@pytest.mark.parametrize("size", [8, 7])
def test_quadrants_are_those_of_the_paper(size):
    half = size // 2
    lower_left = torch.zeros(size, size, dtype=torch.bool)
    lower_left[half:, :half] = True
    left = torch.zeros(size, size, dtype=torch.bool)
    left[:, :half] = True
    lower_right = torch.zeros(size, size, dtype=torch.bool)
    lower_right[half:, half:] = True
    for observed, seen in ((1, lower_left), (2, left), (3, ~lower_right)):
        assert torch.equal(Quadrants(observed).hidden(size), ~seen)
        x = torch.rand(1, 1, size, size) + 1
        assert torch.equal(Quadrants(observed).seen(x) != 0, seen.expand(1, 1, -1, -1))


def test_grey_is_the_luma_that_pictures_are_decoded_to(truth):
    levels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    decoded = torch.from_numpy(np.array(Image.fromarray(levels[0].permute(1, 2, 0).numpy()).convert("L")))
    luma = (Grey().seen(levels / 127.5 - 1)[0, 0] + 1) * 127.5
    truth("cvae", "grey of a colour picture, levels", "Pillow's, which is rounded", (luma - decoded).abs().max(), 0.52)


def test_a_silhouette_is_where_the_background_is_not():
    black = torch.full((1, 3, 8, 8), -1.0)
    black[:, 1, 2:5, 3:7] = 0.4  # one channel is enough
    expected = torch.full((1, 1, 8, 8), -1.0)
    expected[..., 2:5, 3:7] = 1.0
    assert torch.equal(Silhouette().target(black), expected)
    assert torch.equal(Silhouette().target(-black), expected)  # on white
    assert torch.equal(Silhouette().target(black + 0.05), expected)
    shown = Silhouette(block=2).seen(torch.ones(1, 1, 8, 8))[0, 0]
    assert shown.mean() == 0.5
    assert torch.equal(shown[:4, :4], torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).float())
    assert torch.equal(Silhouette(block=0).seen(black), black)


@pytest.mark.parametrize("choices", [{"tolerance": 0.02}, {}, {"tolerance": 0.5}])
def test_what_differs_from_the_background_by_less_than_the_tolerance_is_background(choices):
    """In every channel, to either side; one tenth of the way from black to white is 0.2, half of it 0.1."""
    tolerance = choices.get("tolerance", 0.1)
    picture = torch.full((1, 3, 6, 6), 0.2)
    for column, by in enumerate((0.9, -0.9, 1.1, -1.1), 1):
        picture[0, column % 3, 2, column] += by * tolerance
    expected = torch.full((1, 1, 6, 6), -1.0)
    expected[..., 2, 3:5] = 1.0
    assert torch.equal(Silhouette(**choices).target(picture), expected)


@pytest.mark.parametrize("name", CONDITIONS)
def test_nothing_else_of_the_source_is_looked_at(name):
    """Two sources that agree in what is seen give the same picture where nothing is seen."""
    model = made(name)
    condition, channels = model.config.condition, model.config.channels
    one, other = pictures(2, channels), pictures(2, channels).flip(0)
    if isinstance(condition, Quadrants):
        other = torch.where(condition.hidden(8), other, one)
    elif isinstance(condition, Grey):
        other = condition.seen(one).expand_as(one)
    else:
        other = torch.where(condition.seen(torch.ones(8, 8)) == 0, other, one)
    assert not torch.equal(one, other)
    assert torch.allclose(condition.seen(one), condition.seen(other), atol=1e-6)
    drawn = [model.sample(2, source=source, seeds=4) for source in (one, other)]
    hidden = condition.hidden(8)
    assert torch.allclose(drawn[0][..., hidden], drawn[1][..., hidden], atol=1e-5)
    assert not torch.allclose(drawn[0], model.sample(2, source=one, seeds=6), atol=1e-4)


# Pictures


@pytest.mark.parametrize(("name", "network"), product(CONDITIONS, [ConvConfig(4, 2, 10), MLPConfig((12,), "tanh")]))
def test_every_condition_learns_and_draws_with_every_network(name, network):
    model = made(name, network=network)
    condition, channels = model.config.condition, model.config.channels
    given = Batch(
        pictures(6, channels).sign() if name == "three quadrants" else pictures(6, channels), seeds=list(range(6))
    )
    model(given).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    source = pictures(3, channels)
    for drawn in (
        model.sample(3, source=source), model.sample(3, source=source, pixels="drawn"), model.reconstruct(source)
    ):  # fmt: skip
        assert drawn.shape == source.shape
        assert drawn.abs().max() <= 1
        if isinstance(condition, Quadrants):
            assert torch.equal(drawn[..., ~condition.hidden(8)], source[..., ~condition.hidden(8)])
    assert model.likeness(source).shape == source.shape
    assert model.latents(source).kl.shape == (3, 3)
    assert model.elbo(source).shape == (3,)


def test_of_grey_pictures_a_model_of_black_and_white_sees_what_it_learned_from(truth):
    """Each pixel white with its grey level as chance, by its own seed; completed pictures keep the grey."""
    model, shown = made("three quadrants"), []
    model.prior.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    seen = ~model.config.condition.hidden(8)
    one = pictures(1)
    drawn = model.sample(2000, source=one.expand(2000, -1, -1, -1))
    assert set(shown[0].unique().tolist()) == {-1, 0, 1}  # 0 where it is hidden
    assert torch.equal(drawn[:, 0, seen], one[0, 0, seen].expand(2000, -1))
    errors = (shown[0].mean(0) - one[0])[0, seen] / ((1 - one[0, 0, seen].square()) / 2000).sqrt()
    truth("cvae", "mean of 2,000 binary sources, in standard errors, RMS", "grey levels",
          errors.square().mean().sqrt(), 1.5)  # fmt: skip
    model.sample(1, source=one, seeds=[7])
    assert torch.equal(shown[1][0], shown[0][7])
    model.sample(3, source=pictures(3).sign())
    assert torch.equal(shown[2], pictures(3).sign() * seen)


def test_at_temperature_0_it_is_the_inference_of_box_1():
    """z is the prior's mean, whatever the seed."""
    model, source = made(), pictures(3)
    x = model.config.condition.seen(source)
    mean = model.likelihood.mean(model.generation(Gaussian.of(model.prior(x)).mean, model.generation.look(x), x))
    expected = torch.where(model.config.condition.hidden(8), mean, source)
    for seed in (0, 7):
        assert torch.allclose(model.sample(3, source=source, seeds=seed, temperature=0.0), expected, atol=1e-6)


def test_a_mask_may_know_more_than_the_model_sees_and_not_less():
    model, images = made("half"), pictures(3, 3)
    mask = (torch.rand(3, 1, 8, 8) < 0.5).float()
    mask[..., :4] = 1.0
    inpainted = model.inpaint(images, mask, seeds=2)
    assert torch.equal(inpainted[mask.expand(-1, 3, -1, -1) == 1], images[mask.expand(-1, 3, -1, -1) == 1])
    unknown = mask.expand(-1, 3, -1, -1) == 0
    assert torch.equal(inpainted[unknown], model.sample(3, source=images, seeds=2)[unknown])
    mask[1, 0, 0, 0] = 0.0
    with pytest.raises(ConfigError, match="2 quadrant"):
        model.inpaint(images, mask)
    with pytest.raises(ConfigError, match="the mask has the shape"):
        model.inpaint(images, mask[..., :-1])
    with pytest.raises(ConfigError, match=r"condition\.kind"):
        made("grey").inpaint(images, mask)
    assert "inpaint" in abilities(model)


def test_a_code_that_adds_nothing_to_what_is_seen_has_collapsed():
    model, images = made(), pictures()
    model.recognition = copy.deepcopy(model.prior)
    shown = model.config.condition.seen(images)  # nothing hidden is left to tell q from the prior
    means, kl = model.latents(shown)[:2]
    assert means.abs().max() < 1e-6
    assert kl.abs().max() < 1e-6
    assert made().latents(images).kl.sum() > 1e-3


# Who asks for pictures


def folder(place, channels=1):
    """Forty pictures of 8 x 8 in a folder."""
    place.mkdir()
    for k, picture in enumerate(((pictures(40, channels) + 1) * 127.5).to(torch.uint8)):
        Image.fromarray(picture[0].numpy() if channels == 1 else picture.permute(1, 2, 0).numpy()).save(
            place / f"{k}.png"
        )
    return str(place)


@pytest.mark.parametrize("kind", ["quadrants", "silhouette"])
def test_it_is_trained_looked_at_drawn_from_and_judged(kind, tmp_path):
    place = folder(tmp_path / "pictures")
    changes = {"batch_size": "8", "warmup": "8", "network.channels": "4", "condition.kind": kind}
    changes |= {"likelihood.kind": "bernoulli"} if kind == "silhouette" else {}
    train(RunSettings("cvae", place, budget=Budget(pictures=16), changes=changes), tmp_path / "run")
    assert list((tmp_path / "run" / "samples").iterdir())
    model, test = mz.load(tmp_path / "run"), open_pictures(place, split="test")
    begin = _begin(model, 3, place)
    assert torch.equal(begin, test.batch(spread_over(len(test), 3)).images)
    drawn = Sampling(model, test, 4, 5, {}).draw([2, 0])
    assert torch.equal(drawn, model.sample(2, source=test.batch([2, 0]).images, seeds=[7, 5]))
    judged = evaluate(model, test, train=test, n=4, features=ModuleFeatures(lambda x: x, "pixels"))
    numbers = {n.name: n for n in judged.numbers}
    assert numbers["fd_pixels"].protocol["from"].startswith("what it sees of test pictures")
    assert numbers["bits_per_dim"].protocol["of"].startswith(f"{48 if kind == 'quadrants' else 64} numbers")
    images = test.batch(range(4)).images
    assert torch.equal(model.likeness(images), images) == (kind == "quadrants")


def test_bits_are_counted_for_the_pixels_that_are_not_seen(truth):
    model, images = made(), ((pictures() + 1) * 127.5).round() / 127.5 - 1
    found = mean_bits_per_dim(model, [images])
    assert found.dims == 48
    expected = -model.elbo(images, seeds=0).double().mean() / (48 * torch.log(torch.tensor(2.0)))
    truth("cvae", "bits per unseen pixel", "-bound / (48 ln 2)", abs(found.value - expected), 1e-7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Quadrants(4), "1, 2 or 3"),
        (lambda: mz.create("cvae", image_size=8, condition=Grey()), "channels 3"),
        (lambda: CVAEConfig(8, 1, condition=Silhouette()), "bernoulli"),
        (lambda: Silhouette(block=-1), "negative"),
        (lambda: CVAEConfig(8, hybrid=0.0), "hybrid"),
        (lambda: CVAEConfig(8, latent=0), "at least 1 dimension"),
        (lambda: CVAEConfig(8, objective=ImportanceWeighted(5, "doubly")), "doubly"),
        (lambda: CVAE(CVAEConfig(1, network=TINY)), "no quadrants"),
        (lambda: made().sample(2), "give it pictures as source"),
        (lambda: made().sample(2, source=pictures(3)), "of the shape"),
        (lambda: made().sample(2, source=pictures(2), temperature=-1.0), "temperature"),
        (lambda: _begin(mz.create("cvae", image_size=8), 2, None), "name it with --source"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


@pytest.mark.parametrize("objective", [Capacity(10.0, 5.0, 10), ImportanceWeighted(4)])
def test_objectives_are_independent_of_it(objective):
    given = Batch(pictures(), seeds=list(range(6)))
    model = made(objective=objective, hybrid=0.5)
    losses = model(given)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(p.grad.any() for p in model.parameters())
