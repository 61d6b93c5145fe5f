"""Rectified flow from one set of pictures to another."""

import pytest
import torch

import mezzotint as mz
from mezzotint.cli import _begin
from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.data import open_pictures
from mezzotint.diffusion.grids import uniform
from mezzotint.diffusion.solvers import heun
from mezzotint.diffusion.transport import TransportConfig, TransportModel
from mezzotint.evaluation.evaluate import Sampling
from mezzotint.nn.unet import UNetConfig
from mezzotint.training.run import RunSettings, train
from mezzotint.training.schedule import Budget

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
FLOW = {"network": TINY, "times": "uniform", "solver": "euler", "grid": "uniform", "steps": 4}


def tiny(*earlier, **choices):
    """A model of large random weights."""
    config = TransportConfig(image_size=8, channels=1, **{**FLOW, **choices})
    model = TransportModel(config, **{f"flow-{k}": teacher for k, teacher in enumerate(earlier)})
    if not earlier:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(n=6, classes=0, first=0):
    random = PictureRandom(range(first, first + n))
    labels = torch.arange(n) % classes if classes else None
    return Batch(random.uniform(1, 8, 8) * 2 - 1, labels, source=random.uniform(1, 8, 8), seeds=range(first, first + n))


class Normals(torch.nn.Module):
    """The exact velocity between independent N(m0, s0^2) and N(m1, s1^2), for every number of a picture.

    Source X_0 and picture X_1 are jointly normal with X_t = (1 - t) X_1 + t X_0, our t, so

        E[X_0 - X_1 | X_t] = m0 - m1 + (t s0^2 - (1 - t) s1^2) / (t^2 s0^2 + (1 - t)^2 s1^2) (X_t - E X_t)
    """

    source, picture = (-0.4, 0.2), (0.3, 0.5)

    def forward(self, x, network_time, labels=None):
        t = (network_time / 1000).view(-1, 1, 1, 1)
        (m0, s0), (m1, s1) = self.source, self.picture
        gain = (t * s0**2 - (1 - t) * s1**2) / (t**2 * s0**2 + (1 - t) ** 2 * s1**2)
        return m0 - m1 + gain * (x - (1 - t) * m1 - t * m0)


def exact():
    model = tiny()
    model.network, model.scale = Normals(), torch.nn.Parameter(torch.zeros(()))  # so that it has a device
    return model


def test_one_normal_set_is_carried_into_the_other_by_the_optimal_map(truth):
    """x -> m1 + s1 / s0 (x - m0): in one dimension the flow keeps the order."""
    model, generator = exact(), torch.Generator().manual_seed(1)
    source = -0.4 + 0.2 * torch.randn(4, 1, 8, 8, generator=generator).double().clamp(-1, 1)
    expected = 0.3 + 0.5 / 0.2 * (source + 0.4)
    errors = []
    for steps in (50, 100):
        end = heun(model.unclipped(), source, uniform(steps, model.path), None)
        errors.append((end - expected).abs().max())
    truth("rectified transport", "map between two normal sets, 100 steps of Heun", "optimal map", errors[1], 2e-4)
    order = torch.log2(errors[0] / errors[1])
    truth("rectified transport", "order of convergence, distance from 2", "order of Heun's method", abs(order - 2), 0.1)


def test_the_exact_velocity_has_the_loss_that_cannot_be_explained(truth):
    model, n = exact(), 500
    random = PictureRandom(range(n))
    source, picture = ((m + s * random.normal(1, 8, 8)) for m, s in (Normals.source, Normals.picture))
    t = PictureRandom(range(n)).uniform().double()
    (_, s0), (_, s1) = Normals.source, Normals.picture
    seen = t**2 * s0**2 + (1 - t) ** 2 * s1**2
    left = (s0**2 + s1**2 - (t * s0**2 - (1 - t) * s1**2) ** 2 / seen).mean()
    loss = model(Batch(picture, source=source, seeds=range(n))).total
    # 500 x 64 squared normal errors of unequal size: their mean is known to about 1 %
    truth("rectified transport", "loss of the exact velocity, relative", "closed form", (loss / left - 1).abs(), 0.01)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth, classes):
    whole = batch(6, classes)
    whole.images, whole.source = whole.images.double(), whole.source.double()
    first = tiny(classes=classes)
    for model in (tiny(first, classes=classes).double(), first.double()):
        total = model(whole).total
        halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
        error = ((total - halves) / total).abs().detach()
        truth("rectified transport", "loss of a batch, relative", "mean over its halves", error, 1e-14)


