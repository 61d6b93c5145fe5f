"""Mixtures of Gaussians in a plane: what is counted, and how many modes each adversarial loss finds of them."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from mezzotint.core.errors import ConfigError
from mezzotint.evaluation.modes import Mixture, grid_of_gaussians, modes_of, ring_of_gaussians
from mezzotint.gan.losses import LOSSES, UNANCHORED
from mezzotint.gan.penalties import Clipping, GradientPenalty, NoPenalty, PenaltyConfig, Roth, ZeroCentred

GRID = grid_of_gaussians(spacing=0.5, std=0.05)  # centres from -1 to 1
SCATTERED = math.pi * 0.3**2  # share of good ones among points at random over the grid: a circle in each square
LATENT, WIDTH, BATCH = 4, 128, 256


def drawn(mixture: Mixture, n: int) -> torch.Tensor:
    return mixture.at(torch.randint(len(mixture.centres), (n,)), torch.randn(n, 2))


@pytest.mark.parametrize("mixture", [grid_of_gaussians(), ring_of_gaussians()], ids=["grid", "ring"])
def test_the_mixture_itself_covers_all_its_modes(mixture, truth):
    """A Gaussian of a plane is within 3 deviations with probability 1 - exp(-9/2)."""
    assert mixture.good == pytest.approx(1 - math.exp(-4.5), rel=1e-12)
    found = modes_of(drawn(mixture, 20_000), mixture)
    assert found.covered == len(mixture.centres)
    truth("gan", f"{len(mixture.centres)} Gaussians: good share of their own samples", "1 - exp(-9/2)",
          abs(found.good - mixture.good), 2e-3)  # fmt: skip
    assert found.divergence < 1e-3


def test_centres_are_where_papers_have_them():
    grid, ring = grid_of_gaussians(), ring_of_gaussians()
    expected = set(itertools.product((-4.0, -2.0, 0.0, 2.0, 4.0), repeat=2))
    assert {tuple(centre) for centre in grid.centres.tolist()} == expected
    assert torch.allclose(ring.centres.norm(dim=1), torch.ones(8))
    assert torch.allclose(torch.pdist(ring.centres).min(), torch.tensor(2 * math.sin(math.pi / 8)))


def test_samples_are_counted_by_hand():
    mixture = Mixture(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 0.1)
    samples = torch.tensor([[0.0, 0.29], [0.0, 0.31], [1.0, 0.0], [1.1, 0.0], [0.5, 0.0]])
    found = modes_of(samples, mixture)
    assert found.covered == 2
    assert found.good == 3 / 5
    assert found.divergence == pytest.approx(math.log(3) - (math.log(3) - 2 / 3 * math.log(2)))


def test_one_mode_is_one_mode_and_nothing_is_none():
    one = modes_of(GRID.centres[:1].repeat(50, 1), GRID)
    assert (one.covered, one.good) == (1, 1.0)
    assert one.divergence == pytest.approx(math.log(25))
    assert modes_of(GRID.centres + 0.25, GRID) == (0, 0.0, math.inf)


def test_what_are_no_samples_is_refused():
    for wrong in (lambda: modes_of(torch.zeros(3, 4), GRID), lambda: modes_of(torch.zeros(0, 2), GRID),
                  lambda: grid_of_gaussians(0), lambda: ring_of_gaussians(0)):  # fmt: skip
        with pytest.raises(ConfigError):
            wrong()


def neurons(inputs: int, outputs: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, WIDTH, WIDTH):
        layers += [nn.Linear(before, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs, bias))


def trained(
    loss: str, penalty: PenaltyConfig, steps: int, critic_steps: int = 1, lr: float = 2e-3, mixture: Mixture = GRID
) -> torch.Tensor:
    """2,500 samples of the averaged generator of points, trained by these; layers of neurons, Adam without momentum."""
    generator, critic = neurons(LATENT, 2), neurons(2, 1, loss not in UNANCHORED)
    average = copy.deepcopy(generator)
    judge = lambda x: critic(x).squeeze(1)  # noqa: E731
    optimizers = [
        torch.optim.Adam(network.parameters(), rate, (0.0, 0.99), fused=True)
        for network, rate in ((generator, lr), (critic, 2 * lr))
    ]
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 1 - 1 / (steps - step + 1)  # to 0, in a line
        for _ in range(critic_steps):
            real = drawn(mixture, BATCH)
            with torch.no_grad():
                fake = generator(torch.randn(BATCH, LATENT))
            cost = LOSSES[loss].discriminator(*judge(torch.cat([real, fake])).chunk(2))
            slope = penalty(judge, real, fake, torch.rand(BATCH), torch.tensor(step / steps))
            optimizers[1].zero_grad()
            (cost if slope is None else cost + slope).mean().backward()
            optimizers[1].step()
            if isinstance(penalty, Clipping):
                penalty.clip(critic)
        real, fake = drawn(mixture, BATCH), generator(torch.randn(BATCH, LATENT))
        cost = LOSSES[loss].generator(*judge(torch.cat([real, fake])).chunk(2))
        optimizers[0].zero_grad()
        cost.mean().backward()
        optimizers[0].step()
        with torch.no_grad():
            for kept, present in zip(average.parameters(), generator.parameters()):
                kept.lerp_(present, 0.01)
    with torch.no_grad():
        return average(torch.randn(2500, LATENT))


RING = ring_of_gaussians(std=0.1)


def test_scattered_points_cover_all_modes_but_are_seldom_good():
    """Why the share is counted too."""
    found = modes_of(2.5 * (torch.rand(2500, 2) - 0.5), GRID)
    assert found.covered == 25
    assert found.good == pytest.approx(SCATTERED, abs=0.03)


def test_a_penalised_gan_finds_a_ring_in_two_hundred_steps(truth):
    """At random over a square around the ring, a third of the points are good ones."""
    found = modes_of(trained("non-saturating", ZeroCentred(0.1), steps=200, mixture=RING), RING)
    truth("r1-gan", "8 Gaussians on a ring, 200 steps: modes missed", "8", 8 - found.covered, 0)
    truth("r1-gan", "8 Gaussians on a ring, 200 steps: samples that are not good", "none", 1 - found.good, 0.5)


SLOW = [  # loss and penalty; steps of the generator, those of the discriminator for one, and the learning rate; most
    # modes that may be missed, and the largest share of samples that may not be good
    ("saturating", ZeroCentred(0.002), 2000, 1, 2e-3, 1, 1 / 3),
    ("non-saturating", ZeroCentred(0.002), 2000, 1, 2e-3, 1, 1 / 3),
    ("non-saturating", Roth(0.02, final=0.1), 2000, 1, 2e-3, 1, 1 / 3),
    ("non-saturating", NoPenalty(), 2000, 1, 2e-3, 8, 1 / 3),  # it depends on chance which modes are lost
    ("wasserstein", GradientPenalty(0.1), 2000, 2, 5e-3, 1, 1 / 3),
    ("wasserstein", Clipping(0.1), 1500, 5, 1e-3, 1, 0.6),  # Gulrajani et al. 2017, section 3: the critic is simple
    ("hinge", ZeroCentred(0.002), 2000, 1, 2e-3, 1, 1 / 3),
    ("least-squares", ZeroCentred(0.002), 2000, 1, 2e-3, 1, 1 / 3),
    ("relativistic", ZeroCentred(0.002), 2000, 1, 2e-3, 1, 1 / 3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "penalty", "steps", "critic_steps", "lr", "missed", "poor"), SLOW)
def test_every_loss_finds_the_modes_of_a_grid(loss, penalty, steps, critic_steps, lr, missed, poor, truth):
    """Two thirds of the samples are good where there is a penalty; of points scattered at random, 28% are."""
    found = modes_of(trained(loss, penalty, steps, critic_steps, lr), GRID)
    setting = f"25 Gaussians, {loss}, {penalty.kind}, {steps} steps"
    truth("gan", f"{setting}: modes missed", "none", 25 - found.covered, missed)
    truth("gan", f"{setting}: samples that are not good", "none; of scattered points 0.72", 1 - found.good, poor)


def test_the_slow_checks_have_every_loss():
    assert {loss for loss, *_ in SLOW} == set(LOSSES)
