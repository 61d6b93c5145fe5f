"""Diffusion by a Fourier neural operator: trajectories of a teacher's ODE, all at once."""

import pytest
import torch
from gaussian import Gaussian
from torch import nn

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.dfno import DFNOConfig, DFNOModel, places, state_weights, trajectory_times
from mezzotint.diffusion.grids import uniform
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.paths import PATHS
from mezzotint.nn.fourier import FourierConvolution, TemporalLayer
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
COSINE = {"path": "cosine", "prediction": "v", "times": "uniform", "weighting": "truncated-snr",
          "solver": "ddim", "grid": "uniform", "steps": 4, "clip": False}  # fmt: skip


def teacher(**choices):
    """A denoiser of large random weights."""
    model = DenoisingModel(DenoisingConfig(**{**COSINE, "image_size": 8, "channels": 1, "network": TINY, **choices}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def student(made=None, **choices):
    made = made or teacher()
    same = {name: getattr(made.config, name) for name in ("image_size", "channels", "classes", "network")}
    return DFNOModel(DFNOConfig(**{**same, "pairs": 16, **choices}), model=made)


def batch(n=6, first=0, size=8):
    return Batch(torch.zeros(n, 1, size, size), torch.arange(n) % 3, seeds=range(first, first + n))


class Exact(nn.Module):
    """The network of a denoiser that is perfect for Gaussian data, on the path "cosine"."""

    def forward(self, x, network_time, labels=None):
        path = PATHS["cosine"]
        return Gaussian().clean(x, path.at((network_time + 1) / path.steps))


def gaussian_student(**choices):
    made = student(teacher(prediction="clean", image_size=2), **choices)
    made.teacher.network = Exact()
    return made


# The trajectory


def test_the_times_are_those_of_the_paper():
    """Four of 512 uniform steps, and of 16 ones (Zheng et al. 2023, the settings of both data sets)."""
    cifar = DFNOConfig(32, 3, teacher_steps=512)
    assert trajectory_times(cifar).tolist() == [0.5625, 0.25, 0.0625, 0]
    assert places(trajectory_times(cifar), uniform(512, PATHS["cosine"])) == (224, 384, 480, 512)
    imagenet = DFNOConfig(64, 3, spacing="uniform")
    assert trajectory_times(imagenet).tolist() == [0.75, 0.5, 0.25, 0]
    assert places(trajectory_times(imagenet), uniform(16, PATHS["cosine"])) == (4, 8, 12, 16)


def test_what_is_learned_are_states_of_the_ode(truth):
    """For Gaussian data they are known: x_t = alpha_t m + spread(t) / spread(1) (x_1 - alpha_1 m)."""
    model, path, z = gaussian_student(teacher_steps=256), PATHS["cosine"], torch.randn(3, 1, 2, 2)
    states = model.solve(z, None)
    assert states.shape == (3, 4, 1, 2, 2)
    start = path.at(torch.tensor(1.0).double())
    expected = torch.stack([Gaussian().flowed(z, start, path.at(t)) for t in trajectory_times(model.config)], 1)
    truth("dfno", "states by 256 steps of DDIM, Gaussian data", "solution of the ODE",
          (states - expected).abs().max(), 2e-2)  # fmt: skip


@pytest.mark.parametrize("metric", ["absolute", "squared"])
def test_the_loss_is_the_weighted_mean_over_the_states(metric, truth):
    model = student(teacher(classes=3), metric=metric, largest_weight=20.0)
    losses = model(batch())
    pairs = model.pool.draw(batch().random(), model.solve)
    error = (model.trajectory(pairs.noise, pairs.labels) - pairs.states).detach()
    error = (error.abs() if metric == "absolute" else error**2).mean((0, 2, 3, 4))  # (K,)
    at = PATHS["cosine"].at(trajectory_times(model.config))
    weight = torch.tensor([1.0, (at.alpha / at.sigma)[1], (at.alpha / at.sigma)[2], 20.0])
    truth("dfno", f"loss, {metric}", "sum of max(alpha / sigma, 1) times the error of each state",
          (losses.total.detach() / (weight * error).mean() - 1).abs(), 4e-7)  # fmt: skip
    assert torch.isclose(losses.parts["error"], error.mean())
    assert torch.isclose(losses.parts["error/end"], error[-1])


def test_states_weigh_as_signal_over_noise_between_two_bounds():
    t = torch.tensor([1.0, 0.25, 0.0625, 0.0]).double()
    assert state_weights(PATHS["straight"].at(t), 10.0).tolist() == [1, 3, 10, 10]


# The operator


class Linear(nn.Module):
    """A Fourier layer of five points and three modes that is fed noise and the number 1 as an impulse."""

    def __init__(self):
        super().__init__()
        self.layer = FourierConvolution(2, 1, 3)

    def forward(self, x, t, labels=None):
        impulse = torch.stack([x, torch.ones_like(x)], 2)  # (B, 1, 2, H, W)
        return self.layer(torch.cat([impulse, torch.zeros_like(impulse).expand(-1, 4, -1, -1, -1)], 1))


def test_a_fourier_layer_learns_the_solution_of_a_linear_ode(truth):
    """Gaussian data: each state is an affine function of the noise, whose factors change along time."""
    model = gaussian_student(times=5, modes=3, spacing="uniform", teacher_steps=40, metric="squared", largest_weight=1)
    model.network = Linear()
    optimizer = torch.optim.LBFGS(model.network.parameters(), max_iter=30)

    def loss():
        optimizer.zero_grad()
        total = model(batch(32, size=2)).total
        total.backward()
        return total

    optimizer.step(loss)
    z = torch.randn(4, 1, 2, 2)  # not of the pool
    learned = model.trajectory(z).detach()
    truth("dfno", "trajectories of 5 states learned by a Fourier layer, Gaussian data", "those of the solver",
          (learned - model.solve(z, None)).abs().max(), 5e-6)  # fmt: skip
    start, path = PATHS["cosine"].at(torch.tensor(1.0).double()), PATHS["cosine"]
    exact = torch.stack([Gaussian().flowed(z, start, path.at(t)) for t in trajectory_times(model.config)], 1)
    truth("dfno", "trajectories of 5 states learned by a Fourier layer, Gaussian data", "solution of the ODE",
          (learned - exact).abs().max(), 0.1)  # fmt: skip


def test_a_temporal_layer_adds_the_leaky_part_of_its_convolution():
    """u + LeakyReLU(kappa * u) with the slope 0.01 of the authors' release. A kappa of the frequency 0 alone, R_0 = r,
    makes r times the mean over time, here of the states 1, 2 and 6."""
    layer, u = TemporalLayer(1, 3, 1), torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1, 1)
    for r, added in ((1.0, 3.0), (-1.0, -0.03)):
        with torch.no_grad():
            layer.convolution.weight.fill_(r)
            assert torch.allclose(layer(u), u + added)


def test_the_network_learns_trajectories():
    model = student(pairs=2)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-2)
    errors = []
    for step in range(30):
        optimizer.zero_grad()
        losses = model(batch(2, 2 * step))
        losses.total.backward()
        optimizer.step()
        errors.append(losses.parts["error"].item())
    assert sum(errors[-3:]) < 0.5 * sum(errors[:3])


