"""The use of a codebook, for codes that are known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation.levels import IMAGES, Pictures
from torch import nn

import mezzotint as mz
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Losses, Model
from mezzotint.evaluation.codebook import Quantises, usage
from mezzotint.evaluation.evaluate import evaluate
from mezzotint.systems import find


class Coded(Model):
    """The mean of a picture, 0 to 255, in so many equal steps, in a book of 8."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.weight, self.steps = nn.Parameter(torch.zeros(())), steps

    def forward(self, batch, player="model"):
        return Losses(self.weight, {})

    def encode(self, images):
        return ((images.mean((1, 2, 3)) + 1) * 127.5).round().long() * self.steps // 256

    def codebook(self):
        return torch.zeros(8, 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_codes_that_are_chosen_equally_often_count_as_many(steps, truth):
    """The 256 pictures have every mean once."""
    found = usage(Coded(steps), [IMAGES])
    assert found.used == steps / 8
    truth("evaluation", "perplexity of equally frequent codes, relative", "how many they are",
          abs(found.perplexity / steps - 1), 1e-15)  # fmt: skip
    assert found.pictures == 256


def test_rare_codes_count_less():
    """Three quarters of the choices on one code, a quarter on another."""
    found = usage(Coded(2), [IMAGES[:192]])
    assert found.shares.tolist() == [2 / 3, 1 / 3, 0, 0, 0, 0, 0, 0]
    assert found.perplexity == pytest.approx(math.exp(-2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3)))
    parts = usage(Coded(2), IMAGES[:192].split(50))
    assert torch.equal(parts.shares, found.shares)


def test_no_pictures_are_refused():
    with pytest.raises(ConfigError, match="at least 1 picture"):
        usage(Coded(2), [])


def test_what_quantises_is_diagnosed_when_it_is_judged():
    judged = evaluate(Coded(4), Pictures(), n=100, batch_size=30)
    assert judged["codes_used"].value == pytest.approx(0.5)
    assert judged["code_perplexity"].value == pytest.approx(4, rel=0.05)
    assert judged["code_perplexity"].protocol["codes"] == 8
    assert judged["code_perplexity"].protocol["n"] == 100


def test_codecs_and_their_priors_have_codebooks():
    codec, prior = (stage.model for stage in find("vq-vae").stages)
    assert issubclass(codec, Quantises)
    assert issubclass(prior, Quantises)
    made = mz.create("vq-vae", image_size=16)
    assert made.codebook().shape == (made.codec.config.codebook.codes, made.codec.config.codebook.width)
    assert not issubclass(find("vae").stages[0].model, Quantises)
