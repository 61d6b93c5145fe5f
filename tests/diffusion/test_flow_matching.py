"""Flow matching: conditional velocities, their mean, and why regression on the one learns the other.

The survey's time s runs from noise to the picture: our t is 1 - s, and our velocity is minus its u.
"""

import numpy as np
import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import Batch, PictureRandom, PictureSpec
from mezzotint.diffusion.measures import adaptive_samples
from mezzotint.diffusion.model import DenoisingConfig, DenoisingModel
from mezzotint.diffusion.paths import PATHS, ContinuousVP
from mezzotint.diffusion.predictions import Denoiser, convert, target
from mezzotint.diffusion.solvers import probability_flow
from mezzotint.diffusion.systems import flow_matching_diffusion, flow_matching_ot
from mezzotint.diffusion.times import TIMES
from mezzotint.nn.unet import UNetConfig

OT, VP = PATHS["ot"], PATHS["vp"]
SIGMA_MIN = 1e-4
S = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
NAMED = pytest.mark.parametrize(("name", "path"), [("ot", OT), ("diffusion", VP)])
nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(150))
weights = weights / weights.sum()  # of expectations of a standard normal z: E f(z) = sum_k w_k f(z_k)


def conditional(path, x, picture, s):
    """u_s(x | picture) as the package has it; x, picture and s of shapes that broadcast."""
    at = path.at(1 - s)
    wide = type(at)(*(c.expand(torch.broadcast_shapes(x.shape, s.shape)) for c in at))
    a, b = wide.d_alpha, wide.d_sigma
    noise = (x - wide.alpha * picture) / wide.sigma
    return -(a * picture + b * noise)


def published(name, x, picture, s):
    """u_s(x | picture) of Lipman et al. 2022: eq. 21 for optimal transport, eq. 19 for diffusion."""
    if name == "ot":
        return (picture - (1 - SIGMA_MIN) * x) / (1 - (1 - SIGMA_MIN) * s)
    path = ContinuousVP()
    T = path.beta_min * (1 - s) + (path.beta_max - path.beta_min) / 2 * (1 - s) ** 2  # T(1 - s) = int_0^{1-s} beta
    slope = path.beta_min + (path.beta_max - path.beta_min) * (1 - s)
    return -slope / 2 / -torch.expm1(-T) * (torch.exp(-T) * x - torch.exp(-T / 2) * picture)


@NAMED
def test_the_conditional_velocity_is_that_of_the_paper(truth, name, path):
    x, picture = torch.randn(5, 7).double(), torch.randn(7).double()
    s = S[:, None]
    ours, theirs = conditional(path, x, picture, s), published(name, x, picture, s)
    truth(f"flow matching, {name}", "conditional velocity, relative", "Lipman et al. 2022, eq. 19 and 21",
          ((ours - theirs) / theirs).abs().max(), 2e-13)  # fmt: skip


@NAMED
def test_the_conditional_velocity_is_the_derivative_of_the_conditional_flow(truth, name, path):
    """d/ds psi_s(z) = u_s(psi_s(z)), psi_s(z; picture) = sigma_s z + mu_s(picture): the survey's eq. 111-112."""
    z, picture = torch.randn(7).double(), torch.randn(7).double()

    def psi(s):
        at = path.at(1 - s)
        return at.sigma * z + at.alpha * picture

    worst = 0.0
    for s in S:
        derivative = torch.autograd.functional.jacobian(psi, s)
        at = path.at(1 - s)
        learned = -target("velocity", picture[None], z[None], type(at)(*(c[None] for c in at)))[0]  # of the loss
        worst = max(worst, ((learned - derivative) / derivative).abs().max())
        converted = -convert(picture, psi(s), at, "clean", "velocity")  # of x alone
        worst = max(worst, ((converted - derivative) / derivative).abs().max())
    truth(f"flow matching, {name}", "d psi / ds, relative", "automatic derivative of psi", worst, 1e-12)


def test_the_ends_of_the_paths_are_those_of_the_survey(truth):
    """Below eq. 110: mu = 0 and sigma = 1 at s = 0, mu = picture and sigma = sigma_min at s = 1."""
    noise, picture = OT.at(torch.tensor(1.0)), OT.at(torch.tensor(0.0))
    assert (noise.alpha, noise.sigma) == (0, 1)
    assert (picture.alpha, picture.sigma) == (1, SIGMA_MIN)
    noise = VP.at(torch.tensor(1.0))  # nearly
    truth("flow matching, diffusion", "picture that is left in noise", "0.0066", noise.alpha - 0.00657, 1e-5)


