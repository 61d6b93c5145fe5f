"""Optimal flow matching: convex potentials, the problem within the loss, and the optimal map that it learns."""

import numpy as np
import pytest
import torch

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.optimal import (
    Convex,
    OptimalFlowConfig,
    OptimalFlowModel,
    gradient,
    invert,
    optimal_loss,
    solve,
)


def convex(dims=3, widths=(6, 5), rank=2, scale=0.6):
    """A potential of large random weights, so that its lines are far from parallel."""
    potential = Convex(dims, widths, rank).double()
    for parameter in potential.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return potential


def hessians(potential, x):
    """(B, D, D)."""
    return torch.stack([torch.autograd.functional.hessian(lambda y: potential(y[None])[0], row) for row in x])


class Quadratic(torch.nn.Module):
    """x' A x / 2 + b.x."""

    def __init__(self, A, b):
        super().__init__()
        self.A, self.b = torch.nn.Parameter(A), torch.nn.Parameter(b)

    def forward(self, x):
        return (x @ self.A * x).sum(1) / 2 + x @ self.b


def spd(dims, low=0.3):
    root = torch.randn(dims, dims).double()
    return root @ root.T / dims + low * torch.eye(dims).double()


def test_the_potential_is_strongly_convex_for_any_weights(truth):
    for _ in range(3):
        potential = convex()
        s = torch.nn.functional.softplus(potential.strength)
        least = torch.linalg.eigvalsh(hessians(potential, 3 * torch.randn(20, 3).double())).min()
        truth("optimal flow matching", "curvature of the potential below its bound s", "none",
              (s - least).clamp(min=0).detach(), 1e-12)  # fmt: skip


def test_the_potential_is_its_formula(truth):
    """s |x|^2 / 2 + c.x + |A x|^2 / 2 + p.h_2, h_2 = softplus(P h_1 + q_2), h_1 = softplus(q_1), with
    q(x)_k = (a_k.x)^2 / 2 + w_k.x + b_k, here added up term by term for one point."""
    potential, x = convex(dims=2, widths=(2, 2), rank=1), torch.tensor([0.4, -1.1]).double()
    with torch.no_grad():
        softplus = torch.nn.functional.softplus
        q = [[(a @ x) ** 2 / 2 + w @ x + b for a, w, b in zip(square.weight, line.weight, line.bias)]
             for square, line in zip(potential.squared, potential.linear)]  # fmt: skip
        P, p = (softplus(raw) for raw in potential.positive)
        h1 = [softplus(q[0][k]) for k in (0, 1)]
        h2 = [softplus(P[k, 0] * h1[0] + P[k, 1] * h1[1] + q[1][k]) for k in (0, 1)]
        expected = softplus(potential.strength) * (x @ x) / 2 + potential.shift @ x
        expected = expected + (potential.quadratic[0] @ x) ** 2 / 2 + p[0, 0] * h2[0] + p[0, 1] * h2[1]
        error = (potential(x[None])[0] - expected).abs()
    truth("optimal flow matching", "potential of two layers", "its formula", error, 2e-15)


# The problem within


def test_a_point_on_the_lines_of_a_quadratic_potential_is_found(truth):
    A, b, x, t = spd(4), torch.randn(4).double(), torch.randn(6, 4).double(), torch.rand(6, 1).double()
    exact = torch.stack([torch.linalg.solve((1 - u) * torch.eye(4) + u * A, row - u * b) for u, row in zip(t, x)])
    error = (invert(Quadratic(A, b), x, t, tolerance=1e-12) - exact).abs().max()
    truth("optimal flow matching", "inverse of a quadratic flow", "linear equations", error, 1e-11)


def test_the_lines_of_any_potential_are_inverted(truth):
    potential, z = convex(), 2 * torch.randn(50, 3).double()
    t = torch.linspace(0, 1, 50).double()[:, None]
    x = ((1 - t) * z + t * gradient(potential, z)[1]).detach()
    found = invert(potential, x, t, tolerance=1e-11)
    truth("optimal flow matching", "where a line began, from a point on it", "itself", (found - z).abs().max(), 5e-11)


