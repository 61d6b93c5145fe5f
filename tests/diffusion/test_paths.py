"""Paths: values, derivatives, inverses and tables in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.integrate import solve_ivp

from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.paths import (
    EDM,
    PATHS,
    ContinuousVP,
    Straight,
    VarianceExploding,
    VariancePreserving,
    ZeroTerminalSNR,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)

DISCRETE = {"linear": linear_betas, "scaled-linear": scaled_linear_betas, "cosine": cosine_betas}
between = torch.linspace(0.0123456, 0.987654, 37, dtype=torch.float64)
steps = torch.arange(1, 1001).double() / 1000


def number(t):
    return torch.tensor(t, dtype=torch.float64)


def relative(a, b):
    return float(((a - b).abs() / b.abs().clamp(min=1)).max())


@pytest.mark.parametrize("name", PATHS)
def test_derivatives_are_those_of_autograd(truth, name):
    t = between.clone().requires_grad_()
    at = PATHS[name].at(t)
    for value, derivative in ((at.alpha, at.d_alpha), (at.sigma, at.d_sigma)):
        expected = torch.zeros_like(t)  # of alpha = 1, which does not know the time
        if value.requires_grad:
            (expected,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        error, tolerance = relative(derivative.detach(), expected), 8e-15 if name.startswith("cosine") else 2e-15
        truth(f"path {name}", "derivative of a coefficient in t, relative", "autograd, float64", error, tolerance)


@pytest.mark.parametrize("name", [*DISCRETE, "zero-snr"])
def test_at_its_steps_a_path_has_the_derivatives_from_the_left(truth, name):
    """Where two straight pieces of ln alpha_bar, or of alpha, meet: that of the step which ends there. (sigma has the
    one that follows from sigma^2 = 1 - alpha^2.)"""
    k, h = number([1.0, 2.0, 57.0, 500.0, 998.0, 1000.0]), 1e-4
    at, before, earlier = (PATHS[name].at((k + shift) / 1000) for shift in (0.0, -h, -2 * h))
    slope = (3 * at.alpha - 4 * before.alpha + earlier.alpha) * 1000 / (2 * h)  # of the parabola, order h^2
    error = (at.d_alpha / slope - 1).abs().max()
    truth(f"path {name}", "derivative at the steps, relative", "differences from the left", error, 2e-7)
    orthogonal = (at.alpha * at.d_alpha + at.sigma * at.d_sigma).abs().max()
    truth(f"path {name}", "alpha alpha' + sigma sigma' at the steps", "0", orthogonal, 1e-15)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_leads_from_the_picture_to_noise(name):
    path = PATHS[name]
    at = path.at(torch.tensor([0.0, 1.0]))
    assert at.alpha[0] == 1
    assert at.sigma[0] == (1e-4 if name == "ot" else 0)
    assert at.alpha[1] <= 1
    assert at.sigma[1] > 0.997
    assert at.ratio[1] > 12  # data of standard deviation 0.5 hide in it: 1 % of what is seen is theirs, or less
    ratio = path.at(torch.linspace(0.001, 1, 500)).ratio
    assert (ratio.diff() > 0).all()
    assert 0 <= path.start <= 0.001
    assert name == "straight" or path.at(number(path.start)).sigma > 0


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_coefficients_are_float64_numbers_of_the_cpu_in_the_shape_of_the_time(name, shape):
    path, t = PATHS[name], torch.rand(shape)
    for value in (*path.at(t), path.network_time(t), path.time_of(t)):
        assert value.shape == shape
        assert value.dtype == torch.float64
        assert value.device.type == "cpu"


# Inverse --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_time_of_is_the_inverse_of_the_ratio(truth, name):
    path = PATHS[name]
    earliest = max(path.start, 1e-6)
    t = torch.cat([torch.logspace(math.log10(earliest), -2, 41, dtype=torch.float64), between, steps[:-1]])
    error = ((path.time_of(path.at(t).ratio) - t).abs() / t).max()
    # where alpha or sigma hardly moves at first, early times have fewer digits
    tolerance = {"zero-snr": 1e-11, "ve": 3e-12, "ot": 3e-14}.get(name, 2e-15)
    truth(f"path {name}", "time of the ratio of a time, relative", "that time", error, tolerance)


@pytest.mark.parametrize("name", PATHS)
def test_the_inverse_reaches_both_ends(name):
    path = PATHS[name]
    assert path.time_of(number(0.0)) == 0
    assert abs(path.time_of(path.at(number(1.0)).ratio) - 1) < 1e-12
    forever = path.time_of(number(math.inf))
    assert forever == (math.inf if name in ("vp", "subvp", "ve", "edm") else 1)  # the others know no more noise
    beyond = path.time_of(path.at(number(1.0)).ratio * 1.5)
    assert beyond == 1 or (name in ("vp", "subvp", "ve", "edm") and 1 < beyond < 2)


@pytest.mark.parametrize(("name", "least"), [("ve", 0.02), ("ot", 1e-4)])
def test_before_the_least_noise_the_time_is_zero(name, least):
    assert PATHS[name].time_of(number(0.9 * least)) == 0
    assert PATHS[name].time_of(number(1.1 * least)) > 0


# The discrete processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DISCRETE, "zero-snr", "vp"])
def test_variance_is_preserved(truth, name):
    at = PATHS[name].at(torch.linspace(0, 1, 1001))
    truth(f"path {name}", "alpha^2 + sigma^2", "1", (at.alpha**2 + at.sigma**2 - 1).abs().max(), 1e-15)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_path_passes_through_the_products_of_the_betas(truth, name):
    at = PATHS[name].at(steps)
    product = 1.0
    for i, beta in enumerate(DISCRETE[name](1000).tolist()):
        product *= 1 - beta
        assert math.isclose(float(at.alpha[i]) ** 2, product, rel_tol=1e-11)
    error = (PATHS[name].network_time(steps) - torch.arange(1000)).abs().max()
    truth(f"path {name}", "network time at the 1000 steps", "the index", error, 1e-15)


def test_the_cosine_path_is_a_cosine(truth):
    t = torch.arange(1, 990, dtype=torch.float64) / 1000  # beyond, beta is cut at 0.999
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    error = (PATHS["cosine"].at(t).alpha ** 2 - f).abs().max()
    truth("path cosine", "alpha_bar", "Nichol and Dhariwal 2021, eq. 17", error, 5e-15)


@pytest.mark.parametrize("name", ["linear", "scaled-linear"])
def test_another_number_of_steps_is_about_as_noisy(name):
    for number_of_steps in (100, 4000):
        at = VariancePreserving(number_of_steps, DISCRETE[name]).at(torch.tensor(1.0))
        assert abs(float(at.alpha.log() / PATHS[name].at(torch.tensor(1.0)).alpha.log()) - 1) < 0.07


def test_steps_too_few_for_their_betas_are_refused():
    with pytest.raises(ConfigError, match="20 steps has a variance of 1 or more; take more steps"):
        VariancePreserving(20).at(number(0.5))
    assert VariancePreserving(21).at(number(1.0)).alpha > 0


def test_the_linear_chain_becomes_the_sde(truth):
    """Song et al. 2021, appendix B: T steps of beta(t) / T tend to the VP SDE as T grows, to first order in 1/T."""
    t = torch.linspace(0.1, 1, 10)
    errors = [(VariancePreserving(T).at(t).alpha - PATHS["vp"].at(t).alpha).abs().max() for T in (1000, 8000)]
    order = math.log(errors[0] / errors[1], 8)
    truth("path linear", "order in 1/T at which alpha tends to that of the VP SDE", "1", abs(order - 1), 0.01)


def test_the_zero_snr_path_is_algorithm_1(truth):
    """Lin et al. 2024: sqrt(alpha_bar) shifted so that the last is 0, and scaled so that the first is as before."""
    root = torch.cumprod(1 - linear_betas(1000), 0).sqrt()
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])
    at = PATHS["zero-snr"].at(steps)
    truth("path zero-snr", "alpha at the 1000 steps", "Lin et al. 2024, algorithm 1, float64",
          (at.alpha - rescaled).abs().max(), 1e-15)  # fmt: skip
    assert at.alpha[-1] == 0
    assert at.snr[-1] == 0
    assert abs(at.alpha[0] - PATHS["linear"].at(steps).alpha[0]) < 1e-15
    assert PATHS["zero-snr"].steps == 1000
    assert ZeroTerminalSNR(VariancePreserving(betas=cosine_betas)).at(number(1.0)).alpha == 0


# The continuous processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sde:
    """dx = -beta/2 x dt + g dw of Song et al. 2021: its first two moments obey ordinary differential equations."""

    path: ContinuousVP

    def moments(self, t):
        def beta(s):
            return self.path.beta_min + s * (self.path.beta_max - self.path.beta_min)

        def change(s, state):
            integral, mean, variance = state
            g2 = beta(s) * (1 - math.exp(-2 * integral)) if self.path.sub else beta(s)  # eq. 12, 11
            return [beta(s), -beta(s) / 2 * mean, -beta(s) * variance + g2]

        found = solve_ivp(change, (0, t[-1]), [0.0, 1.0, 0.0], "DOP853", t, rtol=1e-13, atol=1e-15)
        return torch.from_numpy(found.y[1]), torch.from_numpy(found.y[2])


@pytest.mark.parametrize("path", [PATHS["vp"], PATHS["subvp"], ContinuousVP(0.5, 3.0), ContinuousVP(0.5, 3.0, True)])
def test_the_sdes_have_these_moments(truth, path):
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    mean, variance = Sde(path).moments(t.tolist())
    at = path.at(t)
    error = max((at.alpha - mean).abs().max(), (at.sigma**2 - variance).abs().max())
    truth(f"path {'sub-VP' if path.sub else 'VP'}, beta to {path.beta_max:g}", "mean and variance",
          "the SDE's moments integrated by scipy, float64", error, 3e-12)  # fmt: skip
    if path.sub:
        assert (at.sigma[1:-1] < path.__class__(path.beta_min, path.beta_max).at(t).sigma[1:-1]).all()


def test_the_variance_exploding_sde_is_geometric_but_for_the_clean_picture(truth):
    path, t = VarianceExploding(0.1, 30.0), torch.linspace(0.1, 1, 10, dtype=torch.float64)
    error = (path.at(t).sigma / (0.1 * 300**t) - 1).abs().max()
    truth("path VE", "sigma, relative", "Song et al. 2021, eq. 9", error, 1e-15)
    assert path.at(number(0.0)).sigma == 0
    assert abs(path.at(number(1e-12)).sigma - 0.1) < 1e-12
    told = (path.network_time(t) - path.at(t).sigma.log()).abs().max()
    truth("path VE", "what the network is told", "ln sigma", told, 2e-15)


def test_edm_counts_its_time_in_noise(truth):
    path, t = EDM(sigma_max=40.0), torch.tensor([0.1, 0.5, 1.0, 2.0])
    assert torch.equal(path.at(t).sigma, 40 * t.double())
    assert torch.equal(path.at(t).ratio, path.at(t).sigma)
    c_noise = (path.network_time(t) - path.at(t).sigma.log() / 4).abs().max()
    truth("path EDM", "what the network is told", "ln(sigma) / 4, Karras et al. 2022, table 1", c_noise, 1e-15)


def test_straight_paths_are_those_of_their_papers():
    """Liu et al. 2022 and Lipman et al. 2022 (eq. 20: sigma = 1 - (1 - sigma_min) t) let time run the other way."""
    theirs = torch.linspace(0, 1, 11, dtype=torch.float64)
    at = PATHS["straight"].at(1 - theirs)
    torch.testing.assert_close(at.alpha, theirs, rtol=0, atol=1e-15)
    torch.testing.assert_close(at.sigma, 1 - theirs, rtol=0, atol=1e-15)
    at = Straight(0.1).at(1 - theirs)
    torch.testing.assert_close(at.sigma, 1 - (1 - 0.1) * theirs, rtol=0, atol=1e-15)
    torch.testing.assert_close(at.alpha, theirs, rtol=0, atol=1e-15)
    assert (at.d_sigma == 0.9).all()


@pytest.mark.parametrize(("name", "times"), [("vp", 999), ("subvp", 999), ("straight", 1000), ("ot", 1000)])
def test_other_networks_are_told_a_multiple_of_the_time(name, times):
    assert torch.equal(PATHS[name].network_time(torch.tensor([0.0, 0.5, 1.0])), times * number([0.0, 0.5, 1.0]))


# diffusers ------------------------------------------------------------------------------------------------------------


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("linear", {"beta_schedule": "linear"}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
        ("scaled-linear", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    ],
)
def test_diffusers_loses_digits_of_the_first_noise_levels_in_float32(truth, ours, theirs):
    """1 - alpha_bar_0 = beta_0 (1e-4 for the linear one); diffusers, in float32, is off by one part in 5000."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**theirs)
    at, betas = PATHS[ours].at(steps), DISCRETE[ours](1000)
    truth(f"path {ours}", "1 - alpha_bar_0, relative", "beta_0", abs(float(at.sigma[0] ** 2 / betas[0]) - 1), 2e-15)
    table = scheduler.alphas_cumprod.double()
    assert abs(float((1 - table[0]) / betas[0]) - 1) > 1e-5
    truth(f"path {ours}", "betas, relative", "diffusers 0.42.1 DDPMScheduler, float32",
          (scheduler.betas.double() / betas - 1).abs().max(), 6e-7)  # fmt: skip
    truth(
        f"path {ours}", "alpha_bar", "diffusers 0.42.1 DDPMScheduler, float32", (at.alpha**2 - table).abs().max(), 1e-6
    )


@pytest.mark.oracles
def test_the_zero_snr_path_is_that_of_diffusers(truth):
    pytest.importorskip("diffusers")
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(linear_betas(1000).float()), 0).double()
    error = (PATHS["zero-snr"].at(steps).alpha ** 2 - theirs).abs().max()
    truth("path zero-snr", "alpha_bar", "diffusers 0.42.1 rescale_zero_terminal_snr, float32", error, 1e-6)
    assert theirs[-1] == 0
