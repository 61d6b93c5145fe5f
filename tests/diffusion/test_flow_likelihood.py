"""Likelihoods of probability-flow ODEs against the exact densities of mixtures of Gaussians."""

import itertools
import math

import pytest
import torch
from gaussian import Gaussian
from mixture import Mixture
from other_device import OtherDevice

from mezzotint.core.batch import PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import HasLogProb
from mezzotint.diffusion.likelihood import (
    FlowModel,
    earliest,
    likelihood,
    rademacher,
    smooth,
    velocity_and_divergence,
)
from mezzotint.diffusion.model import DenoisingConfig
from mezzotint.diffusion.ode import rk4
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.predictions import Denoiser
from mezzotint.evaluation.likelihood import mean_bits_per_dim
from mezzotint.nn.unet import UNetConfig

DATA = Mixture(
    torch.tensor([[0.5, 0.2], [-0.6, 0.4], [0.1, -0.7]]).double().view(3, 1, 1, 2),
    torch.tensor([0.15, 0.1, 0.25]).double(), torch.tensor([0.5, 0.2, 0.3]).double(),
)  # fmt: skip
# What the network predicts on each path; each velocity exists at both ends
KINDS = {"vp": "noise", "subvp": "score", "ve": "score", "edm": "edm", "straight": "velocity", "ot": "velocity"}
X = torch.rand(6, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def time(t):
    return torch.tensor(t, dtype=torch.float64)


def prior(x, sigma):
    return torch.distributions.Normal(0 * x, sigma).log_prob(x).flatten(1).sum(1)


def exact(path, x, end):
    """The density of what the exact flow makes of the solvers' noise: that of the data at the start of the path, times
    how much likelier the solvers' noise is at the end than the data's own."""
    at = path.at(time(1.0))
    return DATA.log_prob(x, path.at(time(path.start))) + prior(end, at.sigma) - DATA.log_prob(end, at)


@pytest.mark.parametrize("path", KINDS)
def test_the_likelihood_of_a_mixture_is_its_density(truth, path):
    """In two dimensions, with the closed-form denoiser and tolerances of 1e-8 for each step."""
    solved = likelihood(DATA.denoiser(PATHS[path], KINDS[path]), X, rtol=1e-8, atol=1e-8)
    error = (solved.log_prob - exact(PATHS[path], X, solved.end)).abs().max()
    truth(f"likelihood, {path} path", "2-D mixture, nats", "exact density", error, 1e-6)


@pytest.mark.parametrize(("path", "kind"), [("linear", "noise"), ("cosine", "noise"), ("zero-snr", "v")])
def test_a_path_of_steps_is_followed_without_its_corners(truth, path, kind):
    """On the VP path, from the noise of the first step; an adaptive solver would stumble at each of the thousand."""
    denoiser, start = smooth(DATA.denoiser(PATHS[path], kind))
    solved = likelihood(denoiser, X, start=start, rtol=1e-8, atol=1e-8)
    at = PATHS["vp"].at(time(1.0))
    begin = DATA.log_prob(X, PATHS[path].at(time(0.001)))
    error = (solved.log_prob - begin - prior(solved.end, at.sigma) + DATA.log_prob(solved.end, at)).abs().max()
    truth(f"likelihood, {path} path", "2-D mixture, nats", "exact density", error, 1e-6)
    assert solved.evaluations.max() < 500


@pytest.mark.parametrize("path", KINDS)
def test_the_noise_at_the_end_is_nearly_that_of_the_data(truth, path):
    """What is left of the pictures at t = 1 is what the likelihood of samples and that of the data differ by; and the
    standard tolerances are good for a thousandth of a nat."""
    solved = likelihood(DATA.denoiser(PATHS[path], KINDS[path]), X)
    error = (solved.log_prob - DATA.log_prob(X, PATHS[path].at(time(PATHS[path].start)))).abs().max()
    tolerance = {"vp": 0.01, "subvp": 0.01, "ve": 0.015, "edm": 0.02, "straight": 0.003, "ot": 0.003}[path]
    truth(f"likelihood, {path} path", "2-D mixture, tolerances 1e-5, nats", "density of the data", error, tolerance)


@pytest.mark.parametrize(("path", "tolerance"), [("vp", 1e-3), ("subvp", 2e-5), ("ot", 1e-5)])
def test_the_start_of_a_path_is_nearly_the_picture(truth, path, tolerance):
    """The density at the start is that of pictures under its noise; it moves by about that variance over the data's."""
    clean = type(PATHS[path].at(time(1.0)))(*(time(v) for v in (1.0, 0.0, 0.0, 0.0)))
    at = PATHS[path].at(time(PATHS[path].start))
    error = (DATA.log_prob(X, at) - DATA.log_prob(X, clean)).abs().max()
    truth(f"likelihood, {path} path", "density at the start, nats", "of the pictures", error, tolerance)


def gaussian(data, x, at):
    """ln p(x_t) of Gaussian data."""
    return torch.distributions.Normal(at.alpha * data.mean, data.spread(at)).log_prob(x).flatten(1).sum(1)


def test_fixed_steps_are_of_order_four(truth):
    """Runge and Kutta's, for Gaussian data on the VP path, from where its velocity is smooth."""
    data, path, errors = Gaussian(), PATHS["vp"], []
    begin, end = path.at(time(0.2)), path.at(time(1.0))
    for steps in (10, 20):
        times = torch.linspace(0.2, 1, steps + 1, dtype=torch.float64)
        solved = likelihood(data.denoiser(path), X, times=times)
        at_end = prior(solved.end, end.sigma) - gaussian(data, solved.end, end)
        errors.append((solved.log_prob - gaussian(data, X, begin) - at_end).abs().max())
        assert solved.evaluations.tolist() == [4 * steps] * 6
    order = math.log2(errors[0] / errors[1])
    truth("likelihood, vp path", "order of fixed steps, N = 10 to 20", "4", abs(order - 4), 0.03)
    truth("likelihood, vp path", "Gaussian data, 20 fixed steps, nats", "exact density", errors[1], 1e-5)


def test_every_prediction_tells_the_same_likelihood(truth):
    """And every form of the same knowledge the same one, on the path where all of them exist at the start."""
    kinds = ("noise", "clean", "velocity", "v", "score", "edm")
    logs = torch.stack([likelihood(DATA.denoiser(PATHS["vp"], kind), X).log_prob for kind in kinds])
    truth("likelihood, vp path", "six predictions, nats", "each other", (logs - logs[0]).abs().max(), 1e-11)


@pytest.mark.oracles
def test_torchdiffeq_agrees(truth):
    """A second solver, with the trace of a Jacobian that autograd makes whole."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    denoiser = DATA.denoiser(PATHS["straight"], "velocity")

    def slope(t, state):
        x = state[0]
        jacobian = torch.autograd.functional.jacobian(
            lambda y: denoiser(y, t).velocity.sum(0), x
        )  # (1, 1, 2, B, 1, 1, 2)
        return denoiser(x, t).velocity, torch.einsum("abcnabc->n", jacobian)

    x, gained = torchdiffeq.odeint(slope, (X, X.new_zeros(6)), time([0.0, 1.0]), rtol=1e-8, atol=1e-8)
    theirs = prior(x[-1], 1.0) + gained[-1]
    ours = likelihood(denoiser, X, rtol=1e-8, atol=1e-8).log_prob
    truth("likelihood, straight path", "2-D mixture, nats", "torchdiffeq 0.2.5", (ours - theirs).abs().max(), 5e-7)


# The divergence -------------------------------------------------------------------------------------------------------


class Crooked(torch.nn.Module):
    """A velocity whose Jacobian is full and different everywhere."""

    def __init__(self, dims):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.a, self.b = (torch.randn(dims, dims, dtype=torch.float64, generator=generator) for _ in range(2))

    def forward(self, x, t):
        return (torch.tanh(x.flatten(1) @ self.a + t.view(-1, 1)) @ self.b).view_as(x)


def crooked(dims=6):
    return Denoiser(Crooked(dims), PATHS["straight"], "velocity"), torch.randn(4, 1, 2, dims // 2, dtype=torch.float64)


def jacobians(denoiser, x, t):
    one = torch.autograd.functional.jacobian
    return torch.stack([one(lambda y: denoiser(y, t).velocity, row[None]).view(row.numel(), -1) for row in x])


def test_the_exact_divergence_is_the_trace_of_the_jacobian(truth):
    denoiser, x = crooked()
    velocity, divergence = velocity_and_divergence(denoiser, x, time(0.3))
    traces = jacobians(denoiser, x, time(0.3)).diagonal(dim1=1, dim2=2).sum(1)
    truth("divergence", "exact", "trace of autograd's Jacobian", (divergence - traces).abs().max(), 1e-13)
    assert torch.equal(velocity, denoiser(x, time(0.3)).velocity)
    assert not velocity.requires_grad
    assert not divergence.requires_grad


def test_a_probe_is_right_on_average_over_all_probes(truth):
    """Hutchinson's estimate, exactly: the mean over all 2^6 vectors of signs is the trace; and the variance is that of
    the symmetric part of the Jacobian off its diagonal, 2 sum_{i /= j} S_ij^2."""
    denoiser, x = crooked()
    probes = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    many = torch.stack([velocity_and_divergence(denoiser, x, time(0.3), p.expand(4, 6).view_as(x))[1] for p in probes])
    jacobian = jacobians(denoiser, x, time(0.3))
    symmetric = (jacobian + jacobian.transpose(1, 2)) / 2
    off = symmetric - torch.diag_embed(symmetric.diagonal(dim1=1, dim2=2))
    error = (many.mean(0) - jacobian.diagonal(dim1=1, dim2=2).sum(1)).abs().max()
    truth("divergence, Hutchinson", "mean over all 64 probes", "trace", error, 1e-13)
    expected = 2 * off.square().sum((1, 2))
    error = (many.var(0, correction=0) / expected - 1).abs().max()
    truth("divergence, Hutchinson", "variance over all 64 probes, relative", "2 sum of S_ij^2", error, 1e-13)


def test_the_mean_of_the_estimates_is_the_likelihood(truth):
    """All four probes of two numbers: the way is the same for each, and only the divergence is estimated."""
    denoiser = DATA.denoiser(PATHS["straight"], "velocity")
    signs = [torch.tensor(p, dtype=torch.float64).view(1, 1, 1, 2).expand_as(X)
             for p in itertools.product((-1.0, 1.0), repeat=2)]  # fmt: skip
    logs = torch.stack([likelihood(denoiser, X, p, rtol=1e-6, atol=1e-6).log_prob for p in signs])
    whole = likelihood(denoiser, X, rtol=1e-6, atol=1e-6).log_prob
    assert (logs - whole).abs().max() > 0.1
    truth(
        "likelihood, Hutchinson",
        "mean over all 4 probes, nats",
        "exact trace",
        (logs.mean(0) - whole).abs().max(),
        5e-5,
    )


def test_a_linear_flow_needs_no_luck(truth):
    """Where the Jacobian is diagonal, as for Gaussian data, one probe of signs is exact: eps_i^2 = 1."""
    data, path = Gaussian(), PATHS["vp"]
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    probe = rademacher(PictureRandom(range(5)), 1, 4, 4).double()
    logs = likelihood(data.denoiser(path, "noise"), x, probe, rtol=1e-8, atol=1e-8)
    begin, end = path.at(time(path.start)), path.at(time(1.0))
    at_end = prior(logs.end, end.sigma) - gaussian(data, logs.end, end)
    error = (logs.log_prob - gaussian(data, x, begin) - at_end).abs().max()
    truth("likelihood, vp path", "Gaussian data, 16 numbers, one probe, nats", "exact density", error, 2e-6)


def test_probes_are_signs_of_their_own_seeds():
    probe = rademacher(PictureRandom(range(50)), 1, 8, 8)
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    assert abs(probe.mean()) < 0.06
    assert torch.equal(probe[7:9], rademacher(PictureRandom([7, 8]), 1, 8, 8))


# The model ------------------------------------------------------------------------------------------------------------


class Bent(torch.nn.Module):
    """A network that bends the flow of four numbers gently, also with time, and otherwise for each label."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.a, self.b = (torch.nn.Parameter(torch.randn(4, 4, generator=generator)) for _ in range(2))

    def forward(self, x, t, labels=None):
        shift = t.to(x.dtype).to(x.device).view(-1, 1) / 1000 + (0 if labels is None else 0.3 * labels.view(-1, 1))
        return (torch.tanh(x.flatten(1) @ self.a + shift) @ self.b).view_as(x)


def tiny(**choices):
    """A model of pictures of 2 x 2."""
    model = FlowModel(DenoisingConfig(**{
        "image_size": 2, "channels": 1, "network": UNetConfig(8, (1,), 1, (False,), groups=4), "path": "straight",
        "prediction": "velocity", "times": "uniform", "solver": "euler", "grid": "uniform", "steps": 4, "clip": False,
        **choices,
    }))  # fmt: skip
    model.network = Bent()
    return model


def test_a_model_is_the_flow_of_its_denoiser(truth):
    model, x = tiny().double(), torch.rand(2, 1, 2, 2, dtype=torch.float64) * 2 - 1
    exactly = model.log_prob(x, trace="exact", rtol=1e-8, atol=1e-8)
    error = (exactly - likelihood(model.unclipped(), x, rtol=1e-8, atol=1e-8).log_prob).abs().max()
    truth("flow model", "log_prob, nats", "flow of its denoiser", error, 1e-12)
    clipped = tiny(clip=True).double()
    assert torch.equal(clipped.log_prob(x, trace="exact", rtol=1e-8, atol=1e-8), exactly)
    fixed = model.log_prob(x, trace="exact", steps=60, grid="uniform")
    truth("flow model", "60 fixed steps, nats", "adaptive steps", (fixed - exactly).abs().max(), 3e-7)


def test_the_density_is_that_of_what_the_flow_draws(truth):
    """Change of variables, without any divergence: noise goes through the solver backwards, and the density of where it
    arrives is that of the noise over the determinant of the whole map's Jacobian."""
    model = tiny().double()
    z = torch.randn(1, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    times = torch.linspace(1, 0, 101, dtype=torch.float64)
    denoiser = model.unclipped()
    draw = lambda noise: rk4(lambda t, y: denoiser(y, t).velocity, noise, times)  # noqa: E731
    determinant = torch.autograd.functional.jacobian(draw, z).view(4, 4).slogdet().logabsdet
    with torch.no_grad():
        x = draw(z)
    expected = prior(z, 1.0) - determinant
    error = (model.log_prob(x, trace="exact", rtol=1e-8, atol=1e-8) - expected).abs().max()
    truth("flow model", "log_prob of a drawn picture, nats", "change of variables", error, 1e-7)


@pytest.mark.parametrize("steps", [None, 5])
def test_the_likelihood_of_a_picture_depends_on_its_seed_alone(truth, steps):
    """Also its cost: every picture goes its own steps."""
    model, x = tiny(classes=3).double(), torch.rand(4, 1, 2, 2, dtype=torch.float64) * 2 - 1
    labels = torch.tensor([0, 1, 2, 0])
    whole = model.likelihood(x, labels=labels, seeds=3, steps=steps)
    each = [model.likelihood(x[k : k + 1], labels=labels[k : k + 1], seeds=[3 + k], steps=steps) for k in range(4)]
    error = (whole.log_prob - torch.cat([one.log_prob for one in each])).abs().max()
    truth("flow model", f"four pictures together, fixed steps {steps}, nats", "one by one", error, 1e-14)
    assert whole.evaluations.tolist() == [int(one.evaluations) for one in each]
    assert not torch.equal(whole.log_prob, model.log_prob(x, labels=labels, seeds=4, steps=steps))


def test_float32_is_good_enough(truth):
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    single, double = (made.likelihood(x.to(dtype), rtol=1e-5, atol=1e-5)
                      for made, dtype in ((tiny(), torch.float32), (tiny().double(), torch.float64)))  # fmt: skip
    assert single.log_prob.dtype == torch.float32
    truth("flow model", "log_prob in float32, nats", "float64", (single.log_prob - double.log_prob).abs().max(), 1e-4)


@pytest.mark.parametrize("trace", ["hutchinson", "exact"])
def test_likelihoods_in_fixed_steps_stay_on_their_device(trace):
    """Adaptive ones have to look at their errors."""
    model = tiny(classes=3).to("meta")
    with OtherDevice():
        assert model.log_prob(torch.empty(3, 1, 2, 2, device="meta"), trace=trace, steps=2).is_meta


def test_likelihoods_without_labels_are_those_of_the_unconditional_branch():
    model, x = tiny(classes=3), torch.zeros(2, 1, 2, 2)
    null, t = torch.full((2,), 3), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(model.unclipped()(x, t).y, model.answer(x, t, null))
    assert not torch.equal(model.log_prob(x, steps=3), model.log_prob(x, labels=[2, 2], steps=3))
    with pytest.raises(ConfigError, match="always told labels"):
        tiny(classes=3, label_dropout=0.0).log_prob(x)


def test_what_is_unknown_is_refused():
    model, x = tiny(), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="hutchinson or exact"):
        model.log_prob(x, trace="hutchison")
    with pytest.raises(ConfigError, match="no grid is called"):
        model.log_prob(x, steps=3, grid="karas")
    with pytest.raises(ConfigError, match="how many with steps"):
        model.log_prob(x, grid="karras")
    with pytest.raises(ConfigError, match="without labels"):
        model.log_prob(x, labels=[0], steps=3)


@pytest.mark.parametrize("path", ["vp", "ve", "edm", "straight"])
@pytest.mark.parametrize("grid", ["karras", "uniform"])
def test_so_many_steps_are_so_many(path, grid):
    prediction = "velocity" if path == "straight" else "noise"
    found = tiny(path=path, prediction=prediction).likelihood(torch.zeros(1, 1, 2, 2), steps=4, grid=grid)
    assert found.evaluations.tolist() == [16]


def test_the_mode_and_the_gradients_are_as_before():
    model, x = tiny().train(), torch.zeros(1, 1, 2, 2)
    assert not model.log_prob(x, steps=2).requires_grad
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("path", "kind", "start"),
    [("straight", "velocity", 0.0), ("straight", "v", 0.0), ("straight", "noise", 0.0), ("straight", "edm", 0.0),
     ("straight", "clean", 1e-3), ("straight", "score", 1e-3), ("ot", "clean", 0.0), ("vp", "noise", 1e-5),
     ("edm", "edm", 0.002 / 80), ("linear", "noise", 1e-3)],
)  # fmt: skip
def test_a_flow_begins_where_its_velocity_does(path, kind, start):
    denoiser = DATA.denoiser(PATHS[path], kind)
    assert earliest(denoiser) == start
    assert denoiser(X, time(earliest(denoiser))).velocity.isfinite().all()


@pytest.mark.parametrize("grid", ["karras", "uniform", "trailing"])
@pytest.mark.parametrize("path", ["straight", "vp", "edm"])
def test_any_grid_serves(path, grid):
    model = tiny(path=path, prediction="velocity" if path == "straight" else "edm")
    for steps in (1, 2):
        found = model.likelihood(torch.zeros(2, 1, 2, 2), steps=steps, grid=grid)
        assert found.log_prob.isfinite().all()


def test_bits_per_dimension_are_those_of_dequantised_pictures():
    model = tiny()
    assert isinstance(model, HasLogProb)
    result = mean_bits_per_dim(model, [torch.zeros(3, 1, 2, 2)], controls={"steps": 3})
    assert (result.bound, result.pixels, result.pictures) == (True, "dequantised", 3)
    assert result.controls == {"trace": "hutchinson", "rtol": 1e-4, "atol": 1e-4, "steps": 3, "grid": None}
