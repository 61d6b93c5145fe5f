"""Encoders and decoders of the plain models: what stands between their layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mezzotint.vae.networks import ConvConfig, MLPConfig
from mezzotint.vae.semi_supervised import ClassAndCode

BENDS = {
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp_min(0),
    "softplus": lambda x: torch.log1p(torch.exp(x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "leaky": lambda x: torch.maximum(x, 0.1 * x),
}


def by_hand(network: nn.Module, x: Tensor, bend, shape: tuple[int, ...]) -> Tensor:
    """Layers with weights, bent between; maps become vectors, and vectors maps of the shape, where the next asks."""
    layers = [module for module in network.modules() if hasattr(module, "weight")]
    for number, layer in enumerate(layers):
        x = bend(x) if number else x
        if isinstance(layer, nn.Linear):
            x = x.flatten(1)
        elif x.dim() == 2:
            x = x.unflatten(1, shape)
        x = layer(x)
    return x


@pytest.mark.parametrize("config", [MLPConfig((12, 10)), ConvConfig(4, 2, 10)], ids=["mlp", "conv"])
@pytest.mark.parametrize("activation", BENDS)
def test_between_any_two_layers_is_the_activation_that_was_asked_for(config, activation):
    """And before the first and after the last there is none."""
    chosen = config.updated({"activation": activation})
    encoder, decoder = chosen.encoder(1, 8, 3).double(), chosen.decoder(3, 2, 8).double()
    images, z = torch.randn(5, 1, 8, 8).double(), torch.randn(5, 3).double()
    expected = by_hand(encoder, images, BENDS[activation], ())
    torch.testing.assert_close(encoder(images), expected, rtol=1e-12, atol=1e-13)
    expected = by_hand(decoder, z, BENDS[activation], (8, 2, 2))  # 8 maps of 2 x 2 at the coarsest level
    torch.testing.assert_close(decoder(z), expected.view(5, 2, 8, 8), rtol=1e-12, atol=1e-13)


def test_neurons_may_see_pictures_between_0_and_1():
    """Those that are given lie in [-1, 1]; also what M2 looks at beside the class."""
    x = torch.rand(5, 1, 4, 4) * 2 - 1
    network = MLPConfig((7,), unit=True)
    encoder = network.encoder(1, 4, 3)
    plain = MLPConfig((7,)).encoder(1, 4, 3)
    plain.load_state_dict(dict(zip(plain.state_dict(), encoder.state_dict().values(), strict=True)))
    torch.testing.assert_close(encoder(x), plain((x + 1) / 2), rtol=0, atol=0)
    both = ClassAndCode(network, 1, 4, 3, 2, 1, lambda numbers, x: numbers.sum())
    weight = both.first[-1].weight
    torch.testing.assert_close(both.first(x), ((x + 1) / 2).flatten(1) @ weight.T, rtol=1e-6, atol=1e-6)
