"""The denoising model: its loss, its samples, its codes, and what it refuses."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec, picture_seeds
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.diffusion import grids
from mezzotint.diffusion.guidance import ClassifierFree, Guidance
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel, by_quarter, pseudo_huber
from mezzotint.diffusion.networks import ddpm_unet, small_unet
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import DATA_STD, Denoiser, rows, target
from mezzotint.diffusion.solvers import ddim, edm, euler
from mezzotint.diffusion.systems import SYSTEMS, ddpm, rectified_flow
from mezzotint.diffusion.times import TIMES
from mezzotint.nn.dit import DiTConfig
from mezzotint.nn.ncsnpp import NCSNppConfig
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
KARRAS = {
    "path": "edm",
    "prediction": "edm",
    "unit_input": True,
    "times": "log-normal",
    "weighting": "edm",
    "solver": "edm",
    "grid": "karras",
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


def perfect(data=None, **choices):
    """A model whose network knows that the numbers of its pictures are independently normal."""
    data = data or Gaussian()

    class Perfect(DenoisingModel):
        def answer(self, x, t, labels=None):
            at = self.path.at(t)
            return target(self.config.prediction, data.clean(x, at), data.noise(x, at), at)

    chosen = {"prediction": "v", "times": "uniform", "clip": False, "solver": "ddim", "grid": "uniform", **choices}
    return Perfect(DenoisingConfig(8, 1, network=TINY, **chosen))


def batch(n=6, classes=0):
    labels = torch.arange(n) % classes if classes else None
    return Batch(torch.rand(n, 1, 8, 8) * 2 - 1, labels, seeds=list(range(n)))


@pytest.mark.parametrize(
    "choices",
    [{}, RF, KARRAS, {"prediction": "v", "weighting": "min-snr", "path": "cosine"},
     {**RF, "times": "u-shaped", "metric": "pseudo-huber"}],
)  # fmt: skip
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(truth, choices, classes):
    model, whole = tiny(classes=classes, **choices).double(), batch(6, classes)
    whole.images = whole.images.double()
    losses, halves = model(whole), [model(whole[:3]), model(whole[3:])]
    error = ((losses.total - (halves[0].total + halves[1].total) / 2) / losses.total).abs().detach()
    truth("denoising model", "loss of a batch, relative", "mean over its halves", error, 1e-15)
    for name, part in losses.parts.items():
        assert abs(part - (halves[0].parts[name] + halves[1].parts[name]) / 2) < 1e-12 * losses.parts["mse"]
    quarters = [name for name in losses.parts if name.startswith("mse/")]
    assert quarters == ["mse/1", "mse/2", "mse/3", "mse/4"]
    assert abs(sum(losses.parts[name] for name in quarters) - losses.parts["mse"]) < 1e-12 * losses.parts["mse"]
    if model.config.weighting == "simple":
        assert losses.parts["mse"] == losses.total.detach()


def test_each_quarter_of_the_times_has_its_errors():
    """A time that is the end of a quarter belongs to it, as step 250 of a thousand does; beyond 1 is the last."""
    t = torch.tensor([0.0, 0.001, 0.25, 0.2501, 0.5, 0.75, 0.76, 1.0, 1.4], dtype=torch.float64)
    error = 2.0 ** torch.arange(9)
    parts = by_quarter(error, t, "loss")
    assert {name: float(part) * 9 for name, part in parts.items()} == pytest.approx(
        {"loss/1": 1 + 2 + 4, "loss/2": 8 + 16, "loss/3": 32, "loss/4": 64 + 128 + 256}
    )


def test_the_pseudo_huber_metric_is_that_of_its_paper(truth):
    """sqrt(|e|^2 + c^2) - c with c = 0.00054 sqrt(d) of consistency models, and 0.00054 d of rectified flows."""
    error = torch.tensor([0.0, 1e-3, 1.0], dtype=torch.float64)[:, None, None, None] * torch.ones(
        3, 3, 4, 4, dtype=torch.float64
    )
    expected = [math.sqrt(48 * size**2 + 0.00054**2 * 48) - 0.00054 * math.sqrt(48) for size in (0.0, 1e-3, 1.0)]
    worst = (pseudo_huber(error) - torch.tensor(expected, dtype=torch.float64)).abs().max()
    truth("consistency model", "pseudo-Huber metric", "closed form", worst, 3e-16)
    model = tiny(metric="pseudo-huber")
    expected = [math.sqrt(48 * size**2 + (0.00054 * 48) ** 2) - 0.00054 * 48 for size in (0.0, 1e-3, 1.0)]
    worst = (model.distance(error) - torch.tensor(expected, dtype=torch.float64)).abs().max()
    truth("denoising model", "pseudo-Huber metric", "closed form", worst, 1e-15)
    assert torch.equal(tiny().distance(error), error.square().mean((1, 2, 3)))


def test_the_loss_of_edm_is_equation_8(truth):
    """Karras et al. 2022: the mean of lambda(sigma) |D(c + n; sigma) - c|^2, and D with the four factors of table 1."""
    model, pictures = tiny(**KARRAS).double(), batch()
    images, d = pictures.images.double(), DATA_STD
    random = PictureRandom(pictures.seeds)
    sigma = torch.exp(-1.2 + 1.2 * random.normal().double()).view(-1, 1, 1, 1)
    n = random.normal(1, 8, 8).double()
    c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / (sigma**2 + d**2).sqrt()
    c_in, c_noise = 1 / (sigma**2 + d**2).sqrt(), sigma.flatten().log() / 4
    x = images + sigma * n
    D = c_skip * x + c_out * model.network(c_in * x, c_noise)
    weight = (sigma**2 + d**2) / (sigma * d) ** 2
    expected = (weight * (D - images) ** 2).mean()
    loss = model(Batch(images, seeds=pictures.seeds)).total
    truth("edm", "loss, relative", "Karras et al. 2022, eq. 8 and table 1", abs(loss / expected - 1).detach(), 1e-15)
    seen = model.denoiser()(x, sigma.flatten() / 80).clean
    truth("edm", "denoised picture", "Karras et al. 2022, eq. 7", (seen - D).abs().max().detach(), 1e-15)


@pytest.mark.parametrize("path", PATHS)
def test_the_network_is_told_its_time_and_sees_what_it_was_promised(path):
    told = {}

    class Remembers(torch.nn.Module):
        def forward(self, x, t, labels=None):
            told["x"], told["t"] = x, t
            return x

    model = tiny(path=path, prediction="v", unit_input=True)
    model.network = Remembers()
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.3, 0.8], dtype=torch.float64)
    at = PATHS[path].at(t)
    model.answer(x, t)
    assert torch.equal(told["t"], PATHS[path].network_time(t))
    torch.testing.assert_close(told["x"], x / (at.alpha**2 / 4 + at.sigma**2).sqrt().view(2, 1, 1, 1))
    model.config = replace(model.config, unit_input=False)
    model.answer(x, t)
    assert told["x"] is x


def test_losses_repeat_with_their_seeds_and_differ_with_others():
    model, one = tiny(), batch()
    again = model(one).total
    one.seeds = [seed + 100 for seed in range(6)]
    assert torch.equal(model(batch_like(one, list(range(6)))).total, again)
    assert not torch.equal(model(one).total, again)


def batch_like(one, seeds):
    return Batch(one.images, one.labels, seeds=seeds)


@pytest.mark.parametrize(
    ("path", "times", "kind"),
    [("linear", "discrete", "noise"), ("straight", "uniform", "velocity"), ("linear", "discrete", "v"),
     ("straight", "logit-normal", "clean"), ("zero-snr", "discrete", "v"), ("vp", "uniform", "score"),
     ("edm", "log-normal", "edm")],
)  # fmt: skip
def test_a_perfect_denoiser_has_the_loss_that_cannot_be_explained(truth, path, times, kind):
    """For Gaussian data Var[c | x_t] = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), and an error of the clean picture counts
    (a - b alpha / sigma)^2 in a prediction a c + b n. Its mean over the same times is the loss that is left."""
    model, data, n = perfect(path=path, times=times, prediction=kind), Gaussian(), 400
    images = data.mean + data.std * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    loss = model(Batch(images, seeds=list(range(n)))).total
    at = PATHS[path].at(TIMES[times](PictureRandom(range(n)), PATHS[path]))
    per = at.alpha / at.sigma
    gain = {
        "noise": per,
        "clean": torch.ones_like(per),
        "v": -at.sigma - at.alpha * per,
        "velocity": at.d_alpha - at.d_sigma * per,
        "score": per / at.sigma,
        "edm": (at.ratio**2 + DATA_STD**2).sqrt() / (at.ratio * DATA_STD),  # 1 / c_out
    }[kind]
    expected = (data.std**2 * at.sigma**2 / (at.alpha**2 * data.std**2 + at.sigma**2) * gain**2).mean()
    # 400 x 64 squared normal errors of unequal size: their mean is known to about 1.5 %
    error = abs(loss / expected - 1)
    truth(f"loss, {kind}, {path}", "a perfect denoiser on Gaussian data, relative", "closed form", error, 0.03)


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [{}, RF, KARRAS])
def test_a_picture_does_not_depend_on_its_batch(truth, choices):
    model = tiny(classes=3, **choices)
    together = model.sample(5, labels=[0, 1, 2, 0, 1], seeds=10, guidance=1.5)
    alone = torch.cat([
        model.sample(1, labels=[k % 3], seeds=10 + k, guidance=1.5) for k in range(5)
    ])  # fmt: skip
    truth("sampling", "five pictures together", "one by one, float32", (together - alone).abs().max(), 1e-5)


def start(model, n=2, **controls):
    """The state at which a solver begins."""
    found = []

    def remember(denoiser, x, grid, noise, callback=None):
        found.append((x, grid))
        return x

    model.sample(n, solver=remember, **controls)
    return found[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grid", ["uniform", "leading", "karras"])
def test_sampling_starts_with_the_noise_of_its_first_time(path, grid):
    """Standard normal numbers on most paths; 80 or 100 of them where that is how a path ends."""
    x, times = start(tiny(path=path, prediction="v"), seeds=3, grid=grid, steps=4)
    noise = PictureRandom(picture_seeds(2, 3)).normal(1, 8, 8)
    torch.testing.assert_close(x, rows(PATHS[path].at(times[0]).sigma, noise) * noise, rtol=1e-6, atol=0)
    assert times.dtype == torch.float64
    assert len(times) == 5
    assert times[0] == (1 if grid != "leading" else times.max())


@pytest.mark.parametrize("path", ["linear", "zero-snr", "vp", "subvp", "ve", "edm", "straight"])
def test_a_perfect_denoiser_draws_from_its_data(truth, path):
    """From the same noise, the pictures that the flow of Gaussian data leads to: each number m + s n, of any path."""
    data = Gaussian(0.1, 0.2)
    model = perfect(data, path=path, solver="edm", grid="karras")
    noise = PictureRandom(picture_seeds(16, 5)).normal(1, 8, 8).double()
    at = PATHS[path].at(torch.tensor(1.0, dtype=torch.float64))
    begun = (float(at.sigma) * noise - float(at.alpha) * data.mean) / float(data.spread(at))
    error = (model.sample(16, seeds=5, steps=60).double() - (data.mean + data.std * begun)).abs().max()
    what, tolerance = "60 steps of EDM's solver from given noise", {"ve": 5e-4}.get(path, 1e-2)
    truth(f"sampling, {path}", what, "the flow of Gaussian data", error, tolerance)


def test_eta_leads_from_the_deterministic_to_the_ancestral_sampler(truth):
    model = tiny(path="cosine")

    def drawn(**controls):
        return model.sample(3, seeds=1, steps=6, **controls)

    assert torch.equal(drawn(solver="ddim", eta=0.0), drawn(solver="ddim"))
    error = (drawn(solver="ddim", eta=1.0) - drawn(solver="ancestral")).abs().max()
    truth("sampling", "DDIM with eta = 1, float32", "the ancestral sampler", error, 2e-6)
    noise = partial_noise(model, 3, 1)
    with torch.no_grad():
        own = ddim(model.denoiser(), noise(), grids.leading(6, model.path), noise, eta=0.4)
    assert torch.equal(drawn(solver="ddim", eta=0.4), own.clamp(-1, 1))


def partial_noise(model, n, seeds):
    random = PictureRandom(picture_seeds(n, seeds))
    at = model.path.at(grids.leading(6, model.path)[0])
    first = [rows(at.sigma, torch.ones(1)) * random.normal(1, 8, 8)]
    return lambda: first.pop() if first else random.normal(1, 8, 8)


@pytest.mark.parametrize(
    "controls",
    [{"guidance": 2.0}, {"guidance": 2.0, "guidance_interval": (0.2, 0.7)},
     {"guidance": 3.0, "guidance_rescale": 0.6}, {"guidance": 0.0}],
)  # fmt: skip
def test_the_controls_of_guidance_reach_the_samples(controls):
    """Whether they are asked for when sampling or stand in the config."""
    model, labels = tiny(classes=3, path="cosine", solver="ddim"), torch.tensor([0, 2])
    asked = model.sample(2, labels=labels, steps=5, **controls)
    strength = Guidance(controls["guidance"], controls.get("guidance_interval", (0.0, 1.0)),
                        controls.get("guidance_rescale", 0.0))  # fmt: skip
    guided = ClassifierFree(model.answer, labels, 3, strength)
    x, grid = start(model, labels=labels, steps=5)
    with torch.no_grad():
        own = ddim(Denoiser(guided, model.path, "noise", clip=True), x, grid, None)
    assert torch.equal(asked, own.clamp(-1, 1))
    model.config = replace(model.config, **controls)
    assert torch.equal(model.sample(2, labels=labels, steps=5), asked)
    plain = model.sample(2, labels=labels, steps=5, guidance=0.0)
    assert torch.equal(plain, asked) == (controls["guidance"] == 0.0)


def test_guidance_is_one_call_of_the_network_a_step_and_costs_nothing_outside_its_interval():
    model, sizes = tiny(classes=3, path="vp", solver="ddim", grid="uniform"), []
    model.network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    model.sample(2, steps=10, guidance=1.0)
    assert sizes == [4] * 10
    sizes.clear()
    model.sample(2, steps=10, guidance=1.0, guidance_interval=(0.35, 0.75))  # of the times 1, 0.9, ..., 0.1
    assert sizes == [2, 2, 2, 4, 4, 4, 4, 2, 2, 2]
    sizes.clear()
    model.sample(2, steps=10)
    assert sizes == [2] * 10


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 1, 9, 9), torch.zeros(2, 3, 8, 8), torch.zeros(1, 8, 8), torch.zeros(2, 1, 8, 8).byte()]
)
def test_what_is_no_picture_of_the_model_is_refused(wrong):
    for ask in (tiny().encode, tiny().decode):
        with pytest.raises(ConfigError, match=r"of the shape \(B, 1, 8, 8\), not .* convert or resize"):
            ask(wrong, steps=2)


@pytest.mark.parametrize("wrong", [[0.5, 1.7], torch.tensor([0.0, 1.0]), [True, False], ["a", "b"], [[0], [1, 2]]])
def test_what_is_no_class_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"labels are .* from 0 to 2, not"):
        tiny(classes=3).sample(2, labels=wrong, steps=2)


def test_half_steps_and_three_ends_of_an_interval_are_refused():
    for grid in ("karras", "uniform", "leading"):
        with pytest.raises(ConfigError, match=r"a whole number of steps, at least 1 step, not 2\.7"):
            tiny().sample(1, steps=2.7, grid=grid)
    with pytest.raises(ConfigError, match=r"an earliest and a latest time within 0 and 1, not 0\.1, 0\.2, 0\.3"):
        Guidance(1.0, (0.1, 0.2, 0.3))


def test_a_grid_that_does_not_begin_with_noise_is_refused():
    """The only one of one leading step is that of the least noise: what is drawn from there is grey."""
    for solver in ("ddim", "rk45"):
        with pytest.raises(ConfigError, match=r"begin at t = 0\.001, .* use more steps, or the grid trailing"):
            tiny().sample(1, steps=1, solver=solver, grid="leading")
    assert tiny().sample(1, steps=1, grid="trailing").isfinite().all()


def test_guidance_stays_on_where_churn_goes_beyond_the_last_time():
    """A state that got new noise is noisier than at t = 1, where a run begins."""
    model, seen = tiny(classes=3, **KARRAS), []
    model.network.register_forward_pre_hook(lambda module, given: seen.append((float(given[1].max()), len(given[0]))))
    model.sample(2, steps=5, guidance=1.0, solver=partial(edm, S_churn=5.0))
    assert max(seen)[0] > float(model.path.network_time(torch.ones(())))
    assert {size for _, size in seen} == {4}


@pytest.mark.parametrize("choices", [{"guidance_rescale": 0.7}, {"path": "edm", "grid": "karras"}, RF])
def test_a_new_model_draws_pictures_without_a_single_nan(choices):
    """Whose last layer is zero."""
    model = DenoisingModel(
        DenoisingConfig(**{"image_size": 8, "channels": 1, "network": TINY, "classes": 3, **choices})
    )
    torch.nn.init.zeros_(model.network.conv_out.weight)
    torch.nn.init.zeros_(model.network.conv_out.bias)
    assert model.sample(2, steps=4, guidance=2.0).isfinite().all()


# Codes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "grid", "solver", "orders"),
    [("vp", "uniform", "ddim", (1, 1)), ("cosine", "uniform", "ddim", (1, 1)), ("edm", "karras", "ddim", (1, 1)),
     ("straight", "uniform", "ddim", (1, 1)), ("straight", "uniform", "heun", (2, 2)),
     ("straight", "uniform", "edm", (2, 2)), ("edm", "karras", "heun", (2, 3))],
)  # fmt: skip
def test_codes_tend_to_those_of_the_flow_at_the_order_of_their_solver(truth, path, grid, solver, orders):
    """And the pictures drawn from codes to the pictures (Song et al. 2020, section 5.4). Gaussian data have a flow that
    is known. On the paths whose sigma grows as the root of t, the first step out of the picture is of order 1. There
    and back, Heun's leading error cancels, but for that of a first step which counts (Karras' is very short)."""
    data = Gaussian(0.1, 0.3)
    model = perfect(data, path=path)
    images = 0.6 * torch.rand(2, 1, 8, 8, dtype=torch.float64) - 0.2
    clean, end = (PATHS[path].at(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    exact, code, back = data.flowed(images, clean, end) / end.sigma, [], []
    for steps in (100, 200):
        found = model.encode(images, steps=steps, solver=solver, grid=grid)
        code.append(float((found - exact).abs().max()))
        back.append(float((model.decode(found, steps=steps, solver=solver, grid=grid) - images).abs().max()))
    for what, errors, order in (("code", code, orders[0]), ("picture from its code", back, orders[1])):
        measured = math.log2(errors[0] / errors[1])
        truth(f"encoding, {path}", f"order of the {what} by {solver}", str(order), abs(measured - order), 0.08)
        assert errors[1] < (0.05 if order == 1 else 1e-3)


@pytest.mark.parametrize(
    "choices",
    [{"path": "cosine", "prediction": "clean", "clip": False}, {"path": "cosine"}, {"path": "linear"}, KARRAS],
)
def test_codes_are_drawn_from_as_noise_is(choices):
    """`decode` of a picture's own noise is `sample` without guidance."""
    model = tiny(**{"classes": 3, **choices, "solver": "ddim", "grid": "karras"})
    labels = torch.tensor([2, 0])
    drawn = model.sample(2, labels=labels, seeds=9, steps=7, guidance=0.0)
    random = PictureRandom(picture_seeds(2, 9))
    random.integers(0, 3)  # a label is drawn first
    noise = random.normal(1, 8, 8)
    assert torch.equal(model.codes([9, 10]), noise)
    assert torch.equal(model.decode(noise, labels=labels, steps=7), drawn)
    assert torch.equal(model.decode(noise, labels=[2, 0], steps=7), drawn)
    assert not torch.equal(model.decode(noise, steps=7), drawn)
    assert not torch.equal(model.encode(drawn, labels=labels, steps=7), model.encode(drawn, steps=7))