# The marginal velocity, eq. 109


POINTS = torch.tensor([-1.2, 0.1, 0.4, 2.0]).double()  # a data set of four numbers


def marginal(path, x, s):
    """u_s(x) of eq. 109 for the four points; x (...)."""
    at = path.at(1 - s)
    posterior = torch.softmax(-((x[..., None] - at.alpha * POINTS) ** 2) / (2 * at.sigma**2), -1)
    return (posterior * conditional(path, x[..., None], POINTS, s)).sum(-1)


@NAMED
def test_the_mean_of_conditional_velocities_is_the_velocity_of_gaussian_data(truth, name, path):
    """Eq. 109 by quadrature over pictures, against the closed form that the probability-flow ODE has."""
    data, x = Gaussian(), torch.linspace(-1, 1, 9).double()
    pictures, worst = data.mean + data.std * nodes, 0.0
    for s in torch.tensor([0.0, 0.3, 0.6]).double():
        at = path.at(1 - s)
        log_p = -((x[:, None] - at.alpha * pictures) ** 2) / (2 * at.sigma**2)
        posterior = weights * (log_p - log_p.amax(1, keepdim=True)).exp()
        mean = posterior / posterior.sum(1, keepdim=True)
        u = (mean * conditional(path, x[:, None], pictures, s)).sum(1)
        closed = -convert(data.clean(x, at), x, at, "clean", "velocity")
        worst = max(worst, (u - closed).abs().max())
    truth(f"flow matching, {name}", "marginal velocity of Gaussian data", "closed form", worst, 1e-14)


