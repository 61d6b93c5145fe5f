"""Reflow: straighter paths to the same pictures, learned from a teacher's pairs."""

import copy

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec
from mezzotint.core.checkpoint import latest, load_tensors
from mezzotint.core.errors import ConfigError
from mezzotint.core.system import Identity, Recipe
from mezzotint.data.pictures import InMemory
from mezzotint.diffusion.grids import uniform
from mezzotint.diffusion.measures import departure, straightness
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.pairs import trajectory
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser
from mezzotint.diffusion.reflow import ReflowConfig, ReflowModel
from mezzotint.diffusion.solvers import euler
from mezzotint.nn.unet import UNetConfig
from mezzotint.systems import find
from mezzotint.training.schedule import Budget
from mezzotint.training.trainer import Trainer

STRAIGHT = PATHS["straight"]
TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
FLOW = {"network": TINY, "path": "straight", "prediction": "velocity", "times": "uniform",
        "solver": "euler", "grid": "uniform", "steps": 4, "clip": False}  # fmt: skip


def flow(**choices):
    """A flow of large random weights."""
    model = DenoisingModel(DenoisingConfig(**{**FLOW, "image_size": 8, "channels": 1, **choices}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def student(teacher, **choices):
    same = {name: getattr(teacher.config, name) for name in ("image_size", "channels", "classes", "network")}
    made = {**FLOW, **same, "pairs": 16, "teacher_steps": 3, **choices}
    return ReflowModel(ReflowConfig(**made), rectified=teacher)


def batch(n=6, first=0):
    return Batch(torch.zeros(n, 1, 8, 8), torch.arange(n) % 3, seeds=range(first, first + n))


# What straightness means


def test_the_straightness_of_a_gaussian_flow_is_that_of_the_closed_form(truth):
    """x_t = (1 - t) m + spread(t) z, so dx_t/dt = spread' z - m, and S = |z|^2 (int spread'^2 dt - (1 - s)^2)."""
    data, z = Gaussian(), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    slope = (t - (1 - t) * data.std**2) / data.spread(STRAIGHT.at(t))
    expected = z.square().flatten(1).sum(1) * (slope.square().mean() - (1 - data.std) ** 2)
    errors = []
    for steps in (500, 1000):
        measured = departure(data.denoiser(STRAIGHT), z, uniform(steps, STRAIGHT))
        errors.append((measured / expected - 1).abs().max())
    truth("straightness", "Gaussian data, 1000 steps, relative", "closed form", errors[1], 1e-2)
    truth("straightness", "order of convergence, distance from 1", "order of Euler's method",
          (torch.log2(errors[0] / errors[1]) - 1).abs(), 0.02)  # fmt: skip


def test_straightness_is_an_integral_over_time_however_its_steps_are_spaced(truth):
    """The same one on times that gather at the picture, where most steps are short and count little."""
    data, z = Gaussian(), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    even = uniform(400, STRAIGHT)
    measured, expected = (departure(data.denoiser(STRAIGHT), z, grid) for grid in (even**2, even))
    truth("straightness", "400 steps at squares of uniform times, relative", "uniform times",
          (measured / expected - 1).abs().max(), 5e-3)  # fmt: skip


def test_reflow_of_a_gaussian_flow_is_straight_and_needs_one_step(truth):
    """Its pairs are (m + s n, n), so n can be read from x_t, and the velocity n - m - s n is constant on the way."""
    data = Gaussian()

    def network(x, t):
        n = (x - (1 - t) * data.mean) / ((1 - t) * data.std + t)
        return n - (data.mean + data.std * n)

    z, denoiser = torch.randn(50, 1, 2, 2, dtype=torch.float64), Denoiser(network, STRAIGHT, "velocity")
    bent = departure(data.denoiser(STRAIGHT), z, uniform(50, STRAIGHT)).mean()
    truth("straightness", "2-rectified Gaussian flow, relative to the 1-rectified", "0",
          departure(denoiser, z, uniform(50, STRAIGHT)).mean() / bent, 2e-30)  # fmt: skip
    error = (euler(denoiser, z, uniform(1, STRAIGHT), None) - (data.mean + data.std * z)).abs().max()
    truth("reflow", "one Euler step of the 2-rectified Gaussian flow", "the optimal map", error, 3e-16)


# What is learned


class Squares(torch.nn.Module):
    """The exact velocity of rectified flow to four Gaussians in the plane, as pictures (2, 1, 1)."""

    std = 0.2

    def __init__(self):
        super().__init__()
        centres = torch.tensor([[1.5, 0.0], [-1.5, 0.0], [0.0, 1.5], [0.0, -1.5]])
        self.centres = torch.nn.Parameter(centres.view(1, 4, 2, 1, 1), requires_grad=False)

    def forward(self, x, network_time, labels=None):
        t = (network_time / 1000).to(x).view(-1, 1, 1, 1, 1)  # broadcast with (B, 4, 2, 1, 1)
        a, variance = 1 - t, ((1 - t) * self.std) ** 2 + t**2
        off = x[:, None] - a * self.centres
        weight = torch.softmax(-off.square().sum(2, keepdim=True) / (2 * variance), 1)
        clean = (weight * (self.centres + a * self.std**2 / variance * off)).sum(1)
        return (x - clean) / t[:, 0]


class Small(torch.nn.Module):
    """A velocity in the plane to be learned."""

    def __init__(self, width=128):
        super().__init__()
        layers = [torch.nn.Linear(3, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU()]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2))

    def forward(self, x, network_time, labels=None):
        t = (network_time / 1000).to(x).expand(len(x))
        return self.layers(torch.cat([x.flatten(1), t[:, None]], 1)).view_as(x)


@pytest.fixture(scope="module")
def planes():
    """The exact teacher, and a student that learned from 1024 of its pairs for a second or two."""
    torch.manual_seed(0)
    teacher = flow(image_size=1, channels=2, network=UNetConfig(8, (1,), 1, (False,), groups=4))
    model = student(teacher, pairs=1024, teacher_steps=30)
    teacher.network, model.teacher.network, model.network = Squares(), Squares(), Small()
    steps, optimizer = 300, torch.optim.Adam(model.network.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        loss = model(Batch(torch.zeros(128, 2, 1, 1), seeds=range(128 * step, 128 * (step + 1)))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher, model


def ends(model, steps, seeds=range(1000, 1500)):
    """Noise that is in no pair, and where the model takes it."""
    n = PictureRandom(seeds).normal(2, 1, 1)
    with torch.no_grad():
        return n.flatten(1), trajectory(euler, model.unclipped(), n, uniform(steps, STRAIGHT)).flatten(1)


def test_reflow_reduces_the_straightness_measure(truth, planes):
    before, after = (straightness(model, 500).mean() for model in planes)
    truth("reflow", "straightness after reflow on 2-D data, of that before", "0", after / before, 0.03)


def test_reflow_does_not_increase_the_transport_cost(truth, planes):
    """Liu et al. 2022, theorem 3.5. Independent noise and picture cost 2.25 + 0.08 + 2."""
    first, second = ((end - n).square().sum(1).mean() for n, end in (ends(model, 50) for model in planes))
    assert first < (2.25 + 0.08 + 2) / 4
    growth = (second / first - 1).clamp(min=0)
    truth("reflow", "growth of the transport cost on 2-D data, relative", "none", growth, 0.02)


def test_reflow_preserves_the_marginals_in_one_step(truth, planes):
    teacher, model = planes
    data = ends(teacher, 50)[1]
    for steps in (1, 20):
        _, made = ends(model, steps)
        truth("reflow", f"covariance of 2-D samples in {steps} steps", "that of the teacher's samples",
              (made.T.cov() - data.T.cov()).abs().max(), 0.2)  # fmt: skip
        truth("reflow", f"mean of 2-D samples in {steps} steps", "that of the teacher's samples",
              (made.mean(0) - data.mean(0)).abs().max(), 0.05)  # fmt: skip
    blurred = ends(teacher, 1)[1]  # the bent flow in one step draws the mean of the data
    assert blurred.abs().max() < 0.5


# How it is trained


def test_the_student_begins_as_its_teacher():
    teacher = flow(classes=3)
    model = student(teacher)
    assert torch.equal(model.sample(3, labels=[0, 1, 2]), teacher.sample(3, labels=[0, 1, 2]))


def test_the_pairs_are_the_teachers_pictures(truth):
    teacher = flow(classes=3, guidance=1.5)
    model = student(teacher)
    pairs = model.pool.draw(PictureRandom(range(5)), model.solve)
    assert torch.equal(pairs.labels, pairs.number % 3)
    guided = teacher.denoiser(pairs.labels, teacher.sampling_guidance(1.5))
    expected = trajectory(euler, guided, pairs.noise, uniform(3, STRAIGHT))[:, 0].detach()
    truth("reflow", "pairs", "the guided teacher's Euler steps", (pairs.end - expected).abs().max(), 3e-6)


def test_the_loss_is_that_of_the_pair(truth):
    model = student(flow(), times="last").double()
    batch_ = batch()
    pairs = model.pool.draw(batch_.random(), model.solve)
    answer = model.network(pairs.noise.double(), STRAIGHT.network_time(torch.ones(6)))
    expected = (pairs.noise - pairs.end - answer).square().mean()
    error = (model(batch_).total / expected - 1).abs().detach()
    truth("reflow", "loss of the one-step student, relative", "|Z_1 - Z_0 - v(Z_0)|^2", error, 1e-15)


def test_a_pair_is_learned_with_its_own_label(truth):
    """And not with that of the picture of the batch, which is not looked at."""
    model, batch_ = student(flow(classes=3), times="last", label_dropout=0.0).double(), batch()
    pairs = model.pool.draw(batch_.random(), model.solve)
    assert not torch.equal(pairs.labels, batch_.labels)
    answer = model.network(pairs.noise.double(), STRAIGHT.network_time(torch.ones(6)), pairs.labels)
    expected = (pairs.noise - pairs.end - answer).square().mean()
    error = (model(batch_).total / expected - 1).abs().detach()
    truth("reflow", "loss with labels, relative", "|Z_1 - Z_0 - v(Z_0, label)|^2", error, 1e-15)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth):
    model, whole = student(flow(classes=3)).double(), batch()
    total = model(whole).total
    halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
    error = ((total - halves) / total).abs().detach()
    truth("reflow", "loss of a batch, relative", "mean over its halves", error, 1e-14)


def test_the_teacher_is_frozen():
    model = student(flow(network=UNetConfig(8, (1, 2), 1, (False, True), groups=4, dropout=0.5)))
    before = copy.deepcopy(model.teacher.state_dict())
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    model(batch()).total.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.network.parameters())
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert all(torch.equal(value, model.teacher.state_dict()[key]) for key, value in before.items())


def test_a_teacher_brings_neither_its_own_teacher_nor_its_pairs():
    names = student(student(flow())).state_dict()
    assert not [name for name in names if name.startswith(("teacher.teacher", "teacher.pool"))]


def test_a_resumed_student_sees_the_same_pairs():
    model, again = student(flow()), student(flow())
    model(batch())
    again.load_state_dict(model.state_dict())
    asked = []
    again.solve = lambda noise, labels, solve=again.solve: asked.append(len(noise)) or solve(noise, labels)
    assert torch.equal(model(batch()).total, again(batch()).total)
    assert not asked
    assert torch.equal(model(batch(6, 10)).total, again(batch(6, 10)).total)
    assert asked


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ReflowModel(ReflowConfig(image_size=8, channels=1, **FLOW)), "needs a teacher"),
        (lambda: ReflowConfig(image_size=8, channels=1, teacher_solver="eulr", **FLOW), "did you mean 'euler'"),
        (lambda: ReflowConfig(image_size=8, channels=1, teacher_grid="unifrom", **FLOW), "did you mean 'uniform'"),
        (lambda: ReflowConfig(image_size=8, channels=1, pairs=0, **FLOW), "pairs must be at least 1"),
        (lambda: student(flow(), teacher_solver="ancestral")(batch()), "deterministic"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


@pytest.mark.parametrize("name", ["rectified-flow", "reflow", "boundary-rectified-flow"])
def test_the_published_network_has_the_published_size(truth, name):
    """DDPM++ (Song et al. 2021), without classes."""
    data = PictureSpec(32, 3)
    with torch.device("meta"):
        network = find(name).stages[-1].sizes["paper"](data).network.build(3, 3, 0, 32)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    truth(f"{name}, paper", "parameters in millions", "61.8 (DDPM++, as published)", abs(millions - 61.8), 0.05)


def test_improved_rectified_flow_has_the_network_and_the_batches_of_the_authors():
    """Configuration and command of Lee et al. 2024 for CIFAR-10: the NCSN++ of EDM, 800 k steps of 512."""
    stage = find("improved-rectified-flow").stages[-1]
    network = stage.sizes["paper"](PictureSpec(32, 3)).network
    assert (network.multipliers, network.dropout, network.blocks) == ((2, 2, 2), 0.13, 4)
    recipe = stage.recipes["paper"]
    assert recipe.pictures == 800_000 * 512
    assert 0.5 ** (512 / recipe.ema_half_life) == pytest.approx(0.9999, abs=1e-6)


# A whole run


def run_of(folder, pictures, budget, **options):
    """A trainer of a student, whose guided teacher and pairs are part of what it saves."""
    torch.manual_seed(0)
    model = student(flow(classes=3, guidance=1.0), label_dropout=0.0)
    model.identity = Identity("reflow", "reflow", "small", PictureSpec(8, 1, ("a", "b", "c")))
    model.configs = {"reflow": model.config}
    recipe = Recipe(batch_size=4, warmup=8, ema_half_life=16)
    return Trainer(model, pictures, folder, recipe, Budget(pictures=budget), precision="fp32", **options)


def test_a_resumed_run_ends_bit_identical_and_solves_no_pair_again(tmp_path):
    pictures = InMemory("noise", "train", torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 3)
    run_of(tmp_path / "whole", pictures, 40).run()
    first = run_of(tmp_path / "parts", pictures, 40)
    first.model.after_step = lambda step: setattr(first, "asked_to_stop", step >= 3)
    assert first.run().interrupted
    again = run_of(tmp_path / "parts", pictures, 40)
    again.resume()
    made = again.model.pool.made.clone()
    assert 0 < made.sum() < 16
    asked = []
    solve = again.model.solve
    again.model.solve = lambda noise, labels: asked.append(len(noise)) or solve(noise, labels)
    again.run()
    assert sum(asked) == again.model.pool.made.sum() - made.sum()
    for file in ("model", "ema"):
        one, other = (load_tensors(latest(tmp_path / part) / f"{file}.safetensors") for part in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert any(key.startswith("pool") for key in one)
        same = [torch.equal(one[key], other[key]) for key in one]
        assert all(same), file
