"""Whole trajectories beside the samplers of k-diffusion 0.1.1, from which much of the field's code was copied.

Both sides are given the same x, the same denoiser, the same float64 noise levels and the same noise. Its samplers are
one file; the package around them asks for seventeen others, so only that file is imported.
"""

import importlib
import importlib.util
import sys
from functools import partial
from types import ModuleType

import pytest
import torch

from mezzotint.diffusion import grids
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser
from mezzotint.diffusion.solvers import SOLVERS, ancestral, ddim, edm
from mezzotint.diffusion.stepping import half_log_snr

pytestmark = pytest.mark.oracles

STEPS = [1, 2, 10, 13, 50]
EDM = PATHS["edm"]
X = 80 * torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
THEIRS = "k-diffusion 0.1.1 "


@pytest.fixture(scope="module")
def sampling():
    """k_diffusion.sampling, with the one function that it takes from the rest of its package."""
    for needed in ("torchdiffeq", "torchsde", "scipy"):
        pytest.importorskip(needed)
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed")
    package, utils = importlib.util.module_from_spec(spec), ModuleType("k_diffusion.utils")
    package.utils = utils
    utils.append_dims = lambda x, dims: x.view(*x.shape, *[1] * (dims - x.dim()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        patch.setitem(sys.modules, "k_diffusion.utils", utils)
        yield importlib.import_module("k_diffusion.sampling")
        patch.delitem(sys.modules, "k_diffusion.sampling")


def clean(x, sigma):
    """Some smooth denoiser: (x, sigma of each row) -> the expected clean picture."""
    sigma = sigma.view(-1, 1, 1, 1)
    return torch.tanh(x / (1 + sigma) + 0.1) + 0.05 * torch.sin(torch.log(sigma) * 3)


def denoiser(path=EDM):
    """The same on a path, at x / alpha and sigma / alpha."""

    def network(x, t):
        at = path.at(t)
        return clean(x / at.alpha, at.ratio.expand(len(x)))

    return Denoiser(network, path, "clean")


def seeded():
    generator = torch.Generator().manual_seed(7)
    return lambda *_: torch.randn(X.shape, generator=generator, dtype=X.dtype)


def largest(sampler, solver, grid_of, path=EDM, few=STEPS):
    """The largest error of x / alpha before any step and at the end, for every N; relative to the largest number."""
    worst = 0.0
    for steps in few:
        grid, ours, theirs = grid_of(steps, path), [], []
        at = path.at(grid)
        x = X / 80 * at.ratio[0]
        end = sampler(clean, x, at.ratio, callback=lambda info: theirs.append(info["x"]), disable=True)  # noqa: B023
        last = solver(denoiser(path), at.alpha[0] * x, grid, seeded(), lambda s: ours.append(s.denoised.x))  # noqa: B023
        for a, b, alpha in zip([*ours, last], [*theirs, end], at.alpha, strict=True):
            worst = max(worst, float((a / alpha - b).abs().max() / b.abs().max()))
    return worst


@pytest.mark.parametrize("path", ["edm", "vp"])
@pytest.mark.parametrize("grid", ["karras", "exponential", "uniform"])
@pytest.mark.parametrize(
    ("sampler", "solver", "tolerance"),
    [("sample_euler", ddim, 1e-13), ("sample_heun", edm, 3e-12), ("sample_lms", SOLVERS["lms"], 1e-13),
     ("sample_dpmpp_2m", SOLVERS["dpm++2m"], 5e-15)],
)  # fmt: skip
def test_deterministic_samplers(truth, sampling, sampler, solver, tolerance, grid, path):
    """The first three of theirs take differences of numbers as large as sigma, which costs them digits."""
    error = largest(getattr(sampling, sampler), solver, grids.GRIDS[grid], PATHS[path])
    truth(f"{sampler}, {path} path", f"N in {STEPS}, {grid}", THEIRS + sampler, error, tolerance)


@pytest.mark.parametrize("grid", ["karras", "exponential"])
@pytest.mark.parametrize(
    ("sampler", "solver"),
    [("sample_euler_ancestral", ancestral), ("sample_dpmpp_2m_sde", SOLVERS["dpm++2m-sde"])],
)
def test_stochastic_samplers(truth, sampling, sampler, solver, grid):
    def theirs(*arguments, **options):
        return getattr(sampling, sampler)(*arguments, noise_sampler=seeded(), **options)

    few = STEPS if solver is ancestral else STEPS[1:]  # see below
    error = largest(theirs, solver, grids.GRIDS[grid], few=few)
    truth(sampler, f"N in {few}, {grid}", THEIRS + sampler, error, 2e-13)


@pytest.mark.parametrize("sampler", ["sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"])
def test_two_of_its_samplers_cannot_make_one_step(sampling, sampler):
    """They remember the length of a step that they did not compute, the one to sigma = 0."""
    with pytest.raises(UnboundLocalError):
        getattr(sampling, sampler)(clean, X, EDM.at(grids.karras(1, EDM)).ratio, disable=True, noise_sampler=seeded())


def test_churn(truth, sampling, monkeypatch):
    """Karras et al. 2022, algorithm 2. Its samplers draw at every step, also where the noise is not used."""
    churn = {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
    worst = 0.0
    for steps in STEPS:
        grid = grids.karras(steps, EDM)
        levels = EDM.at(grid).ratio
        draw = seeded()
        drawn = [draw() for _ in range(steps)]
        used = iter([z for z, r in zip(drawn, levels) if 0.05 <= r <= 50])
        ours = edm(denoiser(), X, grid, partial(next, used), **churn)
        numbers = iter(drawn)
        monkeypatch.setattr(torch, "randn_like", lambda x, numbers=numbers: next(numbers))
        theirs = sampling.sample_heun(clean, X, levels, disable=True, s_churn=40.0, s_tmin=0.05, s_tmax=50.0,
                                      s_noise=1.003)  # fmt: skip
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    truth("solver edm-stochastic", f"N in {STEPS}, karras", THEIRS + "sample_heun", worst, 1e-12)


def third_order(denoiser, x, grid, noise, callback=None, *, curvature):
    """Its 3M without noise, with D_2 times `curvature`. Two values are a straight line, integrated exactly, where
    ours extrapolates to the middle of the step as 2M does."""
    known = []
    for i in range(len(grid) - 1):
        d = denoiser(x, grid[i])
        if callback is not None:
            callback(type("Step", (), {"denoised": d}))
        at_s = denoiser.path.at(grid[i + 1])
        l, h = half_log_snr(d.at), half_log_snr(at_s) - half_log_snr(d.at)  # noqa: E741
        known = [(l, d.clean), *known][:3]
        x = at_s.sigma / d.at.sigma * x - torch.expm1(-h) * d.clean
        if len(known) > 1 and h.isfinite():
            phi_2 = torch.expm1(-h) / h + 1
            D = h * (known[0][1] - known[1][1]) / (known[0][0] - known[1][0])
            x = x + phi_2 * D
            if len(known) == 3:
                r0, r1 = (known[0][0] - known[1][0]) / h, (known[1][0] - known[2][0]) / h
                bent = D - (known[1][1] - known[2][1]) / r1
                x = x + (phi_2 * r0 - curvature * (phi_2 / h - 0.5)) / (r0 + r1) * bent
    return x


def test_its_third_order_has_half_the_curvature(truth, sampling):
    """As in diffusers: see test_scheduler_parity.py, where its order is measured."""
    theirs = partial(sampling.sample_dpmpp_3m_sde, eta=0.0, noise_sampler=seeded())
    error = largest(theirs, partial(third_order, curvature=1), grids.karras, few=STEPS[1:])
    truth("dpm++3m with half the curvature", f"N in {STEPS[1:]}, karras", THEIRS + "sample_dpmpp_3m_sde", error, 5e-15)


@pytest.mark.parametrize("steps", [2, 10, 18, 50])
def test_its_grids(truth, sampling, steps):
    for name in ("karras", "exponential"):
        theirs = getattr(sampling, f"get_sigmas_{name}")(steps, 0.002, 80.0)
        ours = EDM.at(grids.GRIDS[name](steps, EDM)).ratio
        error = (ours[:-1] / theirs[:-1].double() - 1).abs().max()
        truth(f"grid {name}", f"{steps} levels, relative, float32", THEIRS + f"get_sigmas_{name}", error, 3e-6)
