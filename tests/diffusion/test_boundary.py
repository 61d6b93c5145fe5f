"""The boundary conditions of rectified flow hold for any weights."""

import copy

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.boundary import BoundaryConfig, BoundaryModel
from mezzotint.diffusion.paths import PATHS
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
PICTURE, NOISE = torch.tensor(0.0).double(), torch.tensor(1.0).double()


def tiny(**choices):
    """A model of large random weights, whose means are something."""
    made = {"network": TINY, "times": "uniform", "solver": "euler", "grid": "uniform", "steps": 4, "clip": False}
    model = BoundaryModel(BoundaryConfig(image_size=8, channels=1, **{**made, **choices}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.uniform_(model.mean, -1, 1)
    return model


def batch(n=8, classes=0, first=0):
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(n) % classes if classes else None
    return Batch(torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1, labels, seeds=range(first, first + n))


@pytest.mark.parametrize("sharpness", [1.5, 2.0, 16.0])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_boundary_conditions_hold_for_any_weights(truth, classes, sharpness):
    model, x = tiny(classes=classes, sharpness=sharpness), 3 * torch.randn(4, 1, 8, 8)
    labels = torch.tensor([2, 0, 3, 1]) if classes else None  # 3 stands for no label
    C = model.mean[labels] if classes else model.mean
    told = f"{classes} classes, k = {sharpness:g}"
    with torch.no_grad():
        # the survey's velocity is minus ours
        error = (-model.answer(x, NOISE, labels) - (C - x)).abs().max()
        truth("boundary rectified flow", f"velocity at noise, {told}", "C - x", error, 1e-7)
        error = (-model.answer(x, PICTURE, labels) - x).abs().max()
        truth("boundary rectified flow", f"velocity at a picture, {told}", "x", error, 1e-7)
        middle = model.answer(x, NOISE / 2, labels)
        model.network.conv_out.bias.add_(1)
        assert torch.allclose(model.answer(x, NOISE, labels), x - C)
        assert not torch.allclose(model.answer(x, NOISE / 2, labels), middle)


def test_the_conditions_are_those_of_the_exact_velocity(truth):
    data, path, x = Gaussian(), PATHS["straight"], torch.randn(4, 1, 2, 2, dtype=torch.float64)
    denoiser = data.denoiser(path, "clean")
    error = (denoiser(x, NOISE).velocity - (x - data.mean)).abs().max()
    truth("boundary rectified flow", "condition at noise", "exact velocity of Gaussian data", error, 1e-15)
    near = torch.tensor(1e-7).double()
    error = (data.denoiser(path, "noise")(x, near).velocity + x).abs().max()
    truth("boundary rectified flow", "condition at a picture, t = 1e-7", "exact velocity of Gaussian data", error, 2e-6)


def test_the_network_is_left_alone_in_the_middle(truth):
    model, x, t = tiny(), torch.randn(2, 1, 8, 8), torch.tensor(0.5).double()
    with torch.no_grad():
        error = (model.answer(x, t) - model.network(x, model.path.network_time(t))).abs().max()
    truth("boundary rectified flow", "velocity half way, k = 16", "the network, 2^-15 less", error, 2e-4)


@pytest.mark.parametrize("classes", [0, 3])
def test_C_is_the_mean_of_the_pictures_so_far(truth, classes):
    model = tiny(classes=classes)
    torch.nn.init.zeros_(model.mean)
    steps = [batch(classes=classes, first=100 * step) for step in range(5)]
    for step, one in enumerate(steps):
        model(one[:3])  # in two parts, as an accumulated batch is
        model(one[3:])
        model.after_step(step)
    images = torch.cat([one.images for one in steps])
    error = (model.mean[-1] - images.mean(0)).abs().max()
    truth("boundary rectified flow", f"C of all pictures, {classes} classes", "their mean", error, 3e-7)
    for k in range(classes):
        own = torch.cat([one.images[one.labels == k] for one in steps])
        truth("boundary rectified flow", f"C of class {k}", "the mean of its pictures",
              (model.mean[k] - own.mean(0)).abs().max(), 3e-7)  # fmt: skip


def test_C_stays_within_a_step_and_while_judging():
    model, before = tiny(), tiny()
    before.load_state_dict(model.state_dict())
    model(batch())
    assert torch.equal(model.mean, before.mean)
    model.eval()
    model._sums = None
    model(batch())
    model.after_step(0)
    assert torch.equal(model.mean, before.mean)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth):
    model, whole = tiny(classes=3).double(), batch(8, 3)
    whole.images = whole.images.double()
    total = model(whole).total
    halves = (model(whole[:4]).total + model(whole[4:]).total) / 2
    error = ((total - halves) / total).abs().detach()
    truth("boundary rectified flow", "loss of a batch, relative", "mean over its halves", error, 1e-15)


def test_a_copy_in_the_middle_of_a_step_goes_on_by_itself():
    model = tiny()
    model(batch())
    average = copy.deepcopy(model)
    model.after_step(0)
    assert not torch.equal(average.mean, model.mean)


def test_samples_are_pictures():
    pictures = tiny(classes=3).sample(3, labels=[0, 1, 2], guidance=1.0)
    assert pictures.shape == (3, 1, 8, 8)
    assert pictures.abs().max() <= 1


@pytest.mark.parametrize("choices", [{"path": "linear"}, {"prediction": "v"}, {"unit_input": True}])
def test_other_predictions_have_no_such_boundary(choices):
    with pytest.raises(ConfigError, match="straight path"):
        tiny(**choices)


def test_a_sharpness_that_leaves_nothing_to_the_network_is_refused():
    with pytest.raises(ConfigError, match="above 1"):
        tiny(sharpness=1.0)
