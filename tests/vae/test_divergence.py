"""What the diagnosis of collapse says is carried by a code is what the bound pays for it, whatever the model."""

from __future__ import annotations

import pytest
import torch

import mezzotint as mz
from mezzotint.core.model import HasLatents
from mezzotint.evaluation.collapse import diagnose
from mezzotint.systems import catalogue

DIAGNOSED = {s.stages[-1].model: s for s in catalogue().values() if issubclass(s.stages[-1].model, HasLatents)}


@pytest.mark.parametrize("system", DIAGNOSED.values(), ids=lambda system: system.name)
def test_the_nats_of_a_code_are_those_of_the_bound(system, truth):
    """Of the same draws; networks are shaken, so that no code has collapsed."""
    model = mz.create(system.name, image_size=8, classes=3 if system.needs else 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    levels = (
        torch.randint(0, 256, (8, 1, 8, 8)) if model.pixels != "binary" else 255 * torch.randint(0, 2, (8, 1, 8, 8))
    )
    images = levels / 127.5 - 1
    bound = model.divergence(images, seeds=3).double().mean()
    assert bound > 0.01
    found = diagnose(model, [images], pixels=model.pixels or "levels", seed=3)
    truth(system.name, "nats of the code, relative", "KL of the bound", abs(found.nats / bound - 1), 1e-7)