def test_a_picture_depends_on_its_source_alone(truth):
    model, source = tiny(), batch(5).source
    together = model.sample(5, source=source)
    alone = torch.cat([model.sample(1, source=source[k : k + 1], seeds=99) for k in range(5)])
    truth("rectified transport", "five pictures together", "one by one, float32", (together - alone).abs().max(), 1e-6)
    assert not torch.allclose(together[0], together[1], atol=0.01)


def test_encoding_is_the_way_back(truth):
    """Any pair of sets has a way back: the same flow, against its time."""
    model, source = exact(), -0.4 + 0.1 * torch.rand(2, 1, 8, 8)
    pictures = model.sample(2, source=source, steps=100, solver="heun")
    back = model.encode(pictures, steps=100, solver="heun", grid=model.config.grid)
    error = (back - source).abs().max()
    truth("rectified transport", "source, to its picture and back, 100 steps", "itself", error, 1e-5)


def test_reflow_learns_where_the_first_flow_leads(truth):
    first = tiny()
    second, one = tiny(first, teacher_steps=3), batch()
    assert torch.equal(second.sample(6, source=one.source), first.sample(6, source=one.source))
    ends = second.solve(one.source, None)
    error = (ends.clamp(-1, 1) - first.sample(6, source=one.source, steps=3)).abs().max()
    truth("rectified transport", "pictures that reflow learns", "samples of the first flow", error, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(second.solve(one.source, None), ends)
    other = batch()
    other.images = -other.images  # what the pictures of the batch are does not matter
    assert torch.equal(second(one).total, second(other).total)
    second(one).total.backward()
    assert all(parameter.grad is None for parameter in second.teacher.parameters())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tiny(path="ot"), "straight"),
        (lambda: tiny(prediction="noise"), "velocity"),
        (lambda: tiny(teacher_solver="eulr"), "did you mean 'euler'"),
        (lambda: tiny().sample(2), "needs a source"),
        (lambda: tiny().sample(2, source=torch.zeros(3, 1, 8, 8)), "got the shape"),
        (lambda: tiny().sample(1, source=torch.zeros(1, 1, 8, 8), solver="ancestral"), "deterministic"),
        (lambda: tiny().solve(torch.zeros(1, 1, 8, 8), None), "no teacher"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_pictures_that_come_alone_are_refused():
    alone = batch()
    alone.source = None
    with pytest.raises(DataError, match="--source"):
        tiny()(alone)


# A whole run


SMALL = {"network.channels": "8", "network.head_dim": "8", "batch_size": "4", "steps": "1"}
RUN = {"data": "fashion/ankle boot", "source": "fashion/sneaker", "image_size": 8, "precision": "fp32"}


def test_boots_are_made_of_sneakers_from_the_first_stage_to_the_judge(tmp_path):
    settings = RunSettings("rectified-transport", **RUN, budget=Budget(pictures=12), changes=SMALL)
    train(settings, tmp_path / "run")
    assert list((tmp_path / "run" / "samples").iterdir())
    model = mz.load(tmp_path / "run")
    assert model.identity.stage == "reflow"
    assert model.identity.data.source
    begin = _begin(model, 3, "fashion/sneaker")
    sneakers = open_pictures("fashion/sneaker", split="test", image_size=8)
    assert torch.equal(begin[0], sneakers.batch([0]).images[0])
    assert model.sample(3, source=begin, steps=1).shape == (3, 1, 8, 8)
    test = open_pictures("fashion/ankle boot", split="test", image_size=8, beside="fashion/sneaker")
    sampling = Sampling(model, test, 4, 0, {"steps": 1})
    drawn = sampling.draw([2, 0])
    assert torch.equal(drawn, model.sample(2, source=test.batch([2, 0]).source, steps=1))
    assert sampling.protocol()["from"] == "test pictures of fashion/sneaker"
    other = RunSettings("rectified-transport", "fashion/ankle boot", source="fashion/bag")
    with pytest.raises(ConfigError, match="source 'fashion/sneaker', not 'fashion/bag'"):
        train(other, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: _begin(mz.create("rectified-transport", image_size=8), 2, None), "name it with --source"),
        (lambda: _begin(mz.create("rectified-flow", image_size=8), 2, "fashion"), "begins from noise"),
        (lambda: train(RunSettings("rectified-transport", "fashion"), "nowhere"), "name it with --source"),
        (lambda: train(RunSettings("ddpm", "fashion", source="fashion"), "nowhere"), "leave --source away"),
    ],
)
def test_a_second_set_that_is_missing_or_useless_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
