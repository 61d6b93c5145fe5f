"""Training batches: a function of the seed and their number, whatever the processes, the pauses and the storage."""

from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.core.batch import fold
from mezzotint.core.errors import ConfigError
from mezzotint.data import Loader, open_pictures
from mezzotint.data.pictures import InMemory, Transported


def numbered(n, size=4):
    """A set in which picture k is of the level k, labelled k % 3 and captioned "k"."""
    levels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, size, size).contiguous()
    return InMemory("numbers", "train", levels, torch.arange(n) % 3, [str(k) for k in range(n)], ("a", "b", "c"))


def constant(level, n=64, size=16):
    return InMemory("even", "train", torch.full((n, 1, size, size), level, dtype=torch.uint8))


@pytest.fixture(params=["in memory", "on disk"])
def pictures(request, tmp_path, monkeypatch):
    """23 numbered pictures, kept in memory or decoded on demand."""
    if request.param == "in memory":
        return numbered(23)
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", 0)
    for k in range(23):
        (tmp_path / f"{k:02d}.txt").write_text(str(k))
        Image.new("L", (4, 4), k).save(tmp_path / f"{k:02d}.png")
    return open_pictures(str(tmp_path), split="all")


def draw(pictures, batches, batch_size=4, start=0, **options):
    with closing(Loader(pictures, batch_size, **options)) as loader:
        loader.position = start
        return [loader.next() for _ in range(batches)]


def same(ours, theirs):
    return all(
        torch.equal(a.images, b.images) and a.captions == b.captions and a.seeds == b.seeds
        for a, b in zip(ours, theirs, strict=True)
    )


