"""Names, sizes and settings that do not exist are answered with the nearest right one."""

from __future__ import annotations

import math

import pytest
from toys import TOYS, register_toys

import mezzotint as mz
from mezzotint import systems
from mezzotint.core.batch import PictureSpec
from mezzotint.core.likelihood import bits_per_dim, discrete_log_prob
from mezzotint.core.model import abilities

register_toys()
TEN = PictureSpec(28, 1, tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mz.create("ddmp"), "did you mean 'ddpm'"),
        (lambda: mz.create("toy", size="smal"), "did you mean 'small'"),
        (lambda: mz.create("toy", widht=3), "did you mean 'width'"),
        (lambda: mz.create("toy-stages", stage="priro"), "did you mean 'prior'"),
        (lambda: systems.register(TOYS[0]), "already"),
        (lambda: mz.create("classifier"), "needs labels"),
        (lambda: systems.configure(systems.find("ddpm"), TEN, overrides={"classes": "5"}), "10 classes, not 5"),
    ],
)
def test_the_nearest_right_name_is_given(call, words):
    with pytest.raises(mz.ConfigError, match=words):
        call()


def test_settings_reach_one_stage_or_all():
    model = mz.create("toy-stages", image_size=8, width=5)
    assert {config.width for config in model.configs.values()} == {5}
    model = mz.create("toy-stages", image_size=8, **{"codec:width": 6})
    assert [config.width for config in model.configs.values()] == [6, 8]


def test_abilities_are_what_the_class_defines():
    assert abilities(mz.create("toy", image_size=8)) == ["sample"]


def test_bits_per_dim_of_a_uniform_picture_is_eight(truth):
    dims = 3 * 32 * 32
    log_density = -dims * math.log(2.0)  # uniform over [-1, 1]^D
    error = abs(bits_per_dim(discrete_log_prob(log_density, dims), dims) - 8.0)
    truth("core", "bits/dim of the uniform density over 8-bit pictures", "closed form: 8", error, 1e-12)
