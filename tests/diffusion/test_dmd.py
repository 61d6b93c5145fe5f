"""Distribution matching distillation: its gradient is that of a divergence, its players learn what they are said to."""

import pytest
import torch
from gaussian import Gaussian
from torch import nn

from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.dmd import DMDConfig, DMDModel, matching_gradient, surrogate, time_at
from mezzotint.diffusion.grids import karras, levels
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel, noisy
from mezzotint.diffusion.paths import PATHS
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
EDM = {"path": "edm", "prediction": "edm", "unit_input": True, "times": "log-normal", "weighting": "edm",
       "solver": "heun", "grid": "karras", "steps": 4, "clip": False}  # fmt: skip


def teacher(**choices):
    """A denoiser of large random weights."""
    model = DenoisingModel(DenoisingConfig(**{**EDM, "image_size": 8, "channels": 1, "network": TINY, **choices}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def student(made=None, **choices):
    made = made or teacher()
    same = {name: getattr(made.config, name) for name in ("image_size", "channels", "classes", "network")}
    return DMDModel(DMDConfig(**{**same, "pairs": 16, "teacher_steps": 3, **choices}), model=made)


def batch(n=6, first=0, size=8):
    return Batch(torch.zeros(n, 1, size, size), torch.arange(n) % 3, seeds=range(first, first + n))


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# The gradient


@pytest.mark.parametrize("name", ["edm", "linear", "straight"])
def test_the_gradient_is_equation_7_with_the_weight_of_equation_8(name, truth):
    """Written with the scores of eq. 4 and 5, as the paper has it."""
    path = PATHS[name]
    real, fake = Gaussian(0.3, 0.5).denoiser(path), Gaussian(-0.1, 0.8).denoiser(path)
    x, n, t = numbers(5, 2, 3, 3), numbers(5, 2, 3, 3), time_at(torch.linspace(0.02, 0.98, 5).double(), path, "karras")
    at = path.at(t)
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in (at.alpha, at.sigma))
    x_t = alpha * x + sigma * n
    mu_real, mu_fake = real(x_t, t).clean, fake(x_t, t).clean
    s_real, s_fake = (-(x_t - alpha * mu) / sigma**2 for mu in (mu_real, mu_fake))
    w = sigma**2 / alpha * 18 / (mu_real - x).abs().flatten(1).sum(1).view(-1, 1, 1, 1)
    expected = w * alpha * (s_fake - s_real)
    error = ((matching_gradient(x, n, t, real, fake) - expected) / expected.abs().amax((1, 2, 3), keepdim=True)).abs()
    truth("dmd", f"gradient on {name}, relative", "eq. 7 and 8 with scores, float64", error.max(), 1e-11)


@pytest.mark.parametrize("name", ["edm", "linear", "straight"])
@pytest.mark.parametrize("u", [0.1, 0.5, 0.9])
def test_its_mean_is_the_gradient_of_the_divergence_of_gaussians(name, u, truth):
    """For pictures x = mean + std z and exact scores, without the weight of eq. 8.

    x_t is Gaussian of mean alpha m and variance alpha^2 s^2 + sigma^2, so that the divergence is known. The integrand
    is quadratic in z and n, so its mean over z = -1, 1 and n = -1, 1 is exact.
    """
    path = PATHS[name]
    t = time_at(torch.tensor(u, dtype=torch.float64), path, "karras").expand(4)
    mean, std = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (-0.2, 0.9))
    real, fake = Gaussian(0.3, 0.5), Gaussian(mean.item(), std.item())
    z, n = (sides.reshape(4, 1, 1, 1).double() for sides in torch.meshgrid(*[torch.tensor([-1, 1])] * 2, indexing="ij"))
    x = mean + std * z
    at = path.at(t[0])

    weighted = matching_gradient(x.detach(), n, t, real.denoiser(path), fake.denoiser(path))
    clean = real.clean(noisy(x.detach(), n, path.at(t)), path.at(t))
    w = at.sigma**2 / at.alpha / (clean - x.detach()).abs()  # eq. 8, of one pixel
    surrogate(x, weighted / w).mean().backward()

    m, s = (value.detach().clone().requires_grad_() for value in (mean, std))
    of_fake, of_real = at.alpha**2 * s**2 + at.sigma**2, real.spread(at) ** 2
    divergence = (
        of_fake / of_real - 1 - torch.log(of_fake / of_real) + at.alpha**2 * (m - real.mean) ** 2 / of_real
    ) / 2
    divergence.backward()
    got, expected = torch.stack([mean.grad, std.grad]), torch.stack([m.grad, s.grad])
    truth("dmd", f"gradient of mean and deviation on {name}, noise level {u}", "that of KL(fake || real), relative",
          ((got - expected).norm() / expected.norm()), 5e-12)  # fmt: skip


