"""Predictions: every conversion is exact, both ways."""

import itertools

import pytest
import torch

from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import PREDICTIONS, Denoised, Denoiser, convert, target

t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)


def setting(path, dtype=torch.float64):
    """Known clean pictures and noise at five times."""
    at = PATHS[path].at(t)
    clean, noise = torch.rand(5, 1, 4, 4, dtype=dtype) * 2 - 1, torch.randn(5, 1, 4, 4, dtype=dtype)
    alpha, sigma = (c.to(dtype).view(5, 1, 1, 1) for c in at[:2])
    return alpha * clean + sigma * noise, clean, noise, at


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("source", "wanted"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_each_prediction_becomes_each_other(path, source, wanted):
    x, clean, noise, at = setting(path)
    answer = convert(target(source, clean, noise, at), x, at, source, wanted)
    expected = target(wanted, clean, noise, at)
    assert (answer - expected).abs().max() < 1e-10 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("path", PATHS)
def test_conversion_there_and_back_is_the_identity(truth, path):
    x, _, _, at = setting(path)
    y = torch.randn_like(x)
    worst = 0.0
    for source, wanted in itertools.product(PREDICTIONS, PREDICTIONS):
        back = convert(convert(y, x, at, source, wanted), x, at, wanted, source)
        worst = max(worst, float((back - y).abs().max()))
    truth(f"path {path}", "every conversion there and back", "identity, float64", worst, 4e-12)


def test_targets_are_those_of_the_papers():
    x, clean, noise, at = setting("straight")
    torch.testing.assert_close(target("velocity", clean, noise, at), noise - clean)  # Liu et al. 2022, with 1 - t for t
    x, clean, noise, at = setting("linear")
    alpha, sigma = (c.view(5, 1, 1, 1) for c in at[:2])
    torch.testing.assert_close(target("v", clean, noise, at), alpha * noise - sigma * clean)
    density = torch.distributions.Normal(alpha * clean, sigma)
    x = x.requires_grad_()
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(target("score", clean, noise, at), score)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_denoised_picture_offers_every_form(path, kind):
    x, clean, noise, at = setting(path)
    d = Denoised(x, target(kind, clean, noise, at), kind, at)
    for form in PREDICTIONS:
        torch.testing.assert_close(getattr(d, form), target(form, clean, noise, at), rtol=1e-9, atol=1e-9)


def test_coefficients_are_applied_in_the_dtype_of_the_pictures(truth):
    x, clean, noise, at = setting("linear", torch.float32)
    answer = convert(target("v", clean, noise, at), x, at, "v", "noise")
    assert answer.dtype == torch.float32
    error = (answer - noise).abs().max()
    truth("predictions", "v to noise in float32", "the noise", error, 2e-6)


def test_the_velocity_is_the_time_derivative_of_the_path(truth):
    time = torch.tensor(0.4321, dtype=torch.float64)
    clean, noise = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    worst = 0.0
    for path in PATHS.values():

        def x(s, path=path):
            return path.at(s).alpha * clean + path.at(s).sigma * noise

        _, derivative = torch.autograd.functional.jvp(x, time, torch.ones_like(time))
        worst = max(worst, float((target("velocity", clean, noise, path.at(time)) - derivative).abs().max()))
    truth("predictions", "velocity", "d x_t / dt by autograd, float64", worst, 5e-15)


def test_clipping_holds_the_picture_in_range_and_lets_the_noise_follow():
    path = PATHS["linear"]
    x, time = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor(0.9)
    d = Denoiser(lambda x, _: torch.zeros_like(x), path, "noise", clip=True)(x, time)
    assert d.clean.abs().max() == 1
    torch.testing.assert_close(d.at.alpha * d.clean + d.at.sigma * d.noise, x)
