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


def distance_of_normals(m: float, s: float) -> float:
    """E|m + s Z|: in one dimension the best plan keeps the order, z goes to mean + std z. The mean of a folded normal:

    s sqrt(2 / pi) exp(-m^2 / 2 s^2) + m erf(m / (s sqrt 2))
    """
    if s == 0:
        return abs(m)
    return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))


def test_the_best_critic_tells_the_wasserstein_distance_of_two_gaussians(truth):
    """In one dimension the best 1-Lipschitz critic has the slope sign(F_q - F_p)."""
    for mean, std in ((2.0, 1.0), (1.0, 1.5)):
        p, q = normal(0, 1), normal(mean, std)
        slope = torch.sign((q.cumsum(0) - p.cumsum(0)) * DX)
        critic, zero = slope.cumsum(0) * DX, torch.zeros((), dtype=torch.float64)
        loss = LOSSES["wasserstein"].discriminator
        estimate = -((p * loss(critic, zero) + q * loss(zero, critic)) * DX).sum()
        what = f"best critic of N(0, 1) and N({mean:g}, {std:g}^2)"
        truth("wgan", what, "E|mean + (std - 1) Z|", (estimate - distance_of_normals(mean, std - 1)).abs(), 1e-6)


def logistic(score: float) -> float:
    return 1 / (1 + math.exp(-score))


WRITTEN = {  # from the papers, by D = sigmoid(score) where there is a probability: of x real, of g generated
    "saturating": (
        lambda x, g: -math.log(logistic(x)) - math.log(1 - logistic(g)),
        lambda x, g: math.log(1 - logistic(g)),
    ),
    "non-saturating": (
        lambda x, g: -math.log(logistic(x)) - math.log(1 - logistic(g)),
        lambda x, g: -math.log(logistic(g)),
    ),
    "wasserstein": (lambda x, g: g - x, lambda x, g: -g),
    "hinge": (lambda x, g: max(0, 1 - x) + max(0, 1 + g), lambda x, g: -g),
    "least-squares": (lambda x, g: 0.5 * (x - 1) ** 2 + 0.5 * g**2, lambda x, g: 0.5 * (g - 1) ** 2),
    "relativistic": (lambda x, g: -math.log(logistic(x - g)), lambda x, g: -math.log(logistic(g - x))),
}
POINTS = [(x, g) for x in (-2.0, -0.3, 0.4, 1.7) for g in (-1.9, -0.2, 0.6, 2.1)]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_as_its_paper_writes_it(loss, truth):
    real, fake = torch.tensor(POINTS, dtype=torch.float64).unbind(1)
    for player, found, written in zip(("discriminator", "generator"), LOSSES[loss], WRITTEN[loss], strict=True):
        expected = torch.tensor([written(x, g) for x, g in POINTS], dtype=torch.float64)
        error = (found(real, fake) - expected).abs().max()
        truth("gan", f"{loss} loss of the {player}", "the formula of its paper", error, 1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_players_pull_the_score_of_a_generated_picture_apart(loss):
    """Between what they want of it (least squares: 0 and 1), the one wants it lower and the other higher."""
    real = torch.full((50,), 0.5, dtype=torch.float64)
    fake = torch.linspace(0.02, 0.98, 50, dtype=torch.float64).requires_grad_(True)
    down, up = (torch.autograd.grad(of(real, fake).sum(), fake)[0] for of in LOSSES[loss])
    assert (down > 0).all()
    assert (up < 0).all()


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