def test_every_epoch_shows_every_picture_once_and_no_batch_is_short(pictures):
    batches = draw(pictures, 23)  # four epochs
    assert [len(batch) for batch in batches] == [4] * 23
    shown = [int(caption) for batch in batches for caption in batch.captions]
    epochs = [shown[start : start + 23] for start in range(0, 92, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_picture_label_and_caption_stay_together():
    for batch in draw(numbered(23), 10):
        numbers = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long()
        assert [str(k) for k in numbers.tolist()] == batch.captions
        assert torch.equal(batch.labels, numbers % 3)


def test_levels_are_scaled_to_the_interval_exactly(truth):
    (batch,) = draw(numbered(256), 1, 256)
    levels = torch.tensor([float(caption) for caption in batch.captions], dtype=torch.float64)
    error = (batch.images[:, 0, 0, 0].double() - (levels / 127.5 - 1)).abs().max()
    truth("data", "x = level / 127.5 - 1", "float64", error, 2e-7)
    assert batch.images.dtype == torch.float32
    assert (batch.images.min(), batch.images.max()) == (-1, 1)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(pictures):
    options = {"flip": True, "pixels": "dequantised"}
    assert same(draw(pictures, 8, seed=5, **options), draw(pictures, 8, seed=5, **options))
    assert not same(draw(pictures, 8, seed=5, **options), draw(pictures, 8, seed=6, **options))


@pytest.mark.parametrize("pixels", ["levels", "dequantised", "binary"])
def test_two_processes_share_the_batches_of_one(pictures, pixels):
    options = {"seed": 3, "flip": True, "pixels": pixels}
    one = draw(pictures, 15, 6, **options)
    first, second = (draw(pictures, 15, 6, rank=rank, world=2, **options) for rank in (0, 1))
    for whole, left, right in zip(one, first, second):
        assert len(left) == len(right) == 3
        for share, rows in ((left, slice(0, None, 2)), (right, slice(1, None, 2))):
            assert torch.equal(share.images, whole.images[rows])
            assert share.captions == whole.captions[rows]
            assert share.seeds == whole.seeds[rows]


def test_a_loss_gets_one_seed_for_each_place_in_the_batch():
    for number, batch in enumerate(draw(numbered(10), 3, seed=9)):
        assert batch.seeds == [fold(9, number, row) for row in range(4)]
    assert draw(numbered(10), 1, seed=9, rank=1, world=2)[0].seeds == [fold(9, 0, 1), fold(9, 0, 3)]


def test_the_noise_of_the_loss_is_not_that_of_the_pictures():
    (batch,) = draw(constant(0), 1, pixels="dequantised")
    shown = (batch.images + 1) * 128
    assert not torch.allclose(shown, batch.random().uniform(1, 16, 16), atol=0.1)


@pytest.mark.parametrize("start", [0, 1, 5, 6, 13])
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(pictures, start):
    options = {"flip": True, "pixels": "dequantised"}
    assert same(draw(pictures, 20, **options)[start:], draw(pictures, 20 - start, start=start, **options))


def test_the_position_can_be_set_back_and_forth(pictures):
    expected = draw(pictures, 9)
    with closing(Loader(pictures, 4)) as loader:
        for number in (0, 1, 7, 2, 2, 8):
            loader.position = number
            assert loader.position == number
            assert same([loader.next()], [expected[number]])
            assert loader.position == number + 1


def test_a_set_smaller_than_the_batch_repeats():
    (batch,) = draw(numbered(3), 1, 8)
    shown = [int(caption) for caption in batch.captions]
    assert sorted(shown[:3]) == sorted(shown[3:6]) == [0, 1, 2]
    assert len(batch) == 8


@pytest.mark.parametrize(("batch_size", "world"), [(5, 2), (0, 1), (3, 4)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(batch_size, world):
    with pytest.raises(ConfigError, match="evenly"):
        Loader(numbered(10), batch_size, world=world)


def test_a_misspelt_kind_of_pixels_is_answered_with_the_right_one():
    with pytest.raises(ConfigError, match="did you mean 'dequantised'"):
        Loader(numbered(10), 2, pixels="dequantized")


def test_flips_mirror_half_of_the_pictures_and_change_nothing_else():
    ramp = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(64, 1, 1, 1)
    batches = draw(InMemory("ramp", "train", ramp), 40, 64, flip=True)
    images = torch.cat([batch.images for batch in batches])
    upright = ramp[:1] / 127.5 - 1
    mirrored = (images == upright.flip(-1)).flatten(1).all(1)
    assert torch.equal(mirrored, ~(images == upright).flatten(1).all(1))
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / 2560**0.5
    assert torch.equal(ramp, torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(64, 1, 1, 1))


@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
def test_dequantised_pixels_fill_their_level_and_never_leave_it(level, truth):
    images = torch.cat([batch.images for batch in draw(constant(level), 20, 64, pixels="dequantised")])
    within = (images.double() + 1) * 128 - level
    assert within.min() >= 0
    assert within.max() < 1
    moments = abs(within.mean() - 0.5), abs(within.var() - 1 / 12)
    tolerance = 4 * (1 / 12 / within.numel()) ** 0.5  # four standard errors
    truth("data", f"dequantisation of level {level}: mean and variance", "uniform on [0, 1)", max(moments), tolerance)


def test_dequantisation_does_not_round_into_the_next_level(monkeypatch):
    almost_one = float(np.nextafter(np.float32(1), np.float32(0)))
    monkeypatch.setattr(
        "mezzotint.core.batch.PictureRandom.uniform", lambda self, *shape: torch.full((256, *shape), almost_one)
    )
    (batch,) = draw(numbered(256), 1, 256, pixels="dequantised")
    levels = torch.tensor([float(caption) for caption in batch.captions])
    assert torch.equal(((batch.images + 1) * 128).floor()[:, 0, 0, 0], levels)
    assert batch.images.max() < 1


@pytest.mark.parametrize("level", [0, 1, 60, 128, 254, 255])
def test_binary_pixels_are_white_as_often_as_the_picture_is_bright(level, truth):
    images = torch.cat([batch.images for batch in draw(constant(level), 20, 64, pixels="binary")])
    assert set(images.unique().tolist()) <= {-1.0, 1.0}
    p = level / 255
    white = (images == 1).double().mean()
    tolerance = 4 * (p * (1 - p) / images.numel()) ** 0.5
    truth("data", f"dynamic binarisation of level {level}: share of white", "level / 255", abs(white - p), tolerance)


def test_binary_pixels_are_drawn_anew_each_time():
    first, second = draw(constant(128, n=4), 2, pixels="binary")
    assert not torch.equal(first.images, second.images)


# Two sets


def two(n=10, m=7):
    """Pictures 0 ... n - 1, and sources of the levels 100 ... 100 + m - 1."""
    levels = torch.arange(100, 100 + m, dtype=torch.uint8)[:, None, None, None].expand(m, 1, 4, 4).contiguous()
    return Transported(numbered(n), InMemory("others", "train", levels))


def levels_of(images):
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def test_a_picture_comes_with_one_of_the_other_set_in_an_order_of_its_own():
    batches = draw(two(), 35, 2, seed=3)  # seven epochs of the one, ten of the other
    pictures = [level for batch in batches for level in levels_of(batch.images)]
    sources = [level for batch in batches for level in levels_of(batch.source)]
    assert sorted(pictures) == sorted(list(range(10)) * 7)
    assert sorted(sources) == sorted(list(range(100, 107)) * 10)
    assert len(set(zip(pictures, sources))) > 40  # of 70 meetings: nobody has a partner
    assert [batch.captions for batch in batches] == [[str(k) for k in levels_of(batch.images)] for batch in batches]


def test_sources_are_shared_resumed_and_dequantised_like_pictures():
    options = {"flip": True, "pixels": "dequantised"}
    whole = draw(two(), 6, 4, **options)
    for rank in (0, 1):
        for one, share in zip(whole, draw(two(), 6, 4, rank=rank, world=2, **options)):
            assert torch.equal(share.source, one.source[rank::2])
    assert torch.equal(draw(two(), 1, 4, start=5, **options)[0].source, whole[5].source)
    within = (whole[0].source + 1) * 128
    assert within.flatten(1).std(1).min() > 0.1
    assert 100 <= within.min() <= within.max() < 107


def test_outside_of_training_a_picture_always_comes_with_the_same_source():
    pictures = two(10, 4)
    sources = levels_of(pictures.batch(range(10)).source)
    assert sorted(sources[:4]) == [100, 101, 102, 103]
    assert sources[4:8] == sources[:4]
    assert levels_of(pictures.batch([7]).source) == sources[7:8]
    assert numbered(3).batch([0]).source is None
