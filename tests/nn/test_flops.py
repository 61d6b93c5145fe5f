"""The counter of multiplications against formulas and against the published numbers."""

import pytest
import torch
from torch import nn

from mezzotint.nn.attention import Attention
from mezzotint.nn.dit import DiTConfig, dit_config
from mezzotint.nn.flops import multiply_adds

# Peebles and Xie 2022, table 4: G multiply-adds of one picture, by network and pixels across
PUBLISHED = {
    ("S/8", 256): 0.36, ("S/4", 256): 1.41, ("S/2", 256): 6.06,
    ("B/8", 256): 1.42, ("B/4", 256): 5.56, ("B/2", 256): 23.01,
    ("L/8", 256): 5.01, ("L/4", 256): 19.70, ("L/2", 256): 80.71,
    ("XL/8", 256): 7.39, ("XL/4", 256): 29.05, ("XL/2", 256): 118.64, ("XL/2", 512): 524.60,
}  # fmt: skip


@pytest.mark.parametrize(("name", "pixels"), PUBLISHED)
def test_published_networks_compute_as_much_as_published(truth, name, pixels):
    """Within what is not counted (number by number) beyond half of the last published digit."""
    latent, published = pixels // 8, PUBLISHED[name, pixels]
    with torch.device("meta"):
        network = dit_config(name).build(4, 8, 1001, latent)
        inputs = torch.empty(1, 4, latent, latent), torch.empty(1), torch.zeros(1, dtype=torch.long)
    counted = multiply_adds(network, *inputs) / 1e9
    beyond = max(abs(counted - published) - 0.005, 0.0) / published
    truth(f"DiT-{name}", f"GFLOPs at {pixels} px, share beyond rounding", "Peebles and Xie 2022, table 4", beyond, 2e-4)


def test_a_dit_is_counted_as_its_formula():
    depth, width, patch, side, c_in, c_out = 3, 16, 2, 8, 4, 8
    network = DiTConfig(depth=depth, width=width, heads=2, patch=patch).build(c_in, c_out, 11, side)
    tokens = (side // patch) ** 2
    once = 256 * width + width**2 + (6 * depth + 2) * width**2  # time, modulations
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    ends = tokens * patch**2 * (c_in + c_out) * width
    inputs = torch.zeros(1, c_in, side, side), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    assert multiply_adds(network, *inputs) == once + depth * block + ends


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 8), 2 * 8 * 8 * 4 * 6 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 2 * 4 * 4 * 4 * 6 * 9),
        (nn.GroupNorm(2, 4), (2, 4, 8, 8), 0),
        (Attention(8, head_dim=4, groups=4), (2, 8, 3, 3), 2 * (9 * 4 * 8 * 8 + 2 * 9 * 9 * 8)),
        (Attention(8, head_dim=4, groups=4), (1, 8, 40, 40), 1600 * 4 * 8 * 8 + 2 * 1600 * 1600 * 8),
    ],
)
def test_layers_are_counted_as_their_formulas(network, shape, expected):
    assert multiply_adds(network, torch.zeros(shape)) == expected


def test_counting_changes_nothing():
    network = DiTConfig(depth=1, width=8, heads=1).build(1, 1, 0, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    multiply_adds(network, torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert all(p.device.type == "cpu" and p.requires_grad for p in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