@pytest.mark.parametrize("path", PATHS)
def test_a_network_that_is_not_perfect_finds_the_picture_from_its_code(path):
    """A hundredth of error in the noise is 200 in the expected picture at the end of the cosine schedule, where sigma
    is 20,000 alpha; the expected picture is held within [-1, 1]. Half the steps, twice the error."""
    data = Gaussian(0.1, 0.3)
    prediction = "v" if PATHS[path].at(torch.tensor(1.0)).alpha == 0 else "noise"
    model = perfect(data, path=path, prediction=prediction, clip=True)
    rightly = model.answer
    model.answer = lambda x, t, labels=None: rightly(x, t) + 0.01 * torch.sin(7 * x)
    images = 0.6 * torch.rand(2, 1, 8, 8, dtype=torch.float64) - 0.2
    errors = [float((model.decode(model.encode(images, steps=n), steps=n) - images).abs().max()) for n in (50, 100)]
    assert errors[1] < 0.025
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize(
    ("choices", "wish", "complaint"),
    [
        ({}, {"solver": "ancestral"}, "on times that rise, use ddim, euler, heun, edm or rk45"),
        ({}, {"solver": "euler-maruyama"}, "on times that rise, use ddim"),
        ({}, {"solver": "hoin"}, "did you mean 'heun'"),
        ({}, {"grid": "unifrom"}, "did you mean 'uniform'"),
        ({}, {"steps": 0}, "at least 1 step"),
        ({}, {"labels": [0, 1]}, "without labels; leave labels away"),
        ({"classes": 3}, {"labels": [0, 3]}, "from 0 to 2"),
        ({"classes": 3}, {"labels": [0]}, "2 labels"),
        ({"classes": 3, "label_dropout": 0.0}, {}, "always told labels"),
    ],
)
def test_codes_that_cannot_be_are_refused(choices, wish, complaint):
    model, images = tiny(**choices), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ConfigError, match=complaint):
        model.encode(images, **wish)
    if "solver" not in wish or wish["solver"] == "hoin":
        with pytest.raises(ConfigError, match=complaint):
            model.decode(images, **wish)