def test_the_surrogate_has_the_gradient_that_it_is_given(truth):
    x, gradient = numbers(3, 2, 4, 4).requires_grad_(), numbers(3, 2, 4, 4)
    surrogate(x, gradient).sum().backward()
    truth("dmd", "gradient of the surrogate, times the numbers of a picture", "the gradient given",
          (x.grad * 32 - gradient).abs().max(), 1e-15)  # fmt: skip


def test_pictures_of_the_right_distribution_stay():
    path = PATHS["edm"]
    x, n, t = numbers(6, 1, 4, 4), numbers(6, 1, 4, 4), torch.linspace(0.001, 0.9, 6).double()
    exact = Gaussian().denoiser(path)
    assert not matching_gradient(x, n, t, exact, exact).any()
    assert matching_gradient(x, n, t, exact, Gaussian(0.31, 0.5).denoiser(path)).all()


def test_a_perfect_picture_has_a_finite_gradient():
    """Where the teacher sees x itself, eq. 8 divides by zero."""
    path = PATHS["edm"]
    point = Gaussian(0.3, 0.0).denoiser(path)
    x, t = torch.full((2, 1, 2, 2), 0.3), torch.tensor([0.1, 0.5]).double()
    assert torch.isfinite(matching_gradient(x, torch.randn_like(x), t, point, Gaussian().denoiser(path))).all()


def test_a_picture_that_is_nearly_perfect_counts_by_how_far_it_is():
    """Eq. 8: the gradient of a picture a thousandth away is stretched a thousandfold."""
    x, t = torch.full((1, 1, 2, 2), 0.301, dtype=torch.float64), torch.tensor([0.01]).double()
    real, fake = Gaussian(0.3, 0.0).denoiser(PATHS["edm"]), Gaussian(0.5, 0.0).denoiser(PATHS["edm"])
    assert torch.allclose(matching_gradient(x, torch.zeros_like(x), t, real, fake), 0.2 / 0.001 + 0 * x)


@pytest.mark.parametrize("name", ["edm", "ve", "straight", "cosine"])
def test_noise_levels_are_those_of_the_grid_of_karras(name, truth):
    """Its 21 levels stand at u = 1, 0.95, ..., 0."""
    path = PATHS[name]
    u = torch.linspace(1, 0, 21, dtype=torch.float64)
    times, grid = time_at(u, path, "karras"), karras(21, path)[:-1]
    most, least = levels(path)
    ends = path.at(times[[0, -1]]).ratio / torch.stack([most, least]) - 1
    error = max((times[1:] - grid[1:]).abs().max(), ends.abs().max())
    truth("dmd", f"noise levels of {name}", "grid of Karras et al. 2022, eq. 5", error, 1e-14)
    uniform = time_at(u, path, "uniform")
    assert uniform[0] == 1
    assert torch.isclose(uniform[-1], torch.tensor(path.start).double())


# The players


class Normal(nn.Module):
    """The clean picture that a perfect denoiser of N(mean, std^2) sees on the path "edm", both to be learned."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def forward(self, x, network_time, labels=None):
        variance = torch.exp(8 * network_time).to(x).view(-1, 1, 1, 1)  # the network is told ln(sigma) / 4
        return self.mean + self.std**2 / (self.std**2 + variance) * (x - self.mean)


class Affine(Normal):
    """mean + std z, where it is shown 80 z."""

    def forward(self, x, network_time, labels=None):
        return self.mean + self.std * x / 80


def gaussian_student(**choices):
    """A student in which teacher, generator and fake score are Gaussians: N(0.3, 0.5^2), N(-0.5, 1) and the same."""
    made = student(teacher(prediction="clean", unit_input=False, image_size=2), **choices)
    made.teacher.network = Normal(0.3, 0.5).requires_grad_(False)
    made.generator.network, made.fake.network = Affine(-0.5, 1.0), Normal(-0.5, 1.0)
    return made


def trained(model, steps, rates, size=2):
    """The model after so many steps of Adam, whose rates fall to zero."""
    optimizers = {name: torch.optim.Adam(part.parameters(), lr=rates[name]) for name, part in model.players().items()}
    for step in range(steps):
        for player in model.turns(step):
            optimizers[player].zero_grad()
            model(batch(32, 32 * step, size=size), player).total.backward()
            optimizers[player].param_groups[0]["lr"] = rates[player] * (1 - step / steps)
            optimizers[player].step()
    return model


def test_the_generator_learns_the_distribution_of_the_teacher(truth):
    """Without a pair, from the two scores alone, while the fake score learns from the generator's pictures.

    At equal rates the two would chase each other in circles.
    """
    model = trained(gaussian_student(regression=0.0), 200, {"generator": 0.03, "fake": 0.06})
    learned = model.generator.network
    truth("dmd", "mean of a linear generator", "that of the teacher", (learned.mean - 0.3).abs().detach(), 0.02)
    truth("dmd", "deviation of a linear generator", "that of the teacher", (learned.std - 0.5).abs().detach(), 0.02)


@pytest.mark.parametrize("metric", ["squared", "pseudo-huber"])
def test_the_generator_learns_the_map_of_the_pairs(metric, truth):
    """Where they weigh enough: Heun's method takes z to an affine function of it."""
    made = gaussian_student(regression=1e4, metric=metric)
    model = trained(made, 150, {"generator": 0.1, "fake": 0.1})
    zero, one = model.solve(torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), None)[:, 0].mean((1, 2, 3))
    learned = model.generator.network
    error = torch.stack([learned.mean - zero, learned.std - (one - zero)]).abs().max()
    truth("dmd", f"affine map learned from pairs, {metric}", "that of the solver", error.detach(), 1e-3)


