"""The diagonal Gaussian beside torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence

from mezzotint.vae.gaussian import Gaussian


def gaussian(*shape, spread=2.0):
    return Gaussian(spread * torch.randn(*shape).double(), torch.randn(*shape).double())


def normal(gaussian):
    return Normal(gaussian.mean, gaussian.log_std.exp())


def test_the_divergence_of_two_is_that_of_torch(truth):
    q, p = gaussian(50, 7), gaussian(50, 7)
    expected = kl_divergence(normal(q), normal(p))
    error = ((q.kl(p) - expected) / expected).abs().max()
    truth("diagonal Gaussian", "KL(q || p), relative", "torch.distributions", error, 2e-14)


def test_the_divergence_from_the_standard_one_is_that_of_torch(truth):
    q = gaussian(50, 7)
    expected = kl_divergence(normal(q), Normal(0.0, 1.0))
    error = ((q.kl() - expected) / expected).abs().max()
    truth("diagonal Gaussian", "KL(q || N(0, I)), relative", "torch.distributions", error, 2e-14)
    same = (q.kl() - q.kl(Gaussian.standard(q.mean))).abs().max()
    truth("diagonal Gaussian", "KL(q || N(0, I)), nats", "KL(q || p) with p = N(0, I)", same, 1e-15)


def test_equal_ones_have_no_divergence(truth):
    q = gaussian(50, 7)
    truth("diagonal Gaussian", "KL(q || q), nats", "0", q.kl(q).abs().max(), 0.0)


def test_the_density_is_that_of_torch_summed_over_all_but_rows(truth):
    q, z = gaussian(5, 3, 4, 2), torch.randn(5, 3, 4, 2).double()
    expected = normal(q).log_prob(z).sum((1, 2, 3))
    assert q.log_prob(z).shape == (5,)
    truth("diagonal Gaussian", "ln N(z), relative", "torch.distributions",
          ((q.log_prob(z) - expected) / expected).abs().max(), 1e-15)  # fmt: skip


def test_draws_have_its_mean_and_spread():
    """z = mean + temperature std noise, exactly."""
    q, noise = gaussian(4, 3), torch.randn(4, 3).double()
    assert torch.equal(q.at(torch.zeros(4, 3)), q.mean)
    assert torch.equal(q.at(noise, 0.0), q.mean)
    assert torch.allclose((q.at(noise, 0.5) - q.mean) / noise, 0.5 * q.log_std.exp(), rtol=1e-12)


def test_an_answer_is_mean_and_log_variance():
    numbers = torch.randn(2, 6, 3)
    q = Gaussian.of(numbers)
    assert torch.equal(q.mean, numbers[:, :3])
    assert torch.allclose(q.log_std.exp() ** 2, numbers[:, 3:].exp())


def test_rows_are_repeated_one_after_the_other():
    q = Gaussian(torch.arange(3.0)[:, None], torch.zeros(3, 1))
    assert q.repeat(2).mean.flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_a_detached_one_sends_no_gradient_to_its_numbers():
    mean, log_std = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    z = torch.ones(2, 1, requires_grad=True)
    Gaussian(mean, log_std).detach().log_prob(z).sum().backward()
    assert mean.grad is None
    assert log_std.grad is None
    assert (z.grad == -1).all()
