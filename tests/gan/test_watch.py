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
    pictures = open_pictures("fashion")
    return pictures.batch(range(512)).images.split(256)


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
    real, others = clothes
    seen = watch(real, others, right=0.6)
    assert seen.warnings == []
    assert seen.numbers["diversity"] == pytest.approx(1, abs=0.05)
    assert seen.numbers["coverage"] > 0.9


def test_a_collapsed_generator_is_flagged_in_words(clothes):
    real, others = clothes
    one = others[:1].expand_as(real) + 0.02 * torch.randn_like(real)
    seen = watch(real, one, right=0.999)
    assert len(seen.warnings) == 3
    assert "collapses" in seen.warnings[0]
    assert "kinds of pictures are missing" in seen.warnings[1]
    assert "tells 99.9% of all pictures apart" in seen.warnings[2]


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
