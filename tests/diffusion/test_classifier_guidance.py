"""Classifier guidance, survey eq. 90-91, against mixtures of Gaussians, for which everything has a closed form."""

from dataclasses import dataclass

import pytest
import torch

from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.diffusion.adm import ADM, ADMConfig, noisy_classifier_config
from mezzotint.diffusion.chain import ChainModel
from mezzotint.diffusion.classifier_guidance import NoisyClassifier, NoisyClassifierConfig, classifier_guided, gradient
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser, rows
from mezzotint.diffusion.solvers import SOLVERS
from mezzotint.diffusion.systems import adm
from mezzotint.nn.unet import UNetConfig

SHAPE = (1, 2, 2)
TINY = UNetConfig(8, (1, 2), 1, (False, True), head_dim=8, groups=4, time_norm="scale_shift", resample="resnet")


@dataclass(frozen=True)
class Mixture:
    """Pictures of class y are N(means[y], stds[y]^2), each number independently; classes have the shares `shares`."""

    means: torch.Tensor  # (K, C, H, W)
    stds: torch.Tensor  # (K,)
    shares: torch.Tensor  # (K,)
    path: object

    def log_joint(self, x, t):
        """ln p(x_t, y) for each class, less a constant, (B, K); t () or (B,)."""
        alpha, sigma = (number.reshape(-1, 1) for number in self.path.at(t)[:2])
        variance = alpha**2 * self.stds**2 + sigma**2  # (B or 1, K)
        distance = (x[:, None] - alpha.view(-1, 1, 1, 1, 1) * self.means).square().flatten(2).sum(2)  # (B, K)
        return self.shares.log() - distance / (2 * variance) - x[0].numel() / 2 * variance.log()

    def log_prob(self, labels, x, t):
        """ln p(y | x_t): the perfect classifier."""
        return self.log_joint(x, t).log_softmax(1)[torch.arange(len(x)), labels]

    def score(self, x, t):
        """grad ln p(x_t), written out: classes weighted by their posterior."""
        at = self.path.at(t)
        variance = (at.alpha**2 * self.stds**2 + at.sigma**2).view(-1, 1, 1, 1)
        each = (at.alpha * self.means - x[:, None]) / variance  # (B, K, C, H, W)
        return (self.log_joint(x, t).softmax(1).view(len(x), -1, 1, 1, 1) * each).sum(1)

    def conditional_score(self, labels, x, t):
        """grad ln p(x_t | y)."""
        at = self.path.at(t)
        variance = (at.alpha**2 * self.stds[labels] ** 2 + at.sigma**2).view(-1, 1, 1, 1)
        return (at.alpha * self.means[labels] - x) / variance

    def denoiser(self):
        return Denoiser(self.score, self.path, "score")

    def conditional(self, labels):
        return Denoiser(lambda x, t: self.conditional_score(labels, x, t), self.path, "score")

    def guided(self, strength, way="score"):
        return classifier_guided(self.denoiser(), self.log_prob, LABELS, strength, way)


def mixture(path="linear"):
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator)
    return Mixture(means, torch.tensor([0.3, 0.5, 0.8]).double(), torch.tensor([0.2, 0.5, 0.3]).double(), PATHS[path])


LABELS = torch.tensor([0, 1, 2, 1])
X = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor(0.3, dtype=torch.float64)


def largest(tensor):
    return tensor.abs().max().item()


@pytest.mark.parametrize("path", PATHS)
def test_with_strength_one_it_is_the_conditional_score(truth, path):
    """Bayes' rule: grad ln p(x_t) + grad ln p(y | x_t) = grad ln p(x_t | y)."""
    data = mixture(path)
    expected = data.conditional_score(LABELS, X, T)
    error = largest(data.guided(1.0)(X, T).score - expected) / largest(expected)
    truth(f"classifier guidance, {path} path", "score at s = 1, relative", "score of p(x_t | y)", error, 2e-15)


