"""Adversarial losses beside their closed forms: best discriminators, the divergences they measure, distances."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mezzotint.gan.losses import LOSSES, optimal_score, smoothed, told_apart

X = torch.linspace(-12, 14, 20_001, dtype=torch.float64)
DX = X[1] - X[0]


def normal(mean: float, std: float) -> torch.Tensor:
    return torch.exp(-0.5 * ((X - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def best_scores(loss: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The score at each point that minimises p l(real) + q l(fake), found by bisection of its derivative."""
    low, high = torch.full_like(p, -60.0), torch.full_like(p, 60.0)
    for _ in range(80):
        score = ((low + high) / 2).requires_grad_(True)
        real, fake = LOSSES[loss].discriminator(score, torch.zeros(())), LOSSES[loss].discriminator(
            torch.zeros(()), score
        )  # fmt: skip
        (slope,) = torch.autograd.grad((p * real + q * fake).sum(), score)
        low, high = torch.where(slope < 0, score, low).detach(), torch.where(slope < 0, high, score).detach()
    return (low + high) / 2


@pytest.mark.parametrize("loss", ["saturating", "non-saturating"])
def test_the_best_discriminator_is_the_share_of_the_data_in_all_densities(loss, truth):
    p, q = normal(0, 1)[8000:12_000:50], normal(1, 1.5)[8000:12_000:50]
    found = torch.sigmoid(best_scores(loss, p, q))
    truth("gan", f"best D of the {loss} loss", "p / (p + q)", (found - p / (p + q)).abs().max(), 1e-12)
    assert torch.allclose(torch.sigmoid(optimal_score(p, q)), p / (p + q))


def test_at_the_best_discriminator_the_loss_tells_the_jensen_shannon_divergence(truth):
    """Goodfellow et al. 2014, theorem 1: it is ln 4 - 2 JSD(p, q)."""
    p, q = normal(0, 1), normal(1, 1.5)
    score = optimal_score(p.clamp_min(1e-300), q.clamp_min(1e-300))
    zero = torch.zeros(())
    value = ((p * F.softplus(-score) + q * F.softplus(score)) * DX).sum()
    assert torch.allclose(LOSSES["saturating"].discriminator(score, zero), F.softplus(-score) + math.log(2))
    middle = (p + q) / 2
    divergence = sum((d * torch.log((d / middle).clamp_min(1e-300)) * DX).sum() / 2 for d in (p, q))
    truth(
        "gan", "loss at the best D", "ln 4 - 2 JSD by quadrature", (value - math.log(4) + 2 * divergence).abs(), 1e-10
    )


def test_the_best_scores_of_least_squares_and_hinge(truth):
    p, q = normal(0, 1)[9000:10_500:50], normal(1, 1.5)[9000:10_500:50]
    squares = best_scores("least-squares", p, q)
    truth("gan", "best score of least squares", "p / (p + q)", (squares - p / (p + q)).abs().max(), 1e-12)
    hinge = best_scores("hinge", p, q)
    truth("gan", "best score of the hinge", "sign(p - q)", (hinge - torch.sign(p - q)).abs().max(), 1e-9)


def test_the_best_critic_tells_the_wasserstein_distance_of_two_gaussians(truth):
    """In one dimension the best 1-Lipschitz critic has the slope sign(F_q - F_p), and W_1 is int |F_p - F_q|."""
    for mean, std in ((2.0, 1.0), (1.0, 1.5)):
        p, q = normal(0, 1), normal(mean, std)
        slope = torch.sign((q.cumsum(0) - p.cumsum(0)) * DX)
        critic, zero = slope.cumsum(0) * DX, torch.zeros((), dtype=torch.float64)
        loss = LOSSES["wasserstein"].discriminator
        estimate = -((p * loss(critic, zero) + q * loss(zero, critic)) * DX).sum()
        distance = ((p.cumsum(0) - q.cumsum(0)) * DX).abs().sum() * DX
        what = f"best critic of N(0, 1) and N({mean:g}, {std:g}^2)"
        truth("wgan", what, "W_1 by quadrature", (estimate - distance).abs(), 2e-7)
        if std == 1.0:
            truth("wgan", what, "the distance of the means", (estimate - abs(mean)).abs(), 1e-6)


def test_smoothed_labels_are_the_cross_entropy_with_a_target_below_one():
    real = torch.randn(20, dtype=torch.float64)
    loss = LOSSES["non-saturating"].discriminator(real, torch.full_like(real, -800.0)) + smoothed(real, 0.1)
    target = torch.full_like(real, 0.9)
    assert torch.allclose(loss, F.binary_cross_entropy_with_logits(real, target, reduction="none"))


def test_the_non_saturating_loss_pushes_where_the_saturating_one_has_stopped():
    score = torch.tensor([-20.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1)
    (still,) = torch.autograd.grad(LOSSES["saturating"].generator(zero, score).sum(), score)
    (strong,) = torch.autograd.grad(LOSSES["non-saturating"].generator(zero, score).sum(), score)
    assert still.abs() < 1e-8
    assert strong < -0.99


def test_only_differences_matter_to_the_relativistic_loss():
    real, fake = torch.randn(5), torch.randn(5)
    for loss in LOSSES["relativistic"]:
        assert torch.allclose(loss(real, fake), loss(real + 3, fake + 3), atol=1e-6)
    assert torch.allclose(
        LOSSES["relativistic"].discriminator(real, fake), LOSSES["relativistic"].generator(fake, real)
    )


def test_what_is_told_apart_is_so_wherever_the_scores_lie():
    real, fake = torch.tensor([2.0, 3.0, 4.0, -1.0]), torch.tensor([-2.0, -3.0, 1.5, -4.0])
    for offset in (0.0, 100.0):
        assert told_apart(real + offset, fake + offset) == 6 / 8  # the middle is 1/16
    assert told_apart(real, real.flip(0)) == told_apart(torch.zeros(3), torch.zeros(3)) == 0.5
