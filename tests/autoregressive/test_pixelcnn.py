"""The gated PixelCNN: causality, a distribution that sums to one, and a cache that changes nothing but the cost."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.autoregressive.pixelcnn import GatedPixelCNN, PixelCNNConfig, one_channel, sample_pixels
from mezzotint.core.batch import PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.vae.likelihoods import Bernoulli, DiscretisedLogistics

TINY = PixelCNNConfig(width=6, layers=3, first_kernel=5, kernel=3, head=5)


def network(inputs=1, outputs=1, config=TINY, vector=0, features=0):
    """With biases off their zeros, and answers that matter."""
    made = config.build(inputs, outputs, vector, features).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.dim() == 1 else 1.5 * parameter[0].numel() ** -0.5)
    return made


def conditions(n, size):
    return {"vector": torch.randn(n, 3).double(), "features": torch.randn(n, 2, *size).double()}


@pytest.mark.parametrize("config", [TINY, PixelCNNConfig(4, 1, 7, 3, 4), PixelCNNConfig(4, 4, 3, 5, 4)])
def test_a_pixel_depends_on_the_pixels_before_it_alone(config):
    made = network(2, 3, config)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(lambda x: made(x[None])[0], x).abs() > 0  # (3, 5, 4, 2, 5, 4)
    in_order = seen.permute(1, 2, 0, 4, 5, 3).reshape(20, 3, 20, 2)
    for place in range(20):
        assert not in_order[place, :, place:].any()


def test_no_earlier_pixel_within_reach_is_hidden_in_a_blind_spot():
    """Which is what a single stack of masked convolutions has, to the right above (van den Oord et al. 2016b)."""
    made, x = network(config=PixelCNNConfig(6, 6, 3, 3, 6)), torch.randn(1, 1, 5, 5, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(lambda x: made(x)[0, 0], x)[:, :, 0, 0].reshape(25, 25) != 0
    assert torch.equal(seen, torch.ones(25, 25).tril(-1).bool())


def test_conditions_reach_every_pixel_and_a_map_also_sideways():
    made = network(vector=3, features=2)
    x, given = torch.randn(1, 1, 3, 3).double(), conditions(1, (3, 3))
    of_vector = torch.autograd.functional.jacobian(lambda h: made(x, h, given["features"])[0, 0], given["vector"])
    of_map = torch.autograd.functional.jacobian(lambda s: made(x, given["vector"], s)[0, 0], given["features"])
    assert (of_vector != 0).all()
    seen = (of_map[:, :, 0] != 0).any(2).reshape(9, 9)
    assert seen.diagonal().all()


@pytest.mark.parametrize("size", [(2, 2), (3, 3)])
def test_the_probabilities_of_all_binary_pictures_sum_to_one(truth, size):
    made, head = network(), Bernoulli(1)
    dims = size[0] * size[1]
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dims)), dtype=torch.float64).view(-1, 1, *size)
    with torch.no_grad():
        log_probs = head.log_prob(made(every), every)
    assert log_probs.std() > 0.5
    error = abs(log_probs.exp().sum().item() - 1)
    truth("pixelcnn", f"sum of p over all binary pictures of {size[0]}x{size[1]}", "1", error, 2e-15)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("config", [TINY, PixelCNNConfig(4, 1, 3, 3, 4), PixelCNNConfig(4, 4, 3, 7, 4)])
def test_the_cache_changes_nothing(truth, config, told):
    """Numbers of every pixel, given the pixels before it, step by step and all at once."""
    size = (5, 4)
    made = network(2, 3, config, vector=3 if told else 0, features=2 if told else 0)
    x, given = torch.randn(3, 2, *size).double(), conditions(3, size) if told else {}
    with torch.no_grad():
        whole, cache, pixel, error = made(x, **given), made.begin(3, size, **given), None, 0.0
        for row, column in itertools.product(range(5), range(4)):
            numbers = made.step(cache, pixel)
            error = max(error, (numbers[..., 0, 0] - whole[:, :, row, column]).abs().max().item())
            pixel = x[:, :, row, column, None, None]
    what = f"numbers step by step, {config.layers} layers{', told a vector and a map' if told else ''}"
    truth("pixelcnn", what, "all at once, float64", error, 1e-14)


@pytest.mark.parametrize(("head", "channels"), [(Bernoulli, 1), (DiscretisedLogistics, 3)])
def test_cached_and_uncached_sampling_draw_the_same_pictures(head, channels):
    likelihood = head(channels)
    made = network(channels, likelihood.outputs, vector=3)
    vector = torch.randn(4, 3).double()
    drawn = [
        sample_pixels(
            made, lambda numbers, random: likelihood.draw(numbers.float(), random), (4, 5), PictureRandom(range(4)),
            vector=vector, cached=cached,
        )
        for cached in (True, False)
    ]  # fmt: skip
    assert drawn[0].shape == (4, channels, 4, 5)
    assert torch.equal(*drawn)
    assert len({tuple(picture.flatten().tolist()) for picture in drawn[0]}) == 4


def test_picture_k_depends_on_seed_k_alone():
    made, head = network(), Bernoulli(1)
    three = sample_pixels(made, head.draw, (4, 4), PictureRandom([5, 6, 7]))
    assert torch.equal(three[1:2], sample_pixels(made, head.draw, (4, 4), PictureRandom([6])))


def test_drawn_pictures_are_as_frequent_as_their_probability(truth):
    """Total variation between 20,000 draws of 2x2 binary pictures and p; some 0.011 of it is chance."""
    made, head, n = network(), Bernoulli(1), 20_000
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64).view(-1, 1, 2, 2)
    with torch.no_grad():
        p = head.log_prob(made(every), every).exp()

    class Fresh:
        """Random numbers of one generator, for many rows."""

        def __len__(self):
            return n

        def uniform(self, *shape):
            return torch.rand(n, *shape)

    drawn = sample_pixels(made, head.draw, (2, 2), Fresh()).flatten(1) > 0
    index = (drawn * torch.tensor([8, 4, 2, 1])).sum(1)
    frequency = torch.bincount(index, minlength=16) / n
    truth("pixelcnn", "frequencies of 20,000 draws, total variation", "p", (frequency - p).abs().sum() / 2, 0.02)


def test_a_cached_pixel_costs_the_same_in_a_picture_of_any_size():
    """Multiplications of all pixels, by their number: the same for 6, 16 and 12 pixels."""

    def each(height, width):
        made, counter = TINY.build(1, 1, 3, 2), FlopCounterMode(display=False)
        given = {"vector": torch.randn(1, 3), "features": torch.randn(1, 2, height, width)}
        with counter:
            sample_pixels(made, Bernoulli(1).draw, (height, width), PictureRandom([0]), **given)
        vectors = 2 * 3 * 2 * 6 * (3 + 2)  # V^T h, once for all pixels: of three horizontal layers, two vertical ones
        return (counter.get_total_flops() - vectors) / (height * width)

    assert each(2, 3) == each(4, 4) == each(2, 6)


def test_tokens_are_embedded_for_the_network():
    made = network(3, 7)
    table = torch.randn(7, 3, dtype=torch.float64)

    def draw(numbers, random):
        return (numbers[:, :, 0, 0] + random.normal(7)).argmax(1)[:, None, None, None]

    def embed(values):
        return table[values[:, 0]].permute(0, 3, 1, 2)

    drawn = [
        sample_pixels(made, draw, (3, 4), PictureRandom(range(2)), embed=embed, cached=cached)
        for cached in (True, False)
    ]
    assert drawn[0].dtype == torch.int64
    assert torch.equal(*drawn)


def test_what_is_told_survives_many_layers():
    """At the start a pixel far above still matters at the bottom, twenty layers later."""
    made = PixelCNNConfig(16, 20, 3, 3, 16).build(1, 1)
    x = torch.randn(8, 1, 20, 5, requires_grad=True)
    made(x)[:, :, 18, 2].sum().backward()
    near, far = x.grad[:, 0, 17].abs().mean(), x.grad[:, 0, 2].abs().mean()
    assert far > 1e-3 * near


def test_conditions_that_do_not_fit_are_refused():
    made = network(vector=3)
    x = torch.zeros(1, 1, 3, 3).double()
    with pytest.raises(ConfigError, match="give them"):
        made(x)
    with pytest.raises(ConfigError, match="without features"):
        made.begin(1, (3, 3), torch.zeros(1, 3), torch.zeros(1, 2, 3, 3))
    with pytest.raises(ConfigError, match="independently"):
        one_channel(3, "binary")
    for wrong in ({"kernel": 4}, {"layers": 0}, {"first_kernel": 1}):
        with pytest.raises(ConfigError):
            PixelCNNConfig(**wrong)


def test_every_parameter_receives_a_gradient():
    made = GatedPixelCNN(TINY, 1, 1, 3, 2)
    given = {"vector": torch.randn(2, 3), "features": torch.randn(2, 2, 6, 6)}
    x = torch.randn(2, 1, 6, 6).sign()
    F.softplus(made(x, **given) * x).sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []
