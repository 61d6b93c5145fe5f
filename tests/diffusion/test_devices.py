"""Pictures and networks on one device, times on another: nothing meets where it must not, and nobody waits."""

import pytest
import torch
from other_device import OtherDevice

from mezzotint.core.batch import Batch
from mezzotint.diffusion import grids
from mezzotint.diffusion.guidance import ClassifierFree, Guidance
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import PREDICTIONS, Denoiser
from mezzotint.diffusion.solvers import SOLVERS, ddim
from mezzotint.diffusion.times import TIMES
from mezzotint.diffusion.weighting import WEIGHTINGS
from mezzotint.nn.dit import DiTConfig
from mezzotint.nn.ncsnpp import NCSNppConfig
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(False,), middle_attention=False, groups=4)
NETWORKS = (
    UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4),
    NCSNppConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True)),
    DiTConfig(depth=1, width=16, heads=2),
)
# "rk45" has to look at its errors; "ancestral-learned" is for models with a learned variance
UNWATCHED = [solver for solver in SOLVERS if solver not in ("ancestral-learned", "rk45")]


def elsewhere(**choices):
    return DenoisingModel(DenoisingConfig(**{"image_size": 8, "channels": 1, "network": TINY, **choices})).to("meta")


class Scale(torch.nn.Module):
    """As little of a network as there can be, where it is not the network that matters."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones((), device="meta"))

    def forward(self, x, t, labels=None):
        assert t.device.type == "cpu"
        return self.factor * x


def scale(**choices):
    model = elsewhere(**choices)
    model.network = Scale()
    return model


def batch():
    images = torch.empty(4, 1, 8, 8, device="meta")
    return Batch(images, torch.zeros(4, dtype=torch.long, device="meta"), seeds=[1, 2, 3, 4])


def trains(model):
    with OtherDevice():
        losses = model(batch())
        losses.total.backward()
    assert all(part.is_meta for part in losses.parts.values())
    return losses.total.is_meta and all(p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("path", PATHS)
def test_training_stays_on_its_device(path):
    for times in TIMES:
        assert trains(scale(path=path, times=times, prediction="velocity", weighting="min-snr", classes=3))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weight_meets_the_errors_on_their_device(weighting):
    for prediction in PREDICTIONS:
        metric = "pseudo-huber" if prediction == "velocity" else "squared"
        assert trains(scale(path="vp", prediction=prediction, weighting=weighting, metric=metric, unit_input=True))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.kind)
def test_every_network_stays_on_its_device(network):
    model = elsewhere(network=network, path="vp", classes=3, guidance=1.0)
    assert trains(model)
    with OtherDevice():
        assert model.sample(2, steps=2).is_meta


@pytest.mark.parametrize("solver", UNWATCHED)
@pytest.mark.parametrize(("classes", "guidance"), [(0, 0.0), (3, 1.5)])
def test_sampling_stays_on_its_device(solver, classes, guidance):
    model = scale(solver=solver, classes=classes, guidance=guidance)
    with OtherDevice():
        for steps, labels in ((2, None), (3, [0, 2] if classes else None)):
            assert model.sample(2, labels=labels, steps=steps).is_meta


@pytest.mark.parametrize("path", PATHS)
def test_no_solver_waits_for_its_device_on_any_path(path):
    """One of each kind."""
    model = scale(path=path, prediction="v")
    with OtherDevice():
        for solver in ("ancestral", "ddim", "edm", "predictor-corrector", "dpm++3m", "lms"):
            assert model.sample(2, steps=3, solver=solver, grid="uniform").is_meta


@pytest.mark.parametrize("grid", grids.GRIDS)
def test_no_grid_waits_for_its_device(grid):
    with OtherDevice():
        for path in PATHS:
            assert scale(path=path, prediction="v").sample(2, steps=3, solver="ddim", grid=grid).is_meta


@pytest.mark.parametrize(
    "controls",
    [{"guidance_interval": (0.3, 0.7)}, {"guidance_rescale": 0.7},
     {"guidance_interval": (0.3, 0.7), "guidance_rescale": 0.7, "solver": "ddim", "eta": 0.5},
     {"solver": "edm-stochastic", "grid": "karras"}],
)  # fmt: skip
def test_controls_of_sampling_do_not_wait_for_their_device(controls):
    model, seen = scale(path="vp", classes=3), []
    with OtherDevice():
        assert model.sample(2, steps=5, guidance=2.0, **controls, callback=seen.append).is_meta
    assert [step.number for step in seen] == [0, 1, 2, 3, 4]
    assert all(isinstance(step.t, float) for step in seen)


def test_guidance_at_the_time_of_each_row_stays_on_its_device():
    model, x = scale(path="vp", classes=3), torch.empty(2, 1, 8, 8, device="meta")
    labels = torch.zeros(2, dtype=torch.long, device="meta")
    guided = ClassifierFree(model.answer, labels, 3, Guidance(2.0, (0.3, 0.7), 0.5))
    with OtherDevice():
        assert guided(x, torch.tensor([0.1, 0.5], dtype=torch.float64)).is_meta


@pytest.mark.parametrize("path", PATHS)
def test_codes_stay_on_their_device(path):
    model, images = scale(path=path, prediction="v", classes=3), torch.empty(2, 1, 8, 8, device="meta")
    with OtherDevice():
        for solver in ("ddim", "heun"):
            codes = model.encode(images, labels=[0, 2], steps=3, solver=solver)
            assert codes.is_meta
            assert model.decode(codes, labels=[0, 2], steps=3, solver=solver).is_meta


@pytest.mark.parametrize("path", PATHS)
def test_every_prediction_is_converted_on_its_device(path):
    x = torch.empty(2, 1, 8, 8, device="meta")
    model = scale(path=path, prediction="v")
    with OtherDevice():
        for t in (torch.tensor(0.5), torch.tensor([0.2, 0.7])):
            for denoised in (model.denoiser()(x, t), model.denoiser().on(PATHS["edm"])(x, t)):
                for kind in PREDICTIONS:
                    assert denoised.as_kind(kind).shape == x.shape
                    assert denoised.as_kind(kind).dtype == torch.float32


@pytest.mark.parametrize("path", ["edm", "straight", "vp"])
def test_a_denoiser_is_followed_on_another_path_on_its_device(path):
    model, x = scale(path="linear"), torch.empty(2, 1, 8, 8, device="meta")
    with OtherDevice():
        assert ddim(model.denoiser().on(PATHS[path]), x, grids.uniform(4, PATHS[path]), lambda: x).is_meta


@pytest.mark.parametrize("solver", ["ancestral-learned", "ddim"])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0, rescale=0.5)])
def test_a_learned_variance_stays_on_its_device(solver, guidance):
    class TwoAnswers(DenoisingModel):
        learned_variance = True

    model = TwoAnswers(DenoisingConfig(8, 1, network=TINY, classes=3)).to("meta")
    x, labels = torch.empty(2, 1, 8, 8, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    with OtherDevice():
        denoiser = model.denoiser(labels, guidance)
        assert isinstance(denoiser, Denoiser)
        assert SOLVERS[solver](denoiser, x, grids.leading(3, model.path), lambda: torch.empty_like(x)).is_meta


def test_the_stand_in_refuses_what_a_gpu_refuses():
    here, there = torch.ones(2), torch.ones(2, device="meta")
    with OtherDevice():
        assert (torch.tensor(2.0) * there).is_meta
        with pytest.raises(RuntimeError, match="two devices"):
            here * there
        with pytest.raises(RuntimeError, match="two devices"):
            torch.where(here > 0, there, there)
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(RuntimeError, match="read back"):
            float(there.sum())
        with pytest.raises(RuntimeError, match="read back"):
            there.any().item()
        with pytest.raises(RuntimeError, match="read back"):
            bool((there > 0).all())
        with pytest.raises(RuntimeError, match="read back"):
            there[there > 0]
        with pytest.raises(RuntimeError, match="read back"):
            there.cpu()
