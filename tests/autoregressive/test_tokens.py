"""Priors over tokens: causal, normalised, and the same with a cache as without."""

import itertools
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.autoregressive.choosing import Choice
from mezzotint.autoregressive.pixelcnn import PixelCNNConfig
from mezzotint.autoregressive.tokens import PixelCNNPriorConfig, TransformerPriorConfig
from mezzotint.autoregressive.transformer import TransformerConfig
from mezzotint.core.batch import PictureRandom
from mezzotint.core.errors import ConfigError

CONFIGS = {
    "pixelcnn": PixelCNNPriorConfig(PixelCNNConfig(6, 2, 3, 3, 6), 4),
    "transformer": TransformerPriorConfig(TransformerConfig(12, 2, 3, 2)),
}
BOTH = pytest.mark.parametrize("kind", CONFIGS)


def prior(kind, vocabulary=3, height=2, width=2, classes=0):
    made = CONFIGS[kind].build(vocabulary, height, width, classes).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return made


def every_map(vocabulary, height, width):
    cells = itertools.product(range(vocabulary), repeat=height * width)
    return torch.tensor(list(cells)).view(-1, height, width)


@BOTH
@pytest.mark.parametrize("classes", [0, 4])
def test_the_probabilities_of_all_maps_sum_to_one(truth, kind, classes):
    made, every = prior(kind, classes=classes), every_map(3, 2, 2)
    sums, known = [], []
    for label in range(classes or 1):
        labels = torch.full((81,), label) if classes else None
        with torch.no_grad():
            known.append(made.log_prob(every, labels))
        sums.append(known[-1].exp().sum().item())
    assert known[0].std() > 0.5
    assert not classes or not torch.allclose(known[0], known[1])
    told = f", of each of {classes} classes" if classes else ""
    error = max(abs(total - 1) for total in sums)
    truth(f"{kind} prior", f"sum of p over all maps of 2x2 ternary tokens{told}", "1", error, 2e-15)


@BOTH
@pytest.mark.parametrize("classes", [0, 4])
def test_a_map_may_be_of_one_token(kind, classes):
    made, labels = prior(kind, 3, 1, 1, classes), torch.zeros(3, dtype=torch.int64) if classes else None
    with torch.no_grad():
        p = made.log_prob(every_map(3, 1, 1), labels).exp()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-12)
    drawn = [
        made.sample(3, labels, PictureRandom(range(3)), cached=cached, temperature=0.0) for cached in (True, False)
    ]
    assert torch.equal(*drawn)
    assert drawn[0].flatten().tolist() == [int(p.argmax())] * 3


@BOTH
def test_the_logits_of_a_token_do_not_change_with_it_or_those_after_it(kind):
    """Tokens have no derivative: p of the first i must not change with the others, whatever these are."""
    made, every = prior(kind, vocabulary=2, height=2, width=3), every_map(2, 2, 3)
    with torch.no_grad():
        p = made.log_prob(every).exp()
        for first in range(1, 6):
            sums = p.view(2**first, -1).sum(1)  # over all that may come after
            longer = p.view(2 ** (first - 1), -1).sum(1)
            assert torch.allclose(sums.view(-1, 2).sum(1), longer, rtol=1e-12)
    if kind == "transformer":
        embedded = torch.randn(1, 6, 12, dtype=torch.float64)

        def through(x):
            for block in made.network.blocks:
                x = block(x)
            return x[0].sum(1)

        seen = torch.autograd.functional.jacobian(through, embedded)[:, 0].abs().sum(2) > 0
        assert torch.equal(seen, torch.ones(6, 6).tril().bool())


@BOTH
@pytest.mark.parametrize("classes", [0, 4])
def test_cached_and_uncached_sampling_draw_the_same_tokens(kind, classes):
    made, labels = prior(kind, 9, 3, 4, classes), torch.tensor([1, 0, 3]) if classes else None
    drawn = [made.sample(3, labels, PictureRandom([4, 5, 6]), cached=cached) for cached in (True, False)]
    assert drawn[0].shape == (3, 3, 4)
    assert drawn[0].dtype == torch.int64
    assert torch.equal(*drawn)
    alone = made.sample(1, labels[1:2] if classes else None, PictureRandom([5]))
    assert torch.equal(alone, drawn[0][1:2])
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_a_transformer_says_the_same_one_token_at_a_time(truth):
    made, labels = prior("transformer", 9, 3, 4, classes=2).network, torch.tensor([1, 0])
    tokens = torch.randint(9, (2, 12))
    with torch.no_grad():
        whole, cache, given, error = made(tokens, labels), made.begin(2), labels, 0.0
        for place in range(12):
            error = max(error, (made.step(cache, given) - whole[:, place]).abs().max().item())
            given = tokens[:, place]
    truth("transformer prior", "logits one token at a time, from the cache", "all at once, float64", error, 5e-15)