def test_decoding_needs_a_deterministic_solver():
    with pytest.raises(ConfigError, match="a deterministic solver, such as ddim, euler or heun"):
        tiny().decode(torch.zeros(2, 1, 8, 8), solver="ancestral")


# What is refused, and the rest ----------------------------------------------------------------------------------------


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
    own = model.sample(2, solver=euler, grid=lambda steps, path: grid)
    assert not torch.equal(own, model.sample(2, steps=3))


def test_sampling_ignores_dropout_and_leaves_the_mode_as_it_was():
    model = tiny(network=replace(TINY, dropout=0.5))
    model.train()
    assert torch.equal(model.sample(1), model.sample(1))
    assert model.training


def test_labels_are_hidden_as_often_as_asked():
    model, one = tiny(classes=3, label_dropout=0.25), batch(2000, 3)
    hidden = model.training_labels(one, one.random()) == 3
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
        ({"guidance": 1.0, "guidance_interval": (0.5, 0.2)}, "an earliest and a latest time"),
        ({"guidance_rescale": 2.0}, "between 0 and 1"),
        ({"solver": "ddim", "eta": 1.5}, "between 0 .deterministic. and 1 .ancestral., not 1.5"),
        ({"solver": "ancestral", "eta": 0.5}, "eta belongs to the solver ddim, not to ancestral; choose solver ddim"),
        ({"labels": [0, 1]}, "3 labels"),
        ({"captions": ["a shoe"] * 3}, "does not take captions; leave captions away"),
        ({"source": torch.ones(3, 1, 8, 8)}, "does not take source"),
        ({"mask": torch.ones(3, 1, 8, 8)}, "does not take mask"),
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
        ({"path": "lineal"}, "no path is called 'lineal'; did you mean 'linear'"),
        ({"times": "unifrom"}, "no time sampler is called 'unifrom'; did you mean 'uniform'"),
        ({"weighting": "min-snt"}, "no weighting is called 'min-snt'; did you mean 'min-snr'"),
        ({"solver": "ddmi"}, "no solver is called 'ddmi'; did you mean 'ddim'"),
        ({"classes": 3, "guidance": 1.0, "label_dropout": 0.0}, "some label_dropout; set guidance to 0"),
        ({"classes": 3, "guidance_interval": (0.9, 0.1)}, "earliest and a latest time"),
        ({"classes": 3, "guidance_rescale": -1.0}, "between 0 and 1"),
        (
            {"path": "zero-snr", "prediction": "noise"},
            "nothing of the picture at t = 1, which the noise cannot",
        ),
        ({"path": "straight", "prediction": "score"}, "set prediction to clean, v, velocity or edm"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        DenoisingConfig(**{"image_size": 8, "channels": 1, "network": TINY, **choices})


def test_a_uniform_grid_has_as_many_steps_as_one_likes():
    assert DenoisingConfig(8, 1, network=TINY, grid="uniform", steps=4000).steps == 4000


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 8, 14, 15, 28, 30, 32, 48, 64, 72, 96, 128])
def test_the_small_network_fits_many_sizes(size):
    model = DenoisingModel(DenoisingConfig(size, 1, network=small_unet(PictureSpec(size))))
    assert sum(p.numel() for p in model.parameters()) < (1e6 if size in (28, 32) else 5e6)
    assert model.sample(1, steps=2).shape == (1, 1, size, size)


