"""Classifier-free guidance, survey eq. 92."""

import pytest
import torch

from mezzotint.diffusion.guidance import ClassifierFree
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import PREDICTIONS, convert

LABELS = torch.tensor([0, 1, 2, 1])
X = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor(500.0)


def network(x, t, labels):
    return torch.sin(x + labels.view(-1, 1, 1, 1)) + t / 1000


def guided(w):
    return ClassifierFree(network, LABELS, null=3, w=w)(X, T)


def test_without_strength_it_is_the_conditional_network():
    assert torch.equal(guided(0.0), network(X, T, LABELS))


@pytest.mark.parametrize("w", [0.5, 1.0, 3.0, 7.5])
def test_it_is_equation_92(truth, w):
    expected = (1 + w) * network(X, T, LABELS) - w * network(X, T, torch.full_like(LABELS, 3))
    truth("guidance", f"w = {w:g}", "survey eq. 92", (guided(w) - expected).abs().max(), 1e-14)


def test_it_is_linear_in_w(truth):
    error = (guided(3.0) - (guided(1.0) + 2 * (guided(2.0) - guided(1.0)))).abs().max()
    truth("guidance", "answer at w = 3", "extrapolated from w = 1 and 2", error, 1e-14)


def test_both_branches_are_one_batch():
    sizes = []

    def counting(x, t, labels):
        sizes.append(len(x))
        return network(x, t, labels)

    for w, expected in ((0.0, [4]), (2.0, [8])):
        sizes.clear()
        ClassifierFree(counting, LABELS, 3, w)(X, T)
        assert sizes == expected


@pytest.mark.parametrize("path", PATHS)
def test_guiding_any_prediction_guides_the_noise(truth, path):
    """Eq. 92 speaks of noise; every prediction is affine in it, so that both orders give the same."""
    at, w, worst = PATHS[path].at(torch.tensor(0.6)), 2.5, 0.0
    conditional, unconditional = torch.randn_like(X), torch.randn_like(X)
    for kind in PREDICTIONS:
        noises = [convert(y, X, at, kind, "noise") for y in (conditional, unconditional)]
        then = convert((1 + w) * conditional - w * unconditional, X, at, kind, "noise")
        worst = max(worst, float((then - ((1 + w) * noises[0] - w * noises[1])).abs().max()))
    truth(f"guidance, {path} path", "eq. 92 on any prediction", "eq. 92 on the noise", worst, 2e-14)