def test_a_transformer_draws_n_tokens_at_a_cost_linear_in_n():
    """Each costs the same, but for the attention itself, where token i multiplies 2 i width numbers in each layer."""
    width, layers, vocabulary = 12, 2, 5
    each = layers * (4 + 2 * 2) * width**2 + width * vocabulary
    for length, place in itertools.product((6, 60), (0, 1, 5)):
        made = TransformerConfig(width, layers, 3, 2).build(vocabulary, length)
        cache, counter = made.begin(1), FlopCounterMode(display=False)
        cache.length = place
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # the fused kernel is not counted
            made.step(cache, torch.zeros(1, dtype=torch.int64) if place else None)
        assert counter.get_total_flops() // 2 == each + layers * 2 * width * (place + 1)


def test_choices_keep_the_likeliest_tokens():
    p = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    logits = p.log()
    close = {"rtol": 1e-6, "atol": 1e-9}

    def kept(**choice):
        return Choice(**choice).probabilities(logits)[0].float()

    torch.testing.assert_close(kept(), p[0], **close)
    torch.testing.assert_close(kept(top_k=2), torch.tensor([0, 4 / 7, 3 / 7, 0]), **close)
    torch.testing.assert_close(kept(top_p=0.75), torch.tensor([0, 4 / 9, 3 / 9, 2 / 9]), **close)
    torch.testing.assert_close(kept(top_p=0.1), torch.tensor([0, 1.0, 0, 0]), **close)
    torch.testing.assert_close(kept(temperature=0.5), p[0] ** 2 / (p[0] ** 2).sum(), **close)
    torch.testing.assert_close(kept(temperature=0), torch.tensor([0, 1.0, 0, 0]), **close)
    torch.testing.assert_close(kept(top_k=1, top_p=0.9), torch.tensor([0, 1.0, 0, 0]), **close)
    assert (kept(top_k=9) > 0).all()


def test_tokens_are_drawn_as_often_as_their_probability(truth):
    """10,000 draws; some 0.008 of the total variation is chance."""
    n, p = 10_000, torch.tensor([0.1, 0.0, 0.4, 0.3, 0.2])
    drawn = Choice().draw(p.log().expand(n, -1), PictureRandom(range(n)))
    frequency = torch.bincount(drawn, minlength=5) / n
    assert frequency[1] == 0
    truth("token priors", "frequencies of 10,000 draws, total variation", "p", (frequency - p).abs().sum() / 2, 0.015)


@BOTH
def test_a_prior_learns_what_its_tokens_have_to_do_with_each_other(kind):
    """Maps whose second row repeats the first: their entropy is two tokens' worth, 2 ln 3 nats."""
    made = CONFIGS[kind].build(3, 2, 2)
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-2)
    rows = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    maps = torch.stack([rows, rows], 1)  # (9, 2, 2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = -made.log_prob(maps).mean()
        loss.backward()
        optimizer.step()
    assert abs(loss.item() - 2 * math.log(3)) < 0.1
    drawn = made.sample(20, random=PictureRandom(range(20)), temperature=0.25)
    assert torch.equal(drawn[:, 0], drawn[:, 1])


@BOTH
def test_every_parameter_receives_a_gradient(kind):
    made = CONFIGS[kind].build(5, 3, 3, 2)
    (-made.log_prob(torch.randint(5, (4, 3, 3)), torch.tensor([0, 1, 0, 1])).mean()).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


@BOTH
def test_what_does_not_fit_is_refused(kind):
    plain, told = prior(kind), prior(kind, classes=2)
    maps, labels = torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for wrong in (
        lambda: plain.log_prob(maps, labels),
        lambda: told.log_prob(maps),
        lambda: plain.sample(1, labels, PictureRandom([0])),
        lambda: told.sample(1, None, PictureRandom([0])),
        lambda: plain.sample(2, None, PictureRandom([0])),
        lambda: plain.sample(1, temperature=-1.0),
        lambda: plain.sample(1, top_p=0.0),
        lambda: CONFIGS[kind].build(0, 2, 2),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ConfigError, match="heads"):
        TransformerConfig(10, 1, 3)
