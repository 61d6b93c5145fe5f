"""Consistency models beside closed forms on Gaussian data and mixtures, and diffusers' sampler."""

import copy
import itertools
import math

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.core.model import abilities
from mezzotint.diffusion.consistency import (
    PATH,
    ConsistencyConfig,
    ConsistencyDistillation,
    ConsistencyTraining,
    boundary,
    draw_intervals,
    interval_shares,
    multistep,
    noise_levels,
)
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.predictions import Denoiser, convert
from mezzotint.nn.unet import UNetConfig
from mezzotint.systems import find

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
EDM = {"path": "edm", "prediction": "edm", "unit_input": True, "solver": "heun", "grid": "karras", "steps": 4}
DATA, EPSILON = Gaussian(), PATH.sigma_min


def at_level(sigma):
    return PATH.time_of(torch.as_tensor(sigma, dtype=torch.float64))


def config(**choices):
    return ConsistencyConfig(**{"image_size": 8, "channels": 1, "network": TINY, **choices})


def shaken(model):
    """Large random weights, so that nothing in the answers is nearly zero."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def training(**choices):
    return shaken(ConsistencyTraining(config(**choices)))


def teacher(**choices):
    return shaken(DenoisingModel(DenoisingConfig(8, 1, network=TINY, **{**EDM, **choices})))


def distillation(guidance=0.0, **choices):
    made = teacher(classes=choices.get("classes", 0), guidance=guidance)
    return shaken(ConsistencyDistillation(config(**choices), teacher=made))


def batch(n=6, classes=0):
    labels = torch.arange(n) % classes if classes else None
    return Batch(torch.rand(n, 1, 8, 8) * 2 - 1, labels, seeds=list(range(n)))


class Answering(torch.nn.Module):
    """The network F with which f, or a denoiser, says what is asked for: a function of (x, sigma)."""

    def __init__(self, function, kind):
        super().__init__()
        self.function, self.kind = function, kind

    def forward(self, seen, network_time):
        sigma = torch.exp(4 * network_time).view(-1, 1, 1, 1)
        x = seen * torch.sqrt(sigma**2 + 0.25)
        wanted = self.function(x, sigma)
        if self.kind == "denoiser":
            return convert(wanted, x, PATH.at(sigma / 80), "clean", "edm")
        c_skip, c_out = boundary(sigma, EPSILON)
        return torch.where(c_out > 1e-9, (wanted - c_skip * x) / c_out, 0.0)


def exact(x, sigma):
    """The consistency function of N(m, s^2): the solution of the probability-flow ODE from sigma to epsilon."""
    return DATA.mean + (x - DATA.mean) * torch.sqrt((DATA.std**2 + EPSILON**2) / (DATA.std**2 + sigma**2))


def of_gaussian_data(metric="squared"):
    """A student in float64 that is the exact function, and whose teacher is perfect."""
    model = distillation(metric=metric, growth="none").double()
    model.network = Answering(exact, "function")
    model.teacher.network = Answering(lambda x, sigma: DATA.clean(x, PATH.at(sigma / 80)), "denoiser")
    return model


# The function


@pytest.mark.parametrize("classes", [0, 3])
def test_the_boundary_holds_for_any_weights(truth, classes):
    """f(x, epsilon) = x, to the last bit."""
    model, x = training(classes=classes), torch.randn(4, 1, 8, 8)
    labels = torch.arange(4) % 3 if classes else None
    error = (model.function(x, at_level(EPSILON), labels) - x).abs().max()
    truth("consistency model", "f(x, epsilon) for random weights", "x", error.detach(), 0.0)
    assert (model.function(x, at_level(0.1), labels) - x).abs().max() > 0.01


def test_far_beyond_the_boundary_the_function_is_the_denoiser(truth):
    """c_skip and c_out are those of Karras et al. 2022, but for epsilon: a teacher's weights are a good beginning."""
    made, x = teacher(), 80 * torch.randn(2, 1, 8, 8)
    model = ConsistencyDistillation(config(), teacher=made)
    t = at_level([20.0, 80.0])
    clean = made.unclipped()(x, t).clean
    error = (model.function(x, t) - clean).abs().max() / clean.abs().max()
    truth("consistency distillation", "f at sigma = 20 before training, relative", "the teacher", error.detach(), 2e-4)


