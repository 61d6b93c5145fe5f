"""Solvers that remember: their order, and the polynomials that they integrate exactly."""

import math
from functools import partial

import pytest
import torch
from gaussian import Gaussian

from mezzotint.diffusion import grids
from mezzotint.diffusion.multistep import dpm_2m, dpm_3m, lms, unipc
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser
from mezzotint.diffusion.solvers import ddim

DATA = Gaussian()
X = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
NAMES = {
    "dpm++2m": dpm_2m, "dpm++3m": dpm_3m, "unipc-1": partial(unipc, order=1), "unipc-2": unipc,
    "unipc-3": partial(unipc, order=3), "lms-2": partial(lms, order=2), "lms-4": lms,
}  # fmt: skip


def no_noise():
    raise AssertionError("a deterministic solver asked for noise")


@pytest.mark.parametrize(
    ("name", "order", "tolerance"),
    [("dpm++2m", 2, 0.02), ("dpm++3m", 3, 0.1), ("unipc-1", 2, 0.02), ("unipc-2", 3, 0.02), ("unipc-3", 4, 0.02),
     ("lms-2", 2, 0.05), ("lms-4", 4, 0.2)],
)  # fmt: skip
@pytest.mark.parametrize("path", ["edm", "vp", "straight"])
def test_the_order_of_convergence(truth, name, order, tolerance, path):
    """From sigma / alpha = 80, where the first and low orders do no harm, to 0.05, against the exact solution."""
    errors = []
    for steps in (128, 256):
        roots = torch.linspace(80 ** (1 / 7), 0.05 ** (1 / 7), steps + 1, dtype=torch.float64)
        grid = PATHS[path].time_of(roots**7)
        at, at_end = PATHS[path].at(grid[0]), PATHS[path].at(grid[-1])
        end = NAMES[name](DATA.denoiser(PATHS[path], "clean"), at.sigma * X, grid, no_noise)
        errors.append(float((end - DATA.flowed(at.sigma * X, at, at_end)).abs().max()))
    measured = math.log2(errors[0] / errors[1])
    truth(f"solver {name}, {path} path", "order of convergence, N = 128 to 256", str(order),
          abs(measured - order), tolerance)  # fmt: skip


def along(function, kind):
    """A denoiser whose answer depends on the time alone."""
    path = PATHS["vp"]

    def network(x, t):
        return torch.full_like(x, float(function(path.at(t))))

    return Denoiser(network, path, kind)


def states(solver, denoiser, grid):
    seen = []
    end = solver(denoiser, X, grid, no_noise, lambda step: seen.append(step.denoised.x))
    return [*seen, end]