def test_training_begins_with_the_teachers_network_at_each_time(truth):
    made, z, labels = teacher(classes=3), torch.randn(2, 1, 8, 8), torch.tensor([2, 0])
    model = student(made)
    for module in model.network.modules():
        if isinstance(module, FourierConvolution):
            nn.init.zeros_(module.weight)
    times = model.path.network_time(trajectory_times(model.config))
    expected = torch.stack([made.network(z, t, labels) for t in times], 1)
    truth("dfno", "a new student without its temporal layers", "its teacher's network, float32",
          (model.trajectory(z, labels) - expected).detach().abs().max(), 1e-6)  # fmt: skip


def test_a_sample_takes_one_evaluation_and_is_the_last_state(monkeypatch):
    model, asked = student(teacher(classes=3, guidance=1.0)), []
    for name in ("network", "teacher"):
        network = model.network if name == "network" else model.teacher.network
        forward = network.forward
        monkeypatch.setattr(network, "forward", lambda *a, f=forward, who=name: asked.append((who, len(a[0]))) or f(*a))
    images = model.sample(5, labels=[0, 1, 2, 0, 1], seeds=range(5))
    assert asked == [("network", 5)]
    random = PictureRandom(range(5))
    random.integers(0, 3)  # the labels that are not drawn
    states = model.eval().trajectory(random.normal(1, 8, 8), torch.tensor([0, 1, 2, 0, 1]))
    assert torch.allclose(images, states[:, -1].clamp(-1, 1), atol=1e-5)


def test_trajectories_of_a_guided_teacher_are_guided():
    plain, guided = teacher(classes=3), teacher(classes=3, guidance=2.0)
    guided.load_state_dict(plain.state_dict())
    z, labels = torch.randn(3, 1, 8, 8), torch.arange(3)
    first, second = (student(made).solve(z, labels) for made in (plain, guided))
    assert not torch.allclose(first, second, atol=1e-3)


def test_only_the_operator_is_trained():
    model = student(teacher(classes=3)).train()
    model(batch()).total.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("network.")}
    assert not model.teacher.training


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DFNOModel(DFNOConfig(8, 1, network=TINY)), "needs a teacher"),
        (lambda: student(teacher(path="edm")), "path ends at 1"),
        (lambda: student(teacher_steps=20), "a multiple of 16"),
        (lambda: student(spacing="uniform", teacher_steps=6), "a multiple of 4"),
        (lambda: student(modes=3), "change modes"),
        (lambda: student(classes=3), "classes of its teacher"),
        (lambda: student(teacher_solver="ancestral")(batch()), "deterministic"),
        (lambda: DFNOConfig(8, 1, times=0), "times must be at least 1"),
        (lambda: DFNOConfig(8, 1, largest_weight=0.5), "largest_weight must be at least 1"),
        (lambda: DFNOConfig(8, 1, teacher_grid="unifrom"), "did you mean 'uniform'"),
        (lambda: student().sample(1, labels=[0]), "without labels"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
