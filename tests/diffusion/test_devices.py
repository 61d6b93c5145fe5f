"""Pictures and networks on one device, times on another: nothing meets where it must not."""

import pytest
import torch
from other_device import OtherDevice

from mezzotint.core.batch import Batch
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.solvers import SOLVERS
from mezzotint.diffusion.times import TIMES
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)


def elsewhere(**choices):
    return DenoisingModel(DenoisingConfig(**{"image_size": 8, "channels": 1, "network": TINY, **choices})).to("meta")


def batch():
    images = torch.empty(4, 1, 8, 8, device="meta")
    return Batch(images, torch.zeros(4, dtype=torch.long, device="meta"), seeds=[1, 2, 3, 4])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("prediction", "weighting"), [("noise", "simple"), ("velocity", "min-snr")])
def test_training_stays_on_its_device(path, times, prediction, weighting):
    model = elsewhere(path=path, times=times, prediction=prediction, weighting=weighting, classes=3)
    with OtherDevice():
        losses = model(batch())
        losses.total.backward()
    assert losses.total.is_meta
    assert all(p.grad.is_meta for p in model.parameters())


# without "ancestral-learned", for models with a learned variance, and "rk45", which has to look at its errors
@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver not in ("ancestral-learned", "rk45")])
@pytest.mark.parametrize(("classes", "guidance"), [(0, 0.0), (3, 0.0), (3, 1.5)])
def test_sampling_stays_on_its_device(solver, classes, guidance):
    model = elsewhere(solver=solver, classes=classes, guidance=guidance)
    with OtherDevice():
        for steps, labels in ((1, None), (3, [0, 2] if classes else None)):
            assert model.sample(2, labels=labels, steps=steps).is_meta


@pytest.mark.parametrize("path", PATHS)
def test_every_prediction_is_converted_on_its_device(path):
    x = torch.empty(2, 1, 8, 8, device="meta")
    model = elsewhere(path=path)
    with OtherDevice():
        for t in (torch.tensor(0.5), torch.tensor([0.2, 0.7])):
            denoised = model.denoiser()(x, t)
            for answer in (denoised.clean, denoised.noise, denoised.velocity, denoised.v, denoised.score):
                assert answer.shape == x.shape


def test_the_stand_in_refuses_what_a_gpu_refuses():
    here, there = torch.ones(2), torch.ones(2, device="meta")
    with OtherDevice():
        assert (torch.tensor(2.0) * there).is_meta
        with pytest.raises(RuntimeError, match="two devices"):
            here * there
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(RuntimeError, match="read back"):
            float(there.sum())