@pytest.mark.parametrize("u", [0.1, 0.5, 0.9])
def test_the_fake_score_is_best_where_it_is_the_denoiser_of_the_generator(u, truth):
    """Its mean loss over x = m + s z has no gradient there, and one elsewhere; exactly over z = -1, 1 and n = -1, 1."""
    model = gaussian_student().double()
    t = time_at(torch.tensor(u, dtype=torch.float64), model.path, "karras").expand(4)
    z, n = (sides.reshape(4, 1, 1, 1).double() for sides in torch.meshgrid(*[torch.tensor([-1, 1])] * 2, indexing="ij"))
    model.fake.regression(model.generate(z), n, t, None).total.backward()
    fake = model.fake.network
    there = torch.stack([fake.mean.grad, fake.std.grad]).abs()
    model.zero_grad()
    with torch.no_grad():
        fake.mean += 0.1
        fake.std += 0.1
    model.fake.regression(model.generate(z), n, t, None).total.backward()
    beside = torch.stack([fake.mean.grad, fake.std.grad]).abs()
    truth("dmd", f"gradient of the fake score at its optimum, noise level {u}", "0, relative to 0.1 beside",
          (there / beside).max(), 1e-15)  # fmt: skip


def test_only_the_player_whose_turn_it_is_gets_a_gradient():
    """In particular, the generator's does not go through either score."""
    model = student(teacher(classes=3))
    with torch.no_grad():  # a generator whose distribution is not yet the teacher's
        for parameter in model.generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for player, part in model.players().items():
        model.zero_grad()
        model(batch(), player).total.backward()
        moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == {player}
        assert not [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_gradient_of_the_generator_is_the_sum_of_both_terms(truth):
    """Over the batch's own numbers: matching is pulled back through G, and the pairs have a weight of 1/4."""
    model = student(teacher(classes=3))
    with torch.no_grad():
        for parameter in model.fake.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    data, weight = batch(), model.generator.network.conv_in.weight
    (got,) = torch.autograd.grad(model(data, "generator").total, weight)

    random = data.random()
    z, n = random.normal(1, 8, 8), random.normal(1, 8, 8)
    t = time_at(0.02 + 0.96 * random.uniform().double(), model.path, "karras")
    x = model.generate(z, data.labels)
    real, fake = model.teacher.guided(data.labels), model.fake.unclipped(data.labels)
    g = matching_gradient(x.detach(), n, t, real, fake)
    (matching,) = torch.autograd.grad(x, weight, g / x.numel())
    pairs = model.pool.draw(random, model.solve)
    missed = (model.generate(pairs.noise, pairs.labels) - pairs.end).square().mean()
    (regression,) = torch.autograd.grad(missed, weight)
    assert matching.norm() > 0.01 * regression.norm() > 0
    expected = matching + 0.25 * regression
    truth("dmd", "gradient of the generator, relative", "eq. 7 and a quarter of eq. 9",
          (got - expected).norm() / expected.norm(), 1e-6)  # fmt: skip


def test_the_generator_moves_and_then_the_fake_score_follows():
    """Algorithm 1: each once, the generator first."""
    assert [student().turns(step) for step in (0, 7)] == [["generator", "fake"]] * 2


def test_the_fake_score_learns_the_generators_pictures_at_all_noise_levels(truth):
    """Eq. 6: lambda(sigma) |c_fake - x|^2, from the least noise to the most, whatever the metric of the pairs."""
    model, data = student(teacher(classes=3), metric="pseudo-huber"), batch(20)
    got, random = model(data, "fake").total, data.random()
    z, n = random.normal(1, 8, 8), random.normal(1, 8, 8)
    sigma = (0.002 ** (1 / 7) + random.uniform().double() * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    x, s = model.generate(z, data.labels), sigma.float().view(-1, 1, 1, 1)
    clean = model.fake.unclipped(data.labels)(x + s * n, sigma / 80).clean
    expected = ((s**2 + 0.25) / (0.5 * s) ** 2 * (clean - x).square()).mean()
    truth(
        "dmd",
        "loss of the fake score, relative",
        "eq. 6 with the weight of EDM",
        (got / expected - 1).abs().detach(),
        1e-6,
    )


def test_pairs_are_compared_by_the_metric_that_is_asked_for(truth):
    model, data = student(teacher(), metric="pseudo-huber"), batch()
    got, random = model(data, "generator").parts["regression"], data.random()
    random.normal(1, 8, 8), random.normal(1, 8, 8), random.uniform()  # for the other term
    pairs = model.pool.draw(random, model.solve)
    distance = (model.generate(pairs.noise) - pairs.end).flatten(1).norm(dim=1)
    c = 0.00054 * 64  # Lee et al. 2024
    truth("dmd", "regression, relative", "pseudo-Huber metric",
          (got / (torch.sqrt(distance**2 + c**2) - c).mean() - 1).abs().detach(), 1e-6)  # fmt: skip


def test_a_clipped_teacher_has_the_score_of_its_density():
    """That density has no corner where a picture leaves [-1, 1], so nothing is clipped in eq. 7."""
    plain, clipped = teacher(), teacher(clip=True)
    clipped.load_state_dict(plain.state_dict())
    x, n, t = 3 * torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.full((3,), 0.01).double()
    assert torch.equal(*[student(made).matching(x, n, t) for made in (plain, clipped)])


def test_the_regression_vanishes_where_every_pair_is_reproduced():
    """The teacher's solver in one step, from t = 1 to 0, is the generator with which training begins."""
    model = student(teacher(classes=3), teacher_steps=1)
    parts = model(batch(), "generator").parts
    assert parts["regression"] < 1e-10
    assert parts["matching"] == 0  # the fake score begins as the real one
    with torch.no_grad():
        model.generator.network.conv_out.bias.add_(0.5)
    gap = model(batch(), "generator").parts["regression"]
    assert gap > 1e-3


def test_the_score_and_the_pairs_of_a_guided_teacher_are_guided():
    """Section 3.4: as if the guided denoiser were the teacher; the fake score is not guided."""
    plain, guided = teacher(classes=3), teacher(classes=3, guidance=2.0)
    guided.load_state_dict(plain.state_dict())
    models = student(plain), student(guided)
    x, n, t, labels = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.full((3,), 0.01).double(), torch.arange(3)
    pulls = []
    for model in models:
        made = model.generator.config
        assert (made.guidance, made.label_dropout) == (0, 0)
        at = x.clone().requires_grad_()
        model.matching(at, n, t, labels).sum().backward()
        pulls.append(at.grad)
    assert not pulls[0].any()  # the fake score is the teacher's own
    assert pulls[1].abs().max() > 1e-4
    ends = [model.solve(n, labels) for model in models]
    assert not torch.allclose(*ends, atol=1e-3)


# The model


def test_training_begins_with_what_the_teacher_sees_in_noise():
    made = teacher(classes=3)
    model, z, labels = student(made), torch.randn(2, 1, 8, 8), torch.tensor([2, 0])
    t = torch.tensor(1.0).double()
    assert torch.equal(model.generate(z, labels), made.unclipped(labels)(80 * z, t).clean)


def test_a_sample_takes_one_evaluation(monkeypatch):
    model, asked = student(teacher(classes=3, guidance=1.0)), []
    for name in ("generator", "fake", "teacher"):
        network = getattr(model, name).network
        forward = network.forward
        monkeypatch.setattr(network, "forward", lambda *a, f=forward, who=name: asked.append((who, len(a[0]))) or f(*a))
    model.sample(5)
    assert asked == [("generator", 5)]


def test_dropout_of_the_teacher_need_not_be_that_of_the_student():
    made = teacher(network=UNetConfig(**{**vars(TINY), "dropout": 0.5}))
    model = student(made, network=TINY).train()
    z = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.generate(z), model.generate(z))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DMDModel(DMDConfig(8, 1, network=TINY)), "needs a teacher"),
        (lambda: student(classes=3), "classes of its teacher"),
        (lambda: student(network=UNetConfig(**{**vars(TINY), "channels": 16})), "same settings"),
        (lambda: DMDConfig(8, 1, interval=(0.5, 0.5)), "interval"),
        (lambda: DMDConfig(8, 1, regression=-1.0), "regression must be at least 0"),
        (lambda: DMDConfig(8, 1, teacher_solver="huen"), "did you mean 'heun'"),
        (lambda: student().sample(1, labels=[0]), "without labels"),
        (lambda: student().sample(1, captions=["a coat"]), "captions"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
