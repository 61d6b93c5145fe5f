"""The denoising model: its loss, its samples, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.predictions import convert
from mezzotint.diffusion.solvers import euler
from mezzotint.diffusion.systems import SYSTEMS, ddpm, rectified_flow, small_unet
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
RF = {
    "path": "straight",
    "prediction": "velocity",
    "times": "logit-normal",
    "solver": "euler",
    "grid": "uniform",
    "clip": False,
}


def tiny(**choices):
    """A small model with large random weights, so that nothing in its answers is nearly zero."""
    model = DenoisingModel(
        DenoisingConfig(**{**{"image_size": 8, "channels": 1, "network": TINY, "steps": 4}, **choices})
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(n=6, classes=0):
    labels = torch.arange(n) % classes if classes else None
    return Batch(torch.rand(n, 1, 8, 8) * 2 - 1, labels, seeds=list(range(n)))


@pytest.mark.parametrize("choices", [{}, RF, {"prediction": "v", "weighting": "min-snr", "path": "cosine"}])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth, choices, classes):
    model, whole = tiny(classes=classes, **choices).double(), batch(6, classes)
    whole.images = whole.images.double()
    total = model(whole).total
    halves = (model(whole[:3]).total + model(whole[3:]).total) / 2
    error = ((total - halves) / total).abs().detach()
    truth("denoising model", "loss of a batch, relative", "mean over its halves", error, 1e-14)


def test_losses_repeat_with_their_seeds_and_differ_with_others():
    model, one = tiny(), batch()
    again = model(one).total
    one.seeds = [seed + 100 for seed in range(6)]
    assert torch.equal(model(batch_like(one, list(range(6)))).total, again)
    assert not torch.equal(model(one).total, again)


def batch_like(one, seeds):
    return Batch(one.images, one.labels, seeds=seeds)


@pytest.mark.parametrize(
    ("choices", "kind"),
    [({"path": "linear", "times": "discrete"}, "noise"), ({"path": "straight", "times": "uniform"}, "velocity"),
     ({"path": "linear", "times": "discrete"}, "v"), ({"path": "straight", "times": "logit-normal"}, "clean")],
)  # fmt: skip
def test_a_perfect_denoiser_has_the_loss_that_cannot_be_explained(truth, choices, kind):
    """For Gaussian data Var[c | x_t] = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), and an error of the clean picture counts
    (a - b alpha / sigma)^2 in a prediction a c + b n. Its mean over the same times is the loss that is left."""
    model, data, n = tiny(prediction=kind, **choices), Gaussian(), 400
    images = data.mean + data.std * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    seen = {}

    class Perfect(torch.nn.Module):
        def forward(self, x, network_time):
            t = (network_time + 1) / 1000 if choices["path"] == "linear" else network_time / 1000
            at = seen["at"] = model.path.at(t)
            wide = type(at)(*(c.view(-1, 1, 1, 1) for c in at))
            return convert(data.clean(x.double(), wide), x.double(), at, "clean", kind)

    model.network = Perfect()
    loss = model(Batch(images, seeds=list(range(n)))).total
    at = seen["at"]
    unexplained = data.std**2 * at.sigma**2 / (at.alpha**2 * data.std**2 + at.sigma**2)
    gain = {
        "noise": at.alpha / at.sigma,
        "clean": torch.ones_like(at.alpha),
        "v": 1 / at.sigma,
        "velocity": at.d_alpha - at.d_sigma * at.alpha / at.sigma,
    }[kind]
    expected = (unexplained * gain**2).mean()
    # 400 x 64 squared normal errors of unequal size: their mean is known to about 1.5 %
    truth(
        f"loss, {kind}", "a perfect denoiser on Gaussian data, relative", "closed form", abs(loss / expected - 1), 0.03
    )


@pytest.mark.parametrize("choices", [{}, RF])
def test_a_picture_does_not_depend_on_its_batch(truth, choices):
    model = tiny(classes=3, **choices)
    together = model.sample(5, labels=[0, 1, 2, 0, 1], seeds=10, guidance=1.5)
    alone = torch.cat([
        model.sample(1, labels=[k % 3], seeds=10 + k, guidance=1.5) for k in range(5)
    ])  # fmt: skip
    truth("sampling", "five pictures together", "one by one, float32", (together - alone).abs().max(), 1e-5)


@pytest.mark.parametrize("solver", ["ancestral", "ancestral-large", "ddim", "euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2])
def test_samples_are_pictures(solver, steps):
    pictures = tiny().sample(2, solver=solver, steps=steps, grid="trailing")
    assert pictures.shape == (2, 1, 8, 8)
    assert pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1
    assert not pictures.is_inference()


def test_seeds_choose_pictures_and_labels():
    model = tiny(classes=3)
    assert torch.equal(model.sample(3, seeds=5)[2], model.sample(2, seeds=[0, 7])[1])
    assert not torch.equal(model.sample(1, seeds=0), model.sample(1, seeds=1))
    assert not torch.equal(model.sample(1, seeds=0, labels=[0]), model.sample(1, seeds=0, labels=[1]))


def test_unlabelled_samples_of_a_conditional_model_have_labels_of_their_own():
    model = tiny(classes=3)
    same = [model.sample(1, seeds=4, labels=[k]) for k in range(3)]
    drawn = model.sample(1, seeds=4)
    assert sum(torch.equal(drawn, picture) for picture in same) == 1


def test_a_solver_or_a_grid_of_ones_own():
    model, grid = tiny(**RF), torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=torch.float64)
    own = model.sample(2, solver=euler, grid=lambda steps: grid)
    assert not torch.equal(own, model.sample(2, steps=3))


def test_sampling_ignores_dropout_and_leaves_the_mode_as_it_was():
    model = tiny(network=replace(TINY, dropout=0.5))
    model.train()
    assert torch.equal(model.sample(1), model.sample(1))
    assert model.training


def test_labels_are_hidden_as_often_as_asked():
    model, one = tiny(classes=3, label_dropout=0.25), batch(2000, 3)
    hidden = model._training_labels(one, one.random())[0] == 3
    assert abs(float(hidden.float().mean()) - 0.25) < 0.03


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"solver": "eular"}, "did you mean 'euler'"),
        ({"grid": "uniforn"}, "did you mean 'uniform'"),
        ({"steps": 0}, "at least 1"),
        ({"labels": [0, 1, 3]}, "from 0 to 2"),
        ({"guidance": -0.5}, "0 or more"),
        ({"guidance": float("inf")}, "0 or more"),
        ({"labels": [0, 1]}, "3 labels"),
        ({"captions": ["a shoe"] * 3}, "captions"),
        ({"mask": torch.ones(3, 1, 8, 8)}, "mask"),
    ],
)
def test_impossible_wishes_are_refused(wish, complaint):
    with pytest.raises(ConfigError, match=complaint):
        tiny(classes=3).sample(3, **wish)


def test_a_model_without_labels_cannot_be_guided():
    with pytest.raises(ConfigError, match="guided"):
        tiny().sample(1, guidance=1.0)
    with pytest.raises(ConfigError, match="guidance"):
        DenoisingConfig(image_size=8, channels=1, guidance=1.0)
    with pytest.raises(ConfigError, match="labels"):
        tiny().sample(1, labels=[0])
    with pytest.raises(DataError, match="labels"):
        tiny(classes=3)(batch())


def test_a_model_of_no_classes_does_not_look_at_labels():
    """`--set classes=0 --set guidance=0` on pictures with labels."""
    given = rectified_flow.stages[0].sizes["small"](PictureSpec(8, 1, ("a", "b")))
    model = DenoisingModel(given.updated({"classes": "0", "guidance": "0"}))
    labelled = batch(6, 2)
    assert torch.equal(model(labelled).total, model(replace(labelled, labels=None)).total)
    assert model.sample(2, steps=2, labels=None).shape == (2, 1, 8, 8)
    with pytest.raises(ConfigError, match="leave labels away"):
        model.sample(2, labels=[0, 1])


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"steps": 1001}, "more than the 1000"),
        ({"steps": 1001, "grid": "trailing", "path": "straight"}, "more than the 1000"),
        ({"image_size": 0}, "image_size"),
        ({"channels": 0}, "channels"),
        ({"classes": -1}, "classes"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"classes": 3, "guidance": -1.0}, "guidance"),
        ({"classes": 3, "guidance": float("nan")}, "guidance"),
        ({"grid": "leding"}, "did you mean 'leading'"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        DenoisingConfig(**{"image_size": 8, "channels": 1, "network": TINY, **choices})


def test_a_uniform_grid_has_as_many_steps_as_one_likes():
    assert DenoisingConfig(8, 1, network=TINY, grid="uniform", steps=4000).steps == 4000


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
@pytest.mark.parametrize("size", [1, 7, 8, 14, 15, 28, 30, 32, 48, 64, 72, 96, 128])
def test_small_models_fit_many_sizes(system, size):
    config = system.stages[0].sizes["small"](PictureSpec(size, 1, ("a", "b")))
    model = DenoisingModel(config)
    assert sum(p.numel() for p in model.parameters()) < 3e6
    assert model.sample(1, steps=1).shape == (1, 1, size, size)


@pytest.mark.parametrize("size", [28, 72, 224, 256, 512, 1024, 2048])
def test_the_small_network_attends_only_where_there_are_few_positions(size):
    network = small_unet(PictureSpec(size))
    assert len(network.attention) == len(network.multipliers)
    assert all(size // 2**level <= 16 for level, yes in enumerate(network.attention) if yes)
    assert network.attention[-1]
    assert size % 2 ** (len(network.multipliers) - 1) == 0


@pytest.mark.parametrize(("size", "nearest"), [(17, 16), (34, 32), (50, 48), (225, 224), (1023, 1024), (2049, 2048)])
def test_sizes_that_the_small_network_cannot_halve_are_refused(size, nearest):
    with pytest.raises(ConfigError, match=f"--image-size {nearest}"):
        small_unet(PictureSpec(size))
    small_unet(PictureSpec(nearest))


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_the_published_network_has_the_published_size(truth, system):
    """Ho et al. 2020, appendix B: 35.7 million parameters for CIFAR-10."""
    with torch.device("meta"):
        model = DenoisingModel(system.stages[0].sizes["paper"](PictureSpec(32, 3)))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    truth(
        f"{system.name}, paper",
        "parameters in millions",
        "35.7 (Ho et al. 2020, appendix B)",
        abs(millions - 35.7),
        0.05,
    )


def test_the_published_network_refuses_a_size_that_it_cannot_halve():
    with torch.device("meta"), pytest.raises(ConfigError, match="multiple of 8"):
        DenoisingModel(ddpm.stages[0].sizes["paper"](PictureSpec(28, 1)))


@pytest.mark.parametrize("system", [ddpm, rectified_flow], ids=lambda system: system.name)
def test_a_config_survives_json(system):
    config = system.stages[0].sizes["small"](PictureSpec(28, 1, tuple("0123456789")))
    assert DenoisingConfig.from_dict(config.to_dict()) == config
