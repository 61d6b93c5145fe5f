"""What a picture is made of: the numbers that a seed draws, in one place."""

from __future__ import annotations

import pytest
import torch

import mezzotint as mz
from mezzotint.core.codes import arithmetic, interpolation
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import HasCode, abilities
from mezzotint.systems import find

NAMES = ["vae", "draw", "hierarchical-variational-model", "iaf-vae", "ladder-vae", "vhp-vae", "nvae", "vdvae"]


def model(name: str) -> mz.Model:
    made = mz.create(name, image_size=16)
    with torch.no_grad():
        for parameter in made.parameters():  # priors that begin as N(0, I) whatever is above them
            parameter.add_(0.03 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_of_a_seeds_code_is_the_picture_of_the_seed(name, truth):
    made = model(name)
    assert isinstance(made, HasCode)
    codes = made.codes([3, 8, 4])
    expected = torch.cat([made.sample(1, seeds=[seed]) for seed in (3, 8, 4)])
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    error = (made.from_codes(codes) - expected).abs().max()
    truth(name, "picture of a seed's code", "picture of the seed", error, 2e-5)
    assert (made.from_codes(0 * codes) - made.sample(1, temperature=0.0)).abs().max() < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_standard_normal_and_walked_along_an_arc(name):
    made = model(name)
    codes = made.codes(range(200))
    assert codes.dim() == 2
    assert codes.mean().abs() < 5 * codes.numel() ** -0.5
    assert (codes.var() - 1).abs() < 5 * (2 / codes.numel()) ** 0.5
    middle = made.between(codes[:1], codes[1:2], torch.tensor([0.5]))
    assert torch.allclose(middle, (codes[:1] + codes[1:2]) / (codes[0] + codes[1]).norm() * middle.norm(), atol=1e-4)
    ends = interpolation(made, 5, 6, 3)[[0, -1]]
    assert torch.allclose(ends, made.sample(2, seeds=5), atol=2e-5)


@pytest.mark.parametrize("name", ["vae", "draw", "ladder-vae"])
def test_codes_of_another_size_and_labels_are_refused(name):
    made = model(name)
    codes = made.codes([0, 1])
    with pytest.raises(ConfigError, match=r"takes codes as numbers of the shape \(B, \d+\), not"):
        made.from_codes(codes[:, :-1])
    with pytest.raises(ConfigError, match=r"takes codes as numbers of the shape \(B, \d+\), not"):
        made.from_codes(torch.cat([codes, codes], 1))
    with pytest.raises(ConfigError, match="label"):
        made.from_codes(codes, torch.tensor([0, 1]))


def test_codes_of_a_hierarchy_are_added():
    made = model("ladder-vae")
    codes = made.codes([1, 2, 3])
    assert torch.allclose(arithmetic(made, [1], [2], [3]), codes[:1] + codes[1:2] - codes[2:], atol=1e-6)


@pytest.mark.parametrize("name", ["pixelvae", "cvae", "semi-supervised-m2", "vq-vae", "generative-dae"])
def test_what_is_not_made_of_such_numbers_alone_does_not_say_it_is(name):
    assert "interpolate" not in abilities(find(name).stages[-1].model)
