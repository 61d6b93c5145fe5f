"""In double precision every model is the same model: noise and beginnings follow the parameters."""

from __future__ import annotations

import copy

import pytest
import torch

import mezzotint as mz
from mezzotint.core.model import HasCode, Samples
from mezzotint.systems import catalogue

DRAWING = [s for s in catalogue().values() if s.family == "vae" and issubclass(s.stages[-1].model, Samples)]


@pytest.mark.parametrize("system", DRAWING, ids=lambda system: system.name)
def test_pictures_in_double_precision_are_those_of_the_same_seeds_in_single(system, truth):
    single = mz.create(system.name, image_size=8, classes=3 if system.needs else 0).eval()
    with torch.no_grad():
        for parameter in single.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    double = copy.deepcopy(single).double()
    whole = torch.rand(2, 1, 8, 8) * 2 - 1
    given = {"source": whole} if single.completes else {}
    wide = {name: value.double() for name, value in given.items()}
    expected, drawn = single.sample(2, **given), double.sample(2, **wide)
    assert (expected.dtype, drawn.dtype) == (torch.float32, torch.float64)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    truth(system.name, "pictures in single precision", "in double", (drawn - expected).abs().max(), 4e-6)
    if system.name != "autoencoder":  # which has no likelihood to draw pixels of
        assert double.sample(2, **wide, pixels="drawn").dtype == torch.float64
    if isinstance(double, HasCode):
        assert torch.allclose(double.from_codes(double.codes([0, 1])), drawn, rtol=0, atol=1e-14)