def test_conjugate_gradients_solve_the_linear_equations(truth):
    potential, t, b = convex(), torch.rand(8, 1).double(), torch.randn(8, 3).double()
    z, slope = gradient(potential, torch.randn(8, 3).double())
    H = (1 - t)[..., None] * torch.eye(3) + t[..., None] * hessians(potential, z.detach())
    error = (solve(z, slope, t, b, 50, 1e-13) - torch.linalg.solve(H, b)).abs().max()
    truth("optimal flow matching", "solution by conjugate gradients", "factorisation", error.detach(), 1e-15)


def test_conjugate_gradients_stop_at_their_share_of_the_right_side(truth):
    """At |H v - b| = 0.05 |b|, here with a constant H of twenty numbers, and not much sooner or later."""
    A, t, b = spd(20), torch.rand(100, 1).double(), torch.randn(100, 20).double()
    z, slope = gradient(Quadratic(A, b[0]), b)
    v = solve(z, slope, t, b, 50, 0.05)
    left = ((1 - t) * v + t * v @ A - b).norm(dim=1) / b.norm(dim=1)
    truth("optimal flow matching", "what conjugate gradients leave, of the right side", "0", left.max().detach(), 0.05)
    assert left.median() > 0.01


def test_every_row_is_solved_alone():
    potential, x, t = convex(), torch.randn(9, 3).double(), torch.rand(9, 1).double()
    together = invert(potential, x, t, tolerance=1e-3)
    alone = torch.cat([invert(potential, x[k : k + 1], t[k : k + 1], tolerance=1e-3) for k in range(9)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)  # far below the tolerance: the same steps


# The loss


nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(12))
times, lengths = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(40))
NORMAL = weights / weights.sum()


def expected_loss(a, b, mean, std):
    """E |e|^2 of the potential a x^2 / 2 + b x from N(0, 1) to N(mean, std^2), by quadrature over x_0, x_1 and t."""
    potential = Quadratic(*(torch.tensor(value, dtype=torch.float64) for value in ([[a]], [b])))
    t, x0, x1 = torch.meshgrid((times + 1) / 2, nodes, mean + std * nodes, indexing="ij")
    loss, _ = optimal_loss(potential, *(v.reshape(-1, 1) for v in (x0, x1, t)), tolerance=1e-12)
    mass = (lengths / 2)[:, None, None] * NORMAL[:, None] * NORMAL
    total = (mass.reshape(-1) * loss).sum()
    return total, torch.autograd.grad(total, potential.A)[0].item()


@pytest.mark.parametrize("a", [0.4, 0.7, 1.5])
def test_the_loss_between_normal_distributions_is_least_at_the_optimal_map(truth, a):
    """With b = mean, e = (a x_0 - (x_1 - mean)) / ((1 - t) + t a), so that E|e|^2 = (a^2 + s^2) / a = a + s^2 / a.

    That is least at a = s, where x_0 -> mean + s x_0 is the optimal map."""
    std = 0.7
    loss, slope = expected_loss(a, 0.3, 0.3, std)
    error = (loss - (a + std**2 / a)).abs().detach()
    truth("optimal flow matching", f"loss at a = {a:g}", "a + s^2 / a", error, 1e-13)
    error = abs(slope - (1 - std**2 / a**2))
    truth("optimal flow matching", f"gradient of the loss at a = {a:g}", "1 - s^2 / a^2", error, 1e-13)


def test_the_gradient_is_that_of_the_solution(truth):
    """Not that of the solver's steps: central differences of the loss, along random directions of all weights."""
    potential = convex(2, (4, 3), 1)
    x0, x1, t = (torch.randn(7, 2).double(), torch.randn(7, 2).double(), torch.rand(7, 1).double())

    def loss():
        return optimal_loss(potential, x0, x1, t, tolerance=1e-13)[0].sum()

    weights = torch.nn.utils.parameters_to_vector(potential.parameters()).detach()
    exact = torch.nn.utils.parameters_to_vector(torch.autograd.grad(loss(), potential.parameters()))

    def moved(by):
        torch.nn.utils.vector_to_parameters(weights + by, potential.parameters())
        return loss().detach()

    directions, h = torch.nn.functional.normalize(torch.randn(12, len(weights)).double()), 1e-5
    differences = torch.stack([(moved(h * d) - moved(-h * d)) / (2 * h) for d in directions])
    error = (differences - directions @ exact).abs().max() / exact.norm()
    truth("optimal flow matching", "gradient of the loss, relative", "central differences", error, 5e-10)


