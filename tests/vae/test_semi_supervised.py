"""M1, M2 and both: bounds beside sums over classes and integrals over codes, the objective, pictures of classes."""

import copy
import math
from contextlib import closing

import pytest
import torch
from PIL import Image
from vae.quadrature import Given, binary_pictures, hermite

import mezzotint as mz
from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.core.model import abilities
from mezzotint.core.system import Identity
from mezzotint.data import Loader, open_pictures
from mezzotint.data.pictures import InMemory, PartlyLabelled
from mezzotint.evaluation.evaluate import evaluate
from mezzotint.evaluation.features import ModuleFeatures
from mezzotint.systems import configure, find
from mezzotint.training.run import RunSettings, train
from mezzotint.training.schedule import Budget
from mezzotint.vae.likelihoods import BernoulliConfig, GaussianPixelsConfig
from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.objectives import ELBO, Capacity, ImportanceWeighted
from mezzotint.vae.posteriors import AuxiliaryPosteriorConfig
from mezzotint.vae.semi_supervised import (
    CodeClassifier,
    CodeClassifierConfig,
    SemiSupervisedConfig,
    SemiSupervisedVAE,
    StackedConfig,
    StackedVAE,
)
from mezzotint.vae.vae import VAE, VAEConfig

CLASSES = 3
TINY = MLPConfig((6,), "softplus")


