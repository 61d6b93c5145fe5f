"""Solvers against closed forms: order of convergence, exact moments, identities."""

import math

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.errors import ConfigError
from mezzotint.diffusion import grids
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser
from mezzotint.diffusion.solvers import SOLVERS, ancestral, ddim, euler, heun, posterior

DATA = Gaussian()
X = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)


def no_noise():
    raise AssertionError("a deterministic solver asked for noise")


def final_error(solver, path, steps, start=1.0):
    grid = grids.uniform(steps) * start
    end = solver(DATA.denoiser(path), X, grid, no_noise)
    return float((end - DATA.flowed(X, path.at(grid[0]), path.at(grid[-1]))).abs().max())


@pytest.mark.parametrize(
    ("name", "solver", "path", "order"),
    [
        ("euler", euler, "straight", 1),
        ("heun", heun, "straight", 2),
        ("ddim", ddim, "straight", 1),
        ("ddim", ddim, "linear", 1),
        ("ddim", ddim, "cosine", 1),
    ],
)
def test_the_order_of_convergence(truth, name, solver, path, order):
    errors = [final_error(solver, PATHS[path], steps) for steps in (64, 128)]
    measured = math.log2(errors[0] / errors[1])
    truth(f"solver {name}, {path} path", "order of convergence, N = 64 to 128", str(order), abs(measured - order), 0.1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [1, 2])
def test_one_and_two_steps(solver, path, steps):
    end = SOLVERS[solver](DATA.denoiser(PATHS[path], "clean"), X, grids.uniform(steps), lambda: torch.randn_like(X))
    assert end.isfinite().all()


@pytest.mark.parametrize("solver", ["ancestral", "ancestral-large", "ddim"])
@pytest.mark.parametrize("path", PATHS)
def test_one_step_is_the_expected_picture(truth, solver, path):
    grid = grids.uniform(1)
    end = SOLVERS[solver](DATA.denoiser(PATHS[path], "clean"), X, grid, no_noise)
    error = (end - DATA.clean(X, PATHS[path].at(grid[0]))).abs().max()
    truth(f"solver {solver}, {path} path", "one step", "E[clean | x]", error, 1e-15)


def test_on_the_straight_path_ddim_is_euler(truth):
    denoiser, grid = DATA.denoiser(PATHS["straight"]), grids.uniform(13)
    error = (ddim(denoiser, X, grid, no_noise) - euler(denoiser, X, grid, no_noise)).abs().max()
    truth("solver ddim", "on the straight path", "euler", error, 3e-15)


@pytest.mark.parametrize("grid", [grids.leading(1000), grids.leading(50), grids.trailing(13)])
def test_ddim_with_eta_one_is_the_ancestral_sampler(truth, grid):
    def seeded():
        generator = torch.Generator().manual_seed(1)
        return lambda: torch.randn(X.shape, generator=generator, dtype=X.dtype)

    denoiser = DATA.denoiser(PATHS["linear"], "noise")
    error = (ddim(denoiser, X, grid, seeded(), eta=1.0) - ancestral(denoiser, X, grid, seeded())).abs().max()
    truth("solver ddim", f"eta = 1, {len(grid) - 1} steps", "ancestral with the small variance", error, 3e-14)


def probes(steps, spread):
    """A batch and a noise source that lay a sampler bare, without sampling.

    For Gaussian data the perfect denoiser is affine, so every state is a x + sum_i b_i z_i + c. The rows of the batch
    hold the answers to 0, to x = spread, and to each z_i = 1: the first row is the mean, the squared distances of the
    others from it add up to the variance.
    """
    x = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x[1] = spread
    calls = iter(range(steps))

    def noise():
        z = torch.zeros_like(x)
        z[2 + next(calls)] = 1
        return z

    return x, noise


def moments(x):
    """Mean and variance of a state that began as `probes`."""
    return float(x[0]), float((x[1:] - x[0]).square().sum())


@pytest.mark.parametrize("solver", ["ancestral", "ancestral-large"])
def test_the_ancestral_sampler_draws_gaussian_data_with_the_right_moments(truth, solver):
    path, grid = PATHS["linear"], grids.leading(1000)
    x, noise = probes(1000, 1.0)
    mean, variance = moments(SOLVERS[solver](DATA.denoiser(path, "clean"), x, grid, noise))
    std = variance**0.5
    truth(f"solver {solver}", "mean of Gaussian data, 1000 steps", "0.3", abs(mean - 0.3), 1e-5)
    truth(f"solver {solver}", "std of Gaussian data, 1000 steps", "0.5", abs(std - 0.5), 1e-2)


