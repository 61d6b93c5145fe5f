"""p(x | z): that it is a distribution, that it is the one which the papers write, and that draws come from it."""

import itertools
import math

import mpmath
import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from mezzotint.core.batch import PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.vae.likelihoods import (
    Bernoulli,
    BernoulliConfig,
    DiscretisedLogistics,
    GaussianPixels,
    GaussianPixelsConfig,
    LogisticsConfig,
)

LEVELS = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)  # every picture of one grey pixel
LIKELIHOODS = {
    "bernoulli": BernoulliConfig(), "gaussian": GaussianPixelsConfig(), "logistics": LogisticsConfig(mixtures=3),
}  # fmt: skip


def random(rows, first=0):
    return PictureRandom(range(first, first + rows))


def spread(answer, images):
    """A decoder's answer for one picture, for as many."""
    return answer.expand(len(images), *answer.shape[1:])


# What holds for all


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_ranges(name, channels):
    likelihood = LIKELIHOODS[name].build(channels)
    numbers = torch.randn(4, likelihood.outputs, 5, 6)
    drawn, mean = likelihood.draw(numbers, random(4)), likelihood.mean(numbers)
    assert drawn.shape == mean.shape == (4, channels, 5, 6)
    assert max(drawn.abs().max(), mean.abs().max()) <= 1
    assert likelihood.log_prob(numbers, drawn).shape == (4,)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_in_half_precision_say_what_the_same_numbers_say(name, dtype):
    """A log-likelihood of thousands of nats stands on products of rounded numbers otherwise, off by half a nat."""
    likelihood = LIKELIHOODS[name].build(3)
    half = torch.randn(4, likelihood.outputs, 5, 6).to(dtype)
    images = likelihood.draw(half.float(), random(4))
    assert torch.equal(likelihood.log_prob(half, images), likelihood.log_prob(half.float(), images))
    if name == "logistics":  # the others' means are the numbers, or a function of each, as fine as they are
        assert torch.equal(likelihood.mean(half), likelihood.mean(half.float()))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_drawn_with_its_own_seed(name, channels):
    likelihood = LIKELIHOODS[name].build(channels)
    numbers = torch.randn(4, likelihood.outputs, 5, 5)
    together = likelihood.draw(numbers, random(4))
    alone = torch.cat([likelihood.draw(numbers[k : k + 1], random(1, k)) for k in range(4)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [10.0, 60.0, 1e4])
def test_gradients_are_finite_whatever_the_decoder_answers(name, channels, size):
    """Black, white and grey under answers of every sign; fewer than one in e^60 of all numbers is meant by any."""
    likelihood = LIKELIHOODS[name].build(channels)
    signs = torch.tensor(list(itertools.islice(itertools.product((-1.0, 0.0, 1.0), repeat=likelihood.outputs), 3000)))
    numbers = (size * signs)[:, :, None, None].repeat(1, 1, 1, 3).requires_grad_()
    images = torch.tensor([-1.0, 1 / 255, 1.0]).expand(len(numbers), channels, 1, 3)
    images = images.sign() if name == "bernoulli" else images
    log_prob = likelihood.log_prob(numbers, images)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(numbers.grad).all()


# Black or white


def test_chances_of_all_binary_pictures_sum_to_one(truth):
    likelihood = Bernoulli(1)
    images = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6))).double().view(64, 1, 2, 3)
    numbers = 3 * torch.randn(1, 1, 2, 3).double()
    total = likelihood.log_prob(spread(numbers, images), images).exp().sum()
    truth("Bernoulli pixels", "sum over all 64 pictures of 2 x 3 pixels", "1", abs(total - 1), 1e-15)


def test_black_and_white_are_a_bernoulli_distribution(truth):
    likelihood, numbers = Bernoulli(3), 3 * torch.randn(4, 3, 5, 5).double()
    images = likelihood.draw(numbers, random(4)).double()
    assert images.unique().tolist() == [-1, 1]
    expected = TorchBernoulli(logits=numbers).log_prob((images + 1) / 2).flatten(1).sum(1)
    error = (likelihood.log_prob(numbers, images) - expected).abs().max()
    truth("Bernoulli pixels", "ln p(x), nats", "torch.distributions", error, 1e-14)
    truth("Bernoulli pixels", "mean", "2 p - 1",
          (likelihood.mean(numbers) - (2 * numbers.sigmoid() - 1)).abs().max(), 1e-15)  # fmt: skip


def test_white_is_as_frequent_as_it_is_likely(truth):
    numbers = torch.tensor([-2.0, 0.0, 1.5])[:, None, None].expand(8, 3, 100, 100)
    white = (Bernoulli(3).draw(numbers, random(8)) > 0).float().mean((0, 2, 3))
    error = (white - numbers[0, :, 0, 0].sigmoid()).abs().max()
    truth("Bernoulli pixels", "frequency of white in 80,000 pixels", "its chance", error, 4e-3)  # 2.3 deviations


# A density