@pytest.mark.parametrize(("name", "first"), [("dpm++3m", 2), ("unipc-3", 3)])
def test_clean_pictures_that_are_polynomials_are_integrated_exactly(truth, name, first):
    """int exp(l) p(l) dl = exp(l) (p - p' + p''), for a parabola p in l = ln(alpha / sigma), once three are known.

    UniPC makes a step again from its end, after which the next begins; both agree from the fourth on."""

    def p(l):  # noqa: E741
        return 0.7 - 0.3 * l + 0.2 * l**2

    def solved(l):  # noqa: E741
        return p(l) - (-0.3 + 0.4 * l) + 0.4

    grid, path = (
        PATHS["vp"].time_of(torch.tensor([9.0, 7.5, 4.0, 1.9, 1.0, 0.6, 0.1], dtype=torch.float64)),
        PATHS["vp"],
    )
    trace = states(NAMES[name], along(lambda at: p(-torch.log(at.ratio)), "clean"), grid)
    worst = 0.0
    for i in range(first, len(grid) - 1):
        at, at_s = path.at(grid[i]), path.at(grid[i + 1])
        gained = solved(-torch.log(at_s.ratio)) - at_s.ratio / at.ratio * solved(-torch.log(at.ratio))
        expected = at_s.sigma / at.sigma * trace[i] + at_s.alpha * gained
        worst = max(worst, float((trace[i + 1] - expected).abs().max()))
    truth(f"solver {name}", "steps along a parabola in lambda", "exact integral", worst, 3e-15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_noises_that_are_polynomials_are_integrated_exactly(truth, order):
    """d(x / alpha) / dr = n(r): a polynomial of degree order - 1 has a primitive."""

    def n(r):
        return sum((k + 1) * (-0.3) ** k * r**k for k in range(order))

    def solved(r):
        return sum((-0.3) ** k * r ** (k + 1) for k in range(order))

    path = PATHS["vp"]
    grid = path.time_of(torch.tensor([3.0, 2.5, 1.4, 1.1, 1.0, 0.6, 0.1], dtype=torch.float64))
    trace, worst = states(partial(lms, order=order), along(lambda at: n(at.ratio), "noise"), grid), 0.0
    for i in range(order - 1, len(grid) - 1):
        at, at_s = path.at(grid[i]), path.at(grid[i + 1])
        expected = at_s.alpha * (trace[i] / at.alpha + solved(at_s.ratio) - solved(at.ratio))
        worst = max(worst, float((trace[i + 1] - expected).abs().max()))
    truth(f"solver lms, order {order}", f"steps along a polynomial of degree {order - 1}", "exact", worst, 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_is_that_of_ddim(truth, name):
    times, denoiser = torch.tensor([0.8, 0.5], dtype=torch.float64), DATA.denoiser(PATHS["vp"], "v")
    error = (NAMES[name](denoiser, X, times, no_noise) - ddim(denoiser, X, times, no_noise)).abs().max()
    truth(f"solver {name}", "its first step", "ddim", error, 1e-15)


def test_lms_of_order_one_is_ddim(truth):
    grid, denoiser = grids.karras(20, PATHS["vp"]), DATA.denoiser(PATHS["vp"], "clean")
    error = (lms(denoiser, X, grid, no_noise, order=1) - ddim(denoiser, X, grid, no_noise)).abs().max()
    truth("solver lms", "order 1, 20 steps", "ddim", error, 1e-15)


def test_two_steps_of_dpm_2m_are_those_of_the_paper(truth):
    """Lu et al. 2022, algorithm 2, written out for N = 2 on the straight path between finite noise levels."""
    path, times = PATHS["straight"], torch.tensor([0.9, 0.6, 0.2], dtype=torch.float64)
    denoiser = DATA.denoiser(path, "clean")
    a = 1 - times
    h1, h2 = (torch.log(a / times)).diff()
    d0 = denoiser(X, times[0]).clean
    x1 = times[1] / times[0] * X - a[1] * (torch.exp(-h1) - 1) * d0
    d1 = denoiser(x1, times[1]).clean
    r = h1 / h2
    x2 = times[2] / times[1] * x1 - a[2] * (torch.exp(-h2) - 1) * ((1 + 1 / (2 * r)) * d1 - 1 / (2 * r) * d0)
    truth("solver dpm++2m", "two steps", "algorithm 2", (dpm_2m(denoiser, X, times, no_noise) - x2).abs().max(), 1e-15)


def test_unipc_makes_a_step_again_when_it_knows_its_end(truth):
    """Zhao et al. 2023, for p = 1: the corrector has the mean of both ends; its answer is not asked for again."""
    path, times = PATHS["straight"], torch.tensor([0.9, 0.6, 0.2], dtype=torch.float64)
    denoiser = DATA.denoiser(path, "clean")
    a, grown = 1 - times, -torch.expm1(-(torch.log((1 - times) / times)).diff())
    d0 = denoiser(X, times[0]).clean
    d1 = denoiser(times[1] / times[0] * X + a[1] * grown[0] * d0, times[1]).clean
    x1 = times[1] / times[0] * X + a[1] * grown[0] * (d0 + d1) / 2
    x2 = times[2] / times[1] * x1 + a[2] * grown[1] * d1
    error = (unipc(denoiser, X, times, no_noise, order=1) - x2).abs().max()
    truth("solver unipc-1", "two steps", "written out", error, 1e-15)


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++3m", "unipc-2", "unipc-3", "lms-4"])
def test_what_is_remembered_begins_after_pure_noise(truth, name):
    """From alpha = 0 the first step is DDIM's and is forgotten: the rest is a run that begins where it ended."""
    grid, denoiser = grids.uniform(6, PATHS["straight"]), DATA.denoiser(PATHS["straight"], "clean")
    after = ddim(denoiser, X, grid[:2], no_noise)
    error = (NAMES[name](denoiser, X, grid, no_noise) - NAMES[name](denoiser, after, grid[1:], no_noise)).abs().max()
    truth(f"solver {name}", "after a step from alpha = 0", "a run that begins there", error, 1e-15)
