"""Walks through a code whose every dimension is known to do one thing."""

import pytest
import torch
from torch import nn

from mezzotint.core.errors import ConfigError
from mezzotint.core.model import Latents, Losses, Model
from mezzotint.vae.traversal import VALUES, interpolate, traverse


class Pixelwise(Model):
    """The code of a picture is its pixels, their KL as they were told; a picture is its code."""

    def __init__(self, kl):
        super().__init__()
        self.weight, self.kl = nn.Parameter(torch.zeros(())), torch.tensor(kl)

    def forward(self, batch, player="model"):
        return Losses(self.weight, {})

    def encode(self, images):
        return images.flatten(1)

    def decode(self, codes):
        return codes.view(-1, 1, 2, 2)

    def latents(self, images):
        return Latents(self.encode(images), self.kl * images.abs().flatten(1).sum(1, keepdim=True))


class Mapped(Pixelwise):
    """Its code is a map."""

    def encode(self, images):
        return images

    def decode(self, codes):
        assert codes.shape[1:] == (1, 2, 2)
        return codes


MODEL, PICTURE = Pixelwise([0.1, 3.0, 0.0, 2.0]), torch.tensor([0.5, -0.5, 0.25, 0.75]).view(1, 1, 2, 2)


@pytest.mark.parametrize("kind", [Pixelwise, Mapped])
def test_a_row_changes_one_dimension_and_no_other(kind):
    rows = traverse(kind([0.1, 3.0, 0.0, 2.0]), PICTURE)
    assert rows.shape == (4, 9, 1, 2, 2)
    flat = rows.flatten(2)
    for row, dimension in enumerate((1, 3, 0, 2)):  # in the order of their KL
        assert torch.equal(flat[row, :, dimension], torch.tensor(VALUES))
        others = [d for d in range(4) if d != dimension]
        assert torch.equal(flat[row][:, others], PICTURE.flatten()[others].expand(9, 3))


def test_between_two_pictures_no_prior_is_needed():
    """An autoencoder can be walked through, too: that its codes are nowhere in particular is the point of figure 1."""

    class Plain(Model):
        forward, encode, decode = Pixelwise.forward, Pixelwise.encode, Pixelwise.decode

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

    assert torch.equal(
        interpolate(Plain(), PICTURE, -PICTURE, steps=3), PICTURE * torch.tensor([1, 0, -1]).view(3, 1, 1, 1)
    )


def test_fewer_dimensions_and_other_values_can_be_asked_for():
    rows = traverse(MODEL, PICTURE[0], dimensions=2, values=(-1, 0, 1))
    assert rows.shape == (2, 3, 1, 2, 2)
    assert torch.equal(rows[1, :, 0, 1, 1], torch.tensor([-1.0, 0.0, 1.0]))


def test_the_order_is_that_of_the_mean_over_the_reference():
    class Two(Pixelwise):
        def latents(self, images):
            return Latents(self.encode(images), images.flatten(1).abs())

    reference = torch.tensor([[0.0, 0.0, 9.0, 0.0], [4.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    rows = traverse(Two([0.0] * 4), PICTURE, dimensions=2, values=(7.0,), reference=reference)
    assert (rows.flatten(2) == 7).nonzero()[:, 2].tolist() == [2, 0]
    rows = traverse(Two([0.0] * 4), PICTURE, dimensions=1, values=(7.0,))
    assert (rows.flatten(2) == 7).nonzero()[:, 2].tolist() == [3]


def test_between_two_pictures_lies_the_line_of_their_codes():
    found = interpolate(MODEL, PICTURE, -PICTURE[0], steps=5)
    assert torch.equal(found[0], PICTURE[0])
    assert torch.equal(found[4], -PICTURE[0])
    assert torch.allclose(found[1], PICTURE[0] / 2)
    assert not found[2].any()
    assert torch.equal(interpolate(Mapped([0.0] * 4), PICTURE, -PICTURE, steps=5), found)


def test_what_cannot_be_walked_through_is_refused():
    class Unequal(Pixelwise):
        def latents(self, images):
            return Latents(self.encode(images), torch.zeros(len(images), 3))

    class Silent(Model):
        forward = Pixelwise.forward

    with pytest.raises(ConfigError, match=r"4 numbers in 3 maps .* interpolate"):
        traverse(Unequal([0.0] * 4), PICTURE)
    for walk in (traverse, lambda model, picture: interpolate(model, picture, picture)):
        with pytest.raises(ConfigError, match="Silent has no code"):
            walk(Silent(), PICTURE)
        with pytest.raises(ConfigError, match="one picture is asked for"):
            walk(MODEL, PICTURE.expand(2, -1, -1, -1))
    with pytest.raises(ConfigError, match="at least 2 steps, not 1"):
        interpolate(MODEL, PICTURE, PICTURE, steps=1)