def test_the_exact_function_agrees_with_itself_along_the_flow(truth):
    model, x, z = of_gaussian_data(), torch.randn(6, 1, 8, 8).double(), torch.randn(6, 1, 8, 8).double()
    sigma = noise_levels(7)
    t, s = at_level(sigma[1:]), at_level(sigma[:-1])

    def flowed(x_t, x, z, t, s, labels):
        start, end = (type(at)(*(c.view(-1, 1, 1, 1) for c in at)) for at in (PATH.at(t), PATH.at(s)))
        return DATA.flowed(x_t, start, end)

    model.earlier = flowed
    error = model.disagreement(x, z, t, s).max()
    truth("consistency distillation", "loss of the exact function with an exact teacher", "0", error, 1e-31)


def test_what_is_left_of_the_loss_is_the_error_of_heuns_method(truth):
    """A step of Heun's method is wrong by h^3, so the mean square falls with the sixth power of the grid."""
    model, losses = of_gaussian_data(), []
    for points in (129, 257, 513):
        sigma = noise_levels(points)
        x, z = (
            DATA.mean + DATA.std * v
            for v in torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
        )
        z = (z - DATA.mean) / DATA.std
        rows = [v.expand(points - 1, -1, -1, -1) for v in (x, z)]
        losses.append(model.disagreement(*rows, at_level(sigma[1:]), at_level(sigma[:-1])).mean())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(losses)]
    truth("consistency distillation", "loss of the exact function on 513 points", "0", losses[-1], 3e-14)
    truth(
        "consistency distillation",
        "order in which it falls, distance from 6",
        "that of Heun's method, squared",
        abs(orders[-1] - 6),
        0.03,
    )


def test_consistency_training_has_the_gradient_of_distillation(truth):
    """Song et al. 2023, theorem 2, with f^- = f, for a mixture of two normal distributions on the line whose mean
    over pictures and noise is a Gauss-Hermite sum: the two gradients differ by a share that falls with the step."""
    import numpy as np

    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(48))
    weights = weights / weights.sum()
    means, stds, shares = (torch.tensor(v, dtype=torch.float64) for v in ([-0.6, 0.5], [0.2, 0.4], [0.3, 0.7]))
    x = (means[:, None, None] + stds[:, None, None] * nodes[:, None]).expand(2, 48, 48).reshape(-1, 1, 1, 1)
    z = nodes.expand(2, 48, 48).reshape(-1, 1, 1, 1)
    mass = (shares[:, None, None] * weights[:, None] * weights).reshape(-1)

    def clean(x, sigma):
        """E[c | x] of the mixture."""
        spread = stds**2 + sigma**2  # (B, 1, 1, 2)
        log_weight = torch.log(shares) - (x - means) ** 2 / (2 * spread) - torch.log(spread) / 2
        guess = means + stds**2 / spread * (x - means)
        return (log_weight.softmax(-1) * guess).sum(-1, keepdim=True)

    class Curve(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.7, -0.4, 0.9, 0.3], dtype=torch.float64))

        def forward(self, seen, network_time):
            a, b, c, d = self.weight
            return a * torch.tanh(b + c * seen + d * network_time.view(-1, 1, 1, 1))

    learns, taught, curve = training(metric="squared"), distillation(metric="squared"), Curve()
    learns.network = taught.network = curve
    taught.teacher.network = Answering(clean, "denoiser")
    differences = []
    for step in (0.04, 0.02, 0.01):
        t, s = (at_level(level).expand(len(x)) for level in (0.5, 0.5 - step))
        gradients = [
            torch.autograd.grad((mass * m.disagreement(x, z, t, s)).sum(), curve.weight)[0] for m in (learns, taught)
        ]
        differences.append(float((gradients[0] - gradients[1]).norm() / gradients[1].norm()))
    order = math.log2(differences[1] / differences[2])
    truth(
        "consistency training",
        "gradient at sigma = 0.5, step 0.01, relative",
        "that of distillation with the exact score",
        differences[-1],
        0.05,
    )
    truth(
        "consistency training",
        "order in which they meet, distance from 1",
        "Song et al. 2023, theorem 2",
        abs(order - 1),
        0.05,
    )