@pytest.mark.parametrize("size", [28, 72, 224, 256, 512, 1024, 2048])
def test_the_small_network_attends_only_where_there_are_few_positions(size):
    network = small_unet(PictureSpec(size))
    assert len(network.attention) == len(network.multipliers)
    across = [size // (network.patch * 2**level) for level in range(len(network.multipliers))]
    assert all(side <= 16 for side, yes in zip(across, network.attention) if yes)
    assert network.attention[-1]
    assert across[-1] * network.patch * 2 ** (len(across) - 1) == size


@pytest.mark.parametrize(("size", "nearest"), [(17, 16), (34, 32), (50, 48), (225, 224), (1023, 1024), (2049, 2048)])
def test_sizes_that_the_small_network_cannot_halve_are_refused(size, nearest):
    with pytest.raises(ConfigError, match=f"--image-size {nearest}"):
        small_unet(PictureSpec(size))
    small_unet(PictureSpec(nearest))


def test_the_published_network_has_the_published_size(truth):
    with torch.device("meta"):
        model = DenoisingModel(DenoisingConfig(32, 3, network=ddpm_unet(PictureSpec(32, 3))))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    source = "35.7 (Ho et al. 2020, appendix B)"
    truth("ddpm, paper", "parameters in millions", source, abs(millions - 35.7), 0.05)


def test_the_published_network_refuses_a_size_that_it_cannot_halve():
    with torch.device("meta"), pytest.raises(ConfigError, match="multiple of 8"):
        DenoisingModel(ddpm.stages[0].sizes["paper"](PictureSpec(28, 1)))


@pytest.mark.parametrize(
    "network",
    [TINY, NCSNppConfig(8, (1, 2), 1, (False, True)), DiTConfig(depth=2, width=16, heads=2)],
    ids=lambda network: network.kind,
)
@pytest.mark.parametrize("classes", [0, 3])
def test_every_network_can_denoise(network, classes):
    model = tiny(network=network, classes=classes, path="vp", times="uniform", grid="uniform", prediction="v")
    assert model(batch(4, classes)).total.isfinite()
    pictures = model.sample(2, labels=[0, 2] if classes else None, guidance=1.0 if classes else 0.0)
    assert pictures.shape == (2, 1, 8, 8)
    assert pictures.isfinite().all()


# Configs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_the_configs_of_all_systems_survive_json(system):
    for stage in system.stages:
        for size in stage.sizes.values():
            config = size(PictureSpec(32, 1, tuple("0123456789"), source=True))
            assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_settings_of_whichever_network_is_there_can_be_changed():
    """`--set network.width=64`, of a transformer; a kind that is changed starts from that kind's defaults."""
    transformer = DenoisingConfig(8, 1, network=DiTConfig())
    assert transformer.updated({"network.width": "64", "network.heads": "2"}).network == DiTConfig(width=64, heads=2)
    changed = DenoisingConfig(8, 1, network=TINY).updated({"network.kind": "dit", "network.width": "96"})
    assert changed.network == DiTConfig(width=96)
    with pytest.raises(ConfigError, match=r"no setting is called 'network\.multipliers'"):
        transformer.updated({"network.multipliers": "1,2"})


def test_the_config_of_an_older_run_is_that_of_a_unet():
    """From when there was no other network, and nothing was chosen but these."""
    old = {
        "image_size": 28, "channels": 1, "classes": 10, "path": "linear", "prediction": "noise", "times": "discrete",
        "network": {"channels": 64, "multipliers": [1, 2, 2], "blocks": 1, "attention": [False, False, True],
                    "head_dim": 32, "groups": 8, "eps": 1e-5, "dropout": 0.0, "patch": 1},
        "weighting": "simple", "label_dropout": 0.1, "solver": "ddim", "grid": "leading", "steps": 50,
        "guidance": 1.0, "clip": True,
    }  # fmt: skip
    config = DenoisingConfig.from_dict(old)
    assert config.network == UNetConfig(64, (1, 2, 2), 1, (False, False, True), head_dim=32, groups=8)
    del old["network"]["head_dim"], old["network"]["groups"]  # what is left are settings of NCSN++ as well
    assert type(DenoisingConfig.from_dict({**old, "network": {"channels": 128}}).network) is UNetConfig
