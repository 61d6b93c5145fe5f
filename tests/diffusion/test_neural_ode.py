"""Neural ordinary differential equations: likelihood, gradients in two ways, and what is learned."""

import copy
import math
from itertools import product

import pytest
import torch

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.core.likelihood import bits_per_dim, discrete_log_prob
from mezzotint.diffusion.neural_ode import NeuralODE, NeuralODEConfig, adjoint, augmented, normal_log_prob
from mezzotint.diffusion.ode import euler

POINT = {"image_size": 1, "channels": 2, "kernel": 1, "logit": False, "trace": "exact"}
PICTURE = {"image_size": 4, "channels": 1, "widths": (6,), "patch": 2, "steps": 2}


def flow(std=0.5, **choices):
    """A flow of large random weights, float64."""
    model = NeuralODE(NeuralODEConfig(**{**POINT, "widths": (8, 8), "steps": 3, **choices})).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def points(n):
    return torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(0)).double()


# The equation


def test_a_residual_network_is_eulers_method(truth):
    """The survey's eq. 101: x_{t+1} = x_t + f(x_t, theta_t), the time in units of layers."""
    velocity, x, times = flow().velocity, points(5), torch.linspace(0, 1, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = x
        for t in times[:-1]:
            expected = expected + velocity(t, expected) / 7
        error = (euler(velocity, x, times) - expected).abs().max()
    truth("neural ODE", "Euler's method", "a residual network of seven layers", error, 1e-15)


def test_the_velocity_is_its_formula(truth):
    """Of points, for which a convolution is W h + b: silu((W h + b) (1 + u t) + w t), the last without silu."""
    velocity, x, t = flow(widths=(5,)).velocity, points(4), 0.75
    h = x[:, :, 0, 0]
    for k, (W, b, gate) in enumerate(zip(velocity.weights, velocity.biases, velocity.gates)):
        u, w = gate[:, :, 0, 0]
        h = torch.nn.functional.silu(h) if k else h
        h = (h @ W[:, :, 0, 0].T + b[:, 0, 0]) * (1 + u * t) + w * t
    error = (velocity(torch.tensor(t).double(), x)[:, :, 0, 0] - h).abs().max().detach()
    truth("neural ODE", "velocity of a network of two layers", "its formula", error, 2e-15)


def test_the_velocity_and_its_derivatives_are_pushed_forward_together(truth):
    velocity, t = flow(**PICTURE).velocity, torch.tensor(0.3).double()
    x, directions = torch.randn(3, 1, 4, 4).double(), torch.randn(2, 3, 1, 4, 4).double()
    v, pushed = velocity.push(t, x, directions)
    expected, worst = velocity(t, x), 0.0
    for direction, along in zip(directions, pushed):
        _, tangent = torch.autograd.functional.jvp(lambda y: velocity(t, y), x, direction)
        worst = max(worst, (along - tangent).abs().max())
    truth("neural ODE", "velocity with its derivatives", "without", (v - expected).abs().max().detach(), 1e-15)
    truth("neural ODE", "derivatives of the velocity", "automatic differentiation", worst.detach(), 3e-15)
    each = velocity(t.expand(3), x)
    assert torch.allclose(each, expected, rtol=0, atol=1e-14)


def test_hutchinsons_estimate_is_right_on_average_over_all_signs(truth):
    velocity, x, t = flow().velocity, points(4), torch.tensor(0.6).double()
    exact = augmented(velocity.push)(t, (x, x))[1]
    jacobian = torch.stack([
        torch.autograd.functional.jacobian(lambda y: velocity(t, y[None])[0], row).view(2, 2) for row in x
    ])  # fmt: skip
    traces = torch.einsum("bii->b", jacobian)
    truth("neural ODE", "divergence", "trace of the Jacobian", (exact - traces).abs().max().detach(), 1e-15)
    signs = [torch.tensor(pair).double().view(1, 2, 1, 1).expand_as(x) for pair in product((-1, 1), repeat=2)]
    mean = torch.stack([augmented(velocity.push, probe)(t, (x, x))[1] for probe in signs]).mean(0)
    truth("neural ODE", "Hutchinson's estimate, mean over all signs", "exact divergence",
          (mean - exact).abs().max().detach(), 1e-15)  # fmt: skip


def test_the_density_of_a_linear_flow_is_the_closed_form(truth):
    """dx/dt = A x takes x to exp(A) x: ln p(x) = ln N(exp(A) x; 0, 1) + tr A."""
    A, x = torch.tensor([[0.5, -0.8], [0.3, -0.2]]).double(), points(6)

    class Linear(torch.nn.Module):
        def push(self, t, x, directions):
            return torch.einsum("ij,bjhw->bihw", A, x), torch.einsum("ij,kbjhw->kbihw", A, directions)

    model = flow()
    model.velocity = Linear()
    z = torch.einsum("ij,bj->bi", torch.linalg.matrix_exp(A), x.flatten(1))
    expected = normal_log_prob(z) + A.trace()
    error = (model.log_prob(x, rtol=1e-9, atol=1e-9) - expected).abs().max()
    truth("neural ODE", "log-density of a linear flow, adaptive solver at 1e-9", "closed form", error, 5e-9)
    errors = [(model.log_prob(x, steps=steps) - expected).abs().max() for steps in (4, 8)]
    off = abs(torch.log2(errors[0] / errors[1]) - 4)
    truth("neural ODE", "order of convergence of the log-density, distance from 4", "order of the solver", off, 0.3)


def test_the_logits_are_inverted_and_their_density_is_that_of_the_jacobian(truth):
    model = flow(std=0.1, **PICTURE, logit=True, trace="hutchinson")
    x = torch.rand(3, 1, 4, 4).double() * 2 - 1
    y, gained = model.inward(x)
    truth("neural ODE", "logits and back", "itself", (model.outward(y) - x).abs().max().detach(), 3e-15)
    jacobian = torch.stack([
        torch.autograd.functional.jacobian(lambda v: model.inward(v[None])[0].flatten(), row).view(16, 16) for row in x
    ])  # fmt: skip
    error = (gained - torch.linalg.slogdet(jacobian).logabsdet).abs().max()
    truth("neural ODE", "log-determinant of the logits", "automatic Jacobian", error.detach(), 2e-14)


def test_pictures_come_back_from_their_noise_as_the_steps_become_smaller(truth):
    model, x = flow(**PICTURE, logit=True), torch.rand(3, 1, 4, 4).double() * 1.8 - 0.9
    errors = [(model.decode(model.encode(x, steps=n), steps=n) - x).abs().max() for n in (8, 16)]
    truth("neural ODE", "a picture to noise and back, 16 steps", "itself", errors[1], 3e-5)
    assert errors[1] < errors[0] / 8


# Gradients


def loss_and_gradients(model, x, gradient, steps):
    model = copy.deepcopy(model)
    object.__setattr__(model.config, "gradient", gradient)
    object.__setattr__(model.config, "steps", steps)
    x = x.clone().requires_grad_()
    loss = model(Batch(x, seeds=range(len(x)))).total
    gradients = torch.autograd.grad(loss, [x, *model.parameters()])
    return loss.detach(), torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("choices", [{}, {**PICTURE, "logit": True, "trace": "hutchinson"}], ids=["points", "pictures"])
def test_direct_and_adjoint_gradients_agree_as_the_steps_become_smaller(truth, choices):
    """Of the likelihood, by weights and by pictures. Their difference falls with the fourth power of the step."""
    model = flow(std=0.4, **choices)
    x = points(5) if not choices else torch.rand(3, 1, 4, 4).double() * 1.6 - 0.8
    errors = []
    for steps in (4, 8, 16):
        loss, direct = loss_and_gradients(model, x, "direct", steps)
        same, through = loss_and_gradients(model, x, "adjoint", steps)
        assert loss == same
        errors.append((direct - through).norm() / direct.norm())
    kind = "pictures" if choices else "points"
    truth("neural ODE", f"direct and adjoint gradients, {kind}, 16 steps, relative", "each other", errors[-1], 1e-7)
    order = torch.log2(errors[1] / errors[2])
    truth("neural ODE", f"order of their agreement, {kind}, below 4", "at least 4", (4 - order).clamp(min=0), 0.3)


def test_the_adjoint_gradient_of_a_linear_equation_is_the_closed_form(truth):
    """y(1) = exp(a) y(0): its derivatives by a and by y(0) are exp(a) y(0) and exp(a)."""
    a, y0 = torch.tensor(0.7).double().requires_grad_(), torch.tensor([[1.3]]).double().requires_grad_()
    (end,) = adjoint(lambda t, state: (a * state[0],), (y0,), torch.linspace(0, 1, 65).double(), [a])
    by_a, by_y = torch.autograd.grad(end.sum(), [a, y0])
    truth("neural ODE", "adjoint gradient by the rate", "exp(a) y", (by_a - a.exp() * y0).abs().max().detach(), 4e-9)
    truth("neural ODE", "adjoint gradient by the start", "exp(a)", (by_y - a.exp()).abs().max().detach(), 1e-9)


# What is learned


class Two:
    """Two normal distributions side by side."""

    std = torch.tensor([0.4, 0.5])

    def sample(self, n):
        side = torch.randint(0, 2, (n, 1)) * 2.0 - 1
        return torch.cat([side, torch.zeros(n, 1)], 1) + self.std * torch.randn(n, 2)

    def log_prob(self, x):
        sides = [normal_log_prob((x - torch.tensor([s, 0.0])) / self.std) - self.std.log().sum() for s in (-1.0, 1.0)]
        return torch.logsumexp(torch.stack(sides), 0) - math.log(2)


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    model = NeuralODE(NeuralODEConfig(**{**POINT, "widths": (32, 32), "steps": 2, "trace": "hutchinson"}))
    steps, optimizer = 80, torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        x = Two().sample(100).view(-1, 2, 1, 1)
        loss = model(Batch(x, seeds=range(100 * step, 100 * (step + 1)))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_a_density_in_the_plane_is_learned(truth, learned):
    x = Two().sample(2000)
    divergence = (Two().log_prob(x) - learned.log_prob(x.view(-1, 2, 1, 1), trace="exact")).mean()
    before = (Two().log_prob(x) - normal_log_prob(x)).mean()
    assert before > 0.4
    truth("neural ODE", "Kullback-Leibler divergence of a learned density, nats", "0 (0.5 before)", divergence, 0.08)


def test_the_learned_density_integrates_to_one(truth, learned):
    line = torch.linspace(-4, 4, 61)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 2, 1, 1)
    mass = learned.log_prob(places, trace="exact", steps=8).double().exp().sum() * (line[1] - line[0]) ** 2
    truth("neural ODE", "integral of the learned density over [-4, 4]^2", "1", abs(mass - 1), 1e-5)


def test_samples_have_the_learned_density(truth, learned):
    drawn = learned.decode(PictureRandom(range(2000)).normal(2, 1, 1), steps=8).flatten(1)
    error = (drawn.T.cov() - torch.diag(torch.tensor([1 + 0.16, 0.25]))).abs().max()
    truth("neural ODE", "covariance of samples of the learned density", "that of the data", error, 0.05)


# The model


def tiny(**choices):
    return flow(std=0.1, **{**PICTURE, "logit": True, "trace": "hutchinson", **choices}).float()


def test_the_loss_is_minus_the_likelihood_at_its_steps(truth):
    model, x = tiny(trace="exact").double(), torch.rand(4, 1, 4, 4).double() * 2 - 1
    losses = model(Batch(x, seeds=range(4)))
    log_prob = model.log_prob(x, steps=2)
    error = (losses.total / (-log_prob.mean() / 16) - 1).abs().detach()
    truth("neural ODE", "loss, relative", "-ln p(x) / D", error, 1e-15)
    expected = bits_per_dim(discrete_log_prob(log_prob.mean(), 16), 16)
    assert torch.allclose(losses.parts["bits_per_dim"], expected)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth):
    model, whole = tiny().double(), Batch(torch.rand(6, 1, 4, 4).double() * 2 - 1, seeds=range(6))
    total = model(whole).total
    halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
    error = ((total - halves) / total).abs().detach()
    truth("neural ODE", "loss of a batch, relative", "mean over its halves", error, 1e-15)