def test_a_small_network_learns_the_optimal_map_between_normal_distributions(truth):
    """x -> m + S^(1/2) x from N(0, 1) to N(m, S). The measure is that of the paper: the unexplained variance."""
    torch.manual_seed(0)
    m, L = torch.tensor([0.5, -0.3]), torch.tensor([[1.2, 0.0], [0.6, 0.5]])
    values, vectors = torch.linalg.eigh(L @ L.T)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    potential, steps = Convex(2, (16, 16), 2), 120
    optimizer = torch.optim.Adam(potential.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        x1 = m + torch.randn(256, 2) @ L.T
        loss, _ = optimal_loss(potential, torch.randn(256, 2), x1, torch.rand(256, 1), tolerance=1e-3)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    x = torch.randn(4000, 2)
    off = (gradient(potential, x)[1] - (m + x @ root)).square().sum(1).mean() / values.sum()
    truth("optimal flow matching", "map learned in 120 steps, unexplained share of the variance",
          "closed-form optimal map", off.detach(), 0.005)  # fmt: skip


# The model


def tiny():
    config = OptimalFlowConfig(image_size=4, channels=1, widths=(8, 8), rank=4)
    model = OptimalFlowModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def test_a_picture_is_one_gradient_and_its_code_is_found_again(truth):
    model = tiny().double()
    codes = torch.randn(5, 1, 4, 4).double()
    pictures = gradient(model.potential, codes.flatten(1))[1].detach().view_as(codes)
    assert torch.equal(model.decode(codes), pictures.float().clamp(-1, 1))
    drawn = tiny().sample(2, seeds=3)
    assert drawn.shape == (2, 1, 4, 4)
    error = (model.encode(pictures) - codes).square().mean().sqrt()
    truth("optimal flow matching", "code of a picture, at the tolerance 0.001", "what it was drawn from", error, 5e-4)


def test_samples_depend_on_their_seed_alone():
    model = tiny()
    noise = PictureRandom([3, 4]).normal(1, 4, 4)
    assert torch.equal(model.sample(2, seeds=3), model.decode(noise))
    assert torch.allclose(model.sample(2, seeds=3)[1:], model.sample(1, seeds=4), atol=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth):
    model = tiny().double()
    whole = Batch(torch.rand(6, 1, 4, 4).double() * 2 - 1, seeds=range(6))
    total = model(whole).total
    halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
    error = ((total - halves) / total).abs().detach()
    truth("optimal flow matching", "loss of a batch, relative", "mean over its halves", error, 1e-14)


def test_the_equation_is_solved_to_its_tolerance(truth):
    left = tiny()(Batch(torch.rand(6, 1, 4, 4) * 2 - 1, seeds=range(6))).parts["inner"]
    truth("optimal flow matching", "what is left of the equation within the loss", "tolerance", left, 1e-3)


def test_half_precision_stays_out_of_the_equation():
    model, batch = tiny(), Batch(torch.rand(6, 1, 4, 4) * 2 - 1, seeds=range(6))
    expected = model(batch).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(batch).total, expected)


@pytest.mark.parametrize(
    ("choices", "words"),
    [({"widths": ()}, "widths"), ({"rank": 0}, "rank"), ({"tolerance": 0.0}, "tolerance"), ({"newton": 0}, "newton")],
)
def test_what_cannot_be_is_refused(choices, words):
    with pytest.raises(ConfigError, match=words):
        OptimalFlowConfig(image_size=4, channels=1, **choices)


def test_there_is_nothing_to_condition_on():
    with pytest.raises(ConfigError, match="labels"):
        tiny().sample(1, labels=[0])