@pytest.mark.parametrize("std", [None, 0.3])
def test_the_density_of_pixels_is_that_of_torch(truth, std):
    likelihood = GaussianPixels(3, std).double()
    numbers, images = torch.randn(2, 4, 3, 5, 5).double()
    expected = (
        Normal(numbers, torch.as_tensor(likelihood.std(), dtype=torch.float64)).log_prob(images).flatten(1).sum(1)
    )
    error = ((likelihood.log_prob(numbers, images) - expected) / expected).abs().max()
    truth("Gaussian pixels", "ln p(x), relative", "torch.distributions", error.detach(), 1e-15)


def test_the_learned_deviation_is_the_root_of_the_mean_squared_error(truth):
    """d/d sigma of sum (x - mu)^2 / (2 sigma^2) + ln sigma is 0 where sigma^2 is the mean of (x - mu)^2."""
    likelihood = GaussianPixels(1).double()
    numbers, images = torch.randn(2, 4, 1, 5, 5).double()
    error = (images - numbers).square().mean()
    with torch.no_grad():
        likelihood.log_std.copy_(torch.log(error.sqrt() - likelihood.least))
    best = likelihood.log_prob(numbers, images).mean()
    (gradient,) = torch.autograd.grad(best, likelihood.log_std)
    truth("Gaussian pixels", "d ln p / d sigma at sigma^2 = mean squared error", "0", abs(gradient), 1e-14)
    for step in (-0.1, 0.1):
        with torch.no_grad():
            likelihood.log_std.add_(step)
            assert likelihood.log_prob(numbers, images).mean() < best
            likelihood.log_std.sub_(step)


def test_no_deviation_is_learned_below_half_a_level():
    likelihood = GaussianPixels(1)
    with torch.no_grad():
        likelihood.log_std.fill_(-1e4)
    assert likelihood.std() == 1 / 256
    assert torch.isfinite(likelihood.log_prob(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))).all()


def test_gaussian_draws_have_its_mean_and_deviation(truth):
    numbers = torch.tensor([-0.3, 0.1])[:, None, None, None].expand(2, 1, 200, 200)
    drawn = GaussianPixels(1, 0.1).draw(numbers, random(2))
    truth("Gaussian pixels", "mean of 40,000 draws", "mu", (drawn - numbers).mean((1, 2, 3)).abs().max(), 1e-3)
    truth("Gaussian pixels", "deviation of 40,000 draws", "sigma", (drawn.std((1, 2, 3)) - 0.1).abs().max(), 1e-3)


# 256 levels


def logistics(channels, mixtures=2, seed=0):
    """A likelihood, and numbers for one pixel: means about, and scales from half a level to a quarter of the range."""
    likelihood = DiscretisedLogistics(channels, mixtures)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(1, likelihood.outputs, 1, 1, generator=generator, dtype=torch.float64)
    k = mixtures
    numbers[:, k : k + channels * k] *= 0.6
    numbers[:, k + channels * k : k + 2 * channels * k] -= 2.5
    return likelihood, numbers


def chances(likelihood, numbers, images):
    return likelihood.log_prob(spread(numbers, images), images).exp()


@pytest.mark.parametrize("mixtures", [1, 3, 10])
def test_the_256_levels_of_a_grey_pixel_sum_to_one(truth, mixtures):
    """The edges included, on each of which a third of the mass may lie."""
    for seed in range(4):
        likelihood, numbers = logistics(1, mixtures, seed)
        total = chances(likelihood, numbers, LEVELS).sum()
        truth("discretised logistics", "sum over 256 levels of grey", "1", abs(total - 1), 2e-15)


def test_summed_over_green_and_blue_the_chance_of_red_is_left(truth):
    """Each conditional of a pixel in colour sums to one: over blue given red and green, over green given red."""
    likelihood, numbers = logistics(3, 2)
    red_alone = DiscretisedLogistics(1, 2)
    of_red = numbers[:, [0, 1, 2, 3, 8, 9]]  # weights, means of red, scales of red
    green, blue = torch.meshgrid(LEVELS.flatten(), LEVELS.flatten(), indexing="ij")
    for red in (-1.0, 31 / 255, 1.0):
        images = torch.stack([torch.full_like(green, red), green, blue], 2).view(-1, 3, 1, 1)
        total = chances(likelihood, numbers, images).sum()
        expected = chances(red_alone, of_red, torch.full((1, 1, 1, 1), red, dtype=torch.float64))[0]
        truth("discretised logistics", "sum over 65,536 greens and blues, relative", "chance of red",
              abs(total / expected - 1), 4e-15)  # fmt: skip


