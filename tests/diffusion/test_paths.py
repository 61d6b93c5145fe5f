"""Paths: values, derivatives and tables in float64."""

import math

import pytest
import torch

from mezzotint.diffusion.paths import PATHS, VariancePreserving, cosine_betas, linear_betas

between = torch.linspace(0.0123456, 0.987654, 37, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives_are_those_of_autograd(truth, name):
    t = between.clone().requires_grad_()
    at = PATHS[name].at(t)
    for value, derivative in ((at.alpha, at.d_alpha), (at.sigma, at.d_sigma)):
        (expected,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        error = (derivative - expected).detach().abs().max()
        truth(f"path {name}", "derivative of a coefficient in t", "autograd, float64", error, 3e-14)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_leads_from_the_picture_to_noise(name):
    at = PATHS[name].at(torch.tensor([0.0, 1.0]))
    assert at.alpha[0] == 1
    assert at.sigma[0] == 0
    assert at.alpha[1] < 0.01
    assert at.sigma[1] > 0.999
    snr = PATHS[name].at(torch.linspace(0.001, 1, 500)).snr
    assert (snr.diff() < 0).all()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_variance_is_preserved(truth, name):
    at = PATHS[name].at(torch.linspace(0, 1, 1001))
    truth(f"path {name}", "alpha^2 + sigma^2", "1", (at.alpha**2 + at.sigma**2 - 1).abs().max(), 1e-14)


@pytest.mark.parametrize(("name", "betas"), [("linear", linear_betas), ("cosine", cosine_betas)])
def test_the_path_passes_through_the_products_of_the_betas(truth, name, betas):
    k = torch.arange(1000)
    at = PATHS[name].at((k + 1).double() / 1000)
    product = 1.0
    for i, beta in enumerate(betas(1000).tolist()):
        product *= 1 - beta
        assert math.isclose(float(at.alpha[i]) ** 2, product, rel_tol=1e-11)
    error = (PATHS[name].network_time((k + 1).double() / 1000) - k).abs().max()
    truth(f"path {name}", "network time at the 1000 steps", "the index", error, 2e-13)


def test_the_cosine_path_is_a_cosine(truth):
    t = torch.arange(1, 990, dtype=torch.float64) / 1000  # beyond, beta is cut at 0.999
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    error = (PATHS["cosine"].at(t).alpha ** 2 - f).abs().max()
    truth("path cosine", "alpha_bar", "Nichol and Dhariwal 2021, eq. 17", error, 5e-15)


def test_another_number_of_steps_is_about_as_noisy():
    for steps in (100, 4000):
        at = VariancePreserving(steps).at(torch.tensor(1.0))
        assert abs(float(at.alpha.log() / PATHS["linear"].at(torch.tensor(1.0)).alpha.log()) - 1) < 0.07


@pytest.mark.oracles
@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_diffusers_loses_digits_of_the_first_noise_levels_in_float32(truth, ours, theirs):
    """1 - alpha_bar_0 = beta_0 (1e-4 for the linear one); diffusers, in float32, is off by one part in 5000."""
    diffusers = pytest.importorskip("diffusers")
    table = diffusers.DDPMScheduler(beta_schedule=theirs).alphas_cumprod.double()
    at = PATHS[ours].at(torch.arange(1, 1001).double() / 1000)
    beta0 = {"linear": 1e-4, "cosine": float(cosine_betas(1000)[0])}[ours]
    truth(f"path {ours}", "1 - alpha_bar_0, relative", "beta_0", abs(float(at.sigma[0]) ** 2 / beta0 - 1), 2e-15)
    assert abs(float(1 - table[0]) / beta0 - 1) > 1e-4
    error = (at.alpha**2 - table).abs().max()
    truth(f"path {ours}", "alpha_bar", "diffusers 0.42.1 DDPMScheduler, float32", error, 1e-6)
