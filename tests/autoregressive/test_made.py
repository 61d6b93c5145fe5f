"""MADE and the fully visible sigmoid belief net: exact distributions of binary pictures."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from mezzotint.autoregressive.fvsbn import FVSBN, FVSBNConfig
from mezzotint.autoregressive.made import MADE, MADEConfig
from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.core.likelihood import bits_per_dim
from mezzotint.core.precision import autocast
from mezzotint.systems import find, parameter_counts

MODELS = {
    "fvsbn": lambda size: FVSBN(FVSBNConfig(size)),
    "made": lambda size: MADE(MADEConfig(size, widths=(20, 20))),
    "made, direct": lambda size: MADE(MADEConfig(size, widths=(20,), direct=True)),
    "made, 3 connectivities": lambda size: MADE(MADEConfig(size, widths=(20,), masks=3)),
    "made, 4 orders": lambda size: MADE(MADEConfig(size, widths=(20,), masks=4, orders="random")),
}
EACH = pytest.mark.parametrize("name", MODELS)


def model(name, size=2):
    made = MODELS[name](size).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made


def every(size, channels=1):
    cells = itertools.product([-1.0, 1.0], repeat=channels * size**2)
    return torch.tensor(list(cells), dtype=torch.float64).view(-1, channels, size, size)


@EACH
@pytest.mark.parametrize("size", [2, 3])
def test_the_probabilities_of_all_pictures_sum_to_one(truth, name, size):
    log_probs = model(name, size).log_prob(every(size))
    assert log_probs.std() > 0.5
    error = abs(log_probs.exp().sum().item() - 1)
    truth(name.split(",")[0], f"sum of p over all pictures of {size}x{size} ({name})", "1", error, 2e-15)


def test_the_channels_of_a_colour_picture_are_told_one_after_the_other(truth):
    made = MADE(MADEConfig(1, 3, widths=(20,))).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    p = made.log_prob(every(1, 3)).exp().view(2, 2, 2)
    assert abs(p[1, 1].sum() * p.sum() - p[1].sum() * p[:, 1].sum()) > 0.01  # green knows red
    truth("made", "sum of p over all pictures of one colour pixel", "1", abs(p.sum().item() - 1), 1e-15)


def test_an_ensemble_is_the_mean_of_distributions(truth):
    made, pictures = model("made, 4 orders"), every(2)
    with torch.no_grad():
        each = torch.stack([made.log_prob_of(pictures, number) for number in range(4)])
    error = (made.log_prob(pictures) - each.exp().mean(0).log()).abs().max()
    truth("made", "ln p of an ensemble of 4 orders", "ln of the mean of their p", error, 2e-15)


def test_logits_averaged_over_orders_are_of_no_distribution():
    """Two values that surely agree, told in both orders: averaged, each is sure of itself because of the other, and the
    "probabilities" of all pictures sum to two. Those of the ensemble sum to one."""
    made, pictures = MADE(MADEConfig(1, 2, (4,), direct=True, masks=2)).double(), every(1, 2)
    made.network.order.copy_(torch.tensor([[1, 2], [2, 1]]))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.network.direct.weight.fill_(20.0)
        x = made._values(pictures)
        logits = torch.stack([made.network(x, number=number)[:, :, 0] for number in range(2)]).mean(0)
    averaged = F.logsigmoid(x * logits).sum(1)
    assert averaged.exp().sum().item() == pytest.approx(2.0, abs=1e-3)
    assert made.log_prob(pictures).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@EACH
def test_a_logit_depends_on_earlier_pixels_alone(name):
    made = model(name)
    x = torch.randn(20, 4, dtype=torch.float64)  # of several rows, because half of the units are off in each
    for number in range(made.network.masks):
        seen = torch.autograd.functional.jacobian(lambda x, m=number: made.network(x, number=m)[..., 0].sum(0), x)
        seen = seen.abs().sum(1)
        places = made.network.places(number)
        assert torch.equal(seen[places][:, places] != 0, torch.ones(4, 4).tril(-1).bool())


@EACH
def test_cached_and_uncached_sampling_draw_the_same_pictures(name):
    made = model(name, 3)
    drawn = [made.sample(8, seeds=3, cached=cached) for cached in (True, False)]
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0][2:3], made.sample(1, seeds=5))
    assert set(drawn[0].unique().tolist()) == {-1.0, 1.0}


@EACH
def test_pictures_are_drawn_in_half_precision_too(name):
    made = model(name, 4).float()
    with autocast("bf16", torch.device("cpu")):
        images = made.sample(3, seeds=7)
    assert ((images == 1) | (images == -1)).all()


@EACH
def test_drawn_pictures_are_as_frequent_as_their_probability(truth, name):
    """4,000 draws; some 0.024 of the total variation is chance."""
    made, n = model(name), 4_000
    index = ((made.sample(n).flatten(1) > 0) * torch.tensor([8, 4, 2, 1])).sum(1)
    frequency = torch.bincount(index, minlength=16) / n
    error = (frequency - made.log_prob(every(2)).exp()).abs().sum() / 2
    truth(name.split(",")[0], f"frequencies of 4,000 draws ({name}), total variation", "p", error, 0.04)


def test_a_cold_model_draws_the_likelier_value_of_each_pixel():
    made = model("made", 3)
    cold = made.sample(4, temperature=0.0)
    assert (cold == cold[:1]).all()
    with torch.no_grad():
        x = made._values(cold.double())
        logits = made.network(x)[:, :, 0]
    assert torch.equal(x, logits.sign())


def test_a_cold_model_of_colours_knows_each_value_by_those_that_it_drew_before():
    made = MADE(MADEConfig(2, 3, widths=(20,))).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    cold = made.sample(1, temperature=0.0).double()
    assert cold.shape == (1, 3, 2, 2)
    with torch.no_grad():
        x = made._values(cold)
        assert torch.equal(x, made.network(x)[:, :, 0].sign())
    assert torch.equal(x[0, :3], cold[0, :, 0, 0])  # the colours of a pixel side by side


def test_a_sigmoid_belief_net_is_logistic_regressions(truth):
    """ln p against the formula, pixel by pixel."""
    made, x = model("fvsbn", 3), every(3)[::37]
    weight, bias = made.network.direct.weight, made.network.direct.bias
    log_p = torch.zeros(len(x), dtype=torch.float64)
    flat = x.flatten(1)
    with torch.no_grad():
        for d in range(9):
            a = bias[d] + sum(weight[d, e] * flat[:, e] for e in range(d))
            log_p += torch.log(torch.where(flat[:, d] > 0, torch.sigmoid(a), 1 - torch.sigmoid(a)))
    truth("fvsbn", "ln p", "the formula, pixel by pixel", (made.log_prob(x) - log_p).abs().max(), 1e-14)


def test_a_sigmoid_belief_net_learns_what_it_can_represent_exactly():
    """Pictures whose last pixel repeats the first, the rest chance: three pixels' worth of entropy, 3 ln 2 nats."""
    made = FVSBN(FVSBNConfig(2))
    images = every(2).float()
    images[:, 0, 1, 1] = images[:, 0, 0, 0]
    for _ in range(100):
        losses = made(Batch(images))
        gradients = torch.autograd.grad(losses.total, made.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(made.parameters(), gradients, strict=True):
                parameter -= 2.0 * gradient
    assert 3 * math.log(2) <= losses.total.item() < 3 * math.log(2) + 0.02
    assert losses.parts["bits_per_dim"].item() == pytest.approx(bits_per_dim(-losses.total.item(), 4))


def test_sets_of_masks_take_turns():
    made, batch = model("made, 4 orders"), Batch(every(2))
    for step in range(6):
        assert made(batch).total == -made.log_prob_of(batch.images, step % 4).mean()
        made.after_step(step)


def test_the_published_network_has_its_parameters():
    """Two hidden layers of 8000, and direct connections: 784 pixels, a bias for each unit and each logit."""
    data = PictureSpec(28, 1)
    with torch.device("meta"):
        paper = MADE(find("made").stage("model").sizes["paper"](data))
    expected = 784 * 8000 + 8000 + 8000 * 8000 + 8000 + 8000 * 784 + 784 + 784 * 784
    assert sum(p.numel() for p in paper.parameters()) == expected
    assert parameter_counts(find("fvsbn"))["model"]["paper"] == 3072**2 + 3072


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="hidden layer"):
        MADEConfig(28, widths=())
    with pytest.raises(ConfigError, match="masks"):
        MADEConfig(28, masks=0)
    with pytest.raises(ConfigError, match="image_size"):
        FVSBNConfig(0)
    with pytest.raises(ConfigError, match="temperature"):
        model("fvsbn").sample(1, temperature=-1.0)
    with pytest.raises(ConfigError, match="without labels"):
        model("made").sample(1, labels=torch.zeros(1))
    with pytest.raises(ConfigError, match="does not take source"):
        model("made").sample(1, source=torch.zeros(1, 1, 2, 2))
