"""Picture k depends on seed k alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.core.batch import Batch, PictureRandom, fold, picture_seeds
from mezzotint.core.drawing import draw, interleave
from mezzotint.core.errors import ConfigError


@given(st.lists(st.integers(-(2**63), 2**64), min_size=1, max_size=6), st.integers(0, 5))
def test_row_k_depends_on_seed_k_alone(seeds, k):
    k %= len(seeds)
    together, alone = PictureRandom(seeds), PictureRandom([seeds[k]])
    for _ in range(2):
        assert torch.equal(together.normal(3, 2)[k], alone.normal(3, 2)[0])
        assert torch.equal(together.uniform(2)[k], alone.uniform(2)[0])
        assert torch.equal(together.integers(0, 10)[k], alone.integers(0, 10)[0])


def test_neighbouring_seeds_are_independent():
    noise = PictureRandom(range(4000)).normal(64)  # (4000, 64)
    assert abs(noise.mean().item()) < 4 / (4000 * 64) ** 0.5
    assert abs(noise.var().item() - 1) < 4 * (2 / (4000 * 64)) ** 0.5
    correlation = (noise[1:] * noise[:-1]).mean(0)
    assert correlation.abs().max() < 4.5 / 4000**0.5


def test_folding_separates_order_and_count():
    seeds = {fold(), fold(0), fold(0, 0), fold(0, 1), fold(1, 0), fold(-1), fold(2**63)}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_first_seed_stands_for_its_successors():
    assert picture_seeds(3, 5) == [5, 6, 7] == picture_seeds(3, [5, 6, 7])
    with pytest.raises(ConfigError, match="3 pictures need 3 seeds"):
        picture_seeds(3, [1])
    with pytest.raises(ConfigError, match="1 picture or more"):
        picture_seeds(0, 5)


def test_a_batch_splits_into_rows_with_their_seeds():
    batch = Batch(torch.rand(4, 1, 2, 2), torch.arange(4), list("abcd"), seeds=[1, 2, 3, 4])
    half = batch[2:]
    assert half.captions == ["c", "d"]
    assert half.labels.tolist() == [2, 3]
    assert torch.equal(half.random().normal(5), batch.random().normal(5)[2:])


def test_without_seeds_the_global_generator_decides():
    batch = Batch(torch.zeros(2, 1, 1, 1))
    torch.manual_seed(3)
    first = batch.random().normal(4)
    torch.manual_seed(3)
    assert torch.equal(first, batch.random().normal(4))
    assert not torch.equal(first, batch.random().normal(4))


class Echo:
    """Its pictures are its labels and its own noise."""

    def sample(self, n, *, labels=None, captions=None, source=None, mask=None, seeds=0):
        return PictureRandom(picture_seeds(n, seeds)).normal(1, 2, 2) + labels.view(-1, 1, 1, 1)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_request_gives_the_same_pictures_however_it_is_split(world, batch_size):
    labels = torch.arange(10) % 3
    whole = Echo().sample(10, labels=labels, seeds=7)
    shards = [
        draw(Echo(), 10, labels=labels, seeds=7, batch_size=batch_size, shard=(rank, world)) for rank in range(world)
    ]
    assert torch.equal(interleave(shards), whole)