# The schedules


def test_the_grid_is_that_of_karras():
    sigma = noise_levels(18)
    assert sigma[0] == 0.002
    assert sigma[-1] == 80
    assert torch.allclose(
        (sigma ** (1 / 7)).diff(), torch.tensor((80 ** (1 / 7) - 0.002 ** (1 / 7)) / 17).double(), rtol=1e-9
    )


def test_the_grid_grows_as_published():
    """From s0 to s1 + 1 points along a root, or from s0 + 1 to s1 + 1 in eight doublings of 50,000 steps each."""
    root = config(growth="root", s0=2, s1=150, total_steps=800_000, target_decay=0.9)
    assert (root.points(0), root.points(800_000), root.points(10**7)) == (2, 151, 151)
    assert root.points(200_000) == math.ceil(math.sqrt((151**2 - 4) / 4 + 4) - 1) + 1 == 76
    doubling = config(s0=10, s1=1280, total_steps=400_000)
    assert [doubling.points(50_000 * k) for k in range(9)] == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    assert doubling.points(49_999) == 11
    fixed = config(growth="none", s0=18, target_decay=0.95)
    assert fixed.points(0) == fixed.points(10**6) == 18
    for grown in (root, doubling):
        counts = [grown.points(k) for k in range(0, 900_000, 1000)]
        assert counts == sorted(counts)


def test_a_model_trains_on_the_grid_of_its_step():
    model = training(s0=2, s1=8, total_steps=9)  # three numbers of points, for three steps each
    seen = []
    for step in range(10):
        seen.append(int(model(batch()).parts["points"]))
        model.after_step(step)
    assert seen == [3, 3, 3, 5, 5, 5, 9, 9, 9, 9]


