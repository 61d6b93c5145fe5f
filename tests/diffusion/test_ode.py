"""Ordinary differential equations: exact solutions, scipy, and rows that walk alone."""

import math

import pytest
import torch

from mezzotint.core.errors import ConfigError, TrainingError
from mezzotint.diffusion.ode import dopri5, euler, heun, rk4

OMEGA = torch.tensor([1.0, 4.0, 9.0, 0.0], dtype=torch.float64)  # rows of very different speed


def turning(omega=OMEGA):
    """y' = omega (1 + t) J y: each row turns with its own speed, which grows with time."""

    def f(t, y):
        speed = (omega * (1 + t)).view(-1, 1)
        return speed * torch.stack([-y[:, 1], y[:, 0]], 1)

    return f


def turned(y, t0, t1, omega=OMEGA):
    angle = omega * (t1 - t0 + (t1**2 - t0**2) / 2)
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * y[:, 0] - s * y[:, 1], s * y[:, 0] + c * y[:, 1]], 1)


Y = torch.tensor([[1.0, 0.0], [0.3, -0.8], [-2.0, 0.5], [0.7, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize(("method", "order"), [(euler, 1), (heun, 2), (rk4, 4)])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.2)])
def test_the_order_of_the_fixed_steps(truth, method, order, start, end):
    errors = []
    for steps in (256, 512):
        times = torch.linspace(start, end, steps + 1, dtype=torch.float64)
        errors.append(float((method(turning(OMEGA / 4), Y, times) - turned(Y, start, end, OMEGA / 4)).abs().max()))
    measured = math.log2(errors[0] / errors[1])
    truth(f"ode {method.__name__}", f"order from t = {start:g} to {end:g}", str(order), abs(measured - order), 0.02)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.2)])
def test_the_error_follows_the_tolerance(truth, start, end):
    """The estimate of order 4 is held at the tolerance, so that the error of order 5 falls with it, and its cost rises
    as its fifth root: 100 times the accuracy for about 2.5 times the evaluations."""
    errors, costs = [], []
    for tolerance in (1e-5, 1e-7, 1e-9):
        solution = dopri5(turning(), Y, start, end, tolerance, tolerance)
        errors.append(float((solution.y - turned(Y, start, end)).abs().max()))
        costs.append(int(solution.evaluations[2]))
        truth("ode dopri5", f"rtol = atol = {tolerance:g}, t = {start:g} to {end:g}, error by tolerance",
              "the exact solution", errors[-1] / tolerance, 15)  # fmt: skip
    for coarse, fine in ((0, 1), (1, 2)):
        ratio = costs[fine] / costs[coarse]
        truth("ode dopri5", "evaluations for 100 times the accuracy", "100^(1/5)", abs(ratio - 100**0.2), 0.5)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.2)])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
def test_each_row_is_what_scipy_makes_of_it_alone(truth, start, end, tolerance):
    """scipy's RK45 is the same pair with the same step control, for one system at a time."""
    integrate = pytest.importorskip("scipy.integrate")
    solution, worst = dopri5(turning(), Y, start, end, tolerance, tolerance / 10), 0.0
    for row in range(3):

        def alone(t, y, row=row):
            return turning(OMEGA[row : row + 1])(torch.tensor(t), torch.from_numpy(y)[None])[0].numpy()

        theirs = integrate.solve_ivp(alone, (start, end), Y[row].numpy(), rtol=tolerance, atol=tolerance / 10)
        worst = max(worst, float((solution.y[row] - torch.from_numpy(theirs.y[:, -1])).abs().max()))
        assert int(solution.evaluations[row]) == theirs.nfev
    truth("ode dopri5", f"rtol {tolerance:g}, t = {start:g} to {end:g}", "scipy's solve_ivp, row by row", worst, 5e-14)


def test_a_row_does_not_depend_on_its_batch():
    together = dopri5(turning(), Y, 0.0, 1.0)
    for row in range(4):
        alone = dopri5(turning(OMEGA[row : row + 1]), Y[row : row + 1], 0.0, 1.0)
        assert torch.equal(alone.y[0], together.y[row])
        assert torch.equal(alone.evaluations[0], together.evaluations[row])
    assert together.evaluations.argsort().tolist()[2:] == [1, 2]  # the fast rows work harder