def shaken(model, std=0.3):
    """Large random weights, so that classes and codes matter; in float64."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.double()


def m2(size=2, latent=1, **choices):
    """M2 on black and white pictures."""
    settings = {"network": TINY, "likelihood": BernoulliConfig(), "labelled": 6, **choices}
    return shaken(SemiSupervisedVAE(SemiSupervisedConfig(size, 1, CLASSES, latent=latent, **settings)))


def m1(size=2, latent=1, likelihood=None):
    return VAE(VAEConfig(size, 1, latent, TINY, likelihood or BernoulliConfig()))


def stacked(std=0.3, **choices):
    return shaken(StackedVAE(StackedConfig(CLASSES, labelled=6, latent=1, network=TINY, **choices), codes=m1()), std)


def batch(n=8, size=2, known=True):
    labels = torch.arange(n) % CLASSES
    images = torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(2)).sign().double()
    return Batch(images, labels if known else torch.full_like(labels, -1), seeds=list(range(n)))


def of_every_class(x):
    """Each picture with each label, and the labels."""
    return x.repeat_interleave(CLASSES, 0), torch.arange(CLASSES).repeat(len(x))


def over_noise(model, x, labels):
    """ELBO and ln E[w] of each row, over the noise of z by Gauss-Hermite quadrature."""
    values, weights = hermite()
    n = len(values)
    many = Batch(x.repeat_interleave(n, 0), None if labels is None else labels.repeat_interleave(n, 0))
    seen = tuple(part.repeat_interleave(n, 0) for part in model.recognise(Batch(x)))
    inferred = model.infer(many, seen, Given(values.repeat(len(x))[:, None]))
    elbo = inferred.elbo.unflatten(0, (len(x), n)) @ weights
    return elbo, torch.logsumexp(inferred.log_weight.unflatten(0, (len(x), n)) + weights.log(), 1)


def on_a_grid(model, x, labels):
    """ln p(x, y), and KL(q(z | x, y) || p(z | x, y)), by sums over a fine grid of z."""
    z = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    step = z[1] - z[0]
    q = model.core.posterior(model.core.first(x), labels)
    log_joint, log_q = [], []
    for k in range(len(x)):
        numbers = model.core.decode(labels[k].expand(len(z)), z[:, None]).flatten(1)
        chances = torch.distributions.Bernoulli(logits=numbers).log_prob((x[k].flatten() + 1) / 2).sum(1)
        log_joint.append(torch.distributions.Normal(0.0, 1.0).log_prob(z) + chances - math.log(CLASSES))
        log_q.append(torch.distributions.Normal(q.mean[k, 0], q.log_std[k, 0].exp()).log_prob(z))
    log_joint, log_q = torch.stack(log_joint), torch.stack(log_q)
    log_prob = torch.logsumexp(log_joint, 1) + step.log()
    gap = (log_q.exp() * (log_q - log_joint + log_prob[:, None])).sum(1) * step
    return log_prob, gap


@torch.no_grad()
def test_the_labelled_bound_lies_below_the_joint_by_the_error_of_the_posterior(truth):
    """ln p(x, y) = -L(x, y) + KL(q(z | x, y) || p(z | x, y)), for all 16 pictures and 3 classes."""
    model = m2()
    x, labels = of_every_class(binary_pictures())
    elbo, log_mean = over_noise(model, x, labels)
    log_prob, gap = on_a_grid(model, x, labels)
    assert gap.min() > 1e-3
    error = (log_prob - elbo - gap).abs().max()
    truth("semi-supervised-m2", "ln p(x, y) - bound", "KL to the posterior of z", error, 6e-8)
    error = (log_mean - log_prob).abs().max()
    truth("semi-supervised-m2", "ln of the mean weight", "ln p(x, y) by quadrature", error, 5e-10)


@torch.no_grad()
def test_the_unlabelled_bound_is_the_enumerated_one(truth):
    """-U(x) = sum_y q(y | x) (-L(x, y)) + H(q(y | x)), and below ln p(x) by the errors of both posteriors."""
    model = m2()
    x, labels = of_every_class(binary_pictures())
    labelled = over_noise(model, x, labels)[0].unflatten(0, (-1, CLASSES))
    q = torch.distributions.Categorical(logits=model.classify(binary_pictures()))
    elbo, log_mean = over_noise(model, binary_pictures(), None)
    error = (elbo - ((q.probs * labelled).sum(1) + q.entropy())).abs().max()
    truth("semi-supervised-m2", "unlabelled bound", "sum over classes and entropy (paper, eq. 7)", error, 8e-15)
    log_joint, gap = (part.unflatten(0, (-1, CLASSES)) for part in on_a_grid(model, x, labels))
    log_prob = torch.logsumexp(log_joint, 1)
    classes = torch.distributions.Categorical(logits=log_joint)
    gap = (q.probs * gap).sum(1) + torch.distributions.kl_divergence(q, classes)
    assert gap.min() > 1e-3
    error = (log_prob - elbo - gap).abs().max()
    truth("semi-supervised-m2", "ln p(x) - bound", "KL to the posterior of y and z", error, 4e-8)
    error = (log_mean - log_prob).abs().max()
    truth("semi-supervised-m2", "ln of the mean weight", "ln sum_y p(x, y)", error, 2e-10)


@torch.no_grad()
def test_the_nats_of_the_code_are_those_of_class_and_code(truth):
    """KL(q(y | x) || 1/3) + sum_y q(y | x) KL(q(z | x, y) || N(0, 1))."""
    model, (x, labels) = m2(), of_every_class(binary_pictures())
    q = model.core.posterior(model.core.first(x), labels)
    of_z = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.log_std.exp()), torch.distributions.Normal(0.0, 1.0)
    )
    of_y = torch.distributions.Categorical(logits=model.classify(binary_pictures()))
    exact = math.log(CLASSES) - of_y.entropy() + (of_y.probs * of_z.view(-1, CLASSES)).sum(1)
    found = model.latents(binary_pictures())
    assert (found.total - found.kl.sum(1)).abs().min() > 1e-3
    error = (found.total - exact).abs().max()
    truth("semi-supervised-m2", "nats of class and code", "sum over classes", error, 1e-15)


@torch.no_grad()
def test_pictures_and_classes_sum_to_one(truth):
    model = m2()
    x, labels = of_every_class(binary_pictures())
    joint = over_noise(model, x, labels)[1].exp()
    alone = over_noise(model, binary_pictures(), None)[1].exp()
    truth("semi-supervised-m2", "sum of p(x, y)", "1", abs(joint.sum() - 1), 2e-11)
    error = (joint.unflatten(0, (-1, CLASSES)).sum(1) - alone).abs().max()
    truth("semi-supervised-m2", "sum over y of p(x, y)", "p(x)", error, 3e-16)


@torch.no_grad()
def test_chances_of_classes_in_half_precision_say_what_the_same_numbers_say():
    """They weigh the nats of whole pictures, so that a sum of 0.99 in place of 1 is many nats."""
    core = m2().float().core
    x, noise = binary_pictures().float(), torch.randn(16, 1)
    half = torch.randn(16, CLASSES).bfloat16()
    first = core.first(x)
    rounded, exact = (core.infer(x, logits, first, None, noise) for logits in (half, half.float()))
    assert all(map(torch.equal, rounded, exact))


@torch.no_grad()
def test_many_samples_come_to_the_likelihood(truth):
    model, x = m2(), binary_pictures()[3:5]
    exact = over_noise(model, x, None)[1]
    error = (model.elbo(x.repeat_interleave(4, 0), samples=500).view(2, 4).mean(1) - exact).abs().max()
    truth("semi-supervised-m2", "importance-weighted bound, 4 x 500 samples", "ln p(x)", error, 0.02)


@torch.no_grad()
@pytest.mark.parametrize("known", [True, False])
def test_the_stack_bounds_the_likelihood_of_pictures(truth, known):
    """E over both codes by quadrature: the mean weight is p(x) or p(x, y), and the bound lies below its logarithm."""
    model = stacked(std=0.2)
    x, labels = of_every_class(binary_pictures())
    values, weights = hermite(24)
    n = len(values)
    first, second = values.repeat_interleave(n)[:, None], values.repeat(n)[:, None]
    log_weights = (weights[:, None] * weights).flatten().log()
    elbos, means = [], []
    for picture, label in zip(x, labels, strict=True):
        many = Batch(picture.expand(n * n, -1, -1, -1), label.expand(n * n) if known else None)
        seen = tuple(part.expand(n * n, -1) for part in model.recognise(Batch(picture[None])))
        inferred = model.infer(many, seen, Given(first, second))
        elbos.append(log_weights.exp() @ inferred.elbo)
        means.append(torch.logsumexp(inferred.log_weight + log_weights, 0))
    # p(x, y) from the prior, by a sum over z2 and z1
    p = [model.core.decode(torch.full((n,), y), values[:, None]).flatten(1) for y in range(CLASSES)]
    z1 = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    normals = [torch.distributions.Normal(part[:, :1], (part[:, 1:] / 2).exp()).log_prob(z1).exp() for part in p]
    density = torch.stack([weights @ normal for normal in normals]) / CLASSES  # p(z1, y), (C, Z)
    numbers = model.codes.decoder(z1[:, None]).flatten(1)
    chances = torch.distributions.Bernoulli(logits=numbers[:, None]).log_prob((binary_pictures().flatten(1) + 1) / 2)
    joint = (density @ chances.sum(2).exp() * 0.01).T  # (16, C)
    exact = (joint if known else joint.sum(1, keepdim=True).expand(-1, CLASSES)).flatten().log()
    means, elbos = torch.stack(means), torch.stack(elbos)
    assert (elbos < exact - 1e-3).all()
    what = "p(x, y)" if known else "p(x)"
    error = (means - exact).abs().max()
    truth("semi-supervised-vae", f"ln of the mean weight, {what}", "sums over both codes from the prior", error, 2e-8)


def as_set(images, labels):
    levels = ((images + 1) * 127.5).round().to(torch.uint8)
    return InMemory("tiny", "train", levels, labels, classes=tuple("abc"))


@torch.no_grad()
@pytest.mark.parametrize("every", [2, 3])
def test_the_mean_loss_over_all_batches_is_the_objective_of_the_paper(truth, every):
    """J^alpha / N of eq. 9 over 6 labelled pictures and 12 others, however often the labelled ones are shown."""
    images, labels = batch(18).images.float(), torch.arange(18) % 3
    model = m2(every=every, alpha=0.7).float()
    model.core.rest[-1].weight[1:] = 0.0
    model.core.rest[-1].bias[1:] = -40.0  # q(z | x, y) is a point: the loss has no noise left
    pictures = PartlyLabelled(as_set(images, labels), model.few_labels, seed=0)
    with closing(Loader(pictures, 12, seed=0)) as loader:
        losses = torch.stack([model(loader.next()).total.double() for _ in range(6 if every == 2 else 3)])
    known = pictures.known
    bounds = -model.infer(
        Batch(images, pictures.labels), model.recognise(Batch(images)), Given(torch.zeros(18, 1))
    ).elbo
    wrong = torch.nn.functional.cross_entropy(model.classify(images[known]), labels[known])
    error = abs(losses.mean() - (bounds.double().mean() + 0.7 * wrong))
    truth("semi-supervised-m2", f"mean loss, one in {every} labelled", "J^alpha / N (paper, eq. 9)", error, 3e-6)


@pytest.mark.parametrize("objective", [ELBO(2.0, 4, 0.3), Capacity(3.0, 5.0, 4)], ids=["elbo", "capacity"])
@pytest.mark.parametrize("made", [m2, stacked])
def test_the_divergence_is_penalised_as_the_objective_says(truth, objective, made):
    """alpha E[-ln q(y | x)] - ln p(x | y, z) + penalty(KL of class and code), after two steps."""
    model, told = made(objective=objective), batch()
    model.after_step(0), model.after_step(1)
    found = model(told)
    inferred, _ = model._learned(told)
    if isinstance(objective, ELBO):
        penalty = 2.0 * 3 / 4 * inferred.kl.clamp_min(0.3).sum(1).mean()
    else:
        penalty = 3.0 * (inferred.kl.sum(1) - 2.5).abs().mean()
    expected = model.alpha * found.parts["classification"] - inferred.log_likelihood.mean() + penalty
    truth("semi-supervised-vae", f"loss with the {objective.kind} objective, relative", "its terms",
          (found.total / expected - 1).abs().detach(), 1e-14)  # fmt: skip
    assert torch.allclose(found.parts["penalty"], penalty)
    assert ("capacity" in found.parts) == isinstance(objective, Capacity)


@pytest.mark.parametrize("make", [lambda o: m2(objective=o), lambda o: stacked(objective=o)])
def test_bounds_that_are_sums_over_classes_have_two_objectives(make):
    with pytest.raises(ConfigError, match="elbo or capacity, not importance"):
        make(ImportanceWeighted(3))


def test_codes_of_another_posterior_than_a_gaussian_are_refused():
    codes = VAE(VAEConfig(2, 1, 1, TINY, BernoulliConfig(), posterior=AuxiliaryPosteriorConfig(1, 4, (4,))))
    for make in (
        lambda: CodeClassifier(CodeClassifierConfig(CLASSES, 6), codes),
        lambda: StackedVAE(StackedConfig(CLASSES, labelled=6, latent=1, network=TINY), codes=codes),
    ):
        with pytest.raises(ConfigError, match=r"posterior\.kind=gaussian"):
            make()


def test_pictures_without_labels_teach_the_classifier_too():
    for model in (m2(), stacked()):
        losses = model(batch(known=False))
        losses.total.backward()
        assert losses.parts["classification"] == losses.parts["accuracy"] == 0
        assert all(p.grad.abs().max() > 1e-8 for p in model.core.classifier.parameters())


@pytest.mark.parametrize("made", [m2, stacked])
def test_without_chance_all_pictures_of_a_class_are_alike(made):
    model, labels = shaken(made()).float(), torch.tensor([1, 1, 0])
    still = model.sample(3, labels=labels, temperature=0.0)
    assert torch.allclose(still[0], still[1], atol=1e-6)
    assert not torch.allclose(still[0], still[2], atol=1e-4)
    lively = model.sample(3, labels=labels)
    assert not torch.allclose(lively[0], lively[1], atol=1e-4)


def stripes(n, flip):
    """Level stripes (class 0) and upright ones, some pixels turned over; the set, and the upright stripes."""
    wave, labels = torch.tensor([1.0, -1.0]).repeat(2).expand(4, 4), torch.arange(n) % 2
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, wave.T, wave)
    images = images * torch.where(torch.rand(n, 1, 4, 4) < flip, -1.0, 1.0)
    levels = ((images + 1) * 127.5).to(torch.uint8)
    return images, InMemory("stripes", "train", levels, labels, classes=("level", "upright")), wave


def test_m2_finds_the_class_of_pictures_that_nobody_named(truth):
    """Two pictures of each kind are named; a classifier that learns from these four alone is wrong far more often."""
    torch.manual_seed(0)
    images, whole, wave = stripes(200, flip=0.2)
    network = MLPConfig((16,), "softplus")
    model = SemiSupervisedVAE(
        SemiSupervisedConfig(4, 1, 2, labelled=4, alpha=1.0, latent=1, network=network, likelihood=BernoulliConfig())
    )
    alone = copy.deepcopy(model.core.classifier)
    pictures = PartlyLabelled(whole, model.few_labels, seed=0)
    optimizer = torch.optim.Adam([*model.parameters(), *alone.parameters()], lr=4e-2)
    with closing(Loader(pictures, 30)) as loader:
        for _ in range(100):
            optimizer.zero_grad()
            beside = torch.nn.functional.cross_entropy(alone(images[pictures.known]), whole.labels[pictures.known])
            (model(loader.next()).total + beside).backward()
            optimizer.step()
    wrong, without = ((logits(images).argmax(1) != whole.labels).double().mean() for logits in (model.classify, alone))
    truth("semi-supervised-m2", "share of wrong classes, 4 of 200 pictures named", "0", wrong, 0.07)
    assert without > 3 * wrong
    drawn = model.sample(40, labels=whole.labels[:40], seeds=3)
    upright = (drawn * wave).mean((1, 2, 3)) > (drawn * wave.T).mean((1, 2, 3))
    assert (upright == (whole.labels[:40] == 1)).double().mean() > 0.95  # of the class that was asked for


def test_a_linear_classifier_learns_on_codes_that_stay_as_they_are():
    codes = shaken(m1(2, 4)).float()
    before = [p.clone() for p in codes.parameters()]
    model = CodeClassifier(CodeClassifierConfig(CLASSES, 6), codes=codes)
    given = batch(12)
    given.images = given.images.float()
    model(given).total.backward()
    other = Batch(given.images, given.labels, seeds=range(100, 112))
    assert model(other).total != model(given).total  # codes are drawn, by each picture's seed
    assert all(p.grad is None for p in codes.parameters())
    assert all(p.grad.any() for p in model.linear.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, codes.parameters(), strict=True))
    assert torch.equal(model.classify(given.images), model.linear(codes.encode(given.images)))
    assert model.few_labels.every == 1
    assert {"classify", "features"} <= set(abilities(model))
    assert "sample" not in abilities(model)
    with pytest.raises(DataError, match="these pictures have none"):
        model(Batch(given.images))


@pytest.mark.parametrize("made", [m2, stacked])
def test_pictures_of_a_class_share_their_code(made):
    model = made().float()
    x = batch(4).images.float()
    rows = model.analogies(x)
    assert rows.shape == (4, CLASSES, 1, 2, 2)
    own = model.classify(x).argmax(1)
    assert torch.allclose(rows[torch.arange(4), own], model.reconstruct(x), atol=1e-6)
    told = model.analogies(x, labels=(own + 1) % CLASSES)
    assert not torch.allclose(told, rows, atol=1e-4)
    drawn = [model.sample(4, labels=torch.full((4,), y), seeds=1) for y in range(CLASSES)]
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-4)
    free = model.sample(12, seeds=1)  # without labels, each picture draws its own
    told = torch.stack([model.sample(12, labels=torch.full((12,), y), seeds=1) for y in range(CLASSES)])
    own = (told - free).abs().flatten(2).amax(2).argmin(0)
    assert torch.allclose(told[own, torch.arange(12)], free, atol=1e-6)
    assert len(own.unique()) > 1
    assert model.latents(x).kl.shape == (4, 1)
    for labels in ([0, 1, 2, 3], [0]):
        with pytest.raises(ConfigError):
            model.sample(4, labels=torch.tensor(labels))
        with pytest.raises(ConfigError):
            model.analogies(x, labels=torch.tensor(labels))


@pytest.mark.parametrize(
    "config", [{"network": ConvConfig(2, 2, 6), "size": 8}, {"network": MLPConfig((6, 5), "tanh"), "size": 8}]
)
def test_any_network_and_colour(config):
    size, network = config["size"], config["network"]
    model = SemiSupervisedVAE(SemiSupervisedConfig(size, 3, CLASSES, latent=2, network=network, labelled=3))
    given = Batch(torch.rand(6, 3, size, size) * 2 - 1, torch.tensor([0, 1, 2, -1, -1, -1]), seeds=list(range(6)))
    model(given).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.sample(2).shape == (2, 3, size, size)


def test_labels_are_asked_for_as_a_setting_and_the_judge_reports_accuracy(tmp_path):
    for k, picture in enumerate(stripes(40, flip=0.1)[1].levels.repeat_interleave(2, 2).repeat_interleave(2, 3)):
        folder = tmp_path / "pictures" / ("level", "upright")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(folder / f"{k}.png")
    place = str(tmp_path / "pictures")
    changes = {"labelled": "6", "batch_size": "8", "warmup": "8"}
    settings = RunSettings("semi-supervised-vae", place, budget=Budget(pictures=32), changes=changes)
    train(settings, tmp_path / "run")
    assert list((tmp_path / "run" / "samples").iterdir())
    model = mz.load(tmp_path / "run")
    assert model.config.labelled == model.few_labels.count == 6
    test = open_pictures(place, split="test")
    numbers = {n.name: n for n in evaluate(model, test, n=4, features=ModuleFeatures(lambda x: x, "pixels")).numbers}
    assert 0 <= numbers["accuracy"].value <= 1
    assert {"bits_per_dim", "fd_pixels", "active_units"} <= numbers.keys()


def test_labels_that_are_not_there_are_missed_before_anything_is_trained(tmp_path):
    for k, picture in enumerate(stripes(8, flip=0.1)[1].levels.repeat_interleave(2, 2).repeat_interleave(2, 3)):
        folder = tmp_path / "pictures" / ("level", "upright")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(folder / f"{k}.png")
    settings = RunSettings(
        "semi-supervised-vae", str(tmp_path / "pictures"), budget=Budget(pictures=16), changes={"labelled": "100"}
    )
    with pytest.raises(ConfigError, match="100 labelled pictures take 50 of each class"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_likelihood_with_weights_of_its_own_is_saved_once(tmp_path):
    codes = m1(8, 2, GaussianPixelsConfig())
    model = StackedVAE(StackedConfig(CLASSES, latent=2, network=TINY), codes=codes)
    model.identity = Identity("semi-supervised-vae", "model", "small", PictureSpec(8, 1, ("a", "b", "c")))
    model.configs = {"codes": codes.config, "model": model.config}
    assert sum(p is codes.likelihood.log_std for p in model.parameters()) == 1
    model.save(tmp_path / "model")
    assert torch.equal(mz.load(tmp_path / "model").sample(3), model.sample(3))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"labelled": 0}, "at least 1"),
        ({"every": 1}, "other pictures than labelled ones"),
        ({"alpha": -1.0}, "alpha"),
        ({"latent": 0}, "at least 1 dimension"),
    ],
)
def test_what_cannot_be_is_refused(choices, words):
    with pytest.raises(ConfigError, match=words):
        m2(**choices)
    with pytest.raises(ConfigError, match=words):
        StackedConfig(CLASSES, **choices)


def test_classes_are_needed():
    with pytest.raises(ConfigError, match="at least 2 classes"):
        CodeClassifierConfig(1)
    with pytest.raises(ConfigError, match="needs labels"):
        configure(find("semi-supervised-m2"), PictureSpec(28, 1))
    with pytest.raises(DataError, match="these pictures have none"):
        m2()(Batch(batch().images))