@pytest.mark.parametrize("made", [training, distillation])
def test_the_log_says_from_which_quarter_of_the_grid_the_distance_comes(truth, made):
    model, pictures = made(s0=4, growth="none"), batch(40)
    parts = model(pictures).parts
    quarters = [float(parts[f"distance/{q}"]) for q in (1, 2, 3, 4)]
    truth(
        "consistency models",
        "distances of the quarters, relative",
        "their sum",
        abs(sum(quarters) / parts["distance"] - 1),
        1e-6,
    )
    n = draw_intervals(pictures.random(), noise_levels(4, model.path, model.config.rho), model.config.times)
    assert [quarter > 0 for quarter in quarters] == [q in (-(-4 * (n + 1) // 3)).tolist() for q in (1, 2, 3, 4)]


def test_the_target_follows_ever_faster(truth):
    """mu(k) = exp(s0 ln mu0 / N(k)): mu0 at first, and closer to 1 on a finer grid."""
    grown = config(growth="root", s0=2, s1=150, total_steps=800_000, target_decay=0.9)
    error = abs(grown.decay(800_000) - math.exp(2 * math.log(0.9) / 151))
    truth("consistency training", "mu(K)", "exp(s0 ln mu0 / (s1 + 1))", error, 1e-15)
    assert grown.decay(0) == pytest.approx(0.9, abs=1e-15)
    assert config(growth="none", s0=40, target_decay=0.95).decay(7) == 0.95
    assert config().decay(0) == 0


def test_intervals_are_drawn_as_often_as_a_log_normal_level_falls_into_them(truth):
    sigma = noise_levels(11)
    shares = interval_shares(sigma)
    normal = torch.distributions.Normal(*torch.tensor([-1.1, 2.0], dtype=torch.float64))
    mass = normal.cdf(sigma.log()).diff()
    truth(
        "consistency training",
        "shares of the intervals",
        "the log-normal distribution",
        (shares / 2 - mass).abs().max(),
        1e-15,
    )
    n = draw_intervals(PictureRandom(range(4000)), sigma, "log-normal")
    seen = torch.bincount(n, minlength=10) / 4000
    truth(
        "consistency training",
        "4000 log-normal intervals, frequencies",
        "shares",
        (seen - mass / mass.sum()).abs().max(),
        0.02,
    )
    seen = torch.bincount(draw_intervals(PictureRandom(range(4000)), sigma, "uniform"), minlength=10) / 4000
    truth("consistency training", "4000 uniform intervals, frequencies", "1/10", (seen - 0.1).abs().max(), 0.02)


@pytest.mark.parametrize("metric", ["squared", "pseudo-huber"])
@pytest.mark.parametrize("weighting", ["simple", "inverse-step"])
def test_the_loss_is_that_of_the_paper(truth, metric, weighting):
    """lambda(sigma_n) d(f(x + sigma_{n+1} z, sigma_{n+1}), f(x + sigma_n z, sigma_n)), by hand."""
    model, one = training(metric=metric, weighting=weighting, times="uniform", growth="none", s0=6), batch()
    model, one.images, sigma = model.double(), one.images.double(), noise_levels(6)
    random = one.random()
    n = draw_intervals(random, sigma, "uniform")
    z, losses = random.normal(1, 8, 8).double(), []
    for k, i in enumerate(n):
        low, high = sigma[i], sigma[i + 1]
        ends = [model.function(one.images[k] + level * z[k : k + 1], at_level(level)) for level in (high, low)]
        squares = (ends[0] - ends[1]).square()
        d = squares.mean() if metric == "squared" else (squares.sum() + 0.00054**2 * 64).sqrt() - 0.00054 * 8
        losses.append(d / (high - low) if weighting == "inverse-step" else d)
    error = (model(one).total / torch.stack(losses).mean() - 1).abs()
    truth(f"consistency training, {metric}, {weighting}", "loss, relative", "by hand", error.detach(), 3e-15)


# What learns, and what does not


def test_the_target_is_an_average_that_is_kept_with_the_model(truth):
    """theta^- <- mu theta^- + (1 - mu) theta, and the count of steps, on which mu and N depend."""
    model = distillation(growth="none", s0=18, target_decay=0.9)
    before = copy.deepcopy(model.target.state_dict())
    model(batch()).total.backward()
    assert all(p.grad is None for p in model.target.parameters())
    model.after_step(0)
    name = "conv_in.weight"
    expected = 0.9 * before[name] + 0.1 * model.network.state_dict()[name]
    error = (model.target.state_dict()[name] - expected).abs().max()
    truth("consistency distillation", "target after a step", "mu theta^- + (1 - mu) theta", error, 6e-8)
    again, one = distillation(growth="none", s0=18, target_decay=0.9), batch()
    again.load_state_dict(model.state_dict(), strict=True)
    assert again.step == 1
    assert torch.equal(again(one).total, model(one).total)


def test_the_goal_is_what_the_average_says(truth):
    """|f(x_t, t) - f^-(x_s, s)|^2 with F^- in f^-, by hand: c_skip x + c_out F^-(c_in x, ln(s) / 4) (appendix C)."""
    model, one = distillation(growth="none", metric="squared", target_decay=0.9).double(), batch()
    x, z = one.images.double(), torch.randn(6, 1, 8, 8).double()
    t, s = at_level(3.0).expand(6), at_level(2.0).expand(6)
    x_t = x + 3 * z
    x_s = model.earlier(x_t, x, z, t, s, None)
    beyond = 2 - EPSILON
    answer = model.target(x_s / (4 + 0.25) ** 0.5, torch.tensor(2.0).double().log() / 4)
    goal = 0.25 / (beyond**2 + 0.25) * x_s + 0.5 * beyond / (4 + 0.25) ** 0.5 * answer
    expected = (model.function(x_t, t) - goal).square().mean((1, 2, 3))
    error = (model.disagreement(x, z, t, s) / expected - 1).abs().max().detach()
    truth("consistency distillation", "distance to what the average says, relative", "by hand", error, 2e-15)


def test_the_noisier_point_learns_from_its_neighbour():
    """Song et al. 2023, algorithms 2 and 3: f at sigma_{n+1} is moved towards f^- at sigma_n."""
    model, seen, levels = training(growth="none", s0=6), {}, noise_levels(6)
    plain = model.disagreement
    model.disagreement = lambda x, z, t, s, labels: plain(x, z, *seen.setdefault("times", (t, s)), labels)
    model(batch(40))
    upper, lower = (torch.isclose(80 * times[:, None], levels).long().argmax(1) for times in seen["times"])
    assert torch.equal(upper, lower + 1)
    assert len(set(lower.tolist())) > 1


def test_a_target_of_no_average_is_the_network_itself():
    model = training()
    assert model.target is None
    assert not any("target" in name for name in model.state_dict())


def test_the_gradient_is_that_of_the_later_point_alone(truth):
    model, one, seen = training(growth="none", s0=6).double(), batch(), {}
    one.images = one.images.double()
    function = model.function

    def look(x, t, labels=None, network=None):
        return seen.setdefault(len(seen), function(x, t, labels, network))

    model.function = look
    model(one).total.backward()
    assert seen[0].requires_grad
    assert not seen[1].requires_grad
    assert all(p.grad is not None and p.grad.any() for p in model.network.parameters())


def test_both_points_see_the_same_dropout(truth):
    """Song and Dhariwal 2024, section 3.1; at the same point they then say the same."""
    network = UNetConfig(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(False, False),
        groups=4,
        middle_attention=False,
        dropout=0.5,
    )
    model = training(network=network, metric="squared").train()
    x, z = torch.randn(2, 3, 1, 8, 8)
    t = at_level([0.3, 2.0, 40.0])
    error = model.disagreement(x, z, t, t).max()
    truth("consistency training", "two equal points with dropout 0.5", "0", error.detach(), 0.0)
    assert not torch.equal(model.function(x, t), model.function(x, t))


def test_reduced_precision_does_not_swallow_the_gradient():
    """autocast casts a weight once, and in an older torch a first cast without gradient would take it from all."""
    model = training()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch()).total
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.network.parameters())


def test_the_teachers_step_is_guided_and_that_of_heun(truth):
    """In the noise level itself, with d = (x - D) / sigma and D guided by eq. 92 (Karras et al. 2022, algorithm 1)."""
    model = distillation(guidance=1.5, classes=3).double()
    x, labels = torch.randn(4, 1, 8, 8).double(), torch.tensor([0, 1, 2, 0])
    high, low = torch.tensor([80.0, 5.0, 0.5, 0.01]).double(), torch.tensor([60.0, 4.0, 0.4, 0.002]).double()

    def slope(x, sigma):
        t, none = at_level(sigma), torch.full_like(labels, 3)
        y = [convert(model.teacher.answer(x, t, k), x, PATH.at(t), "edm", "clean") for k in (labels, none)]
        return (x - 2.5 * y[0] + 1.5 * y[1]) / sigma.view(-1, 1, 1, 1)

    h, first = (low - high).view(-1, 1, 1, 1), slope(x, high)
    expected = x + h * (first + slope(x + h * first, low)) / 2
    found = model.earlier(x, x, x, at_level(high), at_level(low), labels)
    error = ((found - expected) / expected.abs().amax((1, 2, 3), keepdim=True)).abs().max()
    truth("consistency distillation", "x_s of a guided teacher, relative", "Heun's step by hand", error.detach(), 3e-15)


@pytest.mark.parametrize("make", [training, distillation])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth, make, classes):
    model, whole = make(classes=classes).double(), batch(6, classes)
    whole.images = whole.images.double()
    total = model(whole).total
    halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
    truth(
        "consistency model",
        "loss of a batch, relative",
        "mean over its halves",
        ((total - halves) / total).abs().detach(),
        5e-16,
    )


