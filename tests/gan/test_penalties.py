"""Penalties on the slope, where it is known; and the smallest GAN of all, which comes to rest with some of them."""

from __future__ import annotations

import math

import pytest
import torch

from mezzotint.core.errors import ConfigError
from mezzotint.gan.losses import LOSSES
from mezzotint.gan.penalties import Clipping, GradientPenalty, NoPenalty, Roth, ZeroCentred

ZERO = torch.zeros(())


@pytest.fixture
def linear():
    """D(x) = w . x, and pictures."""
    w = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 6, 1, 3, 3, dtype=torch.float64).unbind()
    return w, (lambda x: (x * w).flatten(1).sum(1)), real, fake, torch.rand(6, dtype=torch.float64)


def test_penalties_of_a_linear_critic_are_known(linear, truth):
    w, critic, real, fake, mix = linear
    norm = w.detach().square().sum().sqrt()
    found = GradientPenalty(10.0)(critic, real, fake, mix, ZERO).detach()
    truth("wgan-gp", "penalty of a linear critic", "10 (|w| - 1)^2", (found - 10 * (norm - 1) ** 2).abs().max(), 1e-10)
    for at, times in (("real", 1), ("fake", 1), ("both", 2)):
        found = ZeroCentred(3.0, at)(critic, real, fake, mix, ZERO).detach()
        truth(
            "r1-gan",
            f"penalty at {at} of a linear D",
            "gamma / 2 |w|^2",
            (found - times * 1.5 * norm**2).abs().max(),
            1e-12,
        )
    with torch.no_grad():
        d_real, d_fake = torch.sigmoid(critic(real)), torch.sigmoid(critic(fake))
    expected = 2 * 0.1**0.5 / 2 * norm**2 * ((1 - d_real) ** 2 + d_fake**2)
    found = Roth(2.0, final=0.1)(critic, real, fake, mix, torch.tensor(0.5)).detach()
    truth("roth-gan", "penalty of a linear D", "its formula, half way", (found - expected).abs().max(), 1e-6)


def test_a_slope_below_one_costs_nothing_if_only_one_side_is_punished(linear):
    w, critic, real, fake, mix = linear
    w.data *= 0.5 / w.data.square().sum().sqrt()
    assert GradientPenalty(one_sided=True)(critic, real, fake, mix, ZERO).abs().max() == 0
    assert GradientPenalty()(critic, real, fake, mix, ZERO).min() > 2


@pytest.mark.parametrize("penalty", [GradientPenalty(), ZeroCentred(), ZeroCentred(at="both"), Roth()])
def test_penalties_have_a_gradient_by_the_critics_weights(penalty):
    first, second = torch.randn(2, 4, 4, dtype=torch.float64).unbind()
    real, fake, mix = (
        torch.randn(3, 4, dtype=torch.float64),
        torch.randn(3, 4, dtype=torch.float64),
        torch.rand(3).double(),
    )

    def value(a, b):
        return penalty(lambda x: torch.tanh(torch.tanh(x @ a) @ b).sum(1), real, fake, mix, ZERO)

    assert torch.autograd.gradcheck(value, (first.requires_grad_(), second.requires_grad_()))


def test_clipping_holds_every_weight():
    layer = torch.nn.Linear(5, 5)
    Clipping(0.05).clip(layer)
    assert all(p.abs().max() <= 0.05 for p in layer.parameters())


def test_what_makes_no_sense_is_refused():
    for wrong in (
        lambda: Clipping(0.0),
        lambda: GradientPenalty(-1.0),
        lambda: ZeroCentred(every=0),
        lambda: Roth(final=2.0),
    ):
        with pytest.raises(ConfigError):
            wrong()


# Mescheder et al. 2018, section 2: data at 0, a generator that puts all at theta, D(x) = psi x

DIRAC = torch.zeros(1, 1, dtype=torch.float64)


def dirac(loss: str, penalty=NoPenalty(), noise: float = 0.0, steps: int = 800, rate: float = 0.1) -> torch.Tensor:  # noqa: B008
    """(theta, psi), (steps, 2), in the course of alternating gradient descent from (1, 1); the equilibrium is at 0."""
    theta = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    psi = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    critic = lambda x: (psi * x).sum(1)  # noqa: E731
    around = noise * torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1) if noise else DIRAC
    passed = []
    for _ in range(steps):
        real, fake = DIRAC + around, theta.detach() + around
        value = LOSSES[loss].discriminator(critic(real), critic(fake)).mean()
        cost = penalty(critic, real, fake, torch.full((len(real),), 0.5, dtype=torch.float64), ZERO)
        value = value if cost is None else value + cost.mean()
        with torch.no_grad():
            psi -= rate * torch.autograd.grad(value, psi)[0]
        value = LOSSES[loss].generator(critic(DIRAC + around), critic(theta + around)).mean()
        (slope,) = torch.autograd.grad(value, theta)
        with torch.no_grad():
            theta -= rate * slope
        passed.append((theta.item(), psi.item()))
    return torch.tensor(passed, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "penalty"),
    [("saturating", NoPenalty()), ("non-saturating", NoPenalty()), ("wasserstein", NoPenalty()),
     ("wasserstein", GradientPenalty(1.0)), ("hinge", NoPenalty())],
    ids=["saturating", "non-saturating", "wasserstein", "wgan-gp", "hinge"],
)  # fmt: skip
def test_without_a_penalty_that_vanishes_the_smallest_gan_circles(loss, penalty):
    """Mescheder et al. 2018, lemma 2.3 and section 3: neither the plain losses nor WGAN-GP come to rest."""
    distance = dirac(loss, penalty).norm(dim=1)
    assert distance[-1] > 0.6 * distance[400] > 0.2  # with a non-saturating loss it shrinks, but ever more slowly
    assert distance.max() < 1.5 * 2**0.5  # nor does any of them run away


def test_the_smallest_wasserstein_gan_moves_as_a_planet(truth):
    """psi' = psi - h theta, theta' = theta + h psi': a symplectic step, which keeps theta^2 + psi^2 - h theta psi."""
    theta, psi = dirac("wasserstein", rate=0.1).T
    energy = theta**2 + psi**2 - 0.1 * theta * psi
    truth("wgan", "Dirac-GAN, what alternating steps keep", "1.9", (energy - 1.9).abs().max(), 1e-12)
    angle = torch.atan2(theta, psi)
    around = ((angle.diff() + torch.pi) % (2 * torch.pi) - torch.pi).sum() / (2 * torch.pi)
    turn = 2 * math.asin(0.05) / (2 * torch.pi)  # of one step: the trace of its matrix is 2 - h^2
    truth("wgan", "Dirac-GAN, turns in 799 steps", "799 * 2 asin(h/2) / 2 pi", abs(around - 799 * turn), 0.02)


@pytest.mark.parametrize(
    ("system", "penalty", "noise"),
    [("r1-gan", ZeroCentred(1.0), 0.0), ("r1-gan", ZeroCentred(1.0, at="fake"), 0.0),
     ("roth-gan", Roth(2.0, final=1.0), 0.0), ("instance-noise", NoPenalty(), 1.5)],
    ids=["r1", "r2", "roth", "noise"],
)  # fmt: skip
def test_with_noise_or_a_penalty_centred_at_zero_the_smallest_gan_comes_to_rest(system, penalty, noise, truth):
    distance = dirac("non-saturating", penalty, noise).norm(dim=1)
    what = "Dirac-GAN, noise" if noise else f"Dirac-GAN, {type(penalty).__name__} {getattr(penalty, 'at', '')}".strip()
    truth(system, what, "the equilibrium (0, 0)", distance[-1], 1e-6)
