"""Few labels: which pictures have one, that no other is told, and that a weighted mean is that of the whole set."""

from contextlib import closing

import pytest
import torch

from mezzotint.core.batch import FewLabels
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.data import Loader
from mezzotint.data.pictures import InMemory, PartlyLabelled, choose_evenly


def numbered(n, classes=3):
    """A set in which picture k is of the level k and of the class k % classes."""
    levels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()
    return InMemory("numbers", "train", levels, torch.arange(n) % classes, classes=tuple("abcdef"[:classes]))


def numbers_of(batch):
    return ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long()


def draw(pictures, batches, batch_size=12, start=0, **options):
    with closing(Loader(pictures, batch_size, **options)) as loader:
        loader.position = start
        return [loader.next() for _ in range(batches)]


def test_the_choice_is_even_over_the_classes_and_a_function_of_the_seed():
    labels = numbered(60).labels
    chosen = choose_evenly(labels, 3, 12, seed=1)
    assert len(chosen.unique()) == 12
    assert labels[chosen].bincount().tolist() == [4, 4, 4]
    assert sorted(labels[choose_evenly(labels, 3, 14, seed=1)].bincount().tolist()) == [4, 5, 5]
    assert torch.equal(chosen, choose_evenly(labels, 3, 12, seed=1))
    assert not torch.equal(chosen.sort().values, choose_evenly(labels, 3, 12, seed=2).sort().values)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_no_label_is_told_but_those_of_the_chosen_pictures(every):
    pictures = PartlyLabelled(numbered(60), FewLabels(6, every), seed=3)
    known = {int(k) for k in pictures.known.nonzero()}
    batches = draw(pictures, 30)
    numbers = torch.cat([numbers_of(batch) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert {int(k) for k in numbers[labels >= 0]} == known
    assert torch.equal(labels[labels >= 0], (numbers % 3)[labels >= 0])
    assert not known & {int(k) for k in numbers[labels < 0]}
    assert torch.equal((labels >= 0).nonzero().flatten(), torch.arange(0, 360, every))
    assert torch.equal(pictures.batch(range(60)).labels >= 0, pictures.known)
    if every == 1:
        assert batches[0].weights is None


@pytest.mark.parametrize(("every", "places"), [(2, 36), (4, 24)])
def test_the_weighted_mean_over_what_is_shown_is_the_mean_over_the_set(truth, every, places):
    """Whole permutations of 6 labelled pictures and of 18 others: so many places hold each kind a whole number of
    times."""
    pictures = PartlyLabelled(numbered(24), FewLabels(6, every), seed=0)
    batches = draw(pictures, places // 12)
    shown = torch.cat([numbers_of(batch) for batch in batches]).double()
    weights = torch.cat([batch.weights for batch in batches]).double()
    values = (shown / 24) ** 3
    error = abs((weights * values).mean() - ((torch.arange(24.0).double() / 24) ** 3).mean())
    truth("few labels", "weighted mean over what is shown", "mean over the set", error, 1e-7)


def test_processes_share_the_batches_of_one_and_a_resumed_run_goes_on():
    few = FewLabels(6, 4)
    whole = draw(PartlyLabelled(numbered(30), few, seed=5), 4, seed=5)
    for rank in range(2):
        mine = draw(PartlyLabelled(numbered(30), few, seed=5), 4, seed=5, rank=rank, world=2)
        for one, part in zip(whole, mine, strict=True):
            assert torch.equal(part.images, one.images[rank::2])
            assert torch.equal(part.labels, one.labels[rank::2])
            assert torch.equal(part.weights, one.weights[rank::2])
    again = draw(PartlyLabelled(numbered(30), few, seed=5), 1, seed=5, start=3)[0]
    assert torch.equal(again.images, whole[3].images)
    assert torch.equal(again.labels, whole[3].labels)
    assert torch.equal(whole[0][2:6].weights, whole[0].weights[2:6])


def test_where_all_are_labelled_each_counts_alike():
    batch = draw(PartlyLabelled(numbered(24), FewLabels(24, 2), seed=0), 2)
    assert all(part.weights is None and (part.labels >= 0).all() for part in batch)
    assert sorted(numbers_of(batch[0]).tolist() + numbers_of(batch[1]).tolist()) == list(range(24))


def test_what_cannot_be_chosen_is_said():
    with pytest.raises(ConfigError, match="there are 8 of class 0"):
        PartlyLabelled(numbered(24), FewLabels(27), seed=0)
    with pytest.raises(ConfigError, match="less than one of each of 3"):
        PartlyLabelled(numbered(24), FewLabels(2), seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        FewLabels(0)
    plain = InMemory("plain", "train", torch.zeros(4, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(DataError, match="plain has no labels"):
        PartlyLabelled(plain, FewLabels(2), seed=0)
