"""The collapse watch notices a generator that draws one picture, and leaves a good one alone."""

from __future__ import annotations

import logging

import pytest
import torch

import mezzotint as mz
from mezzotint.core.model import Watches
from mezzotint.data import open_pictures
from mezzotint.gan.watch import coverage, diversity, watch


@pytest.fixture(scope="module")
def clothes():
    """Twice 256 pictures, and 256 of each class."""
    pictures = open_pictures("fashion")
    rest = pictures.batch(range(512, 8192))
    kinds = [rest.images[rest.labels == label][:256] for label in range(10)]
    return *pictures.batch(range(512)).images.split(256), kinds


def test_diversity_is_the_mean_distance_of_pairs():
    x = torch.randn(6, 1, 3, 3)
    pairs = [((x[i] - x[j]).square().sum() / 9).sqrt() for i in range(6) for j in range(i)]
    assert diversity(x) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)


def test_the_coverage_of_pictures_distributed_alike_is_nearly_one(truth):
    """Naeem et al. 2020, section 3.2: 1 - (M - 1) ... (M - k) / ((2M - 1) ... (2M - k))."""
    expected, M, k = 1.0, 400, 5
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (M - i) / (2 * M - i)
    expected -= missed
    found = coverage(torch.randn(M, 8), torch.randn(M, 8))
    truth("gan", "coverage of equal distributions", "its expectation", abs(found - expected), 0.03)


def test_real_pictures_raise_no_alarm(clothes):
    real, others, _ = clothes
    seen = watch(real, others, right=0.6)
    assert seen.warnings == []
    assert seen.numbers["diversity"] == pytest.approx(1, abs=0.05)
    assert seen.numbers["coverage"] > 0.9


def test_a_collapsed_generator_is_flagged_in_words(clothes):
    real, others, _ = clothes
    one = others[:1].expand_as(real) + 0.02 * torch.randn_like(real)
    seen = watch(real, one, right=0.999)
    assert len(seen.warnings) == 3
    assert "collapses" in seen.warnings[0]
    assert "kinds of pictures are missing" in seen.warnings[1]
    assert "tells 99.9% of all pictures apart" in seen.warnings[2]


def test_missing_kinds_are_flagged_though_the_pictures_that_are_drawn_differ(clothes):
    """Real pictures of one class only: all but shirts, which are like every other top."""
    real, _, kinds = clothes
    for label, kind in enumerate(kinds):
        seen = watch(real, kind, right=0.6)
        assert ["kinds of pictures are missing" in w for w in seen.warnings] == ([] if label == 6 else [True]), label


@pytest.mark.parametrize("few", [5, 8, 16])
def test_a_generator_of_few_pictures_is_flagged_though_it_draws_all_kinds(clothes, few):
    real, others, _ = clothes
    again = others[torch.arange(256) % few] + 0.02 * torch.randn_like(real)
    assert any("kinds of pictures are missing" in warning for warning in watch(real, again, right=0.6).warnings)


def test_a_discriminator_may_be_right_but_not_nearly_always(clothes):
    real, others, _ = clothes
    assert watch(real, others, right=0.98).warnings == []
    (warning,) = watch(real, others, right=0.985).warnings
    assert "tells 98.5% of all pictures apart" in warning


def test_a_model_is_always_watched_at_the_pictures_of_the_same_seeds(clothes):
    torch.manual_seed(0)
    model, real = mz.create("gan"), clothes[0][:64]
    drawn = model.sample(64, seeds=0)
    first, again = model.watch(real), model.watch(real)
    assert first == again
    assert first.numbers["diversity"] == diversity(drawn) / diversity(real)
    assert first.numbers["coverage"] == coverage(real, drawn)


def test_a_model_watches_itself_and_training_says_so(tmp_path, caplog):
    from mezzotint.training.run import RunSettings, train
    from mezzotint.training.schedule import Budget

    model = mz.create("gan")
    assert isinstance(model, Watches)
    seen = model.watch(open_pictures("fashion").batch(range(64)).images)
    assert set(seen.numbers) == {"diversity", "coverage", "right"}
    assert any("collapses" in warning for warning in seen.warnings)  # an untrained one draws grey
    with caplog.at_level(logging.WARNING, logger="mezzotint.training"):
        train(RunSettings("gan", "fashion", budget=Budget(pictures=256)), tmp_path / "run")
    assert any("collapses" in record.getMessage() for record in caplog.records)