@pytest.mark.parametrize("strength", [0.5, 2.0, 10.0])
def test_it_is_algorithm_2(truth, strength):
    """noise - s sqrt(1 - alpha_bar) grad ln p(y | x_t), the gradient written out."""
    data = mixture()
    pull = data.conditional_score(LABELS, X, T) - data.score(X, T)
    noise = data.denoiser()(X, T).noise
    expected = noise - strength * data.path.at(T).sigma * pull
    error = largest(data.guided(strength)(X, T).noise - expected) / largest(expected)
    truth("classifier guidance", f"noise at s = {strength:g}, relative", "algorithm 2 of ADM", error, 2e-15)


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun"])
def test_guided_pictures_are_those_of_the_conditional_model(truth, solver):
    """Twenty steps of an ODE from noise, with a perfect classifier at s = 1."""
    data, grid = mixture(), torch.linspace(1, 0, 21, dtype=torch.float64)
    drawn = [SOLVERS[solver](d, X, grid, noise=None) for d in (data.guided(1.0), data.conditional(LABELS))]
    error = largest(drawn[0] - drawn[1]) / largest(drawn[1])
    truth("classifier guidance", f"pictures by {solver} at s = 1, relative", "the conditional model", error, 5e-15)


@pytest.mark.parametrize("solver", ["ancestral", "ancestral-large"])
@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_the_mean_of_an_ancestral_step_moves_as_equation_91_says(truth, solver, strength):
    """mu + s Sigma grad ln p(y | x_t), Sigma the variance of that very step: read off from the noise that it adds."""
    data, grid = mixture(), torch.tensor([0.3, 0.29], dtype=torch.float64)

    def step(denoiser, z):
        return SOLVERS[solver](denoiser, X, grid, noise=lambda: torch.full_like(X, z))

    variance = (step(data.denoiser(), 1.0) - step(data.denoiser(), 0.0)).square()
    pull = data.conditional_score(LABELS, X, T) - data.score(X, T)
    moved = step(data.guided(strength, "mean"), 0.0) - step(data.denoiser(), 0.0)
    error = largest(moved - strength * variance * pull) / largest(moved)
    truth("classifier guidance", f"mean of {solver} at s = {strength:g}, relative", "survey eq. 91", error, 1e-14)


def test_equation_91_is_the_conditional_mean_but_for_a_factor_near_one(truth):
    """With the variance b of the step q(x_t | x_s) the mean given the class is alpha_s/alpha_t (x_t + b score), so that
    the move of eq. 91, a Taylor approximation, lacks alpha_s/alpha_t, here 1.003.
    """
    data, grid = mixture(), torch.tensor([0.3, 0.299], dtype=torch.float64)

    def mean(denoiser):
        return SOLVERS["ancestral-large"](denoiser, X, grid, noise=lambda: torch.zeros_like(X))

    plain = mean(data.denoiser())
    moved, wanted = mean(data.guided(1.0, "mean")) - plain, mean(data.conditional(LABELS)) - plain
    ratio = data.path.at(grid[1]).alpha / data.path.at(grid[0]).alpha
    assert 1 < ratio < 1.01
    error = largest(moved * ratio - wanted) / largest(wanted)
    truth("classifier guidance", "eq. 91 times alpha_s/alpha_t, relative", "mean of p(x_s | x_t, y)", error, 1e-13)


def test_the_denoisers_own_answer_stands_where_the_mean_is_moved():
    data = mixture()
    d = data.guided(2.0, "mean")(X, T)
    assert torch.equal(d.score, data.score(X, T))
    assert d.shift.shape == X.shape


def test_without_strength_it_is_the_denoiser():
    data = mixture()
    assert torch.equal(data.guided(0.0)(X, T).y, data.score(X, T))
    assert data.guided(0.0, "mean")(X, T).shift is None


def test_where_no_picture_is_left_the_answer_stands():
    data = mixture("zero-snr")
    v = Denoiser(lambda x, t: x / 2, data.path, "v")
    end = torch.tensor(1.0, dtype=torch.float64)
    assert data.path.at(end).alpha == 0
    d = classifier_guided(v, data.log_prob, LABELS, 3.0)
    assert torch.equal(d(X, end).clean, v(X, end).clean)
    assert torch.isfinite(d(X, end - 1e-3).clean).all()


def test_learned_variance_and_clipping_are_kept():
    data = mixture()
    wide = Denoiser(lambda x, t: torch.cat([x, x / 10], 1), data.path, "noise", clip=True, learned_variance=True)
    plain = wide(X, T)
    d = classifier_guided(wide, data.log_prob, LABELS, 1.5)(X, T)
    assert torch.equal(d.share, plain.share)
    pull = 1.5 * data.path.at(T).sigma * gradient(data.log_prob, LABELS, X, T)
    torch.testing.assert_close(d.noise, plain.noise - pull)  # clipped, then guided