@NAMED
@pytest.mark.parametrize("s", [0.0, 0.4, 0.7])
def test_regression_on_conditional_velocities_has_the_gradient_of_regression_on_the_marginal(truth, name, path, s):
    """Lipman et al. 2022, theorem 2: E|v - u(x|x_1)|^2 and E|v - u(x)|^2 differ by a constant. By enumeration of the
    four pictures, and by quadrature over the noise, for a network of one hidden layer."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    s = torch.tensor(s).double()
    at = path.at(1 - s)
    x = at.alpha * POINTS[:, None] + at.sigma * nodes  # (4, K)
    v = network(x[..., None])[..., 0]
    losses = [
        (weights * (v - u) ** 2).sum(1).mean() for u in (conditional(path, x, POINTS[:, None], s), marginal(path, x, s))
    ]
    one, other = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, network.parameters(), retain_graph=True)])
                  for loss in losses)  # fmt: skip
    assert losses[0] > 1.01 * losses[1]  # they differ, and not by a little
    error = (one - other).norm() / other.norm()
    truth(f"flow matching, {name}", f"gradient of the conditional loss at s = {s:g}, relative",
          "gradient of the marginal loss", error, 1e-8)  # fmt: skip


# The model


@NAMED
def test_the_loss_is_that_of_box_11(truth, name, path):
    system = {"ot": flow_matching_ot, "diffusion": flow_matching_diffusion}[name]
    config = system.stages[0].sizes["small"](PictureSpec(8))
    assert (config.prediction, config.times, config.weighting) == ("velocity", "uniform", "simple")
    model = DenoisingModel(DenoisingConfig.from_dict(
        {**config.to_dict(), "network": UNetConfig(8, (1,), 1, (False,), groups=4).to_dict()}
    )).double()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = Batch(torch.rand(6, 1, 8, 8).double() * 2 - 1, seeds=range(6))
    random = PictureRandom(range(6))
    t = TIMES["uniform"](random, path)
    x0, x1 = random.normal(1, 8, 8).double(), batch.images
    at = path.at(t)
    x = at.sigma.view(-1, 1, 1, 1) * x0 + at.alpha.view(-1, 1, 1, 1) * x1
    u = published(name, x, x1, 1 - t.view(-1, 1, 1, 1))
    v = -model.network(x, path.network_time(t))
    expected = (v - u).square().mean()
    error = (model(batch).total / expected - 1).abs().detach()
    truth(f"flow matching, {name}", "loss, relative", "Box 11 with the paper's u", error, 1e-14)


@NAMED
def test_the_cost_of_a_sample_is_counted(truth, name, path):
    network = UNetConfig(8, (1,), 1, (False,), groups=4)
    model = DenoisingModel(DenoisingConfig(
        8, 1, network=network, path=name if name == "ot" else "vp", prediction="velocity", times="uniform",
        solver="rk45", grid="uniform", steps=1, clip=False,
    ))  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    found, loose = adaptive_samples(model, 3, seeds=4), adaptive_samples(model, 3, seeds=4, rtol=1e-2, atol=1e-2)
    assert (loose.evaluations < found.evaluations).all()
    alone = adaptive_samples(model, 1, seeds=5)
    assert alone.evaluations[0] == found.evaluations[1]
    # the way ends at the path's start; from there `sample` makes one step more
    error = (found.y.clamp(-1, 1) - model.sample(3, seeds=4)).abs().max()
    truth(f"flow matching, {name}", "adaptive samples", "the solver rk45", error, 5e-6)


def test_clipped_samples_end_where_their_velocity_exists(truth):
    """A clean picture held within [-1, 1] tells no velocity at t = 0 itself; the way ends at 0.001 instead."""
    data, z = Gaussian(), PictureRandom(range(3)).normal(1, 8, 8)
    model = DenoisingModel(DenoisingConfig(
        8, 1, network=UNetConfig(8, (1,), 1, (False,), groups=4), path="straight", prediction="velocity",
        times="uniform", solver="rk45", grid="uniform", steps=1, clip=True,
    ))  # fmt: skip
    exact = data.denoiser(PATHS["straight"], "velocity")
    model.answer = lambda x, t, labels=None: exact(x, t).velocity
    found = adaptive_samples(model, 3).y
    inside = (data.mean + data.std * z).abs() < 0.9  # where nothing is ever clipped on the way
    at = PATHS["straight"].at(torch.tensor(1e-3).double())
    expected = at.alpha * data.mean + data.spread(at) * z
    truth("flow matching", "adaptive samples, clipped", "closed form", (found - expected)[inside].abs().max(), 1e-4)


class Mixture:
    """Four Gaussians in the plane."""

    centres = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]).double()
    std = 0.1

    def denoiser(self, path):
        def network(x, t):
            at = path.at(t)
            a, variance = at.alpha.view(-1, 1, 1), (at.alpha**2 * self.std**2 + at.sigma**2).view(-1, 1, 1)
            off = x[:, None] - a * self.centres
            weight = torch.softmax(-off.square().sum(2, keepdim=True) / (2 * variance), 1)
            return (weight * (self.centres + a * self.std**2 / variance * off)).sum(1)

        return Denoiser(network, path, "clean")


def test_the_flow_of_gaussian_data_ends_where_the_closed_form_does(truth):
    data, z = Gaussian(), torch.randn(20, 1, 2, 2).double()
    for name, path, end in (("ot", OT, 0.0), ("diffusion", VP, VP.start)):
        end = torch.tensor(end).double()
        ended = probability_flow(data.denoiser(path, "clean"), z, 1.0, end, 1e-8, 1e-8).y
        expected = data.flowed(z, path.at(torch.tensor(1.0).double()), path.at(end))
        truth(f"flow matching, {name}", "samples by the adaptive solver, tolerance 1e-8", "closed form",
              (ended - expected).abs().max(), 1e-7)  # fmt: skip


def test_straight_paths_need_fewer_evaluations_than_diffusion(truth):
    """Table XI: 142 against 183 on CIFAR-10. Here on the exact velocities of four Gaussians in the plane."""
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
    counts = {}
    for name, path, end in (("ot", OT, 0.0), ("diffusion", VP, VP.start)):
        solution = probability_flow(Mixture().denoiser(path), z, 1.0, end, 1e-5, 1e-5)
        counts[name] = solution.evaluations.double().mean()
        far = (solution.y[:, None] - Mixture.centres).norm(dim=2).amin(1)
        assert far.max() < 5 * Mixture.std
    truth("flow matching", "evaluations of the adaptive solver, straight paths over diffusion", "at most as many",
          counts["ot"] / counts["diffusion"], 0.9)  # fmt: skip