def test_a_new_flow_goes_nowhere():
    model = NeuralODE(NeuralODEConfig(image_size=4, channels=1))
    x = torch.rand(2, 1, 4, 4) * 1.8 - 0.9
    assert torch.equal(model.encode(x), model.inward(x)[0])


def test_samples_are_pictures_and_depend_on_their_seed_alone():
    model = tiny()
    pictures = model.sample(3, seeds=5)
    assert pictures.shape == (3, 1, 4, 4)
    assert pictures.abs().max() <= 1
    assert torch.allclose(pictures[1:2], model.sample(1, seeds=6), atol=1e-6)
    assert not torch.allclose(pictures[0], pictures[1], atol=0.01)


def test_black_and_white_have_a_finite_density():
    x = torch.tensor([-1.0, 1 - 2**-7]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert tiny().log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NeuralODEConfig(image_size=5, channels=1, patch=2), "change patch"),
        (lambda: NeuralODEConfig(image_size=4, channels=1, kernel=2), "odd"),
        (lambda: NeuralODEConfig(image_size=4, channels=1, steps=0), "steps"),
        (lambda: NeuralODEConfig(image_size=4, channels=1, widths=(0,)), "widths"),
        (lambda: tiny().sample(1, steps=0), "at least 1 step"),
        (lambda: tiny().sample(1, labels=[0]), "labels"),
        (lambda: tiny().log_prob(torch.zeros(1, 1, 4, 4), trace="guess"), "hutchinson or exact"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