# Sampling


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_of_the_exact_function_have_the_moments_of_the_data(truth, steps):
    """For Gaussian data a sample is linear in its noises, m + c_1 z_1 + ... + c_N z_N, whose c come out one at a time.

    The first noise, 80 z, is no noisy picture: it lacks the mean m and the variance s^2. At sigma_n a share
    r_n = (s^2 + epsilon^2) / (s^2 + sigma_n^2) of what the variance lacks is left, and its root of what the mean does.
    """
    denoiser = Denoiser(lambda x, t: exact(x, 80 * t), PATH, "clean")
    times = training().sampling_times(steps)
    rows, one = steps + 1, iter(range(1, steps + 1))

    def unit():
        z = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
        z[next(one)] = 1
        return z

    x = multistep(denoiser, 80 * unit(), times, unit)
    mean, variance = x[0], (x[1:] - x[0]).square().sum()
    shares = [(DATA.std**2 + EPSILON**2) / (DATA.std**2 + (80 * t) ** 2) for t in times[:-1]]
    missing = math.prod(shares)
    truth(
        f"consistency sampling, {steps} steps",
        "mean",
        "closed form",
        (mean - DATA.mean * (1 - math.sqrt(missing))).abs().max(),
        3e-16,
    )
    expected = DATA.std**2 + EPSILON**2 - DATA.std**2 * missing
    truth(f"consistency sampling, {steps} steps", "variance", "closed form", (variance - expected).abs(), 3e-16)