def test_rows_may_begin_and_end_at_times_of_their_own(truth):
    start, end = torch.tensor([0.0, 1.0, 0.5, 0.3]), torch.tensor([1.0, 0.0, 0.5, 0.9])
    solution = dopri5(turning(), Y, start, end, 1e-9, 1e-9)
    truth("ode dopri5", "rows with times of their own", "the exact solution",
          (solution.y - turned(Y, start.double(), end.double())).abs().max(), 1e-8)  # fmt: skip
    assert solution.evaluations[2] == 0
    assert torch.equal(solution.y[2], Y[2])


def test_an_augmented_state(truth):
    """y' = -a y with the log-density along it, whose slope is minus the divergence: ln p gains 3 a t."""
    y, a, seen = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0.5, 3, 5, dtype=torch.float64), []

    def f(t, state):
        seen.append(t.shape)
        return -a[:, None] * state[0], 3 * a

    start, times = (y, torch.zeros_like(a)), 0.7 * torch.linspace(0, 1, 201, dtype=torch.float64)
    for solve in (lambda: dopri5(f, start, 0.0, 0.7, 1e-9, 1e-9).y, lambda: rk4(f, start, times)):
        seen.clear()
        end, density = solve()
        worst = max((end - y * torch.exp(-0.7 * a)[:, None]).abs().max(), (density - 2.1 * a).abs().max())
        truth("ode", f"picture and log-density, times {tuple(seen[0])}", "the exact solution", worst, 1e-9)
    assert seen[0] == ()


def test_the_worst_part_of_a_state_decides():
    """A log-density of one number is not outvoted by the thousand numbers of its picture."""

    def f(t, state):
        return torch.zeros_like(state[0]), torch.cos(40 * t)

    state = torch.ones(1, 1000, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    solution = dopri5(f, state, 0.0, 1.0, 1e-6, 1e-6)
    assert abs(float(solution.y[1]) - math.sin(40) / 40) < 1e-6


def test_a_part_that_rests_changes_no_step():
    """The worst part is the other one, at every step; a mean over both would let it err by more."""
    alone = dopri5(lambda t, y: torch.cos(40 * t), torch.zeros(1, dtype=torch.float64), 0.0, 1.0)
    both = dopri5(lambda t, s: (torch.cos(40 * t), 0 * s[1]), (torch.zeros(1).double(), torch.zeros(1, 9)), 0.0, 1.0)
    assert torch.equal(alone.y, both.y[0])
    assert torch.equal(alone.evaluations, both.evaluations)


def test_gradients_flow_through_the_steps(truth):
    y, a = Y.clone().requires_grad_(), torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    end = dopri5(lambda t, y: a * torch.cos(t).view(-1, 1) * y, y, 0.0, 2.0, 1e-9, 1e-9).y
    end.sum().backward()
    growth = math.exp(0.8 * math.sin(2))
    truth("ode dopri5", "gradient of the end by the start", "exp(a sin t)", (y.grad - growth).abs().max(), 1e-8)
    error = abs(float(a.grad) - float(Y.sum()) * math.sin(2) * growth)
    truth("ode dopri5", "gradient of the end by a parameter", "closed form", error, 1e-7)


def test_the_state_keeps_its_dtype():
    seen = []

    def network(t, y):
        seen.append((t.dtype, y.dtype))
        return -y.float()

    for dtype in (torch.float32, torch.float64):
        assert dopri5(network, torch.ones(2, 3, dtype=dtype), 1.0, 0.0).y.dtype == dtype
        assert seen[-1] == (torch.float64, dtype)


def test_a_slope_that_breaks_is_named():
    with pytest.raises(TrainingError, match=r"beyond t = 0\.5"):
        dopri5(lambda t, y: torch.where(t.view(-1, 1) < 0.5, y, torch.nan), Y, 0.0, 1.0)
    with pytest.raises(TrainingError, match=r"beyond t = 0\b"):
        dopri5(lambda t, y: y / (t.view(-1, 1)), Y, 0.0, 1.0)
    with pytest.raises(TrainingError, match="loosen"):  # y = 1 / (1 - t) leaves every bound
        dopri5(lambda t, y: y**2, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0)


def test_what_cannot_be_asked():
    with pytest.raises(ConfigError, match="more than 50 evaluations"):
        dopri5(turning(), Y, 0.0, 1.0, 1e-10, 1e-10, max_evaluations=50)
    with pytest.raises(ConfigError, match="above 0"):
        dopri5(turning(), Y, 0.0, 1.0, 0.0, 1e-5)
