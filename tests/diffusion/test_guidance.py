"""Classifier-free guidance, survey eq. 92: its formula, its interval, and the spread that it is given back."""

import math

import pytest
import torch

from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.guidance import ClassifierFree, Guidance
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import PREDICTIONS, Denoiser, convert

LABELS = torch.tensor([0, 1, 2, 1])
NULL = torch.full_like(LABELS, 3)
X = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor(0.5, dtype=torch.float64)


def network(x, t, labels):
    return torch.sin(x + labels.view(-1, 1, 1, 1)) + torch.as_tensor(t).view(-1, 1, 1, 1)


def guided(w, x=X, t=T, **choices):
    return ClassifierFree(network, LABELS, 3, Guidance(w, **choices))(x, t)


def equation(w, t=T):
    w = torch.as_tensor(w, dtype=torch.float64).view(-1, 1, 1, 1)
    return (1 + w) * network(X, t, LABELS) - w * network(X, t, NULL)


def test_without_strength_it_is_the_conditional_network():
    assert torch.equal(guided(0.0), network(X, T, LABELS))
    assert torch.equal(guided(0.0, rescale=0.7), network(X, T, LABELS))
    assert Guidance() == Guidance(0.0, (0.0, 1.0), 0.0)


@pytest.mark.parametrize("w", [0.5, 1.0, 3.0, 7.5])
def test_it_is_equation_92(truth, w):
    truth("guidance", f"w = {w:g}", "survey eq. 92", (guided(w) - equation(w)).abs().max(), 1e-15)


def test_it_is_linear_in_w(truth):
    error = (guided(3.0) - (guided(1.0) + 2 * (guided(2.0) - guided(1.0)))).abs().max()
    truth("guidance", "answer at w = 3", "extrapolated from w = 1 and 2", error, 6e-15)


@pytest.mark.parametrize("path", PATHS)
def test_guiding_any_prediction_guides_the_noise(truth, path):
    """Eq. 92 speaks of noise; every prediction is affine in it, so that both orders give the same."""
    at, w, worst = PATHS[path].at(torch.tensor(0.6)), 2.5, 0.0
    conditional, unconditional = torch.randn_like(X), torch.randn_like(X)
    for kind in PREDICTIONS:
        noises = [convert(y, X, at, kind, "noise") for y in (conditional, unconditional)]
        then = convert((1 + w) * conditional - w * unconditional, X, at, kind, "noise")
        size = max(float(noise.abs().max()) for noise in noises)
        worst = max(worst, float((then - ((1 + w) * noises[0] - w * noises[1])).abs().max()) / size)
    truth(f"guidance, {path} path", "eq. 92 on any prediction, relative", "eq. 92 on the noise", worst, 5e-15)


# The interval ---------------------------------------------------------------------------------------------------------


def calls(guidance, t, channels=1):
    """The sizes of the batches that go through the network."""
    sizes = []

    def counting(x, t, labels):
        assert len(x) == len(labels)
        assert t.dim() == 0 or len(t) == len(x)
        sizes.append(len(x))
        return network(x, t, labels)

    ClassifierFree(counting, LABELS, 3, guidance)(X, t)
    return sizes


def test_both_branches_are_one_batch():
    assert calls(Guidance(0.0), T) == [4]
    assert calls(Guidance(2.0), T) == [8]
    assert calls(Guidance(2.0, rescale=0.5), T) == [8]
    assert calls(Guidance(2.0), torch.rand(4, dtype=torch.float64)) == [8]