@pytest.mark.parametrize("distance", [0.0, 1.0, 30.0, 500.0])
def test_probabilities_are_those_of_the_paper_however_far_in_the_tail(truth, distance):
    """Salimans et al. 2017, eq. 2, in 60 digits and more, in which its difference of two chances is no loss."""
    likelihood, half, worst = DiscretisedLogistics(1, 1), mpmath.mpf(1) / 255, 0.0
    with mpmath.workdps(600):
        for level, log_scale, side in itertools.product((0, 1, 128, 254, 255), (-6.5, -2.0, 3.0), (-1, 1)):
            x = LEVELS[level]
            mean = float(x) + side * distance * math.exp(log_scale)
            numbers = torch.tensor([0.0, mean, log_scale], dtype=torch.float64).view(1, 3, 1, 1)
            found = float(likelihood.log_prob(numbers, x[None]))

            def below(edge, mean=mean, log_scale=log_scale):
                return 1 / (1 + mpmath.exp(-(edge - mean) / mpmath.exp(log_scale)))

            at = mpmath.mpf(float(x))
            upper = mpmath.mpf(1) if level == 255 else below(at + half)
            lower = mpmath.mpf(0) if level == 0 else below(at - half)
            expected = float(mpmath.log(upper - lower))
            worst = max(worst, abs(found - expected) / max(1.0, abs(expected)))
    truth("discretised logistics", f"ln P {distance:g} scales from the mean, relative", "eq. 2 in 600 digits",
          worst, 1e-15)  # fmt: skip


def test_colours_are_chained_as_the_paper_says(truth):
    """Eq. 3: mu_g + alpha r, mu_b + beta r + gamma g; here written out for one pixel, component by component."""
    likelihood, numbers = logistics(3, 2)
    image = torch.tensor([40.0, 200.0, 90.0], dtype=torch.float64).view(1, 3, 1, 1) / 127.5 - 1
    r, g, b = image.flatten()
    values = numbers.flatten()
    total = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        alpha, beta, gamma = (torch.tanh(values[14 + 2 * pair + k]) for pair in range(3))
        means = (values[2 + k], values[4 + k] + alpha * r, values[6 + k] + beta * r + gamma * g)
        chance = values[:2].softmax(0)[k]
        for c, (x, mean) in enumerate(zip((r, g, b), means)):
            scale = values[8 + 2 * c + k].exp()
            chance = chance * (
                torch.sigmoid((x - mean + 1 / 255) / scale) - torch.sigmoid((x - mean - 1 / 255) / scale)
            )
        total = total + chance
    error = abs(likelihood.log_prob(numbers, image)[0] - total.log())
    truth("discretised logistics", "ln P of a colour, nats", "eq. 2-3 written out", error, 1e-11)


def test_levels_are_drawn_as_often_as_they_are_likely(truth):
    """Kolmogorov's distance of 65,536 draws; 1.63 / 256 = 0.0064 is exceeded once in a hundred."""
    likelihood, numbers = logistics(1, 3)
    drawn = likelihood.draw(numbers.float().expand(4, -1, 128, 128), random(4))
    level = ((drawn + 1) * 127.5).round()
    assert (drawn - (level / 127.5 - 1)).abs().max() < 1e-6
    found = torch.bincount(level.long().flatten(), minlength=256).double().cumsum(0) / level.numel()
    expected = chances(likelihood, numbers, LEVELS).cumsum(0)
    truth("discretised logistics", "distribution of 65,536 draws", "its own", (found - expected).abs().max(), 6.4e-3)


def test_the_mean_of_grey_is_the_mean_over_levels(truth):
    """But for rounding to levels, which is hardly seen in a mean: also where most of the mass lies on an edge."""
    likelihood, worst = DiscretisedLogistics(1, 2), 0.0
    for means, log_scales in itertools.product(
        ((0.1, -0.4), (5.0, -0.9), (-1.2, 1.1), (0.99, -3.0)), ((-6, -6), (-2, -4), (0, 1))
    ):
        numbers = torch.tensor([0.3, -0.2, *means, *log_scales], dtype=torch.float64).view(1, 6, 1, 1)
        expected = (chances(likelihood, numbers, LEVELS) * LEVELS.flatten()).sum()
        worst = max(worst, abs(float(likelihood.mean(numbers) - expected)))
    truth("discretised logistics", "mean", "sum over 256 levels", worst, 2e-4)


def test_the_mean_of_colours_is_the_mean_of_draws(truth):
    """Of a mixture of red-and-green with black, whose channels depend on the component and on one another."""
    likelihood = DiscretisedLogistics(3, 2)
    numbers = torch.zeros(1, likelihood.outputs, 1, 1)
    numbers[0, :, 0, 0] = torch.tensor([
        0.0, 0.5,  0.6, -0.7,  0.1, -0.5,  -0.2, 0.3,  *[-3.0] * 6,  1.0, -1.0, 0.3, 0.5, -0.8, 0.1,
    ])  # fmt: skip
    drawn = likelihood.draw(numbers.expand(4, -1, 128, 128), random(4)).mean((0, 2, 3))
    error = (drawn - likelihood.mean(numbers).flatten()).abs().max()
    truth("discretised logistics", "mean of a colour", "mean of 65,536 draws", error, 5e-3)


# What is refused


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: DiscretisedLogistics(1, 0), "at least 1 component, not 0"),
        (lambda: DiscretisedLogistics(2), "1 channel or 3, not 2"),
        (lambda: GaussianPixels(1, 0.0), "above 0, not 0"),
        (lambda: GaussianPixels(1, -0.1), "above 0, not -0.1"),
    ],
)
def test_likelihoods_that_cannot_be_are_refused(make, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make()
