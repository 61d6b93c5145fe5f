"""The squared error of restored pictures, beside corruptions whose own is known beforehand."""

from __future__ import annotations

import pytest
import torch
from evaluation.levels import IMAGES, Pictures
from torch import nn

import mezzotint as mz
from mezzotint.core.batch import PictureRandom, picture_seeds
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Losses, Model
from mezzotint.evaluation.evaluate import evaluate
from mezzotint.evaluation.restoration import restoration


class Noisy(Model):
    """Noise of deviation 0.5; the mean of a picture's pixels is what it restores."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch, player="model"):
        return Losses(self.weight, {})

    def corrupt(self, images, seeds=0):
        return images + 0.5 * PictureRandom(picture_seeds(len(images), seeds)).normal(1, 4, 4)

    def reconstruct(self, images):
        return images.mean((2, 3), keepdim=True).expand_as(images)


def test_the_mean_of_sixteen_noisy_pixels_is_sixteen_times_nearer(truth):
    """Of noise of deviation s: s^2 a pixel, and s^2 / 16 of the mean. Over s^2, sums of squares are chi squares of 16
    degrees and of 1: standard errors are s^2 sqrt(2 / 16 N) and s^2 / 16 sqrt(2 / N)."""
    found = restoration(Noisy(), [IMAGES])
    exact = 0.25 / 16, 0.25
    for what, value, own, wanted in zip(("restored", "corrupted"), found, found.errors, exact):
        truth("evaluation", f"squared error, {what}, in standard errors", "s^2 / 16, s^2", abs(value - wanted) / own, 3)
    spreads = exact[0] * (2 / 256) ** 0.5, exact[1] * (2 / 16 / 256) ** 0.5
    assert found.errors == pytest.approx(spreads, rel=0.3)


def test_the_size_of_batches_changes_nothing():
    whole, parts = restoration(Noisy(), [IMAGES], seed=4), restoration(Noisy(), IMAGES.split(100), seed=4)
    assert (parts.restored, parts.corrupted) == pytest.approx((whole.restored, whole.corrupted), rel=1e-12)
    assert restoration(Noisy(), [IMAGES], seed=5).corrupted != whole.corrupted


def test_a_denoising_autoencoder_is_judged_by_what_it_restores(truth):
    """Of a picture of one level x, a quarter of the pixels becomes black: the error is (x + 1)^2 / 4, exactly."""
    model = mz.create("denoising-autoencoder", image_size=4, latent=2).eval()
    judged = evaluate(model, Pictures(), n=256, batch_size=100)
    assert [number.name for number in judged.numbers] == ["restored_mse", "corrupted_mse"]
    exact = float((IMAGES[:, 0, 0, 0].double() + 1).square().mean() / 4)
    truth("denoising-autoencoder", "squared error of its corruption", "(x + 1)^2 / 4",
          abs(judged["corrupted_mse"].value - exact), 1e-6)  # fmt: skip
    seen = model.reconstruct(model.corrupt(IMAGES, 0))
    direct = float((seen - IMAGES).double().square().mean())
    truth("denoising-autoencoder", "squared error of what it restores", "|x - g(f(x~))|^2 / D in one batch",
          abs(judged["restored_mse"].value - direct), 1e-6)  # fmt: skip
    protocol = {"n": 256, "corruption": "masking, level 0.25", "pixels": "levels", "seeds": "0...255"}
    for number in judged.numbers:
        assert protocol.items() <= number.protocol.items()


def test_a_restoration_of_one_picture_is_refused():
    with pytest.raises(ConfigError, match="at least 2 pictures, not 1"):
        restoration(Noisy(), [IMAGES[:1]])