@pytest.mark.parametrize(("t", "on"), [(0.19, False), (0.2, True), (0.5, True), (0.8, True), (0.81, False)])
def test_outside_the_interval_there_is_no_guidance(t, on):
    """And no second branch that costs its time (Kynkäänniemi et al. 2024, section 3)."""
    t, asked = torch.tensor(t, dtype=torch.float64), Guidance(2.0, (0.2, 0.8))
    assert calls(asked, t) == [8 if on else 4]
    expected = equation(2.0, t) if on else network(X, t, LABELS)
    torch.testing.assert_close(guided(2.0, t=t, interval=(0.2, 0.8)), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("rescale", [0.0, 0.6])
def test_each_row_has_its_own_time(truth, rescale):
    t = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    together = guided(2.0, t=t, interval=(0.2, 0.6), rescale=rescale)
    for row in range(4):
        one = ClassifierFree(network, LABELS[row : row + 1], 3, Guidance(2.0, (0.2, 0.6), rescale))
        error = (together[row] - one(X[row : row + 1], t[row])[0]).abs().max()
        truth("guidance", f"a row of a batch at its own time, rescale {rescale:g}", "that row alone", error, 1e-15)
    if not rescale:
        torch.testing.assert_close(together, equation([0.0, 2.0, 2.0, 0.0], t), rtol=0, atol=1e-15)


# Rescaling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_rescaling_is_equations_15_and_16(truth, phi):
    """Lin et al. 2024: the answer with the spread of the conditional one, mixed with itself."""
    w, conditional = 4.0, network(X, T, LABELS)
    answer = equation(w)
    spread = [conditional[k].std() / answer[k].std() for k in range(4)]
    rescaled = torch.stack([answer[k] * spread[k] for k in range(4)])
    expected = phi * rescaled + (1 - phi) * answer
    error = (guided(w, rescale=phi) - expected).abs().max()
    truth("guidance", f"rescaled, phi = {phi:g}", "Lin et al. 2024, eq. 15-16", error, 2e-15)


def test_rescaled_wholly_each_picture_has_the_spread_of_the_conditional_one(truth):
    answer, conditional = guided(6.0, rescale=1.0), network(X, T, LABELS)
    error = (answer.flatten(1).std(1) / conditional.flatten(1).std(1) - 1).abs().max()
    truth("guidance", "spread of a picture rescaled with phi = 1, relative", "that without guidance", error, 4e-15)


def test_rescaling_an_answer_of_zeros_is_zero():
    """A new network's, whose last layer begins at zero."""
    zeros = ClassifierFree(lambda x, t, labels: torch.zeros_like(x), LABELS, 3, Guidance(2.0, rescale=0.7))
    assert torch.equal(zeros(X, T), torch.zeros_like(X))


# What goes through the network ----------------------------------------------------------------------------------------


def two(x, t, labels):
    """A network with a learned variance in its second half, which the label decides."""
    return torch.cat([network(x, t, labels), labels.view(-1, 1, 1, 1) * torch.ones_like(x) / 3], dim=1)


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_a_learned_variance_is_that_of_the_label(rescale):
    """Extrapolated beyond the null label's, it would leave the range between the small and the large variance."""
    asked = Guidance(5.0, rescale=rescale)
    answer = ClassifierFree(two, LABELS, 3, asked)(X, T)
    assert torch.equal(answer[:, 1:], LABELS.view(-1, 1, 1, 1).double() / 3 * torch.ones_like(X))
    assert torch.equal(answer[:, :1], ClassifierFree(network, LABELS, 3, asked)(X, T))
    denoised = Denoiser(ClassifierFree(two, LABELS, 3, asked), PATHS["linear"], "noise", learned_variance=True)(X, T)
    assert denoised.share.shape == X.shape
    assert 0.5 <= denoised.share.min() <= denoised.share.max() <= 1


@pytest.mark.parametrize("t", [T, torch.full((4,), 0.5, dtype=torch.float64)])
def test_answers_in_low_precision_are_subtracted_in_that_of_the_pictures(truth, t):
    """bf16 has three digits; twelve times the difference of two answers must not lose more of them."""
    x = X.float()
    low = ClassifierFree(lambda x, t, labels: network(x, t, labels).bfloat16(), LABELS, 3, Guidance(11.0))(x, t)
    assert low.dtype == torch.float32
    told, untold = (network(x, t, labels).bfloat16().double() for labels in (LABELS, NULL))
    error = (low - (12 * told - 11 * untold)).abs().max()
    truth("guidance", "w = 11 of answers in bf16", "eq. 92 of the same answers in float64", error, 1e-6)


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"w": -0.5}, "strength of 0 or more, not -0.5"),
        ({"w": math.inf}, "strength of 0 or more, not inf"),
        ({"w": math.nan}, "strength of 0 or more, not nan"),
        ({"interval": (0.6, 0.2)}, "an earliest and a latest time within 0 and 1, not 0.6, 0.2"),
        ({"interval": (-0.1, 0.5)}, "within 0 and 1"),
        ({"interval": (0.5, 1.5)}, "within 0 and 1"),
        ({"interval": (0.5, math.nan)}, "within 0 and 1"),
        ({"rescale": 1.5}, "between 0 and 1, not 1.5"),
        ({"rescale": -0.1}, "between 0 and 1"),
    ],
)
def test_guidance_that_cannot_be_is_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Guidance(**choices)