@pytest.mark.parametrize("other", ["edm", "straight", "ve"])
def test_a_guided_denoiser_can_be_seen_on_another_path(truth, other):
    """The score of the same mixture there, whose own score it is; gradients follow the chain rule."""
    data, there = mixture(), mixture(other)
    t = there.path.time_of(torch.tensor(0.7, dtype=torch.float64))
    expected = there.conditional_score(LABELS, X, t)
    error = largest(data.guided(1.0).on(there.path)(X, t).score - expected) / largest(expected)
    truth("classifier guidance", f"seen on the {other} path, relative", "score of p(x_t | y) there", error, 2e-15)
    shift = data.guided(1.0, "mean").on(there.path)(X, t).shift
    expected = there.conditional_score(LABELS, X, t) - there.score(X, t)
    error = largest(shift - expected) / largest(expected)
    truth("classifier guidance", f"shift on the {other} path, relative", "grad ln p(y | x_t) there", error, 2e-15)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_there_is_a_gradient_wherever_pictures_are_drawn(context):
    data = mixture()
    expected = data.conditional_score(LABELS, X, T) - data.score(X, T)
    classifier, labels = classifier_of(SHAPE).double(), LABELS % 2
    outside = gradient(classifier.log_prob_of, labels, X, T)
    with context():
        x, y, t = X + 0, labels + 0, T + 0  # inference tensors in inference mode
        torch.testing.assert_close(gradient(data.log_prob, LABELS, x, t), expected)
        inside = gradient(classifier.log_prob_of, y, x, t)
        assert torch.equal(inside, outside)
        assert not (x + inside).requires_grad
    assert all(p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_cannot_be_is_refused(strength):
    with pytest.raises(ConfigError, match="strength"):
        mixture().guided(strength)


# What follows is about the classifier that is trained.


def classifier_of(shape, classes=2, **changes):
    config = NoisyClassifierConfig(shape[-1], shape[0], classes, TINY.updated({"attention": [False, True]}), **changes)
    torch.manual_seed(0)
    return NoisyClassifier(config)


def heard(network):
    """The same network off the zeros at which its blocks begin, so that it hears the time and the label."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def batch_of(n=8, shape=(1, 4, 4), classes=2):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(n, *shape, generator=generator) * 2 - 1
    return Batch(images, torch.arange(n) % classes, seeds=list(range(n)))


def test_the_gradient_is_that_of_finite_differences(truth):
    classifier = classifier_of((1, 4, 4)).double()
    x, labels = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1])
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    analytic, h, worst = gradient(classifier.log_prob_of, labels, x, t), 1e-5, 0.0
    with torch.no_grad():
        for k in range(16):
            step = torch.zeros(1, 16, dtype=torch.float64)
            step[0, k] = h
            step = step.view(1, 1, 4, 4)
            up, down = (classifier.log_prob_of(labels, x + sign * step, t) for sign in (1, -1))
            worst = max(worst, largest((up - down) / (2 * h) - analytic.flatten(1)[:, k]))
    truth("noisy classifier", "gradient, relative", "finite differences", worst / largest(analytic), 5e-9)


def test_a_classifiers_probabilities_sum_to_one(truth):
    classifier = classifier_of((1, 4, 4), classes=3).double()
    x, t = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    total = sum(classifier.log_prob_of(torch.full((5,), y), x, t).exp() for y in range(3))
    truth("noisy classifier", "sum of probabilities, float64", "1", largest(total - 1), 1e-15)


def test_the_loss_is_the_mean_of_its_log_probabilities(truth):
    """With the very times and noise of each seed."""
    classifier, batch = classifier_of((1, 4, 4)), batch_of()
    random = batch.random()
    t = (random.integers(0, 1000).double() + 1) / 1000
    at = classifier.path.at(t)
    x = rows(at.alpha, batch.images) * batch.images + rows(at.sigma, batch.images) * random.normal(1, 4, 4)
    expected = -classifier.log_prob_of(batch.labels, x, t).mean()
    error = (classifier(batch).total - expected).abs().item()
    truth("noisy classifier", "loss", "-ln p(y | x_t) of each picture", error, 2e-7)


@pytest.mark.parametrize("path", ["linear", "edm"])
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(truth, path):
    classifier, batch = classifier_of((1, 4, 4), path=path, unit_input=path == "edm", times="uniform"), batch_of()
    whole = classifier(batch)
    parts = [classifier(batch[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))]
    error = (whole.total - sum(part.total for part in parts) / 4).abs().item()
    truth("noisy classifier", f"loss of a batch, {path} path", "mean of its parts", error, 2e-7)
    for name, value in whole.parts.items():
        torch.testing.assert_close(value, sum(part.parts[name] for part in parts) / 4)


def test_accuracy_is_told_for_each_quarter_of_the_times():
    parts = classifier_of((1, 4, 4))(batch_of()).parts
    assert list(parts) == ["accuracy", "accuracy/1", "accuracy/2", "accuracy/3", "accuracy/4"]
    assert all(value.shape == () for value in parts.values())
    assert torch.isclose(sum(parts[f"accuracy/{q}"] for q in range(1, 5)), parts["accuracy"])


def test_every_parameter_receives_a_gradient():
    classifier = classifier_of((1, 4, 4))
    with torch.no_grad():
        for parameter in classifier.parameters():  # off the zeros at which residual branches begin
            parameter.add_(0.02 * torch.randn_like(parameter))
    classifier(batch_of()).total.backward()
    still = [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_pictures_without_noise_are_seen_at_the_start_of_the_path():
    classifier, images = heard(classifier_of((1, 4, 4))), batch_of().images
    assert classifier.path.start == 1 / 1000
    expected = classifier.network(images, torch.tensor(0.0))  # index 0 of 1000
    torch.testing.assert_close(classifier.classify(images), expected)
    assert largest(classifier.network(images, torch.tensor(500.0)) - expected) > 0.01


def test_a_unit_input_is_x_over_its_expected_deviation():
    """Karras et al. 2022, table 1: c_in = 1 / sqrt(sigma^2 + 0.5^2), and c_noise = ln(sigma) / 4."""
    classifier, x = heard(classifier_of((1, 4, 4), path="edm", unit_input=True)), 10 * batch_of().images
    expected = classifier.network(x / (64 + 0.25) ** 0.5, torch.tensor(8.0).log() / 4)
    torch.testing.assert_close(classifier.logits(x, torch.tensor(0.1, dtype=torch.float64)), expected)  # sigma = 8


def test_the_fourth_quarter_is_that_of_noise():
    """What is logged for a quarter is the share of pictures that are rightly named at its times."""
    classifier, batch = heard(classifier_of((1, 4, 4))), batch_of(40)
    random = batch.random()
    t = (random.integers(0, 1000).double() + 1) / 1000
    at = classifier.path.at(t)
    x = rows(at.alpha, batch.images) * batch.images + rows(at.sigma, batch.images) * random.normal(1, 4, 4)
    right, parts = classifier.logits(x, t).argmax(1) == batch.labels, classifier(batch).parts
    for quarter in (1, 2, 3, 4):
        within = (t > (quarter - 1) / 4) & (t <= quarter / 4)
        assert parts[f"accuracy/{quarter}"] == pytest.approx(float((right & within).sum()) / 40, abs=1e-7)


def test_it_learns_what_can_be_known_and_no_more(truth):
    """Two classes of bright and dark pictures: after training, the loss is near that of the perfect classifier on the
    same noisy pictures, which nothing beats on average; it is ln 2 for noise alone and 0 for clean pictures.
    """
    path, shape = PATHS["linear"], (1, 4, 4)
    means = torch.tensor([-0.3, 0.3]).double().view(2, 1, 1, 1).expand(2, *shape)
    data = Mixture(means, torch.tensor([0.1, 0.1]).double(), torch.tensor([0.5, 0.5]).double(), path)
    classifier = classifier_of(shape)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)

    def draw(n, first):
        generator = torch.Generator().manual_seed(first)
        labels = torch.randint(2, (n,), generator=generator)
        images = means[labels].float() + 0.1 * torch.randn(n, *shape, generator=generator)
        return Batch(images, labels, seeds=range(first, first + n))

    for i in range(80):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / 80)
        classifier(draw(64, 64 * i)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    test = draw(1000, 10**6)
    random = test.random()
    t = (random.integers(0, 1000).double() + 1) / 1000
    noise, at = random.normal(*shape).double(), path.at(t)
    x = rows(at.alpha, noise) * test.images.double() + rows(at.sigma, noise) * noise
    best = -data.log_prob(test.labels, x, t).mean().item()
    with torch.no_grad():
        loss = classifier(test).total.item()
    assert 0.2 < best < 0.6
    assert loss > best - 0.01
    truth("noisy classifier", "loss after 80 steps, nats above the best", "the exact p(y | x_t)", loss - best, 0.1)


def guided_chain(s=1.0):
    """An ADM that is guided with strength s, and neither of whose networks is new; two classes."""
    shape = {"image_size": 4, "channels": 1, "classes": 2, "network": TINY.updated({"attention": [False, True]})}
    config = ADMConfig(**shape, solver="ancestral", steps=2, clip=False, classifier_guidance=s)
    return heard(ADM(config, heard(classifier_of((1, 4, 4))))).eval()


@pytest.mark.parametrize("solver", ["ancestral", "ancestral-large", "ddim"])
def test_adm_moves_the_mean_of_a_random_step_and_the_noise_of_a_certain_one(truth, solver):
    """Dhariwal and Nichol 2021: algorithm 1 adds s Sigma g to the mean; in algorithm 2 the noise less s sigma_t g, and
    with it the clean picture more s sigma_t^2 / alpha_t g, go into DDIM's step."""
    model, labels, passed = guided_chain(), torch.tensor([0, 1, 1]), {}
    for s in (0.0, 1000.0):  # the classifier has hardly learned, so its gradients are small
        look = passed.setdefault(s, []).append
        model.sample(3, labels=labels, solver=solver, classifier_guidance=s, callback=look)
    x, t, t_next = passed[0.0][0].denoised.x, passed[0.0][0].t, passed[0.0][1].t
    g = gradient(model.classifier.log_prob_of, labels, x, torch.tensor(t, dtype=torch.float64))
    at, at_s = (model.path.at(torch.tensor(time, dtype=torch.float64)) for time in (t, t_next))
    large = 1 - (at.alpha / at_s.alpha) ** 2  # of q(x_t | x_s)
    moved = {
        "ancestral": large * at_s.sigma**2 / at.sigma**2,
        "ancestral-large": large,
        "ddim": at_s.alpha * at.sigma**2 / at.alpha - at_s.sigma * at.sigma,
    }
    expected = 1000 * float(moved[solver]) * g
    error = largest(passed[1000.0][1].denoised.x - passed[0.0][1].denoised.x - expected) / largest(expected)
    truth("adm", f"one {solver} step, s = 1000 less s = 0, relative", "algorithms 1 and 2 of ADM", error, 4e-5)


def test_adm_is_guided_as_its_config_says_and_as_it_is_asked():
    model, once = guided_chain(s=2000.0), {"labels": torch.tensor([0, 1, 1])}
    pictures = model.sample(3, **once)
    assert torch.equal(pictures, model.sample(3, **once, classifier_guidance=2000.0))
    assert largest(pictures - model.sample(3, **once, classifier_guidance=0.0)) > 1e-3


def test_adm_may_be_guided_without_its_classifier_too():
    model, once = guided_chain(s=0.0), {"labels": torch.tensor([0, 1, 1]), "guidance": 2.0}
    assert torch.equal(model.sample(3, **once), ChainModel.sample(model, 3, **once))
    plain = model.sample(3, **{**once, "guidance": 0.0})
    assert largest(model.sample(3, **once) - plain) > 1e-3


def test_the_classifier_of_adm_does_not_learn_and_must_fit():
    model, batch = guided_chain().train(), batch_of()
    model(batch).total.backward()
    assert not model.classifier.training
    assert all(p.grad is None and not p.requires_grad for p in model.classifier.parameters())
    with pytest.raises(ConfigError, match="path"):
        ADM(model.config, classifier_of((1, 4, 4), path="cosine"))


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_published_classifiers_know_the_noise_of_the_model_that_they_guide(size):
    data = PictureSpec(size, 3, tuple("ab"))
    classifier, model = (stage.sizes["paper"](data) for stage in adm.stages)
    assert classifier.path == model.path


def test_the_small_classifier_is_small_and_follows_the_small_network():
    config = noisy_classifier_config(28, 1, 10, "small")
    assert 5e4 < sum(p.numel() for p in NoisyClassifier(config).parameters()) < 2e5
    with pytest.raises(ConfigError, match="--image-size"):
        noisy_classifier_config(101, 1, 10, "small")


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="at least 2 classes"):
        noisy_classifier_config(28, 1, 0, "small")
    with pytest.raises(ConfigError, match="path"):
        NoisyClassifierConfig(28, 1, 10, path="lineal")
    with pytest.raises(ConfigError, match="image_size"):
        NoisyClassifierConfig(0, 1, 10)
    with pytest.raises(DataError, match="labels"):
        classifier_of((1, 4, 4))(Batch(torch.zeros(1, 1, 4, 4)))