def test_the_moments_of_the_ancestral_sampler_converge_with_order_one(truth):
    # From the exact distribution at t = 0.9 to t = 0.1, where the state still has noise in it.
    path, errors = PATHS["straight"], []
    for steps in (64, 128):
        grid = 0.9 - 0.8 * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        x, noise = probes(steps, DATA.spread(path.at(grid[0])))
        _, variance = moments(ancestral(DATA.denoiser(path, "clean"), x, grid, noise))
        errors.append(abs(variance - float(DATA.spread(path.at(grid[-1]))) ** 2))
    order = math.log2(errors[0] / errors[1])
    truth("solver ancestral", "order of the variance, N = 64 to 128", "1", abs(order - 1), 0.1)


@pytest.mark.parametrize(("solver", "std"), [("ancestral", 0.0), ("ancestral-large", 1.0)])
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_each_variance_is_exact_for_its_own_data(truth, solver, std, steps):
    """Ho et al. 2020, section 3.2: the small variance is right for one point, the large one for normal data."""
    data, path, grid = Gaussian(0.0, std), PATHS["linear"], grids.leading(steps)
    x, noise = probes(steps, data.spread(path.at(grid[0])))
    worst = 0.0

    def compare(step):
        nonlocal worst
        _, variance = moments(step.denoised.x)
        worst = max(worst, abs(variance - float(data.spread(step.denoised.at)) ** 2))

    SOLVERS[solver](data.denoiser(path, "clean"), x, grid, noise, compare)
    truth(f"solver {solver}", f"variance at each of {steps} steps, data of std {std:g}", "exact", worst, 5e-14)


def test_the_posterior_is_bayes_rule(truth):
    """q(x_s | x_t, c) = q(x_t | x_s) q(x_s | c) / q(x_t | c), by completing the square."""
    worst = 0.0
    for path in PATHS.values():
        at_t, at_s = path.at(torch.tensor(0.7)), path.at(torch.tensor(0.4))
        q = posterior(at_t, at_s)
        a = at_t.alpha / at_s.alpha
        precision = 1 / at_s.sigma**2 + a**2 / q.large_variance
        clean, x = 0.37, -0.81
        mean = (at_s.alpha * clean / at_s.sigma**2 + a * x / q.large_variance) / precision
        worst = max(
            worst, abs(float(q.small_variance - 1 / precision)), abs(float(q.of_clean * clean + q.of_x * x - mean))
        )
    truth("posterior", "mean and variance on every path", "Bayes' rule", worst, 1e-15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_callback_sees_every_step(solver):
    seen = []
    grid = grids.trailing(5)

    def noise():
        return torch.randn_like(X)

    SOLVERS[solver](DATA.denoiser(PATHS["linear"], "noise"), X, grid, noise, seen.append)
    assert [step.number for step in seen] == [0, 1, 2, 3, 4]
    assert [step.t for step in seen] == grid[:-1].tolist()
    assert all(step.total == 5 and step.denoised.clean.shape == X.shape for step in seen)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_leaves_its_arguments_alone(solver):
    x, grid = X.clone(), grids.leading(4)
    SOLVERS[solver](DATA.denoiser(PATHS["linear"], "clean"), x, grid, lambda: torch.randn_like(X))
    assert torch.equal(x, X)
    assert torch.equal(grid, grids.leading(4))


def test_the_number_of_evaluations():
    path, calls = PATHS["straight"], []

    def network(x, _):
        calls.append(1)
        return x

    for solver, expected in ((euler, 10), (heun, 19), (ddim, 10), (ancestral, 10)):
        calls.clear()
        solver(Denoiser(network, path, "velocity"), X, grids.uniform(10), lambda: torch.randn_like(X))
        assert len(calls) == expected


@pytest.mark.parametrize("name", grids.GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 13, 50, 1000])
def test_a_grid_falls_to_zero(name, steps):
    grid = grids.GRIDS[name](steps)
    assert len(grid) == steps + 1
    assert grid.dtype == torch.float64
    assert (grid.diff() < 0).all()
    assert grid[0] <= 1
    assert grid[-1] == 0


@pytest.mark.parametrize("name", grids.GRIDS)
def test_an_impossible_number_of_steps_is_refused(name):
    with pytest.raises(ConfigError, match="at least 1"):
        grids.GRIDS[name](0)
    if name != "uniform":
        with pytest.raises(ConfigError, match="1000"):
            grids.GRIDS[name](1001)