def test_many_steps_take_the_noise_levels_of_a_grid():
    model = training()
    assert (model.sampling_times(1) * 80).tolist() == pytest.approx([80, 0.002])
    assert torch.allclose(model.sampling_times(4) * 80, noise_levels(5).flip(0))
    assert (model.sampling_times(sigmas=[80, 0.821]) * 80).tolist() == pytest.approx([80, 0.821, 0.002])
    asked, function = [], model.function
    model.function = lambda x, t, labels=None: (asked.append(float(t) * 80), function(x, t, labels))[1]
    pictures = model.sample(2, sigmas=[80, 0.821])
    assert asked == pytest.approx([80, 0.821])
    assert pictures.shape == (2, 1, 8, 8)
    assert pictures.abs().max() <= 1
    assert not torch.equal(pictures, model.sample(2))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_picture_does_not_depend_on_its_batch(truth, steps):
    model = training(classes=3)
    together = model.sample(5, labels=[0, 1, 2, 0, 1], seeds=10, steps=steps)
    alone = torch.cat([model.sample(1, labels=[k % 3], seeds=10 + k, steps=steps) for k in range(5)])
    truth(
        f"consistency sampling, {steps} steps",
        "five pictures together",
        "one by one, float32",
        (together - alone).abs().max(),
        6e-7,
    )


@pytest.mark.oracles
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("clip", [True, False])
def test_the_trajectory_is_that_of_diffusers(truth, steps, clip):
    """The same network, told 1000 ln(sigma) / 4 by diffusers, at every so manyth of 40 noise levels (in float64)."""
    diffusers = pytest.importorskip("diffusers")
    made = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, clip_denoised=clip)
    made.set_timesteps(steps)
    sigmas = torch.cat([noise_levels(40).flip(0)[:: 40 // steps][:steps], noise_levels(40)[:1]])
    assert torch.allclose(made.sigmas.double(), sigmas, rtol=1e-6)
    made.sigmas = sigmas

    class Network(torch.nn.Module):
        def forward(self, seen, network_time):
            return torch.tanh(0.8 * seen + 0.1) * (0.9 + 0.1 * network_time) + 0.05

    def seeded():
        generator = torch.Generator().manual_seed(7)
        return lambda: torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(7)
    x = 80 * torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network, state, theirs = Network(), x, [x]
    for t in made.timesteps:
        y = network(made.scale_model_input(state, t), torch.log(made.sigmas[made.step_index]) / 4)
        state = made.step(y, t, state, generator=generator).prev_sample
        theirs.append(state)
    model, ours = training().double(), []
    model.network = network
    denoiser = Denoiser(model.function, PATH, "clean", clip)
    end = multistep(denoiser, x, at_level(sigmas), seeded(), lambda step: ours.append(step.denoised.x))
    error = max((a - b).abs().max() / b.abs().max() for a, b in zip([*ours, end], theirs, strict=True))
    truth(
        f"consistency sampling, {steps} steps",
        "trajectory, relative",
        "diffusers 0.42.1 CMStochasticIterativeScheduler",
        error,
        4e-16,
    )


@pytest.mark.oracles
def test_the_scalings_are_those_of_diffusers(truth):
    diffusers = pytest.importorskip("diffusers")
    sigma = noise_levels(40)
    theirs = diffusers.CMStochasticIterativeScheduler().get_scalings_for_boundary_condition(sigma)
    error = max((a - b).abs().max() for a, b in zip(boundary(sigma, EPSILON), theirs))
    truth("consistency model", "c_skip and c_out", "diffusers 0.42.1 CMStochasticIterativeScheduler", error, 1e-15)


# What is refused


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"steps": 0}, "at least 1"),
        ({"steps": 2, "sigmas": [80, 1]}, "not both"),
        ({"sigmas": [80, 90]}, "fall from 80"),
        ({"sigmas": [40, 1]}, "fall from 80"),
        ({"sigmas": [80, 0.001]}, "above 0.002"),
        ({"sigmas": []}, "fall from 80"),
        ({"labels": [0, 1, 3]}, "from 0 to 2"),
        ({"captions": ["a shoe"] * 3}, "captions"),
    ],
)
def test_impossible_wishes_are_refused(wish, complaint):
    with pytest.raises(ConfigError, match=complaint):
        training(classes=3).sample(3, **wish)


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"image_size": 0}, "image_size"),
        ({"s0": 1}, "s0"),
        ({"s0": 20, "s1": 10}, "s1 must be at least 20"),
        ({"rho": 0.0}, "rho"),
        ({"target_decay": 1.0}, "target_decay"),
        ({"total_steps": 0}, "total_steps"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config(**choices)


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"path": "cosine", "grid": "uniform"}, "path=edm"),
        ({"prediction": "v"}, "prediction=edm"),
        ({"unit_input": False}, "unit_input=true"),
        ({"classes": 3}, "classes of its teacher"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ConsistencyDistillation(config(), teacher=teacher(**choices))


def test_labels_are_needed_where_they_are_learned():
    with pytest.raises(DataError, match="labels"):
        training(classes=3)(batch())


def test_a_consistency_model_only_samples():
    assert abilities(ConsistencyTraining) == abilities(ConsistencyDistillation) == ["sample"]


def test_a_config_survives_json():
    made = config(classes=3, target_decay=0.9)
    assert ConsistencyConfig.from_dict(made.to_dict()) == made


def test_the_published_network_has_the_published_size(truth):
    """ADM for ImageNet at 64 pixels: 296 million parameters (Dhariwal and Nichol 2021, table 4)."""
    stage = find("consistency-distillation").stages[-1]
    c = stage.sizes["paper"](PictureSpec(64, 3, tuple(map(str, range(1000)))))
    with torch.device("meta"):
        network = c.network.build(c.channels, c.channels, c.classes + 1, c.image_size)
    found = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
    truth("consistency-distillation, paper", "parameters in millions", "296, as published", abs(found - 296), 0.15)


def test_consistency_training_has_the_network_of_the_published_configuration():
    """NCSN++ of 256 channels at every size, four blocks a level, attention at 16 x 16."""
    c = find("consistency-training").stages[-1].sizes["paper"](PictureSpec(32, 3))
    n = c.network
    assert (n.channels, n.multipliers, n.blocks, n.dropout) == (128, (2, 2, 2), 4, 0.3)
    assert n.attention == (False, True, False)
